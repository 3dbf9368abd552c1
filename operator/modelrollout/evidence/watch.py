"""Watching a promoted model when nothing of the old one serves: against a bound on the baseline's rate, not against the baseline.

A Shiryaev–Roberts mixture, M_k ← (M_k + 1) exp(x ln a_k − n limit (a_k − 1)). M − polls is a supermartingale as long as the
rate is within the limit, so P(M ever reaches polls / alpha within `polls` polls) ≤ alpha. A before/after comparison can't tell a shared
outage from a bad model: the alarm is news, and rolls back only where the user asked for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from modelrollout.evidence.grid import HARM_LIFTS
from modelrollout.evidence.plan import Margin

_LOG_LIFTS = tuple(log(v) for v in HARM_LIFTS)
_LARGEST = 1e280


@dataclass(frozen=True, slots=True)
class Watch:
    """The alarm's state: M per alternative, and the rate that the model must keep to."""

    limit: float
    horizon: int  # polls of the whole watch
    values: tuple[float, ...] = (0.0,) * len(HARM_LIFTS)


def begin_watch(*, bad: float, requests: float, margin: Margin, horizon: int, level: float = 0.01) -> Watch:
    """A watch of `horizon` polls; `bad` and `requests` are the baseline's counts during the rollout."""
    return Watch(
        margin.ratio * upper_rate(bad, requests, level=level) + margin.absolute, horizon=max(horizon, 1)
    )


def upper_rate(bad: float, requests: float, *, level: float) -> float:
    """Upper bound of a rate at confidence 1 − `level`: the largest p with n · KL(bad / n, p) ≤ ln(1 / level) (Chernoff)."""
    if requests <= 0:
        return 1.0
    share, budget = min(bad / requests, 1.0), -log(level) / requests
    low, high = share, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _divergence(share, middle) <= budget else (low, middle)
    return high


def grow_watch(watch: Watch, *, requests: float, bad: float) -> Watch:
    """The state after one poll of the promoted model."""
    values = [
        min((m + 1) * exp(bad * log_a - requests * watch.limit * (a - 1)), _LARGEST)
        for m, a, log_a in zip(watch.values, HARM_LIFTS, _LOG_LIFTS, strict=True)
    ]
    return Watch(watch.limit, watch.horizon, tuple(values))


def alarmed(watch: Watch, alpha: float) -> bool:
    """Whether the promoted model is beyond the limit; a false alarm in the whole watch has probability ≤ `alpha`."""
    return _mean(watch.values) >= watch.horizon / alpha


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _divergence(share: float, p: float) -> float:
    if p >= 1:
        return 0.0 if share >= 1 else float("inf")
    bad = share * log(share / p) if share > 0 else 0.0
    good = (1 - share) * log((1 - share) / (1 - p)) if share < 1 else 0.0
    return bad + good
