"""HTTPRoutes: who may stand in one, when a gateway has accepted it, and what people read when it has not."""

from __future__ import annotations

import copy
import re
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from modelrollout.api.rules import MATCHES, MIRRORS, STICKS
from modelrollout.api.spec import GatewayAPI, RequestMatch, Stickiness
from modelrollout.api.status import Phase, PlanStep, Status, StepStatus, Weights
from modelrollout.api.types import Model
from modelrollout.api.validate import parse
from modelrollout.cluster.actions import Action, Delete
from modelrollout.cluster.kinds import HTTP_ROUTE, SERVICE
from modelrollout.traffic import ROUTERS, RouteReading, route_actions
from modelrollout.traffic.gateway_api import GatewayApiRouter
from modelrollout.workloads import workload_actions
from tests.unit.workloads.manifests import Object, manifest, revision_of, spec_of, status_of, with_version
from tests.unit.workloads.server import Server

NOW = 1_800_000_000.0
ROUTER = GatewayApiRouter()
PARENTS = [
    {"name": "public", "namespace": "gateways", "sectionName": "https"},
    {"name": "internal"},
]
OLDER = manifest(traffic={"gatewayAPI": {"parentRefs": PARENTS}})
ROLLOUT = with_version(OLDER, "2")
A, B = revision_of(OLDER), revision_of(ROLLOUT)
STEP = status_of(A, B, weights=(90, 10, 0), attempt=2)


def cluster(*, a: int, b: int | None = None) -> Server:
    """Workloads of the first revision, and of the second one if `b` is given, with so many ready pods."""
    server = Server()
    for rollout, status in ((OLDER, status_of(A)), *([(ROLLOUT, STEP)] if b is not None else [])):
        server.run(workload_actions(rollout, spec_of(rollout), status, server.children(), NOW))
    server.pods(f"fraud-{A}", A, a)
    server.pods(f"fraud-{B}", B, b or 0)
    return server


def actions(server: Server, status: Status, rollout: Object = ROLLOUT) -> list[Action]:
    return route_actions(rollout, spec_of(rollout), status, server.children(), NOW)


def observe(server: Server, status: Status) -> RouteReading:
    return ROUTER.observe(ROLLOUT, spec_of(ROLLOUT), status, server.children())


def weights(server: Server) -> dict[str, int]:
    refs = server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"]
    return {ref["name"].removeprefix("fraud-"): ref["weight"] for ref in refs}


def test_there_is_no_route_before_the_first_revision_answers() -> None:
    server = cluster(a=0)
    assert actions(server, status_of(A), OLDER) == []
    assert observe(server, status_of(A)) == RouteReading()
    server.pods(f"fraud-{A}", A, 1)
    server.run(actions(server, status_of(A), OLDER))
    assert weights(server) == {A: 100}


def test_a_candidate_stands_in_the_route_only_once_it_answers() -> None:
    server = cluster(a=2, b=0)
    server.run(actions(server, STEP))
    assert weights(server) == {A: 90}
    server.accept("fraud")
    assert not observe(server, STEP).accepted, "the committed weights do not stand there"
    server.pods(f"fraud-{B}", B, 1)
    server.run(actions(server, STEP))
    assert weights(server) == {A: 90, B: 10}


def test_a_backend_that_lost_its_endpoints_stays_until_the_decision_takes_its_weight() -> None:
    server = cluster(a=2, b=1)
    server.run(actions(server, STEP))
    server.pods(f"fraud-{B}", B, 0)
    assert actions(server, STEP) == []
    server.run(actions(server, status_of(A, B, weights=(100, 0, 0))))
    assert weights(server) == {A: 100}


def test_a_route_is_never_left_without_backends() -> None:
    server = cluster(a=2)
    server.run(actions(server, status_of(A), OLDER))
    assert actions(server, status_of(A, B, weights=(0, 100, 0))) == []
    assert weights(server) == {A: 100}


def test_weights_add_up_by_revision_and_zero_stands_nowhere() -> None:
    server = cluster(a=2, b=1)
    server.run(actions(server, status_of(B, previous=A, weights=(100, 0, 0))))
    assert weights(server) == {B: 100}


def test_the_route_says_what_the_spec_says() -> None:
    traffic = {
        "gatewayAPI": {
            "parentRefs": PARENTS,
            "hostnames": ["fraud.example.com"],
            "matches": [
                {"path": {"type": "Exact", "value": "/predict"}, "method": "POST"},
                {"headers": [{"name": "x-team", "value": "risk"}]},
            ],
            "port": "grpc",
        }
    }
    ports = [{"name": "http", "port": 80}, {"name": "grpc", "port": 9000, "targetPort": "grpc"}]
    rollout = manifest(traffic=traffic, service={"ports": ports})
    revision, server = revision_of(rollout), Server()
    status = status_of(revision)
    server.run(workload_actions(rollout, spec_of(rollout), status, server.children(), NOW))
    server.pods(f"fraud-{revision}", revision, 1)
    server.run(actions(server, status, rollout))
    route = server.get(HTTP_ROUTE, "fraud")["spec"]
    assert route["hostnames"] == ["fraud.example.com"]
    assert [parent["kind"] for parent in route["parentRefs"]] == ["Gateway", "Gateway"]
    assert route["parentRefs"][0]["sectionName"] == "https"
    assert route["rules"][0]["matches"] == [
        {"path": {"type": "Exact", "value": "/predict"}, "method": "POST"},
        {
            "path": {"type": "PathPrefix", "value": "/"},
            "headers": [{"type": "Exact", "name": "x-team", "value": "risk"}],
        },
    ]
    assert [ref["port"] for ref in route["rules"][0]["backendRefs"]] == [9000]
    assert actions(server, status, rollout) == []


def test_the_port_is_that_of_the_backends_own_revision() -> None:
    server = cluster(a=2, b=1)
    moved = copy.deepcopy(ROLLOUT)
    moved["spec"]["service"]["ports"] = [{"name": "http", "port": 8000}]
    c = revision_of(moved)
    status = status_of(A, c, weights=(90, 10, 0), attempt=3)
    server.run(workload_actions(moved, spec_of(moved), status, server.children(), NOW))
    server.pods(f"fraud-{c}", c, 1)
    server.run(actions(server, status, moved))
    refs = server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"]
    assert [ref["port"] for ref in refs] == [80, 8000]


def parents(*edits: Any) -> list[Object]:
    """What two parents report, with changes of the second one's conditions."""
    server = accepted()
    found: list[Object] = copy.deepcopy(server.get(HTTP_ROUTE, "fraud")["status"]["parents"])
    for edit in edits:
        edit(found)
    return found


def accepted() -> Server:
    server = cluster(a=2, b=1)
    server.run(actions(server, STEP))
    server.accept("fraud")
    return server


def _set(index: int, **changes: Any) -> Any:
    return lambda found: found[1]["conditions"][index].update(changes)


NOT_ACCEPTED = {
    "nobody has answered": (
        [],
        "RouteNotAccepted: Gateway gateways/public has not answered: does it exist, does a controller serve it, and "
        "does a listener allow routes of this namespace?",
    ),
    "one parent has not answered": (parents()[:1], "Gateway ml/internal has not answered"),
    "a parent refuses": (
        parents(_set(0, status="False", reason="NotAllowedByListeners", message="no")),
        "RouteNotAccepted: Gateway ml/internal: Accepted is False, NotAllowedByListeners: no",
    ),
    "a parent does not find the Service": (
        parents(_set(1, status="False", reason="BackendNotFound", message="fraud-b")),
        "ResolvedRefs is False, BackendNotFound: fraud-b",
    ),
    "a parent does not know yet": (parents(_set(0, status="Unknown")), "Accepted is Unknown"),
    "a parent speaks of an older route": (
        parents(_set(0, observedGeneration=0)),
        "has not reported Accepted for the present route",
    ),
    "a parent leaves ResolvedRefs out": (
        parents(lambda found: found[1]["conditions"].pop()),
        "has not reported ResolvedRefs for the present route",
    ),
    "another listener of the Gateway answers": (
        parents(lambda found: found[0]["parentRef"].update(sectionName="http")),
        "Gateway gateways/public has not answered",
    ),
}


@pytest.mark.parametrize(("reported", "said"), NOT_ACCEPTED.values(), ids=NOT_ACCEPTED)
def test_a_route_is_accepted_only_by_all_parents_at_its_present_generation(
    reported: list[Object], said: str
) -> None:
    server = accepted()
    assert observe(server, STEP).accepted
    server.get(HTTP_ROUTE, "fraud")["status"]["parents"] = reported
    reading = observe(server, STEP)
    assert not reading.accepted
    assert said in str(reading.problem)


def test_a_second_controller_that_refuses_does_not_matter() -> None:
    server = accepted()
    found = server.get(HTTP_ROUTE, "fraud")["status"]["parents"]
    other = copy.deepcopy(found[0])
    other["conditions"][0]["status"] = "False"
    found.insert(0, other | {"controllerName": "example.com/another"})
    assert observe(server, STEP).accepted


def test_what_somebody_wrote_into_the_route_is_read_as_it_stands() -> None:
    server = accepted()
    refs = [{"name": f"fraud-{B}", "port": 80}, {"name": "other", "port": 80, "weight": 3}]
    server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": [{"backendRefs": refs}]}}, manager="kubectl-edit")
    reading = observe(server, STEP)
    assert reading.weights == {B: 25, "other": 75}
    assert reading.foreign_manager == "kubectl-edit"


def test_the_route_goes_when_the_ratio_of_pods_takes_over() -> None:
    server = accepted()
    rollout = copy.deepcopy(ROLLOUT)
    rollout["spec"]["traffic"] = {"podRatio": {}}
    (action,) = actions(server, status_of(A), rollout)
    assert isinstance(action, Delete)
    assert (action.kind, action.name) == (HTTP_ROUTE, "fraud")


PORTS = {
    "one port and no name": ([{"port": 80}], None, None),
    "a port that exists": ([{"name": "a", "port": 1}, {"name": "b", "port": 2}], "b", None),
    "a port that does not exist": (
        [{"name": "a", "port": 1}],
        "c",
        "traffic.gatewayAPI.port names c, which service.ports does not have: write one of a",
    ),
    "several ports and no name": (
        [{"name": "a", "port": 1}, {"name": "b", "port": 2}],
        None,
        "traffic.gatewayAPI.port is missing: write one of a, b",
    ),
}


@pytest.mark.parametrize(("ports", "port", "said"), PORTS.values(), ids=PORTS)
def test_the_routed_port_must_be_one_of_the_service(
    ports: list[Object], port: str | None, said: str | None
) -> None:
    gateway = {"parentRefs": PARENTS} | ({"port": port} if port else {})
    spec = spec_of(manifest(traffic={"gatewayAPI": gateway}, service={"ports": ports}))
    assert [problem.message for problem in ROUTER.validate(spec)] == ([said] if said else [])


def test_a_service_is_not_deleted_while_the_route_names_it() -> None:
    server = accepted()
    gone = status_of(A, weights=(100, 0, 0), attempt=2)
    kept = workload_actions(ROLLOUT, spec_of(ROLLOUT), gone, server.children(), NOW)
    assert kept == []
    server.run(actions(server, gone))
    deleted = workload_actions(ROLLOUT, spec_of(ROLLOUT), gone, server.children(), NOW)
    assert [(action.kind.kind, action.name) for action in deleted if isinstance(action, Delete)] == [
        ("Deployment", f"fraud-{B}"),
        (SERVICE.kind, f"fraud-{B}"),
    ]


def test_a_preview_header_is_a_second_rule_that_carries_no_weight() -> None:
    """One header more than the others: by the Gateway API's own precedence it comes first."""
    strategy = {"blueGreen": {"mirror": 20, "previewHeader": {"name": "x-preview", "value": "yes"}}}
    matches = [{"headers": [{"name": "X-Preview", "value": "no"}, {"name": "x-team", "value": "risk"}]}]
    traffic = {"gatewayAPI": {"parentRefs": PARENTS, "matches": matches}}
    rollout = with_version(manifest(traffic=traffic, strategy=strategy), "2")
    step = PlanStep(id="a", weight=0, size=100, mirror=20, preview=True)
    status = status_of(A, B, attempt=2).model_copy(
        update={
            "phase": Phase.PROGRESSING,
            "weights": Weights(stable=100, mirror=20),
            "plan": [step],
            "step": StepStatus(id="a", index=0, count=1, display="1/1"),
        }
    )
    server = cluster(a=2, b=1)
    server.run(actions(server, status, rollout))
    main, preview = server.get(HTTP_ROUTE, "fraud")["spec"]["rules"]
    assert [ref["name"] for ref in main["backendRefs"]] == [f"fraud-{A}"]
    assert [ref["name"] for ref in preview["backendRefs"]] == [f"fraud-{B}"]
    assert "filters" not in preview, "what is previewed is not copied"
    (match,) = preview["matches"]
    assert {one["name"]: one["value"] for one in match["headers"]} == {"x-preview": "yes", "x-team": "risk"}
    server.accept("fraud")
    reading = ROUTER.observe(rollout, spec_of(rollout), status, server.children())
    assert (reading.weights, reading.mirror, reading.accepted) == ({A: 100}, 20, True)
    switched = status.model_copy(update={"phase": Phase.WATCHING, "weights": Weights(stable=90, previous=10)})
    server.run(actions(server, switched, rollout))
    assert len(server.get(HTTP_ROUTE, "fraud")["spec"]["rules"]) == 1


def test_validation_knows_what_routers_can_do() -> None:
    assert {name for name, router in ROUTERS.items() if router.can_mirror} == set(MIRRORS)
    assert {name for name, router in ROUTERS.items() if router.can_match} == set(MATCHES)
    assert {name for name, router in ROUTERS.items() if router.can_stick} == set(STICKS)


# Requests that a step chooses, and users who stay


CHOSEN = (
    {"headers": [{"name": "x-tester", "value": "yes"}], "queryParams": [{"name": "new", "value": "1"}]},
    {"cookie": {"name": "bucket", "value": "b.1"}},
)


def choosing(matched: int, *, phase: Phase = Phase.PROGRESSING) -> Status:
    """A step that chooses requests, with this share of them routed to the candidate."""
    step = PlanStep(id="a", weight=0, size=100, matches=[RequestMatch.from_wire(one) for one in CHOSEN])
    return status_of(A, B, attempt=2).model_copy(
        update={
            "phase": phase,
            "weights": Weights(stable=100, matched=matched),
            "plan": [step],
            "step": StepStatus(id="a", index=0, count=1, display="1/1"),
        }
    )


def rules(server: Server) -> list[Object]:
    return list(server.get(HTTP_ROUTE, "fraud")["spec"]["rules"])


def refs(rule: Object) -> dict[str, int]:
    return {ref["name"].removeprefix("fraud-"): ref["weight"] for ref in rule["backendRefs"]}


def test_chosen_requests_are_a_second_rule_that_asks_for_more() -> None:
    matches = [{"path": {"value": "/a"}}, {"headers": [{"name": "x-team", "value": "risk"}]}]
    rollout = with_version(manifest(traffic={"gatewayAPI": {"parentRefs": PARENTS, "matches": matches}}), "2")
    server = cluster(a=2, b=1)
    server.run(actions(server, choosing(100), rollout))
    main, chosen = rules(server)
    assert (refs(main), refs(chosen)) == ({A: 100}, {B: 100})
    assert len(main["matches"]) == 2
    assert len(chosen["matches"]) == 4, "each of the route's with each of the step's"
    for match in main["matches"]:
        asked = [one for one in chosen["matches"] if one["path"] == match["path"]]
        more = [(len(one.get("headers", ())), len(one.get("queryParams", ()))) for one in asked]
        assert all(extra > (len(match.get("headers", ())), 0) for extra in more), "it comes first"
    server.accept("fraud")
    reading = ROUTER.observe(rollout, spec_of(rollout), choosing(100), server.children())
    assert (reading.weights, reading.accepted) == ({A: 100}, True)


def test_chosen_requests_that_the_candidate_cannot_answer_go_to_the_stable_revision() -> None:
    server = cluster(a=2, b=1)
    server.run(actions(server, choosing(40)))
    assert refs(rules(server)[1]) == {A: 60, B: 40}


def test_no_request_is_chosen_for_a_candidate_that_never_answered() -> None:
    server = cluster(a=2, b=0)
    server.run(actions(server, choosing(100)))
    assert len(rules(server)) == 1
    server.accept("fraud")
    assert not observe(server, choosing(100)).accepted
    server.pods(f"fraud-{B}", B, 1)
    server.run(actions(server, choosing(100)))
    server.accept("fraud")
    assert observe(server, choosing(100)).accepted
    server.pods(f"fraud-{B}", B, 0)
    assert actions(server, choosing(100)) == [], "what it may get then is the decision's to say"


@pytest.mark.parametrize(
    "status",
    [choosing(0), choosing(0, phase=Phase.ROLLING_BACK), choosing(100, phase=Phase.WATCHING)],
    ids=["a share of none", "the way back", "the watch"],
)
def test_the_rule_for_chosen_requests_goes_with_their_share(status: Status) -> None:
    server = cluster(a=2, b=1)
    server.run(actions(server, choosing(100)))
    server.run(actions(server, status))
    assert len(rules(server)) == 1


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ("bucket=b.1", True),
        ("a=1; bucket=b.1", True),
        ("bucket=b.1; a=1", True),
        ("a=bucket=b.1", False),
        ("bucket=b.10", False),
        ("bucket=bx1", False),
        ("xbucket=b.1", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("matching", [re.fullmatch, re.search], ids=["the whole value", "a part of it"])
def test_a_cookie_is_found_among_others(value: str, chosen: bool, matching: Any) -> None:
    server = cluster(a=2, b=1)
    server.run(actions(server, choosing(100)))
    (header,) = rules(server)[1]["matches"][1]["headers"]
    assert (header["name"], header["type"]) == ("Cookie", "RegularExpression")
    assert bool(matching(header["value"], value)) is chosen


@pytest.mark.parametrize(
    ("traffic", "matches"),
    [
        ([{"headers": [{"name": "X-Tester", "value": "no"}]}], [CHOSEN[0]]),
        ([{"headers": [{"name": "cookie", "value": "a=b"}]}], [CHOSEN[1]]),
        ([], [{"headers": [{"name": "Cookie", "value": "a=b"}], **CHOSEN[1]}]),
    ],
    ids=["in the route", "a cookie in the route", "a cookie twice"],
)
def test_a_header_is_compared_once(traffic: list[Any], matches: list[Any]) -> None:
    gateway = {"gatewayAPI": {"parentRefs": PARENTS, "matches": traffic}}
    strategy = {"abTest": {"matches": matches, "duration": "1h"}}
    (problem,) = ROUTER.validate(spec_of(manifest(traffic=gateway, strategy=strategy)))
    assert "choose another header" in problem.message


def test_a_preview_header_that_users_have_too_is_refused() -> None:
    matches = [{"path": {"value": "/a"}}, {"headers": [{"name": "X-Preview", "value": "yes"}]}]
    gateway = {"gatewayAPI": {"parentRefs": PARENTS, "matches": matches}}
    strategy = {"blueGreen": {"previewHeader": {"name": "x-preview", "value": "yes"}}}
    (problem,) = ROUTER.validate(spec_of(manifest(traffic=gateway, strategy=strategy)))
    assert problem.message.startswith("strategy.blueGreen.previewHeader: requests of users have x-preview")
    assert problem.message.endswith("choose another header or value")


def test_more_headers_than_a_match_takes_are_refused_before_the_route_is() -> None:
    many = [{"headers": [{"name": f"x-{number}", "value": "1"} for number in range(16)]}]
    gateway = {"gatewayAPI": {"parentRefs": PARENTS, "matches": many}}
    strategy = {"abTest": {"matches": [CHOSEN[1]], "duration": "1h"}}
    (problem,) = ROUTER.validate(spec_of(manifest(traffic=gateway, strategy=strategy)))
    assert problem.message.endswith("an HTTPRoute takes 16: compare fewer")


FULL = [{"headers": [{"name": f"x-{number}", "value": "1"} for number in range(16)]}]
FILTERS = [{"extensionRef": {"group": "e", "kind": "Filter", "name": f"f{number}"}} for number in range(16)]


@pytest.mark.parametrize(
    ("route", "blue_green", "says"),
    [
        (
            {"matches": FULL},
            {"approval": True, "previewHeader": {"name": "x-preview", "value": "1"}},
            "previewHeader",
        ),
        ({"matches": FULL}, {"approval": True, "previewHeader": {"name": "X-3", "value": "2"}}, None),
        ({"matches": FULL}, {"approval": True}, None),
        ({"filters": FILTERS}, {"mirror": 10}, "mirror"),
        ({"filters": FILTERS[1:]}, {"mirror": 10}, None),
        ({"filters": FILTERS}, {"approval": True}, None),
    ],
    ids=[
        "the header of a preview is one too many",
        "the header of a preview takes the place of another",
        "a match is full and nothing is added",
        "the filter that copies is one too many",
        "a filter has room for the copies",
        "filters are full and nothing is copied",
    ],
)
def test_what_is_added_to_the_route_has_room(route: Object, blue_green: Object, says: str | None) -> None:
    gateway = {"gatewayAPI": {"parentRefs": PARENTS, **route}}
    found = ROUTER.validate(spec_of(manifest(traffic=gateway, strategy={"blueGreen": blue_green})))
    assert [says in problem.message for problem in found] == ([True] if says else [])


def sticking(**stickiness: Any) -> Status:
    """A step that keeps users on their side."""
    step = PlanStep(id="a", weight=10, stickiness=Stickiness(cookie="side", **stickiness))
    now = StepStatus(id="a", index=0, count=1, display="1/1")
    return STEP.model_copy(update={"phase": Phase.PROGRESSING, "plan": [step], "step": now})


@pytest.mark.parametrize(
    ("lifetime", "session"),
    [
        (None, {"cookieConfig": {"lifetimeType": "Session"}}),
        (86400.0, {"cookieConfig": {"lifetimeType": "Permanent"}, "absoluteTimeout": "24h"}),
    ],
    ids=["until the browser is closed", "for a day"],
)
def test_users_stay_while_the_test_runs(lifetime: float | None, session: Object) -> None:
    status, server = sticking(lifetime=lifetime), cluster(a=2, b=1)
    server.run(actions(server, status))
    assert rules(server)[0]["sessionPersistence"] == {"sessionName": "side", "type": "Cookie", **session}
    assert actions(server, status) == [], "what is read back is what was written"
    server.run(actions(server, status.model_copy(update={"phase": Phase.WATCHING})))
    assert "sessionPersistence" not in rules(server)[0]


def test_a_session_does_not_outlive_the_weight() -> None:
    """Gateways keep sessions with a backend of weight 0, as the Gateway API asks them to; so it must not stand there."""
    status, server = sticking(), cluster(a=2, b=1)
    server.run(actions(server, status))
    assert refs(rules(server)[0]) == {A: 90, B: 10}
    weights = STEP.weights.model_copy(update={"stable": 100, "candidate": 0})
    server.run(actions(server, status.model_copy(update={"weights": weights})))
    assert "sessionPersistence" in rules(server)[0]
    assert refs(rules(server)[0]) == {A: 100}


# What is left out of the spec goes from the route


VALUE = [{"name": "x-a", "value": "1"}]
GATEWAY: Object = {
    "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https", "port": 443}],
    "hostnames": ["fraud.example.com"],
    "matches": [
        {
            "path": {"type": "Exact", "value": "/predict"},
            "headers": [{"type": "RegularExpression", "name": "x-team", "value": "r.*"}],
            "method": "POST",
        }
    ],
    "port": "http",
    "filters": [
        {"requestHeaderModifier": {"set": VALUE, "add": VALUE, "remove": ["x-b"]}},
        {"responseHeaderModifier": {"set": VALUE, "add": VALUE, "remove": ["x-b"]}},
        {"urlRewrite": {"hostname": "a.b", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/a"}}},
        {"urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
        {"extensionRef": {"group": "example.com", "kind": "Filter", "name": "a"}},
    ],
    "timeouts": {"request": "30s", "backendRequest": "10s"},
    "annotations": {"example.com/a": "b"},
}
TEST: Object = {
    "matches": [
        {
            "headers": [{"type": "RegularExpression", "name": "x-tester", "value": "y.*"}],
            "cookie": {"name": "bucket", "value": "b"},
            "queryParams": [{"type": "RegularExpression", "name": "new", "value": "1"}],
        }
    ],
    "stickiness": {"cookie": "side", "lifetime": "24h"},
}


def without_each(node: Any, path: str = "") -> dict[str, Any]:
    """The same value without one of its parts, by the name of that part."""
    found: dict[str, Any] = {}
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
        name = f"{path}.{key}" if isinstance(node, dict) else f"{path}[{key}]"
        rest = (
            {k: v for k, v in node.items() if k != key}
            if isinstance(node, dict)
            else node[:key] + node[key + 1 :]
        )
        if rest:
            found[name.lstrip(".")] = rest
        if isinstance(inner, dict | list):
            for where, less in without_each(inner, name).items():
                changed = copy.copy(node)
                changed[key] = less
                found[where] = changed
    return found


def step_of(test: Object) -> PlanStep:
    return PlanStep.from_wire({"id": "a", "weight": 0, "size": 100, **test})


def is_valid(gateway: Object, test: Object) -> bool:
    _, problems = parse(manifest(traffic={"gatewayAPI": gateway}))
    try:
        step_of(test)
    except ValidationError:
        return False
    return not problems


EACH = {
    **{name: ((GATEWAY, {}), (less, {})) for name, less in without_each(GATEWAY).items()},
    **{name: ((GATEWAY, TEST), (GATEWAY, less)) for name, less in without_each(TEST, "strategy").items()},
}
"""All that our route is made from, and the same without one part of it."""
LESS = {name: parts for name, parts in EACH.items() if is_valid(*parts[1])}


def bring(server: Server, gateway: Object, test: Object) -> Object:
    """Make the route follow; what of it is ours then."""
    rollout = with_version(manifest(traffic={"gatewayAPI": gateway}), "2")
    update = {
        "phase": Phase.PROGRESSING,
        "weights": Weights(stable=100, matched=100),
        "plan": [step_of(test)],
        "step": StepStatus(id="a", index=0, count=1, display="1/1"),
    }
    server.run(actions(server, status_of(A, B, attempt=2).model_copy(update=update), rollout))
    route = server.get(HTTP_ROUTE, "fraud")
    return {"spec": route["spec"], "annotations": route["metadata"].get("annotations") or {}}


@pytest.mark.parametrize(("whole", "less"), LESS.values(), ids=LESS)
def test_what_is_left_out_of_the_spec_goes_from_the_route(
    whole: tuple[Object, Object], less: tuple[Object, Object]
) -> None:
    server = cluster(a=2, b=1)
    bring(server, *whole)
    assert bring(server, *less) == bring(cluster(a=2, b=1), *less)


def models_in(annotation: Any) -> set[type[Model]]:
    """The models that a value of this type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        inner = (models_in(field.annotation) for field in annotation.model_fields.values())
        return {annotation}.union(*inner)
    return set().union(*(models_in(one) for one in get_args(annotation)))


def fields_in(value: Any) -> set[tuple[type[Model], str]]:
    """The fields that are set in a value, at any depth."""
    if isinstance(value, Model):
        inner = (fields_in(getattr(value, name)) for name in value.model_fields_set)
        return {(type(value), name) for name in value.model_fields_set}.union(*inner)
    return set().union(*map(fields_in, value)) if isinstance(value, list | tuple) else set()


def test_no_field_of_a_route_is_missing_above() -> None:
    every = {
        (model, name)
        for root in (GatewayAPI, RequestMatch, Stickiness)
        for model in models_in(root)
        for name in model.model_fields
    }
    spec, step = spec_of(manifest(traffic={"gatewayAPI": GATEWAY})), step_of(TEST)
    assert every == fields_in(spec.traffic.gateway_api) | fields_in(step.matches) | fields_in(step.stickiness)
