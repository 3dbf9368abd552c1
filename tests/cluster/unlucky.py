"""The operator on a bad day: some of its writes are refused as conflicts, some fail, and the answers to some are lost.

`LUCK` is the seed and the share of writes that fail on each side, as in "7:0.03". There is no leader election: after a kill
the next process would first wait for the Lease of the one before to expire.

Run as `python -m tests.cluster.unlucky run …`, in place of `python -m modelrollout run …`.
"""

from __future__ import annotations

import functools
import os
import random
import sys

import modelrollout.controller.operator as operator
from modelrollout.cli import main
from modelrollout.cluster.errors import ClusterError, Conflict, Unavailable
from modelrollout.cluster.port import Hooks, Write


def hooks(luck: str) -> Hooks:
    """Hooks that fail a share of the writes, by a seed."""
    seed, _, text = luck.partition(":")
    chance, share = random.Random(int(seed)), float(text)

    def refusals() -> tuple[ClusterError, ...]:
        return (
            Conflict("somebody else was quicker", status=409),
            Unavailable("etcd has no leader", status=500),
            Unavailable("too many requests", status=429, retry_after=1.0),
        )

    async def before(_: Write) -> None:
        if chance.random() < share:
            raise chance.choice(refusals())

    async def after(_: Write) -> None:
        if chance.random() < share:
            raise Unavailable("the answer was lost")

    return Hooks(before_write=before, after_write=after)


if __name__ == "__main__":
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--leader-elect"]
    operator.run = functools.partial(operator.run, hooks=hooks(os.environ["LUCK"]))  # type: ignore[assignment]
    main()
