"""Services (or InferencePools) of the user's in place of pods of ours: which revision is behind which, and what can't be
judged.

Each revision is bound to one Service for life; its record says which. So roles move between Services as they do between
Deployments, and the decision need not know. What a spec names is the model behind `candidate` (or `stable`, if there is
no candidate). At rest the status says which Service is stable, whatever the spec calls it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.requests import Request, annotation_of, parse_request
from modelrollout.api.revision import hash_revision
from modelrollout.api.rules import POOLS_TAKE_NO_COPIES
from modelrollout.api.spec import ModelSource, OwnServices, Spec
from modelrollout.api.status import Phase, RevisionStatus, Status
from modelrollout.cluster.kinds import Object
from modelrollout.workloads.backends import Backend, pool_ports
from modelrollout.workloads.children import Children, Problem, bound_to, child_name, revision_of
from modelrollout.workloads.observation import ready_behind

AT_REST = (None, Phase.INVALID, Phase.PENDING, Phase.HEALTHY, Phase.ROLLED_BACK)


def own_backends(
    rollout: Mapping[str, Any], spec: Spec | None, status: Status, children: Children
) -> frozenset[Backend]:
    """The user's Services that matter now: those that the spec names, those in front of what has traffic, and the one of a
    stored revision that somebody asks for."""
    own = spec.workload.services if spec else None
    named = {Backend.of(own.stable), Backend.of(own.named)} if own else set()
    revisions = [role.revision for role in _roles(status)] + [gone.revision for gone in status.retiring]
    revisions += [status.undo.revision] if status.undo else []
    revisions += [asked] if (asked := _asked_for(rollout)) else []
    return frozenset(named | {children.bound[rev] for rev in revisions if rev in children.bound})


def bind(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> Children:
    """The children with the bindings that the spec makes: what it names, and at first what serves."""
    own = spec.workload.services
    if own is None:
        return children
    bound = dict(children.bound)
    if status.undo is None or bound.get(status.undo.revision) != Backend.of(own.named):
        revision, _ = named_revision(rollout, spec, status, children)
        bound.setdefault(revision, Backend.of(own.named))
    first = first_revision(spec)
    known = any(role.revision == first for role in _roles(status))
    if first is not None and (status.phase in (None, Phase.INVALID) or known):
        bound.setdefault(first, Backend.of(own.stable))
    return replace(children, bound=bound)


def first_revision(spec: Spec) -> str | None:
    """The revision of what serves when the ModelRollout is created; its model is known only if the spec names it."""
    own = spec.workload.services
    if own is None:
        return None
    if own.candidate is None:
        return hash_revision(spec)
    workload = spec.workload.model_copy(update={"services": OwnServices(stable=own.stable)})
    return hash_revision(spec.model_copy(update={"model": ModelSource(), "workload": workload}))


def first_pinned(spec: Spec, status: Status) -> str | None:
    """The revision behind the user's stable Service, to go on from if a candidate is named at creation; then None.

    Without a candidate the first deployment is gone through: it is over once the route stands.
    """
    own = spec.workload.services
    begins = own is not None and own.candidate is not None and status.phase in (None, Phase.INVALID)
    return first_revision(spec) if begins else None


def named_revision(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
) -> tuple[str, Problem | None]:
    """The revision that the spec names, and why it can't be released.

    A Service in front of a revision that has a role stands for that revision, unless the spec says another model.
    """
    own = spec.workload.services
    assert own is not None
    written = hash_revision(spec)
    for role in (status.stable, status.previous, status.candidate):
        if role is None or children.bound.get(role.revision) != Backend.of(own.named):
            continue
        model = _model(rollout, children, role.revision)
        if role.revision == written or model in ({}, spec.model.to_wire()):
            return role.revision, None
        if role is status.stable:
            return written, _in_place(own, role)
    return written, None


def _in_place(own: OwnServices, role: RevisionStatus) -> Problem:
    other = own.stable.name if own.named != own.stable else f"another {own.named.kind}"
    return Problem(
        Reason.INVALID_SPEC,
        f"spec.model names another model than {role.model or role.revision}, which {Backend.of(own.named)} serves as the "
        f"stable one: run the new model behind {other}, and name that as workload.services.candidate and {own.named.name} as "
        "stable",
    )


def _model(rollout: Mapping[str, Any], children: Children, revision: str) -> Mapping[str, Any]:
    record = children.controller_revisions.get(child_name(rollout, revision))
    return (record or {}).get("data", {}).get("model") or {}


def undone_services(status: Status, children: Children, revision: str) -> OwnServices | None:
    """What a spec would name to ask for a stored revision; None if it is not known what that is behind."""
    backend = children.bound.get(revision)
    serving = children.bound.get(status.stable.revision) if status.stable else None
    if backend is None:
        return None
    if serving is None or serving == backend:
        return OwnServices(stable=backend.to_own())
    return OwnServices(stable=serving.to_own(), candidate=backend.to_own())


def lost_revisions(rollout: Mapping[str, Any], children: Children) -> dict[str, str]:
    """The stored revision that somebody asks for, with the reason why it can't come back; empty if it can."""
    revision = _asked_for(rollout)
    backend = children.bound.get(revision or "")
    if revision is None or backend is None:
        return {}
    if find_backend(children, backend) is None:
        return {
            revision: f"{backend}, which it was behind, does not exist any more: create it, or name another one"
        }
    records = children.controller_revisions.values()
    same = [record for record in records if bound_to(record) == backend]
    newest = max(same, key=lambda record: int(record.get("revision") or 0), default=None)
    later = revision_of(newest) if newest else None
    if later is None or later == revision:
        return {}
    return {
        revision: f"{backend}, which it was behind, has been used for revision {later} since: if the old model is behind it "
        "again, name it in spec.workload.services.candidate"
    }


def _asked_for(rollout: Mapping[str, Any]) -> str | None:
    """The revision of the request to undo, if there is one."""
    value = (rollout["metadata"].get("annotations") or {}).get(annotation_of("undo"))
    asked = parse_request("undo", value) if value else None
    return asked.revision if isinstance(asked, Request) else None


def services_problem(
    spec: Spec, status: Status, children: Children, *, unserved: Collection[str] = ()
) -> Problem | None:
    """What is wrong with the Services that the spec names, as far as can be seen. `unserved`: kinds that the cluster lacks."""
    own = spec.workload.services
    if own is None:
        return None
    needed = [Backend.of(own.named)]
    if status.phase in (None, Phase.INVALID):
        needed.insert(0, Backend.of(own.stable))
    for backend in dict.fromkeys(needed):
        if problem := _unusable(spec, backend, children, unserved):
            return problem
    return _shared_pods(own, status, children) or _nothing_to_compare(own, status, children)


def _unusable(spec: Spec, backend: Backend, children: Children, unserved: Collection[str]) -> Problem | None:
    if backend.kind in unserved:
        return Problem(
            Reason.NOT_SUPPORTED,
            f"the cluster has no {backend.kind} ({backend.of_kind.api_version}), which spec.workload.services names: install "
            "its CustomResourceDefinition, or name Services",
        )
    obj = find_backend(children, backend)
    if obj is None:
        return Problem(
            Reason.REFERENCE_NOT_FOUND,
            f"spec.workload.services names {backend}, which does not exist in this namespace: create it, or name another one",
        )
    if backend.pooled and spec.strategy.mirrors:
        return Problem(Reason.NOT_SUPPORTED, POOLS_TAKE_NO_COPIES)
    return _port_problem(spec, backend, obj) or _closed_port(spec, backend, obj, children)


def find_backend(children: Children, backend: Backend) -> Object | None:
    """The Service or pool, if it exists."""
    return (children.pools if backend.pooled else children.services).get(backend.name)


def _port_problem(spec: Spec, backend: Backend, obj: Object) -> Problem | None:
    wanted: int | str = spec.routed_port.port
    there = {one.get("port") for one in obj["spec"].get("ports") or ()}
    what, mend = "routed to port", "write the port that both Services have"
    if backend.pooled:
        wanted, there = spec.routed_port.target, set(pool_ports(obj))
        what, mend = "answered at targetPort", "write one of its targetPorts"
    if wanted in there or isinstance(wanted, str):
        return None
    known = ", ".join(str(number) for number in sorted(there, key=str)) or "none"
    return Problem(
        Reason.INVALID_SPEC,
        f"spec.service.ports: requests are {what} {wanted}, which {backend} does not have (it has: {known}): {mend}",
    )


def _closed_port(spec: Spec, backend: Backend, obj: Object, children: Children) -> Problem | None:
    """A target by a name that no container has: the pods are ready, no request reaches them, and so no metric tells."""
    wanted = spec.routed_port.port
    routed = next((one for one in obj["spec"].get("ports") or () if one.get("port") == wanted), None)
    slices = (
        [] if backend.pooled else [one for one in children.slices_of(backend.name) if one.get("endpoints")]
    )
    found = {port.get("name") or "" for one in slices for port in one.get("ports") or ()}
    if routed is None or not slices or (routed.get("name") or "") in found:
        return None
    return Problem(
        Reason.INVALID_SPEC,
        f"spec.service.ports: requests are routed to port {wanted}, which {backend} sends to {routed.get('targetPort')!r}, and no "
        "container of its pods has a port of that name: give one that name, or write its number as targetPort of the Service",
    )


def _shared_pods(own: OwnServices, status: Status, children: Children) -> Problem | None:
    serving = children.bound.get(status.stable.revision) if status.stable else Backend.of(own.stable)
    named = Backend.of(own.named)
    if serving is None or serving == named:
        return None
    both = children.pods_behind(serving) & children.pods_behind(named)
    if not both:
        return None
    return Problem(
        Reason.SELECTOR_OVERLAP,
        f"{serving} and {named} have pods in common ({min(both)}), so nothing can be compared: give each a selector that "
        "matches one version only",
    )


def _nothing_to_compare(own: OwnServices, status: Status, children: Children) -> Problem | None:
    """With a candidate at creation, `stable` has to serve, or the candidate would get everything without a look."""
    first = status.phase in (None, Phase.INVALID)
    if not first or own.candidate is None or ready_behind(children, Backend.of(own.stable)):
        return None
    return Problem(
        Reason.AWAITING_PODS,
        f"{Backend.of(own.stable)} has no ready pod, so there is nothing to compare {own.named.name} with: wait until it has, "
        f"or leave out candidate and name {own.named.name} as stable",
    )


def with_capacity(spec: Spec, status: Status, children: Children) -> Spec:
    """At rest, the spec with `replicas` at least what the stable Service has: whoever takes over must be as large."""
    own = spec.workload.services
    if own is None or status.phase not in AT_REST:
        return spec
    serving = children.bound.get(status.stable.revision) if status.stable else Backend.of(own.stable)
    ready = len(ready_behind(children, serving)) if serving else 0
    replicas = max(spec.workload.replicas, ready)
    return spec.model_copy(update={"workload": spec.workload.model_copy(update={"replicas": replicas})})


def switched(spec: Spec, status: Status, children: Children) -> Problem | None:
    """A ModelRollout whose pods are ours can't go over to Services of the user's, or back."""
    own = spec.workload.services is not None
    if all((role.revision in children.bound) == own for role in _roles(status)):
        return None
    return Problem(
        Reason.INVALID_SPEC,
        "spec.workload can't change between pods of the operator's and workload.services: put it back, and create another "
        "ModelRollout for the other",
    )


def _roles(status: Status) -> Iterator[RevisionStatus]:
    yield from (role for role in (status.stable, status.candidate, status.previous) if role is not None)
