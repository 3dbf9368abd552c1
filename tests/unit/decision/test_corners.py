"""Corners of the chain that a review against the design found wrong or unguarded, each as a short story."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from modelrollout.api.status import Status
from modelrollout.decision.decide import decide
from modelrollout.decision.types import Data, GuardrailReading, Judgement
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, START, TIMING, World, assessment, spec_of, started

OUTLIER = replace(NEUTRAL, assessment=assessment(outlier=True))


def workload(**changes: Any) -> dict[str, Any]:
    return {**spec_of()["workload"], **changes}


def analysis(**changes: Any) -> dict[str, Any]:
    return {**spec_of()["analysis"], **changes}


class TestWaitsEnd:
    """A rollout never stalls silently."""

    def test_the_deadline_goes_on_while_a_pod_outlier_holds(self) -> None:
        world = World(spec=spec_of(analysis=analysis(deadline="20m"))).healthy().release("2")
        started(world).judge(OUTLIER).until("Paused", limit=1400)
        assert world.condition("Reconciling") == ("True", "Inconclusive")

    @pytest.mark.parametrize("duration", ["20m", "0s"], ids=["as the watch does", "without a watch"])
    def test_a_promotion_goes_on_after_a_pod_outlier_has_held_it_for_a_while(
        self, world: World, duration: str
    ) -> None:
        world.edit(watch={"duration": duration}).judge(GOOD).until("Promoting")
        hold = 1200 if duration == "20m" else 600  # progressDeadline at least
        world.judge(OUTLIER).run(hold - 20)
        assert (world.status.phase, world.status.weights.candidate) == ("Promoting", 50)
        assert world.condition("Reconciling") == ("True", "PodOutlier")
        assert "harm rests on fraud-x alone" in (world.status.message or "")
        world.run(60)
        assert world.status.stable and world.status.stable.revision == world.revision

    def test_a_promotion_that_loses_a_pod_for_good_ends_with_its_progress_deadline(
        self, world: World
    ) -> None:
        world.judge(GOOD).until("Promoting")
        candidate = world.status.candidate
        assert candidate
        for _ in range(20):
            if world.status.candidate and world.status.candidate.ready == 4:
                break
            world.tick(1)
        world.lose(candidate.revision, 1).run(590)
        assert world.status.phase == "Promoting"
        world.until("RolledBack", limit=60)
        assert world.status.history[0].reason == "ProgressDeadlineExceeded"
        assert "3 of 4 pods ready" in (world.status.history[0].message or "")

    def test_a_promotion_that_gets_a_lost_pod_back_goes_on(self, world: World) -> None:
        world.judge(GOOD).until("Promoting")
        assert world.status.candidate
        revision = world.status.candidate.revision
        world.run(20).lose(revision, 1).run(590).lose(revision, 0).until("Watching", limit=120)

    @pytest.mark.parametrize(("verb", "phase"), [("promote", "Promoting"), ("pause", "Paused")])
    def test_people_are_heard_while_a_pod_outlier_holds(self, world: World, verb: str, phase: str) -> None:
        started(world).judge(OUTLIER).run(20)
        world.ask(verb).until(phase, limit=30)

    def test_a_promotion_ends_though_the_baseline_died(self, world: World) -> None:
        started(world).ask("promote").until("Promoting")
        assert world.status.stable
        world.lose(world.status.stable.revision, 4)
        world.until("Watching", limit=200)
        assert world.status.weights.stable == 100

    def test_without_proof_is_not_without_a_look(self) -> None:
        spec = spec_of(analysis=analysis(deadline="20m", onInconclusive="Promote"))
        world = started(World(spec=spec).healthy().release("2"))
        world.judge(NEUTRAL, assessment=assessment(has_data=False)).run(1200)
        world.judge(Judgement()).run(600)
        assert world.status.phase == "Progressing"
        world.judge(NEUTRAL, data=Data.NO_TRAFFIC, assessment=assessment(has_data=False)).until("Watching")

    def test_requests_are_counted_anew_when_a_test_begins_anew(self) -> None:
        steps = [{"weight": 10}, {"weight": 20, "minRequests": 500}, {"weight": 50}]
        world = World(spec=spec_of(strategy={"canary": {"steps": steps}})).healthy().release("2")
        started(world).run(90)
        assert world.status.step
        assert world.status.step.index == 1
        world.judge(NEUTRAL, assessment=assessment(requests=100)).run(30)
        world.judge(NEUTRAL, assessment=assessment(requests=700)).run(10)
        assert world.status.step.index == 2

    @pytest.mark.parametrize("hold", ["paused", "outage", "outlier"])
    def test_the_decided_end_of_a_watch_is_not_held(self, world: World, hold: str) -> None:
        world.judge(GOOD).until("Watching")
        world.ask("promote").tick(5)
        if hold == "paused":
            world.edit(paused=True)
        elif hold == "outage":
            world.judge(Judgement(data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now))
        else:
            world.judge(OUTLIER)
        world.until("Healthy", limit=60)

    def test_a_step_of_one_pod_among_hundreds_gets_traffic(self) -> None:
        steps = [{"weight": 1, "duration": "1m"}, {"weight": 50}]
        spec = spec_of(
            traffic={"podRatio": {}},
            workload=workload(replicas=150),
            strategy={"canary": {"steps": steps}},
        )
        world = started(World(spec=spec).healthy().release("2"))
        assert world.status.weights.candidate == 1


class TestTooLate:
    """Link 6."""

    def test_who_keeps_the_route_from_us_is_named(self, world: World) -> None:
        started(world).contested_by = "argocd"
        assert world.status.stable
        world.routed = ({world.status.stable.revision: 100}, world.now)
        world.until("RolledBack", "RollingBack", limit=1200)
        assert world.status.history[0].reason == "RouteNotAccepted"
        assert "argocd keeps changing it" in (world.status.history[0].message or "")

    def test_what_became_ready_while_the_operator_was_away_is_not_rolled_back(self, world: World) -> None:
        world.tick(1)
        assert world.status.progress_deadline_at
        world.tick(3600)
        assert world.status.phase == "Progressing"
        world.run(60)
        assert world.status.progress_deadline_at is None

    def test_each_pod_of_an_exchange_gets_its_time(self) -> None:
        spec = spec_of(traffic={"podRatio": {}}, workload=workload(replicas=40))
        world = World(spec=spec).healthy().release("2").judge(GOOD)
        world.until("Watching", limit=7200)

    def test_growing_by_an_autoscaler_starts_the_time_anew(self, world: World) -> None:
        world.broken.add(world.revision)
        world.run(500)
        world.edit(workload=workload(replicas=40)).run(400)
        assert world.status.phase == "Progressing"
        world.until("RolledBack", limit=300)


class TestUnstable:
    """Link 6a."""

    def test_a_growing_baseline_is_no_instability_of_the_candidate(self, world: World) -> None:
        started(world)
        candidate = world.revision
        for size in (14, 24, 34, 44):
            world.edit(workload=workload(replicas=size)).tick(1)
            world.lose(candidate, 1).run(10).lose(candidate, 0).run(40)
        assert world.status.phase == "Progressing"

    def test_restarts_of_an_earlier_attempt_do_not_count(self, world: World) -> None:
        started(world)
        world.restarts[world.revision] = 3
        world.until("RolledBack", limit=100)
        world.ask("retry").run(5)
        started(world).run(10)
        assert world.status.phase == "Progressing"

    def test_restarts_count_from_what_is_left_once_the_pods_that_had_them_are_gone(
        self, world: World
    ) -> None:
        started(world)
        world.restarts[world.revision] = 2
        for _ in range(200):
            if world.tick(5).status.step.index == 1:
                break
        world.restarts[world.revision] = 0
        world.ask("restart").run(10)
        assert world.status.step.index == 1
        world.restarts[world.revision] = 3
        world.until("RolledBack", limit=100)
        assert world.status.history[0].reason == "CandidateUnstable"


class TestPauses:
    """Link 9."""

    def test_a_paused_watch_waits_and_goes_on_with_what_was_left(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        world.run(100).edit(paused=True).run(3000)
        assert world.status.phase == "Watching"
        assert "watch held" in (world.status.message or "")
        world.edit(paused=False).run(400)
        assert world.status.phase == "Watching"
        world.until("Healthy", limit=200)

    def test_a_watch_paused_by_request_does_so_too(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        world.run(100).ask("pause").run(3000).ask("resume").run(400)
        assert world.status.phase == "Watching"
        world.until("Healthy", limit=200)

    def test_nothing_is_created_for_a_paused_start(self, world: World) -> None:
        world.edit(paused=True).run(100)
        assert world.status.phase == "Paused"
        assert not world.pods[world.revision]
        world.edit(paused=False)
        started(world)

    def test_promote_overrides_a_paused_start(self, world: World) -> None:
        world.edit(paused=True).run(20).ask("promote").until("Watching", limit=300)
        assert world.status.history[0].unproven

    def test_resume_without_a_pause_is_answered(self, world: World) -> None:
        started(world).edit(paused=True).run(10).ask("resume").run(10)
        assert world.events[-1][0] == "RequestIgnored"
        assert "spec.paused" in world.events[-1][1]


class TestRestIsRest:
    """Ready is never True for a spec that names something else than what serves."""

    def watch(self, world: World, phases: list[str], seconds: float) -> None:
        for _ in range(int(seconds / 5)):
            world.tick(5)
            candidate, ready = world.status.candidate, world.condition("Ready")
            assert ready
            serving = world.status.stable and world.status.stable.revision == world.revision
            assert serving or ready[0] != "True", (world.status.phase, candidate)
            phases.append(str(world.status.phase))

    def test_a_third_revision_starts_in_the_commit_that_ends_the_way_back(self, world: World) -> None:
        phases: list[str] = []
        self.watch(started(world).release("3"), phases, 60)
        assert set(phases) == {"RollingBack", "Progressing"}

    def test_a_third_revision_starts_in_the_commit_that_ends_the_watch(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        phases: list[str] = []
        self.watch(world.release("3").judge(NEUTRAL), phases, 60)
        assert set(phases) == {"Watching", "Progressing"}
        assert world.condition("Stalled") is None

    def test_the_candidate_named_again_after_it_was_superseded_starts_anew(self, world: World) -> None:
        started(world).release("3").tick(1)
        assert world.status.phase == "RollingBack"
        phases: list[str] = []
        self.watch(world.release("2"), phases, 60)
        assert world.status.candidate
        assert world.status.candidate.revision == world.revision
        assert world.status.attempt == 3

    def test_the_stable_revision_named_on_the_way_back_ends_healthy(self, world: World) -> None:
        started(world).judge(BAD).tick(5)
        assert world.status.phase == "RollingBack"
        phases: list[str] = []
        self.watch(world.release("1"), phases, 60)
        assert "RolledBack" not in phases
        assert world.status.rejected is None
        assert world.status.history[0].outcome == "RolledBack"


class TestFrozen:
    """Link 2."""

    @pytest.mark.parametrize("verb", ["promote", "retry"])
    def test_requests_to_go_forward_are_answered(self, world: World, verb: str) -> None:
        started(world)
        if verb == "retry":
            world.ask("abort").until("RolledBack")
        world.problem = "spec.x: write y"
        phase = world.status.phase
        world.ask(verb).run(10)
        assert world.status.phase == phase
        assert world.reasons()[-1] == "RequestIgnored"

    def test_a_bad_first_spec_does_not_replace_what_serves_in_a_restored_cluster(self) -> None:
        world = World(spec=spec_of("2"), problem="spec.x: write y")
        world.pods["aaaaaaaaaa"] = [START]
        world.pinned = "aaaaaaaaaa"
        world.run(10)
        world.problem = None
        world.pods["aaaaaaaaaa"] = [START]
        decision = decide(
            world.wish(), world.status, replace(world.seen(), pinned="aaaaaaaaaa"), now=world.now
        )
        assert decision.status.stable
        assert decision.status.stable.revision == "aaaaaaaaaa"


def test_a_guardrail_without_a_value_decides_nothing(world: World) -> None:
    reading = GuardrailReading("gpu", None, "≤ 70000", breaches=3, breached=True, gating=True)
    started(world).judge(NEUTRAL, guardrails=(reading,)).run(20)
    assert world.status.phase == "Progressing"


class TestSizes:
    """S1–S4 and sizes."""

    def test_parking_waits_for_no_baseline_pod(self, world: World) -> None:
        started(world)
        assert world.status.stable
        world.lose(world.status.stable.revision, 1)
        world.judge(Judgement(data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now)).run(1900)
        assert world.status.weights.candidate == 0

    def test_a_lowered_step_is_followed_at_once(self, world: World) -> None:
        started(world)
        assert world.status.stable
        world.lose(world.status.stable.revision, 1).run(5)
        world.edit(strategy={"canary": {"steps": [{"weight": 5, "duration": "1m"}, {"weight": 50}]}}).tick(1)
        assert world.status.weights.candidate == 5

    def test_an_emergency_in_the_watch_never_leaves_weight_on_dead_pods(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        stable, previous = world.status.stable, world.status.previous
        assert stable
        assert previous
        world.lose(stable.revision, 4).tick(1)
        assert world.status.weights.previous == 100
        world.lose(stable.revision, 3).lose(previous.revision, 4).tick(1)
        assert world.status.weights.previous == 0

    def test_what_the_baseline_had_at_the_last_raise_counts_in_the_next_step(self, world: World) -> None:
        started(world)
        assert world.status.stable
        world.lose(world.status.stable.revision, 3)
        while not (world.status.step and world.status.step.index == 1):
            world.tick(5)
        assert world.status.weights.candidate == 25

    def test_a_revision_that_comes_back_keeps_its_pods(self) -> None:
        steps = [{"weight": 50, "duration": "5m"}, {"weight": 60}]
        world = World(spec=spec_of(strategy={"canary": {"steps": steps}})).healthy().release("2")
        started(world).ask("abort").until("RolledBack")
        assert [gone.desired for gone in world.status.retiring] == [2]
        world.edit(strategy={"canary": {"steps": [{"weight": 10, "duration": "5m"}]}})
        world.ask("retry").tick(1)
        world.tick(1)
        assert len(world.pods[world.revision]) == 2

    def test_standby_pods_are_kept_for_drain_delay(self) -> None:
        spec = spec_of(watch={"duration": "10m", "holdback": 0, "standby": 50})
        world = World(spec=spec).healthy().release("2").judge(GOOD)
        while world.status.phase != "Watching":
            world.tick(1)
        sizes = []
        for _ in range(40):
            world.tick(1)
            assert world.status.previous
            sizes.append(world.status.previous.desired)
        assert sizes[15] == 4
        assert sizes[-1] == 2

    def test_a_candidate_that_carries_all_on_the_way_back_grows(self, world: World) -> None:
        started(world)
        assert world.status.stable
        world.lose(world.status.stable.revision, 4).ask("abort").run(5)
        assert world.status.phase == "RollingBack"
        assert world.status.weights.candidate == 100
        assert world.status.candidate
        assert world.status.candidate.desired == 4


@pytest.mark.parametrize(
    ("on_alarm", "phase"),
    [("Notify", "Watching"), ("Rollback", "RolledBack")],
    ids=["an alarm only tells", "an alarm goes back if the spec says so"],
)
def test_an_alarm_of_a_watch_without_holdback(on_alarm: str, phase: str) -> None:
    spec = spec_of(watch={"duration": "10m", "holdback": 0, "onAlarm": on_alarm})
    world = World(spec=spec).healthy().release("2").judge(GOOD).until("Watching")
    world.judge(GOOD, alarm="errors are 2x what they were before").run(60)
    assert world.status.phase == phase
    assert "errors are 2x" in (world.status.message or "")
    reason = world.status.history[0].reason
    assert reason == ("WatchAlarm" if on_alarm == "Rollback" else "ProvenHarmless")
    assert world.reasons().count("WatchAlarm") == 1, "told once, whatever is done about it"


def test_an_alarm_is_told_again_only_if_it_says_more() -> None:
    spec = spec_of(watch={"duration": "10m", "holdback": 0})
    world = World(spec=spec).healthy().release("2").judge(GOOD).until("Watching")
    world.judge(GOOD, alarm="errors are 2x").run(30)
    world.judge(Judgement()).run(10)
    assert "errors are 2x" in (world.status.message or ""), "after a restart it stands"
    world.judge(GOOD, alarm="errors are 2x").run(30)
    world.judge(GOOD, alarm="errors are 2x; latency is 3x").run(30)
    told = [text for reason, text in world.events if reason == "WatchAlarm"]
    assert told == ["errors are 2x", "errors are 2x; latency is 3x"]


QUIET = replace(
    NEUTRAL, data=Data.NO_TRAFFIC, problem="NoTraffic: errors: no requests to candidate were counted"
)
AWAY = Judgement(data=Data.UNAVAILABLE, problem="DuplicateSeries: errors: pod x has two", outage_since=START)
UNSCRAPED = replace(AWAY, data=Data.NOT_SCRAPED, problem="NotScraped: 2 pods have no samples")
UNASKED = Judgement()


@pytest.mark.parametrize(
    ("polls", "told"),
    [
        pytest.param([UNASKED], ("Unknown", "NotMeasured"), id="nothing was asked yet"),
        pytest.param([NEUTRAL], ("True", "MetricsAvailable"), id="all is read"),
        pytest.param([replace(AWAY, failed_polls=2)], ("True", "MetricsAvailable"), id="two failed polls"),
        pytest.param([replace(AWAY, failed_polls=3)], ("False", "DuplicateSeries"), id="three failed polls"),
        pytest.param(
            [replace(UNSCRAPED, failed_polls=3)], ("False", "NotScraped"), id="pods are not scraped"
        ),
        pytest.param(
            [replace(AWAY, failed_polls=3), UNASKED],
            ("False", "DuplicateSeries"),
            id="a restart in an outage",
        ),
        pytest.param(
            [replace(AWAY, failed_polls=3), NEUTRAL], ("True", "MetricsAvailable"), id="data are back"
        ),
        pytest.param(
            [replace(QUIET, quiet_polls=2)], ("True", "MetricsAvailable"), id="a pause between requests"
        ),
        pytest.param([replace(QUIET, quiet_polls=3)], ("True", "NoTraffic"), id="no requests in three polls"),
        pytest.param(
            [replace(QUIET, quiet_polls=3), replace(QUIET, quiet_polls=1)],
            ("True", "NoTraffic"),
            id="no requests before a restart and after it",
        ),
        pytest.param(
            [replace(QUIET, quiet_polls=3), NEUTRAL], ("True", "MetricsAvailable"), id="requests arrive again"
        ),
    ],
)
def test_the_condition_tells_the_state_of_the_data(
    world: World, polls: list[Judgement], told: tuple[str, str]
) -> None:
    world.judge(UNASKED)
    started(world)
    for judged in polls:
        world.judge(judged).tick(1)
    assert world.condition("MetricsAvailable") == told
    message = next(c.message for c in world.status.conditions if c.type == "MetricsAvailable")
    assert message.startswith(told[1]) or told[1] in ("MetricsAvailable", "NotMeasured")


@pytest.mark.parametrize("judged", [NEUTRAL, GOOD], ids=["the next step", "the promotion"])
def test_nothing_moves_forward_while_prometheus_has_not_answered(world: World, judged: Judgement) -> None:
    """The answer that is awaited may speak against it."""
    if judged is GOOD:
        world.judge(NEUTRAL).run(300)
    step = started(world).status.step
    assert step
    world.judge(judged, pending=True).run(600)
    assert world.status.phase == "Progressing"
    assert world.status.step
    assert world.status.step.id == step.id
    assert world.condition("Reconciling") == ("True", "AwaitingData")
    world.judge(judged).tick(1)
    assert (world.status.step.id != step.id) is (judged is NEUTRAL)
    assert (world.status.phase == "Promoting") is (judged is GOOD)


DOUBTS = {
    "the only pod": (10, 1, "the candidate has one pod: its node may be the cause as well as the model"),
    "one pod of two": (50, 1, "all of it from one of 2 candidate pods: its node may be the cause"),
    "two pods of two": (50, 2, None),
}


@pytest.mark.parametrize(("weight", "groups", "doubt"), DOUBTS.values(), ids=DOUBTS)
def test_harm_that_rests_on_one_pod_is_told_as_such(weight: int, groups: int, doubt: str | None) -> None:
    """Nothing tells a bad model from an unlucky node then; whoever reads the event or the history can look."""
    strategy = {"canary": {"steps": [{"weight": weight, "duration": "10m"}]}}
    world = started(World(spec=spec_of(strategy=strategy)).healthy().release("2"))
    world.judge(BAD, assessment=replace(assessment(harm=True), groups=groups)).until("RolledBack")
    told = [text for reason, text in world.events if reason == "HarmProven"]
    for text in (*told, world.status.history[0].message or "", world.status.message or ""):
        assert doubt in text if doubt else "may be the cause" not in text


def test_no_step_ends_in_the_round_that_loses_its_pods(world: World) -> None:
    started(world).run(55)
    assert world.status.step
    assert world.status.step.index == 0
    world.lose(world.revision, 1).tick(10)
    assert world.status.step.index == 0
    assert world.links[-1] == "11"


def test_a_dead_baseline_is_named_as_the_reason_to_wait(world: World) -> None:
    started(world)
    assert world.status.stable
    world.lose(world.status.stable.revision, 4).run(40)
    assert world.condition("Reconciling") == ("True", "StableUnavailable")
    assert "0 of 4 pods ready" in (world.status.message or "")


@pytest.mark.parametrize("elastic", [False, True], ids=["beside a whole baseline", "as pods are exchanged"])
@pytest.mark.parametrize(("first", "then"), [(50, 90), (50, 99), (25, 99)])
def test_a_step_that_needs_more_pods_lowers_no_weight_until_they_are_there(
    first: int, then: int, elastic: bool
) -> None:
    steps = [{"weight": first, "duration": "10s"}, {"weight": then, "duration": "10s"}]
    size = workload(replicas=100 // first, elastic=elastic)
    world = World(spec=spec_of(workload=size, strategy={"canary": {"steps": steps}})).healthy().release("2")
    world.judge(GOOD)
    weights = []
    while world.status.phase != "Promoting":
        weights.append(world.status.weights.candidate)
        world.tick(5)
        assert len(weights) < 200
    assert weights == sorted(weights)
    assert {first, then} <= set(weights)


class TestElastic:
    """elastic: true on a router."""

    def world(self, **changes: Any) -> World:
        return World(spec=spec_of(workload=workload(elastic=True), **changes)).healthy().release("2")

    def test_the_weight_follows_pods_that_can_carry_it(self) -> None:
        world = self.world().judge(GOOD)
        for _ in range(400):
            world.tick(5)
            candidate, weights = world.status.candidate, world.status.weights
            if candidate:
                assert weights.candidate <= 100 * candidate.ready // 4 + 25
            if world.status.phase == "Watching":
                break
        assert world.status.phase == "Watching"
        world.run(60)
        assert world.status.previous
        assert world.status.previous.desired == 1
        world.until("Healthy")

    def test_pods_go_drain_delay_after_their_weight(self) -> None:
        world = self.world().judge(GOOD)
        gone: list[float] = []
        raised = 0.0
        for _ in range(2000):
            before = world.status
            world.tick(1)
            if world.status.weights.candidate > before.weights.candidate:
                raised = world.now
            old, new = before.stable, world.status.stable
            if world.status.phase == "Progressing" and old and new and new.desired < old.desired:
                gone.append(world.now - raised)
            if world.status.phase == "Promoting":
                break
        assert gone
        assert min(gone) >= 30

    def test_the_way_back_frees_pods_as_the_weight_falls(self) -> None:
        world = self.world(strategy={"canary": {"steps": [{"weight": 75, "duration": "10m"}]}})
        world.run(400)
        assert world.status.candidate
        assert world.status.candidate.desired == 3
        assert world.status.weights.candidate == 75
        world.judge(BAD).until("RolledBack")
        assert world.status.stable
        assert world.status.stable.ready == 4

    @pytest.mark.parametrize(("replicas", "weight"), [(3, 50), (7, 30), (80, 33), (250, 4)])
    def test_what_is_between_two_pods_or_two_percent_does_not_stop_an_exchange(
        self, replicas: int, weight: int
    ) -> None:
        world = self.half(replicas, weight)
        assert world.status.candidate
        assert world.status.candidate.desired == -(-replicas * weight // 100)
        if weight < 33:
            world.judge(BAD).until("RolledBack")

    def half(self, replicas: int, weight: int = 50, **changes: Any) -> World:
        """In the middle of a step, at its weight."""
        steps = [{"weight": weight, "duration": "10h"}]
        spec = spec_of(
            workload=workload(elastic=True, replicas=replicas),
            strategy={"canary": {"steps": steps}},
            progressDeadline="2m",
            **changes,
        )
        world = World(spec=spec, room=replicas + 1, starting=20.0).healthy().release("2")
        for _ in range(2000):
            world.tick(5)
            if world.status.weights.candidate == weight:
                return world.run(120)
        raise AssertionError(world.status.message)

    def test_the_way_back_ends_in_time_when_its_pods_do_not_come(self) -> None:
        world = self.half(8)
        world.starting = 1e6
        world.judge(BAD).until("RollingBack").run(110)
        assert world.status.weights.candidate == 50
        world.run(15)
        assert world.status.weights.candidate == 0

    @pytest.mark.parametrize("surge", [1, 0])
    def test_the_way_back_goes_pod_by_pod_and_never_lacks_two(self, surge: int) -> None:
        world = self.half(8)
        old, new = world.status.stable, world.status.candidate
        assert old and new
        assert (old.desired, new.desired) == (4, 4)
        world.room = 8 + surge
        world.judge(BAD)
        for _ in range(5000):
            world.tick(1)
            ready = sum(world.seen().of(revision).ready for revision in (old.revision, new.revision))
            assert ready >= 8 - (surge == 0)
            if world.status.phase == "RolledBack":
                break
        assert world.status.phase == "RolledBack"
        assert world.status.stable
        assert world.status.stable.revision == old.revision
        # Without any room the last pod gets its place when the candidate has left.
        world.run(120)
        assert world.seen().of(old.revision).ready == 8

    def test_a_pod_that_was_told_to_go_takes_nothing_over(self) -> None:
        world = self.half(8)
        old = world.status.stable
        assert old
        world.pods[old.revision].append(world.pods[old.revision][0])
        world.judge(BAD).tick(1)
        assert (world.status.phase, world.status.weights.candidate) == ("RollingBack", 50)
        assert world.status.candidate
        assert world.status.candidate.desired == 4

    def test_a_weight_between_two_pods_keeps_both(self) -> None:
        """66 % of three pods are two."""
        steps = [{"weight": 66, "duration": "10h"}]
        spec = spec_of(workload=workload(elastic=True, replicas=3), strategy={"canary": {"steps": steps}})
        world = World(spec=spec, room=4, starting=20.0).healthy().release("2").run(400)
        assert world.status.candidate
        assert (world.status.candidate.desired, world.status.weights.candidate) == (2, 66)
        world.judge(BAD).run(15)
        assert (world.status.candidate.desired, world.status.weights.candidate) == (2, 66)

    def test_the_end_of_the_watch_needs_no_room_for_all_that_was_held_back(self) -> None:
        world = self.half(8, watch={"duration": "10m", "holdback": 40}).ask("promote")
        world.until("Watching", limit=7200)
        assert world.status.previous
        old = world.status.previous.revision
        world.until("Healthy", limit=7200)
        assert world.status.stable
        assert world.status.stable.ready == 8
        assert len(world.pods.get(old, ())) <= 1

    def test_a_new_release_waits_for_pods_that_retire(self) -> None:
        world = self.half(4)
        world.release("3")
        for _ in range(400):
            world.tick(5)
            assert sum(map(len, world.pods.values())) <= 5
            if world.status.candidate and world.status.candidate.ready and world.status.attempt == 3:
                return
        raise AssertionError(world.status.message)


class TestPodRatioSizes:
    """Readiness is weight."""

    def world(self, **changes: Any) -> World:
        return World(spec=spec_of(traffic={"podRatio": {}}, **changes)).healthy().release("2")

    def test_a_lowered_step_gives_its_pods_back(self) -> None:
        steps = [{"weight": 50, "duration": "1h"}]
        world = started(self.world(strategy={"canary": {"steps": steps}}))
        world.edit(strategy={"canary": {"steps": [{"weight": 25, "duration": "1h"}]}}).run(90)
        assert (len(world.pods[world.revision]), world.status.weights.candidate) == (1, 25)

    def test_scaling_up_does_not_take_all_traffic_away(self) -> None:
        steps = [{"weight": 50, "duration": "1h"}]
        world = started(self.world(strategy={"canary": {"steps": steps}}))
        world.edit(workload=workload(replicas=400))
        for _ in range(10):
            world.tick(1)
            assert world.status.weights.candidate > 0

    def test_with_nothing_held_back_the_last_pod_goes_after_drain_delay(self) -> None:
        world = self.world(watch={"duration": "10m", "holdback": 0, "standby": 0}).judge(GOOD)
        old = world.status.stable
        assert old
        zero_at = gone_at = None
        for _ in range(2000):
            world.tick(1)
            if zero_at is None and world.routed and old.revision not in world.routed[0]:
                zero_at = world.now
            if not world.pods.get(old.revision):
                gone_at = world.now
                break
        assert zero_at is not None
        assert gone_at is not None
        assert gone_at - zero_at >= 30


def test_deciding_again_from_what_was_written_changes_nothing(world: World) -> None:
    """S8, S11: a restart reads the same, and decides the same."""
    started(world)
    for _ in range(3):
        world.tick()
    again = decide(world.wish(), world.status, world.seen(), world.judged, now=world.now, timing=TIMING)
    assert again.status == world.status
    assert not again.events


class TestALostStatus:
    """Objects that came without it: made anew after `--cascade=orphan`, or restored."""

    def lost(self, world: World, *, named: str | None = None) -> World:
        """The status is gone in the middle of a rollout at 50 %; what the route and the pods are stays."""
        steps = [{"weight": 10, "duration": "10s"}, {"weight": 50, "duration": "1h"}]
        started(world.edit(strategy={"canary": {"steps": steps}})).run(120)
        assert world.status.stable and world.status.weights.candidate == 50
        world.pinned, world.status = world.status.stable.revision, Status()
        return world if named is None else world.release(named)

    @pytest.mark.parametrize(
        "elastic", [False, True], ids=["beside a whole baseline", "as pods are exchanged"]
    )
    @pytest.mark.parametrize("named", [None, "1", "3"], ids=["the candidate", "the baseline", "a third one"])
    def test_pods_that_answer_outlast_their_weight(
        self, world: World, named: str | None, elastic: bool
    ) -> None:
        candidate = world.edit(workload=workload(elastic=elastic)).revision
        world = self.lost(world, named=named)
        for _ in range(25):
            world.tick(1)
            assert len(world.pods[candidate]) == 2
        world.run(120)
        assert len(world.pods.get(candidate, ())) == (0 if named else 2)

    def test_pods_stay_as_long_as_the_route_can_not_be_written(self, world: World) -> None:
        candidate = world.revision
        world = self.lost(world, named="1")
        world.route_refused = True
        world.run(300)
        assert len(world.pods[candidate]) == 2
        world.route_refused = False
        world.run(29)
        assert len(world.pods[candidate]) == 2
        world.run(90)
        assert candidate not in world.pods

    def test_by_pod_ratio_nothing_that_answers_goes_before_the_others_are_ready(self) -> None:
        world = World(spec=spec_of(traffic={"podRatio": {}})).healthy().release("2")
        stable = world.status.stable
        assert stable
        world = self.lost(world)
        world.pinned, world.starting = None, 20.0
        for _ in range(25):
            world.tick(1)
            assert len(world.pods[stable.revision]) == 2
        world.until("Healthy")


class TestADeadPromotedRevision:
    """S1 sends everything to the previous revision in the watch; that is no rest."""

    def watched(self, **changes: Any) -> tuple[World, str, str]:
        """A watch whose promoted revision has just lost all pods; both revisions."""
        world = World(spec=spec_of(**changes)).healthy().release("2").judge(GOOD).until("Watching").run(60)
        assert world.status.previous
        promoted, previous = world.revision, world.status.previous.revision
        world.lose(promoted, 4).run(10)
        return world, promoted, previous

    def test_it_is_not_ready_and_the_message_says_why(self) -> None:
        world, promoted, _ = self.watched()
        assert world.status.weights.previous == 100
        assert world.condition("Ready") == ("False", "StableUnavailable")
        assert world.condition("Reconciling") == ("True", "StableUnavailable")
        assert "0 of 4 pods ready" in (world.status.message or "")
        world.lose(promoted, 0).run(60)
        assert world.condition("Ready") == ("True", "Watching")
        world.until("Healthy")

    @pytest.mark.parametrize(
        "hold", ["nothing", "paused", "outage", "promote", "outlier"], ids=lambda hold: f"{hold} holds it"
    )
    def test_it_goes_back_within_the_progress_deadline(self, hold: str) -> None:
        world, promoted, previous = self.watched()
        if hold == "paused":
            world.edit(paused=True)
        elif hold == "outage":
            world.judge(Judgement(data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now))
        elif hold == "promote":
            world.ask("promote")
        elif hold == "outlier":
            world.judge(OUTLIER)
        world.run(560)
        assert world.status.phase == "Watching"
        world.until("RolledBack", limit=120)
        assert world.status.stable and world.status.stable.revision == previous
        assert world.status.rejected and world.status.rejected.revision == promoted
        last = world.status.history[0]
        assert (last.outcome, last.reason) == ("RolledBackAfterPromotion", "ProgressDeadlineExceeded")
        assert "0 of 4 pods ready" in (last.message or "")

    def test_without_a_pod_that_stands_by_it_goes_back_too(self) -> None:
        watch = {"duration": "10m", "holdback": 0, "standby": 0}
        world, _, previous = self.watched(watch=watch)
        assert not world.pods.get(previous)
        world.until("RolledBack", limit=700)

    def test_if_nothing_is_ready_nothing_goes_back_and_the_watch_does_not_end(self) -> None:
        world, promoted, previous = self.watched()
        world.lose(previous, 4).run(3600)
        assert (world.status.phase, world.condition("Ready")) == ("Watching", ("False", "StableUnavailable"))
        world.lose(promoted, 0).lose(previous, 0).until("Healthy", limit=900)
        assert world.status.stable and world.status.stable.revision == promoted

    def test_what_was_ready_again_has_its_whole_time_again(self) -> None:
        world, promoted, _ = self.watched()
        world.run(500).lose(promoted, 0).run(60).lose(promoted, 4).run(500)
        assert world.status.phase == "Watching"


class TestADeadlineIsForWhatIsWaitedFor:
    """The steps' own durations are asked for, however long they are; what comes beside them is limited."""

    LONG: ClassVar[list[dict[str, Any]]] = [
        {"weight": 10, "duration": "4h"},
        {"weight": 50, "duration": "4h"},
    ]

    def released(self, **analysis: Any) -> World:
        usual = spec_of()["analysis"] if analysis.get("mode") != "Off" else {}
        spec = spec_of(strategy={"canary": {"steps": self.LONG}}, analysis={**usual, **analysis})
        world = World(spec=spec).healthy()
        world.release("2")
        return world

    def test_what_is_harmless_is_promoted_by_a_plan_that_is_longer(self) -> None:
        world = self.released(deadline="1h", onInconclusive="Rollback")
        world.judge(GOOD)
        world.run(9 * 3600)
        assert "Inconclusive" not in world.reasons()
        assert world.status.history[0].outcome == "Promoted"

    def test_so_is_what_is_not_analysed(self) -> None:
        world = self.released(mode="Off")
        world.judge(Judgement())
        world.run(9 * 3600)
        assert "Inconclusive" not in world.reasons()
        assert world.status.history[0].outcome == "Promoted"

    def test_so_is_what_is_not_analysed_any_more(self) -> None:
        world = self.released()
        world.until("Progressing").run(5 * 3600)
        assert world.status.step and (world.status.step.index, world.status.step.requests_at_start) == (
            1,
            1000,
        )
        world.edit(analysis={"mode": "Off"}).judge(Judgement())
        world.run(4 * 3600)
        assert world.status.history[0].outcome == "Promoted"

    def test_requests_that_nobody_counts_any_more_are_not_waited_for(self) -> None:
        steps = [{"weight": weight, "duration": "1m", "minRequests": 5000} for weight in (10, 50)]
        world = World(spec=spec_of(strategy={"canary": {"steps": steps}})).healthy()
        world.release("2").until("Progressing").run(300, every=30)
        assert world.condition("Reconciling") == ("True", "AwaitingRequests")
        world.edit(analysis={**spec_of()["analysis"], "mode": "Off"}).judge(Judgement())
        world.until("Watching", limit=900)

    def test_what_is_not_proven_by_the_end_of_the_steps_has_that_long(self) -> None:
        world = self.released(deadline="1h")
        world.run(8.5 * 3600)
        assert world.condition("Reconciling") == ("True", "AwaitingEvidence")
        world.run(3600)
        assert world.condition("Reconciling") == ("True", "Inconclusive")

    def test_what_the_newest_samples_may_prove_is_not_called_inconclusive(self) -> None:
        world = self.released(deadline="1h")
        world.run(8.5 * 3600)
        world.judge(replace(NEUTRAL, pending=True))
        world.run(3600)
        assert "Inconclusive" not in world.reasons()
        world.judge(GOOD)
        world.run(600, every=30)
        assert world.status.history[0].outcome == "Promoted"


class TestTheUsersOwnScalers:
    """Behind Services of the user's, pods come and go by the user's autoscaler: what both sides shrank to is enough."""

    TEN: ClassVar[dict[str, Any]] = {"canary": {"steps": [{"weight": 10, "duration": "2m"}]}}
    PAIR: ClassVar[dict[str, Any]] = {"stable": {"name": "a"}, "candidate": {"name": "c"}}

    def released(self, **changes: Any) -> tuple[World, str]:
        """The first step of another version, beside four pods of what serves; and which revision serves."""
        first = self.PAIR | {"candidate": {"name": "b"}}
        world = World(spec=spec_of(workload={"replicas": 4, "services": first})).healthy()
        world.edit(workload={"replicas": 4, "services": self.PAIR}, **changes).release("2")
        stable = started(world).status.stable
        assert stable
        return world, stable.revision

    def night(self) -> World:
        """At the start there were four pods, and by now there are two for each."""
        world, stable = self.released()
        world.run(120).edit(workload={"replicas": 1, "services": self.PAIR})
        world.own = {stable: 2, world.revision: 2}
        return world.run(30)

    def test_the_promotion_needs_no_more(self) -> None:
        world = self.night().judge(GOOD)
        world.until("Watching", limit=900)
        assert world.status.history[0].outcome == "Promoted"

    def test_nothing_goes_back_to_a_version_whose_pods_the_user_took_away(self) -> None:
        world = self.night().edit(watch={"duration": "1h", "holdback": 0, "standby": 0}).judge(GOOD)
        world.until("Watching", limit=900).run(60)
        assert world.status.stable
        assert world.status.previous
        assert world.status.previous.desired == 0
        promoted = world.status.stable.revision
        world.own[world.status.previous.revision] = 0
        world.run(5).lose(promoted, 9).run(900)
        assert world.status.phase == "Watching"
        world.lose(promoted, 0).until("Healthy", limit=7200, every=30)
        assert world.status.stable.revision == promoted

    def by_day(self, candidate: int) -> tuple[World, str]:
        """Four pods of the baseline and so many of the candidate, in the middle of a step of 50 %; and whose pods are the
        baseline's."""
        world, stable = self.released(strategy={"canary": {"steps": [{"weight": 50, "duration": "1h"}]}})
        world.edit(workload={"replicas": 1, "services": self.PAIR})
        world.own = {stable: 4, world.revision: candidate}
        return world.run(60), stable

    def test_a_pod_that_the_baseline_has_too_many_for_a_moment_is_not_missed_for_ever(self) -> None:
        world, stable = self.by_day(candidate=2)
        world.own[stable] = 5  # as a rolling restart does
        world.run(10)
        world.own[stable] = 4
        world.run(1800, every=30)
        assert (world.status.phase, world.status.weights.candidate) == ("Progressing", 50)

    def test_a_baseline_that_grows_again_and_again_holds_no_promotion_for_ever(self) -> None:
        """Its scaler goes up and down; the candidate is too small for either size, and has progressDeadline once."""
        world, stable = self.released(strategy=self.TEN)
        world.own = {stable: 4, world.revision: 1}
        world.judge(GOOD).until("Promoting")
        for size in (5, 4) * 5:
            world.own[stable] = size
            world.run(240, every=10)
        assert world.status.phase == "RolledBack"

    def test_what_both_shrank_to_is_enough_for_a_promotion_after_a_day_of_more(self) -> None:
        world, stable = self.by_day(candidate=4)
        world.own = {stable: 8, world.revision: 8}
        world.run(600, every=30)
        world.own = {stable: 2, world.revision: 2}
        world.run(60).judge(GOOD).run(3600, every=30)
        assert world.status.history[0].outcome == "Promoted"

    def test_the_way_back_is_not_held(self) -> None:
        world = self.night().judge(BAD)
        world.until("RolledBack", limit=60)

    def test_a_candidate_that_is_kept_small_is_told_who_has_to_scale_it(self) -> None:
        """It was proven harmless, and it takes over with as many pods as the baseline has or not at all."""
        world, stable = self.released(strategy=self.TEN)
        world.own, said = {stable: 4, world.judge(GOOD).revision: 1}, ""
        for _ in range(200):
            world.tick(10)
            if world.status.phase == "Promoting":
                said = str(world.status.message)
            if world.status.phase == "RolledBack":
                break
        mend = "1 of 4 pods ready: your workload has 1 in all, scale that to 4"
        assert said == f"promoting: {mend}"
        assert world.status.history[0].message == f"{mend} within progressDeadline"
