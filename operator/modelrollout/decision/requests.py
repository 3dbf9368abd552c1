"""Requests by annotation: each change of a value is looked at once, and either applies to this very revision or is
answered with an event."""

from __future__ import annotations

from dataclasses import replace

from modelrollout.api.conditions import EventReason
from modelrollout.api.requests import BadRequest, Request, annotation_of, changed_requests, record_requests
from modelrollout.api.status import Phase
from modelrollout.decision.round import Round

_COMPARING = (Phase.PROGRESSING, Phase.PAUSED)
_PHASES = {
    "approve": _COMPARING,
    "promote": (*_COMPARING, Phase.WATCHING),
    "abort": (*_COMPARING, Phase.PROMOTING, Phase.WATCHING),
    "retry": (Phase.ROLLED_BACK, Phase.HEALTHY),
    "pause": (*_COMPARING, Phase.WATCHING),
    "resume": (*_COMPARING, Phase.WATCHING),
    "undo": tuple(phase for phase in Phase if phase not in (Phase.PENDING, Phase.INVALID)),
    "restart": tuple(phase for phase in Phase if phase is not Phase.INVALID),
}


def read_requests(round: Round) -> Round:
    """The round with the new requests that apply, all new ones recorded, and an event for each that does not.

    On an object with an empty status all values found count as handled: they were meant for another life of it.
    """
    annotations = round.wish.annotations
    recorded = round.put(requests=record_requests(annotations, round.status.requests))
    if round.status.phase is None:
        return recorded
    for request in changed_requests(annotations, round.status.requests):
        problem = request.problem if isinstance(request, BadRequest) else _mismatch(round, request)
        if problem:
            recorded = recorded.say(EventReason.REQUEST_IGNORED, problem)
        elif isinstance(request, Request):
            recorded = replace(recorded, asked={**recorded.asked, request.verb: request})
    return recorded


def _mismatch(round: Round, request: Request) -> str:
    """Why a request does not apply; empty if it does."""
    key, phase, status = annotation_of(request.verb), round.phase, round.status
    if round.frozen and request.verb in ("promote", "retry", "undo"):
        return f"{key}: nothing moves forward until the spec is accepted; put it right, then ask again"
    nothing = request.verb == "retry" and phase == Phase.HEALTHY and status.rejected is None
    if phase not in _PHASES[request.verb] or nothing:
        return f"{key}: there is nothing to {request.verb} in phase {phase}"
    if request.verb == "undo":
        return _can_not_undo(round, key, request.revision)
    if request.verb == "restart":
        return _can_not_restart(round, key, request.revision)
    if phase in (Phase.ROLLED_BACK, Phase.HEALTHY):
        target = status.rejected.revision if status.rejected else None
    else:
        role = status.stable if phase == Phase.WATCHING else status.candidate
        target = role.revision if role else None
    if request.revision != target:
        return f"{key} names revision {request.revision}, but it is {target} now: nothing was done"
    if request.verb == "resume" and status.pause is None:
        held = ": spec.paused is true, set it to false" if round.spec.paused else ""
        return f"{key}: there is no pause to resume from{held}"
    if request.verb == "approve" and request.step != round.step.id:
        return f"{key} names step {request.step}, but the current step is {round.step.id}: nothing was done"
    return ""


def _can_not_undo(round: Round, key: str, revision: str) -> str:
    if revision == round.wish.revision:
        return f"{key}: revision {revision} is what is asked for already"
    if round.status.rejected is not None and revision == round.status.rejected.revision:
        return f"{key}: revision {revision} was rolled back; try it again with {annotation_of('retry')}"
    if revision != round.wish.written and revision not in round.seen.stored:
        return (
            f"{key}: there is no record of revision {revision} (revisionHistoryLimit says how many are kept)"
        )
    if revision != round.wish.written and (why := round.seen.lost.get(revision)):
        return f"{key}: revision {revision} can't come back: {why}"
    return ""


def _can_not_restart(round: Round, key: str, revision: str) -> str:
    if round.spec.workload.services is not None:
        return f"{key}: the pods behind your Services are yours to restart"
    roles = (round.status.stable, round.status.candidate, round.status.previous)
    running = [role.revision for role in roles if role is not None and role.desired]
    if revision not in running:
        return f"{key} names revision {revision}, but pods have: {', '.join(running) or 'none'}"
    return ""
