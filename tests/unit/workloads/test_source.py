"""A spec is whole before anything is decided: with a Deployment's template, and with a hash of tracked configuration."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import Phase, RevisionStatus, Status
from modelrollout.cluster.actions import JsonPatch
from modelrollout.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    INFERENCE_POOL,
    POD,
    SECRET,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.references import DATA_HASH, Interest
from modelrollout.workloads import Children
from modelrollout.workloads.backends import Backend
from modelrollout.workloads.revisions import dry_run_object, without_nulls
from modelrollout.workloads.source import CONFIG_ANNOTATION, config_names, filled_in, interests
from modelrollout.workloads.takeover import (
    forget,
    may_scale_down,
    ready_again,
    restore,
    scale_down,
    scaled_up_again,
)
from tests.unit.workloads.manifests import PLAIN, manifest, spec_of

KINDS = {"ConfigMap": CONFIG_MAP, "Secret": SECRET}
CONTAINER = {"name": "model", "image": "model"}


def pod(container: Object | None = None, **more: Any) -> Object:
    return {"spec": {"containers": [CONTAINER | (container or {})], **more}}


USES: dict[str, tuple[Object, str]] = {
    "a variable from a ConfigMap": (
        pod({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}}]}),
        "ConfigMap",
    ),
    "a variable from a Secret": (
        pod({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}),
        "Secret",
    ),
    "all variables of a ConfigMap": (pod({"envFrom": [{"configMapRef": {"name": "x"}}]}), "ConfigMap"),
    "all variables of a Secret": (pod({"envFrom": [{"secretRef": {"name": "x"}}]}), "Secret"),
    "an init container": (
        pod(initContainers=[CONTAINER | {"envFrom": [{"secretRef": {"name": "x"}}]}]),
        "Secret",
    ),
    "a mounted ConfigMap": (pod(volumes=[{"name": "v", "configMap": {"name": "x"}}]), "ConfigMap"),
    "a mounted Secret": (pod(volumes=[{"name": "v", "secret": {"secretName": "x"}}]), "Secret"),
    "a projected ConfigMap": (
        pod(volumes=[{"name": "v", "projected": {"sources": [{"configMap": {"name": "x"}}]}}]),
        "ConfigMap",
    ),
    "a projected Secret": (
        pod(volumes=[{"name": "v", "projected": {"sources": [{"secret": {"name": "x"}}]}}]),
        "Secret",
    ),
}


class Store:
    """Objects by kind and name."""

    def __init__(self, *objects: Object) -> None:
        self._found = {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}

    def __call__(self, kind: Kind, name: str) -> Object | None:
        return self._found.get((kind.kind, name))


def config(kind: str, digest: str, name: str = "x") -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, DATA_HASH: digest}


def tracking(template: Object) -> Spec:
    return spec_of(manifest(workload={"template": template, "trackConfig": True}))


def whole(spec: Spec, *objects: Object) -> Spec:
    filled, problem = filled_in(spec, Store(*objects), track=True)
    assert problem is None
    return filled


@pytest.mark.parametrize(("template", "kind"), USES.values(), ids=USES)
def test_what_is_used_is_part_of_the_revision(template: Object, kind: str) -> None:
    spec = tracking(template)
    assert config_names(template) == {(KINDS[kind], "x")}
    wanted = interests(manifest(), [spec], Status(), Children(), Store(), track=True)
    assert wanted == {Interest(KINDS[kind], "ml", name="x")}
    one, two = (hash_revision(whole(spec, config(kind, digest))) for digest in ("1", "2"))
    assert one != two
    assert one == hash_revision(whole(spec, config(kind, "1"), config(kind, "3", name="unrelated")))


@pytest.mark.parametrize(("template", "kind"), USES.values(), ids=USES)
def test_what_is_needed_and_missing_is_named_and_is_no_revision(template: Object, kind: str) -> None:
    _, problem = filled_in(tracking(template), Store(), track=True)
    assert problem is not None
    assert problem.reason is Reason.REFERENCE_NOT_FOUND
    assert f"needs {kind} x, which does not exist" in problem.message


def optional(used: Any) -> Any:
    """The same with each reference to x marked optional."""
    if isinstance(used, list):
        return [optional(part) for part in used]
    if not isinstance(used, dict):
        return used
    mark = {"optional": True} if "x" in (used.get("name"), used.get("secretName")) else {}
    return {key: optional(value) for key, value in used.items()} | mark


@pytest.mark.parametrize(("template", "kind"), USES.values(), ids=USES)
def test_what_is_optional_may_be_missing_and_that_is_a_revision_of_its_own(
    template: Object, kind: str
) -> None:
    spec = tracking(optional(template))
    assert hash_revision(whole(spec)) != hash_revision(whole(spec, config(kind, "1")))


def test_what_one_container_needs_is_needed_though_it_is_optional_to_another() -> None:
    used = USES["all variables of a ConfigMap"][0]
    both = copy.deepcopy(used)
    both["spec"]["initContainers"] = optional(used)["spec"]["containers"]
    _, problem = filled_in(tracking(both), Store(), track=True)
    assert problem is not None


def test_what_is_not_configuration_is_not_looked_for() -> None:
    template = pod(
        {"env": [{"name": "A", "value": "b"}, {"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
        imagePullSecrets=[{"name": "registry"}],
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    assert config_names(template) == set()


WRONG: dict[str, Object] = {
    "variables as in a compose file": pod({"env": ["A=b"]}),
    "a value where its source belongs": pod({"env": [{"name": "A", "valueFrom": "x"}]}),
    "sources of variables by name": pod({"envFrom": ["x"]}),
    "one source of variables": pod({"envFrom": {"configMapRef": {"name": "x"}}}),
    "a reference by name": pod({"envFrom": [{"configMapRef": "x"}]}),
    "volumes by name": pod(volumes={"v": {"configMap": {"name": "x"}}}),
    "an empty volume": pod(volumes=[None]),
    "a projection of a list": pod(volumes=[{"name": "v", "projected": [{"secret": {"name": "x"}}]}]),
    "sources of a projection by name": pod(volumes=[{"name": "v", "projected": {"sources": ["x"]}}]),
    "a variable with two names": pod({"env": [{"name": ["A", "B"], "value": "c"}]}),
}


@pytest.mark.parametrize("template", WRONG.values(), ids=WRONG)
def test_a_template_of_another_shape_is_left_for_the_api_server_to_refuse(template: Object) -> None:
    """A round that fails would keep what is under way from everything, the way back too."""
    spec = whole(tracking(template))
    made = dry_run_object(manifest(), spec, hash_revision(spec))
    there = made["spec"]["template"]["spec"]
    assert there.get("volumes") == without_nulls(template)["spec"].get("volumes")
    variables = template["spec"]["containers"][0].get("env", [])
    assert [one for one in there["containers"][0]["env"] if one in variables] == variables


def test_only_a_short_hash_stands_in_the_template_and_the_spec_is_left_alone() -> None:
    spec = tracking(USES["a mounted Secret"][0])
    filled = whole(spec, config("Secret", "d" * 64))
    annotations = filled.workload.template["metadata"]["annotations"]
    assert list(annotations) == [CONFIG_ANNOTATION]
    assert len(annotations[CONFIG_ANNOTATION]) == 10
    assert "metadata" not in spec.workload.template


def test_without_the_right_nothing_is_looked_for_and_the_value_is_named() -> None:
    spec = tracking(USES["a mounted Secret"][0])
    assert interests(manifest(), [spec], Status(), Children(), Store(), track=False) == set()
    _, problem = filled_in(spec, Store(), track=False)
    assert problem is not None
    assert problem.reason is Reason.NOT_SUPPORTED
    assert "trackConfig: true" in problem.message


# A Deployment's template


def legacy(replicas: int = 3, *, ready: int = 3, template: Object = PLAIN, **metadata: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "legacy",
            "namespace": "ml",
            "uid": "u",
            "resourceVersion": "7",
            "generation": 2,
            **metadata,
        },
        "spec": {"replicas": replicas, "template": copy.deepcopy(template)},
        "status": {"observedGeneration": 2, "readyReplicas": ready},
    }


def referring(scale_down_when: str = "OnceHealthy", **workload: Any) -> Spec:
    ref = {"name": "legacy", "scaleDown": scale_down_when}
    return spec_of(manifest(workload={"deploymentRef": ref, **workload}))


ROLLOUT = manifest()


def test_the_template_of_the_deployment_is_what_is_released() -> None:
    written = spec_of(manifest(workload={"template": PLAIN}))
    assert hash_revision(whole(referring(), legacy())) == hash_revision(written)
    assert hash_revision(whole(referring(), legacy(9))) == hash_revision(written)
    edited = copy.deepcopy(PLAIN)
    edited["spec"]["containers"][0]["image"] = "lab/pause:2"
    assert hash_revision(whole(referring(), legacy(template=edited))) != hash_revision(written)
    assert "template" not in whole(referring(), legacy()).without_template()["workload"]


def test_a_deployment_that_is_missing_is_named() -> None:
    _, problem = filled_in(referring(), Store(), track=False)
    assert problem is not None
    assert (problem.reason, "Deployment legacy" in problem.message) == (Reason.REFERENCE_NOT_FOUND, True)


def test_the_configuration_of_a_deployments_template_is_looked_for_once_it_is_there() -> None:
    template = USES["a mounted Secret"][0]
    spec, deployment = referring(trackConfig=True), Interest(DEPLOYMENT, "ml", name="legacy")
    assert interests(manifest(), [spec], Status(), Children(), Store(), track=True) == {deployment}
    seen = interests(manifest(), [spec], Status(), Children(), Store(legacy(template=template)), track=True)
    assert seen == {deployment, Interest(SECRET, "ml", name="x")}


def test_a_service_brings_its_endpoints_and_pods() -> None:
    services = {"services": {"stable": {"name": "fraud-v1"}}}
    gateway = {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}
    spec = spec_of(manifest(workload=services, traffic=gateway))
    service = {
        "kind": "Service",
        "metadata": {"name": "fraud-v1"},
        "spec": {"selector": {"b": "2", "a": "1"}},
    }
    found = interests(manifest(), [spec], Status(), Children(), Store(service), track=False)
    assert found == {
        Interest(SERVICE, "ml", name="fraud-v1"),
        Interest(ENDPOINT_SLICE, "ml", selector="kubernetes.io/service-name=fraud-v1"),
        Interest(POD, "ml", selector="a=1,b=2"),
    }


def test_a_pool_brings_the_pods_that_it_selects() -> None:
    services = {"services": {"stable": {"name": "fraud-v1", "kind": "InferencePool"}}}
    spec = spec_of(manifest(workload=services, traffic={"httpRoute": {"name": "fraud"}}))
    selector = {"matchLabels": {"b": "2", "a": "1"}}
    pool: Object = {"kind": "InferencePool", "metadata": {"name": "fraud-v1"}, "spec": {"selector": selector}}
    named = Interest(INFERENCE_POOL, "ml", name="fraud-v1")
    assert interests(manifest(), [spec], Status(), Children(), Store(), track=False) == {named}
    found = interests(manifest(), [spec], Status(), Children(), Store(pool), track=False)
    members = Interest(POD, "ml", selector="a=1,b=2")
    assert found == {named, members}
    pool["spec"]["endpointPickerRef"] = {"name": "epp", "port": {"number": 9002}}
    found = interests(manifest(), [spec], Status(), Children(), Store(pool), track=False)
    picker = Interest(ENDPOINT_SLICE, "ml", selector="kubernetes.io/service-name=epp")
    assert found == {named, members, picker}


def test_a_stored_revision_that_is_asked_for_brings_its_service() -> None:
    services = {"services": {"stable": {"name": "fraud-v2"}}}
    gateway = {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}
    rollout = manifest(workload=services, traffic=gateway)
    rollout["metadata"]["annotations"] = {"modelrollout.dev/undo": "aaaaaaaaaa@1"}
    children = Children(bound={"aaaaaaaaaa": Backend("fraud-v1"), "bbbbbbbbbb": Backend("fraud-v0")})
    found = interests(rollout, [spec_of(rollout)], Status(), children, Store(), track=False)
    assert {one.name for one in found if one.kind is SERVICE} == {"fraud-v1", "fraud-v2"}


# Taking over


def healthy(ready: int = 2, *, phase: Phase = Phase.HEALTHY, ever: bool = True) -> Status:
    return Status(phase=phase, stable=RevisionStatus(revision="r", desired=2, ready=ready, ever_ready=ever))


NOTE: dict[str, Any] = {"annotations": {"modelrollout.dev/scaled-from": "fraud/3"}}
MOMENTS: dict[str, tuple[Spec, Status, Object | None, bool]] = {
    "once healthy": (referring(), healthy(), legacy(), True),
    "not if the spec says never": (referring("Never"), healthy(), legacy(), False),
    "not before it is healthy": (referring(), healthy(phase=Phase.PENDING), legacy(), False),
    "not in a later rollout": (referring(), healthy(phase=Phase.PROGRESSING), legacy(), False),
    "not while a pod is missing": (referring(), healthy(1), legacy(), False),
    "not before anything served": (referring(), healthy(ever=False), legacy(), False),
    "not twice": (referring(), healthy(), legacy(**NOTE), False),
    "not if it has no pods": (referring(), healthy(), legacy(0), False),
    "not if it is going": (referring(), healthy(), legacy(deletionTimestamp="2026-01-01T00:00:00Z"), False),
    "not if it is gone": (referring(), healthy(), None, False),
}


@pytest.mark.parametrize(("spec", "status", "live", "wanted"), MOMENTS.values(), ids=MOMENTS)
def test_a_deployment_is_scaled_down(spec: Spec, status: Status, live: Object | None, wanted: bool) -> None:
    assert may_scale_down(spec, status, live) is wanted


def test_the_patch_tests_what_was_seen_and_leaves_a_note() -> None:
    annotated = legacy(annotations={"a": "b"})
    for live, path in (
        (legacy(), "/metadata/annotations"),
        (annotated, "/metadata/annotations/modelrollout.dev~1scaled-from"),
    ):
        operations = scale_down(ROLLOUT, live).operations
        assert [operation["op"] for operation in operations[:2]] == ["test", "test"]
        assert operations[2]["path"] == path
        assert "fraud/3" in str(operations[2]["value"])
        assert operations[3] == {"op": "replace", "path": "/spec/replicas", "value": 0}


def test_the_size_comes_back_unless_somebody_else_gave_one() -> None:
    (action,) = restore(ROLLOUT, legacy(0, **NOTE))
    assert isinstance(action, JsonPatch)
    assert action.operations[-1] == {"op": "replace", "path": "/spec/replicas", "value": 3}
    assert restore(ROLLOUT, legacy(5, **NOTE)) == []
    assert restore(ROLLOUT, legacy(0)) == []
    assert restore(ROLLOUT, legacy(0, annotations={"modelrollout.dev/scaled-from": "other/3"})) == []
    assert restore(ROLLOUT, legacy(0, deletionTimestamp="2026-01-01T00:00:00Z", **NOTE)) == []
    (action,) = forget(ROLLOUT, legacy(5, **NOTE))
    assert isinstance(action, JsonPatch)
    assert action.operations[-1]["op"] == "remove"


def test_it_is_back_when_all_its_pods_are_ready() -> None:
    assert ready_again(legacy(3, ready=3))
    assert not ready_again(legacy(3, ready=2))
    assert not ready_again(legacy(3, ready=3, generation=3))
    assert ready_again(legacy(3, ready=0, deletionTimestamp="2026-01-01T00:00:00Z"))


def test_somebody_who_scaled_it_up_again_is_told_of() -> None:
    told = scaled_up_again(referring(), legacy(5, **NOTE))
    assert told is not None
    assert "left alone" in told
    assert scaled_up_again(referring(), legacy(0, **NOTE)) is None
    assert scaled_up_again(referring(), legacy(5)) is None
    assert scaled_up_again(referring("Never"), legacy(5, **NOTE)) is None
