"""`/healthz`, `/readyz` and `/metrics` over HTTP.

The server lives in the operator's own event loop on purpose: if the loop is stuck there is no answer, and the
kubelet's probe fails by itself. Being alive and being ready are told apart, because an API server that is away must
make the operator not ready, and must not get it restarted.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from modelrollout.cluster.errors import ClusterError
from modelrollout.cluster.queue import WorkQueue

CHECK_SECONDS = 2.0

# A check answers None if all is well, else a sentence that says what is wrong.
Check = Callable[[], str | Awaitable[str | None] | None]


class HealthServer:
    """Serves the checks and the metrics; a standby serves them too. `port` 0 takes a free one, see `port`."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        registry: CollectorRegistry,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._live = live
        self._ready = ready
        self._registry = registry
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port in use; 0 before `start`."""
        addresses = self._runner.addresses if self._runner else []
        return int(addresses[0][1]) if addresses else 0

    async def start(self) -> None:
        """Raises ValueError with a sentence for the user if the address can't be taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._answer_live)
        app.router.add_get("/readyz", self._answer_ready)
        app.router.add_get("/metrics", self._answer_metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await self._site(self._runner).start()
        except OSError as error:
            await self.stop()
            raise ValueError(
                f"health port {self._host}:{self._wanted_port} can't be opened ({error.strerror}): name another one"
            ) from error

    def _site(self, runner: web.AppRunner) -> web.BaseSite:
        if self._host:
            return web.TCPSite(runner, self._host, self._wanted_port)
        return web.SockSite(runner, _everywhere(self._wanted_port))

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer_live(self, _: web.Request) -> web.Response:
        return await _answer(self._live)

    async def _answer_ready(self, _: web.Request) -> web.Response:
        return await _answer(self._ready)

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Thousands of series take a while to write out; decisions go on meanwhile.
        body = await asyncio.to_thread(encode, self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})


def _everywhere(port: int) -> socket.socket:
    """One socket for both families, as pods of a cluster may have addresses of one only; raises OSError if the port is taken."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # the node may have IPv6 switched off
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


async def _answer(checks: Mapping[str, Check]) -> web.Response:
    """All checks, one line each as the API server's own health pages have it; 503 if one fails."""
    names = list(checks)
    faults = await asyncio.gather(*(_run(checks[name]) for name in names))
    lines = [
        f"[-] {name}: {fault}" if fault else f"[+] {name}" for name, fault in zip(names, faults, strict=True)
    ]
    return web.Response(status=503 if any(faults) else 200, text="\n".join([*lines, ""]) if lines else "ok\n")


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            answer = check()
            return await answer if inspect.isawaitable(answer) else answer
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"


def check_queue(queue: WorkQueue[Any], *, work_seconds: float = 300.0, wait_seconds: float = 300.0) -> Check:
    """Alive: no worker has held one key for longer than `work_seconds`, none has waited for `wait_seconds`.

    Both must be far above the sum of the time limits of one round.
    """

    def check() -> str | None:
        if queue.longest_work() > work_seconds:
            return f"a worker has been busy with one rollout for {queue.longest_work():.0f} s"
        if queue.longest_wait() > wait_seconds:
            return f"a rollout has waited {queue.longest_wait():.0f} s for a worker"
        return None

    return check


def check_watch(
    kind: str, owed: Callable[[], float | None], *, limit: float, get: Callable[[], Awaitable[object]]
) -> Check:
    """Alive: the watch owes nothing for longer than `limit` seconds, or a GET fails too.

    `owed`: since how many seconds a change is known that the watch has not told of. Silence is no sign of death: where
    nothing changes there is nothing to tell. An API server that is away is no reason for a restart either.
    """

    async def check() -> str | None:
        seconds = owed()
        if seconds is None or seconds <= limit:
            return None
        try:
            async with asyncio.timeout(CHECK_SECONDS / 2):
                await get()
        except (ClusterError, TimeoutError):
            return None
        return f"the watch of {kind} owes a change for {seconds:.0f} s although the API server answers"

    return check
