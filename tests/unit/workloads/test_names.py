"""Who else wants what a ModelRollout needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelrollout.workloads import conflicts, name_taken, needed_names, selector_overlap, template_labels
from tests.unit.workloads.manifests import PLAIN, Object, manifest, spec_of

ROLLOUT = manifest()
LABELS = template_labels(PLAIN) | {"modelrollout.dev/rollout": "fraud"}


def rollout(
    name: str, created: int, *, uid: str = "", namespace: str = "ml", accepted: Any = None, **spec: Any
) -> Object:
    obj = manifest(name=name, namespace=namespace, uid=uid or f"uid-{name}", **spec)
    obj["metadata"]["creationTimestamp"] = f"2026-11-20T08:00:{created:02}Z"
    return obj | ({"status": {"accepted": accepted}} if accepted else {})


def service(name: str) -> Object:
    return {"name": name, "ports": [{"port": 80}]}


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
    "a spec that makes no sense": ([rollout("a", 1) | {"spec": {"service": 7}}, rollout("b", 2)], []),
}


@pytest.mark.parametrize(("rollouts", "losers"), CONFLICTS.values(), ids=CONFLICTS)
def test_the_later_of_two_that_want_one_object_loses(rollouts: list[Object], losers: list[str]) -> None:
    found = conflicts(rollouts)
    assert sorted(name for _, name in found) == losers
    for problem in found.values():
        assert problem.reason == "Conflict"
        assert "is steered by the older ModelRollout" in problem.message


def test_when_the_first_goes_the_next_one_may() -> None:
    rollouts = [rollout(name, n, service=service("x")) for n, name in enumerate("ab")]
    assert conflicts(rollouts[1:]) == {}


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
        {"autoscalers": [scaler("Deployment", "fraud-abcdefghij")]},
        "HorizontalPodAutoscaler hpa scales Deployment fraud-abcdefghij, whose size is the operator's",
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
