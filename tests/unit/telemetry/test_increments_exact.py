"""Every request enters exactly once, wherever the cuts fall: random histories against what really happened."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelrollout.telemetry.increments import Counters, Ratio, horizon, measure, reach
from modelrollout.telemetry.samples import RawSeries
from modelrollout.telemetry.sides import Pod, Side, Sides

EVERY = 15.0
LIFE = 600.0


@dataclass(frozen=True)
class History:
    """What really happened to one pod."""

    starts: tuple[float, ...]  # of its container; at most two
    good: tuple[float, ...]
    bad: tuple[float, ...]
    scrapes: tuple[float, ...]  # the successful ones
    shows_up: bool

    def samples(self, events: Sequence[float]) -> tuple[tuple[float, float], ...]:
        """What Prometheus has of the counter of these events: nothing before the first one of each incarnation."""
        out = []
        for scrape in self.scrapes:
            started = max((s for s in self.starts if s <= scrape), default=None)
            if started is not None:
                count = bisect_right(events, scrape) - bisect_right(events, started)
                if count:
                    out.append((scrape, float(count)))
        return tuple(out)

    def scraped(self, events: Sequence[float], after: float, until: float) -> int:
        """Events in scrapes within (after, until] that some scrape of their incarnation saw, each counted once."""
        seen = 0
        for event in events:
            started = max((s for s in self.starts if s <= event), default=None)
            if started is None:
                continue
            ended = min((s for s in self.starts if s > event), default=float("inf"))
            first = next((scrape for scrape in self.scrapes if scrape >= event), None)
            seen += first is not None and first < ended and after < first <= until
        return seen


def raw(samples: Sequence[tuple[float, float]], lower: float, upper: float, **labels: str) -> RawSeries:
    kept = [(t, v) for t, v in samples if lower < t <= upper]
    return RawSeries(
        {"pod": "c", "job": "pods", **labels}, tuple(t for t, _ in kept), tuple(v for _, v in kept)
    )


def count(history: History, cuts: Sequence[float], inner: int) -> tuple[float, float, bool]:
    """Requests and errors as an operator sums them up that commits at `cuts`, with `inner` more polls in each."""
    total = bad = 0.0
    partial = False
    for start, end in pairwise(cuts):
        lower = start - reach(EVERY)
        known = [s for s in history.starts if s <= end]
        # the API server cuts times to the second
        pod = Pod("c", ready_since=-1e9, started=math.floor(known[-1]) if known else None)
        good = raw(history.samples(history.good), lower, end, code="200")
        errors = raw(history.samples(history.bad), lower, end, code="500")
        up = raw([(t, 1.0) for t in history.scrapes if t >= history.starts[0]], lower, end)
        every = [s for s in (good, errors) if s.times]
        polls = [start + (end - start) * k / inner for k in range(inner)] + [end]
        got = measure(
            Counters(every, [s for s in (errors,) if s.times], [up] if history.shows_up else ()),
            Ratio(),
            sides=Sides(Side(), Side({"c": pod})),
            cuts=polls,
            interval=EVERY,
            warmup=0,
        )
        assert not got.troubles
        for poll in got.polls:
            partial |= poll.partial
            for arm in poll.candidate_pods.values():
                total += arm.n
                bad += arm.x[0]
    return total, bad, partial


times = st.integers(0, 10 * int(LIFE)).map(lambda tenths: tenths / 10)


@st.composite
def histories(draw: st.DrawFn) -> History:
    # An operator that was away for a whole life of a container does not know of it: so a new pod does not restart here.
    first = draw(st.sampled_from([-500.0, 20.05, 100.35]))
    restarts = st.lists(st.integers(10, 500).map(lambda second: second + 0.05), max_size=1)
    starts = (first, *(draw(restarts) if first < 0 else ()))
    offset = draw(st.floats(0, EVERY - 0.1))
    missed = draw(st.sets(st.integers(0, 39), max_size=6))
    scrapes = tuple(offset + k * EVERY for k in range(-5, 40) if k not in missed)
    good = tuple(sorted(draw(st.lists(times, max_size=60))))
    bad = tuple(sorted(draw(st.lists(times, max_size=15))))
    lived = tuple(e for e in good if e >= first), tuple(e for e in bad if e >= first)
    return History(starts, *lived, scrapes, draw(st.booleans()))


cuts_of = st.lists(st.integers(1, int(LIFE) - 1).map(float), max_size=12, unique=True).map(
    lambda inner: (0.0, *sorted(inner), LIFE)
)


SCRAPES = tuple(k * EVERY for k in range(-5, 40))
LATE = History((-500.0, 15.05), (), (0.0,), tuple(t for t in SCRAPES if t), shows_up=False)
VANISHED = History((-500.0, 10.05), (), (0.0, 30.1), SCRAPES, shows_up=True)


@example(history=LATE, one=(0.0, LIFE), other=(0.0, 15.0, LIFE), inner=1)  # the start was cut to the second
@example(
    history=VANISHED, one=(0.0, LIFE), other=(0.0, 32.0, LIFE), inner=1
)  # was counted or lost, by the cut
@settings(max_examples=150, deadline=None, derandomize=True)
@given(history=histories(), one=cuts_of, other=cuts_of, inner=st.integers(1, 5))
def test_the_sum_does_not_depend_on_where_the_cuts_fall(
    history: History, one: Sequence[float], other: Sequence[float], inner: int
) -> None:
    assert count(history, one, 1) == count(history, other, inner)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(history=histories(), cuts=cuts_of)
def test_every_scraped_request_counts_once_or_is_said_to_be_lost(
    history: History, cuts: Sequence[float]
) -> None:
    total, bad, partial = count(history, cuts, 1)
    true_bad = history.scraped(history.bad, 0.0, LIFE)
    true_total = history.scraped(history.good, 0.0, LIFE) + true_bad
    assert 0 <= bad <= true_bad
    assert 0 <= total <= true_total
    if not partial:
        assert (total, bad) == (true_total, true_bad)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(history=histories(), cuts=cuts_of)
def test_nothing_is_lost_where_scrapes_follow_each_other_and_nothing_restarts(
    history: History, cuts: Sequence[float]
) -> None:
    calm = History((-500.0,), history.good, history.bad, history.scrapes, shows_up=True)
    if any(b - a > horizon(EVERY) for a, b in pairwise(calm.scrapes)):
        return
    total, bad, partial = count(calm, cuts, 2)
    assert not partial
    true_bad = calm.scraped(calm.bad, 0.0, LIFE)
    assert (total, bad) == (calm.scraped(calm.good, 0.0, LIFE) + true_bad, true_bad)
