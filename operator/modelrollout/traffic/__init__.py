"""How requests are split: one adapter per router behind one Protocol, chosen by the member of spec.traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.spec import Spec
from ..api.status import Status
from ..cluster.actions import Action
from ..workloads import Children
from .base import Router, RouteReading, Split
from .gateway_api import GatewayApiRouter
from .pod_ratio import PodRatioRouter

ROUTERS: Mapping[str, Router] = {
    "gatewayAPI": GatewayApiRouter(),
    "podRatio": PodRatioRouter(),
}


def router_of(spec: Spec) -> Router:
    """The router that the spec chooses."""
    return ROUTERS[spec.traffic.router]


def route_actions(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
) -> list[Action]:
    """Writes of the chosen router, and deletion of what another one made before it."""
    chosen = router_of(spec)
    return [
        *chosen.actions(rollout, spec, status, children, now),
        *(
            action
            for other in ROUTERS.values()
            if other is not chosen
            for action in other.retire(rollout, children)
        ),
    ]


__all__ = ["ROUTERS", "RouteReading", "Router", "Split", "route_actions", "router_of"]
