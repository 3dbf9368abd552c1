"""The CRD against a real API server: it is accepted, refuses what it should in the words of the rules, and keeps what it is given."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import yaml

from lab.kube import KubeClient, KubeError, Object, path_of
from lab.lab import Lab
from modelrollout.api.rules import NAME_MESSAGE, PREVIEW_MESSAGE, RULES
from modelrollout.api.spec import API_VERSION, GROUP, KIND, PLURAL
from modelrollout.api.status import Status
from modelrollout.api.types import Model
from modelrollout.api.validate import parse
from tests.unit.api.manifests import BAD, GOOD, Bad, gateway, good, minimal
from tests.unit.test_documents import manifests

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "crd"
ROLLOUTS = path_of(API_VERSION, PLURAL, NAMESPACE)
SENTENCES = {NAME_MESSAGE, PREVIEW_MESSAGE, *(rule.message for rule in RULES)}


@pytest.fixture(scope="module")
def client(lab: Lab) -> KubeClient:
    lab.client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    return lab.client


def try_out(client: KubeClient, obj: Object) -> Object:
    """What the API server would store."""
    return client.create(ROLLOUTS, obj, dryRun="All", fieldValidation="Strict")


@pytest.fixture
def stored(client: KubeClient) -> Iterator[Object]:
    """The minimal manifest, stored under a name of its own."""
    obj = minimal()
    obj["metadata"]["name"] = f"digits-{uuid.uuid4().hex[:8]}"
    created = client.create(ROLLOUTS, obj, fieldValidation="Strict")
    yield created
    client.delete(path_to(created))


def path_to(obj: Object, subresource: str | None = None) -> str:
    return path_of(API_VERSION, PLURAL, NAMESPACE, obj["metadata"]["name"], subresource)


def test_the_api_server_finds_no_fault_with_the_schema(client: KubeClient) -> None:
    """Among them the budget for the cost of the rules: a CRD that exceeds it is not created at all."""
    crd = client.get(
        path_of("apiextensions.k8s.io/v1", "customresourcedefinitions", None, f"{PLURAL}.{GROUP}")
    )
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.why)
def test_refused_with_the_field_and_the_sentence_that_python_says(client: KubeClient, case: Bad) -> None:
    with pytest.raises(KubeError) as refusal:
        try_out(client, case.manifest())
    assert case.names in refusal.value.message
    assert refusal.value.status in (400, 422)
    if "some validation rules were not checked" not in refusal.value.message:
        said = {problem.message for problem in parse(case.manifest())[1]} & SENTENCES
        assert [sentence for sentence in said if sentence not in refusal.value.message] == []


def test_every_rule_was_seen_to_refuse_something(client: KubeClient) -> None:
    said = ""
    for case in BAD:
        try:
            try_out(client, case.manifest())
        except KubeError as refusal:
            said += refusal.message
    assert [sentence for sentence in SENTENCES if sentence not in said] == []


@pytest.mark.parametrize("name", GOOD)
def test_accepted(client: KubeClient, name: str) -> None:
    try_out(client, good(name))


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_example_is_accepted(client: KubeClient, file: Path) -> None:
    try_out(client, namespaced(yaml.safe_load(file.read_text())))


@pytest.mark.parametrize("manifest", [one for one in manifests() if one.values[0].get("kind") == KIND])
def test_what_the_documents_show_is_accepted(client: KubeClient, manifest: Object) -> None:
    try_out(client, namespaced(manifest))


def namespaced(obj: Object) -> Object:
    return obj | {"metadata": obj["metadata"] | {"namespace": NAMESPACE}}


@pytest.mark.parametrize("name", GOOD)
def test_defaults_of_the_api_server_and_of_the_operator_are_the_same(client: KubeClient, name: str) -> None:
    obj = good(name)
    here, _ = parse(obj)
    there, problems = parse(try_out(client, obj))
    assert problems == []
    assert there == here


def test_the_longest_manifest_is_within_the_budget_of_its_rules(client: KubeClient) -> None:
    selector = 'r{path="' + "a" * 1000 + '"}'
    margin = {
        "harm": {"ratio": "1.01", "absolute": "0.001"},
        "accept": {"ratio": "1.02", "absolute": "0.002"},
    }
    metrics = [
        {"name": f"m{n}", "ratio": {"bad": selector, "total": selector}, "margin": margin} for n in range(16)
    ]
    obj = minimal()
    obj["spec"]["analysis"]["metrics"] = metrics
    obj["spec"]["strategy"] = {"canary": {"steps": [{"name": f"s{n}", "weight": n + 1} for n in range(32)]}}
    obj["spec"]["service"]["ports"] = [{"name": f"p{n}", "port": n + 1} for n in range(16)]
    obj["spec"]["traffic"] = gateway(port="p15", matches=[{"path": {"value": "/" + "a" * 1000}}] * 8)
    try_out(client, obj)


def test_the_pod_template_is_kept_as_it_is(client: KubeClient, stored: Object) -> None:
    template = {
        "metadata": {"labels": {"a": "b"}, "somethingNew": 1},
        "spec": {
            "containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": 1}}, "new": [{}]}],
            "hostUsers": False,
        },
    }
    patch = {"spec": {"workload": {"template": template}}}
    patched = client.patch(path_to(stored), patch, fieldValidation="Strict")
    assert patched["spec"]["workload"]["template"]["metadata"] == template["metadata"]
    assert patched["spec"]["workload"]["template"]["spec"] == template["spec"]


def test_a_fresh_object_says_that_nobody_has_looked_at_it(stored: Object) -> None:
    assert stored["status"] == {"observedGeneration": -1}


def filled(annotation: Any) -> Any:
    """A value with every field set, for any type that the status uses."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation(**{name: filled(info.annotation) for name, info in annotation.model_fields.items()})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation))
    if annotation is bool:
        return True
    for plain, value in ((int, 3), (float, 1795.123456), (str, "text")):
        if annotation is plain:
            return value
    inner = [argument for argument in get_args(annotation) if argument is not type(None)]
    origin = getattr(annotation, "__origin__", None)
    if origin is Literal:
        return inner[0]
    if origin in (list, tuple):
        return [filled(inner[0])]
    if origin is dict:
        return {"series": {"a": [1.5, 2, "x", None]}}
    return filled(inner[0])


def test_the_status_comes_back_as_it_was_written(client: KubeClient, stored: Object) -> None:
    sent = filled(Status).to_wire()
    replaced = client.replace(path_to(stored, "status"), {**stored, "status": sent}, fieldValidation="Strict")
    assert replaced["status"] == json.loads(json.dumps(sent))
    assert Status.from_wire(client.get(path_to(stored))["status"]) == filled(Status)
    assert replaced["metadata"]["generation"] == stored["metadata"]["generation"]


def test_an_autoscaler_reads_and_writes_through_the_scale_subresource(
    client: KubeClient, stored: Object
) -> None:
    status = {"observedGeneration": 1, "replicas": 5, "selector": "modelrollout.dev/rollout=digits"}
    client.replace(path_to(stored, "status"), {**stored, "status": status})
    scale = client.get(path_to(stored, "scale"))
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 5, "selector": "modelrollout.dev/rollout=digits"}
    client.patch(path_to(stored, "scale"), {"spec": {"replicas": 7}})
    assert client.get(path_to(stored))["spec"]["workload"]["replicas"] == 7


def test_the_columns_of_kubectl_get_show_the_status(client: KubeClient, stored: Object) -> None:
    status = {
        "observedGeneration": 1,
        "phase": "Progressing",
        "message": "step 2/3",
        "step": {"id": "a", "index": 1, "count": 3, "display": "2/3"},
        "weights": {"stable": 90, "candidate": 10},
        "verdict": "Inconclusive",
        "stable": {"revision": "aaaaaaaaaa"},
        "candidate": {"revision": "bbbbbbbbbb"},
        "conditions": [
            {
                "type": "Ready",
                "status": "Unknown",
                "reason": "Progressing",
                "lastTransitionTime": "2026-11-20T08:30:00Z",
            }
        ],
    }
    client.replace(path_to(stored, "status"), {**stored, "status": status})
    table = table_of(client, path_to(stored))
    cells = dict(
        zip([column["name"] for column in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True)
    )
    del cells["Age"]
    assert cells == {
        "Name": stored["metadata"]["name"],
        "Phase": "Progressing",
        "Step": "2/3",
        "Weight": 10,
        "Verdict": "Inconclusive",
        "Ready": "Unknown",
        "Stable": "aaaaaaaaaa",
        "Candidate": "bbbbbbbbbb",
        "Message": "step 2/3",
    }


def table_of(client: KubeClient, path: str) -> Any:
    headers = client._headers | {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    return json.loads(client._http.request("GET", client._url(path, {}), headers=headers).data)


def test_the_router_of_a_stored_object_can_be_exchanged(client: KubeClient, stored: Object) -> None:
    """A default inside a union would stay behind here and make two members of it."""
    client.patch(path_to(stored), {"spec": {"traffic": gateway()}})
    patched = client.patch(path_to(stored), {"spec": {"traffic": {"gatewayAPI": None, "podRatio": {}}}})
    assert patched["spec"]["traffic"] == {"podRatio": {}}


def test_two_appliers_may_own_different_metrics(client: KubeClient, stored: Object) -> None:
    more = copy.deepcopy(minimal()["spec"]["analysis"]["metrics"])
    more[0]["name"] = "timeouts"
    body = {
        "apiVersion": API_VERSION,
        "kind": "ModelRollout",
        "metadata": {"name": stored["metadata"]["name"]},
        "spec": {"analysis": {"metrics": more}},
    }
    applied = client.patch(path_to(stored), body, "apply", fieldManager="someone", force=False)
    assert [metric["name"] for metric in applied["spec"]["analysis"]["metrics"]] == ["errors", "timeouts"]
