"""The size of a Deployment whose template was taken over: to 0 once, and back when the ModelRollout goes.

Its size is not ours. So it is written once, with a note of what it was, and never corrected: whoever scales the Deployment
up again (a GitOps tool that has `replicas` in Git, a person) wins, and is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelrollout.api.spec import GROUP, Spec
from modelrollout.api.status import Phase, Status
from modelrollout.cluster.actions import Action, JsonPatch, patch_seen
from modelrollout.cluster.kinds import DEPLOYMENT, Object
from modelrollout.workloads.children import deleting, name_in, replicas_of

SCALED_ANNOTATION = f"{GROUP}/scaled-from"
"""On the user's Deployment: which ModelRollout scaled it to 0, and from which size, as in `fraud/3`."""

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
    return healthy and whole and _note(live) is None and replicas_of(live) > 0


def scale_down(rollout: Mapping[str, Any], live: Object) -> JsonPatch:
    """To 0, with a note of the present size."""
    size = replicas_of(live)
    text = f"{name_in(rollout)}/{size}"
    annotations = live["metadata"].get("annotations")
    note: list[Mapping[str, Any]] = (
        [{"op": "add", "path": f"/metadata/annotations/{_POINTER}", "value": text}]
        if annotations
        else [{"op": "add", "path": "/metadata/annotations", "value": {SCALED_ANNOTATION: text}}]
    )
    shrink = {"op": "replace", "path": "/spec/replicas", "value": 0}
    return patch_seen(DEPLOYMENT, live, [*note, shrink], f"its template was taken over; it had {size} pods")


def scaled_up_again(spec: Spec, live: Object | None) -> str | None:
    """The sentence for an event if somebody scaled the Deployment up after we scaled it down; None if nobody did."""
    if live is None or not wants_scale_down(spec) or _note(live) is None or not replicas_of(live):
        return None
    return (
        f"Deployment {name_in(live)} was scaled up again to {replicas_of(live)} by somebody else and is left alone: its pods "
        f"serve beside ours. Leave replicas out of its manifest, or set workload.deploymentRef.scaleDown: Never; to have it "
        f"scaled down again, remove its annotation {SCALED_ANNOTATION}"
    )


def restore(rollout: Mapping[str, Any], live: Object) -> list[Action]:
    """Give a Deployment the size back that this ModelRollout took; nothing if it took none, or somebody else did so."""
    size = scaled_from(rollout, live)
    if not size or deleting(live) or replicas_of(live):
        return []
    grow = {"op": "replace", "path": "/spec/replicas", "value": size}
    return [patch_seen(DEPLOYMENT, live, [grow], f"the ModelRollout goes; it had {size} pods")]


def forget(rollout: Mapping[str, Any], live: Object) -> list[Action]:
    """Take our note off a Deployment."""
    if scaled_from(rollout, live) is None or deleting(live):
        return []
    remove = {"op": "remove", "path": f"/metadata/annotations/{_POINTER}"}
    return [patch_seen(DEPLOYMENT, live, [remove], "the ModelRollout goes")]


def ready_again(live: Object) -> bool:
    """Whether a Deployment serves with all of its pods, or is not expected to."""
    if deleting(live):
        return True
    status = live.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(live["metadata"].get("generation") or 0)
    return seen and int(status.get("readyReplicas") or 0) >= replicas_of(live)


def scaled_from(rollout: Mapping[str, Any], live: Mapping[str, Any]) -> int | None:
    """The size before this ModelRollout scaled the Deployment to 0; None if it did not."""
    by, _, size = (_note(live) or "").partition("/")
    return int(size) if by == name_in(rollout) and size.isdecimal() else None


def _note(live: Mapping[str, Any]) -> str | None:
    return (live["metadata"].get("annotations") or {}).get(SCALED_ANNOTATION)
