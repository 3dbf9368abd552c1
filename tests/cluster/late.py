"""The operator with a view of the cluster that is seconds old: whatever its watches tell reaches it late.

What it read at its start and what it wrote itself it knows at once, as always. Run as `python -m tests.cluster.late run …`, in
place of `python -m modelrollout run …`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import modelrollout.controller.operator as operator
from modelrollout.cli import main

LATE = 2.0  # seconds


def delay() -> None:
    """Let everything that is seen be taken later, in the same order."""
    take = operator._take

    def later(*given: Any, **named: Any) -> None:
        asyncio.get_running_loop().call_later(LATE, functools.partial(take, *given, **named))

    operator._take = later


if __name__ == "__main__":
    delay()
    main()
