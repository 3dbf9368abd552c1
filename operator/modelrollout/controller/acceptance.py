"""Whether a spec can be acted on, beyond what a schema can say: what else stands in the cluster, and what the API server
says of the pod template. Each question is asked once, not every few seconds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ..api.conditions import Reason
from ..api.spec import Spec
from ..api.status import Status
from ..cluster.errors import Forbidden, Invalid, KindNotServed
from ..cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    SERVICE,
    Kind,
    Object,
)
from ..cluster.port import Cluster
from ..cluster.store import Key, Store
from ..traffic import router_of
from ..workloads import (
    Children,
    Claims,
    Problem,
    dry_run_object,
    name_problems,
    name_taken,
    needed_names,
    selector_overlap,
    template_labels,
)
from ..workloads.children import child_name
from .memory import Checked, Memory

RECHECK = 60.0  # seconds after which an obstacle in the cluster is looked at again

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
        now: Callable[[], float],
        wake: Callable[[Iterable[Key]], None] = lambda keys: None,
    ) -> None:
        """`wake` is told which rollouts are to be looked at again because another one has changed."""
        self._cluster = cluster
        self._store = store
        self._servers = servers
        self._query_problem = query_problem
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
        if problem is not None:
            return problem
        roles = (status.stable, status.candidate, status.previous)
        known = any(role is not None and role.revision == revision for role in roles)
        recorded = known or child_name(rollout, revision) in children.controller_revisions
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
        checked = memory.checked
        if checked is None or checked.question != question or self._now() >= checked.again_at:
            problem = await self._ask(rollout, spec, revision, names, probe, new=not recorded)
            lasting = problem is None or problem.reason is Reason.INVALID_TEMPLATE
            again = float("inf") if lasting else self._now() + RECHECK
            checked = memory.checked = Checked(question, problem, again)
        return checked.problem

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
        unreadable = self._query_problem(rollout, spec)
        if unreadable is not None:
            return unreadable
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
        new: bool,
    ) -> Problem | None:
        """Whether other objects are in the way; and of a new revision, what the API server says of it."""
        try:
            pods = new and spec.workload.services is None  # pods of ours
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
            source=spec.workload.deployment_ref.name if spec.workload.deployment_ref else None,
        )


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
