"""Gateways, HTTPRoutes and EndpointSlices become Envoy's configuration: pure, so that it is tested as a table.

Weights live in the routes (RDS) alone and pods in the endpoints (EDS) alone, so that a new weight or a new pod never
touches a connection pool. Only where a rule has sessions is it otherwise: Envoy draws among weighted clusters before it looks
at a session, so the rule's backends become one cluster, in which a session outweighs the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.gateway.attachment import (
    Backend,
    Problem,
    attach,
    key_of,
    mirrors_of,
    ready_addresses,
    resolve_backend,
)
from lab.kube import Object

ROUTES_NAME = "ingress"
UNRESOLVED = "unresolved"
"""A cluster that never exists: its share of the traffic is answered with 500, as the Gateway API asks for."""
SESSIONS = "envoy.filters.http.stateful_session"
_TYPES = "type.googleapis.com/envoy.config."
_EXTENSIONS = "type.googleapis.com/envoy.extensions."


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """What Envoy is told; `endpoints` is keyed by cluster name, as are `clusters`."""

    virtual_hosts: tuple[Object, ...] = ()
    clusters: Mapping[str, Backend] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sessions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Clusters that consist of others, with the weight of each among requests without a session."""

    def parts(self, cluster: str) -> Mapping[str, int]:
        """The clusters with endpoints of their own that one consists of, and their weights."""
        return self.sessions.get(cluster, {cluster: 1})


def translate(
    *,
    gateways: Iterable[Object],
    routes: Iterable[Object],
    endpointslices: Iterable[Object],
    services: Iterable[Object],
    pods: Iterable[Object],
) -> EnvoyConfig:
    """The whole configuration for the Gateways given (only ours) and everything that hangs on them."""
    gateways, slices = list(gateways), list(endpointslices)
    services_by_key = {key_of(service): service for service in services}
    pods_by_key = {key_of(pod): pod for pod in pods}
    clusters: dict[str, Backend] = {}
    sessions: dict[str, Mapping[str, int]] = {}
    hosts: dict[str, list[tuple[tuple[Any, ...], Object]]] = {}
    for route in routes:
        accepted = [attachment for attachment in attach(route, gateways) if attachment.problem is None]
        hostnames = dict.fromkeys(name for attachment in accepted for name in attachment.hostnames)
        if not hostnames:
            continue
        ranked = _translate_route(route, services_by_key, clusters, sessions)
        for hostname in hostnames:
            hosts.setdefault(hostname, []).extend(ranked)
    return EnvoyConfig(
        virtual_hosts=tuple(_virtual_host(name, ranked) for name, ranked in sorted(hosts.items())),
        clusters=clusters,
        endpoints={name: ready_addresses(backend, slices, pods_by_key) for name, backend in clusters.items()},
        sessions=sessions,
    )


def _virtual_host(hostname: str, ranked: list[tuple[tuple[Any, ...], Object]]) -> Object:
    routes = [route for _, route in sorted(ranked, key=lambda pair: pair[0])]
    return {"name": hostname, "domains": [hostname], "routes": routes}


def _translate_route(
    route: Object,
    services: Mapping[tuple[str, str], Object],
    clusters: dict[str, Backend],
    sessions: dict[str, Mapping[str, int]],
) -> list[tuple[tuple[Any, ...], Object]]:
    """Envoy routes with their rank: the smallest is tried first. Adds the clusters they need."""
    ranked = []
    age = (route["metadata"].get("creationTimestamp") or "", *key_of(route))
    for number, rule in enumerate(route["spec"].get("rules") or []):
        action = _translate_rule(rule, route["metadata"]["namespace"], services, clusters)
        if rule.get("sessionPersistence") and "route" in action:
            action |= _keep_sessions(rule, route, services, action["route"], sessions)
        for match in rule.get("matches") or [{}]:
            rank = (*_precedence(match), *age, number, json.dumps(match, sort_keys=True))
            ranked.append((rank, {"match": _translate_match(match), **action}))
    return ranked


def _precedence(match: Object) -> tuple[int, ...]:
    """The order the Gateway API lays down: exact path, longest prefix, method, most headers, most parameters."""
    path = match.get("path") or {}
    kind, value = path.get("type", "PathPrefix"), path.get("value", "/")
    return (
        {"Exact": 0, "RegularExpression": 1, "PathPrefix": 2}[kind],
        -len(value),
        0 if match.get("method") else 1,
        -len(match.get("headers") or []),
        -len(match.get("queryParams") or []),
    )


def _translate_match(match: Object) -> Object:
    path = match.get("path") or {}
    kind, value = path.get("type", "PathPrefix"), path.get("value", "/")
    translated: Object
    if kind == "Exact":
        translated = {"path": value}
    elif kind == "RegularExpression":
        translated = {"safe_regex": {"regex": value}}
    elif value.rstrip("/"):
        translated = {"path_separated_prefix": value.rstrip("/")}
    else:
        translated = {"prefix": "/"}
    headers = [
        {"name": header["name"], "string_match": _string_match(header)}
        for header in match.get("headers") or []
    ]
    if match.get("method"):
        headers.append({"name": ":method", "string_match": {"exact": match["method"]}})
    if headers:
        translated["headers"] = headers
    if match.get("queryParams"):
        translated["query_parameters"] = [
            {"name": parameter["name"], "string_match": _string_match(parameter)}
            for parameter in match["queryParams"]
        ]
    return translated


def _string_match(entry: Object) -> Object:
    if entry.get("type", "Exact") == "RegularExpression":
        return {"safe_regex": {"regex": entry["value"]}}
    return {"exact": entry["value"]}


def _translate_rule(
    rule: Object,
    namespace: str,
    services: Mapping[tuple[str, str], Object],
    clusters: dict[str, Backend],
) -> Object:
    weighted = []
    for ref in rule.get("backendRefs") or []:
        backend = resolve_backend(ref, namespace, services)
        # A backend with weight 0 keeps its cluster: its connections are warm when the weight comes.
        if isinstance(backend, Backend):
            clusters[backend.cluster] = backend
        weight = ref.get("weight", 1)
        if weight > 0:
            name = UNRESOLVED if isinstance(backend, Problem) else backend.cluster
            weighted.append({"name": name, "weight": weight, **_translate_headers(ref.get("filters"))})
    headers = _translate_headers(rule.get("filters"))
    if not weighted:
        return {"direct_response": {"status": 500}, **headers}
    action: Object = {
        "weighted_clusters": {"clusters": weighted},
        "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR",
        "timeout": _to_seconds((rule.get("timeouts") or {}).get("request", "15s")),
        # Real gateways try another pod if one refuses the connection; nothing that reached a model is sent twice.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 1,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": 3,
        },
    }
    mirrors = [_translate_mirror(mirror, namespace, services, clusters) for mirror in mirrors_of(rule)]
    if any(mirrors):
        action["request_mirror_policies"] = [mirror for mirror in mirrors if mirror]
    return {"route": action, **headers}


def _keep_sessions(
    rule: Object,
    route: Object,
    services: Mapping[tuple[str, str], Object],
    action: Object,
    sessions: dict[str, Mapping[str, int]],
) -> Object:
    """What replaces the rule's action so that a session stays with its pod, whatever the weights; adds the cluster it needs.

    As the Gateway API has it, a session also outlives the weight of its backend. Another weight is another cluster, so that
    it is in force with the routes.
    """
    parts: dict[str, int] = {}
    for ref in rule["backendRefs"]:
        backend = resolve_backend(ref, route["metadata"]["namespace"], services)
        if isinstance(backend, Backend):
            parts[backend.cluster] = parts.get(backend.cluster, 0) + ref.get("weight", 1)
    weighted = [one for one in action["weighted_clusters"]["clusters"] if one["name"] == UNRESOLVED]
    if total := sum(parts.values()):
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{'/'.join(key_of(route))}:sessions-{digest}"
        sessions[name] = parts
        weighted.append({"name": name, "weight": total})
    return {
        "route": {**action, "weighted_clusters": {"clusters": weighted}},
        "typed_per_filter_config": {SESSIONS: _session(rule["sessionPersistence"])},
    }


def _session(persistence: Object) -> Object:
    cookie = {"name": persistence.get("sessionName", "session"), "path": "/"}
    if (persistence.get("cookieConfig") or {}).get("lifetimeType") == "Permanent":
        cookie["ttl"] = _to_seconds(persistence["absoluteTimeout"])
    state = {
        "@type": f"{_EXTENSIONS}http.stateful_session.cookie.v3.CookieBasedSessionState",
        "cookie": cookie,
    }
    return {
        "@type": f"{_EXTENSIONS}filters.http.stateful_session.v3.StatefulSessionPerRoute",
        "stateful_session": {
            "session_state": {"name": "envoy.http.stateful_session.cookie", "typed_config": state}
        },
    }


def _translate_mirror(
    mirror: Object,
    namespace: str,
    services: Mapping[tuple[str, str], Object],
    clusters: dict[str, Backend],
) -> Object | None:
    backend = resolve_backend(mirror["backendRef"], namespace, services)
    if isinstance(backend, Problem):
        return None
    clusters[backend.cluster] = backend
    fraction = mirror.get("fraction") or {"numerator": mirror.get("percent", 100)}
    millionths = fraction["numerator"] * 1_000_000 // (fraction.get("denominator") or 100)
    return {
        "cluster": backend.cluster,
        "runtime_fraction": {"default_value": {"numerator": millionths, "denominator": "MILLION"}},
        "disable_shadow_host_suffix_append": True,
    }


def _translate_headers(filters: Iterable[Object] | None) -> Object:
    translated: Object = {}
    for entry in filters or []:
        for kind, name in (("request", "requestHeaderModifier"), ("response", "responseHeaderModifier")):
            changes = entry.get(name)
            if changes is None:
                continue
            additions = [
                {"header": {"key": header["name"], "value": header["value"]}, "append_action": action}
                for field_name, action in (
                    ("set", "OVERWRITE_IF_EXISTS_OR_ADD"),
                    ("add", "APPEND_IF_EXISTS_OR_ADD"),
                )
                for header in changes.get(field_name) or []
            ]
            if additions:
                translated.setdefault(f"{kind}_headers_to_add", []).extend(additions)
            if changes.get("remove"):
                translated.setdefault(f"{kind}_headers_to_remove", []).extend(changes["remove"])
    return translated


def _to_seconds(duration: str) -> str:
    """A duration of the Gateway API (`1h2m3s4ms`) as protobuf's JSON wants it."""
    total, digits, unit = 0.0, "", ""
    for character in duration + "0":
        if character.isdigit() and unit:
            total += int(digits) * {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}[unit]
            digits, unit = "", ""
        if character.isdigit():
            digits += character
        else:
            unit += character
    return f"{total:.3f}s"


def render_routes(config: EnvoyConfig) -> Object:
    """The RDS response."""
    resource = {
        "@type": f"{_TYPES}route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "virtual_hosts": list(config.virtual_hosts),
        "validate_clusters": False,
    }
    return _response([resource])


def render_clusters(names: Iterable[str], endpoint_path: Mapping[str, str]) -> Object:
    """The CDS response; `endpoint_path` tells where the endpoints of each cluster are."""
    return _response(
        [
            {
                "@type": f"{_TYPES}cluster.v3.Cluster",
                "name": name,
                "type": "EDS",
                "lb_policy": "ROUND_ROBIN",
                "connect_timeout": "1s",
                # A pod that is no longer ready gets no request from the next moment on.
                "ignore_health_on_host_removal": True,
                "common_lb_config": {
                    "healthy_panic_threshold": {"value": 0},
                    "locality_weighted_lb_config": {},
                },
                "eds_cluster_config": {
                    "eds_config": {
                        "resource_api_version": "V3",
                        "path_config_source": {"path": endpoint_path[name]},
                    }
                },
            }
            for name in sorted(names)
        ]
    )


def render_endpoints(cluster: str, config: EnvoyConfig) -> Object:
    """The EDS response of one cluster; each of its parts is a locality of that name, and one of weight 0 is for sessions only."""
    localities = []
    for part, weight in config.parts(cluster).items():
        locality: Object = {"locality": {"sub_zone": part}}
        if weight > 0:
            locality["load_balancing_weight"] = weight
        locality["lb_endpoints"] = [_endpoint(address) for address in config.endpoints[part]]
        localities.append(locality)
    resource = {
        "@type": f"{_TYPES}endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": localities,
    }
    return _response([resource])


def _endpoint(address: str) -> Object:
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}


def _response(resources: list[Object]) -> Object:
    version = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return {"version_info": version, "resources": resources}
