"""Which decisions are worth a write: what decides is committed at once, evidence that merely grows now and then."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What only grows or explains. Everything else in the status moves something, or tells a person what to do.
_GROWING = ("evidence", "metrics", "forecast", "verdict")
# Numbers, and words with digits in them: a webhook that refuses a write may name each request by an id of its own.
_NUMBER = re.compile(r"(?<![\w.-])[\w.-]*\d[\w.-]*")
# While these are waited for, the message counts along with the evidence.
_COUNTING = frozenset({"AwaitingEvidence", "AwaitingRequests", "AwaitingDuration", "Watching"})


def material(status: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a status (on the wire) that is committed as soon as it changes."""
    kept = {key: value for key, value in status.items() if key not in _GROWING}
    # From its first cut on each sample counts once; before that cut is committed, a restart would begin at a later one.
    kept["begun"] = (status.get("evidence") or {}).get("consumed") is not None
    conditions = status.get("conditions") or []
    reasons = {c["type"]: c["reason"] for c in conditions}
    counting = reasons.get("Reconciling", reasons.get("Ready")) in _COUNTING
    kept["message"] = "" if counting else _wording(kept.get("message"))
    kept["conditions"] = [
        {**c, "message": "" if counting else _wording(c.get("message"))} for c in conditions
    ]
    return kept


def _wording(message: Any) -> str:
    """A message without its numbers: what is measured anew at each poll, or tried again, is no news by itself."""
    return _NUMBER.sub("#", str(message or ""))


def worth_committing(
    before: Mapping[str, Any], after: Mapping[str, Any], *, since: float, every: float
) -> bool:
    """Whether to write `after` over `before` (both on the wire), `since` seconds after the last write.

    `every` is the least time in seconds between two writes of evidence that merely grew.
    """
    if material(before) != material(after):
        return True
    return since >= every and before != after
