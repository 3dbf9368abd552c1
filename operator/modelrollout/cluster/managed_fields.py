"""`metadata.managedFields`, kept small: who owns which field is how our own changes are told from somebody else's, but the
API server's form of it is half of many objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def slim_managed_fields(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`managedFields` for a store with thousands of objects: without status, the fields as compact JSON."""
    return [
        {key: entry[key] for key in ("manager", "operation", "time") if key in entry}
        | {"fieldsV1": json.dumps(fields_of(entry), separators=(",", ":"))}
        for entry in entries
        if entry.get("subresource") != "status"
    ]


def fields_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one entry, in either form."""
    fields = entry.get("fieldsV1") or {}
    return json.loads(fields) if isinstance(fields, str) else fields
