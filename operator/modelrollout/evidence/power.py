"""Drift and variance of the tests per candidate request: the shared core of all forecasts.

Kept beside the tests, because an assessment itself says how many requests are still needed.
"""

from collections.abc import Sequence
from math import log

from modelrollout.evidence.bernoulli import (
    Guess,
    bernoulli_drift,
    harm_stakes,
    harmless_stakes,
    reward_stakes,
)
from modelrollout.evidence.grid import HARM_LIFTS, HARMLESS_LIFTS, log_mean_exp
from modelrollout.evidence.paired import paired_drift
from modelrollout.evidence.plan import Margin, MetricTest

# Beyond this a forecast says "never": no rollout sees as many requests.
MOST_REQUESTS = 1e10


def harm_drifts(test: MetricTest, p_c: float, p_s: float, weight: float) -> list[tuple[float, float]]:
    """(mean, variance) of the harm test's log increment per candidate request and alternative; `weight` in (0, 1)."""
    if test.kind == "ratio":
        return [paired_drift(p_c, p_s, weight, margin=test.harm, lift=lift) for lift in HARM_LIFTS]
    guess = settled_guess(p_s, weight, test.harm)
    return [bernoulli_drift(p_c, p_s, weight, guess=guess, stake=stake) for stake in harm_stakes(guess)]


def harmless_drifts(test: MetricTest, p_c: float, p_s: float, weight: float) -> list[tuple[float, float]]:
    """The same for the harmless test."""
    if test.kind == "ratio":
        return [paired_drift(p_c, p_s, weight, margin=test.accept, lift=lift) for lift in HARMLESS_LIFTS]
    guess = settled_guess(p_s, weight, test.accept)
    stakes = harmless_stakes(guess, test.accept)
    return [bernoulli_drift(p_c, p_s, weight, guess=guess, stake=stake) for stake in stakes]


def reward_drifts(p_c: float, p_s: float, weight: float) -> list[tuple[float, float]]:
    """The same for the test whether the candidate is better; `p_c` and `p_s` are the bad shares."""
    guess = settled_guess(p_s, weight, Margin(1.0, 0.0))
    return [bernoulli_drift(p_c, p_s, weight, guess=guess, stake=stake) for stake in reward_stakes(guess)]


def settled_guess(p_s: float, weight: float, margin: Margin) -> Guess:
    """The exact form's centres once the baseline's past has settled at the rate `p_s`."""
    t_s = min(max(p_s, 1e-4), 0.98)
    t_c = min(margin.ratio * t_s + margin.absolute, 0.995)
    return Guess(
        t_c, (t_c - margin.absolute) / margin.ratio, margin.ratio * weight / (1 - weight), margin.ratio
    )


def mean_requests(drifts: Sequence[float], logs: Sequence[float], target: float) -> float | None:
    """N ≥ 0 that solves logmeanexp(ln e_k + N g_k) = `target`, to four digits; None if beyond `MOST_REQUESTS`.

    The left side is convex in N and begins below the target, so it crosses it once.
    """

    def short(requests: float) -> bool:
        return log_mean_exp([v + requests * g for v, g in zip(logs, drifts, strict=True)]) < target

    if not short(0):
        return 0.0
    if max(drifts) <= 0 or short(MOST_REQUESTS):
        return None
    low, high = 0.0, 64.0
    while short(high):
        low, high = high, high * 4
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def remaining_requests(
    test: MetricTest, logs: Sequence[float], *, rate: float, weight: float, false_promotion: float, phi: float
) -> float | None:
    """Candidate requests that the harmless test still needs if the candidate equals the baseline (bad share `rate`).

    `logs` are its present ln e_k. None if it can't be proven at this weight.
    """
    if not 0 < weight < 1:
        return None
    drifts = [mean / phi for mean, _ in harmless_drifts(test, rate, rate, weight)]
    return mean_requests(drifts, logs, -log(false_promotion))
