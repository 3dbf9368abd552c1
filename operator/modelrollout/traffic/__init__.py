"""How requests are split: one adapter per router behind one Protocol, chosen by the member of spec.traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.spec import Spec
from ..api.status import Status
from ..cluster.actions import Action
from ..workloads import Children
from .base import Router, RouteReading, Split
from .borrowed import BorrowedRouter
from .gateway_api import GatewayApiRouter
from .grpc_route import GRPCRouteShape
from .http_route import HTTPRouteShape
from .istio import VirtualServiceShape
from .pod_ratio import PodRatioRouter

ROUTERS: Mapping[str, Router] = {
    "gatewayAPI": GatewayApiRouter(),
    "httpRoute": BorrowedRouter("httpRoute", HTTPRouteShape()),
    "grpcRoute": BorrowedRouter("grpcRoute", GRPCRouteShape()),
    "istio": BorrowedRouter("istio", VirtualServiceShape()),
    "podRatio": PodRatioRouter(),
}


def router_of(spec: Spec) -> Router:
    """The router that the spec chooses."""
    return ROUTERS[spec.traffic.router]


def borrows(spec: Spec) -> bool:
    """Whether the spec has the operator change something of the user's, which must be restored at the end."""
    return router_of(spec).reference(spec) is not None


def restorations(rollout: Mapping[str, Any], children: Children) -> list[Action]:
    """Writes that put back what is the user's; none if all of it stands as it was."""
    return [action for router in ROUTERS.values() for action in router.release(rollout, children)]


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


__all__ = [
    "ROUTERS",
    "RouteReading",
    "Router",
    "Split",
    "borrows",
    "restorations",
    "route_actions",
    "router_of",
]
