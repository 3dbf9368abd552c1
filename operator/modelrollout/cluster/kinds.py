"""The kinds this operator speaks to, as one table.

Every request path is built from it, so no generated client class is needed for any group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

Object = dict[str, Any]

ROLLOUT_LABEL = "modelrollout.dev/rollout"
REVISION_LABEL = "modelrollout.dev/revision"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
STEERED_BY_ANNOTATION = "modelrollout.dev/steered-by"
"""On a route that the user keeps, while it is not as the user wrote it: the ModelRollout that will restore it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object as the API server names it. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of an object, or of the collection if `name` is None.

        `namespace` None means all namespaces, which only a collection can have.
        """
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        elif self.namespaced and name:
            raise ValueError(f"{self.kind} {name}: a namespace is needed")
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/" + "/".join(parts)


MODEL_ROLLOUT = Kind("modelrollout.dev", "v1alpha1", "modelrollouts", "ModelRollout")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps", "v1", "replicasets", "ReplicaSet")
CONTROLLER_REVISION = Kind("apps", "v1", "controllerrevisions", "ControllerRevision")
SERVICE = Kind("", "v1", "services", "Service")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SECRET = Kind("", "v1", "secrets", "Secret")
POD = Kind("", "v1", "pods", "Pod")
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
HTTP_ROUTE = Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
GRPC_ROUTE = Kind("gateway.networking.k8s.io", "v1", "grpcroutes", "GRPCRoute")
VIRTUAL_SERVICE = Kind("networking.istio.io", "v1", "virtualservices", "VirtualService")
INFERENCE_POOL = Kind("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool")
HORIZONTAL_POD_AUTOSCALER = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
EVENT = Kind("events.k8s.io", "v1", "events", "Event")

ROUTES = (HTTP_ROUTE, GRPC_ROUTE, VIRTUAL_SERVICE)
"""Kinds that say where requests go. The user may keep them, so they are watched whether they carry our label or not."""

KINDS: Mapping[tuple[str, str], Kind] = {
    (kind.api_version, kind.kind): kind
    for kind in (
        MODEL_ROLLOUT,
        DEPLOYMENT,
        REPLICA_SET,
        CONTROLLER_REVISION,
        SERVICE,
        CONFIG_MAP,
        SECRET,
        POD,
        NAMESPACE,
        ENDPOINT_SLICE,
        HTTP_ROUTE,
        GRPC_ROUTE,
        VIRTUAL_SERVICE,
        INFERENCE_POOL,
        HORIZONTAL_POD_AUTOSCALER,
        LEASE,
        EVENT,
    )
}


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The table's entry for an object; ValueError if its apiVersion and kind are not in the table."""
    found = KINDS.get((str(obj.get("apiVersion")), str(obj.get("kind"))))
    if found is None:
        raise ValueError(f"apiVersion {obj.get('apiVersion')!r} kind {obj.get('kind')!r} is not served here")
    return found


def name_of(obj: Mapping[str, Any]) -> tuple[str | None, str]:
    """(namespace, name) of an object; ValueError if it has no name."""
    metadata = obj.get("metadata") or {}
    if not metadata.get("name"):
        raise ValueError(f"{obj.get('kind')}: metadata.name is missing")
    return metadata.get("namespace"), str(metadata["name"])
