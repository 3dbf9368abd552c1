"""The objects that belong to one ModelRollout, and which of them are ours to write.

We never adopt what somebody else made: an object of a needed name without our controller reference is left alone and
reported. Except where it plainly was ours: it carries our label and name and has no controller (deleted with
`--cascade=orphan`), or its controller is of our kind and name with another uid (a cluster restored from a backup).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import API_VERSION, GROUP, KIND
from modelrollout.cluster import store
from modelrollout.cluster.actions import Delete, JsonPatch, patch_seen
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    HTTP_ROUTE,
    JOB,
    REVISION_LABEL,
    ROLLOUT_LABEL,
    ROUTES,
    SERVICE,
    SERVICE_NAME_LABEL,
    STEERED_BY_ANNOTATION,
    Kind,
    Object,
    kind_of,
)
from modelrollout.cluster.pods import Pod
from modelrollout.workloads.backends import Backend


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a spec can't be acted on: a documented reason, and a sentence with the mend."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Children:
    """What exists of one ModelRollout, by name, as found in the store."""

    controller_revisions: Mapping[str, Object] = field(default_factory=dict)
    deployments: Mapping[str, Object] = field(default_factory=dict)
    services: Mapping[str, Object] = field(default_factory=dict)
    endpointslices: Mapping[str, Object] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    routes: Mapping[str, Object] = field(default_factory=dict)
    jobs: Mapping[str, Object] = field(default_factory=dict)
    bound: Mapping[str, Backend] = field(default_factory=dict)  # revision → the user's in front of it
    pools: Mapping[str, Object] = field(default_factory=dict)  # the user's InferencePools
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)  # pool → pods that it selects
    # Objects that the user keeps, by kind and name: those that the spec names, and routes that are still steered.
    borrowed: Mapping[tuple[str, str], Object] = field(default_factory=dict)

    @classmethod
    def from_store(cls, found: store.Children, referred: Iterable[Object] = ()) -> Children:
        """The children that the store found, by name, and the user's objects that the spec refers to."""
        steered = [obj for kind in ROUTES for obj in found.of(kind) if steered_by(obj)]

        def named(kind: Kind) -> dict[str, Object]:
            return {name_in(obj): obj for obj in found.of(kind)}

        records = named(CONTROLLER_REVISION)
        own = {revision_of(obj): bound_to(obj) for obj in records.values()}
        return cls(
            controller_revisions=records,
            deployments=named(DEPLOYMENT),
            services=named(SERVICE),
            endpointslices=named(ENDPOINT_SLICE),
            jobs=named(JOB),
            pods={pod.name: pod for pod in found.pods},
            bound={revision: backend for revision, backend in own.items() if revision and backend},
            routes={
                name: obj
                for name, obj in named(HTTP_ROUTE).items()
                if not steered_by(obj) or ROLLOUT_LABEL in labels_of(obj)
            },
            borrowed={(str(obj["kind"]), name_in(obj)): obj for obj in (*steered, *referred)},
        )

    def backend_of(self, rollout: Mapping[str, Any], revision: str) -> Backend:
        """What is in front of a revision: the user's that it is bound to, or our own Service."""
        return self.bound.get(revision) or Backend(child_name(rollout, revision))

    def revision_names(self, rollout: Mapping[str, Any]) -> frozenset[str]:
        """The names that `child_name` gave to revisions of which there is a record, a Deployment or a Service of ours."""
        found = (*self.controller_revisions.values(), *self.deployments.values(), *self.services.values())
        return frozenset(
            name_in(obj)
            for obj in found
            if (revision := revision_of(obj)) and name_in(obj) == child_name(rollout, revision)
            if ownership(rollout, obj) is not Ownership.FOREIGN
        )

    def pods_of(self, rollout: Mapping[str, Any], revision: str) -> list[Pod]:
        """The pods of a revision: those with our label, or those behind the user's Service."""
        if revision not in self.bound:
            return [pod for pod in self.pods.values() if pod.revision == revision]
        names = self.pods_behind(self.bound[revision])
        return [self.pods[name] for name in sorted(names) if name in self.pods]

    def pods_behind(self, backend: Backend) -> frozenset[str]:
        """Names of the pods behind a Service or in a pool, ready or not."""
        if backend.pooled:
            return self.members.get(backend.name, frozenset())
        return frozenset(pod_names(self.slices_of(backend.name)))

    def slices_of(self, service: str) -> Iterator[Object]:
        """The EndpointSlices of a Service."""
        for obj in self.endpointslices.values():
            if labels_of(obj).get(SERVICE_NAME_LABEL) == service:
                yield obj

    @property
    def routed_services(self) -> frozenset[str]:
        """Names of the Services that a route sends requests to, or copies of them."""
        routes = (*self.routes.values(), *self.borrowed.values())
        return frozenset(name for route in routes for name in _backends(route.get("spec")))


def pod_names(slices: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of all pods in EndpointSlices, ready or not."""
    targets = (endpoint.get("targetRef") or {} for obj in slices for endpoint in obj.get("endpoints") or ())
    return {str(target["name"]) for target in targets if target.get("kind") == "Pod" and target.get("name")}


def bound_to(record: Mapping[str, Any]) -> Backend | None:
    """The user's Service, or pool, that a ControllerRevision says a revision is behind."""
    data = record.get("data") or {}
    return Backend.read({"name": data.get("service"), "kind": data.get("kind")})


def _backends(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _backends(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("backendRefs", "backendRef"):
                yield from (str(ref["name"]) for ref in (item if isinstance(item, list) else [item]))
            elif key in ("destination", "mirror") and isinstance(item, dict):
                yield str(item.get("host") or "").partition(".")[0]
            yield from _backends(item)


class Ownership(Enum):
    """Whose an object is."""

    OURS = "ours"
    ORPHAN = "orphan"  # was ours, has no controller
    STALE = "stale"  # was ours, its controller no longer exists
    FOREIGN = "foreign"


def ownership(rollout: Mapping[str, Any], obj: Mapping[str, Any]) -> Ownership:
    """Whose an object with a name that the ModelRollout needs is."""
    owners = obj["metadata"].get("ownerReferences") or ()
    controller = next((owner for owner in owners if owner.get("controller")), None)
    if controller is None:
        ours = labels_of(obj).get(ROLLOUT_LABEL) == name_in(rollout)
        return Ownership.ORPHAN if ours else Ownership.FOREIGN
    if controller.get("uid") == rollout["metadata"].get("uid"):
        return Ownership.OURS
    group = str(controller.get("apiVersion")).partition("/")[0]
    if (group, controller.get("kind"), controller.get("name")) == (GROUP, KIND, name_in(rollout)):
        return Ownership.STALE
    return Ownership.FOREIGN


def name_taken(rollout: Mapping[str, Any], obj: Mapping[str, Any] | None) -> Problem | None:
    """The problem with an object that stands where one of ours is to be; None if it is ours or there is none."""
    if obj is None or ownership(rollout, obj) is not Ownership.FOREIGN:
        return None
    owners = obj["metadata"].get("ownerReferences") or ()
    owner = next((f" belongs to {o['kind']} {o['name']}" for o in owners if o.get("controller")), "")
    return Problem(
        Reason.NAME_TAKEN,
        f"{obj.get('kind')} {name_in(obj)}{owner or ' exists and is not managed by this ModelRollout'}; it is never "
        "adopted: delete it, or choose another metadata.name or service.name",
    )


def owner_reference(rollout: Mapping[str, Any]) -> Object:
    """The reference that makes the garbage collector delete a child with its ModelRollout."""
    metadata = rollout["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owned(rollout: Mapping[str, Any], name: str, revision: str | None = None) -> Object:
    """Metadata of a child."""
    return {
        "name": name,
        "namespace": rollout["metadata"]["namespace"],
        "labels": labels_for(rollout, revision),
        "ownerReferences": [owner_reference(rollout)],
    }


def labels_for(rollout: Mapping[str, Any], revision: str | None = None) -> dict[str, str]:
    """The labels of a child, or of a revision's child; they are its selector too."""
    labels = {ROLLOUT_LABEL: name_in(rollout)}
    return labels | {REVISION_LABEL: revision} if revision else labels


def child_name(rollout: Mapping[str, Any], revision: str) -> str:
    """Name of a revision's ControllerRevision, Deployment and Service."""
    return f"{name_in(rollout)}-{revision}"


def retake(rollout: Mapping[str, Any], obj: Object) -> JsonPatch:
    """Put our controller reference in the place of the one that no longer exists.

    Server-side apply would add ours beside it, and the API server refuses two controllers.
    """
    others = [owner for owner in obj["metadata"]["ownerReferences"] if not owner.get("controller")]
    owners = [*others, owner_reference(rollout)]
    change = {"op": "replace", "path": "/metadata/ownerReferences", "value": owners}
    return patch_seen(kind_of(obj), obj, [change], "its ModelRollout was restored: take it back")


def delete(obj: Object, why: str) -> Delete:
    """The deletion of exactly this object."""
    metadata = obj["metadata"]
    return Delete(
        kind_of(obj),
        metadata["namespace"],
        metadata["name"],
        metadata["uid"],
        metadata["resourceVersion"],
        why,
    )


def name_in(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"]["name"])


def replicas_of(deployment: Mapping[str, Any]) -> int:
    """Pods that a Deployment is to have."""
    replicas = deployment["spec"].get("replicas")
    return 1 if replicas is None else int(replicas)


def labels_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return obj["metadata"].get("labels") or {}


def revision_of(obj: Mapping[str, Any]) -> str | None:
    """The revision that a child belongs to; None for one that belongs to the rollout as a whole."""
    return labels_of(obj).get(REVISION_LABEL)


def steered_by(obj: Mapping[str, Any]) -> str | None:
    """The ModelRollout that steers a route of the user's at present."""
    by = (obj["metadata"].get("annotations") or {}).get(STEERED_BY_ANNOTATION)
    return str(by) if by else None


def deleting(obj: Mapping[str, Any]) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))
