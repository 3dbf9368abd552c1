"""From raw samples to increments: how much each counter grew between two cuts, exactly.

`rate()` and `increase()` extrapolate and lose the first value of a new series; with few bad events both are wrong enough
to roll back good models. Here every sample is looked at once. An increment belongs to the poll in which its later sample
lies, and is decided only by what is known within `horizon` before that sample. So it does not matter where cuts fall, how
often the operator restarted, or whether a poll was repeated: the sum is the same, and no sample enters twice.

Everything here is pure. Times are epoch seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Literal

from modelrollout.evidence.poll import Arm, MetricPoll
from modelrollout.telemetry.samples import NOT_A_NUMBER, RawSeries
from modelrollout.telemetry.sides import SideName, Sides, warm_from

DUPLICATE_SERIES = "DuplicateSeries"
COUNTERS_INCONSISTENT = "CountersInconsistent"
BUCKETS_DIFFER = "BucketsDiffer"
SUM_MISSING = "SumMissing"
SCORE_OUT_OF_RANGE = "ScoreOutOfRange"

# Labels that tell scrape targets apart, and copies of one target from each other.
TARGET_LABELS = ("job", "endpoint", "instance", "replica", "prometheus_replica")
# Clocks of nodes and of Prometheus differ, and the API server cuts start times to the second.
_CLOCK_SKEW = 5.0
_TRUNCATION = 1.0
# Sum and count of a client library are not written at one instant: a value may be in one and not yet in the other.
_SCORE_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """bad / total."""


@dataclass(frozen=True, slots=True)
class Score:
    """The bad mass of a bounded value: its distance from the good end, as a share of the range."""

    least: float
    most: float
    better: Literal["Higher", "Lower"] = "Higher"


@dataclass(frozen=True, slots=True)
class Latency:
    """Requests slower than each of these bounds (seconds)."""

    bounds: tuple[float, ...]


Shape = Ratio | Score | Latency


@dataclass(frozen=True, slots=True)
class Trouble:
    """Data in [start, end] that must not be used."""

    reason: str
    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Counters:
    """Raw series of one metric. `total` counts requests; `parts` hold what `shape` needs: the bad requests (ratio), the
    sum (score), or the buckets of all bounds (latency). `up` are the targets' own series, as proof of scrapes."""

    total: Sequence[RawSeries]
    parts: Sequence[RawSeries]
    up: Sequence[RawSeries] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """Polls of one metric, one for each pair of cuts; what is unusable; pods whose total has samples.

    `untold` polls have requests that are not counted only because nobody knows yet that their pod was ready.
    """

    polls: tuple[MetricPoll, ...]
    untold: tuple[bool, ...]
    baseline_pods: tuple[Mapping[str, Arm], ...]  # the baseline's increments by pod, for the same polls
    troubles: tuple[Trouble, ...]
    seen: Mapping[SideName, frozenset[str]]

    def trouble_in(self, start: float, end: float) -> Trouble | None:
        """The first trouble that touches the poll (start, end]."""
        return next((t for t in self.troubles if t.start <= end and t.end > start), None)


def horizon(interval: float) -> float:
    """Seconds within which two samples of a series belong together: two intervals, and a second for jitter."""
    return 2 * interval + 1.0


def reach(interval: float) -> float:
    """Seconds that a query must reach back before the last cut, so that every decision finds what it rests on."""
    return horizon(interval) + 1.0


def measure(
    counters: Counters, shape: Shape, *, sides: Sides, cuts: Sequence[float], interval: float, warmup: float
) -> Measured:
    """Increments per pod between consecutive `cuts` (ascending; at least two), from samples in (cuts[0] − reach, cuts[-1]].

    Raises ValueError if there is nothing to measure between.
    """
    if len(cuts) < 2 or any(later <= earlier for earlier, later in pairwise(cuts)):
        raise ValueError("at least two ascending cuts are needed")
    targets = _targets(counters, shape, sides)
    troubles = list(_duplicates(targets.values()))
    ledger = _Ledger(cuts, parts=_count_parts(shape))
    for target in targets.values():
        if target.total:
            _Reading(target, shape, sides, cuts, horizon(interval), warmup).enter(ledger, troubles)
    troubles += ledger.settle(shape)
    seen: dict[SideName, set[str]] = {"baseline": set(), "candidate": set()}
    for target in targets.values():
        if target.total:
            seen[target.side].add(target.pod)
    return Measured(
        polls=tuple(ledger.polls()),
        untold=ledger.untold,
        baseline_pods=tuple(ledger.baseline_pods()),
        troubles=tuple(sorted(troubles, key=lambda t: t.start)),
        seen={side: frozenset(pods) for side, pods in seen.items()},
    )


def bucket_bound(series: RawSeries) -> float:
    """The upper bound of a bucket as a number ("0.50" and "0.5" are one). Raises ValueError."""
    return float(series.labels["le"])


def _count_parts(shape: Shape) -> int:
    return len(shape.bounds) if isinstance(shape, Latency) else 1


@dataclass(slots=True)
class _Target:
    """One scrape target of one pod."""

    side: SideName
    pod: str
    key: tuple[str, ...]
    total: list[RawSeries] = field(default_factory=list)
    parts: list[list[RawSeries]] = field(default_factory=list)
    up: list[RawSeries] = field(default_factory=list)

    def scrapes(self) -> list[float]:
        """Times at which the target was scraped for sure."""
        times = {t for series in self.total for t in series.times}
        times.update(t for s in self.up for t, v in zip(s.times, s.values, strict=True) if v > 0)
        return sorted(times)

    def span(self) -> tuple[float, float]:
        return min(s.times[0] for s in self.total), max(s.times[-1] for s in self.total)


def _targets(counters: Counters, shape: Shape, sides: Sides) -> dict[tuple[str, ...], _Target]:
    targets: dict[tuple[str, ...], _Target] = {}
    slots = _count_parts(shape)

    def target_of(series: RawSeries) -> _Target | None:
        place = sides.locate(series)
        if place is None or not (series.times or series.broken):
            return None
        key = (*place, *(series.labels.get(label, "") for label in TARGET_LABELS))
        return targets.setdefault(key, _Target(*place, key[2:], parts=[[] for _ in range(slots)]))

    for series in counters.total:
        if (target := target_of(series)) is not None and series.times:
            target.total.append(series)
    places = {bound: at for at, bound in enumerate(shape.bounds)} if isinstance(shape, Latency) else None
    for series in counters.parts:
        slot = 0 if places is None else places.get(bucket_bound(series))
        if slot is not None and (target := target_of(series)) is not None:
            target.parts[slot].append(series)
    for series in counters.up:
        if (target := target_of(series)) is not None:
            target.up.append(series)
    return targets


def _duplicates(targets: Iterable[_Target]) -> Iterator[Trouble]:
    """Two targets of one pod that are scraped at the same time count every request twice."""
    by_pod: dict[str, list[_Target]] = defaultdict(list)
    for target in targets:
        if target.total:
            by_pod[target.pod].append(target)
    for pod, several in by_pod.items():
        for one, other in combinations(several, 2):
            (start_1, end_1), (start_2, end_2) = one.span(), other.span()
            start, end = max(start_1, start_2), min(end_1, end_2)
            if start <= end:
                labels = [
                    label for label, a, b in zip(TARGET_LABELS, one.key, other.key, strict=True) if a != b
                ]
                values = " and ".join(repr(t.key[TARGET_LABELS.index(labels[0])]) for t in (one, other))
                yield Trouble(
                    DUPLICATE_SERIES,
                    f"pod {pod} has series with {labels[0]} {values}: pick one in the selector",
                    start,
                    end,
                )


@dataclass(frozen=True, slots=True)
class _Step:
    """What one sample adds: `value` since `since`, or None if the sample is only a new baseline."""

    since: float
    at: float
    value: float | None
    gap: bool = False


class _Reading:
    """Reads one target: where its counters began anew, and what each of its samples adds."""

    def __init__(
        self,
        target: _Target,
        shape: Shape,
        sides: Sides,
        cuts: Sequence[float],
        horizon: float,
        warmup: float,
    ) -> None:
        self._target = target
        self._shape = shape
        self._first, self._last = cuts[0], cuts[-1]
        self._horizon = horizon
        self._scrapes = target.scrapes()
        pod = sides.pod(target.side, target.pod)
        self._started = pod.started if pod else None
        self._restarted = pod.last_start if pod else None
        # A pod that nobody remembers counts if it was there before the cut: then it is an old one that has gone since.
        unknown = -math.inf if self._scrapes[0] <= self._first else math.inf
        self._warm = unknown if pod is None else warm_from(pod, warmup)
        self._warm_at_best = (self._scrapes[0] if self._started is None else self._started) + warmup
        self._resets: list[float] = []
        self._unclear: list[tuple[float, float]] = []

    def enter(self, ledger: _Ledger, troubles: list[Trouble]) -> None:
        """Book all increments after the first cut, and report what must not be used."""
        target = self._target
        troubles += self._find_resets()
        troubles += self._find_broken()
        troubles += self._find_missing()
        for line, series in [(0, s) for s in target.total] + [
            (slot + 1, s) for slot, part in enumerate(target.parts) for s in part
        ]:
            for step in self._steps(series):
                if self._warm == math.inf:
                    if line == 0 and step.value != 0 and step.since >= self._warm_at_best:
                        ledger.doubt(step.at)
                elif step.value is None:
                    if step.gap and step.at - self._horizon >= self._warm:
                        ledger.lose(step.at)
                elif step.since >= self._warm:
                    ledger.add(target.side, target.pod, line, step.at, step.value)

    def _find_resets(self) -> Iterator[Trouble]:
        """Resets show in the total, and hold for all series of the target: after one, another series may well be
        larger than before. A part that falls alone is a reset only if a container started in between."""
        visible = dict(_falls(self._target.total, self._horizon))
        for at, before in sorted(visible.items()):
            self._resets.append(at)
            if at > self._first and self._restarted is not None and self._restarted < before - _CLOCK_SKEW:
                yield self._inconsistent(at, "fell, but no container of the pod restarted")
        free = isinstance(self._shape, Score) and self._shape.least < 0  # such a sum may fall by itself
        parts = [] if free else [series for part in self._target.parts for series in part]
        for at, before in sorted(_falls(parts, self._horizon)):
            if any(before < reset <= at for reset in self._resets):
                continue
            start = self._restarted
            if start is not None and before - _CLOCK_SKEW <= start <= at + _CLOCK_SKEW:
                self._resets.append(at)
            elif start is None or start > at:
                self._unclear.append((before, at))  # an earlier restart is likely, and nobody remembers it
            elif at > self._first:
                yield self._inconsistent(at, "fell, but the total did not")
        self._find_hidden_restart()
        self._resets.sort()

    def _find_hidden_restart(self) -> None:
        """A container's start after which no counter was smaller than before. Which container it was is unknown: with a
        side car's restart the counters go on, with the server's they began anew. So that step is not counted."""
        if (start := self._restarted) is None:
            return
        times = sorted({t for series in self._target.total for t in series.times})
        near = [(b, a) for b, a in pairwise(times) if a - b <= self._horizon]
        around = [(b, a) for b, a in near if b < start + _TRUNCATION and a > start]
        if not any(before < reset <= after for reset in self._resets for before, after in around):
            self._unclear += around

    def _find_broken(self) -> Iterator[Trouble]:
        """After a NaN the next sample is only a baseline, for all series of the target alike."""
        for series in (*self._target.total, *(s for part in self._target.parts for s in part)):
            for at in series.broken:
                after = bisect_left(series.times, at)
                until = series.times[after] if after < len(series.times) else math.inf
                self._unclear.append((math.nextafter(at, -math.inf), until))
                if at > self._first:
                    yield Trouble(
                        NOT_A_NUMBER, f"pod {self._target.pod} has a sample that is no number", at, at
                    )

    def _find_missing(self) -> Iterator[Trouble]:
        """A counter of bad requests may be absent before the first one; a sum or a bucket may not."""
        if isinstance(self._shape, Ratio):
            return
        span = (max(self._first, self._target.span()[0]), self._target.span()[1])
        counted = {_identity(series) for series in self._target.total}
        for slot, part in enumerate(self._target.parts):
            present = {_identity(series) for series in part}
            if isinstance(self._shape, Latency) and not counted <= present:
                bound = self._shape.bounds[slot]
                text = f"pod {self._target.pod} has no bucket with le={bound:g}: give both revisions the same buckets"
                yield Trouble(BUCKETS_DIFFER, text, *span)
            elif not present:
                yield Trouble(SUM_MISSING, f"pod {self._target.pod} has a count but no sum", *span)

    def _inconsistent(self, at: float, how: str) -> Trouble:
        text = f"a counter of pod {self._target.pod} {how}: is the metric a counter, of one process?"
        return Trouble(COUNTERS_INCONSISTENT, text, at, at)

    def _steps(self, series: RawSeries) -> Iterator[_Step]:
        begin = bisect_left(series.times, math.nextafter(self._first, math.inf))
        for at in range(begin, len(series.times)):
            time = series.times[at]
            if time > self._last:
                return
            before = series.times[at - 1] if at else -math.inf
            if time - before <= self._horizon:
                yield self._next(series, at, before)
            else:  # what lies further back is not looked at: another cut might not have seen it
                yield self._begin(time, series.values[at])

    def _next(self, series: RawSeries, at: int, before: float) -> _Step:
        time, value = series.times[at], series.values[at]
        if any(start < time <= end for start, end in self._unclear):
            return _Step(before, time, None, gap=True)
        if any(before < reset <= time for reset in self._resets):
            return _Step(before, time, value)
        return _Step(before, time, value - series.values[at - 1])

    def _begin(self, time: float, value: float) -> _Step:
        """The first sample of a series within the horizon: it began at 0 if the target was scraped while the series was absent, or if the
        container started just before."""
        place = bisect_left(self._scrapes, time)
        if place and time - self._scrapes[place - 1] <= self._horizon:
            if any(start < time <= end for start, end in self._unclear):
                return _Step(self._scrapes[place - 1], time, None, gap=True)
            return _Step(self._scrapes[place - 1], time, value)
        if self._started is not None and time - self._horizon < self._started <= time - _TRUNCATION:
            return _Step(self._started, time, value)
        return _Step(time, time, None, gap=True)


def _falls(lines: Iterable[RawSeries], horizon: float) -> Iterator[tuple[float, float]]:
    """Times at which a counter was smaller than at its previous sample, each with the time of that one."""
    for series in lines:
        for at in range(1, len(series.times)):
            before, time = series.times[at - 1], series.times[at]
            smaller = series.values[at] < series.values[at - 1] - 1e-9 * abs(series.values[at - 1])
            if smaller and time - before <= horizon:
                yield time, before


def _identity(series: RawSeries) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in series.labels.items() if k not in ("le", "__name__")))


class _Ledger:
    """Books increments by poll, side and pod: the total at index 0, then the parts."""

    def __init__(self, cuts: Sequence[float], *, parts: int) -> None:
        self._cuts = cuts
        self._parts = parts
        self._books: list[dict[tuple[SideName, str], list[float]]] = [{} for _ in cuts[1:]]
        self._arms: list[dict[tuple[SideName, str], Arm]] = [{} for _ in cuts[1:]]
        self._partial = [False] * (len(cuts) - 1)
        self._untold = [False] * (len(cuts) - 1)

    @property
    def untold(self) -> tuple[bool, ...]:
        return tuple(self._untold)

    def _poll(self, at: float) -> int:
        return bisect_left(self._cuts, at) - 1

    def add(self, side: SideName, pod: str, line: int, at: float, value: float) -> None:
        book = self._books[self._poll(at)].setdefault((side, pod), [0.0] * (self._parts + 1))
        book[line] += value

    def lose(self, at: float) -> None:
        self._partial[self._poll(at)] = True

    def doubt(self, at: float) -> None:
        self._untold[self._poll(at)] = True

    def settle(self, shape: Shape) -> Iterator[Trouble]:
        """Turn counters into bad events; yields what can't be true."""
        bad = _bad_events(shape)
        for at, book in enumerate(self._books):
            for (side, pod), (counted, *parts) in book.items():
                total = max(counted, 0.0)  # what is added up from fractions may fall by what was rounded
                if total == 0 and not any(parts):
                    continue
                x = bad(total, parts)
                slack = max(_SCORE_SLACK, 0.01 * total)
                if isinstance(shape, Score) and not -slack <= x[0] <= total + slack:
                    text = f"values of pod {pod} are outside of [{shape.least:g}, {shape.most:g}]: set min and max of the score"
                    yield Trouble(SCORE_OUT_OF_RANGE, text, self._cuts[at + 1], self._cuts[at + 1])
                most = math.inf if isinstance(shape, Ratio) else total
                self._arms[at][side, pod] = Arm(total, tuple(min(max(value, 0.0), most) for value in x))

    def polls(self) -> Iterator[MetricPoll]:
        for arms, partial in zip(self._arms, self._partial, strict=True):
            candidate = {pod: arm for (side, pod), arm in sorted(arms.items()) if side == "candidate"}
            baseline = [arm for (side, _), arm in sorted(arms.items()) if side == "baseline"]
            yield MetricPoll(add_arms(baseline, parts=self._parts), candidate, partial)

    def baseline_pods(self) -> Iterator[Mapping[str, Arm]]:
        for arms in self._arms:
            yield {pod: arm for (side, pod), arm in sorted(arms.items()) if side == "baseline"}


def _bad_events(shape: Shape) -> Callable[[float, Sequence[float]], tuple[float, ...]]:
    if isinstance(shape, Latency):
        return lambda total, parts: tuple(total - fast for fast in parts)
    if isinstance(shape, Ratio):
        return lambda _total, parts: (parts[0],)
    least, width, higher = shape.least, shape.most - shape.least, shape.better == "Higher"

    def bad(total: float, parts: Sequence[float]) -> tuple[float, ...]:
        mass = (parts[0] - least * total) / width
        return (total - mass if higher else mass,)

    return bad


def add_arms(arms: Iterable[Arm], *, parts: int) -> Arm:
    """The sum of several arms, each with that many kinds of bad events."""
    total, bad = 0.0, [0.0] * parts
    for arm in arms:
        total += arm.n
        bad = [a + b for a, b in zip(bad, arm.x, strict=True)]
    return Arm(total, tuple(bad))
