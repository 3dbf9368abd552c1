"""What every router must do, run against each of them. A new router is one line in ROUTERS below.

A `Rig` gives a router a cluster in miniature, and says how another writer spoils its split.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelrollout.api.status import Status, Weights
from modelrollout.cluster.actions import Action, Apply, JsonPatch
from modelrollout.cluster.kinds import (
    GRPC_ROUTE,
    HTTP_ROUTE,
    INFERENCE_POOL,
    SERVICE,
    VIRTUAL_SERVICE,
    Kind,
)
from modelrollout.traffic import ROUTERS as TABLE
from modelrollout.traffic import RouteReading, restorations, route_actions, router_of
from modelrollout.workloads import Children, workload_actions
from modelrollout.workloads.own_services import bind
from tests.unit.workloads.manifests import (
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
Splits = tuple[int, int, int]


@dataclass
class Rig:
    """One ModelRollout with two revisions, and what is particular to a router."""

    traffic: Object
    carrier: Kind  # the kind of the object that carries the split; its name is the rollout's
    spoil: Any  # a merge patch of another writer that sends requests elsewhere
    report: Callable[[Rig, Status], None]  # what the cluster answers once the split was written
    borrowed: Object | None = None  # the route that the user keeps
    # A merge patch after which the object is none of ours, and how that is called.
    estrange: Any = field(default_factory=lambda: copy.deepcopy(STRANGER))
    estranged: str = "NameTaken: "
    own: str | None = None  # each version is behind one of this kind, which the user keeps
    newer: str | None = None  # or the second one behind one of this kind
    server: Server = field(default_factory=Server)

    def __post_init__(self) -> None:
        if self.own is None:
            self.older = manifest(traffic=self.traffic)
            self.rollout = with_version(self.older, "2")
        else:
            stable = {"name": "fraud-v1", "kind": self.own}
            candidate = {"name": "fraud-v2", "kind": self.newer or self.own}
            self.older = manifest(traffic=self.traffic, workload={"services": {"stable": stable}})
            both = {"stable": stable, "candidate": candidate}
            newer = manifest(traffic=self.traffic, workload={"services": both})
            self.rollout = with_version(newer, "2")
        self.first, self.second = revision_of(self.older), revision_of(self.rollout)

    @property
    def root(self) -> str:
        """What the user's route names."""
        return "fraud-v1" if self.own else "fraud"

    def children(self, status: Status, rollout: Object | None = None) -> Children:
        rollout = rollout or self.rollout
        rollout["status"] = {"stable": status.stable.to_wire()} if status.stable else {}
        return bind(rollout, spec_of(rollout), status, self.server.children())

    def status(self, weights: Splits, sizes: Splits = (3, 1, 0), *, promoted: bool = False) -> Status:
        if promoted:
            return status_of(self.second, previous=self.first, sizes=sizes, weights=weights, attempt=2)
        return status_of(self.first, self.second, sizes=sizes, weights=weights, attempt=2)

    def start(self) -> None:
        """The first revision serves alone."""
        if self.own is not None:
            for name, kind in (("fraud-v1", self.own), ("fraud-v2", self.newer or self.own)):
                self.server.put(backend_of(kind, name))
                self.server.endpoints(f"{name}-epp", ["epp"])
        if self.borrowed is not None:
            self.server.put(copy.deepcopy(self.borrowed))
        status = status_of(self.first, sizes=(3, 0, 0))
        self.write(status, self.older)
        self.pods(3, 0)
        self.write(status, self.older)
        self.report(self, status)

    def pods(self, first: int, second: int) -> None:
        names = ("fraud-v1", "fraud-v2") if self.own else (f"fraud-{self.first}", f"fraud-{self.second}")
        self.server.pods(names[0], self.first, first)
        self.server.pods(names[1], self.second, second)

    def actions(self, status: Status, rollout: Object | None = None) -> list[Action]:
        rollout = rollout or self.rollout
        children = self.children(status, rollout)
        # The first round has the template; later ones must do without.
        spec = accepted_of(rollout) if children.controller_revisions else spec_of(rollout)
        return [
            *workload_actions(rollout, spec, status, children, NOW),
            *route_actions(rollout, spec, status, children, NOW),
        ]

    def write(self, status: Status, rollout: Object | None = None) -> list[Action]:
        return self.server.run(self.actions(status, rollout))

    def bring(self, weights: Splits, sizes: Splits = (3, 1, 0), **roles: bool) -> Status:
        """A committed split, written and answered."""
        status = self.status(weights, sizes, **roles)
        rollout = self.rollout
        self.server.run([*workload_actions(rollout, spec_of(rollout), status, self.children(status), NOW)])
        ready = (sizes[2], sizes[0]) if roles.get("promoted") else (sizes[0], sizes[1])
        self.pods(*ready)
        self.write(status)
        self.report(self, status)
        return status

    def observe(self, status: Status) -> RouteReading:
        spec = accepted_of(self.rollout)
        return router_of(spec).observe(self.rollout, spec, status, self.children(status))


STRANGER = {"metadata": {"ownerReferences": None, "labels": {"modelrollout.dev/rollout": "another"}}}
PARENTS = [{"name": "public", "namespace": "gateways"}]
BACKEND = {"name": "fraud", "port": 80}


def route_of(kind: Kind, *rules: Object) -> Object:
    """A route of the Gateway API that the user keeps."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": "fraud", "namespace": "ml"},
        "spec": {"parentRefs": copy.deepcopy(PARENTS), "rules": list(rules)},
    }


def backend_of(kind: str, name: str) -> Object:
    """A Service or pool that the user keeps."""
    metadata = {"name": name, "namespace": "ml"}
    if kind == SERVICE.kind:
        spec: Object = {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]}
        return {"apiVersion": SERVICE.api_version, "kind": kind, "metadata": metadata, "spec": spec}
    spec = {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": 80}]}
    spec["endpointPickerRef"] = {"name": f"{name}-epp", "port": {"number": 9002}}
    return {"apiVersion": INFERENCE_POOL.api_version, "kind": kind, "metadata": metadata, "spec": spec}


def virtual_service(*routes: Object) -> Object:
    """A VirtualService that the user keeps."""
    return {
        "apiVersion": VIRTUAL_SERVICE.api_version,
        "kind": VIRTUAL_SERVICE.kind,
        "metadata": {"name": "fraud", "namespace": "ml"},
        "spec": {"hosts": ["fraud.example.com"], "http": list(routes)},
    }


def gateway_accepts(rig: Rig, _: Status) -> None:
    rig.server.accept("fraud", kind=rig.carrier)


def borrowed_settles(rig: Rig, status: Status) -> None:
    if rig.own is None:
        endpoints_follow(rig, status)
    if rig.carrier is not VIRTUAL_SERVICE:
        gateway_accepts(rig, status)


def borrowed(traffic: Object, kind: Kind, own: str | None = None) -> Rig:
    """A router in a route of the user's; a GitOps tool puts its own content back."""
    backend = copy.deepcopy(BACKEND) | ({"name": "fraud-v1"} if own else {})
    if own == INFERENCE_POOL.kind:
        backend = {"group": INFERENCE_POOL.group, "kind": own, "name": "fraud-v1"}
    route = route_of(kind, {"backendRefs": [backend]})
    return Rig(
        traffic=traffic,
        carrier=kind,
        spoil={"spec": {"rules": copy.deepcopy(route["spec"]["rules"])}},
        report=borrowed_settles,
        borrowed=route,
        estrange={"spec": {"rules": [{"backendRefs": [{"name": "other", "port": 80}]}]}},
        estranged="ReferenceNotFound: ",
        own=own,
    )


def istio(own: str | None = None) -> Rig:
    host = "fraud-v1" if own else "fraud"
    http = {"name": "primary", "route": [{"destination": {"host": host, "port": {"number": 80}}}]}
    other = {"name": "primary", "route": [{"destination": {"host": "other"}}]}
    return Rig(
        traffic={"istio": {"virtualService": {"name": "fraud", "route": "primary"}}},
        carrier=VIRTUAL_SERVICE,
        spoil={"spec": {"http": [copy.deepcopy(http)]}},
        report=borrowed_settles,
        borrowed=virtual_service(http),
        estrange={"spec": {"http": [other]}},
        estranged="ReferenceNotFound: ",
        own=own,
    )


def endpoints_follow(rig: Rig, _: Status) -> None:
    """The endpoint controller fills the callers' Service by its selector."""
    selector = rig.server.get(SERVICE, "fraud")["spec"]["selector"]
    pods = rig.server.children().pods.values()
    wanted = selector.get("modelrollout.dev/revision")
    rig.server.endpoints("fraud", [p.name for p in pods if wanted in (None, p.revision)])


def gateway_api(own: str | None = None) -> Rig:
    return Rig(
        traffic={"gatewayAPI": {"parentRefs": [{"name": "public", "namespace": "gateways"}]}},
        carrier=HTTP_ROUTE,
        spoil={
            "spec": {"rules": [{"backendRefs": [{"name": "other", "port": 80, "weight": 1}], "matches": []}]}
        },
        report=gateway_accepts,
        own=own,
    )


ROUTERS: dict[str, Callable[[], Rig]] = {
    "gatewayAPI": gateway_api,
    "httpRoute": lambda: borrowed({"httpRoute": {"name": "fraud"}}, HTTP_ROUTE),
    "grpcRoute": lambda: borrowed({"grpcRoute": {"name": "fraud"}}, GRPC_ROUTE),
    "istio": istio,
    "podRatio": lambda: Rig(
        traffic={}, carrier=SERVICE, spoil={"spec": {"selector": {"app": "other"}}}, report=endpoints_follow
    ),
}

# The same, where each version is behind something that the user keeps.
OWN: dict[str, Callable[[], Rig]] = {
    "gatewayAPI to Services of the user's": lambda: gateway_api("Service"),
    "gatewayAPI to pools": lambda: gateway_api("InferencePool"),
    "httpRoute to Services of the user's": lambda: borrowed(
        {"httpRoute": {"name": "fraud"}}, HTTP_ROUTE, "Service"
    ),
    "httpRoute to pools": lambda: borrowed({"httpRoute": {"name": "fraud"}}, HTTP_ROUTE, "InferencePool"),
    "grpcRoute to Services of the user's": lambda: borrowed(
        {"grpcRoute": {"name": "fraud"}}, GRPC_ROUTE, "Service"
    ),
    "istio to Services of the user's": lambda: istio("Service"),
}

# Committed weights (stable, candidate, previous) with the sizes that belong to them.
SPLITS: dict[str, tuple[Splits, Splits, bool]] = {
    "a step": ((75, 25, 0), (3, 1, 0), False),
    "the candidate takes all": ((0, 100, 0), (3, 4, 0), False),
    "traffic is back at the baseline": ((100, 0, 0), (4, 1, 0), False),
    "a watch with a share held back": ((90, 0, 10), (9, 0, 1), True),
    "a watch without": ((100, 0, 0), (4, 0, 4), True),
}


@pytest.fixture(params=[*ROUTERS, *OWN])
def rig(request: pytest.FixtureRequest) -> Rig:
    rig = (ROUTERS | OWN)[request.param]()
    rig.start()
    return rig


def test_every_router_of_the_product_keeps_the_contract() -> None:
    assert ROUTERS.keys() == TABLE.keys()
    assert all(name == router.name for name, router in TABLE.items())


@pytest.mark.parametrize(("weights", "sizes", "promoted"), SPLITS.values(), ids=SPLITS)
def test_a_committed_split_is_written_and_read_back(
    rig: Rig, weights: Splits, sizes: Splits, promoted: bool
) -> None:
    status = rig.bring(weights, sizes, promoted=promoted)
    reading = rig.observe(status)
    names = (rig.second, None, rig.first) if promoted else (rig.first, rig.second, None)
    assert reading.weights == {r: w for r, w in zip(names, weights, strict=True) if r and w}
    assert reading.accepted
    assert reading.problem is None
    assert reading.foreign_manager is None


@pytest.mark.parametrize(("weights", "sizes", "promoted"), SPLITS.values(), ids=SPLITS)
def test_nothing_is_written_when_nothing_differs(
    rig: Rig, weights: Splits, sizes: Splits, promoted: bool
) -> None:
    status = rig.bring(weights, sizes, promoted=promoted)
    assert rig.actions(status) == []


def test_a_split_that_is_not_written_yet_is_not_accepted(rig: Rig) -> None:
    rig.bring((75, 25, 0))
    assert not rig.observe(rig.status((100, 0, 0))).accepted


def test_the_reading_is_another_one_after_each_change(rig: Rig) -> None:
    identities = [
        rig.observe(rig.bring(weights, sizes)).identity
        for weights, sizes in (
            ((75, 25, 0), (3, 1, 0)),
            ((50, 50, 0), (2, 2, 0)),
            ((100, 0, 0), (4, 1, 0)),
            ((0, 100, 0), (4, 4, 0)),
        )
    ]
    assert len(set(identities)) == len(identities)


def test_fields_of_others_are_kept(rig: Rig) -> None:
    status = rig.bring((75, 25, 0))
    rig.server.edit(
        rig.carrier, "fraud", {"metadata": {"annotations": {"team": "risk"}, "labels": {"a": "b"}}}
    )
    rig.report(rig, status)
    assert rig.actions(status) == []
    rig.bring((100, 0, 0), (4, 1, 0))
    metadata = rig.server.get(rig.carrier, "fraud")["metadata"]
    assert metadata["annotations"]["team"] == "risk"
    assert metadata["labels"]["a"] == "b"


def test_a_change_by_another_writer_is_put_right_and_its_author_named(rig: Rig) -> None:
    status = rig.bring((75, 25, 0))
    before = copy.deepcopy(rig.server.get(rig.carrier, "fraud")["spec"])
    before = {key: before[key] for key in rig.spoil["spec"]}
    rig.server.edit(rig.carrier, "fraud", rig.spoil, manager="argocd-controller")
    reading = rig.observe(status)
    assert not reading.accepted
    assert reading.foreign_manager == "argocd-controller"
    (action,) = rig.write(status)
    assert isinstance(action, Apply | JsonPatch)
    assert "argocd-controller" in action.drift
    after = rig.server.get(rig.carrier, "fraud")["spec"]
    assert {key: after[key] for key in rig.spoil["spec"]} == before
    rig.report(rig, status)
    assert rig.observe(status).accepted
    assert rig.actions(status) == []


def test_an_object_of_somebody_else_is_left_alone_and_reported(rig: Rig) -> None:
    status = rig.bring((75, 25, 0))
    rig.server.edit(rig.carrier, "fraud", rig.estrange)
    before = rig.server.snapshot()
    assert rig.write(status) == []
    assert rig.server.snapshot() == before
    reading = rig.observe(status)
    assert not reading.accepted
    assert reading.problem is not None
    assert reading.problem.startswith(rig.estranged)


def test_no_write_while_the_rollout_is_being_deleted(rig: Rig) -> None:
    rig.bring((75, 25, 0))
    rig.rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    assert rig.actions(rig.status((100, 0, 0))) == []


SHARES = {
    "nothing": (0, 4),
    "the smallest step": (1, 4),
    "a step": (25, 4),
    "half of one pod": (50, 1),
    "everything": (100, 4),
}


@pytest.mark.parametrize(("weight", "capacity"), SHARES.values(), ids=SHARES)
def test_a_split_is_a_share_and_fits_its_pods(rig: Rig, weight: int, capacity: int) -> None:
    split = router_of(accepted_of(rig.rollout)).split(weight, capacity)
    assert 0 <= split.share <= 100
    assert (split.share == 0) == (weight == 0)
    assert (split.share == 100) == (weight == 100)
    if split.candidate_pods is not None and split.baseline_pods is not None:
        pods = split.candidate_pods + split.baseline_pods
        assert capacity <= pods <= capacity + 1
        assert split.share == pytest.approx(100 * split.candidate_pods / pods)


def mirroring(rig: Rig, percent: int, weights: Splits = (100, 0, 0)) -> Status:
    """A committed mirror, written and answered."""
    status = rig.bring(weights)
    mirrored = status.model_copy(update={"weights": status.weights.model_copy(update={"mirror": percent})})
    rig.write(mirrored)
    rig.report(rig, mirrored)
    return mirrored


@pytest.mark.parametrize("weights", [(100, 0, 0), (75, 25, 0)], ids=["beside no weight", "beside a weight"])
def test_a_mirror_is_written_and_read_back_or_refused(rig: Rig, weights: Splits) -> None:
    status = mirroring(rig, 10, weights)
    reading = rig.observe(status)
    if not router_of(accepted_of(rig.rollout)).can_mirror:
        assert not reading.accepted
        assert str(reading.problem).startswith("NotSupported: ")
        return
    assert reading.mirror == 10
    assert reading.accepted
    assert rig.actions(status) == []
    without = rig.bring(weights)
    assert rig.observe(without).mirror == 0
    assert rig.observe(without).accepted


def test_a_mirror_that_is_not_written_yet_is_not_accepted(rig: Rig) -> None:
    status = rig.bring((100, 0, 0))
    wanted = status.model_copy(update={"weights": status.weights.model_copy(update={"mirror": 10})})
    assert not rig.observe(wanted).accepted


def borrowed_only(rig: Rig) -> None:
    if rig.borrowed is None:
        pytest.skip("its object is the operator's own")


def written_by_the_user(rig: Rig) -> Object:
    """What Git would compare: without what the server keeps for itself."""
    obj = rig.server.get(rig.carrier, "fraud")
    metadata = {
        k: v for k, v in obj["metadata"].items() if k in ("name", "namespace", "labels", "annotations")
    }
    return copy.deepcopy({"metadata": metadata, "spec": obj["spec"]})


@pytest.mark.parametrize("mirror", [0, 10], ids=["a split", "a split with a mirror"])
def test_between_rollouts_the_users_object_is_exactly_as_it_was(rig: Rig, mirror: int) -> None:
    borrowed_only(rig)
    before = written_by_the_user(rig)
    mirroring(rig, mirror, (75, 25, 0))
    assert written_by_the_user(rig) != before
    status = rig.bring((100, 0, 0), (4, 1, 0))
    rig.write(status)
    rig.report(rig, status)
    assert written_by_the_user(rig) == before
    assert rig.actions(status) == []


def test_the_original_comes_back_only_when_the_service_for_callers_has_followed(rig: Rig) -> None:
    borrowed_only(rig)
    if rig.own:
        pytest.skip("there is none: the next test says what stands there")
    before = written_by_the_user(rig)
    rig.bring((0, 100, 0), (4, 4, 0))
    promoted = rig.status((100, 0, 0), (4, 0, 4), promoted=True)
    rig.write(promoted)
    assert written_by_the_user(rig) != before, "callers would be sent to the old revision"
    rig.report(rig, promoted)
    assert rig.observe(promoted).weights == {rig.second: 100}
    rig.write(promoted)
    rig.report(rig, promoted)
    assert written_by_the_user(rig) == before
    assert rig.observe(promoted).accepted


def test_while_the_stable_revision_is_away_the_route_names_who_answers(rig: Rig) -> None:
    """S1: the original would come back with the first step after it, and once more."""
    borrowed_only(rig)
    status = rig.bring((75, 25, 0))
    assert status.stable is not None
    away = status.model_copy(
        update={
            "weights": Weights(candidate=100),
            "stable": status.stable.model_copy(update={"ready": 0}),
        }
    )
    rig.pods(0, 1)
    for _ in range(3):
        rig.write(away)
        rig.report(rig, away)
    assert named(rig) == ["fraud-v2" if rig.own else f"fraud-{rig.second}"]
    assert rig.observe(away).weights == {rig.second: 100}
    assert rig.observe(away).accepted
    rig.bring((75, 25, 0))
    assert rig.observe(status).accepted


def own_only(rig: Rig) -> None:
    borrowed_only(rig)
    if rig.own is None:
        pytest.skip("a Service for callers follows what is stable")


def refer_to(rig: Rig, name: str) -> Object:
    """The user's route, as Git has it once it names another version."""
    obj = copy.deepcopy(rig.borrowed)
    assert obj is not None
    (rule,) = obj["spec"].get("rules") or obj["spec"]["http"]
    (backend,) = rule.get("backendRefs") or rule["route"]
    (backend.get("destination") or backend)["host" if "destination" in backend else "name"] = name
    return {"spec": obj["spec"]}


def named(rig: Rig) -> list[str]:
    spec = rig.server.get(rig.carrier, "fraud")["spec"]
    (rule,) = spec.get("rules") or spec["http"]
    return [one.get("name") or one["destination"]["host"] for one in rule.get("backendRefs") or rule["route"]]


def promote(rig: Rig) -> Status:
    rig.bring((75, 25, 0))
    rig.bring((0, 100, 0), (4, 4, 0))
    return rig.bring((100, 0, 0), (4, 0, 0), promoted=True)


def test_after_a_promotion_the_route_names_the_new_version_until_the_user_does(rig: Rig) -> None:
    own_only(rig)
    promoted = promote(rig)
    assert named(rig) == ["fraud-v2"]
    assert rig.observe(promoted).weights == {rig.second: 100}
    assert rig.observe(promoted).accepted
    assert rig.actions(promoted) == []
    rig.server.edit(rig.carrier, "fraud", refer_to(rig, "fraud-v2"), manager="argocd-controller")
    (action, *_) = rig.write(promoted)
    assert isinstance(action, JsonPatch)
    assert action.drift == ""
    rig.write(promoted)
    rig.report(rig, promoted)
    assert "annotations" not in written_by_the_user(rig)["metadata"]
    assert named(rig) == ["fraud-v2"]
    assert rig.observe(promoted).accepted
    assert rig.actions(promoted) == []


def test_after_a_promotion_a_route_that_names_the_old_version_again_is_put_right(rig: Rig) -> None:
    own_only(rig)
    promoted = promote(rig)
    rig.server.edit(rig.carrier, "fraud", refer_to(rig, "fraud-v1"), manager="argocd-controller")
    assert rig.observe(promoted).foreign_manager == "argocd-controller"
    rig.write(promoted)
    assert named(rig) == ["fraud-v2"]


def test_deletion_after_a_promotion_sends_nobody_back_to_the_old_version(rig: Rig) -> None:
    own_only(rig)
    promote(rig)
    rig.rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    for _ in range(2):
        rig.server.run(restorations(rig.rollout, rig.server.children()))
    assert restorations(rig.rollout, rig.server.children()) == []
    assert named(rig) == ["fraud-v2"]
    assert "annotations" not in written_by_the_user(rig)["metadata"]


def test_before_the_rollout_is_gone_the_users_object_is_as_it_was(rig: Rig) -> None:
    borrowed_only(rig)
    before = written_by_the_user(rig)
    rig.bring((75, 25, 0))
    rig.rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    rig.server.run(restorations(rig.rollout, rig.server.children()))
    assert written_by_the_user(rig) == before
    rig.server.run(restorations(rig.rollout, rig.server.children()))
    assert restorations(rig.rollout, rig.server.children()) == []
    managers = [
        entry["manager"] for entry in rig.server.get(rig.carrier, "fraud")["metadata"]["managedFields"]
    ]
    assert "modelrollout" not in managers


def test_another_router_takes_over_from_what_was_restored(rig: Rig) -> None:
    borrowed_only(rig)
    before = written_by_the_user(rig)
    status = rig.bring((75, 25, 0))
    rig.rollout["spec"]["traffic"] = {}
    rig.write(status)
    assert written_by_the_user(rig) == before


def test_what_was_remembered_may_be_lost(rig: Rig) -> None:
    """Somebody removes our annotation in the middle of a split: the weights themselves say what stood there."""
    borrowed_only(rig)
    rig.bring((75, 25, 0))
    rig.server.edit(rig.carrier, "fraud", {"metadata": {"annotations": {"modelrollout.dev/original": None}}})
    rig.bring((100, 0, 0), (4, 1, 0))
    spec = written_by_the_user(rig)["spec"]
    (rule,) = spec.get("rules") or spec["http"]
    (backend,) = rule.get("backendRefs") or rule["route"]
    assert (backend.get("name") or backend["destination"]["host"]) == rig.root
    assert rig.observe(rig.status((100, 0, 0), (4, 1, 0))).accepted
