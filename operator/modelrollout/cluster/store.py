"""The local picture of the cluster, so that a decision costs no request.

Watches fill it. It exists because `kopf.index` starts in quadratic time, and because a watch may be behind what we
wrote ourselves: an object older than our last write of it is refused, or a decision would be made on the past. A kind
that was listed anew replaces what is here, which evicts what vanished while its watch was down.

Every change answers with the keys of the rollouts that it concerns; they go into the work queue. Looking up the
children of one rollout costs time by the number of its children only.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from modelrollout.cluster.kinds import (
    DEPLOYMENT,
    ENDPOINT_SLICE,
    MODEL_ROLLOUT,
    POD,
    ROLLOUT_LABEL,
    ROUTES,
    SERVICE,
    SERVICE_NAME_LABEL,
    STEERED_BY_ANNOTATION,
    Kind,
    Object,
    kind_of,
)
from modelrollout.cluster.managed_fields import slim_managed_fields
from modelrollout.cluster.pods import Pod, strip

_ROUTES = frozenset(kind.kind for kind in ROUTES)
# Of this many deleted objects it is known that they are; an answer is never so late that more went meanwhile.
GRAVES = 4096

K = TypeVar("K")
V = TypeVar("V")


class Key(NamedTuple):
    """A ModelRollout."""

    namespace: str
    name: str


class Ref(NamedTuple):
    """Any object."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Children:
    """What belongs to one rollout, by label or by owner reference, each kind sorted by name."""

    pods: tuple[Pod, ...] = ()
    objects: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)

    def of(self, kind: Kind) -> tuple[Object, ...]:
        """Children of a kind other than Pod."""
        return self.objects.get(kind.kind, ())


@dataclass(frozen=True, slots=True)
class _Entry:
    """One object, with what its index entries were made from."""

    version: str
    uid: str
    rollout: Key | None
    owners: tuple[str, ...]
    service: Ref | None
    obj: Object
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class _Grave:
    """How an object went: at which version, and whether it was seen by its label until then."""

    version: str
    labelled: bool


class Store:
    """Objects by kind, namespace and name. Nothing handed out may be changed."""

    def __init__(self) -> None:
        self._entries: dict[Ref, _Entry] = {}
        self._by_kind: defaultdict[str, set[Ref]] = defaultdict(set)
        self._by_rollout: defaultdict[Key, set[Ref]] = defaultdict(set)
        self._by_owner: defaultdict[str, set[Ref]] = defaultdict(set)
        self._slices: defaultdict[Ref, set[Ref]] = defaultdict(set)
        self._watchers: defaultdict[Ref, set[Key]] = defaultdict(set)
        self._references: dict[Key, frozenset[Ref]] = {}
        self._listed: dict[tuple[str, str | None], str] = {}
        # By uid, how an object went. The answer to a write of ours may come after the word that the object is gone, and must not
        # bring it back; one that only lost our label may come back with a newer version, or without the label.
        self._gone: OrderedDict[str, _Grave] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, obj: Object) -> frozenset[Key]:
        """Take an object from a watch; the rollouts it concerns, none if it is old news."""
        ref = ref_of(obj)
        present = self._entries.get(ref)
        grave = self._gone.get(_uid(obj)) if present is None else None
        known = present or grave
        old = known is not None and not _newer(_version(obj), than=known.version)
        # A watch by label says of what only lost it that it went; one by name knows better.
        if old and (grave is None or not grave.labelled or not _lost_label(obj)):
            return frozenset()
        return self._set(ref, obj)

    def wrote(self, obj: Object) -> frozenset[Key]:
        """Take the answer to a write of ours; from now on nothing older is accepted."""
        return self.put(obj)

    def remove(self, obj: Object) -> frozenset[Key]:
        """Take a deletion from a watch; ignored if the name has been taken by a newer object meanwhile, or if the object only
        lost the label that it was watched by and another watch sees it."""
        ref = ref_of(obj)
        present = self._entries.get(ref)
        labelled = _labelled(obj)
        # What is gone has no later version.
        stands = (
            present is not None
            and present.uid == _uid(obj)
            and not _newer(_version(obj), than=present.version)
        )
        if labelled and stands and present is not None and present.rollout is None:
            return frozenset()
        self._bury(_uid(obj), _version(obj), labelled=labelled)
        if present is None:
            return frozenset()
        other = _uid(obj) != present.uid
        if other and _newer(present.version, than=_version(obj)):
            return frozenset()
        return self._evict(ref)

    def resync(
        self, kind: Kind, items: Iterable[Object], resource_version: str, *, namespace: str | None = None
    ) -> frozenset[Key]:
        """Make a whole kind (in one namespace, or in all) what a LIST says; the rollouts for which that was news.

        What we wrote after the state that was listed stays, and so do objects that other watches see (`refer`). A LIST older than the one before it means that the
        cluster was restored from a backup: then everything is what the LIST says, version numbers or not.
        """
        scope = (kind.kind, namespace)
        before = self._listed.get(scope)
        restored = before is not None and _newer(before, than=resource_version) and before != resource_version
        self._listed[scope] = resource_version
        if restored:
            self._gone.clear()
        affected: set[Key] = set()
        seen: set[Ref] = set()
        for obj in items:
            ref = ref_of(obj)
            seen.add(ref)
            present = self._entries.get(ref)
            unchanged = present is not None and present.version == _version(obj)
            if restored and not unchanged:
                affected |= self._set(ref, obj)
            else:
                affected |= self.put(obj)
        for ref in self._in_scope(kind, namespace) - seen:
            if self._entries[ref].rollout is None and kind not in (MODEL_ROLLOUT, *ROUTES):
                continue
            if restored or not _newer(self._entries[ref].version, than=resource_version):
                labelled = kind not in (MODEL_ROLLOUT, *ROUTES)  # these are watched whatever their labels
                self._bury(self._entries[ref].uid, resource_version, labelled=labelled)
                affected |= self._evict(ref)
        return frozenset(affected)

    def _bury(self, uid: str, version: str, *, labelled: bool) -> None:
        if uid:
            self._gone[uid] = _Grave(version, labelled)
        if len(self._gone) > GRAVES:
            self._gone.popitem(last=False)

    def refer(self, key: Key, references: Collection[Ref]) -> None:
        """Say which objects that are not its children a rollout depends on: its route, the user's own Services.

        Replaces what was said before; changes of these objects, and of the EndpointSlices of such a Service, then
        concern the rollout.
        """
        for ref in self._references.pop(key, frozenset()):
            _discard(self._watchers, ref, key)
        if references:
            self._references[key] = frozenset(references)
        for ref in references:
            self._watchers[ref].add(key)

    def referred(self, key: Key) -> list[Object]:
        """The objects that a rollout was said to depend on, as far as they exist; Pods are left out."""
        refs = sorted(self._references.get(key, ()))
        return [self._entries[ref].obj for ref in refs if ref in self._entries and ref.kind != POD.kind]

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """An object of a kind other than Pod."""
        entry = self._entries.get(Ref(kind.kind, namespace or "", name))
        return entry.obj if entry else None

    def pod(self, namespace: str, name: str) -> Pod | None:
        entry = self._entries.get(Ref(POD.kind, namespace, name))
        return entry.pod if entry else None

    def pods_owned_by(self, uid: str) -> list[Pod]:
        """The pods of an owner that is no rollout, such as a Job, as far as somebody watches them."""
        found = (self._entries[ref].pod for ref in sorted(self._by_owner.get(uid, ())))
        return [pod for pod in found if pod is not None]

    def rollouts(self) -> list[Key]:
        """Every ModelRollout that is here."""
        return sorted(Key(ref.namespace, ref.name) for ref in self._by_kind.get(MODEL_ROLLOUT.kind, ()))

    def count(self, kind: Kind) -> int:
        return len(self._by_kind.get(kind.kind, ()))

    def referrers(self, kind: Kind, namespace: str, name: str) -> frozenset[Key]:
        """The rollouts that `refer` to an object: two that name the same route find each other by it."""
        return frozenset(self._watchers.get(Ref(kind.kind, namespace, name), ()))

    def children(self, namespace: str, rollout: str) -> Children:
        """What carries the rollout's label or its owner reference, the EndpointSlices of those Services, and the routes
        that it steers."""
        key = Key(namespace, rollout)
        refs = set(self._by_rollout.get(key, ()))
        parent = self._entries.get(Ref(MODEL_ROLLOUT.kind, namespace, rollout))
        if parent is not None and parent.uid:
            refs |= self._by_owner.get(parent.uid, set())
        for ref in [ref for ref in refs if ref.kind == SERVICE.kind]:
            refs |= self._slices.get(ref, set())
        pods: list[Pod] = []
        objects: defaultdict[str, list[Object]] = defaultdict(list)
        for ref in sorted(refs):
            entry = self._entries[ref]
            if entry.pod is not None:
                pods.append(entry.pod)
            else:
                objects[ref.kind].append(entry.obj)
        return Children(tuple(pods), {kind: tuple(found) for kind, found in objects.items()})

    def endpoint_slices(self, namespace: str, service: str) -> list[Object]:
        """The EndpointSlices of a Service, ours or the user's, sorted by name."""
        refs = self._slices.get(Ref(SERVICE.kind, namespace, service), ())
        return [self._entries[ref].obj for ref in sorted(refs)]

    def keys_of(self, obj: Mapping[str, Any]) -> frozenset[Key]:
        """The rollouts that an object concerns, whether it is in the store or not."""
        return self._concerned(ref_of(obj), _entry(dict(obj)))

    def _concerned(self, ref: Ref, entry: _Entry) -> frozenset[Key]:
        keys = set(self._watchers.get(ref, ()))
        if ref.kind == MODEL_ROLLOUT.kind:
            keys.add(Key(ref.namespace, ref.name))
        if entry.rollout is not None:
            keys.add(entry.rollout)
        keys |= self._owning(ref.namespace, entry)
        if entry.service is not None:
            keys |= self._watchers.get(entry.service, set())
            service = self._entries.get(entry.service)
            if service is not None:
                keys |= {service.rollout} if service.rollout else set()
                keys |= self._owning(ref.namespace, service)
        return frozenset(keys)

    def _owning(self, namespace: str, entry: _Entry) -> set[Key]:
        """Rollouts named by owner references: a child whose label was removed still belongs to its rollout."""
        owners = entry.obj.get("metadata", {}).get("ownerReferences") or ()
        return {Key(namespace, str(o["name"])) for o in owners if o.get("kind") == MODEL_ROLLOUT.kind}

    def _set(self, ref: Ref, obj: Object) -> frozenset[Key]:
        affected = self._evict(ref)
        entry = self._entries[ref] = _entry(obj)
        self._by_kind[ref.kind].add(ref)
        if entry.rollout is not None:
            self._by_rollout[entry.rollout].add(ref)
        for owner in entry.owners:
            self._by_owner[owner].add(ref)
        if entry.service is not None:
            self._slices[entry.service].add(ref)
        return affected | self._concerned(ref, entry)

    def _evict(self, ref: Ref) -> frozenset[Key]:
        entry = self._entries.get(ref)
        if entry is None:
            return frozenset()
        affected = self._concerned(ref, entry)
        del self._entries[ref]
        _discard(self._by_kind, ref.kind, ref)
        if entry.rollout is not None:
            _discard(self._by_rollout, entry.rollout, ref)
        for owner in entry.owners:
            _discard(self._by_owner, owner, ref)
        if entry.service is not None:
            _discard(self._slices, entry.service, ref)
        return affected

    def _in_scope(self, kind: Kind, namespace: str | None) -> set[Ref]:
        refs = self._by_kind.get(kind.kind, set())
        return {ref for ref in refs if namespace is None or ref.namespace == namespace}


def ref_of(obj: Mapping[str, Any]) -> Ref:
    metadata = obj["metadata"]
    return Ref(kind_of(obj).kind, str(metadata.get("namespace") or ""), str(metadata["name"]))


def _entry(obj: Object) -> _Entry:
    metadata = obj["metadata"]
    namespace = str(metadata.get("namespace") or "")
    labels = metadata.get("labels") or {}
    kind = str(obj["kind"])
    rollout = labels.get(ROLLOUT_LABEL)
    if rollout is None and kind in _ROUTES:
        rollout = (metadata.get("annotations") or {}).get(STEERED_BY_ANNOTATION)
    service = labels.get(SERVICE_NAME_LABEL) if kind == ENDPOINT_SLICE.kind else None
    owners = metadata.get("ownerReferences") or ()
    pod = strip(obj) if kind == POD.kind else None
    return _Entry(
        version=_version(obj),
        uid=_uid(obj),
        rollout=Key(namespace, str(rollout)) if rollout else None,
        owners=tuple(str(owner["uid"]) for owner in owners if owner.get("uid")),
        service=Ref(SERVICE.kind, namespace, str(service)) if service else None,
        obj={} if pod is not None else _slim(obj, kind),
        pod=pod,
    )


def _slim(obj: Object, kind: str) -> Object:
    """With managedFields only where somebody else's writes are told from ours, and there without their bulk."""
    entries = obj["metadata"].get("managedFields")
    if entries is None or kind in _ROUTES:
        return obj
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if kind in (DEPLOYMENT.kind, SERVICE.kind):
        metadata["managedFields"] = slim_managed_fields(entries)
    return obj | {"metadata": metadata}


def _uid(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"].get("uid") or "")


def _version(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"].get("resourceVersion") or "")


def _labelled(obj: Mapping[str, Any]) -> bool:
    return ROLLOUT_LABEL in (obj["metadata"].get("labels") or {})


def _lost_label(obj: Mapping[str, Any]) -> bool:
    """Whether an object that went by its label is there without it."""
    return not _labelled(obj) and not obj["metadata"].get("deletionTimestamp")


def _newer(version: str, *, than: str) -> bool:
    """Whether a resourceVersion is newer. Where they are not numbers, any other one is taken for newer."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than or not version


def _discard(index: defaultdict[K, set[V]], key: K, value: V) -> None:
    """Remove a value from an index, and the key with its last value: rollouts come and go for years."""
    values = index.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del index[key]
