"""What a rollout will take and what its steps can see, said before it starts, from what was measured until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelrollout.api.spec import Spec
from modelrollout.api.status import Forecast, PlanStep, StepForecast, compared_share
from modelrollout.evidence.plan import MetricTest, Plan
from modelrollout.planning.forecast import forecast_harmless, smallest_detectable, smallest_improvement

SLOW = 5.0  # requests/s below which the defaults take hours
MOST_DETECTED = 30.0  # a ratio beyond this is no help to anybody


@dataclass(frozen=True, slots=True)
class Past:
    """What was measured of the baseline before the rollout."""

    rate: float  # requests/s of all its pods
    bad_share: Mapping[str, float]  # by metric: share of bad requests
    phi: Mapping[str, float]  # by metric: clustering
    unmeasured: int | None = (
        None  # past polls that there were where clustering could not be measured from them
    )


def preview(spec: Spec, steps: Sequence[PlanStep], test: Plan, past: Past) -> Forecast:
    """Length of each step, and the smallest harm it finds four times out of five.

    A planned step has no length of its own; the last step lasts until the slowest gating metric is proven.
    """
    shown = [_step(step, test, past, last=step is steps[-1]) for step in steps]
    return Forecast(steps=shown, rate=f"{past.rate:.3g}", limits=_limits(spec, test, past, shown))


def _step(step: PlanStep, test: Plan, past: Past, *, last: bool) -> StepForecast:
    if step.matches:
        return StepForecast(weight=step.weight)  # how many requests match is not known
    speed = past.rate * step.load / 100
    length = step.duration
    if step.min_requests and not step.timed:
        length = max(length, step.min_requests / speed) if speed else float("inf")
    if (last or step.proof) and step.load and not step.timed:
        length = max(length, _proof(step, test, past, speed))
    if length == float("inf"):
        return StepForecast(weight=step.weight)
    found = [text for metric in test.metrics if (text := _detects(metric, step, test, past, speed * length))]
    if step.reward is not None:
        found += [
            text for metric in test.metrics if (text := _wins(metric, step, test, past, speed * length))
        ]
    whole = float(round(length)) if length else None
    return StepForecast(weight=step.weight, duration=whole, detects=", ".join(found) or None)


def _proof(step: PlanStep, test: Plan, past: Past, speed: float) -> float:
    """Seconds until every gating metric of an equal candidate is proven harmless in this step."""
    longest = 0.0
    for metric in test.metrics:
        share = past.bad_share.get(metric.name)
        if not metric.gating or share is None or _unlabelled(step, metric):
            continue
        needed = forecast_harmless(
            metric,
            baseline_rate=share,
            weight=compared_share(step.weight, step.mirror),
            false_promotion=test.false_promotion,
            phi=past.phi.get(metric.name, 1.0),
        )
        longest = max(longest, needed.n80 / speed if needed and speed else float("inf"))
    return longest


def _detects(metric: MetricTest, step: PlanStep, test: Plan, past: Past, requests: float) -> str:
    share = past.bad_share.get(metric.name)
    if share is None or not requests or _unlabelled(step, metric):
        return ""
    total = sum(one.weight for one in test.metrics if one.gating)
    ratio = smallest_detectable(
        metric,
        requests=requests,
        baseline_rate=max(share, 1e-6),
        weight=compared_share(step.weight, step.mirror),
        false_rollback=test.false_rollback,
        share=metric.weight / total if metric.gating and total else 1.0,
        phi=past.phi.get(metric.name, 1.0),
    )
    return f"{metric.name} {ratio:.1f}x" if ratio is not None and ratio <= MOST_DETECTED else ""


def _wins(metric: MetricTest, step: PlanStep, test: Plan, past: Past, requests: float) -> str:
    """How good the reward must be to win in time."""
    share = past.bad_share.get(metric.name)
    if metric.name != step.reward or share is None:
        return ""
    bad = smallest_improvement(
        requests=requests,
        baseline_rate=share,
        weight=step.weight,
        false_promotion=test.false_promotion,
        phi=past.phi.get(metric.name, 1.0),
    )
    return f"{metric.name} better from {100 * (1 - bad):.3g} % good on" if bad is not None else ""


def _unlabelled(step: PlanStep, metric: MetricTest) -> bool:
    """Whether a score would have to be judged on copies of requests, for which labels never arrive."""
    return step.weight == 0 and metric.kind == "score"


def _limits(spec: Spec, test: Plan, past: Past, steps: Sequence[StepForecast]) -> str | None:
    said = []
    blind = [str(step.weight) for step in steps if step.duration is not None and step.detects is None]
    if past.rate < SLOW:
        said.append(
            f'{past.rate:.2g} requests/s are few: a proof takes hours; accept.absolute "0.01" shortens it'
        )
    if blind and spec.analysis.metrics:
        said.append(f"the steps at {', '.join(blind)} % can't see any harm below {MOST_DETECTED:g}x")
    unknown = [metric.name for metric in test.metrics if metric.name not in past.bad_share]
    if unknown:
        said.append(f"nothing was measured before of {', '.join(unknown)}")
    if past.unmeasured is not None:
        why = f"only {past.unmeasured} past polls" if past.unmeasured else "the baseline has one pod"
        said.append(f"{why}: that errors come singly, not in clusters, is assumed")
    if any(_alone(spec, step) for step in steps):
        said.append("where one candidate pod answers, a bad node and a bad model can't be told apart")
    return "; ".join(said) or None


def _alone(spec: Spec, step: StepForecast) -> bool:
    return 0 < step.weight * spec.workload.replicas <= 100
