"""The decision rule: from the state to one verdict, and whether the weight may grow.

Harm needs Σ stake_j · e_j ≥ 1 / alpha over the gating metrics (Ville), and, with two or more groups of pods, e ≥ 10 without
each one of them: a single rogue node must not reject a model. Harmless needs every gating metric's e ≥ 1 / beta; a model that is
beyond the margin in one metric fails that one, so no correction is due. Superior needs the reward's e ≥ 1 / beta: there is one
reward, and its test begins once an attempt, so P(a candidate that is no better is ever called superior) ≤ beta.
"""

from collections.abc import Sequence
from math import inf, log

from modelrollout.evidence.bound import upper_bound
from modelrollout.evidence.capital import capital
from modelrollout.evidence.grid import log_mean_exp
from modelrollout.evidence.interval import confidence_interval
from modelrollout.evidence.metric import MetricState, harm_value
from modelrollout.evidence.plan import MetricTest, Plan
from modelrollout.evidence.power import remaining_requests
from modelrollout.evidence.state import State
from modelrollout.evidence.verdict import Assessment, MetricAssessment, Verdict

# Harm must also hold with this e when any one group of pods is left out.
WITHOUT_GROUP = 10.0


def assess(plan: Plan, state: State, *, weight: int, rate: float | None) -> Assessment:
    """What the evidence says now. `weight`: the candidate's, percent; `rate`: requests/s of both sides together, only
    for `remaining_seconds`."""
    gating = [t for t in plan.metrics if t.gating and t.name in state.metrics]
    worth = {t.name: capital(state.metrics[t.name]) for t in gating}
    fired = sum(worth.values()) * plan.false_rollback >= 1
    main = max(worth, key=lambda name: worth[name]) if fired else None
    group = _resting_group(state, gating) if fired else None
    harmless = bool(gating) and all(_harmless(plan, state.metrics[t.name]) for t in gating)
    outlier = group is not None and not harmless
    harm = fired and not harmless and not outlier
    metrics = tuple(
        _assess_metric(
            plan,
            test,
            state.metrics[test.name],
            weight=weight,
            rate=rate,
            worse=_worse(plan, state.metrics[test.name], worth.get(test.name), test.name == main),
            outlier=outlier and test.name == main,
        )
        for test in plan.metrics
        if test.name in state.metrics
    )
    # A score without labels yet must not hide that the others are being compared.
    silent = not any(state.metrics[t.name].fresh for t in gating)
    return Assessment(
        verdict=_overall(fired, outlier=outlier, harmless=harmless, silent=silent),
        harm=harm,
        harm_metric=main if harm or outlier else None,
        outlier=outlier,
        outlier_pod=", ".join(p for p, g in state.pods.items() if g == group) if outlier else None,
        harmless=harmless,
        settled_polls=min((state.metrics[t.name].settled for t in gating), default=state.settled),
        metrics=metrics,
        groups=len(set(state.pods.values())),
        step_polls=state.settled,
    )


def may_advance(
    assessment: Assessment,
    to_weight: float,
    *,
    settle: float,
    scrape_interval: float,
    delay: float,
    interval: float,
    exposure_budget: float,
    rate: float | None,
) -> bool:
    """Whether a planned step to `to_weight` percent is covered by what B says of each gating ratio and latency metric.

    w' · (settle + scrapeInterval + delay + 3 interval) · (B − 1) ≤ max(exposureBudget, 3 / (rate (p_s + d))), in seconds of all
    traffic at the baseline's rate: what could go wrong before harm would be seen. The second term, a few bad events, keeps quiet
    services from never advancing. Each of these metrics needs a settled poll of the present step; scores come late and do not gate this. `rate` in requests/s, None if not known.
    """
    blind = settle + scrape_interval + delay + 3 * interval
    judging = [m for m in assessment.metrics if m.gating and m.kind != "score"]
    if not judging:
        return max(assessment.step_polls, assessment.settled_polls) >= 1
    for metric in judging:
        if metric.settled_polls < 1 or metric.bound is None:
            return False
        floor = metric.baseline_bad / metric.baseline_requests + metric.absolute
        few = 0.0 if rate is None else 3 / (rate * floor) if rate * floor > 0 else inf
        if to_weight / 100 * blind * (metric.bound - 1) > max(exposure_budget, few):
            return False
    return True


def _resting_group(state: State, gating: list[MetricTest]) -> int | None:
    """The group of pods without which harm is not shown, if there are two or more groups."""
    groups = sorted(set(state.pods.values()))
    if len(groups) < 2:
        return None
    left = {g: sum(_capital_without(state.metrics[t.name], g) for t in gating) for g in groups}
    weakest = min(left, key=lambda g: left[g])
    return weakest if left[weakest] < WITHOUT_GROUP else None


def _capital_without(metric: MetricState, group: int) -> float:
    mixtures = metric.without[group] if group < len(metric.without) else metric.harm
    return metric.stake * harm_value(mixtures, metric.polls) if metric.stake else 0.0


def _harmless(plan: Plan, metric: MetricState) -> bool:
    return bool(metric.polls) and log_mean_exp(metric.harmless) >= -log(plan.false_promotion)


def _superior(plan: Plan, metric: MetricState) -> bool:
    return bool(metric.superior) and log_mean_exp(metric.superior) >= -log(plan.false_promotion)


def _worse(plan: Plan, metric: MetricState, worth: float | None, main: bool) -> bool:
    """A metric is named worse if it proves harm alone, or is the main reason that all together do."""
    alone = harm_value(metric.harm, metric.polls) if worth is None else worth
    return main or alone * plan.false_rollback >= 1


def _overall(fired: bool, *, outlier: bool, harmless: bool, silent: bool) -> Verdict:
    if harmless:
        return Verdict.WORSE_WITHIN_MARGIN if fired else Verdict.HARMLESS
    if fired:
        return Verdict.POD_OUTLIER if outlier else Verdict.HARMFUL
    return Verdict.NO_DATA if silent else Verdict.INCONCLUSIVE


def _assess_metric(
    plan: Plan,
    test: MetricTest,
    metric: MetricState,
    *,
    weight: int,
    rate: float | None,
    worse: bool,
    outlier: bool,
) -> MetricAssessment:
    harmless, superior = _harmless(plan, metric), _superior(plan, metric)
    share = _baseline_rate(metric)
    interval = confidence_interval(metric.profile)
    remaining = 0.0 if harmless else _remaining(plan, test, metric, share, weight)
    speed = (rate or 0.0) * weight / 100
    bound = None
    if metric.bound and share is not None:
        bound = upper_bound(metric.bound, baseline_rate=share, absolute=test.accept.absolute)
    return MetricAssessment(
        name=test.name,
        kind=test.kind,
        gating=test.gating,
        verdict=Verdict.SUPERIOR
        if superior and not worse
        else _overall(worse, outlier=outlier, harmless=harmless, silent=not metric.polls),
        log_harm=log(harm_value(metric.harm, metric.polls)),
        log_harmless=log_mean_exp(metric.harmless),
        ratio=interval.ratio,
        low=interval.low,
        high=interval.high,
        baseline_requests=metric.baseline_requests,
        baseline_bad=_at_slo(metric, metric.baseline_bad),
        candidate_requests=metric.candidate_requests,
        candidate_bad=_at_slo(metric, metric.candidate_bad),
        harmless=harmless,
        settled_polls=metric.settled,
        remaining=remaining,
        has_data=metric.fresh,
        bound=bound,
        absolute=test.accept.absolute,
        remaining_seconds=remaining / speed if remaining is not None and speed else None,
        reward=bool(metric.superior),
        superior=superior,
        log_superior=log_mean_exp(metric.superior) if metric.superior else 0.0,
    )


def _at_slo(metric: MetricState, counts: Sequence[float]) -> float:
    return counts[metric.slo] if counts else 0.0


def _baseline_rate(metric: MetricState) -> float | None:
    if not metric.baseline_requests:
        return None
    return _at_slo(metric, metric.baseline_bad) / metric.baseline_requests


def _remaining(
    plan: Plan, test: MetricTest, metric: MetricState, share: float | None, weight: int
) -> float | None:
    if share is None:
        return None
    return remaining_requests(
        *(test, metric.harmless),
        rate=share,
        weight=weight / 100,
        false_promotion=plan.false_promotion,
        phi=metric.phi,
    )
