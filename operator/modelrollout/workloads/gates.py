"""Jobs of gates: what is to run for the committed status, and what came out of it.

A Job's name is made from the question that it answers, so after a crash the same Job is found again, and never a second one
made. Its pods carry no label by which Services or autoscalers could take them for pods of the model.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from modelrollout.api.spec import GROUP, Gate, GateJob, JobResult, Spec
from modelrollout.api.status import GateStatus, Phase, Status
from modelrollout.cluster.actions import Action, Create
from modelrollout.cluster.kinds import JOB, SERVICE, Object
from modelrollout.decision.types import GateReading
from modelrollout.planning.steps import gates_by_id
from modelrollout.workloads.children import Children, Ownership, delete, deleting, name_in, owned, ownership
from modelrollout.workloads.revisions import model_variables, set_variables, without_nulls

GATE_LABEL = f"{GROUP}/gate"
GATE_OF_LABEL = f"{GROUP}/gate-of"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
KEPT = 86_400  # seconds that a Job which is over is kept, for its logs
_NAME_LENGTH, _HASH_LENGTH = 49, 8  # with -gate- between, the longest name of a Job
_LINE = 200


def asking_gate(status: Status) -> GateStatus | None:
    """The gate that is asked now; None where no candidate is tried."""
    comparing = status.phase in (Phase.PROGRESSING, Phase.PAUSED)
    return status.step.asking if comparing and status.step is not None else None


def idempotency_key(rollout: Mapping[str, Any], status: Status, gate: GateStatus) -> str:
    """Names what is asked: the same for retries and after a crash, another one once somebody resumes."""
    step = status.step.id if status.step else ""
    return f"{rollout['metadata']['uid']}/{status.attempt}/{step}/{gate.id}/{gate.turn}"


def job_name(rollout: Mapping[str, Any], status: Status, gate: GateStatus) -> str:
    """Name of the Job that answers a question; at most 63 characters, as it becomes a label of pods."""
    digest = hashlib.sha256(idempotency_key(rollout, status, gate).encode()).digest()
    short = base64.b32encode(digest).decode().lower()[:_HASH_LENGTH]
    return f"{name_in(rollout)[:_NAME_LENGTH].rstrip('-')}-gate-{short}"


def gate_actions(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
) -> list[Action]:
    """Make the Job of the gate that is asked, and end those that nobody waits for. Jobs that are over are left to their
    time to live."""
    if deleting(rollout):
        return []
    gate = asking_gate(status)
    planned = gates_by_id(spec).get(gate.id) if gate is not None else None
    wanted = job_name(rollout, status, gate) if gate is not None else ""
    unneeded = [
        delete(job, "its gate is not asked any more")
        for name, job in children.jobs.items()
        if name != wanted
        and job_outcome(job) is None
        and not deleting(job)
        and ownership(rollout, job) is Ownership.OURS
    ]
    if gate is None or planned is None or planned.job is None or wanted in children.jobs:
        return [*unneeded]
    # Of what was last accepted only a hash of the template is kept: nothing is begun from it.
    if not planned.job.runnable:
        return [*unneeded]
    made = gate_job(rollout, spec, status, children, planned, wanted)
    return [*unneeded, Create(made, f"gate {gate.name} is asked")]


def gate_job(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, gate: Gate, name: str
) -> Object:
    """The Job of a gate."""
    job = gate.job
    assert job is not None
    candidate = status.candidate.revision if status.candidate else ""
    metadata = owned(rollout, name, candidate or None)
    metadata["labels"] |= {GATE_LABEL: gate.name}
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": metadata,
        "spec": {
            "backoffLimit": job.retries,
            "activeDeadlineSeconds": math.ceil(job.deadline),
            "ttlSecondsAfterFinished": KEPT,
            "template": _template(rollout, spec, status, children, gate, job),
        },
    }


def _template(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, gate: Gate, job: GateJob
) -> Object:
    template: Object = without_nulls(copy.deepcopy(job.template))
    metadata = template.setdefault("metadata", {})
    # Ours would make Services and autoscalers take them for pods of the model.
    theirs = {k: v for k, v in (metadata.get("labels") or {}).items() if not k.startswith(f"{GROUP}/")}
    metadata["labels"] = theirs | {GATE_LABEL: gate.name, GATE_OF_LABEL: name_in(rollout)}
    pod = template.setdefault("spec", {})
    pod.setdefault("restartPolicy", "Never")
    sides = {"CANDIDATE": status.candidate, "BASELINE": status.stable}
    services = {
        f"{side}_SERVICE": service_of(rollout, children, role.revision)
        for side, role in sides.items()
        if role
    }
    variables = {
        **model_variables(spec.model),
        "ROLLOUT": name_in(rollout),
        "GATE": gate.name,
        "REVISION": status.candidate.revision if status.candidate else None,
        "BASELINE_REVISION": status.stable.revision if status.stable else None,
        **services,
    }
    set_variables(pod, variables)
    return template


def service_of(rollout: Mapping[str, Any], children: Children, revision: str) -> str | None:
    """Name of the Service in front of a revision; an InferencePool of the user's is none."""
    backend = children.backend_of(rollout, revision)
    return backend.name if backend.kind == SERVICE.kind else None


def job_outcome(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition that says how a Job ended; None while it goes on."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None


def read_job(
    job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], result: JobResult | None
) -> GateReading:
    """What a Job that is over says, by its own condition and by what its pods left behind."""
    outcome, name = job_outcome(job), name_in(job)
    assert outcome is not None
    newest = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), reverse=True)
    if outcome["type"] == "Failed":
        return GateReading(False, f"Job {name} failed: {_why(outcome, newest)}")
    text = _left_behind(job, newest)
    value = _number(text)
    if value is None and result is None:
        return GateReading(True, f"Job {name} succeeded{_said(text)}")
    if value is None:
        mend = 'write a number, or JSON like {"value": 0.93}, to the first container\'s termination log'
        return GateReading(False, f"Job {name} left no number{_said(text)}: {mend}")
    shown = f"{value:.6g}"
    bounds = result or JobResult()
    if bounds.min is not None and value < bounds.min:
        return GateReading(False, f"the result of Job {name} is {shown}, wanted ≥ {bounds.min:g}", shown)
    if bounds.max is not None and value > bounds.max:
        return GateReading(False, f"the result of Job {name} is {shown}, wanted ≤ {bounds.max:g}", shown)
    return GateReading(True, f"the result of Job {name} is {shown}", shown)


def _why(outcome: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> str:
    for pod in pods:
        for container, ended in _ended(pod):
            if ended.get("exitCode"):
                said = _said(str(ended.get("message") or ""))
                return f"container {container} exited with code {ended['exitCode']}{said}"
    return first_line(f"{outcome.get('reason')}: {outcome.get('message')}")


def _left_behind(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> str:
    """The termination message of the first container of the pod that succeeded."""
    first = job["spec"]["template"]["spec"]["containers"][0]["name"]
    for pod in pods:
        for container, ended in _ended(pod):
            if container == first and ended.get("exitCode") == 0:
                return str(ended.get("message") or "").strip()
    return ""


def _ended(pod: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    status = pod.get("status") or {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        for state in ("state", "lastState"):
            ended = (container.get(state) or {}).get("terminated")
            if ended:
                yield str(container["name"]), ended


def _number(text: str) -> float | None:
    """A decimal number, or the value of a JSON object; None if it is neither, or not finite."""
    try:
        found = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        found = found.get("value")
    if not isinstance(found, float) or not math.isfinite(found):
        return None
    return found


def _said(text: str) -> str:
    line = first_line(text)
    return f" ({line})" if line else ""


def first_line(text: str) -> str:
    """The first line that says something, short enough for a message and without control characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    clean = "".join(letter if letter.isprintable() else " " for letter in line)
    return clean if len(clean) <= _LINE else clean[: _LINE - 1] + "…"
