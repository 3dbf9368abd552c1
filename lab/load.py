"""Open-loop load: replays held-out rows at a constant rate, whatever becomes of the answers.

Closed-loop clients slow down with the server and so hide its worst moments; this one sends by the clock. It counts what
came back by version and status, which is how tests know the true split. One thread with non-blocking sockets and ready
made requests, because a few hundred requests per second must leave the two cores to the system under test.

    python -m lab.load --url http://127.0.0.1:8080 --host fraud.example --rate 100
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import selectors
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from time import monotonic
from typing import Self
from urllib.parse import urlsplit

import urllib3

from lab.models.train import Row, load_rows

LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, float("inf"))
"""Upper bounds in seconds of the coarse latency counts."""
UNANSWERED = 0
"""The status of a request that got no answer: refused, reset, timed out or never sent for want of a connection."""
MAX_CONNECTIONS = 256
MAX_BURST = 50


@dataclass(frozen=True, slots=True)
class Counts:
    """A snapshot of what was sent and answered since the start."""

    sent: int = 0
    answers: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """By version (empty if the proxy answered itself) and status."""
    latencies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By version: answers per bound of LATENCY_BOUNDS, measured from the moment the clock said to send."""

    def by_version(self, *, status: int | None = 200) -> dict[str, int]:
        """Answers per version, with this status or (None) with any."""
        totals: Counter[str] = Counter()
        for (version, code), count in self.answers.items():
            if code != UNANSWERED and status in (None, code):
                totals[version] += count
        return dict(totals)

    def by_status(self) -> dict[int, int]:
        """Answers per status; UNANSWERED counts those without one."""
        totals: Counter[int] = Counter()
        for (_, code), count in self.answers.items():
            totals[code] += count
        return dict(totals)

    def share(self, version: str) -> float:
        """The share of this version among the 200s, NaN before the first."""
        totals = self.by_version()
        return totals.get(version, 0) / sum(totals.values()) if totals else float("nan")

    def since(self, earlier: Counts) -> Counts:
        """What came after an earlier snapshot of the same load."""
        answers = {key: count - earlier.answers.get(key, 0) for key, count in self.answers.items()}
        none = (0,) * len(LATENCY_BOUNDS)
        return Counts(
            sent=self.sent - earlier.sent,
            answers={key: count for key, count in answers.items() if count},
            latencies={
                version: tuple(
                    now - then for now, then in zip(counts, earlier.latencies.get(version, none), strict=True)
                )
                for version, counts in self.latencies.items()
            },
        )


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    due: float = 0.0
    buffer: bytes = b""


class Load:
    """Sends `rate` requests per second to `url` with the Host header `host` until stopped.

    `rows` are (features, label) as from `load_rows`; `headers` are added to every request (to match a route's header
    rules). `timeout` is in seconds. The rate may be changed at any time.
    """

    def __init__(
        self,
        url: str,
        host: str,
        rate: float,
        rows: Sequence[Row] | None = None,
        *,
        path: str = "/predict",
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        seed: int = 0,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be more than 0 requests per second, not {rate}.")
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.rate = rate
        self._timeout = timeout
        self._requests = _render_requests(rows or load_rows(), host=host, path=path, headers=headers or {})
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._lock = threading.Lock()
        self._sent = 0
        self._answers: Counter[tuple[str, int]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> Self:
        """Begins to send, from a thread of its own."""
        self._thread.start()
        return self

    def counts(self) -> Counts:
        """A snapshot, cheap enough to be taken many times per second."""
        with self._lock:
            return Counts(
                sent=self._sent,
                answers=dict(self._answers),
                latencies={version: tuple(counts) for version, counts in self._latencies.items()},
            )

    def stop(self) -> Counts:
        """Ends within a fraction of a second; requests on their way are not counted as answered."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        return self.counts()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        last = monotonic() - 1.0 / self.rate
        order: list[bytes] = []
        while not self._stopping.is_set():
            now, gap = monotonic(), 1.0 / self.rate
            # After a long pause of this thread the lost time is not made up for: it would be a burst, not a rate.
            last = max(last, now - (MAX_BURST + 1) * gap)
            while last + gap <= now:
                last += gap
                if not order:
                    order = self._random.sample(self._requests, len(self._requests))
                self._send(order.pop(), last)
            # Not longer than a moment, for the rate may be changed and requests expire.
            self._receive(min(max(last + gap - monotonic(), 0.0), 0.2))
            self._expire()
        for connection in (*self._idle, *self._busy):
            connection.socket.close()
        self._selector.close()

    def _send(self, request: bytes, due: float) -> None:
        with self._lock:
            self._sent += 1
        # A kept-alive connection may have been closed by the other side in the meantime: then a new one is tried.
        for _ in range(len(self._idle) + 1):
            connection = self._idle.pop() if self._idle else self._connect()
            if connection is None:
                break
            try:
                connection.socket.sendall(request)
            except OSError:
                self._drop(connection)
                continue
            connection.due, connection.buffer = due, b""
            self._busy.add(connection)
            return
        self._count("", UNANSWERED)

    def _connect(self) -> _Connection | None:
        if len(self._busy) >= MAX_CONNECTIONS:
            return None
        try:
            # Loopback connects at once or is refused at once, so blocking for it costs nothing.
            connected = socket.create_connection(self._address, timeout=1.0)
        except OSError:
            return None
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(connected)
        self._selector.register(connected, selectors.EVENT_READ, connection)
        return connection

    def _receive(self, wait: float) -> None:
        for key, _ in self._selector.select(wait):
            connection: _Connection = key.data
            try:
                data = connection.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._lose(connection)
                continue
            connection.buffer += data
            self._read_answer(connection)

    def _read_answer(self, connection: _Connection) -> None:
        end = connection.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = connection.buffer[:end].lower()
        length = int(_header(head, b"content-length") or b"0")
        if len(connection.buffer) < end + 4 + length or connection not in self._busy:
            return
        status = int(head[9:12]) if head[9:12].isdigit() else UNANSWERED
        version = _header(connection.buffer[:end], b"x-model-version").decode("latin-1")
        self._count(version, status, monotonic() - connection.due)
        self._busy.discard(connection)
        if _header(head, b"connection") == b"close":
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _count(self, version: str, status: int, seconds: float | None = None) -> None:
        with self._lock:
            self._answers[version, status] += 1
            if seconds is not None:
                counts = self._latencies.setdefault(version, [0] * len(LATENCY_BOUNDS))
                counts[next(i for i, bound in enumerate(LATENCY_BOUNDS) if seconds <= bound)] += 1

    def _expire(self) -> None:
        if not self._busy:
            return
        limit = monotonic() - self._timeout
        for connection in [c for c in self._busy if c.due < limit]:
            self._lose(connection)

    def _lose(self, connection: _Connection) -> None:
        """Closes a connection; one that was waited for counts as unanswered."""
        if connection in self._busy:
            self._count("", UNANSWERED)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


class User:
    """One who asks one thing after the other and keeps the cookies that it is given, as a browser does.

    `versions` counts the answers by version and status.
    """

    def __init__(self, url: str, host: str) -> None:
        self._url, self._host = f"{url}/predict", host
        self._http = urllib3.PoolManager(retries=False, timeout=5.0)
        self._row = load_rows()[0]
        self.cookies: dict[str, str] = {}
        self.versions: Counter[tuple[str, int]] = Counter()

    def ask(self) -> str:
        """Send one request; the version that answered it, empty for the proxy itself."""
        headers = {"Host": self._host}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = json.dumps({"features": self._row.features, "label": self._row.label})
        answer = self._http.request("POST", self._url, body=body, headers=headers)
        for given in answer.headers.getlist("set-cookie"):
            self.cookies |= {name: morsel.coded_value for name, morsel in SimpleCookie(given).items()}
        version = answer.headers.get("x-model-version", "")
        self.versions[version, answer.status] += 1
        return version

    def close(self) -> None:
        """End its connection."""
        self._http.clear()


def _header(head: bytes, name: bytes) -> bytes:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return b""
    return head[start + len(name) + 3 :].partition(b"\r\n")[0].strip()


def _render_requests(rows: Iterable[Row], *, host: str, path: str, headers: Mapping[str, str]) -> list[bytes]:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = []
    for row in rows:
        body = json.dumps({"features": row.features, "label": row.label}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{extra}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode("latin-1") + body)
    return requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per second until the duration is over or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m lab.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", required=True, help="where the gateway listens, as http://127.0.0.1:8080")
    parser.add_argument("--host", required=True, help="the route's host name, sent as Host header")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second (default 100)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long (default until Ctrl-C)")
    options = parser.parse_args(arguments)
    if options.rate <= 0:
        parser.error(f"--rate must be more than 0, not {options.rate:g}")
    load = Load(options.url, options.host, options.rate)
    end = monotonic() + options.seconds
    before = Counts()
    with contextlib.suppress(KeyboardInterrupt), load:
        while (left := end - monotonic()) > 0:
            threading.Event().wait(min(1.0, left))
            now = load.counts()
            print(_describe(now.since(before)), flush=True)
            before = now
    return 0


def _describe(counts: Counts) -> str:
    parts = [f"{counts.sent:4d} sent"]
    for (version, status), count in sorted(counts.answers.items()):
        meaning = "unanswered" if status == UNANSWERED else str(status)
        parts.append(f"{version or 'gateway'} {meaning}: {count}")
    return " · ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
