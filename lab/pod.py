"""One pod on the node: a thread that starts, probes, restarts and ends its containers and reports their state."""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import urllib3

from lab.container import Container, expand
from lab.kube import KubeClient, KubeError, Object, path_of
from lab.monitoring import ADDRESS_ANNOTATION
from lab.podstatus import pod_status, without_times
from lab.process import Keeper, Process, free_port

_log = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parent.parent)
_RETRY = 0.5


class _Misconfigured(Exception):
    """A container's environment names what is not there."""


class Pod:
    """A pod whose containers run in local processes. `commands` are those of its containers' images, in their order."""

    def __init__(
        self,
        client: KubeClient,
        folder: Path,
        body: Object,
        *,
        commands: Sequence[Sequence[str] | None],
        ip: str,
        keeper: Keeper,
    ) -> None:
        self._client = client
        self._folder = folder
        self._keeper = keeper
        self._body = body
        # A pod keeps the address that an agent before this one gave it.
        self._ip: str = body["status"].get("podIP") or ip
        self.namespace: str = body["metadata"]["namespace"]
        self.name: str = body["metadata"]["name"]
        self._uid: str = body["metadata"]["uid"]
        self._path = path_of("v1", "pods", self.namespace, self.name)
        self._containers = [
            Container(spec, free_port(), command)
            for spec, command in zip(body["spec"]["containers"], commands, strict=True)
        ]
        # An agent before this one may have run it already; the kubelet counts such a start as a restart too.
        for status in body["status"].get("containerStatuses") or []:
            for container in self._containers:
                if container.name == status["name"] and status.get("containerID"):
                    container.restarts = status["restartCount"] + 1
        self._wake = threading.Event()
        self._abandoned = False
        self._reported: Object | None = None
        name = f"pod {self.namespace}/{self.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start its thread."""
        self._thread.start()

    def update(self, body: Object) -> None:
        """Take note of a newer version of the pod."""
        self._body = body
        self._wake.set()

    def abandon(self) -> None:
        """Kill the processes without a word to the API."""
        self._abandoned = True
        for container in self._containers:
            if container.process:
                container.process.kill()
        self._wake.set()

    def join(self) -> None:
        """Wait for the end of its thread."""
        self._thread.join(timeout=15.0)

    def _run(self) -> None:
        try:
            while not self._abandoned:
                if self._terminating:
                    self._terminate()
                    if self._remove():
                        return
                else:
                    self._step()
                    self._report()
                self._wake.wait(self._pause())
                self._wake.clear()
        finally:
            for container in self._containers:
                if container.process:
                    container.process.kill()

    @property
    def _terminating(self) -> bool:
        return "deletionTimestamp" in self._body["metadata"]

    def _step(self) -> None:
        now = time.monotonic()
        for container in self._containers:
            container.note_end(now, policy=self._body["spec"].get("restartPolicy", "Always"))
            if container.may_start(now) and not self._abandoned:
                self._start(container, now)
            if container.running and container.probe(now) and container.process is not None:
                container.process.stop(grace=float(self._grace()))
                self._wake.set()

    def _pause(self) -> float:
        """Seconds until something is due; an ended process wakes the loop by itself."""
        if self._reported is None or self._terminating or any(c.misconfigured for c in self._containers):
            return _RETRY
        due = [at for container in self._containers for at in container.due()]
        return min(5.0, max(0.01, min(due, default=float("inf")) - time.monotonic()))

    # Start

    def _start(self, container: Container, now: float) -> None:
        try:
            env = self._environment(container)
        except _Misconfigured as error:
            container.misconfigured = str(error)
            return
        container.misconfigured = ""
        log = self._folder / f"{self.namespace}_{self.name}_{container.name}.log"
        # /dev/termination-log would be the machine's own, so the container is told of another place.
        container.termination_log = log.with_suffix(".termination")
        container.termination_log.unlink(missing_ok=True)
        env["TERMINATION_LOG"] = str(container.termination_log)
        process = Process(container.name, container.arguments(env), log=log, keeper=self._keeper, env=env)
        if container.start(process, now):
            threading.Thread(target=self._wake_at_end, args=(process,), daemon=True).start()

    def _wake_at_end(self, process: Process) -> None:
        process.wait()
        self._wake.set()

    def _environment(self, container: Container) -> dict[str, str]:
        # What Kubernetes tells the lab's own process is not the pod's business.
        env = {key: value for key, value in os.environ.items() if not key.startswith("KUBE")}
        # A container brings its own program; here that is this checkout.
        env["PYTHONPATH"] = os.pathsep.join([_ROOT, *filter(None, [env.get("PYTHONPATH")])])
        env |= {"PORT": str(container.port), "HOSTNAME": self.name, "PYTHONUNBUFFERED": "1"}
        for entry in container.spec.get("env") or []:
            if source := entry.get("valueFrom"):
                env[entry["name"]] = self._value_from(source)
            else:
                env[entry["name"]] = expand(entry.get("value") or "", env)
        return env

    def _value_from(self, source: Object) -> str:
        if reference := source.get("fieldRef"):
            return self._field(reference["fieldPath"])
        if reference := source.get("configMapKeyRef"):
            return self._key("configmaps", reference)
        if reference := source.get("secretKeyRef"):
            return base64.b64decode(self._key("secrets", reference)).decode()
        raise _Misconfigured(f"the lab has no env value from {', '.join(source)}")

    def _key(self, plural: str, reference: Object) -> str:
        try:
            found = self._client.find(path_of("v1", plural, self.namespace, reference["name"]))
        except (KubeError, urllib3.exceptions.HTTPError, OSError) as error:
            raise _Misconfigured(f"{plural} {reference['name']} cannot be read: {error}") from error
        data = (found or {}).get("data") or {}
        if reference["key"] not in data and not reference.get("optional"):
            raise _Misconfigured(f'{plural} "{reference["name"]}" has no key "{reference["key"]}"')
        return str(data.get(reference["key"], ""))

    def _field(self, path: str) -> str:
        """The downward API."""
        if path in ("status.podIP", "status.podIPs"):
            return self._ip
        if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str((self._body["metadata"].get(found[1]) or {}).get(found[2], ""))
        value: Any = self._body
        for part in path.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return str(value)

    # End

    def _grace(self) -> int:
        seconds: int | None = self._body["metadata"].get("deletionGracePeriodSeconds")
        if seconds is not None:
            return seconds
        return int(self._body["spec"].get("terminationGracePeriodSeconds") or 30)

    def _terminate(self) -> None:
        """SIGTERM to all, then SIGKILL after the grace period; the pod shows as terminating meanwhile."""
        stops = [
            threading.Thread(target=self._stop, args=(container, container.process), daemon=True)
            for container in self._containers
            if container.running and container.process is not None
        ]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

    def _stop(self, container: Container, process: Process) -> None:
        hooks = (container.spec.get("lifecycle") or {}).get("preStop") or {}
        until = time.monotonic() + min((hooks.get("sleep") or {}).get("seconds", 0), self._grace())
        while process.running and not self._abandoned and time.monotonic() < until:
            time.sleep(0.05)
        process.stop(grace=float(self._grace()))

    def _remove(self) -> bool:
        """Take the pod out of the API; whether that worked."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
        try:
            self._client.delete(self._path, options, missing_ok=True)
        except KubeError as error:
            return error.status == 409
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return True

    # Report

    def _report(self) -> None:
        """Write the status if there is news; after a failure the loop comes back for it."""
        statuses = [container.status(f"{self.name}_{self.namespace}") for container in self._containers]
        body = pod_status(self._body, self._phase(), statuses, self._ip)
        address = f"127.0.0.1:{self._containers[0].port}"
        body["metadata"] = {"uid": self._uid, "annotations": {ADDRESS_ANNOTATION: address}}
        news = without_times(body)
        if news == self._reported:
            return
        self._reported = None
        try:
            self._client.patch(f"{self._path}/status", body, "strategic")
        except KubeError as error:
            # 404 and 409: it is gone, or another pod has its name; its DELETED event ends this thread.
            if error.status not in (404, 409):
                _log.warning("the status of pod %s/%s is refused: %s", self.namespace, self.name, error)
                return
        except (urllib3.exceptions.HTTPError, OSError):
            return
        self._reported = news

    def _phase(self) -> str:
        if any(c.command is None or c.misconfigured for c in self._containers):
            return "Pending"
        codes = [code for container in self._containers if (code := container.final_code) is not None]
        if len(codes) < len(self._containers):
            return "Running"
        return "Failed" if any(codes) else "Succeeded"
