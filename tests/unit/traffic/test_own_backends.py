"""Routes of the user's with Services or pools of the user's: which references are shared out, and what is left of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.api.status import Status
from modelrollout.cluster.kinds import HTTP_ROUTE
from modelrollout.traffic import restorations, router_of
from tests.unit.traffic.test_contract import Rig, borrowed, gateway_api
from tests.unit.workloads.manifests import Object, spec_of

SHOP = {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}
NAMES = {"fraud-v1": "A", "fraud-v2": "B"}


def rig_of(*rules: list[Object], kind: str = "Service") -> Rig:
    """A route with these backends in its rules; version 1 serves."""
    rig = borrowed({"httpRoute": {"name": "fraud"}}, HTTP_ROUTE, kind)
    assert rig.borrowed is not None
    rig.borrowed["spec"]["rules"] = [SHOP | {"backendRefs": copy.deepcopy(backends)} for backends in rules]
    rig.start()
    return rig


def ref(name: str, weight: int = 1, **more: object) -> Object:
    return {"name": name, "port": 80, "weight": weight, **more}


def pool(name: str, weight: int = 1) -> Object:
    return {
        "group": "inference.networking.k8s.io",
        "kind": "InferencePool",
        "name": name,
        "weight": weight,
    }


def backends(rig: Rig, rule: int = 0) -> list[tuple[str, int]]:
    refs = rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][rule]["backendRefs"]
    return [(NAMES.get(one["name"], one["name"]), one["weight"]) for one in refs]


SPLITS: dict[str, tuple[list[Object], list[tuple[str, int]], list[tuple[str, int]]]] = {
    "alone: percent": ([ref("fraud-v1")], [("A", 75), ("B", 25)], [("B", 100)]),
    "beside another one": (
        [ref("legacy", 1), ref("fraud-v1", 3)],
        [("legacy", 100), ("A", 225), ("B", 75)],
        [("legacy", 100), ("B", 300)],
    ),
    "both versions, the new one without weight": (
        [ref("fraud-v1", 100), ref("fraud-v2", 0)],
        [("A", 75), ("B", 25)],
        [("B", 100)],
    ),
    "both versions with another one between them": (
        [ref("fraud-v1", 3), ref("legacy", 1), ref("fraud-v2", 1)],
        [("A", 300), ("B", 100), ("legacy", 100)],
        [("B", 400), ("legacy", 100)],
    ),
}


@pytest.mark.parametrize(("written", "step", "after"), SPLITS.values(), ids=SPLITS)
def test_what_names_a_version_is_shared_out_as_one(
    written: list[Object], step: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    rig = rig_of(written)
    before = copy.deepcopy(rig.server.get(HTTP_ROUTE, "fraud")["spec"])
    rig.bring((75, 25, 0))
    assert backends(rig) == step
    back = rig.bring((100, 0, 0), (4, 1, 0))
    alone = {one["name"] for one in written if one["weight"] and one["name"] in NAMES} == {"fraud-v1"}
    assert (rig.server.get(HTTP_ROUTE, "fraud")["spec"] == before) == alone
    assert rig.observe(back).accepted
    rig.bring((75, 25, 0))
    rig.bring((100, 0, 0), (4, 0, 0), promoted=True)
    assert backends(rig) == after


def test_each_reference_keeps_the_filters_of_its_own_version() -> None:
    one, two = ([{"type": "ExtensionRef", "extensionRef": {"name": name}}] for name in ("one", "two"))
    rig = rig_of([ref("fraud-v1", 1, filters=one), ref("fraud-v2", 0, filters=two)])
    rig.bring((75, 25, 0))
    refs = rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"]
    assert [entry["filters"] for entry in refs] == [one, two]


def test_a_rule_for_another_version_only_is_left_alone() -> None:
    rig = rig_of([ref("fraud-v1")], [ref("fraud-v2", 7)])
    status = rig.bring((75, 25, 0))
    assert (backends(rig, 0), backends(rig, 1)) == ([("A", 75), ("B", 25)], [("B", 7)])
    assert rig.observe(status).weights == {rig.first: 75, rig.second: 25}
    rig.bring((0, 100, 0), (4, 4, 0))
    rig.bring((100, 0, 0), (4, 0, 0), promoted=True)
    assert (backends(rig, 0), backends(rig, 1)) == ([("B", 100)], [("B", 7)])


def test_a_version_that_only_such_a_rule_names_does_not_stand_in_the_split() -> None:
    """Or it would get a share without a ready pod."""
    rig = rig_of([ref("fraud-v1", 100), ref("fraud-v2", 0)], [ref("fraud-v2")])
    status = rig.status((75, 25, 0))
    rig.write(status)
    assert backends(rig) == [("A", 100), ("B", 0)]
    assert not rig.observe(status).accepted
    rig.pods(3, 1)
    rig.write(status)
    assert backends(rig) == [("A", 75), ("B", 25)]


def test_a_route_that_is_made_anew_from_an_old_manifest_gets_what_is_stable() -> None:
    rig = rig_of([ref("fraud-v1")])
    rig.bring((75, 25, 0))
    rig.bring((0, 100, 0), (4, 4, 0))
    promoted = rig.bring((100, 0, 0), (4, 0, 0), promoted=True)
    assert rig.borrowed is not None
    rig.server.put(copy.deepcopy(rig.borrowed))
    rig.write(promoted)
    assert backends(rig) == [("B", 100)]


def test_at_a_start_the_route_must_name_what_serves() -> None:
    rig = rig_of([ref("fraud-v2")])
    rig.rollout["status"] = {}
    spec = spec_of(rig.rollout)
    (problem,) = router_of(spec).problems(rig.rollout, spec, rig.server.children())
    assert problem.message.startswith("HTTPRoute fraud has no backend that is Service fraud-v1")


KINDS = {
    "from a Service to a pool": ("Service", "InferencePool", pool("fraud-v2", 25)),
    "from a pool to a Service": ("InferencePool", "Service", ref("fraud-v2", 25, group="", kind="Service")),
}


@pytest.mark.parametrize(("older", "newer", "candidate"), KINDS.values(), ids=KINDS)
def test_a_reference_changes_its_kind_with_what_it_names(older: str, newer: str, candidate: Object) -> None:
    rig = borrowed({"httpRoute": {"name": "fraud"}}, HTTP_ROUTE, older)
    rig.newer = newer
    rig.__post_init__()
    rig.start()
    status = rig.bring((75, 25, 0))
    assert rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"][1] == candidate
    assert rig.observe(status).accepted
    rig.bring((0, 100, 0), (4, 4, 0))
    assert rig.observe(rig.bring((100, 0, 0), (4, 0, 0), promoted=True)).accepted


def test_mirrors_of_the_users_own_stay() -> None:
    """One to a version of ours, and one to a Service of that name elsewhere."""
    copies = [
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "fraud-v2", "port": 80, **more}}}
        for more in ({}, {"namespace": "other"})
    ]
    rig = rig_of([ref("fraud-v1")])
    rules = copy.deepcopy(rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"])
    rules[0]["filters"] = copies
    rig.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": rules}})
    status = rig.bring((75, 25, 0))
    assert rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["filters"] == copies
    assert (rig.observe(status).mirror, rig.observe(status).accepted) == (0, True)
    rig.bring((100, 0, 0), (4, 1, 0))
    assert rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"] == rules


@pytest.mark.parametrize(
    "text",
    [
        "spoiled",
        '{"serving": 1, "references": 2}',
        '{"serving": {"name": "x", "kind": "Y"}, "references": [3]}',
    ],
)
def test_what_was_spoiled_in_the_annotation_does_not_move_anybody_at_deletion(text: str) -> None:
    rig = rig_of([ref("fraud-v1")])
    rig.bring((75, 25, 0))
    rig.bring((0, 100, 0), (4, 4, 0))
    rig.bring((100, 0, 0), (4, 0, 0), promoted=True)
    rig.server.edit(HTTP_ROUTE, "fraud", {"metadata": {"annotations": {"modelrollout.dev/original": text}}})
    rig.rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    for _ in range(2):
        rig.server.run(restorations(rig.rollout, rig.server.children()))
    assert backends(rig) == [("B", 100)]
    assert restorations(rig.rollout, rig.server.children()) == []


def test_at_deletion_the_stable_version_stays_although_its_record_is_gone_already() -> None:
    """By foreground deletion what is ours goes before the ModelRollout."""
    rig = rig_of([ref("fraud-v1")])
    rig.bring((75, 25, 0))
    rig.bring((0, 100, 0), (4, 4, 0))
    rig.bring((100, 0, 0), (4, 0, 0), promoted=True)
    rig.rollout["metadata"]["deletionTimestamp"] = "2026-11-20T09:00:00Z"
    for _ in range(2):
        children = replace(rig.server.children(), bound={}, controller_revisions={})
        rig.server.run(restorations(rig.rollout, children))
    assert backends(rig) == [("B", 100)]
    assert not rig.server.get(HTTP_ROUTE, "fraud")["metadata"].get("annotations")


def pools_in_a_route() -> Rig:
    rig = borrowed({"httpRoute": {"name": "fraud"}}, HTTP_ROUTE, "InferencePool")
    rig.start()
    return rig


def pools_in_our_route() -> Rig:
    rig = gateway_api("InferencePool")
    rig.start()
    return rig


@pytest.mark.parametrize("make", [pools_in_our_route, pools_in_a_route])
def test_a_reference_to_a_pool_has_no_port(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.bring((75, 25, 0))
    refs = rig.server.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"]
    assert refs == [pool("fraud-v1", 75), pool("fraud-v2", 25)]


@pytest.mark.parametrize("weights", [(75, 25, 0), (0, 100, 0)], ids=["a split", "all at the candidate"])
def test_the_weights_say_what_stood_there_when_it_was_forgotten(weights: tuple[int, int, int]) -> None:
    rig = rig_of([ref("fraud-v1", 3), ref("legacy", 1)])
    before = copy.deepcopy(rig.server.get(HTTP_ROUTE, "fraud")["spec"])
    rig.bring(weights, (3, 3, 0))
    rig.server.edit(HTTP_ROUTE, "fraud", {"metadata": {"annotations": {"modelrollout.dev/original": "?"}}})
    rig.bring((100, 0, 0), (4, 1, 0))
    assert rig.server.get(HTTP_ROUTE, "fraud")["spec"] == before


SPLIT = st.sampled_from(
    [("step", 100, 0), ("step", 75, 25), ("step", 0, 100), ("promoted", 100, 0), ("promoted", 90, 10)]
)
EDIT = st.sampled_from([("git", "fraud-v1", 0), ("git", "fraud-v2", 0), ("spoil", 0, 0)])


@given(history=st.lists(st.one_of(SPLIT, EDIT), max_size=8), promoted=st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_happens_to_the_route_the_others_keep_their_share_and_the_stable_version_serves(
    history: list[tuple[str, object, int]], promoted: bool
) -> None:
    rig = rig_of([ref("fraud-v1", 3), ref("legacy", 1)])
    rig.pods(3, 3)

    def settle(status: Status) -> None:
        for _ in range(5):
            if not rig.write(status):
                break
        rig.report(rig, status)
        shares = dict(backends(rig))
        whole = sum(shares.values())
        assert shares["legacy"] * 4 == whole
        assert all(weight >= 0 for weight in shares.values())
        assert rig.actions(status) == []

    def status_of(what: str, one: int, two: int) -> Status:
        weights = (one, two, 0) if what == "step" else (one, 0, two)
        return rig.status(weights, promoted=what == "promoted")

    for what, one, two in history:
        if what == "git":
            rules = [SHOP | {"backendRefs": [ref(str(one), 3), ref("legacy", 1)]}]
            rig.server.edit(HTTP_ROUTE, "fraud", {"spec": {"rules": rules}}, manager="argocd-controller")
        elif what == "spoil":
            annotations = rig.server.get(HTTP_ROUTE, "fraud")["metadata"].get("annotations")
            if annotations:
                spoiled = {"metadata": {"annotations": {"modelrollout.dev/original": "spoiled"}}}
                rig.server.edit(HTTP_ROUTE, "fraud", spoiled)
        else:
            settle(status_of(what, int(str(one)), two))
    settle(status_of("promoted" if promoted else "step", 100, 0))
    assert {name for name, weight in backends(rig) if weight} == {"B" if promoted else "A", "legacy"}
