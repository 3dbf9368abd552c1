"""The engine's memory between polls, and its form in `status.evidence`.

Evidence is written with seven significant digits (as a float32 would be), which moves no decision; counts and times are
written exactly, because they decide which samples have been used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.evidence.interval import normalise
from modelrollout.evidence.metric import MetricState

FORMAT = 1


@dataclass(frozen=True, slots=True)
class State:
    """All that the engine keeps between polls."""

    attempt: int
    baseline: str
    candidate: str
    false_promotion: float
    reserve: float  # capital that no metric holds now
    consumed: float | None  # end of the last poll consumed, epoch seconds
    max_weight: int  # the largest weight so far, percent
    raised_at: float | None  # when the weight last rose; until then no poll is settled
    settled: int  # settled polls of the present step, with or without data
    pods: Mapping[str, int]  # candidate pod -> group, in the order first seen
    pods_seen: int
    metrics: Mapping[str, MetricState]


def dump(state: State) -> dict[str, Any]:
    """The state as JSON: a few kB per metric."""
    return {
        "format": FORMAT,
        "attempt": state.attempt,
        "baseline": state.baseline,
        "candidate": state.candidate,
        "falsePromotion": state.false_promotion,
        "reserve": state.reserve,
        "consumed": state.consumed,
        "maxWeight": state.max_weight,
        "raisedAt": state.raised_at,
        "settled": state.settled,
        "pods": dict(state.pods),
        "podsSeen": state.pods_seen,
        "metrics": {name: _dump_metric(metric) for name, metric in state.metrics.items()},
    }


def load(data: Mapping[str, Any]) -> State:
    """The inverse of `dump`. Raises ValueError for a state that this version did not write."""
    if data.get("format") != FORMAT:
        raise ValueError(f"status.evidence has format {data.get('format')!r}; this operator reads {FORMAT}")
    try:
        return State(
            attempt=data["attempt"],
            baseline=data["baseline"],
            candidate=data["candidate"],
            false_promotion=data["falsePromotion"],
            reserve=data["reserve"],
            consumed=data["consumed"],
            max_weight=data["maxWeight"],
            raised_at=data["raisedAt"],
            settled=data["settled"],
            pods=dict(data["pods"]),
            pods_seen=data["podsSeen"],
            metrics={name: _load_metric(metric) for name, metric in data["metrics"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"status.evidence is damaged: {error!r}") from error


def _round(values: tuple[float, ...]) -> list[float]:
    return [float(f"{v:.7g}") for v in values]


def _floats(values: list[float]) -> tuple[float, ...]:
    return tuple([float(v) for v in values])


def _dump_metric(metric: MetricState) -> dict[str, Any]:
    return {
        "hash": metric.fingerprint,
        "gating": metric.gating,
        "stake": metric.stake,
        "phi": metric.phi,
        "cuts": list(metric.cuts),
        "slo": metric.slo,
        "polls": metric.polls,
        "harm": [_round(m) for m in metric.harm],
        "without": [[_round(m) for m in group] for group in metric.without],
        "harmless": _round(metric.harmless),
        "bound": _round(metric.bound),
        "profile": _round(normalise(metric.profile)),
        "baselineRequests": metric.baseline_requests,
        "baselineBad": list(metric.baseline_bad),
        "candidateRequests": metric.candidate_requests,
        "candidateBad": list(metric.candidate_bad),
        "settled": metric.settled,
        "fresh": metric.fresh,
    } | ({"superior": _round(metric.superior)} if metric.superior else {})


def _load_metric(data: Mapping[str, Any]) -> MetricState:
    return MetricState(
        fingerprint=data["hash"],
        gating=data["gating"],
        stake=float(data["stake"]),
        phi=float(data["phi"]),
        cuts=_floats(data["cuts"]),
        slo=data["slo"],
        polls=data["polls"],
        harm=tuple([_floats(m) for m in data["harm"]]),
        without=tuple([tuple([_floats(m) for m in group]) for group in data["without"]]),
        harmless=_floats(data["harmless"]),
        bound=_floats(data["bound"]),
        profile=_floats(data["profile"]),
        baseline_requests=float(data["baselineRequests"]),
        baseline_bad=_floats(data["baselineBad"]),
        candidate_requests=float(data["candidateRequests"]),
        candidate_bad=_floats(data["candidateBad"]),
        settled=data["settled"],
        fresh=data["fresh"],
        superior=_floats(data.get("superior", [])),
    )
