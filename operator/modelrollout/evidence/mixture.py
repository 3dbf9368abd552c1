"""How increments become evidence: the restart mixture (harm) and the scaled product (harmless).

Harm must find a regression that begins late, so its prior spreads over starting times: S_k ← (S_k + g_t) · e_t(psi_k) with
half of the mass at the first poll and ½ · H / (H + t) still unspent after t polls; unspent mass counts as 1. This is an
e-process (a mixture over starting times of e-processes), so Ville's inequality bounds its supremum (Ville 1939;
Shin et al., e-detectors).
"""

from collections.abc import Sequence
from math import exp, log

from modelrollout.evidence.grid import log_mean_exp

HORIZON = 240.0
# Far beyond any decision; keeps an hour of overwhelming evidence from becoming infinite.
_LARGEST = 1e280


def unspent(polls: int) -> float:
    """The prior mass of starting times after the first `polls` polls."""
    return 0.5 * HORIZON / (HORIZON + polls) if polls else 1.0


def spend(spent: Sequence[float], increments: Sequence[float], fresh: float) -> tuple[float, ...]:
    """S_k after one more poll; `fresh` is the prior mass that starts with it."""
    grown = [(s + fresh) * exp(g) for s, g in zip(spent, increments, strict=True)]
    return tuple(grown) if max(grown) < _LARGEST else tuple([min(s, _LARGEST) for s in grown])


def mixture_value(spent: Sequence[float], polls: int) -> float:
    """e of one restart mixture after `polls` polls."""
    return sum(spent) / len(spent) + unspent(polls)


def grow(logs: Sequence[float], increments: Sequence[float], ceiling: float) -> tuple[float, ...]:
    """ln e_k of the harmless test after one more poll, its mean scaled down to exp(`ceiling`), so that good hours can
    not hide a bad minute."""
    grown = [v + g for v, g in zip(logs, increments, strict=True)]
    if max(grown) <= ceiling:
        return tuple(grown)
    excess = log_mean_exp(grown) - ceiling
    return tuple([v - excess for v in grown]) if excess > 0 else tuple(grown)


def harmless_ceiling(false_promotion: float) -> float:
    """ln(e² / beta)."""
    return 2 - log(false_promotion)
