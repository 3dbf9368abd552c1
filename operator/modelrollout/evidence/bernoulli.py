"""The exact form for bounded values (scores, and "slower than a bound"): bets on both sides' means.

e = Π_c (1 + λ_c (y − t_c)) Π_s (1 − λ_s (y − t_s)) with λ_s = r λ_c and r = R n_c / n_s has expectation ≤ 1 under
mean_c ≤ R mean_s + d (λ_c > 0) or mean_c ≥ R mean_s + d (λ_c < 0), whatever the guesses t are, because ln(1 + z) ≤ z. The
logarithm is concave in y, so for values between 0 and 1 the same expression on their sum is never more than e.
Source: Waudby-Smith & Ramdas arXiv 2010.09686.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from modelrollout.evidence.grid import CAP, HARM_BETS, HARMLESS_BETS, REWARD_BETS
from modelrollout.evidence.plan import Margin


class Guess(NamedTuple):
    """The centres of the two bets and the exchange rate between them."""

    t_c: float
    t_s: float
    r: float
    tolerance: float  # R of the margin


def guess_rates(past_bad: float, past_requests: float, n_c: float, n_s: float, margin: Margin) -> Guess:
    """Centres from the baseline's *past* polls only: a guess that saw the present poll would not be a fair bet."""
    t_s = min(max((past_bad + 1) / (past_requests + 10), 1e-4), 0.98)
    t_c = min(margin.ratio * t_s + margin.absolute, 0.995)
    return Guess(t_c, (t_c - margin.absolute) / margin.ratio, margin.ratio * n_c / n_s, margin.ratio)


def harm_stakes(guess: Guess) -> list[float]:
    """λ_c of the harm test's eight bets, each within .9 of what keeps all factors positive."""
    t_c, t_s, r, _ = guess
    ceiling = 0.9 * min(1 / t_c, 1 / (r * (1 - t_s)))
    unit = max(t_s, 0.005) / _variance(guess)
    return [min(bet * unit, ceiling) for bet in HARM_BETS]


def harmless_stakes(guess: Guess, margin: Margin) -> list[float]:
    """λ_c (negative) of the harmless test's four bets."""
    t_c, t_s, r, _ = guess
    ceiling = 0.9 * min(1 / (1 - t_c), 1 / (r * t_s) if t_s > 0 else 1e300)
    unit = ((margin.ratio - 1) * t_s + margin.absolute) / _variance(guess)
    return [-min(bet * unit, ceiling) for bet in HARMLESS_BETS]


def reward_stakes(guess: Guess) -> list[float]:
    """λ_c (negative) of the seven bets on a candidate that is better, where the margin leaves no room (R = 1, d = 0).

    A reward can be rare (conversions) or the rule (correct answers), so its unit is the smaller share of the two.
    """
    t_c, t_s, r, _ = guess
    ceiling = 0.9 * min(1 / (1 - t_c), 1 / (r * t_s))
    unit = max(min(t_s, 1 - t_s), 0.005) / _variance(guess)
    return [-min(bet * unit, ceiling) for bet in REWARD_BETS]


def _variance(guess: Guess) -> float:
    t_c, t_s, r, tolerance = guess
    return t_c * (1 - t_c) + tolerance * r * t_s * (1 - t_s)


def bernoulli_increments(
    n_c: float,
    x_c: float,
    n_s: float,
    x_s: float,
    *,
    guess: Guess,
    stakes: Sequence[float],
    phi: float = 1.0,
    cap: float = CAP,
) -> list[float]:
    """Log increment of one poll for each stake λ_c. `x` are sums of values in [0, 1] over `n` > 0 requests."""
    t_c, t_s, r, _ = guess
    good_c, good_s = n_c - x_c, n_s - x_s
    out = []
    for stake in stakes:
        other = r * stake
        gain = (
            x_c * log(1 + stake * (1 - t_c))
            + good_c * log(1 - stake * t_c)
            + x_s * log(1 - other * (1 - t_s))
            + good_s * log(1 + other * t_s)
        ) / phi
        out.append(gain if gain < cap else cap)
    return out


def bernoulli_drift(
    p_c: float, p_s: float, weight: float, *, guess: Guess, stake: float
) -> tuple[float, float]:
    """Mean and variance of the log increment per candidate request, at `weight` in (0, 1), once t_s has settled."""
    t_c, t_s, r, _ = guess
    other = r * stake
    up_c, down_c = log(1 + stake * (1 - t_c)), log(1 - stake * t_c)
    up_s, down_s = log(1 - other * (1 - t_s)), log(1 + other * t_s)
    others = (1 - weight) / weight
    mean_c, mean_s = p_c * up_c + (1 - p_c) * down_c, p_s * up_s + (1 - p_s) * down_s
    square_c, square_s = p_c * up_c**2 + (1 - p_c) * down_c**2, p_s * up_s**2 + (1 - p_s) * down_s**2
    return mean_c + others * mean_s, square_c - mean_c**2 + others * (square_s - mean_s**2)
