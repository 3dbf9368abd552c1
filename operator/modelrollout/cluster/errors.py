"""What can go wrong with a request, sorted by what the caller has to do about it.

Conflict: decide anew. Invalid: the user's error, tell them. Forbidden: the operator's rights. Unavailable: wait and
try again. The API server's own status codes do not sort that way: a failed JSON-patch `test` is 422 like a bad value,
and a template that cannot be parsed by server-side apply is a 500.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MALFORMED = "failed to create typed patch object"


class ClusterError(Exception):
    """A request that failed. `status` is the HTTP code, 0 if there was no answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[Mapping[str, Any], ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after = retry_after


class Conflict(ClusterError):
    """The object is not what it was when we decided: read it and decide anew."""


class AlreadyExists(Conflict):
    """Something of that name is there already."""


class NotFound(ClusterError):
    """The object, or the namespace it was to live in, does not exist."""


class KindNotServed(NotFound):
    """The cluster does not know this kind: its CustomResourceDefinition is not installed."""


class Forbidden(ClusterError):
    """The operator may not do this: RBAC, admission or quota refused it, or the namespace is being deleted."""

    @property
    def namespace_terminating(self) -> bool:
        return any(cause.get("reason") == "NamespaceTerminating" for cause in self.causes)


class Invalid(ClusterError):
    """The API server refuses the content; the same request will never pass."""


class Unavailable(ClusterError):
    """No answer, too many requests or an error on the server's side: try later, `retry_after` seconds if given."""


@dataclass(frozen=True, slots=True)
class _Status:
    """The parts of a metav1.Status that errors are sorted by."""

    message: str
    reason: str
    details: Mapping[str, Any]

    @property
    def causes(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(c for c in self.details.get("causes") or () if isinstance(c, dict))


def error_from(
    status: int, body: bytes, headers: Mapping[str, str], *, what: str, patch: bool = False
) -> ClusterError:
    """Sort a refused request.

    `what` names the request for people ("apply Deployment a/b"); `patch` says that it was a JSON patch, whose failed
    `test` is a Conflict.
    """
    parsed = _parse(body)
    kind = _class_of(status, parsed, patch=patch)
    return kind(
        f"{what}: {parsed.message or f'the API server answered {status}'}",
        status=status,
        reason=parsed.reason,
        causes=parsed.causes,
        retry_after=_retry_after(headers, parsed.details),
    )


def _class_of(status: int, parsed: _Status, *, patch: bool) -> type[ClusterError]:
    if status == 404:
        return NotFound if parsed.details.get("name") else KindNotServed
    if status == 409:
        return AlreadyExists if parsed.reason == "AlreadyExists" else Conflict
    if status == 403:
        return Forbidden
    if status == 422 and patch and not parsed.details.get("kind"):
        return Conflict
    if status in (401, 408, 410, 429):
        # 401: a token about to be renewed. 410: a continue token that is too old. Both pass with time.
        return Unavailable
    if status >= 500 and _MALFORMED not in parsed.message:
        return Unavailable
    return Invalid


def _parse(body: bytes) -> _Status:
    """Read a metav1.Status; proxies and old paths answer plain text, which becomes the message."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        return _Status(body[:300].decode(errors="replace").strip(), "", {})
    details = parsed.get("details")
    return _Status(
        str(parsed.get("message") or ""),
        str(parsed.get("reason") or ""),
        details if isinstance(details, dict) else {},
    )


def _retry_after(headers: Mapping[str, str], details: Mapping[str, Any]) -> float | None:
    """Seconds to wait, from the header (only its numeric form, the one API servers send) or from the body."""
    for value in (headers.get("Retry-After"), details.get("retryAfterSeconds")):
        try:
            seconds = float(value) if value is not None else 0.0
        except ValueError:
            continue
        if 0 < seconds < 3600:
            return seconds
    return None
