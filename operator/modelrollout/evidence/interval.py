"""The confidence sequence for the ratio of the two rates, for people: valid at every poll at once.

l(psi) = Σ [x_c ln theta(psi) + x_s ln(1 − theta(psi))] on a grid; the set is {psi : logmeanexp(l) − l(psi) < ln 20}. The
terms that do not depend on psi cancel, so only differences of l count. (Howard et al. arXiv 1810.08240.)
"""

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import NamedTuple

from modelrollout.evidence.grid import geomspace, log_mean_exp

RATIOS = geomspace(0.1, 30, 64)
_LOG_RATIOS = tuple(log(v) for v in RATIOS)
_STEP = _LOG_RATIOS[1] - _LOG_RATIOS[0]
_LEVEL = log(20)
EMPTY_PROFILE = (0.0,) * len(RATIOS)


class Interval(NamedTuple):
    """Estimate and ends of the 95 % confidence sequence; None where it lies at the edge of the grid."""

    ratio: float | None
    low: float | None
    high: float | None


def grow_profile(
    profile: Sequence[float], n_c: float, x_c: float, n_s: float, x_s: float, phi: float
) -> tuple[float, ...]:
    """The log likelihood profile after one more poll."""
    both = (x_c + x_s) / phi
    if not both:
        return tuple(profile)
    bad = x_c / phi
    rho = n_c / (n_c + n_s)
    rest = 1 - rho
    return tuple(
        [
            v + bad * log_psi - both * log(rho * psi + rest)
            for v, log_psi, psi in zip(profile, _LOG_RATIOS, RATIOS, strict=True)
        ]
    )


def normalise(profile: Sequence[float]) -> tuple[float, ...]:
    """l − max(l), the form to store: only differences matter, and near 0 they keep their digits."""
    top = max(profile)
    return tuple([v - top for v in profile])


def confidence_interval(profile: Sequence[float]) -> Interval:
    """The interval of a profile. Ends by a parabola through the nearest three points in ln psi, because linear ends
    miss the truth."""
    top, last = max(profile), len(profile) - 1
    bar = log_mean_exp(profile) - _LEVEL
    best = first_in = last_in = profile.index(top)
    while first_in and profile[first_in - 1] > bar:
        first_in -= 1
    while last_in < last and profile[last_in + 1] > bar:
        last_in += 1
    low = exp(_crossing(profile, first_in - 1, bar)) if first_in else None
    high = exp(_crossing(profile, last_in, bar)) if last_in < last else None
    return Interval(exp(_vertex(profile, best)) if 0 < best < last else None, low, high)


def _vertex(profile: Sequence[float], best: int) -> float:
    """ln psi of the maximum of the parabola through the highest point and its neighbours."""
    before, at, after = profile[best - 1], profile[best], profile[best + 1]
    bend = before - 2 * at + after
    return _LOG_RATIOS[best] + (_STEP * (before - after) / (2 * bend) if bend else 0.0)


def _crossing(profile: Sequence[float], left: int, bar: float) -> float:
    """ln psi where the profile crosses `bar` between the grid points `left` and `left + 1`."""
    y0, y1 = profile[left] - bar, profile[left + 1] - bar
    linear = y0 / (y0 - y1)
    # The third point is the next one on the side that the crossing is nearer to.
    third = left - 1 if linear < 0.5 else left + 2
    if not 0 <= third < len(profile):
        third = left + 2 if third < 0 else left - 1
    y2 = profile[third] - bar
    at = third - left
    # q(u) = y0 + slope u + bend u², u = 0 at `left`, 1 at `left + 1`.
    bend = (y2 - y0 - at * (y1 - y0)) / (at * (at - 1))
    slope = y1 - y0 - bend
    return _LOG_RATIOS[left] + _STEP * _root(y0, slope, bend, linear)


def _root(constant: float, slope: float, bend: float, fallback: float) -> float:
    """The root of constant + slope u + bend u² in [0, 1] (the ends have opposite signs)."""
    inner = slope * slope - 4 * bend * constant
    if inner < 0:
        return fallback
    q = -0.5 * (slope + (sqrt(inner) if slope >= 0 else -sqrt(inner)))
    roots = [v / w for v, w in ((q, bend), (constant, q)) if w]
    return next((u for u in roots if -1e-9 <= u <= 1 + 1e-9), fallback)
