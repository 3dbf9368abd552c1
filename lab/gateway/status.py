"""What the gateway reports on GatewayClass, Gateway and HTTPRoute: pure, and None where nothing would change.

A controller that writes the same status again wakes every watcher, itself included, so each function here compares
with what stands there first. Entries of other controllers in a route's status are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lab.gateway.attachment import CONTROLLER_NAME, GROUP, Attachment, Problem, attach, find_problems
from lab.kube import Object


def class_status(gateway_class: Object, now: str) -> Object | None:
    """The new status of a GatewayClass of ours."""
    wanted = [_condition("Accepted", None, "Accepted", "The lab's gateway serves this class.")]
    return _changed(
        gateway_class, {"conditions": _dated(wanted, gateway_class, _conditions(gateway_class), now)}
    )


def gateway_status(gateway: Object, routes: Iterable[Object], address: str, now: str) -> Object | None:
    """The new status of a Gateway of ours that is served at the IP `address`."""
    attached = [one for route in routes for one in _unique_attachments(route, gateway)]
    old_listeners = {entry["name"]: entry for entry in gateway.get("status", {}).get("listeners") or []}
    listeners = []
    for listener in gateway["spec"].get("listeners") or []:
        wrong = None
        if listener["protocol"] != "HTTP":
            wrong = Problem("UnsupportedProtocol", "The lab's gateway listens for HTTP only.")
        wanted = [
            _condition("Accepted", wrong, "Accepted", "The listener was accepted."),
            _condition(
                "Programmed",
                wrong and Problem("Invalid", wrong.message),
                "Programmed",
                "The listener is served.",
            ),
            _condition("ResolvedRefs", None, "ResolvedRefs", "All references were resolved."),
        ]
        old = old_listeners.get(listener["name"], {})
        listeners.append(
            {
                "name": listener["name"],
                "attachedRoutes": sum(listener["name"] in names for names in attached),
                "supportedKinds": [] if wrong else [{"group": GROUP, "kind": "HTTPRoute"}],
                "conditions": _dated(wanted, gateway, old.get("conditions") or [], now),
            }
        )
    wanted = [
        _condition("Accepted", None, "Accepted", "The Gateway was accepted."),
        _condition("Programmed", None, "Programmed", "Envoy serves the Gateway."),
    ]
    return _changed(
        gateway,
        {
            "addresses": [{"type": "IPAddress", "value": address}],
            "conditions": _dated(wanted, gateway, _conditions(gateway), now),
            "listeners": listeners,
        },
    )


def _unique_attachments(route: Object, gateway: Object) -> list[frozenset[str]]:
    """Listener names that carry the route; a route with two parentRefs to one listener counts once."""
    names = {name for one in attach(route, [gateway]) for name in one.listeners}
    return [frozenset(names)] if names else []


def route_status(
    route: Object,
    gateways: Sequence[Object],
    services: Mapping[tuple[str, str], Object],
    now: str,
    *,
    rejected: str | None = None,
) -> Object | None:
    """The new status of an HTTPRoute; `rejected` is Envoy's complaint about it, if it made one."""
    old_parents = route.get("status", {}).get("parents") or []
    others = [entry for entry in old_parents if entry["controllerName"] != CONTROLLER_NAME]
    ours = [entry for entry in old_parents if entry["controllerName"] == CONTROLLER_NAME]
    unresolved = find_problems(route, services)
    parents = []
    for one in attach(route, gateways):
        old: Object = next((entry for entry in ours if entry["parentRef"] == one.parent_ref), {})
        wanted = [
            _accepted(one, rejected),
            _condition(
                "ResolvedRefs",
                Problem(unresolved[0].reason, " ".join(problem.message for problem in unresolved))
                if unresolved
                else None,
                "ResolvedRefs",
                "All references were resolved.",
            ),
        ]
        parents.append(
            {
                "parentRef": one.parent_ref,
                "controllerName": CONTROLLER_NAME,
                "conditions": _dated(wanted, route, old.get("conditions") or [], now),
            }
        )
    # A route that no Gateway of ours carries is none of our business: it keeps having no status.
    if not parents and not ours:
        return None
    return _changed(route, {"parents": others + parents})


def _accepted(attachment: Attachment, rejected: str | None) -> Object:
    problem = attachment.problem
    if problem is None and rejected is not None:
        problem = Problem("UnsupportedValue", f"Envoy refused the configuration: {rejected}")
    return _condition("Accepted", problem, "Accepted", "The route was accepted.")


def _condition(kind: str, problem: Problem | None, reason: str, message: str) -> Object:
    if problem is None:
        return {"type": kind, "status": "True", "reason": reason, "message": message}
    return {"type": kind, "status": "False", "reason": problem.reason, "message": problem.message[:1024]}


def _conditions(obj: Object) -> list[Object]:
    conditions: list[Object] = obj.get("status", {}).get("conditions") or []
    return conditions


def _dated(wanted: list[Object], owner: Object, old: list[Object], now: str) -> list[Object]:
    """Adds observedGeneration and the time of the last change of each condition's status."""
    dated = []
    for condition in wanted:
        before: Object = next((entry for entry in old if entry["type"] == condition["type"]), {})
        same = before.get("status") == condition["status"]
        dated.append(
            {
                **condition,
                "observedGeneration": owner["metadata"].get("generation", 0),
                "lastTransitionTime": before["lastTransitionTime"] if same else now,
            }
        )
    return dated


def _changed(obj: Object, status: Object) -> Object | None:
    old = obj.get("status") or {}
    return None if all(old.get(name) == value for name, value in status.items()) else {**old, **status}
