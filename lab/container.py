"""One container of a pod: its process, its probes, its restarts, and how it reports them."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.kube import Object
from lab.podstatus import container_status, terminated, timestamp
from lab.process import LabError, Process

# Real life waits 10 s after the second end and up to 5 minutes; nobody would wait that long for a test.
_BACKOFF_FIRST, _BACKOFF_LIMIT, _BACKOFF_RESET = 1.0, 30.0, 60.0
_CANNOT_START = 128
_PROBES = ("startup", "readiness", "liveness")


@dataclass(slots=True)
class Probe:
    """A probe's counters. `passed` is what the kubelet holds true at the moment."""

    spec: Object
    passed: bool
    due: float
    failures: int = 0
    successes: int = 0

    def record(self, success: bool) -> None:
        if success:
            self.successes, self.failures = self.successes + 1, 0
            if self.successes >= self.spec.get("successThreshold", 1):
                self.passed = True
        else:
            self.successes, self.failures = 0, self.failures + 1
            if self.exhausted:
                self.passed = False

    @property
    def exhausted(self) -> bool:
        return bool(self.failures >= self.spec.get("failureThreshold", 3))


@dataclass(slots=True)
class Container:
    """A container and what the kubelet remembers of it. Times are monotonic seconds.

    `command` is its image's: None if there is no such image, empty if the image needs no process.
    """

    spec: Object
    port: int
    command: Sequence[str] | None
    process: Process | None = None
    termination_log: Path | None = None  # what it writes there is the message of its end
    restarts: int = 0
    misconfigured: str = ""
    _started_at: float = 0.0
    _started_stamp: str = field(default_factory=timestamp)
    _ended: Object | None = None
    _previous: Object | None = None
    _start_again_at: float | None = None
    _backoff: float = 0.0
    _probes: dict[str, Probe] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name: str = self.spec["name"]
        return name

    @property
    def running(self) -> bool:
        return self.command == () or (self.process is not None and self._ended is None)

    @property
    def started(self) -> bool:
        return self.running and self._passed("startup")

    @property
    def ready(self) -> bool:
        return self.started and self._passed("readiness")

    def _passed(self, kind: str) -> bool:
        return kind not in self._probes or self._probes[kind].passed

    @property
    def final_code(self) -> int | None:
        """The exit code of a container that ended for good."""
        if self._ended is None or self._start_again_at is not None:
            return None
        code: int = self._ended["exitCode"]
        return code

    def may_start(self, now: float) -> bool:
        """Whether its process is to be started: for the first time, or again after its back-off."""
        if not self.command or self.running:
            return False
        return self._ended is None or (self._start_again_at is not None and now >= self._start_again_at)

    def arguments(self, env: Mapping[str, str]) -> list[str]:
        """Its command line; its own `command` replaces the image's, as in Kubernetes."""
        own = self.spec.get("command") or []
        given = [expand(argument, env) for argument in [*own, *(self.spec.get("args") or [])]]
        return given if own else [*(self.command or ()), *given]

    def start(self, process: Process, now: float) -> bool:
        """Start a process for it; whether that worked. If not, it is tried again later."""
        if self._ended is not None:
            self.restarts += 1
            self._previous, self._ended, self._start_again_at = self._ended, None, None
        self._started_at, self._started_stamp, self.process = now, timestamp(), process
        self._probes = {
            kind: Probe(spec, passed=kind == "liveness", due=now + spec.get("initialDelaySeconds", 0))
            for kind in _PROBES
            if (spec := self.spec.get(f"{kind}Probe"))
        }
        try:
            process.start()
        except LabError as error:
            self._ended = terminated(_CANNOT_START, "StartError", self._started_stamp, message=str(error))
            self._schedule_restart(now)
            return False
        return True

    def note_end(self, now: float, *, policy: str) -> None:
        """If its process ended: note how, and when it may start again by the pod's restart policy."""
        if self.process is None or self._ended is not None or self.process.running:
            return
        code = self.process.returncode or 0
        code = 128 - code if code < 0 else code
        reason = "Error" if code else "Completed"
        self._ended = terminated(code, reason, self._started_stamp, message=self._last_words())
        if policy == "Always" or (policy == "OnFailure" and code):
            self._schedule_restart(now)

    def _last_words(self) -> str:
        """What it left in its termination log, as much of it as the kubelet takes."""
        if self.termination_log is None or not self.termination_log.exists():
            return ""
        return self.termination_log.read_bytes()[:4096].decode(errors="replace")

    def _schedule_restart(self, now: float) -> None:
        if now - self._started_at > _BACKOFF_RESET:
            self._backoff = 0.0
        self._start_again_at = now + self._backoff
        self._backoff = min(_BACKOFF_LIMIT, self._backoff * 2 or _BACKOFF_FIRST)

    def probe(self, now: float) -> bool:
        """Ask the probes that are due; whether the container is to be restarted."""
        for kind, probe in self._applying_probes():
            if now >= probe.due:
                probe.due = now + max(1, probe.spec.get("periodSeconds", 10))
                probe.record(_asked(probe.spec, self.port))
                if kind != "readiness" and probe.exhausted:
                    return True
        return False

    def due(self) -> list[float]:
        """The times at which it needs attention."""
        if self._start_again_at is not None:
            return [self._start_again_at]
        return [probe.due for _, probe in self._applying_probes()]

    def _applying_probes(self) -> Iterator[tuple[str, Probe]]:
        # As the kubelet does: nothing else is asked before the start-up probe succeeded, and that one not afterwards.
        for kind, probe in self._probes.items():
            if self.running and (kind == "startup") != self.started:
                yield kind, probe

    def status(self, pod: str) -> Object:
        """Its entry in the status of the pod named `pod`."""
        previous = self._ended if self._start_again_at is not None else self._previous
        status = container_status(self.spec, state=self._state(pod), ready=self.ready, restarts=self.restarts)
        status["started"] = self.started
        if previous:
            status["lastState"] = {"terminated": previous}
        if self.process is not None and self.process.pid is not None:
            status["containerID"] = f"process://{self.process.pid}"
        return status

    def _state(self, pod: str) -> Object:
        if self.command is None:
            return _waiting("ImagePullBackOff", f'Back-off pulling image "{self.spec["image"]}"')
        if self.misconfigured:
            return _waiting("CreateContainerConfigError", self.misconfigured)
        if self._ended is None:
            return {"running": {"startedAt": self._started_stamp}}
        if self._start_again_at is None:
            return {"terminated": self._ended}
        return _waiting("CrashLoopBackOff", f"back-off restarting failed container={self.name} pod={pod}")


def _waiting(reason: str, message: str) -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` in a value or argument as Kubernetes expands it: unknown names stay, `$$` escapes."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)",
        lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]),
        text,
    )


def _asked(spec: Object, port: int) -> bool:
    """The answer to one probe; whatever port it names, the container listens on its own."""
    timeout = float(spec.get("timeoutSeconds") or 1)
    try:
        if request := spec.get("httpGet"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
            with contextlib.closing(connection):
                headers = {h["name"]: h["value"] for h in request.get("httpHeaders") or []}
                connection.request(
                    "GET", request.get("path") or "/", headers={"User-Agent": "kube-probe/lab"} | headers
                )
                return 200 <= connection.getresponse().status < 400
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=timeout)):
            return True
    except (OSError, http.client.HTTPException):
        return False
