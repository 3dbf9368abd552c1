"""Operators of one namespace each, forked from one process that has imported everything: many runs, each killed at one
write, at the cost of few.

The parent reads orders: `start NAMESPACE SIDE:WRITE [armed]`, `arm NAMESPACE` and `stop NAMESPACE`. A write is called by what it
says (`told_of`), because how many there are depends on the machine's speed. It counts from when a life was armed; a life that was
killed is followed at once by one that is left alone. It tells what happens: `wrote NAMESPACE WRITE` before each write that counts,
`killed NAMESPACE SIDE:WRITE`. At the end of its orders it ends all lives, so nothing outlives the tests.

Run as `python -m tests.cluster.farm run …`, in place of `python -m modelrollout run …`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import modelrollout.controller.operator as operator
from lab.operator import ROOT, Operator
from modelrollout.cli import main
from modelrollout.cluster.port import Hooks, Write
from tests.cluster.harness import World

# The parent


def tell(text: str) -> None:
    """A line to the tests, whole even beside those of other lives."""
    os.write(1, f"{text}\n".encode())


def told_of(write: Write) -> str:
    """What a write says, without times, counts, evidence and messages: two of one name differ in nothing that is decided."""
    body = write.body or {}
    name, said = write.name, ""
    if isinstance(body, list):
        said = json.dumps([op for op in body if op["op"] != "test"], separators=(",", ":"))
        said = re.sub(r"managedFields/\d+", "managedFields", said)  # in the order of their times
    elif write.kind == "Event":
        name = body["reason"]
    elif write.verb == "replace-status":
        said = _progress(body["status"])
    elif "replicas" in (spec := body.get("spec") or {}):
        said = f"replicas={spec['replicas']}"
    elif "rules" in spec:
        said = ",".join(
            f"{ref['name']}={ref.get('weight')}" for r in spec["rules"] for ref in r["backendRefs"]
        )
    return "/".join(filter(None, (write.verb, write.kind, name, said))).replace(" ", "")


def _progress(status: Mapping[str, Any]) -> str:
    step, weights = status.get("step") or {}, status.get("weights") or {}
    parts = (
        f"{status.get('phase')}#{status.get('attempt')}",
        f"step={step.get('index')}{'+' if step.get('startedAt') else ''}" if step else "",
        ",".join(f"{role}={weight}" for role, weight in sorted(weights.items()) if weight),
        f"retiring={len(status['retiring'])}" if status.get("retiring") else "",
    )
    return ":".join(filter(None, parts))


class Doom:
    """Tells of each write once it is armed, and ends this process by SIGKILL on one side of one of them."""

    def __init__(self, namespace: str, kill: str, *, armed: bool) -> None:
        self.namespace, self._kill, self._armed = namespace, kill, armed
        self._counts: set[int] = set()  # the port's writes that count

    @property
    def hooks(self) -> Hooks:
        return Hooks(before_write=self._before, after_write=self._after)

    def arm(self, *_: object) -> None:
        self._armed = True
        tell(f"armed {self.namespace}")

    async def _before(self, write: Write) -> None:
        if self._armed:
            self._counts.add(write.number)
            tell(f"wrote {self.namespace} {told_of(write)}")
            self._end("before", write)

    async def _after(self, write: Write) -> None:
        if write.number in self._counts:
            self._end("after", write)

    def _end(self, side: str, write: Write) -> None:
        if self._kill == f"{side}:{told_of(write)}":
            tell(f"killed {self.namespace} {self._kill}")
            os.kill(os.getpid(), signal.SIGKILL)


def live(arguments: list[str], doom: Doom) -> NoReturn:
    """One life; it never returns."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGUSR1, doom.arm)
    operator.run = functools.partial(operator.run, hooks=doom.hooks)  # type: ignore[assignment]
    sys.argv = ["modelrollout", *arguments, "--namespace", doom.namespace]
    try:
        main()
    except SystemExit:
        pass
    finally:
        sys.stderr.flush()
        os._exit(1)


class Parent:
    """Forks lives as it is told to."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = [argument for argument in arguments if argument != "--leader-elect"]
        self._lives: dict[int, str] = {}

    def run(self) -> None:
        """Carry out orders until there are no more."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        orders, rest = selectors.DefaultSelector(), b""
        orders.register(0, selectors.EVENT_READ)
        orders.register(woken, selectors.EVENT_READ)
        try:
            while True:
                ready = {key.fd for key, _ in orders.select()}
                if woken in ready:
                    os.read(woken, 4096)
                    self._follow()
                if 0 in ready:
                    chunk = os.read(0, 4096)
                    if not chunk:
                        return
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._obey(*line.decode().split())
        finally:
            for pid in self._lives:
                os.kill(pid, signal.SIGKILL)

    def _obey(self, verb: str, namespace: str, kill: str = "", armed: str = "") -> None:
        if verb == "start":
            self._fork(namespace, kill, armed=bool(armed))
        for pid, of in list(self._lives.items()):
            if of != namespace:
                continue
            if verb == "arm":
                os.kill(pid, signal.SIGUSR1)
            elif verb == "stop":
                del self._lives[pid]
                os.kill(pid, signal.SIGKILL)

    def _fork(self, namespace: str, kill: str, *, armed: bool = False) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the child knows what to do with it
        pid = os.fork()
        if pid == 0:
            live(self._arguments, Doom(namespace, kill, armed=armed))
        self._lives[pid] = namespace

    def _follow(self) -> None:
        """Another life after each that has ended and was not told to."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                namespace = self._lives.pop(ended[0], None)
                if namespace is not None:
                    self._fork(namespace, "never")


# The tests' side


class Farm:
    """The parent as a test sees it."""

    def __init__(self, world: World) -> None:
        self._operator = Operator(world.lab, values=world.values, name="farm").install()
        log = self._operator.log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.cluster.farm", *self._operator.arguments()]
        paths = f"{ROOT / 'operator'}{os.pathsep}{ROOT}"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
        self._writes: defaultdict[str, list[str]] = defaultdict(list)
        self._kills: dict[str, str] = {}
        self._armed: set[str] = set()
        self._told = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> Path:
        return self._operator.log

    def start(self, namespace: str, kill: str, *, armed: bool) -> None:
        """An operator for a namespace, to be killed at one write after it was armed: "before:create/Service/fraud", or "never"."""
        self._order(f"start {namespace} {kill} {'armed' if armed else ''}")

    def arm(self, namespace: str) -> None:
        """From now on its writes count."""
        self._order(f"arm {namespace}")
        with self._told:
            assert self._told.wait_for(lambda: namespace in self._armed, 60), f"{namespace} was not armed"

    def stop(self, namespace: str) -> None:
        """No operator for a namespace any more."""
        self._order(f"stop {namespace}")

    def writes(self, namespace: str) -> list[str]:
        """What was written there since the operator was armed, in order."""
        with self._told:
            return list(self._writes[namespace])

    def killed(self, namespace: str) -> str:
        """The write at which its operator was killed; empty if it was not."""
        with self._told:
            return self._kills.get(namespace, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._operator.close()

    def _order(self, text: str) -> None:
        assert self._process.stdin is not None
        with self._told:
            self._process.stdin.write(f"{text}\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told, namespace, what = (*line.split(maxsplit=2), "")[:3]
            with self._told:
                if told == "wrote":
                    self._writes[namespace].append(what.strip())
                elif told == "killed":
                    self._kills[namespace] = what.strip()
                else:
                    self._armed.add(namespace)
                self._told.notify_all()


if __name__ == "__main__":
    Parent(sys.argv[1:]).run()
