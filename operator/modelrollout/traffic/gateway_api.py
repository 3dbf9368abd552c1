"""Weights as an HTTPRoute of the Gateway API (v1) that the operator owns.

The route's lists are single values for the API server, so they are always written whole, with every default spelled
out: what is read back is then what was written. A backend stands in the route only if its Service had a ready endpoint
when it was added, or requests would be answered 503 by the gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import (
    GatewayAPI,
    HeaderMatch,
    ParentRef,
    RequestMatch,
    RouteFilter,
    RouteMatch,
    Spec,
    Stickiness,
)
from modelrollout.api.status import Status
from modelrollout.api.types import format_duration
from modelrollout.cluster.actions import Action
from modelrollout.cluster.kinds import HTTP_ROUTE, Kind, Object
from modelrollout.traffic.base import RouteReading, Split, in_percent
from modelrollout.traffic.routes import GATEWAY, backend_in, backend_ref, mirror_filter, mirrors, refusals
from modelrollout.workloads import (
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
from modelrollout.workloads.backends import Backend
from modelrollout.workloads.children import delete, deleting, name_in, owned
from modelrollout.workloads.observation import ready_behind
from modelrollout.workloads.revisions import weights_by_revision

MOST_HEADERS = 16  # in one match
MOST_FILTERS = 16  # in one rule


class GatewayApiRouter:
    """spec.traffic.gatewayAPI."""

    name = "gatewayAPI"
    can_mirror = True
    can_match = True
    can_stick = True

    def reference(self, spec: Spec) -> tuple[Kind, str] | None:
        """None: the route is the operator's own."""
        return None

    def problems(self, rollout: Mapping[str, Any], spec: Spec, children: Children) -> list[Problem]:
        """None: the route is made from the spec."""
        return []

    def validate(self, spec: Spec) -> list[Problem]:
        """The routed port must be one of the Service's, and no match may name a header twice."""
        gateway = _gateway(spec)
        names = [port.name for port in spec.service.ports]
        problems = [Problem(Reason.INVALID_SPEC, sentence) for sentence in _unfit(spec)]
        if gateway.port in names or (gateway.port is None and len(names) == 1):
            return problems
        given = f"names {gateway.port}, which service.ports does not have" if gateway.port else "is missing"
        sentence = f"traffic.gatewayAPI.port {given}: write one of {', '.join(names)}"
        return [Problem(Reason.INVALID_SPEC, sentence), *problems]

    def probe(self, rollout: Mapping[str, Any], spec: Spec) -> Object | None:
        """An HTTPRoute with sessionPersistence: only the experimental channel of the Gateway API has the field."""
        test = spec.strategy.ab_test
        if test is None or test.stickiness is None:
            return None
        return _route(rollout, {"rules": [_session(test.stickiness)]})

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
            and _shares(desired, rollout, status, children) == in_percent(weights_by_revision(status))
            and _mirrored(desired) == status.weights.mirror
            and (not status.weights.matched or len(desired["spec"]["rules"]) > 1)
        )
        parents = [_parent(parent) for parent in _gateway(spec).parent_refs]
        problem = next(refusals(parents, rollout["metadata"]["namespace"], live), None)
        metadata = live["metadata"]
        return RouteReading(
            weights=_shares(live, rollout, status, children),
            accepted=ours and problem is None and not deleting(live),
            identity=f"{metadata.get('uid')}/{metadata.get('generation')}",
            problem=problem,
            foreign_manager=foreign_manager(desired, live) if desired is not None else None,
            mirror=_mirrored(live),
        )

    def retire(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Delete the owned route. One that merely carries our label and name may be the user's, and the very one that the
        other router works in."""
        live = children.routes.get(name_in(rollout))
        if (
            live is None
            or deleting(live)
            or ownership(rollout, live) not in (Ownership.OURS, Ownership.STALE)
        ):
            return []
        return [delete(live, "another router has taken over")]

    def release(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Nothing: the owned route goes with its owner."""
        return []

    def _desired(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> Object | None:
        """The route as the status wants it; None as long as there is no backend for it."""
        refs = _backends(rollout, spec, status, children)
        if not refs:
            return None
        gateway, sticky = _gateway(spec), status.trying.stickiness if status.trying else None
        route: Object = {
            "parentRefs": [_parent(parent) for parent in gateway.parent_refs],
            "rules": [
                _rule(gateway, refs, _mirror(rollout, spec, status, children)) | _session(sticky),
                *_chosen(rollout, spec, status, children),
                *_preview(rollout, spec, status, children),
            ],
        }
        if gateway.hostnames:
            route["hostnames"] = list(gateway.hostnames)
        made = _route(rollout, route)
        if gateway.annotations:
            made["metadata"]["annotations"] = dict(gateway.annotations)
        return made


def _route(rollout: Mapping[str, Any], spec: Object) -> Object:
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": owned(rollout, name_in(rollout)),
        "spec": spec,
    }


def _gateway(spec: Spec) -> GatewayAPI:
    gateway = spec.traffic.gateway_api
    if gateway is None:
        raise ValueError("traffic.gatewayAPI is not set")
    return gateway


def _parent(parent: ParentRef) -> Object:
    return {"group": GATEWAY[0], "kind": GATEWAY[1], **parent.to_wire()}


def _matches(gateway: GatewayAPI) -> list[Object]:
    return [match.to_wire() for match in gateway.matches] or [{"path": {"type": "PathPrefix", "value": "/"}}]


def _rule(gateway: GatewayAPI, refs: list[Object], mirror: Object | None) -> Object:
    rule: Object = {"matches": _matches(gateway), "backendRefs": refs}
    filters = [_filter(one) for one in gateway.filters] + ([mirror] if mirror else [])
    if filters:
        rule["filters"] = filters
    timeouts = gateway.timeouts
    if timeouts is not None:
        waits = {"request": timeouts.request, "backendRequest": timeouts.backend_request}
        # The Gateway API takes no microseconds.
        rule["timeouts"] = {k: format_duration(round(v, 3)) for k, v in waits.items() if v is not None}
    return rule


def _session(sticky: Stickiness | None) -> Object:
    """The field of a rule that keeps a user on one side, with every default spelled out."""
    if sticky is None:
        return {}
    session: Object = {"sessionName": sticky.cookie, "type": "Cookie"}
    kept = sticky.lifetime is not None
    session["cookieConfig"] = {"lifetimeType": "Permanent" if kept else "Session"}
    if sticky.lifetime is not None:
        session["absoluteTimeout"] = format_duration(round(sticky.lifetime, 3))
    return {"sessionPersistence": session}


def _chosen(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> list[Object]:
    """The rule for requests that the step chooses: it asks for more than the main one does, so it comes first.

    The candidate stands in it once its Service had a ready endpoint; what it can't answer goes to the stable revision.
    """
    percent, candidate, step = status.weights.matched, status.candidate, status.trying
    if percent <= 0 or candidate is None or step is None or not step.matches:
        return []
    gateway, refs = _gateway(spec), []
    others = status.stable.revision if status.stable else candidate.revision
    for revision, weight in ((others, 100 - percent), (candidate.revision, percent)):
        backend = children.backend_of(rollout, revision)
        record = record_of(rollout, spec, children, revision)
        if weight and record is not None and _may_stand(rollout, children, backend):
            refs.append(backend_ref(backend, record.port(gateway.port), weight))
    if children.backend_of(rollout, candidate.revision) not in map(backend_in, refs):
        return []
    rule = _rule(gateway, refs, None)
    rule["matches"] = [_narrowed(match, one) for match in rule["matches"] for one in step.matches]
    return [rule]


def _may_stand(rollout: Mapping[str, Any], children: Children, backend: Backend) -> bool:
    """Whether a backend can answer, or stands in the route already: what it may get then is the decision's to say."""
    live = children.routes.get(name_in(rollout))
    rules = (live.get("spec") or {}).get("rules") or () if live else ()
    routed = {backend_in(ref) for rule in rules for ref in rule.get("backendRefs") or ()}
    return backend in routed or bool(ready_behind(children, backend))


def _narrowed(match: Object, one: RequestMatch) -> Object:
    """A match of the route that asks, besides, for what the step chooses by."""
    headers = [*(match.get("headers") or ()), *(header.to_wire() for header in one.compared)]
    narrowed = match | ({"headers": headers} if headers else {})
    parameters = [parameter.to_wire() for parameter in one.query_params or ()]
    return narrowed | ({"queryParams": parameters} if parameters else {})


def _unfit(spec: Spec) -> Iterator[str]:
    """The Gateway API compares a header, by its name, once in a match, and only so many of them; a copy is a filter."""
    strategy, gateway = spec.strategy, _gateway(spec)
    tested = (strategy.ab_test.matches or ()) if strategy.ab_test else ()
    taken = [h.name.lower() for match in gateway.matches for h in match.headers or ()]
    most = max((len(match.headers or ()) for match in gateway.matches), default=0)
    for match in (*tested, *(one for step in strategy.steps for one in step.matches or ())):
        names = [header.name.lower() for header in match.compared]
        twice = next((name for name in names if name in taken or names.count(name) > 1), None)
        if twice is not None:
            yield (
                f"strategy: matches compare the header {twice}, which is compared there or in traffic.gatewayAPI.matches already: "
                "choose another header, or write one regular expression"
            )
        elif most + len(names) > MOST_HEADERS:
            yield (
                f"strategy: matches compare {len(names)} headers besides up to {most} in traffic.gatewayAPI.matches, and an HTTPRoute "
                f"takes {MOST_HEADERS}: compare fewer"
            )
    header = strategy.blue_green.preview_header if strategy.blue_green else None
    if header is not None:
        wanted = {(h.name.lower(), h.type, h.value) for m in gateway.matches for h in m.headers or ()}
        if (header.name.lower(), header.type, header.value) in wanted:
            yield (
                f"strategy.blueGreen.previewHeader: requests of users have {header.name} with this value too, by "
                "traffic.gatewayAPI.matches, so nobody would see the candidate: choose another header or value"
            )
    if header is not None and any(
        _compared_besides(header, match) >= MOST_HEADERS for match in gateway.matches
    ):
        yield (
            f"strategy.blueGreen.previewHeader is compared besides {MOST_HEADERS} headers in traffic.gatewayAPI.matches, and an "
            f"HTTPRoute takes {MOST_HEADERS}: compare fewer"
        )
    if strategy.mirrors and len(gateway.filters) >= MOST_FILTERS:
        yield (
            f"strategy copies requests (mirror) by a filter besides {len(gateway.filters)} in traffic.gatewayAPI.filters, and an "
            f"HTTPRoute takes {MOST_FILTERS}: leave one out"
        )


def _compared_besides(header: HeaderMatch, match: RouteMatch) -> int:
    """Headers that a match compares, without one of this name, whose place it takes."""
    return sum(other.name.lower() != header.name.lower() for other in match.headers or ())


def _preview(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> list[Object]:
    """The rule for those who look at the candidate before the switch: one header more than the others, so it comes first."""
    blue_green, revision = spec.strategy.blue_green, status.previewed
    if blue_green is None or blue_green.preview_header is None or revision is None:
        return []
    backend = children.backend_of(rollout, revision)
    record = record_of(rollout, spec, children, revision)
    if record is None or not ready_behind(children, backend):
        return []
    gateway, header = _gateway(spec), blue_green.preview_header.to_wire()
    rule = _rule(gateway, [backend_ref(backend, record.port(gateway.port), 1)], None)
    for match in rule["matches"]:
        others = [one for one in match.get("headers") or () if one["name"].lower() != header["name"].lower()]
        match["headers"] = [*others, header]
    return [rule]


def _filter(one: RouteFilter) -> Object:
    """As the Gateway API has it: with a type beside the member, which is a tautology there; empty lists left out."""
    ((member, content),) = ((name, value) for name, value in one.to_wire().items())
    return {
        "type": f"{member[0].upper()}{member[1:]}" if member != "urlRewrite" else "URLRewrite",
        member: {key: value for key, value in content.items() if value != []},
    }


def _mirror(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> Object | None:
    """The filter that copies requests to the candidate, once that can answer."""
    percent, candidate = status.weights.mirror, status.candidate
    if percent <= 0 or candidate is None:
        return None
    backend = children.backend_of(rollout, candidate.revision)
    record = record_of(rollout, spec, children, candidate.revision)
    live = children.routes.get(name_in(rollout))
    stands = live is not None and any(to == backend for to, _ in mirrors(_filters(live)))
    if record is None or not (stands or ready_behind(children, backend)):
        return None
    return mirror_filter(backend, record.port(_gateway(spec).port), percent)


def _filters(route: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for rule in _main(route) for one in rule.get("filters") or ()]


def _main(route: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rule that carries the split; behind it may stand the one for previews."""
    return list((route.get("spec") or {}).get("rules") or ())[:1]


def _mirrored(route: Mapping[str, Any]) -> int:
    """Percent of the requests that are copied."""
    return max((percent for _, percent in mirrors(_filters(route))), default=0)


def _backends(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> list[Object]:
    """The backends of the committed weights, without those that can't answer yet.

    One that is in the route stays there when it loses its endpoints: what weight it may have is the decision's to say.
    If none would be left, those in the route stay: a route without backends answers 500.
    """
    live = children.routes.get(name_in(rollout))
    routed = {} if live is None else {backend_in(ref): ref for ref in _refs(live)}
    weights = weights_by_revision(status)
    refs = []
    for revision, weight in weights.items():
        backend = children.backend_of(rollout, revision)
        record = record_of(rollout, spec, children, revision)
        if record is not None and (backend in routed or ready_behind(children, backend)):
            refs.append(backend_ref(backend, record.port(_gateway(spec).port), weight))
    ours = [one for one in routed if _revision_in(rollout, one) or one in children.bound.values()]
    return refs or [backend_ref(o, int(routed[o].get("port") or 0), _weight(routed[o])) for o in ours]


def _refs(route: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [ref for rule in _main(route) for ref in rule.get("backendRefs") or ()]


def _weight(ref: Mapping[str, Any]) -> int:
    weight = ref.get("weight")
    return 1 if weight is None else int(weight)


def _revision_in(rollout: Mapping[str, Any], backend: Backend) -> str | None:
    prefix = f"{name_in(rollout)}-"
    return (
        backend.name[len(prefix) :]
        if backend == Backend(backend.name) and backend.name.startswith(prefix)
        else None
    )


def _shares(
    route: Mapping[str, Any], rollout: Mapping[str, Any], status: Status, children: Children
) -> dict[str, int]:
    """Percent by revision, in a route; what is not a revision's goes by its own name."""
    roles = (status.previous, status.stable, status.candidate)
    bound = {children.bound[r.revision]: r.revision for r in roles if r and r.revision in children.bound}
    weights: dict[str, int] = {}
    for ref in _refs(route):
        backend = backend_in(ref)
        key = bound.get(backend) or _revision_in(rollout, backend) or backend.name
        weights[key] = weights.get(key, 0) + _weight(ref)
    return in_percent(weights)
