"""Which fields of an object that exists differ from what we want of it.

An idle rollout writes nothing, so what the API server adds to an object (defaults, status, what others own) must not
look like a difference. And what somebody else changed must. The server keeps the books itself: `managedFields` says
which fields our last server-side apply set and still owns. A field of ours that we do not own any more was changed by
somebody; one that we own but no longer want is to go. Values are compared besides, since what we want changes; not in
pod templates, where the server rewrites values (`1000m` of CPU becomes `1`) and what we want never changes within a
revision. Where `managedFields` are missing, values are all there is, and templates are compared by them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeAlias

from modelrollout.cluster.managed_fields import fields_of
from modelrollout.cluster.port import FIELD_MANAGER

Path: TypeAlias = tuple[str, ...]
"""Elements as in `managedFields`: `f:spec`, `k:{"name":"main"}`; `[0]` where a list is one value."""

# Lists that the API server merges by a key; any other list is one value.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "claims": ("name",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
# What of an HTTPRoute we may write and may leave out. It lies within a list that is one value, of which managedFields do not
# say what we set, so it is only by its absence that we know it is to go. A test leaves out each field of the models.
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "matches": ("headers", "method", "queryParams"),
    "parentRefs": ("namespace", "port", "sectionName"),
    "requestHeaderModifier": ("add", "remove", "set"),
    "responseHeaderModifier": ("add", "remove", "set"),
    "rules": ("filters", "sessionPersistence", "timeouts"),
    "timeouts": ("backendRequest", "request"),
    "urlRewrite": ("hostname", "path"),
}
_KEY_DEFAULTS: Mapping[str, Any] = {"protocol": "TCP"}
# Maps that are one value: a key more is another value.
_WHOLE = frozenset({"f:selector", "f:matchLabels", "f:nodeSelector"})
_QUANTITIES = frozenset({"limits", "requests", "sizeLimit", "divisor", "overhead"})
_SUFFIXES: Mapping[str, Decimal] = {
    **{
        unit: Decimal(1000) ** power
        for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_IDENTITY = frozenset({"apiVersion", "kind"})
_IDENTITY_METADATA = frozenset({"name", "namespace", "uid", "resourceVersion"})
_NOTHING: Mapping[str, Any] = {".": {}}  # owned fields of a map of which nothing is owned


def differs(desired: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether applying `desired` would change something that we mean to own."""
    return bool(differences(desired, live))


def differences(desired: Mapping[str, Any], live: Mapping[str, Any]) -> tuple[Path, ...]:
    """The fields in which the object that exists differs from what we want of it; fields of others do not count."""
    entries = _managed(live)
    if not entries:
        return tuple(_values(desired, live, ()))
    own = next((fields_of(entry) for entry in entries if _is_ours(entry)), None)
    if own is None:
        return (("f:metadata", "f:managedFields"),)
    found = [*_lost(desired, own, ()), *_surplus(desired, own, ())]
    found += _values(_without_template(desired), live, ())
    return tuple(dict.fromkeys(found))


def _without_template(desired: Mapping[str, Any]) -> dict[str, Any]:
    spec = desired.get("spec") or {}
    return {**desired, "spec": {key: value for key, value in spec.items() if key != "template"}}


def drift(desired: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """What somebody else changed, for an event: "spec.replicas (by kubectl)"; empty if nobody did, or nobody knows."""
    entries = _managed(live)
    own = next((fields_of(entry) for entry in entries if _is_ours(entry)), None)
    if own is None:
        return ""
    said = []
    for path in _lost(desired, own, ()):
        managers = _managers(entries, path)
        if managers:
            said.append(f"{spell(path)} (by {', '.join(managers)})")
    return ", ".join(said)


def foreign_manager(desired: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """The field manager that last set a field which we want otherwise."""
    entries = _managed(live)
    for path in differences(desired, live):
        managers = _managers(entries, path)
        if managers:
            return managers[-1]
    return None


def last_writer(live: Mapping[str, Any], path: Path) -> str | None:
    """The manager, other than this operator, that last wrote a field or something in it."""
    others = [
        entry
        for entry in _managed(live)
        if entry.get("manager") != FIELD_MANAGER and _holds(fields_of(entry), path)
    ]
    latest = max(others, key=lambda entry: str(entry.get("time") or ""), default=None)
    return str(latest.get("manager")) if latest else None


def spell(path: Path) -> str:
    """A path for people: spec.template.spec.containers[main].image."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}" if text else rest
        elif kind in ("k", "v"):
            key = _parsed(rest)
            text += f"[{'/'.join(str(v) for v in key.values()) if isinstance(key, dict) else key}]"
        else:
            text += element
    return text


def _managed(live: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = live["metadata"].get("managedFields") or []
    return [entry for entry in entries if entry.get("subresource") != "status"]


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"


def _managers(entries: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Other managers of a field, the latest writer last."""
    others = [entry for entry in entries if not _is_ours(entry) and _holds(fields_of(entry), path)]
    others.sort(key=lambda entry: str(entry.get("time") or ""))
    return list(dict.fromkeys(str(entry.get("manager")) for entry in others))


def _holds(node: Mapping[str, Any], path: Path) -> bool:
    for element in path:
        if not node:
            return True  # a value that is owned as a whole, and the path goes on inside of it
        found = node.get(element)
        if found is None:
            return False
        node = found
    return True


def _lost(want: Any, own: Mapping[str, Any], path: Path) -> Iterator[Path]:
    """Fields that we want and do not own. The server counts empty values too, even those that it does not store."""
    if not own:
        return
    if isinstance(want, dict):
        for key, item in want.items():
            if _is_identity(path, key) or item is None:
                continue
            element = f"f:{key}"
            below = own.get(element)
            if below is None and isinstance(item, dict) and item and element not in _WHOLE:
                below = _NOTHING
            if below is None:
                yield (*path, element)
            else:
                yield from _lost(item, below, (*path, element))
    elif isinstance(want, list):
        for item in want:
            found = _element_in(own, item)
            if found is None:
                yield (*path, _element_of(item, path))
            else:
                yield from _lost(item, own[found], (*path, found))


def _surplus(want: Any, own: Mapping[str, Any], path: Path) -> Iterator[Path]:
    """Fields that we own and no longer want."""
    keys: Mapping[str, Any] = _parsed(path[-1][2:]) if path and path[-1].startswith("k:") else {}
    for element, below in own.items():
        kind, _, rest = element.partition(":")
        if kind == "f":
            present = isinstance(want, dict) and want.get(rest) is not None
            if not present and rest not in keys:
                yield (*path, element)
            elif present:
                yield from _surplus(want[rest], below, (*path, element))
        elif kind in ("k", "v"):
            key = _parsed(rest)
            items = want if isinstance(want, list) else []
            item = next((i for i in items if (_has_keys(i, key) if kind == "k" else i == key)), None)
            if item is None:
                yield (*path, element)
            elif kind == "k":
                yield from _surplus(item, below, (*path, element))


def _element_in(own: Mapping[str, Any], item: Any) -> str | None:
    """The element of a list's owned items that stands for an item."""
    for element in own:
        kind, _, rest = element.partition(":")
        if kind == "k" and _has_keys(item, _parsed(rest)):
            return element
        if kind == "v" and _parsed(rest) == item:
            return element
    return None


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """The key or value of an element: few, and the same in every round."""
    return json.loads(text)


def _has_keys(item: Any, keys: Mapping[str, Any]) -> bool:
    return isinstance(item, dict) and all(
        (item.get(key) or _KEY_DEFAULTS.get(key)) == value for key, value in keys.items()
    )


def _keys_of(item: Any, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {}
    found = {name: item.get(name) or _KEY_DEFAULTS.get(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _element_of(item: Any, path: Path) -> str:
    names = _KEYS.get(path[-1][2:], ()) if path else ()
    keys = _keys_of(item, names)
    return f"k:{json.dumps(keys, separators=(',', ':'))}" if keys else f"v:{json.dumps(item)}"


def _values(want: Any, have: Any, path: Path) -> Iterator[Path]:
    """Fields whose wanted value is not the one that stands there."""
    if want is have:
        return  # the data of a record, which are taken from where they stand
    if _is_empty(want) and (_is_empty(have) or want is None or want == ""):
        return  # the server drops empty values, and fills in a default for an empty string
    if isinstance(want, dict):
        if not isinstance(have, dict) or (path and path[-1] in _WHOLE and want.keys() != have.keys()):
            yield path
            return
        for key, item in want.items():
            if not _is_identity(path, key):
                yield from _values(item, have.get(key), (*path, f"f:{key}"))
        yield from ((*path, f"f:{key}") for key in _optional(path) if key in have and key not in want)
    elif isinstance(want, list):
        yield from _items(want, have, path)
    elif want != have and not _same_quantity(want, have, path) and not _is_default(want, path):
        yield path


def _optional(path: Path) -> tuple[str, ...]:
    """Fields of a value at this path that are ours to leave out."""
    named = next((element for element in reversed(path) if not element.startswith("[")), "")
    return _OPTIONAL.get(named[2:], ())


def _items(want: list[Any], have: Any, path: Path) -> Iterator[Path]:
    names = _KEYS.get(path[-1][2:], ()) if path else ()
    if not isinstance(have, list):
        yield path
    elif names and all(_keys_of(item, names) for item in want):
        for item in want:
            keys = _keys_of(item, names)
            there = next((other for other in have if _keys_of(other, names) == keys), None)
            if there is None:
                yield (*path, _element_of(item, path))
            else:
                yield from _values(item, there, (*path, _element_of(item, path)))
    elif len(want) != len(have):
        yield path
    else:
        for index, (item, other) in enumerate(zip(want, have, strict=True)):
            yield from _values(item, other, (*path, f"[{index}]"))


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", 0) or value == {} or value == []


def _is_identity(path: Path, key: str) -> bool:
    return (not path and key in _IDENTITY) or (path == ("f:metadata",) and key in _IDENTITY_METADATA)


def _is_default(want: Any, path: Path) -> bool:
    """In a pod template a period or threshold of 0 means its default."""
    return want == 0 and path[-1] in (
        "f:periodSeconds",
        "f:timeoutSeconds",
        "f:successThreshold",
        "f:failureThreshold",
    )


def _same_quantity(want: Any, have: Any, path: Path) -> bool:
    if not any(element[2:] in _QUANTITIES for element in path[-2:]):
        return False
    left, right = _quantity(want), _quantity(have)
    return left is not None and left == right


def _quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity (`500m`, `1Gi`, `2`, `1e3`) as a number; None if it is none."""
    text = str(value)
    try:
        return Decimal(text)
    except InvalidOperation:
        pass
    digits = text.rstrip("KMGTPEikmnu")
    try:
        return Decimal(digits) * _SUFFIXES[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return None
