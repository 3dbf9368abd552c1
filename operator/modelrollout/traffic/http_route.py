"""Weights in an HTTPRoute of the Gateway API (v1) that the user keeps."""

from __future__ import annotations

from modelrollout.api.spec import Spec
from modelrollout.cluster.kinds import HTTP_ROUTE, INFERENCE_POOL, SERVICE
from modelrollout.traffic.routes import GatewayRouteShape


class HTTPRouteShape(GatewayRouteShape):
    """spec.traffic.httpRoute."""

    kind = HTTP_ROUTE
    targets = (SERVICE, INFERENCE_POOL)

    def reference(self, spec: Spec) -> str | None:
        """Name of the HTTPRoute."""
        return spec.traffic.http_route.name if spec.traffic.http_route else None
