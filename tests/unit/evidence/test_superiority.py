"""Is the candidate better? The bound by exact enumeration and by simulation, the power, and what of it is remembered.

The null is "in no poll is the candidate's share of bad requests smaller": there the evidence may not gain, however often one
looks. It answers for one reward, and begins once an attempt.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import comb, exp, inf, log, sqrt

import numpy as np
import numpy.typing as npt
import pytest

from modelrollout.evidence.engine import assess, begin, consume, dump, load, new_step, raise_weight
from modelrollout.evidence.grid import CAP, REWARD_BETS, log_mean_exp
from modelrollout.evidence.metric import Counts, MetricState, advance, begin_metric
from modelrollout.evidence.plan import Kind, Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, MetricPoll, Poll
from modelrollout.evidence.state import State
from modelrollout.evidence.verdict import MetricAssessment, Verdict

BETA = 0.05
REWARD = MetricTest(
    "quality", "score", Margin(1, 0.0025), Margin(1, 0.01), weight=1, gating=True, selectors="", reward=True
)
ERRORS = replace(REWARD, name="errors", kind="ratio", reward=False, accept=Margin(1.25, 0.0025))
PLAN = Plan((REWARD, ERRORS), 0.01, BETA, 1, "a", "b", settle=30, interval=15)


def value(state: MetricState) -> float:
    return exp(log_mean_exp(state.superior))


def binomial(n: int, p: float) -> list[float]:
    return [comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(n + 1)]


def expectation(
    test: MetricTest,
    polls: list[tuple[int, int, float, float]],
    *,
    cap: float = CAP,
    stop: Callable[[float], bool] = lambda e: False,
) -> float:
    """E[e at the last poll, or where `stop` first holds] over every outcome of polls (n_c, n_s, p_c, p_s)."""
    paths = [(1.0, begin_metric(test, fingerprint="", stake=1, bound=False))]
    total = 0.0
    for n_c, n_s, p_c, p_s in polls:
        candidate, baseline = binomial(n_c, p_c), binomial(n_s, p_s)
        alive = []
        for (weight, state), x_c, x_s in product(paths, range(n_c + 1), range(n_s + 1)):
            counts = Counts(n_c, (x_c,), n_s, (x_s,))
            after = advance(test, state, counts, settled=True, ceiling=inf, cap=cap)
            chance = weight * candidate[x_c] * baseline[x_s]
            if stop(value(after)):
                total += chance * value(after)
            else:
                alive.append((chance, after))
        paths = alive
    return total + sum(weight * value(state) for weight, state in paths)


EQUAL = [(2, 3, 0.05, 0.05), (1, 4, 0.4, 0.4), (3, 2, 0.9, 0.9)]
WORSE = [(2, 3, 0.2, 0.05), (1, 4, 0.4, 0.4), (3, 2, 0.95, 0.9)]


@pytest.mark.parametrize("kind", ["ratio", "score"])
@pytest.mark.parametrize("polls", [EQUAL, WORSE], ids=["an equal candidate", "a worse candidate"])
@pytest.mark.parametrize("cap", [CAP, inf], ids=["capped", "not capped"])
def test_no_gain_in_expectation_while_the_baseline_drifts(
    kind: Kind, polls: list[tuple[int, int, float, float]], cap: float
) -> None:
    assert expectation(replace(REWARD, kind=kind), polls, cap=cap) <= 1 + 1e-9


def test_no_gain_by_stopping_when_it_looks_good() -> None:
    assert expectation(REWARD, EQUAL, cap=inf, stop=lambda e: e > 1.2) <= 1 + 1e-9


def test_a_better_candidate_gains() -> None:
    assert expectation(REWARD, [(3, 3, 0.1, 0.9), (3, 3, 0.1, 0.9)]) > 1.5


def test_one_poll_is_what_the_formula_says() -> None:
    """t = 1/10 before the first poll, r = n_c / n_s, and each bet wagers Δ / (t (1 − t) (1 + r)) against bad requests."""
    n_c, x_c, n_s, x_s, t = 200.0, 10.0, 100.0, 12.0, 0.1
    r = n_c / n_s
    expected = []
    for bet in REWARD_BETS:
        stake = min(bet * t / (t * (1 - t) * (1 + r)), 0.9 * min(1 / (1 - t), 1 / (r * t)))
        factor = (
            x_c * log(1 - stake * (1 - t))
            + (n_c - x_c) * log(1 + stake * t)
            + x_s * log(1 + r * stake * (1 - t))
            + (n_s - x_s) * log(1 - r * stake * t)
        )
        expected.append(min(factor, CAP))
    state = begin_metric(REWARD, fingerprint="", stake=1)
    after = advance(REWARD, state, Counts(n_c, (x_c,), n_s, (x_s,)), settled=True, ceiling=inf)
    assert after.superior == pytest.approx(expected)


# Simulated


def first_win(
    *,
    good_s: float,
    good_c: float,
    rate: int = 100,
    weight: float = 0.5,
    polls: int = 600,
    drift: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Candidate requests until the first of `polls` looks that finds it superior; infinite if none does. 500 tests each."""
    random, runs = np.random.default_rng(7), 500
    n_c, n_s = int(rate * weight * 15), int(rate * (1 - weight) * 15)
    bets, logs = np.asarray(REWARD_BETS), np.zeros((runs, len(REWARD_BETS)))
    bad, seen, won = np.zeros((runs, 1)), 0, np.full(runs, inf)
    for poll in range(polls):
        swing = 1 + drift * np.sin(poll / 20)
        x_c = random.binomial(n_c, 1 - good_c * swing, (runs, 1)).astype(float)
        x_s = random.binomial(n_s, 1 - good_s * swing, (runs, 1)).astype(float)
        t, r = np.clip((bad + 1) / (seen + 10), 1e-4, 0.98), n_c / n_s
        unit = np.maximum(np.minimum(t, 1 - t), 0.005) / (t * (1 - t) * (1 + r))
        stake = np.minimum(bets * unit, 0.9 * np.minimum(1 / (1 - t), 1 / (r * t)))
        gain = x_c * np.log(1 - stake * (1 - t)) + (n_c - x_c) * np.log(1 + stake * t)
        gain += x_s * np.log(1 + r * stake * (1 - t)) + (n_s - x_s) * np.log(1 - r * stake * t)
        logs += np.minimum(gain, CAP)
        mean = np.logaddexp.reduce(logs, axis=1) - log(len(bets))
        won = np.where(np.isinf(won) & (mean >= -log(BETA)), (poll + 1) * n_c, won)
        bad, seen = bad + x_s, seen + n_s
    return won


def test_the_simulation_is_the_engine() -> None:
    random = np.random.default_rng(3)
    state = begin_metric(REWARD, fingerprint="", stake=1)
    logs, bad, seen = np.zeros(len(REWARD_BETS)), 0.0, 0.0
    for _ in range(40):
        n_c, n_s = float(random.integers(50, 500)), float(random.integers(50, 500))
        x_c, x_s = float(random.binomial(int(n_c), 0.8)), float(random.binomial(int(n_s), 0.85))
        state = advance(REWARD, state, Counts(n_c, (x_c,), n_s, (x_s,)), settled=True, ceiling=inf)
        t, r = min(max((bad + 1) / (seen + 10), 1e-4), 0.98), n_c / n_s
        unit = max(min(t, 1 - t), 0.005) / (t * (1 - t) * (1 + r))
        stake = np.minimum(np.asarray(REWARD_BETS) * unit, 0.9 * min(1 / (1 - t), 1 / (r * t)))
        gain = x_c * np.log(1 - stake * (1 - t)) + (n_c - x_c) * np.log(1 + stake * t)
        gain += x_s * np.log(1 + r * stake * (1 - t)) + (n_s - x_s) * np.log(1 - r * stake * t)
        logs, bad, seen = logs + np.minimum(gain, CAP), bad + x_s, seen + n_s
    assert state.superior == pytest.approx(logs.tolist())


@pytest.mark.parametrize(
    "case",
    [
        {"good_s": 0.1, "good_c": 0.1},
        {"good_s": 0.1, "good_c": 0.1, "weight": 0.05},
        {"good_s": 0.95, "good_c": 0.95},
        {"good_s": 0.5, "good_c": 0.5, "drift": 0.5},
        {"good_s": 0.01, "good_c": 0.01},
    ],
    ids=["a tenth is good", "few candidates", "most are good", "a day and a night", "a hundredth is good"],
)
def test_an_equal_candidate_wins_no_more_often_than_the_bound_says(case: dict[str, float]) -> None:
    wrong = float(np.isfinite(first_win(**case)).mean())  # type: ignore[arg-type]
    assert wrong <= BETA + 3 * sqrt(BETA * (1 - BETA) / 500)


@pytest.mark.parametrize(
    ("good_s", "good_c", "most"),
    [(0.10, 0.12, 9_000), (0.10, 0.11, 26_000), (0.90, 0.91, 18_000), (0.50, 0.52, 15_000)],
    ids=["conversions +20 %", "conversions +10 %", "a tenth fewer are wrong", "two percent more are right"],
)
def test_a_better_candidate_wins_in_time(good_s: float, good_c: float, most: float) -> None:
    won = first_win(good_s=good_s, good_c=good_c)
    assert np.isfinite(won).mean() >= 0.8
    assert np.median(won) <= most


# The engine's rules


def poll(i: int, good: float, *, base: float = 0.5, n: float = 1000.0) -> Poll:
    """The i-th poll of 15 s, with these shares of good answers; no errors."""
    quality = MetricPoll(Arm(n, (n * (1 - base),)), {"p1": Arm(n, (n * (1 - good),))})
    errors = MetricPoll(Arm(n, (n * 0.01,)), {"p1": Arm(n, (n * 0.01,))})
    return Poll(15.0 * i, 15.0 * i + 15, {"quality": quality, "errors": errors})


def compared(good: float, polls: int = 20, plan: Plan = PLAN) -> State:
    state = raise_weight(begin(plan, None), 50, 0)
    return consume(plan, state, [poll(i, good) for i in range(polls)])


def said(state: State, plan: Plan = PLAN, name: str = "quality") -> MetricAssessment:
    return next(m for m in assess(plan, state, weight=50, rate=None).metrics if m.name == name)


@pytest.mark.parametrize(
    ("good", "superior"), [(0.55, True), (0.5, False), (0.45, False)], ids=["better", "equal", "worse"]
)
def test_only_what_is_better_is_superior(good: float, superior: bool) -> None:
    found = said(compared(good))
    assert found.superior is superior
    assert (found.verdict is Verdict.SUPERIOR) is superior
    assert (found.log_superior >= log(1 / BETA)) is superior


def test_only_the_reward_is_asked() -> None:
    assert not said(compared(0.6), name="errors").reward
    assert not compared(0.6).metrics["errors"].superior


def test_no_time_is_a_reward() -> None:
    assert not begin_metric(replace(REWARD, kind="latency"), fingerprint="", stake=1, cuts=(1.0,)).superior


def test_requests_that_may_still_fail_prove_nothing() -> None:
    state = raise_weight(begin(PLAN, None), 50, 1e9)
    state = consume(PLAN, state, [poll(i, 0.9) for i in range(20)])
    assert said(state).log_superior == 0.0


def test_good_hours_do_not_hide_a_bad_time() -> None:
    state = compared(0.6, 200)
    assert said(state).superior
    assert not said(consume(PLAN, state, [poll(200 + i, 0.3) for i in range(5)])).superior


def test_it_goes_on_over_steps_and_restarts() -> None:
    whole = compared(0.51, 60)
    state = compared(0.51, 30)
    state = new_step(load(dump(state)))
    state = consume(PLAN, state, [poll(i, 0.51) for i in range(30, 60)])
    assert said(state).log_superior == pytest.approx(said(whole).log_superior, rel=1e-5)


def test_more_weight_is_no_second_chance() -> None:
    state = compared(0.51, 30)
    assert said(raise_weight(state, 60, 450)).log_superior == said(state).log_superior != 0


def test_a_state_from_before_there_were_rewards_is_read() -> None:
    old = dump(compared(0.6))
    for one in old["metrics"].values():
        one.pop("superior", None)
    state = begin(PLAN, load(old))
    assert state.metrics["quality"].superior == (0.0,) * len(REWARD_BETS)
    assert state.metrics["quality"].polls == 20, "what else is known stays"


def test_what_is_not_asked_leaves_no_trace_in_the_state() -> None:
    plain = replace(PLAN, metrics=(replace(REWARD, reward=False), ERRORS))
    state = begin(plain, compared(0.6))
    assert all("superior" not in metric for metric in dump(state)["metrics"].values())


def test_another_bound_is_another_question() -> None:
    state = begin(replace(PLAN, false_promotion=0.2), compared(0.6))
    assert said(state).log_superior == 0.0
