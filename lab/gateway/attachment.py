"""Which routes hang on which listeners, and which Service a reference means: the rules of the Gateway API, pure.

Translation to Envoy and status both need these answers and must never disagree about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lab.gateway import pools
from lab.kube import Object

GROUP = "gateway.networking.k8s.io"
CONTROLLER_NAME = "lab.modelrollout.dev/gateway"
ADDRESS_ANNOTATION = "lab.modelrollout.dev/address"
SUPPORTED_FILTERS = frozenset({"RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"})


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something does not hold: a reason of the Gateway API and a sentence for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """One parentRef of a route that names a Gateway of ours."""

    parent_ref: Object
    gateway: Object
    listeners: tuple[str, ...]
    """Names of the listeners that carry the route."""
    hostnames: tuple[str, ...]
    """Where route and listeners agree; `*` is any host."""
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class Backend:
    """A port of a Service."""

    namespace: str
    service: str
    port: int
    port_name: str
    """The name that the EndpointSlices use for it; may be empty."""

    @property
    def cluster(self) -> str:
        """Its name in Envoy."""
        return f"{self.namespace}/{self.service}:{self.port}"


def key_of(obj: Object) -> tuple[str, str]:
    """Namespace (empty for cluster-scoped objects) and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def attach(route: Object, gateways: Iterable[Object]) -> list[Attachment]:
    """What each parentRef of the route comes to. References to other implementations' Gateways are left out."""
    by_key = {key_of(gateway): gateway for gateway in gateways}
    attachments = []
    for parent_ref in route["spec"].get("parentRefs") or []:
        if (parent_ref.get("group", GROUP), parent_ref.get("kind", "Gateway")) != (GROUP, "Gateway"):
            continue
        namespace = parent_ref.get("namespace", route["metadata"]["namespace"])
        gateway = by_key.get((namespace, parent_ref["name"]))
        if gateway is not None:
            attachments.append(_attach_to(route, parent_ref, gateway))
    return attachments


def _attach_to(route: Object, parent_ref: Object, gateway: Object) -> Attachment:
    def refuse(reason: str, message: str) -> Attachment:
        return Attachment(parent_ref, gateway, (), (), Problem(reason, message))

    listeners = [
        listener
        for listener in gateway["spec"].get("listeners") or []
        if listener["protocol"] == "HTTP"
        and parent_ref.get("sectionName", listener["name"]) == listener["name"]
        and parent_ref.get("port", listener["port"]) == listener["port"]
    ]
    if not listeners:
        return refuse("NoMatchingParent", "The Gateway has no HTTP listener of that sectionName and port.")
    listeners = [listener for listener in listeners if _allows(listener, gateway, route)]
    if not listeners:
        return refuse("NotAllowedByListeners", "No listener allows routes from this namespace.")
    wanted = route["spec"].get("hostnames") or ["*"]
    hostnames: dict[str, None] = {}
    carrying = []
    for listener in listeners:
        shared = [both for name in wanted if (both := _intersect(listener.get("hostname") or "*", name))]
        if shared:
            carrying.append(listener["name"])
            hostnames |= dict.fromkeys(shared)
    if not carrying:
        return refuse("NoMatchingListenerHostname", "No hostname of the route fits a listener's hostname.")
    if unsupported := _unsupported_filter(route) or _unsupported_session(route):
        return refuse("UnsupportedValue", f"The lab's gateway does not support {unsupported}.")
    if broken := _broken_expression(route):
        # Envoy would refuse the whole configuration, and with it everybody else's routes.
        return refuse("UnsupportedValue", f"{broken!r} is no regular expression.")
    return Attachment(parent_ref, gateway, tuple(carrying), tuple(hostnames), None)


def _allows(listener: Object, gateway: Object, route: Object) -> bool:
    allowed = listener.get("allowedRoutes") or {}
    kinds = allowed.get("kinds")
    if kinds and not any(kind["kind"] == "HTTPRoute" for kind in kinds):
        return False
    source = (allowed.get("namespaces") or {}).get("from", "Same")
    # Selectors would need a watch on namespaces, which the lab has no use for: they allow nothing.
    return source == "All" or (source == "Same" and key_of(gateway)[0] == key_of(route)[0])


def _intersect(listener: str, route: str) -> str:
    """The narrower of two hostnames if one covers the other, else an empty string. `*.x` does not cover `x`."""
    listener, route = listener.lower(), route.lower()
    if listener in ("*", route):
        return route
    if route == "*":
        return listener
    if listener.startswith("*") and route.removeprefix("*").endswith(listener[1:]):
        return route
    if route.startswith("*") and listener.removeprefix("*").endswith(route[1:]):
        return listener
    return ""


def _unsupported_filter(route: Object) -> str | None:
    for rule in route["spec"].get("rules") or []:
        for entry in rule.get("filters") or []:
            if entry["type"] not in SUPPORTED_FILTERS:
                return f"the filter {entry['type']}"
        for backend_ref in rule.get("backendRefs") or []:
            for entry in backend_ref.get("filters") or []:
                if entry["type"] not in SUPPORTED_FILTERS - {"RequestMirror"}:
                    return f"the filter {entry['type']} on a backendRef"
    return None


def _unsupported_session(route: Object) -> str | None:
    for rule in route["spec"].get("rules") or []:
        session = rule.get("sessionPersistence")
        if session is None:
            continue
        if session.get("type", "Cookie") != "Cookie":
            return f"sessionPersistence of type {session['type']}"
        lasting = (session.get("cookieConfig") or {}).get("lifetimeType") == "Permanent"
        if session.get("idleTimeout") or (session.get("absoluteTimeout") and not lasting):
            return "a time-out of sessions other than a permanent cookie's"
        if any(backend_ref.get("filters") for backend_ref in rule.get("backendRefs") or []):
            return "filters on a backendRef beside sessionPersistence"
    return None


def _broken_expression(route: Object) -> str | None:
    for rule in route["spec"].get("rules") or []:
        for match in rule.get("matches") or []:
            path = [match["path"]] if match.get("path") else []
            for entry in (*path, *(match.get("headers") or []), *(match.get("queryParams") or [])):
                if entry.get("type") == "RegularExpression" and not _compiles(entry["value"]):
                    value: str = entry["value"]
                    return value
    return None


def _compiles(expression: str) -> bool:
    # Envoy's RE2 has neither look-around nor back references.
    if re.search(r"\(\?(?:[=!]|<[=!])|\\[1-9]", expression):
        return False
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def resolve_backend(
    ref: Object, namespace: str, services: Mapping[tuple[str, str], Object]
) -> Backend | Problem:
    """The port of a Service (or pool) that a backendRef of a route in `namespace` means."""
    group, kind, name = ref.get("group", ""), ref.get("kind", "Service"), ref["name"]
    if (group, kind) not in (("", "Service"), (pools.GROUP, pools.KIND)):
        return Problem("InvalidKind", f"{kind} {name}: the lab's gateway serves Services and InferencePools.")
    if ref.get("namespace", namespace) != namespace:
        return Problem(
            "RefNotPermitted", f"{kind} {ref['namespace']}/{name} is in another namespace than the route."
        )
    pooled = kind == pools.KIND
    service = services.get((namespace, pools.service_name(name) if pooled else name))
    if service is None:
        return Problem("BackendNotFound", f"{kind} {namespace}/{name} was not found.")
    if pooled:
        # The pool says where requests go; a port in the reference means nothing.
        return Backend(namespace, pools.service_name(name), service["spec"]["ports"][0]["port"], "")
    for port in service["spec"].get("ports") or []:
        if port["port"] == ref.get("port"):
            return Backend(namespace, name, port["port"], port.get("name") or "")
    return Problem("BackendNotFound", f"Service {namespace}/{name} has no port {ref.get('port')}.")


def find_problems(route: Object, services: Mapping[tuple[str, str], Object]) -> list[Problem]:
    """What keeps the route's references (backends and mirrors) from being resolved."""
    namespace = route["metadata"]["namespace"]
    refs: list[Object] = []
    for rule in route["spec"].get("rules") or []:
        refs += rule.get("backendRefs") or []
        refs += [mirror["backendRef"] for mirror in mirrors_of(rule)]
    found = [resolve_backend(ref, namespace, services) for ref in refs]
    return [one for one in found if isinstance(one, Problem)]


def mirrors_of(rule: Object) -> list[Object]:
    """The rule's RequestMirror filters."""
    return [entry["requestMirror"] for entry in rule.get("filters") or [] if entry["type"] == "RequestMirror"]


def ready_addresses(
    backend: Backend, slices: Sequence[Object], pods: Mapping[tuple[str, str], Object]
) -> tuple[str, ...]:
    """The loopback addresses (`host:port`) behind the ready endpoints of a Service, sorted.

    A pod's IP in the lab is only a name; where its process really listens stands in an annotation.
    """
    addresses = set()
    for endpoints in slices:
        metadata = endpoints["metadata"]
        owner = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
        if (metadata["namespace"], owner) != (backend.namespace, backend.service):
            continue
        if not any((port.get("name") or "") == backend.port_name for port in endpoints.get("ports") or []):
            continue
        for endpoint in endpoints.get("endpoints") or []:
            target = endpoint.get("targetRef") or {}
            # A missing condition means ready, says the API.
            if (endpoint.get("conditions") or {}).get("ready") is False or target.get("kind") != "Pod":
                continue
            pod = pods.get((target.get("namespace", backend.namespace), target["name"]))
            if pod and (address := (pod["metadata"].get("annotations") or {}).get(ADDRESS_ANNOTATION)):
                addresses.add(address)
    return tuple(sorted(addresses))
