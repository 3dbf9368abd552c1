"""The status of a ModelRollout: everything the operator remembers.

It is written whole, with the resourceVersion it was decided on, and a restart goes on from it alone. All times are
absolute; a clock that is held stores what is left of it instead.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from modelrollout.api.spec import RequestMatch, Stickiness
from modelrollout.api.types import Duration, Model, Time


class Phase(StrEnum):
    """Where a rollout stands."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    PROMOTING = "Promoting"
    WATCHING = "Watching"
    HEALTHY = "Healthy"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"
    INVALID = "Invalid"


class Outcome(StrEnum):
    """How an attempt ended."""

    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    ROLLED_BACK_AFTER_PROMOTION = "RolledBackAfterPromotion"
    REVERTED = "Reverted"
    SUPERSEDED = "Superseded"
    JUDGED = "Judged"


class RevisionStatus(Model):
    """One revision that has pods."""

    revision: str = Field(description="Hash of the model, the pod template and the service ports.")
    model: str | None = Field(None, description="Name and version of the model, for people.")
    since: Time | None = Field(None, description="When the revision took this role.")
    ever_ready: bool = Field(
        False, description="Whether it ever served with all the pods it was asked to have."
    )
    desired: int = Field(0, description="Pods it is to have.")
    ready: int = Field(0, description="Pods that are ready endpoints of its Service.")


class Retiring(Model):
    """A revision that has no traffic any more and loses its pods soon."""

    revision: str = Field(description="The revision.")
    until: Time = Field(description="Its pods are kept until then (drainDelay).")
    desired: int = Field(0, description="Pods it keeps until then.")


class Rejected(Model):
    """The revision that the spec names and that was rolled back."""

    revision: str = Field(description="The revision; it is not tried again by itself.")
    reason: str = Field(description="Why it was rolled back.")


def compared_share(weight: int, mirror: int) -> int:
    """Share of the candidate's requests among those that both sides answer, in percent; at least 1 where there are some."""
    share = 100 * (weight + mirror) // (100 + mirror)
    return max(share, min(1, weight + mirror))


class Weights(Model):
    """What is to stand in the route, in percent, all safety rules applied."""

    stable: int = Field(0, description="Share of the stable revision.")
    candidate: int = Field(0, description="Share of the candidate.")
    previous: int = Field(0, description="Share of the revision before the promotion, while Watching.")
    mirror: int = Field(0, description="Share of requests that is copied to the candidate.")
    matched: int = Field(
        0, description="Share of the requests chosen by the step's matches that the candidate gets."
    )

    @property
    def compared(self) -> int:
        """Share of the candidate's requests among all that are compared, copies included, in percent; at least 1 of some."""
        return compared_share(self.candidate, self.mirror)


class PlanGate(Model):
    """One gate of a compiled step; the spec says how it is asked."""

    id: str = Field(description="Short hash of its place and content.")
    name: str = Field(description="Name from the spec.")
    retries: int = Field(0, description="How often it is asked again before it has failed.")
    pauses: bool = Field(
        False, description="Whether the rollout pauses when it fails, and is not rolled back."
    )
    promotion: bool = Field(False, description="Whether it stands before the promotion.")


class PlanStep(Model):
    """One compiled step."""

    id: str = Field(
        description="Short hash of attempt, content and ordinal among equal steps; approvals name it."
    )
    name: str | None = Field(None, description="Name from the spec.")
    weight: int = Field(description="Share of requests in percent.")
    duration: Duration = Field(0.0, description="It lasts at least this long.")
    min_requests: int = Field(0, description="The candidate answers at least this many requests in it.")
    approval: bool = Field(False, description="Whether it ends only with an approval.")
    planned: bool = Field(
        False, description="Whether the operator planned it (its end is decided by evidence)."
    )
    mirror: int = Field(0, description="Share of requests in percent that is copied to the candidate.")
    size: int = Field(
        0, description="Least size of the candidate in percent of the capacity; 0: what its share needs."
    )
    proof: bool = Field(False, description="Whether it ends only once the candidate is proven harmless.")
    stop: bool = Field(
        False,
        description="Whether the attempt ends after it, as the last one, with a verdict and no takeover; if a reward is named, "
        "unless the candidate wins.",
    )
    preview: bool = Field(False, description="Whether the candidate can be reached besides, for previews.")
    gates: list[PlanGate] = Field(
        default_factory=list, description="What is asked at its end, in this order.", max_length=16
    )
    matches: list[RequestMatch] = Field(
        default_factory=list,
        description="Requests that the candidate gets besides its share; none: its share only.",
        max_length=8,
    )
    randomized: bool = Field(
        True,
        description="Whether the requests of both sides are a random sample, so that they can be compared.",
    )
    stickiness: Stickiness | None = Field(None, description="What keeps a user on one side.")
    timed: bool = Field(False, description="Whether its duration ends it, whatever is proven by then.")
    reward: str | None = Field(None, description="Metric in which the candidate must be better to win.")

    @property
    def load(self) -> int:
        """Share of the requests that the candidate answers, copies included, in percent; of requests that match, what it
        has pods for."""
        return max(min(100, self.weight + self.mirror), self.size if self.matches else 0)

    @property
    def room(self) -> int:
        """Size that the candidate needs for it, in percent of the capacity."""
        return max(self.load, self.size)

    @property
    def aim(self) -> str:
        """For people: what the candidate gets."""
        copies = f"copies of {self.mirror} %" if self.mirror else ""
        matches = "requests that match" if self.matches else ""
        weight = f"{self.weight} %" if self.weight or not (self.mirror or self.matches) else ""
        return " and ".join(part for part in (weight, matches, copies) if part) + " to the candidate"


class GateState(StrEnum):
    """Where a gate stands."""

    RUNNING = "Running"
    WAITING = "Waiting"
    PASSED = "Passed"
    FAILED = "Failed"


class GateStatus(Model):
    """A gate of the current step that was asked."""

    id: str = Field(description="Id of the gate.")
    name: str = Field(description="Name from the spec.")
    state: GateState = Field(
        description="Running while an answer is waited for, Waiting until it is asked again, Passed or Failed."
    )
    since: Time = Field(description="Since when.")
    asked: int = Field(1, description="How often it was asked in this turn.")
    turn: int = Field(1, description="Rises when a resume asks it anew.")
    again_at: Time | None = Field(None, description="When it is asked again.")
    value: str | None = Field(None, description="The number that its Job left behind.")
    message: str | None = Field(None, description="What was answered last, or what is waited for.")

    @property
    def question(self) -> str:
        """Names one asking of it within its step; the answer to another one does not count."""
        return f"{self.id}/{self.turn}/{self.asked}"


class StepStatus(Model):
    """The current step."""

    id: str = Field(description="Id of the step.")
    index: int = Field(description="Position in the plan, from 0.")
    count: int = Field(description="Number of steps in the plan.")
    display: str = Field(description="For people: 2/3.")
    started_at: Time | None = Field(
        None, description="When its weight was first routed; its clock starts then."
    )
    ends_at: Time | None = Field(
        None, description="When its duration is over; absent while the clock is held."
    )
    left: Duration | None = Field(None, description="What is left of its duration while the clock is held.")
    approved: bool = Field(False, description="Whether its end was approved.")
    requests_at_start: float = Field(0.0, description="Candidate requests counted before it started.")
    restarts_at_start: int | None = Field(
        None, description="Container restarts of the candidate before it started."
    )
    ready_drops: int = Field(
        0, description="How often ready candidate pods fell below what the weight needs."
    )
    baseline_ready: int = Field(0, description="Ready baseline pods at the last raise of the weight.")
    short: bool = Field(False, description="Whether fewer candidate pods are ready than the weight needs.")
    reason: str | None = Field(None, description="What it is waiting for.")
    gates: list[GateStatus] = Field(
        default_factory=list, description="Its gates, as far as they were asked.", max_length=16
    )

    def gate(self, id: str) -> GateStatus | None:
        """A gate that was asked."""
        return next((gate for gate in self.gates if gate.id == id), None)

    @property
    def asking(self) -> GateStatus | None:
        """The gate whose answer is waited for; there is one at a time."""
        return next((gate for gate in self.gates if gate.state is GateState.RUNNING), None)


class PauseStatus(Model):
    """A pause that stands in the status (spec.paused holds besides)."""

    reason: str = Field(description="UserRequest, Inconclusive, TrafficMismatch or GateFailed.")
    since: Time = Field(description="Since when.")


class WatchStatus(Model):
    """The watch after promotion."""

    ends_at: Time | None = Field(None, description="When it ends; absent while it is held.")
    left: Duration | None = Field(None, description="What is left of it while it is held.")
    latest: Time = Field(description="However long it is held, it ends then.")
    ending: bool = Field(
        False, description="Whether traffic is being taken from the previous revision for good."
    )
    alarm: str | None = Field(None, description="What a comparison with the past found, where holdback is 0.")


class StepForecast(Model):
    """What a step can see."""

    weight: int = Field(description="Share of requests in percent.")
    duration: Duration | None = Field(None, description="How long it lasts, as far as can be said.")
    detects: str | None = Field(
        None,
        description="The smallest harm it finds four times out of five, by metric; of a reward, how good it must be to win.",
    )


class Forecast(Model):
    """How long the rollout takes and what its steps can see, from what Prometheus measured before."""

    steps: list[StepForecast] = Field(default_factory=list, description="By step.", max_length=64)
    rate: str | None = Field(None, description="Requests per second of the baseline before the rollout.")
    limits: str | None = Field(None, description="What can't be seen, and what would help.")


class MetricStatus(Model):
    """What is known of one metric."""

    name: str = Field(description="Name of the metric.")
    verdict: str = Field(
        description="Superior, Harmless, WorseWithinMargin, Harmful, PodOutlier, Inconclusive or NoData."
    )
    ratio: str | None = Field(None, description="Candidate rate of bad events divided by the baseline's.")
    low: str | None = Field(None, description="Lower end of the 95 % confidence sequence.")
    high: str | None = Field(None, description="Upper end of the 95 % confidence sequence.")
    baseline_requests: int = Field(0, description="Requests of the baseline that were compared.")
    candidate_requests: int = Field(0, description="Requests of the candidate that were compared.")
    baseline_bad: str | None = Field(None, description="Bad events of the baseline.")
    candidate_bad: str | None = Field(None, description="Bad events of the candidate.")
    remaining: int | None = Field(
        None, description="Candidate requests still needed to prove an equal model harmless."
    )
    value: str | None = Field(None, description="Last value of a guardrail.")
    message: str | None = Field(None, description="What a person should know of it.")


class HistoryEntry(Model):
    """One attempt."""

    attempt: int = Field(description="Number of the attempt.")
    revision: str = Field(description="Its candidate.")
    model: str | None = Field(None, description="Name and version of the model.")
    outcome: Outcome | None = Field(None, description="How it ended; absent while it goes on.")
    reason: str | None = Field(None, description="Why.")
    message: str | None = Field(None, description="Why, with metric, ratio, interval and counts.")
    unproven: bool = Field(False, description="Whether it was promoted without proof.")
    started_at: Time | None = Field(None, description="When it started.")
    ended_at: Time | None = Field(None, description="When its outcome was fixed.")


class RequestsStatus(Model):
    """The last handled value of each request annotation."""

    approve: str | None = Field(None, description="Last handled value of modelrollout.dev/approve.")
    promote: str | None = Field(None, description="Last handled value of modelrollout.dev/promote.")
    abort: str | None = Field(None, description="Last handled value of modelrollout.dev/abort.")
    retry: str | None = Field(None, description="Last handled value of modelrollout.dev/retry.")
    pause: str | None = Field(None, description="Last handled value of modelrollout.dev/pause.")
    resume: str | None = Field(None, description="Last handled value of modelrollout.dev/resume.")
    undo: str | None = Field(None, description="Last handled value of modelrollout.dev/undo.")
    restart: str | None = Field(None, description="Last handled value of modelrollout.dev/restart.")


class UndoStatus(Model):
    """A stored revision that was asked for in place of the one that the spec names."""

    revision: str = Field(description="The revision.")
    over: str = Field(description="The revision that the spec names; when it names another, this ends.")


class RestartStatus(Model):
    """When somebody asked for all pods of a revision anew."""

    revision: str = Field(description="The revision.")
    at: Time = Field(description="When it was asked for.")


class Condition(Model):
    """A condition as in metav1.Condition."""

    type: str = Field(
        description="Accepted, Ready, Reconciling, Stalled, MetricsAvailable or TrafficVerified."
    )
    status: str = Field(description="True, False or Unknown.")
    observed_generation: int = Field(0, description="Generation of the spec it speaks of.")
    last_transition_time: Time = Field(description="When the status last changed.")
    reason: str = Field(description="A documented constant.")
    message: str = Field("", description="For people.")


class Status(Model):
    """The whole status."""

    observed_generation: int = Field(-1, description="Generation of the spec that was last decided on.")
    phase: Phase | None = Field(None, description="Where the rollout stands.")
    message: str | None = Field(None, description="One sentence that says what happens and what comes next.")
    attempt: int = Field(0, description="Rises at every start, retries included.")
    unproven: bool = Field(False, description="Whether the deadline allowed a promotion without proof.")
    accepted: dict[str, Any] | None = Field(
        None,
        description="The last accepted spec, without the template.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    stable: RevisionStatus | None = Field(None, description="The revision that serves.")
    candidate: RevisionStatus | None = Field(None, description="The revision that is tried.")
    previous: RevisionStatus | None = Field(None, description="The way back while Watching.")
    retiring: list[Retiring] = Field(
        default_factory=list, description="Revisions that lose their pods.", max_length=64
    )
    undo: UndoStatus | None = Field(None, description="A stored revision that is asked for by request.")
    restarted: list[RestartStatus] = Field(
        default_factory=list, description="Restarts by request of revisions that have pods.", max_length=8
    )
    rejected: Rejected | None = Field(
        None, description="The revision that the spec names and that is not tried again by itself."
    )
    capacity_at_start: int | None = Field(
        None, description="Pods that carry all traffic, when the attempt started."
    )
    weights: Weights = Field(default_factory=Weights, description="What is to stand in the route.")
    plan: list[PlanStep] = Field(default_factory=list, description="The compiled steps.", max_length=64)
    step: StepStatus | None = Field(None, description="The current step.")
    pause: PauseStatus | None = Field(None, description="A pause by request or by the operator.")
    deadline_at: Time | None = Field(None, description="When the active time of the attempt is over.")
    deadline_left: Duration | None = Field(
        None, description="What is left of the active time while it is held."
    )
    progress_deadline_at: Time | None = Field(
        None, description="When wanted pods or the route must be there."
    )
    rolling_back_since: Time | None = Field(None, description="Since when traffic goes back.")
    split_off_since: Time | None = Field(None, description="Since when the observed split is off.")
    outlier_since: Time | None = Field(None, description="Since when harm rests on one group of pods.")
    outage_since: Time | None = Field(None, description="First poll of an outage of the metrics.")
    failed_polls: int = Field(0, description="Failed polls in a row.")
    parked: bool = Field(
        False, description="Whether an outage of the metrics parked the candidate at weight 0."
    )
    watch: WatchStatus | None = Field(None, description="The watch after promotion.")
    forecast: Forecast | None = Field(None, description="How long it takes and what it can see.")
    verdict: str | None = Field(None, description="The verdict over all gating metrics.")
    metrics: list[MetricStatus] = Field(
        default_factory=list, description="What is known by metric.", max_length=64
    )
    evidence: dict[str, Any] | None = Field(
        None,
        description="State of the statistical engine; opaque.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    history: list[HistoryEntry] = Field(default_factory=list, description="Newest first.", max_length=64)
    requests: RequestsStatus = Field(default_factory=RequestsStatus, description="Last handled requests.")
    replicas: int | None = Field(None, description="For the scale subresource.")
    selector: str | None = Field(None, description="For the scale subresource: pods of all revisions.")
    conditions: list[Condition] = Field(
        default_factory=list, description="kstatus conditions.", max_length=16
    )

    @property
    def trying(self) -> PlanStep | None:
        """The step in which a candidate is tried now."""
        trying = self.phase in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING)
        if not trying or self.candidate is None or self.step is None:
            return None
        return self.plan[self.step.index]

    @property
    def previewed(self) -> str | None:
        """The revision that can be reached for previews now."""
        step = self.trying
        return self.candidate.revision if self.candidate and step and step.preview else None
