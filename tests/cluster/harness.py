"""What stands around the operator in these tests: everything real but traffic, metrics and the gateway's word.

The API server, its controllers and the node are the lab's. Requests are numbers here: `Traffic` splits a fixed rate as
the routes say and keeps exact counters for every pod, which a fake Prometheus serves. So a test knows each sample that
the operator could have read. A gateway is a thread that accepts every route unless told otherwise.

How a model behaves is said in `spec.model.uri`, as in "errors=0.1": the pods have it in their environment.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.kube import EventType, Informer, KubeClient, KubeError, Object, path_of
from lab.lab import Lab
from lab.node import READY_ANNOTATION
from lab.process import wait_until
from tests.fakes.prometheus import FakePrometheus, Sample

VERSION, PLURAL = "modelrollout.dev/v1alpha1", "modelrollouts"
ROLLOUT_LABEL, REVISION_LABEL = "modelrollout.dev/rollout", "modelrollout.dev/revision"
ROUTES = ("gateway.networking.k8s.io/v1", "httproutes")
# Short, but none is zero: each of these waits is part of what is tested.
TIMING = {"raiseAfter": "1s", "dataPlane": "200ms", "evidenceCommit": "1s"}
RATE = 20_000.0  # requests per second to each rollout: enough to prove anything within a few polls
PER_CORE = 100_000.0  # requests per second that keep a core busy
EVERY = 1.0  # seconds between scrapes
PATIENCE = 180.0  # seconds until a wait is given up; a rollout takes about 15 where nothing else is at work
GATEWAY = {"gatewayAPI": {"parentRefs": [{"name": "public", "namespace": "gateways"}]}}
OURS = "e2e-"  # namespaces begin with it; elsewhere in the lab other tests play the gateway
GOOD, BAD = "errors=0.01", "errors=0.1"


# Traffic


@dataclass(frozen=True)
class _Stretch:
    """Counters from a moment on: their values then, and how they grow."""

    since: float
    requests: float
    bad: float
    rate: float
    errors: float

    def at(self, t: float) -> tuple[float, float]:
        grown = self.rate * (t - self.since)
        return self.requests + grown, self.bad + grown * self.errors


class Meter:
    """Counters that grow at rates which change now and then; their values at any past time are fixed for ever.

    Requests come after the first scrape. Of earlier ones it depends on the container's start whether they count, and a slow
    machine tells of that when it pleases.
    """

    def __init__(self, start: float, errors: float) -> None:
        self.start = start
        self._first = (math.floor(start / EVERY) + 1) * EVERY
        self.end = math.inf
        self._stretches = [_Stretch(start, 0.0, 0.0, 0.0, errors)]

    def change(self, at: float, *, rate: float | None = None, errors: float | None = None) -> None:
        """From now on, another rate of requests or another share of errors."""
        last, at = self._stretches[-1], max(at, self._first)
        rate, errors = last.rate if rate is None else rate, last.errors if errors is None else errors
        if (rate, errors) != (last.rate, last.errors):
            self._stretches.append(_Stretch(at, *last.at(at), rate, errors))

    @property
    def rate(self) -> float:
        """Requests per second at present."""
        return self._stretches[-1].rate

    def _values(self, at: float) -> tuple[float, float]:
        found = next((s for s in reversed(self._stretches) if at >= s.since), None)
        return found.at(at) if found else (0.0, 0.0)

    def requests(self, at: float) -> float:
        """Requests until `at`, a whole number."""
        return float(math.floor(self._values(at)[0]))

    def bad(self, at: float) -> float:
        return float(math.floor(self._values(at)[1]))

    def scrapes(self, after: float, until: float) -> Iterator[float]:
        """Times of samples in (after, until]."""
        first = math.floor(max(after, self.start) / EVERY)
        last = math.floor(min(until, self.end) / EVERY)
        return (t for k in range(first, last + 1) if max(after, self.start) < (t := k * EVERY) <= until)

    def at_cut(self, cut: float) -> float:
        """Requests as the last sample up to `cut` says."""
        newest = min(cut, self.end)
        times = list(self.scrapes(newest - 2 * EVERY, newest))
        return self.requests(times[-1]) if times else 0.0


@dataclass
class _Pod:
    namespace: str
    name: str
    rollout: str
    revision: str
    ready: bool = False
    meter: Meter | None = None


class Traffic:
    """Sends requests to ready pods as the routes say; without a route all pods of a rollout get the same."""

    def __init__(self, client: KubeClient, prometheus: FakePrometheus) -> None:
        self._prometheus = prometheus
        self._lock = threading.RLock()
        self._pods: dict[str, _Pod] = {}
        self._routes: dict[tuple[str, str], dict[str, int]] = {}
        self._rates: defaultdict[str, float] = defaultdict(lambda: RATE)
        self._informers = [
            Informer(client, path_of("v1", "pods"), self._on_pod, labelSelector=ROLLOUT_LABEL),
            Informer(client, path_of(*ROUTES), self._on_route),
        ]

    def start(self) -> Traffic:
        for informer in self._informers:
            informer.start()
        return self

    def stop(self) -> None:
        for informer in self._informers:
            informer.stop()

    def meters(self, namespace: str, revision: str) -> list[Meter]:
        """Counters of a revision's pods, gone ones included."""
        with self._lock:
            pods = [p for p in self._pods.values() if (p.namespace, p.revision) == (namespace, revision)]
            return [pod.meter for pod in pods if pod.meter is not None]

    def spoil(self, namespace: str, revision: str, errors: float) -> None:
        """From now on a revision has this share of errors."""
        with self._lock:
            for meter in self.meters(namespace, revision):
                meter.change(time.time(), errors=errors)

    def demand(self, namespace: str, rate: float) -> None:
        """From now on as many requests per second go to each rollout of a namespace."""
        with self._lock:
            self._rates[namespace] = rate
            for rollout in {pod.rollout for pod in self._pods.values() if pod.namespace == namespace}:
                self._share_out(namespace, rollout, time.time())

    def rate(self, namespace: str) -> float:
        """Requests per second to each rollout of a namespace."""
        with self._lock:
            return self._rates[namespace]

    def cores(self, pod: Object) -> float | None:
        """What a pod's requests cost at present; unknown of one that was never ready."""
        with self._lock:
            found = self._pods.get(pod["metadata"]["uid"])
            return None if found is None or found.meter is None else found.meter.rate / PER_CORE

    def forget(self, namespace: str) -> None:
        """Drop all series of a namespace."""
        with self._lock:
            self._pods = {uid: pod for uid, pod in self._pods.items() if pod.namespace != namespace}
            self._prometheus.remove({"namespace": namespace})

    def _on_pod(self, kind: EventType, body: Object) -> None:
        metadata, now = body["metadata"], time.time()
        if not metadata["namespace"].startswith(OURS):
            return
        labels = metadata["labels"]
        with self._lock:
            pod = self._pods.setdefault(
                metadata["uid"],
                _Pod(metadata["namespace"], metadata["name"], labels[ROLLOUT_LABEL], labels[REVISION_LABEL]),
            )
            gone = kind == "DELETED"
            pod.ready = not gone and "deletionTimestamp" not in metadata and is_ready(body)
            if pod.ready and pod.meter is None:
                pod.meter = Meter(now, behaviour(body).get("errors", 0.0))
                self._serve(pod, pod.meter)
            self._share_out(pod.namespace, pod.rollout, now)
            if gone and pod.meter is not None:
                pod.meter.end = min(pod.meter.end, now)

    def _on_route(self, kind: EventType, body: Object) -> None:
        metadata, now = body["metadata"], time.time()
        key = metadata["namespace"], metadata["name"]
        with self._lock:
            self._routes[key] = {} if kind == "DELETED" else weights_of(body)
            if kind == "DELETED":
                del self._routes[key]
            self._share_out(*key, now)

    def _share_out(self, namespace: str, rollout: str, now: float) -> None:
        pods = [p for p in self._pods.values() if (p.namespace, p.rollout) == (namespace, rollout)]
        ready: defaultdict[str, int] = defaultdict(int)
        for pod in pods:
            ready[pod.revision] += pod.ready
        weights = self._routes.get((namespace, rollout))
        for pod in pods:
            if pod.meter is None:
                continue
            if weights is None:
                share = 1 / sum(ready.values()) if pod.ready else 0.0
            else:
                whole, own = sum(weights.values()), weights.get(f"{rollout}-{pod.revision}", 0)
                share = own / whole / ready[pod.revision] if pod.ready and whole else 0.0
            pod.meter.change(now, rate=self._rates[namespace] * share)

    def _serve(self, pod: _Pod, meter: Meter) -> None:
        target = {"namespace": pod.namespace, "pod": pod.name, "job": "pods", "instance": f"{pod.name}:8080"}

        def series(name: str, value: Callable[[float], float], **labels: str) -> None:
            def samples(after: float, until: float) -> list[Sample]:
                return [(t, value(t)) for t in meter.scrapes(after, until)]

            self._prometheus.add({"__name__": name, **target, **labels}, samples)

        series("up", lambda _: 1.0)
        series("http_requests_total", lambda t: meter.requests(t) - meter.bad(t), code="200")
        series("http_requests_total", meter.bad, code="500")


def behaviour(pod: Object) -> dict[str, float]:
    """What the model that a pod runs is like."""
    env = {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0].get("env") or []}
    return {name: float(value) for name, value in re.findall(r"(\w+)=([0-9.]+)", env.get("MODEL_URI", ""))}


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_accepted(route: Object) -> bool:
    """Whether every parent of a route has accepted it as it stands."""
    said = [c for parent in route.get("status", {}).get("parents") or [] for c in parent["conditions"]]
    now = {("True", route["metadata"]["generation"])}
    return {(c["status"], c.get("observedGeneration")) for c in said} == now


def weights_of(route: Object) -> dict[str, int]:
    """Weights by Service, of a route of the Gateway API or of a VirtualService."""
    refs = [ref for rule in route["spec"].get("rules") or [] for ref in rule.get("backendRefs") or []]
    hosts = [one for rule in route["spec"].get("http") or [] for one in rule.get("route") or []]
    found = {ref["name"]: ref.get("weight", 1) for ref in refs}
    return found | {one["destination"]["host"]: one.get("weight", 100) for one in hosts}


class Gateway:
    """Accepts every route of a kind, but in namespaces that it was told to refuse."""

    def __init__(self, client: KubeClient, kind: tuple[str, str] = ROUTES) -> None:
        self._client, self._kind = client, kind
        self.refused: set[str] = set()
        self._informer = Informer(client, path_of(*kind), self._on_route)

    def start(self) -> Gateway:
        self._informer.start()
        return self

    def stop(self) -> None:
        self._informer.stop()

    def accept(self, namespace: str) -> None:
        """Refuse no longer."""
        self.refused.discard(namespace)
        for route in self._client.list(path_of(*self._kind, namespace)):
            self._on_route("MODIFIED", route)

    def _on_route(self, kind: EventType, route: Object) -> None:
        metadata = route["metadata"]
        if kind == "DELETED" or not metadata["namespace"].startswith(OURS):
            return
        said = "False" if metadata["namespace"] in self.refused else "True"
        wanted = (said, metadata["generation"])
        present = [
            (c["status"], c["observedGeneration"])
            for parent in (route.get("status") or {}).get("parents") or []
            for c in parent["conditions"]
        ]
        if not route["spec"].get("parentRefs") or (present and set(present) == {wanted}):
            return
        parents = [self._answer(route, parent, *wanted) for parent in route["spec"].get("parentRefs") or ()]
        path = path_of(*self._kind, metadata["namespace"], metadata["name"], "status")
        try:
            self._client.patch(path, {"status": {"parents": parents}})
        except KubeError as error:
            if error.status != 404:
                raise  # the informer comes with it again

    def _answer(self, route: Object, parent: Object, said: str, generation: int) -> Object:
        conditions = [
            {
                "type": kind,
                "status": said,
                "reason": "Accepted" if said == "True" else "NotAllowedByListeners",
                "message": "",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        return {
            "parentRef": parent,
            "controllerName": "lab.modelrollout.dev/tests",
            "conditions": conditions,
        }


# What was seen


class Chronicle:
    """Every version of every object of a kind that a watch delivered, in order; waiting for one to come."""

    def __init__(self, client: KubeClient, path: str, **query: Any) -> None:
        self._versions: defaultdict[tuple[str, str], list[Object]] = defaultdict(list)
        self._seen: dict[int, float] = {}  # resourceVersion → when it was seen, epoch seconds
        self._gone: set[tuple[str, str]] = set()
        self._changed = threading.Condition()
        self._informer = Informer(client, path, self._see, **query)

    def start(self) -> Chronicle:
        self._informer.start()
        return self

    def stop(self) -> None:
        self._informer.stop()

    def _see(self, kind: EventType, obj: Object) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        with self._changed:
            self._versions[key].append(obj)
            self._seen.setdefault(version_of(obj), time.time())
            if kind == "DELETED":
                self._gone.add(key)
            else:
                self._gone.discard(key)
            self._changed.notify_all()

    def versions(self, namespace: str, name: str) -> list[Object]:
        with self._changed:
            return list(self._versions[namespace, name])

    def seen(self, version: int) -> float:
        """When a version was seen, in epoch seconds: a moment after it was written."""
        return self._seen[version]

    def every(self, namespace: str) -> list[str]:
        """Objects of a namespace that are or were there."""
        with self._changed:
            return sorted(name for (of, name) in self._versions if of == namespace)

    def names(self, namespace: str) -> list[str]:
        """Objects of a namespace that are there now."""
        with self._changed:
            return sorted(
                name for (of, name) in self._versions if of == namespace and (of, name) not in self._gone
            )

    def wait(
        self,
        namespace: str,
        name: str,
        check: Callable[[Object], bool],
        what: str,
        *,
        after: int = 0,
        timeout: float = PATIENCE,
    ) -> Object:
        """The first version of which `check` holds, from resourceVersion `after` on."""
        deadline, seen = time.monotonic() + timeout, 0
        with self._changed:
            while True:
                known = self._versions[namespace, name]
                for obj in known[seen:]:
                    if version_of(obj) >= after and check(obj):
                        return obj
                seen = len(known)
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    last = known[-1].get("status", known[-1]) if known else None
                    raise AssertionError(
                        f"{namespace}/{name}: {what} did not come within {timeout:.0f} s; "
                        f"last seen: {json.dumps(brief(last))}"
                    )

    def wait_gone(self, namespace: str, name: str, *, timeout: float = PATIENCE) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: (namespace, name) in self._gone, timeout)
        assert came, f"{namespace}/{name} is still there after {timeout:.0f} s"


def version_of(obj: Object) -> int:
    """The resourceVersion: of one etcd, so it orders the writes of all kinds."""
    return int(obj["metadata"]["resourceVersion"])


def brief(status: Any) -> Any:
    """A status without what nobody reads in a failure."""
    if not isinstance(status, dict):
        return status
    return {key: value for key, value in status.items() if key not in ("evidence", "accepted", "plan")}


class Audit:
    """What the API server received from now on, by its audit log. What it received before may be logged later."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._from, self._since = log.stat().st_size, time.time()

    def requests(self, user: str = "") -> list[Object]:
        """Finished requests, in order; of one user, or of all."""
        with self._log.open("rb") as log:
            log.seek(self._from)
            events = [json.loads(line) for line in log if line.endswith(b"\n")]
        return [
            event
            for event in events
            if user in event["user"]["username"] and seconds(event, "requestReceivedTimestamp") >= self._since
        ]


# One rollout


def manifest(namespace: str, name: str = "fraud", version: str = "1", uri: str = GOOD, **spec: Any) -> Object:
    """A ModelRollout whose release takes about a quarter of a minute; `spec` replaces whole fields."""
    container = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}
    usual: Object = {
        "model": {"name": name, "version": version, "uri": uri},
        "workload": {"replicas": 2, "template": {"spec": {"containers": [container]}}},
        "service": {"ports": [{"port": 80, "targetPort": 8080}]},
        # Two that take the same requests from one Gateway can't both be had.
        "traffic": {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": [f"{name}.{namespace}.example.com"]}},
        "strategy": {
            "canary": {"steps": [{"weight": 20, "duration": "2s"}, {"weight": 50, "duration": "3s"}]}
        },
        "analysis": analysis(),
        "watch": {"duration": "3s", "holdback": 10},
        "drainDelay": "1s",
        "progressDeadline": "60s",
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": VERSION, "kind": "ModelRollout", "metadata": metadata, "spec": usual | spec}


def analysis(**more: Any) -> Object:
    """Errors, compared every second."""
    errors = {
        "name": "errors",
        "ratio": {"bad": 'http_requests_total{code=~"5.."}', "total": "http_requests_total"},
    }
    quick = {"interval": "1s", "scrapeInterval": "1s", "settle": "1s", "warmup": "0s"}
    return {"metrics": [errors], **quick, **more}


def phase_is(*phases: str) -> Callable[[Object], bool]:
    return lambda obj: (obj.get("status") or {}).get("phase") in phases


def table_of(client: KubeClient, path: str) -> Object:
    """The table that kubectl prints, as the API server makes it."""
    headers = client._headers | {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    table: Object = json.loads(client._http.request("GET", client._url(path, {}), headers=headers).data)
    return table


def condition(obj: Object, kind: str) -> Object:
    """A condition, or an empty one."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


@dataclass
class World:
    """All parts, for as long as a lab lives."""

    lab: Lab
    prometheus: FakePrometheus
    frail: FakePrometheus  # serves the same; this one may be stopped while others ask
    traffic: Traffic
    gateway: Gateway
    rollouts: Chronicle
    routes: Chronicle
    deployments: Chronicle
    pods: Chronicle
    parts: list[Any] = field(default_factory=list)

    @classmethod
    def around(cls, lab: Lab) -> World:
        client = lab.client
        prometheus, frail = FakePrometheus(), FakePrometheus()
        frail.answer = prometheus.answer  # type: ignore[method-assign]
        parts = {
            "traffic": Traffic(client, prometheus),
            "gateway": Gateway(client),
            "rollouts": Chronicle(client, path_of(VERSION, PLURAL)),
            "routes": Chronicle(client, path_of(*ROUTES)),
            "deployments": Chronicle(client, path_of("apps/v1", "deployments"), labelSelector=ROLLOUT_LABEL),
            "pods": Chronicle(client, path_of("v1", "pods"), labelSelector=ROLLOUT_LABEL),
        }
        world = cls(lab, prometheus, frail, parts=[prometheus, frail, *parts.values()], **parts)  # type: ignore[arg-type]
        for part in world.parts:
            part.start()
        return world

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.stop()

    @property
    def values(self) -> dict[str, Any]:
        """The chart's values for an operator of this world."""
        servers = {"default": self.prometheus, "frail": self.frail}
        return {
            "servers": [{"name": name, "url": server.url} for name, server in servers.items()],
            "timing": TIMING,
        }

    def namespace(self) -> str:
        """A fresh namespace."""
        name = f"{OURS}{uuid.uuid4().hex[:8]}"
        self.lab.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def clear(self) -> None:
        """Delete all rollouts, so that an operator finds none; their children go by themselves."""
        for obj in self.lab.client.list(path_of(VERSION, PLURAL)):
            metadata = obj["metadata"]
            path = path_of(VERSION, PLURAL, metadata["namespace"], metadata["name"])
            self.lab.client.delete(path, missing_ok=True)
            self.traffic.forget(metadata["namespace"])

    def rollout(self, namespace: str | None = None, name: str = "fraud") -> Rollout:
        return Rollout(self, namespace or self.namespace(), name)


@dataclass
class Rollout:
    """One ModelRollout, by the eyes of its user."""

    world: World
    namespace: str
    name: str = "fraud"
    applied: int = 0  # resourceVersion of the last change made or found here

    @property
    def client(self) -> KubeClient:
        return self.world.lab.client

    @property
    def path(self) -> str:
        return path_of(VERSION, PLURAL, self.namespace, self.name)

    def apply(self, version: str = "1", uri: str = GOOD, **spec: Any) -> Object:
        """Apply the usual manifest with these changes, as a GitOps tool would."""
        return self._changed(self.client.apply(manifest(self.namespace, self.name, version, uri, **spec)))

    def patch(self, **spec: Any) -> Object:
        return self._changed(self.client.patch(self.path, {"spec": spec}))

    def ask(self, verb: str, value: str) -> Object:
        """Request by annotation."""
        annotations = {f"modelrollout.dev/{verb}": value}
        return self._changed(self.client.patch(self.path, {"metadata": {"annotations": annotations}}))

    def _changed(self, obj: Object) -> Object:
        self.applied = version_of(obj)
        return obj

    def get(self) -> Object:
        return self.client.get(self.path)

    def status(self) -> Object:
        status: Object = self.get().get("status") or {}
        return status

    def wait(
        self,
        check: Callable[[Object], bool],
        what: str,
        *,
        timeout: float = PATIENCE,
    ) -> Object:
        """The first version of which `check` holds, since the last change made or the last version found here."""
        found = self.world.rollouts.wait(
            self.namespace, self.name, check, what, after=self.applied, timeout=timeout
        )
        return self._changed(found)

    def wait_phase(self, *phases: str, timeout: float = PATIENCE) -> Object:
        """As `wait`, for a phase that was decided on the present spec."""

        def reached(obj: Object) -> bool:
            status = obj.get("status") or {}
            current = status.get("observedGeneration") == obj["metadata"]["generation"]
            return current and status.get("phase") in phases

        return self.wait(reached, f"phase {' or '.join(phases)}", timeout=timeout)

    def deploy(self, version: str = "1", uri: str = GOOD, **spec: Any) -> str:
        """The first deployment, to its end; the revision."""
        self.apply(version, uri, **spec)
        return str(self.wait_phase("Healthy")["status"]["stable"]["revision"])

    def compare(self, **spec: Any) -> tuple[str, str]:
        """The first deployment, and a second version in its first step; both revisions."""
        old = self.deploy("1")
        self.apply("2", **spec)
        return old, str(self.wait_step("1/2")["status"]["candidate"]["revision"])

    def wait_step(self, display: str) -> Object:
        """The step's clock runs."""

        def started(obj: Object) -> bool:
            step = (obj.get("status") or {}).get("step") or {}
            return bool(step.get("display") == display and step.get("startedAt"))

        return self.wait(started, f"step {display}")

    def history(self) -> list[Object]:
        """Statuses seen by a watch, oldest first, with the resourceVersion of each and when it was seen."""
        chronicle = self.world.rollouts
        return [
            (obj.get("status") or {}) | {"version": version_of(obj), "seen": chronicle.seen(version_of(obj))}
            for obj in chronicle.versions(self.namespace, self.name)
        ]

    def phases(self) -> list[str]:
        """Phases in the order in which they were seen, each run once."""
        phases: list[str] = []
        for status in self.history():
            if status.get("phase") and status["phase"] != (phases[-1] if phases else None):
                phases.append(status["phase"])
        return phases

    def events(self, reason: str | None = None) -> list[Object]:
        """Its events, oldest first."""
        found = self.client.list(path_of("events.k8s.io/v1", "events", self.namespace))
        ours = [
            e
            for e in found
            if e["regarding"].get("name") == self.name and e["regarding"]["kind"] == "ModelRollout"
        ]
        ordered = sorted(ours, key=lambda event: (event["eventTime"], version_of(event)))
        return [event for event in ordered if reason in (None, event["reason"])]

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events()]

    def wait_event(self, reason: str, *, timeout: float = PATIENCE) -> Object:
        wait_until(
            lambda: bool(self.events(reason)),
            timeout=timeout,
            what=f"event {reason} of {self.namespace}/{self.name} (seen: {self.reasons()})",
            interval=0.2,
        )
        return self.events(reason)[-1]

    def pods(self, revision: str) -> list[Object]:
        selector = f"{ROLLOUT_LABEL}={self.name},{REVISION_LABEL}={revision}"
        return self.client.list(path_of("v1", "pods", self.namespace), labelSelector=selector)

    def set_ready(self, revision: str, ready: bool, *, most: int | None = None) -> None:
        """Let the present pods of a revision, at most so many, lose or regain readiness."""
        annotations = {READY_ANNOTATION: None if ready else "false"}
        for pod in self.pods(revision)[:most]:
            path = path_of("v1", "pods", self.namespace, pod["metadata"]["name"])
            self.client.patch(path, {"metadata": {"annotations": annotations}})

    def ready_at(self, revision: str, version: int) -> int:
        """Pods of a revision that were ready when the cluster was at a resourceVersion."""
        chronicle, ready = self.world.pods, 0
        for name in chronicle.every(self.namespace):
            known = [pod for pod in chronicle.versions(self.namespace, name) if version_of(pod) <= version]
            if not known or known[-1]["metadata"]["labels"].get(REVISION_LABEL) != revision:
                continue
            ready += "deletionTimestamp" not in known[-1]["metadata"] and is_ready(known[-1])
        return ready

    def check_ready(self) -> None:
        """Whoever had weight had ready pods: in each version of the status, and of the route when it was written (S1, S3)."""
        for status in self.history():
            weights = (status.get("weights") or {}) if status.get("phase") != "Pending" else {}
            for role in (role for role in ("stable", "candidate", "previous") if weights.get(role)):
                assert status[role]["ready"], f"{role} has no ready pod: {brief(status)}"
        for route in self.world.routes.versions(self.namespace, self.name):
            for service in (service for service, weight in weights_of(route).items() if weight):
                ready = self.ready_at(service.removeprefix(f"{self.name}-"), version_of(route))
                assert ready, f"{service} had no ready pod: {weights_of(route)}"

    def check_drained(self, revision: str) -> None:
        """A revision lost its role only when the route without it was accepted, and the pods that it had then stayed until the
        time that the status told (S3)."""
        retiring = [(s["version"], r) for s in self.history() for r in s.get("retiring") or ()]
        told = [(version, gone) for version, gone in retiring if gone["revision"] == revision]
        assert told, f"{revision} went at once"
        child, namespace = self.child(revision), self.namespace
        routes = self.world.routes.versions(namespace, self.name)
        last = max(n for n, route in enumerate(routes) if weights_of(route).get(child))
        without = next(route for route in routes[last + 1 :] if is_accepted(route))
        assert version_of(without) < told[0][0], f"{revision} lost its role before its weight"
        pods, deployments, going = self.world.pods, self.world.deployments, []
        for name in pods.every(namespace):
            labels = pods.versions(namespace, name)[0]["metadata"]["labels"]
            if labels.get(REVISION_LABEL) == revision:
                pods.wait_gone(namespace, name)
                leaving = (v for v in pods.versions(namespace, name) if "deletionTimestamp" in v["metadata"])
                going.append(min(pods.seen(version_of(version)) for version in leaving))
        deployments.wait_gone(namespace, child)
        deleted = deployments.seen(version_of(deployments.versions(namespace, child)[-1]))
        gone = told[-1][1]
        last_pods = sorted(going)[-gone["desired"] :]
        assert min(deleted, *last_pods) >= seconds(gone, "until"), f"{revision} went too early: {gone}"

    def child(self, revision: str) -> str:
        return f"{self.name}-{revision}"

    def route(self) -> Object:
        return self.client.get(path_of(*ROUTES, self.namespace, self.name))

    def served(self, revision: str, cut: float) -> float:
        """Requests to a revision's pods, by the last samples up to a cut."""
        return sum(meter.at_cut(cut) for meter in self.world.traffic.meters(self.namespace, revision))

    def ledger(self) -> list[tuple[float, float, float]]:
        """Of every commit of the present attempt, until the old revision gets nothing any more (from then on nothing can
        be compared): cut, candidate requests counted up to it, and requests served."""
        attempt = self.status()["history"][0]
        found = set()
        for status in self.history():
            evidence, metrics = status.get("evidence") or {}, status.get("metrics")
            if status.get("attempt") == attempt["attempt"] and (status.get("watch") or {}).get("ending"):
                break
            if status.get("attempt") == attempt["attempt"] and evidence.get("consumed") and metrics:
                cut = evidence["consumed"]
                served = self.served(attempt["revision"], cut)
                found.add((cut, float(metrics[0]["candidateRequests"]), served))
        return sorted(found)

    def check_ledger(self) -> None:
        """No sample was counted twice or left out: between any two commits as much was counted as was served. And nothing was
        counted from the start that another revision answered, in an attempt before."""
        ledger = self.ledger()
        assert len(ledger) >= 3, ledger
        assert ledger[0][1] <= ledger[0][2], ledger[0]
        for (_, counted, served), (cut, more_counted, more_served) in itertools.pairwise(ledger):
            assert more_counted - counted == more_served - served, f"up to {cut}: {ledger}"


def seconds(status: Mapping[str, Any], *path: str | int) -> float:
    """An RFC3339 time in an object as epoch seconds."""
    value: Any = status
    for part in path:
        value = value[part]
    return datetime.fromisoformat(str(value)).timestamp()


# Side by side


Story = Callable[[World], None]


class Stories(list[Story]):
    """The stories of a module, in the order in which they are told."""

    def story(self, function: Story) -> Story:
        """Take a story in; a decorator."""
        self.append(function)
        return function


class SideBySide:
    """Runs stories in threads, for they mostly wait; each is told as a test of its own when its turn comes."""

    def __init__(self, world: World, stories: Iterable[Story], *, at_once: int = 20) -> None:
        self._pool = ThreadPoolExecutor(at_once)
        self._results = {story: self._pool.submit(story, world) for story in stories}

    def tell(self, story: Story) -> None:
        """Wait for the end of a story; raises what it raised."""
        self._results[story].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def title(story: Story) -> str:
    """A story's name as a sentence, for the id of its test."""
    return story.__name__.replace("_", " ")
