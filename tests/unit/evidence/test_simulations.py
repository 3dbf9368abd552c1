"""Whole rollouts, simulated: the error bounds where the proofs' assumptions are strained, and the power that the design promises.

Thousands of rollouts at once by the same formulas in numpy; the first test checks that they are the same as the engine's. Every
bound is asserted with three standard errors; seeds are fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import numpy.typing as npt
import pytest

from modelrollout.evidence.engine import assess, begin, consume, new_step, raise_weight
from modelrollout.evidence.grid import CAP, HARM_BETS, HARM_LIFTS, HARMLESS_BETS, HARMLESS_LIFTS
from modelrollout.evidence.metric import Counts, advance, begin_metric, harm_value
from modelrollout.evidence.mixture import HORIZON, harmless_ceiling
from modelrollout.evidence.phi import estimate
from modelrollout.evidence.plan import Kind, Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, MetricPoll, Poll

ALPHA, BETA = 0.01, 0.05
Array = npt.NDArray[np.float64]
Random = np.random.Generator
MARGINS: dict[Kind, tuple[Margin, Margin]] = {
    "ratio": (Margin(1.05, 0.00025), Margin(1.25, 0.0025)),
    "score": (Margin(1, 0.0025), Margin(1, 0.01)),
    "latency": (Margin(1.25, 0.0025), Margin(1.5, 0.005)),
}


def metric(kind: Kind = "ratio", harm: Margin | None = None, accept: Margin | None = None) -> MetricTest:
    default = MARGINS[kind]
    return MetricTest("m", kind, harm or default[0], accept or default[1], 1, True, "", slo=1.0)


@dataclass(frozen=True)
class Rollouts:
    """Counts of many rollouts, each array (rollouts, polls)."""

    n_c: Array
    x_c: Array
    n_s: Array
    x_s: Array


@dataclass(frozen=True)
class Paths:
    """e after each poll, (rollouts, polls)."""

    harm: Array
    harmless: Array


def paired(n_c: Array, x_c: Array, n_s: Array, x_s: Array, margin: Margin, lifts: Array) -> Array:
    rho = n_c / (n_c + n_s)
    b = (rho * margin.ratio + 1 - rho) / (rho * margin.ratio * lifts + 1 - rho)
    return x_c * np.log(lifts * b) + x_s * np.log(b) - n_c * margin.absolute * (lifts * b - 1)


def exact(
    n_c: Array, x_c: Array, n_s: Array, x_s: Array, margin: Margin, past: tuple[Array, Array], harm: bool
) -> Array:
    t_s = np.clip((past[0] + 1) / (past[1] + 10), 1e-4, 0.98)
    t_c = np.minimum(margin.ratio * t_s + margin.absolute, 0.995)
    t_s = (t_c - margin.absolute) / margin.ratio
    r = margin.ratio * n_c / n_s
    variance = t_c * (1 - t_c) + margin.ratio * r * t_s * (1 - t_s)
    if harm:
        bet = np.maximum(t_s, 0.005) * np.asarray(HARM_BETS) / variance
        stake = np.minimum(bet, 0.9 * np.minimum(1 / t_c, 1 / (r * (1 - t_s))))
    else:
        bet = ((margin.ratio - 1) * t_s + margin.absolute) * np.asarray(HARMLESS_BETS) / variance
        stake = -np.minimum(bet, 0.9 * np.minimum(1 / (1 - t_c), 1 / (r * t_s)))
    other = r * stake
    gain = x_c * np.log(1 + stake * (1 - t_c)) + (n_c - x_c) * np.log(1 - stake * t_c)
    return np.asarray(gain + x_s * np.log(1 - other * (1 - t_s)) + (n_s - x_s) * np.log(1 + other * t_s))


def gains(
    test: MetricTest, counts: tuple[Array, ...], past: tuple[Array, Array], on: bool, cap: float, phi: float
) -> Array:
    """Log increments of the harm test (`on`) or the harmless test, (rollouts, alternatives)."""
    margin = test.harm if on else test.accept
    if test.kind == "ratio":
        raw = paired(*counts, margin, np.asarray(HARM_LIFTS if on else HARMLESS_LIFTS))
    else:
        raw = exact(*counts, margin, past, on)
    return np.minimum(raw / phi, min(cap, 600.0))


def unspent_mass(polls: Array) -> Array:
    return np.where(polls > 0, 0.5 * HORIZON / (HORIZON + polls), 1.0)


def follow(
    test: MetricTest, runs: Rollouts, *, cap: float = CAP, sides: str = "both", phi: float = 1.0
) -> Paths:
    """The evidence of many rollouts at one weight, all polls settled."""
    shape = runs.n_c.shape
    harm, harmless = np.ones(shape), np.ones(shape)
    spent, polls = np.zeros((shape[0], 8)), np.zeros((shape[0], 1))
    logs = np.zeros((shape[0], 6 if test.kind == "ratio" else 4))
    past = np.zeros((shape[0], 1)), np.zeros((shape[0], 1))
    ceiling = harmless_ceiling(BETA)
    for t in range(shape[1]):
        n_c, x_c, n_s, x_s = (a[:, t : t + 1] for a in (runs.n_c, runs.x_c, runs.n_s, runs.x_s))
        found = (n_c > 0) & (n_s > 0)
        counts = (np.where(found, n_c, 1), x_c, np.where(found, n_s, 1), x_s)
        if sides != "harmless":
            fresh = unspent_mass(polls) - unspent_mass(polls + 1)
            grown = (spent + fresh) * np.exp(gains(test, counts, past, True, cap, phi))
            spent = np.where(found, np.minimum(grown, 1e280), spent)
            harm[:, t] = spent.mean(axis=1) + unspent_mass(polls + found)[:, 0]
        if sides != "harm":
            logs = logs + np.where(found, gains(test, counts, past, False, cap, phi), 0.0)
            mean = np.logaddexp.reduce(logs, axis=1) - np.log(logs.shape[1])
            logs -= np.maximum(mean - ceiling, 0)[:, None]
            harmless[:, t] = np.exp(np.minimum(mean, ceiling))
        polls = polls + found
        past = past[0] + np.where(found, x_s, 0), past[1] + np.where(found, n_s, 0)
    return Paths(harm, harmless)


def draw(
    random: Random,
    shape: tuple[int, int],
    *,
    requests: float,
    weight: float | Array,
    p_s: float | Array,
    p_c: float | Array,
) -> Rollouts:
    """Requests split at random by `weight`; `weight`, `p_s`, `p_c` may vary by poll."""
    total = random.poisson(requests, shape)
    n_c = random.binomial(total, np.broadcast_to(weight, shape))
    n_s = total - n_c
    x_c = random.binomial(n_c, np.broadcast_to(p_c, shape))
    x_s = random.binomial(n_s, np.broadcast_to(p_s, shape))
    return Rollouts(*(a.astype(np.float64) for a in (n_c, x_c, n_s, x_s)))


def ever(e: Array, bar: float) -> float:
    """Share of rollouts in which e ever reached the bar."""
    return float((e.max(axis=1) >= bar).mean())


def allowed(bound: float, rollouts: int) -> float:
    return bound + 3 * sqrt(bound * (1 - bound) / rollouts)


def first(e: Array, bar: float) -> Array:
    """Index of the first poll at or above the bar; inf if none."""
    hit = e >= bar
    return np.where(hit.any(axis=1), hit.argmax(axis=1).astype(np.float64), inf)


@pytest.mark.parametrize("kind", ["ratio", "score", "latency"])
def test_the_simulated_formulas_are_those_of_the_engine(kind: Kind) -> None:
    test, random = metric(kind), np.random.default_rng(11)
    runs = draw(random, (5, 60), requests=30, weight=0.1, p_s=0.05, p_c=0.08)
    assert (runs.n_c == 0).any(), "polls without candidate requests must be among them"
    paths = follow(test, runs)
    for i in range(5):
        state = begin_metric(test, fingerprint="", stake=1, bound=False, cuts=(1.0,))
        for t in range(60):
            n_c, x_c, n_s, x_s = (float(a[i, t]) for a in (runs.n_c, runs.x_c, runs.n_s, runs.x_s))
            if n_c and n_s:
                counts = Counts(n_c, (x_c,), n_s, (x_s,))
                state = advance(test, state, counts, settled=True, ceiling=harmless_ceiling(BETA))
                seen = harm_value(state.harm, state.polls)
        assert np.log(np.mean(np.exp(state.harmless))) == pytest.approx(
            np.log(paths.harmless[i, -1]), abs=1e-9
        )
        assert seen == pytest.approx(paths.harm[i, -1])


# The bounds


@dataclass(frozen=True)
class World:
    """A kind of metric and the rates of its baseline by poll, from a function of the number of polls."""

    kind: Kind
    rates: Callable[[int], Array]
    requests: float = 400
    weight: float = 0.1


def constant(rate: float) -> Callable[[int], Array]:
    return lambda polls: np.full(polls, rate)


def diurnal(polls: int) -> Array:
    """Two days in the length of the rollout, between .3 % and 3 %."""
    return np.asarray(0.0165 + 0.0135 * np.sin(np.linspace(0, 4 * np.pi, polls)))


def rising(polls: int) -> Array:
    return np.linspace(0.002, 0.05, polls)


WORLDS = {
    "errors at 1 %": World("ratio", constant(0.01)),
    "errors at .1 %": World("ratio", constant(0.001), requests=1000),
    "errors at 20 %, half of the traffic": World("ratio", constant(0.2), weight=0.5),
    "a diurnal baseline of errors": World("ratio", diurnal),
    "a rising baseline of errors": World("ratio", rising),
    "a score with a bad mass of 10 %": World("score", constant(0.1)),
    "a rising bad mass": World("score", rising),
    "latency at 5 %": World("latency", constant(0.05)),
    "a diurnal tail": World("latency", diurnal),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
@pytest.mark.parametrize("case", ["an equal candidate", "a candidate at harm's margin"])
def test_false_rollbacks_stay_within_alpha(world: World, case: str) -> None:
    test, rollouts, polls = metric(world.kind), 3000, 120
    rates = world.rates(polls)
    p_c = rates if case == "an equal candidate" else test.harm.ratio * rates + test.harm.absolute
    runs = draw(
        np.random.default_rng(21),
        (rollouts, polls),
        requests=world.requests,
        weight=world.weight,
        p_s=rates,
        p_c=p_c,
    )
    assert ever(follow(test, runs, sides="harm").harm, 1 / ALPHA) <= allowed(ALPHA, rollouts)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_false_promotions_stay_within_beta(world: World) -> None:
    test, rollouts, polls = metric(world.kind), 3000, 120
    rates = world.rates(polls)
    runs = draw(
        np.random.default_rng(22),
        (rollouts, polls),
        requests=world.requests,
        weight=world.weight,
        p_s=rates,
        p_c=test.accept.ratio * rates + test.accept.absolute,
    )
    assert ever(follow(test, runs, sides="harmless").harmless, 1 / BETA) <= allowed(BETA, rollouts)


def test_several_metrics_share_one_alpha() -> None:
    """Each at its own harm margin, weighed 1 : 2 : 3."""
    rollouts, polls, e = 3000, 120, np.zeros((3000, 120))
    random = np.random.default_rng(30)
    for weight, kind in ((1, "ratio"), (2, "score"), (3, "latency")):
        test = metric(kind)
        runs = draw(
            random,
            (rollouts, polls),
            requests=400,
            weight=0.1,
            p_s=0.03,
            p_c=test.harm.ratio * 0.03 + test.harm.absolute,
        )
        e += weight / 6 * follow(test, runs, sides="harm").harm
    assert ever(e, 1 / ALPHA) <= allowed(ALPHA, rollouts)


def test_errors_in_clusters_roll_back_no_good_model_once_phi_is_measured() -> None:
    """Ten errors at a time, on one side or the other; phi from 1000 polls of the baseline's own pods before."""
    size, rollouts, polls = 10, 1000, 240
    random = np.random.default_rng(31)

    def clusters(shape: tuple[int, int]) -> Rollouts:
        n_c, n_s = np.full(shape, 100.0), np.full(shape, 900.0)
        x_c, x_s = (size * random.poisson(0.01 * n / size).astype(np.float64) for n in (n_c, n_s))
        return Rollouts(n_c, np.minimum(x_c, n_c), n_s, np.minimum(x_s, n_s))

    past = clusters((1, 1000))
    phi = estimate(list(zip(past.n_c[0], past.x_c[0], past.n_s[0], past.x_s[0], strict=True))).phi
    runs = clusters((rollouts, polls))
    assert phi > size
    assert ever(follow(metric(), runs, sides="harm").harm, 1 / ALPHA) > 0.1
    assert ever(follow(metric(), runs, sides="harm", phi=phi).harm, 1 / ALPHA) <= allowed(ALPHA, rollouts)


def test_steps_of_growing_weight_under_a_rising_baseline_roll_back_no_good_model() -> None:
    """Pooling counters over polls would: the candidate is seen mostly late, when the rate is high (Simpson)."""
    polls, rollouts = 200, 3000
    weight = np.repeat([0.01, 0.05, 0.2, 0.5], polls // 4)
    rates = rising(polls)
    runs = draw(
        np.random.default_rng(23), (rollouts, polls), requests=400, weight=weight, p_s=rates, p_c=rates
    )
    assert ever(follow(metric(), runs, sides="harm").harm, 1 / ALPHA) <= allowed(ALPHA, rollouts)
    pooled = Rollouts(*(a.sum(axis=1, keepdims=True) for a in (runs.n_c, runs.x_c, runs.n_s, runs.x_s)))
    assert ever(follow(metric(), pooled, cap=inf, sides="harm").harm, 1 / ALPHA) > 0.9


def outage(random: Random, rollouts: int, rate: float) -> Rollouts:
    """One minute of 50 % errors on both sides in polls of 15 s. The candidate's pod and the four of the baseline are scraped at
    offsets of their own, so their windows see different parts of it."""
    polls, interval, begins, lasts = 40, 15.0, 303.0, 60.0
    ends = interval * (np.arange(polls) + 1)

    def counts(share: float, offset: Array) -> tuple[Array, Array]:
        end = ends[None, :] - offset[:, None]
        bad_for = np.clip(np.minimum(end, begins + lasts) - np.maximum(end - interval, begins), 0, interval)
        n = random.poisson(rate * interval * share, (rollouts, polls))
        during = random.binomial(n, bad_for / interval)
        return n, random.binomial(during, 0.5) + random.binomial(n - during, 0.01)

    n_c, x_c = counts(0.1, random.uniform(0, interval, rollouts))
    n_s, x_s = np.zeros_like(n_c), np.zeros_like(x_c)
    for _ in range(4):
        n, x = counts(0.225, random.uniform(0, interval, rollouts))
        n_s, x_s = n_s + n, x_s + x
    return Rollouts(*(a.astype(np.float64) for a in (n_c, x_c, n_s, x_s)))


@pytest.mark.parametrize("rate", [100, 300, 1000])
def test_an_outage_that_hits_both_sides_rolls_back_no_good_model(rate: float) -> None:
    rollouts = 1000
    runs = outage(np.random.default_rng(24), rollouts, rate)
    assert ever(follow(metric(), runs, sides="harm").harm, 1 / ALPHA) <= allowed(ALPHA, rollouts)
    # The cap is what holds it.
    assert ever(follow(metric(), runs, cap=inf, sides="harm").harm, 1 / ALPHA) > 0.1


# The power


def test_a_regression_that_begins_late_is_found_early() -> None:
    """Equal for four hours, then three times the errors: found within ten minutes, as if it had begun at once."""
    rollouts, before, polls = 400, 960, 1020
    factor = np.where(np.arange(polls) < before, 1.0, 3.0)
    runs = draw(
        np.random.default_rng(25),
        (rollouts, polls),
        requests=1000,
        weight=0.1,
        p_s=0.01,
        p_c=0.01 * factor,
    )
    at = first(follow(metric(), runs, sides="harm").harm, 1 / ALPHA)
    assert (at < before).mean() <= allowed(ALPHA, rollouts)
    assert (at < before + 40).mean() >= 0.97
    assert np.median(at) <= before + 20


@pytest.mark.parametrize(
    ("factor", "least_rolled_back", "most_rolled_back", "median_requests"),
    [
        pytest.param(1.0, 0.0, 0.002, 4000, id="an equal candidate is promoted, median 4 k"),
        pytest.param(2.0, 0.993, 1.0, 2200, id="twice the errors are rolled back (99.7 %), median 2.2 k"),
        pytest.param(5.0, 0.999, 1.0, 300, id="five times the errors take 300"),
    ],
)
def test_the_operating_point(
    factor: float, least_rolled_back: float, most_rolled_back: float, median_requests: float
) -> None:
    """R 1.05, d 0, no cap, weight 10 %, p_s 1 %, 100 candidate requests per poll; what is proven first ends the rollout."""
    rollouts, each = 2000, 100
    runs = draw(
        np.random.default_rng(29),
        (rollouts, 400),
        requests=10 * each,
        weight=0.1,
        p_s=0.01,
        p_c=0.01 * factor,
    )
    paths = follow(metric(harm=Margin(1.05, 0)), runs, cap=inf)
    harm, harmless = first(paths.harm, 1 / ALPHA), first(paths.harmless, 1 / BETA)
    rolled_back = harm < harmless
    assert least_rolled_back <= rolled_back.mean() <= allowed(most_rolled_back, rollouts)
    assert np.isfinite(np.minimum(harm, harmless)).mean() > 0.99
    taken = each * (np.where(rolled_back, harm, harmless) + 1)
    assert np.median(taken) == pytest.approx(median_requests, rel=0.1)


# Through the engine: rules that live above the single test


def plan(settle: float) -> Plan:
    return Plan((metric(),), ALPHA, BETA, 1, "a", "b", settle=settle, interval=15)


def late_errors(random: Random, *, settle: float) -> bool:
    """One rollout of a model at the accept margin whose errors are time-outs that end 30 s after they began, while good
    answers come at once; the weight goes from 1 % to 50 %. Whether it is ever promoted."""
    the_plan, p_s = plan(settle), 0.01
    p_c = 1.25 * p_s + 0.0025
    state = raise_weight(begin(the_plan, None), 1, 0)
    waiting_c, waiting_s = [0, 0], [0, 0]
    for i in range(60):
        if i == 10:
            state = new_step(raise_weight(state, 50, 15.0 * i))
        weight = 0.01 if i < 10 else 0.5
        started = random.poisson(3000)
        c = random.binomial(started, weight)
        bad_c, bad_s = random.binomial(c, p_c), random.binomial(started - c, p_s)
        waiting_c.append(bad_c)
        waiting_s.append(bad_s)
        x_c, x_s = waiting_c.pop(0), waiting_s.pop(0)
        poll = MetricPoll(
            Arm(started - c - bad_s + x_s, (x_s,)), {"p": Arm(max(c - bad_c + x_c, x_c), (x_c,))}
        )
        state = consume(the_plan, state, [Poll(15.0 * i, 15.0 * i + 15, {"m": poll})])
        found = assess(the_plan, state, weight=round(100 * weight), rate=None)
        if found.harmless and i >= 10:
            return True
    return False


def test_errors_that_arrive_late_do_not_promote_a_bad_model() -> None:
    random, rollouts = np.random.default_rng(27), 100
    promoted = np.mean([late_errors(random, settle=30) for _ in range(rollouts)])
    assert promoted <= allowed(BETA, rollouts)
    # Without waiting for them the first polls after the raise look perfect.
    assert np.mean([late_errors(random, settle=0) for _ in range(20)]) > 0.5


def test_a_single_rogue_node_does_not_reject_the_model() -> None:
    the_plan, random, rollouts, found = plan(30), np.random.default_rng(28), 40, []
    for _ in range(rollouts):
        state = raise_weight(begin(the_plan, None), 10, -30)
        for i in range(60):
            pods = {}
            for k in range(4):
                n = int(random.poisson(50))
                pods[f"p{k}"] = Arm(n, (int(random.binomial(n, 0.1 if k == 2 else 0.01)),))
            n = int(random.poisson(1800))
            poll = MetricPoll(Arm(n, (int(random.binomial(n, 0.01)),)), pods)
            state = consume(the_plan, state, [Poll(15.0 * i, 15.0 * i + 15, {"m": poll})])
        found.append(assess(the_plan, state, weight=10, rate=None))
    assert np.mean([a.harm for a in found]) <= allowed(0.007, rollouts)
    assert np.mean([a.outlier and a.outlier_pod == "p2" for a in found]) >= 0.95
