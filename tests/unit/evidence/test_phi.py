"""Clustering of events, measured between the baseline's own pods."""

import numpy as np
import pytest

from modelrollout.evidence.phi import estimate

Poll = tuple[float, float, float, float]


def past(polls: int, *, size: int = 1, lasting: int = 1, seed: int = 7) -> list[Poll]:
    """Events in clusters of `size` that hit one side together; a cluster may last for some polls."""
    random = np.random.default_rng(seed)
    out = []
    for i in range(polls):
        if i % lasting == 0:
            clusters = random.poisson(20 / size)
            here = random.binomial(clusters, 0.25)
        out.append((250.0, float(here * size), 750.0, float((clusters - here) * size)))
    return out


def test_independent_events_are_not_clustered() -> None:
    found = [estimate(past(1000, seed=s)).phi for s in range(20)]
    assert np.mean([f == 1.0 for f in found]) >= 0.9


@pytest.mark.parametrize("size", [2, 5, 10])
def test_clusters_are_measured_with_a_safety_of_half_as_much_again(size: int) -> None:
    found = estimate(past(2000, size=size))
    # The largest of three noisy means, so rather above than below.
    assert 1.35 * size <= found.phi <= 2.1 * size
    assert "clusters" in found.note


def test_clusters_that_last_are_found_by_longer_blocks() -> None:
    assert estimate(past(5000, lasting=25)).phi > 1.5 * 15


def test_too_short_a_past_is_said() -> None:
    phi, note = estimate(past(999, size=5))
    assert phi == 1
    assert "999 past polls" in note


def test_a_past_without_events_says_nothing() -> None:
    assert estimate([(100, 0, 300, 0)] * 1000) == (1.0, "")
    assert estimate([(0, 0, 0, 0)] * 1000) == (1.0, "")
