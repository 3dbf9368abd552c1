"""A node whose containers are local processes.

It does what a rollout can see of a kubelet: it runs the pods bound to it, probes them, restarts them with back-off,
ends them gracefully and reports all that in their status. A pod gets an IP of a pod network that does not exist
(EndpointSlices refuse loopback addresses) and says in an annotation where its process really listens. Images are names
in a table; an image without a command is only reported Ready, so that thousands of pods cost no process (a crowd).
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import os
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3

from lab.kube import EventType, Informer, KubeClient, KubeError, Object, path_of
from lab.monitoring import ADDRESS_ANNOTATION
from lab.process import Keeper, LabError, Process, free_port

# Image without tag → command; None: no process, the pod is only reported Ready.
Images = Mapping[str, Sequence[str] | None]

_log = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parent.parent)
_CROWD_WORKERS = 4
_RETRY = 0.5
# Real life waits 10 s after the second end and up to 5 minutes; nobody would wait that long for a test.
_BACKOFF_FIRST, _BACKOFF_LIMIT, _BACKOFF_RESET = 1.0, 30.0, 60.0


class NodeAgent:
    """Registers a Node named `name` and runs the pods bound to it until `stop`."""

    def __init__(
        self,
        client: KubeClient,
        folder: Path,
        images: Images,
        *,
        keeper: Keeper,
        name: str = "lab",
        crowd: bool = False,
    ) -> None:
        self._client = client
        self._folder = folder
        self._images = images
        self._keeper = keeper
        self._name = name
        self._crowd = crowd
        self._addresses = _pod_addresses()
        self._pods: dict[str, _Pod] = {}
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Object | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._report_crowd, name=f"crowd {n}", daemon=True)
            for n in range(_CROWD_WORKERS)
        ]
        self._informer = Informer(
            client, path_of("v1", "pods"), self._on_pod, fieldSelector=f"spec.nodeName={name}"
        )

    def start(self) -> None:
        """Register the node and follow its pods. Raises KubeError if the node is refused."""
        self._register()
        for worker in self._workers:
            worker.start()
        self._informer.start()

    def stop(self) -> None:
        """End all processes of all pods; the pods stay in the API."""
        self._informer.stop()
        with self._lock:
            pods = list(self._pods.values())
        for pod in pods:
            pod.abandon()
        for pod in pods:
            pod.join()
        for _ in self._workers:
            self._work.put(None)

    def pids(self, namespace: str, name: str) -> list[int]:
        """The process ids of a pod's containers that run now."""
        with self._lock:
            pods = list(self._pods.values())
        found = [pod for pod in pods if (pod.namespace, pod.name) == (namespace, name)]
        return [pid for pod in found for pid in pod.pids()]

    def _register(self) -> None:
        now = _timestamp()
        room = {"cpu": "1000", "memory": "4Ti", "pods": "20000", "ephemeral-storage": "10Ti"}
        body: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self._name,
                "labels": {"kubernetes.io/hostname": self._name, "kubernetes.io/os": "linux"},
            },
        }
        status = {
            "capacity": room,
            "allocatable": room,
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "Hostname", "address": self._name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "LabReady",
                    "message": "the lab's node agent runs",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
        }
        nodes = path_of("v1", "nodes")
        if self._client.find(f"{nodes}/{self._name}") is None:
            self._client.create(nodes, body)
        self._client.patch(f"{nodes}/{self._name}/status", {"status": status}, "merge")

    def _on_pod(self, kind: EventType, body: Object) -> None:
        uid = body["metadata"]["uid"]
        if self._is_crowd(body):
            if kind != "DELETED":
                self._work.put(body)
            return
        with self._lock:
            pod = self._pods.get(uid)
            if kind == "DELETED":
                self._pods.pop(uid, None)
            elif pod is None and body["status"].get("phase") in ("Succeeded", "Failed"):
                # It ended under an earlier agent; only its removal is left to do.
                if "deletionTimestamp" in body["metadata"]:
                    self._work.put(body)
            elif pod is None:
                pod = self._pods[uid] = _Pod(
                    self._client, self._folder, self._images, body, next(self._addresses), self._keeper
                )
                pod.start()
        if pod is not None:
            if kind == "DELETED":
                pod.abandon()
            else:
                pod.update(body)

    def _is_crowd(self, body: Object) -> bool:
        names = [container["image"] for container in body["spec"]["containers"]]
        return self._crowd or all(_lookup(self._images, name) == () for name in names)

    def _report_crowd(self) -> None:
        while (body := self._work.get()) is not None:
            try:
                self._report_one(body)
            except KubeError as error:
                # Gone or changed meanwhile: its next event brings it back, or nothing need be done.
                if error.status not in (404, 409):
                    _log.warning("the report on pod %s is refused: %s", body["metadata"]["name"], error)
                    self._later(body)
            except (urllib3.exceptions.HTTPError, OSError):
                self._later(body)

    def _later(self, body: Object) -> None:
        timer = threading.Timer(_RETRY, self._work.put, (body,))
        timer.daemon = True
        timer.start()

    def _report_one(self, body: Object) -> None:
        metadata = body["metadata"]
        path = path_of("v1", "pods", metadata["namespace"], metadata["name"])
        if "deletionTimestamp" in metadata:
            self._client.delete(
                path, {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}, missing_ok=True
            )
            return
        if _is_ready(body):
            return
        statuses = [
            _container_status(
                container, state={"running": {"startedAt": _timestamp()}}, ready=True, restarts=0
            )
            for container in body["spec"]["containers"]
        ]
        with self._lock:
            ip = body["status"].get("podIP") or next(self._addresses)
        self._client.patch(f"{path}/status", _status(body, "Running", statuses, ip), "strategic")


@dataclass(slots=True)
class _Container:
    """One container's process and what the kubelet remembers of it. Times are monotonic seconds."""

    spec: Object
    port: int
    command: Sequence[str] | None
    process: Process | None = None
    started_at: float = 0.0
    started_stamp: str = ""
    restarts: int = 0
    ended: Object | None = None
    previous: Object | None = None
    start_again_at: float | None = None
    backoff: float = 0.0
    probes: dict[str, _Probe] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name: str = self.spec["name"]
        return name

    @property
    def running(self) -> bool:
        return self.command == () or (self.process is not None and self.ended is None)

    @property
    def ready(self) -> bool:
        return (
            self.running
            and self.started
            and all(p.passed for kind, p in self.probes.items() if kind == "readiness")
        )

    @property
    def started(self) -> bool:
        return self.running and all(p.passed for kind, p in self.probes.items() if kind == "startup")


@dataclass(slots=True)
class _Probe:
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


class _Pod:
    """The thread of one pod: its loop starts, probes, restarts and ends the containers and reports their state."""

    def __init__(
        self, client: KubeClient, folder: Path, images: Images, body: Object, ip: str, keeper: Keeper
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
            _Container(spec, free_port(), _lookup(images, spec["image"]))
            for spec in body["spec"]["containers"]
        ]
        # An agent before this one may have run it already; the kubelet counts such a start as a restart too.
        for status in body["status"].get("containerStatuses") or []:
            for container in self._containers:
                if container.name == status["name"] and status.get("containerID"):
                    container.restarts = status["restartCount"] + 1
        self._wake = threading.Event()
        self._abandoned = False
        self._reported: Object | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"pod {self.namespace}/{self.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def update(self, body: Object) -> None:
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
        self._thread.join(timeout=15.0)

    def pids(self) -> list[int]:
        processes = [container.process for container in self._containers if container.running]
        return [process.pid for process in processes if process is not None and process.pid is not None]

    # The loop

    def _run(self) -> None:
        try:
            while not self._abandoned:
                if "deletionTimestamp" in self._body["metadata"]:
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
                    container.process.stop(grace=0.0)

    def _step(self) -> None:
        now = time.monotonic()
        for container in self._containers:
            self._note_end(container, now)
            if self._may_start(container, now):
                self._start(container, now)
            if container.running:
                self._probe(container, now)

    def _pause(self) -> float:
        """Seconds until something is due; an ended process wakes the loop by itself."""
        if self._reported is None or "deletionTimestamp" in self._body["metadata"]:
            return _RETRY
        due = [c.start_again_at for c in self._containers if c.start_again_at is not None]
        due += [
            p.due
            for c in self._containers
            if c.running
            for kind, p in c.probes.items()
            if self._applies(c, kind)
        ]
        return min(5.0, max(0.01, min(due, default=float("inf")) - time.monotonic()))

    # Containers

    def _may_start(self, container: _Container, now: float) -> bool:
        if not container.command or container.running or self._abandoned:
            return False
        if container.ended is None:
            return True
        return container.start_again_at is not None and now >= container.start_again_at

    def _start(self, container: _Container, now: float) -> None:
        if container.ended is not None:
            container.restarts += 1
            container.previous, container.ended, container.start_again_at = container.ended, None, None
        log = self._folder / f"{self.namespace}_{self.name}_{container.name}.log"
        container.started_at, container.started_stamp = now, _timestamp()
        env = self._environment(container)
        process = Process(
            container.name, self._command(container, env), log=log, keeper=self._keeper, env=env
        )
        container.process = process
        container.probes = {
            kind: _Probe(spec, passed=kind == "liveness", due=now + spec.get("initialDelaySeconds", 0))
            for kind in ("startup", "readiness", "liveness")
            if (spec := container.spec.get(f"{kind}Probe"))
        }
        try:
            process.start()
        except LabError as error:
            container.ended = _terminated(128, "StartError", container.started_stamp, message=str(error))
            self._schedule_restart(container, now)
            return
        threading.Thread(target=self._wake_at_end, args=(process,), daemon=True).start()

    def _wake_at_end(self, process: Process) -> None:
        process.wait()
        self._wake.set()

    def _note_end(self, container: _Container, now: float) -> None:
        if container.process is None or container.ended is not None or container.process.running:
            return
        code = container.process.returncode or 0
        code = 128 - code if code < 0 else code
        container.ended = _terminated(code, "Error" if code else "Completed", container.started_stamp)
        policy = self._body["spec"].get("restartPolicy", "Always")
        if policy == "Always" or (policy == "OnFailure" and code):
            self._schedule_restart(container, now)

    def _schedule_restart(self, container: _Container, now: float) -> None:
        if now - container.started_at > _BACKOFF_RESET:
            container.backoff = 0.0
        container.start_again_at = now + container.backoff
        container.backoff = min(_BACKOFF_LIMIT, container.backoff * 2 or _BACKOFF_FIRST)

    def _command(self, container: _Container, env: Mapping[str, str]) -> list[str]:
        own = container.spec.get("command")
        arguments = container.spec.get("args") or []
        expanded = [_expand(argument, env) for argument in [*(own or []), *arguments]]
        return expanded if own else [*(container.command or ()), *expanded]

    def _environment(self, container: _Container) -> dict[str, str]:
        # What Kubernetes tells the lab's own process is not the pod's business.
        env = {key: value for key, value in os.environ.items() if not key.startswith("KUBE")}
        # A container brings its own program; here that is this checkout.
        env["PYTHONPATH"] = os.pathsep.join([_ROOT, *filter(None, [env.get("PYTHONPATH")])])
        env |= {"PORT": str(container.port), "HOSTNAME": self.name, "PYTHONUNBUFFERED": "1"}
        for entry in container.spec.get("env") or []:
            value = entry.get("value")
            env[entry["name"]] = (
                self._value_from(entry["valueFrom"]) if "valueFrom" in entry else _expand(value or "", env)
            )
        return env

    def _value_from(self, source: Object) -> str:
        if reference := source.get("fieldRef"):
            return self._field(reference["fieldPath"])
        for kind, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if reference := source.get(kind):
                found = self._client.find(path_of("v1", plural, self.namespace, reference["name"])) or {}
                return str((found.get("data") or {}).get(reference["key"], ""))
        return ""

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

    # Probes

    def _applies(self, container: _Container, kind: str) -> bool:
        # As the kubelet does: nothing else is probed before the start-up probe succeeded, which is not asked again.
        return not container.started if kind == "startup" else container.started

    def _probe(self, container: _Container, now: float) -> None:
        for kind, probe in container.probes.items():
            if now < probe.due or not self._applies(container, kind):
                continue
            probe.due = now + max(1, probe.spec.get("periodSeconds", 10))
            probe.record(_asked(probe.spec, container.port))
            if kind != "readiness" and probe.exhausted and container.process is not None:
                container.process.stop(grace=float(self._grace()))
                self._wake.set()
                return

    def _grace(self) -> int:
        seconds: int | None = self._body["metadata"].get("deletionGracePeriodSeconds")
        return (
            seconds
            if seconds is not None
            else int(self._body["spec"].get("terminationGracePeriodSeconds") or 30)
        )

    # Reports

    def _terminate(self) -> None:
        """SIGTERM to all, then SIGKILL after the grace period; the pod shows as terminating meanwhile."""
        stops = [
            threading.Thread(target=self._stop_container, args=(container,), daemon=True)
            for container in self._containers
            if container.running
        ]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

    def _stop_container(self, container: _Container) -> None:
        process = container.process
        if process is None:
            return
        if hook := ((container.spec.get("lifecycle") or {}).get("preStop") or {}).get("sleep"):
            deadline = time.monotonic() + min(hook.get("seconds", 0), self._grace())
            while process.running and not self._abandoned and time.monotonic() < deadline:
                time.sleep(0.05)
        process.stop(grace=float(self._grace()))

    def _remove(self) -> bool:
        """Take the pod out of the API; whether that worked."""
        try:
            self._client.delete(
                self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}, missing_ok=True
            )
        except KubeError as error:
            return error.status == 409
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return True

    def _report(self) -> None:
        """Write the status if it changed; after a failure the loop comes back for it."""
        statuses = [self._container_status(container) for container in self._containers]
        body = _status(self._body, self._phase(), statuses, self._ip)
        body["metadata"] = {
            "uid": self._uid,
            "annotations": {ADDRESS_ANNOTATION: f"127.0.0.1:{self._containers[0].port}"},
        }
        if _without_times(body) == self._reported:
            return
        self._reported = None
        try:
            self._client.patch(f"{self._path}/status", body, "strategic")
        except KubeError as error:
            # 404 and 409: it is gone, or another pod has its name; its DELETED event ends this thread.
            if error.status in (404, 409):
                self._reported = _without_times(body)
            else:
                _log.warning("the status of pod %s/%s is refused: %s", self.namespace, self.name, error)
        except (urllib3.exceptions.HTTPError, OSError):
            return
        else:
            self._reported = _without_times(body)

    def _phase(self) -> str:
        if any(container.command is None for container in self._containers):
            return "Pending"
        final = [c.ended for c in self._containers if c.ended is not None and c.start_again_at is None]
        if len(final) < len(self._containers):
            return "Running"
        return "Failed" if any(ended["exitCode"] for ended in final) else "Succeeded"

    def _container_status(self, container: _Container) -> Object:
        if container.command is None:
            message = f'Back-off pulling image "{container.spec["image"]}"'
            state: Object = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
        elif container.ended is None:
            state = {"running": {"startedAt": container.started_stamp}}
        elif container.start_again_at is None:
            state = {"terminated": container.ended}
        else:
            message = (
                f"back-off restarting failed container={container.name} pod={self.name}_{self.namespace}"
            )
            state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        previous = container.ended if container.start_again_at is not None else container.previous
        status = _container_status(
            container.spec, state=state, ready=container.ready, restarts=container.restarts
        )
        status["started"] = container.started
        if previous:
            status["lastState"] = {"terminated": previous}
        if container.process is not None and container.process.pid is not None:
            status["containerID"] = f"process://{container.process.pid}"
        return status


def _pod_addresses() -> Iterator[str]:
    """Addresses of 10.244.0.0/16, each again only after all others."""
    # From anywhere, since an agent before this one gave out some to pods that are still there.
    first = random.randrange(1 << 16)
    return (f"10.244.{n >> 8 & 255}.{n & 255}" for n in itertools.count(first) if n & 255 not in (0, 255))


def _lookup(images: Images, image: str) -> Sequence[str] | None:
    """An image's command: empty if it needs no process, None if there is no such image."""
    name = image.split("@")[0]
    for candidate in (name, name.rsplit(":", 1)[0]):
        if candidate in images:
            return images[candidate] or ()
    return None


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes expands it: unknown names stay, `$$` escapes."""
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


def _container_status(spec: Object, *, state: Object, ready: bool, restarts: int) -> Object:
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": spec["image"] if "waiting" not in state else "",
        "state": state,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
    }


def _terminated(code: int, reason: str, started: str, *, message: str = "") -> Object:
    ended: Object = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": _timestamp()}
    return ended | ({"message": message} if message else {})


def _status(body: Object, phase: str, statuses: list[Object], ip: str) -> Object:
    """A strategic merge patch of the pod's status. A condition's time changes only with the condition."""
    unready = [status["name"] for status in statuses if not status["ready"]]
    done = phase in ("Succeeded", "Failed")
    why: Object = {}
    if done:
        why = {"reason": "PodCompleted"}
    elif unready:
        why = {
            "reason": "ContainersNotReady",
            "message": f"containers with unready status: [{' '.join(unready)}]",
        }
    gates = [gate["conditionType"] for gate in body["spec"].get("readinessGates") or []]
    closed = [gate for gate in gates if not _condition_holds(body, gate)]
    ready = not unready and not done
    gated: Object = why or {
        "reason": "ReadinessGatesNotReady",
        "message": f'the status of pod readiness gate "{closed[0] if closed else ""}" is not "True"',
    }
    wanted = [
        {"type": "PodReadyToStartContainers", "status": "True"},
        {"type": "Initialized", "status": "True"},
        {"type": "ContainersReady", "status": str(ready)} | ({} if ready else why),
        {"type": "Ready", "status": str(ready and not closed)} | ({} if ready and not closed else gated),
    ]
    return {
        "status": {
            "phase": phase,
            "conditions": [_timed(body, condition) for condition in wanted],
            "containerStatuses": statuses,
            "hostIP": "10.0.0.1",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": body.get("status", {}).get("startTime") or _timestamp(),
            "observedGeneration": body["metadata"].get("generation"),
        }
    }


def _timed(body: Object, condition: Object) -> Object:
    for known in body.get("status", {}).get("conditions") or []:
        if known["type"] == condition["type"] and known["status"] == condition["status"]:
            since = known.get("lastTransitionTime") or _timestamp()
            break
    else:
        since = _timestamp()
    return {"reason": None, "message": None} | condition | {"lastTransitionTime": since}


def _condition_holds(body: Object, kind: str) -> bool:
    conditions = body.get("status", {}).get("conditions") or []
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def _is_ready(body: Object) -> bool:
    return _condition_holds(body, "Ready")


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(inner)
            for key, inner in value.items()
            if key not in ("lastTransitionTime", "startTime")
        }
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
