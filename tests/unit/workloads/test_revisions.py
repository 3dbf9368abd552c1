"""How a spec becomes the objects of a revision."""

from __future__ import annotations

import copy

import pytest

from modelrollout.workloads import Record, dry_run_object, render_template
from tests.unit.workloads.manifests import RICH, Object, manifest, revision_of, spec_of


def rendered(template: Object, **spec: object) -> Object:
    rollout = manifest(template, **spec)
    return render_template(rollout, spec_of(rollout), "abcdefghij")


def template(**container: object) -> Object:
    return {"spec": {"containers": [{"name": "model", "image": "lab/model:1", **container}]}}


def test_labels_of_the_template_are_kept_and_ours_are_added() -> None:
    labels = rendered(RICH)["metadata"]["labels"]
    assert labels == {
        "app": "fraud",
        "team": "risk",
        "modelrollout.dev/rollout": "fraud",
        "modelrollout.dev/revision": "abcdefghij",
    }


def test_a_template_cannot_claim_another_revision() -> None:
    foreign = template() | {"metadata": {"labels": {"modelrollout.dev/revision": "stolen"}}}
    assert rendered(foreign)["metadata"]["labels"]["modelrollout.dev/revision"] == "abcdefghij"


MODEL = {"name": "fraud", "version": "7", "uri": "s3://m/7"}
ALL = {"MODEL_NAME": "fraud", "MODEL_VERSION": "7", "MODEL_URI": "s3://m/7"}
ENV = {
    "none yet": (MODEL, [], ALL),
    "one that the template sets itself": (
        MODEL,
        [{"name": "MODEL_VERSION", "value": "mine"}],
        ALL | {"MODEL_VERSION": "mine"},
    ),
    "another one": (MODEL, [{"name": "X", "value": "$(MODEL_URI)/x"}], ALL | {"X": "$(MODEL_URI)/x"}),
    "a model with a name only": ({"name": "fraud"}, [], {"MODEL_NAME": "fraud"}),
    "no model": ({}, [], {}),
}


@pytest.mark.parametrize(("model", "env", "expected"), ENV.values(), ids=ENV)
def test_containers_learn_which_model_they_serve(
    model: Object, env: list[Object], expected: dict[str, str]
) -> None:
    spec = template(**({"env": env} if env else {}))
    spec["spec"]["initContainers"] = [{"name": "download", "image": "lab/fetch:1"}]
    pod = rendered(spec, model=model)["spec"]
    variables = pod["containers"][0].get("env", [])
    assert {variable["name"]: variable["value"] for variable in variables} == expected
    names = [variable["name"] for variable in variables]
    assert names == sorted(names, key=lambda name: name == "X"), (
        "others can refer to them, so they come first"
    )
    assert len(pod["initContainers"][0].get("env", [])) == len(model)


def test_the_spec_is_not_changed_by_rendering() -> None:
    rollout = manifest(RICH)
    spec = spec_of(rollout)
    before = copy.deepcopy(spec.workload.template)
    render_template(rollout, spec, "abcdefghij")
    assert spec.workload.template == before


def test_nulls_do_not_reach_the_api_server() -> None:
    assert "creationTimestamp" not in rendered(RICH)["metadata"]


def test_the_deployment_selects_by_our_labels_only_and_never_misses_a_pod() -> None:
    rollout = manifest(
        RICH, progressDeadline="20m", workload={"replicas": 5, "template": RICH, "minReadySeconds": 7}
    )
    revision = revision_of(rollout)
    obj = dry_run_object(rollout, spec_of(rollout), revision)
    assert obj["metadata"]["name"] == f"fraud-{revision}"
    assert obj["spec"]["selector"]["matchLabels"] == {
        "modelrollout.dev/rollout": "fraud",
        "modelrollout.dev/revision": revision,
    }
    assert obj["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "25%"}
    assert (obj["spec"]["replicas"], obj["spec"]["minReadySeconds"]) == (5, 7)
    assert obj["spec"]["progressDeadlineSeconds"] == 1200
    (owner,) = obj["metadata"]["ownerReferences"]
    assert owner["controller"] is True
    assert owner["blockOwnerDeletion"] is True
    assert (owner["kind"], owner["uid"]) == ("ModelRollout", "uid-fraud")


DEADLINES = {
    "the usual one": ("10m", 0, 600),
    "a longer one": ("1h", 0, 3600),
    "pods that need long": ("10m", 3600, 3660),
    "a broken second": ("10m500ms", 0, 601),
}


@pytest.mark.parametrize(("deadline", "ready", "seconds"), DEADLINES.values(), ids=DEADLINES)
def test_the_deadline_of_the_deployment_is_longer_than_what_its_pods_need(
    deadline: str, ready: int, seconds: int
) -> None:
    workload = {"minReadySeconds": ready, "template": template()}
    rollout = manifest(progressDeadline=deadline, workload=workload)
    obj = dry_run_object(rollout, spec_of(rollout), "abcdefghij")
    assert obj["spec"]["progressDeadlineSeconds"] == seconds


def test_a_port_without_a_target_is_the_same_port() -> None:
    rollout = manifest(service={"ports": [{"port": 80}, {"name": "grpc", "port": 9000, "targetPort": "rpc"}]})
    record = Record.render(rollout, spec_of(rollout), "abcdefghij")
    assert record.ports == [
        {"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"},
        {"name": "grpc", "port": 9000, "targetPort": "rpc", "protocol": "TCP"},
    ]
    assert (record.port("grpc"), record.port(None), record.port("gone")) == (9000, 80, 80)
