"""Configuration as a part of the revision: an edited ConfigMap or Secret is a release, and its content is shown nowhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.kube import Object, path_of
from lab.operator import Operator
from tests.cluster.harness import Audit, Rollout, World, phase_is

OFF = {
    "analysis": {"mode": "Off"},
    "strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}},
    "watch": {"duration": "0s"},
}
SECRET_TEXT = "correct-horse-battery"
OPTIONAL: dict[str, Any] = {"optional": True}  # the lab's node has neither; what is tested are revisions


@pytest.fixture(scope="module")
def operator(world: World) -> Iterator[Operator]:
    with Operator(world.lab, values=world.values | {"trackConfig": True}) as running:
        yield running
        world.clear()


def put(rollout: Rollout, kind: str, name: str, value: str, labels: Object | None = None) -> None:
    text = base64.b64encode(value.encode()).decode() if kind == "Secret" else value
    metadata = {"name": name, "namespace": rollout.namespace, "labels": labels or {}}
    rollout.client.apply({"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": {"KEY": text}})


def workload(**pod: Any) -> Object:
    container = {"name": "model", "image": "lab/pause:1", **pod.pop("container", {})}
    template = {"spec": {"containers": [container], **pod}}
    return {"workload": {"replicas": 1, "trackConfig": True, "template": template}, **OFF}


def from_env(source: str, ref: Object) -> Object:
    return workload(
        container={"env": [{"name": "A", "valueFrom": {source: ref | {"key": "KEY"} | OPTIONAL}}]}
    )


USES = {
    "a variable from a ConfigMap": ("ConfigMap", from_env("configMapKeyRef", {"name": "settings"})),
    "a variable from a Secret": ("Secret", from_env("secretKeyRef", {"name": "settings"})),
}


@pytest.mark.parametrize(("kind", "spec"), USES.values(), ids=USES)
def test_an_edit_starts_a_rollout(world: World, operator: Operator, kind: str, spec: Object) -> None:
    rollout = world.rollout()
    put(rollout, kind, "settings", SECRET_TEXT)
    first = rollout.deploy(**spec)
    put(rollout, kind, "settings", f"{SECRET_TEXT}-2")
    promoted = rollout.wait(
        lambda obj: phase_is("Healthy")(obj) and obj["status"]["stable"]["revision"] != first,
        "the promotion with the new configuration",
    )
    shown = json.dumps(
        [promoted, rollout.client.list(path_of("apps/v1", "controllerrevisions", rollout.namespace))]
    )
    assert SECRET_TEXT not in shown
    assert base64.b64encode(SECRET_TEXT.encode()).decode() not in shown
    assert promoted["status"]["attempt"] == 2


def test_a_label_of_a_secret_starts_nothing(world: World, operator: Operator) -> None:
    rollout = world.rollout()
    put(rollout, "Secret", "settings", SECRET_TEXT)
    first = rollout.deploy(**from_env("secretKeyRef", {"name": "settings"}))
    put(rollout, "Secret", "settings", SECRET_TEXT, {"team": "risk"})
    rollout.patch(drainDelay="2s")
    rollout.wait(lambda obj: obj["status"]["observedGeneration"] == obj["metadata"]["generation"], "a round")
    status = rollout.wait_phase("Healthy")["status"]
    assert status["stable"]["revision"] == first


def test_only_what_is_mentioned_is_read(world: World, operator: Operator) -> None:
    rollout = world.rollout()
    put(rollout, "Secret", "settings", SECRET_TEXT)
    put(rollout, "Secret", "private", "nobody's business")
    audit = Audit(world.lab.audit_log)
    rollout.deploy(**from_env("secretKeyRef", {"name": "settings"}))
    asked = [
        event["requestURI"]
        for event in audit.requests("system:serviceaccount:modelrollout-system")
        if event.get("objectRef", {}).get("resource") in ("secrets", "configmaps")
    ]
    assert asked
    assert all("metadata.name%3Dsettings" in uri for uri in asked)
