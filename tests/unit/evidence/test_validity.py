"""The error bounds themselves, by exact enumeration: under the null no test gains in expectation, whatever is done with it.

Small numbers of requests, but every outcome; a mistake in a sign, a margin, or the use of the present poll in a guess shows here
as an expectation above 1.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import comb, exp, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.evidence.bound import MARGINS, START, grow_bound
from modelrollout.evidence.grid import CAP, log_mean_exp
from modelrollout.evidence.metric import Counts, MetricState, advance, begin_metric, harm_value
from modelrollout.evidence.plan import Kind, Margin, MetricTest

TOLERANCE = 1 + 1e-9


def binomial(n: int, p: float) -> list[float]:
    return [comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1)]


def make(kind: Kind, margin: Margin) -> MetricTest:
    return MetricTest("m", kind, margin, margin, weight=1, gating=True, selectors="", slo=1.0)


def one_poll(
    test: MetricTest, state: MetricState, n_c: int, n_s: int, cap: float
) -> Iterator[tuple[int, int, MetricState]]:
    for x_c, x_s in product(range(n_c + 1), range(n_s + 1)):
        counts = Counts(n_c, (x_c,), n_s, (x_s,))
        yield x_c, x_s, advance(test, state, counts, settled=True, ceiling=inf, cap=cap)


def value(state: MetricState, harm: bool) -> float:
    return harm_value(state.harm, state.polls) if harm else exp(log_mean_exp(state.harmless))


def expectation(
    test: MetricTest,
    polls: list[tuple[int, int, float]],
    *,
    harm: bool,
    cap: float = CAP,
    stop: Callable[[float], bool] = lambda e: False,
) -> float:
    """E[e at the last poll, or where `stop` first holds], with p_c exactly at the margin in every poll (n_c, n_s, p_s)."""
    margin = test.harm if harm else test.accept
    width = (1.0,) if test.kind == "latency" else ()
    paths = [(1.0, begin_metric(test, fingerprint="", stake=1, bound=False, cuts=width))]
    total = 0.0
    for n_c, n_s, p_s in polls:
        candidate, baseline = binomial(n_c, margin.ratio * p_s + margin.absolute), binomial(n_s, p_s)
        alive = []
        for weight, state in paths:
            for x_c, x_s, after in one_poll(test, state, n_c, n_s, cap):
                chance = weight * candidate[x_c] * baseline[x_s]
                if stop(value(after, harm)):
                    total += chance * value(after, harm)
                else:
                    alive.append((chance, after))
        paths = alive
    return total + sum(weight * value(state, harm) for weight, state in paths)


DRIFTING = [(2, 3, 0.05), (1, 4, 0.4), (3, 2, 0.2)]
NULLS = [
    pytest.param(kind, margin, harm, cap, id=f"{kind}, R {margin.ratio}, d {margin.absolute}, {side}, {word}")
    for kind in ("ratio", "score", "latency")
    for margin in (Margin(1, 0), Margin(1.25, 0.01), Margin(1.05, 0.00025))
    for harm, side in ((True, "harm"), (False, "harmless"))
    for cap, word in ((CAP, "capped"), (inf, "not capped"))
]


@pytest.mark.parametrize(("kind", "margin", "harm", "cap"), NULLS)
def test_no_gain_in_expectation_at_the_margin_while_the_baseline_drifts(
    kind: Kind, margin: Margin, harm: bool, cap: float
) -> None:
    assert expectation(make(kind, margin), DRIFTING, harm=harm, cap=cap) <= TOLERANCE


@pytest.mark.parametrize("kind", ["ratio", "score"])
@pytest.mark.parametrize("harm", [True, False], ids=["harm", "harmless"])
def test_no_gain_by_stopping_when_it_looks_good(kind: Kind, harm: bool) -> None:
    test = make(kind, Margin(1.1, 0.01))
    for bar in (1.01, 1.1, 1.3, 2.0):
        assert expectation(test, DRIFTING, harm=harm, stop=lambda e, bar=bar: e >= bar) <= TOLERANCE  # type: ignore[misc]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["ratio", "score"]),
    harm=st.booleans(),
    n_c=st.integers(1, 6),
    n_s=st.integers(1, 9),
    p_s=st.floats(0.001, 0.6),
    ratio=st.floats(1, 1.5),
    absolute=st.floats(0, 0.1),
)
def test_no_gain_in_expectation_for_any_sizes_and_margins(
    kind: Kind, harm: bool, n_c: int, n_s: int, p_s: float, ratio: float, absolute: float
) -> None:
    test = make(kind, Margin(ratio, absolute))
    assert (
        expectation(test, [(n_c, n_s, p_s)] * 2 if n_c * n_s < 20 else [(n_c, n_s, p_s)], harm=harm)
        <= TOLERANCE
    )


def test_it_does_gain_beyond_the_margin() -> None:
    """The mirror of the above: were the expectation always small, the tests above would prove nothing."""
    wide, narrow = make("ratio", Margin(1.5, 0.0)), make("ratio", Margin(1.0, 0.0))
    polls = [(4, 6, 0.3)]
    candidate, baseline = binomial(4, 1.5 * 0.3), binomial(6, 0.3)
    gain = sum(
        candidate[x_c] * baseline[x_s] * value(after, harm=True)
        for x_c, x_s, after in one_poll(
            narrow, begin_metric(narrow, fingerprint="", stake=1, bound=False), 4, 6, inf
        )
    )
    assert expectation(wide, polls, harm=True, cap=inf) <= TOLERANCE < gain


def test_each_margin_of_the_bound_is_a_fair_test() -> None:
    """At (p_c + d) / (p_s + d) = M the mean of the two alternatives of M does not gain."""
    n_c, n_s, p_s, d = 5, 6, 0.01, 0.005
    for i, margin in enumerate(MARGINS):
        p_c = margin * (p_s + d) - d
        if p_c > 1:
            break
        candidate, baseline = binomial(n_c, p_c), binomial(n_s, p_s)
        mean = 0.0
        for x_c, x_s in product(range(n_c + 1), range(n_s + 1)):
            logs = grow_bound(START, n_c, x_c, n_s, x_s, absolute=d, phi=1)
            mean += candidate[x_c] * baseline[x_s] * (exp(logs[2 * i]) + exp(logs[2 * i + 1])) / 2
        assert mean <= TOLERANCE


def test_values_between_good_and_bad_never_gain_more_than_bits_of_the_same_mean() -> None:
    """A score's fractional values: the expression on sums is a lower bound, so only their mean matters."""
    test = make("score", Margin(1, 0.01))
    chances = {0.0: 0.5, 0.5: 0.3, 1.0: 0.2}  # mean .35
    mean = sum(v * c for v, c in chances.items())
    shifted = {0.0: 0.49, 0.5: 0.3, 1.0: 0.21}  # one margin worse
    assert sum(v * c for v, c in shifted.items()) == pytest.approx(mean + 0.01)
    total = 0.0
    for c1, c2, s1, s2, s3 in product(shifted, shifted, chances, chances, chances):
        weight = shifted[c1] * shifted[c2] * chances[s1] * chances[s2] * chances[s3]
        counts = Counts(2, (c1 + c2,), 3, (s1 + s2 + s3,))
        state = advance(
            test,
            begin_metric(test, fingerprint="", stake=1, bound=False),
            counts,
            settled=True,
            ceiling=inf,
            cap=inf,
        )
        total += weight * value(state, harm=True)
    assert total <= TOLERANCE


def test_clustering_only_ever_weakens_the_evidence() -> None:
    """Dividing increments by phi keeps the expectation (Jensen)."""
    test = make("ratio", Margin(1.05, 0.001))
    state = begin_metric(test, fingerprint="", stake=1, bound=False, phi=3.0)
    candidate, baseline = binomial(5, 1.05 * 0.2 + 0.001), binomial(7, 0.2)
    total = sum(
        candidate[x_c] * baseline[x_s] * value(after, harm=True)
        for x_c, x_s, after in one_poll(test, state, 5, 7, inf)
    )
    assert 0.9 < total <= TOLERANCE
