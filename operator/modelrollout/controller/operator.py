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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import kopf

from ..api.conditions import EventReason
from ..cluster.client import KubernetesCluster, load_credentials
from ..cluster.errors import ClusterError, Conflict, Forbidden, Invalid, KindNotServed, NotFound
from ..cluster.kinds import MODEL_ROLLOUT, Kind, Object
from ..cluster.lease import LeaderElection
from ..cluster.port import Hooks, Request
from ..cluster.queue import QueueShutDown, WorkQueue
from ..cluster.references import References
from ..cluster.store import Key, Store
from ..telemetry.servers import PrometheusServer, new_pool
from .acceptance import Acceptance
from .handlers import WATCHED, make_registry, make_settings, selector_of
from .health import HealthServer, check_queue, check_watch
from .judge import Judge, query_problem
from .memory import UnreadableStatus
from .metrics import Metrics
from .reconcile import Reconciler, Surroundings
from .settings import Settings
from .sources import Sources

_log = logging.getLogger(__name__)

REREAD = 60.0  # seconds after which a status that can't be read is looked at again
WATCH_SILENCE = 900.0  # bookmarks come every minute and Kopf renews a watch every ten
RELIST_DELAY = (
    2.0  # a relisted kind is read again this long after; what vanished meanwhile is not told by Kopf
)


def package_version() -> str:
    """The version of the installed package; of a checkout, a placeholder."""
    try:
        return version("modelrollout")
    except PackageNotFoundError:
        return "0.0.0+checkout"


@dataclass(slots=True)
class _Parts:
    """What a running operator consists of."""

    settings: Settings
    cluster: KubernetesCluster
    metrics: Metrics
    store: Store = field(default_factory=Store)
    queue: WorkQueue[Key] = field(default_factory=WorkQueue)
    relist: set[Kind] = field(default_factory=set)
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False  # the last request to the API server got no answer


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
    given = hooks or Hooks()

    def answered(request: Request) -> None:
        parts.silent = request.status == 0
        metrics.observe_request(request)
        given.answered(request)

    both = Hooks(answered=answered, before_write=given.before_write, after_write=given.after_write)
    async with KubernetesCluster(credentials, hooks=both) as cluster:
        parts = _Parts(settings, cluster, metrics)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, parts.stop.set)
        async with _health(parts) as health:
            if ready is not None:
                ready(health.port)
            return await _lead(parts)


@asynccontextmanager
async def _health(parts: _Parts) -> AsyncIterator[HealthServer]:
    metrics, settings = parts.metrics, parts.settings
    metrics.read_queue(lambda: float(len(parts.queue)))

    async def get() -> object:
        return await parts.cluster.list(
            MODEL_ROLLOUT, settings.namespaces[0] if settings.namespaces else None
        )

    watch = check_watch(
        "ModelRollout", lambda: metrics.watch_age(MODEL_ROLLOUT.kind), limit=WATCH_SILENCE, get=get
    )

    def synced() -> str | None:
        standby = settings.leader_elect and not parts.listed.is_set()
        return None if parts.listed.is_set() or standby else "the cluster has not been read yet"

    health = HealthServer(
        host=settings.listen_host,
        port=settings.listen_port,
        live={"queue": check_queue(parts.queue), "watch": watch},
        ready={
            "synced": synced,
            "api-server": lambda: "the API server does not answer" if parts.silent else None,
        },
        registry=metrics.registry,
    )
    await health.start()
    try:
        yield health
    finally:
        await health.stop()


async def _lead(parts: _Parts) -> int:
    """Work, or stand by until the Lease is ours. 0 after an orderly stop, 1 when the Lease was lost."""
    settings = parts.settings
    if not settings.leader_elect:
        await _work(parts)
        return 0
    started, lost = asyncio.Event(), asyncio.Event()
    election = LeaderElection(
        parts.cluster,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        identity=f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
    )

    def on_lost() -> None:
        lost.set()
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
    return 1 if lost.is_set() else 0


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _work(parts: _Parts) -> None:
    """Read the cluster, then watch it and decide, until told to stop."""
    settings = parts.settings
    async with AsyncExitStack() as stack:
        pool = new_pool()
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        servers = {
            name: PrometheusServer(server, pool=pool, observer=parts.metrics.observe_query)
            for name, server in settings.servers.items()
        }
        for server in servers.values():
            stack.callback(server.close)
        acceptance = Acceptance(
            parts.cluster,
            parts.store,
            servers=set(servers),
            query_problem=lambda rollout, spec: query_problem(rollout, spec, settings.servers),
            now=time.time,
        )
        references = References(parts.cluster, parts.store, lambda keys: _wake(parts, keys))
        stack.push_async_callback(references.close)
        around = Surroundings(
            cluster=parts.cluster,
            store=parts.store,
            judge=Judge(servers, wake=parts.queue.add),
            acceptance=acceptance,
            metrics=parts.metrics,
            timing=settings.timing,
            sources=Sources(parts.store, references, track_config=settings.track_config),
        )
        reconciler = Reconciler(around)
        # Kopf comes last: when it stops, it waits for every task that is younger than itself, and cancels it.
        workers = [
            asyncio.create_task(_worker(parts, reconciler), name=f"worker-{number}")
            for number in range(settings.workers)
        ]
        resync = asyncio.create_task(_resync(parts, acceptance))
        stopped = asyncio.create_task(parts.stop.wait())
        kopf_task = asyncio.create_task(_watch(parts, acceptance))
        ends: set[asyncio.Task[Any]] = {stopped, kopf_task, resync}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        parts.stop.set()
        parts.queue.shutdown()
        parts.listed.set()  # whoever still waits for it finds the queue shut
        await asyncio.wait({kopf_task, *workers}, timeout=20)
        for task in (resync, *workers, kopf_task):
            task.cancel()
        for task in done - {stopped}:
            task.result()  # a watch or resync that died is an error of this process, which is then restarted


def _wake(parts: _Parts, keys: Iterable[Key]) -> None:
    for key in keys:
        parts.queue.add(key)


async def _watch(parts: _Parts, acceptance: Acceptance) -> None:
    def seen(kind: Kind, obj: Object, gone: bool, listed: bool) -> None:
        parts.metrics.watch_seen(kind.kind)
        _take(parts, acceptance, kind, obj, gone=gone)
        if listed and parts.listed.is_set():
            parts.relist.add(kind)

    settings = parts.settings
    await kopf.operator(
        registry=make_registry(seen),
        settings=make_settings(settings),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=parts.stop,
    )


def _take(parts: _Parts, acceptance: Acceptance, kind: Kind, obj: Object, *, gone: bool) -> None:
    before = None
    if kind is MODEL_ROLLOUT:
        metadata = obj["metadata"]
        before = parts.store.get(kind, metadata["namespace"], metadata["name"])
    keys = parts.store.remove(obj) if gone else parts.store.put(obj)
    if kind is MODEL_ROLLOUT and (gone or before is None or _edited(before, obj)):
        keys |= acceptance.rollouts_changed()
    for key in keys:
        parts.queue.add(key)


def _edited(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    def mark(obj: Mapping[str, object]) -> tuple[object, object]:
        metadata = obj["metadata"]
        assert isinstance(metadata, Mapping)
        return metadata.get("uid"), metadata.get("generation")

    return mark(before) != mark(after)


async def _read_all(parts: _Parts, acceptance: Acceptance) -> None:
    """Fill the store; until that is done nothing is decided, or what is there would look as if it were gone."""
    pause = 0.5
    while not parts.stop.is_set():
        try:
            for kind in WATCHED:
                await _read(parts, acceptance, kind)
        except ClusterError as error:
            _log.warning("the cluster can't be read yet: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(parts.stop.wait(), pause)
            pause = min(10.0, pause * 2)
            continue
        parts.listed.set()
        for key in parts.store.rollouts():
            parts.queue.add(key)
        _log.info("watching %d ModelRollouts", len(parts.store.rollouts()))
        return


async def _read(parts: _Parts, acceptance: Acceptance, kind: Kind) -> None:
    for namespace in parts.settings.namespaces or (None,):
        try:
            items, resource_version = await parts.cluster.list(kind, namespace, selector_of(kind))
        except KindNotServed:
            if kind is MODEL_ROLLOUT:
                raise
            continue  # a router's kind that this cluster does not have
        keys = parts.store.resync(kind, items, resource_version, namespace=namespace)
        if kind is MODEL_ROLLOUT and keys:
            keys |= acceptance.rollouts_changed()
        for key in keys:
            parts.queue.add(key)


async def _resync(parts: _Parts, acceptance: Acceptance) -> None:
    """Read the cluster, then evict what vanished while a watch was down: soon after Kopf listed a kind anew, and now and
    then for all."""
    await _read_all(parts, acceptance)
    due = _jittered(parts.settings.resync)
    while not parts.stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(parts.stop.wait(), RELIST_DELAY)
        now = time.monotonic()
        everything = now >= due
        kinds = WATCHED if everything else tuple(parts.relist)
        parts.relist.clear()
        try:
            for kind in kinds:
                await _read(parts, acceptance, kind)
        except ClusterError as error:
            _log.warning("resync failed, it is tried again: %s", error)
            parts.relist.update(kinds)
            continue
        if everything:
            due = _jittered(parts.settings.resync)
            for key in parts.store.rollouts():
                parts.queue.add(key)


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
