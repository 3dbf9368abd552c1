"""The confidence sequence: what people read must contain the truth, and say nothing where it knows nothing."""

from itertools import pairwise
from math import exp, lgamma, log, sqrt

import pytest

from modelrollout.evidence.interval import (
    EMPTY_PROFILE,
    RATIOS,
    Interval,
    confidence_interval,
    grow_profile,
    normalise,
)


def interval(n_c: float, x_c: float, n_s: float, x_s: float, polls: int = 1, phi: float = 1) -> Interval:
    profile = EMPTY_PROFILE
    for _ in range(polls):
        profile = grow_profile(profile, n_c, x_c, n_s, x_s, phi)
    return confidence_interval(profile)


def test_nothing_seen_says_nothing() -> None:
    assert confidence_interval(EMPTY_PROFILE) == Interval(None, None, None)
    assert interval(100, 0, 900, 0) == Interval(None, None, None)


@pytest.mark.parametrize(
    ("x_c", "x_s", "polls"), [(10, 90, 1), (20, 90, 5), (5, 90, 50), (30, 30, 1000), (7.5, 60.25, 20)]
)
def test_the_ratio_is_the_ratio_of_the_rates(x_c: float, x_s: float, polls: int) -> None:
    found = interval(1000, x_c, 9000, x_s, polls)
    assert found.ratio == pytest.approx((x_c / 1000) / (x_s / 9000), rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.ratio < found.high


def test_the_ends_are_where_the_likelihood_crosses_the_bar_not_where_a_line_would() -> None:
    """Against the same mixture evaluated on a fine grid between the points."""
    n_c, x_c, n_s, x_s = 1000.0, 20.0, 9000.0, 90.0
    found = interval(n_c, x_c, n_s, x_s)
    rho = n_c / (n_c + n_s)

    def likelihood(psi: float) -> float:
        return x_c * log(psi) - (x_c + x_s) * log(rho * psi + 1 - rho)

    top = max(likelihood(psi) for psi in RATIOS)
    bar = top + log(sum(exp(likelihood(psi) - top) for psi in RATIOS) / len(RATIOS)) - log(20)
    fine = [RATIOS[0] * (RATIOS[-1] / RATIOS[0]) ** (i / 20000) for i in range(20001)]
    inside = [psi for psi in fine if likelihood(psi) > bar]
    assert (found.low, found.high) == pytest.approx((inside[0], inside[-1]), rel=2e-3)


def test_an_end_at_the_edge_of_the_grid_is_null() -> None:
    assert interval(1000, 0, 9000, 90).low is None
    assert interval(1000, 0, 9000, 90).ratio is None
    assert interval(1000, 0, 9000, 90).high is not None
    assert interval(100, 100, 9000, 1).high is None


def test_it_narrows_with_data_and_widens_with_clustering() -> None:
    widths = []
    for polls in (1, 10, 100, 1000):
        found = interval(1000, 10, 9000, 90, polls)
        assert found.low is not None
        assert found.high is not None
        widths.append(log(found.high / found.low))
    assert all(a > b for a, b in pairwise(widths))
    clustered = interval(1000, 10, 9000, 90, 100, phi=10)
    assert clustered == pytest.approx(interval(1000, 10, 9000, 90, 10))


def test_a_stored_profile_means_the_same() -> None:
    profile = grow_profile(EMPTY_PROFILE, 1000, 20, 9000, 90, 1)
    assert max(normalise(profile)) == 0
    assert confidence_interval(normalise(profile)) == pytest.approx(confidence_interval(profile))


@pytest.mark.parametrize("truth", [0.5, 1.0, 1.13, 2.0, 5.0])
def test_it_misses_the_truth_rarely_by_exact_enumeration(truth: float) -> None:
    """One poll, Poisson events split by theta: P(truth outside) over all outcomes ≤ 5 %."""
    rho, both = 0.1, 60
    theta = rho * truth / (rho * truth + 1 - rho)
    missed = 0.0
    for x_c in range(both + 1):
        weight = exp(lgamma(both + 1) - lgamma(x_c + 1) - lgamma(both - x_c + 1))
        chance = weight * theta**x_c * (1 - theta) ** (both - x_c)
        found = interval(1000, x_c, 9000, both - x_c)
        outside = (found.low is not None and truth < found.low) or (
            found.high is not None and truth > found.high
        )
        missed += chance * outside
    assert missed <= 0.05


def test_large_counts_do_not_break_it() -> None:
    found = interval(1e7, 1.2e5, 1e7, 1e5, polls=10)
    assert found.ratio == pytest.approx(1.2, rel=0.05)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 1.2 <= found.high
    assert sqrt(found.high / found.low) < 1.2
