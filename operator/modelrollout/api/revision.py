"""The name of what is released: a hash of everything that makes pods behave differently.

It must be the same after a restart, on another machine and with another order of keys, or a rollout starts that nobody
asked for. So the canonical form is versioned, and values that a default would give anyway do not count.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from modelrollout.api.spec import ServicePort, Spec
from modelrollout.api.types import JsonObject

_FORMAT = "modelrollout.dev/revision/v1"
_LENGTH = 10


def hash_revision(spec: Spec) -> str:
    """Ten characters of a-z and 2-7 that name the model, the pod template (or the user's Service) and the ports of this spec.

    The first characters of the base-32 SHA-256 of the canonical JSON. A spec that was read from `status.accepted` has no
    template and must not be hashed.
    """
    text = json.dumps(
        _content(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    digest = hashlib.sha256(f"{_FORMAT}\n{text}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:_LENGTH]


def _content(spec: Spec) -> JsonObject:
    ports = [_port(port) for port in sorted(spec.service.ports, key=lambda port: port.name)]
    if spec.workload.services is not None:
        named = spec.workload.services.named
        kind: JsonObject = {"kind": named.kind} if named.pooled else {}
        return {"model": spec.model.to_wire(), "service": named.name, **kind, "ports": ports}
    template = _canonical(spec.workload.template)
    if not template.get("metadata"):
        template.pop("metadata", None)  # Go clients write metadata: {creationTimestamp: null}
    return {
        "model": spec.model.to_wire(),
        "template": template,
        "ports": ports,
    }


def _port(port: ServicePort) -> JsonObject:
    wire = port.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if port.target == port.port:
        wire.pop("targetPort", None)
    return wire


def _canonical(value: Any) -> Any:
    """Without nulls, which mean the same as a missing key, and with one form for numbers that JSON can write twice."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
