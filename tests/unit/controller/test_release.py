"""The finalizer: on before anything of the user's is changed, off as soon as it stands as it was."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.cluster.actions import Action, JsonPatch
from modelrollout.cluster.kinds import HTTP_ROUTE, MODEL_ROLLOUT, Object
from modelrollout.controller.release import FINALIZER, hold_actions, let_go_actions, release_actions
from tests.fakes.cluster import apply_operation
from tests.unit.traffic.test_borrowed import World, ref
from tests.unit.workloads.manifests import manifest, spec_of

NEEDED = {
    "httpRoute": ({"httpRoute": {"name": "a"}}, True),
    "grpcRoute": ({"grpcRoute": {"name": "a"}}, True),
    "istio": ({"istio": {"virtualService": {"name": "a"}}}, True),
    "gatewayAPI": ({"gatewayAPI": {"parentRefs": [{"name": "public"}]}}, False),
    "podRatio": ({}, False),
}


def held(rollout: Object, *finalizers: str) -> Object:
    rollout["metadata"] |= {"resourceVersion": "7", "finalizers": list(finalizers)}
    return rollout


def after(rollout: Object, actions: list[Action]) -> list[str]:
    """The finalizers when the actions are done."""
    for action in actions:
        assert isinstance(action, JsonPatch)
        assert action.kind is MODEL_ROLLOUT
        for operation in action.operations:
            apply_operation(rollout, dict(operation))
    return list(rollout["metadata"].get("finalizers") or ())


@pytest.mark.parametrize(("traffic", "needed"), NEEDED.values(), ids=NEEDED)
def test_only_a_rollout_in_something_of_the_users_is_held(traffic: Any, needed: bool) -> None:
    rollout = held(manifest(traffic=traffic), "example.com/other")
    wanted = ["example.com/other", FINALIZER] if needed else ["example.com/other"]
    assert after(rollout, hold_actions(rollout, spec_of(rollout))) == wanted
    assert hold_actions(rollout, spec_of(rollout)) == []


def test_a_rollout_without_finalizers_is_held() -> None:
    rollout = held(manifest(traffic={"httpRoute": {"name": "a"}}))
    del rollout["metadata"]["finalizers"]
    assert after(rollout, hold_actions(rollout, spec_of(rollout))) == [FINALIZER]


def test_it_is_let_go_when_another_router_was_chosen_and_the_route_restored() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.write(90, 10)
    rollout = held(manifest(), FINALIZER, "example.com/other")
    assert let_go_actions(rollout, spec_of(rollout), world.server.children()) == []
    world.write(100, 0)
    world.write(100, 0)
    assert after(rollout, let_go_actions(rollout, spec_of(rollout), world.server.children())) == [
        "example.com/other"
    ]


def test_it_is_restored_first_and_then_let_go() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.write(90, 10)
    rollout = held(world.rollout, FINALIZER)
    rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    kinds = []
    for _ in range(3):
        actions = release_actions(rollout, world.server.children())
        kinds += [action.kind for action in actions if isinstance(action, JsonPatch)]
        if kinds[-1] is MODEL_ROLLOUT:
            break
        world.server.run(actions)
    assert kinds == [HTTP_ROUTE, HTTP_ROUTE, MODEL_ROLLOUT]
    assert after(rollout, release_actions(rollout, world.server.children())) == []
    assert world.backends() == [("fraud", 1)]


def gone(world: World) -> None:
    world.server.edit(HTTP_ROUTE, "fraud", {"metadata": {"deletionTimestamp": "2026-11-20T09:00:00Z"}})


@pytest.mark.parametrize("refused", [False, True], ids=["the route is going", "the write is refused"])
def test_it_is_let_go_at_once_if_nothing_can_be_restored(refused: bool) -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.write(90, 10)
    if not refused:
        gone(world)
    rollout = held(world.rollout, FINALIZER)
    assert after(rollout, release_actions(rollout, world.server.children(), refused=refused)) == []


def test_a_rollout_that_is_not_held_is_left_alone() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.write(90, 10)
    assert release_actions(held(world.rollout, "example.com/other"), world.server.children()) == []
