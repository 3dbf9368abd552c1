"""The baseline's past, from before a rollout: how its requests, errors and pods varied.

From it come `phi` (whether bad requests come in clusters) and the forecasts. It is read once per attempt, in ranges that
Prometheus answers cheaply, and nothing depends on it: without a past both fall back to what is said in the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from modelrollout.evidence.poll import Arm
from modelrollout.telemetry.increments import measure, reach
from modelrollout.telemetry.queries import MetricQuery, Queries
from modelrollout.telemetry.sampler import Pace, Reader, Scope
from modelrollout.telemetry.samples import QueryError
from modelrollout.telemetry.servers import Server
from modelrollout.telemetry.sides import Side

CHUNK = 120  # polls per query: half an hour at 15 s
MOST_SECONDS = 12 * 3600.0


@dataclass(frozen=True, slots=True)
class PastPoll:
    """Increments of the baseline's pods between two cuts."""

    start: float
    end: float
    pods: Mapping[str, Arm]


@dataclass(frozen=True, slots=True)
class History:
    """Past polls by metric, ascending; polls without requests are left out. `problem`: why there are fewer than asked."""

    metrics: Mapping[str, tuple[PastPoll, ...]] = field(default_factory=dict)
    problem: str = ""


async def read_history(
    server: Server, queries: Queries, scope: Scope, pace: Pace, *, until: float, polls: int = 1200
) -> History:
    """The last `polls` polls of the baseline's pods that ended by `until` (epoch seconds), at most twelve hours.

    Latencies without chosen bounds are left out. Never raises for what Prometheus does.
    """
    past = replace(scope, sides=replace(scope.sides, candidate=Side()))
    wanted = min(polls, int(MOST_SECONDS // pace.interval))
    found: dict[str, list[PastPoll]] = {}
    problems: dict[str, str] = {}
    for metric in queries.metrics:
        if metric.fixed:
            found[metric.name], problem = await _read(server, metric, past, pace, until=until, polls=wanted)
            if problem:
                problems[metric.name] = problem
    problem = "; ".join(f"{name}: {text}" for name, text in problems.items())
    return History({name: tuple(several) for name, several in found.items()}, problem)


async def _read(
    server: Server, metric: MetricQuery, scope: Scope, pace: Pace, *, until: float, polls: int
) -> tuple[list[PastPoll], str]:
    """Newest range first; it ends where there is nothing more."""
    found: list[PastPoll] = []
    end = until
    for done in range(0, polls, CHUNK):
        count = min(CHUNK, polls - done)
        cuts = tuple(round(end - at * pace.interval, 3) for at in range(count, -1, -1))
        try:
            chunk = await _read_chunk(server, metric, scope, pace, cuts)
        except QueryError as error:
            return found, error.text
        if not chunk:
            break
        found = chunk + found
        end = cuts[0]
    return found, ""


async def _read_chunk(
    server: Server, metric: MetricQuery, scope: Scope, pace: Pace, cuts: tuple[float, ...]
) -> list[PastPoll]:
    reader = Reader(server, scope, at=cuts[-1], span=cuts[-1] - cuts[0] + reach(pace.interval))
    measured = measure(
        await reader.counters(metric),
        metric.shape,
        sides=scope.sides,
        cuts=cuts,
        interval=pace.interval,
        warmup=pace.warmup,
    )
    return [
        PastPoll(start, end, pods)
        for (start, end), pods in zip(pairwise(cuts), measured.baseline_pods, strict=True)
        if measured.trouble_in(start, end) is None and any(arm.n > 0 for arm in pods.values())
    ]
