"""What a spec needs to have for itself, and who else wants it.

Two ModelRollouts that steer one Service would undo each other's work for ever; of two that take the same requests from a
Gateway the later one would wait for ever for requests; and a Service or autoscaler of somebody
else that selects our pods sends traffic past the split, or scales one side of it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import GatewayAPI, RequestMatch, RouteMatch, Spec, Strategy
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HTTP_ROUTE,
    REVISION_LABEL,
    ROUTES,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.store import Key
from modelrollout.workloads.children import Ownership, Problem, child_name, labels_of, name_in, ownership
from modelrollout.workloads.revisions import preview_name


def needed_names(rollout: Mapping[str, Any], spec: Spec, revision: str) -> list[tuple[Kind, str]]:
    """Kind and name of every object that a revision is made of; `name_taken` judges what stands there."""
    child = child_name(rollout, revision)
    if spec.workload.services is not None:
        names = [(CONTROLLER_REVISION, child)]
    else:
        names = [
            (SERVICE, spec.service_name(name_in(rollout))),
            (CONTROLLER_REVISION, child),
            (DEPLOYMENT, child),
            (SERVICE, child),
        ]
    if spec.traffic.router == "gatewayAPI":
        names.append((HTTP_ROUTE, name_in(rollout)))
    if spec.strategy.blue_green is not None and spec.workload.services is None:
        names.append((SERVICE, preview_name(rollout)))
    return names


@dataclass(frozen=True, slots=True)
class Claim:
    """What can have one master only, with what a second one can do about it."""

    namespace: str
    what: str
    mend: str = field(default="choose another one", compare=False)


# By claim, the listeners (name, port) of the Gateway that it is about; None: all of them, and what has no listeners.
_Claims = Mapping[Claim, frozenset[tuple[str | None, int | None]]]
_WHOLE: frozenset[tuple[str | None, int | None]] = frozenset({(None, None)})


class _Holder(NamedTuple):
    created: str
    uid: str
    key: Key


class _Entry(NamedTuple):
    holder: _Holder
    source: Any  # what the claims were made from, so that a status that was written costs nothing
    claims: _Claims


class Claims:
    """Who steers what (S10), kept up to date one ModelRollout at a time: a question costs by the claims of one.

    What two want belongs to the earlier one, by creation time, then by uid. A loser keeps its other claims: it may still
    be steering those objects.
    """

    def __init__(self) -> None:
        self._holders: dict[Claim, list[_Holder]] = {}  # the earliest first
        self._entries: dict[Key, _Entry] = {}

    def put(self, rollout: Mapping[str, Any]) -> frozenset[Key]:
        """Take a ModelRollout as it is now; the others that want the same as it does or did."""
        metadata = rollout["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        created, uid = str(metadata.get("creationTimestamp") or ""), str(metadata.get("uid") or "")
        holder, source = _Holder(created, uid, key), (_specs(rollout), _planned(rollout))
        present = self._entries.get(key)
        if present is not None and (present.holder, present.source) == (holder, source):
            return frozenset()
        claims = _claims(rollout)
        if present is not None and (present.holder, present.claims) == (holder, claims):
            self._entries[key] = present._replace(source=source)
            return frozenset()
        affected = self.remove(key)
        self._entries[key] = _Entry(holder, source, claims)
        for claim in claims:
            insort(self._holders.setdefault(claim, []), holder)
        return affected | self._others(key, claims)

    def remove(self, key: Key) -> frozenset[Key]:
        """Forget a ModelRollout that is gone; the others that want what it had."""
        holder, _, claims = self._entries.pop(key, (None, None, {}))
        others = self._others(key, claims)
        for claim in claims:
            self._holders[claim] = [other for other in self._holders[claim] if other != holder]
            if not self._holders[claim]:
                del self._holders[claim]
        return others

    def conflict(self, key: Key) -> Problem | None:
        """What the ModelRollout wants and an earlier one has; None if there is nothing."""
        holder, _, claims = self._entries.get(key, (None, None, {}))
        for claim, listeners in claims.items():
            for other in self._holders[claim]:
                if other == holder:
                    break
                if _meet(listeners, self._entries[other.key].claims[claim]):
                    return _refusal(claim, key, other.key)
        return None

    def _others(self, key: Key, claims: Iterable[Claim]) -> frozenset[Key]:
        return frozenset(other.key for claim in claims for other in self._holders.get(claim, ())) - {key}


def _meet(
    some: Iterable[tuple[str | None, int | None]], others: Collection[tuple[str | None, int | None]]
) -> bool:
    return any(
        all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
        for one in some
        for other in others
    )


def _refusal(claim: Claim, key: Key, holder: Key) -> Problem:
    name = holder.name if holder.namespace == key.namespace else f"{holder.namespace}/{holder.name}"
    return Problem(
        Reason.CONFLICT,
        f"{claim.what} is steered by the older ModelRollout {name}: {claim.mend}, or delete {name}",
    )


def _claims(rollout: Mapping[str, Any]) -> _Claims:
    """What a ModelRollout steers now or by its spec, read leniently: it may be an invalid one."""
    namespace = rollout["metadata"]["namespace"]
    claims: dict[Claim, frozenset[tuple[str | None, int | None]]] = {
        Claim(namespace, f"{kind} {name}"): _WHOLE for kind, name in _objects(rollout)
    }
    for spec in _specs(rollout):
        for claim, listener in _requests(namespace, spec, _planned(rollout)):
            claims[claim] = claims.get(claim, frozenset()) | {listener}
    return claims


def _requests(
    namespace: str, spec: Mapping[str, Any], planned: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Claim, tuple[str | None, int | None]]]:
    """Requests that an HTTPRoute of our own takes from a Gateway, in all of its rules: of two routes with the same host names
    and matches the older one gets all of them. `planned`: matches of the steps that are under way.

    Where the host names differ the Gateway API itself says who gets a request, the one with the more specific name.
    """
    traffic = spec.get("traffic")
    try:
        gateway = GatewayAPI.from_wire(traffic["gatewayAPI"]) if isinstance(traffic, dict) else None
    except (KeyError, TypeError, ValidationError):
        return
    if gateway is None:
        return
    requests = dict(_asked(gateway, spec, planned))
    for parent in gateway.parent_refs:
        where = f"{parent.namespace or namespace}/{parent.name}"
        for host in gateway.hostnames or ("",):
            for words, mend in requests.items():
                what = f"traffic of Gateway {where} for {f'host {host}' if host else 'every host'}, {words},"
                yield Claim("", what, mend), (parent.section_name, parent.port)


_OTHERS = "write other hostnames or matches in spec.traffic.gatewayAPI"


def _asked(
    gateway: GatewayAPI, spec: Mapping[str, Any], planned: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """What the rules of the route ask for, in words, and the mend: that of chosen requests and of previews asks for more
    than the main one."""
    matches, choices = gateway.matches or (RouteMatch(),), [*_choices(spec, planned)]
    for match in matches:
        for choice in choices:
            yield _spelt(match, choice), f"choose others in spec.strategy, {_OTHERS}"
        yield _spelt(match, RequestMatch()), _OTHERS


def _choices(spec: Mapping[str, Any], planned: Iterable[Mapping[str, Any]]) -> Iterator[RequestMatch]:
    for match in planned:
        with suppress(ValidationError):
            yield RequestMatch.from_wire(match)
    try:
        strategy = Strategy.from_wire(spec.get("strategy") or {})
    except (TypeError, ValidationError):
        return
    if strategy.blue_green is not None and strategy.blue_green.preview_header is not None:
        yield RequestMatch(headers=(strategy.blue_green.preview_header,))
    for matches in (strategy.ab_test and strategy.ab_test.matches, *(s.matches for s in strategy.steps)):
        yield from matches or ()


def _spelt(match: RouteMatch, choice: RequestMatch) -> str:
    """A match and what is asked for besides, in words; equal ones have equal words, whatever their order and letter case."""
    path, value = match.path, match.path.value
    if path.type == "PathPrefix":
        value = value.rstrip("/") or "/"
    # By name: a preview's header takes the place of the route's.
    headers = {one.name.lower(): (one.type, one.value) for one in (*(match.headers or ()), *choice.compared)}
    words = [f"path {path.type} {value}"]
    words += [f"header {name} {kind} {wanted!r}" for name, (kind, wanted) in sorted(headers.items())]
    parameters = sorted((one.name, one.type, one.value) for one in choice.query_params or ())
    words += [f"parameter {name} {kind} {wanted!r}" for name, kind, wanted in parameters]
    return " ".join(words + ([f"method {match.method}"] if match.method else []))


def _planned(rollout: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Matches of the steps that are under way: an edit of the spec may leave the present one as it is."""
    plan = (rollout.get("status") or {}).get("plan") or ()
    return [match for step in plan for match in step.get("matches") or ()]


def _specs(rollout: Mapping[str, Any]) -> list[dict[str, Any]]:
    accepted = (rollout.get("status") or {}).get("accepted")
    return [spec for spec in (accepted, rollout.get("spec")) if isinstance(spec, dict)]


def _objects(rollout: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and name of the objects that a ModelRollout steers now or by its spec."""
    found: dict[tuple[str, str], None] = {}
    for spec in _specs(rollout):
        if not _text(spec, "workload", "services", "stable", "name"):
            found[("Service", _text(spec, "service", "name") or name_in(rollout))] = None
        for kind, path in _REFERENCES:
            if name := _text(spec, *path):
                found[(kind, name)] = None
        for role in ("stable", "candidate"):
            if name := _text(spec, "workload", "services", role, "name"):
                found[_text(spec, "workload", "services", role, "kind") or SERVICE.kind, name] = None
    return list(found)


_ROUTES = frozenset(kind.kind for kind in ROUTES)
_REFERENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("HTTPRoute", ("traffic", "httpRoute", "name")),
    ("GRPCRoute", ("traffic", "grpcRoute", "name")),
    ("VirtualService", ("traffic", "istio", "virtualService", "name")),
    ("Deployment", ("workload", "deploymentRef", "name")),
)


def _text(value: Any, *path: str) -> str | None:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def referred(rollout: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Kind and name of the routes that a ModelRollout names, read leniently: it may be an invalid one."""
    return {found for found in _objects(rollout) if found[0] in _ROUTES}


def selector_overlap(
    rollout: Mapping[str, Any],
    pod_labels: Mapping[str, str],
    *,
    services: Iterable[Object] = (),
    autoscalers: Iterable[Object] = (),
    workloads: Iterable[Object] = (),
    source: str | None = None,
) -> Problem | None:
    """A foreign Service or autoscaler that selects pods with these labels (those of the rendered template).

    An autoscaler selects what it scales: `workloads` are the namespace's Deployments that it may name. One that scales
    the ModelRollout itself is as it should be. `source` is the Deployment whose template it is, if it is one's.
    """
    for obj in services:
        selector = (obj.get("spec") or {}).get("selector")
        if ownership(rollout, obj) is Ownership.FOREIGN and selector and _selects(selector, pod_labels):
            return _overlap(f"Service {name_in(obj)}", selector, "requests go past the split", source)
    selectors: dict[str, Mapping[str, str]] = {}
    ours = {child_name(rollout, str(pod_labels.get(REVISION_LABEL)))}
    for obj in workloads:
        if ownership(rollout, obj) is Ownership.FOREIGN:
            selectors[name_in(obj)] = (obj["spec"].get("selector") or {}).get("matchLabels") or {}
        else:
            ours.add(name_in(obj))
    for obj in autoscalers:
        target = (obj.get("spec") or {}).get("scaleTargetRef") or {}
        if target.get("kind") != DEPLOYMENT.kind:
            continue
        selector = selectors.get(str(target.get("name")))
        if selector and _selects(selector, pod_labels):
            return _overlap(f"HorizontalPodAutoscaler {name_in(obj)}", selector, "it counts our pods", source)
        if selector is None and target.get("name") in ours:
            return Problem(
                Reason.SELECTOR_OVERLAP,
                f"HorizontalPodAutoscaler {name_in(obj)} scales Deployment {target['name']}, whose size is the "
                f"operator's: let it scale ModelRollout {name_in(rollout)}",
            )
    return None


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _overlap(who: str, selector: Mapping[str, str], consequence: str, source: str | None) -> Problem:
    text = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    if source is None:
        whose, mend = "workload.template", "change the labels of the template, or that selector"
    else:
        whose = f"Deployment {source}'s template"
        mend = f"add the pod-template-hash of {source}'s present pods to that selector, so that it stays with them"
        if "Autoscaler" in who:
            mend = "delete it, and let one scale the ModelRollout"
    return Problem(
        Reason.SELECTOR_OVERLAP,
        f"{who} selects {text}, which the pods of {whose} have too, so {consequence}: {mend}",
    )


def template_labels(template: Mapping[str, Any]) -> Mapping[str, str]:
    """Labels of the pods of a template."""
    return labels_of({"metadata": template.get("metadata") or {}})
