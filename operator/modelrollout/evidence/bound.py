"""B, an upper bound on how many times worse the candidate can be — the evidence that lets the weight grow.

For each of 24 margins M an e-process tests (p_c + d) / (p_s + d) ≥ M, that is the harmless test with R = M and absolute
margin (M − 1) d. B is the smallest M from which on all are refuted at 95 %.
"""

from collections.abc import Sequence
from math import exp, inf, log

from modelrollout.evidence.grid import geomspace
from modelrollout.evidence.paired import paired_increments
from modelrollout.evidence.plan import Margin

MARGINS = geomspace(1.25, 400, 24)
# psi / M of the two alternatives that are averaged: an equal candidate, and a far better one.
_LIFTS = tuple((min(1.0, 0.8 * m) / m, min(0.25, 0.8 * m) / m) for m in MARGINS)
_LOG_LIFTS = tuple((log(a), log(b)) for a, b in _LIFTS)
_REFUTED = log(20)
# As with the harmless test: good hours must not hide a bad minute.
_CEILING = 2 + _REFUTED
START = (0.0,) * (2 * len(MARGINS))


def grow_bound(
    logs: Sequence[float], n_c: float, x_c: float, n_s: float, x_s: float, *, absolute: float, phi: float
) -> tuple[float, ...]:
    """ln e of both alternatives of each margin after one more poll; `absolute` is d of the accept margin."""
    out: list[float] = []
    for i, m in enumerate(MARGINS):
        margin = Margin(m, (m - 1) * absolute)
        first, second = paired_increments(
            n_c, x_c, n_s, x_s, margin=margin, lifts=_LIFTS[i], log_lifts=_LOG_LIFTS[i], phi=phi
        )
        u, v = logs[2 * i] + first, logs[2 * i + 1] + second
        excess = max(_log_mean(u, v) - _CEILING, 0.0)
        out += (u - excess, v - excess)
    return tuple(out)


def upper_bound(logs: Sequence[float], *, baseline_rate: float, absolute: float) -> float:
    """B. Never above (1 + d) / (p_s + d), because no rate is above 1; infinite if that is not finite either."""
    refuted = inf
    for i in reversed(range(len(MARGINS))):
        if _log_mean(logs[2 * i], logs[2 * i + 1]) < _REFUTED:
            break
        refuted = MARGINS[i]
    floor = baseline_rate + absolute
    return min(refuted, (1 + absolute) / floor) if floor > 0 else refuted


def _log_mean(u: float, v: float) -> float:
    top, below = (u, v) if u > v else (v, u)
    return top + log(0.5 + 0.5 * exp(below - top))
