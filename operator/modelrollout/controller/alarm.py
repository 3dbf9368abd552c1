"""The watch after a promotion when nothing of the old revision serves: is the promoted model worse than the old one was?

There is nothing to compare it with at the same time, so it is held against a bound on the baseline's rate, from the counts
of the rollout. A shared outage raises the alarm too, which is why it only notifies unless the user asked for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelrollout.evidence.metric import MetricState
from modelrollout.evidence.plan import MetricTest, Plan, fingerprint
from modelrollout.evidence.poll import Poll
from modelrollout.evidence.state import State
from modelrollout.evidence.watch import Watch, alarmed, begin_watch, grow_watch


@dataclass(frozen=True, slots=True)
class Alarm:
    """One metric's watch, what it has counted, and what it said when it was raised. Once raised it stays."""

    mark: str  # what defines the test: an edit begins a new watch
    watch: Watch
    requests: float = 0.0
    bad: float = 0.0
    said: str = ""


def grow_alarms(
    alarms: Mapping[str, Alarm], plan: Plan, state: State, polls: Iterable[Poll], *, horizon: int
) -> dict[str, Alarm]:
    """The alarms after `polls` of a watch of `horizon` polls; a metric without one begins with the counts in `state`."""
    gating = [test for test in plan.metrics if test.gating and test.name in state.metrics]
    grown = {}
    for test in gating:
        alarm = alarms.get(test.name)
        if alarm is None or alarm.mark != fingerprint(plan, test):
            alarm = _begin(plan, test, state.metrics[test.name], horizon)
        # An edit or a pause may have made the watch longer; a bound for fewer polls would promise too much.
        longest = max(alarm.watch.horizon, horizon)
        grown[test.name] = replace(alarm, watch=replace(alarm.watch, horizon=longest))
    level = plan.false_rollback / max(1, len(gating))
    for poll in polls:
        for test in gating:
            grown[test.name] = _grow(grown[test.name], test, state.metrics[test.name], poll, level)
    return grown


def raised(alarms: Mapping[str, Alarm]) -> str | None:
    """What the raised alarms say; None if there is none."""
    return "; ".join(alarm.said for alarm in alarms.values() if alarm.said) or None


def _begin(plan: Plan, test: MetricTest, metric: MetricState, horizon: int) -> Alarm:
    bad = metric.baseline_bad[metric.slo] if metric.baseline_bad else 0.0
    watch = begin_watch(bad=bad, requests=metric.baseline_requests, margin=test.harm, horizon=horizon)
    return Alarm(fingerprint(plan, test), watch)


def _grow(alarm: Alarm, test: MetricTest, metric: MetricState, poll: Poll, level: float) -> Alarm:
    found = poll.metrics.get(test.name)
    arms = [arm for arm in found.candidate_pods.values() if metric.slo < len(arm.x)] if found else []
    requests = sum(arm.n for arm in arms)
    if requests <= 0:
        return alarm
    bad = sum(min(arm.x[metric.slo], arm.n) for arm in arms)
    # The increment is linear in both counts, so this is the increment divided by phi, as in the other tests.
    watch = grow_watch(alarm.watch, requests=requests / metric.phi, bad=bad / metric.phi)
    alarm = replace(alarm, watch=watch, requests=alarm.requests + requests, bad=alarm.bad + bad)
    if alarm.said or not alarmed(watch, level):
        return alarm
    said = (
        f"{test.name}: {alarm.bad:.0f} of {alarm.requests:.0f} requests were bad since the old revision lost its traffic, "
        f"at most {100 * watch.limit:.3g} % were to be expected from the rollout"
    )
    return replace(alarm, said=said)


def dump_alarms(alarms: Mapping[str, Alarm]) -> dict[str, Any]:
    """The alarms as JSON."""
    return {
        name: {
            "hash": alarm.mark,
            "limit": alarm.watch.limit,
            "horizon": alarm.watch.horizon,
            "values": [float(f"{value:.7g}") for value in alarm.watch.values],
            "requests": alarm.requests,
            "bad": alarm.bad,
            "said": alarm.said,
        }
        for name, alarm in alarms.items()
    }


def load_alarms(data: Mapping[str, Any]) -> dict[str, Alarm]:
    """The inverse of `dump_alarms`. Raises KeyError, TypeError or ValueError for what it did not write."""
    return {
        name: Alarm(
            mark=str(one["hash"]),
            watch=Watch(
                float(one["limit"]), int(one["horizon"]), tuple([float(value) for value in one["values"]])
            ),
            requests=float(one["requests"]),
            bad=float(one["bad"]),
            said=str(one["said"]),
        )
        for name, one in data.items()
    }
