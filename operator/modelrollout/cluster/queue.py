"""The work queue between watches and the reconcile loop, with the rules of client-go's.

A key that is added many times is worked on once; two workers never hold the same key; a key that is added while it
is worked on comes again afterwards, so no change is missed. Failures come back after a growing, jittered pause.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

LONGEST_PAUSE = 30.0
"""Seconds between two tries at most, before jitter. What made a round fail may be over at any time and wakes nobody, and a
candidate may have traffic."""


class QueueShutDown(Exception):
    """There will be no more keys."""


class WorkQueue(Generic[K]):
    """Deduplicating, delaying, rate-limited queue for one event loop.

    `jitter` gives numbers in [0, 1): the back-off of the n-th failure in a row is between half of and the whole
    `base` × 2ⁿ⁻¹ seconds, at most `cap`.
    """

    def __init__(
        self, *, base: float = 1.0, cap: float = LONGEST_PAUSE, jitter: Callable[[], float] = random.random
    ) -> None:
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._ready: OrderedDict[K, float] = OrderedDict()
        self._processing: dict[K, float] = {}
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()
        self._failures: dict[K, int] = {}
        self._getters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._shut_down = False

    def __len__(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    @property
    def processing(self) -> int:
        return len(self._processing)

    def longest_wait(self) -> float:
        """Seconds that the first key in line has waited for a worker: 0 if there is none."""
        return self._now() - next(iter(self._ready.values())) if self._ready else 0.0

    def longest_work(self) -> float:
        """Seconds that a worker has been busy with one key, at most: a stuck worker shows here."""
        return self._now() - min(self._processing.values()) if self._processing else 0.0

    def add(self, key: K) -> None:
        """Have the key worked on, now or as soon as the worker that holds it is done with it."""
        if self._shut_down:
            return
        if key in self._processing:
            self._again.add(key)
        elif key not in self._ready:
            self._enqueue(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Add the key in `seconds`. Of several wishes for one key the earliest counts.

        What is still pending when a worker takes the key is dropped, because the worker looks at everything and then
        says itself when the next time is.
        """
        if self._shut_down:
            return
        if not seconds > 0:
            self.add(key)
            return
        when = self._now() + min(seconds, 365 * 86400.0)
        if when < self._due.get(key, math.inf):
            self._due[key] = when
            heapq.heappush(self._heap, (when, next(self._order), key))
            self._arm()

    def add_failed(self, key: K, *, at_least: float = 0.0) -> float:
        """Count a failure and add the key after its back-off, or after `at_least` seconds (a Retry-After) if that is
        later. Returns the seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(self._cap, self._base * 2.0 ** min(failures - 1, 60))
        pause = max(at_least, pause * (0.5 + 0.5 * self._jitter()))
        self.add_after(key, pause)
        return pause

    def retry_failed(self) -> None:
        """Have the keys that wait out a back-off worked on now: what they failed by is over."""
        for key in self._failures:
            self.add(key)

    def forget(self, key: K) -> None:
        """The key succeeded, or its object is gone: the next failure is a first one."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """Failures in a row."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """Wait for a key. Call `done` when finished with it, come what may. Raises QueueShutDown at the end."""
        while not self._ready:
            if self._shut_down:
                raise QueueShutDown
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters[getter] = None
            try:
                await getter
            except asyncio.CancelledError:
                # The wake-up may have been meant for a key: hand it on, or it would lie there.
                if getter.done() and not getter.cancelled() and self._ready:
                    self._wake()
                raise
            finally:
                self._getters.pop(getter, None)
        key, _ = self._ready.popitem(last=False)
        self._processing[key] = self._now()
        self._idle.clear()
        self._due.pop(key, None)
        self._compact()
        return key

    def done(self, key: K) -> None:
        """The worker is finished with the key; if it was added meanwhile it is in line again."""
        if self._processing.pop(key, None) is None:
            raise ValueError(f"{key!r} is not being worked on")
        if key in self._again:
            self._again.discard(key)
            if not self._shut_down:
                self._enqueue(key)
        if not self._processing:
            self._idle.set()

    def shutdown(self) -> None:
        """No more keys are given out, waiting ones are dropped: what they ask for is found again after a restart."""
        self._shut_down = True
        self._ready.clear()
        self._again.clear()
        self._due.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        for getter in self._getters:
            if not getter.done():
                getter.set_result(None)

    async def drained(self) -> None:
        """Wait until no worker holds a key."""
        await self._idle.wait()

    def _enqueue(self, key: K) -> None:
        self._ready[key] = self._now()
        self._wake()

    def _wake(self) -> None:
        for getter in self._getters:
            if not getter.done():
                getter.set_result(None)
                return

    def _arm(self) -> None:
        """Set the timer to the earliest pending key."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._timer is not None:
            if self._heap and not self._timer.cancelled() and self._timer.when() == self._heap[0][0]:
                return
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._release)

    def _release(self) -> None:
        self._timer = None
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)
        self._arm()

    def _compact(self) -> None:
        """Wishes that were overtaken stay in the heap until their time; they must not pile up."""
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(when, next(self._order), key) for key, when in self._due.items()]
            heapq.heapify(self._heap)
            self._arm()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
