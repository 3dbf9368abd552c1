"""What the operator keeps of a rollout between rounds. All of it can be lost: a restart goes on from the status."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from modelrollout.api.spec import Spec
from modelrollout.cluster.pods import Pod
from modelrollout.cluster.store import Key
from modelrollout.controller.alarm import Alarm
from modelrollout.decision.types import GateReading, Judgement
from modelrollout.evidence.plan import Plan
from modelrollout.evidence.split import Split
from modelrollout.evidence.state import State
from modelrollout.telemetry.history import History
from modelrollout.telemetry.sampler import Sample
from modelrollout.telemetry.sides import Sides
from modelrollout.workloads import Problem

CONTESTED = 3  # reverts of the route …
WITHIN = 300.0  # … within these seconds mean that somebody else owns it
RETRY_REFUSED = 60.0  # a child that the API server refuses is tried again after this many seconds at most
RETRY_CONTESTED = 30.0  # a contested route is put right this often at most, in seconds


class UnreadableStatus(ValueError):
    """A status that this version does not understand; the text says where and what to do."""

    def __init__(self, where: str, error: ValidationError) -> None:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        super().__init__(
            f"{place} can't be read ({first['msg']}): it was written by another version of the operator; run that one, "
            "or delete the status to begin anew with what serves"
        )


@dataclass(slots=True)
class Checked:
    """What the API server said of a spec that was asked about: asked once for each content."""

    question: tuple[str, ...]
    problem: Problem | None
    again_at: float  # when it is asked again


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look at Prometheus found; with the baseline's past if it was the first one of an attempt."""

    found: Sample
    history: History | None


@dataclass(frozen=True, slots=True)
class Look:
    """A look at Prometheus that is under way: what is compared and the last consumed cut, and who brings the answer."""

    question: tuple[Plan, float | None]
    task: asyncio.Task[Answer]
    began: float  # epoch seconds


@dataclass(frozen=True, slots=True)
class Asking:
    """A question to a gate that is under way, and who brings the answer."""

    question: str
    task: asyncio.Task[GateReading]


@dataclass(frozen=True, slots=True)
class Parsed:
    """The spec of one generation; None with a problem if it can't be read."""

    generation: int
    spec: Spec | None
    problem: Problem | None


@dataclass(slots=True)
class Memory:
    """One rollout."""

    uid: str
    judged: Judgement = field(default_factory=Judgement)
    state: State | None = None  # evidence, ahead of what is committed by at most a minute
    attempt: int = 0  # that the evidence belongs to
    next_poll: float = 0.0
    look: Look | None = None
    unread: bool = False  # the last look left polls: more than one takes, or the first one for want of news
    unaware: Sides | None = (
        None  # who is compared, while the last look left a poll until there is news of them
    )
    asking: Asking | None = None
    committed_at: float = 0.0
    checked_gates: Checked | None = None
    checked: Checked | None = None
    routed: tuple[str, float] | None = None  # identity of the route, and since when it stands accepted
    looked: bool = False  # whether this process has looked at the route before
    reverts: deque[float] = field(default_factory=lambda: deque(maxlen=CONTESTED))
    reverted_by: str = ""
    reverted_to: object = None  # what the route was to be when it was put right last
    first_ready: dict[str, float] = field(default_factory=dict)  # pod uid → when it was first ready
    flapped: dict[str, float] = field(default_factory=dict)  # the same of pods that do not tell it any more
    split: Split = field(default_factory=Split)  # requests of the last polls, by side
    weight: int = 0  # of the candidate …
    weight_since: float = 0.0  # … and since when it is that
    fought: str | None = None  # what was said of a Deployment that somebody scaled up again
    notes: dict[str, str] = field(default_factory=dict)  # by metric: what a person should know of it
    breaches: dict[str, int] = field(default_factory=dict)  # by guardrail, in a row …
    counted_at: float = 0.0  # … and when they were counted last
    alarms: dict[str, Alarm] = field(default_factory=dict)  # by metric: the watch without holdback
    unreadable: str = ""  # why the committed evidence can't be read; it is then kept as it stands
    trouble: str = ""  # why a child could not be written in the last round
    lasts: bool = False  # whether the API server refused it: the same write would be refused again
    refused: int = 0  # rounds in a row in which one could not
    refused_until: float | None = None  # when it is tried again at the latest
    parsed: Parsed | None = None
    accepted: tuple[Mapping[str, Any], Spec] | None = None  # the last accepted spec as it stands, and as read

    def begin_attempt(self, attempt: int) -> None:
        """Evidence belongs to one attempt."""
        self.rest()
        self.attempt = attempt

    def rest(self) -> None:
        """Nothing is compared."""
        self.judged, self.state, self.attempt = Judgement(), None, 0
        self.next_poll, self.unread, self.unaware, self.split, self.weight = 0.0, False, None, Split(), 0
        self.notes.clear()
        self.first_ready, self.flapped = {}, {}
        self.breaches, self.counted_at, self.alarms, self.unreadable = {}, 0.0, {}, ""
        self.end_look()

    def reload(self) -> None:
        """Forget all that ran ahead of the status, and read it again from what is committed.

        For a commit that failed: the decision was thrown away, or its fate is unknown because the answer got lost; either
        way evidence in memory and status may tell of different steps.
        """
        self.state, self.next_poll, self.split, self.unreadable = None, 0.0, Split(), ""
        self.unread, self.unaware = False, None
        self.breaches, self.counted_at, self.alarms = {}, 0.0, {}

    def end_look(self) -> None:
        """Nobody waits for the answer any more."""
        if self.look is not None:
            self.look.task.cancel()
            self.look = None

    def end_asking(self) -> None:
        """Nobody waits for a gate's answer any more, or there was none."""
        if self.asking is not None:
            self.asking.task.cancel()
            self.asking = None

    def read_accepted(self, accepted: Mapping[str, Any] | None) -> Spec | None:
        """The last accepted spec, read once."""
        if accepted is None:
            return None
        if self.accepted is None or self.accepted[0] != accepted:
            try:
                self.accepted = accepted, Spec.from_wire(accepted)
            except ValidationError as error:
                raise UnreadableStatus("status.accepted", error) from error
        return self.accepted[1]

    def note_refused(self, why: Sequence[str], now: float) -> None:
        """Why children could not be written; empty if all could. They are tried again in every round, and after a
        growing pause if none is due."""
        self.trouble = why[0] if why else ""
        self.refused = self.refused + 1 if why else 0
        self.refused_until = now + min(RETRY_REFUSED, 2.0**self.refused) if why else None

    def note_ready(self, pods: Iterable[Pod]) -> None:
        """Keep when each pod was first ready: warm-up counts once, and a pod only tells of the last time."""
        known, self.first_ready, self.flapped = self.first_ready, {}, {}
        for pod in pods:
            first = known.get(pod.uid, pod.ready_since)
            if first is None:
                continue
            self.first_ready[pod.uid] = first
            if first != pod.ready_since:
                self.flapped[pod.uid] = first

    def note_revert(self, by: str, now: float, wanted: object) -> None:
        """Somebody changed the route, and we put it right."""
        self.reverts.append(now)
        self.reverted_by, self.reverted_to = by, wanted

    def contested_by(self, now: float) -> str | None:
        """Who keeps changing the route; None if nobody does."""
        recent = [when for when in self.reverts if now - when <= WITHIN]
        return self.reverted_by or "another writer" if len(recent) >= CONTESTED else None

    def holds_back(self, now: float, wanted: object) -> bool:
        """Whether a contested route is left as it is for the moment. What was decided since it was put right does not wait:
        traffic may have to leave dead pods, or a harmful candidate."""
        recent = self.contested_by(now) is not None and now - self.reverts[-1] < RETRY_CONTESTED
        return recent and wanted == self.reverted_to

    def contest_changes_at(self, now: float) -> float | None:
        """When a contested route is put right again, or else counts as quiet; None if it is not contested."""
        if self.contested_by(now) is None:
            return None
        again = self.reverts[-1] + RETRY_CONTESTED
        return again if again > now else self.reverts[0] + WITHIN


class Memories:
    """The memories by rollout; a rollout that was deleted and made anew starts with an empty one."""

    def __init__(self) -> None:
        self._all: dict[Key, Memory] = {}

    def of(self, key: Key, uid: str) -> Memory:
        """The memory of a rollout."""
        found = self._all.get(key)
        if found is None or found.uid != uid:
            self.forget(key)
            found = self._all[key] = Memory(uid)
        return found

    def close(self) -> None:
        """Forget all of them."""
        for key in list(self._all):
            self.forget(key)

    def forget(self, key: Key) -> bool:
        """Drop what is known of a rollout; whether there was anything."""
        gone = self._all.pop(key, None)
        if gone is not None:
            gone.end_look()
            gone.end_asking()
        return gone is not None
