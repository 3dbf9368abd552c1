"""Routes that the user keeps, on a real API server with the real CRDs: what is written, and that nothing is left of it.

The endpoints are made up here; `tests/lab/test_routers.py` goes through releases with real pods and real traffic.
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from lab.build import experimental_http_route, istio_crds
from lab.cluster import install_crds, is_established
from lab.kube import KubeError, path_of
from lab.lab import Lab
from lab.process import wait_until
from modelrollout.api.status import Phase, Status, StepStatus
from modelrollout.cluster.actions import Action, Create, Done, JsonPatch, execute
from modelrollout.cluster.client import KubernetesCluster, load_credentials
from modelrollout.cluster.errors import Conflict
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    GRPC_ROUTE,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    SERVICE,
    VIRTUAL_SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.pods import strip
from modelrollout.controller.release import FINALIZER, hold_actions, release
from modelrollout.planning.steps import compile_steps
from modelrollout.traffic import route_actions, router_of
from modelrollout.workloads import Children, workload_actions
from tests.unit.workloads.manifests import manifest, revision_of, spec_of, status_of, with_version
from tests.unit.workloads.server import pod_object, slice_of

NOW = 1_800_000_000.0
KINDS = {"controller_revisions": CONTROLLER_REVISION, "services": SERVICE}


@dataclass(frozen=True)
class Case:
    """A kind of route, as its user writes it."""

    kind: Kind
    traffic: Object
    spec: Object
    field: str  # of the spec, that holds the rules
    weights: Callable[[Object], Any]


def by_backend(rule: Object) -> list[tuple[str, int]]:
    return [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]]


def by_destination(rule: Object) -> list[tuple[str, int]]:
    return [(one["destination"]["host"], one["weight"]) for one in rule["route"]]


HEADER = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"set": [{"name": "x-model", "value": "fraud"}]},
}
# Left out where it may be: defaults, weights, ports.
CASES: dict[str, Case] = {
    "httpRoute": Case(
        HTTP_ROUTE,
        {"httpRoute": {"name": "shop"}},
        {
            "parentRefs": [{"name": "public"}],
            "hostnames": ["shop.example.com"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/fraud"}}],
                    "backendRefs": [{"name": "fraud", "port": 80, "filters": [HEADER]}],
                },
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/mixed"}}],
                    "filters": [HEADER],
                    "backendRefs": [
                        {"name": "legacy", "port": 80, "weight": 1},
                        {"name": "fraud", "port": 80, "weight": 3},
                    ],
                    "timeouts": {"request": "10s"},
                },
                {"backendRefs": [{"name": "website", "port": 80}]},
            ],
        },
        "rules",
        by_backend,
    ),
    "grpcRoute": Case(
        GRPC_ROUTE,
        {"grpcRoute": {"name": "shop"}},
        {
            "parentRefs": [{"name": "public"}],
            "rules": [
                {
                    "matches": [{"method": {"service": "fraud.v1.Scores"}}],
                    "backendRefs": [{"name": "fraud", "port": 80, "filters": [HEADER]}],
                },
                {
                    "matches": [{"method": {"service": "fraud.v2.Scores"}}],
                    "backendRefs": [
                        {"name": "legacy", "port": 80, "weight": 1},
                        {"name": "fraud", "port": 80, "weight": 3},
                    ],
                },
                {"backendRefs": [{"name": "website", "port": 80}]},
            ],
        },
        "rules",
        by_backend,
    ),
    "istio": Case(
        VIRTUAL_SERVICE,
        {"istio": {"virtualService": {"name": "shop"}}},
        {
            "hosts": ["shop.example.com"],
            "gateways": ["public"],
            "http": [
                {
                    "name": "fraud",
                    "match": [{"uri": {"prefix": "/fraud"}}],
                    "route": [
                        {"destination": {"host": "fraud"}, "headers": {"request": {"set": {"x": "y"}}}}
                    ],
                },
                {
                    "name": "mixed",
                    "match": [{"uri": {"prefix": "/mixed"}}],
                    "route": [
                        {"destination": {"host": "legacy"}, "weight": 25},
                        {"destination": {"host": "fraud", "port": {"number": 80}}, "weight": 75},
                    ],
                    "timeout": "10s",
                },
                {"route": [{"destination": {"host": "website"}}]},
            ],
        },
        "http",
        by_destination,
    ),
}


class World:
    """A ModelRollout that works in a route of the user's, in a namespace of a real cluster."""

    def __init__(self, lab: Lab, port: KubernetesCluster, namespace: str, case: Case) -> None:
        self.lab, self.port, self.namespace, self.case = lab, port, namespace, case
        rollout = manifest(namespace=namespace, traffic=case.traffic)
        created = {key: rollout["metadata"][key] for key in ("name", "namespace")}
        self.older = lab.client.create(MODEL_ROLLOUT.path(namespace), rollout | {"metadata": created})
        self.rollout = with_version(self.older, "2")
        self.first, self.second = revision_of(self.older), revision_of(self.rollout)
        self.callers = self.first  # the revision behind the Service for callers
        route = {
            "apiVersion": case.kind.api_version,
            "kind": case.kind.kind,
            "metadata": {"name": "shop", "namespace": namespace},
            "spec": copy.deepcopy(case.spec),
        }
        self.manifest = route
        path = case.kind.path(namespace, "shop")
        lab.client.patch(path, route, kind="apply", fieldManager="helm")
        self.lab.client.patch(path, {"metadata": {"labels": {"team": "risk"}}}, kind="merge")

    def route(self) -> Object:
        return self.lab.client.get(self.case.kind.path(self.namespace, "shop"))

    def rules(self) -> list[Object]:
        return self.route()["spec"][self.case.field]

    def written_by_the_user(self) -> Object:
        """What Git compares."""
        live = self.route()
        metadata = {key: live["metadata"].get(key) for key in ("labels", "annotations", "finalizers")}
        return {"metadata": metadata, "spec": live["spec"]}

    def children(self) -> Children:
        found: dict[str, dict[str, Object]] = {}
        for attribute, kind in KINDS.items():
            items = self.lab.client.list(kind.path(self.namespace))
            ours = [obj for obj in items if "modelrollout.dev/rollout" in obj["metadata"].get("labels", {})]
            found[attribute] = {
                obj["metadata"]["name"]: {"apiVersion": kind.api_version, "kind": kind.kind} | obj
                for obj in ours
            }
        pods = {f"{r}-0": strip(pod_object(f"{r}-0", r)) for r in (self.first, self.second)}
        slices = {f"fraud-{r}": slice_of(f"fraud-{r}", [f"{r}-0"]) for r in (self.first, self.second)}
        slices["fraud"] = slice_of("fraud", [f"{self.callers}-0"])
        return Children(
            endpointslices=slices,
            pods=pods,
            borrowed={(self.case.kind.kind, "shop"): self.route()},
            **found,
        )

    def actions(self, status: Status) -> list[Action]:
        return route_actions(self.rollout, spec_of(self.rollout), status, self.children(), NOW)

    async def settle(self, status: Status, rollout: Object | None = None) -> list[Done]:
        """The Services, then the route; after that nothing is left to write."""
        rollout = rollout or self.rollout
        workloads = workload_actions(rollout, spec_of(rollout), status, self.children(), NOW)
        wanted = [
            a for a in workloads if getattr(a, "obj", {}).get("kind") in ("Service", "ControllerRevision")
        ]
        await execute(self.port, wanted)
        done = await execute(self.port, self.actions(status))
        done += await execute(self.port, self.actions(status))  # what was restored is given back
        assert self.actions(status) == []
        return done

    def step(self, stable: int, candidate: int, *, mirror: int = 0) -> Status:
        status = status_of(self.first, self.second, weights=(stable, candidate, 0), attempt=2)
        return status.model_copy(update={"weights": status.weights.model_copy(update={"mirror": mirror})})


@pytest.fixture
async def port(lab: Lab) -> AsyncIterator[KubernetesCluster]:
    async with KubernetesCluster(await load_credentials(lab.kubeconfig)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def istio(lab: Lab) -> None:
    """The API server serves VirtualServices."""

    def served() -> bool:
        try:
            lab.client.get(VIRTUAL_SERVICE.path("default"))
        except KubeError as error:
            if error.status in (404, 429):
                return False
            raise
        return True

    install_crds(lab.client, istio_crds())
    wait_until(served, timeout=30, what="serving VirtualServices")


@pytest.fixture(params=CASES)
async def world(
    lab: Lab, istio: None, port: KubernetesCluster, namespace: str, request: pytest.FixtureRequest
) -> World:
    world = World(lab, port, namespace, CASES[request.param])
    await world.settle(status_of(world.first), world.older)
    return world


async def test_a_release_leaves_no_trace_in_the_users_route(world: World) -> None:
    before = world.written_by_the_user()
    alone, mixed, other = world.rules()
    assert await world.settle(status_of(world.first)) == [], "nothing is to be written before a rollout"

    await world.settle(world.step(90, 10))
    first, second = f"fraud-{world.first}", f"fraud-{world.second}"
    rules = world.rules()
    assert world.case.weights(rules[0]) == [(first, 90), (second, 10)]
    kept = 25 if world.case.kind is VIRTUAL_SERVICE else 1
    total = 75 if world.case.kind is VIRTUAL_SERVICE else 3
    assert world.case.weights(rules[1]) == [("legacy", kept * 100), (first, total * 90), (second, total * 10)]
    assert rules[2] == other
    for rule, original in ((rules[0], alone), (rules[1], mixed)):
        backends = "route" if world.case.kind is VIRTUAL_SERVICE else "backendRefs"
        assert {k: v for k, v in rule.items() if k != backends} == {
            k: v for k, v in original.items() if k != backends
        }
    for backend in rules[0].get("backendRefs") or rules[0]["route"]:
        extras = alone.get("backendRefs") or alone["route"]
        assert {k: backend[k] for k in ("filters", "headers") if k in backend} == {
            k: extras[0][k] for k in ("filters", "headers") if k in extras[0]
        }

    await world.settle(world.step(0, 100))
    assert world.case.weights(world.rules()[0]) == [(second, 100)]
    world.callers = world.second
    await world.settle(status_of(world.second, attempt=2))
    assert world.written_by_the_user() == before


async def test_a_mirror_stands_beside_the_users_own_fields_and_goes_without_a_trace(world: World) -> None:
    before = world.written_by_the_user()
    router, spec = router_of(spec_of(world.rollout)), spec_of(world.rollout)
    await world.settle(world.step(100, 0, mirror=10))
    reading = router.observe(world.rollout, spec, world.step(100, 0, mirror=10), world.children())
    assert reading.mirror == 10
    assert reading.weights == {world.first: 100}
    await world.settle(world.step(75, 25, mirror=5))
    reading = router.observe(world.rollout, spec, world.step(75, 25, mirror=5), world.children())
    assert (reading.mirror, reading.weights) == (5, {world.first: 75, world.second: 25})
    await world.settle(world.step(100, 0))
    assert world.written_by_the_user() == before


async def test_what_a_gitops_tool_puts_back_is_put_right_and_the_tool_named(world: World) -> None:
    before = world.written_by_the_user()
    status = world.step(90, 10)
    await world.settle(status)
    steered = world.rules()
    path = world.case.kind.path(world.namespace, "shop")
    world.lab.client.patch(path, world.manifest, kind="apply", fieldManager="argocd-controller", force="true")
    assert world.rules() == before["spec"][world.case.field]
    reading = router_of(spec_of(world.rollout)).observe(
        world.rollout, spec_of(world.rollout), status, world.children()
    )
    assert not reading.accepted
    assert reading.foreign_manager == "argocd-controller"
    (done,) = await world.settle(status)
    assert isinstance(done.action, JsonPatch)
    assert done.action.drift == f"spec.{world.case.field} (by argocd-controller)"
    assert world.rules() == steered
    await world.settle(world.step(100, 0))
    assert world.written_by_the_user() == before


async def test_what_git_changes_in_the_middle_is_the_original_from_then_on(world: World) -> None:
    await world.settle(world.step(90, 10))
    changed = copy.deepcopy(world.manifest)
    backends = changed["spec"][world.case.field][1].get("backendRefs") or changed["spec"]["http"][1]["route"]
    backends[0]["weight"] = 5
    path = world.case.kind.path(world.namespace, "shop")
    world.lab.client.patch(path, changed, kind="apply", fieldManager="helm", force="true")
    wanted = world.rules()
    await world.settle(world.step(90, 10))
    assert world.case.weights(world.rules()[1])[0] == ("legacy", 500)
    await world.settle(world.step(100, 0))
    assert world.rules() == wanted


async def test_who_writes_the_manifest_meets_no_conflict_between_rollouts(world: World) -> None:
    """With server-side apply, as Helm 4 does: without force a field that another manager owns is refused."""
    client, path = world.lab.client, world.case.kind.path(world.namespace, "shop")
    changed = copy.deepcopy(world.manifest)
    changed["spec"][world.case.field][2]["name"] = "website"
    await world.settle(world.step(90, 10))
    with pytest.raises(KubeError) as refused:
        client.patch(path, changed, kind="apply", fieldManager="helm")
    assert refused.value.status == 409
    assert '"modelrollout"' in str(refused.value)
    await world.settle(world.step(100, 0))
    managers = {entry["manager"] for entry in world.route()["metadata"]["managedFields"]}
    assert "modelrollout" not in managers
    client.patch(path, changed, kind="apply", fieldManager="helm")
    assert world.rules()[2]["name"] == "website"


async def test_a_write_on_what_was_not_seen_is_a_conflict(world: World) -> None:
    (action,) = world.actions(world.step(90, 10))
    path = world.case.kind.path(world.namespace, "shop")
    world.lab.client.patch(path, {"metadata": {"annotations": {"seen": "no"}}}, kind="merge")
    before = world.route()
    with pytest.raises(Conflict):
        await execute(world.port, [action])
    assert world.route() == before


async def let_go(world: World) -> None:
    """Delete the ModelRollout, and do what has to be done before it may go."""
    client, path = world.lab.client, MODEL_ROLLOUT.path(world.namespace, "fraud")
    client.delete(path)
    going = client.get(path)
    assert going["metadata"]["deletionTimestamp"]
    await release(world.port, going, world.children, done=lambda result: None, now=time.time)


async def test_the_finalizer_comes_first_and_goes_when_the_route_is_restored(world: World) -> None:
    before = world.written_by_the_user()
    client, path = world.lab.client, MODEL_ROLLOUT.path(world.namespace, "fraud")
    await execute(world.port, hold_actions(client.get(path), spec_of(world.rollout)))
    assert client.get(path)["metadata"]["finalizers"] == [FINALIZER]
    assert hold_actions(client.get(path), spec_of(world.rollout)) == []
    await world.settle(world.step(90, 10))
    await let_go(world)
    assert world.written_by_the_user() == before
    assert "modelrollout" not in {e["manager"] for e in world.route()["metadata"]["managedFields"]}
    assert client.find(path) is None


async def test_the_finalizer_goes_without_restoring_what_is_gone(world: World) -> None:
    client, path = world.lab.client, MODEL_ROLLOUT.path(world.namespace, "fraud")
    client.patch(path, {"metadata": {"finalizers": ["example.com/other"]}}, kind="merge")
    await execute(world.port, hold_actions(client.get(path), spec_of(world.rollout)))
    await world.settle(world.step(90, 10))
    seen = world.children()
    client.delete(world.case.kind.path(world.namespace, "shop"))
    world.children = lambda: seen  # type: ignore[method-assign] # the store does not know yet
    await let_go(world)
    assert client.get(path)["metadata"]["finalizers"] == ["example.com/other"]
    client.patch(path, {"metadata": {"finalizers": None}}, kind="merge")


OWN = {
    "parentRefs": [{"name": "public"}],
    "hostnames": ["fraud.example.com"],
    "matches": [
        {"path": {"value": "/v1"}, "headers": [{"name": "x-team", "value": "risk"}], "method": "POST"}
    ],
    "filters": [
        {
            "requestHeaderModifier": {
                "set": [{"name": "x-model", "value": "fraud"}],
                "add": [{"name": "x-seen", "value": "gateway"}],
                "remove": ["x-debug"],
            }
        },
        {
            "urlRewrite": {
                "hostname": "fraud.internal",
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
            }
        },
        {"extensionRef": {"group": "gateway.example.com", "kind": "RateLimit", "name": "slow"}},
    ],
    "timeouts": {"request": "1m30s", "backendRequest": "1500ms"},
    "annotations": {"external-dns.alpha.kubernetes.io/target": "fraud.example.com"},
}
LESS = {
    "nothing but parents": {"parentRefs": OWN["parentRefs"]},
    "no filters": {k: v for k, v in OWN.items() if k != "filters"},
    "no time-outs": {k: v for k, v in OWN.items() if k != "timeouts"},
    "no annotations": {k: v for k, v in OWN.items() if k != "annotations"},
    "one time-out": OWN | {"timeouts": {"request": "1m30s"}},
    "no headers": OWN | {"matches": [{"path": {"value": "/v1"}, "method": "POST"}]},
    "one change of headers": OWN
    | {
        "filters": [
            {"requestHeaderModifier": {"set": [{"name": "x-model", "value": "fraud"}]}},
            *OWN["filters"][1:],
        ]
    },
}


def own(lab: Lab, namespace: str, gateway: Object) -> Object:
    """A ModelRollout with an HTTPRoute of its own, accepted by the API server."""
    rollout = manifest(namespace=namespace, traffic={"gatewayAPI": gateway})
    rollout["metadata"] = {key: rollout["metadata"][key] for key in ("name", "namespace")}
    return lab.client.apply(rollout)


@pytest.mark.parametrize("less", LESS.values(), ids=LESS)
async def test_what_leaves_the_spec_leaves_our_own_route(
    lab: Lab, port: KubernetesCluster, namespace: str, less: Object
) -> None:
    def actions(rollout: Object) -> list[Action]:
        children = Children(
            endpointslices={"fraud": slice_of(f"fraud-{revision}", ["a-0"])},
            routes={
                obj["metadata"]["name"]: {"apiVersion": HTTP_ROUTE.api_version, "kind": HTTP_ROUTE.kind} | obj
                for obj in lab.client.list(HTTP_ROUTE.path(namespace))
            },
        )
        return route_actions(rollout, spec_of(rollout), status, children, NOW)

    rollout = own(lab, namespace, OWN)
    revision = revision_of(rollout)
    status = status_of(revision)
    path = HTTP_ROUTE.path(namespace, "fraud")
    await execute(port, actions(rollout))
    assert actions(rollout) == []
    full = lab.client.get(path)
    assert [one["type"] for one in full["spec"]["rules"][0]["filters"]] == [
        "RequestHeaderModifier",
        "URLRewrite",
        "ExtensionRef",
    ]
    assert full["spec"]["rules"][0]["timeouts"] == {"request": "1m30s", "backendRequest": "1s500ms"}
    assert full["metadata"]["annotations"] == OWN["annotations"]

    changed = own(lab, namespace, less)
    await execute(port, actions(changed))
    assert actions(changed) == []
    lean = lab.client.get(path)
    lab.client.delete(path)
    await execute(port, actions(changed))
    fresh = lab.client.get(path)
    assert lean["spec"] == fresh["spec"]
    assert lean["metadata"].get("annotations") == fresh["metadata"].get("annotations")


EXPERIMENTAL = "experimental.example.com"


@pytest.fixture(scope="module")
def experimental(lab: Lab) -> str:
    """The API of HTTPRoutes of the experimental channel, under another group: the lab serves the standard channel."""
    crd = yaml.safe_load(
        experimental_http_route().read_text().replace("gateway.networking.k8s.io", EXPERIMENTAL)
    )
    crd["metadata"] = {"name": crd["metadata"]["name"]}
    path = lab.client.object_path(crd)
    lab.client.create(path.rpartition("/")[0], crd)
    wait_until(
        lambda: is_established(lab.client.get(path)), timeout=30, what="serving the experimental route"
    )
    return f"{EXPERIMENTAL}/v1"


@pytest.mark.parametrize("lifetime", [None, "24h"], ids=["a session", "a day"])
async def test_what_keeps_users_on_one_side_is_what_the_experimental_channel_takes(
    lab: Lab, port: KubernetesCluster, namespace: str, experimental: str, lifetime: str | None
) -> None:
    stickiness = {"cookie": "side"} | ({"lifetime": lifetime} if lifetime else {})
    test = {"abTest": {"weight": 10, "duration": "1h", "stickiness": stickiness}}
    rollout = manifest(namespace=namespace, traffic={"gatewayAPI": OWN}, strategy=test)
    rollout["metadata"] = {key: rollout["metadata"][key] for key in ("name", "namespace")}
    rollout = lab.client.apply(rollout)
    revision, spec = revision_of(rollout), spec_of(rollout)
    (step,) = compile_steps(spec, attempt=1, capacity=2)
    now = StepStatus(id=step.id, index=0, count=1, display="1/1")
    status = status_of(revision, revision, weights=(90, 10, 0)).model_copy(
        update={"phase": Phase.PROGRESSING, "plan": [step], "step": now}
    )
    children = Children(endpointslices={"fraud": slice_of(f"fraud-{revision}", ["a-0"])})
    (made,) = route_actions(rollout, spec, status, children, NOW)
    assert isinstance(made, Create)
    for wanted in (made.obj, router_of(spec).probe(rollout, spec)):
        assert wanted is not None
        wanted = {**wanted, "apiVersion": experimental}
        stored = lab.client.patch(
            path_of(experimental, "httproutes", namespace, "fraud"),
            wanted,
            kind="apply",
            fieldManager="modelrollout",
            fieldValidation="Strict",
        )
        (session,) = (rule["sessionPersistence"] for rule in stored["spec"]["rules"])
        assert session == wanted["spec"]["rules"][0]["sessionPersistence"], "no default was added"
        assert session["cookieConfig"]["lifetimeType"] == ("Permanent" if lifetime else "Session")
        with pytest.raises(KubeError) as refused:
            lab.client.apply({**wanted, "apiVersion": HTTP_ROUTE.api_version})
        assert "sessionPersistence" in refused.value.message, "the standard channel has no sessions"
