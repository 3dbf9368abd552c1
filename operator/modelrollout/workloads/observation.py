"""What the cluster shows of each revision.

Ready means ready endpoints of the revision's own Service, as the proxies see it: a pod's own word is older or newer
than what traffic follows. Pods say since when, and why not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from modelrollout.api.spec import Spec
from modelrollout.cluster.kinds import REVISION_LABEL
from modelrollout.cluster.pods import Pod, Waiting
from modelrollout.decision.types import RevisionView
from modelrollout.workloads.backends import Backend, picker_of
from modelrollout.workloads.children import (
    Children,
    Ownership,
    child_name,
    name_in,
    ownership,
    replicas_of,
    revision_of,
)

_REASONS = 5
_LENGTH = 300
_OVER = frozenset({"Succeeded", "Failed"})
# What whoever is on call looks for first: the surest cause with the plainest cure.
_ORDER = (
    ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"),
    ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "ContainerCannotRun"),
    ("CrashLoopBackOff", "OOMKilled", "Error", "StartError"),
    ("Unschedulable", "SchedulingGated"),
    ("FailedCreate",),
)
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


def observe(
    rollout: Mapping[str, Any], children: Children, now: float, *, served: Collection[str] = ()
) -> dict[str, RevisionView]:
    """Every revision of which something exists. `now` (epoch seconds) stands in for what a pod has not said yet.

    `served`: revisions that had ready endpoints, and whose Service will be put back if it is away.
    """
    revisions = {revision_of(obj) for obj in (*children.deployments.values(), *children.services.values())}
    revisions |= {pod.revision for pod in children.pods.values()} | set(children.bound)
    return {
        revision: _view(rollout, children, revision, now, revision in served)
        for revision in sorted(filter(None, revisions))
    }


def pinned(rollout: Mapping[str, Any], spec: Spec, children: Children) -> str | None:
    """The revision that the Service for callers selects, if the Service is ours."""
    obj = children.services.get(spec.service_name(name_in(rollout)))
    if obj is None or ownership(rollout, obj) is Ownership.FOREIGN:
        return None
    selected = (obj["spec"].get("selector") or {}).get(REVISION_LABEL)
    return str(selected) if selected else None


def ready_pods(slices: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Ready endpoints of a Service: name of the pod (empty if unknown) by identity.

    An endpoint may stand in two slices while it moves from one to the other, and in one of each family with two IP
    families: it counts once. No proxy sends anything to those of a slice without ports.
    """
    found: dict[str, str] = {}
    for obj in slices:
        if not obj.get("ports"):
            continue
        for endpoint in obj.get("endpoints") or ():
            # The API says: unknown means ready.
            if (endpoint.get("conditions") or {}).get("ready") is False:
                continue
            target = endpoint.get("targetRef") or {}
            pod = str(target.get("name") or "") if target.get("kind", "Pod") == "Pod" else ""
            addresses = endpoint.get("addresses") or ()
            identity = pod or str(next(iter(addresses), ""))
            if identity:
                found[identity] = pod
    return found


def ready_behind(children: Children, backend: Backend) -> dict[str, str]:
    """As `ready_pods`, of a Service or of a pool."""
    if not backend.pooled:
        return ready_pods(children.slices_of(backend.name))
    if away_picker(children, backend):
        return {}
    pods = (children.pods.get(name) for name in sorted(children.pods_behind(backend)))
    return {pod.name: pod.name for pod in pods if pod is not None and pod.ready}


def away_picker(children: Children, backend: Backend) -> str:
    """Why a pool refuses every request, whatever its pods; empty if it does not."""
    picker = picker_of(children.pools.get(backend.name) or {}) if backend.pooled else None
    if picker is None or ready_pods(children.slices_of(picker)):
        return ""
    return f"PickerNotReady: Service {picker}, the endpoint picker of {backend}, has no ready endpoint"


def closed_service(children: Children, backend: Backend) -> str:
    """Why a Service sends nothing to some of its pods, however ready they are; empty if it does."""
    slices = () if backend.pooled else children.slices_of(backend.name)
    if not any(obj.get("endpoints") and not obj.get("ports") for obj in slices):
        return ""
    return f"PortNotFound: no container of the pods has a port that {backend} names as targetPort"


def answering(children: Children, service: str) -> dict[str, int]:
    """Ready endpoints of a Service by revision; one whose pod is not known (yet) counts for revision ""."""
    counts: dict[str, int] = {}
    for name in ready_pods(children.slices_of(service)).values():
        pod = children.pods.get(name)
        revision = pod.revision if pod else ""
        counts[revision] = counts.get(revision, 0) + 1
    return counts


def _view(
    rollout: Mapping[str, Any], children: Children, revision: str, now: float, served: bool
) -> RevisionView:
    workload = children.deployments.get(child_name(rollout, revision))
    pods = [pod for pod in children.pods_of(rollout, revision) if pod.phase not in _OVER]
    since = {pod.name: pod.ready_since for pod in pods}
    backend = children.backend_of(rollout, revision)
    ready = ready_behind(children, backend)
    barred = away_picker(children, backend) or closed_service(children, backend)
    if served and revision not in children.bound and not any(children.slices_of(backend.name)):
        # Each Service has an EndpointSlice, if an empty one. Where all are gone, the Service was deleted, or it lost the
        # label by which we see it: nothing is known of its endpoints, and until it is back the pods' own word counts.
        ready = {pod.name: pod.name for pod in pods if pod.ready and not pod.terminating}
    desired = replicas_of(workload) if workload else 0
    if revision in children.bound:
        desired = max(len(pods), len(ready))
    return RevisionView(
        desired=desired,
        ready=len(ready),
        ready_since=tuple(sorted(_first(since.get(pod), now) for pod in ready.values())),
        restarts=sum(pod.restart_count for pod in pods),
        pods=len(pods),
        leaving=sum(pod.terminating for pod in pods),
        waiting=((barred,) if barred else ()) + waiting_of(pods, workload),
    )


def _first(since: float | None, now: float) -> float:
    return now if since is None else since


def waiting_of(pods: Iterable[Pod], workload: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Why pods are not there, the most telling first, each once with the number of pods it is true of."""
    found: dict[tuple[int, str], int] = {}
    for pod in pods:
        if pod.terminating or pod.ready:
            continue
        reasons = [(_rank(waiting.reason), _spell(waiting)) for waiting in pod.waiting]
        if not reasons and pod.container_started:
            reasons = [(len(_ORDER), "NotReady: the container runs and its readiness probe does not pass")]
        for reason in reasons[:_REASONS]:
            found[reason] = found.get(reason, 0) + 1
    for refusal in _refused(workload):
        found.setdefault((_rank("FailedCreate"), refusal), 1)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return tuple(f"{text} ({n} pods)" if n > 1 else text for (_, text), n in ordered[:_REASONS])


def _rank(reason: str) -> int:
    for rank, reasons in enumerate(_ORDER):
        if reason in reasons:
            return rank
    return len(_ORDER) + 2 if reason in _STARTING else len(_ORDER) + 1


def _spell(waiting: Waiting) -> str:
    if _rank(waiting.reason) == _rank("CrashLoopBackOff"):
        # No count of restarts: the message would change, and the status be written, at each of them.
        code = "" if waiting.exit_code is None else f" exited with code {waiting.exit_code}"
        return f"{waiting.reason}: container {waiting.container}{code}"
    return f"{waiting.reason}: {waiting.message}"[:_LENGTH] if waiting.message else waiting.reason


def _refused(workload: Mapping[str, Any] | None) -> Iterator[str]:
    """What the API server said when a pod could not even be created: a quota, an admission webhook."""
    for condition in ((workload or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            yield f"{condition.get('reason')}: {condition.get('message')}"[:_LENGTH]
