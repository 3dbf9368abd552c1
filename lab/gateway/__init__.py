"""A small Gateway API implementation on Envoy: enough of it to split, match and mirror real traffic on one machine."""

from lab.gateway.attachment import ADDRESS_ANNOTATION, CONTROLLER_NAME
from lab.gateway.gateway import (
    CLASS_NAME,
    GATEWAY_NAME,
    GATEWAY_NAMESPACE,
    Gateway,
    create_public_gateway,
    wait_until_programmed,
)
from lab.gateway.translation import EnvoyConfig, translate

__all__ = [
    "ADDRESS_ANNOTATION",
    "CLASS_NAME",
    "CONTROLLER_NAME",
    "GATEWAY_NAME",
    "GATEWAY_NAMESPACE",
    "EnvoyConfig",
    "Gateway",
    "create_public_gateway",
    "translate",
    "wait_until_programmed",
]
