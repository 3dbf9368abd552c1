"""`decide`: from what was seen to what is committed. It holds all of the policy, does no I/O and reads no clock."""

from __future__ import annotations

from dataclasses import replace

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.spec import Spec
from modelrollout.api.status import PauseStatus, Phase, RestartStatus, Retiring, Status, UndoStatus
from modelrollout.decision.capacity import at_goal, needed, set_sizes, set_weights, size_before
from modelrollout.decision.chain import UNSTABLE_LIMIT, counted_requests, run_chain
from modelrollout.decision.clocks import set_clocks
from modelrollout.decision.gates import ask_anew, next_asking, note_gates
from modelrollout.decision.plans import follow_durations, follow_plan
from modelrollout.decision.report import FAILED_POLLS, report
from modelrollout.decision.requests import read_requests
from modelrollout.decision.round import Round
from modelrollout.decision.transitions import adopt_serving, first_deployment
from modelrollout.decision.types import (
    DEFAULT_TIMING,
    NOT_JUDGED,
    Data,
    Decision,
    Judgement,
    Observation,
    Timing,
    Wish,
)

PROLONG = 30.0  # seconds that a revision which answers alone stays at a time
FORWARD = (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING)
ACTIVE = (*FORWARD, Phase.WATCHING, Phase.ROLLING_BACK)


def decide(
    wish: Wish,
    status: Status,
    seen: Observation,
    judged: Judgement = NOT_JUDGED,
    *,
    now: float,
    timing: Timing = DEFAULT_TIMING,
) -> Decision:
    """One round. Raises nothing: whatever is wrong with the object becomes a condition.

    `now` is epoch seconds. The returned status is `status` itself where nothing changed.
    """
    if wish.deleting:
        return Decision(status=status, state=judged.state)
    spec, refusal = _accepted_spec(wish, status)
    if spec is None:
        return _invalid(wish, status, refusal, now)
    round = Round(
        wish=wish,
        spec=spec,
        seen=seen,
        judged=judged,
        now=now,
        timing=timing,
        before=status,
        status=status,
        state=judged.state,
        frozen=refusal is not None,
        refusal=refusal,
    )
    round = _refusal_event(round)
    if status.phase in (None, Phase.INVALID):
        if refusal is not None:
            return _invalid(wish, status, refusal, now)
        round = _enter(read_requests(round))
    else:
        round = apply_requests(follow_durations(read_requests(round)))
        round = note_gates(follow_plan(round))
        round = note_alarm(note_data(note_pods(note_restarts(round))))
        round = run_chain(start_clock(round))
    return _finish(round)


def _finish(round: Round) -> Decision:
    round = set_sizes(set_weights(round))
    round = replace(
        round,
        status=set_clocks(
            round.status,
            step_runs=round.step_runs,
            active_runs=round.active_runs,
            watch_runs=round.watch_runs,
            now=round.now,
        ),
    )
    round = _weight_event(_progress_deadline(_retired(round)))
    if not round.frozen:
        round = round.put(accepted=round.spec.without_template())
    round = report(round)
    return Decision(
        status=round.status,
        state=round.state,
        events=round.events,
        link=round.link,
        assessment=round.judged.assessment,
        requeue_at=next_time(round),
    )


# The spec


def _accepted_spec(wish: Wish, status: Status) -> tuple[Spec | None, tuple[Reason, str] | None]:
    """The spec to act on, and why the present one is not it."""
    if wish.spec is None:
        return wish.fallback, (wish.reason or Reason.INVALID_SPEC, wish.problem)
    old = wish.fallback
    if old is None or status.phase not in ACTIVE:
        return wish.spec, None
    changed = []
    if wish.spec.traffic != old.traffic:
        changed.append("spec.traffic")
    if wish.spec.service_name(wish.name) != old.service_name(wish.name):
        changed.append("spec.service.name")
    if not changed:
        return wish.spec, None
    why = f"{' and '.join(changed)} can't change during a rollout: put it back, or wait for its end, or abort"
    return old, (Reason.NOT_NOW, why)


def _refusal_event(round: Round) -> Round:
    if round.unchecked or round.refusal is None:
        return round
    reason, why = round.refusal
    known = {c.message for c in round.status.conditions if c.type == "Accepted" and c.status == "False"}
    return round if why in known else round.say(EventReason.INVALID, f"{reason}: {why}")


def _invalid(wish: Wish, status: Status, refusal: tuple[Reason, str] | None, now: float) -> Decision:
    """There is nothing to act on: neither a spec that was ever accepted nor a revision. A spec that nobody could check yet
    makes no phase: nothing is wrong with it."""
    blank = Round(
        wish=wish,
        spec=_BLANK,
        seen=Observation(),
        judged=NOT_JUDGED,
        now=now,
        timing=DEFAULT_TIMING,
        before=status,
        status=status,
        frozen=True,
        refusal=refusal or (Reason.INVALID_SPEC, "the spec can't be read"),
    )
    phase = status.phase if blank.unchecked else Phase.INVALID
    round = report(_refusal_event(read_requests(blank).put(phase=phase)))
    return Decision(status=round.status, state=None, events=round.events)


_BLANK = Spec.from_wire({"workload": {}, "service": {"ports": [{"port": 80}]}})


def _enter(round: Round) -> Round:
    """The first round of an object: a restored cluster goes on with what serves, else this is the first deployment."""
    pinned = round.seen.pinned
    if round.spec.workload.services is None:
        # Whatever else has pods of ours may have traffic, which nobody remembers (S3).
        until = round.now + round.spec.drain_delay
        found = [(name, view.desired) for name, view in round.seen.revisions.items() if view.desired]
        round = round.put(retiring=[Retiring(revision=name, until=until, desired=n) for name, n in found])
    # Invalid with nothing that serves is as good as empty: the first spec that was read was a bad one.
    if pinned and round.seen.of(pinned).ready:
        return run_chain(adopt_serving(round, pinned))
    return first_deployment(round)


# What was seen


def apply_requests(round: Round) -> Round:
    """The round with what approve, pause, resume, undo and restart ask for."""
    if "approve" in round.asked:
        round = round.put_step(approved=True)
    if "pause" in round.asked and round.status.pause is None:
        round = round.put(pause=PauseStatus(reason=Reason.USER_REQUEST, since=round.now))
    pause = round.status.pause
    if "resume" in round.asked and pause is not None:
        round = round.put(pause=None).say(EventReason.RESUMED, "resumed by request")
        if pause.reason == Reason.INCONCLUSIVE:
            round = round.put(deadline_at=None, deadline_left=round.spec.analysis.deadline)
        if pause.reason == Reason.TRAFFIC_MISMATCH:
            round = round.put(split_off_since=None)
        if pause.reason == Reason.GATE_FAILED and round.status.step is not None:
            round = ask_anew(round)
    return _resume_watch(_restart(_undo(round)))


def _undo(round: Round) -> Round:
    """The round with the revision that is asked for in place of the spec's. It is what `Wish.revision` names from the next
    round on; and it ends when the spec names another one."""
    asked, undo, written = round.asked.get("undo"), round.status.undo, round.wish.written
    if asked is None:
        over = undo is not None and not round.frozen and written not in ("", undo.over)
        return round.put(undo=None) if over else round
    if asked.revision == written:
        return round.put(undo=None).say(
            EventReason.UNDONE, f"what the spec names, {written}, is asked for again"
        )
    why = f"{asked.revision} is asked for in place of {written}, until the spec names another revision"
    return round.put(undo=UndoStatus(revision=asked.revision, over=written)).say(EventReason.UNDONE, why)


def _restart(round: Round) -> Round:
    """The round with restarts noted, and forgotten once their revision has no role any more."""
    asked, status = round.asked.get("restart"), round.status
    roles = {role.revision for role in (status.stable, status.candidate, status.previous) if role}
    kept = [one for one in status.restarted if one.revision in roles]
    if asked is not None:
        kept = [one for one in kept if one.revision != asked.revision]
        kept.append(RestartStatus(revision=asked.revision, at=round.now))
        round = round.say(
            EventReason.RESTARTED, f"the pods of {asked.revision} are made anew, one after the other"
        )
    return round if kept == status.restarted else round.put(restarted=kept)


def _resume_watch(round: Round) -> Round:
    """The round with what a pause took from the watch given back: only what is held without being asked for is bounded
    by `watch.latest`."""
    watch, before = round.status.watch, round.wish.fallback
    held = round.before.pause is not None or (before is not None and before.paused)
    if watch is None or watch.left is None or not held or round.status.pause or round.spec.paused:
        return round
    return round.put(watch=watch.model_copy(update={"latest": max(watch.latest, round.now + watch.left)}))


def note_pods(round: Round) -> Round:
    """The round with losses of readiness counted: each time fewer pods are ready than the present weight needs."""
    candidate = round.status.candidate
    if not round.comparing or round.status.step is None or round.step.started_at is None or candidate is None:
        return round
    ready = round.view(candidate).ready
    short = ready < needed(round)
    if short == round.step.short:
        return round
    # More may be needed because the baseline grew; that is no fault of the candidate's.
    fell = short and ready < candidate.ready
    drops = min(UNSTABLE_LIMIT, round.step.ready_drops + fell)
    return round.put_step(short=short, ready_drops=drops)


def note_restarts(round: Round) -> Round:
    """The round whose step counts from fewer restarts, once pods are gone that had restarted before it."""
    if not round.comparing or round.status.step is None or round.step.restarts_at_start is None:
        return round
    left = round.view(round.status.candidate).restarts
    return round if left >= round.step.restarts_at_start else round.put_step(restarts_at_start=left)


def note_data(round: Round) -> Round:
    """The round with the state of the data: outage, split, outlier."""
    judged, status = round.judged, round.status
    if round.spec.analysis.mode == "Off":  # nobody looks, so nothing is missing
        return round.put(
            outage_since=None, failed_polls=0, parked=False, split_off_since=None, outlier_since=None
        )
    if judged.forecast is not None:
        round = round.put(forecast=judged.forecast)
    if judged.data is not Data.NONE:
        round = round.put(
            outage_since=judged.outage_since, failed_polls=min(judged.failed_polls, FAILED_POLLS)
        )
        if judged.outage_since is None and status.failed_polls >= FAILED_POLLS:
            round = round.put(parked=False).say(EventReason.METRICS_RESTORED, "metrics can be read again")
        elif judged.outage_since is None:
            round = round.put(parked=False)
        elif judged.failed_polls >= FAILED_POLLS > status.failed_polls:
            round = round.say(EventReason.METRICS_UNAVAILABLE, judged.problem)
        since = status.split_off_since if status.split_off_since is not None else round.now
        round = round.put(split_off_since=since if judged.split_off and not round.pod_ratio else None)
    if judged.assessment is not None and not judged.assessment.outlier:
        round = round.put(outlier_since=None)
    if judged.assessment is not None and round.comparing and round.status.step is not None:
        # A metric whose test began anew counts from 0 again.
        fewer = min(round.step.requests_at_start, counted_requests(round))
        round = round if fewer == round.step.requests_at_start else round.put_step(requests_at_start=fewer)
    return round


def note_alarm(round: Round) -> Round:
    """The round with the alarm of a watch without holdback, told once: whether it goes back for it is the chain's."""
    watch, alarm = round.status.watch, round.judged.alarm
    if watch is None or round.judged.data is Data.NONE or alarm == watch.alarm:
        return round
    round = round.put(watch=watch.model_copy(update={"alarm": alarm}))
    return round.say(EventReason.WATCH_ALARM, alarm) if alarm else round


def start_clock(round: Round) -> Round:
    """The round with the clock of the current step started, once its weight is routed."""
    status = round.status
    if not round.comparing or status.step is None or status.step.started_at is not None:
        return round
    if status.parked or not at_goal(round) or not round.routed:
        return round
    if round.view(status.candidate).ready < max(1, needed(round)):
        return round
    known, restarts = status.step.restarts_at_start, round.view(status.candidate).restarts
    return round.put_step(
        started_at=round.now,
        ends_at=round.now + round.plan_step.duration,
        requests_at_start=counted_requests(round),
        restarts_at_start=restarts if known is None else known,
    )


# What follows from the decision


def _retired(round: Round) -> Round:
    """The round without revisions whose time is over; whose pods are the only ones that are ready gets more of it (S1)."""
    least = round.now + round.spec.drain_delay
    kept = [
        gone.model_copy(update={"until": least + PROLONG})
        if gone.until <= least and _answers_still(round, gone)
        else gone
        for gone in round.status.retiring
    ]
    kept = [gone for gone in kept if gone.until > round.now]
    return round if kept == round.status.retiring else round.put(retiring=kept)


def _answers_still(round: Round, gone: Retiring) -> bool:
    """Whether what has no role any more still answers: in the place of a first deployment, or because the route names it."""
    if not round.seen.of(gone.revision).ready:
        return False
    if round.status.phase == Phase.PENDING and round.view(round.status.stable).ready == 0:
        return True
    route = round.seen.route
    # By pod ratio all that are ready answer, so that alone is no reason; one whom another writer sends callers to is.
    return bool((route.weights or {}).get(gone.revision)) and (
        not round.pod_ratio or bool(route.contested_by)
    )


def _progress_deadline(round: Round) -> Round:
    """The round with the progress deadline set or cleared (link 6 of the chain)."""
    status = round.status
    phase = status.phase
    if phase == Phase.WATCHING:
        return _watch_deadline(round)
    role = status.stable if phase in (Phase.PENDING, Phase.ROLLING_BACK) else status.candidate
    if phase not in (*ACTIVE, Phase.PENDING) or role is None or role.desired == 0:
        return round if status.progress_deadline_at is None else round.put(progress_deadline_at=None)
    old = size_before(round, role)
    written = status.weights == round.before.weights
    there = role.ready >= role.desired and (round.seen.route.routed_since is not None) and written
    if there:
        return round.put(progress_deadline_at=None) if phase != Phase.ROLLING_BACK else round
    # Pods that are exchanged one by one each get their time; the way back has one end, unless it is such an exchange.
    rose = role.desired > old and (phase != Phase.ROLLING_BACK or round.spec.workload.elastic)
    deadline = status.progress_deadline_at
    if deadline is not None and round.spec.workload.services is not None:
        # What is asked of the user's pods goes up and down with the baseline's scaler: that gives no more time.
        rose = rose and _goes_on(round)
    # A promotion has no other clock: whoever loses a pod while it takes over has the time of progressDeadline for another.
    least = role.desired if phase == Phase.PROMOTING else 1
    lacking = role.ready < least or round.seen.route.routed_since is None
    # What is past and was not held against the candidate begins anew.
    excused = deadline is not None and round.now >= deadline and phase in FORWARD
    if rose or excused or (deadline is None and lacking):
        return round.put(progress_deadline_at=round.now + round.spec.progress_deadline)
    return round


def _goes_on(round: Round) -> bool:
    """Whether another phase or step begins, for which the candidate may need more pods."""
    old, new = round.before, round.status
    return old.phase != new.phase or (old.step and old.step.id) != (new.step and new.step.id)


def _watch_deadline(round: Round) -> Round:
    """The round with the time in which a promoted revision without a ready pod has to have one again. It runs while the
    previous one could serve in its place: where all pods are gone, going back helps nobody."""
    stable, previous, deadline = round.status.stable, round.status.previous, round.status.progress_deadline_at
    # Pods that are the user's nobody makes on the way back.
    ours = round.spec.workload.services is None
    could = previous is not None and (round.view(previous).ready > 0 or (ours and previous.desired == 0))
    if round.view(stable).ready or not could:
        return round.put(progress_deadline_at=None)
    return round.put(progress_deadline_at=deadline or round.now + round.spec.progress_deadline)


def _weight_event(round: Round) -> Round:
    old, new = round.before.weights, round.status.weights
    same_sides = round.before.phase == round.status.phase
    if not same_sides or old == new or not round.comparing:
        return round
    why = f": {round.waiting}" if round.waiting else ""
    moved = [f"candidate {old.candidate} % → {new.candidate} %"] if old.candidate != new.candidate else []
    moved += [f"copies {old.mirror} % → {new.mirror} %"] if old.mirror != new.mirror else []
    moved += [f"requests that match {old.matched} % → {new.matched} %"] if old.matched != new.matched else []
    return round.say(EventReason.WEIGHT_CHANGED, f"{', '.join(moved)}{why}")


def next_time(round: Round) -> float | None:
    """The next known time at which a round is due, apart from polls and events."""
    status, timing = round.status, round.timing
    times = [
        status.step.ends_at if status.step else None,
        status.deadline_at,
        status.progress_deadline_at,
        status.watch.ends_at if status.watch else None,
        status.watch.latest if status.watch else None,
        *(gone.until for gone in status.retiring),
        next_asking(round),
    ]
    if status.rolling_back_since is not None:
        times.append(status.rolling_back_since + round.spec.progress_deadline)
    if status.split_off_since is not None:
        times.append(status.split_off_since + timing.split_hold)
    if status.outage_since is not None:
        times.append(status.outage_since + round.spec.analysis.outage)
    if round.seen.route.routed_since is not None:
        times.append(round.seen.route.routed_since + timing.data_plane)
        times.append(round.seen.route.routed_since + round.spec.drain_delay)
    for role in (status.stable, status.candidate, status.previous):
        times.extend(since + timing.raise_after for since in round.view(role).ready_since)
    return min((time for time in times if time is not None and time > round.now), default=None)
