"""What is written for a committed status, in which order, and what never is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelrollout.api.conditions import Reason
from modelrollout.api.status import Phase, PlanStep, Status, StepStatus
from modelrollout.cluster.actions import Action, Apply, Create, Delete, JsonPatch
from modelrollout.cluster.kinds import CONTROLLER_REVISION, DEPLOYMENT, HTTP_ROUTE, SERVICE, kind_of
from modelrollout.workloads import name_problems, needed_names, workload_actions
from modelrollout.workloads.children import delete
from tests.unit.workloads.manifests import (
    RICH,
    Object,
    accepted_of,
    manifest,
    revision_of,
    spec_of,
    status_of,
    with_version,
)
from tests.unit.workloads.server import Server

NOW = 1_800_000_000.0
# With a router, the Service for callers is pinned all the time; test_pod_ratio.py has the other case.
FIRST = manifest(RICH, traffic={"gatewayAPI": {"parentRefs": [{"name": "public"}]}})
SECOND = with_version(FIRST, "2")
THIRD = with_version(FIRST, "3")
A, B, C = (revision_of(rollout) for rollout in (FIRST, SECOND, THIRD))
NAMES = {A: "A", B: "B", C: "C"}


def plan(server: Server, status: Status, rollout: Object = SECOND, *, template: bool = True) -> list[Action]:
    spec = spec_of(rollout) if template else accepted_of(rollout)
    return workload_actions(rollout, spec, status, server.children(), NOW)


def told(actions: list[Action]) -> list[str]:
    """ "create Deployment fraud-A", for comparison."""
    lines = []
    for action in actions:
        if isinstance(action, Apply | Create):
            kind, name = kind_of(action.obj).kind, action.obj["metadata"]["name"]
        else:
            kind, name = action.kind.kind, action.name
        for revision, letter in NAMES.items():
            name = name.replace(revision, letter)
        lines.append(f"{type(action).__name__.lower()} {kind} {name}")
    return lines


def serving() -> Server:
    """The first revision serves."""
    server = Server()
    server.run(plan(server, status_of(A), FIRST))
    assert plan(server, status_of(A), FIRST) == []
    return server


STEP = status_of(A, B, weights=(90, 10, 0), attempt=2)


def comparing() -> Server:
    """The first revision serves, the second one is tried."""
    server = serving()
    server.run(plan(server, STEP))
    assert plan(server, STEP, template=False) == []
    return server


def test_the_first_deployment_makes_record_service_deployment_and_the_service_for_callers() -> None:
    assert told(plan(Server(), status_of(A), FIRST)) == [
        "create ControllerRevision fraud-A",
        "create Service fraud-A",
        "create Deployment fraud-A",
        "create Service fraud",
    ]


def test_nothing_is_written_before_a_revision_is_known_and_none_after_deletion() -> None:
    server = comparing()
    assert plan(server, Status()) == []
    going = copy.deepcopy(SECOND)
    going["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    assert plan(server, status_of(A), going) == []


def test_a_paused_start_creates_nothing() -> None:
    paused = status_of(A, B, sizes=(2, 0, 0), attempt=2)
    assert plan(serving(), paused) == []


def test_what_grows_comes_before_what_shrinks() -> None:
    server = comparing()
    promoted = status_of(B, previous=A, sizes=(2, 0, 1), attempt=2)
    assert told(plan(server, promoted)) == [
        "apply Deployment fraud-B",
        "apply Service fraud",
        "apply Deployment fraud-A",
    ]


def test_a_promotion_points_callers_at_the_new_stable_revision() -> None:
    server = comparing()
    server.run(plan(server, status_of(B, previous=A, attempt=2)))
    assert server.get(SERVICE, "fraud")["spec"]["selector"]["modelrollout.dev/revision"] == B


STANDING = {
    "it serves": ((90, 10, 0), 2, A),
    "it serves alone": ((100, 0, 0), 2, A),
    "the last step gives the candidate all": ((0, 100, 0), 2, A),
    "none of its pods is ready": ((0, 100, 0), 0, B),
    "none of its pods is ready, nor is any other": ((90, 10, 0), 0, A),
    "its first pod is back": ((60, 40, 0), 1, A),
}


@pytest.mark.parametrize(("weights", "ready", "pin"), STANDING.values(), ids=STANDING)
def test_callers_go_to_the_stable_revision_if_it_can_answer(
    weights: tuple[int, int, int], ready: int, pin: str
) -> None:
    server = comparing()
    status = status_of(A, B, weights=weights, attempt=2)
    assert status.stable is not None
    status = status.model_copy(update={"stable": status.stable.model_copy(update={"ready": ready})})
    server.run(plan(server, status))
    assert server.get(SERVICE, "fraud")["spec"]["selector"]["modelrollout.dev/revision"] == pin
    server.run(plan(server, STEP))
    assert server.get(SERVICE, "fraud")["spec"]["selector"]["modelrollout.dev/revision"] == A


def test_a_retired_revision_keeps_its_pods_until_its_time_is_over() -> None:
    server = comparing()
    server.run(plan(server, status_of(A, retiring=((B, NOW + 1, 1),), attempt=2)))
    assert server.get(DEPLOYMENT, f"fraud-{B}")["spec"]["replicas"] == 1
    assert told(plan(server, status_of(A, retiring=((B, NOW, 1),), attempt=2))) == [
        "delete Deployment fraud-B",
        "delete Service fraud-B",
    ]


def test_a_change_is_of_exactly_what_was_seen() -> None:
    server = comparing()
    live = server.get(DEPLOYMENT, f"fraud-{A}")["metadata"]
    (action,) = plan(server, status_of(A, B, sizes=(5, 1, 0), weights=(90, 10, 0), attempt=2))
    assert isinstance(action, Apply)
    assert (action.obj["metadata"]["uid"], action.resource_version) == (live["uid"], live["resourceVersion"])


def test_a_deletion_is_of_exactly_what_was_seen() -> None:
    server = comparing()
    live = server.get(DEPLOYMENT, f"fraud-{B}")
    action = plan(server, status_of(A, attempt=2))[0]
    assert isinstance(action, Delete)
    assert (action.uid, action.resource_version) == (
        live["metadata"]["uid"],
        live["metadata"]["resourceVersion"],
    )


def test_a_service_goes_only_after_the_callers_are_pointed_elsewhere() -> None:
    server = comparing()
    server.run(plan(server, status_of(B, previous=A, attempt=2)))
    back = plan(server, status_of(A, attempt=2))
    assert told(back)[-1] == "apply Service fraud"
    assert not any(isinstance(action, Delete) for action in back)
    server.run(back)
    assert "delete Service fraud-B" in told(plan(server, status_of(A, attempt=2)))


def test_children_are_made_from_the_record_and_not_from_the_spec() -> None:
    server = comparing()
    newer = with_version(SECOND, "9")
    assert plan(server, STEP, newer) == []
    server.edit(DEPLOYMENT, f"fraud-{A}", {"spec": {"replicas": 9}})
    server.run(plan(server, STEP, newer))
    env = server.get(DEPLOYMENT, f"fraud-{A}")["spec"]["template"]["spec"]["containers"][1]["env"]
    assert {"name": "MODEL_VERSION", "value": "1"} in env


def test_a_record_that_is_gone_is_made_again_only_from_a_spec_that_names_it() -> None:
    server = comparing()
    for revision in (A, B):
        record = server.get(CONTROLLER_REVISION, f"fraud-{revision}")
        server.run([delete(record, "test")])
    assert "create ControllerRevision fraud-B" in told(server.run(plan(server, STEP)))
    assert plan(server, STEP) == []
    assert set(server.children().controller_revisions) == {f"fraud-{B}"}


def test_without_a_record_what_runs_goes_on_and_can_be_scaled() -> None:
    server = comparing()
    server.run([delete(server.get(CONTROLLER_REVISION, f"fraud-{A}"), "test")])
    before = copy.deepcopy(server.get(DEPLOYMENT, f"fraud-{A}")["spec"]["template"])
    server.run(plan(server, status_of(A, B, sizes=(5, 1, 0), weights=(90, 10, 0), attempt=2)))
    after = server.get(DEPLOYMENT, f"fraud-{A}")["spec"]
    assert after["replicas"] == 5
    assert after["template"] == before


def test_a_retry_moves_the_record_to_the_new_attempt() -> None:
    server = comparing()
    assert server.get(CONTROLLER_REVISION, f"fraud-{B}")["revision"] == 2
    server.run(plan(server, status_of(A, B, weights=(90, 10, 0), attempt=5), template=False))
    assert server.get(CONTROLLER_REVISION, f"fraud-{B}")["revision"] == 5
    assert server.get(CONTROLLER_REVISION, f"fraud-{A}")["revision"] == 1


LIMITS = {"none": (0, {"C"}), "one": (1, {"B", "C"}), "enough": (10, {"A", "B", "C"})}


@pytest.mark.parametrize(("limit", "kept"), LIMITS.values(), ids=LIMITS)
def test_records_beyond_the_limit_go_and_those_in_use_stay(limit: int, kept: set[str]) -> None:
    server = comparing()
    rollout = copy.deepcopy(THIRD)
    rollout["spec"]["revisionHistoryLimit"] = limit
    server.run(plan(server, status_of(A, C, attempt=3), rollout))
    for _ in range(5):
        server.run(plan(server, status_of(C, attempt=3), rollout))
    assert plan(server, status_of(C, attempt=3), rollout) == []
    left = server.children().controller_revisions
    assert {NAMES[name.removeprefix("fraud-")] for name in left} == kept


def test_a_record_stays_as_long_as_its_pods() -> None:
    server = comparing()
    rollout = copy.deepcopy(SECOND)
    rollout["spec"]["revisionHistoryLimit"] = 0
    server.put(
        {
            "apiVersion": HTTP_ROUTE.api_version,
            "kind": HTTP_ROUTE.kind,
            "metadata": {"name": "fraud", "namespace": "ml"},
            "spec": {"parentRefs": [], "rules": [{"backendRefs": [{"name": f"fraud-{B}", "port": 80}]}]},
        }
    )
    assert plan(server, status_of(A, attempt=2), rollout) == []


def test_another_name_of_the_service_for_callers_replaces_the_old_one() -> None:
    server = serving()
    rollout = copy.deepcopy(FIRST)
    rollout["spec"]["service"]["name"] = "scores"
    assert told(server.run(plan(server, status_of(A), rollout))) == ["create Service scores"]
    assert told(server.run(plan(server, status_of(A), rollout))) == ["delete Service fraud"]
    assert plan(server, status_of(A), rollout) == []


OWNERS: dict[str, tuple[Any, str | None]] = {
    "no controller, but our label: it is ours": (None, "Apply"),
    "a ModelRollout of our name that no longer exists": (
        [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"},
            {
                "apiVersion": "modelrollout.dev/v1alpha1",
                "kind": "ModelRollout",
                "name": "fraud",
                "uid": "before",
                "controller": True,
            },
        ],
        "JsonPatch",
    ),
    "another ModelRollout": (
        [
            {
                "apiVersion": "modelrollout.dev/v1alpha1",
                "kind": "ModelRollout",
                "name": "other",
                "uid": "o",
                "controller": True,
            }
        ],
        None,
    ),
    "another kind of controller": (
        [{"apiVersion": "apps/v1", "kind": "ModelRollout", "name": "fraud", "uid": "o", "controller": True}],
        None,
    ),
}


@pytest.mark.parametrize(("owners", "expected"), OWNERS.values(), ids=OWNERS)
def test_only_what_was_ours_is_taken_back(owners: Any, expected: str | None) -> None:
    server, name = serving(), f"fraud-{A}"
    server.edit(DEPLOYMENT, name, {"metadata": {"ownerReferences": owners}})
    actions = plan(server, status_of(A), FIRST)
    assert [type(action).__name__ for action in actions] == ([expected] if expected else [])
    problems = name_problems(FIRST, spec_of(FIRST), status_of(A), server.children())
    assert [problem.reason for problem in problems] == ([] if expected else [Reason.NAME_TAKEN])
    assert all(f"Deployment {name} belongs to ModelRollout" in problem.message for problem in problems)
    if isinstance(actions and actions[0], JsonPatch):
        *tests, replace = actions[0].operations
        assert [test["op"] for test in tests] == ["test", "test"]
        assert [owner["uid"] for owner in replace["value"]] == ["x", "uid-fraud"]


def test_what_is_somebody_elses_is_never_deleted() -> None:
    server = comparing()
    foreign = [{"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "x", "controller": True}]
    for kind in (DEPLOYMENT, SERVICE, CONTROLLER_REVISION):
        server.edit(kind, f"fraud-{B}", {"metadata": {"ownerReferences": foreign}})
    rollout = copy.deepcopy(SECOND)
    rollout["spec"]["revisionHistoryLimit"] = 0
    assert plan(server, status_of(A, attempt=2), rollout) == []


def labelled(name: str, **selector: str) -> Object:
    """A Service that somebody made, with our label so that a ServiceMonitor finds it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "ml", "labels": {"modelrollout.dev/rollout": "fraud"}},
        "spec": {"selector": {"modelrollout.dev/rollout": "fraud"} | selector, "ports": [{"port": 9090}]},
    }


def test_a_service_that_only_carries_our_label_stays_and_keeps_no_revision() -> None:
    server = comparing()
    server.put(labelled("fraud-metrics", **{"modelrollout.dev/revision": B}))
    retired = status_of(A, attempt=2)
    assert told(server.run(plan(server, retired))) == ["delete Deployment fraud-B", "delete Service fraud-B"]
    assert plan(server, retired) == []
    assert "fraud-metrics" in server.children().services


def test_a_preview_service_that_lost_its_owner_still_goes() -> None:
    server = serving()
    server.put(labelled("fraud-preview", **{"modelrollout.dev/revision": B}))
    assert told(plan(server, status_of(A), FIRST)) == ["delete Service fraud-preview"]


def test_a_users_service_of_the_previews_name_stays() -> None:
    server = serving()
    server.put(labelled("fraud-preview", app="fraud"))
    assert plan(server, status_of(A), FIRST) == []


def test_what_is_going_already_is_neither_written_nor_deleted_again() -> None:
    server = comparing()
    going = {"metadata": {"deletionTimestamp": "2026-11-20T09:00:00Z"}, "spec": {"replicas": 7}}
    for revision in (A, B):
        server.edit(DEPLOYMENT, f"fraud-{revision}", going)
    assert plan(server, STEP) == []
    assert told(plan(server, status_of(A, attempt=2))) == ["delete Service fraud-B"]


@pytest.mark.parametrize("crash_after", range(1, 6))
def test_a_crash_between_any_two_writes_is_healed_by_the_next_round(crash_after: int) -> None:
    """From one step over a promotion to the end of the watch, dying after so many writes of each round."""
    server = serving()
    for status in (
        STEP,
        status_of(B, previous=A, weights=(90, 0, 10), attempt=2),
        status_of(B, retiring=((A, NOW + 30, 2),), attempt=2),
        status_of(B, attempt=2),
    ):
        for _ in range(10):
            actions = plan(server, status)
            if not actions:
                break
            server.run(actions[:crash_after])
        else:
            raise AssertionError("it never comes to rest")
    left = server.children()
    assert set(left.deployments) == {f"fraud-{B}"}
    assert set(left.services) == {"fraud", f"fraud-{B}"}
    assert server.get(SERVICE, "fraud")["spec"]["selector"]["modelrollout.dev/revision"] == B


GREEN = manifest(
    RICH,
    traffic={"gatewayAPI": {"parentRefs": [{"name": "public"}]}},
    strategy={"blueGreen": {"approval": True}},
)
GREEN_NEXT = with_version(GREEN, "2")
PREVIEWED = PlanStep(id="a", weight=0, size=100, preview=True)


def previewed(phase: Phase) -> Status:
    step = StepStatus(id="a", index=0, count=1, display="1/1")
    status = status_of(revision_of(GREEN), revision_of(GREEN_NEXT), sizes=(2, 2, 0), attempt=2)
    return status.model_copy(update={"phase": phase, "plan": [PREVIEWED], "step": step})


def test_a_preview_service_stands_as_long_as_there_is_something_to_preview() -> None:
    server = Server()
    first = status_of(revision_of(GREEN))
    server.run(workload_actions(GREEN, spec_of(GREEN), first, server.children(), NOW))
    status = previewed(Phase.PAUSED)
    server.run(workload_actions(GREEN_NEXT, spec_of(GREEN_NEXT), status, server.children(), NOW))
    selected = server.get(SERVICE, "fraud-preview")["spec"]["selector"]
    assert selected["modelrollout.dev/revision"] == revision_of(GREEN_NEXT)
    assert server.get(SERVICE, "fraud")["spec"]["selector"]["modelrollout.dev/revision"] == revision_of(GREEN)
    assert workload_actions(GREEN_NEXT, spec_of(GREEN_NEXT), status, server.children(), NOW) == []
    status = previewed(Phase.ROLLING_BACK)
    server.run(workload_actions(GREEN_NEXT, spec_of(GREEN_NEXT), status, server.children(), NOW))
    assert "fraud-preview" not in server.children().services


def test_a_preview_service_of_somebody_else_is_named() -> None:
    server = Server()
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "fraud-preview", "namespace": "ml"},
            "spec": {},
        }
    )
    problems = name_problems(GREEN, spec_of(GREEN), status_of(revision_of(GREEN)), server.children())
    assert [problem.reason for problem in problems] == [Reason.NAME_TAKEN]
    assert (SERVICE, "fraud-preview") in needed_names(GREEN, spec_of(GREEN), revision_of(GREEN))
