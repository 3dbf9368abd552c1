"""Who else wants what a ModelRollout needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.cluster.store import Key
from modelrollout.workloads import (
    Claims,
    Problem,
    name_taken,
    needed_names,
    selector_overlap,
    template_labels,
)
from tests.unit.workloads.manifests import PLAIN, Object, manifest, spec_of

ROLLOUT = manifest()
LABELS = template_labels(PLAIN) | {
    "modelrollout.dev/rollout": "fraud",
    "modelrollout.dev/revision": "zzzzzzzzzz",
}


def rollout(
    name: str, created: int, *, uid: str = "", namespace: str = "ml", accepted: Any = None, **spec: Any
) -> Object:
    obj = manifest(name=name, namespace=namespace, uid=uid or f"uid-{name}", **spec)
    obj["metadata"]["creationTimestamp"] = f"2026-11-20T08:00:{created:02}Z"
    return obj | ({"status": {"accepted": accepted}} if accepted else {})


def conflicts(rollouts: list[Object]) -> dict[Key, Problem]:
    claims = Claims()
    for one in rollouts:
        claims.put(one)
    keys = [Key(one["metadata"]["namespace"], one["metadata"]["name"]) for one in rollouts]
    return {key: problem for key in keys if (problem := claims.conflict(key)) is not None}


def routed(*parents: Object, **more: Any) -> Object:
    return {"gatewayAPI": {"parentRefs": list(parents) or [{"name": "public"}], **more}}


def two(first: Object, second: Object, *, namespace: str = "ml") -> list[Object]:
    return [rollout("a", 1, traffic=first), rollout("b", 2, traffic=second, namespace=namespace)]


def service(name: str) -> Object:
    return {"name": name, "ports": [{"port": 80}]}


def H(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def chosen(*requests: Object) -> Object:
    """A test with the users whose requests are such."""
    return {"abTest": {"matches": list(requests), "duration": "1h"}}


def previewed(name: str, value: str) -> Object:
    return {"blueGreen": {"previewHeader": H(name, value)}}


def on(path: str = "/a", *headers: Object, **strategy: Object) -> Object:
    """A spec with a path of its own, and those of its requests that have these headers."""
    match = {"path": {"value": path}} | ({"headers": list(headers)} if headers else {})
    return {"traffic": routed(matches=[match]), "strategy": strategy or {"canary": {}}}


def pair(first: Object, second: Object) -> list[Object]:
    return [rollout("a", 1, **first), rollout("b", 2, **second)]


STEPS = [{"weight": 0, "matches": [{"headers": [H("x", "1")]}]}, {"weight": 50}]
PLAN = {"plan": [{"id": "a", "weight": 0, "matches": [{"headers": [H("x", "1")]}]}]}

CONFLICTS: dict[str, tuple[list[Object], list[str]]] = {
    "different names": ([rollout("a", 1), rollout("b", 2)], []),
    "one Service": ([rollout("a", 1, service=service("x")), rollout("b", 2, service=service("x"))], ["b"]),
    "one Service, listed in another order": (
        [rollout("b", 2, service=service("x")), rollout("a", 1, service=service("x"))],
        ["b"],
    ),
    "one second: the uid decides": (
        [rollout("a", 1, uid="2", service=service("x")), rollout("b", 1, uid="1", service=service("x"))],
        ["a"],
    ),
    "a Service named like another one's default": (
        [rollout("a", 1), rollout("b", 2, service=service("a"))],
        ["b"],
    ),
    "three": ([rollout(name, n, service=service("x")) for n, name in enumerate("abc")], ["b", "c"]),
    "other namespaces": (
        [rollout("a", 1, service=service("x")), rollout("b", 2, namespace="else", service=service("x"))],
        [],
    ),
    "what the older one still steers by its accepted spec": (
        [rollout("a", 1, accepted={"service": {"name": "x"}}), rollout("b", 2, service=service("x"))],
        ["b"],
    ),
    "one route of the user's": (
        [rollout(name, n, traffic={"httpRoute": {"name": "r"}}) for n, name in enumerate("ab")],
        ["b"],
    ),
    "one GRPCRoute of the user's": (
        [rollout(name, n, traffic={"grpcRoute": {"name": "r"}}) for n, name in enumerate("ab")],
        ["b"],
    ),
    "one VirtualService of the user's": (
        [rollout(n, i, traffic={"istio": {"virtualService": {"name": "r"}}}) for i, n in enumerate("ab")],
        ["b"],
    ),
    "routes of the same name and of different kinds": (
        [
            rollout("a", 1, traffic={"httpRoute": {"name": "r"}}),
            rollout("b", 2, traffic={"grpcRoute": {"name": "r"}}),
        ],
        [],
    ),
    "the same Gateway, whole": (two(routed(), routed()), ["b"]),
    "two Gateways": (two(routed(), routed({"name": "internal"})), []),
    "one Gateway among several": (two(routed({"name": "x"}, {"name": "y"}), routed({"name": "y"})), ["b"]),
    "one Gateway, from two namespaces": (
        two(
            routed({"name": "g", "namespace": "infra"}),
            routed({"name": "g", "namespace": "infra"}),
            namespace="else",
        ),
        ["b"],
    ),
    "Gateways of the same name, each in the namespace of its rollout": (
        two(routed(), routed(), namespace="else"),
        [],
    ),
    "other host names": (two(routed(hostnames=["a.x"]), routed(hostnames=["b.x"])), []),
    "one host name in common": (
        two(routed(hostnames=["a.x", "b.x"]), routed(hostnames=["b.x", "c.x"])),
        ["b"],
    ),
    "a host name and every host: the Gateway API gives each its own": (
        two(routed(), routed(hostnames=["a.x"])),
        [],
    ),
    "a host name and a wildcard: likewise": (
        two(routed(hostnames=["*.x.y"]), routed(hostnames=["a.x.y"])),
        [],
    ),
    "other paths": (
        two(routed(matches=[{"path": {"value": "/a"}}]), routed(matches=[{"path": {"value": "/b"}}])),
        [],
    ),
    "one match in common, spelt in another way": (
        two(
            routed(matches=[{"path": {"value": "/a/"}, "headers": [H("X", "1"), H("y", "2")]}]),
            routed(
                matches=[{"method": "GET"}, {"path": {"value": "/a"}, "headers": [H("Y", "2"), H("x", "1")]}]
            ),
        ),
        ["b"],
    ),
    "no match and the match that it stands for": (
        two(routed(), routed(matches=[{"path": {"type": "PathPrefix", "value": "/"}}])),
        ["b"],
    ),
    "another header": (
        two(
            routed(matches=[{"headers": [H("x", "1")]}]),
            routed(matches=[{"headers": [H("x", "2")]}]),
        ),
        [],
    ),
    "two listeners": (
        two(
            routed({"name": "g", "sectionName": "http"}),
            routed({"name": "g", "sectionName": "https"}),
        ),
        [],
    ),
    "one listener, and all of them": (
        two(routed({"name": "g", "sectionName": "http"}), routed({"name": "g"})),
        ["b"],
    ),
    "all listeners, and those of a port": (
        two(routed({"name": "g"}), routed({"name": "g", "port": 80})),
        ["b"],
    ),
    "two ports": (two(routed({"name": "g", "port": 81}), routed({"name": "g", "port": 80})), []),
    "the third listener, with two others before": (
        [
            rollout("a", 1, traffic=routed({"name": "g", "sectionName": "http"})),
            rollout("b", 2, traffic=routed({"name": "g", "sectionName": "https"})),
            rollout("c", 3, traffic=routed({"name": "g", "sectionName": "https"})),
        ],
        ["c"],
    ),
    "a traffic that makes no sense": (two(routed(), {"gatewayAPI": {"parentRefs": 7}}), []),
    "requests that the older one still takes by its accepted spec": (
        [
            rollout("a", 1, accepted={"traffic": routed()}),
            rollout("b", 2, traffic=routed()),
        ],
        ["b"],
    ),
    "users of a test, and a route for just these": (
        pair(on(**chosen({"headers": [H("X", "1")]})), on("/a", H("x", "1"))),
        ["b"],
    ),
    "a route for some users, and a later test with just these": (
        pair(on("/a", H("x", "1")), on(**chosen({"headers": [H("y", "1")]}, {"headers": [H("x", "1")]}))),
        ["b"],
    ),
    "users of a test, and a route for others": (
        pair(on(**chosen({"headers": [H("x", "1")]})), on("/a", H("x", "2"))),
        [],
    ),
    "two tests that come to the same users": (
        pair(
            on("/a", H("x", "1"), **chosen({"headers": [H("y", "2")]})),
            on("/a", H("y", "2"), **chosen({"headers": [H("x", "1")]})),
        ),
        ["b"],
    ),
    "two tests with the same users, each on a path of its own": (
        pair(on("/a", **chosen({"headers": [H("x", "1")]})), on("/b", **chosen({"headers": [H("x", "1")]}))),
        [],
    ),
    "two tests, told apart by a parameter": (
        pair(
            on("/a", H("x", "1"), **chosen({"headers": [H("y", "2")], "queryParams": [H("q", "1")]})),
            on("/a", H("y", "2"), **chosen({"headers": [H("x", "1")], "queryParams": [H("q", "2")]})),
        ),
        [],
    ),
    "two tests, one of them by a cookie too": (
        pair(
            on("/a", H("x", "1"), **chosen({"headers": [H("y", "2")], "cookie": H("beta", "1")})),
            on("/a", H("y", "2"), **chosen({"headers": [H("x", "1")]})),
        ),
        [],
    ),
    "two tests by the same cookie": (
        pair(
            on("/a", H("x", "1"), **chosen({"headers": [H("y", "2")], "cookie": H("beta", "1")})),
            on("/a", H("y", "2"), **chosen({"headers": [H("x", "1")], "cookie": H("beta", "1")})),
        ),
        ["b"],
    ),
    "a step of a canary, and a route for whom it chooses": (
        pair(on(canary={"steps": STEPS}), on("/a", H("x", "1"))),
        ["b"],
    ),
    "a step of the canary after a shadow, and a route for whom it chooses": (
        pair(on(shadow={"then": "Canary", "canary": {"steps": STEPS}}), on("/a", H("x", "1"))),
        ["b"],
    ),
    "those who look at a preview, and a route for just these": (
        pair(on(**previewed("X-Preview", "1")), on("/a", H("x-preview", "1"))),
        ["b"],
    ),
    "a preview's header in the place of the route's": (
        pair(on("/a", H("x", "1"), **previewed("x", "2")), on("/a", H("x", "2"))),
        ["b"],
    ),
    "two previews, told apart by a header of their routes": (
        pair(
            on("/a", H("x", "1"), **previewed("preview", "1")),
            on("/a", H("x", "2"), **previewed("preview", "1")),
        ),
        [],
    ),
    "the step that is under way, though the spec chooses nobody any more": (
        [rollout("a", 1, **on()) | {"status": PLAN}, rollout("b", 2, **on("/a", H("x", "1")))],
        ["b"],
    ),
    "a strategy that makes no sense": (
        [rollout("a", 1, **on("/a", canary={"steps": 7})), rollout("b", 2, **on("/b"))],
        [],
    ),
    "a spec that makes no sense": ([rollout("a", 1) | {"spec": {"service": 7}}, rollout("b", 2)], []),
}


@pytest.mark.parametrize(("rollouts", "losers"), CONFLICTS.values(), ids=CONFLICTS)
def test_the_later_of_two_that_want_one_object_loses(rollouts: list[Object], losers: list[str]) -> None:
    found = conflicts(rollouts)
    assert sorted(name for _, name in found) == losers
    for problem in found.values():
        assert problem.reason == "Conflict"
        assert "is steered by the older ModelRollout" in problem.message


def test_the_sentence_names_the_traffic_the_other_one_and_the_mend() -> None:
    traffic = routed(
        {"name": "g", "namespace": "infra"}, hostnames=["a.x"], matches=[{"path": {"value": "/v1"}}]
    )
    found = conflicts(two(traffic, traffic, namespace="else"))[Key("else", "b")]
    assert found.message == (
        "traffic of Gateway infra/g for host a.x, path PathPrefix /v1, is steered by the older ModelRollout ml/a: write "
        "other hostnames or matches in spec.traffic.gatewayAPI, or delete ml/a"
    )


def test_whom_a_strategy_chooses_is_told_with_the_mend() -> None:
    test = chosen({"headers": [H("x", "1")], "queryParams": [H("q", "2")]})
    found = conflicts(pair(on("/a", **test), on("/a", **test)))[Key("ml", "b")]
    assert "for every host, path PathPrefix /a header x Exact '1' parameter q Exact '2'," in found.message
    assert found.message.endswith(
        ": choose others in spec.strategy, write other hostnames or matches in spec.traffic.gatewayAPI, or delete a"
    )


def test_a_step_that_has_ended_holds_nothing() -> None:
    claims = Claims()
    trying, route = rollout("a", 1, **on()) | {"status": PLAN}, rollout("b", 2, **on("/a", H("x", "1")))
    claims.put(trying)
    claims.put(route)
    assert claims.conflict(B) is not None
    assert claims.put(rollout("a", 1, **on()) | {"status": {"plan": []}}) == {B}
    assert claims.conflict(B) is None


A, B, C = (Key("ml", name) for name in "abc")


def test_whoever_wants_what_another_one_had_is_looked_at_again() -> None:
    """When it goes, when it is edited, and when its earlier spec is not in force any more."""
    shared = service("x")
    a, b, other = (rollout(name, n, service=service(s)) for n, (name, s) in enumerate(["ax", "bx", "cy"]))
    claims = Claims()
    assert [claims.put(one) for one in (a, b, other)] == [frozenset(), {A}, frozenset()]
    assert claims.conflict(B) is not None
    assert claims.put(a) == frozenset(), "nothing has changed"
    edited = rollout("a", 0, service=service("z"), accepted={"service": shared})
    assert claims.put(edited) == {B}
    assert claims.conflict(B) is not None, "the older one still steers it"
    assert claims.put(rollout("a", 0, service=service("z"), accepted={"service": service("z")})) == {B}
    assert claims.conflict(B) is None
    claims.put(a)
    assert claims.remove(A) == {B}
    assert claims.conflict(B) is None
    assert claims.remove(A) == frozenset()


def test_a_rollout_that_was_made_anew_comes_last() -> None:
    claims = Claims()
    for n, name in enumerate("ab"):
        claims.put(rollout(name, n, service=service("x")))
    assert claims.put(rollout("a", 5, uid="new", service=service("x"))) == {B}
    assert claims.conflict(B) is None
    assert claims.conflict(A) is not None


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.none() | st.tuples(st.integers(0, 3), st.sampled_from("xyz"), st.sampled_from("xyz")),
        ),
        max_size=12,
    )
)
def test_nothing_ever_has_two_masters_and_what_is_free_has_one(changes: list[Any]) -> None:
    """S10, over random comings, goings and edits: as if all had been looked at anew."""
    claims, present = Claims(), {}
    for name, found in changes:
        if found is None:
            present.pop(name, None)
            claims.remove(Key("ml", name))
            continue
        created, served, host = found
        traffic = routed(hostnames=[f"{host}.z"])
        present[name] = rollout(name, created, service=service(served), traffic=traffic)
        claims.put(present[name])
    ranked = sorted(
        present.values(), key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["uid"])
    )
    taken: set[str] = set()
    for one in ranked:
        wanted = {one["spec"]["service"]["name"], *one["spec"]["traffic"]["gatewayAPI"]["hostnames"]}
        refused = claims.conflict(Key("ml", one["metadata"]["name"])) is not None
        assert refused is bool(wanted & taken)
        taken |= wanted


def other(name: str, selector: Object | None, **metadata: Any) -> Object:
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": "ml", **metadata},
        "spec": {"selector": selector} if selector else {},
    }


def scaler(kind: str, name: str) -> Object:
    return {"metadata": {"name": "hpa"}, "spec": {"scaleTargetRef": {"kind": kind, "name": name}}}


def deployment(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}}}


OURS = {"labels": {"modelrollout.dev/rollout": "fraud"}}
OVERLAPS: dict[str, tuple[Any, str | None]] = {
    "a Service with our labels": (
        {"services": [other("legacy", {"app": "fraud"})]},
        "Service legacy selects app=fraud, which the pods of workload.template have too",
    ),
    "a Service with one label more": ({"services": [other("legacy", {"app": "fraud", "x": "y"})]}, None),
    "a Service with another value": ({"services": [other("legacy", {"app": "other"})]}, None),
    "a Service without a selector": ({"services": [other("legacy", None)]}, None),
    "our own Service": ({"services": [other("fraud", {"app": "fraud"}, **OURS)]}, None),
    "an autoscaler of a Deployment with our labels": (
        {"autoscalers": [scaler("Deployment", "web")], "workloads": [deployment("web", app="fraud")]},
        "HorizontalPodAutoscaler hpa selects app=fraud",
    ),
    "an autoscaler of another Deployment": (
        {"autoscalers": [scaler("Deployment", "web")], "workloads": [deployment("web", app="web")]},
        None,
    ),
    "an autoscaler of a revision": (
        {
            "autoscalers": [scaler("Deployment", "fraud-abcdefghij")],
            "workloads": [{"metadata": {"name": "fraud-abcdefghij", **OURS}}],
        },
        "HorizontalPodAutoscaler hpa scales Deployment fraud-abcdefghij, whose size is the operator's",
    ),
    "an autoscaler of the revision that is to come": (
        {"autoscalers": [scaler("Deployment", "fraud-zzzzzzzzzz")]},
        "HorizontalPodAutoscaler hpa scales Deployment fraud-zzzzzzzzzz, whose size is the operator's",
    ),
    "an autoscaler of a Deployment that is to come and is called like a revision": (
        {"autoscalers": [scaler("Deployment", "fraud-production")]},
        None,
    ),
    "an autoscaler of the ModelRollout": ({"autoscalers": [scaler("ModelRollout", "fraud")]}, None),
}


@pytest.mark.parametrize(("there", "said"), OVERLAPS.values(), ids=OVERLAPS)
def test_nobody_else_may_select_our_pods(there: Any, said: str | None) -> None:
    problem = selector_overlap(ROLLOUT, LABELS, **there)
    if said is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.reason == "SelectorOverlap"
        assert said in problem.message


def test_every_object_of_a_revision_has_a_name_to_be_checked() -> None:
    def names(**spec: Any) -> list[tuple[str, str]]:
        obj = manifest(**spec)
        return [(kind.kind, name) for kind, name in needed_names(obj, spec_of(obj), "abcdefghij")]

    base = [
        ("Service", "fraud"),
        ("ControllerRevision", "fraud-abcdefghij"),
        ("Deployment", "fraud-abcdefghij"),
        ("Service", "fraud-abcdefghij"),
    ]
    assert names() == base
    routed = names(traffic={"gatewayAPI": {"parentRefs": [{"name": "public"}]}})
    assert routed == [*base, ("HTTPRoute", "fraud")]


def test_a_name_is_taken_by_what_is_not_ours_and_the_message_says_by_whom() -> None:
    assert name_taken(ROLLOUT, None) is None
    assert name_taken(ROLLOUT, other("fraud", None, **OURS)) is None
    plain = name_taken(ROLLOUT, other("fraud", None))
    assert plain is not None
    assert "Service fraud exists and is not managed by this ModelRollout" in plain.message
    owner = {"kind": "Application", "name": "shop", "uid": "x", "controller": True}
    held = copy.deepcopy(other("fraud", None, ownerReferences=[owner]))
    problem = name_taken(ROLLOUT, held)
    assert problem is not None
    assert "Service fraud belongs to Application shop" in problem.message
