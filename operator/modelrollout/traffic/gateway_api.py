"""Weights as an HTTPRoute of the Gateway API (v1) that the operator owns.

The route's lists are single values for the API server, so they are always written whole, with every default spelled
out: what is read back is then what was written. A backend stands in the route only if its Service had a ready endpoint
when it was added, or requests would be answered 503 by the gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..api.conditions import Reason
from ..api.spec import GatewayAPI, ParentRef, Spec
from ..api.status import Status
from ..cluster.actions import Action
from ..cluster.kinds import HTTP_ROUTE, SERVICE, Object
from ..workloads import (
    Children,
    Ownership,
    Problem,
    differences,
    ensure,
    foreign_manager,
    name_taken,
    ownership,
    record_of,
)
from ..workloads.children import delete, deleting, name_in, owned
from ..workloads.observation import ready_pods
from ..workloads.revisions import weights_by_revision
from .base import RouteReading, Split

_GATEWAY = ("gateway.networking.k8s.io", "Gateway")
_REQUIRED = ("Accepted", "ResolvedRefs")


class GatewayApiRouter:
    """spec.traffic.gatewayAPI."""

    name = "gatewayAPI"

    def validate(self, spec: Spec) -> list[Problem]:
        """The routed port must be one of the Service's."""
        gateway = _gateway(spec)
        names = [port.name for port in spec.service.ports]
        if gateway.port is None and len(names) == 1:
            return []
        if gateway.port in names:
            return []
        given = f"names {gateway.port}, which service.ports does not have" if gateway.port else "is missing"
        return [
            Problem(Reason.INVALID_SPEC, f"traffic.gatewayAPI.port {given}: write one of {', '.join(names)}")
        ]

    def split(self, weight: int, capacity: int) -> Split:
        """Requests are split by the gateway, whatever the pods."""
        return Split(float(weight))

    def actions(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
    ) -> list[Action]:
        """Create the route once a revision can answer; then keep it as the status wants it."""
        live = children.routes.get(name_in(rollout))
        desired = self._desired(rollout, spec, status, children)
        if desired is None or deleting(rollout):
            return []
        weights = ", ".join(f"{ref['name']} {ref['weight']}" for ref in _refs(desired))
        return ensure(rollout, desired, live, f"weights {weights}")

    def observe(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> RouteReading:
        """The weights in the route, and whether every parent has accepted this generation of it."""
        live = children.routes.get(name_in(rollout))
        taken = name_taken(rollout, live)
        if live is None or taken:
            return RouteReading(problem=f"{taken.reason}: {taken.message}" if taken else None)
        desired = self._desired(rollout, spec, status, children)
        ours = (
            desired is not None
            and not differences(desired, live)
            and _shares(desired, rollout, status, children) == _percent(weights_by_revision(status))
        )
        problem = next(_refusals(rollout, _gateway(spec), live), None)
        metadata = live["metadata"]
        return RouteReading(
            weights=_shares(live, rollout, status, children),
            accepted=ours and problem is None and not deleting(live),
            identity=f"{metadata.get('uid')}/{metadata.get('generation')}",
            problem=problem,
            foreign_manager=foreign_manager(desired, live) if desired is not None else None,
        )

    def retire(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Delete the owned route."""
        live = children.routes.get(name_in(rollout))
        if live is None or deleting(live) or ownership(rollout, live) is Ownership.FOREIGN:
            return []
        return [delete(live, "another router has taken over")]

    def _desired(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> Object | None:
        """The route as the status wants it; None as long as there is no backend for it."""
        refs = _backends(rollout, spec, status, children)
        if not refs:
            return None
        gateway = _gateway(spec)
        route: Object = {
            "parentRefs": [_parent(parent) for parent in gateway.parent_refs],
            "rules": [{"matches": _matches(gateway), "backendRefs": refs}],
        }
        if gateway.hostnames:
            route["hostnames"] = list(gateway.hostnames)
        return {
            "apiVersion": HTTP_ROUTE.api_version,
            "kind": HTTP_ROUTE.kind,
            "metadata": owned(rollout, name_in(rollout)),
            "spec": route,
        }


def _gateway(spec: Spec) -> GatewayAPI:
    gateway = spec.traffic.gateway_api
    if gateway is None:
        raise ValueError("traffic.gatewayAPI is not set")
    return gateway


def _parent(parent: ParentRef) -> Object:
    return {"group": _GATEWAY[0], "kind": _GATEWAY[1], **parent.to_wire()}


def _matches(gateway: GatewayAPI) -> list[Object]:
    return [match.to_wire() for match in gateway.matches] or [{"path": {"type": "PathPrefix", "value": "/"}}]


def _backends(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> list[Object]:
    """The backends of the committed weights, without those that can't answer yet.

    One that is in the route stays there when it loses its endpoints: what weight it may have is the decision's to say.
    If none would be left, those in the route stay: a route without backends answers 500.
    """
    live = children.routes.get(name_in(rollout))
    routed = {} if live is None else {str(ref.get("name")): ref for ref in _refs(live)}
    weights = weights_by_revision(status)
    refs = []
    for revision, weight in weights.items():
        service = children.service_of(rollout, revision)
        record = record_of(rollout, spec, children, revision)
        if record is not None and (service in routed or ready_pods(children.slices_of(service))):
            number = record.port(_gateway(spec).port)
            refs.append(_ref(service, number, weight))
    ours = [name for name in routed if _revision_in(rollout, name) or name in children.bound.values()]
    return refs or [_ref(name, int(routed[name].get("port") or 0), _weight(routed[name])) for name in ours]


def _ref(service: str, port: int, weight: int) -> Object:
    return {"group": SERVICE.group, "kind": SERVICE.kind, "name": service, "port": port, "weight": weight}


def _refs(route: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        ref for rule in (route.get("spec") or {}).get("rules") or () for ref in rule.get("backendRefs") or ()
    ]


def _weight(ref: Mapping[str, Any]) -> int:
    weight = ref.get("weight")
    return 1 if weight is None else int(weight)


def _revision_in(rollout: Mapping[str, Any], service: str) -> str | None:
    prefix = f"{name_in(rollout)}-"
    return service[len(prefix) :] if service.startswith(prefix) else None


def _shares(
    route: Mapping[str, Any], rollout: Mapping[str, Any], status: Status, children: Children
) -> dict[str, int]:
    """Percent by revision, in a route; a Service that is not a revision's goes by its own name."""
    roles = (status.previous, status.stable, status.candidate)
    bound = {children.bound[r.revision]: r.revision for r in roles if r and r.revision in children.bound}
    weights: dict[str, int] = {}
    for ref in _refs(route):
        name = str(ref.get("name"))
        key = bound.get(name) or _revision_in(rollout, name) or name
        weights[key] = weights.get(key, 0) + _weight(ref)
    return _percent(weights)


def _percent(weights: Mapping[str, int]) -> dict[str, int]:
    total = sum(weights.values())
    return {key: 100 * weight // total for key, weight in weights.items() if weight > 0}


def _refusals(rollout: Mapping[str, Any], gateway: GatewayAPI, live: Mapping[str, Any]) -> Iterator[str]:
    """Why the route is not accepted, by parent; nothing if every parent has accepted its present generation."""
    generation = int(live["metadata"].get("generation") or 0)
    reported = (live.get("status") or {}).get("parents") or ()
    namespace = rollout["metadata"]["namespace"]
    for parent in gateway.parent_refs:
        where = f"Gateway {parent.namespace or namespace}/{parent.name}"
        entries = [
            entry
            for entry in reported
            if _same_parent(entry.get("parentRef") or {}, _parent(parent), namespace)
        ]
        if not entries:
            yield (
                f"{Reason.ROUTE_NOT_ACCEPTED}: {where} has not answered: does it exist, does a controller serve it, "
                "and does a listener allow routes of this namespace?"
            )
        else:
            answers = [_refusal(entry, generation, where) for entry in entries]
            if None not in answers:
                yield str(answers[0])


def _refusal(entry: Mapping[str, Any], generation: int, where: str) -> str | None:
    conditions = {condition.get("type"): condition for condition in entry.get("conditions") or ()}
    for wanted in _REQUIRED:
        condition = conditions.get(wanted) or {}
        current = int(condition.get("observedGeneration") or 0) >= generation
        if not condition or not current:
            return f"{Reason.ROUTE_NOT_ACCEPTED}: {where} has not reported {wanted} for the present route"
        if condition.get("status") != "True":
            said = f"{condition.get('reason')}: {condition.get('message')}"
            return f"{Reason.ROUTE_NOT_ACCEPTED}: {where}: {wanted} is {condition.get('status')}, {said}"
    return None


def _same_parent(left: Mapping[str, Any], right: Mapping[str, Any], namespace: str) -> bool:
    return _parent_key(left, namespace) == _parent_key(right, namespace)


def _parent_key(ref: Mapping[str, Any], namespace: str) -> tuple[Any, ...]:
    return (
        ref.get("group", _GATEWAY[0]),
        ref.get("kind", _GATEWAY[1]),
        ref.get("namespace") or namespace,
        ref.get("name"),
        ref.get("sectionName"),
        ref.get("port"),
    )
