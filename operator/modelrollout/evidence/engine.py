"""The statistical engine: increments in, an assessment out; pure, deterministic, and the same at every replay.

It answers at every poll whether the candidate is proven worse, proven harmless, or neither yet, with error bounds that
hold however often one looks, over all steps, restarts and metrics together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from types import MappingProxyType
from typing import Any

from modelrollout.evidence.assessment import assess, may_advance
from modelrollout.evidence.capital import capital, share_out, weights
from modelrollout.evidence.metric import (
    Counts,
    MetricState,
    advance,
    begin_metric,
    fresh_harmless,
    fresh_superior,
)
from modelrollout.evidence.mixture import harmless_ceiling
from modelrollout.evidence.plan import MetricTest, Plan, fingerprint
from modelrollout.evidence.poll import Arm, MetricPoll, Poll
from modelrollout.evidence.state import State, dump, load

__all__ = ["State", "assess", "begin", "consume", "dump", "load", "may_advance", "new_step", "raise_weight"]

MAX_GROUPS = 4
_MOST_PODS = 128
_NONE: Mapping[str, Any] = MappingProxyType({})


def begin(
    plan: Plan,
    previous: State | None,
    *,
    phi: Mapping[str, float] = _NONE,
    cuts: Mapping[str, tuple[float, ...]] = _NONE,
) -> State:
    """The state for a new or edited plan; calling it again with the same plan changes nothing.

    What still asks the same question keeps its evidence; another attempt, baseline or candidate starts everything anew.
    `phi` and `cuts` (latency), by metric name, are used by tests that have seen no poll yet; after that they are fixed.
    """
    if previous is None or not _same_attempt(plan, previous):
        previous = _nothing_seen(plan)
    old = previous.metrics
    kept = {t.name: old[t.name] for t in plan.metrics if _goes_on(plan, t, old.get(t.name))}
    wanted = {name: w for name, w in weights(plan.metrics).items() if name not in kept}
    freed = sum(capital(metric) for name, metric in old.items() if name not in kept)
    stakes, reserve = share_out(wanted, kept, previous.reserve + freed)
    metrics = {}
    for test in plan.metrics:
        stake, state = stakes[test.name], kept.get(test.name)
        if state is None:
            metrics[test.name] = _start(plan, test, old.get(test.name), stake, phi, cuts)
        elif plan.false_promotion == previous.false_promotion:
            superior = (state.superior or fresh_superior(test)) if test.reward else ()
            metrics[test.name] = replace(state, stake=stake, superior=superior)
        else:
            metrics[test.name] = replace(
                state, stake=stake, harmless=fresh_harmless(test), superior=fresh_superior(test)
            )
    return replace(previous, false_promotion=plan.false_promotion, reserve=reserve, metrics=metrics)


def _nothing_seen(plan: Plan) -> State:
    return State(
        attempt=plan.attempt,
        baseline=plan.baseline,
        candidate=plan.candidate,
        false_promotion=plan.false_promotion,
        reserve=1.0,
        consumed=None,
        max_weight=0,
        raised_at=None,
        settled=0,
        pods={},
        pods_seen=0,
        metrics={},
    )


def _start(
    plan: Plan,
    test: MetricTest,
    before: MetricState | None,
    stake: float,
    phi: Mapping[str, float],
    cuts: Mapping[str, tuple[float, ...]],
) -> MetricState:
    """A test at its start. One that waited for its first poll keeps the phi and cuts that it was given before."""
    mark = fingerprint(plan, test)
    waiting = before if before is not None and before.fingerprint == mark else None
    return begin_metric(
        test,
        fingerprint=mark,
        stake=stake,
        phi=phi.get(test.name, waiting.phi if waiting else 1.0),
        cuts=cuts.get(test.name, waiting.cuts if waiting else ()),
    )


def _same_attempt(plan: Plan, state: State) -> bool:
    return (state.attempt, state.baseline, state.candidate) == (plan.attempt, plan.baseline, plan.candidate)


def _goes_on(plan: Plan, test: MetricTest, old: MetricState | None) -> bool:
    """Whether a metric's test goes on: the same question, as gating as before, and already under way."""
    return (
        old is not None
        and old.polls > 0
        and old.fingerprint == fingerprint(plan, test)
        and old.gating == test.gating
    )


def raise_weight(state: State, weight: int, at: float) -> State:
    """The candidate's weight rose to `weight` percent at `at` (epoch seconds).

    Above its former maximum the harmless evidence starts anew: what was proven at 1 % says nothing about the load of 50 %. Polls
    that begin less than `settle` after any increase are not settled. Emergencies (rule S1) are not reported here.
    """
    if weight <= state.max_weight:
        return replace(state, raised_at=at)
    metrics = {
        name: replace(metric, harmless=(0.0,) * len(metric.harmless), settled=0)
        for name, metric in state.metrics.items()
    }
    return replace(state, raised_at=at, max_weight=weight, settled=0, metrics=metrics)


def new_step(state: State) -> State:
    """A step begins: its count of settled polls starts at 0."""
    metrics = {name: replace(metric, settled=0) for name, metric in state.metrics.items()}
    return replace(state, settled=0, metrics=metrics)


def consume(plan: Plan, state: State, polls: Iterable[Poll]) -> State:
    """The state after `polls`, oldest first. A poll that begins before what was already consumed is left out: each
    sample counts once. Raises ValueError for counts that are not finite, negative, or of the wrong number of cuts."""
    for poll in polls:
        if state.consumed is None or poll.start >= state.consumed - 1e-6:
            state = _consume_one(plan, state, poll)
    return state


def _consume_one(plan: Plan, state: State, poll: Poll) -> State:
    settled = state.raised_at is not None and poll.start >= state.raised_at + plan.settle - 1e-6
    ceiling = harmless_ceiling(plan.false_promotion)
    pods, pods_seen = _see_pods(state, poll)
    groups = min(pods_seen, MAX_GROUPS)
    metrics = dict(state.metrics)
    for test in plan.metrics:
        metric = metrics.get(test.name)
        if metric is None:
            continue
        found = poll.metrics.get(test.name)
        counts = _count(test, metric, found, pods, groups) if found is not None else None
        if counts is None or found is None:
            metrics[test.name] = replace(metric, fresh=False) if metric.fresh else metric
        else:
            metrics[test.name] = advance(
                test, metric, counts, settled=settled, counted=not found.partial, ceiling=ceiling
            )
    return replace(
        state,
        consumed=poll.end,
        settled=state.settled + settled,
        pods=pods,
        pods_seen=pods_seen,
        metrics=metrics,
    )


def _see_pods(state: State, poll: Poll) -> tuple[Mapping[str, int], int]:
    """Pods and their groups, in the order in which they first had requests."""
    served = [
        pod for found in poll.metrics.values() for pod, arm in found.candidate_pods.items() if arm.n > 0
    ]
    new = [pod for pod in dict.fromkeys(served) if pod not in state.pods]
    if not new:
        return state.pods, state.pods_seen
    pods = dict(state.pods)
    for i, pod in enumerate(new):
        pods[pod] = (state.pods_seen + i) % MAX_GROUPS
    # Pods come and go over days; those without requests now are forgotten first.
    gone = [pod for pod in pods if pod not in served]
    for pod in gone[: max(len(pods) - _MOST_PODS, 0)]:
        del pods[pod]
    return pods, state.pods_seen + len(new)


def _count(
    test: MetricTest, metric: MetricState, found: MetricPoll, pods: Mapping[str, int], groups: int
) -> Counts | None:
    """The poll's sums per side and group; None if a side had no requests, or the cuts are not known yet."""
    width = len(metric.harm)
    if not width:
        return None
    n_s, x_s = _checked(test, found.baseline, width)
    if n_s <= 0:
        return None
    sums = [[0.0] * (width + 1) for _ in range(groups)]
    for pod, arm in found.candidate_pods.items():
        n, x = _checked(test, arm, width)
        if n > 0:
            into = sums[pods[pod]]
            into[0] += n
            for i, bad in enumerate(x, 1):
                into[i] += bad
    n_c = sum([s[0] for s in sums])
    if n_c <= 0:
        return None
    x_c = [sum([s[i] for s in sums]) for i in range(1, width + 1)]
    return Counts(n_c, x_c, n_s, x_s, [(s[0], s[1:]) for s in sums])


def _checked(test: MetricTest, arm: Arm, width: int) -> tuple[float, Sequence[float]]:
    if len(arm.x) != width:
        raise ValueError(
            f"metric {test.name}: {len(arm.x)} bad counts in a poll, but the test has {width} cuts"
        )
    if not (isfinite(arm.n) and arm.n >= 0 and all(isfinite(x) and x >= 0 for x in arm.x)):
        raise ValueError(f"metric {test.name}: counts must be finite and not negative, not {arm}")
    # A bad event without its request happens when a scrape falls between two counters.
    return arm.n, arm.x if max(arm.x) <= arm.n else [min(x, arm.n) for x in arm.x]
