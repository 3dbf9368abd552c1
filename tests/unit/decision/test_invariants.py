"""Whatever happens, in whatever order: a random walk through edits, requests, verdicts, outages, losses and restarts.

After each of them the world decides until nothing changes any more, and every single decision is held against the rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelrollout.api.conditions import Reason
from modelrollout.api.status import Status
from modelrollout.api.validate import parse
from modelrollout.decision.types import Data, GuardrailReading, Judgement
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, World, assessment, spec_of, superior

ROUNDS = 40  # within which a world that nobody touches must come to rest

HOOK: dict[str, Any] = {"name": "hook", "webhook": {"url": "http://gate/", "retries": 1}}
EVALUATION: dict[str, Any] = {
    "name": "evaluation",
    "job": {"template": {"spec": {"containers": [{"name": "e", "image": "e"}]}}},
    "onFailure": "Pause",
}
GATES: list[Any] = [
    {},
    {"start": [HOOK]},
    {"promotion": [EVALUATION]},
    {"start": [EVALUATION], "promotion": [HOOK]},
]
STEPS: list[Any] = [
    [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "2m"}],
    [{"weight": 5, "duration": "1m"}, {"weight": 10, "duration": "1m"}, {"weight": 70}],
    [{"weight": 30, "minRequests": 100, "duration": "30s"}],
    [{"weight": 25, "approval": True}, {"weight": 99, "duration": "1m"}],
    [{"weight": 10, "gates": [HOOK], "approval": True}, {"weight": 50, "gates": [EVALUATION]}],
    None,
]
CHOSEN = [{"cookie": {"name": "bucket", "value": "b"}}]
STRATEGIES: list[Any] = [
    *({"canary": {"steps": steps} if steps else {}} for steps in STEPS),
    {"canary": {"steps": [{"weight": 0, "mirror": 30}, {"weight": 20, "mirror": 80, "size": 100}]}},
    {"rolling": {"batch": 1}},
    {"rolling": {"batch": "50%", "duration": "1m", "approval": True}},
    {"blueGreen": {"mirror": 50, "duration": "1m"}},
    {"blueGreen": {"approval": True}},
    {"shadow": {"duration": "1m"}},
    {"abTest": {"reward": "errors", "duration": "10m", "weight": 30}},
    {"abTest": {"reward": "errors", "duration": "1m", "minRequests": 2000, "otherwise": "Promote"}},
    {"abTest": {"matches": CHOSEN, "duration": "10m", "otherwise": "Promote"}},
    {"abTest": {"matches": CHOSEN, "randomized": True, "reward": "errors", "duration": "5m", "size": 25}},
    {"canary": {"steps": [{"weight": 0, "matches": CHOSEN, "duration": "1m", "size": 50}, {"weight": 20}]}},
    {"shadow": {"mirror": 100, "then": "Canary", "canary": {"steps": STEPS[0]}}},
]
GATEWAY: dict[str, Any] = {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}
BREACH = GuardrailReading("gpu", 80000.0, "≤ 70000", breaches=3, breached=True, gating=True)
JUDGEMENTS = {
    "neutral": NEUTRAL,
    "good": GOOD,
    "bad": BAD,
    "better": replace(GOOD, assessment=superior(assessment(harmless=True))),
    "better, and perhaps harmful": replace(NEUTRAL, assessment=superior(assessment())),
    "outlier": replace(NEUTRAL, assessment=assessment(outlier=True)),
    "both": replace(GOOD, assessment=replace(assessment(harmless=True), harm=True)),
    "no traffic": replace(NEUTRAL, data=Data.NO_TRAFFIC, assessment=assessment(has_data=False)),
    "a score without labels": replace(GOOD, assessment=assessment(harmless=True, score=True)),
    "split off": replace(NEUTRAL, split_off="observed 2 %, configured 10 %"),
    "breach": replace(NEUTRAL, guardrails=(BREACH,)),
    "breach without a value": replace(NEUTRAL, guardrails=(replace(BREACH, value=None),)),
    "not answered yet": replace(GOOD, pending=True),
    "nothing": Judgement(),
}
AWAY = {"unavailable": Data.UNAVAILABLE, "not scraped": Data.NOT_SCRAPED}


class Cluster(RuleBasedStateMachine):
    """One rollout in a world where everything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.salt = 0
        self.broken = False

    def rest(self) -> None:
        """Decide until nothing changes; then a decision writes nothing and says nothing (S11)."""
        world = self.world
        _, problems = parse({"metadata": {"name": "fraud"}, "spec": world.spec})
        world.problem = "spec.x: write y" if self.broken else next(map(str, problems), None)
        for _ in range(ROUNDS):
            before, seen, events = world.status, world.seen(), len(world.events)
            world.tick()
            if world.status == before and world.seen() == seen and len(world.events) == events:
                break
        else:
            raise AssertionError(f"S11: no rest: {world.status.phase}: {world.status.message}")
        again = world.decide()
        changed = _changed(world.status, again.status)
        assert not changed, f"S8: what was read back over the wire is decided differently: {changed}"
        assert not again.events, "S11: an event for nothing"
        assert again.requeue_at is None or again.requeue_at > world.now, "a due time that is over"

    @initialize(
        ratio=st.booleans(),
        elastic=st.booleans(),
        replicas=st.sampled_from([1, 2, 4, 7]),
        strategy=st.sampled_from(STRATEGIES),
        gates=st.sampled_from([{}, *GATES]),
        inconclusive=st.sampled_from(["Pause", "Promote", "Rollback"]),
        stage=st.sampled_from(["Pending", "Progressing", "Promoting", "Watching", "Watching", "RollingBack"]),
    )
    def begin(
        self,
        ratio: bool,
        elastic: bool,
        replicas: int,
        strategy: Any,
        gates: Any,
        inconclusive: str,
        stage: str,
    ) -> None:
        """Walks begin where rollouts do, and in the phases that a blind walk seldom finds."""
        base = spec_of()
        self.world = World(
            spec=spec_of(
                traffic={"podRatio": {}} if ratio else GATEWAY,
                workload={**base["workload"], "replicas": replicas, "elastic": elastic},
                strategy=strategy,
                gates=gates,
                analysis={**base["analysis"], "deadline": "30m", "onInconclusive": inconclusive},
            )
        )
        if parse({"metadata": {"name": "fraud"}, "spec": self.world.spec})[1]:
            self.world.edit(strategy=STRATEGIES[0], gates={})
        if stage != "Pending":
            self.world.healthy().release("2").run(50)
        if stage in ("Promoting", "Watching"):
            self.world.ask("promote").until(stage)
        if stage == "RollingBack":
            self.world.ask("abort").until(stage)
        self.rest()

    # What people do

    @rule(version=st.sampled_from(["1", "2", "3"]))
    def release(self, version: str) -> None:
        self.world.release(version)
        self.rest()

    @rule(replicas=st.sampled_from([1, 2, 4, 7, 12]))
    def scale(self, replicas: int) -> None:
        self.world.edit(workload={**self.world.spec["workload"], "replicas": replicas})
        self.rest()

    @rule(strategy=st.sampled_from(STRATEGIES))
    def plan(self, strategy: Any) -> None:
        self.world.edit(strategy=strategy)
        self.rest()

    @rule(gates=st.sampled_from(GATES))
    def gate(self, gates: Any) -> None:
        self.world.edit(gates=gates)
        self.rest()

    @rule(
        name=st.sampled_from(["hook", "evaluation"]),
        passed=st.sampled_from([True, True, True, False, None]),
        message=st.sampled_from(["", "ready"]),
    )
    def answer(self, name: str, passed: bool | None, message: str) -> None:
        self.world.answer(name, passed, message)
        self.rest()

    @rule(paused=st.booleans())
    def pause_spec(self, paused: bool) -> None:
        self.world.edit(paused=paused)
        self.rest()

    @rule(
        duration=st.sampled_from(["10m", "10m", "1m", "24h"]),
        holdback=st.sampled_from([0, 10, 50]),
        standby=st.sampled_from([0, 50, 100]),
    )
    def watch(self, duration: str, holdback: int, standby: int) -> None:
        self.world.edit(watch={"duration": duration, "holdback": holdback, "standby": standby})
        self.rest()

    @rule(
        deadline=st.sampled_from(["5m", "30m", "6h"]),
        progress=st.sampled_from(["1m", "10m", "1h"]),
        drain=st.sampled_from(["10s", "30s", "5m"]),
    )
    def deadlines(self, deadline: str, progress: str, drain: str) -> None:
        analysis = {**self.world.spec["analysis"], "deadline": deadline}
        self.world.edit(analysis=analysis, progressDeadline=progress, drainDelay=drain)
        self.rest()

    @rule(ratio=st.sampled_from([False, False, True]))
    def router(self, ratio: bool) -> None:
        self.world.edit(traffic={"podRatio": {}} if ratio else GATEWAY)
        self.rest()

    @rule(elastic=st.booleans())
    def elastic(self, elastic: bool) -> None:
        self.world.edit(workload={**self.world.spec["workload"], "elastic": elastic})
        self.rest()

    @rule(
        bad=st.sampled_from([False, False, False, True]),
        reason=st.sampled_from([None, Reason.NOT_CHECKED]),
    )
    def break_spec(self, bad: bool, reason: Reason | None) -> None:
        self.broken, self.world.reason = bad, reason
        self.world.generation += 1
        self.rest()

    @rule(
        verb=st.sampled_from(["approve", "promote", "abort", "retry", "pause", "resume"]),
        right=st.sampled_from([True, True, True, False]),
    )
    def ask(self, verb: str, right: bool) -> None:
        status, self.salt = self.world.status, self.salt + 1
        role = status.candidate or (status.rejected if verb == "retry" else status.stable)
        revision = role.revision if role and right else "aaaaaaaaaa"
        step = f"/{status.step.id}" if status.step and verb == "approve" else ""
        self.world.annotations[verb] = f"{revision}{step}@{self.salt}"
        self.rest()

    # What metrics say

    @rule(kind=st.sampled_from([*JUDGEMENTS, "good", "neutral"]))
    def judge(self, kind: str) -> None:
        self.world.judged = JUDGEMENTS[kind]
        self.rest()

    @rule(kind=st.sampled_from(sorted(AWAY)), failed=st.integers(1, 4))
    def lose_metrics(self, kind: str, failed: int) -> None:
        since = self.world.status.outage_since or self.world.now
        problem = "DuplicateSeries: errors"
        self.world.judged = Judgement(
            data=AWAY[kind], problem=problem, failed_polls=failed, outage_since=since
        )
        self.rest()

    # What the cluster does

    @rule(role=st.sampled_from(["stable", "candidate", "previous"]), count=st.sampled_from([0, 0, 1, 2, 12]))
    def readiness(self, role: str, count: int) -> None:
        found = getattr(self.world.status, role)
        if found is not None:
            self.world.lose(found.revision, count)
            self.rest()

    @rule()
    def heal(self) -> None:
        self.world.lost.clear()
        self.world.broken.clear()
        self.rest()

    @rule(broken=st.sampled_from([False, False, True]))
    def break_revision(self, broken: bool) -> None:
        if broken:
            self.world.broken.add(self.world.revision)
        else:
            self.world.broken.discard(self.world.revision)
        self.rest()

    @rule(count=st.sampled_from([1, 3]))
    def restart_containers(self, count: int) -> None:
        known = self.world.restarts.get(self.world.revision, 0)
        self.world.restarts[self.world.revision] = known + count
        self.rest()

    @rule(room=st.sampled_from([None, None, 1, 4, 7, 9]))
    def nodes(self, room: int | None) -> None:
        """Nodes come and go; who runs stays where it is."""
        self.world.room = room
        self.rest()

    @rule(behind=st.sampled_from([False, False, True]))
    def endpoints(self, behind: bool) -> None:
        """EndpointSlices fall behind the pods, and catch up."""
        self.world.fall_behind(behind=behind)
        self.rest()

    @rule(by=st.sampled_from([None, None, "argocd"]), all_to_stable=st.booleans())
    def contest(self, by: str | None, all_to_stable: bool) -> None:
        """Another writer changes the route again and again; it is corrected now and then only."""
        world = self.world
        world.contested_by = by
        if by and world.routed and world.status.stable:
            weights = {world.status.stable.revision: 100} if all_to_stable else world.routed[0]
            world.routed = (weights, world.now)
        self.rest()

    @rule(seconds=st.sampled_from([1, 60, 600]))
    def clock_goes_back(self, seconds: int) -> None:
        """As another leader's clock may."""
        self.world.set_clock_back(seconds)
        self.rest()

    @rule(refused=st.sampled_from([False, False, True]))
    def route(self, refused: bool) -> None:
        self.world.route_refused = refused
        self.rest()

    @rule(seconds=st.sampled_from([1, 7200]))
    def restart_operator(self, seconds: int) -> None:
        """What it had in memory is lost; pods and route tell the rest."""
        world = self.world
        if world.routed:
            world.routed = (world.routed[0], world.now + seconds)
        judged, world.judged = world.judged, Judgement()
        world.tick(seconds)
        self.rest()
        world.judged = judged

    @rule(seconds=st.sampled_from([1, 5, 30, 60, 600, 7200]))
    def pass_time(self, seconds: int) -> None:
        self.world.tick(seconds)
        self.rest()

    @rule(rounds=st.sampled_from([3, 10]), every=st.sampled_from([5, 15, 35]))
    def live(self, rounds: int, every: int) -> None:
        for _ in range(rounds):
            self.world.tick(every)
        self.rest()

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.world.status.retiring) <= 8
        assert len(self.world.status.to_wire()["conditions"]) <= 6


def _changed(before: Status, after: Status) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in type(before).model_fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


TestInvariants = Cluster.TestCase
TestInvariants.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
