"""Weights in a GRPCRoute of the Gateway API (v1) that the user keeps. Its rules are like those of an HTTPRoute."""

from __future__ import annotations

from modelrollout.api.spec import Spec
from modelrollout.cluster.kinds import GRPC_ROUTE
from modelrollout.traffic.routes import GatewayRouteShape


class GRPCRouteShape(GatewayRouteShape):
    """spec.traffic.grpcRoute."""

    kind = GRPC_ROUTE

    def reference(self, spec: Spec) -> str | None:
        """Name of the GRPCRoute."""
        return spec.traffic.grpc_route.name if spec.traffic.grpc_route else None
