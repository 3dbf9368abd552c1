"""How requests are split: one adapter per router behind one Protocol, chosen by the member of spec.traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.cluster.actions import Action
from modelrollout.traffic.base import Router, RouteReading, Split
from modelrollout.traffic.borrowed import BorrowedRouter
from modelrollout.traffic.gateway_api import GatewayApiRouter
from modelrollout.traffic.grpc_route import GRPCRouteShape
from modelrollout.traffic.http_route import HTTPRouteShape
from modelrollout.traffic.istio import VirtualServiceShape
from modelrollout.traffic.pod_ratio import PodRatioRouter
from modelrollout.workloads import Children

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
