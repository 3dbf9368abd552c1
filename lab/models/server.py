"""A model server as it runs in a pod of the lab: `python -m lab.models.server`.

It has to be honest (a real classifier, real metrics) and very cheap (eight of them share two cores with everything
else), so HTTP/1.1 with keep-alive is parsed by hand on an asyncio protocol and nothing heavy is imported.

Its settings are environment variables, as a container's are:

    PORT                    where to listen on 127.0.0.1
    MODEL_NAME, MODEL_VERSION
    VARIANT                 one of VARIANTS (default: what MODEL_URI ends with, else good)
    VARIANT_AFTER_SECONDS   serve faultlessly as `better` for that long first (a late regression)
    ERROR_RATE              share of 500s of the variant errors (default 0.10)
    SLOW_RATE, SLOW_SECONDS share and length of the tail of the variant slow (default 0.05 and 0.4)
    SLOW_START_SECONDS      how long the variant slow-start takes to become ready (default 10)
    CRASH_AFTER_SECONDS     when the variant crash exits with code 1 (default 0.5)
    DRAIN_SECONDS           how long it goes on serving after SIGTERM, as good servers do, because proxies learn of it
                            a moment later (default 1)

`PUT /variant` with the name of a variant as the body changes the variant of a running server.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    generate_latest,
)

from lab.models.train import Parameters, load_parameters

VARIANTS = frozenset({"good", "better", "wrong", "slow", "errors", "crash", "never-ready", "slow-start"})
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PROBABILITY_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment variables above, read once. Durations in seconds, rates as shares of one."""

    port: int
    model_name: str
    model_version: str
    variant: str
    variant_after: float
    error_rate: float
    slow_rate: float
    slow_seconds: float
    slow_start: float
    crash_after: float
    drain: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises ValueError with a sentence that names the variable."""

        def read_number(name: str, default: float) -> float:
            try:
                return float(environment.get(name, default))
            except ValueError:
                raise ValueError(f"{name} must be a number, not {environment[name]!r}.") from None

        # MODEL_URI is what a release changes; VARIANT is for tests that need another behaviour of the same model.
        variant = environment.get("VARIANT") or _named_in(environment.get("MODEL_URI", ""))
        if variant not in VARIANTS:
            raise ValueError(f"VARIANT must be one of {', '.join(sorted(VARIANTS))}, not {variant!r}.")
        return cls(
            port=int(read_number("PORT", 8080)),
            model_name=environment.get("MODEL_NAME", "model"),
            model_version=environment.get("MODEL_VERSION", ""),
            variant=variant,
            variant_after=read_number("VARIANT_AFTER_SECONDS", 0.0),
            error_rate=read_number("ERROR_RATE", 0.10),
            slow_rate=read_number("SLOW_RATE", 0.05),
            slow_seconds=read_number("SLOW_SECONDS", 0.4),
            slow_start=read_number("SLOW_START_SECONDS", 10.0),
            crash_after=read_number("CRASH_AFTER_SECONDS", 0.5),
            drain=read_number("DRAIN_SECONDS", 1.0),
        )


class Classifier:
    """Logistic regression by hand; `scaled=False` is the serving bug that forgets the scaler."""

    def __init__(self, parameters: Parameters, *, scaled: bool = True) -> None:
        width = len(parameters.weights)
        mean = parameters.mean if scaled else (0.0,) * width
        scale = parameters.scale if scaled else (1.0,) * width
        # The scaler is folded into the weights: one multiplication per feature and request.
        self._weights = tuple(w / s for w, s in zip(parameters.weights, scale, strict=True))
        self._bias = parameters.bias - sum(w * m for w, m in zip(self._weights, mean, strict=True))

    def predict(self, features: list[float]) -> tuple[int, float]:
        """The predicted class (0 or 1) and the probability of class 1."""
        score = self._bias
        for weight, feature in zip(self._weights, features, strict=False):
            score += weight * feature
        if score > 0:
            return 1, 1.0 / (1.0 + math.exp(-min(score, 700.0)))
        grown = math.exp(max(score, -700.0))
        return 0, grown / (1.0 + grown)


class Metrics:
    """What Prometheus scrapes. No series carries the version: pods tell the arms apart, as with most model servers."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "http_requests_total", "Requests answered.", ("code", "handler"), registry=self.registry
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Time from request to answer.",
            ("handler",),
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.quality = Summary(
            "model_quality",
            "1 for an answer that equals the row's label, else 0.",
            registry=self.registry,
        )
        self.probability = Histogram(
            "model_prediction_probability",
            "Predicted probability of class 1.",
            buckets=PROBABILITY_BUCKETS,
            registry=self.registry,
        )
        self._by_code: dict[int, Counter] = {}
        self._predict_duration = self._duration.labels("/predict")

    def count_answer(self, code: int, seconds: float) -> None:
        """One answered prediction request."""
        if code not in self._by_code:
            self._by_code[code] = self._requests.labels(str(code), "/predict")
        self._by_code[code].inc()
        self._predict_duration.observe(seconds)


@dataclass(slots=True)
class Answer:
    """What goes back to the client, after `delay` seconds."""

    code: int
    body: bytes
    content_type: bytes = b"application/json"
    delay: float = 0.0


class Model:
    """Answers requests; knows nothing of sockets."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self._started = monotonic()
        self._chosen = settings.variant
        better = load_parameters("better")
        self._better = Classifier(better)
        self._classifiers = {
            "good": Classifier(load_parameters("good")),
            "wrong": Classifier(better, scaled=False),
        }

    @property
    def variant(self) -> str:
        """How it behaves right now."""
        if monotonic() - self._started < self.settings.variant_after:
            return "better"
        return self._chosen

    def is_ready(self) -> bool:
        """What the readiness probe is told."""
        # A crashing model is one that dies while it loads; VARIANT_AFTER_SECONDS makes it die later.
        if self.draining or self.variant in ("never-ready", "crash"):
            return False
        return self.variant != "slow-start" or monotonic() - self._started >= self.settings.slow_start

    def answer(self, method: bytes, path: bytes, body: bytes) -> Answer:
        """The answer to any request."""
        path = path.partition(b"?")[0]
        if path == b"/predict":
            return self._predict(body) if method == b"POST" else _refuse(405, "Use POST.")
        if path == b"/healthz":
            ready = self.is_ready()
            return Answer(200 if ready else 503, b"ok" if ready else b"not ready", b"text/plain")
        if path == b"/metrics":
            return Answer(200, generate_latest(self.metrics.registry), b"text/plain; version=0.0.4")
        if path == b"/variant" and method == b"PUT":
            return self._change_variant(body)
        return _refuse(404, "There is /predict, /healthz and /metrics.")

    def _predict(self, body: bytes) -> Answer:
        variant = self.variant
        if variant == "errors" and random.random() < self.settings.error_rate:
            return _refuse(500, "The model failed.")
        try:
            request = json.loads(body)
            features, label = request["features"], request.get("label")
            prediction, probability = self._classifiers.get(variant, self._better).predict(features)
        except (ValueError, TypeError, KeyError, AttributeError):
            return _refuse(400, 'The body must be {"features": [numbers], "label": 0 or 1}.')
        self.metrics.probability.observe(probability)
        if label is not None:
            self.metrics.quality.observe(1.0 if prediction == label else 0.0)
        slow = variant == "slow" and random.random() < self.settings.slow_rate
        answer = {
            "prediction": prediction,
            "probability": probability,
            "version": self.settings.model_version,
        }
        return Answer(200, json.dumps(answer).encode(), delay=self.settings.slow_seconds if slow else 0.0)

    def _change_variant(self, body: bytes) -> Answer:
        name = body.decode(errors="replace").strip()
        if name not in VARIANTS - {"crash"}:
            return _refuse(400, f"The variant must be one of {', '.join(sorted(VARIANTS - {'crash'}))}.")
        self._chosen = name
        return Answer(200, b"{}")


def _named_in(uri: str) -> str:
    name = uri.rpartition("/")[2]
    return name if name in VARIANTS else "good"


def _refuse(code: int, sentence: str) -> Answer:
    return Answer(code, json.dumps({"error": sentence}).encode())


class Connection(asyncio.Protocol):
    """HTTP/1.1 on one connection: keep-alive, one request at a time, bodies by Content-Length only."""

    open: set[Connection] = set()  # noqa: RUF012 (shared by all connections of the process on purpose)

    def __init__(self, model: Model) -> None:
        self.model = model
        self.busy = False
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        version = model.settings.model_version.encode("latin-1", "replace")
        self._version_header = b"\r\nx-model-version: " + version + b"\r\ncontent-length: "

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        Connection.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        Connection.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.busy:
            self._serve()

    def close(self) -> None:
        """Closes once what is written is sent."""
        if self._transport is not None:
            self._transport.close()

    def _serve(self) -> None:
        while self._transport is not None and not self.busy:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end]
            lowered = head.lower()
            length = _content_length(lowered)
            if length is None:
                self._respond(b"", _refuse(411, "Send a Content-Length."), perf_counter(), close=True)
                return
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._handle(head, lowered, body)

    def _handle(self, head: bytes, lowered: bytes, body: bytes) -> None:
        started = perf_counter()
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0]
        close = self.model.draining or b"\r\nconnection: close" in lowered
        answer = self.model.answer(method, path, body)
        if answer.delay > 0:
            self.busy = True
            loop = asyncio.get_running_loop()
            loop.call_later(answer.delay, self._respond_late, path, answer, started, close)
        else:
            self._respond(path, answer, started, close=close)

    def _respond_late(self, path: bytes, answer: Answer, started: float, close: bool) -> None:
        self.busy = False
        self._respond(path, answer, started, close=close)
        self._serve()

    def _respond(self, path: bytes, answer: Answer, started: float, *, close: bool) -> None:
        if path.startswith(b"/predict"):
            self.model.metrics.count_answer(answer.code, perf_counter() - started)
        if self._transport is None:
            return
        self._transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s%s%d%s\r\n\r\n"
            % (
                answer.code,
                REASONS[answer.code].encode(),
                answer.content_type,
                self._version_header,
                len(answer.body),
                b"\r\nconnection: close" if close else b"",
            )
            + answer.body
        )
        if close:
            self._transport.close()


def _content_length(lowered_head: bytes) -> int | None:
    """0 without a body, None if the length is not told in a way that this server understands."""
    start = lowered_head.find(b"\r\ncontent-length:")
    if start < 0:
        return None if b"\r\ntransfer-encoding:" in lowered_head else 0
    value = lowered_head[start + 17 :].partition(b"\r\n")[0].strip()
    return int(value) if value.isdigit() else None


async def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    model = Model(settings, Metrics())
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    server = await loop.create_server(lambda: Connection(model), "127.0.0.1", settings.port, backlog=512)

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def drain() -> None:
        if not model.draining:
            model.draining = True
            loop.call_later(settings.drain, end, 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    if settings.variant == "crash":
        loop.call_later(settings.variant_after + settings.crash_after, _crash, end)
    print(
        f"{settings.model_name} {settings.model_version} ({settings.variant}) on {settings.port}", flush=True
    )
    code = await ended
    server.close()
    # What is still being answered may finish; a late answer is the variant's tail at most.
    for _ in range(100):
        if not any(connection.busy for connection in Connection.open):
            break
        await asyncio.sleep(0.01)
    for connection in tuple(Connection.open):
        connection.close()
    return code


def _crash(end: Callable[[int], None]) -> None:
    print(
        "The model could not be loaded: its weights do not fit its architecture.", file=sys.stderr, flush=True
    )
    end(1)


def main() -> int:
    """The entry point of the container; 2 for a bad setting."""
    try:
        settings = Settings.from_environment(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
