"""Weights in a VirtualService of Istio (networking.istio.io/v1) that the user keeps.

Istio has no answer of its own to a route unless its status is switched on, so what stands there counts as accepted
unless it says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Spec
from modelrollout.cluster.kinds import SERVICE, VIRTUAL_SERVICE, Kind, Object
from modelrollout.workloads.backends import Backend


class VirtualServiceShape:
    """spec.traffic.istio."""

    kind = VIRTUAL_SERVICE
    rules = "http"
    backends = "route"
    owned = ("route", "mirror", "mirrorPercentage")
    heaviest = 2**31 - 1
    needs_port = False
    targets: tuple[Kind, ...] = (SERVICE,)

    def reference(self, spec: Spec) -> str | None:
        """Name of the VirtualService."""
        return spec.traffic.istio.virtual_service.name if spec.traffic.istio else None

    def picks(self, spec: Spec, rule: Mapping[str, Any]) -> bool:
        """The named http route, or any."""
        istio = spec.traffic.istio
        wanted = istio.virtual_service.route if istio else None
        return wanted is None or rule.get("name") == wanted

    def backend_of(self, ref: Mapping[str, Any], namespace: str) -> Backend | None:
        """A host is a short name, which is of this namespace, or one that says its namespace."""
        name = _service((ref.get("destination") or {}).get("host"), namespace)
        return Backend(name) if name else None

    def port_of(self, ref: Mapping[str, Any]) -> int | None:
        """The port, which may be left out where the Service has only one."""
        number = ((ref.get("destination") or {}).get("port") or {}).get("number")
        return None if number is None else int(number)

    def weights(self, backends: Sequence[Mapping[str, Any]]) -> list[int]:
        """Left out means everything for the only destination, and nothing beside others."""
        if len(backends) == 1:
            return [100]
        return [int(one.get("weight") or 0) for one in backends]

    def redirect(self, ref: Mapping[str, Any], backend: Backend, port: int | None, weight: int) -> Object:
        """The host keeps its form; headers stay."""
        changed: Object = copy.deepcopy(dict(ref))
        destination = changed["destination"]
        _, dot, domain = str(destination["host"]).partition(".")
        destination["host"] = f"{backend.name}{dot}{domain}"
        if port is not None:
            destination["port"] = {**(destination.get("port") or {}), "number": port}
        changed["weight"] = weight
        return changed

    def unfit(self, ref: Mapping[str, Any]) -> str | None:
        """A subset belongs to a DestinationRule of the Service that is replaced."""
        subset = (ref.get("destination") or {}).get("subset")
        if not subset:
            return None
        return f"names subset {subset}, which the Services of the revisions don't have: remove the subset"

    def mirrors(self, rule: Mapping[str, Any], namespace: str) -> list[tuple[Backend, int]]:
        """The one mirror; without a percentage, everything is copied."""
        name = _service((rule.get("mirror") or {}).get("host"), namespace)
        value = (rule.get("mirrorPercentage") or {}).get("value")
        return [(Backend(name), 100 if value is None else int(value))] if name else []

    def mirror(
        self,
        values: Object,
        like: Mapping[str, Any] | None,
        backend: Backend,
        port: int | None,
        percent: int,
    ) -> Object | None:
        """There is only one mirror: the user's own is not replaced."""
        if values.get("mirror"):
            return None
        ref = like or {"destination": {"host": backend.name}}
        mirror = self.redirect(ref, backend, port, 0)["destination"]
        return values | {"mirror": mirror, "mirrorPercentage": {"value": percent}}

    def unmirror(self, values: Object, backends: frozenset[Backend], namespace: str) -> Object:
        """Without our mirror."""
        if not any(backend in backends for backend, _ in self.mirrors(values, namespace)):
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
    """The Service of this namespace that a host names: `name`, `name.ns`, `name.ns.svc` or `name.ns.svc.<cluster domain>`."""
    name, *domain = str(host or "").split(".")
    local = not domain or (domain[0] == namespace and domain[1:2] in ([], ["svc"]))
    return name if name and local else None
