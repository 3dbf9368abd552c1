"""The lab's models are real classifiers, and their variants are bad in exactly the way they say."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lab.load import UNANSWERED, Load
from lab.models.server import VARIANTS, Classifier, Metrics, Model, Settings
from lab.models.train import GOOD_MEASUREMENTS, fit_pipelines, load_parameters, load_rows, split_data
from lab.process import Keeper, Process, free_port, wait_until

Serve = Callable[..., tuple[str, Process]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a model server with these environment variables; returns its URL when it answers, and the process."""
    keeper, processes = Keeper(), []

    def start(*, answers: bool = True, **environment: str) -> tuple[str, Process]:
        port = free_port()
        command = [sys.executable, "-m", "lab.models.server"]
        log = tmp_path / f"{port}.log"
        env = {**os.environ, "PORT": str(port), "MODEL_VERSION": "v1", **environment}
        process = Process("model", command, log=log, keeper=keeper, env=env).start()
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        if answers:
            process.wait_ready(lambda: request("GET", f"{url}/healthz") is not None, timeout=20.0)
        return url, process

    yield start
    for process in processes:
        process.kill()
    keeper.close()


def request(method: str, url: str, body: Any = None, **headers: str) -> urllib3.BaseHTTPResponse | None:
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return urllib3.request(method, url, body=data, headers=headers, retries=False, timeout=5.0)
    except urllib3.exceptions.HTTPError:
        return None


def samples(text: str) -> dict[str, float]:
    """The value of each series by its name and labels, as `http_requests_total{200,/predict}`."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def settings(**environment: str) -> Settings:
    return Settings.from_environment({"MODEL_VERSION": "v1"} | environment)


def replay(model: Model, times: int = 1) -> list[int]:
    """The status of every held-out row's answer."""
    rows = [
        json.dumps({"features": row.features, "label": row.label}).encode() for row in load_rows()
    ] * times
    return [model.answer(b"POST", b"/predict", row).code for row in rows]


@pytest.mark.parametrize(("name", "width"), [("good", GOOD_MEASUREMENTS), ("better", 30)])
def test_served_predictions_are_those_of_scikit_learn(name: str, width: int) -> None:
    _, held_out, _, _ = split_data()
    pipeline, served = fit_pipelines()[name], Classifier(load_parameters(name))
    expected = pipeline.predict_proba(held_out[:, :width])[:, 1]
    answers = [served.predict(row.tolist()) for row in held_out]
    assert [prediction for prediction, _ in answers] == pipeline.predict(held_out[:, :width]).tolist()
    assert [probability for _, probability in answers] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("variant", "low", "high"),
    [("good", 0.90, 0.93), ("better", 0.96, 1.0), ("wrong", 0.0, 0.6), ("slow", 0.96, 1.0)],
)
def test_accuracy_on_held_out_rows(variant: str, low: float, high: float) -> None:
    metrics = Metrics()
    assert set(replay(Model(settings(VARIANT=variant), metrics))) == {200}
    found = samples(generate_latest(metrics.registry).decode())
    assert found["model_quality_count{}"] == len(load_rows())
    assert low <= found["model_quality_sum{}"] / found["model_quality_count{}"] <= high


def test_errors_come_at_their_rate() -> None:
    codes = replay(Model(settings(VARIANT="errors", ERROR_RATE="0.2"), Metrics()), times=10)
    # Ten times 285 answers: five standard deviations are 0.04.
    assert codes.count(500) / len(codes) == pytest.approx(0.2, abs=0.04)
    assert set(codes) == {200, 500}


def test_the_slow_tail_is_late_and_the_rest_is_not() -> None:
    model = Model(settings(VARIANT="slow", SLOW_RATE="0.2", SLOW_SECONDS="0.3"), Metrics())
    body = json.dumps({"features": load_rows()[0].features}).encode()
    delays = [model.answer(b"POST", b"/predict", body).delay for _ in range(2000)]
    assert set(delays) == {0.0, 0.3}
    assert delays.count(0.3) / len(delays) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("environment", "ready"),
    [
        pytest.param({"VARIANT": "good"}, True, id="good is ready at once"),
        pytest.param({"VARIANT": "never-ready"}, False, id="never-ready is not"),
        pytest.param({"VARIANT": "crash"}, False, id="one that dies while loading is not"),
        pytest.param({"VARIANT": "slow-start"}, False, id="slow-start is not yet"),
        pytest.param(
            {"VARIANT": "slow-start", "SLOW_START_SECONDS": "0"}, True, id="slow-start is after its time"
        ),
        pytest.param(
            {"VARIANT": "never-ready", "VARIANT_AFTER_SECONDS": "60"},
            True,
            id="a late fault is not there yet",
        ),
    ],
)
def test_readiness(environment: dict[str, str], ready: bool) -> None:
    assert Model(settings(**environment), Metrics()).is_ready() is ready


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"VARIANT": "best"}, "VARIANT must be one of .*good.*, not 'best'"),
        ({"ERROR_RATE": "often"}, "ERROR_RATE must be a number, not 'often'"),
    ],
)
def test_a_bad_setting_is_named(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(**environment)


def test_the_server_answers_with_its_version_and_counts_by_code(serve: Serve) -> None:
    url, _ = serve(VARIANT="better")
    row = load_rows()[0]
    answer = request("POST", f"{url}/predict", {"features": row.features, "label": row.label})
    assert answer is not None
    assert answer.headers["x-model-version"] == "v1"
    assert answer.json()["version"] == "v1"
    assert 0.0 <= answer.json()["probability"] <= 1.0
    bad = [
        request("POST", f"{url}/predict", b"no json"),
        request("POST", f"{url}/predict", {"features": "abc"}),
        request("POST", f"{url}/predict", {}),
        request("GET", f"{url}/predict"),
        request("GET", f"{url}/elsewhere"),
        request("POST", f"{url}/predict", b"2\r\n{}\r\n0\r\n\r\n", **{"Transfer-Encoding": "chunked"}),
    ]
    assert [one and one.status for one in bad] == [400, 400, 400, 405, 404, 411]
    metrics = request("GET", f"{url}/metrics")
    assert metrics is not None
    found = samples(metrics.data.decode())
    assert found["http_requests_total{200,/predict}"] == 1
    assert found["http_requests_total{400,/predict}"] == 3
    assert found["http_request_duration_seconds_bucket{/predict,0.25}"] == 5
    assert found["model_quality_count{}"] == found["model_prediction_probability_count{}"] == 1
    assert "v1" not in metrics.data.decode()


def test_a_running_server_changes_its_variant(serve: Serve) -> None:
    url, _ = serve(VARIANT="good")
    changed = request("PUT", f"{url}/variant", b"never-ready")
    health = request("GET", f"{url}/healthz")
    refused = request("PUT", f"{url}/variant", b"best")
    assert [one and one.status for one in (changed, health, refused)] == [200, 503, 400]


def test_sigterm_drains_and_then_ends_well(serve: Serve) -> None:
    url, process = serve(VARIANT="good", DRAIN_SECONDS="0.5")
    process.signal(signal.SIGTERM)
    wait_until(
        lambda: (one := request("GET", f"{url}/healthz")) is not None and one.status == 503,
        timeout=5.0,
        what="draining",
    )
    late = request("POST", f"{url}/predict", {"features": load_rows()[0].features})
    assert late is not None
    assert (late.status, late.headers["connection"]) == (200, "close")
    assert process.wait(timeout=10.0) == 0


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"VARIANT": "crash", "CRASH_AFTER_SECONDS": "0.1"}, 1, "could not be loaded"),
        ({"VARIANT": "best"}, 2, "VARIANT must be one of"),
    ],
)
def test_exit_codes(serve: Serve, environment: dict[str, str], code: int, said: str) -> None:
    _, process = serve(answers=False, **environment)
    assert process.wait(timeout=20.0) == code
    assert said in process.tail()


def test_every_variant_is_known_to_the_docs() -> None:
    import lab.models.server

    documented = str(lab.models.server.__doc__)
    assert [
        name
        for name in sorted(VARIANTS - {"good", "better", "wrong", "never-ready"})
        if name not in documented
    ] == []


def test_the_load_counts_what_the_server_counted(serve: Serve) -> None:
    url, _ = serve(VARIANT="errors", ERROR_RATE="0.5")
    with Load(url, "fraud.example", rate=200.0) as load:
        wait_until(lambda: sum(load.counts().by_status().values()) >= 200, timeout=20.0, what="200 answers")
        load.rate = 0.001
        # From here on nothing is sent for a long time.
        wait_until(
            lambda: sum((c := load.counts()).by_status().values()) == c.sent, timeout=5.0, what="all answers"
        )
        counts = load.counts()
    metrics = request("GET", f"{url}/metrics")
    assert metrics is not None
    found = samples(metrics.data.decode())
    assert counts.answers == {
        ("v1", 200): found["http_requests_total{200,/predict}"],
        ("v1", 500): found["http_requests_total{500,/predict}"],
    }
    assert counts.by_version() == {"v1": counts.answers["v1", 200]}
    assert sum(counts.latencies["v1"]) == counts.sent


def test_the_load_keeps_its_rate_without_a_server_and_finds_it_when_it_comes(serve: Serve) -> None:
    url, process = serve(VARIANT="good")
    with Load(url, "fraud.example", rate=100.0) as load:
        wait_until(lambda: load.counts().by_version().get("v1", 0) > 10, timeout=20.0, what="answers")
        process.kill()
        wait_until(lambda: load.counts().by_status().get(UNANSWERED, 0) > 10, timeout=20.0, what="refusals")
        before = load.counts()
        process.start()
        wait_until(
            lambda: load.counts().since(before).by_version().get("v1", 0) > 10,
            timeout=20.0,
            what="answers again",
        )


def test_a_load_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate must be more than 0"):
        Load("http://127.0.0.1:1", "fraud.example", 0)
