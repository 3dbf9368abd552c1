"""Clocks that survive a restart: while one runs, the status holds its end; while it is held, what is left of it."""

from __future__ import annotations

from modelrollout.api.status import Status


def _held(end: float | None, left: float | None, now: float) -> tuple[float | None, float | None]:
    return (None, max(0.0, end - now)) if end is not None else (None, left)


def _running(end: float | None, left: float | None, now: float) -> tuple[float | None, float | None]:
    return (now + left, None) if end is None and left is not None else (end, None)


def set_clocks(status: Status, *, step_runs: bool, active_runs: bool, watch_runs: bool, now: float) -> Status:
    """The status with each of its clocks running or held; idempotent."""
    changes: dict[str, object] = {}
    if status.step is not None and status.step.started_at is not None:
        turn = _running if step_runs else _held
        end, left = turn(status.step.ends_at, status.step.left, now)
        changes["step"] = status.step.model_copy(update={"ends_at": end, "left": left})
    turn = _running if active_runs else _held
    deadline, left = turn(status.deadline_at, status.deadline_left, now)
    changes |= {"deadline_at": deadline, "deadline_left": left}
    if status.watch is not None:
        turn = _running if watch_runs else _held
        end, left = turn(status.watch.ends_at, status.watch.left, now)
        changes["watch"] = status.watch.model_copy(update={"ends_at": end, "left": left})
    return status.model_copy(update=changes)
