"""One look at a (fake) Prometheus over HTTP: polls, guardrails and the state of the data. No test waits for time."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from modelrollout.api.spec import Analysis
from modelrollout.decision.types import Data
from modelrollout.telemetry.history import read_history
from modelrollout.telemetry.queries import Queries, build_queries, check_queries
from modelrollout.telemetry.sampler import HEARSAY, MAX_POLLS, Pace, Sample, Scope, next_poll, sample
from modelrollout.telemetry.selectors import SelectorError
from modelrollout.telemetry.servers import PrometheusServer, ServerSettings, Timeouts, new_pool
from modelrollout.telemetry.sides import Pod, Side, Sides
from tests.fakes.prometheus import FakePrometheus, listed, scraped

T0 = 1_700_000_000.0
PACE = Pace(interval=15, scrape_interval=15, warmup=30)
ERRORS = {
    "name": "errors",
    "ratio": {"bad": 'http_requests_total{code=~"5.."}', "total": "http_requests_total"},
}
QUALITY = {"name": "quality", "score": {"sum": "model_quality_sum", "count": "model_quality_count"}}
LATENCY = {"name": "latency", "latency": {"histogram": "http_request_duration_seconds", "slo": "250ms"}}
MEMORY = {"name": "memory", "guardrail": {"query": 'max(mem{pod=~"{{candidate.pods}}"})', "max": "70"}}


def old_pod(name: str) -> Pod:
    return Pod(name, ready_since=T0 - 9000, started=T0 - 9100)


SIDES = Sides(Side({"s-1": old_pod("s-1"), "s-2": old_pod("s-2")}), Side({"c-1": old_pod("c-1")}))
SCOPE = Scope("ml", "fraud", "bbbbbbbbbb", SIDES)


def queries(*metrics: dict[str, Any], cuts: dict[str, tuple[float, ...]] | None = None) -> Queries:
    return build_queries(Analysis.from_wire({"metrics": list(metrics)}), cuts or {})


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with FakePrometheus() as server:
        for at, pod in enumerate(("s-1", "s-2", "c-1")):
            server.add_model(
                pod, namespace="ml", rate=10, errors=0.1, slow=0.2, start=T0 - 9000, offset=3 * at
            )
        server.add_model("s-1", namespace="other", rate=1000, start=T0 - 9000)
        yield server


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with new_pool(4) as threads:
        yield threads


@pytest.fixture
def server(fake: FakePrometheus, pool: ThreadPoolExecutor) -> Iterator[PrometheusServer]:
    made = PrometheusServer(
        ServerSettings("default", fake.url), pool=pool, timeouts=Timeouts(connect=1.5, read=1.5, total=2.5)
    )
    yield made
    made.close()


def counts(got: Sample, metric: str) -> list[tuple[float, float]]:
    """(baseline, candidate) requests of each poll."""
    return [
        (p.metrics[metric].baseline.n, sum(a.n for a in p.metrics[metric].candidate_pods.values()))
        for p in got.polls
    ]


async def test_the_first_look_only_sets_the_cut(server: PrometheusServer) -> None:
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=None, now=T0)
    assert (got.data, got.cut, got.polls) == (Data.OK, T0 - 15, ())


async def test_a_scrape_interval_that_is_not_prometheus_own_is_said_at_once(
    server: PrometheusServer,
) -> None:
    hasty = Pace(interval=5, scrape_interval=5, warmup=30)
    got = await sample(server, queries(ERRORS), SCOPE, hasty, since=None, now=T0)
    assert (got.data, got.reason, got.cut) == (Data.UNAVAILABLE, "ScrapesTooRare", None)
    assert "scrapes every 15 s: set analysis.scrapeInterval to that, not 5 s" in got.problem


async def test_nothing_is_asked_before_a_poll_is_complete(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 29)
    assert (got.data, got.cut) == (Data.NONE, T0)
    assert not fake.queries
    assert next_poll(T0, PACE, T0 + 3) == T0 + 30


async def test_where_samples_are_late_a_poll_is_read_later(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    late = replace(PACE, delay=20)
    assert next_poll(T0, late, T0 + 3) == T0 + 50
    assert (await sample(server, queries(ERRORS), SCOPE, late, since=T0, now=T0 + 49)).data is Data.NONE
    got = await sample(server, queries(ERRORS), SCOPE, late, since=T0, now=T0 + 50)
    assert (got.cut, got.data, counts(got, "errors")) == (T0 + 15, Data.OK, [(300, 150)])
    assert {query.time for query in fake.queries} == {T0 + 15}
    first = await sample(server, queries(ERRORS), SCOPE, late, since=None, now=T0)
    assert first.cut == T0 - 35


async def test_one_query_of_a_selector_serves_both_sides_and_only_this_namespace(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    (poll,) = got.polls
    assert (poll.start, poll.end, got.cut, got.data) == (T0, T0 + 15, T0 + 15, Data.OK)
    assert counts(got, "errors") == [(300, 150)]
    assert poll.metrics["errors"].candidate_pods["c-1"].x == (15,)
    assert got.rate == pytest.approx(30)
    assert len(fake.queries) == 3, "up, total, bad"
    for query in fake.queries:
        assert 'namespace="ml"' in query.text
        assert query.text.endswith("[47000ms]")
        assert query.time == T0 + 15


async def test_a_gap_is_cut_into_polls_of_the_interval(server: PrometheusServer) -> None:
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 15 + 4.5 * 15)
    assert counts(got, "errors") == [(300, 150)] * 4
    assert got.cut == T0 + 60
    assert not got.behind


async def test_a_long_outage_is_caught_up_with_in_several_looks(server: PrometheusServer) -> None:
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0 - 8000, now=T0)
    assert len(got.polls) == MAX_POLLS
    assert got.behind
    assert got.cut == T0 - 8000 + 15 * MAX_POLLS


async def test_all_kinds_come_in_one_poll(server: PrometheusServer) -> None:
    asked = queries(ERRORS, QUALITY, LATENCY, cuts={"latency": (0.1, 0.25)})
    got = await sample(server, asked, SCOPE, PACE, since=T0, now=T0 + 30)
    metrics = got.polls[0].metrics
    assert metrics["quality"].candidate_pods["c-1"].n == 150
    assert metrics["quality"].candidate_pods["c-1"].x[0] == pytest.approx(15)
    assert metrics["latency"].candidate_pods["c-1"].x == (30, 30)


async def test_latency_waits_for_its_bounds_and_offers_the_past(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    got = await sample(server, queries(ERRORS, LATENCY), SCOPE, PACE, since=T0, now=T0 + 30)
    assert set(got.polls[0].metrics) == {"errors"}
    past = dict(got.past_buckets["latency"])
    assert list(past) == [0.05, 0.1, 0.25, 0.5, float("inf")]
    assert past[float("inf")] == 2 * 3600 * 10
    assert past[0.25] == pytest.approx(0.8 * past[float("inf")], rel=0.01)
    fake.remove({"pod": "c-1", "le": "0.1"})
    idle = await sample(server, queries(LATENCY), SCOPE, PACE, since=None, now=T0 - 8990)
    assert not idle.past_buckets, "nothing to choose by yet"
    got = await sample(server, queries(LATENCY), SCOPE, PACE, since=None, now=T0)
    assert 0.1 not in dict(got.past_buckets["latency"]), "only bounds that both sides have"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("503", "PrometheusRefused"),
        ("html", "PrometheusBadAnswer"),
        ("slow", "PrometheusTimedOut"),
        ("refuse", "PrometheusUnreachable"),
        ("warnings", "PartialAnswer"),
        ("duplicate", "DuplicateSeries"),
        ("nan", "NotANumber"),
        ("inf", "NotANumber"),
    ],
)
async def test_bad_data_hold_and_are_read_again_without_loss(
    server: PrometheusServer, fake: FakePrometheus, mode: str, reason: str
) -> None:
    fake.fail(mode, match="http_requests_total", seconds=20)
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.reason, got.cut, got.polls) == (Data.UNAVAILABLE, reason, T0, ())
    assert got.problem.startswith(f"{reason}: errors: ")
    fake.heal()
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=got.cut, now=T0 + 45)
    assert got.data is Data.OK
    assert counts(got, "errors") == [(300, 150)] * 2


async def test_a_dry_run_metric_holds_nothing(server: PrometheusServer, fake: FakePrometheus) -> None:
    fake.fail("503", match="model_quality")
    got = await sample(
        server, queries(ERRORS, {**QUALITY, "dryRun": True}), SCOPE, PACE, since=T0, now=T0 + 30
    )
    assert got.data is Data.OK
    assert set(got.polls[0].metrics) == {"errors"}
    assert got.notes["quality"].startswith("PrometheusRefused")


async def test_duplicates_that_have_gone_cost_only_their_polls(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    twin = {
        "__name__": "http_requests_total",
        "namespace": "ml",
        "pod": "c-1",
        "job": "pods",
        "instance": "b",
    }
    fake.add(twin, scraped(lambda t: t - T0 + 9000, every=15, start=T0 - 100, end=T0 + 20))
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.reason) == (Data.UNAVAILABLE, "DuplicateSeries")
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 60)
    assert got.data is Data.OK
    assert [set(poll.metrics) for poll in got.polls] == [set(), {"errors"}, {"errors"}]
    assert counts(replace(got, polls=got.polls[1:]), "errors") == [(300, 150)] * 2


async def test_ready_pods_that_nobody_scrapes_are_said(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    fake.remove({"pod": "c-1"})
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.reason) == (Data.NOT_SCRAPED, "NotScraped")
    assert "1 of 1 ready pods of the candidate are not scraped (c-1" in got.problem
    assert got.polls[0].metrics["errors"].partial
    young = replace(
        SCOPE, sides=Sides(SIDES.baseline, Side({"c-1": Pod("c-1", ready_since=T0, started=T0 - 5)}))
    )
    got = await sample(server, queries(ERRORS), young, PACE, since=T0, now=T0 + 30)
    assert got.data is Data.NO_TRAFFIC, "Prometheus gets time to find a pod that just became ready"
    gone = replace(SCOPE, sides=Sides(SIDES.baseline, Side({"c-1": replace(old_pod("c-1"), ready=False)})))
    got = await sample(server, queries(ERRORS), gone, PACE, since=T0, now=T0 + 30)
    assert got.data is Data.NO_TRAFFIC


async def test_a_poll_waits_for_news_of_a_pod_that_it_has_samples_of(server: PrometheusServer) -> None:
    unready = Pod("c-1", started=T0 - 9100)
    late = replace(SCOPE, sides=Sides(SIDES.baseline, Side({"c-1": unready})))
    got = await sample(server, queries(ERRORS), late, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.cut, got.polls, got.waits) == (Data.NONE, T0, (), True)
    told = await sample(server, queries(ERRORS), SCOPE, PACE, since=got.cut, now=T0 + 32)
    assert (told.cut, told.waits, counts(told, "errors")) == (T0 + 15, False, [(300, 150)])
    in_vain = await sample(server, queries(ERRORS), late, PACE, since=T0, now=T0 + 30 + HEARSAY)
    assert (in_vain.cut, in_vain.waits, counts(in_vain, "errors")) == (T0 + 15, False, [(300, 0)])
    several = await sample(server, queries(ERRORS), late, PACE, since=T0 - 15, now=T0 + 30)
    assert (several.cut, several.waits, several.behind) == (T0, True, False), "older polls wait no longer"
    assert counts(several, "errors") == [(300, 0)]


async def test_a_failing_scrape_is_no_scrape(server: PrometheusServer, fake: FakePrometheus) -> None:
    fake.remove({"pod": "c-1"})
    fake.add({"__name__": "up", "namespace": "ml", "pod": "c-1"}, scraped(lambda _t: 0.0, every=15))
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert got.data is Data.NOT_SCRAPED


async def test_pods_are_scraped_if_their_total_has_samples_though_up_is_missing(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    fake.remove({"__name__": "up"})
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert got.data is Data.OK


@pytest.mark.parametrize("absent", [True, False], ids=["the total is absent", "the total does not change"])
async def test_a_side_without_requests_is_no_traffic(
    server: PrometheusServer, fake: FakePrometheus, absent: bool
) -> None:
    name = {"__name__": "http_requests_total", "pod": "c-1"}
    fake.remove(name)
    if not absent:
        fake.add({**name, "namespace": "ml"}, scraped(lambda _t: 7.0, every=15))
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.cut) == (Data.NO_TRAFFIC, T0 + 15)
    assert got.problem == "NoTraffic: errors: no requests to the candidate were counted"
    assert got.polls[0].metrics["errors"].candidate_pods == {}


async def test_a_guardrail_is_read_with_its_placeholders(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    fake.can("max (mem", 42.0)
    got = await sample(server, queries(ERRORS, MEMORY), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.guardrails) == (Data.OK, {"memory": 42.0})
    assert 'max (mem{pod=~"(?:c-1)",namespace="ml"})' in [q.text for q in fake.queries]


@pytest.mark.parametrize(
    ("mode", "reason"), [("nan", "NotANumber"), ("empty", "NoResult"), ("503", "PrometheusRefused")]
)
async def test_a_guardrail_without_a_reading_holds_but_the_samples_are_used(
    server: PrometheusServer, fake: FakePrometheus, mode: str, reason: str
) -> None:
    fake.can("max (mem", 42.0)
    fake.fail(mode, match="max (mem")
    got = await sample(server, queries(ERRORS, MEMORY), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.reason, got.guardrails) == (Data.UNAVAILABLE, reason, {"memory": None})
    assert got.problem.endswith(", or nobody sends the requests that it needs") is (mode in ("nan", "empty"))
    assert len(got.polls) == 1
    assert got.cut == T0 + 15
    dry = queries(ERRORS, {**MEMORY, "dryRun": True})
    assert (await sample(server, dry, SCOPE, PACE, since=T0, now=T0 + 30)).data is Data.OK


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("nan", ""), ("empty", ""), ("warnings", "PartialAnswer"), ("503", "PrometheusRefused")],
)
async def test_a_guardrail_may_have_nothing_to_say_of_a_candidate_without_requests(
    server: PrometheusServer, fake: FakePrometheus, mode: str, reason: str
) -> None:
    fake.can("max (mem", 42.0)
    fake.fail(mode, match="max (mem")
    got = await sample(server, queries(ERRORS, MEMORY), SCOPE, PACE, since=T0, now=T0 + 30, idle=True)
    assert (got.reason, got.guardrails) == (reason, {"memory": None})
    assert got.data is (Data.UNAVAILABLE if reason else Data.OK)
    assert got.notes["memory"], "and yet it is told"


async def test_candidates_with_other_buckets_can_not_be_compared(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    fake.remove({"pod": "c-1", "le": "0.25"})
    got = await sample(
        server, queries(LATENCY, cuts={"latency": (0.25,)}), SCOPE, PACE, since=T0, now=T0 + 30
    )
    assert (got.data, got.reason) == (Data.UNAVAILABLE, "BucketsDiffer")


async def test_every_request_is_counted_once_through_outages_restarts_and_repeated_looks(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    asked, since, total = queries(ERRORS), T0, 0.0
    for at, now in enumerate([T0 + 30 + 7.7 * k for k in range(40)]):
        if at % 7 == 3:
            fake.fail("503", times=1)
        got = await sample(server, asked, SCOPE, PACE, since=since, now=now)
        if at % 5 == 2:
            continue  # the commit met a conflict, or the operator was killed: the same cut is asked again
        assert got.cut is not None
        since = got.cut
        total += sum(baseline + candidate for baseline, candidate in counts(got, "errors"))
    assert since > T0 + 250
    assert total == 30 * (since - T0)


async def test_the_past_of_the_baseline_is_read_by_pod(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    got = await read_history(server, queries(ERRORS, LATENCY), SCOPE, PACE, until=T0, polls=300)
    past = got.metrics["errors"]
    assert (len(past), past[0].start, past[-1].end, got.problem) == (300, T0 - 4500, T0, "")
    assert all(a.end == b.start for a, b in pairwise(past))
    assert {pod: arm.n for pod, arm in past[5].pods.items()} == {"s-1": 150, "s-2": 150}
    assert len(fake.queries) == 6, "two selectors in three ranges"
    fake.fail("503")
    got = await read_history(server, queries(ERRORS), SCOPE, PACE, until=T0, polls=300)
    assert got.metrics == {"errors": ()}
    assert "HTTP 503" in got.problem


async def test_the_past_ends_where_prometheus_has_no_more(server: PrometheusServer) -> None:
    got = await read_history(server, queries(ERRORS), SCOPE, PACE, until=T0 - 8000, polls=1200)
    assert 60 <= len(got.metrics["errors"]) <= 67


async def test_native_histograms_are_refused_by_name(pool: ThreadPoolExecutor, fake: FakePrometheus) -> None:
    class Native(PrometheusServer):
        def _post(self, query: str, at: float, *, deadline: float) -> dict[str, Any]:
            if query.startswith("http_request_duration_seconds{"):
                labels = {"__name__": "http_request_duration_seconds", "pod": "c-1"}
                series = {"metric": labels, "histograms": [[at, {"count": "1", "sum": "1"}]]}
                return {"resultType": "matrix", "result": [series]}
            return dict(super()._post(query, at, deadline=deadline))

    fake.remove({"__name__": "http_request_duration_seconds_bucket"})
    server = Native(ServerSettings("default", fake.url), pool=pool)
    got = await sample(server, queries(LATENCY), SCOPE, PACE, since=None, now=T0)
    server.close()
    assert (got.data, got.reason, got.cut) == (Data.UNAVAILABLE, "NativeHistogram", None)


def test_a_selector_that_can_not_be_used_names_its_field() -> None:
    bad = Analysis.from_wire(
        {
            "metrics": [
                ERRORS,
                {"name": "x", "ratio": {"bad": "sum(a)", "total": "a"}},
                {"name": "y", "guardrail": {"query": "a{"}},
            ]
        }
    )
    with pytest.raises(
        SelectorError, match=r"^spec.analysis.metrics\[1\].ratio.bad: sum\(a\) is an expression"
    ):
        build_queries(bad, {})
    assert [field for field, _ in check_queries(bad)] == [
        "spec.analysis.metrics[1].ratio.bad",
        "spec.analysis.metrics[2].guardrail.query",
    ]
    with pytest.raises(SelectorError, match="leave out the label le"):
        queries({"name": "l", "latency": {"histogram": 'h{le="1"}', "slo": "1s"}})


def test_the_metric_that_counts_requests_is_the_first_gating_one_that_does() -> None:
    assert queries(QUALITY, {**ERRORS, "dryRun": True}, LATENCY).traffic == "latency"
    assert queries(QUALITY).traffic == "quality"
    assert queries(MEMORY).traffic is None


def test_listed_series_are_left_open() -> None:
    assert listed([(1.0, 5.0), (2.0, 6.0)])(1.0, 2.0) == [(2.0, 6.0)]


async def test_one_unscraped_pod_of_many_is_only_noted(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    many = {f"s-{at}": old_pod(f"s-{at}") for at in range(1, 21)}
    for pod in list(many)[2:-1]:
        fake.add_model(pod, namespace="ml", rate=1, start=T0 - 9000)
    scope = replace(SCOPE, sides=Sides(Side(many), SIDES.candidate))
    got = await sample(server, queries(ERRORS), scope, PACE, since=T0, now=T0 + 30)
    assert got.data is Data.OK
    assert got.notes["up"] == "1 of 20 ready pods of the baseline are not scraped (s-20 …)"
    assert not got.polls[0].metrics["errors"].partial


async def test_without_up_nothing_is_known_of_scrapes(server: PrometheusServer, fake: FakePrometheus) -> None:
    fake.fail("503", match="up{")
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert (got.data, got.cut) == (Data.UNAVAILABLE, T0)
    assert got.problem.startswith("PrometheusRefused: up: HTTP 503")


async def test_metrics_that_share_a_selector_share_its_query(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    missing = {
        "name": "missing",
        "ratio": {"bad": 'http_requests_total{code="404"}', "total": "http_requests_total"},
    }
    got = await sample(server, queries(ERRORS, missing), SCOPE, PACE, since=T0, now=T0 + 30)
    assert set(got.polls[0].metrics) == {"errors", "missing"}
    assert len(fake.queries) == 4


async def test_the_fake_obeys_orders_over_http(server: PrometheusServer, fake: FakePrometheus) -> None:
    def order(**what: Any) -> Any:
        body = json.dumps(what).encode()
        request = urllib.request.Request(f"{fake.url}/-/fake", data=body)
        with urllib.request.urlopen(request, timeout=2) as answer:
            return json.load(answer)

    order(do="remove", labels={"pod": "c-1"})
    assert order(do="model", pod="c-1", namespace="ml", rate=4, start=T0 - 9000)["series"] > 10
    got = await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    assert counts(got, "errors") == [(300, 60)]
    order(do="fail", mode="503", times=1)
    assert (
        await sample(server, queries(ERRORS), SCOPE, PACE, since=T0, now=T0 + 30)
    ).data is Data.UNAVAILABLE
    assert "error" in order(do="dance")
