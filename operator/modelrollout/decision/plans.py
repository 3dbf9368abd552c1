"""Edits of the plan in the middle of a rollout: evidence is kept, and no edit raises the weight."""

from __future__ import annotations

from dataclasses import replace

from ..api.status import PlanStep
from ..evidence.engine import new_step
from ..planning.steps import compile_steps
from .round import Round
from .transitions import first_step


def follow_plan(round: Round) -> Round:
    """The round with the plan that the spec asks for now, and the place in it."""
    if round.frozen or not round.comparing or round.status.step is None:
        return round
    status = round.status
    new = list(compile_steps(round.spec, attempt=status.attempt, capacity=status.capacity_at_start or 1))
    ids = [step.id for step in new]
    present = round.plan_step
    if status.plan == new or (present.id not in ids and status.plan == [present, *new]):
        return round
    if present.id in ids:
        return _stay(round, new, ids.index(present.id))
    # Whom matches choose, no weight says: such a step is entered in its turn.
    chosen_before = [[], present.matches]
    below = [s for s in new if s.weight <= present.weight and s.matches in chosen_before]
    if not below:
        # The present step stays to its end; then the first of the new ones is entered.
        return _stay(round, [present, *new], 0)
    chosen = max(below, key=lambda step: step.weight)
    index = new.index(chosen)
    if (chosen.weight, chosen.mirror, chosen.matches) == (present.weight, present.mirror, present.matches):
        return _same_weight(round, new, index, present)
    if round.state is not None:
        round = replace(round, state=new_step(round.state))
    return round.put(plan=new, step=_entered(round, new, index))


def _stay(round: Round, plan: list[PlanStep], index: int) -> Round:
    count, display = len(plan), f"{index + 1}/{len(plan)}"
    return round.put(plan=plan).put_step(index=index, count=count, display=display)


def _same_weight(round: Round, plan: list[PlanStep], index: int, present: PlanStep) -> Round:
    """The clock goes on; what the duration gained or lost is added to what is left."""
    step, more = round.step, plan[index].duration - present.duration
    return _stay(round, plan, index).put_step(
        id=plan[index].id,
        approved=False,
        ends_at=None if step.ends_at is None else step.ends_at + more,
        left=None if step.left is None else max(0.0, step.left + more),
    )


def _entered(round: Round, plan: list[PlanStep], index: int) -> object:
    """A step that was entered by an edit: its clock starts again, what was counted of the candidate's pods stays."""
    old = round.step
    return first_step(plan, index).model_copy(
        update={"restarts_at_start": old.restarts_at_start, "baseline_ready": old.baseline_ready}
    )
