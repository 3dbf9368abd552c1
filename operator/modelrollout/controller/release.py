"""The finalizer: what is the user's and was changed stands as the user had it before the ModelRollout is gone.

Only a ModelRollout that works in something of the user's has one: in a route, or in the size of a Deployment. It never
stands in the way for long: what is being deleted itself, or may not be written any more, is left as it is. What is ours
goes by owner references.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from modelrollout.api.conditions import EventReason
from modelrollout.api.spec import GROUP, Spec
from modelrollout.cluster.actions import Action, Done, execute, patch_seen
from modelrollout.cluster.errors import ClusterError, Forbidden, Invalid, NotFound
from modelrollout.cluster.kinds import DEPLOYMENT, MODEL_ROLLOUT, Object
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.times import seconds_of
from modelrollout.traffic import borrows, restorations
from modelrollout.workloads import Children
from modelrollout.workloads.takeover import forget, ready_again, restore, scaled_from, wants_scale_down

FINALIZER = f"{GROUP}/restore"
_ALL = (FINALIZER, f"{GROUP}/restore-deployment")  # former versions had one more, for Deployments
LONGEST = 600.0  # seconds from the deletion after which it is let go, ready or not
LOOK_AGAIN = 2.0


def hold_actions(rollout: Mapping[str, Any], spec: Spec) -> list[Action]:
    """Put the finalizer on, before anything of the user's is changed. It stays: what was changed may outlive a spec."""
    finalizers = _finalizers(rollout)
    if FINALIZER in finalizers or not (borrows(spec) or wants_scale_down(spec)):
        return []
    return [_finalized(rollout, [*finalizers, FINALIZER], "hold until what is the user's is restored")]


async def release(
    cluster: Cluster,
    rollout: Object,
    children: Callable[[], Children],
    *,
    done: Callable[[Done], None],
    now: Callable[[], float],
) -> float | None:
    """Put back what was changed; the seconds after which to look again, or None once the ModelRollout is let go.

    `done` hears of routes that were written, and `children` must know of them then. A write that is refused is given up
    with an event: nothing may hold up the deletion of a namespace. Raises the errors of `cluster.errors` that pass with time.
    """
    finalizers = _finalizers(rollout)
    if not set(_ALL).intersection(finalizers):
        return None
    refused: list[ClusterError] = []
    waits = await _try(_restore_routes(cluster, rollout, children, done), refused)
    waits = await _try(_restore_sizes(cluster, rollout), refused) or waits
    if waits and now() < (seconds_of(rollout["metadata"].get("deletionTimestamp")) or 0.0) + LONGEST:
        return LOOK_AGAIN
    await _try(_forget(cluster, rollout), refused)
    for error in refused:
        reason = EventReason.NOT_RESTORED
        await cluster.event(rollout, type=reason.type, reason=reason.value, note=error.message)
    rest = [one for one in finalizers if one not in _ALL]
    await execute(cluster, [_finalized(rollout, rest, "what was changed is put back")])
    return None


async def _try(step: Awaitable[bool], refused: list[ClusterError]) -> bool:
    """Whether a step has to be waited for; not if it is refused, or there is nothing any more to restore."""
    try:
        return await step
    except NotFound:
        return False
    except (Forbidden, Invalid) as error:
        refused.append(error)
        return False


async def _restore_routes(
    cluster: Cluster, rollout: Object, children: Callable[[], Children], done: Callable[[Done], None]
) -> bool:
    for _ in range(2):  # what the user wrote, and then that it is the user's
        await execute(cluster, restorations(rollout, children()), done=done)
    return bool(restorations(rollout, children()))


async def _restore_sizes(cluster: Cluster, rollout: Object) -> bool:
    taken = await _taken(cluster, rollout)
    actions = [action for live in taken for action in restore(rollout, live)]
    await execute(cluster, actions)
    return bool(actions) or not all(map(ready_again, taken))


async def _forget(cluster: Cluster, rollout: Object) -> bool:
    for live in await _taken(cluster, rollout):
        await execute(cluster, forget(rollout, live))
    return False


async def _taken(cluster: Cluster, rollout: Object) -> list[Object]:
    """Deployments that were scaled down: the spec may not name them any more."""
    found, _ = await cluster.list(DEPLOYMENT, rollout["metadata"]["namespace"])
    return [live for live in found if scaled_from(rollout, live) is not None]


def _finalizers(rollout: Mapping[str, Any]) -> list[str]:
    return list(rollout["metadata"].get("finalizers") or ())


def _finalized(rollout: Mapping[str, Any], wanted: Sequence[str], why: str) -> Action:
    change = {"op": "add", "path": "/metadata/finalizers", "value": list(wanted)}
    return patch_seen(MODEL_ROLLOUT, rollout, [change], why)
