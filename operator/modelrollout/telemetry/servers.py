"""Prometheus servers, as the operator was configured with them, and how they are asked.

`prometheus_api_client` keeps the connection. Its own query methods are not used: they retry silently, drop `warnings`,
take any JSON for an answer, have no limit on the time of a whole answer and put the query into the URL. A query here is
one POST that ends within its time or raises `QueryError`. The client is blocking, so calls run in a small thread pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from modelrollout.api.types import parse_duration
from modelrollout.telemetry.samples import (
    BAD_ANSWER,
    TIMED_OUT,
    UNREACHABLE,
    QueryError,
    RawSeries,
    parse_answer,
    parse_matrix,
    parse_number,
)

MAX_ANSWER_BYTES = 64 * 1024 * 1024
THREADS = 32  # of a server, for all rollouts
_CHUNK = 64 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to connect, between two bytes, and for a whole answer (also told to Prometheus as `timeout`); before a query
    is sent it waits for others as long as for an answer at most."""

    connect: float = 3.05
    read: float = 10.0
    total: float = 15.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One configured server. Secrets may be given as files, which are read anew for every query (they rotate)."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    bearer_token: str | None = field(default=None, repr=False)
    bearer_token_file: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    ca_file: str | None = None
    insecure_skip_verify: bool = False
    namespace_label: str = "namespace"
    pod_label: str = "pod"
    delay: float = 0.0  # seconds from a scrape until its samples can be read here, as by remote write


class Observer(Protocol):
    """Is told of every query: the server's name, seconds taken, and the reason of a failure."""

    def __call__(self, server: str, seconds: float, reason: str | None, /) -> None: ...


class Server(Protocol):
    """What the sampler needs of a server; tests put others in its place. Both methods raise QueryError."""

    @property
    def settings(self) -> ServerSettings: ...

    async def read_series(self, selector: str, *, at: float, reach: float) -> tuple[RawSeries, ...]: ...

    async def read_number(self, query: str, *, at: float) -> float: ...


def new_pool(threads: int = THREADS) -> ThreadPoolExecutor:
    """The bounded thread pool of a server: one that hangs must not keep the others waiting."""
    return ThreadPoolExecutor(max_workers=threads, thread_name_prefix="prometheus")


def read_settings(name: str, config: Mapping[str, Any]) -> ServerSettings:
    """A server of the operator's configuration file, whose keys are camelCase.

    Raises ValueError with one sentence that names the key and the mend.
    """
    known = {_camel(f): f for f in ServerSettings.__dataclass_fields__ if f != "name"}
    where = f"prometheus server {name!r}"
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is no setting: there are {', '.join(sorted(known))}")
    for key, value in config.items():
        wanted: type = {"headers": Mapping, "insecureSkipVerify": bool}.get(key, str)
        if not isinstance(value, wanted):
            raise ValueError(f"{where}: {key} is {value!r}, but must be a {wanted.__name__.lower()}")
    given: dict[str, Any] = {"url": "", **{known[key]: value for key, value in config.items()}}
    try:
        settings = ServerSettings(name=name, **given | {"delay": parse_duration(given.get("delay", "0s"))})
    except ValueError as error:
        raise ValueError(f"{where}: delay is {given['delay']!r}: write a duration like 30s") from error
    _check(settings, where)
    return settings


def _check(settings: ServerSettings, where: str) -> None:
    if not _is_url(settings.url):
        raise ValueError(
            f"{where}: url is {settings.url!r}: write a URL like http://prometheus.monitoring:9090"
        )
    if "@" in settings.url.split("/")[2]:
        raise ValueError(f"{where}: leave the credentials out of url: use username and passwordFile")
    if settings.bearer_token and settings.bearer_token_file:
        raise ValueError(f"{where}: bearerToken and bearerTokenFile are both given: give one")
    if settings.password and settings.password_file:
        raise ValueError(f"{where}: password and passwordFile are both given: give one")
    if settings.username and (settings.bearer_token or settings.bearer_token_file):
        raise ValueError(f"{where}: username and a bearer token are both given: give one")
    if not settings.username and (settings.password or settings.password_file):
        raise ValueError(f"{where}: a password is given without username: add it")


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is no number
        return False


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


class PrometheusServer:
    """A server that answers queries with typed samples; safe for concurrent use."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        pool: ThreadPoolExecutor,
        timeouts: Timeouts = Timeouts(),
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._timeouts = timeouts
        self._observer = observer
        self._clock = clock
        session = requests.Session()
        session.trust_env = False  # a .netrc or proxy of the environment would override what was configured
        session.verify = settings.ca_file or not settings.insecure_skip_verify
        connect = self._connect = PrometheusConnect(
            url=settings.url.rstrip("/"),
            headers=dict(settings.headers),
            session=session,
            retry=Retry(total=0),
            timeout=(timeouts.connect, timeouts.read),
            auth=_Credentials(settings),
        )
        # Each thread keeps its connection.
        connect._session.mount(f"{connect.url}/", HTTPAdapter(max_retries=0, pool_maxsize=THREADS))

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    def close(self) -> None:
        """Close the connections."""
        self._connect.close()

    async def read_series(self, selector: str, *, at: float, reach: float) -> tuple[RawSeries, ...]:
        """Raw samples of all series of a selector in (at − reach, at] (epoch seconds, seconds). Raises QueryError."""
        query = f"{selector}[{max(1, round(reach * 1000))}ms]"
        return await self._run(lambda asked: parse_matrix(self._ask(query, at, asked)))

    async def read_number(self, query: str, *, at: float) -> float:
        """The one number that a query results in at a time. Raises QueryError."""
        return await self._run(lambda asked: parse_number(self._ask(query, at, asked)))

    async def _run(self, call: Callable[[float], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, self._clock())

    def _ask(self, query: str, at: float, asked: float) -> Mapping[str, Any]:
        started, reason = self._clock(), None
        try:
            if started > asked + self._timeouts.total:
                # Behind a server that hangs the queue would grow for ever, and answer what nobody waits for any more.
                text = f"{self._where} is too slow: a query waited {started - asked:.0f} s for others to end"
                raise QueryError(TIMED_OUT, text)
            return self._post(query, at, deadline=started + self._timeouts.total)
        except QueryError as error:
            reason = error.reason
            raise
        finally:
            if self._observer is not None:
                self._observer(self._settings.name, self._clock() - started, reason)

    def _post(self, query: str, at: float, *, deadline: float) -> Mapping[str, Any]:
        form = {"query": query, "time": f"{at:.3f}", "timeout": f"{round(self._timeouts.read * 1000)}ms"}
        connect = self._connect
        try:
            with connect._session.post(
                f"{connect.url}/api/v1/query",
                data=form,
                headers=connect.headers,
                auth=connect.auth,
                timeout=connect._timeout,
                verify=connect._session.verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = self._read(response, deadline)
                return parse_answer(response.status_code, response.headers.get("Content-Type", ""), body)
        except (requests.Timeout, TimeoutError, urllib3.exceptions.TimeoutError) as error:
            raise QueryError(TIMED_OUT, f"{self._where} did not answer within its time") from error
        except (OSError, urllib3.exceptions.HTTPError) as error:  # RequestException is an OSError
            raise QueryError(UNREACHABLE, f"{self._where} can't be asked: {_root(error)}") from error

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        # read1 returns what has arrived: read would wait for a full chunk, past the deadline, on a dripping server
        while part := response.raw.read1(_CHUNK, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise QueryError(
                    BAD_ANSWER, f"{self._where} answered with more than {MAX_ANSWER_BYTES >> 20} MiB"
                )
            if self._clock() > deadline:
                raise QueryError(
                    TIMED_OUT, f"{self._where} did not end its answer within {self._timeouts.total:g} s"
                )
        return b"".join(parts)

    @property
    def _where(self) -> str:
        return f"server {self._settings.name!r} ({self._settings.url})"


class _Credentials(AuthBase):
    """Sets the Authorization header. Also keeps `requests` from taking credentials from elsewhere."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        settings = self._settings
        token = _secret(settings.bearer_token, settings.bearer_token_file)
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        elif settings.username:
            password = _secret(settings.password, settings.password_file) or ""
            return requests.auth.HTTPBasicAuth(settings.username, password)(request)
        return request


def _secret(value: str | None, file: str | None) -> str | None:
    return value if file is None else Path(file).read_text(encoding="utf-8").strip()


def _root(error: BaseException) -> str:
    """The innermost reason: the outer ones wrap it in the names of classes and addresses of objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
