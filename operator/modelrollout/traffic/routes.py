"""What the routes of the Gateway API have in common: parents that accept them or not, and how requests are copied."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..api.conditions import Reason
from ..api.spec import Spec
from ..cluster.kinds import SERVICE, Object

GATEWAY = ("gateway.networking.k8s.io", "Gateway")
MIRROR = "RequestMirror"
_REQUIRED = ("Accepted", "ResolvedRefs")


def refusals(parents: Iterable[Mapping[str, Any]], namespace: str, live: Mapping[str, Any]) -> Iterator[str]:
    """Why the route is not accepted, by parent; nothing if every parent has accepted its present generation."""
    generation = int(live["metadata"].get("generation") or 0)
    reported = (live.get("status") or {}).get("parents") or ()
    for parent in parents:
        where = f"{parent.get('kind') or GATEWAY[1]} {parent.get('namespace') or namespace}/{parent['name']}"
        wanted = _key(parent, namespace)
        entries = [entry for entry in reported if _key(entry.get("parentRef") or {}, namespace) == wanted]
        if not entries:
            yield (
                f"{Reason.ROUTE_NOT_ACCEPTED}: {where} has not answered: does it exist, does a controller serve it, "
                "and does a listener allow routes of this namespace?"
            )
        else:
            answers = [_refusal(entry, generation, where) for entry in entries]
            if None not in answers:
                yield str(answers[0])


def mirror_filter(service: str, port: int, percent: int) -> Object:
    """The filter that sends copies of requests to a Service, with every default spelled out."""
    ref = {"group": SERVICE.group, "kind": SERVICE.kind, "name": service, "port": port}
    return {"type": MIRROR, "requestMirror": {"backendRef": ref, "percent": percent}}


def mirrors(filters: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Services that copies of requests are sent to, each with the percent of the requests."""
    found = []
    for one in filters:
        mirror = one.get("requestMirror")
        if one.get("type") == MIRROR and mirror:
            fraction = mirror.get("fraction")
            percent = mirror.get("percent", 100)
            if fraction:
                percent = 100 * int(fraction["numerator"]) // int(fraction.get("denominator") or 100)
            found.append((str(mirror["backendRef"]["name"]), int(percent)))
    return found


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


def _key(ref: Mapping[str, Any], namespace: str) -> tuple[Any, ...]:
    return (
        ref.get("group", GATEWAY[0]),
        ref.get("kind", GATEWAY[1]),
        ref.get("namespace") or namespace,
        ref.get("name"),
        ref.get("sectionName"),
        ref.get("port"),
    )


class GatewayRouteShape:
    """How HTTPRoutes and GRPCRoutes say where requests go."""

    rules = "rules"
    backends = "backendRefs"
    owned = ("backendRefs", "filters")
    heaviest = 1_000_000

    def picks(self, spec: Spec, rule: Mapping[str, Any]) -> bool:
        """Every rule."""
        return True

    def service_of(self, backend: Mapping[str, Any], namespace: str) -> str | None:
        """A Service, the kind that is meant where none is named, of the route's namespace."""
        kind = (backend.get("group") or "", backend.get("kind") or SERVICE.kind)
        local = backend.get("namespace") in (None, namespace)
        return str(backend["name"]) if kind == (SERVICE.group, SERVICE.kind) and local else None

    def port_of(self, backend: Mapping[str, Any]) -> int | None:
        """The port, which a Service needs."""
        return None if backend.get("port") is None else int(backend["port"])

    def weights(self, backends: Sequence[Mapping[str, Any]]) -> list[int]:
        """Left out means 1."""
        return [1 if one.get("weight") is None else int(one["weight"]) for one in backends]

    def redirect(self, backend: Mapping[str, Any], service: str, port: int | None, weight: int) -> Object:
        """Filters stay."""
        changed = {**copy.deepcopy(dict(backend)), "name": service, "weight": weight}
        return changed if port is None else changed | {"port": port}

    def unfit(self, backend: Mapping[str, Any]) -> str | None:
        """None: there is nothing that can't be replaced."""
        return None

    def mirrors(self, rule: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Of the filters of the rule."""
        return mirrors(rule.get("filters") or ())

    def mirror(self, values: Object, service: str, port: int | None, percent: int) -> Object | None:
        """One filter more; a rule may have several mirrors."""
        return values | {
            "filters": [*(values.get("filters") or ()), mirror_filter(service, port or 80, percent)]
        }

    def unmirror(self, values: Object, services: frozenset[str]) -> Object:
        """Without our filters; without the list, if it was ours altogether."""
        filters = values.get("filters")
        kept = [one for one in filters or () if not any(to in services for to, _ in mirrors([one]))]
        return values if len(kept) == len(filters or ()) else values | {"filters": kept or None}

    def refusal(self, live: Mapping[str, Any]) -> str | None:
        """What the parents of the route say."""
        parents = (live.get("spec") or {}).get("parentRefs") or ()
        if not parents:
            return f"{Reason.ROUTE_NOT_ACCEPTED}: {live['kind']} {live['metadata']['name']} has no parentRefs: add a Gateway"
        return next(refusals(parents, live["metadata"]["namespace"], live), None)
