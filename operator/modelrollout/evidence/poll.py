"""What telemetry hands to the engine: increments of counters between two cuts, per metric and side."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arm:
    """Increments of one side (or one pod) in one poll of one metric."""

    n: float  # requests
    x: tuple[float, ...]  # bad events per cut: one element for ratio and score, len(cuts) for latency


@dataclass(frozen=True, slots=True)
class MetricPoll:
    """One poll of one metric. The candidate's increment is the sum over its pods."""

    baseline: Arm
    candidate_pods: Mapping[str, Arm]  # by pod name
    partial: bool = False  # some series only got a new baseline: valid, but not all of the traffic


@dataclass(frozen=True, slots=True)
class Poll:
    """All metrics between the cuts `start` and `end` (epoch seconds). A metric that is absent had no data."""

    start: float
    end: float
    metrics: Mapping[str, MetricPoll]
