"""Edits of plan and durations in the middle of a rollout: evidence is kept, and no edit raises the weight."""

from __future__ import annotations

from dataclasses import replace

from modelrollout.api.status import PlanStep
from modelrollout.decision.round import Round
from modelrollout.decision.transitions import first_step
from modelrollout.evidence.engine import new_step
from modelrollout.planning.steps import compile_steps, gates_by_id


def follow_plan(round: Round) -> Round:
    """The round with the plan that the spec asks for now, and the place in it."""
    if round.frozen or not round.comparing or round.status.step is None:
        return round
    status = round.status
    new = list(compile_steps(round.spec, attempt=status.attempt, capacity=status.capacity_at_start or 1))
    ids = [step.id for step in new]
    present = round.plan_step
    if status.plan == new or (present.id not in ids and status.plan == [_remaining(round, present), *new]):
        return round
    if present.id in ids:
        return _stay(round, new, ids.index(present.id))
    # Whom matches choose, no weight says: such a step is entered in its turn.
    chosen_before = [[], present.matches]
    below = [s for s in new if s.weight <= present.weight and s.matches in chosen_before]
    if not below:
        # The present step stays to its end; then the first of the new ones is entered.
        return _outlive(round, new)
    # Of equal weights the one with as much room: who stands by at weight 0 does not go back to the gates before the start.
    chosen = max(below, key=lambda step: (step.weight, min(step.room, present.room)))
    index = new.index(chosen)
    if (chosen.weight, chosen.mirror, chosen.matches) == (present.weight, present.mirror, present.matches):
        return _same_weight(round, new, index, present)
    if round.state is not None:
        round = replace(round, state=new_step(round.state))
    return round.put(plan=new, step=_entered(round, new, index))


def follow_durations(round: Round) -> Round:
    """The round whose deadlines, watch and retiring revisions have gained or lost what an edit gave to their durations,
    running or held."""
    old, new, status = round.wish.fallback, round.spec, round.status
    if old is None:
        return round
    more = new.analysis.deadline - old.analysis.deadline
    progress = new.progress_deadline - old.progress_deadline
    drain = new.drain_delay - old.drain_delay
    round = round.put(
        deadline_at=_moved(status.deadline_at, more),
        deadline_left=_moved(status.deadline_left, more),
        progress_deadline_at=_moved(status.progress_deadline_at, progress),
        retiring=[
            gone.model_copy(update={"until": max(0.0, gone.until + drain)}) for gone in status.retiring
        ],
    )
    watch, longer = status.watch, new.watch.duration - old.watch.duration
    if watch is None:
        return round
    update = {
        "ends_at": _moved(watch.ends_at, longer),
        "left": _moved(watch.left, longer),
        "latest": watch.latest + 2 * longer,
    }
    return round.put(watch=watch.model_copy(update=update))


def _moved(time: float | None, more: float) -> float | None:
    return None if time is None else max(0.0, time + more)


def _stay(round: Round, plan: list[PlanStep], index: int) -> Round:
    count, display = len(plan), f"{index + 1}/{len(plan)}"
    return round.put(plan=plan).put_step(index=index, count=count, display=display)


def _outlive(round: Round, new: list[PlanStep]) -> Round:
    """The present step goes on before the new ones, with those of its gates that the spec still has."""
    present = _remaining(round, round.plan_step)
    kept = {gate.id for gate in present.gates}
    gates = [gate for gate in round.step.gates if gate.id in kept]
    return _stay(round, [present, *new], 0).put_step(gates=gates)


def _remaining(round: Round, step: PlanStep) -> PlanStep:
    known = gates_by_id(round.spec) if step.gates else {}
    return step.model_copy(update={"gates": [gate for gate in step.gates if gate.id in known]})


def _same_weight(round: Round, plan: list[PlanStep], index: int, present: PlanStep) -> Round:
    """The clock goes on; what the duration gained or lost is added to what is left."""
    step, more = round.step, plan[index].duration - present.duration
    return _stay(round, plan, index).put_step(
        id=plan[index].id,
        approved=False,
        gates=[],
        ends_at=_moved(step.ends_at, more),
        left=_moved(step.left, more),
    )


def _entered(round: Round, plan: list[PlanStep], index: int) -> object:
    """A step that was entered by an edit: its clock starts again, what was counted of the candidate's pods stays."""
    old = round.step
    return first_step(plan, index).model_copy(
        update={"restarts_at_start": old.restarts_at_start, "baseline_ready": old.baseline_ready}
    )
