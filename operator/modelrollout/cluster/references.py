"""Watches of objects that rollouts name and that do not carry our label: the user's Deployment, Services, configuration.

Kopf watches what has our label, in one connection per kind. What users keep has not, and watching whole kinds for the sake
of a few names would read every Secret of the cluster into memory. So each name, or selector, that some rollout needs is
watched by itself, for as long as one needs it. What is seen goes into the store; of ConfigMaps and Secrets only a hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from modelrollout.cluster.errors import ClusterError, Forbidden, KindNotServed, Unavailable
from modelrollout.cluster.kinds import CONFIG_MAP, INFERENCE_POOL, ROLLOUT_LABEL, SECRET, Kind, Object
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.store import Key, Ref, Store, ref_of

_log = logging.getLogger(__name__)

LISTED_WITHIN = 10.0  # seconds that a round waits for the first listing
LEAST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two listings of one interest
WATCHES = 8  # that go on from one listing, for about an hour: after a restore from a backup a watch says nothing for long
UNSERVED_PAUSE = 10.0  # the same, of a kind that the API server does not have: its CRD may be installed
_NEVER_OURS = frozenset(
    {CONFIG_MAP.kind, SECRET.kind, INFERENCE_POOL.kind}
)  # Kopf brings none, whatever the labels
DATA_HASH = "dataHash"
"""Field of a ConfigMap or Secret in the store, in place of its content."""


@dataclass(frozen=True, slots=True)
class Interest:
    """Objects that a rollout wants to see: the one of a name, or those that a label selector matches."""

    kind: Kind
    namespace: str
    name: str | None = None
    selector: str | None = None


@dataclass(slots=True)
class _Watch:
    """One interest that is followed."""

    task: asyncio.Task[None] | None = None
    keys: set[Key] = field(default_factory=set)
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    error: ClusterError | None = None  # why it was never listed
    missed: bool = False  # somebody went on without it, and is told when it is there
    known: dict[Ref, Object] = field(default_factory=dict)


class References:
    """What all rollouts need besides their children. `changed` is told the rollouts for which something is news."""

    def __init__(self, cluster: Cluster, store: Store, changed: Callable[[Collection[Key]], None]) -> None:
        self._cluster = cluster
        self._store = store
        self._changed = changed
        self._watches: dict[Interest, _Watch] = {}
        self._needs: dict[Key, frozenset[Interest]] = {}
        self._unserved: set[str] = set()

    def __len__(self) -> int:
        return len(self._watches)

    async def need(self, key: Key, interests: Collection[Interest]) -> None:
        """Say what a rollout needs to see, in place of what it said before; returns once all of it is in the store.

        Raises Forbidden or Unavailable if that can't be: then the rollout is told when it can, and asking again does not wait
        any more. A kind that is not served has no objects.
        """
        wanted = frozenset(interests)
        before = self._needs.get(key, frozenset())
        if wanted:
            self._needs[key] = wanted
        else:
            self._needs.pop(key, None)
        for interest in wanted:
            self._join(key, interest)
        for interest in before - wanted:
            self._leave(key, interest)
        watches = [(interest.kind.kind, self._watches[interest]) for interest in wanted]
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTED_WITHIN):
                for _, watch in watches:
                    if not watch.missed:
                        await watch.listed.wait()
        for _, watch in watches:
            watch.missed = not watch.listed.is_set()
        for kind, watch in watches:
            if watch.missed:
                raise watch.error or Unavailable(f"list {kind}: no answer within {LISTED_WITHIN:g} s")

    def listed(self, interest: Interest) -> bool:
        """Whether what an interest matches is in the store."""
        watch = self._watches.get(interest)
        return watch is not None and watch.listed.is_set()

    def forget(self, key: Key) -> None:
        """The rollout is gone."""
        for interest in self._needs.pop(key, frozenset()):
            self._leave(key, interest)

    @property
    def unserved(self) -> frozenset[str]:
        """Kinds that are needed and that the API server does not have, as it said last."""
        return frozenset(self._unserved)

    def names(self, interest: Interest) -> frozenset[str]:
        """Names of the objects that an interest matches now."""
        watch = self._watches.get(interest)
        return frozenset(ref.name for ref in watch.known) if watch else frozenset()

    def refresh(self) -> None:
        """What is known is too old: rounds wait until it has been listed anew."""
        for interest, watch in self._watches.items():
            if watch.task is not None:
                watch.task.cancel()
            watch.listed.clear()
            watch.task = asyncio.create_task(self._follow(interest, watch))
            self._tell(watch)

    async def close(self) -> None:
        """End all watches."""
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        self._watches.clear()
        self._needs.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, key: Key, interest: Interest) -> None:
        watch = self._watches.get(interest)
        if watch is None:
            watch = self._watches[interest] = _Watch()
            watch.task = asyncio.create_task(self._follow(interest, watch))
        watch.keys.add(key)

    def _leave(self, key: Key, interest: Interest) -> None:
        watch = self._watches.get(interest)
        if watch is None:
            return
        watch.keys.discard(key)
        if not watch.keys:
            del self._watches[interest]
            if watch.task is not None:
                watch.task.cancel()
            for ref in list(watch.known):
                self._drop(watch, ref)

    async def _follow(self, interest: Interest, watch: _Watch) -> None:
        pause, version, watches = LEAST_PAUSE, "", 0
        while True:
            before, watches = watches, 0  # whatever fails begins with a listing again
            try:
                if before % WATCHES == 0:
                    version = await self._list(interest, watch)
                version = await self._watch(interest, watch, version)
                pause, watches = LEAST_PAUSE, before + 1
            except KindNotServed:
                self._unserved.add(interest.kind.kind)
                self._replace(watch, [])
                pause = UNSERVED_PAUSE
            except ClusterError as error:
                watch.error = error
                gone = error.status == 410
                level = logging.DEBUG if gone else logging.WARNING
                _log.log(level, "%s can't be watched, it is tried again: %s", interest.kind.kind, error)
                pause = LEAST_PAUSE if gone else min(LONGEST_PAUSE, pause * 2)
                if isinstance(error, Forbidden):
                    pause = LONGEST_PAUSE
            except Exception:  # noqa: BLE001 - a watch that died without a word would leave the store as it was
                _log.exception("the watch of %s failed", interest)
                pause = LONGEST_PAUSE
            await asyncio.sleep(pause)

    async def _list(self, interest: Interest, watch: _Watch) -> str:
        """Take what there is; the resourceVersion of that state."""
        items, version = await self._cluster.list(
            interest.kind, interest.namespace, interest.selector, name=interest.name
        )
        appeared = interest.kind.kind in self._unserved
        self._unserved.discard(interest.kind.kind)
        self._replace(watch, items)
        if appeared:
            self._tell(watch)
        return version

    async def _watch(self, interest: Interest, watch: _Watch, version: str) -> str:
        """Take what changes after a state; the resourceVersion of the one at which the server ended the watch."""
        events = self._cluster.watch(
            interest.kind,
            interest.namespace,
            label_selector=interest.selector,
            name=interest.name,
            resource_version=version,
        )
        async for what, obj in events:
            version = str(obj["metadata"]["resourceVersion"])
            if what == "DELETED":
                self._drop(watch, ref_of(obj))
                self._tell(watch)
            elif what != "BOOKMARK":
                self._take(watch, obj)
                self._tell(watch)
        return version

    def _replace(self, watch: _Watch, items: Collection[Object]) -> None:
        """Make what is known of an interest what a LIST says."""
        before = {ref: obj["metadata"].get("resourceVersion") for ref, obj in watch.known.items()}
        for obj in items:
            self._take(watch, obj)
        for ref in set(before) - {ref_of(obj) for obj in items}:
            self._drop(watch, ref)
        first = not watch.listed.is_set()
        watch.listed.set()
        after = {ref: obj["metadata"].get("resourceVersion") for ref, obj in watch.known.items()}
        if watch.missed or (not first and before != after):
            watch.missed = False
            self._tell(watch)

    def _take(self, watch: _Watch, obj: Object) -> None:
        metadata = obj["metadata"]
        identity = {key: obj[key] for key in ("apiVersion", "kind")}
        kept = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")}
        ours = obj["kind"] not in _NEVER_OURS and ROLLOUT_LABEL in (metadata.get("labels") or {})
        watch.known[ref_of(obj)] = identity | {
            "metadata": kept | {"labels": {ROLLOUT_LABEL: ""} if ours else {}}
        }
        if not ours:  # else Kopf brings it
            self._store.put(_hashed(obj))

    def _drop(self, watch: _Watch, ref: Ref) -> None:
        obj = watch.known.pop(ref, None)
        elsewhere = any(ref in other.known for other in self._watches.values() if other is not watch)
        if obj is not None and not elsewhere and not obj["metadata"]["labels"]:
            self._store.remove(obj)

    def _tell(self, watch: _Watch) -> None:
        self._changed(tuple(watch.keys))


def _hashed(obj: Object) -> Object:
    """A ConfigMap or Secret without its content; another object as it is."""
    if obj["kind"] not in (CONFIG_MAP.kind, SECRET.kind):
        return obj
    kept = {key: obj[key] for key in ("apiVersion", "kind", "metadata")}
    return kept | {DATA_HASH: data_hash(obj)}


def data_hash(obj: Mapping[str, object]) -> str:
    """A hash of all that a ConfigMap or Secret holds."""
    data = {key: obj.get(key) or {} for key in ("data", "binaryData")}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
