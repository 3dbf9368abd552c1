"""Gates: what outside of the operator must say yes before a rollout goes on.

A gate that is to be asked is `Running` in the committed status first; only then the question goes out, and what comes back
is seen in a later round. So a crash at any moment asks the same question again, under the same key, and never skips one.
Gates of a step are asked one after the other: a cheap one spares an expensive one.
"""

from __future__ import annotations

from dataclasses import replace

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.status import GateState, GateStatus, Phase, PlanGate
from modelrollout.decision.round import Round
from modelrollout.decision.transitions import go_back, hold

LONGEST_PAUSE = 60.0  # seconds between two askings at most


def note_gates(round: Round) -> Round:
    """The round with the answer to the question that is open, if there is one."""
    step = round.status.step
    if step is None or not round.comparing:
        return round
    pause = round.status.pause
    if pause is not None and pause.reason == Reason.GATE_FAILED and not _failed(round):
        round = round.put(pause=None)  # an edit replaced what had failed
    gate = step.asking
    reading = round.seen.gates.get(gate.question) if gate is not None else None
    if gate is None or reading is None:
        return round
    known = gate.model_copy(update={"message": reading.message or None, "value": reading.value})
    if reading.passed is None:
        return round if known == gate else _put(round, known)
    if reading.passed:
        said = f": {reading.message}" if reading.message else ""
        round = round.say(EventReason.GATE_PASSED, f"gate {gate.name} passed{said}")
        return _put(round, _turned(known, GateState.PASSED, round.now))
    if gate.asked <= _plan_gate(round, gate).retries:
        again = round.now + min(LONGEST_PAUSE, 2.0 ** (gate.asked - 1))
        waiting = _turned(known, GateState.WAITING, round.now)
        return _put(round, waiting.model_copy(update={"again_at": again}))
    return _put(
        round.say(EventReason.GATE_FAILED, _failure(known)), _turned(known, GateState.FAILED, round.now)
    )


def ask_anew(round: Round) -> Round:
    """The round after a resume: gates that failed are asked once more, with all their retries."""
    for gate in _failed(round):
        fresh = GateStatus(
            id=gate.id,
            name=gate.name,
            state=GateState.WAITING,
            since=round.now,
            asked=0,
            turn=gate.turn + 1,
            again_at=round.now,
        )
        round = _put(round, fresh)
    return round


def gate_failed(round: Round) -> Round | None:
    """A gate said no, or nothing, for good."""
    failed = _failed(round)
    if not failed:
        return None
    if not _plan_gate(round, failed[0]).pauses:
        return go_back(round, Reason.GATE_FAILED, _failure(failed[0]))
    if round.status.pause is not None:
        return None  # link 9 says why
    return (
        hold(round, Reason.GATE_FAILED)
        .put(phase=Phase.PAUSED)
        .wait(Reason.GATE_FAILED, failure_advice(round))
    )


def failure_advice(round: Round) -> str:
    """What is known of the gate that holds the rollout, and what a person can do."""
    return "; ".join([*map(_failure, _failed(round)), "promote, abort, or resume to ask it once more"])


def awaiting(round: Round, *, promotion: bool = False) -> Round | None:
    """The round that asks the next gate of the present step, or waits for it; None if all have passed.

    `promotion`: those before the promotion, else those at the end of the step.
    """
    for planned in round.plan_step.gates:
        known = round.step.gate(planned.id)
        if planned.promotion != promotion or (known and known.state is GateState.PASSED):
            continue
        if known is None or (known.again_at is not None and round.now >= known.again_at):
            round = _ask(round, planned, known)
        return _wait(round, planned)
    return None


def _ask(round: Round, planned: PlanGate, known: GateStatus | None) -> Round:
    if round.frozen:
        return round
    if known is None:
        known = GateStatus(
            id=planned.id, name=planned.name, state=GateState.WAITING, since=round.now, asked=0
        )
        round = round.say(
            EventReason.AWAITING_GATE, f"step {round.step.display}: gate {planned.name} is asked"
        )
    running = _turned(known, GateState.RUNNING, round.now)
    return _put(round, running.model_copy(update={"asked": known.asked + 1}))


def _wait(round: Round, planned: PlanGate) -> Round:
    known = round.step.gate(planned.id)
    if known is None:
        why = f"gate {planned.name} is asked once the spec is acceptable"
    else:
        said = f": {known.message}" if known.message else ""
        times = f", asked {known.asked} of {planned.retries + 1} times" if planned.retries else ""
        why = f"waiting for gate {planned.name}{times}{said}"
    waiting = round.put(phase=Phase.PAUSED).wait(Reason.AWAITING_GATE, why, step_runs=True)
    return replace(waiting, may_raise=True)


def next_asking(round: Round) -> float | None:
    """When a gate is to be asked again."""
    times = [
        gate.again_at for gate in (round.status.step.gates if round.status.step else ()) if gate.again_at
    ]
    return min(times, default=None)


def _failed(round: Round) -> list[GateStatus]:
    return [gate for gate in round.step.gates if gate.state is GateState.FAILED]


def _turned(gate: GateStatus, state: GateState, now: float) -> GateStatus:
    return gate.model_copy(update={"state": state, "since": now, "again_at": None})


def _failure(gate: GateStatus) -> str:
    times = f", asked {gate.asked} times" if gate.asked > 1 else ""
    return f"gate {gate.name} failed{times}: {gate.message or 'it did not say why'}"


def _plan_gate(round: Round, gate: GateStatus) -> PlanGate:
    """What the plan says of a gate that was asked; it is always there, as an edit that drops it drops its status too."""
    return next(planned for planned in round.plan_step.gates if planned.id == gate.id)


def _put(round: Round, gate: GateStatus) -> Round:
    others = round.step.gates
    if round.step.gate(gate.id) is None:
        return round.put_step(gates=[*others, gate])
    return round.put_step(gates=[gate if one.id == gate.id else one for one in others])
