"""Reading a ModelRollout that may be wrong: errors are values, each with the field and what to do.

The API server refuses most of this already. It still has to be told apart here: in the CLI, which reads files; and in the
operator, which must survive an object that an older CRD let through.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from modelrollout.api.rules import NAME_LENGTH, NAME_MESSAGE, NAME_PATTERN, PREVIEW_MESSAGE, rules_of
from modelrollout.api.spec import LIST_KEYS, Spec
from modelrollout.api.types import Model

_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: the path of the field (`spec.analysis.metrics[0].name`) and a sentence that says how to mend it."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def parse(obj: Mapping[str, Any]) -> tuple[Spec | None, list[Problem]]:
    """The spec of a ModelRollout object, or everything that is wrong with it. Never raises."""
    problems = list(_name_problems(obj))
    data = obj.get("spec")
    if not isinstance(data, Mapping):
        return None, [
            *problems,
            Problem("spec", "spec is missing: it needs workload, service and analysis.metrics"),
        ]
    try:
        spec = Spec.from_wire(data)
    except ValidationError as error:
        return None, [*problems, *_explain(error)]
    problems += _preview_problems(obj, spec)
    problems += _walk(spec, "spec")
    problems += _template_problems(spec)
    return (None, problems) if problems else (spec, [])


def _name_problems(obj: Mapping[str, Any]) -> Iterator[Problem]:
    metadata = obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or len(name) > NAME_LENGTH or not _NAME.fullmatch(name):
        yield Problem("metadata.name", NAME_MESSAGE)


def _preview_problems(obj: Mapping[str, Any], spec: Spec) -> Iterator[Problem]:
    metadata = obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if spec.strategy.blue_green is not None and spec.service.name == f"{name}-preview":
        yield Problem("spec.service.name", PREVIEW_MESSAGE)


def _template_problems(spec: Spec) -> Iterator[Problem]:
    templates = [("spec.workload.template", spec.workload.template)]
    templates += [
        (f"{place}[{gate.name}].job.template", gate.job.template)
        for place, gate in spec.all_gates
        if gate.job
    ]
    for place, template in templates:
        pod, field = template.get("spec"), f"{place}.spec"
        if not template:
            continue  # a rule says that it is missing
        if not isinstance(pod, Mapping):
            yield Problem(field, "the pod template needs a spec with containers, as in a Deployment")
        elif not isinstance(pod.get("containers"), list) or not pod["containers"]:
            yield Problem(f"{field}.containers", "the pod template needs at least one container")
        else:
            yield from _mistyped(template, place)


def _mistyped(template: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """What we walk through ourselves, where it is no object or list; of the rest the API server says what is wrong."""
    metadata, pod = template.get("metadata"), template["spec"]
    parts: list[tuple[str, Any, type]] = [("metadata", metadata, Mapping)]
    if isinstance(metadata, Mapping):
        parts += [(f"metadata.{name}", metadata.get(name), Mapping) for name in ("labels", "annotations")]
    for name in ("initContainers", "containers"):
        containers = pod.get(name)
        parts.append((f"spec.{name}", containers, list))
        for index, container in enumerate(containers if isinstance(containers, list) else ()):
            parts.append((f"spec.{name}[{index}]", container, Mapping))
            if isinstance(container, Mapping):
                parts.append((f"spec.{name}[{index}].env", container.get("env"), list))
    for path, value, kind in parts:
        if value is not None and not isinstance(value, kind):
            what = "a list" if kind is list else "an object with fields"
            yield Problem(
                f"{place}.{path}",
                f"{path.rpartition('.')[2]} must be {what}, as in a Deployment, not {value!r}",
            )


def _walk(part: Model, path: str) -> Iterator[Problem]:
    for rule in rules_of(type(part)):
        if not rule.holds(part):
            yield Problem(f"{path}.{rule.field}" if rule.field else path, rule.message)
    for attribute, info in type(part).model_fields.items():
        value, field = getattr(part, attribute), f"{path}.{info.alias or attribute}"
        if isinstance(value, Model):
            yield from _walk(value, field)
        elif isinstance(value, tuple):
            yield from _repeated(part, attribute, field)
            for index, item in enumerate(value):
                if isinstance(item, Model):
                    yield from _walk(item, f"{field}[{index}]")


def _repeated(part: Model, attribute: str, field: str) -> Iterator[Problem]:
    """What the API server refuses as `Duplicate value` in lists that are maps or sets."""
    key = LIST_KEYS.get((type(part), attribute))
    if key is None:
        return
    seen = set()
    for index, item in enumerate(getattr(part, attribute)):
        value = getattr(item, key) if key else item
        if value in seen:
            where = f"{field}[{index}]" + (f".{key}" if key else "")
            yield Problem(
                where, f"{value!r} stands twice in {field.rpartition('.')[2]}: change or remove one"
            )
        seen.add(value)


def _explain(error: ValidationError) -> Iterator[Problem]:
    reported = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # pydantic's echo of items that were wrong one by one
        loc = [part for part in detail["loc"] if not _is_branch(part)]
        field = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
        if field not in reported:
            reported.add(field)
            yield Problem(field, _sentence(detail, loc))


def _is_branch(part: int | str) -> bool:
    """Whether pydantic added this to name a branch of `int | str`, which is no field."""
    return isinstance(part, str) and (part in ("int", "str") or part.startswith("constrained-"))


def _sentence(detail: Mapping[str, Any], loc: Sequence[int | str]) -> str:
    name, value, context = _last_name(loc), detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{name} is missing: it has no default, so write it"
        case "extra_forbidden":
            return f"{name} is not a field of this API{_suggestion(loc)}"
        case "value_error":
            return f"{name}: {context['error']}"
        case "literal_error":
            hint = (
                " (in quotes, because YAML reads On and Off as true and false)"
                if isinstance(value, bool)
                else ""
            )
            return f"{name} is {value!r}: write one of {context['expected']}{hint}"
        case "string_type":
            return f"{name} must be a string, not {value!r}: put it in quotes"
        case "int_type" | "int_from_float":
            return f"{name} must be a whole number without quotes, not {value!r}"
        case "bool_type":
            return f"{name} must be true or false without quotes, not {value!r}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{name} must be an object with fields, not {value!r}"
        case "tuple_type":
            return f"{name} must be a list, not {value!r}"
        case "too_short" | "too_long":
            bound = "at least" if detail["type"] == "too_short" else "at most"
            limit = context["min_length"] if detail["type"] == "too_short" else context["max_length"]
            return f"{name} must have {bound} {limit} items, not {len(value)}"
        case "string_pattern_mismatch":
            return f"{name} is {value!r}, which does not match {context['pattern']}"
        case _:
            message = str(detail["msg"])
            return f"{name}: {message[:1].lower()}{message[1:]}"


def _last_name(loc: Sequence[int | str]) -> str:
    """The last name on the way, with the place in its list: hostnames[0]."""
    start = next((at for at in reversed(range(len(loc))) if isinstance(loc[at], str)), None)
    if start is None:
        return "spec"
    return str(loc[start]) + "".join(f"[{place}]" for place in loc[start + 1 :])


def _suggestion(loc: Sequence[int | str]) -> str:
    known = _fields_at(loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if close:
        return f": did you mean {close[0]}?"
    return f": remove it, or use one of {', '.join(known)}" if known else ": remove it"


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """Names on the wire of the fields of the model at this place."""
    part: type[Model] | None = Spec
    for name in loc:
        if isinstance(name, int) or part is None:
            continue
        types = {info.alias or attribute: info.annotation for attribute, info in part.model_fields.items()}
        part = _model_in(types.get(name))
    return [info.alias or attribute for attribute, info in part.model_fields.items()] if part else []


def _model_in(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
