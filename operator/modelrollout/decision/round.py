"""One round of deciding: the facts it rests on, and the draft of its outcome.

Rules take a round and return a round; nothing is changed in place, so the order of the rules is the only coupling
between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.requests import Request, Verb
from modelrollout.api.spec import Spec
from modelrollout.api.status import Phase, PlanStep, RevisionStatus, Status, StepStatus
from modelrollout.decision.types import Event, Judgement, Observation, RevisionView, Timing, Wish
from modelrollout.evidence.state import State


@dataclass(frozen=True, slots=True)
class Round:
    """Facts and draft of one round."""

    wish: Wish
    spec: Spec  # the acceptable spec, or the last accepted one
    seen: Observation
    judged: Judgement
    now: float
    timing: Timing
    before: Status  # as committed; what stands in the cluster follows it
    status: Status  # draft
    state: State | None = None  # draft of the evidence
    frozen: bool = False  # the spec is not acceptable: nothing moves forward
    refusal: tuple[Reason, str] | None = None  # reason and sentence, when frozen
    asked: Mapping[Verb, Request] = field(default_factory=dict)  # requests of this round that apply
    events: tuple[Event, ...] = ()
    link: str = ""
    reason: Reason | None = None  # of the condition Reconciling
    waiting: str = ""  # what is waited for, for the message
    may_raise: bool = False  # the candidate's weight may follow up in this round
    step_runs: bool = False
    active_runs: bool = False
    watch_runs: bool = False

    def put(self, **changes: Any) -> Round:
        """The round with fields of its status changed."""
        return replace(self, status=self.status.model_copy(update=changes))

    def put_step(self, **changes: Any) -> Round:
        """The round with fields of its current step changed; without a step, the same round."""
        step = self.status.step
        return self if step is None else self.put(step=step.model_copy(update=changes))

    def say(self, reason: EventReason, message: str) -> Round:
        """The round with an event added."""
        return replace(self, events=(*self.events, Event(reason, message)))

    def wait(self, reason: Reason, waiting: str, **runs: bool) -> Round:
        """The round that waits: why, and which clocks run meanwhile; those that are not named are held."""
        return replace(self, reason=reason, waiting=waiting, **runs)  # type: ignore[arg-type]

    @property
    def phase(self) -> Phase | None:
        """The phase as drafted."""
        return self.status.phase

    @property
    def unchecked(self) -> bool:
        """Whether nobody could say yet if the spec is acceptable: nothing moves forward, and nothing is wrong with it."""
        return self.refusal is not None and self.refusal[0] is Reason.NOT_CHECKED

    @property
    def comparing(self) -> bool:
        """Whether a candidate is being tried (Progressing or Paused)."""
        return self.phase in (Phase.PROGRESSING, Phase.PAUSED)

    @property
    def step(self) -> StepStatus:
        """The current step. Only while comparing or promoting."""
        assert self.status.step is not None
        return self.status.step

    @property
    def plan_step(self) -> PlanStep:
        """The content of the current step."""
        return self.status.plan[self.step.index]

    @property
    def capacity(self) -> int:
        """Pods that carry all traffic (S9): from start to the end of the watch never fewer than at the start. The user's own
        pods have a scaler of the user's: with them it is what the baseline grew to, or what was left of it."""
        at_start, stable = self.status.capacity_at_start or 0, self.view(self.status.stable)
        if self.spec.workload.services is not None:
            at_start = min(max(at_start, stable.ready), stable.pods - stable.leaving)
        return max(self.spec.workload.replicas, at_start)

    @property
    def lean(self) -> bool:
        """Whether the baseline shrinks as the candidate grows."""
        return self.spec.workload.elastic or self.pod_ratio

    @property
    def exchanging(self) -> bool:
        """Whether pods are exchanged one for one now: not for a candidate that needs room beside the whole baseline, nor
        for one that answers nothing yet."""
        step = self.plan_step if self.status.step is not None else None
        if step is None or not self.lean:
            return self.lean
        return not (step.mirror or step.size or step.matches or (self.comparing and not step.weight))

    @property
    def judged_at_random(self) -> bool:
        """Whether both sides get a random sample of the requests now: users who were chosen may differ from others."""
        return self.status.step is None or self.plan_step.randomized

    @property
    def pod_ratio(self) -> bool:
        """Whether the ratio of pods makes the split."""
        return self.spec.traffic.router == "podRatio"

    @property
    def holdback(self) -> int:
        """Share of requests that the previous revision keeps while watching."""
        return self.spec.watch.holdback if self.spec.watch.duration > 0 else 0

    def view(self, role: RevisionStatus | None) -> RevisionView:
        """What was seen of the revision in a role."""
        return self.seen.of(role.revision if role else None)

    def settled(self, role: RevisionStatus | None) -> int:
        """Pods of a role that have been ready long enough for weight to follow up."""
        view = self.view(role)
        limit = self.now - self.timing.raise_after
        return min(view.ready, sum(1 for since in view.ready_since if since <= limit))

    @property
    def routed(self) -> bool:
        """Whether the committed weights stand in the route, are accepted, and have reached the data plane."""
        since = self.seen.route.routed_since
        return since is not None and self.now >= since + self.timing.data_plane
