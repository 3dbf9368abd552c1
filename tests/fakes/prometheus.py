"""A Prometheus that tests can script: time series as functions or lists of samples, and every way to fail.

It serves `/api/v1/query` for instant queries over a range selector (`metric{matchers}[Δ]`, left-open as in Prometheus 3),
for plain selectors, and for other queries with canned values. Time is what the query says (`time`), so tests need not wait.

In a test:

    with FakePrometheus() as fake:
        fake.add({"__name__": "up", "pod": "a"}, scraped(lambda t: 1.0, every=15))
        fake.fail("503", times=2)

As a process: `python -m tests.fakes.prometheus --port 0` prints its URL; `POST /-/fake` takes the JSON of `FakePrometheus.control`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import promql_parser as promql

Sample = tuple[float, float]
Source = Callable[[float, float], Sequence[Sample]]
"""Samples in (start, end], ascending."""

FAULTS = (
    "503",
    "html",
    "slow",
    "drip",
    "nan",
    "inf",
    "empty",
    "warnings",
    "duplicate",
    "refuse",
    "error",
    "garbage",
    "redirect",
)


def scraped(
    value: Callable[[float], float | None],
    *,
    every: float,
    offset: float = 0.0,
    start: float = -math.inf,
    end: float = math.inf,
    missed: Callable[[float], bool] = lambda t: False,
) -> Source:
    """A series scraped at offset + k·every within [start, end]; `value` returns None where there is no sample."""

    def samples(after: float, until: float) -> Sequence[Sample]:
        first = math.floor((max(after, start - every) - offset) / every)
        out = []
        for k in range(first, math.floor((min(until, end) - offset) / every) + 1):
            t = offset + k * every
            if after < t <= until and start <= t <= end and not missed(t):
                found = value(t)
                if found is not None:
                    out.append((t, found))
        return out

    return samples


def listed(samples: Sequence[Sample]) -> Source:
    """A series of given samples."""
    ordered = sorted(samples)
    return lambda after, until: [(t, v) for t, v in ordered if after < t <= until]


def counter(
    rate: float, *, start: float, share: float = 1.0, resets: Sequence[float] = ()
) -> Callable[[float], float]:
    """The value of a counter that begins at `start` and again at each reset: floor(rate · share · time)."""

    def value(t: float) -> float:
        began = max([start, *(reset for reset in resets if reset <= t)])
        return float(math.floor(rate * share * max(0.0, t - began) + 1e-9))

    return value


@dataclass
class Query:
    """A query that was asked."""

    text: str
    time: float
    timeout: str | None
    headers: Mapping[str, str]


@dataclass
class _Series:
    labels: dict[str, str]
    source: Source


@dataclass
class _Fault:
    mode: str
    times: int | None
    match: str
    seconds: float = 5.0
    text: str = "one of the stores did not answer"


@dataclass
class FakePrometheus:
    """The server. Attributes may be read and methods called while it runs; they are locked."""

    port: int = 0
    queries: list[Query] = field(default_factory=list)
    _series: list[_Series] = field(default_factory=list)
    _canned: list[tuple[str, Callable[[float], float | None]]] = field(default_factory=list)
    _fault: list[_Fault] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _server: ThreadingHTTPServer | None = None
    _closing: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Self:
        """Listen on loopback."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._closing.clear()
        self._server = _Server(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Stop listening: connections are refused from now on. `start` listens on the same port again."""
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def stopped(self) -> bool:
        """Whether it was stopped and not started again."""
        return self._closing.is_set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, labels: Mapping[str, str], source: Source) -> None:
        """Add a series; `labels` include `__name__`. A series with the same labels is replaced."""
        with self._lock:
            self.remove(labels, exact=True)
            self._series.append(_Series(dict(labels), source))

    def remove(self, labels: Mapping[str, str], *, exact: bool = False) -> None:
        """Remove all series that have these labels (exact: these and no others)."""
        with self._lock:
            self._series = [
                s
                for s in self._series
                if not (s.labels == dict(labels) if exact else dict(labels).items() <= s.labels.items())
            ]

    def can(self, query: str, value: float | Callable[[float], float | None] | None) -> None:
        """Answer every query that contains this text with one number (None: an empty result)."""
        with self._lock:
            self._canned.insert(0, (query, value if callable(value) else lambda _t: value))

    def fail(self, mode: str, *, times: int | None = None, match: str = "", seconds: float = 5.0) -> None:
        """Fail queries that contain `match`, for the next `times` ones or until `heal`. Modes: FAULTS."""
        if mode not in FAULTS:
            raise ValueError(f"{mode!r} is no fault: there are {', '.join(FAULTS)}")
        with self._lock:
            self._fault.append(_Fault(mode, times, match, seconds))

    def heal(self, match: str | None = None) -> None:
        """Fail no more; with `match`, only queries that were failed by it."""
        with self._lock:
            self._fault[:] = [fault for fault in self._fault if match is not None and fault.match != match]

    def add_model(
        self,
        pod: str,
        *,
        namespace: str = "default",
        rate: float = 10.0,
        errors: float = 0.0,
        slow: float = 0.0,
        quality: float = 0.9,
        start: float,
        end: float = math.inf,
        every: float = 15.0,
        offset: float = 0.0,
        resets: Sequence[float] = (),
        instance: str | None = None,
    ) -> None:
        """The series of a pod like the lab's model server, in one scrape: `up`, `http_requests_total{code}`,
        `http_request_duration_seconds_*` (share `slow` beyond 0.25 s) and `model_quality_sum`/`_count`."""
        target = {"namespace": namespace, "pod": pod, "job": "pods", "instance": instance or f"{pod}:8080"}

        def put(name: str, value: Callable[[float], float], **labels: str) -> None:
            source = scraped(value, every=every, offset=offset, start=start, end=end)
            self.add({"__name__": name, **target, **labels}, source)

        def of(share: float) -> Callable[[float], float]:
            return counter(rate, start=start, share=share, resets=resets)

        put("up", lambda _t: 1.0)
        bad, late, good = of(errors), of(slow), of(quality)
        every_request = of(1.0)
        put("http_requests_total", lambda t: every_request(t) - bad(t), code="200", handler="/predict")
        if errors:
            put("http_requests_total", bad, code="500", handler="/predict")
        for le, share in (("0.05", 0.5), ("0.1", 0.8), ("0.25", 1.0), ("0.5", 1.0)):
            fast = of(share)
            put(
                "http_request_duration_seconds_bucket",
                (lambda t, f=fast, b=le: min(f(t), every_request(t) - (late(t) if float(b) < 0.5 else 0.0))),  # type: ignore[misc]
                le=le,
                handler="/predict",
            )
        put("http_request_duration_seconds_bucket", every_request, le="+Inf", handler="/predict")
        put("model_quality_sum", good)
        put("model_quality_count", every_request)

    def control(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out `{"do": "model"|"counter"|"samples"|"remove"|"can"|"fail"|"heal"|"queries", …}`; the other keys are
        the arguments of the method (counter: labels, rate, start, share, resets, every, offset, end)."""
        order = dict(order)
        what = order.pop("do", None)
        if what == "model":
            self.add_model(order.pop("pod"), **order)
        elif what == "counter":
            value = counter(
                order["rate"],
                start=order["start"],
                share=order.get("share", 1.0),
                resets=order.get("resets", ()),
            )
            grid = {key: order[key] for key in ("every", "offset", "end") if key in order}
            self.add(order["labels"], scraped(value, start=order["start"], **{"every": 15.0, **grid}))
        elif what == "samples":
            self.add(order["labels"], listed([(t, v) for t, v in order["samples"]]))
        elif what == "remove":
            self.remove(order["labels"], exact=order.get("exact", False))
        elif what == "can":
            self.can(order["query"], order["value"])
        elif what == "fail":
            self.fail(order.pop("mode"), **order)
        elif what == "heal":
            self.heal()
        elif what != "queries":
            return {"error": f"{what!r} is no order"}
        with self._lock:
            return {"queries": len(self.queries), "series": len(self._series)}

    def answer(self, text: str, at: float) -> dict[str, Any]:
        """The `data` of a query. Raises ValueError where Prometheus would say bad_data."""
        with self._lock:
            for part, value in self._canned:
                if part in text:
                    number = value(at)
                    result = [] if number is None else [{"metric": {}, "value": [at, _text(number)]}]
                    return {"resultType": "vector", "result": result}
            parsed = promql.parse(text)
            if isinstance(parsed, promql.MatrixSelector):
                reach = parsed.range.total_seconds()
                found = [
                    (s.labels, s.source(at - reach, at))
                    for s in self._series
                    if _matches(parsed.vector_selector, s.labels)
                ]
                values = [
                    {"metric": labels, "values": [[t, _text(v)] for t, v in got]}
                    for labels, got in found
                    if got
                ]
                return {"resultType": "matrix", "result": values}
            if isinstance(parsed, promql.VectorSelector):
                found = [
                    (s.labels, s.source(at - 300, at)) for s in self._series if _matches(parsed, s.labels)
                ]
                newest = [
                    {"metric": labels, "value": [at, _text(got[-1][1])]} for labels, got in found if got
                ]
                return {"resultType": "vector", "result": newest}
            raise ValueError(f"no canned value for {text}")

    def take_fault(self, text: str) -> _Fault | None:
        """The fault that meets this query."""
        with self._lock:
            for fault in self._fault:
                if fault.match in text:
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times <= 0:
                            self._fault.remove(fault)
                    return fault
        return None

    def note(self, query: Query) -> None:
        with self._lock:
            self.queries.append(query)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the server lives."""
        self._closing.wait(seconds)


def _text(value: float) -> str:
    return (
        "NaN"
        if math.isnan(value)
        else ("+Inf" if value > 0 else "-Inf")
        if math.isinf(value)
        else repr(value)
    )


def _matches(selector: Any, labels: Mapping[str, str]) -> bool:
    if selector.name is not None and labels.get("__name__") != selector.name:
        return False
    for matcher in selector.matchers.matchers:
        have = labels.get(matcher.name, "")
        kind = str(matcher.op).rpartition(".")[2]
        if kind in ("Equal", "NotEqual"):
            hit = have == matcher.value
        else:
            pattern = re.sub(
                r"\\x\{([0-9a-f]+)\}", lambda m: re.escape(chr(int(m.group(1), 16))), matcher.value
            )
            hit = re.fullmatch(pattern, have) is not None
        if hit != (kind in ("Equal", "Re")):
            return False
    return True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle of a request is nothing to write about."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FakePrometheus
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        """A server that was stopped answers on no connection that is still open either."""
        if self.owner.stopped:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path in ("/-/healthy", "/-/ready"):
            self._send(200, "text/plain", b"ok")
        elif parts.path == "/api/v1/query":
            self._query({key: values[-1] for key, values in parse_qs(parts.query).items()})
        elif parts.path == "/-/fake":
            self._json(200, self.owner.control({"do": "queries"}))
        else:
            self._send(404, "text/plain", b"not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if urlsplit(self.path).path == "/-/fake":
            self._json(200, self.owner.control(json.loads(body)))
        elif urlsplit(self.path).path == "/api/v1/query":
            self._query({key: values[-1] for key, values in parse_qs(body.decode()).items()})
        else:
            self._send(404, "text/plain", b"not found")

    def _query(self, form: Mapping[str, str]) -> None:
        text, at = form.get("query", ""), float(form.get("time", time.time()))
        self.owner.note(Query(text, at, form.get("timeout"), dict(self.headers)))
        fault = self.owner.take_fault(text)
        if fault is not None and self._fail_at_once(fault):
            return
        try:
            data = self.owner.answer(text, at)
        except ValueError as error:
            self._json(400, {"status": "error", "errorType": "bad_data", "error": str(error)})
            return
        answer: dict[str, Any] = {"status": "success", "data": data}
        if fault is not None:
            _spoil(answer, fault)
        if fault is not None and fault.mode == "drip":
            self._drip(json.dumps(answer).encode(), fault.seconds)
            return
        self._json(200, answer)

    def _fail_at_once(self, fault: _Fault) -> bool:
        if fault.mode == "503":
            self._json(
                503, {"status": "error", "errorType": "unavailable", "error": "the server is starting"}
            )
        elif fault.mode == "error":
            self._json(
                422,
                {
                    "status": "error",
                    "errorType": "execution",
                    "error": "query processing would load too many samples",
                },
            )
        elif fault.mode == "html":
            self._send(200, "text/html; charset=utf-8", b"<html><body>Log in</body></html>")
        elif fault.mode == "redirect":
            self._send(302, "text/html", b"moved", location="/login")
        elif fault.mode == "garbage":
            self._send(200, "application/json", b'{"status": "succ')
        elif fault.mode == "refuse":
            self.close_connection = True
            self.connection.close()
        elif fault.mode == "slow":
            self.owner.pause(fault.seconds)
            return False
        else:
            return False
        return True

    def _drip(self, body: bytes, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                self.owner.pause(seconds / len(body))
        except OSError:
            self.close_connection = True

    def _json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, content_type: str, body: bytes, location: str = "") -> None:
        try:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has gone, as it may on a slow answer


def _spoil(answer: dict[str, Any], fault: _Fault) -> None:
    result = answer["data"]["result"]
    if fault.mode == "warnings":
        answer["warnings"] = [fault.text]
    elif fault.mode == "empty":
        answer["data"]["result"] = []
    elif fault.mode == "duplicate":
        copies = [{**item, "metric": {**item["metric"], "prometheus_replica": "b"}} for item in result]
        answer["data"]["result"] = result + copies
    elif fault.mode in ("nan", "inf"):
        for item in result:
            newest = item["values"][-1] if "values" in item else item["value"]
            newest[1] = "NaN" if fault.mode == "nan" else "+Inf"


def main() -> None:
    """Run as a process until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    fake = FakePrometheus(parser.parse_args().port).start()
    print(fake.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
