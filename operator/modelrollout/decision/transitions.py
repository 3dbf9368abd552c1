"""Moves between phases. Each is one commit, and each leaves the record of why it happened."""

from __future__ import annotations

from dataclasses import replace

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.status import (
    HistoryEntry,
    Outcome,
    PauseStatus,
    Phase,
    PlanStep,
    Rejected,
    Retiring,
    RevisionStatus,
    StepStatus,
    WatchStatus,
    Weights,
)
from modelrollout.decision.round import Round
from modelrollout.evidence.engine import new_step
from modelrollout.planning.steps import compile_steps

HISTORY_LIMIT = 10


def model_label(round: Round) -> str | None:
    """Name and version of the model that the spec names."""
    model = round.spec.model
    return " ".join(part for part in (model.name, model.version) if part) or None


def first_step(plan: list[PlanStep], index: int) -> StepStatus:
    """The status of a step that has just been entered; its clock starts when its weight is routed."""
    return StepStatus(id=plan[index].id, index=index, count=len(plan), display=f"{index + 1}/{len(plan)}")


def begin(round: Round) -> Round:
    """Start a new attempt with the revision that the spec names."""
    attempt = round.status.attempt + 1
    revision, label = round.wish.revision, model_label(round)
    capacity = round.spec.workload.replicas
    plan = list(compile_steps(round.spec, attempt=attempt, capacity=capacity))
    entry = HistoryEntry(attempt=attempt, revision=revision, model=label, started_at=round.now)
    # A revision that comes back while it retires keeps its pods: they may still be answering (S3).
    kept = max((gone.desired for gone in round.status.retiring if gone.revision == revision), default=0)
    restarts = round.seen.of(revision).restarts
    round = round.put(
        phase=Phase.PROGRESSING,
        attempt=attempt,
        unproven=False,
        candidate=RevisionStatus(revision=revision, model=label, since=round.now, desired=kept),
        previous=None,
        retiring=[gone for gone in round.status.retiring if gone.revision != revision],
        rejected=None,
        capacity_at_start=capacity,
        weights=Weights(stable=100),
        plan=plan,
        step=first_step(plan, 0).model_copy(update={"restarts_at_start": restarts}),
        pause=None,
        deadline_at=None,
        deadline_left=round.spec.analysis.deadline,
        progress_deadline_at=None,
        rolling_back_since=None,
        split_off_since=None,
        outlier_since=None,
        outage_since=None,
        failed_polls=0,
        parked=False,
        watch=None,
        forecast=None,
        verdict=None,
        metrics=[],
        history=[entry, *round.status.history][:HISTORY_LIMIT],
    )
    shown = f"{label} ({revision})" if label else revision
    stable = round.status.stable.revision if round.status.stable else "nothing"
    round = round.say(EventReason.ROLLOUT_STARTED, f"attempt {attempt}: {shown} is tried against {stable}")
    round = round.wait(Reason.AWAITING_PODS, "the candidate's pods are being created")
    return replace(round, state=None)


def first_deployment(round: Round) -> Round:
    """Let the revision that the spec names serve, with nothing to compare it with."""
    status = round.status
    revision, label = round.wish.revision, model_label(round)
    retiring = [gone for gone in status.retiring if gone.revision != revision]
    if status.stable is not None:
        retiring.append(_retire(round, status.stable))
    entry = HistoryEntry(attempt=status.attempt + 1, revision=revision, model=label, started_at=round.now)
    history = status.history
    if history and history[0].ended_at is None:
        why = f"the spec names {revision}"
        history = [_closed(history[0], round.now, Outcome.SUPERSEDED, Reason.SUPERSEDED, why), *history[1:]]
    shown = f"{label} ({revision})" if label else revision
    return round.put(
        phase=Phase.PENDING,
        attempt=status.attempt + 1,
        stable=RevisionStatus(revision=revision, model=label, since=round.now),
        retiring=retiring,
        weights=Weights(stable=100),
        progress_deadline_at=None,
        history=[entry, *history][:HISTORY_LIMIT],
    ).say(EventReason.ROLLOUT_STARTED, f"first deployment: {shown}")


def adopt_serving(round: Round, revision: str) -> Round:
    """A restored cluster: the revision that serves is the stable one, and nothing is compared with the past."""
    label = model_label(round) if revision == round.wish.revision else None
    return round.put(
        phase=Phase.HEALTHY,
        stable=RevisionStatus(revision=revision, model=label, since=round.now, ever_ready=True),
        retiring=[gone for gone in round.status.retiring if gone.revision != revision],
        weights=Weights(stable=100),
    )


def healthy_first(round: Round) -> Round:
    """The end of the first deployment."""
    stable = round.status.stable
    assert stable is not None
    round = round.put(phase=Phase.HEALTHY, stable=stable.model_copy(update={"ever_ready": True}))
    round = _close(round, Outcome.PROMOTED, Reason.FIRST_DEPLOYMENT, "nothing to compare with", unproven=True)
    return round.say(EventReason.PROMOTED, f"first deployment: {stable.revision} serves")


def advance(round: Round) -> Round:
    """Enter the next step."""
    index = round.step.index + 1
    done, plan = round.step, round.status.plan
    step = first_step(plan, index)
    view = round.view(round.status.candidate)
    # What the baseline needed at the last raise still counts until the next one (S2).
    kept = {"restarts_at_start": view.restarts, "baseline_ready": done.baseline_ready}
    round = round.put(step=step.model_copy(update=kept))
    if round.state is not None:
        round = replace(round, state=new_step(round.state))
    round = round.say(EventReason.STEP_COMPLETED, f"step {done.display} completed")
    return round.say(EventReason.STEP_STARTED, f"step {step.display}: {plan[index].aim}")


def promote(round: Round, *, unproven: bool, why: str, reason: Reason = Reason.PROVEN_HARMLESS) -> Round:
    """Decide for the candidate; it grows to full size and takes over."""
    history = list(round.status.history)
    if history:
        history[0] = history[0].model_copy(update={"reason": reason, "message": why, "unproven": unproven})
    return round.put(
        phase=Phase.PROMOTING,
        unproven=unproven,
        pause=None,
        parked=False,
        progress_deadline_at=None,
        split_off_since=None,
        history=history,
    ).say(EventReason.STEP_COMPLETED, f"all steps done, the candidate takes over: {why}")


def stop(round: Round, *, unproven: bool, why: str, reason: Reason = Reason.PROVEN_HARMLESS) -> Round:
    """End an attempt with its verdict; nothing is taken over, and what ran for it goes the way back."""
    round = round.say(EventReason.STEP_COMPLETED, f"all steps done: {why}")
    return go_back(round, reason, why, outcome=Outcome.JUDGED, unproven=unproven)


def take_over(round: Round) -> Round:
    """The one commit in which the candidate becomes stable and the watch begins."""
    status, now = round.status, round.now
    assert status.candidate is not None
    duration = round.spec.watch.duration
    candidate = status.candidate.model_copy(update={"since": now, "ever_ready": True})
    round = round.put(
        phase=Phase.WATCHING,
        stable=candidate,
        candidate=None,
        previous=status.stable,
        weights=Weights(stable=status.weights.candidate, previous=status.weights.stable),
        watch=WatchStatus(ends_at=now + duration, latest=now + 2 * duration),
        step=None,
        plan=[],
        deadline_at=None,
        deadline_left=None,
        progress_deadline_at=None,
        outlier_since=None,
    )
    entry = status.history[0] if status.history else None
    reason, message = (entry.reason, entry.message) if entry else (None, None)
    round = _close(
        round,
        Outcome.PROMOTED,
        reason or Reason.PROMOTED,
        message or "",
        unproven=bool(entry and entry.unproven),
    )
    note = "promoted without proof" if entry and entry.unproven else "promoted"
    return round.say(EventReason.PROMOTED, f"{candidate.revision} {note}: {message or reason}")


def end_watch(round: Round, why: str) -> Round:
    """Take the last traffic from the previous revision; it is read back before its pods go."""
    watch = round.status.watch
    assert watch is not None
    if watch.ending:
        return round
    return round.put(watch=watch.model_copy(update={"ending": True})).say(EventReason.WATCH_COMPLETED, why)


def settle_watch(round: Round) -> Round:
    """The end of the watch: the previous revision is retired."""
    status = round.status
    assert status.previous is not None
    return replace(
        round.put(
            phase=Phase.HEALTHY,
            previous=None,
            retiring=[*status.retiring, _retire(round, status.previous)],
            weights=Weights(stable=100),
            watch=None,
            capacity_at_start=None,
            outage_since=None,
            failed_polls=0,
            split_off_since=None,
            outlier_since=None,
            pause=None,
        ),
        state=None,
    )


def go_back(
    round: Round,
    reason: Reason,
    why: str,
    *,
    outcome: Outcome = Outcome.ROLLED_BACK,
    unproven: bool = False,
) -> Round:
    """Take all traffic back to the baseline; from every phase this is one path."""
    status = round.status
    if round.phase == Phase.WATCHING:
        if outcome is Outcome.ROLLED_BACK:
            outcome = Outcome.ROLLED_BACK_AFTER_PROMOTION
        weights = Weights(stable=status.weights.previous, candidate=status.weights.stable)
        round = round.put(stable=status.previous, candidate=status.stable, previous=None, weights=weights)
    round = round.put(
        phase=Phase.ROLLING_BACK,
        rolling_back_since=round.now,
        watch=None,
        pause=None,
        step=None,
        plan=[],
        deadline_at=None,
        deadline_left=None,
        progress_deadline_at=round.now + round.spec.progress_deadline,
        outage_since=None,
        failed_polls=0,
        parked=False,
        split_off_since=None,
        outlier_since=None,
    )
    history = list(round.status.history)
    if history:
        update = {"outcome": outcome, "reason": reason, "message": why, "unproven": unproven}
        history[0] = history[0].model_copy(update=update)
    return replace(round.put(history=history), reason=reason)


def settle_rollback(round: Round) -> Round:
    """The end of the way back: the candidate has no traffic, its pods go after drainDelay."""
    status = round.status
    assert status.candidate is not None
    entry = status.history[0] if status.history else None
    outcome = (entry.outcome if entry else None) or Outcome.ROLLED_BACK
    reason, why = (entry.reason or "", entry.message or "") if entry else ("", "")
    gone, named = status.candidate, "" if round.frozen else round.wish.revision
    stable = status.stable.revision if status.stable else None
    tried = named != stable
    rolled_back = outcome in (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK_AFTER_PROMOTION) and tried
    # What was judged and not taken over is not judged again by itself.
    kept = rolled_back or (outcome is Outcome.JUDGED and tried)
    round = round.put(
        phase=Phase.ROLLED_BACK if rolled_back else Phase.HEALTHY,
        candidate=None,
        retiring=[*status.retiring, _retire(round, gone)],
        rejected=Rejected(revision=gone.revision, reason=reason) if kept else None,
        weights=Weights(stable=100),
        capacity_at_start=None,
        progress_deadline_at=None,
        rolling_back_since=None,
    )
    unproven = bool(entry and entry.unproven)
    round = _close(round, outcome, reason, why, unproven=unproven)
    happened = {
        Outcome.SUPERSEDED: EventReason.SUPERSEDED,
        Outcome.REVERTED: EventReason.REVERTED,
        Outcome.JUDGED: EventReason.JUDGED,
    }
    event = happened.get(outcome, EventReason.ROLLED_BACK)
    return replace(round.say(event, f"{gone.revision}: {reason}: {why}"), state=None)


def hold(round: Round, reason: Reason) -> Round:
    """Pause until somebody resumes, promotes or aborts."""
    return round.put(pause=PauseStatus(reason=reason, since=round.now))


def _retire(round: Round, role: RevisionStatus) -> Retiring:
    keep = role.desired if role.ready or role.desired else 0
    return Retiring(revision=role.revision, until=round.now + round.spec.drain_delay, desired=keep)


def _close(round: Round, outcome: Outcome, reason: str, message: str, *, unproven: bool = False) -> Round:
    if not round.status.history:
        return round
    entry = _closed(round.status.history[0], round.now, outcome, reason, message, unproven=unproven)
    return round.put(history=[entry, *round.status.history[1:]])


def _closed(
    entry: HistoryEntry, now: float, outcome: Outcome, reason: str, message: str, *, unproven: bool = False
) -> HistoryEntry:
    update = {
        "outcome": outcome,
        "reason": reason,
        "message": message,
        "unproven": unproven,
        "ended_at": now,
    }
    return entry.model_copy(update=update)
