"""InferencePools as the Services that they stand for, so that everything else needs to know of Services only.

The lab has no endpoint pickers: requests go to the ready pods of a pool in turn, as if each picker failed open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lab.kube import Object

GROUP = "inference.networking.k8s.io"
KIND = "InferencePool"


def service_name(pool: str) -> str:
    """What a pool goes by among the Services; none of them can have a slash in its name."""
    return f"{KIND}/{pool}"


def service_of(pool: Object) -> Object:
    """A Service with the first of the pool's ports."""
    metadata = pool["metadata"]
    ports = [{"port": port["number"]} for port in pool["spec"]["targetPorts"][:1]]
    named = {"namespace": metadata["namespace"], "name": service_name(metadata["name"])}
    return {"metadata": named, "spec": {"ports": ports}}


def slice_of(pool: Object, pods: Iterable[Object]) -> Object:
    """An EndpointSlice of that Service: the pods that the pool selects."""
    metadata = pool["metadata"]
    wanted: Mapping[str, str] = pool["spec"]["selector"]["matchLabels"]
    members = [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == metadata["namespace"]
        and wanted.items() <= (pod["metadata"].get("labels") or {}).items()
    ]
    return {
        "metadata": {
            "namespace": metadata["namespace"],
            "labels": {"kubernetes.io/service-name": service_name(metadata["name"])},
        },
        "ports": [{"name": ""}],
        "endpoints": [
            {
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]},
                "conditions": {"ready": is_ready(pod)},
            }
            for pod in members
        ],
    }


def is_ready(pod: Object) -> bool:
    """Whether an endpoint picker would take it."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
