"""Decides which events are worth a request.

A controller that retries says the same thing again and again. As in client-go, an event that repeats within ten
minutes is counted on the first one instead of being a new one, and one object can't post without end: a burst of 25,
then one in five minutes. Unlike client-go the note is part of what makes two events the same, because "step 2 of 5"
is news after "step 1 of 5". Memory is bounded: the longest unused object is forgotten first.
"""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelrollout.cluster.errors import ClusterError, NotFound
from modelrollout.cluster.kinds import EVENT, Object
from modelrollout.cluster.port import REPORTING_CONTROLLER, Cluster, EventType
from modelrollout.cluster.times import micro_time

SAME_WITHIN = 600.0
BURST = 25.0
REFILL_SECONDS = 300.0
REMEMBERED_OBJECTS = 4096
REMEMBERED_EVENTS = 32
NOTE_BYTES = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened to an object."""

    type: EventType
    reason: str
    note: str
    action: str


@dataclass(slots=True)
class _Series:
    name: str
    last: float
    count: int = 1


@dataclass(slots=True)
class _Source:
    """What one object has posted: its tokens, and its recent events, oldest use first."""

    tokens: float = BURST
    refilled: float = 0.0
    recent: OrderedDict[Occurrence, _Series] = field(default_factory=OrderedDict)

    def spend(self, now: float) -> bool:
        gained = max(0.0, now - self.refilled) / REFILL_SECONDS
        self.tokens = min(BURST, self.tokens + gained)
        self.refilled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class Post:
    """A new event of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """The event of this name has now happened `count` times."""

    name: str
    count: int


class Correlator:
    """Sorts occurrences into new events, repetitions to be counted, and silence."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def sort(self, regarding: Mapping[str, Any], what: Occurrence, now: float) -> Post | Repeat | None:
        """`now` is in epoch seconds. Repetitions are told at counts 2, 4, 8, …: their number is what matters."""
        source = self._source(regarding, now)
        series = source.recent.get(what)
        if series is not None and now - series.last < SAME_WITHIN:
            source.recent.move_to_end(what)
            series.last = now
            series.count += 1
            doubled = series.count & (series.count - 1) == 0
            return Repeat(series.name, series.count) if doubled and source.spend(now) else None
        if not source.spend(now):
            return None
        name = f"{str(regarding['metadata']['name'])[:200]}.{uuid.uuid4().hex[:16]}"
        source.recent[what] = _Series(name, now)
        source.recent.move_to_end(what)
        while len(source.recent) > REMEMBERED_EVENTS:
            source.recent.popitem(last=False)
        return Post(name)

    def forget(self, regarding: Mapping[str, Any], what: Occurrence) -> None:
        """The event was not taken, or is gone: the next such occurrence is a new event."""
        source = self._sources.get(_identity(regarding))
        if source is not None:
            source.recent.pop(what, None)

    def _source(self, regarding: Mapping[str, Any], now: float) -> _Source:
        key = _identity(regarding)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source(refilled=now)
            while len(self._sources) > REMEMBERED_OBJECTS:
                self._sources.popitem(last=False)
        self._sources.move_to_end(key)
        return source


async def post(
    cluster: Cluster,
    correlator: Correlator,
    regarding: Mapping[str, Any],
    what: Occurrence,
    *,
    now: float,
    instance: str,
) -> None:
    """Post, count or drop one occurrence; `instance` names this process. A ClusterError is logged, not raised."""
    sorted_as = correlator.sort(regarding, what, now)
    if sorted_as is None:
        return
    namespace = regarding["metadata"].get("namespace") or "default"
    try:
        if isinstance(sorted_as, Repeat):
            series = {"count": sorted_as.count, "lastObservedTime": micro_time(now)}
            operation = {"op": "add", "path": "/series", "value": series}
            await cluster.patch_json(EVENT, namespace, sorted_as.name, [operation])
        else:
            await cluster.create(_event(sorted_as.name, namespace, regarding, what, now, instance))
    except NotFound:
        # API servers drop events after an hour, or sooner. The next occurrence is told in full.
        correlator.forget(regarding, what)
    except ClusterError as error:
        correlator.forget(regarding, what)
        _log.warning("event %s of %s/%s was not posted: %s", what.reason, namespace, sorted_as.name, error)


def _event(
    name: str, namespace: str, regarding: Mapping[str, Any], what: Occurrence, now: float, instance: str
) -> Object:
    metadata = regarding["metadata"]
    reference = {
        "apiVersion": regarding.get("apiVersion"),
        "kind": regarding.get("kind"),
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata.get("uid"),
        "resourceVersion": metadata.get("resourceVersion"),
    }
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": micro_time(now),
        "reportingController": REPORTING_CONTROLLER,
        "reportingInstance": instance[:128],
        "action": what.action[:128],
        "reason": what.reason[:128],
        "type": what.type,
        "note": cut(what.note),
        "regarding": {field: value for field, value in reference.items() if value},
    }


def cut(note: str) -> str:
    """A note of at most 1024 bytes of UTF-8, the API's limit; what is cut off is marked."""
    encoded = note.encode()
    if len(encoded) <= NOTE_BYTES:
        return note
    return encoded[: NOTE_BYTES - 3].decode(errors="ignore") + "…"


def _identity(regarding: Mapping[str, Any]) -> str:
    metadata = regarding["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace')}/{metadata['name']}")
