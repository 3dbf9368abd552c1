"""The operator as a process: connections, the watches, the workers, leader election, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import kopf

from modelrollout.api.conditions import EventReason
from modelrollout.cluster.client import KubernetesCluster, load_credentials
from modelrollout.cluster.errors import (
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    KindNotServed,
    NotFound,
    Unavailable,
)
from modelrollout.cluster.kinds import LEASE, MODEL_ROLLOUT, Kind, Object
from modelrollout.cluster.lease import LeaderElection
from modelrollout.cluster.port import Cluster, Hooks, Request, Write
from modelrollout.cluster.queue import QueueShutDown, WorkQueue
from modelrollout.cluster.references import References
from modelrollout.cluster.store import Key, Store
from modelrollout.controller.acceptance import Acceptance
from modelrollout.controller.gates import GateRights, Gates
from modelrollout.controller.handlers import make_registry, make_settings, selector_of, watched
from modelrollout.controller.health import CHECK_SECONDS, HealthServer, check_queue, check_watch
from modelrollout.controller.judge import Judge, query_problem
from modelrollout.controller.memory import UnreadableStatus
from modelrollout.controller.metrics import Metrics
from modelrollout.controller.reconcile import Reconciler, Surroundings
from modelrollout.controller.settings import Settings
from modelrollout.controller.sources import Sources
from modelrollout.telemetry.servers import PrometheusServer, new_pool
from modelrollout.version import package_version

_log = logging.getLogger(__name__)

REREAD = 60.0  # seconds after which a status that can't be read is looked at again
WATCH_LAG = 120.0  # a watch that has not told by then what a listing showed is dead
LONG_SILENCE = (
    10.0  # seconds without an answer of the API server: what is known of the cluster is too old then
)
SILENCE_CHECK = 10.0  # at most as many seconds after its return it is noticed
LEASE_WAIT = 30.0  # a Lease that nobody holds is taken well within these seconds
STOP_WAIT = 20.0  # seconds for rounds under way to end, when told to stop
RELIST_DELAY = (
    2.0  # a relisted kind is read again this long after; what vanished meanwhile is not told by Kopf
)


@dataclass(slots=True)
class _Parts:
    """What a running operator consists of."""

    settings: Settings
    cluster: Cluster
    metrics: Metrics
    store: Store = field(default_factory=Store)
    queue: WorkQueue[Key] = field(default_factory=WorkQueue)
    relist: set[Kind] = field(default_factory=set)
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    silent: float | None = None  # since when no request to the API server was answered; monotonic
    outdated: bool = False  # nothing is written before the cluster has been read anew
    references: References | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)  # somebody else may lead now
    election: LeaderElection | None = None
    unread: str = ""  # why the cluster could not be read yet
    unserved: set[str] = field(
        default_factory=set
    )  # kinds that the cluster did not have when the watches began
    unseen: float | None = None  # since when the watch owes a change that a listing showed; monotonic

    def may_write(self) -> bool:
        """Whether this process leads, by its own clock: a round that outlives the Lease must not write any more."""
        return self.election is None or self.election.leading


async def run(
    settings: Settings, *, hooks: Hooks | None = None, ready: Callable[[int], None] | None = None
) -> int:
    """Run until SIGTERM or SIGINT; the exit code. `ready` is told the port of health and metrics once it is open.

    `hooks` is for tests: it counts requests and injects faults. Raises ValueError with a sentence for the user.
    """
    if settings.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(settings.kubeconfig)  # where Kopf looks
    metrics = Metrics(version=package_version())
    credentials = await load_credentials(settings.kubeconfig)
    async with KubernetesCluster(credentials, hooks=_guarded(hooks or Hooks(), lambda: parts)) as cluster:
        parts = _Parts(settings, cluster, metrics)
        _heed_signals(parts)
        async with _health(parts) as health:
            if ready is not None:
                ready(health.port)
            return await _lead(parts)


def _guarded(given: Hooks, parts: Callable[[], _Parts]) -> Hooks:
    """Hooks that count requests, and let nothing be written by a process that does not lead."""

    def answered(request: Request) -> None:
        _note_silence(parts(), request)
        parts().metrics.observe_request(request)
        _note_served(parts(), request)
        given.answered(request)

    async def before_write(write: Write) -> None:
        await given.before_write(write)
        if write.kind != LEASE.kind and not parts().may_write():
            raise Unavailable(
                f"{write.verb} {write.kind} {write.name}: not sent, this process does not lead any more"
            )
        if write.kind != LEASE.kind and _out_of_sight(parts()):
            raise Unavailable(
                f"{write.verb} {write.kind} {write.name}: not sent, the API server was silent for long, so the cluster "
                "is read anew first"
            )

    return Hooks(answered=answered, before_write=before_write, after_write=given.after_write)


@asynccontextmanager
async def _health(parts: _Parts) -> AsyncIterator[HealthServer]:
    metrics, settings = parts.metrics, parts.settings
    metrics.read_queue(lambda: float(len(parts.queue)))

    async def get() -> object:
        return await parts.cluster.list(
            MODEL_ROLLOUT, settings.namespaces[0] if settings.namespaces else None
        )

    def owed() -> float | None:
        return None if parts.unseen is None else time.monotonic() - parts.unseen

    async def api_server() -> str | None:
        if parts.silent is not None:  # the last request may be long ago
            with suppress(ClusterError, TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS / 2):
                    await get()
        return "the API server does not answer" if parts.silent is not None else None

    started = time.monotonic()

    health = HealthServer(
        host=settings.listen_host,
        port=settings.listen_port,
        live={
            "queue": check_queue(parts.queue),
            "watch": check_watch("ModelRollout", owed, limit=WATCH_LAG, get=get),
        },
        ready={"synced": lambda: _unready(parts, time.monotonic() - started), "api-server": api_server},
        registry=metrics.registry,
    )
    await health.start()
    try:
        yield health
    finally:
        await health.stop()


def _unready(parts: _Parts, age: float) -> str | None:
    """Why the process can't work yet; a standby is ready to take over. `age` of the process in seconds."""
    if parts.listed.is_set():
        return None
    election = parts.election
    if election is not None and not election.leading:
        if age < LEASE_WAIT or election.holder:
            return None
        settings = parts.settings
        return f"nobody holds Lease {settings.lease_namespace}/{settings.lease_name}, and it can't be taken: see the log"
    return parts.unread or "the cluster has not been read yet"


def _note_silence(parts: _Parts, request: Request) -> None:
    """After a long silence what the store has is old: pods may be gone, and their watches tell of it after they are back."""
    if request.status == 0:
        parts.silent = time.monotonic() if parts.silent is None else parts.silent
    else:
        parts.outdated, parts.silent = _out_of_sight(parts), None


def _out_of_sight(parts: _Parts) -> bool:
    long = parts.silent is not None and time.monotonic() - parts.silent >= LONG_SILENCE
    return long or parts.outdated


def _note_served(parts: _Parts, request: Request) -> None:
    """Kopf looks for kinds once, at its start: end, to be started anew with a watch of what has been installed since."""
    if request.kind in parts.unserved and 200 <= request.status < 300:
        parts.unserved.clear()
        _log.warning("the cluster has %s now: ending, to be started anew with a watch of it", request.kind)
        parts.stop.set()


async def _lead(parts: _Parts) -> int:
    """Work, or stand by until the Lease is ours. 0 after an orderly stop, 1 when the Lease was lost."""
    settings = parts.settings
    if not settings.leader_elect:
        await _work(parts)
        return 0
    started = asyncio.Event()
    election = parts.election = LeaderElection(
        parts.cluster,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
    )

    def on_lost() -> None:
        parts.lost.set()
        parts.stop.set()

    ended = asyncio.Event()
    task = asyncio.create_task(election.run(stop=ended, on_started=started.set, on_lost=on_lost))
    try:
        await _first(started.wait(), parts.stop.wait())
        if started.is_set():
            parts.metrics.show_leader(True)
            await _work(parts)
    finally:
        parts.metrics.show_leader(False)
        ended.set()
        await task
    return 1 if parts.lost.is_set() else 0


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _work(parts: _Parts) -> None:
    """Read the cluster, then watch it and decide, until told to stop."""
    async with AsyncExitStack() as stack:
        around = _surroundings(parts, stack)
        reconciler = Reconciler(around)
        stack.callback(reconciler.close)
        # Kopf comes last: when it stops, it waits for every task that is younger than itself, and cancels it.
        workers = [
            asyncio.create_task(_worker(parts, reconciler), name=f"worker-{number}")
            for number in range(parts.settings.workers)
        ]
        resync = asyncio.create_task(_resync(parts, around.acceptance))
        stopped = asyncio.create_task(parts.stop.wait())
        kopf_task = asyncio.create_task(_watch(parts, around.acceptance))
        ends: set[asyncio.Task[Any]] = {stopped, kopf_task, resync}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        parts.stop.set()
        parts.queue.shutdown()
        parts.listed.set()  # whoever still waits for it finds the queue shut
        # Without the Lease nothing that is under way can be written any more.
        await asyncio.wait({kopf_task, *workers}, timeout=0.5 if parts.lost.is_set() else STOP_WAIT)
        for task in (resync, *workers, kopf_task):
            task.cancel()
        await asyncio.wait({resync, *workers}, timeout=1.0)
        for task in done - {stopped}:
            task.result()  # a watch or resync that died is an error of this process, which is then restarted


def _surroundings(parts: _Parts, stack: AsyncExitStack) -> Surroundings:
    """What rounds work with; `stack` closes it."""
    settings = parts.settings
    servers = _servers(parts, stack)
    references = parts.references = References(parts.cluster, parts.store, lambda keys: _wake(parts, keys))
    stack.push_async_callback(references.close)
    rights = GateRights(settings.gate_webhooks, settings.gate_secrets, settings.gate_jobs)
    gates = Gates(
        parts.cluster,
        rights,
        pods=parts.store.pods_owned_by,
        now=time.time,
        wake=parts.queue.add,
        may_ask=parts.may_write,
    )
    stack.push_async_callback(gates.close)
    acceptance = Acceptance(
        parts.cluster,
        parts.store,
        servers=set(servers),
        query_problem=lambda rollout, spec: query_problem(rollout, spec, settings.servers),
        gates=rights,
        now=time.time,
        wake=lambda keys: _wake(parts, keys),
    )
    return Surroundings(
        cluster=parts.cluster,
        store=parts.store,
        judge=Judge(servers, wake=parts.queue.add),
        acceptance=acceptance,
        metrics=parts.metrics,
        timing=settings.timing,
        sources=Sources(parts.store, references, track_config=settings.track_config),
        gates=gates,
    )


def _servers(parts: _Parts, stack: AsyncExitStack) -> dict[str, PrometheusServer]:
    servers = {}
    for name, settings in parts.settings.servers.items():
        pool = new_pool()
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        servers[name] = PrometheusServer(settings, pool=pool, observer=parts.metrics.observe_query)
        stack.callback(servers[name].close)
    return servers


def _wake(parts: _Parts, keys: Iterable[Key]) -> None:
    for key in keys:
        parts.queue.add(key)


def _heed_signals(parts: _Parts) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, parts.stop.set)


async def _watch(parts: _Parts, acceptance: Acceptance) -> None:
    await parts.listed.wait()  # a kind that is not there yet when Kopf starts would never be watched
    if parts.stop.is_set():
        return

    def seen(kind: Kind, obj: Object, gone: bool, listed: bool) -> None:
        parts.metrics.watch_seen(kind.kind)
        if kind is MODEL_ROLLOUT:
            parts.unseen = None
        _take(parts, acceptance, kind, obj, gone=gone)
        if listed and parts.listed.is_set():
            parts.relist.add(kind)

    if parts.unserved:
        kinds = ", ".join(sorted(parts.unserved))
        _log.info("the cluster has no %s; they are looked for every %.0f s", kinds, parts.settings.resync)
    settings, before = parts.settings, asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=make_registry(seen, watched(settings), without=parts.unserved),
        settings=make_settings(settings),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=parts.stop,
    )
    # Kopf has just taken the signals for itself: it would leave the workers at work, and end them by force later.
    _heed_signals(parts)
    await kopf.run_tasks(tasks, ignored=before)


def _take(parts: _Parts, acceptance: Acceptance, kind: Kind, obj: Object, *, gone: bool) -> None:
    keys = parts.store.remove(obj) if gone else parts.store.put(obj)
    if kind is MODEL_ROLLOUT and keys:
        acceptance.rollout_changed(Key(obj["metadata"]["namespace"], obj["metadata"]["name"]))
    _wake(parts, keys)


async def _read_all(parts: _Parts, acceptance: Acceptance) -> None:
    """Fill the store; until that is done nothing is decided, or what is there would look as if it were gone."""
    pause = 0.5
    while not parts.stop.is_set():
        try:
            for kind in watched(parts.settings):
                await _read(parts, acceptance, kind)
        except ClusterError as error:
            why = _hint(error)
            if why != parts.unread:
                _log.warning("the cluster can't be read yet, it is tried again: %s", why)
            parts.unread = why
            with suppress(TimeoutError):
                await asyncio.wait_for(parts.stop.wait(), pause)
            pause = min(10.0, pause * 2)
            continue
        parts.outdated = False
        parts.listed.set()
        for key in parts.store.rollouts():
            parts.queue.add(key)
        _log.info("watching %d ModelRollouts", len(parts.store.rollouts()))
        return


def _hint(error: ClusterError) -> str:
    """What is wrong at the start, and what to do."""
    if isinstance(error, KindNotServed):
        return f"{error}: install the CustomResourceDefinition of ModelRollout (the chart's, or crds/)"
    if isinstance(error, Forbidden):
        return f"{error}: give the operator's account the rights of the chart's role"
    return f"{error}: is the address right, and does the API server run?"


async def _read(parts: _Parts, acceptance: Acceptance, kind: Kind) -> None:
    for namespace in parts.settings.namespaces or (None,):
        try:
            items, resource_version = await parts.cluster.list(kind, namespace, selector_of(kind))
        except KindNotServed:
            if kind is MODEL_ROLLOUT:
                raise
            if not parts.listed.is_set():
                parts.unserved.add(kind.kind)  # a router's kind that this cluster does not have
            continue
        if kind is MODEL_ROLLOUT and parts.unseen is None and parts.listed.is_set():
            parts.unseen = time.monotonic() if _owes(parts.store, items) else None
        keys = parts.store.resync(kind, items, resource_version, namespace=namespace)
        if kind is MODEL_ROLLOUT:
            for key in keys:
                acceptance.rollout_changed(key)
        _wake(parts, keys)


async def _resync(parts: _Parts, acceptance: Acceptance) -> None:
    """Read the cluster, then evict what vanished while a watch was down: soon after Kopf listed a kind anew, and now and
    then for all."""
    await _read_all(parts, acceptance)
    due, pause = _jittered(parts.settings.resync), RELIST_DELAY
    while not parts.stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(parts.stop.wait(), pause)
        now = time.monotonic()
        everything = now >= due
        silent, outdated = parts.silent is not None, _out_of_sight(parts)
        if silent:
            parts.relist.add(MODEL_ROLLOUT)  # or nobody would notice before the first back-off is over
        kinds = watched(parts.settings) if everything or outdated else tuple(parts.relist)
        parts.relist.clear()
        failed = await _read_again(parts, acceptance, kinds)
        parts.relist |= failed
        if outdated and not failed:
            _go_on(parts)
        pause = min(SILENCE_CHECK if silent or outdated else 60.0, pause * 2) if failed else RELIST_DELAY
        if everything:
            due = _jittered(parts.settings.resync)
            for key in parts.store.rollouts():
                parts.queue.add(key)


async def _read_again(parts: _Parts, acceptance: Acceptance, kinds: Collection[Kind]) -> set[Kind]:
    """The kinds that could not be read."""
    failed: set[Kind] = set()
    for kind in kinds:
        try:
            await _read(parts, acceptance, kind)
        except ClusterError as error:
            _log.warning("resync failed, it is tried again: %s", error)
            failed.add(kind)
            if parts.silent is not None:
                return set(kinds)  # the others would get no answer either, each after its own time limit
    return failed


def _go_on(parts: _Parts) -> None:
    """After a long silence, when all has been read: nobody waits out his back-off, a candidate may be harmful by now."""
    if parts.references is not None:
        parts.references.refresh()
    parts.outdated = False
    parts.queue.retry_failed()


def _owes(store: Store, items: Sequence[Object]) -> bool:
    """Whether a listing shows a version of a ModelRollout that no watch has told of."""

    def version(obj: Object | None) -> str:
        return str(obj["metadata"].get("resourceVersion")) if obj else ""

    known = (
        (obj, store.get(MODEL_ROLLOUT, obj["metadata"]["namespace"], obj["metadata"]["name"]))
        for obj in items
    )
    return any(_ahead(version(obj), version(present)) for obj, present in known)


def _ahead(version: str, known: str) -> bool:
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known


def _jittered(seconds: float) -> float:
    return time.monotonic() + seconds * (0.9 + 0.2 * random.random())


async def _worker(parts: _Parts, reconciler: Reconciler) -> None:
    await parts.listed.wait()
    while True:
        try:
            key = await parts.queue.get()
        except QueueShutDown:
            return
        began, failure = time.perf_counter(), None
        try:
            pause = await reconciler.round(key)
            parts.queue.forget(key)
            if pause is not None:
                parts.queue.add_after(key, pause)
        except Exception as error:  # noqa: BLE001 - one rollout's failure must not end the work on the others
            failure = error
            await _failed(parts, key, error)
        finally:
            parts.metrics.observe_reconcile(time.perf_counter() - began, failure)
            parts.queue.done(key)


async def _failed(parts: _Parts, key: Key, error: Exception) -> None:
    """Back off; tell whoever has to do something about it."""
    if isinstance(error, Conflict | NotFound) and not isinstance(error, KindNotServed):
        _log.info("%s/%s: the world has moved on, deciding anew: %s", *key, error)
        parts.queue.add_failed(key)
        return
    if isinstance(error, ClusterError):
        _log.warning("%s/%s: %s", *key, error)
        parts.queue.add_failed(key, at_least=error.retry_after or 0.0)
        rollout = parts.store.get(MODEL_ROLLOUT, *key)
        if rollout is not None and isinstance(error, Invalid | Forbidden):
            reason = EventReason.INVALID
            await parts.cluster.event(rollout, type=reason.type, reason=reason.value, note=error.message)
        return
    known = isinstance(error, UnreadableStatus)
    _log.error("%s/%s: %s", *key, error, exc_info=not known)
    parts.queue.add_failed(key, at_least=REREAD if known else 5.0)
    rollout = parts.store.get(MODEL_ROLLOUT, *key)
    if rollout is not None and known:
        reason = EventReason.INVALID
        await parts.cluster.event(rollout, type=reason.type, reason=reason.value, note=str(error))
