"""The grids of alternatives and the one numerical helper that all tests share.

The choice of grid matters more than the family of tests: widening one spends evidence on alternatives that never
come. So they stand here once, as constants.
"""

from collections.abc import Sequence
from math import exp, log


def geomspace(start: float, stop: float, count: int) -> tuple[float, ...]:
    """`count` points from `start` to `stop`, equally spaced in their logarithm (both ends included)."""
    step = log(stop / start) / (count - 1)
    return tuple(start * exp(step * i) for i in range(count))


def log_mean_exp(logs: Sequence[float]) -> float:
    """ln of the mean of exp(logs), without overflow."""
    top = max(logs)
    return top + log(sum(map(exp, [v - top for v in logs])) / len(logs))


# psi / R of the harm test: how much worse than the tolerance the candidate may be.
HARM_LIFTS = tuple(1 + v for v in geomspace(0.15, 9, 8))
# psi / R of the harmless test: how far below the margin it may be.
HARMLESS_LIFTS = tuple(1 / (1 + v) for v in geomspace(0.2, 20, 6))
# The exact form's bets, in units of the baseline's rate (harm) and of the margin's width (harmless).
HARM_BETS = geomspace(0.05, 4, 8)
HARMLESS_BETS = (0.5, 1.0, 1.5, 2.5)
# How much better a reward may be, in units of the smaller of its bad and its good share: from a hundredth to most of it.
REWARD_BETS = geomspace(0.01, 0.64, 7)

# Pods are scraped at different offsets, so in an outage that hits both sides one side's poll leads. Without this cap
# per poll, one minute of 50 % errors on both sides rolled back 16–65 % of good models at 100–1000 requests/s.
CAP = log(10)
