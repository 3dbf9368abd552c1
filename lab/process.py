"""Local processes that never outlive the lab.

A lab starts a dozen servers. A test run that is killed must not leave them behind, and the lab must never end a process
that it did not start. So each process leads a session of its own, and a keeper (a tiny process at the other end of a
pipe) ends all sessions still open when the lab's process is gone for whatever reason. `prctl(PR_SET_PDEATHSIG)` would
not do: it is bound to the life of the thread that forked, and only Linux has it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_KEEPER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
alive = set()
for line in sys.stdin:
    (alive.add if line[0] == "+" else alive.discard)(int(line[1:]))
for pid in alive:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
"""

# Below the ports that kernels hand out for outgoing connections: a port that a stopped server will claim again on its
# restart must not be taken by some client meanwhile.
_PORTS = range(18000, 32000)


class LabError(Exception):
    """Something of the lab does not work; the message is one sentence for a person."""


def is_free(port: int) -> bool:
    """Whether nobody listens on a loopback port; connections of an earlier server that fade away do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nobody listens on.

    Raises LabError if 200 tries found none.
    """
    for port in random.sample(_PORTS, 200):
        if is_free(port):
            return port
    raise LabError(
        f"no free loopback port was found in {_PORTS.start}–{_PORTS.stop}: end some servers and try again"
    )


def kept_port(file: Path) -> int:
    """The port that a file names if it is still free, else a new one, which the file then names."""
    try:
        port = int(file.read_text())
    except (FileNotFoundError, ValueError):
        port = 0
    if not (port and is_free(port)):
        port = free_port()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(port))
    return port


def answers(url: str) -> bool:
    """Whether a server answers a URL with 200, within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        # No /proc on this system, or the process ended this moment: the next question tells.
        return True


def wait_until(check: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.05) -> None:
    """Ask `check` every `interval` seconds until it is true.

    Raises LabError naming `what` after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen within {timeout:.0f} s")
        time.sleep(interval)


class Keeper:
    """Ends every registered session when this process dies; `close` ends the keeper itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def _tell(self, sign: str, pid: int) -> None:
        with self._lock:
            assert self._popen.stdin is not None
            # A keeper that was killed by hand only costs its safety net.
            with contextlib.suppress(BrokenPipeError, ValueError):
                self._popen.stdin.write(f"{sign}{pid}\n".encode())
                self._popen.stdin.flush()

    def add(self, pid: int) -> None:
        self._tell("+", pid)

    def discard(self, pid: int) -> None:
        self._tell("-", pid)

    def close(self) -> None:
        with self._lock:
            assert self._popen.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        self._popen.wait(timeout=10)


class Process:
    """One local server: start, wait until ready, stop; its output goes to one log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        keeper: Keeper,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self._keeper = keeper
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self._swept = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process id, or None before the first start."""
        return self._popen.pid if self._popen else None

    @property
    def running(self) -> bool:
        return self._popen is not None and self._poll() is None

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen.returncode`: negative for a signal, None while it runs."""
        return self._poll()

    def _poll(self) -> int | None:
        """The return code. At the moment the end is seen, what the process left running in its session is ended too:
        later its number might be someone else's."""
        with self._lock:
            if self._popen is None:
                return None
            code = self._popen.poll()
            if code is not None and not self._swept:
                self._swept = True
                self._kill_session(self._popen.pid)
                self._keeper.discard(self._popen.pid)
            return code

    def start(self) -> Process:
        """Start it anew unless it runs. Raises LabError if the program cannot be executed."""
        if self.running:
            return self
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                self._popen = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(
                    f"{self.name} cannot be started: {self.command[0]}: {error.strerror}"
                ) from error
        self._swept = False
        self._keeper.add(self._popen.pid)
        return self

    def wait_ready(self, check: Callable[[], bool], *, timeout: float = 60.0) -> None:
        """Wait until `check` is true. Raises LabError with the end of the log if the process ends or time is up."""
        deadline = time.monotonic() + timeout
        while not check():
            if not self.running:
                raise LabError(
                    f"{self.name} ended with code {self.returncode} while starting:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise LabError(
                    f"{self.name} was not ready after {timeout:.0f} s; {self.log} ends with:\n{self.tail()}"
                )
            time.sleep(0.05)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end; the return code, or None if it still runs after `timeout` seconds."""
        if self._popen is not None and timeout is None:
            self._popen.wait()
        deadline = time.monotonic() + (timeout or 0.0)
        while self._popen is not None and self._poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the process alone, if it still runs."""
        if self.running and self._popen is not None:
            self._popen.send_signal(number)

    def stop(self, grace: float = 10.0) -> int | None:
        """SIGTERM, then SIGKILL to its whole session after `grace` seconds; the return code."""
        self.signal(signal.SIGTERM)
        code = self.wait(grace)
        return self.kill() if code is None else code

    def kill(self) -> int | None:
        """SIGKILL to its whole session; the return code."""
        if self.running and self._popen is not None:
            self._kill_session(self._popen.pid)
        return self.wait(10.0)

    @staticmethod
    def _kill_session(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
