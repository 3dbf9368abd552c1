"""Writes as values: pure code says what is to be written, `execute` writes it.

So the rules of what to write are table tests without a cluster, and whatever writes goes through one place that lets
nobody overwrite what was not seen: an existing object is only changed at the resourceVersion that was looked at, a new
one only where nothing of its name stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelrollout.cluster.errors import AlreadyExists, Conflict
from modelrollout.cluster.kinds import ROLLOUT_LABEL, Kind, Object, kind_of, name_of
from modelrollout.cluster.port import Cluster


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of what we own of an object that was seen at `resource_version`, with its uid in the metadata.

    `drift` says who changed what, if somebody else did: "spec.replicas was changed by kubectl"; empty if the change is
    our own.
    """

    obj: Object
    resource_version: str
    why: str
    drift: str = ""


@dataclass(frozen=True, slots=True)
class Create:
    """Server-side apply of an object that does not exist yet."""

    obj: Object
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly the object that was seen."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    resource_version: str
    why: str


@dataclass(frozen=True, slots=True)
class JsonPatch:
    """A JSON patch (RFC 6902); its first operations are `test`s of what was seen. `drift` as in Apply."""

    kind: Kind
    namespace: str
    name: str
    operations: tuple[Mapping[str, Any], ...]
    why: str
    drift: str = ""


Action: TypeAlias = Apply | Create | Delete | JsonPatch


def patch_seen(
    kind: Kind, live: Mapping[str, Any], operations: Iterable[Mapping[str, Any]], why: str, drift: str = ""
) -> JsonPatch:
    """A JSON patch of exactly the object that was seen: of another or a newer one it is a conflict."""
    metadata = live["metadata"]
    seen = [
        {"op": "test", "path": f"/metadata/{field}", "value": metadata[field]}
        for field in ("uid", "resourceVersion")
    ]
    return JsonPatch(kind, metadata["namespace"], metadata["name"], (*seen, *operations), why, drift)


class NameTaken(AlreadyExists):
    """An object of a name that we need is there, and it is not ours: it is never adopted. `obj` is that object."""

    def __init__(self, message: str, obj: Object) -> None:
        super().__init__(message, status=409, reason="AlreadyExists")
        self.obj = obj


@dataclass(frozen=True, slots=True)
class Done:
    """An action that was carried out. `obj` is the answer (None after a deletion). `changed` is false where the API
    server found nothing to change."""

    action: Action
    obj: Object | None
    changed: bool


def _ignore(_: Done) -> None:
    """No one listens."""


async def execute(
    port: Cluster, actions: Iterable[Action], *, done: Callable[[Done], None] = _ignore
) -> list[Done]:
    """Carry out the actions in their order, and stop at the first that fails.

    `done` hears of each as soon as it is written, so that what was written before a failure is known too. Raises the
    errors of `errors.py`; NameTaken if a new object's name is taken by somebody else's.
    """
    results: list[Done] = []
    for action in actions:
        result = await _execute(port, action)
        results.append(result)
        done(result)
    return results


async def _execute(port: Cluster, action: Action) -> Done:
    match action:
        case Create():
            return await _create(port, action)
        case Apply():
            answer = await port.apply(action.obj, resource_version=action.resource_version)
            changed = answer["metadata"].get("resourceVersion") != action.resource_version
            return Done(action, answer, changed)
        case JsonPatch():
            answer = await port.patch_json(action.kind, action.namespace, action.name, action.operations)
            return Done(action, answer, True)
        case Delete():
            gone = await port.delete(
                action.kind,
                action.namespace,
                action.name,
                uid=action.uid,
                resource_version=action.resource_version,
            )
            return Done(action, None, gone)


async def _create(port: Cluster, action: Create) -> Done:
    """Create by server-side apply: only then are fields that we give up later removed from the object.

    Apply also writes over an object that exists, and a POST would record another kind of ownership; so look first. In
    the moment between, `force=False` keeps us from taking fields that somebody else has just set. What is there and ours was
    not seen, so nothing can be said of its fields: Conflict, to look at it anew.
    """
    kind, (namespace, name) = kind_of(action.obj), name_of(action.obj)
    present = await port.get(kind, namespace, name)
    if present is None:
        return Done(action, await port.apply(action.obj, force=False), True)
    if not _ours(present, action.obj):
        raise NameTaken(
            f"{kind.kind} {name} exists and does not belong to this ModelRollout: delete or rename it",
            present,
        )
    why = f"create {kind.kind} {namespace}/{name}: it is there already, and ours"
    labels = present["metadata"].get("labels") or {}
    wanted = labels | action.obj["metadata"]["labels"]
    if wanted != labels:
        # A watch by label took it for deleted, and would for ever.
        why += "; its labels are put back"
        operation = {"op": "add", "path": "/metadata/labels", "value": wanted}
        await _execute(port, patch_seen(kind, present, [operation], why))
    raise Conflict(why, status=409)


def _ours(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the store is only behind: the object is ours, or was and will be taken back once the store knows it."""
    owner, controller = _controller(present), _controller(wanted)
    if owner is not None and controller is not None:
        return owner[:2] == controller[:2]
    labels = present["metadata"].get("labels") or {}
    return bool(labels.get(ROLLOUT_LABEL) == wanted["metadata"]["labels"].get(ROLLOUT_LABEL))


def _controller(obj: Mapping[str, Any]) -> tuple[str, str, str] | None:
    owners = obj["metadata"].get("ownerReferences") or ()
    return next(
        ((str(o["kind"]), str(o["name"]), str(o["uid"])) for o in owners if o.get("controller")), None
    )
