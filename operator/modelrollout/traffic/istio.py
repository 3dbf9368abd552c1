"""Weights in a VirtualService of Istio (networking.istio.io/v1) that the user keeps.

Istio has no answer of its own to a route unless its status is switched on, so what stands there counts as accepted
unless it says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..api.conditions import Reason
from ..api.spec import Spec
from ..cluster.kinds import VIRTUAL_SERVICE, Object

_DOMAIN = ("svc", "cluster", "local")


class VirtualServiceShape:
    """spec.traffic.istio."""

    kind = VIRTUAL_SERVICE
    rules = "http"
    backends = "route"
    owned = ("route", "mirror", "mirrorPercentage")
    heaviest = 2**31 - 1

    def reference(self, spec: Spec) -> str | None:
        """Name of the VirtualService."""
        return spec.traffic.istio.virtual_service.name if spec.traffic.istio else None

    def picks(self, spec: Spec, rule: Mapping[str, Any]) -> bool:
        """The named http route, or any."""
        istio = spec.traffic.istio
        wanted = istio.virtual_service.route if istio else None
        return wanted is None or rule.get("name") == wanted

    def service_of(self, backend: Mapping[str, Any], namespace: str) -> str | None:
        """A host is a short name, which is of this namespace, or one that says its namespace."""
        return _service((backend.get("destination") or {}).get("host"), namespace)

    def port_of(self, backend: Mapping[str, Any]) -> int | None:
        """The port, which may be left out where the Service has only one."""
        number = ((backend.get("destination") or {}).get("port") or {}).get("number")
        return None if number is None else int(number)

    def weights(self, backends: Sequence[Mapping[str, Any]]) -> list[int]:
        """Left out means everything for the only destination, and nothing beside others."""
        if len(backends) == 1:
            return [100]
        return [int(one.get("weight") or 0) for one in backends]

    def redirect(self, backend: Mapping[str, Any], service: str, port: int | None, weight: int) -> Object:
        """The host keeps its form; headers stay."""
        changed: Object = copy.deepcopy(dict(backend))
        destination = changed["destination"]
        _, dot, domain = str(destination["host"]).partition(".")
        destination["host"] = f"{service}{dot}{domain}"
        if port is not None:
            destination["port"] = {**(destination.get("port") or {}), "number": port}
        changed["weight"] = weight
        return changed

    def unfit(self, backend: Mapping[str, Any]) -> str | None:
        """A subset belongs to a DestinationRule of the Service that is replaced."""
        subset = (backend.get("destination") or {}).get("subset")
        if not subset:
            return None
        return f"names subset {subset}, which the Services of the revisions don't have: remove the subset"

    def mirrors(self, rule: Mapping[str, Any]) -> list[tuple[str, int]]:
        """The one mirror; without a percentage, everything is copied."""
        host = (rule.get("mirror") or {}).get("host")
        if not host:
            return []
        value = (rule.get("mirrorPercentage") or {}).get("value")
        return [(str(host).partition(".")[0], 100 if value is None else int(value))]

    def mirror(self, values: Object, service: str, port: int | None, percent: int) -> Object | None:
        """There is only one mirror: the user's own is not replaced."""
        if values.get("mirror"):
            return None
        host: Object = {"host": service}
        if values.get("route"):
            _, dot, domain = str(values["route"][0]["destination"]["host"]).partition(".")
            host["host"] += f"{dot}{domain}"
        if port is not None:
            host["port"] = {"number": port}
        return values | {"mirror": host, "mirrorPercentage": {"value": percent}}

    def unmirror(self, values: Object, services: frozenset[str]) -> Object:
        """Without our mirror."""
        if not any(service in services for service, _ in self.mirrors(values)):
            return values
        return values | {"mirror": None, "mirrorPercentage": None}

    def refusal(self, live: Mapping[str, Any]) -> str | None:
        """What Istio says, where its status is switched on."""
        status = live.get("status") or {}
        generation = int(live["metadata"].get("generation") or 0)
        if int(status.get("observedGeneration") or 0) < generation:
            return None
        for message in status.get("validationMessages") or ():
            if message.get("level") == "ERROR":
                kind = message.get("type") or {}
                said = f"{kind.get('code')} {kind.get('name')}".strip()
                return (
                    f"{Reason.ROUTE_NOT_ACCEPTED}: Istio reports {said} ({message.get('documentationUrl')})"
                )
        return None


def _service(host: Any, namespace: str) -> str | None:
    name, *domain = str(host or "").split(".")
    if not name or (domain and domain[0] != namespace):
        return None
    return name if tuple(domain[1:]) in ((), *(_DOMAIN[:length] for length in (1, 2, 3))) else None
