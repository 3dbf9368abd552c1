"""The wire between one operator and the API server, which a test may cut while everybody else goes on.

A proxy on loopback that passes bytes on, so that TLS, watches and tokens are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Cut = Literal["refuses", "hangs"]


class Line:
    """From a port of its own to the API server. Refusing, it drops what is connected and takes no connection; hanging, it takes
    them and lets no byte through, and what was connected then stays dead for ever."""

    def __init__(self, server: str) -> None:
        target = urlsplit(server)
        self._target = str(target.hostname), int(target.port or 443)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._socket = _bound(0)
        self._port = self._socket.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._pairs: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._dead: list[asyncio.StreamWriter] = []
        self._hanging = False
        self.taken = 0  # connections so far

    @property
    def url(self) -> str:
        """What the operator is told of the API server."""
        return f"https://127.0.0.1:{self._port}"

    def cut(self, how: Cut) -> None:
        """From now on nothing gets through."""
        self._run(self._cut(how))

    def mend(self) -> None:
        """New connections get through again."""
        self._run(self._mend())

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._mend())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._cut("refuses"))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._socket.close()
        self._loop.close()

    def _run(self, what: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _mend(self) -> None:
        self._hanging = False
        if self._server is None:
            self._server = await asyncio.start_server(self._take, sock=self._socket)

    async def _cut(self, how: Cut) -> None:
        self._hanging = how == "hangs"
        for task, writer in list(self._pairs.items()):
            self._dead.append(writer)
            task.cancel()
        if self._hanging:
            return
        if self._server is not None:
            self._server.close()
            self._server = None
            # Bound but not listening: connections are refused, and nobody else gets the port.
            self._socket = _bound(self._port)
        for writer in self._dead:
            writer.transport.abort()
        self._dead.clear()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        if self._hanging:
            self._dead.append(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._pairs[task] = writer
        try:
            await self._connect(reader, writer)
        except OSError:
            pass
        except asyncio.CancelledError:
            return  # by a cut, which does with the connection what it means to
        finally:
            del self._pairs[task]
        writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one of the sides has ended."""
        answers, upstream = await asyncio.open_connection(*self._target)
        pumps = [asyncio.create_task(_pump(reader, upstream)), asyncio.create_task(_pump(answers, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            upstream.transport.abort()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
