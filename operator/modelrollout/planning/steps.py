"""Strategies compiled to one list of steps; what comes after knows steps only, never the names of strategies."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from math import ceil

from modelrollout.api.spec import AbTest, BlueGreen, Canary, Gate, Rolling, Shadow, Spec
from modelrollout.api.status import PlanGate, PlanStep

# Weights of planned steps. Roughly doubling keeps the bound on the candidate's harm ahead of what a step can expose.
LADDER = (1, 2, 5, 10, 20, 35, 50, 65, 80, 95)

MOST_BATCHES = 32
EVEN = 50  # percent: the split of an A/B test that needs the fewest requests


def compile_steps(spec: Spec, *, attempt: int, capacity: int) -> tuple[PlanStep, ...]:
    """The steps of a rollout, with ids that are unique within the attempt.

    `capacity` is the number of pods that carry all traffic; it limits the shares that a pod ratio can make.
    """
    strategy = spec.strategy
    if strategy.rolling is not None:
        bare = _batches(spec, strategy.rolling, capacity)
    elif strategy.blue_green is not None:
        bare = [_standing_by(strategy.blue_green)]
    elif strategy.shadow is not None:
        bare = _shadow(spec, strategy.shadow, capacity)
    elif strategy.ab_test is not None:
        bare = [_contest(strategy.ab_test)]
    else:
        bare = _canary(spec, strategy.canary or Canary(), capacity)
    return _with_ids(_with_gates(bare, spec), attempt)


def _canary(spec: Spec, canary: Canary, capacity: int) -> list[PlanStep]:
    if canary.steps is None:
        return [PlanStep(id="", weight=weight, planned=True) for weight in _planned(spec, canary, capacity)]
    return [
        PlanStep(
            id="",
            name=step.name,
            weight=step.weight,
            mirror=step.mirror,
            matches=list(step.matches or ()),
            randomized=step.matches is None,
            size=_size(step.size, chosen=step.matches is not None),
            duration=step.duration,
            min_requests=step.min_requests,
            approval=step.approval,
            gates=[_gate(gate, "step") for gate in step.gates],
        )
        for step in canary.steps
    ]


def _size(written: int, *, chosen: bool) -> int:
    """Nobody knows beforehand how many requests match, so without a word the candidate could answer all of them."""
    return written or (100 if chosen else 0)


def _batches(spec: Spec, rolling: Rolling, capacity: int) -> list[PlanStep]:
    """One step after each batch but the last, which is the promotion: until then there is a baseline to compare with."""
    if isinstance(rolling.batch, int):
        size = rolling.batch
    else:
        size = -(-capacity * int(rolling.batch.removesuffix("%")) // 100)
    size = max(size, -(-capacity // MOST_BATCHES))
    counts = range(size, capacity, size) or (capacity - 1 or 1,)
    # The percent that comes to as many pods: a pod ratio rounds them down, a router's share is rounded up.
    up = spec.traffic.router == "podRatio"
    shares = [100 * count / max(2, capacity) for count in counts]
    weights = dict.fromkeys(max(1, min(99, ceil(share) if up else int(share))) for share in shares)
    return [
        PlanStep(
            id="",
            weight=weight,
            duration=rolling.duration or 0.0,
            min_requests=rolling.min_requests,
            approval=rolling.approval,
            planned=rolling.duration is None and not rolling.min_requests,
        )
        for weight in weights
    ]


def _standing_by(blue_green: BlueGreen) -> PlanStep:
    """The one step before the switch, which is the promotion."""
    return PlanStep(
        id="",
        weight=0,
        size=100,
        mirror=blue_green.mirror,
        duration=blue_green.duration,
        min_requests=blue_green.min_requests,
        approval=blue_green.approval,
        preview=True,
    )


def _contest(test: AbTest) -> PlanStep:
    """The one step that a better reward ends, or its duration."""
    chosen = test.matches is not None
    return PlanStep(
        id="",
        weight=0 if chosen else (test.weight or EVEN),
        matches=list(test.matches or ()),
        randomized=test.randomized or not chosen,
        stickiness=test.stickiness,
        size=_size(test.size, chosen=chosen),
        duration=test.duration,
        min_requests=test.min_requests,
        timed=True,
        reward=test.reward,
        stop=test.otherwise == "Stop",
    )


def _shadow(spec: Spec, shadow: Shadow, capacity: int) -> list[PlanStep]:
    stop = shadow.then == "Stop"
    first = PlanStep(
        id="",
        weight=0,
        mirror=shadow.mirror,
        duration=shadow.duration,
        min_requests=shadow.min_requests,
        approval=shadow.approval,
        proof=not stop,
        stop=stop,
    )
    return [first] if stop else [first, *_canary(spec, shadow.canary or Canary(), capacity)]


def _with_gates(steps: list[PlanStep], spec: Spec) -> list[PlanStep]:
    """The steps with one before them in which the candidate has a pod and gets nothing, if something is to be asked
    there, and with what is asked before the promotion in the last."""
    gates, last = spec.gates, steps[-1]
    if gates.promotion and (last.reward or not last.stop):
        more = [_gate(gate, "promotion") for gate in gates.promotion]
        steps = [*steps[:-1], last.model_copy(update={"gates": [*last.gates, *more]})]
    if gates.start:
        asked = [_gate(gate, "start") for gate in gates.start]
        steps = [PlanStep(id="", name="start", weight=0, gates=asked), *steps]
    return steps


def gates_by_id(spec: Spec) -> dict[str, Gate]:
    """What stands in the spec of the gates that a plan names."""
    placed = [("start", gate) for gate in spec.gates.start]
    placed += [("promotion", gate) for gate in spec.gates.promotion]
    placed += [("step", gate) for step in spec.strategy.steps for gate in step.gates]
    return {_gate_id(gate, place): gate for place, gate in placed}


def _gate(gate: Gate, place: str) -> PlanGate:
    return PlanGate(
        id=_gate_id(gate, place),
        name=gate.name,
        retries=gate.webhook.retries if gate.webhook else 0,  # a Job counts its pods by itself
        pauses=gate.on_failure == "Pause",
        promotion=place == "promotion",
    )


def _gate_id(gate: Gate, place: str) -> str:
    wire = gate.to_wire()
    if gate.job is not None:
        wire["job"]["template"] = gate.job.hash
    content = json.dumps(wire, sort_keys=True)
    return hashlib.sha256(f"{place}/{content}".encode()).hexdigest()[:8]


def _planned(spec: Spec, canary: Canary, capacity: int) -> list[int]:
    if spec.traffic.router == "podRatio":
        return _pod_shares(capacity, canary.max_weight)
    below = [weight for weight in LADDER if weight < canary.max_weight]
    return [*below, canary.max_weight]


def _pod_shares(capacity: int, max_weight: int) -> list[int]:
    """Shares of k = 1, 2, 4, … of the pods, up to half of them; the smallest percent that makes k pods of it."""
    most = max(1, min(capacity // 2, capacity * max_weight // 100))
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    if counts[-1] < most:
        counts.append(most)
    return [min(99, -(-100 * count // capacity)) for count in counts]


def _with_ids(steps: Iterable[PlanStep], attempt: int) -> tuple[PlanStep, ...]:
    seen: Counter[str] = Counter()
    named = []
    for step in steps:
        content = json.dumps(step.model_dump(exclude={"id"}, exclude_defaults=True), sort_keys=True)
        ordinal = seen[content]
        seen[content] += 1
        digest = hashlib.sha256(f"{attempt}/{ordinal}/{content}".encode()).hexdigest()
        named.append(step.model_copy(update={"id": digest[:6]}))
    return tuple(named)
