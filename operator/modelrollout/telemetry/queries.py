"""What is asked of Prometheus for each metric of a ModelRollout, fenced into its namespace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from modelrollout.api.spec import Analysis, Metric
from modelrollout.evidence.plan import Kind
from modelrollout.telemetry.increments import Latency, Ratio, Score, Shape
from modelrollout.telemetry.selectors import SelectorError, SeriesSelector, check_query, parse_selector

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """A metric as counters. `total` and `part` select series of all pods; side and namespace are added when asked.

    For latency both are the histogram's buckets, and `shape.bounds` are empty until they have been chosen.
    """

    name: str
    kind: Kind
    gating: bool
    total: SeriesSelector
    part: SeriesSelector
    shape: Shape

    @property
    def fixed(self) -> bool:
        """Whether it can be measured: a latency only once its bounds are chosen."""
        return not isinstance(self.shape, Latency) or bool(self.shape.bounds)


@dataclass(frozen=True, slots=True)
class GuardrailQuery:
    """A guardrail's text, as the user wrote it."""

    name: str
    gating: bool
    query: str


@dataclass(frozen=True, slots=True)
class Queries:
    """All that one rollout asks."""

    metrics: tuple[MetricQuery, ...] = ()
    guardrails: tuple[GuardrailQuery, ...] = ()

    @property
    def traffic(self) -> str | None:
        """The metric that counts requests: the first gating ratio or latency, else the first metric that counts."""
        counting = [m for m in self.metrics if m.gating and m.kind != "score"] or list(self.metrics)
        return counting[0].name if counting else None


def build_queries(analysis: Analysis, cuts: Mapping[str, Sequence[float]]) -> Queries:
    """The queries of a spec; `cuts` are the latency bounds chosen so far, by metric.

    Raises SelectorError with a sentence that begins with the field.
    """
    metrics: list[MetricQuery] = []
    guardrails: list[GuardrailQuery] = []
    for at, metric in enumerate(analysis.metrics):
        if metric.guardrail is not None:
            _in_field(at, "guardrail.query", check_query, metric.guardrail.query)
            guardrails.append(GuardrailQuery(metric.name, metric.gating, metric.guardrail.query))
        else:
            metrics.append(_metric_query(at, metric, tuple(cuts.get(metric.name, ()))))
    return Queries(tuple(metrics), tuple(guardrails))


def check_queries(analysis: Analysis) -> list[tuple[str, str]]:
    """(field, problem) of every selector and query that can't be used; empty if all can."""
    problems = []
    for at, metric in enumerate(analysis.metrics):
        alone = analysis.model_copy(update={"metrics": (metric,)})
        try:
            build_queries(alone, {})
        except SelectorError as error:
            field, _, problem = str(error).partition(": ")
            problems.append((field.replace("metrics[0]", f"metrics[{at}]"), problem))
    return problems


def _metric_query(at: int, metric: Metric, bounds: tuple[float, ...]) -> MetricQuery:
    if metric.ratio is not None:
        bad = _in_field(at, "ratio.bad", parse_selector, metric.ratio.bad)
        total = _in_field(at, "ratio.total", parse_selector, metric.ratio.total)
        return MetricQuery(
            metric.name, "ratio", metric.gating, total.without_probes(), bad.without_probes(), Ratio()
        )
    if metric.score is not None:
        score = metric.score
        total = _in_field(at, "score.count", parse_selector, score.count)
        part = _in_field(at, "score.sum", parse_selector, score.sum)
        shape = Score(score.min, score.max, score.better)
        return MetricQuery(metric.name, "score", metric.gating, total, part, shape)
    assert metric.latency is not None, metric.kind
    buckets = _in_field(at, "latency.histogram", _buckets, metric.latency.histogram)
    return MetricQuery(metric.name, "latency", metric.gating, buckets, buckets, Latency(bounds))


def _buckets(text: str) -> SeriesSelector:
    histogram = parse_selector(text)
    if "le" in histogram.labels():
        raise SelectorError(f"{text} picks buckets: leave out the label le")
    named = histogram.name or ""
    buckets = histogram if named.endswith("_bucket") else histogram.renamed("_bucket")
    return buckets.without_probes()


def _in_field(at: int, field: str, read: Callable[[str], _T], text: str) -> _T:
    try:
        return read(text)
    except SelectorError as error:
        raise SelectorError(f"spec.analysis.metrics[{at}].{field}: {error}") from error
