"""A cluster in miniature for tests of `decide`: it follows the committed status at once, and goes wrong on request.

Everything that is committed goes over the wire format and back, as a restart would read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import RevisionStatus, Status
from modelrollout.decision.decide import decide
from modelrollout.decision.types import (
    Data,
    Decision,
    GateReading,
    Judgement,
    Observation,
    RevisionView,
    RouteView,
    Timing,
    Wish,
)
from modelrollout.evidence.verdict import Assessment, MetricAssessment, Verdict
from tests.unit.decision.rules import Case, Rules, read_spec

TIMING = Timing()
START = 1_800_000_000.0


def spec_of(version: str = "1", **changes: Any) -> dict[str, Any]:
    """A spec on the wire; `changes` replace whole members."""
    return {
        "model": {"name": "fraud", "version": version},
        "workload": {"replicas": 4, "template": {"spec": {"containers": [{"name": "m", "image": "m"}]}}},
        "service": {"ports": [{"name": "http", "port": 80}]},
        "traffic": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}},
        "strategy": {
            "canary": {"steps": [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "2m"}]}
        },
        "analysis": {"metrics": [{"name": "errors", "ratio": {"bad": 'r{code="5"}', "total": "r"}}]},
        "watch": {"duration": "10m", "holdback": 10},
        **changes,
    }


def assessment(
    *,
    score: bool = False,
    harm: bool = False,
    harmless: bool = False,
    outlier: bool = False,
    has_data: bool = True,
    settled: int = 8,
    requests: float = 1000.0,
    reward: bool = False,
    superior: bool = False,
) -> Assessment:
    """What the engine would say, in short."""
    verdict = Verdict.HARMFUL if harm else Verdict.HARMLESS if harmless else Verdict.INCONCLUSIVE
    metric = MetricAssessment(
        name="errors",
        kind="ratio",
        gating=True,
        verdict=verdict,
        log_harm=0.0,
        log_harmless=0.0,
        ratio=1.0,
        low=0.8,
        high=1.3,
        baseline_requests=9 * requests,
        baseline_bad=90.0,
        candidate_requests=requests,
        candidate_bad=10.0,
        harmless=harmless,
        settled_polls=settled,
        remaining=None if harmless else 3100.0,
        has_data=has_data,
        bound=1.0,
        absolute=0.0025,
    )
    # The reward, which proves nothing but that it is better.
    won = replace(metric, name="clicks", kind="score", harmless=False, reward=True, superior=superior)
    # A score that says nothing yet, besides.
    silent = replace(
        metric,
        name="quality",
        kind="score",
        harmless=False,
        has_data=False,
        settled_polls=0,
        candidate_requests=0.0,
    )
    return Assessment(
        verdict=verdict,
        harm=harm,
        harm_metric="errors" if harm or outlier else None,
        outlier=outlier,
        outlier_pod="fraud-x" if outlier else None,
        harmless=harmless and not score,
        settled_polls=0 if score else settled,
        metrics=(metric, *((silent,) if score else ()), *((won,) if reward else ())),
    )


def superior(found: Assessment) -> Assessment:
    """The same, with the first metric proven better, as a reward."""
    first, *others = found.metrics
    return replace(found, metrics=(replace(first, reward=True, superior=True), *others))


NEUTRAL = Judgement(data=Data.OK, assessment=assessment(), rate=100.0)
GOOD = Judgement(data=Data.OK, assessment=assessment(harmless=True), rate=100.0)
BAD = Judgement(data=Data.OK, assessment=assessment(harm=True), rate=100.0)


@cache
def _revision_of(spec: str) -> str:
    return hash_revision(read_spec(json.loads(spec)))


@dataclass
class World:
    """One ModelRollout and its surroundings."""

    spec: dict[str, Any] = field(default_factory=spec_of)
    now: float = START
    status: Status = field(default_factory=Status)
    judged: Judgement = NEUTRAL
    annotations: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)  # revisions whose pods never become ready
    lost: dict[str, int] = field(default_factory=dict)  # revision → pods that are not ready now
    restarts: dict[str, int] = field(default_factory=dict)
    room: int | None = None  # pods that the nodes have room for, all revisions together
    own: dict[str, int] = field(default_factory=dict)  # revision → pods that its user keeps of it
    lag: dict[str, list[float]] | None = (
        None  # ready endpoints by revision, where EndpointSlices are behind the pods
    )
    route_refused: bool = False
    contested_by: str | None = None  # another writer, who has changed the route: it is left alone for now
    pinned: str | None = None
    problem: str | None = None  # the spec is refused with this sentence …
    reason: Reason | None = None  # … and this reason
    pods: dict[str, list[float]] = field(default_factory=dict)  # revision → ready since, or from when on
    starting: float = 0.0  # seconds from a pod's place to its readiness
    routed: tuple[dict[str, int], float] | None = None
    answers: dict[str, GateReading] = field(default_factory=dict)  # by gate, to whatever it is asked
    mirrored: int = 0  # percent of the requests that the route copies to the candidate
    matched: int = 0  # percent of the requests that match that the route sends to the candidate
    generation: int = 1
    events: list[tuple[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    writes: int = 0
    rules: Rules = field(default_factory=Rules)  # that every decision is held against

    @property
    def parsed(self) -> Spec:
        """The spec as the operator reads it."""
        return read_spec(self.spec)

    @property
    def revision(self) -> str:
        """The revision that the spec names."""
        return _revision_of(json.dumps(self.spec))

    def wish(self) -> Wish:
        """What the object asks for."""
        accepted = self.status.accepted
        return Wish(
            namespace="ml",
            name="fraud",
            generation=self.generation,
            revision=self.revision,
            spec=None if self.problem else self.parsed,
            fallback=read_spec(accepted) if accepted else None,
            reason=self.reason,
            problem=self.problem or "",
            annotations={f"modelrollout.dev/{verb}": value for verb, value in self.annotations.items()},
        )

    def seen(self) -> Observation:
        """What the operator would find in its store."""
        views = {}
        for revision, since in self.pods.items():
            ready = self._ready(revision) if self.lag is None else self.lag.get(revision, [])
            views[revision] = RevisionView(
                desired=len(since),
                ready=len(ready),
                ready_since=tuple(ready),
                restarts=self.restarts.get(revision, 0),
                pods=len(since),
                waiting=("Unschedulable: 0/1 nodes are available",) if math.inf in since else (),
            )
        weights, since_when = self.routed or (None, None)
        beside = self.status.weights.mirror, self.status.weights.matched
        stands = weights == self._wanted_route() and (self.mirrored, self.matched) == beside
        accepted = stands and not self.route_refused
        since_when = since_when if accepted else None
        route = RouteView(weights=weights, routed_since=since_when, contested_by=self.contested_by)
        return Observation(revisions=views, route=route, pinned=self.pinned, gates=self._readings())

    def _readings(self) -> dict[str, GateReading]:
        asking = self.status.step.asking if self.status.step else None
        known = asking is not None and asking.name in self.answers
        return {asking.question: self.answers[asking.name]} if asking and known else {}

    def answer(
        self, gate: str, passed: bool | None = True, message: str = "", value: str | None = None
    ) -> World:
        """What a gate says from now on, whenever it is asked."""
        self.answers[gate] = GateReading(passed, message, value)
        return self

    def _ready(self, revision: str) -> list[float]:
        """Since when pods of a revision are ready."""
        latest = self.now if self.starting else math.inf
        placed = [since for since in self.pods.get(revision, ()) if since < math.inf and since <= latest]
        ready = [] if revision in self.broken else sorted(placed)
        return ready[: max(0, len(ready) - self.lost.get(revision, 0))]

    def fall_behind(self, *, behind: bool = True) -> None:
        """EndpointSlices stay as they are while pods come and go, or are up to date again."""
        self.lag = {revision: self._ready(revision) for revision in self.pods} if behind else None

    def set_clock_back(self, seconds: float) -> None:
        """Nothing else happens; what the rules remember of the past is as long ago as before."""
        self.now -= seconds
        self.rules.last_weight = {name: at - seconds for name, at in self.rules.last_weight.items()}

    def _wanted_route(self) -> dict[str, int]:
        status, weights = self.status, self.status.weights
        pairs = (
            (status.stable, weights.stable),
            (status.candidate, weights.candidate),
            (status.previous, weights.previous),
        )
        return {role.revision: weight for role, weight in pairs if role and weight}

    def tick(self, seconds: float = 0.0) -> Decision:
        """Let time pass, decide once, commit over the wire, and let the cluster follow."""
        self.now += seconds
        decision = self.decide()
        committed = Status.from_wire(decision.status.to_wire())
        self.writes += committed != self.status
        self.status = committed
        self.events += [(event.reason.value, event.message) for event in decision.events]
        self.links.append(decision.link)
        self._follow()
        return decision

    def decide(self) -> Decision:
        """Decide, hold the decision against the rules, and commit nothing."""
        wish, seen, judged = self.wish(), self.seen(), self.judged_now
        decision = decide(wish, self.status, seen, judged, now=self.now, timing=TIMING)
        self.rules.check(
            Case(
                before=self.status,
                after=decision.status,
                decision=decision,
                wish=wish,
                seen=seen,
                judged=judged,
                mirrored=self.mirrored,
                matched=self.matched,
                pods={revision: len(since) for revision, since in self.pods.items()},
                now=self.now,
                timing=TIMING,
            )
        )
        return decision

    @property
    def judged_now(self) -> Judgement:
        """What the metrics say of the present step: of users who were chosen they are only told."""
        step, found = self.status.trying, self.judged.assessment
        if step is None or step.randomized or found is None:
            return self.judged
        metrics = tuple(replace(metric, gating=False) for metric in found.metrics)
        told = replace(found, metrics=metrics, harm=False, harmless=False, outlier=False)
        return replace(self.judged, assessment=told)

    def run(self, seconds: float, *, every: float | None = None) -> World:
        """Tick for a while: every 5 s, or every 30 s if it is longer than half an hour."""
        every = every or (5.0 if seconds <= 1800 else 30.0)
        for _ in range(int(seconds / every)):
            self.tick(every)
        return self

    def until(self, *phases: str, limit: float = 7200.0, every: float = 5.0) -> World:
        """Tick until a phase is reached; fails when it is not within the limit."""
        for _ in range(int(limit / every)):
            self.tick(every)
            if self.status.phase in phases:
                return self
        raise AssertionError(f"{phases} not reached: {self.status.phase}: {self.status.message}")

    def _follow(self) -> None:
        alive: dict[str, int] = {gone.revision: gone.desired for gone in self.status.retiring}
        for role in self._roles():
            alive[role.revision] = role.desired
        for revision, desired in (alive | self.own).items():
            since = self.pods.setdefault(revision, [])
            fewer = len(since) - desired
            if fewer > 0 and self.lost.get(revision):
                # As a ReplicaSet does: pods that are not ready go first.
                self.lost[revision] = max(0, min(self.lost[revision], len(since)) - fewer)
            del since[desired:]
            since.extend([math.inf] * (desired - len(since)))
        self._place()
        # What a route still names is not deleted.
        alive |= dict.fromkeys(self.routed[0] if self.routed else (), 0)
        self.pods = {revision: since for revision, since in self.pods.items() if revision in alive}
        wanted = self._wanted_route()
        beside = self.status.weights.mirror, self.status.weights.matched
        stands = self.routed is not None and self.routed[0] == wanted
        free = not self.route_refused and not self.contested_by
        if free and wanted and not (stands and (self.mirrored, self.matched) == beside):
            self.routed, (self.mirrored, self.matched) = (wanted, self.now), beside

    def _place(self) -> None:
        """Give pods that wait for a node one, while there is room; the oldest revision first."""
        for since in self.pods.values():
            taken = sum(one < math.inf for some in self.pods.values() for one in some)
            free = len(since) if self.room is None else max(0, self.room - taken)
            for n, one in enumerate(since):
                if one == math.inf and free > 0:
                    since[n], free = self.now + self.starting, free - 1

    def _roles(self) -> Iterable[RevisionStatus]:
        return [r for r in (self.status.stable, self.status.candidate, self.status.previous) if r]

    def edit(self, **changes: Any) -> World:
        """Change the spec, as `kubectl apply` would."""
        self.spec = {**self.spec, **changes}
        self.generation += 1
        return self

    def release(self, version: str) -> World:
        """Name another model version."""
        return self.edit(model={"name": "fraud", "version": version})

    def ask(self, verb: str, *, step: str | None = None, salt: str = "1") -> World:
        """Annotate the object, bound to the revision it is about."""
        status = self.status
        role = status.candidate or (status.rejected if verb == "retry" else status.stable)
        assert role is not None
        self.annotations[verb] = role.revision + (f"/{step}" if step else "") + f"@{salt}"
        return self

    def healthy(self) -> World:
        """Through the first deployment."""
        return self.until("Healthy")

    def lose(self, revision: str, count: int) -> World:
        """Pods of a revision lose readiness (0: all are ready again)."""
        self.lost[revision] = count
        return self

    def judge(self, judged: Judgement, **changes: Any) -> World:
        """What the metrics say from now on."""
        self.judged = replace(judged, **changes)
        return self

    def condition(self, kind: str) -> tuple[str, str] | None:
        """Status and reason of a condition."""
        for condition in self.status.conditions:
            if condition.type == kind:
                return condition.status, condition.reason
        return None

    def reasons(self) -> list[str]:
        """Reasons of all events so far."""
        return [reason for reason, _ in self.events]


def started(world: World) -> World:
    """Until the clock of the first step runs."""
    for _ in range(60):
        world.tick(5)
        if world.status.step and world.status.step.started_at:
            return world
    raise AssertionError(world.status.message)
