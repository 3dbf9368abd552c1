"""When an object differs from what we want of it, and who made it differ."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelrollout.cluster.kinds import DEPLOYMENT
from modelrollout.cluster.managed_fields import slim_managed_fields
from modelrollout.workloads import (
    differences,
    differs,
    drift,
    dry_run_object,
    foreign_manager,
)
from modelrollout.workloads.fields import spell
from tests.unit.workloads.manifests import RICH, Object, manifest, revision_of, spec_of
from tests.unit.workloads.server import Server

ROLLOUT = manifest(RICH)
WANTED = dry_run_object(ROLLOUT, spec_of(ROLLOUT), revision_of(ROLLOUT))
NAME = WANTED["metadata"]["name"]
CONTAINER = "spec.template.spec.containers[model]"


def live(*changes: Object, managed: str = "whole", manager: str = "kubectl-edit") -> Object:
    """The Deployment as it stands after another writer's changes."""
    from modelrollout.cluster.actions import Create

    server = Server()
    server.run([Create(WANTED, "test")])
    for change in changes:
        server.edit(DEPLOYMENT, NAME, change, manager)
    obj = copy.deepcopy(server.get(DEPLOYMENT, NAME))
    entries = obj["metadata"].pop("managedFields")
    if managed != "missing":
        obj["metadata"]["managedFields"] = entries if managed == "whole" else slim_managed_fields(entries)
    return obj


def wanted(*path: str, value: Any) -> Object:
    changed = copy.deepcopy(WANTED)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@pytest.mark.parametrize("managed", ["whole", "slim", "missing"])
def test_defaults_and_what_others_set_are_no_difference(managed: str) -> None:
    others = {
        "metadata": {"annotations": {"team": "risk"}, "labels": {"cost": "42"}},
        "spec": {"revisionHistoryLimit": 3, "template": {"spec": {"dnsPolicy": "Default"}}},
    }
    assert not differs(WANTED, live(others, managed=managed))


OURS = {
    "another size": (wanted("spec", "replicas", value=3), ["spec.replicas"]),
    "no pods": (wanted("spec", "replicas", value=0), ["spec.replicas"]),
    "a longer deadline": (
        wanted("spec", "progressDeadlineSeconds", value=9999),
        ["spec.progressDeadlineSeconds"],
    ),
    "a label more": (wanted("metadata", "labels", "new", value="x"), ["metadata.labels.new"]),
}


@pytest.mark.parametrize("managed", ["whole", "slim", "missing"])
@pytest.mark.parametrize(("desired", "found"), OURS.values(), ids=OURS)
def test_what_we_want_anew_is_a_difference_and_no_drift(
    desired: Object, found: list[str], managed: str
) -> None:
    there = live(managed=managed)
    assert [spell(path) for path in differences(desired, there)] == found
    assert drift(desired, there) == ""


THEIRS: dict[str, tuple[Object, str]] = {
    "the size": ({"spec": {"replicas": 7}}, "spec.replicas"),
    "a label of ours": (
        {"metadata": {"labels": {"modelrollout.dev/rollout": "x"}}},
        "metadata.labels.modelrollout.dev/rollout",
    ),
    "the strategy": (
        {"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}},
        "spec.strategy.rollingUpdate.maxUnavailable",
    ),
    "a label of the pods": (
        {"spec": {"template": {"metadata": {"labels": {"team": "x"}}}}},
        "spec.template.metadata.labels.team",
    ),
}


@pytest.mark.parametrize("managed", ["whole", "slim", "missing"])
@pytest.mark.parametrize(("change", "path"), THEIRS.values(), ids=THEIRS)
def test_what_somebody_else_changed_is_a_difference_with_its_author(
    change: Object, path: str, managed: str
) -> None:
    there = live(change, managed=managed)
    assert [spell(found) for found in differences(WANTED, there)] == [path]
    known = managed != "missing"
    assert drift(WANTED, there) == (f"{path} (by kubectl-edit)" if known else "")
    assert foreign_manager(WANTED, there) == ("kubectl-edit" if known else None)


def test_an_image_that_a_webhook_rewrites_is_no_difference() -> None:
    """Admission changes our own apply; nobody else owns the field, and applying again would change nothing."""
    there = live()
    there["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror.internal/lab/pause:1"
    assert not differs(WANTED, there)


def test_an_image_that_somebody_changed_is_a_difference() -> None:
    containers = copy.deepcopy(live()["spec"]["template"]["spec"]["containers"])
    containers[0]["image"] = "lab/other:1"
    there = live({"spec": {"template": {"spec": {"containers": containers}}}})
    assert [spell(path) for path in differences(WANTED, there)] == [f"{CONTAINER}.image"]


def test_a_container_that_somebody_removed_is_a_difference() -> None:
    containers = copy.deepcopy(live()["spec"]["template"]["spec"]["containers"])[:1]
    for managed in ("whole", "missing"):
        there = live({"spec": {"template": {"spec": {"containers": containers}}}}, managed=managed)
        found = [spell(path) for path in differences(WANTED, there)]
        assert found == ["spec.template.spec.containers[sidecar]"]


def test_a_field_that_we_gave_up_is_a_difference_only_while_we_own_it() -> None:
    less = copy.deepcopy(WANTED)
    del less["metadata"]["labels"]["modelrollout.dev/revision"]
    del less["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    found = [spell(path) for path in differences(less, live())]
    assert found == ["metadata.labels.modelrollout.dev/revision", f"{CONTAINER}.livenessProbe"]
    assert differences(less, live(managed="missing")) == (), "without managedFields it may be anybody's"


def test_an_object_that_we_never_applied_is_applied_once() -> None:
    there = live()
    there["metadata"]["managedFields"] = [{"manager": "kubectl", "operation": "Update", "fieldsV1": {}}]
    assert differs(WANTED, there)


def test_status_written_by_controllers_names_nobody() -> None:
    there = live()
    entry = {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "subresource": "status",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    there["metadata"]["managedFields"].append(entry)
    assert foreign_manager(wanted("spec", "replicas", value=3), there) is None
    assert len(slim_managed_fields(there["metadata"]["managedFields"])) == 1


QUANTITIES = {
    "1000m": ("1", True),
    "1500m": ("1.5", True),
    "0.5": ("500m", True),
    "1024Mi": ("1Gi", True),
    "1e9": ("1G", True),
    "1": ("2", False),
    "1Gi": ("1G", False),
    "nonsense": ("nonsense2", False),
}


@pytest.mark.parametrize(("want", "have", "same"), [(k, *v) for k, v in QUANTITIES.items()], ids=QUANTITIES)
def test_a_quantity_may_be_spelled_in_another_way(want: str, have: str, same: bool) -> None:
    def obj(quantity: str) -> Object:
        return {"metadata": {"name": "x"}, "resources": {"limits": {"cpu": quantity}}}

    assert differs(obj(want), obj(have)) is not same


EMPTY: dict[str, tuple[Any, Any, bool]] = {
    "an empty list and none": ([], None, False),
    "an empty map and none": ({}, None, False),
    "false and none": (False, None, False),
    "zero and none": (0, None, False),
    "an empty string and a default": ("", "TCP", False),
    "an empty list and a full one": ([], ["x"], True),
    "false and true": (False, True, True),
    "a value and none": ("x", None, True),
    "one order and another": (["a", "b"], ["b", "a"], True),
    "a shorter list": (["a"], ["a", "b"], True),
    "a list of maps with defaults": ([{"a": 1}], [{"a": 1, "b": 2}], False),
}


@pytest.mark.parametrize(("want", "have", "expected"), EMPTY.values(), ids=EMPTY)
def test_empty_values_and_lists_that_are_one_value(want: Any, have: Any, expected: bool) -> None:
    there: Object = {"metadata": {"name": "x"}} | ({} if have is None else {"field": have})
    assert differs({"metadata": {"name": "x"}, "field": want}, there) is expected


def test_a_selector_with_a_key_more_is_another_selector() -> None:
    def obj(**selector: str) -> Object:
        return {"metadata": {"name": "x"}, "spec": {"selector": selector}}

    assert differs(obj(a="1"), obj(a="1", b="2"))
    assert not differs(obj(a="1"), obj(a="1"))
