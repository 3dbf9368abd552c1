"""How long a decision takes, against the design's numbers and against what really happens."""

from math import log

import numpy as np
import pytest

from modelrollout.evidence.engine import assess, begin, consume, raise_weight
from modelrollout.evidence.metric import Counts, advance, begin_metric, harm_value
from modelrollout.evidence.mixture import harmless_ceiling
from modelrollout.evidence.plan import Kind, Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, MetricPoll, Poll
from modelrollout.planning.forecast import (
    RESTART,
    forecast_harm,
    forecast_harmless,
    smallest_detectable,
)

DEFAULTS: dict[Kind, tuple[Margin, Margin]] = {
    "ratio": (Margin(1.05, 0.00025), Margin(1.25, 0.0025)),
    "score": (Margin(1, 0.0025), Margin(1, 0.01)),
    "latency": (Margin(1.25, 0.0025), Margin(1.5, 0.005)),
}


def metric(kind: Kind = "ratio", harm: Margin | None = None, accept: Margin | None = None) -> MetricTest:
    margins = DEFAULTS[kind]
    return MetricTest("m", kind, harm or margins[0], accept or margins[1], 1, True, "")


@pytest.mark.parametrize(
    ("harm", "alpha", "expected"),
    [
        pytest.param(Margin(1, 0), 0.05, (1285, 1842, 3315), id="R = 1, d = 0, alpha .05"),
        pytest.param(Margin(1.05, 0.00025), 0.01, (2232, 3112, 5024), id="at the defaults"),
    ],
)
def test_requests_to_find_twice_the_errors(
    harm: Margin, alpha: float, expected: tuple[float, float, float]
) -> None:
    found = forecast_harm(
        metric(harm=harm), baseline_rate=0.01, ratio=2, weight=10, false_rollback=alpha, restart=1
    )
    assert found is not None
    assert (round(found.mean), round(found.n80), round(found.n95)) == expected


@pytest.mark.parametrize(
    ("kind", "rate", "low", "high"),
    [
        pytest.param("ratio", 0.0, 1780, 1880, id="ratio without errors: 1.8 k"),
        pytest.param("ratio", 0.01, 9150, 9250, id="ratio at 1 %: 9.2 k"),
        pytest.param("ratio", 0.05, 5450, 5550, id="ratio at 5 %: 5.5 k"),
        pytest.param("score", 0.1, 9000, 14000, id="score with a bad mass of 10 %: 10 k, mean somewhat more"),
        pytest.param("latency", 0.01, 1600, 2600, id="latency at 1 %: 1.6 to 2.6 k"),
    ],
)
def test_requests_to_prove_an_equal_model_harmless(kind: Kind, rate: float, low: float, high: float) -> None:
    found = forecast_harmless(metric(kind), baseline_rate=rate, weight=50, false_promotion=0.05)
    assert found is not None
    assert low <= found.mean <= high


def test_what_makes_it_longer() -> None:
    def mean(**changes: float) -> float:
        given = {"baseline_rate": 0.01, "ratio": 2.0, "weight": 10.0, "false_rollback": 0.01} | changes
        found = forecast_harm(metric(), **given)
        assert found is not None
        return found.mean

    plain = mean()
    once, thrice = (
        forecast_harmless(metric(), baseline_rate=0.01, weight=50, false_promotion=0.05, phi=phi)
        for phi in (1.0, 3.0)
    )
    assert once is not None
    assert thrice is not None
    assert (thrice.mean, thrice.n80, thrice.n95) == pytest.approx((3 * once.mean, 3 * once.n80, 3 * once.n95))
    assert mean(restart=1) * RESTART == pytest.approx(plain)
    assert mean(phi=3) == pytest.approx(3 * plain)
    assert mean(share=0.25) > plain
    assert mean(false_rollback=0.001) > plain
    assert mean(ratio=1.5) > plain
    assert mean(ratio=5) < plain


def test_what_can_never_be_decided_has_no_forecast() -> None:
    given = {"baseline_rate": 0.01, "weight": 10.0, "false_rollback": 0.01}
    assert forecast_harm(metric(), ratio=1.0, **given) is None
    assert forecast_harm(metric(), ratio=2.0, **given | {"weight": 0.0}) is None
    assert forecast_harm(metric(), ratio=2.0, **given | {"weight": 100.0}) is None
    strict = metric(accept=Margin(1, 0))
    assert forecast_harmless(strict, baseline_rate=0.01, weight=50, false_promotion=0.05) is None


def test_the_smallest_detectable_ratio_is_the_one_found_in_four_of_five_steps() -> None:
    given = {"baseline_rate": 0.01, "weight": 10.0, "false_rollback": 0.01}
    ratio = smallest_detectable(metric(), requests=5000, **given)
    assert ratio is not None
    found = forecast_harm(metric(), ratio=ratio, **given)
    assert found is not None
    assert found.n80 == pytest.approx(5000, rel=0.05)
    assert smallest_detectable(metric(), requests=50000, **given) < ratio  # type: ignore[operator]
    assert smallest_detectable(metric(), requests=3, **given) is None
    assert smallest_detectable(metric(), requests=5000, **given | {"baseline_rate": 0.0}) is None


@pytest.mark.parametrize("kind", ["ratio", "score", "latency"])
def test_the_forecast_of_harm_is_what_happens(kind: Kind) -> None:
    """60 simulated rollouts at twice the rate: their mean is near the forecast (restart mixture included)."""
    random, test, ceiling = np.random.default_rng(5), metric(kind), harmless_ceiling(0.05)
    rate, taken = 0.03, []
    for _ in range(60):
        state = begin_metric(test, fingerprint="", stake=1, bound=False, cuts=(1.0,))
        for polls in range(1, 400):
            x_c, x_s = float(random.binomial(50, 2 * rate)), float(random.binomial(450, rate))
            state = advance(test, state, Counts(50, (x_c,), 450, (x_s,)), settled=False, ceiling=ceiling)
            if harm_value(state.harm, state.polls) >= 100:
                taken.append(50 * polls)
                break
    found = forecast_harm(test, baseline_rate=rate, ratio=2, weight=10, false_rollback=0.01)
    assert found is not None
    # The exact form learns the baseline's rate as it goes, which the forecast takes as known.
    assert np.mean(taken) == pytest.approx(found.mean, rel=0.3)


def test_remaining_reaches_zero_about_when_it_said() -> None:
    """The forecast is for increments that equal their mean, so with such increments it must be exact."""
    plan = Plan((metric(),), 0.01, 0.05, 1, "a", "b", settle=0, interval=15)
    state = raise_weight(begin(plan, None), 50, 0)
    poll = {"m": MetricPoll(Arm(100, (1,)), {"p": Arm(100, (1,))})}
    said = None
    for i in range(200):
        state = consume(plan, state, [Poll(15 * i, 15 * i + 15, poll)])
        found = assess(plan, state, weight=50, rate=None).metrics[0]
        said = said or found.remaining
        if found.harmless:
            break
    assert said == pytest.approx(100 * i, rel=0.05)
    assert found.log_harmless >= log(20)
