"""Strategies compiled to one list of steps; what comes after knows steps only, never the names of strategies."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from ..api.spec import Canary, Spec
from ..api.status import PlanStep

# Weights of planned steps. Roughly doubling keeps the bound on the candidate's harm ahead of what a step can expose.
LADDER = (1, 2, 5, 10, 20, 35, 50, 65, 80, 95)


def compile_steps(spec: Spec, *, attempt: int, capacity: int) -> tuple[PlanStep, ...]:
    """The steps of a rollout, with ids that are unique within the attempt.

    `capacity` is the number of pods that carry all traffic; it limits the shares that a pod ratio can make.
    """
    canary = spec.strategy.canary
    if canary.steps is not None:
        bare = [
            PlanStep(
                id="",
                name=step.name,
                weight=step.weight,
                duration=step.duration,
                min_requests=step.min_requests,
                approval=step.approval,
            )
            for step in canary.steps
        ]
    else:
        bare = [PlanStep(id="", weight=weight, planned=True) for weight in _planned(spec, canary, capacity)]
    return _with_ids(bare, attempt)


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
        content = json.dumps(step.model_dump(exclude={"id"}), sort_keys=True)
        ordinal = seen[content]
        seen[content] += 1
        digest = hashlib.sha256(f"{attempt}/{ordinal}/{content}".encode()).hexdigest()
        named.append(step.model_copy(update={"id": digest[:6]}))
    return tuple(named)
