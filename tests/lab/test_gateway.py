"""Real traffic through the lab's gateway: what tests of rollouts take for granted about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from lab.gateway import ADDRESS_ANNOTATION, CONTROLLER_NAME, GATEWAY_NAME, GATEWAY_NAMESPACE
from lab.kube import Object, path_of
from lab.lab import Lab
from lab.load import UNANSWERED, Load, User
from lab.process import wait_until

NAMESPACE = "ml"
HOST = "fraud.example"
_ROUTES = "gateway.networking.k8s.io/v1"


@pytest.fixture(scope="module", autouse=True)
def services(lab: Lab) -> Iterator[None]:
    """The Services blue and green (a model pod each) and empty (none)."""
    lab.client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for name in ("blue", "green"):
        lab.client.apply(deployment(name))
    for name in ("blue", "green", "empty"):
        lab.client.apply(service(name))
    set_weights(lab, blue=1, green=1)
    with Load(lab.gateway_url, HOST, rate=50.0) as load:
        wait_until(lambda: len(load.counts().by_version()) == 2, timeout=30.0, what="answers of both models")
    yield
    lab.client.delete(path_of("v1", "namespaces", None, NAMESPACE))


@pytest.fixture
def load(lab: Lab) -> Iterator[Load]:
    with Load(lab.gateway_url, HOST, rate=200.0) as running:
        yield running


def deployment(name: str) -> Object:
    container = {
        "name": "model",
        "image": "lab/model:1",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": "MODEL_VERSION", "value": name}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    }


def service(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }


def backends(**weights: int) -> list[Object]:
    return [{"name": name, "port": 80, "weight": weight} for name, weight in weights.items()]


def apply_route(lab: Lab, rules: list[Object], *, name: str = "fraud", host: str = HOST) -> dict[str, str]:
    """Applies a route, waits until the gateway has reported on it; the reasons of its conditions."""
    route = {
        "apiVersion": _ROUTES,
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": GATEWAY_NAME, "namespace": GATEWAY_NAMESPACE}],
            "hostnames": [host],
            "rules": rules,
        },
    }
    generation = lab.client.apply(route)["metadata"]["generation"]
    conditions: list[Object] = []

    def reported() -> bool:
        found = lab.client.get(path_of(_ROUTES, "httproutes", NAMESPACE, name))
        parents = found.get("status", {}).get("parents") or []
        conditions[:] = [c for parent in parents for c in parent["conditions"]]
        ours = [parent for parent in parents if parent["controllerName"] == CONTROLLER_NAME]
        return bool(ours) and all(c["observedGeneration"] == generation for c in conditions)

    wait_until(reported, timeout=20.0, what="the gateway's report on the route")
    return {condition["type"]: condition["reason"] for condition in conditions}


def set_weights(lab: Lab, **weights: int) -> dict[str, str]:
    return apply_route(lab, [{"backendRefs": backends(**weights)}])


def await_answers(load: Load, count: int) -> Any:
    """What comes back from now on, until so many answers are there."""
    before = load.counts()
    wait_until(
        lambda: sum(load.counts().since(before).by_status().values()) >= count,
        timeout=30.0,
        what=f"{count} answers",
    )
    return load.counts().since(before)


def pod_metric(lab: Lab, app: str, name: str) -> float:
    (pod,) = lab.client.list(path_of("v1", "pods", NAMESPACE), labelSelector=f"app={app}")
    text = urllib3.request(
        "GET", f"http://{pod['metadata']['annotations'][ADDRESS_ANNOTATION]}/metrics"
    ).data.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def writes_of_gateway(lab: Lab) -> list[str]:
    return [
        event["requestURI"]
        for event in lab.audit_events()
        if event["user"]["username"] == "lab:gateway" and event["verb"] not in ("get", "list", "watch")
    ]


def test_the_split_follows_the_weights(lab: Lab, load: Load) -> None:
    set_weights(lab, blue=80, green=20)
    await_answers(load, 20)
    counts = await_answers(load, 1000)
    # Each request is drawn alone: five standard deviations of 1000 draws are 0.063.
    assert counts.share("green") == pytest.approx(0.2, abs=0.063)
    assert counts.by_status().keys() == {200}


def test_a_reported_generation_is_in_force(lab: Lab, load: Load) -> None:
    for shown, hidden in (("green", "blue"), ("blue", "green")) * 3:
        set_weights(lab, **{shown: 100, hidden: 0})
        # What was under way when the report came may still be answered by the old one.
        await_answers(load, 5)
        assert await_answers(load, 20).by_version().keys() == {shown}


def test_a_missing_service_is_reported_and_its_share_answers_500(lab: Lab, load: Load) -> None:
    assert set_weights(lab, blue=50, gone=50) == {"Accepted": "Accepted", "ResolvedRefs": "BackendNotFound"}
    await_answers(load, 5)
    assert await_answers(load, 100).by_status().keys() == {200, 500}
    assert set_weights(lab, blue=50, gone=0)["ResolvedRefs"] == "BackendNotFound"
    await_answers(load, 5)
    assert await_answers(load, 100).by_status().keys() == {200}


def test_a_service_without_ready_pods_answers_503(lab: Lab, load: Load) -> None:
    assert set_weights(lab, blue=50, empty=50) == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
    await_answers(load, 5)
    assert await_answers(load, 100).by_status().keys() == {200, 503}


def test_a_header_chooses_the_backend(lab: Lab, load: Load) -> None:
    gold = {"matches": [{"headers": [{"name": "x-tier", "value": "gold"}]}], "backendRefs": backends(green=1)}
    apply_route(lab, [{"backendRefs": backends(blue=1)}, gold])
    await_answers(load, 5)
    assert await_answers(load, 50).by_version().keys() == {"blue"}
    with Load(lab.gateway_url, HOST, rate=100.0, headers={"x-tier": "gold"}) as golden:
        assert await_answers(golden, 50).by_version().keys() == {"green"}


def set_sessions(lab: Lab, cookie: str | None, **weights: int) -> None:
    session: Object = {"type": "Cookie", "sessionName": cookie}
    rule = {"backendRefs": backends(**weights), **({"sessionPersistence": session} if cookie else {})}
    assert apply_route(lab, [rule]) == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}


def test_a_session_stays_with_its_backend_whatever_the_weights(lab: Lab, load: Load) -> None:
    set_sessions(lab, "side", blue=75, green=25)
    await_answers(load, 20)
    without = await_answers(load, 1000)
    assert without.share("green") == pytest.approx(0.25, abs=0.069), "who keeps no cookie is drawn each time"
    users = [User(lab.gateway_url, HOST) for _ in range(20)]
    first = [user.ask() for user in users]
    assert set(first) == {"blue", "green"}
    assert all(user.cookies.keys() == {"side"} for user in users)
    # As the Gateway API has it, a session outlives the weight of its backend, too.
    for weights in ({"blue": 75, "green": 25}, {"blue": 10, "green": 90}, {"blue": 100, "green": 0}):
        set_sessions(lab, "side", **weights)
        assert [user.ask() for user in users for _ in range(3)] == [side for side in first for _ in range(3)]
    users += [User(lab.gateway_url, HOST) for _ in range(20)]
    assert {user.ask() for user in users[20:]} == {"blue"}, "no session begins where there is no weight"
    # With its backend or its rule's sessions it ends.
    set_sessions(lab, "side", blue=100)
    assert {user.ask() for user in users} == {"blue"}
    set_sessions(lab, None, green=100)
    assert {user.ask() for user in users} == {"green"}
    for user in users:
        assert {status for _, status in user.versions} == {200}
        user.close()
    assert load.counts().by_status().keys() == {200}


def test_a_mirror_is_sent_and_never_answers(lab: Lab, load: Load) -> None:
    mirror = {
        "type": "RequestMirror",
        "requestMirror": {"backendRef": {"name": "green", "port": 80}, "percent": 50},
    }
    apply_route(lab, [{"backendRefs": backends(blue=1), "filters": [mirror]}])
    await_answers(load, 5)
    before = pod_metric(lab, "green", "http_requests_total")
    counts = await_answers(load, 400)
    mirrored = pod_metric(lab, "green", "http_requests_total") - before
    assert counts.by_version().keys() == {"blue"}
    # Half of 400, by five standard deviations, and what is under way at either end.
    assert mirrored == pytest.approx(200, abs=60)


def test_response_headers_are_set(lab: Lab) -> None:
    changes = {"set": [{"name": "x-arm", "value": "blue"}]}
    headers = {"type": "ResponseHeaderModifier", "responseHeaderModifier": changes}
    apply_route(lab, [{"backendRefs": [{**backends(blue=1)[0], "filters": [headers]}]}])
    answer = urllib3.request("GET", f"{lab.gateway_url}/healthz", headers={"Host": f"{HOST}:80"})
    assert (answer.status, answer.headers["x-arm"]) == (200, "blue")


def test_a_route_that_envoy_would_refuse_harms_nobody_else(lab: Lab, load: Load) -> None:
    set_weights(lab, blue=1)
    broken = {"matches": [{"headers": [{"type": "RegularExpression", "name": "a", "value": "("}]}]}
    assert apply_route(lab, [broken], name="broken", host="broken.example")["Accepted"] == "UnsupportedValue"
    assert set_weights(lab, green=1)["Accepted"] == "Accepted"
    await_answers(load, 5)
    assert await_answers(load, 20).by_version().keys() == {"green"}
    lab.client.delete(path_of(_ROUTES, "httproutes", NAMESPACE, "broken"))


def test_statuses_are_written_only_when_they_change(lab: Lab) -> None:
    set_weights(lab, blue=1, green=1)
    services = path_of("v1", "services", NAMESPACE, "blue")
    before = writes_of_gateway(lab)
    for number in range(10):
        lab.client.patch(services, {"metadata": {"annotations": {"touched": str(number)}}})
    # The gateway saw all of that before it reports on this one.
    set_weights(lab, blue=1, green=2)
    written = writes_of_gateway(lab)[len(before) :]
    assert [uri.rpartition("/apis/")[2] for uri in written] == [
        f"{_ROUTES}/namespaces/{NAMESPACE}/httproutes/fraud/status"
    ]


def test_a_killed_envoy_comes_back_on_its_port(lab: Lab, load: Load) -> None:
    set_weights(lab, blue=1)
    await_answers(load, 20)
    lab.gateway.envoy.process.kill()
    before = load.counts()
    wait_until(
        lambda: load.counts().since(before).by_version().get("blue", 0) >= 20,
        timeout=30.0,
        what="answers again",
    )
    assert load.counts().since(before).by_status().keys() == {200, UNANSWERED}


def test_traffic_goes_on_without_the_api_server_and_changes_come_after_it(lab: Lab, load: Load) -> None:
    set_weights(lab, blue=1)
    await_answers(load, 20)
    before = load.counts()
    lab.stop_apiserver(grace=0)
    await_answers(load, 50)
    lab.start_apiserver()
    assert load.counts().since(before).by_status().keys() == {200}
    set_weights(lab, green=1)
    await_answers(load, 5)
    assert await_answers(load, 20).by_version().keys() == {"green"}
