"""Conditions and the reasons that stand in them, in events and in the history: constants that people may rely on.

A reason is part of the API: scripts compare it and alerts match it. So each stands here once, with what it means; docs/api.md
prints this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Self

from modelrollout.api.status import Condition

ConditionStatus = Literal["True", "False", "Unknown"]


class _Documented(StrEnum):
    """A string constant that carries its meaning."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class ConditionType(_Documented):
    """Types of conditions, in the order in which they are listed."""

    ACCEPTED = "Accepted", "Whether the spec can be acted on. All but True freezes forward motion only."
    READY = "Ready", "Whether what the spec asks for serves all the traffic that it should."
    RECONCILING = (
        "Reconciling",
        "Present and True while the operator works towards the spec or waits for something.",
    )
    STALLED = (
        "Stalled",
        "Present and True when nothing goes on without a change of the spec or of the cluster.",
    )
    METRICS_AVAILABLE = "MetricsAvailable", "Whether every gating metric could be read in the last polls."
    TRAFFIC_VERIFIED = "TrafficVerified", "Whether requests really are split as the route says."


class Reason(_Documented):
    """Reasons of conditions, pauses, rollbacks and outcomes."""

    # Accepted
    ACCEPTED = "Accepted", "The spec was accepted."
    INVALID_SPEC = "InvalidSpec", "A field of the spec is wrong; the message names it."
    INVALID_TEMPLATE = (
        "InvalidTemplate",
        "The API server refuses the pod template; the message has its words.",
    )
    INVALID_QUERY = (
        "InvalidQuery",
        "A selector or query is not valid PromQL, or could read another tenant's series.",
    )
    NAME_TAKEN = "NameTaken", "An object of a needed name exists and is not ours; it is never adopted."
    SELECTOR_OVERLAP = "SelectorOverlap", "A foreign Service or autoscaler selects our pods."
    CONFLICT = (
        "Conflict",
        "An older ModelRollout already steers the same route, Service, Deployment or requests of a Gateway.",
    )
    NOT_NOW = "NotNow", "traffic or service.name was edited during a rollout; it waits for rest or abort."
    UNKNOWN_PROMETHEUS = (
        "UnknownPrometheus",
        "analysis.prometheus names no server that the operator was configured with.",
    )
    REFERENCE_NOT_FOUND = "ReferenceNotFound", "An object that the spec names does not exist."
    NOT_SUPPORTED = (
        "NotSupported",
        "The router, or what is installed in the cluster, can't do what the spec asks for.",
    )
    NOT_CHECKED = (
        "NotChecked",
        "The API server can't say now whether the spec can be acted on; it is asked again.",
    )

    # Ready, Reconciling, Stalled: what goes on
    PENDING = "Pending", "The first revision is being deployed."
    PROGRESSING = "Progressing", "A candidate is being compared with the baseline."
    PAUSED = "Paused", "Weight and clock are held because spec.paused is true."
    PROMOTING = "Promoting", "The candidate takes over."
    WATCHING = "Watching", "The promoted revision serves; the comparison with the old one goes on."
    HEALTHY = "Healthy", "The revision that the spec names serves."
    ROLLING_BACK = "RollingBack", "Traffic goes back to the baseline."
    ROLLED_BACK = "RolledBack", "The revision that the spec names was rolled back."
    INVALID = "Invalid", "The spec was never acceptable, so nothing runs."

    # What is waited for
    USER_REQUEST = "UserRequest", "Someone asked for a pause."
    AWAITING_APPROVAL = "AwaitingApproval", "The step is over and needs an approval."
    AWAITING_GATE = "AwaitingGate", "The step is over and a gate has not passed yet."
    AWAITING_PODS = "AwaitingPods", "Pods are not ready yet."
    AWAITING_ROUTE = (
        "AwaitingRoute",
        "The route is not accepted by the gateway, or not in the data plane yet.",
    )
    AWAITING_DURATION = "AwaitingDuration", "The step has not lasted long enough."
    AWAITING_REQUESTS = "AwaitingRequests", "The candidate has not answered enough requests in this step."
    AWAITING_DATA = "AwaitingData", "A gating metric had no data in the newest poll."
    AWAITING_EVIDENCE = "AwaitingEvidence", "The candidate is proven neither harmful nor harmless yet."
    INCONCLUSIVE = "Inconclusive", "Neither harm nor harmlessness was proven within the deadline."
    PARKED = (
        "Parked",
        "Metrics were missing for too long, so the candidate gets no requests until they are back.",
    )

    # Why traffic went back, and how attempts end
    PROMOTED = "Promoted", "The candidate was promoted."
    PROMOTE_REQUESTED = "PromoteRequested", "Someone asked for the promotion."
    NOT_PROVEN = "NotProven", "Nothing that carries an error bound was compared, so nothing was proven."
    PROVEN_HARMLESS = "ProvenHarmless", "Every gating metric was proven harmless."
    PROVEN_SUPERIOR = (
        "ProvenSuperior",
        "The candidate was proven better in the reward, and harmless in every other gating metric.",
    )
    NOT_SUPERIOR = "NotSuperior", "The time of the A/B test was over before the candidate had won."
    HARM_PROVEN = "HarmProven", "The candidate was proven worse than the harm margin allows."
    GUARDRAIL_BREACHED = "GuardrailBreached", "A guardrail was out of its bounds in several polls in a row."
    CANDIDATE_UNSTABLE = (
        "CandidateUnstable",
        "The candidate's containers restarted, or lost readiness, again and again.",
    )
    GATE_FAILED = "GateFailed", "A webhook or a Job said no, or nothing, for good; the message names it."
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded",
        "Pods did not become ready within progressDeadline.",
    )
    ROUTE_NOT_ACCEPTED = "RouteNotAccepted", "The gateway did not accept the route within progressDeadline."
    ABORTED = "Aborted", "Someone asked for the way back."
    SUPERSEDED = "Superseded", "The spec named another revision meanwhile."
    REVERTED = "Reverted", "The spec named the old revision again."
    ROLLED_BACK_AFTER_PROMOTION = "RolledBackAfterPromotion", "Harm was proven in the watch."
    FIRST_DEPLOYMENT = "FirstDeployment", "There was nothing to compare with."
    STABLE_UNAVAILABLE = "StableUnavailable", "What is to serve has no ready pod, so what is ready serves."
    WATCH_ALARM = "WatchAlarm", "A before-and-after comparison raised an alarm in the watch."

    # MetricsAvailable
    METRICS_AVAILABLE = "MetricsAvailable", "Every gating metric was read."
    NOT_MEASURED = "NotMeasured", "Nothing is compared at present."
    METRICS_UNAVAILABLE = (
        "MetricsUnavailable",
        "Prometheus did not answer, or gave a partial or impossible answer.",
    )
    NOT_SCRAPED = "NotScraped", "Ready pods are not scraped by Prometheus."
    NO_TRAFFIC = "NoTraffic", "The pods are scraped, and no requests arrive."
    SAMPLES_LATE = "SamplesLate", "Samples can be read only after their poll is over, so they do not count."
    DUPLICATE_SERIES = "DuplicateSeries", "A pod has the same series twice; the selector must pick one."
    COUNTERS_INCONSISTENT = "CountersInconsistent", "A counter fell without a restart of its container."
    CLOCK_BEHIND = (
        "ClockBehind",
        "The operator's clock is behind the time up to which requests were counted.",
    )

    PROMETHEUS_UNREACHABLE = "PrometheusUnreachable", "Prometheus could not be reached."
    PROMETHEUS_TIMED_OUT = "PrometheusTimedOut", "Prometheus did not answer in time."
    PROMETHEUS_REFUSED = "PrometheusRefused", "Prometheus refused the query; the message has its words."
    PROMETHEUS_BAD_ANSWER = (
        "PrometheusBadAnswer",
        "The answer was not Prometheus'; a proxy may stand between.",
    )
    PARTIAL_ANSWER = "PartialAnswer", "Prometheus gave a warning with its answer, so series may be missing."
    NOT_A_NUMBER = "NotANumber", "A sample was NaN or infinite."
    NO_RESULT = "NoResult", "The query of a guardrail had no result."
    SEVERAL_RESULTS = "SeveralResults", "The query of a guardrail had several results where one is needed."
    NATIVE_HISTOGRAM = "NativeHistogram", "The histogram has no classic buckets."
    BUCKETS_DIFFER = "BucketsDiffer", "The two sides have no bounds of buckets in common."
    SUM_MISSING = "SumMissing", "A score has a count without a sum."
    SCORE_OUT_OF_RANGE = "ScoreOutOfRange", "Values of a score lie outside of its min and max."

    # TrafficVerified
    TRAFFIC_VERIFIED = "TrafficVerified", "The route is in effect, and no observed split speaks against it."
    SPLIT_NOT_CHECKED = (
        "SplitNotChecked",
        "The route is in effect; whether requests follow it can't be observed.",
    )
    ROUTE_CONTESTED = "RouteContested", "Another writer keeps changing our route; the message names it."
    TRAFFIC_MISMATCH = "TrafficMismatch", "The observed split differs from the route's weights."
    POD_OUTLIER = "PodOutlier", "The harm rests on one group of pods, so it may be a node and not the model."


class EventReason(_Documented):
    """Reasons of events."""

    ROLLOUT_STARTED = "RolloutStarted", "An attempt began."
    STEP_STARTED = "StepStarted", "A step began."
    STEP_COMPLETED = "StepCompleted", "A step ended."
    WEIGHT_CHANGED = "WeightChanged", "The split changed within a step."
    AWAITING_APPROVAL = "AwaitingApproval", "A step waits for an approval; the message has the command."
    AWAITING_GATE = "AwaitingGate", "A gate is asked; the message names it."
    GATE_PASSED = "GatePassed", "A gate passed."
    GATE_FAILED = "GateFailed", "A gate failed for good."
    HARM_PROVEN = "HarmProven", "The candidate was proven worse than the harm margin allows."
    GUARDRAIL_BREACHED = "GuardrailBreached", "A guardrail was out of its bounds in several polls in a row."
    CANDIDATE_UNSTABLE = (
        "CandidateUnstable",
        "The candidate's containers restarted, or lost readiness, again and again.",
    )
    POD_OUTLIER = "PodOutlier", "The harm rests on one group of pods."
    PROMOTED = "Promoted", "The candidate was promoted."
    WATCH_ALARM = "WatchAlarm", "A before-and-after comparison raised an alarm in the watch."
    WATCH_COMPLETED = "WatchCompleted", "The watch is over."
    ROLLED_BACK = "RolledBack", "Traffic is back at the baseline."
    SUPERSEDED = "Superseded", "The spec named another revision meanwhile."
    REVERTED = "Reverted", "The spec named the old revision again."
    JUDGED = "Judged", "A comparison is over and, as its strategy says, nothing is taken over."
    ABORTED = "Aborted", "Someone asked for the way back."
    INCONCLUSIVE = "Inconclusive", "Neither harm nor harmlessness was proven within the deadline."
    METRICS_UNAVAILABLE = "MetricsUnavailable", "Metrics can't be read."
    METRICS_RESTORED = "MetricsRestored", "Metrics can be read again."
    STABLE_UNAVAILABLE = "StableUnavailable", "What is to serve has no ready pod, so what is ready serves."
    TRAFFIC_DRIFT = "TrafficDrift", "The route or a Service was changed by someone else and was put right."
    TRAFFIC_MISMATCH = "TrafficMismatch", "The observed split differs from the route's weights."
    REQUEST_IGNORED = "RequestIgnored", "A request annotation does not apply; the message says why."
    INVALID = "Invalid", "The spec can't be acted on."
    PAUSED = "Paused", "Weight and clock are held."
    RESUMED = "Resumed", "The rollout goes on."
    UNDONE = "Undone", "A stored revision was asked for in place of the one that the spec names."
    RESTARTED = "Restarted", "All pods of a revision are made anew, one after the other."
    DRIFT_CORRECTED = "DriftCorrected", "A child object was changed by someone else and was put right."
    TAKEN_OVER = "TakenOver", "The Deployment whose template is used was scaled to 0: its work is done here."
    SCALED_UP_AGAIN = (
        "ScaledUpAgain",
        "Someone scaled the Deployment up that was taken over; it is left alone.",
    )
    NOT_RESTORED = "NotRestored", "What was changed of the user's objects could not be put back at deletion."

    @property
    def type(self) -> Literal["Normal", "Warning"]:
        """The type of the event: Warning where a person should look."""
        return "Warning" if self in _WARNINGS else "Normal"


_WARNINGS = frozenset(
    {
        EventReason.GATE_FAILED,
        EventReason.HARM_PROVEN,
        EventReason.GUARDRAIL_BREACHED,
        EventReason.CANDIDATE_UNSTABLE,
        EventReason.POD_OUTLIER,
        EventReason.WATCH_ALARM,
        EventReason.ROLLED_BACK,
        EventReason.INCONCLUSIVE,
        EventReason.METRICS_UNAVAILABLE,
        EventReason.STABLE_UNAVAILABLE,
        EventReason.TRAFFIC_DRIFT,
        EventReason.TRAFFIC_MISMATCH,
        EventReason.REQUEST_IGNORED,
        EventReason.INVALID,
        EventReason.DRIFT_CORRECTED,
        EventReason.SCALED_UP_AGAIN,
        EventReason.NOT_RESTORED,
    }
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A condition as a decision wants it: without the two times that depend on what stood there before."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str = ""


def merge_conditions(
    present: Sequence[Condition], wanted: Iterable[Wanted], *, generation: int, now: float
) -> list[Condition]:
    """Exactly the wanted conditions, in the order of `ConditionType`; lastTransitionTime (epoch seconds) moves only when
    the status of a condition changes. What is not wanted goes, as Reconciling and Stalled must."""
    before = {condition.type: condition for condition in present}
    order = list(ConditionType)
    merged = []
    for want in sorted(wanted, key=lambda want: order.index(want.type)):
        old = before.get(want.type)
        same = old is not None and old.status == want.status
        merged.append(
            Condition(
                type=want.type.value,
                status=want.status,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and same else now,
                reason=want.reason.value,
                message=want.message,
            )
        )
    return merged
