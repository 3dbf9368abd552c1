"""A node whose containers are local processes.

It does what a rollout can see of a kubelet: it runs the pods bound to it, probes them, restarts them with back-off,
ends them gracefully and reports all that in their status. A pod gets an IP of a pod network that does not exist
(EndpointSlices refuse loopback addresses) and says in an annotation where its process really listens. Images are names
in a table; an image without a command is only reported Ready, so that thousands of pods cost no process (a crowd).
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import urllib3

from lab.kube import EventType, Informer, KubeClient, KubeError, Object, path_of
from lab.pod import Pod
from lab.podstatus import container_status, is_ready, pod_status, timestamp
from lab.process import Keeper

# Image without tag → command; None: no process, the pod is only reported Ready.
Images = Mapping[str, Sequence[str] | None]

_log = logging.getLogger(__name__)

_CROWD_WORKERS = 4
_RETRY = 0.5


# On a pod without processes (a crowd): "false" makes the node report it as not ready, as a failing probe would.
READY_ANNOTATION = "lab.modelrollout.dev/ready"


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
        self._pods: dict[str, Pod] = {}
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

    def _register(self) -> None:
        now = timestamp()
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
                commands = [
                    _lookup(self._images, container["image"]) for container in body["spec"]["containers"]
                ]
                ip = next(self._addresses)
                pod = Pod(self._client, self._folder, body, commands=commands, ip=ip, keeper=self._keeper)
                self._pods[uid] = pod
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
        ready = (metadata.get("annotations") or {}).get(READY_ANNOTATION) != "false"
        if is_ready(body) == ready and body["status"].get("podIP"):
            return
        since = body["status"].get("startTime") or timestamp()
        statuses = [
            container_status(container, state={"running": {"startedAt": since}}, ready=ready, restarts=0)
            for container in body["spec"]["containers"]
        ]
        with self._lock:
            ip = body["status"].get("podIP") or next(self._addresses)
        self._client.patch(f"{path}/status", pod_status(body, "Running", statuses, ip), "strategic")


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
