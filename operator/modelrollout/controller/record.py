"""`status.evidence`: the engine's state, and what is counted beside it, so that a restart forgets none of it."""

from __future__ import annotations

from typing import Any

from modelrollout.api.status import Phase, Status
from modelrollout.controller.alarm import dump_alarms, load_alarms
from modelrollout.controller.memory import Memory
from modelrollout.evidence.state import State, dump, load

COMPARED = (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING, Phase.WATCHING)
"""Phases in which two revisions are compared; in the others there is no evidence."""


def write_evidence(
    state: State | None, memory: Memory, before: Status, after: Status
) -> dict[str, Any] | None:
    """The evidence to commit with the status `after`; None if there is none.

    What could not be read is kept as it stands while its attempt goes on: whoever wrote it may come back.
    """
    if state is None:
        same = memory.unreadable and after.attempt == before.attempt and after.phase in COMPARED
        return before.evidence if same else None
    beside = {
        "breaches": {name: count for name, count in memory.breaches.items() if count},
        "alarms": dump_alarms(memory.alarms),
        "firstReady": memory.flapped,
    }
    return dump(state) | {key: value for key, value in beside.items() if value}


def read_evidence(status: Status, memory: Memory) -> None:
    """Take the committed evidence into memory, unless newer evidence is there. What can't be read is said in
    `memory.unreadable`: nothing is decided from evidence that is not understood."""
    data = status.evidence
    if memory.state is not None or memory.unreadable or not data:
        return
    try:
        state = load(data)
        breaches = {str(name): int(count) for name, count in (data.get("breaches") or {}).items()}
        alarms = load_alarms(data.get("alarms") or {})
        first_ready = {str(uid): float(when) for uid, when in (data.get("firstReady") or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        memory.unreadable = f"MetricsUnavailable: {error}: run the version of the operator that wrote it; or abort, and retry from nothing"
        return
    memory.state, memory.breaches, memory.alarms = state, breaches, alarms
    memory.first_ready.update(first_ready)
