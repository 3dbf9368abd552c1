"""The ratio of pods: who answers behind the Service for callers."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.conditions import Reason
from modelrollout.api.status import Status
from modelrollout.cluster.kinds import SERVICE
from modelrollout.traffic import RouteReading
from modelrollout.traffic.pod_ratio import PodRatioRouter
from modelrollout.workloads import workload_actions
from tests.unit.workloads.manifests import Object, manifest, revision_of, spec_of, status_of, with_version
from tests.unit.workloads.server import Server

NOW = 1_800_000_000.0
ROUTER = PodRatioRouter()
OLDER = manifest()
ROLLOUT = with_version(OLDER, "2")
A, B = revision_of(OLDER), revision_of(ROLLOUT)


def cluster(status: Status) -> Server:
    server = Server()
    server.run(workload_actions(OLDER, spec_of(OLDER), status_of(A), server.children(), NOW))
    server.run(workload_actions(ROLLOUT, spec_of(ROLLOUT), status, server.children(), NOW))
    server.pods(f"fraud-{A}", A, 3)
    server.pods(f"fraud-{B}", B, 1)
    return server


def names(revision: str, count: int) -> list[str]:
    return [f"{revision}-{number}" for number in range(count)]


STEP = status_of(A, B, sizes=(3, 1, 0), weights=(75, 25, 0), attempt=2)
FIRST = status_of(A, B, sizes=(3, 1, 0), weights=(100, 0, 0), attempt=2)
BEHIND = {
    "both sides with all their pods": (STEP, [*names(A, 3), *names(B, 1)], {A: 75, B: 25}, True),
    "the candidate is not there yet": (STEP, names(A, 3), {A: 100}, False),
    "a pod of the baseline is missing": (STEP, [*names(A, 2), *names(B, 1)], {A: 66, B: 33}, False),
    "a pod that nobody knows": (STEP, [*names(A, 3), "stranger"], {A: 75}, False),
    "nobody": (STEP, [], {}, False),
    "only the baseline, as it should be": (FIRST, names(A, 3), {A: 100}, True),
    "a candidate that should not be there": (FIRST, [*names(A, 3), *names(B, 1)], {A: 75, B: 25}, False),
}


@pytest.mark.parametrize(("status", "behind", "weights", "accepted"), BEHIND.values(), ids=BEHIND)
def test_the_split_is_read_from_who_answers(
    status: Status, behind: list[str], weights: dict[str, int], accepted: bool
) -> None:
    server = cluster(status)
    server.endpoints("fraud", behind)
    reading = ROUTER.observe(ROLLOUT, spec_of(ROLLOUT), status, server.children())
    assert (reading.weights, reading.accepted) == (weights, accepted)


def test_there_is_no_split_without_the_service_for_callers() -> None:
    server = cluster(STEP)
    children = server.children()
    del children.services["fraud"]  # type: ignore[attr-defined]
    assert ROUTER.observe(ROLLOUT, spec_of(ROLLOUT), STEP, children) == RouteReading()


PINS = {
    "all of it at the baseline": ((100, 0, 0), A),
    "some of it at the candidate": ((75, 25, 0), None),
    "all of it at the candidate, since no other pod is ready": ((0, 100, 0), B),
    "nothing said yet": ((0, 0, 0), A),
}


@pytest.mark.parametrize(("weights", "pin"), PINS.values(), ids=PINS)
def test_the_service_is_pinned_while_one_revision_has_all_weight(
    weights: tuple[int, int, int], pin: str | None
) -> None:
    server = cluster(status_of(A, B, weights=weights, attempt=2))
    selector = server.get(SERVICE, "fraud")["spec"]["selector"]
    assert selector.get("modelrollout.dev/revision") == pin
    assert selector["modelrollout.dev/rollout"] == "fraud"


def serving_on(
    target: int | str, container: int, *, called: str | None = "http", port_name: str = "http", **more: Any
) -> Object:
    """A ModelRollout whose containers listen on a port, which its Service goes to."""
    port = {"containerPort": container} | ({"name": called} if called else {})
    template = {"spec": {"containers": [{"name": "model", "image": "m", "ports": [port]}]}}
    ports = [{"name": port_name, "port": 80, "targetPort": target}]
    return manifest(template, service={"ports": ports}, **more)


KEPT = {"watch": {"holdback": 0}}
TARGETS: dict[str, tuple[Object, Object, bool]] = {
    "another number": (serving_on(8080, 8080), serving_on(9090, 9090), True),
    "another number for callers of the same port, which has another name": (
        serving_on(8080, 8080),
        serving_on(9090, 9090, port_name="web"),
        True,
    ),
    "another number behind the same name": (serving_on("http", 8080), serving_on("http", 9090), False),
    "a name for the same number": (serving_on(8080, 8080), serving_on("http", 8080), False),
    "a name for another number": (serving_on(8080, 8080), serving_on("http", 9090), True),
    "a name that the pods which serve do not have": (
        serving_on(8080, 8080, called=None),
        serving_on("http", 8080),
        True,
    ),
    "the same, but they keep no share afterwards": (
        serving_on(8080, 8080, called=None),
        serving_on("http", 8080, **KEPT),
        False,
    ),
    "a number in place of a name, for the same port": (
        serving_on("http", 8080),
        serving_on(8080, 8080),
        False,
    ),
    "another name in place of a name": (
        serving_on("http", 8080),
        serving_on("web", 8080, called="web"),
        True,
    ),
}


@pytest.mark.parametrize(("older", "newer", "refused"), TARGETS.values(), ids=TARGETS)
def test_one_service_must_reach_the_pods_of_both_where_they_listen(
    older: Object, newer: Object, refused: bool
) -> None:
    newer, server, first = with_version(newer, "2"), Server(), revision_of(older)
    server.run(workload_actions(older, spec_of(older), status_of(first), server.children(), NOW))
    for phase in ("Healthy", "Progressing", "Watching"):
        newer["status"] = {"phase": phase, "stable": {"revision": first}}
        found = ROUTER.problems(newer, spec_of(newer), server.children())
        assert [problem.reason for problem in found] == ([Reason.NOT_SUPPORTED] if refused else [])
        assert all("service.ports: port http goes to" in problem.message for problem in found)
    newer["status"]["phase"] = "Pending"  # nothing has served yet: a wrong port may be why
    assert ROUTER.problems(newer, spec_of(newer), server.children()) == []
    assert ROUTER.problems(older | {"status": newer["status"]}, spec_of(older), server.children()) == []


def test_a_template_that_nobody_has_checked_yet_breaks_nothing() -> None:
    older, server = serving_on("http", 8080), Server()
    first = revision_of(older)
    server.run(workload_actions(older, spec_of(older), status_of(first), server.children(), NOW))
    for containers in (["x"], [{"name": "m", "ports": 5}], [{"name": "m", "ports": ["x"]}]):
        newer = serving_on(8080, 8080) | {"status": {"phase": "Healthy", "stable": {"revision": first}}}
        newer["spec"]["workload"]["template"]["spec"]["containers"] = containers
        assert len(ROUTER.problems(newer, spec_of(newer), server.children())) == 1


def test_a_stored_revision_that_is_asked_for_is_held_against_its_own_record() -> None:
    older, newer, server = serving_on(8080, 8080), with_version(serving_on(9090, 9090), "2"), Server()
    first, second = revision_of(older), revision_of(newer)
    for rollout, revision in ((older, first), (newer, second)):
        server.run(workload_actions(rollout, spec_of(rollout), status_of(revision), server.children(), NOW))
    newer["status"] = {"phase": "Healthy", "stable": {"revision": second}, "undo": {"revision": first}}
    newer["spec"]["workload"]["template"] = {}
    (problem,) = ROUTER.problems(newer, spec_of(newer), server.children())
    assert "goes to 8080 of the containers" in problem.message


PODS = {
    "1 % of four": ((1, 4), (1, 3)),
    "25 % of four": ((25, 4), (1, 3)),
    "50 % of four": ((50, 4), (2, 2)),
    "99 % of four": ((99, 4), (3, 1)),
    "half of one: one surge pod": ((50, 1), (1, 1)),
    "nothing": ((0, 4), (0, 4)),
    "everything": ((100, 4), (4, 0)),
}


@pytest.mark.parametrize(("given", "pods"), PODS.values(), ids=PODS)
def test_weights_come_to_whole_pods(given: tuple[int, int], pods: tuple[int, int]) -> None:
    split = ROUTER.split(*given)
    assert (split.candidate_pods, split.baseline_pods) == pods
