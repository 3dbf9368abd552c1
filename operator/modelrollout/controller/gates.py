"""Gates at work: the question that the committed status says is asked goes out in the background, and its answer is seen by
the round that its end wakes. A round never waits for a gate.

Which gate is asked, how often, and what its answer means is decided elsewhere; here questions are only carried.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Gate, SecretKey, Spec, Webhook
from modelrollout.api.status import GateStatus, RevisionStatus, Status
from modelrollout.cluster.errors import ClusterError, Forbidden
from modelrollout.cluster.kinds import POD, SECRET, Object
from modelrollout.cluster.pods import Pod
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.store import Key
from modelrollout.controller.memory import Asking, Memory
from modelrollout.controller.webhook import allowed, headers_of, post
from modelrollout.decision.types import GateReading
from modelrollout.planning.steps import gates_by_id
from modelrollout.workloads import Children, Problem
from modelrollout.workloads.children import name_in
from modelrollout.workloads.gates import (
    JOB_NAME_LABEL,
    asking_gate,
    idempotency_key,
    job_name,
    job_outcome,
    read_job,
    service_of,
)
from modelrollout.workloads.observation import waiting_of

_log = logging.getLogger(__name__)

API_AWAY = 5.0  # seconds after which an API server that did not answer is asked again; no answer is no "no"


@dataclass(frozen=True, slots=True)
class GateRights:
    """What the operator was installed with."""

    webhooks: tuple[str, ...] = ()
    secrets: bool = False
    jobs: bool = False

    def problem(self, spec: Spec) -> Problem | None:
        """The first gate that needs more; None if none does."""
        for place, gate in spec.all_gates:
            missing = self._missing(gate)
            if missing:
                return Problem(Reason.NOT_SUPPORTED, f"{place}: gate {gate.name}: {missing}")
        return None

    def _missing(self, gate: Gate) -> str:
        if gate.job is not None and not self.jobs:
            return "this operator may not make Jobs: install it with the chart's value gates.jobs: true"
        if gate.webhook is None:
            return ""
        if not allowed(gate.webhook.url, self.webhooks):
            return (
                f"this operator may not call {gate.webhook.url}: install it with the URL, or its beginning, in the chart's "
                "value gates.webhooks"
            )
        if gate.webhook.secret_ref is not None and not self.secrets:
            return (
                "this operator may not read Secrets, so secretRef can't be used: install it with the chart's value "
                "gates.secrets: true, or remove secretRef"
            )
        return ""


class Gates:
    """Carries the questions of all rollouts."""

    def __init__(
        self,
        cluster: Cluster,
        rights: GateRights,
        *,
        pods: Callable[[str], Iterable[Pod]],
        now: Callable[[], float],
        wake: Callable[[Key], None] | None = None,
        may_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        """`pods` are those of a Job's uid. `wake` is told whose question was answered. `may_ask`: whether this process leads, for another may ask too."""
        self.rights = rights
        self._cluster = cluster
        self._pods = pods
        self._now = now
        self._wake = wake or (lambda key: None)
        self._may_ask = may_ask
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections; the questions themselves end with the memory that holds them."""
        if self._session is not None:
            await self._session.close()

    def read(
        self, rollout: Object, status: Status, children: Children, memory: Memory
    ) -> Mapping[str, GateReading]:
        """What is known by now of the question that is open, by `GateStatus.question`."""
        gate = asking_gate(status)
        question = _question(rollout, status, gate) if gate is not None else None
        if memory.asking is not None and memory.asking.question != question:
            memory.end_asking()
        if gate is None:
            return {}
        if memory.asking is not None and memory.asking.task.done():
            return {gate.question: _answer(memory, memory.asking.task)}
        job = children.jobs.get(job_name(rollout, status, gate))
        if job is not None:
            waiting = waiting_of(self._pods(job["metadata"]["uid"]))
            why = f": {waiting[0]}" if waiting else ""
            return {gate.question: GateReading(None, f"Job {name_in(job)} runs{why}")}
        # Without the write that is refused there is no Job.
        waits = memory.asking is None and memory.trouble
        return {gate.question: GateReading(None, memory.trouble)} if waits else {}

    def ask(self, rollout: Object, spec: Spec, status: Status, children: Children, memory: Memory) -> None:
        """Send the question that the committed status says is asked, unless it is under way."""
        gate = asking_gate(status)
        planned = gates_by_id(spec).get(gate.id) if gate is not None else None
        if gate is None or planned is None or memory.asking is not None or not self._may_ask():
            return
        if planned.webhook is not None:
            carried = self._call(rollout, spec, status, children, gate, planned.webhook)
        else:
            job = children.jobs.get(job_name(rollout, status, gate))
            if job is None or job_outcome(job) is None:
                return  # the watch will tell
            carried = self._collect(job, planned)
        task = asyncio.create_task(carried)
        metadata = rollout["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        task.add_done_callback(lambda _: self._wake(key))
        memory.asking = Asking(_question(rollout, status, gate), task)

    async def _collect(self, job: Object, planned: Gate) -> GateReading:
        """The outcome of a Job that is over. Its pods are listed: a watch of them may be behind that of the Job."""
        try:
            selector = f"{JOB_NAME_LABEL}={name_in(job)}"
            pods, _ = await self._cluster.list(POD, job["metadata"]["namespace"], selector)
        except ClusterError as error:
            return await self._later(error)
        return read_job(job, pods, planned.job.result if planned.job else None)

    async def _call(
        self,
        rollout: Object,
        spec: Spec,
        status: Status,
        children: Children,
        gate: GateStatus,
        webhook: Webhook,
    ) -> GateReading:
        secret, body = None, _body(rollout, spec, status, children, gate)
        if not allowed(webhook.url, self.rights.webhooks):
            return GateReading(False, "the operator may not call this URL any more (gates.webhooks)")
        if webhook.secret_ref is not None:
            try:
                secret = await self._secret(rollout["metadata"]["namespace"], webhook.secret_ref)
            except Forbidden as error:
                return GateReading(
                    False, f"the operator may not read Secret {webhook.secret_ref.name}: {error}"
                )
            except ClusterError as error:
                return await self._later(error)
            if secret is None:
                ref = webhook.secret_ref
                return GateReading(
                    False, f"there is no Secret {ref.name} with a key {ref.key} that is not empty"
                )
        if self._session is None:
            # No cookies: what one tenant's gate sets must not reach another's.
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        headers = headers_of(body, idempotency_key(rollout, status, gate), str(int(self._now())), secret)
        return await post(self._session, webhook.url, body, headers, within=webhook.timeout)

    async def _secret(self, namespace: str, ref: SecretKey) -> bytes | None:
        found = await self._cluster.get(SECRET, namespace, ref.name)
        value = ((found or {}).get("data") or {}).get(ref.key)
        return base64.b64decode(value) or None if value else None

    async def _later(self, error: ClusterError) -> GateReading:
        _log.warning("a gate's question waits for the API server: %s", error)
        await asyncio.sleep(API_AWAY)
        return GateReading(None, f"waiting for the API server: {error.message}"[:300])


def _answer(memory: Memory, task: asyncio.Task[GateReading]) -> GateReading:
    """What a question that is over came to. One that came to nothing is asked again; raises what ended it, if it died."""
    try:
        reading = task.result() if not task.cancelled() else GateReading(None)
    except Exception:
        memory.end_asking()
        raise
    if reading.passed is None:
        memory.end_asking()
    return reading


def _question(rollout: Mapping[str, Any], status: Status, gate: GateStatus) -> str:
    return f"{idempotency_key(rollout, status, gate)}/{gate.asked}"


def _body(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, gate: GateStatus
) -> bytes:
    """What a webhook is told; the same bytes whenever the same is asked, but for the number of the asking."""
    metadata, step = rollout["metadata"], status.step
    assert step is not None

    def side(role: RevisionStatus | None) -> Object | None:
        if role is None:
            return None
        service = service_of(rollout, children, role.revision)
        where = f"{service}.{metadata['namespace']}.svc" if service else None
        return {"revision": role.revision, "service": where}

    said = {
        "apiVersion": rollout["apiVersion"],
        "kind": "GateQuestion",
        "key": idempotency_key(rollout, status, gate),
        "gate": gate.name,
        "asked": gate.asked,
        "rollout": {name: metadata[name] for name in ("namespace", "name", "uid")},
        "attempt": status.attempt,
        "step": {"id": step.id, "display": step.display, "weight": status.plan[step.index].weight},
        "model": spec.model.to_wire(),
        "candidate": side(status.candidate),
        "baseline": side(status.stable),
        "ports": [{"name": port.name, "port": port.port} for port in spec.service.ports],
    }
    return json.dumps(said, sort_keys=True).encode()
