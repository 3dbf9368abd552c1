"""Every answer that is not a complete success is refused with one sentence."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelrollout.telemetry.samples import QueryError
from modelrollout.telemetry.servers import PrometheusServer, ServerSettings, Timeouts, new_pool, read_settings
from tests.fakes.prometheus import FakePrometheus, listed

UP = {"__name__": "up", "pod": "a"}
QUICK = Timeouts(connect=1.5, read=1.5, total=2.5)


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with FakePrometheus() as server:
        server.add(UP, listed([(100.0, 1.0), (115.0, 1.0), (130.0, 1.0)]))
        yield server


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with new_pool(2) as threads:
        yield threads


@pytest.fixture
def server(fake: FakePrometheus, pool: ThreadPoolExecutor) -> Iterator[PrometheusServer]:
    made = PrometheusServer(ServerSettings("default", fake.url), pool=pool, timeouts=QUICK)
    yield made
    made.close()


async def test_raw_samples_come_from_a_left_open_range(server: PrometheusServer) -> None:
    (series,) = await server.read_series("up{}", at=130, reach=30)
    assert series.labels == UP
    assert series.times == (115.0, 130.0)
    assert series.values == (1.0, 1.0)


async def test_every_query_says_its_time_and_its_limit(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    await server.read_series("up{}", at=130, reach=31)
    (query,) = fake.queries
    assert (query.text, query.time, query.timeout) == ("up{}[31000ms]", 130.0, "1500ms")


@pytest.mark.parametrize(
    ("mode", "reason", "says"),
    [
        pytest.param("503", "PrometheusRefused", "HTTP 503, unavailable: the server is starting", id="503"),
        pytest.param("error", "PrometheusRefused", "too many samples", id="a failed execution"),
        pytest.param("html", "PrometheusBadAnswer", "text/html", id="a login page"),
        pytest.param("redirect", "PrometheusBadAnswer", "HTTP 302", id="a redirection to a login"),
        pytest.param("garbage", "PrometheusBadAnswer", "broken JSON", id="half an answer"),
        pytest.param("slow", "PrometheusTimedOut", "did not answer", id="a slow answer"),
        pytest.param("drip", "PrometheusTimedOut", "did not end its answer", id="an answer byte by byte"),
        pytest.param("refuse", "PrometheusUnreachable", "can't be asked", id="a closed connection"),
        pytest.param("warnings", "PartialAnswer", "one of the stores", id="a partial answer"),
    ],
)
async def test_a_bad_answer_is_refused_at_once(
    server: PrometheusServer, fake: FakePrometheus, mode: str, reason: str, says: str
) -> None:
    fake.fail(mode, seconds=20)
    with pytest.raises(QueryError, match=says) as caught:
        await server.read_series("up{}", at=130, reach=30)
    assert caught.value.reason == reason
    assert len(fake.queries) == 1, "a failed query is not tried again behind our back"
    fake.heal()
    assert await server.read_series("up{}", at=130, reach=30)


async def test_a_server_that_is_away_is_unreachable(server: PrometheusServer, fake: FakePrometheus) -> None:
    fake.stop()
    with pytest.raises(QueryError, match="refused") as caught:
        await server.read_number("x", at=130)
    assert caught.value.reason == "PrometheusUnreachable"


@pytest.mark.parametrize("mode", ["nan", "inf"])
async def test_a_broken_sample_is_set_apart(
    server: PrometheusServer, fake: FakePrometheus, mode: str
) -> None:
    fake.fail(mode)
    (series,) = await server.read_series("up{}", at=130, reach=30)
    assert (series.times, series.broken) == ((115.0,), (130.0,))


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("nan", "NotANumber"),
        ("inf", "NotANumber"),
        ("empty", "NoResult"),
        ("duplicate", "SeveralResults"),
        ("warnings", "PartialAnswer"),
    ],
)
async def test_a_number_is_one_finite_number(
    server: PrometheusServer, fake: FakePrometheus, mode: str, reason: str
) -> None:
    fake.can("max(x)", 3.5)
    assert await server.read_number("max(x)", at=130) == 3.5
    fake.fail(mode)
    with pytest.raises(QueryError) as caught:
        await server.read_number("max(x)", at=130)
    assert caught.value.reason == reason


async def test_credentials_and_headers_are_sent_and_a_token_file_is_read_anew(
    fake: FakePrometheus, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    settings = ServerSettings("s", fake.url, headers={"X-Scope-OrgID": "t"}, bearer_token_file=str(token))
    server = PrometheusServer(settings, pool=pool, timeouts=QUICK)
    await server.read_series("up{}", at=130, reach=30)
    token.write_text("two\n")
    await server.read_series("up{}", at=130, reach=30)
    server.close()
    assert [q.headers["Authorization"] for q in fake.queries] == ["Bearer one", "Bearer two"]
    assert fake.queries[0].headers["X-Scope-OrgID"] == "t"


async def test_basic_auth_is_sent(fake: FakePrometheus, pool: ThreadPoolExecutor) -> None:
    settings = ServerSettings("s", fake.url + "/", username="u", password="p")
    server = PrometheusServer(settings, pool=pool, timeouts=QUICK)
    await server.read_series("up{}", at=130, reach=30)
    server.close()
    assert fake.queries[0].headers["Authorization"] == "Basic dTpw"
    assert "'p'" not in repr(settings)


async def test_a_token_file_that_is_missing_is_said(fake: FakePrometheus, pool: ThreadPoolExecutor) -> None:
    settings = ServerSettings("s", fake.url, bearer_token_file="/nowhere/token")
    server = PrometheusServer(settings, pool=pool, timeouts=QUICK)
    with pytest.raises(QueryError, match="/nowhere/token"):
        await server.read_series("up{}", at=130, reach=30)
    server.close()


async def test_queries_run_side_by_side_in_a_bounded_pool(
    server: PrometheusServer, fake: FakePrometheus
) -> None:
    answers = await asyncio.gather(*(server.read_series("up{}", at=130, reach=30) for _ in range(20)))
    assert [len(answer) for answer in answers] == [1] * 20


async def test_what_waited_too_long_for_others_is_not_asked_any_more(fake: FakePrometheus) -> None:
    """Behind a server that hangs the queue would grow for ever."""
    now = 0.0
    with new_pool(1) as pool:
        server = PrometheusServer(ServerSettings("s", fake.url), pool=pool, timeouts=QUICK, clock=lambda: now)
        held, begun = threading.Event(), threading.Event()

        def hang() -> None:
            begun.set()
            held.wait(10)

        pool.submit(hang)
        begun.wait(10)
        waiting = asyncio.ensure_future(server.read_series("up{}", at=130, reach=30))
        await asyncio.sleep(0)
        now = QUICK.total + 0.1
        held.set()
        with pytest.raises(QueryError, match="too slow: a query waited") as refused:
            await waiting
        assert refused.value.reason == "PrometheusTimedOut"
        assert not fake.queries
        server.close()


async def test_an_observer_is_told_of_every_query(fake: FakePrometheus, pool: ThreadPoolExecutor) -> None:
    told: list[tuple[str, str | None]] = []
    server = PrometheusServer(
        ServerSettings("s", fake.url),
        pool=pool,
        timeouts=QUICK,
        observer=lambda s, _t, r: told.append((s, r)),
    )
    await server.read_series("up{}", at=130, reach=30)
    fake.fail("503")
    with pytest.raises(QueryError):
        await server.read_series("up{}", at=130, reach=30)
    server.close()
    assert told == [("s", None), ("s", "PrometheusRefused")]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param({"url": "prometheus:9090"}, "url is 'prometheus:9090'", id="a URL without a scheme"),
        pytest.param({"url": "http://"}, "url is 'http://'", id="a URL without a host"),
        pytest.param({"url": "http://p:x"}, "url is 'http://p:x'", id="a URL whose port is no number"),
        pytest.param({}, "url is ''", id="no URL"),
        pytest.param({"url": "http://u:p@h"}, "leave the credentials out", id="credentials in the URL"),
        pytest.param({"url": "http://p", "token": "x"}, "'token' is no setting", id="an unknown key"),
        pytest.param(
            {"url": "http://p", "delay": "45"}, "delay is '45': write a duration", id="a delay without a unit"
        ),
        pytest.param({"url": "http://p", "delay": 45}, "delay is 45", id="a delay that is a number"),
        pytest.param({"url": "http://p", "headers": "x"}, "headers is 'x'", id="headers that are no mapping"),
        pytest.param(
            {"url": "http://p", "bearerToken": "x", "bearerTokenFile": "y"}, "both given", id="two tokens"
        ),
        pytest.param(
            {"url": "http://p", "password": "x"}, "without username", id="a password without a user"
        ),
        pytest.param(
            {"url": "http://p", "username": "x", "bearerToken": "y"}, "both given", id="two credentials"
        ),
    ],
)
def test_bad_settings_are_named(config: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_settings("default", config)


def test_good_settings_are_read() -> None:
    given = {"url": "https://p", "podLabel": "k8s_pod", "caFile": "/ca", "delay": "1m30s"}
    read = read_settings("default", given)
    assert (read.name, read.pod_label, read.ca_file, read.namespace_label, read.delay) == (
        "default",
        "k8s_pod",
        "/ca",
        "namespace",
        90,
    )
    assert read_settings("default", {"url": "https://p"}).delay == 0
