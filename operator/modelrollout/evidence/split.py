"""Does the traffic follow the weight? If callers bypass the route or hold on to connections, a step proves less than it says.

Only a clear and material deviation counts: outside [1/1.25, 1.25] times the expected share *and* more than four standard deviations
off, over the last three polls pooled, so that neither chance nor a scrape offset raises it.
"""

from dataclasses import dataclass, replace
from math import sqrt

WINDOW = 3
_LEAST_REQUESTS, _LEAST_EXPECTED = 1000, 200
_FACTOR, _DEVIATIONS = 1.25, 4.0


@dataclass(frozen=True, slots=True)
class Split:
    """Requests (candidate, baseline) of the last polls at one weight, and whether the split is off."""

    weight: int = 0
    polls: tuple[tuple[float, float], ...] = ()
    off: bool = False
    observed: float | None = None  # the candidate's share, 0 to 1, in the last window that was large enough


def observe(split: Split, *, weight: int, candidate: float, baseline: float, phi: float = 1.0) -> Split:
    """The split after one more complete poll (not a partial one) that lies wholly at `weight` percent.

    Another weight starts a new window; a window too small to tell leaves `off` as it is, and where nothing is split nothing
    is off. `phi`: clustering of requests.
    """
    if not 0 < weight < 100:
        return Split(weight=weight)
    if weight != split.weight:
        split = replace(split, weight=weight, polls=())
    split = replace(split, polls=(*split.polls, (candidate, baseline))[-WINDOW:])
    if len(split.polls) < WINDOW:
        return split
    requests = sum(c + s for c, s in split.polls)
    smaller = min(weight, 100 - weight) / 100
    if requests < _LEAST_REQUESTS or requests * smaller < _LEAST_EXPECTED:
        return split
    share = sum(c for c, _ in split.polls) / requests
    seen = share if weight <= 50 else 1 - share
    off = not smaller / _FACTOR <= seen <= smaller * _FACTOR
    far = abs(seen - smaller) > _DEVIATIONS * sqrt(max(phi, 1.0) * smaller * (1 - smaller) / requests)
    return replace(split, off=off and far, observed=share)
