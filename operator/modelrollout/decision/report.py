"""What people and tools read: message, verdict, metrics and the conditions of kstatus."""

from __future__ import annotations

from collections.abc import Iterator

from modelrollout.api.conditions import ConditionType, Reason, Wanted, merge_conditions
from modelrollout.api.status import MetricStatus, Outcome, Phase
from modelrollout.decision.chain import blind
from modelrollout.decision.explain import evidence_summary, pods_summary, traffic_summary
from modelrollout.decision.round import Round
from modelrollout.decision.types import Data
from modelrollout.evidence.verdict import MetricAssessment

FAILED_POLLS = 3  # in a row, before the condition MetricsAvailable falls
_QUIET = (Reason.NO_TRAFFIC, Reason.SAMPLES_LATE)
QUIET_POLLS = 3  # in a row, before it says that there are no requests: a few a minute are not none


def report(round: Round) -> Round:
    """The round with everything in its status that is for reading only."""
    status = round.status
    roles = [role for role in (status.stable, status.candidate, status.previous) if role]
    # What they are to have, not what is ready: an autoscaler whose target is met asks for just this number, and would
    # take the pods away that are starting.
    replicas = min(round.capacity, sum(role.desired for role in roles))
    round = round.put_step(reason=round.reason.value if round.reason else None)
    round = round.put(
        observed_generation=round.wish.generation,
        message=_message(round)[:1024],
        replicas=replicas,
        selector=f"modelrollout.dev/rollout={round.wish.name}",
        conditions=merge_conditions(
            status.conditions, _conditions(round), generation=round.wish.generation, now=round.now
        ),
    )
    return _metrics(round)


def _metrics(round: Round) -> Round:
    assessment = round.judged.assessment
    if assessment is None and not round.judged.guardrails:
        return round
    tests = [_metric_status(round, metric) for metric in assessment.metrics] if assessment else []
    guardrails = [
        MetricStatus(
            name=reading.name,
            verdict="Harmful"
            if reading.breached
            else ("NoData" if reading.value is None else "Inconclusive"),
            value=None if reading.value is None else f"{reading.value:g}",
            message=reading.message or f"wanted {reading.bound}; no error bound",
        )
        for reading in round.judged.guardrails
    ]
    verdict = assessment.verdict.value if assessment else "Inconclusive"
    return round.put(metrics=[*tests, *guardrails], verdict="NoData" if blind(round) else verdict)


def _metric_status(round: Round, metric: MetricAssessment) -> MetricStatus:
    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:.4g}"

    return MetricStatus(
        name=metric.name,
        verdict=metric.verdict.value,
        ratio=number(metric.ratio),
        low=number(metric.low),
        high=number(metric.high),
        baseline_requests=round_count(metric.baseline_requests),
        candidate_requests=round_count(metric.candidate_requests),
        baseline_bad=number(metric.baseline_bad),
        candidate_bad=number(metric.candidate_bad),
        remaining=None if metric.remaining is None else round_count(metric.remaining),
        message=round.judged.notes.get(metric.name),
    )


def round_count(value: float) -> int:
    """A count as an integer."""
    return int(value + 0.5)


def _message(round: Round) -> str:
    status = round.status
    text = _phase_message(round)
    if round.refusal and status.phase not in (None, Phase.INVALID):
        return f"spec not accepted: {round.refusal[1]} ({text})"
    return text


def _phase_message(round: Round) -> str:
    status, waiting = round.status, round.waiting
    last = status.history[0] if status.history else None
    match status.phase:
        case Phase.PENDING:
            return f"first deployment: {waiting or 'creating pods'}"
        case Phase.PROGRESSING | Phase.PAUSED:
            gets = traffic_summary(round)
            return f"step {round.step.display}: {gets}" + (f" · {waiting}" if waiting else "")
        case Phase.PROMOTING:
            return f"promoting: {waiting}" if waiting else "promoting: the candidate takes over"
        case Phase.WATCHING:
            share = f"({status.weights.previous} % on the previous revision)"
            # A before-and-after comparison can't tell a bad model from a bad day; whoever reads this can.
            alarm = f"alarm: {status.watch.alarm} · " if status.watch and status.watch.alarm else ""
            pods = f"{pods_summary(round, status.stable)} · " if _nothing_ready(round) else ""
            return f"promoted, watching {share} · {pods}{alarm}{waiting or evidence_summary(round)}"
        case Phase.ROLLING_BACK if last and last.outcome is Outcome.JUDGED:
            return f"judged, and nothing is taken over: {waiting or last.message or ''}"
        case Phase.ROLLING_BACK:
            return f"rolling back: {waiting or (last.message if last else '') or ''}"
        case Phase.ROLLED_BACK:
            why = f"{last.reason}: {last.message}" if last else ""
            return f"rolled back: {why}"
        case Phase.HEALTHY:
            return _healthy_message(round)
        case _:
            return round.refusal[1] if round.refusal else ""


def _healthy_message(round: Round) -> str:
    stable = round.status.stable
    ready, wanted = (stable.ready, stable.desired) if stable else (0, 0)
    if ready < wanted:
        return f"serving; {pods_summary(round, stable)}"
    serves = f"{stable.model or stable.revision if stable else ''} serves with {ready} pods"
    return f"{serves}; {_judged(round)}" if round.status.rejected else serves


def _judged(round: Round) -> str:
    """What came out of a comparison without a takeover, and how to go on."""
    status = round.status
    last, revision = status.history[0], status.rejected.revision if status.rejected else ""
    proof = "not proven" if last.unproven else "proven harmless"
    if last.reason == Reason.NOT_SUPERIOR:
        proof = f"no winner, {proof}"
    return (
        f"{last.model or revision} was judged and not taken over ({proof}: {last.message}); to release it write another "
        f"strategy and ask for modelrollout.dev/retry={revision}"
    )


def _conditions(round: Round) -> Iterator[Wanted]:
    refused = round.refusal
    yield (
        Wanted(ConditionType.ACCEPTED, "Unknown" if round.unchecked else "False", refused[0], refused[1])
        if refused
        else Wanted(ConditionType.ACCEPTED, "True", Reason.ACCEPTED)
    )
    yield from _progress(round)
    yield _metrics_available(round)
    yield _traffic_verified(round)


_READY = {
    Phase.PENDING: ("Unknown", Reason.PENDING),
    Phase.PROGRESSING: ("Unknown", Reason.PROGRESSING),
    Phase.PAUSED: ("Unknown", Reason.PAUSED),
    Phase.PROMOTING: ("Unknown", Reason.PROMOTING),
    Phase.WATCHING: ("True", Reason.WATCHING),
    Phase.HEALTHY: ("True", Reason.HEALTHY),
    Phase.ROLLING_BACK: ("False", Reason.ROLLING_BACK),
    Phase.ROLLED_BACK: ("False", Reason.ROLLED_BACK),
    Phase.INVALID: ("False", Reason.INVALID),
}


def _progress(round: Round) -> Iterator[Wanted]:
    """Ready, and at most one of Reconciling and Stalled."""
    status = round.status
    if round.refusal and round.unchecked:
        yield Wanted(ConditionType.READY, "Unknown", *round.refusal)
        yield Wanted(ConditionType.RECONCILING, "True", *round.refusal)
        return
    message = _phase_message(round)[:1024]
    ready, reason = _READY[status.phase or Phase.PENDING]
    why = round.reason or reason
    late = status.progress_deadline_at is not None and round.now >= status.progress_deadline_at
    stuck = late and status.phase in (Phase.PENDING, Phase.ROLLING_BACK)
    if round.refusal or stuck or status.phase in (Phase.ROLLED_BACK, Phase.INVALID):
        if round.refusal:
            why, message = round.refusal
        elif stuck:
            why = Reason.PROGRESS_DEADLINE_EXCEEDED
        yield Wanted(ConditionType.READY, "False", why, message)
        yield Wanted(ConditionType.STALLED, "True", why, message)
        return
    if _names_another(round):
        # Whoever waits for the spec that was just written must not take the watch of the last one for its end.
        ready, reason, why = "Unknown", Reason.SUPERSEDED, Reason.SUPERSEDED
    elif (
        status.phase == Phase.ROLLING_BACK and status.history and status.history[0].outcome is Outcome.JUDGED
    ):
        ready, reason = "Unknown", Reason.PROGRESSING
        why = reason
    elif status.phase in (Phase.WATCHING, Phase.HEALTHY) and _nothing_ready(round):
        ready, reason, why = "False", Reason.STABLE_UNAVAILABLE, Reason.STABLE_UNAVAILABLE
    yield Wanted(ConditionType.READY, ready, reason, message)  # type: ignore[arg-type]
    if status.phase not in (Phase.WATCHING, Phase.HEALTHY) or ready != "True":
        yield Wanted(ConditionType.RECONCILING, "True", why, message)


def _nothing_ready(round: Round) -> bool:
    """Whether what the spec asks for has no ready pod."""
    return round.status.stable is not None and round.status.stable.ready == 0


def _names_another(round: Round) -> bool:
    """Whether the watch ends because the spec names a third revision."""
    status = round.status
    roles = (status.stable, status.previous)
    return status.phase == Phase.WATCHING and round.wish.revision not in {r.revision for r in roles if r}


def _metrics_available(round: Round) -> Wanted:
    status, kind = round.status, ConditionType.METRICS_AVAILABLE
    if status.phase not in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING, Phase.WATCHING):
        return Wanted(kind, "Unknown", Reason.NOT_MEASURED)
    if round.spec.analysis.mode == "Off":
        return Wanted(kind, "Unknown", Reason.NOT_MEASURED, "analysis.mode is Off")
    told = next((c for c in status.conditions if c.type == kind), None)
    named = {reason.value: reason for reason in Reason}
    if round.judged.data is Data.NONE:
        # After a restart, what the last poll said stands until the next one.
        if told is not None and told.status in ("True", "False") and told.reason in named:
            return Wanted(kind, told.status, named[told.reason], told.message)  # type: ignore[arg-type]
        return Wanted(kind, "Unknown", Reason.NOT_MEASURED, "nothing was polled yet")
    problem = round.judged.problem
    if status.failed_polls >= FAILED_POLLS:
        return Wanted(kind, "False", named.get(problem.split(":", 1)[0], Reason.METRICS_UNAVAILABLE), problem)
    quiet = QUIET_POLLS if told is None or told.reason not in _QUIET else 1
    if round.judged.quiet_polls >= quiet:
        late = problem.startswith(Reason.SAMPLES_LATE)
        return Wanted(kind, "False" if late else "True", _QUIET[late], problem)
    return Wanted(kind, "True", Reason.METRICS_AVAILABLE)


def _traffic_verified(round: Round) -> Wanted:
    kind, route = ConditionType.TRAFFIC_VERIFIED, round.seen.route
    if route.contested_by:
        return Wanted(kind, "False", Reason.ROUTE_CONTESTED, f"{route.contested_by} keeps changing the route")
    if round.judged.split_off or round.status.split_off_since is not None:
        return Wanted(kind, "False", Reason.TRAFFIC_MISMATCH, round.judged.split_off or "")
    if round.seen.route.routed_since is None:
        return Wanted(kind, "Unknown", Reason.AWAITING_ROUTE, route.problem or "")
    unseen = _unseen_split(round)
    if unseen:
        return Wanted(kind, "Unknown", Reason.SPLIT_NOT_CHECKED, unseen)
    return Wanted(kind, "True", Reason.TRAFFIC_VERIFIED)


def _unseen_split(round: Round) -> str:
    """Why nobody can say whether requests follow the weights; empty if the judge can, or if all go one way."""
    weights, step = round.status.weights, round.status.trying
    if weights.mirror:
        return "the candidate counts copies like requests"
    if weights.matched:
        return "how many requests match is not known"
    if not (weights.candidate and weights.stable) and not weights.previous:
        return ""
    if round.spec.analysis.mode == "Off":
        return "nothing is measured (analysis.mode is Off)"
    if all(metric.guardrail is not None for metric in round.spec.analysis.metrics):
        return "no metric counts requests"
    if round.pod_ratio:
        return "the number of ready pods makes the split"
    if step is not None and step.stickiness is not None:
        return "users are drawn, and some of them ask more than others"
    return ""
