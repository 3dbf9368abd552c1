"""Where a latency test looks: a few bucket bounds fixed before the comparison begins.

Chosen from the baseline's past only, so the choice can't favour a side; fixed, because a bound that comes or goes with the
data would be a choice by the result.
"""

from collections.abc import Sequence
from math import isfinite, log

MOST_CUTS = 8
_LEAST_TAIL, _LARGEST_TAIL = 1e-3, 0.5


def choose_cuts(
    past_buckets: Sequence[tuple[float, float]], slo: float | None
) -> tuple[tuple[float, ...], float | None, str]:
    """(cuts, the cut that stands for the SLO, what a person should know or "").

    `past_buckets` are (le in seconds, cumulative count) of the baseline's past, +Inf included, bounds common to both sides; the
    test at a cut compares the shares of requests slower than it. Up to eight cuts with a tail between 0.1 % and 50 %, evenly spread,
    and the SLO's. Without bounds there are no cuts; without an SLO the middle cut stands for it.
    """
    ordered = sorted(dict(past_buckets).items())
    bounds = [le for le, _ in ordered if isfinite(le)]
    if not bounds:
        return (), None, "the histogram has no buckets yet"
    total = ordered[-1][1]
    tails = {le: 1 - count / total for le, count in ordered if isfinite(le)} if total > 0 else {}
    useful = [le for le in bounds if _LEAST_TAIL < tails.get(le, 0.0) < _LARGEST_TAIL]
    cuts = set(_spread(useful, tails))
    if slo is None:
        ordered_cuts = tuple(sorted(cuts)) or (bounds[len(bounds) // 2],)
        return ordered_cuts, ordered_cuts[len(ordered_cuts) // 2], ""
    at, note = _slo_cut(bounds, slo)
    if not tails:
        note = "; ".join(filter(None, (note, "no past requests: only the SLO's bucket is compared")))
    return tuple(sorted(cuts | {at})), at, note


def _spread(useful: Sequence[float], tails: dict[float, float]) -> list[float]:
    """At most eight of the bounds, evenly spread over the logarithm of their tails."""
    if len(useful) <= MOST_CUTS:
        return list(useful)
    first, last = log(tails[useful[0]]), log(tails[useful[-1]])
    left, chosen = list(useful), []
    for i in range(MOST_CUTS):
        wanted = first + (last - first) * i / (MOST_CUTS - 1)
        nearest = min(left, key=lambda le: abs(log(tails[le]) - wanted))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


def _slo_cut(bounds: Sequence[float], slo: float) -> tuple[float, str]:
    below = [le for le in bounds if le <= slo * (1 + 1e-9)]
    if not below:
        return bounds[0], f"the SLO of {slo:g}s is below all buckets: the lowest, {bounds[0]:g}s, is used"
    if slo - below[-1] > 1e-9 * slo:
        return below[
            -1
        ], f"the SLO of {slo:g}s is no bucket bound: the next lower one, {below[-1]:g}s, is used"
    return below[-1], ""
