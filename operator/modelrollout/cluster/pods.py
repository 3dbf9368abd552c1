"""Pods, kept small: what a decision or a message can use, and nothing else.

A Pod object is 5 to 20 kB; with thousands of pods that alone would break the memory budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.cluster.kinds import REVISION_LABEL, ROLLOUT_LABEL
from modelrollout.cluster.times import seconds_of

MESSAGE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container, or the whole pod (`container` empty: not scheduled), is not running, or not ready after a crash.

    `exit_code` is the last one, if the container ran before; `message` is cut at 300 characters.
    """

    container: str
    reason: str
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, stripped. Times are epoch seconds; None where the thing has not happened.

    `ready_since` is None unless the pod is ready now. `restarts` and `container_started` are by container name;
    init containers (and sidecars among them) are included.
    """

    namespace: str
    name: str
    uid: str
    rollout: str
    revision: str
    created: float | None
    start: float | None
    ready_since: float | None
    restarts: tuple[tuple[str, int], ...]
    container_started: tuple[tuple[str, float], ...]
    waiting: tuple[Waiting, ...]
    node: str
    phase: str
    pod_ip: str
    terminating: bool

    @property
    def ready(self) -> bool:
        return self.ready_since is not None and not self.terminating

    @property
    def restart_count(self) -> int:
        return sum(count for _, count in self.restarts)


def strip(obj: Mapping[str, Any]) -> Pod:
    """The stripped form of a Pod object."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    is_ready = ready.get("status") == "True"
    containers = list(_containers(status))
    return Pod(
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        rollout=str(labels.get(ROLLOUT_LABEL) or ""),
        revision=str(labels.get(REVISION_LABEL) or ""),
        created=seconds_of(metadata.get("creationTimestamp")),
        start=seconds_of(status.get("startTime")),
        ready_since=(seconds_of(ready.get("lastTransitionTime")) or 0.0) if is_ready else None,
        restarts=tuple((str(c["name"]), int(c.get("restartCount") or 0)) for c in containers),
        container_started=tuple(
            (str(c["name"]), started) for c in containers if (started := _started(c)) is not None
        ),
        waiting=(*_unscheduled(conditions.get("PodScheduled")), *_waiting(containers)),
        node=str(spec.get("nodeName") or ""),
        phase=str(status.get("phase") or ""),
        pod_ip=str(status.get("podIP") or ""),
        terminating=bool(metadata.get("deletionTimestamp")),
    )


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _started(container: Mapping[str, Any]) -> float | None:
    running = (container.get("state") or {}).get("running") or {}
    return seconds_of(running.get("startedAt"))


def _waiting(containers: list[Mapping[str, Any]]) -> Iterator[Waiting]:
    for container in containers:
        state = container.get("state") or {}
        last = (container.get("lastState") or {}).get("terminated") or {}
        now = state.get("terminated") or {}
        waiting = state.get("waiting")
        if waiting:
            reason, message = str(waiting.get("reason") or "Waiting"), str(waiting.get("message") or "")
            yield Waiting(str(container["name"]), reason, message[:MESSAGE_LENGTH], last.get("exitCode"))
        elif now and now.get("exitCode") != 0:
            reason, message = str(now.get("reason") or "Error"), str(now.get("message") or "")
            yield Waiting(str(container["name"]), reason, message[:MESSAGE_LENGTH], now.get("exitCode"))
        elif not now and not container.get("ready") and last.get("exitCode"):
            # It runs again, for the moment: why it ended last time tells more than that it is not ready.
            yield Waiting(str(container["name"]), str(last.get("reason") or "Error"), "", last["exitCode"])


def _unscheduled(condition: Mapping[str, Any] | None) -> Iterator[Waiting]:
    if condition and condition.get("status") == "False":
        message = str(condition.get("message") or "")
        yield Waiting("", str(condition.get("reason") or "Unschedulable"), message[:MESSAGE_LENGTH])
