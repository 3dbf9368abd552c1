"""The evidence about one metric, and how one poll changes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from modelrollout.evidence.bernoulli import (
    bernoulli_increments,
    guess_rates,
    harm_stakes,
    harmless_stakes,
    reward_stakes,
)
from modelrollout.evidence.bound import START as BOUND_START
from modelrollout.evidence.bound import grow_bound
from modelrollout.evidence.grid import (
    CAP,
    HARM_BETS,
    HARM_LIFTS,
    HARMLESS_BETS,
    HARMLESS_LIFTS,
    REWARD_BETS,
)
from modelrollout.evidence.interval import EMPTY_PROFILE, grow_profile
from modelrollout.evidence.mixture import grow, mixture_value, spend, unspent
from modelrollout.evidence.paired import paired_increments
from modelrollout.evidence.plan import Margin, MetricTest

_HARM_LOG_LIFTS = tuple(log(v) for v in HARM_LIFTS)
_HARMLESS_LOG_LIFTS = tuple(log(v) for v in HARMLESS_LIFTS)
_NO_MARGIN = Margin(1.0, 0.0)
Mixture = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MetricState:
    """Everything kept about one metric between polls. Per-cut tuples have one element for ratio and score."""

    fingerprint: str
    gating: bool
    stake: float  # capital that its harm test started with; 0 for a metric that does not gate
    phi: float
    cuts: tuple[float, ...]  # latency only
    slo: int  # index of the cut that harmless, B and the interval are about
    polls: int  # with data of both sides
    harm: tuple[Mixture, ...]  # per cut
    without: tuple[tuple[Mixture, ...], ...]  # the same without each group of pods
    harmless: tuple[float, ...]  # ln e_k
    bound: tuple[float, ...]  # ln e of B's tests; empty where B is not wanted
    profile: tuple[float, ...]  # l, up to a constant
    baseline_requests: float
    baseline_bad: tuple[float, ...]
    candidate_requests: float
    candidate_bad: tuple[float, ...]
    settled: int  # settled polls of the present step
    fresh: bool  # the newest poll had data
    superior: tuple[float, ...] = ()  # ln e_k of "the candidate is better"; empty for all but the reward


class Counts(NamedTuple):
    """One poll of one metric, summed per side; `groups` holds the candidate's share by group of pods."""

    n_c: float
    x_c: Sequence[float]
    n_s: float
    x_s: Sequence[float]
    groups: Sequence[tuple[float, Sequence[float]]] = ()


def begin_metric(
    test: MetricTest,
    *,
    fingerprint: str,
    stake: float,
    phi: float = 1.0,
    cuts: tuple[float, ...] = (),
    bound: bool = True,
) -> MetricState:
    """A test that has seen nothing. A latency metric without cuts waits for them and takes no polls."""
    width = len(cuts) if test.kind == "latency" else 1
    size = len(HARM_LIFTS if test.kind == "ratio" else HARM_BETS)
    return MetricState(
        fingerprint=fingerprint,
        gating=test.gating,
        stake=stake,
        phi=max(phi, 1.0),
        cuts=cuts if test.kind == "latency" else (),
        slo=slo_index(cuts, test.slo) if test.kind == "latency" else 0,
        polls=0,
        harm=((0.0,) * size,) * width,
        without=(),
        harmless=fresh_harmless(test),
        bound=BOUND_START if bound and test.kind != "score" else (),
        profile=EMPTY_PROFILE,
        baseline_requests=0.0,
        baseline_bad=(0.0,) * width,
        candidate_requests=0.0,
        candidate_bad=(0.0,) * width,
        settled=0,
        fresh=False,
        superior=fresh_superior(test),
    )


def fresh_superior(test: MetricTest) -> tuple[float, ...]:
    """ln e_k = 0 for each bet on a better candidate; none where that is not asked."""
    return (0.0,) * len(REWARD_BETS) if test.reward and test.kind != "latency" else ()


def fresh_harmless(test: MetricTest) -> tuple[float, ...]:
    """ln e_k = 0 for each alternative of the harmless test."""
    return (0.0,) * len(HARMLESS_LIFTS if test.kind == "ratio" else HARMLESS_BETS)


def slo_index(cuts: Sequence[float], slo: float | None) -> int:
    """The cut at the SLO or the next lower one; the lowest if all are higher; the middle one without an SLO."""
    if slo is None:
        return len(cuts) // 2
    below = [i for i, cut in enumerate(cuts) if cut <= slo * (1 + 1e-9)]
    return below[-1] if below else 0


def advance(
    test: MetricTest,
    state: MetricState,
    counts: Counts,
    *,
    settled: bool,
    counted: bool = True,
    ceiling: float,
    cap: float = CAP,
) -> MetricState:
    """The state after one poll with `n_c` > 0 and `n_s` > 0.

    `settled`: late errors have arrived, so harmless and B may use it; `counted`: it counts among the step's settled polls;
    `ceiling`: `harmless_ceiling(beta)`.
    """
    n_c, x_c, n_s, x_s, _ = counts
    slo, fresh = state.slo, unspent(state.polls) - unspent(state.polls + 1)
    harmless, bound, superior = state.harmless, state.bound, state.superior
    if settled:
        harmless = grow(harmless, _harmless_increments(test, state, counts, cap), ceiling)
        bound = _grow_bound(test, state, counts)
        # Bad events that arrive late make a candidate look better than it is, as with harmless.
        superior = grow(superior, _superior_increments(state, counts, cap), ceiling) if superior else ()
    return MetricState(
        fingerprint=state.fingerprint,
        gating=state.gating,
        stake=state.stake,
        phi=state.phi,
        cuts=state.cuts,
        slo=slo,
        polls=state.polls + 1,
        harm=_spend_all(test, state, state.harm, n_c, x_c, n_s, x_s, fresh, cap),
        without=_spend_without(test, state, counts, fresh, cap),
        harmless=harmless,
        bound=bound,
        profile=grow_profile(state.profile, n_c, x_c[slo], n_s, x_s[slo], state.phi),
        baseline_requests=state.baseline_requests + n_s,
        baseline_bad=tuple([a + b for a, b in zip(state.baseline_bad, x_s, strict=True)]),
        candidate_requests=state.candidate_requests + n_c,
        candidate_bad=tuple([a + b for a, b in zip(state.candidate_bad, x_c, strict=True)]),
        settled=state.settled + (settled and counted),
        fresh=True,
        superior=superior,
    )


def _grow_bound(test: MetricTest, state: MetricState, counts: Counts) -> tuple[float, ...]:
    if not state.bound:
        return ()
    slo, d = state.slo, test.accept.absolute
    n_c, x_c, n_s, x_s, _ = counts
    return grow_bound(state.bound, n_c, x_c[slo], n_s, x_s[slo], absolute=d, phi=state.phi)


def harm_value(mixtures: Sequence[Mixture], polls: int) -> float:
    """e of the harm test: the average over its cuts."""
    return sum([mixture_value(m, polls) for m in mixtures]) / len(mixtures) if mixtures else 1.0


def _spend_all(
    test: MetricTest,
    state: MetricState,
    mixtures: Sequence[Mixture],
    n_c: float,
    x_c: Sequence[float],
    n_s: float,
    x_s: Sequence[float],
    fresh: float,
    cap: float,
) -> tuple[Mixture, ...]:
    """Each cut's restart mixture after one more poll; one without candidate requests only lets prior mass start."""
    if n_c <= 0:
        return tuple([tuple([s + fresh for s in mixture]) for mixture in mixtures])
    return tuple(
        [
            spend(mixture, _harm_increments(test, state, cut, n_c, x_c[cut], n_s, x_s[cut], cap), fresh)
            for cut, mixture in enumerate(mixtures)
        ]
    )


def _spend_without(
    test: MetricTest, state: MetricState, counts: Counts, fresh: float, cap: float
) -> tuple[tuple[Mixture, ...], ...]:
    n_c, x_c, n_s, x_s, groups = counts
    out = []
    for group, (n_g, x_g) in enumerate(groups):
        # Until now nothing of this group was in the evidence, so leaving it out changed nothing.
        before = state.without[group] if group < len(state.without) else state.harm
        rest = [max(a - b, 0.0) for a, b in zip(x_c, x_g, strict=True)]
        out.append(_spend_all(test, state, before, n_c - n_g, rest, n_s, x_s, fresh, cap))
    return tuple(out)


def _harm_increments(
    test: MetricTest, state: MetricState, cut: int, n_c: float, x_c: float, n_s: float, x_s: float, cap: float
) -> list[float]:
    if test.kind == "ratio":
        return paired_increments(
            *(n_c, x_c, n_s, x_s),
            margin=test.harm,
            lifts=HARM_LIFTS,
            log_lifts=_HARM_LOG_LIFTS,
            phi=state.phi,
            cap=cap,
        )
    guess = guess_rates(state.baseline_bad[cut], state.baseline_requests, n_c, n_s, test.harm)
    return bernoulli_increments(
        *(n_c, x_c, n_s, x_s), guess=guess, stakes=harm_stakes(guess), phi=state.phi, cap=cap
    )


def _superior_increments(state: MetricState, counts: Counts, cap: float) -> list[float]:
    """The harm test with the two sides exchanged and no margin, in the exact form for ratios as well: its bets can be fine
    enough for a reward that is only a few percent better."""
    n_c, x_c, n_s, x_s = counts.n_c, counts.x_c[0], counts.n_s, counts.x_s[0]
    guess = guess_rates(state.baseline_bad[0], state.baseline_requests, n_c, n_s, _NO_MARGIN)
    return bernoulli_increments(
        *(n_c, x_c, n_s, x_s), guess=guess, stakes=reward_stakes(guess), phi=state.phi, cap=cap
    )


def _harmless_increments(test: MetricTest, state: MetricState, counts: Counts, cap: float) -> list[float]:
    cut = state.slo
    n_c, x_c, n_s, x_s = counts.n_c, counts.x_c[cut], counts.n_s, counts.x_s[cut]
    if test.kind == "ratio":
        return paired_increments(
            *(n_c, x_c, n_s, x_s),
            margin=test.accept,
            lifts=HARMLESS_LIFTS,
            log_lifts=_HARMLESS_LOG_LIFTS,
            phi=state.phi,
            cap=cap,
        )
    guess = guess_rates(state.baseline_bad[cut], state.baseline_requests, n_c, n_s, test.accept)
    return bernoulli_increments(
        *(n_c, x_c, n_s, x_s), guess=guess, stakes=harmless_stakes(guess, test.accept), phi=state.phi, cap=cap
    )
