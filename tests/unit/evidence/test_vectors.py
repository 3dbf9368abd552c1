"""Every number that the design states about the tests, reproduced through the code that runs in production."""

from collections.abc import Callable
from math import exp, inf, log

import pytest

from modelrollout.evidence.bernoulli import bernoulli_increments, guess_rates, harm_stakes, harmless_stakes
from modelrollout.evidence.bound import START, grow_bound, upper_bound
from modelrollout.evidence.engine import assess, begin, consume, raise_weight
from modelrollout.evidence.grid import (
    CAP,
    HARM_BETS,
    HARM_LIFTS,
    HARMLESS_BETS,
    HARMLESS_LIFTS,
    log_mean_exp,
)
from modelrollout.evidence.metric import Counts, MetricState, advance, begin_metric, harm_value
from modelrollout.evidence.mixture import harmless_ceiling, mixture_value, spend, unspent
from modelrollout.evidence.paired import paired_increments
from modelrollout.evidence.plan import Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, MetricPoll, Poll

N_C, N_S = 100.0, 900.0
X_C = (2.0, 1.0, 3.0, 2.0, 4.0)
X_S = (9.0, 10.0, 8.0, 11.0, 9.0)
SCORE_C = (2.0, 1.5, 3.0, 2.0, 4.0)
SCORE_S = (18.0, 17.25, 19.0, 18.0, 17.0)
RATIO_HARM, RATIO_ACCEPT = Margin(1.05, 0.00025), Margin(1.25, 0.0025)
SCORE_HARM, SCORE_ACCEPT = Margin(1, 0.0025), Margin(1, 0.01)
CEILING = harmless_ceiling(0.05)


def ratio_test(harm: Margin = RATIO_HARM, accept: Margin = RATIO_ACCEPT) -> MetricTest:
    return MetricTest("errors", "ratio", harm, accept, weight=1, gating=True, selectors="")


def score_test(harm: Margin = SCORE_HARM, accept: Margin = SCORE_ACCEPT) -> MetricTest:
    return MetricTest("quality", "score", harm, accept, weight=1, gating=True, selectors="")


def states(
    test: MetricTest,
    x_c: tuple[float, ...] = X_C,
    x_s: tuple[float, ...] = X_S,
    n_c: float = N_C,
    n_s: float = N_S,
    cap: float = CAP,
) -> list[MetricState]:
    state, out = begin_metric(test, fingerprint="", stake=1), []
    for c, s in zip(x_c, x_s, strict=True):
        state = advance(test, state, Counts(n_c, (c,), n_s, (s,)), settled=True, ceiling=CEILING, cap=cap)
        out.append(state)
    return out


def harm(found: list[MetricState]) -> list[float]:
    return [harm_value(s.harm, s.polls) for s in found]


def harmless(found: list[MetricState]) -> list[float]:
    return [exp(log_mean_exp(s.harmless)) for s in found]


def one_start() -> list[float]:
    """R = 1 with all prior mass at the first poll, no cap."""
    spent, out = (0.0,) * 8, []
    for i, (c, s) in enumerate(zip(X_C, X_S, strict=True)):
        gains = paired_increments(
            *(N_C, c, N_S, s),
            margin=Margin(1, 0),
            lifts=HARM_LIFTS,
            log_lifts=[log(v) for v in HARM_LIFTS],
            cap=inf,
        )
        spent = spend(spent, gains, 0.0 if i else 1.0)
        out.append(sum(spent) / 8)
    return out


def single_alternative() -> list[float]:
    total, out = 0.0, []
    for c, s in zip(X_C, X_S, strict=True):
        total += paired_increments(
            *(N_C, c, N_S, s), margin=Margin(1, 0), lifts=(2.0,), log_lifts=(log(2),), cap=inf
        )[0]
        out.append(exp(total))
    return out


VECTORS: dict[str, tuple[Callable[[], list[float]], list[float]]] = {
    "harm at the defaults": (
        lambda: harm(states(ratio_test())),
        [0.955677, 0.807702, 1.108549, 1.129243, 2.550275],
    ),
    "harm with R = 1, d = 0 and no cap": (
        lambda: harm(states(ratio_test(Margin(1, 0)), cap=inf)),
        [0.988665, 0.835881, 1.218089, 1.271405, 3.410086],
    ),
    "harm with R = 1, one start and no cap": (
        one_start,
        [0.977424, 0.674961, 1.428788, 1.537181, 5.734624],
    ),
    "the single alternative psi = 2 with R = 1": (
        single_alternative,
        [1.401976, 0.982768, 2.755633, 3.192835, 14.797608],
    ),
    "harmless with R = 1.25, d = .0025": (
        lambda: harmless(states(ratio_test())),
        [0.401824, 0.427829, 0.215257, 0.185796, 0.098372],
    ),
    "harm at the defaults in one poll of an outage, held by the cap": (
        lambda: harm(states(ratio_test(), (50.0,), (10.0,))),
        [5.518672],
    ),
    "exact form, harmless with R = 1, d = .01": (
        lambda: harmless(states(score_test(), SCORE_C, SCORE_S, 20, 180)),
        [1.002441, 1.064767, 0.943445, 0.946372, 0.730515],
    ),
    "exact form, harm with R = 1, d = .0025": (
        lambda: harm(states(score_test(), SCORE_C, SCORE_S, 20, 180)),
        [0.813579, 0.751352, 0.771898, 0.750564, 0.849893],
    ),
}


@pytest.mark.parametrize(("compute", "expected"), VECTORS.values(), ids=VECTORS.keys())
def test_vector(compute: Callable[[], list[float]], expected: list[float]) -> None:
    assert compute() == pytest.approx(expected, abs=6e-7)


def test_bound_before_the_ceiling_and_with_it() -> None:
    logs, before, after, bad = START, [], [], 0.0
    for i, (c, s) in enumerate(zip(X_C, X_S, strict=True), 1):
        logs = grow_bound(logs, N_C, c, N_S, s, absolute=0.0025, phi=1)
        bad += s
        before.append(upper_bound(logs, baseline_rate=0, absolute=0))
        after.append(upper_bound(logs, baseline_rate=bad / (i * N_S), absolute=0.0025))
    assert before == pytest.approx([inf, 5.62895, 5.62895, 4.38034, 5.62895], abs=6e-6)
    assert after == pytest.approx([80.2, 5.62895, 5.62895, 4.38034, 5.62895], abs=6e-6)


def test_the_engine_gives_the_same_numbers_as_its_parts() -> None:
    plan = Plan((ratio_test(), score_test()), 0.01, 0.05, 1, "a", "b", settle=30, interval=15)
    state = raise_weight(begin(plan, None), 10, at=-30)
    rows = zip(X_C, X_S, SCORE_C, SCORE_S, strict=True)
    for i, (c, s, score_c, score_s) in enumerate(rows):
        metrics = {
            "errors": MetricPoll(Arm(N_S, (s,)), {"p": Arm(N_C, (c,))}),
            "quality": MetricPoll(Arm(180, (score_s,)), {"p": Arm(20, (score_c,))}),
        }
        state = consume(plan, state, [Poll(15 * i, 15 * i + 15, metrics)])
    errors, quality = assess(plan, state, weight=10, rate=None).metrics
    found = [exp(v) for m in (errors, quality) for v in (m.log_harm, m.log_harmless)]
    assert found == pytest.approx([2.550275, 0.098372, 0.849893, 0.730515], abs=6e-7)
    assert errors.bound == pytest.approx(5.62895, abs=6e-6)
    assert quality.bound is None


@pytest.mark.parametrize(
    ("p_s", "n_c", "n_s", "psi", "margin", "expected"),
    [
        pytest.param(0.01, 20, 180, 2, Margin(1, 0), 0.999260, id="rare errors"),
        pytest.param(0.3, 20, 20, 2, Margin(1, 0), 0.817907, id="frequent errors"),
        pytest.param(0.05, 30, 70, 3, Margin(1.25, 0.01), 0.962466, id="harm with both margins"),
        pytest.param(0.4, 10, 40, 0.5, Margin(1.1, 0.02), 0.705972, id="harmless with both margins"),
    ],
)
def test_closed_form_of_the_expectation(
    p_s: float, n_c: int, n_s: int, psi: float, margin: Margin, expected: float
) -> None:
    """E over two binomials at the margin is (1 + p_c (a − 1))^n_c (1 + p_s (b − 1))^n_s exp(−n_c d (a − 1))."""
    lift = psi / margin.ratio

    def increment(x_c: float, x_s: float) -> float:
        return paired_increments(
            *(n_c, x_c, n_s, x_s), margin=margin, lifts=(lift,), log_lifts=(log(lift),), cap=inf
        )[0]

    nothing = increment(0, 0)
    a, b = exp(increment(1, 0) - nothing), exp(increment(0, 1) - nothing)
    p_c = margin.ratio * p_s + margin.absolute
    closed = (1 + p_c * (a - 1)) ** n_c * (1 + p_s * (b - 1)) ** n_s * exp(nothing)
    assert closed == pytest.approx(expected, abs=6e-7)


def test_the_grids_are_those_of_the_design() -> None:
    assert [round(v, 2) for v in HARM_LIFTS] == [1.15, 1.27, 1.48, 1.87, 2.56, 3.79, 6.01, 10.0]
    assert [round(1 / v, 2) for v in HARMLESS_LIFTS] == [1.2, 1.5, 2.26, 4.17, 8.96, 21.0]
    assert (HARM_BETS[0], HARM_BETS[-1], len(HARM_BETS)) == pytest.approx((0.05, 4, 8))
    assert HARMLESS_BETS == (0.5, 1, 1.5, 2.5)


def test_half_of_the_prior_mass_starts_at_the_first_poll_and_none_is_created() -> None:
    assert unspent(0) == 1
    assert unspent(1) == pytest.approx(0.5 * 240 / 241)
    spent = (0.0,)
    for t in range(500):
        spent = spend(spent, [0.0], unspent(t) - unspent(t + 1))
        assert mixture_value(spent, t + 1) == pytest.approx(1)


def test_good_hours_are_scaled_down_so_that_they_cannot_hide_a_bad_minute() -> None:
    test = ratio_test()
    found = harmless(states(test, (0.0,) * 60, (9.0,) * 60))
    assert max(found) == pytest.approx(exp(2) / 0.05)
    assert found[-1] == pytest.approx(exp(2) / 0.05)


def test_a_score_guess_uses_only_past_polls_and_keeps_all_factors_positive() -> None:
    for past_bad, past_n in ((0, 0), (0, 10**6), (10**6, 10**6), (50, 100)):
        for n_c, n_s in ((1, 1000), (1000, 1), (50, 50)):
            for margin in (Margin(1, 0.0025), Margin(1.5, 0.005), Margin(1, 0.3)):
                guess = guess_rates(past_bad, past_n, n_c, n_s, margin)
                for stakes in (harm_stakes(guess), harmless_stakes(guess, margin)):
                    for x_c in (0, n_c):
                        for x_s in (0, n_s):
                            bernoulli_increments(n_c, x_c, n_s, x_s, guess=guess, stakes=stakes)
