"""What a kubelet writes into a pod's status: pure, from a pod and the state of its containers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lab.kube import Object


def container_status(spec: Object, *, state: Object, ready: bool, restarts: int) -> Object:
    """One entry of `containerStatuses`."""
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": spec["image"] if "waiting" not in state else "",
        "state": state,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
    }


def terminated(code: int, reason: str, started: str, *, message: str = "") -> Object:
    """The state of a container that ended now."""
    ended: Object = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": timestamp()}
    return ended | ({"message": message} if message else {})


def pod_status(body: Object, phase: str, statuses: list[Object], ip: str) -> Object:
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
    closed = [gate for gate in gates if not condition_holds(body, gate)]
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
            "startTime": body.get("status", {}).get("startTime") or timestamp(),
            "observedGeneration": body["metadata"].get("generation"),
        }
    }


def _timed(body: Object, condition: Object) -> Object:
    for known in body.get("status", {}).get("conditions") or []:
        if known["type"] == condition["type"] and known["status"] == condition["status"]:
            since = known.get("lastTransitionTime") or timestamp()
            break
    else:
        since = timestamp()
    return {"reason": None, "message": None} | condition | {"lastTransitionTime": since}


def condition_holds(body: Object, kind: str) -> bool:
    """Whether a condition is True."""
    conditions = body.get("status", {}).get("conditions") or []
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def is_ready(body: Object) -> bool:
    """Whether a pod is Ready."""
    return condition_holds(body, "Ready")


def without_times(value: Any) -> Any:
    """A report without the times that say when it was made: whether there is news in it."""
    if isinstance(value, dict):
        return {
            key: without_times(inner)
            for key, inner in value.items()
            if key not in ("lastTransitionTime", "startTime")
        }
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def timestamp() -> str:
    """Now, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
