"""How long a decision will take, before and while it is being made: in candidate requests, which the reader turns into time.

The log evidence of each alternative walks with drift g and variance v per candidate request, so the requests until it reaches A
are inverse Gaussian with mean A / g and shape A² / v (Wald 1947).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, exp, log, sqrt

from modelrollout.evidence.plan import MetricTest
from modelrollout.evidence.power import (
    MOST_REQUESTS,
    harm_drifts,
    harmless_drifts,
    mean_requests,
    remaining_requests,
    reward_drifts,
)

__all__ = [
    "RESTART",
    "Forecast",
    "forecast_harm",
    "forecast_harmless",
    "remaining_requests",
    "smallest_detectable",
    "smallest_improvement",
]

# What the restart mixture's spread prior costs, simulated: 15–18 %.
RESTART = 1.17


@dataclass(frozen=True, slots=True)
class Forecast:
    """Candidate requests until a decision: their mean, and the numbers within which 80 % and 95 % of rollouts decide."""

    mean: float
    n80: float
    n95: float


def forecast_harm(
    test: MetricTest,
    *,
    baseline_rate: float,
    ratio: float,
    weight: float,
    false_rollback: float,
    share: float = 1.0,
    phi: float = 1.0,
    restart: float = RESTART,
) -> Forecast | None:
    """Requests until a candidate that is `ratio` times as bad is proven harmful; None if it never is.

    `baseline_rate`: bad share of the baseline; `weight` in percent; `share`: the metric's share of all weights (1 / M for M
    equal metrics).
    """
    if not 0 < weight < 100:
        return None
    drifts = harm_drifts(test, min(ratio * baseline_rate, 1.0), baseline_rate, weight / 100)
    return _forecast(drifts, -log(false_rollback * share), phi * restart)


def forecast_harmless(
    test: MetricTest, *, baseline_rate: float, weight: float, false_promotion: float, phi: float = 1.0
) -> Forecast | None:
    """Requests until an equal candidate is proven harmless, from the start of a step; None if it never is."""
    if not 0 < weight < 100:
        return None
    drifts = harmless_drifts(test, baseline_rate, baseline_rate, weight / 100)
    return _forecast(drifts, -log(false_promotion), phi)


def smallest_detectable(
    test: MetricTest,
    *,
    requests: float,
    baseline_rate: float,
    weight: float,
    false_rollback: float,
    share: float = 1.0,
    phi: float = 1.0,
) -> float | None:
    """The smallest ratio that a step with `requests` candidate requests finds with probability 80 %, to 1 %.

    None if it does not even find the worst possible candidate.
    """

    def found(ratio: float) -> bool:
        forecast = forecast_harm(
            test,
            baseline_rate=baseline_rate,
            ratio=ratio,
            weight=weight,
            false_rollback=false_rollback,
            share=share,
            phi=phi,
        )
        return forecast is not None and forecast.n80 <= requests

    low, high = 1.0, 1 / baseline_rate if baseline_rate > 0 else 1.0
    if high <= low or not found(high):
        return None
    while high > 1.01 * low:
        middle = sqrt(low * high)
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def smallest_improvement(
    *, requests: float, baseline_rate: float, weight: float, false_promotion: float, phi: float = 1.0
) -> float | None:
    """The largest bad share of a candidate that wins with probability 80 % by its reward, within `requests` requests of it.

    `baseline_rate`: bad share of the baseline; `weight` in percent. None if not even a candidate without fault wins.
    """

    def wins(share: float) -> bool:
        forecast = _forecast(reward_drifts(share, baseline_rate, weight / 100), -log(false_promotion), phi)
        return forecast is not None and forecast.n80 <= requests

    if not 0 < weight < 100 or not 0 < baseline_rate < 1 or not wins(0.0):
        return None
    won, lost = 0.0, baseline_rate
    for _ in range(30):
        middle = (won + lost) / 2
        won, lost = (middle, lost) if wins(middle) else (won, middle)
    return won


def _forecast(drifts: Sequence[tuple[float, float]], target: float, factor: float) -> Forecast | None:
    means = [g for g, _ in drifts]
    requests = mean_requests(means, [0.0] * len(means), target)
    if not requests:
        return None
    top = max(means)
    parts = [exp(requests * (g - top)) for g in means]
    total = sum(parts)
    g = sum(p * mean for p, mean in zip(parts, means, strict=True)) / total
    v = sum(p * variance for p, (_, variance) in zip(parts, drifts, strict=True)) / total
    reach = requests * g
    shape = reach * reach / v if v > 0 else MOST_REQUESTS
    n80, n95 = (_quantile(p, requests, shape) for p in (0.8, 0.95))
    return Forecast(factor * requests, factor * n80, factor * n95)


def _quantile(p: float, mean: float, shape: float) -> float:
    """Quantile of the inverse Gaussian by bisection."""
    low, high = 0.0, mean
    while _inverse_gaussian(high, mean, shape) < p and high < MOST_REQUESTS:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inverse_gaussian(middle, mean, shape) < p else (low, middle)
    return high


def _inverse_gaussian(x: float, mean: float, shape: float) -> float:
    """P(requests ≤ x). The second term is exp(2 shape / mean) · Phi(−z), kept from overflowing."""
    if x <= 0:
        return 0.0
    root = sqrt(shape / x)
    late = root * (x / mean + 1)
    first = 0.5 * erfc(-root * (x / mean - 1) / sqrt(2))
    if late > 30:  # Phi(−z) ≈ density / z, and the two exponents nearly cancel
        return first + exp(2 * shape / mean - late * late / 2) / (late * 2.5066282746310002)
    return first + exp(2 * shape / mean) * 0.5 * erfc(late / sqrt(2))
