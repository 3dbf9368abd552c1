"""Watching without anything to compare with."""

import numpy as np
import pytest

from modelrollout.evidence.plan import Margin
from modelrollout.evidence.watch import Watch, alarmed, begin_watch, grow_watch, upper_rate

MARGIN = Margin(1.05, 0.0)


def run(rates: list[float], *, seed: int, n: int = 500) -> int | None:
    """The poll of the alarm; the limit is 1 % · 1.05."""
    random = np.random.default_rng(seed)
    watch = Watch(limit=0.0105, horizon=len(rates))
    for i, rate in enumerate(rates, 1):
        watch = grow_watch(watch, requests=n, bad=float(random.binomial(n, rate)))
        if alarmed(watch, 0.01):
            return i
    return None


def test_a_model_at_the_limit_raises_no_alarm() -> None:
    alarms = [run([0.0105] * 240, seed=s) for s in range(60)]
    assert sum(a is not None for a in alarms) <= 2


def test_a_late_regression_raises_it_soon() -> None:
    alarms = [run([0.01] * 200 + [0.03] * 40, seed=s) for s in range(30)]
    assert all(a is not None and 200 < a <= 215 for a in alarms)


def test_the_value_grows_by_one_per_poll_in_expectation_at_the_limit() -> None:
    """E[M] = polls exactly for Poisson counts: the supermartingale behind the bound."""
    watch = Watch(limit=0.01, horizon=10)
    ks = range(160)
    weights = np.exp(-5) * np.cumprod([1.0, *(5 / k for k in ks[1:])])
    values = [grow_watch(watch, requests=500, bad=float(k)).values for k in ks]
    assert np.asarray(values).T @ weights == pytest.approx(np.ones(8), abs=1e-6)


@pytest.mark.parametrize(("bad", "requests"), [(0, 1000), (10, 1000), (1000, 100000), (5, 5)])
def test_the_upper_bound_of_the_rate_is_above_it_and_shrinks(bad: float, requests: float) -> None:
    rate = upper_rate(bad, requests, level=0.01)
    assert bad / requests <= rate <= 1
    assert upper_rate(10 * bad, 10 * requests, level=0.01) <= rate


def test_the_upper_bound_covers_by_enumeration() -> None:
    n, p = 50, 0.1
    chances = np.cumprod([(1 - p) ** n, *((n - k + 1) / k * p / (1 - p) for k in range(1, n + 1))])
    missed = sum(c for k, c in enumerate(chances) if upper_rate(k, n, level=0.05) < p)
    assert missed <= 0.05


def test_without_a_baseline_nothing_is_beyond_the_limit() -> None:
    watch = begin_watch(bad=0, requests=0, margin=MARGIN, horizon=10)
    for _ in range(10):
        watch = grow_watch(watch, requests=100, bad=100)
    assert not alarmed(watch, 0.01)
