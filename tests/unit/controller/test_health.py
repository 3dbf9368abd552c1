"""Health pages and metrics, over loopback."""

import asyncio
import math
import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from modelrollout.cluster.errors import Unavailable
from modelrollout.cluster.port import Request
from modelrollout.cluster.queue import WorkQueue
from modelrollout.controller.health import Check, HealthServer, check_queue, check_watch
from modelrollout.controller.metrics import Metrics


async def fetch(server: HealthServer, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    url = f"http://{host}:{server.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def make_server(
    live: dict[str, Check], ready: dict[str, Check], port: int = 0, host: str = "127.0.0.1"
) -> HealthServer:
    registry = CollectorRegistry()
    return HealthServer(host=host, port=port, live=live, ready=ready, registry=registry)


async def ask_later() -> str | None:
    await asyncio.sleep(0)
    return "not yet"


@pytest.mark.parametrize(
    ("checks", "code", "text"),
    [
        pytest.param({}, 200, "ok\n", id="no checks: well"),
        pytest.param({"queue": lambda: None}, 200, "[+] queue\n", id="all well"),
        pytest.param(
            {"queue": lambda: None, "lease": lambda: "not leading"},
            503,
            "[+] queue\n[-] lease: not leading\n",
            id="one fault is enough",
        ),
        pytest.param({"api": ask_later}, 503, "[-] api: not yet\n", id="a check may wait"),
    ],
)
async def test_answers(checks: dict[str, Check], code: int, text: str):
    server = make_server(checks, {})
    await server.start()
    try:
        assert await fetch(server, "/healthz") == (code, text)
        assert (await fetch(server, "/readyz"))[0] == 200, "alive and ready are told apart"
    finally:
        await server.stop()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="a probe by IPv4 is answered"),
        pytest.param(
            "[::1]",
            id="a probe by IPv6 is answered",
            marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"),
        ),
    ],
)
async def test_without_a_host_both_families_are_served(host: str):
    server = make_server({}, {}, host="")
    await server.start()
    try:
        assert await fetch(server, "/healthz", host) == (200, "ok\n")
    finally:
        await server.stop()


async def test_a_port_that_is_taken_is_told_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"health port 127.0.0.1:{port} can't be opened"):
            await make_server({}, {}, port).start()


@pytest.mark.looptime
async def test_a_stuck_worker_is_not_alive():
    queue: WorkQueue[str] = WorkQueue()
    check = check_queue(queue, work_seconds=300, wait_seconds=300)
    assert check() is None
    queue.add("a")
    await queue.get()
    await asyncio.sleep(299)
    assert check() is None
    await asyncio.sleep(2)
    assert check() == "a worker has been busy with one rollout for 301 s"
    queue.done("a")
    queue.add("b")
    await asyncio.sleep(301)
    assert check() == "a rollout has waited 301 s for a worker"


async def answers() -> None:
    return None


async def is_away() -> None:
    raise Unavailable("away")


@pytest.mark.parametrize(
    ("owed", "get", "alive"),
    [
        pytest.param(None, answers, True, id="a watch that owes nothing, however long it has been silent"),
        pytest.param(5.0, answers, True, id="a watch that is a little behind"),
        pytest.param(900.0, is_away, True, id="a watch that owes a change while the API server is away"),
        pytest.param(900.0, answers, False, id="a watch that owes a change although the API server answers"),
    ],
)
async def test_watch_check(owed, get, alive):
    fault = await check_watch("Pod", lambda: owed, limit=600.0, get=get)()  # type: ignore[misc]
    assert (fault is None) is alive


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def show(metrics: Metrics, name: str) -> None:
    metrics.show_phase("shop", name, "Progressing")
    metrics.show_weights("shop", name, {"baseline": 90, "candidate": 10})
    metrics.show_step("shop", name, 2)
    metrics.show_conditions("shop", name, [("Accepted", "True", "Accepted")])
    log_e = {"harm": 1.5, "harmless": 2.0}
    metrics.show_evidence("shop", name, "errors", log_e=log_e, ratio=1.0, low=0.9, high=1.2)


def test_a_rollout_is_shown_and_its_series_go_with_it():
    metrics = Metrics(version="1.2.3")
    show(metrics, "fraud")
    show(metrics, "spam")
    shown = scrape(metrics)
    assert shown["modelrollout_phase", ("shop", "fraud", "Progressing")] == 1
    assert shown["modelrollout_weight_percent", ("shop", "fraud", "candidate")] == 10
    assert shown["modelrollout_evidence_ratio", ("shop", "fraud", "errors", "high")] == 1.2
    metrics.drop_rollout("shop", "fraud")
    metrics.drop_rollout("shop", "fraud")
    left = scrape(metrics)
    assert not [series for series in left if "fraud" in series[1]]
    assert len([series for series in left if "spam" in series[1]]) == 10
    assert not metrics._series[("shop", "fraud")]


def test_only_the_present_phase_and_the_present_sides_have_series():
    metrics = Metrics(version="1")
    show(metrics, "fraud")
    metrics.show_phase("shop", "fraud", "Healthy")
    metrics.show_weights("shop", "fraud", {"baseline": 100})
    metrics.show_step("shop", "fraud", None)
    metrics.show_conditions(
        "shop", "fraud", [("Accepted", "False", "InvalidSpec"), ("Ready", "True", "Ready")]
    )
    metrics.show_evidence("shop", "fraud", "errors", log_e={"harm": 3.0}, ratio=math.nan, low=None, high=2.0)
    shown = {series for series in scrape(metrics) if "fraud" in series[1]}
    assert ("modelrollout_phase", ("shop", "fraud", "Progressing")) not in shown
    assert ("modelrollout_phase", ("shop", "fraud", "Healthy")) in shown
    assert ("modelrollout_weight_percent", ("shop", "fraud", "candidate")) not in shown
    conditions = {labels[2:] for name, labels in shown if name == "modelrollout_condition"}
    assert conditions == {("Accepted", "False", "InvalidSpec"), ("Ready", "True", "Ready")}
    bounds = {labels[-1] for name, labels in shown if name == "modelrollout_evidence_ratio"}
    assert bounds == {"high"}, "what is not known has no series"
    metrics.drop_evidence("shop", "fraud")
    assert not [name for name, labels in scrape(metrics) if "evidence" in name and "fraud" in labels]


def test_the_operators_own_work_is_counted():
    now = 100.0
    metrics = Metrics(version="1", clock=lambda: now)
    metrics.observe_request(Request("apply", "Deployment", 409, 0.02))
    metrics.observe_reconcile(0.004, Unavailable("x"))
    metrics.observe_query("main", 0.1, "Timeout")
    metrics.count_outcome("RolledBack", "HarmProven", unproven=False, seconds=700.0)
    metrics.read_queue(lambda: 7)
    metrics.watch_seen("Pod")
    now = 130.0
    shown = scrape(metrics)
    assert shown["modelrollout_api_requests_total", ("apply", "Deployment", "409")] == 1
    assert shown["modelrollout_reconcile_errors_total", ("Unavailable",)] == 1
    assert shown["modelrollout_prometheus_query_errors_total", ("main", "Timeout")] == 1
    assert shown["modelrollout_outcomes_total", ("RolledBack", "HarmProven", "false")] == 1
    assert shown["modelrollout_outcomes_total", ("Promoted", "Inconclusive", "true")] == 0, (
        "so the first is an increase"
    )
    assert shown["modelrollout_attempt_duration_seconds_sum", ("RolledBack",)] == 700
    assert shown["modelrollout_queue_depth", ()] == 7
    assert shown["modelrollout_watch_event_age_seconds", ("Pod",)] == 30


async def test_metrics_are_served():
    metrics = Metrics(version="9.9")
    server = HealthServer(host="127.0.0.1", port=0, live={}, ready={}, registry=metrics.registry)
    await server.start()
    try:
        code, text = await fetch(server, "/metrics")
    finally:
        await server.stop()
    assert code == 200
    assert "modelrollout_build_info{" in text
    assert 'version="9.9"' in text
