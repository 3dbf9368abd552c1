"""What requests are sent to: a Service, or a pool of the Gateway API Inference Extension.

A pool has no EndpointSlices: its endpoint picker looks at the pods themselves, and takes those that are ready and are not
being deleted. So does this. Where the picker itself is away, requests are refused before they reach a pod, and no metric of
the pods would ever tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelrollout.api.spec import OwnService
from modelrollout.cluster.kinds import INFERENCE_POOL, SERVICE, Kind, Object

_KINDS = {kind.kind: kind for kind in (SERVICE, INFERENCE_POOL)}


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """A Service, or an InferencePool, of the rollout's namespace."""

    name: str
    kind: str = SERVICE.kind

    @classmethod
    def of(cls, own: OwnService) -> Backend:
        """The one that a spec names."""
        return cls(own.name, own.kind)

    @classmethod
    def read(cls, data: Any) -> Backend | None:
        """The one that `to_wire` wrote; None if it can't be read."""
        if not isinstance(data, Mapping) or not data.get("name"):
            return None
        kind = str(data.get("kind") or SERVICE.kind)
        return cls(str(data["name"]), kind) if kind in _KINDS else None

    def to_own(self) -> OwnService:
        """As a spec names it."""
        return OwnService.from_wire({"name": self.name, "kind": self.kind})

    def to_wire(self) -> Object:
        """As it is remembered."""
        return {"name": self.name} | ({"kind": self.kind} if self.pooled else {})

    @property
    def pooled(self) -> bool:
        """Whether it is an InferencePool."""
        return self.kind == INFERENCE_POOL.kind

    @property
    def of_kind(self) -> Kind:
        """Its kind."""
        return _KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def pool_selector(pool: Mapping[str, Any]) -> str:
    """The label selector of a pool's pods; empty if it selects none."""
    labels = ((pool.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def picker_of(pool: Mapping[str, Any]) -> str | None:
    """The Service of the endpoint picker, if a pool answers nothing without it."""
    ref = (pool.get("spec") or {}).get("endpointPickerRef") or {}
    if ref.get("failureMode") == "FailOpen" or (ref.get("kind") or SERVICE.kind) != SERVICE.kind:
        return None
    return str(ref["name"]) if ref.get("name") else None


def pool_ports(pool: Mapping[str, Any]) -> list[int]:
    """Numbers of the ports that a pool sends requests to."""
    return [int(port["number"]) for port in (pool.get("spec") or {}).get("targetPorts") or ()]
