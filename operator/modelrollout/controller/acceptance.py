"""Whether a spec can be acted on, beyond what a schema can say: what else stands in the cluster, and what the API server
says of the pod template. Each question is asked once, not every few seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

from modelrollout.api.conditions import ConditionType, Reason
from modelrollout.api.spec import Gate, Spec
from modelrollout.api.status import Status
from modelrollout.cluster.errors import Forbidden, Invalid, KindNotServed, Unavailable
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.store import Key, Store
from modelrollout.controller.gates import GateRights
from modelrollout.controller.memory import Checked, Memory
from modelrollout.planning.steps import gates_by_id
from modelrollout.traffic import router_of
from modelrollout.workloads import (
    Children,
    Claims,
    Problem,
    Record,
    closed_port,
    dry_run_object,
    name_problems,
    name_taken,
    needed_names,
    selector_overlap,
    template_labels,
)
from modelrollout.workloads.children import child_name, name_in
from modelrollout.workloads.gates import gate_job

RECHECK = 60.0  # seconds after which an obstacle in the cluster is looked at again
ASK_AGAIN = 15.0  # the same, if there was no answer

QueryProblem = Callable[[Object, Spec], Problem | None]


class Acceptance:
    """Checks of all rollouts."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        *,
        servers: Collection[str],
        query_problem: QueryProblem,
        gates: GateRights,
        now: Callable[[], float],
        wake: Callable[[Iterable[Key]], None] = lambda keys: None,
    ) -> None:
        """`wake` is told which rollouts are to be looked at again because another one has changed."""
        self._cluster = cluster
        self._store = store
        self._servers = servers
        self._query_problem = query_problem
        self._gates = gates
        self._now = now
        self._wake = wake
        self._claims = Claims()

    def rollout_changed(self, key: Key) -> None:
        """A ModelRollout came, went or was edited, or another spec of it was accepted: what the store has of it counts now,
        and those that want the same are woken."""
        rollout = self._store.get(MODEL_ROLLOUT, *key)
        self._wake(self._claims.remove(key) if rollout is None else self._claims.put(rollout))

    async def check(
        self,
        rollout: Object,
        spec: Spec,
        revision: str,
        status: Status,
        children: Children,
        memory: Memory,
    ) -> Problem | None:
        """Why the spec can't be acted on; None if it can. Raises the errors of `cluster.errors`."""
        problem = self._plain(rollout, spec, status, children)
        problem = problem or await self._jobs(rollout, spec, status, memory)
        if problem is not None:
            return problem
        roles = (status.stable, status.candidate, status.previous)
        known = any(role is not None and role.revision == revision for role in roles)
        recorded = known or child_name(rollout, revision) in children.controller_revisions
        pods = not recorded and spec.workload.services is None  # pods of ours, of which nothing is known
        if pods and (closed := _closed_port(rollout, spec, revision)):
            return closed
        # What is there and ours needs no question: after a restart a thousand rollouts would ask it at once.
        names = [
            name for name in needed_names(rollout, spec, revision) if not _stands(rollout, children, *name)
        ]
        probe = router_of(spec).probe(rollout, spec)
        if recorded and not names and probe is None:
            return None
        question = (
            revision,
            spec.service_name(rollout["metadata"]["name"]),
            spec.traffic.router,
            "probed" if probe else "",
        )
        if self._open(memory.checked, question):
            asked = self._ask(rollout, spec, revision, names, probe, pods=pods)
            memory.checked = await self._answer(question, asked)
        return memory.checked.problem if memory.checked else None

    def _open(self, checked: Checked | None, question: tuple[str, ...]) -> bool:
        """Whether a question is to be asked now."""
        return checked is None or checked.question != question or self._now() >= checked.again_at

    async def _answer(self, question: tuple[str, ...], asked: Awaitable[Problem | None]) -> Checked:
        """What the API server says. That it does not answer keeps a rollout from going forward, and from nothing else: what
        was accepted before is still judged."""
        pause = RECHECK
        try:
            problem = await asked
        except Unavailable as error:
            why = f"it can't be checked now, and the API server is asked again: {_words(error.message)}"
            problem, pause = Problem(Reason.NOT_CHECKED, why), ASK_AGAIN
        lasting = problem is None or problem.reason is Reason.INVALID_TEMPLATE
        return Checked(question, problem, float("inf") if lasting else self._now() + pause)

    def taken(self, memory: Memory) -> None:
        """A write found a foreign object under a name that we need: what was asked about it holds no more."""
        memory.checked = None

    def _plain(self, rollout: Object, spec: Spec, status: Status, children: Children) -> Problem | None:
        """What is seen without a request."""
        router = router_of(spec)
        for problem in (*router.validate(spec), *router.problems(rollout, spec, children)):
            return problem
        analysis = spec.analysis
        if analysis.mode == "On" and analysis.prometheus not in self._servers:
            named = ", ".join(sorted(self._servers)) or "none"
            return Problem(
                Reason.UNKNOWN_PROMETHEUS,
                f"spec.analysis.prometheus is {analysis.prometheus!r}, which the operator does not know (it has: {named})",
            )
        refused = self._query_problem(rollout, spec) or self._gates.problem(spec)
        if refused is not None:
            return refused
        metadata = rollout["metadata"]
        conflict = self._claims.conflict(Key(metadata["namespace"], metadata["name"]))
        return conflict or next(iter(name_problems(rollout, spec, status, children)), None)

    async def _ask(
        self,
        rollout: Object,
        spec: Spec,
        revision: str,
        names: list[tuple[Kind, str]],
        probe: Object | None,
        *,
        pods: bool,
    ) -> Problem | None:
        """Whether other objects are in the way; and of new pods of ours, what the API server says of them."""
        try:
            problem = await self._dry_run(rollout, spec, revision) if pods else None
            problem = problem or await self._names(rollout, names)
            problem = problem or (await self._unserved(probe) if probe else None)
            return problem or (await self._overlap(rollout, spec, revision) if pods else None)
        except Forbidden as error:
            if error.namespace_terminating:
                raise
            return Problem(Reason.NOT_SUPPORTED, f"the operator lacks a right: {_words(error.message)}")

    async def _dry_run(self, rollout: Object, spec: Spec, revision: str) -> Problem | None:
        ref = spec.workload.deployment_ref
        field = f"the template of Deployment {ref.name}" if ref else "spec.workload.template"
        try:
            await self._cluster.apply(dry_run_object(rollout, spec, revision), dry_run=True)
        except Invalid as error:
            return Problem(Reason.INVALID_TEMPLATE, f"{field}: {_words(error.message)}")
        except Forbidden as error:
            if error.namespace_terminating:
                raise
            return Problem(Reason.NOT_SUPPORTED, f"a Deployment can't be made: {_words(error.message)}")
        return None

    async def _jobs(self, rollout: Object, spec: Spec, status: Status, memory: Memory) -> Problem | None:
        """What the API server says of the Jobs of gates; asked once for each content, and not of an accepted generation."""
        jobs = {id: gate for id, gate in gates_by_id(spec).items() if gate.job is not None}
        accepted = any(c.type == ConditionType.ACCEPTED and c.status == "True" for c in status.conditions)
        if not jobs or (accepted and status.observed_generation == rollout["metadata"].get("generation")):
            return None
        question = tuple(sorted(jobs))
        if self._open(memory.checked_gates, question):
            asked = self._dry_run_jobs(rollout, spec, jobs.values())
            memory.checked_gates = await self._answer(question, asked)
        return memory.checked_gates.problem if memory.checked_gates else None

    async def _dry_run_jobs(self, rollout: Object, spec: Spec, gates: Iterable[Gate]) -> Problem | None:
        for gate in gates:
            job = gate_job(rollout, spec, Status(), Children(), gate, f"{name_in(rollout)[:40]}-gate-check")
            try:
                await self._cluster.apply(job, dry_run=True)
            except Invalid as error:
                words = f"the template of gate {gate.name}: {_words(error.message)}"
                return Problem(Reason.INVALID_TEMPLATE, words)
            except Forbidden as error:
                if error.namespace_terminating:
                    raise
                words = f"the Job of gate {gate.name} can't be made: {_words(error.message)}"
                return Problem(Reason.NOT_SUPPORTED, words)
        return None

    async def _names(self, rollout: Object, names: list[tuple[Kind, str]]) -> Problem | None:
        for kind, name in names:
            try:
                found = await self._cluster.get(kind, rollout["metadata"]["namespace"], name)
            except KindNotServed:
                return Problem(
                    Reason.NOT_SUPPORTED,
                    f"the cluster has no {kind.kind} ({kind.api_version}): install it, or choose another member of spec.traffic",
                )
            problem = name_taken(rollout, found)
            if problem is not None:
                return problem
        return None

    async def _unserved(self, probe: Object) -> Problem | None:
        """A server-side apply, even one that is not kept, refuses a field that the installed kind does not have."""
        try:
            await self._cluster.apply(probe, dry_run=True)
        except (Invalid, KindNotServed) as error:
            return Problem(
                Reason.NOT_SUPPORTED,
                "strategy.abTest.stickiness needs sessionPersistence in the HTTPRoutes of the cluster, which is in the experimental "
                f"channel of the Gateway API: install that, or remove stickiness ({_words(error.message)})",
            )
        return None

    async def _overlap(self, rollout: Object, spec: Spec, revision: str) -> Problem | None:
        namespace = rollout["metadata"]["namespace"]
        services, _ = await self._cluster.list(SERVICE, namespace)
        autoscalers, _ = await self._cluster.list(HORIZONTAL_POD_AUTOSCALER, namespace)
        workloads, _ = await self._cluster.list(DEPLOYMENT, namespace) if autoscalers else ([], "")
        labels = template_labels(dry_run_object(rollout, spec, revision)["spec"]["template"])
        return selector_overlap(
            rollout,
            labels,
            services=services,
            autoscalers=autoscalers,
            workloads=workloads,
            source=_source(spec),
        )


def _source(spec: Spec) -> str | None:
    """Name of the Deployment whose template it is, if it is one's."""
    ref = spec.workload.deployment_ref
    return ref.name if ref else None


def _closed_port(rollout: Object, spec: Spec, revision: str) -> Problem | None:
    return closed_port(Record.render(rollout, spec, revision), source=_source(spec))


def _stands(rollout: Object, children: Children, kind: Kind, name: str) -> bool:
    """Whether the object is there, and ours."""
    places = {
        CONTROLLER_REVISION.kind: children.controller_revisions,
        DEPLOYMENT.kind: children.deployments,
        SERVICE.kind: children.services,
        HTTP_ROUTE.kind: children.routes,
    }
    found = places[kind.kind].get(name)
    return found is not None and name_taken(rollout, found) is None


def _words(message: str) -> str:
    """The server's words, short enough for a condition."""
    return message if len(message) <= 700 else message[:699] + "…"
