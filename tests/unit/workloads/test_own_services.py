"""Which revision is behind which of the user's Services, as names, models and roles change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import OwnServices, Spec
from modelrollout.api.status import Phase, RevisionStatus, Status, UndoStatus, Weights
from modelrollout.cluster.actions import Create
from modelrollout.cluster.pods import strip
from modelrollout.traffic import route_actions, router_of
from modelrollout.workloads import Children, observe, workload_actions
from modelrollout.workloads.backends import Backend
from modelrollout.workloads.observation import ready_behind
from modelrollout.workloads.own_services import (
    bind,
    first_pinned,
    lost_revisions,
    named_revision,
    services_problem,
    switched,
    undone_services,
    with_capacity,
)
from tests.unit.workloads.manifests import Object, manifest, spec_of
from tests.unit.workloads.server import pod_object

NOW = 1_800_000_000.0
GATEWAY = {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}


def rollout_of(stable: str, candidate: str | None = None, version: str = "1", **more: Any) -> Object:
    second = {"candidate": {"name": candidate}} if candidate else {}
    workload = {"services": {"stable": {"name": stable}, **second}, **more}
    return manifest(workload=workload, traffic=GATEWAY, model={"name": "fraud", "version": version})


def record(revision: str, service: str, version: str | None) -> Object:
    model = {"name": "fraud", "version": version} if version else {}
    data = {"version": 1, "model": model, "service": service, "ports": [{"name": "http", "port": 80}]}
    labels = {"modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": revision}
    metadata = {"name": f"fraud-{revision}", "namespace": "ml", "labels": labels, "uid": revision}
    kind = {"apiVersion": "apps/v1", "kind": "ControllerRevision"}
    owner = {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelRollout",
        "name": "fraud",
        "controller": True,
    }
    owners = [owner | {"uid": "uid-fraud"}]
    return kind | {"metadata": metadata | {"ownerReferences": owners, "resourceVersion": "1"}, "data": data}


def service(name: str, port: int = 80) -> Object:
    metadata = {"name": name, "namespace": "ml", "uid": name}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": port}]}}


def endpoints(name: str, *pods: str, ready: bool = True, open: tuple[str, ...] = ("",)) -> Object:
    """`open`: names of the Service's ports for which the pods have one."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "ml", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [
            {"targetRef": {"kind": "Pod", "name": pod}, "addresses": [pod], "conditions": {"ready": ready}}
            for pod in pods
        ],
        "ports": [{"name": port, "port": 8080} for port in open] or None,
    }


def seen(*records: Object, pods: dict[str, tuple[str, ...]] | None = None) -> Children:
    pods = pods or {"fraud-v1": ("a", "b"), "fraud-v2": ("c",)}
    return Children(
        controller_revisions={obj["metadata"]["name"]: obj for obj in records},
        bound={
            obj["metadata"]["labels"]["modelrollout.dev/revision"]: Backend(obj["data"]["service"])
            for obj in records
        },
        services={name: service(name) for name in pods},
        endpointslices={name: endpoints(name, *found) for name, found in pods.items()},
    )


def serving(revision: str, phase: Phase = Phase.HEALTHY, **roles: str) -> Status:
    others = {role: RevisionStatus(revision=named, desired=1) for role, named in roles.items()}
    return Status(
        phase=phase, stable=RevisionStatus(revision=revision), weights=Weights(stable=100), **others
    )


ONE, TWO = "aaaaaaaaaa", "bbbbbbbbbb"
PAST = (record(ONE, "fraud-v1", "1"), record(TWO, "fraud-v2", "2"))
UNKNOWN = (record(ONE, "fraud-v1", None), PAST[1])

NAMED: dict[str, tuple[Object, Status, tuple[Object, ...], str | None, bool]] = {
    "a new candidate is a new revision": (rollout_of("fraud-v1", "fraud-v2", "2"), serving(ONE), PAST[:1], None, True),
    "what is tried is named by its Service and model": (
        rollout_of("fraud-v1", "fraud-v2", "2"), serving(ONE, candidate=TWO), PAST, TWO, True,
    ),
    "another model behind the same Service is a new revision": (
        rollout_of("fraud-v1", "fraud-v2", "3"), serving(ONE, candidate=TWO), PAST, None, True,
    ),
    "without a candidate the stable one is named": (rollout_of("fraud-v1"), serving(ONE, candidate=TWO), PAST, ONE, True),
    "what served before the ModelRollout has whatever model": (
        rollout_of("fraud-v1", version="7"), serving(ONE, candidate=TWO), UNKNOWN, ONE, True,
    ),
    "what was promoted stays named": (rollout_of("fraud-v1", "fraud-v2", "2"), serving(TWO), PAST, TWO, True),
    "names can be tidied up after a promotion": (rollout_of("fraud-v2", None, "2"), serving(TWO), PAST, TWO, True),
    "another model in place of what serves can't be judged": (
        rollout_of("fraud-v1", "fraud-v2", "3"), serving(TWO), PAST, None, False,
    ),
    "names are swapped for the next release": (rollout_of("fraud-v2", "fraud-v1", "3"), serving(TWO), PAST, None, True),
    "while watching, the old one is the way back": (
        rollout_of("fraud-v1", None, "1"), serving(TWO, Phase.WATCHING, previous=ONE), PAST, ONE, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rollout", "status", "records", "named", "accepted"), NAMED.values(), ids=NAMED)
def test_what_the_spec_names(
    rollout: Object, status: Status, records: tuple[Object, ...], named: str | None, accepted: bool
) -> None:
    spec, children = spec_of(rollout), seen(*records)
    revision, problem = named_revision(rollout, spec, status, children)
    assert revision == (named or hash_revision(spec))
    assert (problem is None) is accepted
    assert spec.workload.services is not None
    assert bind(rollout, spec, status, children).bound[revision] == Backend.of(spec.workload.services.named)


def test_the_refusal_says_what_to_write() -> None:
    rollout = rollout_of("fraud-v1", "fraud-v2", "3")
    _, problem = named_revision(rollout, spec_of(rollout), serving(TWO), seen(*PAST))
    assert problem is not None
    assert (
        "behind fraud-v1, and name that as workload.services.candidate and fraud-v2 as stable"
        in problem.message
    )


def test_other_names_or_another_model_make_another_revision_and_the_first_name_does_not() -> None:
    base = hash_revision(spec_of(rollout_of("fraud-v1", "fraud-v2")))
    assert hash_revision(spec_of(rollout_of("fraud-v0", "fraud-v2"))) == base
    assert hash_revision(spec_of(rollout_of("fraud-v2"))) == base
    assert hash_revision(spec_of(rollout_of("fraud-v1", "fraud-v3"))) != base
    assert hash_revision(spec_of(rollout_of("fraud-v1", "fraud-v2", "2"))) != base


def test_kinds_are_told_apart_by_the_revision_and_services_keep_theirs() -> None:
    pool = rollout_of("fraud-v1", "fraud-v2")
    pool["spec"]["workload"]["services"]["candidate"]["kind"] = "InferencePool"
    said = rollout_of("fraud-v1", "fraud-v2")
    said["spec"]["workload"]["services"]["candidate"]["kind"] = "Service"
    base = hash_revision(spec_of(rollout_of("fraud-v1", "fraud-v2")))
    assert hash_revision(spec_of(said)) == base
    assert hash_revision(spec_of(pool)) != base


def asking(revision: str, *, stable: str = "fraud-v2") -> Object:
    rollout = rollout_of(stable, version="2")
    rollout["metadata"]["annotations"] = {"modelrollout.dev/undo": f"{revision}@1"}
    return rollout


def later(obj: Object, revision: int) -> Object:
    return obj | {"revision": revision}


def test_a_stored_revision_comes_back_while_its_service_is_there() -> None:
    assert lost_revisions(asking(ONE), seen(*PAST)) == {}
    assert lost_revisions(rollout_of("fraud-v2"), seen(*PAST)) == {}
    gone = seen(*PAST, pods={"fraud-v2": ("c",)})
    assert "Service fraud-v1, which it was behind, does not exist" in lost_revisions(asking(ONE), gone)[ONE]


def test_a_stored_revision_whose_service_has_been_used_again_does_not_come_back() -> None:
    three = "cccccccccc"
    reused = seen(later(PAST[0], 1), later(PAST[1], 2), later(record(three, "fraud-v1", "3"), 3))
    assert f"used for revision {three} since" in lost_revisions(asking(ONE), reused)[ONE]
    assert lost_revisions(asking(three), reused) == {}
    assert lost_revisions(asking(TWO), reused) == {}


def test_what_is_asked_for_again_is_named_beside_what_serves() -> None:
    children = seen(*PAST)
    back = undone_services(serving(TWO), children, ONE)
    assert back == OwnServices.from_wire({"stable": {"name": "fraud-v2"}, "candidate": {"name": "fraud-v1"}})
    assert undone_services(serving(ONE), children, ONE) == OwnServices.from_wire(
        {"stable": {"name": "fraud-v1"}}
    )
    assert undone_services(serving(ONE), children, "zzzzzzzzzz") is None


def test_a_revision_that_was_asked_for_again_is_not_bound_twice() -> None:
    undo = {"undo": UndoStatus(revision=ONE, over=TWO)}
    status = serving(TWO, Phase.PROGRESSING, candidate=ONE).model_copy(update=undo)
    rollout = rollout_of("fraud-v2", "fraud-v1", "1")
    rollout["spec"]["service"]["ports"] = [{"name": "http", "port": 80}, {"name": "grpc", "port": 90}]
    rollout["spec"]["traffic"]["gatewayAPI"]["port"] = "http"
    assert bind(rollout, spec_of(rollout), status, seen(*PAST)).bound == seen(*PAST).bound


def test_with_a_candidate_at_creation_what_serves_is_the_baseline() -> None:
    rollout = rollout_of("fraud-v1", "fraud-v2", "2")
    spec = spec_of(rollout)
    first = first_pinned(spec, Status())
    children = bind(rollout, spec, Status(), seen())
    assert first is not None
    assert first != hash_revision(spec)
    assert children.bound == {first: Backend("fraud-v1"), hash_revision(spec): Backend("fraud-v2")}
    assert observe(rollout, children, NOW)[first].ready == 2
    assert first_pinned(spec_of(rollout_of("fraud-v1")), Status()) is None
    assert first_pinned(spec, serving(ONE)) is None


METERED = [
    {"name": "http", "port": 80, "targetPort": "web"},
    {"name": "metrics", "port": 9090, "targetPort": "metrics"},
]


def closed(children: Children, name: str, *, ports: list[Object], open: tuple[str, ...]) -> Children:
    """The children with a Service whose pods have ports for these of its ports only."""
    obj = service(name) | {"spec": {"ports": ports}}
    pods = [one["targetRef"]["name"] for one in children.endpointslices[name]["endpoints"]]
    return replace(
        children,
        services={**children.services, name: obj},
        endpointslices={**children.endpointslices, name: endpoints(name, *pods, open=open)},
    )


PROBLEMS: dict[str, tuple[Spec, Children, Reason | None]] = {
    "all is well": (spec_of(rollout_of("fraud-v1", "fraud-v2")), seen(), None),
    "a Service that is missing": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        seen(pods={"fraud-v1": ("a",)}),
        Reason.REFERENCE_NOT_FOUND,
    ),
    "pods in common": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        seen(pods={"fraud-v1": ("a", "b"), "fraud-v2": ("b",)}),
        Reason.SELECTOR_OVERLAP,
    ),
    "a port by a name that no container has": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        closed(seen(), "fraud-v2", ports=[{"port": 80, "targetPort": "web"}], open=()),
        Reason.INVALID_SPEC,
    ),
    "such a port beside one that is there": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        closed(seen(), "fraud-v2", ports=METERED, open=("metrics",)),
        Reason.INVALID_SPEC,
    ),
    "such a port that gets no requests": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        closed(seen(), "fraud-v2", ports=METERED, open=("http",)),
        None,
    ),
    "a Service whose pods are not there yet": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        seen(pods={"fraud-v1": ("a", "b"), "fraud-v2": ()}),
        None,
    ),
    "nothing that serves": (
        spec_of(rollout_of("fraud-v1", "fraud-v2")),
        seen(pods={"fraud-v1": (), "fraud-v2": ("c",)}),
        Reason.AWAITING_PODS,
    ),
    "nothing that serves and nothing to compare": (
        spec_of(rollout_of("fraud-v1")),
        seen(pods={"fraud-v1": ()}),
        None,
    ),
}


@pytest.mark.parametrize(("spec", "children", "reason"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_wrong_at_creation(spec: Spec, children: Children, reason: Reason | None) -> None:
    problem = services_problem(spec, Status(), children)
    assert (problem.reason if problem else None) is reason


def test_a_port_that_no_container_has_is_told_with_the_mend() -> None:
    children = closed(seen(), "fraud-v2", ports=METERED, open=("metrics",))
    problem = services_problem(spec_of(rollout_of("fraud-v1", "fraud-v2")), serving(ONE), children)
    assert problem is not None
    assert problem.message == (
        "spec.service.ports: requests are routed to port 80, which Service fraud-v2 sends to 'web', and no container of its pods "
        "has a port of that name: give one that name, or write its number as targetPort of the Service"
    )


def test_behind_a_service_that_finds_no_port_in_its_pods_none_is_ready() -> None:
    """The control plane lists such pods, and they are ready; no proxy sends anything to them."""
    children = closed(seen(*PAST), "fraud-v2", ports=[{"port": 80, "targetPort": "web"}], open=())
    views = observe(rollout_of("fraud-v1", "fraud-v2"), children, NOW)
    assert (views[ONE].ready, views[ONE].waiting) == (2, ())
    assert views[TWO].ready == 0
    assert views[TWO].waiting == (
        "PortNotFound: no container of the pods has a port that Service fraud-v2 names as targetPort",
    )


POOL = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "fraud-v2", "namespace": "ml"},
    "spec": {"targetPorts": [{"number": 8000}]},
}


def pooled(*, target: int = 8000, **spec: Any) -> Object:
    rollout = rollout_of("fraud-v1", "fraud-v2")
    rollout["spec"]["workload"]["services"]["candidate"]["kind"] = "InferencePool"
    rollout["spec"]["service"]["ports"] = [{"port": 80, "targetPort": target}]
    rollout["spec"] |= spec
    return rollout


POOLS: dict[str, tuple[Object, Children, frozenset[str], str]] = {
    "all is well": (pooled(), replace(seen(), pools={"fraud-v2": POOL}), frozenset(), ""),
    "a pool that is missing": (
        pooled(), seen(), frozenset(), "ReferenceNotFound: spec.workload.services names InferencePool fraud-v2, which does not",
    ),
    "no CustomResourceDefinition": (
        pooled(), seen(), frozenset({"InferencePool"}), "NotSupported: the cluster has no InferencePool (inference.networking",
    ),
    "a port that the pool does not have": (
        pooled(target=8080), replace(seen(), pools={"fraud-v2": POOL}), frozenset(),
        "InvalidSpec: spec.service.ports: requests are answered at targetPort 8080, which InferencePool fraud-v2 does not",
    ),
    "pods that a Service has too": (
        pooled(), replace(seen(), pools={"fraud-v2": POOL}, members={"fraud-v2": frozenset("bc")}), frozenset(),
        "SelectorOverlap: Service fraud-v1 and InferencePool fraud-v2 have pods in common (b)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rollout", "children", "unserved", "said"), POOLS.values(), ids=POOLS)
def test_what_is_wrong_with_a_pool(
    rollout: Object, children: Children, unserved: frozenset[str], said: str
) -> None:
    problem = services_problem(spec_of(rollout), Status(), children, unserved=unserved)
    assert (f"{problem.reason}: {problem.message}" if problem else "").startswith(said)
    assert (problem is None) == (not said)


def test_a_pool_has_as_many_ready_pods_as_it_selects_that_are_ready_and_stay() -> None:
    kinds: dict[str, Object] = {
        "ready": {},
        "not-ready": {"ready_at": None},
        "going": {"gone": True},
        "not-selected": {},
    }
    pods = {}
    for name, how in kinds.items():
        obj = pod_object(name, "", ready_at=how.get("ready_at", "2026-11-20T08:00:00Z"))
        if how.get("gone"):
            obj["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
        pods[name] = strip(obj)
    members = {"fraud-v2": frozenset({"ready", "not-ready", "going", "not-seen-yet"})}
    pool = Backend("fraud-v2", "InferencePool")
    children = replace(seen(), pools={"fraud-v2": POOL}, members=members, pods=pods, bound={TWO: pool})
    view = observe(pooled(), children, NOW)[TWO]
    assert (view.ready, view.pods, view.desired) == (1, 3, 3)
    assert ready_behind(children, pool) == {"ready": "ready"}


PICKERS: dict[str, tuple[Object, tuple[str, ...], int]] = {
    "its picker is ready": ({}, ("epp-0",), 1),
    "its picker is away": ({}, (), 0),
    "its picker is away, and it answers without": ({"failureMode": "FailOpen"}, (), 1),
    "its picker is of a kind that can't be looked at": ({"kind": "Picker", "group": "example.com"}, (), 1),
}


@pytest.mark.parametrize(("ref", "pickers", "ready"), PICKERS.values(), ids=PICKERS)
def test_a_pool_without_its_picker_has_no_ready_pod(
    ref: Object, pickers: tuple[str, ...], ready: int
) -> None:
    pool = POOL | {"spec": {**POOL["spec"], "endpointPickerRef": {"name": "epp", **ref}}}
    pods = {"a": strip(pod_object("a", "", ready_at="2026-11-20T08:00:00Z"))}
    children = replace(
        seen(pods={"epp": pickers}),
        pools={"fraud-v2": pool},
        members={"fraud-v2": frozenset("a")},
        pods=pods,
        bound={TWO: Backend("fraud-v2", "InferencePool")},
    )
    view = observe(pooled(), children, NOW)[TWO]
    assert view.ready == ready
    said = "PickerNotReady: Service epp, the endpoint picker of InferencePool fraud-v2, has no ready endpoint"
    assert view.waiting == (() if ready else (said,))


def test_a_stored_pool_gets_no_copies_either() -> None:
    rollout = pooled(strategy={"canary": {"steps": [{"weight": 0, "mirror": 10}, {"weight": 5}]}})
    children = replace(seen(), pools={"fraud-v2": POOL})
    problem = services_problem(spec_of(rollout), serving(ONE), children)
    assert problem is not None
    assert problem.reason is Reason.NOT_SUPPORTED


def test_at_rest_whoever_takes_over_must_be_as_large_as_what_serves() -> None:
    spec = spec_of(rollout_of("fraud-v1", "fraud-v2"))
    sized = {
        phase: with_capacity(spec, serving(ONE, phase), seen(*PAST)).workload.replicas
        for phase in (Phase.HEALTHY, Phase.PROGRESSING)
    }
    assert sized == {Phase.HEALTHY: 2, Phase.PROGRESSING: 1}
    larger = spec_of(rollout_of("fraud-v1", "fraud-v2", replicas=5))
    assert with_capacity(larger, serving(ONE), seen(*PAST)).workload.replicas == 5


def test_a_rollout_with_pods_of_its_own_does_not_go_over() -> None:
    spec = spec_of(rollout_of("fraud-v1"))
    assert switched(spec, serving(ONE), seen(*PAST)) is None
    assert switched(spec, serving(ONE), seen()) is not None
    assert switched(spec_of(manifest()), serving(ONE), seen(*PAST)) is not None


def test_records_and_the_route_are_all_that_is_written() -> None:
    rollout = rollout_of("fraud-v1", "fraud-v2", "2")
    spec = spec_of(rollout)
    named = hash_revision(spec)
    status = serving(ONE, Phase.PROGRESSING, candidate=named).model_copy(
        update={"weights": Weights(stable=90, candidate=10)}
    )
    children = bind(rollout, spec, status, seen(PAST[0]))
    made = workload_actions(rollout, spec, status, children, NOW)
    new = [action.obj for action in made if isinstance(action, Create)]
    assert [(obj["kind"], obj["data"]["service"]) for obj in new] == [("ControllerRevision", "fraud-v2")]
    assert {action.obj["kind"] for action in made} == {"ControllerRevision"}  # type: ignore[union-attr]
    (route,) = route_actions(rollout, spec, status, children, NOW)
    (rule,) = route.obj["spec"]["rules"]  # type: ignore[union-attr]
    assert {ref["name"]: ref["weight"] for ref in rule["backendRefs"]} == {"fraud-v1": 90, "fraud-v2": 10}
    live = route.obj | {"metadata": route.obj["metadata"] | {"uid": "r", "generation": 1}}  # type: ignore[union-attr]
    children = Children(
        children.controller_revisions,
        services=children.services,
        endpointslices=children.endpointslices,
        routes={"fraud": live},
        bound=children.bound,
    )
    reading = router_of(spec).observe(rollout, spec, status, children)
    assert reading.weights == {ONE: 90, named: 10}
