"""Paired rates: the e-process that compares two Poisson-like rates poll by poll, whatever the baseline does over time.

With theta(q) = rho q / (rho q + 1 − rho), a = theta(psi) / theta(R) and b = (1 − theta(psi)) / (1 − theta(R)), the factor
of one poll is a^x_c · b^x_s · exp(−n_c d (a − 1)). Its expectation is ≤ 1 when mean_c ≤ R mean_s + d and psi > R (harm), or
mean_c ≥ R mean_s + d and psi < R (harmless), because n_c R (a − 1) = n_s (1 − b). Sources: Wald 1947; Turner et al.
arXiv 2106.02693; Lindon & Malek arXiv 2011.03567.
"""

from collections.abc import Sequence
from math import log

from modelrollout.evidence.grid import CAP
from modelrollout.evidence.plan import Margin


def paired_increments(
    n_c: float,
    x_c: float,
    n_s: float,
    x_s: float,
    *,
    margin: Margin,
    lifts: Sequence[float],
    log_lifts: Sequence[float],
    phi: float = 1.0,
    cap: float = CAP,
) -> list[float]:
    """Log increment of one poll for each alternative psi = lift · R.

    `n` are requests (> 0) and `x` bad events of candidate and baseline; `phi` ≥ 1 is the clustering of events; `cap` the
    largest log increment.
    """
    rho = n_c / (n_c + n_s)
    rest = 1 - rho
    slope = rho * margin.ratio
    limit = slope + rest
    allowed = n_c * margin.absolute
    both = x_c + x_s
    out = []
    for lift, log_lift in zip(lifts, log_lifts, strict=True):
        b = limit / (slope * lift + rest)
        gain = (x_c * log_lift + both * log(b) - allowed * (lift * b - 1)) / phi
        out.append(gain if gain < cap else cap)
    return out


def paired_drift(
    p_c: float, p_s: float, weight: float, *, margin: Margin, lift: float
) -> tuple[float, float]:
    """Mean and variance of the log increment per candidate request, at `weight` in (0, 1)."""
    limit = weight * margin.ratio + 1 - weight
    b = limit / (weight * margin.ratio * lift + 1 - weight)
    a = lift * b
    others = (1 - weight) / weight
    mean = p_c * log(a) + others * p_s * log(b) - margin.absolute * (a - 1)
    return mean, p_c * log(a) ** 2 + others * p_s * log(b) ** 2
