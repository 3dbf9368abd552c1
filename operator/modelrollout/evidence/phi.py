"""phi: how much more the split of bad events varies than independent requests would make it.

A client that retries, or a batch that fails as one, makes events come in clusters; ten that fail together are not ten
pieces of evidence. Measured before the rollout between the baseline's own pods, where any excess can only be clustering.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

LEAST_POLLS = 1000
_BLOCKS = (1, 5, 25)
_SAFETY = 1.5


class Estimate(NamedTuple):
    """phi ≥ 1 to divide log increments by, and what a person should know ("" if nothing)."""

    phi: float
    note: str


def estimate(polls: Sequence[tuple[float, float, float, float]]) -> Estimate:
    """phi from past polls (n_c, x_c, n_s, x_s) of the baseline's pods, split as the rollout will be.

    For blocks of 1, 5 and 25 polls (clusters may last), the mean of (x_c − m rho)² / (m rho (1 − rho)) with m = x_c + x_s. A
    mean that chance explains, ≤ 1 + 3 sqrt(2 / blocks), is not used; the largest of the others counts times 1.5.
    """
    if len(polls) < LEAST_POLLS:
        return Estimate(
            1.0,
            f"only {len(polls)} past polls: that errors come singly, not in clusters, is assumed, not measured",
        )
    excess = [found for length in _BLOCKS if (found := _dispersion(polls, length)) is not None]
    if not excess:
        return Estimate(1.0, "")
    phi = _SAFETY * max(excess)
    return Estimate(phi, f"errors come in clusters: evidence counts {phi:.1f} times less")


def _dispersion(polls: Sequence[tuple[float, float, float, float]], length: int) -> float | None:
    """The mean for one block length if it is more than chance."""
    ratios = []
    for start in range(0, len(polls) - length + 1, length):
        excess = variance = 0.0
        for n_c, x_c, n_s, x_s in polls[start : start + length]:
            if n_c > 0 and n_s > 0:
                rho, both = n_c / (n_c + n_s), x_c + x_s
                excess += x_c - both * rho
                variance += both * rho * (1 - rho)
        if variance > 0:
            ratios.append(excess * excess / variance)
    if not ratios:
        return None
    mean = sum(ratios) / len(ratios)
    return mean if mean > 1 + 3 * sqrt(2 / len(ratios)) else None
