"""The CustomResourceDefinition, made from the pydantic models.

Kubernetes accepts only *structural* schemas: no references, no null branches, no `const`, booleans for exclusive bounds. What
pydantic writes is turned into that here, the rules of `rules.py` are attached as CEL, and `lint` refuses whatever is left over,
so that a mistake is found by a unit test and not by an API server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, get_args

from modelrollout.api.rules import NAME_CEL, NAME_MESSAGE, PREVIEW_CEL, PREVIEW_MESSAGE, rules_of
from modelrollout.api.spec import GROUP, KIND, LIST_KEYS, PLURAL, UNION_MEMBERS, VERSION, Spec
from modelrollout.api.status import Status
from modelrollout.api.types import JsonObject, Model

IN_MEMORY = "x-in-memory-default"
"""Private key: the default of a field inside a union, which the CRD may only mention. `crd` turns it into a sentence."""

_LIST_KEYS: dict[tuple[type[Model], str], str] = {**LIST_KEYS, (Status, "conditions"): "type"}
# A default must keep the rules, and an empty analysis breaks one.
_NEEDED = {(Spec, "analysis")}
_KEPT_AS_IS = {
    "type", "format", "enum", "pattern", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
_ALLOWED = _KEPT_AS_IS | {
    "description", "default", "properties", "items", "additionalProperties", "x-kubernetes-validations",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
}  # fmt: skip


def crd() -> JsonObject:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["mro"],
                "categories": ["mlops"],
            },
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def _version() -> JsonObject:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            _column("Phase", ".status.phase", "Where the rollout stands."),
            _column("Step", ".status.step.display", "The current step and how many there are."),
            _column(
                "Weight",
                ".status.weights.candidate",
                "Share of the requests, in percent, that the candidate gets.",
            ),
            _column("Verdict", ".status.verdict", "What the metrics say about the candidate."),
            _column(
                "Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether all is as the spec asks."
            ),
            _column("Age", ".metadata.creationTimestamp", "Age of the object."),
            _column("Stable", ".status.stable.revision", "The revision that serves.", wide=True),
            _column("Candidate", ".status.candidate.revision", "The revision that is tried.", wide=True),
            _column("Message", ".status.message", "What happens, and what comes next.", wide=True),
        ],
        "schema": {"openAPIV3Schema": root_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.workload.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
    }


def _column(name: str, path: str, description: str, *, wide: bool = False) -> JsonObject:
    kinds = {"Age": "date", "Weight": "integer"}
    column = {"name": name, "type": kinds.get(name, "string"), "description": description, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


def root_schema() -> JsonObject:
    """The structural schema of the kind."""
    spec = model_schema(Spec)
    status = _without_defaults(model_schema(Status))
    status["default"] = {"observedGeneration": -1}
    return {
        "type": "object",
        "description": "A ModelRollout releases a model step by step: it runs the new one beside the old one, compares both on "
        "the same traffic, and promotes it or takes the traffic back.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": KIND},
            "metadata": {"type": "object"},
            "spec": _mention_defaults(spec),
            "status": _mention_defaults(status),
        },
        "x-kubernetes-validations": [
            {"rule": NAME_CEL, "message": NAME_MESSAGE},
            {"rule": PREVIEW_CEL, "message": PREVIEW_MESSAGE},
        ],
    }


def model_schema(model: type[Model], *, in_union: bool = False) -> JsonObject:
    """The structural schema of one model, with `IN_MEMORY` on what has a default that the CRD may not apply."""
    written = model.model_json_schema(by_alias=True, mode="serialization")
    definitions = written.get("$defs", {})
    properties = {}
    for attribute, info in model.model_fields.items():
        member = attribute in UNION_MEMBERS.get(model, ())
        name = info.alias or attribute
        node = _node(written["properties"][name], definitions, info.annotation, in_union=in_union or member)
        if in_union or member:
            default = node.pop("default", None)
            if default not in (None, [], {}):
                node[IN_MEMORY] = default
        elif (model, attribute) not in _NEEDED and not info.is_required() and _has_default(node):
            node.setdefault("default", {})  # so that the defaults inside apply when the object is left out
        properties[name] = {**node, **_list_type(model, attribute)}
    schema: JsonObject = {"type": "object", "description": " ".join((model.__doc__ or "").split())}
    required = [info.alias or name for name, info in model.model_fields.items() if info.is_required()]
    schema |= {"required": required} if required else {}
    schema |= {"properties": properties} if properties else {}
    rules = [_rule(rule.cel, rule.message, rule.field) for rule in rules_of(model)]
    return schema | ({"x-kubernetes-validations": rules} if rules else {})


def _node(
    written: Mapping[str, Any], definitions: Mapping[str, Any], annotation: Any, *, in_union: bool
) -> JsonObject:
    """One field: what pydantic wrote, without what structural schemas forbid."""
    written = _without_null(written)
    if "patternProperties" in written:  # a pattern of keys, which no structural schema has
        (written["additionalProperties"],) = written["patternProperties"].values()
    node: JsonObject = {}
    inner = _class_in(annotation)
    if inner is not None and issubclass(inner, Model):
        node = model_schema(inner, in_union=in_union)
        if _is_list(written):
            node = {"type": "array", "items": node}
    elif "$ref" in written:
        node = {
            key: value
            for key, value in definitions[written["$ref"].rpartition("/")[2]].items()
            if key in _KEPT_AS_IS
        }
    node |= {key: value for key, value in written.items() if key in _KEPT_AS_IS}
    if written.get("description"):
        node["description"] = " ".join(written["description"].split())
    if "default" in written and written["default"] not in (None, [], {}):
        node["default"] = written["default"]
    if "items" in written and "items" not in node:
        node["items"] = _node(written["items"], definitions, None, in_union=in_union)
    if "properties" in written and "properties" not in node:
        node["properties"] = written["properties"]
    if written.get("additionalProperties") is True:
        node["x-kubernetes-preserve-unknown-fields"] = True
    elif isinstance(written.get("additionalProperties"), Mapping):
        node["additionalProperties"] = _node(
            written["additionalProperties"], definitions, None, in_union=in_union
        )
    return node


def _without_null(written: Mapping[str, Any]) -> JsonObject:
    branches = [branch for branch in written.get("anyOf", ()) if branch.get("type") != "null"]
    if "anyOf" not in written:
        return dict(written)
    if len(branches) != 1:
        raise ValueError(f"a structural schema has one type per field, not {written}")
    only: JsonObject = branches[0]
    return {key: value for key, value in written.items() if key != "anyOf"} | only


def _is_list(written: Mapping[str, Any]) -> bool:
    return written.get("type") == "array"


def _class_in(annotation: Any) -> type[Model] | type[Enum] | None:
    """The model or enumeration inside an annotation such as `tuple[Step, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Model | Enum):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _class_in(inner))), None)


def _list_type(model: type[Model], attribute: str) -> JsonObject:
    key = _LIST_KEYS.get((model, attribute))
    if key is None:
        return {}
    if not key:
        return {"x-kubernetes-list-type": "set"}
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _rule(cel: str, message: str, field: str) -> JsonObject:
    rule = {"rule": cel, "message": message}
    return {**rule, "fieldPath": f".{field}"} if field else rule


def _has_default(node: Mapping[str, Any]) -> bool:
    return any("default" in child for child in node.get("properties", {}).values())


def _without_defaults(node: JsonObject) -> JsonObject:
    """The operator writes the status whole; a default in it would come back as something that nobody wrote."""
    return {key: _each(value, _without_defaults) for key, value in node.items() if key != "default"}


def _mention_defaults(node: JsonObject) -> JsonObject:
    done = {key: _each(value, _mention_defaults) for key, value in node.items() if key != IN_MEMORY}
    if IN_MEMORY in node:
        done["description"] = f"{done.get('description', '')} Left out: {_shown(node[IN_MEMORY])}.".strip()
    return done


def _each(value: Any, change: Callable[[JsonObject], JsonObject]) -> Any:
    if isinstance(value, dict):
        return change(value)
    return [_each(item, change) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def lint(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """What the API server would refuse in a structural schema, and what this project forbids itself. One line each."""
    here = path or "the root"
    unknown = set(schema) - _ALLOWED
    if unknown:
        yield f"{here}: {', '.join(sorted(unknown))} can't stand in a structural schema"
    if "type" not in schema and "x-kubernetes-int-or-string" not in schema:
        yield f"{here}: every field has a type"
    if isinstance(schema.get("type"), list):
        yield f"{here}: one type, not several"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{here}: properties and additionalProperties exclude each other"
    if not schema.get("description") and not path.endswith(("[]", ".metadata")):
        yield f"{here}: a description is missing"
    if path.startswith(".spec"):
        yield from _lint_bounds(schema, here)
    yield from _lint_keys(schema, here)
    for name, child in schema.get("properties", {}).items():
        yield from lint(child, f"{path}.{name}")
    if "items" in schema:
        yield from lint(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from lint(schema["additionalProperties"], f"{path}[]")


def _lint_bounds(schema: Mapping[str, Any], here: str) -> Iterator[str]:
    kind = schema.get("type")
    if kind == "string" and not {"maxLength", "enum"} & set(schema):
        yield f"{here}: a string needs maxLength, or the cost of its rules can't be estimated"
    if kind == "array" and "maxItems" not in schema:
        yield f"{here}: a list needs maxItems, or the cost of its rules can't be estimated"
    if kind == "number":
        yield f"{here}: numbers with a fraction are decimal strings"


def _lint_keys(schema: Mapping[str, Any], here: str) -> Iterator[str]:
    items = schema.get("items", {})
    if schema.get("type") == "array" and not items:
        yield f"{here}: a list needs items"
    for key in schema.get("x-kubernetes-list-map-keys", ()):
        keyed = key in items.get("required", ()) or "default" in items.get("properties", {}).get(key, {})
        if not keyed:
            yield f"{here}: the key {key} of the list must be required or have a default"
    for rule in schema.get("x-kubernetes-validations", ()):
        if not rule.get("message") or "\n" in rule["message"]:
            yield f"{here}: a rule needs a message of one line"
