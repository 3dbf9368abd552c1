"""The operator's own Prometheus metrics.

They have a registry of their own, so nothing that a library registers leaks in and tests do not share state. The
series of a rollout go when it goes: names of deleted rollouts must not pile up over years.
"""

from __future__ import annotations

import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from modelrollout.api.conditions import Reason
from modelrollout.api.status import Outcome
from modelrollout.cluster.port import Request

_WITHOUT_PROOF = (Reason.NOT_PROVEN, Reason.INCONCLUSIVE, Reason.PROMOTE_REQUESTED)
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, 259200.0, 604800.0)
_OF_ROLLOUT = ("namespace", "name")

_Series = tuple[Gauge, tuple[str, ...]]


class _WatchAges(Collector):
    """Seconds since the last event of each watch, computed when scraped: a dead watch can't update a gauge."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def seen(self, kind: str) -> None:
        self._last[kind] = self._clock()

    def age(self, kind: str) -> float | None:
        last = self._last.get(kind)
        return None if last is None else max(0.0, self._clock() - last)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "modelrollout_watch_event_age_seconds",
            "Seconds since a watch last said something.",
            labels=["kind"],
        )
        for kind in list(self._last):
            family.add_metric([kind], self.age(kind) or 0.0)
        yield family


class Metrics:
    """What the operator tells about itself. `clock` is monotonic, in seconds."""

    def __init__(self, *, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        # Per rollout the series that there are: dropped without a search, and set without a look-up by labels.
        self._series: defaultdict[tuple[str, str], dict[_Series, Gauge]] = defaultdict(dict)
        self._watches = _WatchAges(clock)
        self.registry.register(self._watches)
        ProcessCollector(registry=self.registry)
        self._make_rollout_metrics()
        self._make_operator_metrics()
        build = self._gauge("build_info", "The operator's version.", "version", "python")
        build.labels(version, platform.python_version()).set(1)

    def _make_rollout_metrics(self) -> None:
        gauge = self._gauge
        self._phase = gauge("phase", "1 for the present phase of a rollout.", *_OF_ROLLOUT, "phase")
        self._weight = gauge("weight_percent", "Weight committed for a side.", *_OF_ROLLOUT, "side")
        self._step = gauge("step", "Present step, from 1.", *_OF_ROLLOUT)
        self._condition = gauge(
            "condition", "1 for the present status of a condition.", *_OF_ROLLOUT, "type", "status", "reason"
        )
        self._log_e = gauge(
            "evidence_log_e",
            "Natural logarithm of the e-value against a hypothesis.",
            *_OF_ROLLOUT,
            "metric",
            "claim",
        )
        self._ratio = gauge(
            "evidence_ratio", "Candidate to baseline: estimate and bounds.", *_OF_ROLLOUT, "metric", "bound"
        )
        self._outcomes = Counter(
            "modelrollout_outcomes",
            "Finished attempts.",
            ["outcome", "reason", "unproven"],
            registry=self.registry,
        )
        for reason in _WITHOUT_PROOF:  # increase() does not see a series that begins at 1
            self._outcomes.labels(Outcome.PROMOTED.value, reason.value, "true")
        self._duration = Histogram(
            "modelrollout_attempt_duration_seconds",
            "From the start of an attempt to its outcome.",
            ["outcome"],
            buckets=_LONG,
            registry=self.registry,
        )

    def _make_operator_metrics(self) -> None:
        registry = self.registry
        self._reconcile = Histogram(
            "modelrollout_reconcile_seconds", "One round of one rollout.", buckets=_FAST, registry=registry
        )
        self._errors = Counter(
            "modelrollout_reconcile_errors", "Rounds that failed, by error.", ["error"], registry=registry
        )
        self._queue = self._gauge("queue_depth", "Rollouts waiting for a worker.")
        self._requests = Counter(
            "modelrollout_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "kind", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "modelrollout_api_request_seconds", "Time of these.", ["verb"], buckets=_FAST, registry=registry
        )
        self._query_seconds = Histogram(
            "modelrollout_prometheus_query_seconds",
            "Queries to Prometheus.",
            ["server"],
            buckets=_FAST,
            registry=registry,
        )
        self._query_errors = Counter(
            "modelrollout_prometheus_query_errors",
            "Queries without a usable answer.",
            ["server", "reason"],
            registry=registry,
        )
        self._leader = self._gauge("leader", "1 while this process leads.")

    def show_phase(self, namespace: str, name: str, phase: str) -> None:
        self._drop(namespace, name, self._phase)
        self._set(self._phase, 1, namespace, name, phase)

    def show_weights(self, namespace: str, name: str, weights: Mapping[str, int]) -> None:
        """`weights`: whole percent by side. A side that is no longer named is dropped."""
        self._drop(namespace, name, self._weight)
        for side, weight in weights.items():
            self._set(self._weight, weight, namespace, name, side)

    def show_step(self, namespace: str, name: str, step: int | None) -> None:
        """`step` counts from 1; None outside of a rollout."""
        self._drop(namespace, name, self._step)
        if step is not None:
            self._set(self._step, step, namespace, name)

    def show_conditions(self, namespace: str, name: str, conditions: Iterable[tuple[str, str, str]]) -> None:
        """`conditions`: type, status and reason of each that there is."""
        self._drop(namespace, name, self._condition)
        for condition in conditions:
            self._set(self._condition, 1, namespace, name, *condition)

    def show_evidence(
        self,
        namespace: str,
        name: str,
        metric: str,
        *,
        log_e: Mapping[str, float | None],
        ratio: float | None,
        low: float | None,
        high: float | None,
    ) -> None:
        """The evidence on one metric. `log_e` by claim ("harm", "harmless", "superior"); what is None or NaN has no series."""
        for claim, value in log_e.items():
            self._set(self._log_e, value, namespace, name, metric, claim)
        for bound, number in (("estimate", ratio), ("low", low), ("high", high)):
            self._set(self._ratio, number, namespace, name, metric, bound)

    def drop_evidence(self, namespace: str, name: str, *, kept: Collection[str] = ()) -> None:
        """Metrics of the rollout that are not compared any more: all but `kept`."""
        for gauge in (self._log_e, self._ratio):
            self._drop(namespace, name, gauge, kept=kept)

    def drop_rollout(self, namespace: str, name: str) -> None:
        """The rollout is gone."""
        for gauge, labels in self._series.pop((namespace, name), {}):
            gauge.remove(*labels)

    def count_outcome(
        self, outcome: str, reason: str, *, unproven: bool, seconds: float | None = None
    ) -> None:
        """An attempt has ended, `seconds` after it started."""
        self._outcomes.labels(outcome, reason, "true" if unproven else "false").inc()
        if seconds is not None:
            self._duration.labels(outcome).observe(max(0.0, seconds))

    def observe_reconcile(self, seconds: float, error: BaseException | None = None) -> None:
        self._reconcile.observe(seconds)
        if error is not None:
            self._errors.labels(type(error).__name__).inc()

    def observe_request(self, request: Request) -> None:
        """For `Hooks(answered=...)`."""
        self._requests.labels(request.verb, request.kind, str(request.status)).inc()
        self._request_seconds.labels(request.verb).observe(request.seconds)

    def observe_query(self, server: str, seconds: float, error: str | None = None) -> None:
        """`error` is one of the reasons of telemetry, never a free text."""
        self._query_seconds.labels(server).observe(seconds)
        if error is not None:
            self._query_errors.labels(server, error).inc()

    def read_queue(self, depth: Callable[[], float]) -> None:
        """Where to read the queue's depth when scraped. It is called from another thread."""
        self._queue.set_function(depth)

    def show_leader(self, leading: bool) -> None:
        self._leader.set(leading)

    def watch_seen(self, kind: str) -> None:
        """A watch of this kind has said something."""
        self._watches.seen(kind)

    def watch_age(self, kind: str) -> float | None:
        """Seconds since then; None if it never did."""
        return self._watches.age(kind)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelrollout_{name}", text, labels, registry=self.registry)

    def _set(self, gauge: Gauge, value: float | None, *labels: str) -> None:
        all_series, series = self._series[labels[0], labels[1]], (gauge, labels)
        if value is None or math.isnan(value):
            if all_series.pop(series, None) is not None:
                gauge.remove(*labels)
            return
        one = all_series.get(series)
        if one is None:
            one = all_series[series] = gauge.labels(*labels)
        one.set(value)

    def _drop(self, namespace: str, name: str, gauge: Gauge, *, kept: Collection[str] = ()) -> None:
        series = self._series.get((namespace, name), {})
        for one in [one for one in series if one[0] is gauge and not (kept and one[1][2] in kept)]:
            del series[one]
            gauge.remove(*one[1])
