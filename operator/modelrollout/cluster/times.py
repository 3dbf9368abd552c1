"""Time stamps as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds_of(stamp: str | None) -> float | None:
    """Epoch seconds of an RFC 3339 time (metav1.Time or MicroTime); None if there is none or it cannot be read."""
    if not stamp:
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None


def micro_time(seconds: float) -> str:
    """A metav1.MicroTime from epoch seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
