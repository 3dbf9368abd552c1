"""The finalizer: what is the user's and was changed for a rollout stands as the user wrote it before the ModelRollout is gone.

Only a ModelRollout that works in something of the user's has one. It never stands in the way for long: what is being
deleted itself, or may not be written any more, is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..api.spec import Spec
from ..cluster.actions import Action, JsonPatch
from ..cluster.kinds import MODEL_ROLLOUT
from ..traffic import borrows, restorations
from ..workloads import Children

FINALIZER = "modelrollout.dev/restore"


def hold_actions(rollout: Mapping[str, Any], spec: Spec) -> list[Action]:
    """Put the finalizer on, before anything of the user's is changed."""
    finalizers = _finalizers(rollout)
    if not borrows(spec) or FINALIZER in finalizers:
        return []
    add: tuple[dict[str, Any], ...] = ({"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER},)
    if not finalizers:
        add = ({"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]},)
    return [_patch(rollout, add, "hold until the user's route is restored")]


def let_go_actions(rollout: Mapping[str, Any], spec: Spec, children: Children) -> list[Action]:
    """Take the finalizer off a ModelRollout that no longer works in anything of the user's."""
    if borrows(spec) or restorations(rollout, children):
        return []
    return _removal(rollout)


def release_actions(rollout: Mapping[str, Any], children: Children, *, refused: bool = False) -> list[Action]:
    """What is left to do before a ModelRollout that is being deleted may go: restore, and when that stands, let go.

    `refused`: the restoration may not or can't be written, so nothing is waited for.
    """
    if FINALIZER not in _finalizers(rollout):
        return []
    restore = [] if refused else restorations(rollout, children)
    return restore or _removal(rollout)


def _removal(rollout: Mapping[str, Any]) -> list[Action]:
    finalizers = _finalizers(rollout)
    if FINALIZER not in finalizers:
        return []
    path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
    remove = ({"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path})
    return [_patch(rollout, remove, "nothing of the user's is changed any more")]


def _finalizers(rollout: Mapping[str, Any]) -> list[str]:
    return list(rollout["metadata"].get("finalizers") or ())


def _patch(rollout: Mapping[str, Any], operations: Iterable[Mapping[str, Any]], why: str) -> JsonPatch:
    metadata = rollout["metadata"]
    guards = [
        {"op": "test", "path": f"/metadata/{field}", "value": metadata[field]}
        for field in ("uid", "resourceVersion")
    ]
    return JsonPatch(MODEL_ROLLOUT, metadata["namespace"], metadata["name"], (*guards, *operations), why)
