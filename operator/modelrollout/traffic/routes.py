"""What the routes of the Gateway API have in common: parents that accept them or not, and how requests are copied."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Spec
from modelrollout.cluster.kinds import INFERENCE_POOL, SERVICE, Kind, Object
from modelrollout.workloads.backends import Backend

GATEWAY = ("gateway.networking.k8s.io", "Gateway")
MIRROR = "RequestMirror"
_REQUIRED = ("Accepted", "ResolvedRefs")
_OURS = frozenset((kind.group, kind.kind) for kind in (SERVICE, INFERENCE_POOL))


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


def backend_ref(backend: Backend, port: int, weight: int) -> Object:
    """The reference to a backend, with every default spelled out. A pool names its ports itself."""
    return {**_named(backend, port), "weight": weight}


def _named(backend: Backend, port: int) -> Object:
    ref = {"group": backend.of_kind.group, "kind": backend.kind, "name": backend.name}
    return ref if backend.pooled else {**ref, "port": port}


def backend_in(ref: Mapping[str, Any]) -> Backend:
    """The backend that a reference names; one of another kind than ours goes by that kind."""
    kind = str(ref.get("kind") or SERVICE.kind)
    known = (str(ref.get("group") or ""), kind) in _OURS
    return Backend(str(ref.get("name")), kind if known else f"{ref.get('group')}/{kind}")


def mirror_filter(backend: Backend, port: int, percent: int) -> Object:
    """The filter that sends copies of requests to a backend, with every default spelled out."""
    return {"type": MIRROR, "requestMirror": {"backendRef": _named(backend, port), "percent": percent}}


def mirrors(filters: Iterable[Mapping[str, Any]]) -> list[tuple[Backend, int]]:
    """Backends that copies of requests are sent to, each with the percent of the requests."""
    found = []
    for one in filters:
        mirror = one.get("requestMirror")
        # One of ours never says its namespace.
        if one.get("type") == MIRROR and mirror and not mirror["backendRef"].get("namespace"):
            fraction = mirror.get("fraction")
            percent = mirror.get("percent", 100)
            if fraction:
                percent = 100 * int(fraction["numerator"]) // int(fraction.get("denominator") or 100)
            found.append((backend_in(mirror["backendRef"]), int(percent)))
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
    needs_port = True
    targets: tuple[Kind, ...] = (SERVICE,)

    def picks(self, spec: Spec, rule: Mapping[str, Any]) -> bool:
        """Every rule."""
        return True

    def backend_of(self, ref: Mapping[str, Any], namespace: str) -> Backend | None:
        """A Service, the kind that is meant where none is named, or what else this kind of route can name; of the route's
        namespace."""
        backend = backend_in(ref)
        local = ref.get("namespace") in (None, namespace)
        return backend if local and any(backend.kind == kind.kind for kind in self.targets) else None

    def port_of(self, ref: Mapping[str, Any]) -> int | None:
        """The port, which a Service needs, and which means nothing for a pool."""
        return None if ref.get("port") is None or backend_in(ref).pooled else int(ref["port"])

    def weights(self, backends: Sequence[Mapping[str, Any]]) -> list[int]:
        """Left out means 1."""
        return [1 if one.get("weight") is None else int(one["weight"]) for one in backends]

    def redirect(self, ref: Mapping[str, Any], backend: Backend, port: int | None, weight: int) -> Object:
        """Filters stay."""
        changed: Object = copy.deepcopy(dict(ref))
        if backend_in(ref).kind != backend.kind:
            changed |= {"group": backend.of_kind.group, "kind": backend.kind}
        if backend.pooled:
            changed.pop("port", None)
        elif port is not None:
            changed["port"] = port
        return changed | {"name": backend.name, "weight": weight}

    def unfit(self, ref: Mapping[str, Any]) -> str | None:
        """None: there is nothing that can't be replaced."""
        return None

    def mirrors(self, rule: Mapping[str, Any], namespace: str) -> list[tuple[Backend, int]]:
        """Of the filters of the rule."""
        return mirrors(rule.get("filters") or ())

    def mirror(
        self,
        values: Object,
        like: Mapping[str, Any] | None,
        backend: Backend,
        port: int | None,
        percent: int,
    ) -> Object | None:
        """One filter more; a rule may have several mirrors."""
        return values | {
            "filters": [*(values.get("filters") or ()), mirror_filter(backend, port or 80, percent)]
        }

    def unmirror(self, values: Object, backends: frozenset[Backend], namespace: str) -> Object:
        """Without our filters; without the list, if it was ours altogether."""
        filters = values.get("filters")
        kept = [one for one in filters or () if not any(to in backends for to, _ in mirrors([one]))]
        return values if len(kept) == len(filters or ()) else values | {"filters": kept or None}

    def refusal(self, live: Mapping[str, Any]) -> str | None:
        """What the parents of the route say."""
        parents = (live.get("spec") or {}).get("parentRefs") or ()
        if not parents:
            return f"{Reason.ROUTE_NOT_ACCEPTED}: {live['kind']} {live['metadata']['name']} has no parentRefs: add a Gateway"
        return next(refusals(parents, live["metadata"]["namespace"], live), None)
