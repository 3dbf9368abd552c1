"""The ratio of pods: who answers behind the Service for callers."""

from __future__ import annotations

import pytest

from modelrollout.api.status import Status
from modelrollout.cluster.kinds import SERVICE
from modelrollout.traffic import RouteReading
from modelrollout.traffic.pod_ratio import PodRatioRouter
from modelrollout.workloads import workload_actions
from tests.unit.workloads.manifests import manifest, revision_of, spec_of, status_of, with_version
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
