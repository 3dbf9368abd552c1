"""The operator as a process that is killed at chosen writes and comes back at once.

`KILLS` names the writes, one life each, as in "before:1 after:1 before:2": the first life ends when it is about to send
its first write, the second when the server has taken it; "after:HTTPRoute" means its first write of that kind. The life
after the last of them is left alone. Importing takes longer than these lives last, so a parent imports everything once and forks each of them. There is no leader election:
each life would first wait for the Lease of the one before to expire.

Run as `python -m tests.cluster.faulty run …`, in place of `python -m modelrollout run …`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from types import FrameType

import modelrollout.controller.operator as operator
from modelrollout.cli import main
from modelrollout.cluster.port import Hooks, Write


def hooks_for(kill: str) -> Hooks:
    """Hooks that end this process by SIGKILL on one side of one write."""
    side, _, which = kill.partition(":")

    async def meet(write: Write) -> None:
        if which in (str(write.number), write.kind):
            where = f"{write.verb} {write.kind} {write.namespace}/{write.name}"
            print(f"killed {side} write {write.number}: {where}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    async def spare(_: Write) -> None:
        """Not here."""

    return Hooks(
        before_write=meet if side == "before" else spare, after_write=meet if side == "after" else spare
    )


def live(kill: str | None) -> None:
    """One life; it never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if kill is not None:
        operator.run = functools.partial(operator.run, hooks=hooks_for(kill))  # type: ignore[assignment]
    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def run_lives(kills: list[str]) -> int:
    """One life after the other; the exit code of the last."""
    child, stopping = 0, False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    for kill in [*kills, None]:
        if stopping:
            return 0
        child = os.fork()
        if child == 0:
            live(kill)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return os.waitstatus_to_exitcode(status)
    return 1


if __name__ == "__main__":
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--leader-elect"]
    sys.exit(max(0, run_lives(os.environ.get("KILLS", "").split())))
