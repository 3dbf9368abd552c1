"""One look at Prometheus: raw samples since the last cut as polls, readings of guardrails, and the state of the data.

The caller keeps one number, the cut up to which polls were consumed, and commits it together with the evidence. Asking
again with the same cut gives the same polls, so a conflict or a restart neither loses nor repeats a sample.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from modelrollout.decision.types import Data
from modelrollout.evidence.poll import MetricPoll, Poll
from modelrollout.telemetry.increments import Counters, Measured, bucket_bound, measure, reach
from modelrollout.telemetry.queries import GuardrailQuery, MetricQuery, Queries
from modelrollout.telemetry.samples import BAD_ANSWER, NO_RESULT, NOT_A_NUMBER, REFUSED, QueryError, RawSeries
from modelrollout.telemetry.selectors import Matcher, SelectorError, SeriesSelector, fence_query
from modelrollout.telemetry.servers import Server, ServerSettings
from modelrollout.telemetry.sides import Side, SideName, Sides

NOT_SCRAPED = "NotScraped"
NO_TRAFFIC = "NoTraffic"
SAMPLES_LATE = "SamplesLate"
SCRAPES_TOO_RARE = "ScrapesTooRare"
MAX_POLLS = 240  # in one look; a longer outage is caught up with in several
FIRST_SPAN = 300.0  # seconds; the first look also finds out how far apart samples really are
PAST = 3600.0  # seconds of the baseline's past that latency bounds are chosen from
WITHOUT_REQUESTS = (NO_RESULT, NOT_A_NUMBER)  # what a query over requests comes to where there are none
AT_ONCE = 4  # queries of one look that are under way
_UP_NAME = "up"
_UP = SeriesSelector(_UP_NAME, ())
_DISCOVERY = 10.0  # from readiness to the first scrape Prometheus also has to find the pod
_SPACING_SLACK = 1.5
HEARSAY = 10.0  # seconds that a poll waits to be told by the API server of the pods that it has samples of
_UNSCRAPED_SHARE = 0.1  # of the ready pods of a side may be unscraped before data count as missing


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between polls, between scrapes, of warm-up, and from a scrape until the server has its samples."""

    interval: float
    scrape_interval: float
    warmup: float
    delay: float = 0.0

    @property
    def age(self) -> float:
        """Seconds after which a cut is read: what was scraped before it is there by then."""
        return self.scrape_interval + self.delay


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose data are asked for, and what placeholders of guardrails stand for."""

    namespace: str
    name: str
    revision: str  # the candidate's
    sides: Sides


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look gave.

    Feed every poll to the evidence, whatever `data` says, and keep `cut` as the next `since`; both belong into one commit.
    """

    data: Data
    cut: float | None
    polls: tuple[Poll, ...] = ()
    problem: str = ""  # "DuplicateSeries: errors: pod …"
    reason: str = ""  # the part before the colon, or ""
    guardrails: Mapping[str, float | None] = field(default_factory=dict)  # None: no reading
    past_buckets: Mapping[str, tuple[tuple[float, float], ...]] = field(
        default_factory=dict
    )  # for choose_cuts
    notes: Mapping[str, str] = field(default_factory=dict)
    rate: float | None = None  # requests per second of both sides, over the polls of this look
    behind: bool = False  # more polls are ready: look again at once
    waits: bool = False  # a poll is not taken yet, as pods have samples that nobody has told of: look again when somebody has, or
    # HEARSAY after it was complete


def next_poll(since: float | None, pace: Pace, now: float) -> float:
    """When the next poll is complete."""
    return now if since is None else since + pace.interval + pace.age


async def sample(
    server: Server,
    queries: Queries,
    scope: Scope,
    pace: Pace,
    *,
    since: float | None,
    now: float,
    idle: bool = False,
) -> Sample:
    """Look once. `since` is the last consumed cut; None begins an attempt: it only sets the cut. `idle`: the candidate gets no
    requests, so that a guardrail may well have nothing to say of it.

    Never raises for what Prometheus does; see `Sample.data`. Data.NONE: no poll is complete yet.
    """
    cuts, behind = _cuts(pace, since, now)
    if since is not None and len(cuts) < 2:
        return Sample(Data.NONE, since)
    span = cuts[-1] - cuts[0] + reach(pace.interval) if since is not None else FIRST_SPAN
    reader = Reader(_Share(server), scope, at=cuts[-1], span=span)
    log = _Log()
    up, guardrails, counters = await asyncio.gather(
        _read_up(reader, queries, log),
        _read_guardrails(reader, queries.guardrails, log, now),
        _read_metrics(reader, queries, log),
    )
    past = {
        query.name: await _read_past(reader, query, counters[query.name], log)
        for query in queries.metrics
        if not query.fixed and query.name in counters
    }
    found = _Found(
        queries,
        scope,
        pace,
        cuts,
        now=now,
        behind=behind,
        idle=idle,
        pod_label=server.settings.pod_label,
        up=up,
        counters=counters,
        log=log,
    )
    return replace(found.conclude(), guardrails=guardrails, past_buckets={k: v for k, v in past.items() if v})


def _cuts(pace: Pace, since: float | None, now: float) -> tuple[tuple[float, ...], bool]:
    """`since` and the ends of all complete polls after it, and whether there are more than one look takes. Cuts are
    whole milliseconds, as the times of samples and queries are."""
    latest = round(now - pace.age, 3)
    if since is None:
        return (latest,), False
    complete = max(0, math.floor((latest - since) / pace.interval + 1e-6))
    count = min(complete, MAX_POLLS)
    return tuple(round(since + at * pace.interval, 3) for at in range(count + 1)), complete > count


@dataclass(slots=True)
class _Log:
    """What went wrong in a look: what stands in the way of decisions, and a note for every metric."""

    gating: list[tuple[str, str]] = field(
        default_factory=list
    )  # samples are missing: they must be read again
    guardrails: list[tuple[str, str]] = field(
        default_factory=list
    )  # a reading is missing: that moment has gone
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *, gating: bool, reason: str, text: str, guardrail: bool = False) -> None:
        self.notes[name] = f"{reason}: {text}"
        if gating:
            (self.guardrails if guardrail else self.gating).append((reason, f"{name}: {text}"))


class _Share:
    """A server, asked a few things at a time: a look that asks for many must not take all threads of the others."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._turn = asyncio.Semaphore(AT_ONCE)

    @property
    def settings(self) -> ServerSettings:
        return self._server.settings

    async def read_series(self, selector: str, *, at: float, reach: float) -> tuple[RawSeries, ...]:
        async with self._turn:
            return await self._server.read_series(selector, at=at, reach=reach)

    async def read_number(self, query: str, *, at: float) -> float:
        async with self._turn:
            return await self._server.read_number(query, at=at)


class Reader:
    """Reads raw series of both sides in one range; a selector that two metrics share is asked once."""

    def __init__(self, server: Server, scope: Scope, *, at: float, span: float) -> None:
        self.server = server
        self.scope = scope
        self.at = at
        self.span = span
        self._asked: dict[str, asyncio.Future[tuple[RawSeries, ...]]] = {}

    def earlier(self, seconds: float) -> Reader:
        """The same range, that much earlier."""
        return Reader(self.server, self.scope, at=self.at - seconds, span=self.span)

    async def series(self, selector: SeriesSelector, *, label: str | None = None) -> tuple[RawSeries, ...]:
        """Series of both sides' pods in the namespace. Raises QueryError."""
        sides = self.scope.sides if label is None else replace(self.scope.sides, label=label)
        namespace = Matcher(self.server.settings.namespace_label, "=", self.scope.namespace)
        text = str(selector.matching(namespace, sides.matcher()))
        if text not in self._asked:
            self._asked[text] = asyncio.ensure_future(
                self.server.read_series(text, at=self.at, reach=self.span)
            )
        return await self._asked[text]

    async def counters(self, query: MetricQuery) -> Counters:
        """The raw series of one metric. Raises QueryError."""
        if query.kind != "latency":
            total, part = await asyncio.gather(self.series(query.total), self.series(query.part))
            return Counters(total, part)
        buckets = await self.series(query.total)
        if not buckets and query.total.name is not None:
            base = SeriesSelector(query.total.name.removesuffix("_bucket"), query.total.matchers)
            await self.series(base)  # raises if it is a native histogram: that has no buckets
        try:
            bounds = [bucket_bound(series) for series in buckets]
        except (KeyError, ValueError) as error:
            raise QueryError(BAD_ANSWER, f"a bucket without a number as its label le: {error}") from error
        total = tuple(s for s, bound in zip(buckets, bounds, strict=True) if bound == math.inf)
        return Counters(total, tuple(s for s, bound in zip(buckets, bounds, strict=True) if bound < math.inf))


async def _read_up(reader: Reader, queries: Queries, log: _Log) -> tuple[RawSeries, ...]:
    try:
        return await reader.series(_UP, label=reader.server.settings.pod_label)
    except QueryError as error:
        gating = any(m.gating for m in queries.metrics)
        log.add(_UP_NAME, gating=gating, reason=error.reason, text=error.text)
        return ()


async def _read_metrics(reader: Reader, queries: Queries, log: _Log) -> dict[str, Counters]:
    """Counters by metric; a metric that can't be read is missing."""
    answers = await asyncio.gather(*(reader.counters(m) for m in queries.metrics), return_exceptions=True)
    counters = {}
    for metric, answer in zip(queries.metrics, answers, strict=True):
        if isinstance(answer, Counters):
            counters[metric.name] = answer
        elif isinstance(answer, QueryError):
            log.add(metric.name, gating=metric.gating, reason=answer.reason, text=answer.text)
        else:
            raise answer
    return counters


async def _read_guardrails(
    reader: Reader, guardrails: Sequence[GuardrailQuery], log: _Log, now: float
) -> dict[str, float | None]:
    answers = await asyncio.gather(
        *(_read_guardrail(reader, g, now) for g in guardrails), return_exceptions=True
    )
    readings: dict[str, float | None] = {}
    for guardrail, answer in zip(guardrails, answers, strict=True):
        readings[guardrail.name] = None
        if isinstance(answer, float):
            readings[guardrail.name] = answer
        elif isinstance(answer, QueryError):
            log.add(
                guardrail.name,
                gating=guardrail.gating,
                reason=answer.reason,
                text=answer.text,
                guardrail=True,
            )
        else:
            raise answer
    return readings


async def _read_guardrail(reader: Reader, guardrail: GuardrailQuery, now: float) -> float:
    scope, settings = reader.scope, reader.server.settings
    values = {
        "candidate.pods": scope.sides.candidate.regex or "-",
        "baseline.pods": scope.sides.baseline.regex or "-",
        "candidate.revision": scope.revision,
        "namespace": scope.namespace,
        "name": scope.name,
    }
    try:
        query = fence_query(
            guardrail.query,
            namespace_label=settings.namespace_label,
            namespace=scope.namespace,
            placeholders=values,
        )
    except SelectorError as error:
        raise QueryError(REFUSED, str(error)) from error
    return await reader.server.read_number(query, at=now)


async def _read_past(
    reader: Reader, query: MetricQuery, newest: Counters, log: _Log
) -> tuple[tuple[float, float], ...]:
    """(bound, cumulative count) of the baseline over the last hour, for bounds that both sides have."""
    try:
        older = await reader.earlier(PAST).counters(query)
    except QueryError as error:
        log.add(query.name, gating=query.gating, reason=error.reason, text=error.text)
        return ()
    before = {_key(s): s.values[-1] for s in (*older.total, *older.parts) if s.values}
    counts: dict[float, float] = {}
    bounds: dict[SideName, dict[tuple[tuple[str, str], ...], set[float]]] = {"baseline": {}, "candidate": {}}
    for series in (*newest.total, *newest.parts):
        place = reader.scope.sides.locate(series)
        if place is None or not series.values:
            continue
        bound, last = bucket_bound(series), series.values[-1]
        bounds[place[0]].setdefault(_key(series, without=("le",)), set()).add(bound)
        if place[0] == "baseline":
            begun = before.get(_key(series), 0.0)
            counts[bound] = counts.get(bound, 0.0) + (last - begun if begun <= last else last)
    every = [found for side in bounds.values() for found in side.values()]
    common = set.intersection(*every) if every else set()
    if not any(counts.values()):
        return ()  # bounds are chosen once: rather when there were requests to choose by
    return tuple(sorted((bound, count) for bound, count in counts.items() if bound in common))


def _key(series: RawSeries, *, without: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in series.labels.items() if k not in without))


@dataclass(frozen=True, slots=True)
class _Found:
    """All answers of one look."""

    queries: Queries
    scope: Scope
    pace: Pace
    cuts: tuple[float, ...]
    now: float
    behind: bool
    idle: bool
    pod_label: str
    up: tuple[RawSeries, ...]
    counters: Mapping[str, Counters]
    log: _Log

    def conclude(self) -> Sample:
        """Polls and the state of the data."""
        self._check_spacing()
        if self.log.gating:
            return self._held()
        unscraped = self._unscraped() if any(m.gating for m in self.queries.metrics) else ""
        measured = self._measured() if len(self.cuts) > 1 else {}
        self._note_troubles(measured)
        if self.log.gating:
            return self._held()
        taken = self._told(measured)
        waits = taken < len(self.cuts) - 1
        if waits and not taken:
            return Sample(Data.NONE, self.cuts[0], waits=True)
        polls = tuple(self._polls(measured, partial=bool(unscraped)))[:taken]
        data, problem = Data.OK, ""
        quiet = self._quiet(polls)
        lacking = [one for one in self.log.guardrails if not (self.idle and one[0] in WITHOUT_REQUESTS)]
        if lacking:
            data, problem = Data.UNAVAILABLE, ": ".join(lacking[0])
            if lacking[0][0] in WITHOUT_REQUESTS:
                problem += ": mend its query, or nobody sends the requests that it needs"
        elif unscraped:
            data, problem = Data.NOT_SCRAPED, unscraped
        elif quiet:
            data, problem = Data.NO_TRAFFIC, quiet
        return Sample(
            data,
            self.cuts[taken],
            polls,
            problem,
            reason=problem.partition(":")[0],
            notes=dict(self.log.notes),
            rate=self._rate(polls),
            behind=self.behind and not waits,
            waits=waits,
        )

    def _told(self, measured: Mapping[str, Measured]) -> int:
        """How many polls are taken now. One with requests to a pod of which nobody knows yet that it was ready waits a
        little, for in it they are counted or never: news of pods may take longer than their samples."""
        for at, end in enumerate(self.cuts[1:]):
            late = self.now - self.pace.age - end
            if late < HEARSAY and any(m.untold[at] for m in measured.values()):
                return at
        return len(self.cuts) - 1

    def _check_spacing(self) -> None:
        """At first: if scrapes are rarer than configured, no two samples would belong together, and nothing would say so."""
        if len(self.cuts) > 1:
            return
        gaps = [later - earlier for s in self.up if len(s.times) > 2 for earlier, later in pairwise(s.times)]
        configured = self.pace.scrape_interval
        if gaps and min(gaps) > _SPACING_SLACK * configured:
            text = (
                f"Prometheus scrapes every {min(gaps):.3g} s: set analysis.scrapeInterval to that, not {configured:g} s, "
                "and analysis.interval to at least as much"
            )
            self.log.add(_UP_NAME, gating=True, reason=SCRAPES_TOO_RARE, text=text)

    def _held(self) -> Sample:
        reason, text = self.log.gating[0]
        since = self.cuts[0] if len(self.cuts) > 1 else None
        return Sample(Data.UNAVAILABLE, since, (), f"{reason}: {text}", reason, notes=dict(self.log.notes))

    def _measured(self) -> dict[str, Measured]:
        measured = {}
        for query in self.queries.metrics:
            counters = self.counters.get(query.name)
            if counters is not None and query.fixed:
                measured[query.name] = measure(
                    replace(counters, up=self.up),
                    query.shape,
                    sides=self.scope.sides,
                    cuts=self.cuts,
                    interval=self.pace.interval,
                    warmup=self.pace.warmup,
                )
        return measured

    def _note_troubles(self, measured: Mapping[str, Measured]) -> None:
        """Trouble in the newest poll holds everything. Older trouble costs its polls only: once a new poll is sound
        again, waiting would not mend the old one."""
        for query in self.queries.metrics:
            if query.name in measured:
                trouble = measured[query.name].trouble_in(self.cuts[-2], self.cuts[-1])
                if trouble is not None:
                    gating = query.gating and not self.behind
                    self.log.add(query.name, gating=gating, reason=trouble.reason, text=trouble.text)

    def _polls(self, measured: Mapping[str, Measured], *, partial: bool) -> Iterator[Poll]:
        for at, (start, end) in enumerate(pairwise(self.cuts)):
            metrics: dict[str, MetricPoll] = {}
            for name, found in measured.items():
                if found.trouble_in(start, end) is None:
                    poll = found.polls[at]
                    metrics[name] = replace(poll, partial=True) if partial else poll
            yield Poll(start, end, metrics)

    def _quiet(self, polls: Sequence[Poll]) -> str:
        """Which side had no requests in the newest poll, by the first gating metric that misses some."""
        for query in self.queries.metrics if polls else ():
            poll = polls[-1].metrics.get(query.name)
            if poll is None or not query.gating:
                continue
            silent = {}
            if poll.baseline.n <= 0:
                silent["the baseline"] = self.scope.sides.baseline
            if not any(arm.n > 0 for arm in poll.candidate_pods.values()):
                silent["the candidate"] = self.scope.sides.candidate
            if silent:
                said = f"{query.name}: no requests to {' and '.join(silent)} were counted"
                late = next((text for side in silent.values() if (text := self._late(side))), "")
                return f"{SAMPLES_LATE}: {said}, {late}" if late else f"{NO_TRAFFIC}: {said}"
        return ""

    def _late(self, side: Side) -> str:
        """Whether a side is scraped and yet has no sample in the newest poll: one that comes after its poll counts never."""
        newest = max(
            (s.times[-1] for s in self.up if s.times and _is_ready(side, s.labels.get(self.pod_label, ""))),
            default=math.inf,
        )
        if newest > self.cuts[-2]:
            return ""
        return f"as their newest sample is {self.now - newest:.0f} s old: raise the delay of this Prometheus server"

    def _rate(self, polls: Sequence[Poll]) -> float | None:
        name, requests = self.queries.traffic, 0.0
        for poll in polls:
            if (found := poll.metrics.get(name or "")) is not None:
                requests += found.baseline.n + sum(arm.n for arm in found.candidate_pods.values())
        return requests / (polls[-1].end - polls[0].start) if polls and name else None

    def _unscraped(self) -> str:
        """Why data of ready pods are missing; "" if they are not. A few of many pods are only noted."""
        latest = self.cuts[-1]
        since = latest - (2 * self.pace.scrape_interval + 1.0)
        label = self.scope.sides.label
        alive = {
            s.labels.get(label, "")
            for counters in self.counters.values()
            for s in counters.total
            if s.times and s.times[-1] > since
        }
        alive.update(_scraped(self.up, self.pod_label, since))
        due = latest - max(self.pace.warmup, 2 * self.pace.scrape_interval + _DISCOVERY)
        for name, side in (
            ("baseline", self.scope.sides.baseline),
            ("candidate", self.scope.sides.candidate),
        ):
            ready = [
                p.name
                for p in side.pods.values()
                if p.ready and p.ready_since is not None and p.ready_since <= due
            ]
            missing = sorted(set(ready) - alive)
            if missing:
                text = f"{len(missing)} of {len(ready)} ready pods of the {name} are not scraped ({missing[0]} …)"
                self.log.notes[_UP_NAME] = text
                if len(missing) > _UNSCRAPED_SHARE * len(ready):
                    return f"{NOT_SCRAPED}: {text}: does a PodMonitor or scrape annotation select them?"
        return ""


def _is_ready(side: Side, pod: str) -> bool:
    return pod in side.pods and side.pods[pod].ready


def _scraped(up: Iterable[RawSeries], pod_label: str, since: float) -> set[str]:
    """Pods with a successful scrape after `since`."""
    return {
        series.labels.get(pod_label, "")
        for series in up
        if any(t > since and v > 0 for t, v in zip(series.times, series.values, strict=True))
    }
