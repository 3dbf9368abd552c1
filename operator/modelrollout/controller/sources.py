"""What a ModelRollout refers to: watched, read from the store, and filled into the spec before anything is decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import ModelSource, Spec
from modelrollout.api.status import Status
from modelrollout.cluster.errors import ClusterError, Forbidden, Unavailable
from modelrollout.cluster.kinds import INFERENCE_POOL, SERVICE, Kind, Object
from modelrollout.cluster.pods import Pod
from modelrollout.cluster.references import References
from modelrollout.cluster.store import Key, Store
from modelrollout.workloads import Children, Problem
from modelrollout.workloads.backends import picker_of
from modelrollout.workloads.children import child_name, name_in, pod_names
from modelrollout.workloads.own_services import (
    bind,
    first_pinned,
    named_revision,
    own_backends,
    services_problem,
    switched,
    undone_services,
    with_capacity,
)
from modelrollout.workloads.source import backing, filled_in, interests, pool_members

_DEPTH = 4  # a Deployment names ConfigMaps, a Service selects pods: what is found may name more


@dataclass(frozen=True, slots=True)
class Source:
    """What the object asks for. `spec` is whole, or None if it can't be read; with a `problem` it can't be acted on."""

    spec: Spec | None
    fallback: Spec | None  # as last accepted
    revision: str
    problem: Problem | None
    written: str = ""  # the revision that the spec itself names, where a request named another


class Sources:
    """Sources of all rollouts."""

    def __init__(self, store: Store, references: References, *, track_config: bool = False) -> None:
        """`track_config`: whether the operator was given the right to read ConfigMaps and Secrets."""
        self._store = store
        self._references = references
        self._track = track_config

    def forget(self, key: Key) -> None:
        """The rollout is gone."""
        self._references.forget(key)

    async def read(
        self, key: Key, rollout: Object, spec: Spec | None, fallback: Spec | None, status: Status
    ) -> Source:
        """What the object asks for by its spec (None: it can't be read), once all that this names is in the store.

        What can't be read now keeps the rollout from going forward; Forbidden or Unavailable is raised if something goes on
        meanwhile and it can't be seen which pods are ready.
        """
        try:
            await self._refer(key, rollout, [one for one in (spec, fallback) if one is not None], status)
        except (Forbidden, Unavailable) as error:
            if fallback is not None and not self._sees(key, rollout, fallback, status):
                raise
            return Source(None, fallback, "", _unread(error))
        if spec is None:
            return Source(None, fallback, "", None)
        spec, problem = filled_in(spec, lambda kind, name: self._find(key, kind, name), track=self._track)
        if problem is not None:
            return Source(spec, fallback, "", problem)
        if spec.workload.services is None:
            children = self._plain_children(key)
            written, problem = hash_revision(spec), switched(spec, status, children)
            return _undone(Source(spec, fallback, written, problem, written), rollout, status, children)
        return self._of_services(rollout, spec, fallback, status, self.children(key, rollout, [spec], status))

    def _of_services(
        self, rollout: Object, spec: Spec, fallback: Spec | None, status: Status, children: Children
    ) -> Source:
        written, in_place = named_revision(rollout, spec, status, children)
        source = _undone(Source(spec, fallback, written, in_place, written), rollout, status, children)
        asked = source.spec or spec
        problem = (
            switched(asked, status, children)
            or (in_place if source.revision == written else None)
            or services_problem(asked, status, children, unserved=self._references.unserved)
        )
        return replace(source, spec=with_capacity(asked, status, children), problem=problem)

    def children(self, key: Key, rollout: Object, specs: Iterable[Spec | None], status: Status) -> Children:
        """What belongs to the rollout, with the user's Services and pools in front of its revisions and the pods behind
        them."""
        children = self._plain_children(key)
        own = [spec for spec in specs if spec is not None and spec.workload.services is not None]
        if not own:
            return children
        for backend in {one for spec in own for one in own_backends(rollout, spec, status, children)}:
            children = (self._with_pool if backend.pooled else self._with_service)(
                key, backend.name, children
            )
        for spec in own:
            children = bind(rollout, spec, status, children)
        return children

    def _with_service(self, key: Key, name: str, children: Children) -> Children:
        service = self._store.get(SERVICE, key.namespace, name)
        found = self._store.endpoint_slices(key.namespace, name)
        return replace(
            children,
            services={**children.services, **({name: service} if service else {})},
            endpointslices={**children.endpointslices, **{name_in(obj): obj for obj in found}},
            pods={**children.pods, **self._pods(key, pod_names(found))},
        )

    def _with_pool(self, key: Key, name: str, children: Children) -> Children:
        pool = self._store.get(INFERENCE_POOL, key.namespace, name)
        if pool is None:
            return children
        selected = (self._references.names(one) for one in pool_members(key.namespace, pool))
        members = frozenset().union(*selected)
        picker = picker_of(pool)
        found = self._store.endpoint_slices(key.namespace, picker) if picker else []
        return replace(
            children,
            endpointslices={**children.endpointslices, **{name_in(obj): obj for obj in found}},
            pools={**children.pools, name: pool},
            members={**children.members, name: members},
            pods={**children.pods, **self._pods(key, members)},
        )

    def _pods(self, key: Key, names: Iterable[str]) -> dict[str, Pod]:
        seen = (self._store.pod(key.namespace, name) for name in names)
        return {pod.name: pod for pod in seen if pod is not None}

    def _plain_children(self, key: Key) -> Children:
        return Children.from_store(self._store.children(*key), self._store.referred(key))

    @staticmethod
    def pinned(spec: Spec, status: Status) -> str | None:
        """The revision behind the user's stable Service, as long as nothing is known of the rollout."""
        return first_pinned(spec, status)

    def _sees(self, key: Key, rollout: Object, spec: Spec, status: Status) -> bool:
        """Whether all is in the store that tells which pods are ready."""
        children = self._plain_children(key)
        needed = backing(rollout, spec, status, children, lambda kind, name: self._find(key, kind, name))
        return all(map(self._references.listed, needed))

    async def _refer(self, key: Key, rollout: Object, specs: list[Spec], status: Status) -> None:
        seen: set[object] = set()
        failed: ClusterError | None = None
        for _ in range(_DEPTH):
            children = self._plain_children(key)
            wanted = interests(
                rollout,
                specs,
                status,
                children,
                lambda kind, name: self._find(key, kind, name),
                track=self._track,
            )
            if wanted == seen:
                break
            try:
                await self._references.need(key, wanted)
            except (Forbidden, Unavailable) as error:
                failed = failed or error  # the rest is read all the same
            seen = set(wanted)
        if failed is not None:
            raise failed

    def _find(self, key: Key, kind: Kind, name: str) -> Object | None:
        return self._store.get(kind, key.namespace, name)


def _unread(error: ClusterError) -> Problem:
    if isinstance(error, Forbidden):
        return Problem(Reason.NOT_SUPPORTED, f"the operator lacks a right: {error.message}")
    return Problem(
        Reason.NOT_CHECKED, f"what it refers to can't be read now, it is tried again: {error.message}"
    )


def _undone(source: Source, rollout: Object, status: Status, children: Children) -> Source:
    """The stored revision that somebody asked for, as long as the spec names the same one as then."""
    undo, spec = status.undo, source.spec
    if undo is None or spec is None or undo.over != source.written:
        return source
    record = children.controller_revisions.get(child_name(rollout, undo.revision))
    roles = (status.stable, status.candidate, status.previous)
    if record is None and not any(role is not None and role.revision == undo.revision for role in roles):
        return source
    model = ModelSource.from_wire(((record or {}).get("data") or {}).get("model") or {})
    # Its record has the template that it was made with.
    workload: Object = {"template": {}}
    if spec.workload.services is not None:
        workload["services"] = undone_services(status, children, undo.revision) or spec.workload.services
    spec = spec.model_copy(update={"model": model, "workload": spec.workload.model_copy(update=workload)})
    return replace(source, spec=spec, revision=undo.revision)
