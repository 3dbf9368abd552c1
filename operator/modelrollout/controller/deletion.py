"""The end of a ModelRollout that changed objects of the user's: they get back what they had, then it is let go.

What is ours goes by owner references, without a finalizer. Only before the first write to an object that is not ours a
finalizer is put on the ModelRollout, and only as long as it holds is anything put back.
"""

from __future__ import annotations

from collections.abc import Callable

from ..api.conditions import EventReason
from ..api.spec import GROUP
from ..cluster.actions import JsonPatch, execute
from ..cluster.errors import Forbidden, Invalid
from ..cluster.kinds import DEPLOYMENT, MODEL_ROLLOUT, Object
from ..cluster.port import Cluster
from ..cluster.times import seconds_of
from ..workloads.takeover import forget, ready_again, restore, scaled_from

FINALIZER = f"{GROUP}/restore-deployment"
LONGEST = 600.0  # seconds from the deletion after which it is let go, ready or not
LOOK_AGAIN = 2.0


def finalizes(rollout: Object) -> bool:
    """Whether the ModelRollout has our finalizer."""
    return FINALIZER in (rollout["metadata"].get("finalizers") or ())


def add_finalizer(rollout: Object) -> JsonPatch:
    """To be written, and answered, before the first write to an object of the user's."""
    present = list(rollout["metadata"].get("finalizers") or ())
    return _finalizers(rollout, [*present, FINALIZER], "objects of the user's are about to be changed")


def _finalizers(rollout: Object, wanted: list[str], why: str) -> JsonPatch:
    metadata = rollout["metadata"]
    seen = {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
    change = {"op": "add", "path": "/metadata/finalizers", "value": wanted}
    return JsonPatch(MODEL_ROLLOUT, metadata["namespace"], metadata["name"], (seen, change), why)


async def finish(cluster: Cluster, rollout: Object, now: Callable[[], float]) -> float | None:
    """Put back what was changed; the seconds after which to look again, or None once the ModelRollout is let go.

    A write that is refused lets it go at once, with an event: nothing may hold up the deletion of a namespace.
    Raises the errors of `cluster.errors` that pass with time.
    """
    if not finalizes(rollout):
        return None
    since = seconds_of(rollout["metadata"].get("deletionTimestamp")) or 0.0
    try:
        if await _restore(cluster, rollout) and now() < since + LONGEST:
            return LOOK_AGAIN
        await _forget(cluster, rollout)
    except (Forbidden, Invalid) as error:
        reason = EventReason.NOT_RESTORED
        await cluster.event(rollout, type=reason.type, reason=reason.value, note=error.message)
    rest = [one for one in rollout["metadata"]["finalizers"] if one != FINALIZER]
    await execute(cluster, [_finalizers(rollout, rest, "what was changed is put back")])
    return None


async def _restore(cluster: Cluster, rollout: Object) -> bool:
    """Give Deployments their size back; whether their pods are still waited for."""
    taken = await _taken(cluster, rollout)
    actions = [action for live in taken for action in restore(rollout, live)]
    await execute(cluster, actions)
    return bool(actions) or not all(ready_again(live) for live in taken)


async def _forget(cluster: Cluster, rollout: Object) -> None:
    for live in await _taken(cluster, rollout):
        await execute(cluster, forget(rollout, live))


async def _taken(cluster: Cluster, rollout: Object) -> list[Object]:
    found, _ = await cluster.list(DEPLOYMENT, rollout["metadata"]["namespace"])
    return [live for live in found if scaled_from(rollout, live) is not None]
