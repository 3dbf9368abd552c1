"""A small world around a Reconciler: cluster, nodes, requests and Prometheus in memory, and one clock that tests move.

A whole release takes milliseconds. Requests follow the weights that stand in the route; what they come to is counted
beside the counters that are scraped, so a test can compare evidence with the truth.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import generate_latest

from modelrollout.cluster.errors import ClusterError
from modelrollout.cluster.kinds import (
    CONFIG_MAP,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    POD,
    REVISION_LABEL,
    ROLLOUT_LABEL,
    SECRET,
    SERVICE,
    SERVICE_NAME_LABEL,
    Kind,
    Object,
    kind_of,
)
from modelrollout.cluster.port import Hooks
from modelrollout.cluster.queue import LONGEST_PAUSE
from modelrollout.cluster.references import References
from modelrollout.cluster.store import Key, Store
from modelrollout.controller.acceptance import Acceptance
from modelrollout.controller.gates import GateRights, Gates
from modelrollout.controller.handlers import selector_of
from modelrollout.controller.judge import Judge, query_problem
from modelrollout.controller.metrics import Metrics
from modelrollout.controller.reconcile import Reconciler, Surroundings
from modelrollout.controller.sources import Sources
from modelrollout.decision.types import Timing
from modelrollout.telemetry.samples import UNREACHABLE, QueryError, RawSeries, parse_matrix, parse_number
from modelrollout.telemetry.servers import ServerSettings
from tests.fakes.cluster import FakeCluster
from tests.fakes.nodes import Nodes
from tests.fakes.prometheus import FakePrometheus

NAMESPACE, NAME = "ml", "fraud"
KEY = Key(NAMESPACE, NAME)
START = 1_700_000_000.0
ERRORS = {"name": "errors", "ratio": {"bad": 'requests_total{code="500"}', "total": "requests_total"}}
SCRAPE = 15.0
WARMUP = 30.0
REFERRED = (CONFIG_MAP.kind, SECRET.kind)  # no watch of the whole kind brings these


def manifest(version: str = "1", **spec: Any) -> Object:
    """A ModelRollout; `spec` replaces whole fields."""
    usual: Object = {
        "model": {"name": NAME, "version": version},
        "workload": {
            "replicas": 2,
            "template": {"spec": {"containers": [{"name": "model", "image": "m"}]}},
        },
        "service": {"ports": [{"port": 80}]},
        "traffic": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}},
        "strategy": {
            "canary": {"steps": [{"weight": 10, "duration": "2m"}, {"weight": 50, "duration": "2m"}]}
        },
        "analysis": {"metrics": [ERRORS]},
        "watch": {"duration": "10m", "holdback": 10},
    }
    metadata = {"name": NAME, "namespace": NAMESPACE}
    return {
        "apiVersion": MODEL_ROLLOUT.api_version,
        "kind": MODEL_ROLLOUT.kind,
        "metadata": metadata,
        "spec": usual | spec,
    }


@dataclass
class DirectServer:
    """Prometheus without HTTP. `away` holds the reasons for which it can't be asked now."""

    prometheus: FakePrometheus
    settings: ServerSettings = field(default_factory=lambda: ServerSettings("default", "http://prometheus"))
    away: str | None = None
    hangs: asyncio.Event | None = None  # until it is set, nothing is answered
    asked: int = 0

    async def read_series(self, selector: str, *, at: float, reach: float) -> tuple[RawSeries, ...]:
        await self._ask()
        return parse_matrix(self.prometheus.answer(f"{selector}[{max(1, round(reach * 1000))}ms]", at))

    async def read_number(self, query: str, *, at: float) -> float:
        await self._ask()
        return parse_number(self.prometheus.answer(query, at))

    async def _ask(self) -> None:
        self.asked += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.away is not None:
            raise QueryError(UNREACHABLE, self.away)


class Crash(Exception):
    """The process died here."""


@dataclass
class _Meter:
    """The counters of one pod, as scraped, and all that it ever answered."""

    revision: str
    warm: float  # its samples count from then on
    total: float = 0.0
    bad: float = 0.0
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def source(
        self, pick: Callable[[float, float], float]
    ) -> Callable[[float, float], list[tuple[float, float]]]:
        def found(after: float, until: float) -> list[tuple[float, float]]:
            return [(t, pick(n, x)) for t, n, x in self.samples if after < t <= until]

        return found


class World:
    """One rollout and all that is around it. `errors`: share of bad answers by revision; `rate`: requests per second; `drawn`:
    percent of the requests that revisions get whatever their weight, as long as they have one."""

    def __init__(
        self,
        *,
        hooks: Hooks | None = None,
        timing: Timing | None = None,
        seed: int = 1,
        track_config: bool = False,
    ) -> None:
        self.now = START
        self.behind = 0.0  # seconds that the operator's clock is behind all others
        self.cluster = FakeCluster(hooks=hooks, now=lambda: self.now)
        self.nodes = Nodes(self.cluster, lambda: self.now)
        self.prometheus = FakePrometheus()
        self.server = DirectServer(self.prometheus)
        self.servers: dict[str, DirectServer] = {"default": self.server}
        self.timing = timing or Timing()
        self.rights = GateRights()
        self.track_config = track_config
        self.errors: dict[str, float] = {}
        self.rate = 20.0
        self.drawn: dict[str, int] = {}
        self.random = random.Random(seed)
        self.meters: dict[str, _Meter] = {}
        self.rounds: list[float] = []
        self.failures: list[Exception] = []
        self.veiled: set[str] = set()  # pods of whose readiness no news has come
        self._scraped = START
        self._settled = 0
        self._pods: dict[str, list[str]] = {}
        self._weights: Mapping[str, int] = {}
        self.cluster.subscribe(self._see)
        self.start()

    def start(self) -> None:
        """A new process: nothing is remembered but what the cluster holds."""
        self.store = Store()
        self.metrics = Metrics(version="test")
        settings = {name: server.settings for name, server in self.servers.items()}
        self.acceptance = Acceptance(
            self.cluster,
            self.store,
            servers=set(self.servers),
            query_problem=lambda rollout, spec: query_problem(rollout, spec, settings),
            gates=self.rights,
            now=self.clock,
            wake=self._concern,
        )
        self.reconciler = Reconciler(
            Surroundings(
                cluster=self.cluster,
                store=self.store,
                judge=Judge(self.servers),
                acceptance=self.acceptance,
                metrics=self.metrics,
                timing=self.timing,
                sources=Sources(
                    self.store,
                    References(self.cluster, self.store, self._concern),
                    track_config=self.track_config,
                ),
                gates=Gates(self.cluster, self.rights, pods=self.store.pods_owned_by, now=self.clock),
                now=self.clock,
            )
        )
        for ref in sorted(self.cluster._objects):
            if ref.kind not in REFERRED:
                self.store.put(self.cluster._objects[ref])
        for key in self.store.rollouts():
            self.acceptance.rollout_changed(key)
        self.dirty, self.due, self.failed = True, math.inf, 0

    def clock(self) -> float:
        """The operator's."""
        return self.now - self.behind

    def _concern(self, keys: Iterable[Key]) -> None:
        self.dirty = self.dirty or KEY in keys

    def _see(self, type: str, obj: Object) -> None:
        if obj["kind"] == "Event" or obj["kind"] in REFERRED:
            return
        if obj["metadata"]["name"] in self.veiled:
            early = obj["metadata"] | {"resourceVersion": "1"}
            old = {key: value for key, value in obj["status"].items() if key != "conditions"}
            obj = obj | {"metadata": early, "status": old}
        if self._lost(obj):
            type = "DELETED"
        keys = self.store.remove(obj) if type == "DELETED" else self.store.put(obj)
        if obj["kind"] == MODEL_ROLLOUT.kind and keys:
            self.acceptance.rollout_changed(Key(obj["metadata"]["namespace"], obj["metadata"]["name"]))
        self.dirty = self.dirty or KEY in keys

    def _lost(self, obj: Object) -> bool:
        """Whether a watch by label says of a child that it is gone."""
        labels = obj["metadata"].get("labels") or {}
        if ROLLOUT_LABEL in labels or not selector_of(kind_of(obj)):
            return False
        service = self.look(SERVICE, labels[SERVICE_NAME_LABEL]) if SERVICE_NAME_LABEL in labels else None
        owners = (service or obj)["metadata"].get("ownerReferences") or ()
        return any(owner["kind"] == MODEL_ROLLOUT.kind for owner in owners)

    def unveil(self) -> None:
        """All news come."""
        names, self.veiled = self.veiled, set()
        for pod in self.cluster.look_all(POD):
            if pod["metadata"]["name"] in names:
                self._see("MODIFIED", pod)

    # What users do

    def apply(self, version: str = "1", **spec: Any) -> None:
        present = self.cluster.look(MODEL_ROLLOUT, NAMESPACE, NAME) or {}
        wanted = manifest(version, **spec)
        wanted["metadata"] |= {"annotations": present.get("metadata", {}).get("annotations") or {}}
        if "status" in present:
            wanted["status"] = present["status"]
        self.cluster.seed(wanted)

    def ask(self, verb: str, value: str) -> None:
        obj = self.rollout
        obj["metadata"].setdefault("annotations", {})[f"modelrollout.dev/{verb}"] = value
        self.cluster.seed(obj)

    # What happens

    async def round(self) -> None:
        """One round as a worker does it."""
        self.dirty = False
        self.rounds.append(self.now)
        try:
            pause = await self.reconciler.round(KEY)
        except Crash:
            self.start()
            return
        except (ClusterError, ValueError) as error:
            self.failures.append(error)
            self.failed += 1
            self.due = self.now + min(LONGEST_PAUSE, 2.0 ** (self.failed - 1))
            return
        finally:
            await self._end_look()
        self.failed, self.due = 0, math.inf if pause is None else self.now + pause

    async def _end_look(self) -> None:
        """On a slow machine a look may outlast its round; here it ends before the clock moves on."""
        memory = self.reconciler._memories._all.get(KEY)
        if memory is not None and memory.look is not None and self.server.hangs is None:
            await asyncio.wait({memory.look.task})
            self.dirty = True

    async def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, with a round whenever one is due. Fails if there is no end of them in one second."""
        end = self.now + seconds
        while self.now < end and not until():
            self._settle()
            tick = self.now + 1.0
            for _ in range(100):
                if not self.dirty and self.due > tick:
                    break
                if not self.dirty:
                    self.now = max(self.now, self.due)
                await self.round()
                self._settle()
            else:
                raise AssertionError(f"100 rounds in a second: {self.status.get('message')}")
            self._serve(tick)
            self.now = max(self.now, tick)

    def _settle(self) -> None:
        if self._settled == self.cluster._version:
            return
        self.nodes.settle()
        self._settled = self.cluster._version
        self._pods = {}
        for pod in self.cluster.look_all(POD):
            name, revision = pod["metadata"]["name"], pod["metadata"]["labels"].get(REVISION_LABEL)
            if revision is None:
                continue  # of the user's own Deployment
            self._pods.setdefault(revision, []).append(name)
            if name not in self.meters:
                self._add(name, revision)
        self._weights = self.weights

    def _serve(self, until: float) -> None:
        """Requests of one second, and scrapes that fall into it."""
        pods = self._pods
        for revision, weight in self._weights.items():
            names = pods.get(revision, [])
            for name in names:
                meter = self.meters[name]
                percent = self.drawn.get(revision, weight) if weight else 0
                count = round(self.rate * percent / 100 / len(names) + self.random.random() - 0.5)
                share = self.errors.get(revision, 0.0)
                meter.total += max(0, count)
                meter.bad += sum(self.random.random() < share for _ in range(count))
        if until >= self._scraped + SCRAPE:
            self._scraped += SCRAPE
            for names in pods.values():
                for name in names:
                    meter = self.meters[name]
                    meter.samples.append((self._scraped, meter.total, meter.bad))

    def _add(self, name: str, revision: str) -> None:
        meter = self.meters[name] = _Meter(revision, math.floor(self.now) + WARMUP)
        target = {"namespace": NAMESPACE, "pod": name, "job": "pods", "instance": name}
        add = self.prometheus.add
        add({"__name__": "up", **target}, meter.source(lambda n, x: 1.0))
        add({"__name__": "requests_total", "code": "200", **target}, meter.source(lambda n, x: n - x))
        add({"__name__": "requests_total", "code": "500", **target}, meter.source(lambda n, x: x))

    # What is seen

    def look(self, kind: Kind, name: str) -> Object | None:
        return self.cluster.look(kind, NAMESPACE, name)

    def look_service(self) -> tuple[Kind, str, str]:
        """The Service that callers inside of the cluster use."""
        return SERVICE, NAMESPACE, NAME

    @property
    def rollout(self) -> Object:
        found = self.look(MODEL_ROLLOUT, NAME)
        assert found is not None
        return found

    @property
    def status(self) -> Object:
        return self.rollout.get("status") or {}

    @property
    def phase(self) -> str:
        return str(self.status.get("phase"))

    def condition(self, type: str) -> Object:
        found = [c for c in self.status.get("conditions") or () if c["type"] == type]
        return found[0] if found else {}

    @property
    def weights(self) -> dict[str, int]:
        """By revision, in the route."""
        route = self.look(HTTP_ROUTE, NAME)
        rules = route["spec"]["rules"] if route else []
        return {
            ref["name"].removeprefix(f"{NAME}-"): ref["weight"]
            for rule in rules
            for ref in rule["backendRefs"]
        }

    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.cluster.events]

    def writes(self, kind: Kind = MODEL_ROLLOUT) -> int:
        return sum(write.kind == kind.kind for write in self.cluster.writes)

    def exposition(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def counted(self, revision: str, after: float, until: float) -> tuple[float, float]:
        """Requests and bad ones that a revision's pods answered, warm, by the samples in (after, until]."""
        total = bad = 0.0
        for meter in self.meters.values():
            warm = [sample for sample in meter.samples if sample[0] >= meter.warm and sample[0] <= until]
            if meter.revision == revision and warm:
                start = next((sample for sample in reversed(warm) if sample[0] <= after), warm[0])
                total += warm[-1][1] - start[1]
                bad += warm[-1][2] - start[2]
        return total, bad


async def deployed(**given: Any) -> World:
    """A world after the first deployment."""
    world = World(**given)
    world.apply()
    await world.run(120, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy", world.status
    await world.run(120)
    return world
