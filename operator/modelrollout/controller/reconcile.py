"""One round of one rollout: observe, judge, decide, commit, and only then make the cluster follow.

All policy is in `decide`; here is the order of things. A crash between any two writes is healed by the next round,
because effects are a pure function of what was committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.api.validate import parse
from modelrollout.cluster.actions import Action, Apply, Done, JsonPatch, NameTaken, execute
from modelrollout.cluster.errors import ClusterError, Conflict, Forbidden, Invalid
from modelrollout.cluster.kinds import DEPLOYMENT, MODEL_ROLLOUT, ROUTES, Object
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.store import Key, Ref, Store
from modelrollout.controller.acceptance import Acceptance
from modelrollout.controller.commit import worth_committing
from modelrollout.controller.gates import Gates
from modelrollout.controller.judge import Judge
from modelrollout.controller.memory import Memories, Memory, Parsed, UnreadableStatus
from modelrollout.controller.metrics import Metrics
from modelrollout.controller.record import write_evidence
from modelrollout.controller.release import hold_actions, release
from modelrollout.controller.sources import Source, Sources
from modelrollout.decision.decide import decide
from modelrollout.decision.types import Decision, Event, Judgement, Observation, RouteView, Timing, Wish
from modelrollout.traffic import borrows, restorations, route_actions, router_of
from modelrollout.workloads import (
    Children,
    Problem,
    gate_actions,
    observe,
    pinned,
    referred,
    workload_actions,
)
from modelrollout.workloads.children import revision_of
from modelrollout.workloads.own_services import lost_revisions
from modelrollout.workloads.revisions import weights_by_revision
from modelrollout.workloads.takeover import may_scale_down, scale_down, scaled_up_again

_log = logging.getLogger(__name__)

_APPLY_CRD = "apply the CustomResourceDefinition that belongs to this version of the operator, Helm does not upgrade it"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a round works with."""

    cluster: Cluster
    store: Store
    judge: Judge
    acceptance: Acceptance
    metrics: Metrics
    timing: Timing
    sources: Sources
    gates: Gates
    now: Callable[[], float] = time.time


class Reconciler:
    """Rounds of all rollouts. One at a time for each rollout; the work queue sees to that."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._memories = Memories()
        self._dropped: set[str] = set()  # fields of the status that the installed CRD does not have

    def close(self) -> None:
        """End all that is under way in the background."""
        self._memories.close()

    async def round(self, key: Key) -> float | None:
        """One round; the seconds to the next one, or None to wait for an event.

        Raises the errors of `cluster.errors`: Conflict when the world has moved on since it was looked at.
        """
        around = self._around
        rollout = around.store.get(MODEL_ROLLOUT, key.namespace, key.name)
        if rollout is None or rollout["metadata"].get("deletionTimestamp"):
            pause = None if rollout is None else await self._release(rollout, key)
            around.store.refer(key, ())
            if self._memories.forget(key):
                around.metrics.drop_rollout(key.namespace, key.name)
            around.sources.forget(key)
            return pause
        memory = self._memories.of(key, str(rollout["metadata"]["uid"]))
        status = read_status(rollout)
        source = await self._source(key, rollout, status, memory)
        now = around.now()
        self._refer(rollout, key)
        children = around.sources.children(key, rollout, (source.spec, source.fallback), status)
        wish = await self._wish(rollout, source, status, children, memory)
        asked = wish.spec or wish.fallback
        seen, judged = Observation(), Judgement()
        if asked is not None:
            seen = self._observe(rollout, asked, status, children, memory, now)
            judged = await around.judge.judge(rollout, asked, status, children, memory, now)
        else:
            memory.rest()
        decision = decide(wish, status, seen, judged, now=now, timing=around.timing)
        committed = await self._commit(rollout, status, decision, memory, now)
        try:
            acting = _acting_spec(wish.spec, decision.status, memory)
            if acting is not None:
                await self._follow(committed, acting, decision.status, memory, now)
        finally:
            # Traffic first: nobody waits for an event, and requests may be failing.
            if committed is not rollout:
                await self._tell(committed, before=status, decision=decision)
        self._show(key, decision)
        # What was decided now may decide more, and the watch's echo of our own write is no news.
        return 0.0 if committed is not rollout else _next_round(decision, memory, around.now())

    def _refer(self, rollout: Object, key: Key) -> None:
        """Say which objects of the user's the rollout depends on, by its spec and by the one that it acts on."""
        refs = {Ref(kind, key.namespace, name) for kind, name in referred(rollout)}
        self._around.store.refer(key, refs)

    def _children(self, key: Key) -> Children:
        store = self._around.store
        return Children.from_store(store.children(*key), store.referred(key))

    async def _release(self, rollout: Object, key: Key) -> float | None:
        """Restore what is the user's, then let the ModelRollout go. Raises the errors of `cluster.errors`."""
        around = self._around
        self._refer(rollout, key)

        def done(result: Done) -> None:
            if result.obj is not None:
                around.store.wrote(result.obj)

        return await release(around.cluster, rollout, lambda: self._children(key), done=done, now=around.now)

    async def _source(self, key: Key, rollout: Object, status: Status, memory: Memory) -> Source:
        """What the object asks for, whole; it is parsed once for each generation."""
        generation = int(rollout["metadata"].get("generation") or 0)
        if memory.parsed is None or memory.parsed.generation != generation:
            memory.parsed = _parse(rollout, generation)
        fallback = memory.read_accepted(status.accepted)
        source = await self._around.sources.read(key, rollout, memory.parsed.spec, fallback, status)
        return source if memory.parsed.problem is None else replace(source, problem=memory.parsed.problem)

    async def _wish(
        self, rollout: Object, source: Source, status: Status, children: Children, memory: Memory
    ) -> Wish:
        metadata, spec, problem = rollout["metadata"], source.spec, source.problem
        if spec is not None and problem is None:
            check = self._around.acceptance.check
            problem = await check(rollout, spec, source.revision, status, children, memory)
        return Wish(
            namespace=metadata["namespace"],
            name=metadata["name"],
            generation=int(metadata.get("generation") or 0),
            revision=source.revision,
            written=source.written,
            spec=None if problem else spec,
            fallback=source.fallback,
            reason=problem.reason if problem else None,
            problem=problem.message if problem else "",
            annotations=metadata.get("annotations") or {},
        )

    def _observe(
        self,
        rollout: Object,
        spec: Spec,
        status: Status,
        children: Children,
        memory: Memory,
        now: float,
    ) -> Observation:
        reading = router_of(spec).observe(rollout, spec, status, children)
        if not reading.accepted:
            memory.routed = None
        elif memory.routed is None or memory.routed[0] != reading.identity:
            memory.routed = (reading.identity, _routed_since(status, memory, now, self._around.timing))
        memory.looked = True
        route = RouteView(
            weights=reading.weights,
            routed_since=memory.routed[1] if memory.routed else None,
            # That the API server refuses to write the route is all that can be said of it.
            problem=reading.problem or (memory.trouble if not reading.accepted else "") or None,
            contested_by=memory.contested_by(now),
        )
        roles = (status.stable, status.candidate, status.previous)
        # While writes are refused, a Service that is away may stay so.
        served = [role.revision for role in roles if role and role.ready and not memory.trouble]
        revisions = observe(rollout, children, now, served=served)
        if memory.trouble:
            # Whatever pods are waited for, this comes first: without the write they do not come.
            revisions = {
                name: replace(view, waiting=(memory.trouble, *view.waiting))
                for name, view in revisions.items()
            }
        first = self._around.sources.pinned(spec, status)
        records = children.controller_revisions.values()
        return Observation(
            revisions=revisions,
            route=route,
            stored=frozenset(revision for obj in records if (revision := revision_of(obj))),
            gates=self._around.gates.read(rollout, status, children, memory),
            lost=lost_revisions(rollout, children),
            refused=memory.lasts,
            pinned=first or pinned(rollout, spec, children),
        )

    async def _commit(
        self, rollout: Object, before: Status, decision: Decision, memory: Memory, now: float
    ) -> Object:
        """Write the whole status if it is worth it, on the resourceVersion that was decided on; the object then."""
        wire = decision.status.to_wire()
        present = before.to_wire()
        wire["evidence"] = write_evidence(decision.state, memory, before, decision.status)
        wire = {name: value for name, value in wire.items() if value is not None}
        since = abs(now - memory.committed_at)  # a clock that went back puts nothing off
        if not worth_committing(present, wire, since=since, every=self._around.timing.evidence_commit):
            memory.state = decision.state
            return rollout
        metadata = rollout["metadata"]
        wanted = {
            "apiVersion": MODEL_ROLLOUT.api_version,
            "kind": MODEL_ROLLOUT.kind,
            "metadata": {name: metadata[name] for name in ("name", "namespace", "resourceVersion")},
            "spec": rollout["spec"],
            "status": wire,
        }
        try:
            written = await self._around.cluster.replace_status(wanted)
        except Invalid as error:
            memory.reload()
            raise _refused_status(error) from error
        except Exception:
            memory.reload()
            raise
        memory.state, memory.committed_at = decision.state, now
        if written["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
            self._note_dropped(wire, written)
            return rollout
        self._around.store.wrote(written)
        if decision.status.accepted != before.accepted:
            # What it no longer steers another one may be waiting for; the watch's echo of this write is no news.
            self._around.acceptance.rollout_changed(Key(metadata["namespace"], metadata["name"]))
        return written

    def _note_dropped(self, wire: Mapping[str, Any], written: Object) -> None:
        """Say once that a write came to nothing: the API server drops fields that its definition of the kind does not have."""
        kept = written.get("status") or {}
        dropped = sorted(name for name, value in wire.items() if kept.get(name) != value)
        if dropped and not self._dropped.issuperset(dropped):
            self._dropped.update(dropped)
            _log.error(
                "the API server does not keep status.%s of a ModelRollout: %s",
                ", status.".join(dropped),
                _APPLY_CRD,
            )

    async def _tell(self, rollout: Object, *, before: Status, decision: Decision) -> None:
        """Events and counters of what was committed."""
        self._count_outcomes(before, decision)
        for event in decision.events:
            await self._post(rollout, event)

    async def _follow(self, rollout: Object, spec: Spec, status: Status, memory: Memory, now: float) -> None:
        """Make children and route match the committed status."""
        key = Key(rollout["metadata"]["namespace"], rollout["metadata"]["name"])
        notes: list[Event] = []
        wanted = (weights_by_revision(status), status.weights)
        if memory.reverted_to != wanted:
            memory.reverted_to = None

        def done(result: Done) -> None:
            if result.obj is not None:
                self._around.store.wrote(result.obj)
            action = result.action
            if isinstance(action, Apply | JsonPatch) and action.drift and result.changed and result.obj:
                route = result.obj["kind"] in {kind.kind for kind in ROUTES}
                reason = EventReason.TRAFFIC_DRIFT if route else EventReason.DRIFT_CORRECTED
                name = f"{result.obj['kind']} {result.obj['metadata']['name']}"
                notes.append(Event(reason, f"{name}: {action.drift} was put right"))
                if route:
                    by = action.drift.rpartition("(by ")[2].rstrip(")")
                    memory.note_revert(by, now, wanted)

        failed: list[ClusterError] = []
        try:
            failed += await self._carry_out(hold_actions(rollout, spec), done)
            # Not held, nothing of the user's is changed that would have to be restored; what is changed goes on.
            held = not failed
            bars = borrows(spec) and not held and not restorations(rollout, self._children(key))
            for step in (workload_actions, route_actions, gate_actions):
                if step is route_actions and (bars or memory.holds_back(now, wanted)):
                    continue
                children = self._around.sources.children(key, rollout, (spec,), status)
                failed += await self._carry_out(step(rollout, spec, status, children, now), done)
            children = self._around.sources.children(key, rollout, (spec,), status)
            self._around.gates.ask(rollout, spec, status, children, memory)
            notes += self._note_failed(key, failed, memory, now)
            for error in failed:
                if not _lasts(error):
                    raise error
            notes += await self._take_over(rollout, spec, status, memory, done, held=held)
        finally:
            for note in notes:
                await self._post(rollout, note)

    async def _carry_out(self, actions: Iterable[Action], done: Callable[[Done], None]) -> list[ClusterError]:
        """Carry the actions out, and go on past those that fail: a name that somebody took, or a webhook that is away,
        must not keep traffic where it is."""
        failed: list[ClusterError] = []
        for action in actions:
            try:
                await execute(self._around.cluster, [action], done=done)
            except ClusterError as error:
                failed.append(error)
        return failed

    def _note_failed(self, key: Key, failed: list[ClusterError], memory: Memory, now: float) -> list[Event]:
        """Keep what is to be told of writes that failed, what lasts first; the event for it."""
        lasting = [error for error in failed if _lasts(error)]
        if any(isinstance(error, NameTaken) for error in lasting):
            self._around.acceptance.taken(memory)
        if lasting and memory.trouble != lasting[0].message:
            _log.warning("%s/%s: %s", *key, lasting[0])
        # A Conflict is news of the world, and no trouble.
        away = [error for error in failed if not isinstance(error, Conflict) and error not in lasting]
        memory.note_refused([error.message for error in (*lasting, *away)], now)
        memory.lasts = bool(lasting)
        return [Event(EventReason.INVALID, lasting[0].message)] if lasting else []

    async def _take_over(
        self,
        rollout: Object,
        spec: Spec,
        status: Status,
        memory: Memory,
        done: Callable[[Done], None],
        *,
        held: bool,
    ) -> list[Event]:
        """Scale the Deployment down whose template is used, once, when the spec asks for that and it is time."""
        ref, namespace = spec.workload.deployment_ref, rollout["metadata"]["namespace"]
        live = self._around.store.get(DEPLOYMENT, namespace, ref.name) if ref else None
        fought, memory.fought = memory.fought, scaled_up_again(spec, live)
        if memory.fought and memory.fought != fought:
            return [Event(EventReason.SCALED_UP_AGAIN, memory.fought)]
        if live is None or not held or not may_scale_down(spec, status, live):
            return []
        action = scale_down(rollout, live)
        await execute(self._around.cluster, [action], done=done)
        return [Event(EventReason.TAKEN_OVER, f"Deployment {action.name} was scaled to 0: {action.why}")]

    async def _post(self, rollout: Object, event: Event) -> None:
        await self._around.cluster.event(
            rollout, type=event.reason.type, reason=event.reason.value, note=event.message
        )

    def _count_outcomes(self, before: Status, decision: Decision) -> None:
        # An attempt ends once more when it goes back after its promotion; and the next one may begin in the same commit.
        known = {(entry.attempt, entry.ended_at) for entry in before.history}
        for entry in decision.status.history:
            if entry.ended_at is None or entry.outcome is None or (entry.attempt, entry.ended_at) in known:
                continue
            seconds = entry.ended_at - entry.started_at if entry.started_at else None
            self._around.metrics.count_outcome(
                entry.outcome.value, entry.reason or "", unproven=entry.unproven, seconds=seconds
            )

    def _show(self, key: Key, decision: Decision) -> None:
        status, metrics = decision.status, self._around.metrics
        metrics.show_phase(*key, status.phase.value if status.phase else "Pending")
        weights = status.weights
        metrics.show_weights(
            *key, {"stable": weights.stable, "candidate": weights.candidate, "previous": weights.previous}
        )
        metrics.show_step(*key, status.step.index + 1 if status.step else None)
        metrics.show_conditions(*key, ((c.type, c.status, c.reason) for c in status.conditions))
        assessment = decision.assessment
        shown = assessment.metrics if assessment and decision.state else ()
        metrics.drop_evidence(*key, kept={metric.name for metric in shown})
        for metric in shown:
            metrics.show_evidence(
                *key,
                metric.name,
                log_e={
                    "harm": metric.log_harm,
                    "harmless": metric.log_harmless,
                    "superior": metric.log_superior if metric.reward else None,
                },
                ratio=metric.ratio,
                low=metric.low,
                high=metric.high,
            )


def _refused_status(error: Invalid) -> Invalid:
    """The error with what to do: nothing is wrong with the spec, though an event is all that can tell it."""
    return Invalid(
        f"the API server refuses the status that this operator writes: {_APPLY_CRD} ({error.message})",
        status=error.status,
        reason=error.reason,
        causes=error.causes,
    )


def _lasts(error: ClusterError) -> bool:
    """Whether the same write would be refused again; after any other error the world has to be looked at anew."""
    return isinstance(error, NameTaken | Invalid | Forbidden)


def read_status(rollout: Mapping[str, Any]) -> Status:
    """The status of an object.

    Raises UnreadableStatus if it was written by something that this version does not understand: going on from a guess
    could send traffic anywhere.
    """
    try:
        return Status.from_wire(rollout.get("status") or {})
    except ValidationError as error:
        raise UnreadableStatus("status", error) from error


def _routed_since(status: Status, memory: Memory, now: float, timing: Timing) -> float:
    """Since when a route stands accepted that was not known to be until now.

    At the first look after a restart, a clock that runs in the committed status says that it stood before: waiting for
    the data plane once more would hold that clock, and each restart would lengthen the step (S8).
    """
    step = status.step
    if memory.looked or step is None or step.started_at is None or step.ends_at is None:
        return now
    return step.started_at - timing.data_plane  # it had reached the data plane when the clock was started


def _parse(rollout: Object, generation: int) -> Parsed:
    spec, problems = parse(rollout)
    if spec is None:
        wrong = "; ".join(str(one) for one in problems[:3])
        return Parsed(generation, None, Problem(Reason.INVALID_SPEC, wrong))
    return Parsed(generation, spec, None)


def _acting_spec(spec: Spec | None, status: Status, memory: Memory) -> Spec | None:
    """The spec that effects follow: the accepted one, with the template when the object has it."""
    if spec is not None and status.accepted == spec.without_template():
        return spec
    return memory.read_accepted(status.accepted)


def _next_round(decision: Decision, memory: Memory, now: float) -> float | None:
    times = [time for time in (decision.requeue_at, memory.next_poll or None) if time is not None]
    for checked in (memory.checked, memory.checked_gates):
        if checked is not None and now < checked.again_at < float("inf"):
            times.append(checked.again_at)
    times += [time for time in (memory.contest_changes_at(now), memory.refused_until) if time is not None]
    return max(0.0, min(times) - now) + 0.005 if times else None
