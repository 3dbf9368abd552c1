"""Routes that the user keeps: the arithmetic of weights, what counts as ours, and what people read when it does not fit."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from modelrollout.api.status import Status
from modelrollout.cluster.actions import JsonPatch
from modelrollout.cluster.kinds import GRPC_ROUTE, HTTP_ROUTE, VIRTUAL_SERVICE, Kind
from modelrollout.traffic import ROUTERS, route_actions, router_of
from modelrollout.workloads import Problem, workload_actions
from tests.unit.traffic.test_contract import route_of, virtual_service
from tests.unit.workloads.manifests import Object, manifest, revision_of, spec_of, status_of, with_version
from tests.unit.workloads.server import Server

NOW = 1_800_000_000.0
HTTP: Object = {"httpRoute": {"name": "fraud"}}
ISTIO: Object = {"istio": {"virtualService": {"name": "fraud", "route": "primary"}}}


class World:
    """One ModelRollout with two revisions that are ready, and a route."""

    def __init__(self, *rules: Object, traffic: Object = HTTP, kind: Kind = HTTP_ROUTE, **spec: Any) -> None:
        self.kind = kind
        self.older = manifest(traffic=traffic, **spec)
        self.rollout = with_version(self.older, "2")
        self.first, self.second = revision_of(self.older), revision_of(self.rollout)
        self.server = Server()
        if rules:
            build = virtual_service if kind is VIRTUAL_SERVICE else lambda *r: route_of(kind, *r)
            self.server.put(build(*copy.deepcopy(rules)))
        for rollout, status in ((self.older, status_of(self.first)), (self.rollout, self.step(90, 10))):
            children = self.server.children()
            self.server.run(workload_actions(rollout, spec_of(rollout), status, children, NOW))
        for revision in (self.first, self.second):
            self.server.pods(
                f"fraud-{revision}", revision, 1, into=["fraud"] if revision == self.first else ()
            )

    def step(self, stable: int, candidate: int, mirror: int = 0) -> Status:
        status = status_of(self.first, self.second, weights=(stable, candidate, 0), attempt=2)
        return status.model_copy(update={"weights": status.weights.model_copy(update={"mirror": mirror})})

    def write(self, stable: int, candidate: int, mirror: int = 0) -> list[Any]:
        spec, status = spec_of(self.rollout), self.step(stable, candidate, mirror)
        return self.server.run(route_actions(self.rollout, spec, status, self.server.children(), NOW))

    def backends(self, rule: int = 0) -> list[tuple[str, int]]:
        names = {f"fraud-{self.first}": "A", f"fraud-{self.second}": "B"}
        found = self.rule(rule)
        if self.kind is VIRTUAL_SERVICE:
            return [
                (names.get(o["destination"]["host"], o["destination"]["host"]), o["weight"])
                for o in found["route"]
            ]
        return [(names.get(ref["name"], ref["name"]), ref["weight"]) for ref in found["backendRefs"]]

    def rule(self, number: int = 0) -> Object:
        spec = self.server.get(self.kind, "fraud")["spec"]
        rules: list[Object] = spec["http" if self.kind is VIRTUAL_SERVICE else "rules"]
        return rules[number]

    def problems(self) -> list[Problem]:
        spec = spec_of(self.rollout)
        return router_of(spec).problems(self.rollout, spec, self.server.children())


def reading(world: World, status: Status) -> Any:
    spec = spec_of(world.rollout)
    return router_of(spec).observe(world.rollout, spec, status, world.server.children())


def ref(name: str, weight: int | None = None, port: int = 80, **more: Any) -> Object:
    return {"name": name, "port": port, **({} if weight is None else {"weight": weight}), **more}


def to(host: str, weight: int | None = None, **destination: Any) -> Object:
    found: Object = {"destination": {"host": host, **destination}}
    return found if weight is None else found | {"weight": weight}


WEIGHTS: dict[str, tuple[list[Object], list[tuple[str, int]]]] = {
    "alone: percent": ([ref("fraud")], [("A", 90), ("B", 10)]),
    "alone, its own weight means nothing": ([ref("fraud", 7)], [("A", 90), ("B", 10)]),
    "alone without weight gets none": ([ref("fraud", 0)], [("A", 0), ("B", 0)]),
    "beside another of the same weight": (
        [ref("fraud", 1), ref("legacy", 1)],
        [("A", 90), ("B", 10), ("legacy", 100)],
    ),
    "in the middle, with a share of its own": (
        [ref("a", 2), ref("fraud", 3), ref("b", 5)],
        [("a", 200), ("A", 270), ("B", 30), ("b", 500)],
    ),
    "twice in one rule": (
        [ref("fraud", 1), ref("fraud", 3)],
        [("A", 90), ("B", 10), ("A", 270), ("B", 30)],
    ),
    "beside one without weight": ([ref("fraud", 4), ref("off", 0)], [("A", 360), ("B", 40), ("off", 0)]),
}


@pytest.mark.parametrize(("backends", "wanted"), WEIGHTS.values(), ids=WEIGHTS)
def test_each_backend_keeps_its_share(backends: list[Object], wanted: list[tuple[str, int]]) -> None:
    world = World({"backendRefs": backends}, {"backendRefs": [ref("fraud")]})
    before = world.rule()
    before = copy.deepcopy(before)
    world.write(90, 10)
    assert world.backends() == wanted
    world.write(100, 0)
    assert world.rule() == before


FOREIGN = {
    "a Service of another namespace": ref("fraud", namespace="other"),
    "another kind": ref("fraud", group="example.com", kind="Backend"),
    "another name": ref("fraud-canary"),
    "a name that only looks like a revision's": ref("fraud-preview"),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_only_the_service_for_callers_is_ours(foreign: Object) -> None:
    world = World({"backendRefs": [ref("fraud")]}, {"backendRefs": [foreign]})
    before = copy.deepcopy(world.rule(1))
    world.write(90, 10)
    assert world.rule(1) == before
    alone = World({"backendRefs": [foreign]})
    assert alone.write(90, 10) == []


def test_filters_and_headers_go_to_each_revision() -> None:
    header = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]},
    }
    world = World({"backendRefs": [ref("fraud", filters=[header])]})
    world.write(90, 10)
    assert [one["filters"] for one in world.rule()["backendRefs"]] == [[header], [header]]


def test_the_port_is_that_of_the_backends_own_revision() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    newer = copy.deepcopy(world.rollout)
    newer["spec"]["service"]["ports"] = [{"name": "http", "port": 8000}]
    second, status = revision_of(newer), status_of(world.first, revision_of(newer), weights=(90, 10, 0))
    world.server.run(workload_actions(newer, spec_of(newer), status, world.server.children(), NOW))
    world.server.pods(f"fraud-{second}", second, 1)
    world.server.run(route_actions(newer, spec_of(newer), status, world.server.children(), NOW))
    assert [one["port"] for one in world.rule()["backendRefs"]] == [80, 8000]


def test_a_weight_that_was_edited_in_the_middle_is_put_right() -> None:
    world = World({"backendRefs": [ref("fraud", 1), ref("legacy", 1)]})
    world.write(90, 10)
    rules = copy.deepcopy([world.rule()])
    rules[0]["backendRefs"][2]["weight"] = 5
    world.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": rules}}, manager="kubectl-edit")
    (action,) = world.write(90, 10)
    assert isinstance(action, JsonPatch)
    assert action.drift == "spec.rules (by kubectl-edit)"
    assert world.backends() == [("A", 90), ("B", 10), ("legacy", 100)]


def test_a_backend_that_was_added_in_the_middle_stays() -> None:
    world = World({"backendRefs": [ref("fraud", 1), ref("legacy", 1)]})
    world.write(90, 10)
    rules = copy.deepcopy([world.rule()])
    rules[0]["backendRefs"].append(ref("new", 100))
    world.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": rules}})
    world.write(80, 20)
    assert world.backends() == [("A", 80), ("B", 20), ("legacy", 100), ("new", 100)]
    world.write(100, 0)
    assert world.backends() == [("fraud", 1), ("legacy", 1), ("new", 1)]


def test_rules_may_change_places_in_the_middle_if_they_have_names() -> None:
    rules = [
        {"name": "a", "backendRefs": [ref("fraud", 1), ref("x", 3)]},
        {"name": "b", "backendRefs": [ref("fraud", 7)]},
    ]
    world = World(*rules)
    before = copy.deepcopy([world.rule(1), world.rule(0)])
    world.write(90, 10)
    turned = copy.deepcopy([world.rule(1), world.rule(0)])
    world.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": turned}})
    world.write(100, 0)
    assert [world.rule(0), world.rule(1)] == before


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"rules": 1}', '{"rules": {"#0": {"written": 5}}}'])
def test_an_annotation_that_was_spoiled_does_not_matter(text: str) -> None:
    world = World({"backendRefs": [ref("fraud", 1), ref("legacy", 1)]})
    before = copy.deepcopy(world.rule())
    world.write(90, 10)
    world.server.edit(HTTP_ROUTE, "fraud", {"metadata": {"annotations": {"modelrollout.dev/original": text}}})
    world.write(70, 30)
    assert world.backends() == [("A", 70), ("B", 30), ("legacy", 100)]
    world.write(100, 0)
    assert world.rule() == before


def test_what_is_remembered_is_what_stood_there() -> None:
    world = World({"backendRefs": [ref("fraud", 3)]})
    original = copy.deepcopy(world.rule()["backendRefs"])
    world.write(90, 10)
    annotations = world.server.get(HTTP_ROUTE, "fraud")["metadata"]["annotations"]
    assert annotations["modelrollout.dev/steered-by"] == "fraud"
    remembered = json.loads(annotations["modelrollout.dev/original"])
    assert remembered["rules"]["#0"]["original"]["backendRefs"] == original


def test_another_route_is_restored_when_the_spec_names_a_new_one() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    before = copy.deepcopy(world.rule())
    other = route_of(HTTP_ROUTE, {"backendRefs": [ref("fraud")]})
    other["metadata"]["name"] = "other"
    world.server.put(other)
    world.write(90, 10)
    world.rollout["spec"]["traffic"] = {"httpRoute": {"name": "other"}}
    world.write(90, 10)
    assert world.rule() == before
    assert len(world.server.get(HTTP_ROUTE, "other")["spec"]["rules"][0]["backendRefs"]) == 2


def test_only_the_named_http_route_of_a_virtual_service_is_split() -> None:
    http = [{"name": "primary", "route": [to("fraud")]}, {"name": "internal", "route": [to("fraud")]}]
    world = World(*http, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    world.write(90, 10)
    assert world.backends() == [("A", 90), ("B", 10)]
    assert world.rule(1) == http[1]
    world.write(100, 0)
    assert world.rule() == http[0]


HOSTS = {
    "short": ("fraud", "fraud-{}"),
    "with its namespace": ("fraud.ml", "fraud-{}.ml"),
    "up to svc": ("fraud.ml.svc", "fraud-{}.ml.svc"),
    "in full": ("fraud.ml.svc.cluster.local", "fraud-{}.ml.svc.cluster.local"),
    "in full, in a cluster of another domain": ("fraud.ml.svc.corp.example", "fraud-{}.ml.svc.corp.example"),
}


@pytest.mark.parametrize(("host", "wanted"), HOSTS.values(), ids=HOSTS)
def test_a_host_keeps_its_form(host: str, wanted: str) -> None:
    world = World({"name": "primary", "route": [to(host)]}, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    world.write(90, 10)
    hosts = [one["destination"]["host"] for one in world.rule()["route"]]
    assert hosts == [wanted.format(world.first), wanted.format(world.second)]


@pytest.mark.parametrize(("host", "wanted"), HOSTS.values(), ids=HOSTS)
def test_a_mirror_has_the_form_of_the_host_that_is_ours(host: str, wanted: str) -> None:
    before = {"name": "primary", "route": [to("legacy.other", 1), to(host, 1)]}
    world = World(before, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    world.write(100, 0, mirror=10)
    assert world.rule()["mirror"] == {"host": wanted.format(world.second)}
    assert reading(world, world.step(100, 0, mirror=10)).mirror == 10
    world.write(100, 0)
    assert world.rule() == before


@pytest.mark.parametrize("domain", ["other", "other.svc.cluster.local", "example.com"])
def test_a_mirror_to_our_name_in_another_namespace_is_the_users(domain: str) -> None:
    revision = World(traffic=ISTIO, kind=VIRTUAL_SERVICE).second
    own = {"host": f"fraud-{revision}.{domain}"}
    before = {"name": "primary", "route": [to("fraud")], "mirror": own, "mirrorPercentage": {"value": 10}}
    world = World(before, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    found = reading(world, world.step(100, 0, mirror=10))
    assert (found.mirror, found.accepted) == (0, False)
    world.write(90, 10)
    assert world.rule()["mirror"] == own
    # What was remembered is lost, so what is ours has to be told by its name.
    world.server.edit(VIRTUAL_SERVICE, "fraud", {"metadata": {"annotations": None}})
    world.write(100, 0)
    assert world.rule()["mirror"] == own


@pytest.mark.parametrize("host", ["fraud.other", "fraud.ml.example.com", "fraud.example.com", "legacy"])
def test_hosts_of_others_are_not_ours(host: str) -> None:
    world = World({"name": "primary", "route": [to(host)]}, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    assert world.write(90, 10) == []


def test_destinations_without_weight_beside_others_have_none() -> None:
    world = World(
        {"name": "primary", "route": [to("fraud", 30), to("legacy", 70), to("off")]},
        traffic=ISTIO,
        kind=VIRTUAL_SERVICE,
    )
    before = copy.deepcopy(world.rule())
    world.write(90, 10)
    assert world.backends() == [("A", 2700), ("B", 300), ("legacy", 7000), ("off", 0)]
    world.write(100, 0)
    assert world.rule() == before


PROBLEMS: dict[str, tuple[World, str]] = {
    "the route is missing": (
        World(),
        "ReferenceNotFound: traffic.httpRoute names HTTPRoute fraud, which namespace ml does not have",
    ),
    "the GRPCRoute is missing": (
        World(traffic={"grpcRoute": {"name": "fraud"}}, kind=GRPC_ROUTE),
        "ReferenceNotFound: traffic.grpcRoute names GRPCRoute fraud, which namespace ml does not have",
    ),
    "no backend is the Service": (
        World({"backendRefs": [ref("legacy")]}),
        "ReferenceNotFound: HTTPRoute fraud has no backend that is Service fraud, so there is nothing to split",
    ),
    "the named http route has no such destination": (
        World({"name": "internal", "route": [to("fraud")]}, traffic=ISTIO, kind=VIRTUAL_SERVICE),
        "ReferenceNotFound: VirtualService fraud has no backend that is Service fraud in its http route primary",
    ),
    "the port is none of the Service's": (
        World({"backendRefs": [ref("fraud", port=8081)]}),
        "InvalidSpec: HTTPRoute fraud: spec.rules[0] names port 8081 of Service fraud, which service.ports does not have: "
        "write one of 80",
    ),
    "a weight is too great to be split": (
        World({"backendRefs": [ref("fraud", 1), ref("legacy", 20_000)]}),
        "NotSupported: HTTPRoute fraud: spec.rules[0] has a weight of more than 10000",
    ),
    "nothing is sent to the Service": (
        World({"backendRefs": [ref("fraud", 0), ref("legacy", 1)]}),
        "NotSupported: HTTPRoute fraud gives Service fraud the weight 0 in each of its rules",
    ),
    "a destination names a subset": (
        World({"name": "primary", "route": [to("fraud", subset="v1")]}, traffic=ISTIO, kind=VIRTUAL_SERVICE),
        "NotSupported: VirtualService fraud: spec.http[0] names subset v1",
    ),
}


@pytest.mark.parametrize(("world", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_does_not_fit_is_said_with_the_mend(world: World, message: str) -> None:
    (problem,) = world.problems()
    assert f"{problem.reason}: {problem.message}".startswith(message)


def test_a_route_that_fits_has_no_problem_also_while_it_is_split() -> None:
    world = World({"backendRefs": [ref("fraud", 1), ref("legacy", 1)]})
    assert world.problems() == []
    world.write(90, 10)
    assert world.problems() == []


def test_the_operators_own_route_is_no_route_of_the_users() -> None:
    own = World(traffic={"gatewayAPI": {"parentRefs": [{"name": "public"}]}})
    own.write(100, 0)
    route = own.server.get(HTTP_ROUTE, "fraud")
    world = World()
    found = ROUTERS["httpRoute"].problems(
        world.rollout,
        spec_of(world.rollout),
        type(world.server.children())(borrowed={("HTTPRoute", "fraud"): route}),
    )
    assert [str(problem.reason) for problem in found] == ["NameTaken"]


def test_a_mirror_of_the_users_own_is_not_replaced() -> None:
    own = {"name": "primary", "route": [to("fraud")], "mirror": {"host": "recorder"}}
    world = World(own, traffic=ISTIO, kind=VIRTUAL_SERVICE)
    found = reading(world, world.step(100, 0, mirror=10))
    assert not found.accepted
    assert str(found.problem).startswith(
        "NotSupported: spec.http[0] of VirtualService fraud has a mirror of its own"
    )


def test_a_route_that_several_own_is_given_back_only_when_nobody_steers_it() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.write(90, 10)
    loser = copy.deepcopy(world.rollout)
    loser["metadata"] |= {"name": "other", "uid": "uid-other"}
    retired = ROUTERS["httpRoute"].retire(loser, world.server.children())
    assert retired == []


def test_a_backend_stands_in_the_route_only_once_it_answers_and_stays_when_it_does_not() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.server.pods(f"fraud-{world.second}", world.second, 0)
    assert world.write(90, 10) == []
    world.server.pods(f"fraud-{world.second}", world.second, 1)
    world.write(90, 10)
    world.server.pods(f"fraud-{world.second}", world.second, 0)
    assert world.write(90, 10) == []
    assert world.backends() == [("A", 90), ("B", 10)]


def test_a_mirror_that_waits_for_its_pods_is_not_accepted() -> None:
    world = World({"backendRefs": [ref("fraud")]})
    world.server.pods(f"fraud-{world.second}", world.second, 0)
    world.server.accept("fraud")
    status = world.step(100, 0)
    assert reading(world, status).accepted
    assert not reading(world, world.step(100, 0, mirror=10)).accepted


def test_a_split_is_not_accepted_while_another_backend_has_a_wrong_share() -> None:
    world = World({"backendRefs": [ref("fraud", 1), ref("legacy", 1)]})
    world.write(90, 10)
    world.server.accept("fraud")
    assert reading(world, world.step(90, 10)).accepted
    rules = copy.deepcopy([world.rule()])
    rules[0]["backendRefs"][2]["weight"] = 5
    world.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": rules}})
    world.server.accept("fraud")
    assert not reading(world, world.step(90, 10)).accepted
