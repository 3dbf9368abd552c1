"""The finalizer: on before anything of the user's is changed, off when it stands as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.cluster.actions import execute
from modelrollout.cluster.errors import Conflict, Forbidden
from modelrollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, MODEL_ROLLOUT, Object
from modelrollout.cluster.port import Hooks, Write
from modelrollout.controller.release import FINALIZER, LONGEST, LOOK_AGAIN, hold_actions, release
from modelrollout.workloads import Children
from modelrollout.workloads.takeover import SCALED_ANNOTATION
from tests.fakes.cluster import FakeCluster
from tests.unit.traffic.test_borrowed import World, ref
from tests.unit.workloads.manifests import manifest, spec_of

FORMER = "modelrollout.dev/restore-deployment"
OTHER = "example.com/other"
DELETED = 1_795_165_200.0


def referring(scale_down: str) -> Object:
    return {"workload": {"template": None, "deploymentRef": {"name": "legacy", "scaleDown": scale_down}}}


NEEDED: dict[str, tuple[Object, bool]] = {
    "httpRoute": ({"traffic": {"httpRoute": {"name": "a"}}}, True),
    "grpcRoute": ({"traffic": {"grpcRoute": {"name": "a"}}}, True),
    "istio": ({"traffic": {"istio": {"virtualService": {"name": "a"}}}}, True),
    "gatewayAPI": ({"traffic": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}}, False),
    "podRatio": ({"traffic": {"podRatio": {}}}, False),
    "a Deployment that is scaled down": (referring("OnceHealthy"), True),
    "a Deployment that keeps its size": (referring("Never"), False),
}


class Ending:
    """A ModelRollout that is being deleted, its route in the middle of a split, and a Deployment that it scaled to 0."""

    def __init__(
        self, *finalizers: str, refused: str = "", steered: bool = True, taken: bool = False
    ) -> None:
        self.refused = refused
        self.now = DELETED
        self.cluster = FakeCluster(hooks=Hooks(before_write=self._refuse), now=lambda: self.now)
        world = World({"backendRefs": [ref("fraud")]})
        if steered:
            world.write(90, 10)
        self.children = world.server.children()
        route = world.server.get(HTTP_ROUTE, "fraud")
        route["metadata"].pop("managedFields")  # that they are given back needs a real API server
        self.cluster.seed(route)
        if taken:
            self.cluster.seed(legacy())
        metadata = world.rollout["metadata"] | {"finalizers": list(finalizers)}
        self.cluster.seed(world.rollout | {"metadata": metadata})
        self.cluster.erase(MODEL_ROLLOUT, "ml", "fraud")

    async def _refuse(self, write: Write) -> None:
        if write.kind == self.refused:
            raise Forbidden("not allowed", status=403)

    @property
    def rollout(self) -> Object:
        found = self.cluster.look(MODEL_ROLLOUT, "ml", "fraud")
        assert found is not None
        return found

    def seen(self) -> Children:
        route = self.cluster.look(HTTP_ROUTE, "ml", "fraud")
        return replace(self.children, borrowed={("HTTPRoute", "fraud"): route} if route else {})

    async def release(self) -> float | None:
        return await release(
            self.cluster, self.rollout, self.seen, done=lambda result: None, now=lambda: self.now
        )

    def backends(self) -> list[str]:
        route = self.cluster.look(HTTP_ROUTE, "ml", "fraud")
        assert route is not None
        return [one["name"] for one in route["spec"]["rules"][0]["backendRefs"]]

    def size(self) -> tuple[int, bool]:
        """Of the Deployment, and whether our note stands on it."""
        found = self.cluster.look(DEPLOYMENT, "ml", "legacy")
        assert found is not None
        return found["spec"]["replicas"], SCALED_ANNOTATION in found["metadata"].get("annotations", {})


def legacy() -> Object:
    labels, containers = {"app": "legacy"}, [{"name": "main", "image": "a"}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": {"name": "legacy", "namespace": "ml", "annotations": {SCALED_ANNOTATION: "fraud/3"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


def finalizers(ending: Ending) -> list[str]:
    return list(ending.rollout["metadata"].get("finalizers") or ())


@pytest.mark.parametrize("before", [None, [], [OTHER]], ids=["no finalizers", "an empty list", "another one"])
@pytest.mark.parametrize(("spec", "needed"), NEEDED.values(), ids=NEEDED)
async def test_only_a_rollout_in_something_of_the_users_is_held(
    spec: Object, needed: bool, before: list[str] | None
) -> None:
    cluster = FakeCluster()
    rollout = manifest(**spec)
    if before is not None:
        rollout["metadata"]["finalizers"] = before
    rollout = cluster.seed(rollout)
    await execute(cluster, hold_actions(rollout, spec_of(rollout)))
    held = cluster.look(MODEL_ROLLOUT, "ml", "fraud")
    assert held is not None
    assert (held["metadata"].get("finalizers") or []) == [*(before or []), *([FINALIZER] if needed else [])]
    assert hold_actions(held, spec_of(held)) == []


async def test_nobody_elses_finalizer_gets_lost() -> None:
    ending = Ending(FINALIZER)
    before = ending.rollout
    metadata = before["metadata"] | {"finalizers": [FINALIZER, OTHER]}
    ending.cluster.seed(before | {"metadata": metadata})
    with pytest.raises(Conflict):
        await release(ending.cluster, before, ending.seen, done=lambda result: None, now=lambda: ending.now)
    assert finalizers(ending) == [FINALIZER, OTHER]


@pytest.mark.parametrize("held", [[FINALIZER], [FORMER], [FORMER, FINALIZER]], ids=", ".join)
async def test_it_is_restored_first_and_then_let_go(held: list[str]) -> None:
    ending = Ending(OTHER, *held)
    assert await ending.release() is None
    kinds = [write.kind for write in ending.cluster.writes]
    assert kinds == ["HTTPRoute", "ModelRollout"]
    assert ending.backends() == ["fraud"]
    assert finalizers(ending) == [OTHER]


async def test_it_is_let_go_at_once_if_the_route_is_gone() -> None:
    ending = Ending(FINALIZER, OTHER)
    ending.cluster.erase(HTTP_ROUTE, "ml", "fraud")
    before = replace(ending.children)
    ending.seen = lambda: before  # type: ignore[method-assign] # the store does not know yet
    assert await ending.release() is None
    assert (finalizers(ending), ending.cluster.events) == ([OTHER], [])


@pytest.mark.parametrize(
    ("refused", "backends", "size"),
    [("HTTPRoute", 2, (3, False)), ("Deployment", 1, (0, True))],
    ids=["a route", "a Deployment"],
)
async def test_what_may_not_be_written_keeps_nothing_from_being_restored(
    refused: str, backends: int, size: Any
) -> None:
    ending = Ending(FINALIZER, OTHER, refused=refused, taken=True)
    assert await ending.release() == (LOOK_AGAIN if size[0] else None)
    ending.now += LONGEST
    assert await ending.release() is None
    assert (len(ending.backends()), ending.size()) == (backends, size)
    assert finalizers(ending) == [OTHER]
    assert ("NotRestored", "not allowed") in ending.cluster.events


async def test_the_pods_of_a_deployment_are_waited_for_but_not_for_ever() -> None:
    ending = Ending(FORMER, OTHER, steered=False, taken=True)
    assert await ending.release() == LOOK_AGAIN
    assert (ending.size(), finalizers(ending)) == ((3, True), [FORMER, OTHER])
    assert await ending.release() == LOOK_AGAIN
    ending.now += LONGEST
    assert await ending.release() is None
    assert (ending.size(), finalizers(ending)) == ((3, False), [OTHER])


async def test_it_is_let_go_as_soon_as_they_are_ready() -> None:
    ending = Ending(FINALIZER, OTHER, steered=False, taken=True)
    assert await ending.release() == LOOK_AGAIN
    found = ending.cluster.look(DEPLOYMENT, "ml", "legacy")
    assert found is not None
    status = {"observedGeneration": found["metadata"]["generation"], "readyReplicas": 3}
    ending.cluster.set_status(DEPLOYMENT, "ml", "legacy", status)
    assert await ending.release() is None
    assert (ending.size(), finalizers(ending)) == ((3, False), [OTHER])


async def test_a_rollout_that_is_not_held_is_left_alone() -> None:
    ending = Ending(OTHER, taken=True)
    assert await ending.release() is None
    assert ending.cluster.writes == []
