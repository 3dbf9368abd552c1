"""The lab's gateway must behave as real ones do, else tests on it prove nothing: the rules as tables."""

from __future__ import annotations

from typing import Any

import pytest

from lab.gateway.attachment import CONTROLLER_NAME
from lab.gateway.gateway import Snapshot
from lab.gateway.status import class_status, gateway_status, route_status
from lab.gateway.translation import EnvoyConfig, render_endpoints, translate

Object = dict[str, Any]
NOW, LATER = "2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z"


def gateway(**listener: Any) -> Object:
    everywhere = {"namespaces": {"from": "All"}}
    http = {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": everywhere} | listener
    return {
        "metadata": {"namespace": "gateways", "name": "public", "generation": 1},
        "spec": {"gatewayClassName": "lab", "listeners": [http]},
    }


def service(name: str, *, namespace: str = "ml", port: int = 80) -> Object:
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"ports": [{"name": "http", "port": port}]},
    }


def endpointslice(service_name: str, **ready: bool | None) -> Object:
    return {
        "metadata": {
            "namespace": "ml",
            "name": f"{service_name}-1",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {
                "addresses": ["10.244.0.9"],
                "conditions": {"ready": condition},
                "targetRef": {"kind": "Pod", "namespace": "ml", "name": name},
            }
            for name, condition in ready.items()
        ],
    }


def pod(name: str, port: int, *, ready: bool = True, **labels: str) -> Object:
    annotations = {"lab.modelrollout.dev/address": f"127.0.0.1:{port}"}
    conditions = [{"type": "Ready", "status": str(ready)}]
    metadata = {"namespace": "ml", "name": name, "annotations": annotations, "labels": labels}
    return {"metadata": metadata, "status": {"conditions": conditions}}


def pool(name: str, **labels: str) -> Object:
    spec = {"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}]}
    return {"metadata": {"namespace": "ml", "name": name}, "spec": spec}


def route(*rules: Object, name: str = "fraud", **changes: Any) -> Object:
    spec: Object = {
        "parentRefs": [{"name": "public", "namespace": "gateways"}],
        "hostnames": ["fraud.example"],
        "rules": list(rules) or [backends(blue=1)],
    }
    return {
        "metadata": {"namespace": "ml", "name": name, "generation": 3, "creationTimestamp": NOW},
        "spec": spec | changes,
    }


def backends(**weights: int) -> Object:
    return {"backendRefs": [{"name": n, "port": 80, "weight": weight} for n, weight in weights.items()]}


SERVICES = [service("blue"), service("green")]
PODS = [pod("one", 8001), pod("two", 8002), pod("three", 8003)]


def run(
    *routes: Object, gateways: list[Object] | None = None, slices: list[Object] | None = None
) -> EnvoyConfig:
    return translate(
        gateways=gateways if gateways is not None else [gateway()],
        routes=routes,
        endpointslices=slices or [],
        services=SERVICES,
        pods=PODS,
    )


def run_pools(one: Object, *pods: Object) -> EnvoyConfig:
    """A route to the pools blue and green, each with the pods of its colour."""
    found = [pool(name, color=name, app="model") for name in ("blue", "green")]
    objects: dict[str, list[Object]] = {"gateways": [gateway()], "routes": [one], "pools": found}
    objects["gateways"][0]["spec"]["gatewayClassName"] = "lab"
    lab_class = {"metadata": {"name": "lab"}, "spec": {"controllerName": CONTROLLER_NAME}}
    objects |= {"classes": [lab_class], "services": SERVICES, "endpointslices": [], "pods": list(pods)}
    return Snapshot.of(objects).translate()


def only_route(config: EnvoyConfig) -> Object:
    (host,) = config.virtual_hosts
    (entry,) = host["routes"]
    found: Object = entry
    return found


def weights_of(config: EnvoyConfig) -> dict[str, int]:
    clusters = only_route(config)["route"]["weighted_clusters"]["clusters"]
    return {cluster["name"]: cluster["weight"] for cluster in clusters}


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        pytest.param(
            backends(blue=90, green=10),
            {"ml/blue:80": 90, "ml/green:80": 10},
            id="weights are kept as they are",
        ),
        pytest.param(
            backends(blue=100, green=0), {"ml/blue:80": 100}, id="a backend of weight 0 gets nothing"
        ),
        pytest.param(
            {"backendRefs": [{"name": "blue", "port": 80}]},
            {"ml/blue:80": 1},
            id="a backend without a weight counts one",
        ),
        pytest.param(
            backends(blue=3, gone=1),
            {"ml/blue:80": 3, "unresolved": 1},
            id="a missing Service keeps its share, of 500s",
        ),
        pytest.param(
            {"backendRefs": [{"name": "blue", "port": 99, "weight": 1}]},
            {"unresolved": 1},
            id="so does a missing port",
        ),
        pytest.param(
            {"backendRefs": [{"name": "blue", "namespace": "other", "port": 80}]},
            {"unresolved": 1},
            id="so does a Service of another namespace, for want of a grant",
        ),
    ],
)
def test_weights_become_weighted_clusters(rule: Object, weights: dict[str, int]) -> None:
    config = run(route(rule))
    assert weights_of(config) == weights
    assert only_route(config)["route"]["cluster_not_found_response_code"] == "INTERNAL_SERVER_ERROR"


@pytest.mark.parametrize(
    "rule",
    [pytest.param(backends(blue=0, green=0), id="all weights 0"), pytest.param({}, id="no backend at all")],
)
def test_a_rule_that_sends_nowhere_answers_500(rule: Object) -> None:
    assert only_route(run(route(rule)))["direct_response"] == {"status": 500}


def test_a_pool_is_the_ready_pods_that_it_selects() -> None:
    refs = [
        {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name, "weight": weight}
        for name, weight in (("blue", 90), ("green", 10), ("gone", 1))
    ]
    config = run_pools(
        route({"backendRefs": refs}),
        pod("one", 8001, color="blue", app="model", more="yes"),
        pod("two", 8002, color="blue", app="model", ready=False),
        pod("three", 8003, color="blue"),
        pod("four", 8004, color="green", app="model"),
    )
    names = {"ml/InferencePool/blue:8000": 90, "ml/InferencePool/green:8000": 10, "unresolved": 1}
    assert weights_of(config) == names
    assert config.endpoints == {
        "ml/InferencePool/blue:8000": ("127.0.0.1:8001",),
        "ml/InferencePool/green:8000": ("127.0.0.1:8004",),
    }


def test_a_backend_of_weight_0_keeps_its_cluster_warm() -> None:
    config = run(route(backends(blue=1, green=0)), slices=[endpointslice("green", one=True)])
    assert config.endpoints == {"ml/blue:80": (), "ml/green:80": ("127.0.0.1:8001",)}


@pytest.mark.parametrize(
    ("slices", "addresses"),
    [
        pytest.param(
            [endpointslice("blue", one=True, two=True)], ("127.0.0.1:8001", "127.0.0.1:8002"), id="all ready"
        ),
        pytest.param([endpointslice("blue", one=True, two=False)], ("127.0.0.1:8001",), id="one not ready"),
        pytest.param(
            [endpointslice("blue", one=None)], ("127.0.0.1:8001",), id="an unknown condition means ready"
        ),
        pytest.param([endpointslice("green", one=True)], (), id="another Service's pods"),
        pytest.param([endpointslice("blue", unknown=True)], (), id="a pod without an address yet"),
        pytest.param(
            [endpointslice("blue", two=True), endpointslice("blue", one=True)],
            ("127.0.0.1:8001", "127.0.0.1:8002"),
            id="several slices",
        ),
    ],
)
def test_endpoints_are_the_ready_pods_of_the_service(
    slices: list[Object], addresses: tuple[str, ...]
) -> None:
    assert run(route(), slices=slices).endpoints == {"ml/blue:80": addresses}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        pytest.param({}, {"prefix": "/"}, id="an empty match is everything"),
        pytest.param(
            {"path": {"type": "PathPrefix", "value": "/v1/"}},
            {"path_separated_prefix": "/v1"},
            id="a prefix is whole segments",
        ),
        pytest.param({"path": {"type": "Exact", "value": "/v1"}}, {"path": "/v1"}, id="an exact path"),
        pytest.param(
            {"headers": [{"name": "x-tier", "value": "gold"}]},
            {"prefix": "/", "headers": [{"name": "x-tier", "string_match": {"exact": "gold"}}]},
            id="a header, exactly unless told otherwise",
        ),
        pytest.param(
            {"headers": [{"type": "RegularExpression", "name": "x-tier", "value": "g.*"}]},
            {
                "prefix": "/",
                "headers": [{"name": "x-tier", "string_match": {"safe_regex": {"regex": "g.*"}}}],
            },
            id="a header by regular expression",
        ),
        pytest.param(
            {"method": "POST", "queryParams": [{"name": "q", "value": "1"}]},
            {
                "prefix": "/",
                "headers": [{"name": ":method", "string_match": {"exact": "POST"}}],
                "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}],
            },
            id="method and parameter",
        ),
    ],
)
def test_matches(match: Object, expected: Object) -> None:
    assert only_route(run(route({"matches": [match], **backends(blue=1)})))["match"] == expected


def test_the_more_specific_match_is_tried_first() -> None:
    matches: list[Object] = [
        {},
        {"headers": [{"name": "a", "value": "1"}]},
        {"method": "GET"},
        {"path": {"type": "PathPrefix", "value": "/long"}},
        {"path": {"type": "Exact", "value": "/x"}},
    ]
    (host,) = run(route({"matches": matches, **backends(blue=1)})).virtual_hosts
    first_words = [next(iter(entry["match"])) for entry in host["routes"]]
    assert first_words[:2] == ["path", "path_separated_prefix"]
    assert [entry["match"].get("headers", [{}])[0].get("name") for entry in host["routes"][2:]] == [
        ":method",
        "a",
        None,
    ]


def test_of_two_routes_alike_the_older_wins() -> None:
    older, younger = route(backends(green=1), name="z"), route(backends(blue=1), name="a")
    younger["metadata"]["creationTimestamp"] = LATER
    (host,) = run(younger, older).virtual_hosts
    assert host["routes"][0]["route"]["weighted_clusters"]["clusters"][0]["name"] == "ml/green:80"


@pytest.mark.parametrize(
    ("listener", "wanted", "served"),
    [
        pytest.param(None, ["fraud.example"], ["fraud.example"], id="the listener takes any host"),
        pytest.param(None, [], ["*"], id="neither names a host"),
        pytest.param(
            "*.example",
            ["fraud.example", "fraud.test"],
            ["fraud.example"],
            id="the listener's wildcard chooses",
        ),
        pytest.param(
            "fraud.example", ["*.example"], ["fraud.example"], id="the route's wildcard is narrowed"
        ),
        pytest.param("*.example", ["example"], [], id="a wildcard does not cover its own domain"),
    ],
)
def test_hostnames_are_where_route_and_listener_agree(
    listener: str | None, wanted: list[str], served: list[str]
) -> None:
    fitting = gateway(hostname=listener) if listener else gateway()
    config = run(route(hostnames=wanted), gateways=[fitting])
    assert [name for host in config.virtual_hosts for name in host["domains"]] == served


def test_a_mirror_sends_its_percentage_to_the_other_cluster() -> None:
    mirror = {
        "type": "RequestMirror",
        "requestMirror": {"backendRef": {"name": "green", "port": 80}, "percent": 25},
    }
    config = run(route({"filters": [mirror], **backends(blue=1)}), slices=[endpointslice("green", two=True)])
    (policy,) = only_route(config)["route"]["request_mirror_policies"]
    assert policy["cluster"] == "ml/green:80"
    assert policy["runtime_fraction"]["default_value"] == {"numerator": 250_000, "denominator": "MILLION"}
    assert config.endpoints["ml/green:80"] == ("127.0.0.1:8002",)


def sticky(*, lifetime: str = "", **weights: int) -> Object:
    session: Object = {"type": "Cookie", "sessionName": "side"}
    if lifetime:
        session |= {"absoluteTimeout": lifetime, "cookieConfig": {"lifetimeType": "Permanent"}}
    return {"sessionPersistence": session, **backends(**weights)}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        pytest.param(
            {"blue": 75, "green": 25},
            {"ml/blue:80": 75, "ml/green:80": 25},
            id="its backends, by their weights",
        ),
        pytest.param(
            {"blue": 100, "green": 0},
            {"ml/blue:80": 100, "ml/green:80": None},
            id="one of weight 0 too, for sessions that are there, but for no other request",
        ),
    ],
)
def test_a_rule_with_sessions_has_one_cluster_of(
    weights: dict[str, int], parts: dict[str, int | None]
) -> None:
    slices = [endpointslice("blue", one=True), endpointslice("green", two=True)]
    config = run(route(sticky(**weights)), slices=slices)
    ((name, weight),) = weights_of(config).items()
    assert weight == 100
    assert config.sessions.keys() == {name}
    (resource,) = render_endpoints(name, config)["resources"]
    found = {one["locality"]["sub_zone"]: one for one in resource["endpoints"]}
    assert {part: one.get("load_balancing_weight") for part, one in found.items()} == parts
    ports = [
        end["endpoint"]["address"]["socket_address"]["port_value"]
        for part in sorted(found)
        for end in found[part]["lb_endpoints"]
    ]
    assert ports == [8001, 8002]


@pytest.mark.parametrize(
    ("lifetime", "cookie"),
    [("", {"name": "side", "path": "/"}), ("1h", {"name": "side", "path": "/", "ttl": "3600.000s"})],
    ids=["until the browser is closed", "for an hour"],
)
def test_a_session_is_a_cookie(lifetime: str, cookie: Object) -> None:
    (config,) = only_route(run(route(sticky(lifetime=lifetime, blue=1))))["typed_per_filter_config"].values()
    assert config["stateful_session"]["session_state"]["typed_config"]["cookie"] == cookie


def test_another_weight_is_another_cluster_so_that_it_is_in_force_with_the_route() -> None:
    one, other = (run(route(sticky(blue=blue, green=10))).sessions.keys() for blue in (10, 20))
    assert not one & other


def test_of_a_rule_with_sessions_a_missing_backend_answers_its_share_with_500() -> None:
    config = run(route(sticky(blue=30, gone=70)))
    (name,) = config.sessions
    assert weights_of(config) == {"unresolved": 70, name: 30}


def test_response_headers_are_set_for_one_backend_or_for_the_rule() -> None:
    def set_header(value: str) -> list[Object]:
        changes = {"set": [{"name": "x-arm", "value": value}]}
        return [{"type": "ResponseHeaderModifier", "responseHeaderModifier": changes}]

    rule = backends(blue=1)
    rule["backendRefs"][0]["filters"] = set_header("blue")
    rule["filters"] = set_header("any")
    entry = only_route(run(route(rule)))
    of_backend = entry["route"]["weighted_clusters"]["clusters"][0]["response_headers_to_add"][0]["header"]
    assert (of_backend["value"], entry["response_headers_to_add"][0]["header"]["value"]) == ("blue", "any")


def status_of(one: Object, *gateways: Object, now: str = NOW) -> Object | None:
    services = {("ml", item["metadata"]["name"]): item for item in SERVICES}
    return route_status(one, list(gateways) or [gateway()], services, now)


@pytest.mark.parametrize(
    ("one", "accepted", "resolved"),
    [
        pytest.param(route(), "Accepted", "ResolvedRefs", id="all is well"),
        pytest.param(route(backends(gone=1)), "Accepted", "BackendNotFound", id="the Service is missing"),
        pytest.param(
            route({"backendRefs": [{"kind": "Bucket", "group": "x", "name": "b"}]}),
            "Accepted",
            "InvalidKind",
            id="no Service",
        ),
        pytest.param(
            route(parentRefs=[{"name": "public", "namespace": "gateways", "sectionName": "tls"}]),
            "NoMatchingParent",
            "ResolvedRefs",
            id="the listener is missing",
        ),
        pytest.param(
            route({"filters": [{"type": "URLRewrite", "urlRewrite": {}}], **backends(blue=1)}),
            "UnsupportedValue",
            "ResolvedRefs",
            id="a filter the lab cannot do",
        ),
        pytest.param(
            route({"sessionPersistence": {"type": "Header"}, **backends(blue=1)}),
            "UnsupportedValue",
            "ResolvedRefs",
            id="a session by header",
        ),
        pytest.param(
            route({"sessionPersistence": {"absoluteTimeout": "1h"}, **backends(blue=1)}),
            "UnsupportedValue",
            "ResolvedRefs",
            id="a session that the gateway would have to end",
        ),
        pytest.param(
            route(
                {
                    "matches": [{"headers": [{"type": "RegularExpression", "name": "a", "value": "("}]}],
                    **backends(blue=1),
                }
            ),
            "UnsupportedValue",
            "ResolvedRefs",
            id="a regular expression that Envoy would refuse together with all other routes",
        ),
    ],
)
def test_a_route_is_told_what_is_wrong(one: Object, accepted: str, resolved: str) -> None:
    status = status_of(one)
    assert status is not None
    (parent,) = status["parents"]
    assert parent["controllerName"] == CONTROLLER_NAME
    reasons = {condition["type"]: condition["reason"] for condition in parent["conditions"]}
    assert reasons == {"Accepted": accepted, "ResolvedRefs": resolved}
    assert {condition["observedGeneration"] for condition in parent["conditions"]} == {3}


def test_a_listener_for_its_own_namespace_refuses_others() -> None:
    private = gateway(allowedRoutes={"namespaces": {"from": "Same"}})
    assert run(route(), gateways=[private]).virtual_hosts == ()
    status = status_of(route(), private)
    assert status is not None
    assert status["parents"][0]["conditions"][0]["reason"] == "NotAllowedByListeners"


def test_a_route_of_another_gateway_gets_no_status_and_no_traffic() -> None:
    foreign = route(parentRefs=[{"name": "elsewhere", "namespace": "gateways"}])
    assert status_of(foreign) is None
    assert run(foreign).virtual_hosts == ()


def test_a_status_is_written_once() -> None:
    one = route()
    one["status"] = status_of(one)
    assert status_of(one, now=LATER) is None


def test_a_new_generation_keeps_the_time_of_the_last_transition() -> None:
    one = route()
    one["status"] = status_of(one)
    one["metadata"]["generation"] = 4
    status = status_of(one, now=LATER)
    assert status is not None
    for condition in status["parents"][0]["conditions"]:
        assert (condition["observedGeneration"], condition["lastTransitionTime"]) == (4, NOW)


def test_the_entries_of_other_controllers_are_kept() -> None:
    foreign = {"controllerName": "example.org/mesh", "parentRef": {"name": "mesh"}, "conditions": []}
    one = route() | {"status": {"parents": [foreign]}}
    status = status_of(one)
    assert status is not None
    assert [parent["controllerName"] for parent in status["parents"]] == ["example.org/mesh", CONTROLLER_NAME]


def test_a_route_that_left_our_gateway_loses_our_entry() -> None:
    one = route()
    one["status"] = status_of(one)
    one["spec"]["parentRefs"] = [{"name": "elsewhere"}]
    assert status_of(one) == {"parents": []}


def test_gateway_and_class_say_that_they_are_served_and_say_it_once() -> None:
    public, its_class = gateway(), {"metadata": {"name": "lab", "generation": 1}}
    status = gateway_status(public, [route(), route(name="b")], "127.0.0.1", NOW)
    assert status is not None
    assert status["listeners"][0]["attachedRoutes"] == 2
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "Programmed": "True",
    }
    again = public | {"status": status}
    assert gateway_status(again, [route(), route(name="b")], "127.0.0.1", LATER) is None
    accepted = class_status(its_class, NOW)
    assert class_status(its_class | {"status": accepted}, LATER) is None


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("10s", "10.000s"), ("1m30s", "90.000s"), ("500ms", "0.500s"), ("1h2m3s4ms", "3723.004s")],
)
def test_timeouts(duration: str, seconds: str) -> None:
    rule = {"timeouts": {"request": duration}, **backends(blue=1)}
    assert only_route(run(route(rule)))["route"]["timeout"] == seconds
