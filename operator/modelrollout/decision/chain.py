"""The chain: every rule that moves a rollout, in the order in which they are asked. The first that matches decides.

Read `CHAIN` at the end of this file first. Each link takes the round and returns the round it decided on, or None if it
does not match. What must hold whatever the chain decides (weights, sizes) stands in `capacity.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.requests import annotation_of, format_request
from modelrollout.api.status import Outcome, Phase
from modelrollout.decision.capacity import at_goal, full_size, full_weight, needed
from modelrollout.decision.explain import evidence_summary, harm_summary, pods_summary, reward_text, span
from modelrollout.decision.gates import awaiting, failure_advice, gate_failed
from modelrollout.decision.round import Round
from modelrollout.decision.transitions import (
    advance,
    begin,
    end_watch,
    first_deployment,
    go_back,
    healthy_first,
    hold,
    promote,
    settle_rollback,
    settle_watch,
    stop,
    take_over,
)
from modelrollout.decision.types import Data
from modelrollout.evidence.assessment import may_advance
from modelrollout.evidence.verdict import MetricAssessment

UNSTABLE_LIMIT = 3  # restarts, or losses of readiness, in one step
SETTLED_POLLS = 8  # that a promotion rests on, in the last step

F, P, W, B = Phase.PENDING, Phase.PROMOTING, Phase.WATCHING, Phase.ROLLING_BACK
H, R = Phase.HEALTHY, Phase.ROLLED_BACK
C = (Phase.PROGRESSING, Phase.PAUSED)


# 3: the spec names the old revision again


def reverted(round: Round) -> Round | None:
    """Back to the revision that served before, because the spec names it again."""
    status, named = round.status, round.wish.revision
    if round.phase in (R, H):
        if status.rejected is None or status.stable is None or named != status.stable.revision:
            return None
        done = round.put(phase=H, rejected=None)
        return done.say(EventReason.REVERTED, f"the spec names {named} again, which serves")
    old = status.previous if round.phase == W else status.stable
    if old is None or named != old.revision:
        return None
    why = f"the spec names {named} again"
    return go_back(round, Reason.REVERTED, why, outcome=Outcome.REVERTED)


# 4, 5, 5a: what people ask for


def aborted(round: Round) -> Round | None:
    """Somebody asked for the way back."""
    if "abort" not in round.asked:
        return None
    why = f"asked for by the annotation {annotation_of('abort')}"
    return go_back(round.say(EventReason.ABORTED, why), Reason.ABORTED, why)


def superseded(round: Round) -> Round | None:
    """The spec names another revision than the one that is tried."""
    status, named = round.status, round.wish.revision
    if round.phase == F:
        return first_deployment(round) if status.stable and named != status.stable.revision else None
    if round.phase in C:
        if status.candidate and named == status.candidate.revision:
            return None
        why = f"the spec names {named}"
        return go_back(round, Reason.SUPERSEDED, why, outcome=Outcome.SUPERSEDED)
    known = {role.revision for role in (status.stable, status.previous, status.rejected) if role}
    if named in known:
        return None
    if round.phase != W:
        return begin(round)
    # Once the end is decided, link 16 waits for it, and starts the new one in the same commit.
    ending = round.status.watch is not None and round.status.watch.ending
    return None if ending else end_watch(round, f"the spec names {named}: the watch ends early")


def retried(round: Round) -> Round | None:
    """Somebody asked for another attempt with a revision that was tried before."""
    return begin(round) if "retry" in round.asked else None


# 6, 6a, 7: what must not go on


def too_late(round: Round) -> Round | None:
    """Pods or route were not there within the progress deadline."""
    deadline = round.status.progress_deadline_at
    if deadline is None or round.now < deadline:
        return None
    view = round.view(round.status.candidate)
    desired = round.status.candidate.desired if round.status.candidate else 0
    short = view.ready < desired
    if not short and round.seen.route.routed_since is not None:
        return None  # all is there, if late: an operator that was away must not roll back what works
    ours = round.spec.workload.services is None
    if short and ours and view.desired < desired and not round.seen.refused:
        return None  # nobody asked for these pods, nor was refused: the operator, the API server or a webhook was away
    if short:
        why = f"{pods_summary(round, round.status.candidate)} within progressDeadline"
        return go_back(round, Reason.PROGRESS_DEADLINE_EXCEEDED, why)
    route = round.seen.route
    other = f"{route.contested_by} keeps changing it" if route.contested_by else ""
    problem = other or route.problem or "its new weights were not accepted"
    return go_back(round, Reason.ROUTE_NOT_ACCEPTED, f"the route: {problem}")


def dead(round: Round) -> Round | None:
    """The promoted revision had no ready pod for as long as pods may take, and the way back is there."""
    deadline, stable = round.status.progress_deadline_at, round.status.stable
    if deadline is None or round.now < deadline or round.view(stable).ready:
        return None
    why = f"{pods_summary(round, stable)} within progressDeadline"
    return go_back(round, Reason.PROGRESS_DEADLINE_EXCEEDED, why)


def unstable(round: Round) -> Round | None:
    """The candidate's containers restart, or lose readiness, again and again."""
    step, view = round.step, round.view(round.status.candidate)
    restarts = view.restarts - (step.restarts_at_start or 0)
    if restarts < UNSTABLE_LIMIT and step.ready_drops < UNSTABLE_LIMIT:
        return None
    detail = f": {view.waiting[0]}" if view.waiting else ""
    counted = (
        f"its containers restarted {restarts} times in step {step.display}"
        if restarts >= UNSTABLE_LIMIT
        else f"it had too few ready pods {step.ready_drops} times in step {step.display}"
    )
    why = f"{counted}{detail}"
    return go_back(round.say(EventReason.CANDIDATE_UNSTABLE, why), Reason.CANDIDATE_UNSTABLE, why)


def harmful(round: Round) -> Round | None:
    """Proven harm, or a guardrail that was breached often enough."""
    for guardrail in round.judged.guardrails:
        if guardrail.breached and guardrail.gating and guardrail.value is not None:
            why = f"{guardrail.name} is {guardrail.value:g}, wanted {guardrail.bound}, {guardrail.breaches} times in a row"
            return go_back(round.say(EventReason.GUARDRAIL_BREACHED, why), Reason.GUARDRAIL_BREACHED, why)
    alarm = round.judged.alarm
    if round.phase == W and alarm and round.spec.watch.on_alarm == "Rollback":
        return go_back(round, Reason.WATCH_ALARM, alarm)
    assessment = round.judged.assessment
    if assessment is None or not assessment.harm or assessment.harmless:
        return None
    judged = round.status.stable if round.phase == W else round.status.candidate
    why = harm_summary(assessment, judged)
    return go_back(round.say(EventReason.HARM_PROVEN, why), Reason.HARM_PROVEN, why)


def outlier(round: Round) -> Round | None:
    """Harm that rests on one group of pods holds: it may be a node and not the model. What people ask for, the deadline
    and an outage come first, or the hold would have no end."""
    assessment = round.judged.assessment
    if assessment is None or not assessment.outlier or _watch_ending(round):
        return None
    pod = assessment.outlier_pod or "one group of pods"
    why = f"harm rests on {pod} alone: look at that pod and its node"
    if round.status.outlier_since is None:
        round = round.put(outlier_since=round.now).say(EventReason.POD_OUTLIER, why)
    if round.phase == W and _watch_over(round):
        return None
    if round.phase == P:
        # No deadline runs any more. It was proven harmless or asked for, and the watch goes on comparing.
        patience = max(round.spec.watch.duration, round.spec.progress_deadline)
        if round.now >= (round.status.outlier_since or round.now) + patience:
            return None
        why += f"; abort takes the traffic back, else the promotion goes on {span(patience)} after that was found"
    return _going(round).wait(Reason.POD_OUTLIER, why, active_runs=round.comparing)


# 8, 8a: decisions that were handed over


def promotion_requested(round: Round) -> Round | None:
    """Somebody asked to promote now, or to end the watch now."""
    if "promote" not in round.asked:
        return None
    why = f"asked for by the annotation {annotation_of('promote')}"
    if round.phase == W:
        return end_watch(round, why)
    return promote(round, unproven=not _all_proven(round), why=why, reason=Reason.PROMOTE_REQUESTED)


def deadline_passed(round: Round) -> Round | None:
    """More time has gone than the steps ask for and the deadline allows, and nothing is proven."""
    status = round.status
    if status.deadline_at is None or round.now < status.deadline_at or status.unproven or status.pause:
        return None
    if blind(round) or round.judged.pending or _all_proven(round):
        return None
    wanted = round.spec.analysis.on_inconclusive
    why = f"neither harm nor harmlessness was proven within {span(round.spec.analysis.deadline)}: {evidence_summary(round)}"
    round = round.say(EventReason.INCONCLUSIVE, why)
    if wanted == "Rollback":
        return go_back(round, Reason.INCONCLUSIVE, why)
    if wanted == "Promote":
        # From now on the steps go on to the end without proof; every other rule holds.
        return round.put(unproven=True).wait(
            Reason.PROGRESSING, "the deadline passed: going on without proof", step_runs=True
        )
    round = hold(round.put(deadline_at=None, deadline_left=None), Reason.INCONCLUSIVE)
    return _paused(round, Reason.INCONCLUSIVE, why)


# 9 – 13: what is waited for


def paused(round: Round) -> Round | None:
    """A pause by the spec, by request, or by the operator."""
    pause = round.status.pause
    if not round.spec.paused and pause is None:
        return None
    reason = next((known for known in _PAUSES if pause and known == pause.reason), Reason.PAUSED)
    detail = _PAUSES.get(reason, "paused by spec.paused")
    if reason is Reason.GATE_FAILED:
        detail = failure_advice(round)
    if round.phase == W:
        return None if _watch_ending(round) else round.wait(reason, f"watch held: {detail}")
    return _paused(round, reason, detail)


_PAUSES = {
    Reason.USER_REQUEST: "paused by request; resume with modelrollout.dev/resume",
    Reason.INCONCLUSIVE: "nothing is proven within the deadline: promote, abort, or resume for one more deadline",
    Reason.GATE_FAILED: "a gate failed",  # `failure_advice` says which
    Reason.TRAFFIC_MISMATCH: (
        "the observed split is not what the route says: look for callers that bypass the route, long-lived connections "
        "and probes that are counted as requests; then resume"
    ),
}


def _paused(round: Round, reason: Reason, why: str) -> Round:
    if round.phase != Phase.PAUSED:
        round = round.say(EventReason.PAUSED, why)
    return round.put(phase=Phase.PAUSED).wait(reason, why)


def blind(round: Round) -> bool:
    """Whether gating metrics can't be read. Missing data never count for or against a candidate."""
    if round.judged.data in (Data.UNAVAILABLE, Data.NOT_SCRAPED):
        return True
    return round.judged.data is Data.NONE and round.status.outage_since is not None


def metrics_away(round: Round) -> Round | None:
    """Hold weight and clocks while metrics can't be read; after a long outage the candidate gets no requests."""
    if not blind(round):
        return None
    status = round.status
    if round.phase == W and (_watch_over(round) or _watch_ending(round)):
        return None
    scraped = round.judged.data is not Data.NOT_SCRAPED
    reason = Reason.METRICS_UNAVAILABLE if scraped else Reason.NOT_SCRAPED
    why = round.judged.problem or "metrics can't be read"
    since = status.outage_since
    if round.phase in C and since is not None and round.now >= since + round.spec.analysis.outage:
        if not status.parked:
            text = f"no metrics for {span(round.now - since)}: the candidate gets no requests until they are back"
            round = round.put(parked=True).say(EventReason.METRICS_UNAVAILABLE, text)
        return _going(round).wait(Reason.PARKED, f"parked at 0 %: {why}")
    return _going(round).wait(reason, f"held: {why}")


def _going(round: Round) -> Round:
    return round.put(phase=Phase.PROGRESSING) if round.phase in C else round


def not_carried(round: Round) -> Round | None:
    """The clock is held until pods and route carry the step's weight and requests are split that way."""
    status, route = round.status, round.seen.route
    going = replace(_going(round), may_raise=True)
    if route.contested_by:
        return going.wait(
            Reason.ROUTE_CONTESTED, f"{route.contested_by} keeps changing the route", active_runs=True
        )
    if round.view(status.stable).ready == 0 and status.weights.candidate == 100:
        why = f"no pod of the baseline is ready, so the candidate carries everything: {pods_summary(round, status.stable)}"
        return going.wait(Reason.STABLE_UNAVAILABLE, why, active_runs=True)
    if not at_goal(round) or round.view(status.candidate).ready < needed(round):
        ready = round.settled(status.candidate) >= needed(round)
        what = "pods are ready, traffic follows" if ready else pods_summary(round, status.candidate)
        return going.wait(Reason.AWAITING_PODS, what, active_runs=True)
    if not round.routed:
        detail = f": {route.problem}" if route.problem else ""
        return going.wait(Reason.AWAITING_ROUTE, f"waiting for the route{detail}", active_runs=True)
    if status.split_off_since is None:
        return None
    why = f"the split is off: {round.judged.split_off or 'not what the route says'}"
    if round.now < status.split_off_since + round.timing.split_hold:
        return going.wait(Reason.TRAFFIC_MISMATCH, why, active_runs=True)
    round = hold(round, Reason.TRAFFIC_MISMATCH).say(EventReason.TRAFFIC_MISMATCH, why)
    return _paused(round, Reason.TRAFFIC_MISMATCH, why)


def counted_requests(round: Round) -> float:
    """Candidate requests so far, by the first gating ratio or latency metric, else by the first metric."""
    metrics = round.judged.assessment.metrics if round.judged.assessment else ()
    counting = [m for m in metrics if m.gating and m.kind in ("ratio", "latency")] or list(metrics)
    return counting[0].candidate_requests if counting else 0.0


def unfinished(round: Round) -> Round | None:
    """The step has not lasted long enough, or has not seen enough requests."""
    round = replace(_going(round), may_raise=True)
    step = round.step
    if step.started_at is None:
        return round.wait(
            Reason.AWAITING_ROUTE, "the step starts once its weight is routed", active_runs=True
        )
    timed, over = round.plan_step.timed, _step_over(round)
    if not over and not (timed and superior(round)):
        return round.wait(Reason.AWAITING_DURATION, evidence_summary(round), step_runs=True)
    # With mode Off nobody counts.
    wanted = round.plan_step.min_requests if round.spec.analysis.mode == "On" else 0
    seen = max(0.0, counted_requests(round) - step.requests_at_start)
    if seen < wanted and not (timed and over):
        return round.wait(
            Reason.AWAITING_REQUESTS,
            f"{seen:.0f} of {wanted} requests answered by the candidate",
            step_runs=True,
            active_runs=True,
        )
    return None


def _step_over(round: Round) -> bool:
    """Whether the step has lasted for its duration."""
    step = round.step
    end = step.ends_at if step.ends_at is not None else round.now + (step.left or 0.0)
    return round.now >= end


def gated(round: Round) -> Round | None:
    """The step is over and waits for its gates."""
    return awaiting(round)


def unapproved(round: Round) -> Round | None:
    """The step is over and waits for an approval."""
    if not round.plan_step.approval or round.step.approved:
        return None
    candidate = round.status.candidate
    value = format_request(revision=candidate.revision if candidate else "", step=round.step.id)
    command = f"kubectl -n {round.wish.namespace} annotate --overwrite mro {round.wish.name} {annotation_of('approve')}={value}"
    why = f"step {round.step.display} is over; approve it with: {command}"
    if round.phase != Phase.PAUSED:
        round = round.say(EventReason.AWAITING_APPROVAL, why)
    return replace(
        round.put(phase=Phase.PAUSED).wait(Reason.AWAITING_APPROVAL, why, step_runs=True), may_raise=True
    )


# 14, 15: forward


def further_step(round: Round) -> Round | None:
    """Enter the next step, if there are data to judge it by and, for planned steps, if evidence allows it."""
    step, status = round.step, round.status
    if step.index + 1 >= len(status.plan):
        return None
    going = replace(_going(round), may_raise=True)
    running = {"step_runs": True, "active_runs": True}
    if round.frozen:
        return going.wait(Reason.PROGRESSING, "the next step waits for an acceptable spec", **running)
    if _unlooked(round):
        return going.wait(Reason.AWAITING_DATA, "nothing was polled yet", **running)
    if round.spec.analysis.mode == "On" and not status.unproven and round.plan_step.load:
        blank = [m.name for m in judging(round) if not m.has_data]
        if round.judged.assessment is None or blank:
            names = ", ".join(blank) or "any metric"
            return going.wait(Reason.AWAITING_DATA, f"the newest poll has no data for {names}", **running)
        if round.plan_step.proof and not proven(round):
            return going.wait(Reason.AWAITING_EVIDENCE, evidence_summary(round), **running)
        if round.plan_step.planned and not _evidence_allows(round, status.plan[step.index + 1].weight):
            return going.wait(Reason.AWAITING_EVIDENCE, evidence_summary(round), **running)
    return _answered(going, advance)


def _answered(going: Round, move: Callable[..., Round], **why: Any) -> Round:
    """A move forward, unless samples are due that are not read yet: what is newest may speak against it."""
    if not going.judged.pending:
        return move(going, **why)
    return going.wait(
        Reason.AWAITING_DATA,
        "the newest samples are not read yet",
        step_runs=True,
        active_runs=True,
    )


def _unlooked(round: Round) -> bool:
    """Whether Prometheus was not asked yet, as after a restart; going on without proof is not going on without a look."""
    judged = round.judged
    return round.spec.analysis.mode == "On" and judged.assessment is None and judged.data is Data.NONE


def _evidence_allows(round: Round, weight: int) -> bool:
    analysis, assessment = round.spec.analysis, round.judged.assessment
    if assessment is None:
        return False
    return may_advance(
        assessment,
        weight,
        settle=analysis.settle,
        scrape_interval=analysis.scrape_interval,
        delay=round.judged.delay,
        interval=analysis.interval,
        exposure_budget=analysis.exposure_budget,
        rate=round.judged.rate,
    )


def _gating(round: Round) -> list[MetricAssessment]:
    metrics = round.judged.assessment.metrics if round.judged.assessment else ()
    return [metric for metric in metrics if metric.gating]


def judging(round: Round) -> list[MetricAssessment]:
    """The gating metrics that can say something in this step: no label ever arrives for a copy of a request, so scores
    don't where there are only copies."""
    only_copies = round.plan_step.weight == 0 and not round.plan_step.matches
    return [metric for metric in _gating(round) if not (only_copies and metric.kind == "score")]


def superior(round: Round) -> bool:
    """Whether the candidate is proven better now in the reward that the step names, by enough settled polls of it."""
    found = [m for m in judging(round) if m.name == round.plan_step.reward]
    return any(m.superior and m.has_data and m.settled_polls >= SETTLED_POLLS for m in found)


def proven(round: Round) -> bool:
    """Whether the candidate is proven harmless now, by enough settled polls of the present step; what is better is."""
    found = judging(round)
    if round.spec.analysis.mode == "Off" or not found:
        return False
    fresh = all(metric.has_data for metric in found)
    polls = min(metric.settled_polls for metric in found)
    return fresh and all(metric.harmless or metric.superior for metric in found) and polls >= SETTLED_POLLS


def _all_proven(round: Round) -> bool:
    return round.step.index + 1 == len(round.status.plan) and proven(round)


def finished(round: Round) -> Round | None:
    """The last step: promote what is proven, or end with the verdict if the plan says so; wait for what is not, and then
    for the gates before the promotion."""
    going = replace(_going(round), may_raise=True)
    if round.frozen:
        return going.wait(
            Reason.PROGRESSING, "the promotion waits for an acceptable spec", step_runs=True, active_runs=True
        )
    verdict = _contested(round) if _contests(round) else _verdict(round)
    if verdict is None:
        return going.wait(Reason.AWAITING_EVIDENCE, evidence_summary(round), step_runs=True, active_runs=True)
    held = awaiting(round, promotion=True) if verdict.promotes else None
    if held is not None:
        return held
    end = promote if verdict.promotes else stop
    return _answered(going, end, unproven=verdict.unproven, why=verdict.why, reason=verdict.reason)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How the last step may end: with the promotion or without, and whether that is proven."""

    promotes: bool
    unproven: bool
    why: str
    reason: Reason


def _verdict(round: Round) -> _Verdict | None:
    """What the comparison came to; None if it has to go on."""
    analysis, assessment, promotes = round.spec.analysis, round.judged.assessment, not round.plan_step.stop
    if analysis.mode == "Off":
        return _Verdict(promotes, True, "analysis.mode is Off", Reason.NOT_PROVEN)
    if _all_proven(round):
        return _Verdict(promotes, False, evidence_summary(round), Reason.PROVEN_HARMLESS)
    if not round.plan_step.load and not _unlooked(round):
        why = "the candidate got no requests that could be compared"
        return _Verdict(promotes, True, why, Reason.NOT_PROVEN)
    polls = assessment.settled_polls if assessment else 0
    nothing_to_prove = not any(metric.gating and metric.kind != "guardrail" for metric in analysis.metrics)
    if nothing_to_prove and polls >= SETTLED_POLLS:
        return _Verdict(promotes, True, "no gating metric carries an error bound", Reason.NOT_PROVEN)
    if round.status.unproven and not _unlooked(round):
        return _Verdict(promotes, True, "the deadline passed without proof", Reason.INCONCLUSIVE)
    return None


def _contests(round: Round) -> bool:
    return round.plan_step.timed and round.spec.analysis.mode == "On"


def _contested(round: Round) -> _Verdict | None:
    """A winner takes over; without one by the end of the time, the plan says what becomes of the candidate."""
    harmless, chosen, unlooked = proven(round), not round.judged_at_random, _unlooked(round)
    if superior(round) and harmless:
        return _Verdict(True, False, _won(round), Reason.PROVEN_SUPERIOR)
    if unlooked or not _step_over(round):
        return None
    why = evidence_summary(round)
    if round.plan_step.stop or not (harmless or round.status.unproven or chosen or not judging(round)):
        return _Verdict(False, not harmless, why, Reason.NOT_SUPERIOR)
    reason = Reason.PROVEN_HARMLESS if harmless else Reason.NOT_PROVEN
    return _Verdict(True, not harmless, why, reason)


def _won(round: Round) -> str:
    return "; ".join(reward_text(m) for m in judging(round) if m.name == round.plan_step.reward)


# 16: the end of a phase


def phase_ends(round: Round) -> Round:
    """What ends a phase other than comparing; and what it waits for until then."""
    ends = {F: _first_ends, P: _promotion_ends, W: _watch_ends, B: _way_back_ends}
    phase = round.phase
    return ends[phase](round) if phase in ends else round


def _first_ends(round: Round) -> Round:
    stable = round.status.stable
    assert stable is not None
    view = round.view(stable)
    if view.ready < round.spec.workload.replicas:
        return round.wait(Reason.AWAITING_PODS, pods_summary(round, stable))
    if not round.routed:
        problem = round.seen.route.problem
        return round.wait(Reason.AWAITING_ROUTE, f"waiting for the route{f': {problem}' if problem else ''}")
    return healthy_first(round)


def _promotion_ends(round: Round) -> Round:
    status = round.status
    round = replace(round, may_raise=True)
    complete = round.view(status.candidate).ready >= full_size(round)
    # It may have more: all of it, when the baseline lost its last ready pod.
    if not complete or status.weights.candidate < full_weight(round):
        return round.wait(Reason.AWAITING_PODS, pods_summary(round, status.candidate))
    if not round.routed:
        return round.wait(Reason.AWAITING_ROUTE, "waiting for the route")
    return take_over(round)


def _watch_over(round: Round) -> bool:
    watch = round.status.watch
    return watch is not None and round.now >= watch.latest


def _watch_ending(round: Round) -> bool:
    """Whether the end of the watch has been decided; then nothing but the way back stops it."""
    return round.phase == W and round.status.watch is not None and round.status.watch.ending


def _watch_ends(round: Round) -> Round:
    watch = round.status.watch
    assert watch is not None
    lost = round.view(round.status.stable).ready == 0
    needed_still = lost and round.view(round.status.previous).ready > 0
    if needed_still or (lost and not watch.ending):
        return round.wait(Reason.STABLE_UNAVAILABLE, "its end waits for a ready pod of the promoted revision")
    if watch.ending and round.status.weights.previous == 0 and round.routed:
        return _start_named(settle_watch(round))
    if watch.ending:
        return round.wait(Reason.WATCHING, "taking the last traffic from the previous revision")
    due = watch.ends_at if watch.ends_at is not None else round.now + (watch.left or 0.0)
    if round.now >= due or _watch_over(round):
        return end_watch(round, f"no harm was found within the watch: {evidence_summary(round)}")
    return round.wait(Reason.WATCHING, evidence_summary(round), watch_runs=True)


def _way_back_ends(round: Round) -> Round:
    status = round.status
    history = status.history[0] if status.history else None
    why = (history.message or history.reason or "") if history else ""
    serving = round.seen.route.weights or {}
    gone = status.candidate is not None and serving.get(status.candidate.revision, 0) == 0
    # S1 comes first: where only the candidate has ready pods, its traffic is not gone for long.
    needed_still = round.view(status.stable).ready == 0 and round.view(status.candidate).ready > 0
    if status.weights.candidate or not round.routed or not gone or needed_still:
        return round.wait(Reason.ROLLING_BACK, why)
    return _start_named(settle_rollback(round))


def _start_named(round: Round) -> Round:
    """At rest: start what the spec names by now, in the same commit, so that nobody reads Healthy for a spec that is not
    served."""
    return round if round.frozen else superseded(round) or round


@dataclass(frozen=True, slots=True)
class Link:
    """One rule: its number in the design, where it is asked, and whether it moves forward (then a spec that is not
    acceptable stops it)."""

    number: str
    phases: tuple[Phase, ...]
    rule: Callable[[Round], Round | None]
    forward: bool = False


CHAIN: tuple[Link, ...] = (
    Link("3", (*C, P, W, H, R), reverted, forward=True),
    Link("4", (*C, P, W), aborted),
    Link("5", (F, *C, W, H, R), superseded, forward=True),
    Link("5a", (H, R), retried, forward=True),
    # In F and B nothing is taken back: readiness heals it, and the conditions say Stalled meanwhile.
    Link("6", (*C, P), too_late),
    Link("6", (W,), dead),
    Link("6a", C, unstable),
    Link("7", (*C, P, W), harmful),
    Link("8", (*C, W), promotion_requested, forward=True),
    Link("8a", C, deadline_passed),
    Link("8b", C, gate_failed),
    Link("9", (*C, W), paused),
    Link("10", (*C, W), metrics_away),
    Link("7", (*C, P, W), outlier),
    Link("11", C, not_carried),
    Link("12", C, unfinished),
    Link("13", C, gated),
    Link("13a", C, unapproved),
    Link("14", C, further_step),
    Link("15", C, finished),
    Link("16", (F, P, W, B), phase_ends),
)


def run_chain(round: Round) -> Round:
    """The round as the first matching link decided it."""
    for link in CHAIN:
        if round.phase not in link.phases or (link.forward and round.frozen):
            continue
        decided = link.rule(round)
        if decided is not None:
            return replace(decided, link=link.number)
    return round
