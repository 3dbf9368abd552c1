"""Leader election on a Lease, with the rules of client-go's.

Only one operator may decide. The holder renews its Lease every `retry` seconds and stops leading when it has not
managed to for `renew_deadline`, which is before anyone else may take it: others wait until they have seen it
unchanged for its whole duration *by their own clock*, so the hosts' clocks need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from modelrollout.cluster.errors import ClusterError, Conflict, NotFound
from modelrollout.cluster.kinds import LEASE, Object
from modelrollout.cluster.port import Cluster
from modelrollout.cluster.times import micro_time

_log = logging.getLogger(__name__)

JITTER_FACTOR = 1.2


class LeaderElection:
    """One candidate for a Lease. All durations are in seconds; `identity` must differ between processes.

    `jitter` gives numbers in [0, 1); `now` gives epoch seconds, written into the Lease for people to read.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not duration > renew_deadline > retry * JITTER_FACTOR > 0:
            raise ValueError(
                f"lease {name}: duration ({duration:g} s) must exceed the renew deadline ({renew_deadline:g} s), "
                f"and that must exceed {JITTER_FACTOR} × the retry period ({retry:g} s)"
            )
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._duration = duration
        self._renew_deadline = renew_deadline
        self._retry = retry
        self._jitter = jitter
        self._now = now
        self._seen: Object | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self._complaint = ""

    @property
    def leading(self) -> bool:
        """Whether we lead *now*. It is false in time even if this process was frozen and no task ran."""
        return self._renewed_at is not None and _clock() < self._renewed_at + self._renew_deadline

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen; empty if no one did."""
        return _holder(self._seen)

    async def run(
        self, *, stop: asyncio.Event, on_started: Callable[[], None], on_lost: Callable[[], None]
    ) -> None:
        """Wait for the Lease, hold it until `stop` is set, then release it.

        `on_started` is called once we lead; `on_lost` if the Lease is lost, at the latest `renew_deadline` after it
        was last renewed. Either way this returns; `on_lost` is not called on a stop.
        """
        while not await self._attempt_within(self._renew_deadline):
            if await _set_within(stop, self._retry * (1 + JITTER_FACTOR * self._jitter())):
                return
        on_started()
        while not await _set_within(stop, self._pause()):
            if not await self._renew():
                self._renewed_at = None
                _log.error("lease %s/%s lost to %r", self._namespace, self._name, self.holder)
                on_lost()
                return
        await self.release()

    async def release(self) -> None:
        """Give the Lease up, so that a successor need not wait for its end. No effect if we do not hold it."""
        if self._renewed_at is None or self._seen is None:
            return
        self._renewed_at = None
        spec = {
            "leaseDurationSeconds": 1,
            "acquireTime": micro_time(self._now()),
            "renewTime": micro_time(self._now()),
            "leaseTransitions": _transitions(self._seen),
        }
        try:
            self._seen = await self._cluster.replace(self._seen | {"spec": spec})
        except ClusterError as error:
            _log.warning("lease %s/%s was not released: %s", self._namespace, self._name, error)

    def _pause(self) -> float:
        """To the next renewal, but no longer than to the deadline."""
        assert self._renewed_at is not None
        return max(0.0, min(self._retry, self._renewed_at + self._renew_deadline - _clock()))

    async def _renew(self) -> bool:
        """Whether we still lead after one attempt: a failed one is no loss before the deadline."""
        assert self._renewed_at is not None
        left = self._renewed_at + self._renew_deadline - _clock()
        if await self._attempt_within(left):
            return True
        return self.leading and self.holder in ("", self.identity)

    async def _attempt_within(self, seconds: float) -> bool:
        if seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                got = await self._attempt()
            self._complaint = ""
            return got
        except (ClusterError, TimeoutError) as error:
            complaint = str(error) or type(error).__name__
            if complaint != self._complaint:
                _log.warning("lease %s/%s: %s", self._namespace, self._name, complaint)
            self._complaint = complaint
            return False

    async def _attempt(self) -> bool:
        """Take or renew the Lease once; False if someone else has it, or was quicker."""
        if self._renewed_at is not None and self._seen is not None:
            # While we lead no one else writes: the version that we wrote saves the GET.
            try:
                return await self._take(self._seen)
            except (Conflict, NotFound):
                _log.info("lease %s/%s was changed by someone else", self._namespace, self._name)
        lease = await self._cluster.get(LEASE, self._namespace, self._name)
        self._observe(lease)
        if lease is not None and self._held_by_another():
            return False
        try:
            return await self._take(lease)
        except (Conflict, NotFound) as error:
            if isinstance(error, NotFound) and lease is None:
                raise  # The namespace is missing: say so.
            return False

    async def _take(self, lease: Object | None) -> bool:
        began = _clock()
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            fresh = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
            taken = await self._cluster.create(fresh | {"spec": self._spec(None)})
        else:
            taken = await self._cluster.replace(lease | {"spec": self._spec(lease)})
        self._observe(taken)
        # Counted from before the request: others may have seen it from then on.
        self._renewed_at = began
        return True

    def _spec(self, before: Object | None) -> dict[str, Any]:
        now = micro_time(self._now())
        ours = before is not None and _holder(before) == self.identity
        spec = (before or {}).get("spec") or {}
        transitions = _transitions(before)
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self._duration),
            "acquireTime": spec.get("acquireTime") or now if ours else now,
            "renewTime": now,
            "leaseTransitions": transitions if ours or before is None else transitions + 1,
        }

    def _observe(self, lease: Object | None) -> None:
        if lease is None or self._seen is None or lease.get("spec") != self._seen.get("spec"):
            self._seen_at = _clock()
        self._seen = lease

    def _held_by_another(self) -> bool:
        spec: Mapping[str, Any] = (self._seen or {}).get("spec") or {}
        if self.holder in ("", self.identity):
            return False
        duration = float(spec.get("leaseDurationSeconds") or self._duration)
        return _clock() < self._seen_at + duration


def _holder(lease: Mapping[str, Any] | None) -> str:
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")


def _transitions(lease: Mapping[str, Any] | None) -> int:
    return int(((lease or {}).get("spec") or {}).get("leaseTransitions") or 0)


def _clock() -> float:
    return asyncio.get_running_loop().time()


async def _set_within(stop: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set before `seconds` had passed."""
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return stop.is_set()
