"""A ModelRollout for tests, with a pod template that uses what the API server likes to rewrite."""

from __future__ import annotations

import copy
from typing import Any

from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import Retiring, RevisionStatus, Status, Weights

Object = dict[str, Any]

PLAIN: Object = {
    "metadata": {"labels": {"app": "fraud"}},
    "spec": {"containers": [{"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}]},
}

# Defaults left out, zeros, empty values, nulls, quantities in other spellings, lists with and without keys.
RICH: Object = {
    "metadata": {
        "labels": {"app": "fraud", "team": "risk"},
        "annotations": {"prometheus.io/scrape": "true", "note": ""},
        "creationTimestamp": None,
    },
    "spec": {
        "serviceAccountName": "default",
        "hostNetwork": False,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "value": "true", "effect": "NoExecute", "tolerationSeconds": 60},
        ],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": "fraud"}},
            }
        ],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 50,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {
                                "matchExpressions": [{"key": "app", "operator": "In", "values": ["fraud"]}]
                            },
                        },
                    }
                ]
            }
        },
        "imagePullSecrets": [{"name": "registry"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["store.internal"]}],
        "initContainers": [
            {
                "name": "download",
                "image": "lab/pause:1",
                "command": ["fetch", "$(MODEL_URI)"],
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
            }
        ],
        "containers": [
            {
                "name": "model",
                "image": "lab/pause:1",
                "imagePullPolicy": "",
                "args": [],
                "ports": [
                    {"containerPort": 8080, "name": "http"},
                    {"containerPort": 9000, "protocol": "UDP", "name": "dns"},
                ],
                "env": [
                    {"name": "EMPTY", "value": ""},
                    {"name": "MODEL_VERSION", "value": "as the template says"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {
                        "name": "CPUS",
                        "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1000m"}},
                    },
                ],
                "envFrom": [{"configMapRef": {"name": "settings", "optional": True}}],
                "resources": {
                    "limits": {"cpu": "1500m", "memory": "1024Mi", "nvidia.com/gpu": 1},
                    "requests": {"cpu": 0.5, "memory": "1e9"},
                },
                "readinessProbe": {
                    "httpGet": {"path": "/healthz", "port": "http"},
                    "periodSeconds": 0,
                    "initialDelaySeconds": 0,
                },
                "livenessProbe": {"tcpSocket": {"port": 8080}, "failureThreshold": 5},
                "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
                "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
                "volumeMounts": [
                    {"name": "models", "mountPath": "/models", "readOnly": True},
                    {"name": "scratch", "mountPath": "/tmp"},
                    {"name": "settings", "mountPath": "/etc/settings", "subPath": ""},
                ],
            },
            {"name": "sidecar", "image": "lab/pause:1", "resources": {}, "tty": False},
        ],
        "volumes": [
            {"name": "models", "emptyDir": {"sizeLimit": "2048Mi"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "settings", "configMap": {"name": "settings", "optional": True}},
            {
                "name": "token",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "store"}}]},
            },
            {
                "name": "cache",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "resources": {"requests": {"storage": "1000Mi"}},
                        }
                    }
                },
            },
        ],
        "terminationGracePeriodSeconds": 0,
    },
}


def manifest(
    template: Object = PLAIN,
    *,
    name: str = "fraud",
    namespace: str = "ml",
    uid: str = "uid-fraud",
    **spec: Any,
) -> Object:
    """A ModelRollout as the API server returns it."""
    return {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "creationTimestamp": "2026-11-20T08:00:00Z",
        },
        "spec": {
            "model": {"name": "fraud", "version": "1", "uri": "s3://models/fraud/1"},
            "workload": {"replicas": 2, "template": copy.deepcopy(template)},
            "service": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
            "analysis": {
                "metrics": [{"name": "errors", "ratio": {"bad": "bad_total", "total": "all_total"}}]
            },
            **copy.deepcopy(spec),
        },
    }


def with_version(rollout: Object, version: str) -> Object:
    """The same ModelRollout, releasing another version of the model."""
    changed = copy.deepcopy(rollout)
    changed["spec"]["model"]["version"] = version
    return changed


def spec_of(rollout: Object) -> Spec:
    return Spec.from_wire(rollout["spec"])


def accepted_of(rollout: Object) -> Spec:
    """The spec as a later round has it from the status: without the template."""
    return Spec.from_wire(spec_of(rollout).without_template())


def revision_of(rollout: Object) -> str:
    return hash_revision(spec_of(rollout))


def status_of(
    stable: str | None = None,
    candidate: str | None = None,
    previous: str | None = None,
    *,
    sizes: tuple[int, int, int] = (2, 1, 1),
    weights: tuple[int, int, int] = (100, 0, 0),
    retiring: tuple[tuple[str, float, int], ...] = (),
    attempt: int = 1,
) -> Status:
    """A committed status with these revisions, sizes (all of them ready) and weights."""
    roles = [
        RevisionStatus(revision=revision, desired=size, ready=size) if revision else None
        for revision, size in zip((stable, candidate, previous), sizes, strict=True)
    ]
    return Status(
        stable=roles[0],
        candidate=roles[1],
        previous=roles[2],
        weights=Weights(stable=weights[0], candidate=weights[1], previous=weights[2]),
        retiring=[Retiring(revision=r, until=until, desired=n) for r, until, n in retiring],
        attempt=attempt,
    )
