"""B, an upper bound on how many times worse the candidate can be — the evidence that lets the weight grow.

For each of 24 margins M an e-process tests (p_c + d) / (p_s + d) ≥ M, that is the harmless test with R = M and absolute
margin (M − 1) d. B is the smallest M from which on all are refuted at 95 %.
"""

from collections.abc import Sequence
from math import exp, inf, log

from modelrollout.evidence.grid import CAP, geomspace

MARGINS = geomspace(1.25, 400, 24)
# (M, psi, ln(psi / M)) of two alternatives that are averaged per margin: an equal candidate, and a far better one.
_TESTS = tuple((m, psi, log(psi / m)) for m in MARGINS for psi in (min(1.0, 0.8 * m), min(0.25, 0.8 * m)))
_REFUTED = log(20)
# As with the harmless test: good hours must not hide a bad minute.
_CEILING = 2 + _REFUTED
START = (0.0,) * len(_TESTS)


def grow_bound(
    logs: Sequence[float], n_c: float, x_c: float, n_s: float, x_s: float, *, absolute: float, phi: float
) -> tuple[float, ...]:
    """ln e of both alternatives of each margin after one more poll; `absolute` is d of the accept margin.

    The same increments as `paired_increments`, written out because there are 48 of them in every poll.
    """
    rho = n_c / (n_c + n_s)
    rest = 1 - rho
    allowed = n_c * absolute
    both = x_c + x_s
    out = []
    for before, (m, psi, log_lift) in zip(logs, _TESTS, strict=True):
        b = (rho * m + rest) / (rho * psi + rest)
        gain = (x_c * log_lift + both * log(b) - allowed * (m - 1) * (psi / m * b - 1)) / phi
        out.append(before + (gain if gain < CAP else CAP))
    if max(out) > _CEILING:
        for i in range(0, len(out), 2):
            excess = _log_mean(out[i], out[i + 1]) - _CEILING
            if excess > 0:
                out[i] -= excess
                out[i + 1] -= excess
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
