"""Plays what a cluster does by itself on a FakeCluster: pods for Deployments, endpoints for Services, accepted routes.

Nothing happens until `settle` is called, so a test decides what the operator sees and in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelrollout.cluster.kinds import (
    DEPLOYMENT,
    ENDPOINT_SLICE,
    HTTP_ROUTE,
    POD,
    REVISION_LABEL,
    SERVICE,
    SERVICE_NAME_LABEL,
    Object,
)
from modelrollout.cluster.times import micro_time
from tests.fakes.cluster import FakeCluster


@dataclass
class Nodes:
    """What the world is like. `now` gives epoch seconds.

    `waiting`: by revision, the reason for which its containers do not start ("ImagePullBackOff"). `unready`: revisions
    whose pods run and are not ready. `limit`: by revision, how many pods can be scheduled. `restarts`: by revision, the
    restart count of each pod. `accept_routes`: whether gateways accept routes.
    """

    cluster: FakeCluster
    now: Callable[[], float]
    waiting: dict[str, str] = field(default_factory=dict)
    unready: set[str] = field(default_factory=set)
    limit: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    accept_routes: bool = True

    def settle(self) -> None:
        """Let the built-in controllers, the nodes and the gateways do all that they have to do."""
        deployments = self.cluster.look_all(DEPLOYMENT)
        for deployment in deployments:
            self._run(deployment)
        for service in self.cluster.look_all(SERVICE):
            self._publish(service)
        for route in self.cluster.look_all(HTTP_ROUTE):
            self._accept(route)

    def _run(self, deployment: Object) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        labels = template["metadata"].get("labels") or {}
        revision = labels.get(REVISION_LABEL, "")
        wanted = [f"{metadata['name']}-{n}" for n in range(spec.get("replicas", 1))]
        for pod in self._pods(metadata["namespace"], labels):
            owned = pod["metadata"]["ownerReferences"][0]["uid"] == metadata["uid"]
            if owned and pod["metadata"]["name"] not in wanted:
                self.cluster.erase(POD, metadata["namespace"], pod["metadata"]["name"])
        owner = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        ready = 0
        for n, name in enumerate(wanted):
            scheduled = n < self.limit.get(revision, len(wanted))
            pod_metadata = {"name": name, "namespace": metadata["namespace"], "labels": dict(labels)}
            pod_metadata |= {"ownerReferences": [owner]}
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": pod_metadata,
                "spec": dict(template["spec"]),
            }
            before = self.cluster.look(POD, metadata["namespace"], name) or {}
            pod["status"] = self._pod_status(revision, n, scheduled, before.get("status") or {})
            self.cluster.seed(pod)
            ready += _is_ready(pod)
        count = {"replicas": len(wanted), "updatedReplicas": len(wanted)}
        count |= {"readyReplicas": ready, "availableReplicas": ready}
        status = {"observedGeneration": metadata["generation"]} | {k: v for k, v in count.items() if v}
        self.cluster.set_status(DEPLOYMENT, metadata["namespace"], metadata["name"], status)

    def _pod_status(self, revision: str, n: int, scheduled: bool, before: Mapping[str, Any]) -> Object:
        if not scheduled:
            message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
            return {"phase": "Pending", "conditions": [condition]}
        started = before.get("startTime") or _time(self.now())
        reason = self.waiting.get(revision)
        ready = reason is None and revision not in self.unready
        state = {"waiting": {"reason": reason}} if reason else {"running": {"startedAt": started}}
        container = {
            "name": "model",
            "ready": ready,
            "restartCount": self.restarts.get(revision, 0),
            "state": state,
        }
        return {
            "phase": "Pending" if reason else "Running",
            "podIP": f"10.244.{sum(revision.encode()) % 256}.{n + 1}",
            "startTime": started,
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(ready), "lastTransitionTime": self._since(before, ready)},
            ],
            "containerStatuses": [container],
        }

    def _since(self, before: Mapping[str, Any], ready: bool) -> str:
        for condition in before.get("conditions") or ():
            if condition["type"] == "Ready" and condition["status"] == str(ready):
                return str(condition["lastTransitionTime"])
        return _time(self.now())

    def _publish(self, service: Object) -> None:
        metadata, spec = service["metadata"], service["spec"]
        if not spec.get("selector"):
            return
        pods = [
            pod for pod in self._pods(metadata["namespace"], spec["selector"]) if pod["status"].get("podIP")
        ]
        labels = dict(metadata.get("labels") or {}) | {SERVICE_NAME_LABEL: metadata["name"]}
        owner = {"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}
        self.cluster.seed(
            {
                "apiVersion": ENDPOINT_SLICE.api_version,
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{metadata['name']}-x",
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "ownerReferences": [owner],
                },
                "addressType": "IPv4",
                "endpoints": [_endpoint(pod) for pod in pods],
                "ports": [{"name": p.get("name", ""), "port": p["port"]} for p in spec.get("ports") or ()],
            }
        )

    def _accept(self, route: Object) -> None:
        metadata, status = route["metadata"], "True" if self.accept_routes else "False"
        parents = [
            {
                "parentRef": parent,
                "controllerName": "fake.modelrollout.dev/gateway",
                "conditions": [
                    {
                        "type": type,
                        "status": status,
                        "reason": "Accepted" if self.accept_routes else "NotAllowedByListeners",
                        "observedGeneration": metadata["generation"],
                    }
                    for type in ("Accepted", "ResolvedRefs")
                ],
            }
            for parent in route["spec"].get("parentRefs") or ()
        ]
        self.cluster.set_status(HTTP_ROUTE, metadata["namespace"], metadata["name"], {"parents": parents})

    def _pods(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        return [
            pod
            for pod in self.cluster.look_all(POD)
            if pod["metadata"]["namespace"] == namespace
            and labels.items() <= (pod["metadata"].get("labels") or {}).items()
        ]


def _endpoint(pod: Object) -> Object:
    ready = _is_ready(pod)
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"].get("uid"),
        },
    }


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _time(now: float) -> str:
    return micro_time(now)[:19] + "Z"
