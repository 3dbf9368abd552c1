"""The size of a Deployment whose template was taken over: to 0 once, and back when the ModelRollout goes.

Its size is not ours. So it is written once, with a note of what it was, and never corrected: whoever scales the Deployment
up again (a GitOps tool that has `replicas` in Git, a person) wins, and is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.spec import GROUP, Spec
from ..api.status import Phase, Status
from ..cluster.actions import Action, JsonPatch
from ..cluster.kinds import DEPLOYMENT, Object
from .children import deleting, name_in

SCALED_ANNOTATION = f"{GROUP}/scaled-from"
"""On the user's Deployment: the size it had before we scaled it to 0."""

_POINTER = SCALED_ANNOTATION.replace("~", "~0").replace("/", "~1")


def wants_scale_down(spec: Spec) -> bool:
    """Whether the spec asks for the user's Deployment to be scaled to 0."""
    ref = spec.workload.deployment_ref
    return ref is not None and ref.scale_down == "OnceHealthy"


def may_scale_down(spec: Spec, status: Status, live: Object | None) -> bool:
    """Whether it is time: a revision of ours has served with all of its pods, and it was not done before."""
    if live is None or deleting(live) or not wants_scale_down(spec) or status.stable is None:
        return False
    healthy = status.phase == Phase.HEALTHY and status.stable.ever_ready
    whole = status.stable.ready >= status.stable.desired > 0
    return healthy and whole and scaled_from(live) is None and replicas_of(live) > 0


def scale_down(live: Object) -> JsonPatch:
    """To 0, with a note of the present size."""
    size = replicas_of(live)
    annotations = live["metadata"].get("annotations")
    note: list[Mapping[str, Any]] = (
        [{"op": "add", "path": f"/metadata/annotations/{_POINTER}", "value": str(size)}]
        if annotations
        else [{"op": "add", "path": "/metadata/annotations", "value": {SCALED_ANNOTATION: str(size)}}]
    )
    return _patch(
        live,
        *note,
        {"op": "replace", "path": "/spec/replicas", "value": 0},
        why=f"its template was taken over; it had {size} pods",
    )


def scaled_up_again(spec: Spec, live: Object | None) -> str | None:
    """The sentence for an event if somebody scaled the Deployment up after we scaled it down; None if nobody did."""
    if live is None or not wants_scale_down(spec) or scaled_from(live) is None or not replicas_of(live):
        return None
    return (
        f"Deployment {name_in(live)} was scaled up again to {replicas_of(live)} by somebody else and is left alone: its pods "
        f"serve beside ours. Leave replicas out of its manifest, or set workload.deploymentRef.scaleDown: Never; to have it "
        f"scaled down again, remove its annotation {SCALED_ANNOTATION}"
    )


def restore(live: Object | None) -> list[Action]:
    """Give the Deployment the size back that we took; nothing if we took none, or it is going."""
    size = scaled_from(live) if live is not None else None
    if live is None or size is None or deleting(live):
        return []
    forget = {"op": "remove", "path": f"/metadata/annotations/{_POINTER}"}
    if replicas_of(live):
        return [_patch(live, forget, why="the ModelRollout goes; it was scaled up again")]
    grow = {"op": "replace", "path": "/spec/replicas", "value": size}
    return [_patch(live, forget, grow, why=f"the ModelRollout goes; it had {size} pods")]


def ready_again(live: Object | None) -> bool:
    """Whether the Deployment serves with all of its pods, or is not expected to."""
    if live is None or deleting(live):
        return True
    if scaled_from(live) is not None:
        return False
    status = live.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(live["metadata"].get("generation") or 0)
    return seen and int(status.get("readyReplicas") or 0) >= replicas_of(live)


def scaled_from(live: Mapping[str, Any]) -> int | None:
    """The size before we scaled the Deployment to 0; None if we did not."""
    text = (live["metadata"].get("annotations") or {}).get(SCALED_ANNOTATION, "")
    return int(text) if text.isdecimal() else None


def replicas_of(live: Mapping[str, Any]) -> int:
    """Pods that a Deployment is to have."""
    replicas = live["spec"].get("replicas")
    return 1 if replicas is None else int(replicas)


def _patch(live: Object, *operations: Mapping[str, Any], why: str) -> JsonPatch:
    metadata = live["metadata"]
    seen = (
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
    )
    return JsonPatch(DEPLOYMENT, metadata["namespace"], metadata["name"], (*seen, *operations), why)
