"""Fifty rollouts at once, good and bad ones, while everything around them fails: each has the outcome that it deserves.

The seed that chooses whom the faults meet is printed; `FIFTY_SEED` gives another one.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.kube import Object
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    BAD,
    GATEWAY,
    GOOD,
    ROUTES,
    Audit,
    Rollout,
    World,
    analysis,
    condition,
    version_of,
    weights_of,
)
from tests.cluster.test_releases import NEVER_READY
from tests.cluster.test_scenarios import OFF, steps, workload

SEED = int(os.environ.get("FIFTY_SEED", "50"))
NAMESPACES, EACH = 5, 10
PATIENCE = 240.0
OPERATOR = "system:serviceaccount:modelrollout-system:"
MOST_REQUESTS = 200  # to the API server, for each rollout: first deployment, release and all that went wrong
MOST_MEMORY = 300e6  # bytes
CANARY = steps({"weight": 20, "duration": "2s"}, {"weight": 50, "duration": "4s"})
USUAL: Object = {"strategy": CANARY, "analysis": analysis(interval="2s"), "progressDeadline": "120s"}
POD_RATIO: Object = {"traffic": {"podRatio": {}}, "workload": workload(4)}


@dataclass(frozen=True)
class Kind:
    """What a rollout is like, and how its release must end."""

    spec: Object
    uri: str = GOOD
    release: Object | None = None  # what the release changes besides
    outcome: str = "Promoted"
    reason: str = "ProvenHarmless"

    @property
    def borrows(self) -> bool:
        return "httpRoute" in self.spec.get("traffic", {})

    @property
    def routed(self) -> bool:
        return "podRatio" not in self.spec.get("traffic", {})


def bad(spec: Object) -> Kind:
    return Kind(spec, BAD, None, "RolledBack", "HarmProven")


BROKEN: Object = {"workload": {"replicas": 2, "template": NEVER_READY}, "progressDeadline": "15s"}
KINDS = {
    "good": Kind({}),
    "bad": bad({}),
    "good, planned": Kind({"strategy": {"canary": {"maxWeight": 20}}}),
    "good, elastic": Kind({"workload": workload(4, elastic=True)}),
    "bad, elastic": bad({"workload": workload(4, elastic=True)}),
    "good, by pods": Kind(POD_RATIO),
    "bad, by pods": bad(POD_RATIO),
    "good, in batches": Kind(POD_RATIO | {"strategy": {"rolling": {"batch": 2, "duration": "4s"}}}),
    "unjudged, blue and green": Kind({"strategy": {"blueGreen": {}}, "analysis": OFF}, reason="NotProven"),
    "good, in a borrowed route": Kind({"traffic": {"httpRoute": {"name": ""}}}),
    "bad, in a borrowed route": bad({"traffic": {"httpRoute": {"name": ""}}}),
    "never ready": Kind({}, GOOD, BROKEN, "RolledBack", "ProgressDeadlineExceeded"),
}


@dataclass
class Member:
    """One of the fifty."""

    kind: str
    rollout: Rollout

    @property
    def of(self) -> Kind:
        return KINDS[self.kind]

    @property
    def spec(self) -> Object:
        spec = USUAL | self.of.spec
        return spec | ({"traffic": {"httpRoute": {"name": self.rollout.name}}} if self.of.borrows else {})

    def deploy(self) -> None:
        rollout = self.rollout
        if self.of.borrows:
            rules = [{"backendRefs": [{"name": rollout.name, "port": 80}]}]
            metadata = {"name": rollout.name, "namespace": rollout.namespace}
            spec = {"parentRefs": GATEWAY["gatewayAPI"]["parentRefs"], "rules": rules}
            spec |= {"hostnames": [f"{rollout.name}.{rollout.namespace}.example.com"]}
            route = {"apiVersion": ROUTES[0], "kind": "HTTPRoute", "metadata": metadata, "spec": spec}
            rollout.client.apply(route, field_manager="helm")
        rollout.apply("1", **self.spec)

    def release(self) -> None:
        self.rollout.apply("2", self.of.uri, **(self.spec | (self.of.release or {})))

    def wait(self, check: Callable[[Object], bool], what: str) -> Object:
        return self.rollout.wait(lambda obj: check(obj.get("status") or {}), what, timeout=PATIENCE)

    def wait_end(self) -> Object:
        ends = ("Healthy", "RolledBack")
        done = self.wait(lambda s: s.get("attempt") == 2 and s.get("phase") in ends, "the end of the release")
        status: Object = done["status"]
        return status


class Faults:
    """What goes wrong, one thing after the other, while the fifty are under way."""

    def __init__(
        self, world: World, operator: Operator, members: list[Member], chance: random.Random
    ) -> None:
        self._world, self._operator, self._members, self._chance = world, operator, members, chance

    def happen(self) -> None:
        self._await_some_in_their_first_step()
        self._kill_the_operator()
        self._take_readiness()
        self._stop_prometheus()
        self._revert_routes()
        self._kill_the_api_server()
        self._kill_the_operator()

    def _await_some_in_their_first_step(self) -> None:
        started = lambda m: bool((m.rollout.status().get("step") or {}).get("startedAt"))  # noqa: E731
        wait_until(
            lambda: sum(started(member) for member in self._members) >= len(self._members) // 4,
            timeout=PATIENCE,
            what="a quarter in their first step",
            interval=1.0,
        )

    def _kill_the_operator(self) -> None:
        self._operator.kill()
        self._operator.start()

    def _comparing(self, most: int) -> list[tuple[Member, Object]]:
        """Some that are in a step now, in a route of their own or borrowed."""
        found = []
        for member in self._chance.sample(self._members, len(self._members)):
            status = member.rollout.status()
            if member.of.routed and status.get("phase") == "Progressing" and status["weights"]["candidate"]:
                found.append((member, status))
        return found[:most]

    def _take_readiness(self) -> None:
        """Some candidates lose all ready pods, and get them back when nothing is sent to them any more."""
        chosen = self._comparing(6)
        for member, status in chosen:
            member.rollout.set_ready(status["candidate"]["revision"], False)
        for member, status in chosen:
            new = status["candidate"]["revision"]
            member.wait(
                lambda s, new=new: (  # type: ignore[misc]
                    (s.get("candidate") or {}).get("revision") != new or s["weights"]["candidate"] == 0
                ),
                "the loss of weight",
            )
            member.rollout.set_ready(new, True)

    def _stop_prometheus(self) -> None:
        """It answers nobody until somebody has been told so."""
        prometheus = self._world.prometheus
        prometheus.fail("503")
        try:
            away = lambda m: (  # noqa: E731
                condition({"status": m.rollout.status()}, "MetricsAvailable").get("status") == "False"
            )
            wait_until(
                lambda: any(map(away, self._members)) or not self._comparing(1),
                timeout=PATIENCE,
                what="the word that metrics are away",
                interval=1.0,
            )
        finally:
            prometheus.heal(match="")

    def _revert_routes(self) -> None:
        """Another tool puts all weight back."""
        for member, status in self._comparing(5):
            rollout = member.rollout
            name = rollout.name if member.of.borrows else rollout.child(status["stable"]["revision"])
            rules = [{"backendRefs": [{"name": name, "port": 80}]}]
            metadata = {"name": rollout.name, "namespace": rollout.namespace}
            route = {
                "apiVersion": ROUTES[0],
                "kind": "HTTPRoute",
                "metadata": metadata,
                "spec": {"rules": rules},
            }
            rollout.client.apply(route, field_manager="argocd")

    def _kill_the_api_server(self) -> None:
        before = self._failed()
        self._world.lab.stop_apiserver(grace=0)
        wait_until(lambda: self._failed() > before, timeout=60, what="a round that fails")
        self._world.lab.start_apiserver()

    def _failed(self) -> int:
        """Rounds that met no API server, or one that failed."""
        found = re.search(
            r'^modelrollout_reconcile_errors_total{error="Unavailable"} (\S+)$',
            self._operator.metrics(),
            re.M,
        )
        return int(float(found[1])) if found else 0


@dataclass
class Played:
    """What is left when all are at their ends."""

    world: World
    operator: Operator
    members: list[Member]
    ends: dict[int, Object]
    requests: Counter[tuple[str, str]]


@pytest.fixture(scope="module")
def played(world: World) -> Iterator[Played]:
    world.clear()
    print(f"FIFTY_SEED={SEED}")
    chance = random.Random(SEED)
    names = list(KINDS)
    namespaces = [world.namespace() for _ in range(NAMESPACES)]
    members = [
        Member(names[n % len(names)], world.rollout(namespaces[n % NAMESPACES], f"model-{n}"))
        for n in range(NAMESPACES * EACH)
    ]
    audit = Audit(world.lab.audit_log)
    environment = {"LUCK": f"{SEED}:0.02"}
    operator = Operator(
        world.lab, values=world.values, name="fifty", module="tests.cluster.unlucky", environment=environment
    )
    with operator:
        for member in members:
            member.deploy()
        for member in members:
            member.wait(lambda status: status.get("phase") == "Healthy", "the first deployment")
        for member in members:
            member.release()
        Faults(world, operator, members, chance).happen()
        ends = {n: member.wait_end() for n, member in enumerate(members)}
        yield Played(world, operator, members, ends, requests_of(audit))
        world.clear()


def requests_of(audit: Audit) -> Counter[tuple[str, str]]:
    """Requests of the operator about one rollout, by namespace and name; watches and lists are about all of them."""
    counted: Counter[tuple[str, str]] = Counter()
    for event in audit.requests(OPERATOR):
        target = event.get("objectRef") or {}  # none where kinds are discovered
        found = re.match(r"model-\d+", target.get("name", ""))
        if found and event["verb"] not in ("list", "watch"):
            counted[target["namespace"], found[0]] += 1
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_the_outcome_that_it_deserves(played: Played, kind: str) -> None:
    wanted = KINDS[kind]
    found = {
        (end["history"][0]["outcome"], end["history"][0]["reason"], end["attempt"])
        for member, end in zip(played.members, played.ends.values(), strict=True)
        if member.kind == kind
    }
    assert found == {(wanted.outcome, wanted.reason, 2)}


def test_no_weight_was_given_to_what_had_no_ready_pod(played: Played) -> None:
    given = 0
    for member in played.members:
        if not member.of.routed:
            continue
        rollout, before = member.rollout, dict[str, int]()
        for route in played.world.routes.versions(rollout.namespace, rollout.name):
            weights = weights_of(route)
            for service, weight in weights.items():
                revision = service.removeprefix(f"{rollout.name}-")
                if revision != service and weight > before.get(service, 0):
                    given += 1
                    assert was_ready(rollout, revision, route), f"{service} got {weight} %: {weights}"
            before = weights
    assert given >= 40


def was_ready(rollout: Rollout, revision: str, route: Object) -> bool:
    """Whether a revision had a ready pod when a route was written, or a moment before: the operator may not know yet."""
    world, version = rollout.world, version_of(route)
    written = world.routes.seen(version)
    moments = {version} | {
        version_of(pod)
        for name in world.pods.every(rollout.namespace)
        for pod in world.pods.versions(rollout.namespace, name)
        if version_of(pod) <= version and written - world.pods.seen(version_of(pod)) <= 2.0
    }
    return any(rollout.ready_at(revision, moment) for moment in moments)


def test_the_requests_of_each_are_bounded(played: Played) -> None:
    counts = played.requests
    print("requests per rollout: most", counts.most_common(3), "mean", counts.total() / len(played.members))
    assert len(counts) == len(played.members)
    assert max(counts.values()) < MOST_REQUESTS, counts.most_common(5)


def test_nothing_is_left_in_the_operator_when_they_are_gone(played: Played) -> None:
    operator, world = played.operator, played.world
    world.clear()

    def empty() -> bool:
        text = operator.metrics()
        return not re.search(r'name="model-\d+"', text) and value(text, "modelrollout_queue_depth") == 0

    wait_until(empty, timeout=60, what="an operator without rollouts", interval=0.5)
    memory = value(operator.metrics(), "process_resident_memory_bytes")
    print(f"memory: {memory / 1e6:.0f} MB")
    assert memory < MOST_MEMORY
    assert "Traceback" not in operator.log.read_text()


def value(text: str, name: str) -> float:
    found: Any = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in the metrics"
    return float(found[1])
