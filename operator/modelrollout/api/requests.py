"""What a person asks for by an annotation, without touching the spec.

`modelrollout.dev/<verb>: <revision>[/<step id>][@<anything>]` is bound to a revision, so that a late click can't hit another
release. Each change of a value is one request; the last handled value stands in `status.requests`. Whatever follows the @
only makes a value new, so that the same can be asked for twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from modelrollout.api.spec import GROUP
from modelrollout.api.status import RequestsStatus

Verb = Literal["abort", "pause", "resume", "approve", "promote", "retry", "undo", "restart"]
VERBS: tuple[Verb, ...] = get_args(Verb)
"""In the order in which simultaneous requests are looked at: what takes traffic away comes first."""

_VALUE = re.compile(r"(?P<revision>[a-z2-7]{10})(/(?P<step>[a-z0-9-]{1,63}))?(@.*)?", re.DOTALL)
_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One wish: `verb` for `revision`, and for approvals the step that is meant."""

    verb: Verb
    value: str
    revision: str
    step: str | None


@dataclass(frozen=True, slots=True)
class BadRequest:
    """An annotation that can't be understood; `problem` is a sentence for the event RequestIgnored."""

    verb: Verb
    value: str
    problem: str


AnyRequest: TypeAlias = Request | BadRequest


def annotation_of(verb: Verb) -> str:
    """The key of the annotation."""
    return f"{GROUP}/{verb}"


def format_request(*, revision: str, step: str | None = None, salt: str | None = None) -> str:
    """The value that asks for something about this revision."""
    return revision + (f"/{step}" if step else "") + (f"@{salt}" if salt else "")


def parse_request(verb: Verb, value: str) -> AnyRequest:
    """Read one annotation; a value that can't be read is an answer too."""
    key = annotation_of(verb)
    if len(value) > _LONGEST:
        return BadRequest(
            verb, value[:_LONGEST], f"{key} is longer than {_LONGEST} characters: shorten what follows the @"
        )
    found = _VALUE.fullmatch(value)
    if not found:
        return BadRequest(
            verb,
            value,
            f"{key} is {value!r}: write <revision>, <revision>/<step id> or either with @<anything> behind it",
        )
    if verb == "approve" and not found["step"]:
        return BadRequest(
            verb, value, f"{key} must name the step too: write {found['revision']}/<status.step.id>"
        )
    return Request(verb, value, revision=found["revision"], step=found["step"])


def changed_requests(
    annotations: Mapping[str, str] | None, handled: RequestsStatus
) -> tuple[AnyRequest, ...]:
    """The requests that were not handled yet, in the order of `VERBS`."""
    return tuple(
        parse_request(verb, value)
        for verb in VERBS
        if (value := _value_of(annotations, verb)) and value != getattr(handled, verb)
    )


def record_requests(annotations: Mapping[str, str] | None, handled: RequestsStatus) -> RequestsStatus:
    """`handled` with all values that stand in the annotations now. A value that was taken away stays remembered, so
    putting it back asks for nothing."""
    seen: dict[str, str] = {verb: value for verb in VERBS if (value := _value_of(annotations, verb))}
    return handled.model_copy(update=seen)


def _value_of(annotations: Mapping[str, str] | None, verb: Verb) -> str:
    # Cut as parse_request does, so that an overlong value is recorded once and not reported for ever.
    return ((annotations or {}).get(annotation_of(verb)) or "")[: _LONGEST + 1].strip()
