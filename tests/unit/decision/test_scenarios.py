"""A rollout from start to end, and everything that may come between, decided in a cluster in miniature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.status import Phase
from modelrollout.decision.types import Data, GuardrailReading, Judgement
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, START, World, assessment, spec_of, started

OUTAGE = Judgement(
    data=Data.UNAVAILABLE, problem="DuplicateSeries: errors", failed_polls=3, outage_since=START
)


def test_a_first_deployment_becomes_healthy_without_a_comparison() -> None:
    world = World()
    world.tick()
    assert world.status.phase == Phase.PENDING
    world.healthy()
    assert world.status.history[0].reason == "FirstDeployment"
    assert world.status.history[0].unproven
    assert world.condition("Ready") == ("True", "Healthy")


def test_a_proven_candidate_is_promoted_and_watched(world: World) -> None:
    world.judge(GOOD).until("Watching")
    assert world.status.stable and world.status.stable.model == "fraud 2"
    assert world.status.weights.previous == 10
    assert world.status.history[0].outcome == "Promoted"
    assert not world.status.history[0].unproven
    world.until("Healthy")
    assert [gone.desired for gone in world.status.retiring] == [4]
    world.run(60)
    assert not world.status.retiring


def test_a_harmful_candidate_is_rolled_back_and_not_tried_again(world: World) -> None:
    started(world).judge(BAD).until("RolledBack")
    assert world.status.rejected and world.status.rejected.reason == "HarmProven"
    assert world.condition("Stalled") == ("True", "RolledBack")
    world.edit(strategy={"canary": {"steps": [{"weight": 5}]}}).run(60)
    assert world.status.phase == "RolledBack"


def test_harm_counts_while_the_rollout_is_paused(world: World) -> None:
    started(world).edit(paused=True).run(30)
    assert world.status.phase == "Paused"
    world.judge(BAD).until("RolledBack")


def test_both_proven_is_within_the_margin_and_no_harm(world: World) -> None:
    both = replace(assessment(harmless=True), harm=True)
    world.judge(GOOD, assessment=both).until("Watching")


def test_a_step_waits_for_its_requests() -> None:
    spec = spec_of(strategy={"canary": {"steps": [{"weight": 10, "minRequests": 500}, {"weight": 50}]}})
    world = World(spec=spec).healthy().release("2")
    started(world)
    world.run(60)
    assert world.status.step and world.status.step.index == 0
    assert "0 of 500" in (world.status.message or "")
    world.judge(NEUTRAL, assessment=assessment(requests=1500)).run(10)
    assert world.status.step and world.status.step.index == 1


def test_an_approval_is_bound_to_its_step_and_revision() -> None:
    spec = spec_of(strategy={"canary": {"steps": [{"weight": 10, "approval": True}, {"weight": 50}]}})
    world = World(spec=spec).healthy().release("2")
    started(world).run(30)
    assert world.status.phase == "Paused"
    assert "AwaitingApproval" in world.reasons()
    world.ask("approve", step="000000").run(10)
    assert world.reasons()[-1] == "RequestIgnored"
    assert world.status.step
    world.ask("approve", step=world.status.step.id, salt="2").run(10)
    assert world.status.step.index == 1


@pytest.mark.parametrize(
    "gating", [True, False], ids=["a gating guardrail rolls back", "a dry run only reports"]
)
def test_guardrails(world: World, gating: bool) -> None:
    reading = GuardrailReading("gpu", 80000.0, "≤ 70000", breaches=3, breached=True, gating=gating)
    started(world).judge(NEUTRAL, guardrails=(reading,)).run(60)
    assert world.status.phase == ("RolledBack" if gating else "Progressing")


class TestMissingData:
    """S6: no decision is ever taken from missing data."""

    def test_an_outage_holds_weight_and_clock_and_then_the_rollout_goes_on(self, world: World) -> None:
        started(world)
        world.judge(OUTAGE, outage_since=world.now).run(300)
        assert world.status.phase == "Progressing"
        assert world.status.step and world.status.step.index == 0
        left = world.status.step.left
        assert left is not None
        assert left > 50
        assert world.condition("MetricsAvailable") == ("False", "DuplicateSeries")
        world.judge(GOOD).until("Watching")

    def test_a_long_outage_parks_the_candidate_and_data_restore_it(self, world: World) -> None:
        started(world)
        world.judge(OUTAGE, outage_since=world.now).run(1900, every=5)
        assert world.status.parked
        assert world.status.weights.candidate == 0
        assert world.pods[world.revision]
        world.judge(NEUTRAL).run(60)
        assert world.status.weights.candidate == 10

    def test_an_outage_moves_no_weight_in_the_watch_and_ends_by_its_latest(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        began = world.now
        world.judge(OUTAGE, outage_since=world.now).run(900)
        assert world.status.weights.previous == 10
        world.until("Healthy")
        assert 1190 <= world.now - began <= 1230

    def test_no_data_in_the_newest_poll_keeps_the_step(self, world: World) -> None:
        started(world).judge(NEUTRAL, assessment=assessment(has_data=False)).run(300)
        assert world.status.step and world.status.step.index == 0
        assert "no data for errors" in (world.status.message or "")

    def test_no_data_in_the_newest_poll_promotes_nothing(self, world: World) -> None:
        world.judge(NEUTRAL)
        while not (world.status.step and world.status.step.index == 1):
            world.tick(5)
        world.judge(NEUTRAL, assessment=assessment(harmless=True, has_data=False)).run(600)
        assert world.status.phase == "Progressing"


class TestRequests:
    """Annotations."""

    def test_abort_takes_traffic_back(self, world: World) -> None:
        started(world).ask("abort").until("RolledBack")
        assert world.status.history[0].reason == "Aborted"

    def test_retry_starts_a_new_attempt(self, world: World) -> None:
        started(world).ask("abort").until("RolledBack")
        world.ask("retry").judge(GOOD).until("Watching")
        assert world.status.attempt == 3

    def test_promote_skips_the_steps_but_not_the_pods(self, world: World) -> None:
        started(world).ask("promote").until("Promoting")
        assert world.status.weights.candidate == 10
        world.until("Watching")
        assert world.status.history[0].unproven

    def test_pause_and_resume(self, world: World) -> None:
        started(world).ask("pause").run(300)
        assert world.condition("Reconciling") == ("True", "UserRequest")
        world.ask("resume").judge(GOOD).until("Watching")

    def test_an_equal_value_asks_for_nothing_again(self, world: World) -> None:
        started(world).ask("pause").run(20).ask("resume").run(20)
        count = len(world.events)
        world.run(20)
        assert world.status.phase == "Progressing"
        assert len(world.events) == count

    def test_requests_found_on_an_empty_status_count_as_handled(self) -> None:
        world = World(annotations={"abort": "aaaaaaaaaa"})
        world.healthy()
        assert "RequestIgnored" not in world.reasons()
        assert world.status.requests.abort == "aaaaaaaaaa"


class TestDeadlines:
    """Waits have ends."""

    def test_pods_that_never_become_ready_are_rolled_back(self, world: World) -> None:
        world.broken.add(world.revision)
        world.until("RolledBack", limit=700)
        assert world.status.history[0].reason == "ProgressDeadlineExceeded"

    def test_a_route_that_is_not_accepted_is_rolled_back(self, world: World) -> None:
        world.tick(5)
        world.route_refused = True
        world.until("RollingBack", limit=800)
        assert world.status.history[0].reason == "RouteNotAccepted"

    def test_a_broken_first_deployment_stalls_and_a_new_revision_heals_it(self) -> None:
        world = World()
        world.broken.add(world.revision)
        world.run(700)
        assert world.status.phase == "Pending"
        assert world.condition("Stalled") == ("True", "ProgressDeadlineExceeded")
        world.release("2").healthy()

    def test_a_pause_longer_than_the_progress_deadline_is_no_timeout(self, world: World) -> None:
        started(world).edit(paused=True).run(3000)
        assert world.status.phase == "Paused"

    @pytest.mark.parametrize(
        ("wanted", "phase"),
        [("Pause", "Paused"), ("Promote", "Watching"), ("Rollback", "RolledBack")],
    )
    def test_an_inconclusive_comparison_ends_as_the_spec_says(self, wanted: str, phase: str) -> None:
        metrics = spec_of()["analysis"]["metrics"]
        spec = spec_of(analysis={"metrics": metrics, "deadline": "20m", "onInconclusive": wanted})
        world = World(spec=spec).healthy().release("2")
        world.until(phase, limit=2000)
        assert "Inconclusive" in world.reasons()

    def test_resume_after_inconclusive_grants_one_more_deadline(self) -> None:
        metrics = spec_of()["analysis"]["metrics"]
        spec = spec_of(analysis={"metrics": metrics, "deadline": "20m"})
        world = World(spec=spec).healthy().release("2").until("Paused", limit=2000)
        world.ask("resume").run(600)
        assert world.status.phase == "Progressing"
        world.until("Paused", limit=1300)


class TestOtherRevisions:
    """The spec changes its mind."""

    def test_the_old_revision_again_goes_back(self, world: World) -> None:
        started(world).release("1").until("Healthy")
        assert world.status.history[0].outcome == "Reverted"
        assert world.status.rejected is None

    def test_a_third_revision_supersedes_the_second(self, world: World) -> None:
        started(world).release("3").until("RollingBack")
        world.until("Progressing")
        assert world.status.candidate and world.status.candidate.model == "fraud 3"
        assert world.status.history[1].outcome == "Superseded"

    def test_a_third_revision_while_promoting_finishes_the_promotion_first(self, world: World) -> None:
        world.judge(GOOD).until("Promoting")
        world.release("3").judge(NEUTRAL).until("Watching")
        assert world.status.stable and world.status.stable.model == "fraud 2"
        world.until("Progressing")
        assert world.status.candidate and world.status.candidate.model == "fraud 3"
        assert world.status.history[1].outcome == "Promoted"

    def test_a_third_revision_in_the_watch_ends_it(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        world.release("3").judge(NEUTRAL).until("Progressing", limit=120)
        assert world.status.previous is None

    def test_the_previous_revision_in_the_watch_is_a_way_back(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        world.release("1").until("Healthy")
        assert world.status.stable and world.status.stable.model == "fraud 1"
        assert world.status.history[0].outcome == "Reverted"

    def test_harm_in_the_watch_goes_back_and_rejects(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        world.judge(BAD).until("RolledBack")
        assert world.status.stable and world.status.stable.model == "fraud 1"
        assert world.status.history[0].outcome == "RolledBackAfterPromotion"

    def test_the_stable_revision_after_a_rollback_is_healthy(self, world: World) -> None:
        started(world).judge(BAD).until("RolledBack")
        world.release("1").until("Healthy")
        assert world.status.rejected is None
        world.judge(NEUTRAL).release("2").until("Progressing")


class TestPods:
    """S1–S4, S9."""

    def test_a_candidate_without_ready_pods_gets_nothing(self, world: World) -> None:
        started(world).lose(world.revision, 1).tick(1)
        assert world.status.weights.candidate == 0

    def test_what_is_ready_serves_when_the_baseline_is_gone(self, world: World) -> None:
        started(world)
        assert world.status.stable
        world.lose(world.status.stable.revision, 4).tick(1)
        assert world.status.weights.candidate == 100
        assert world.status.candidate and world.status.candidate.desired == 4
        assert "StableUnavailable" in world.reasons()

    def test_traffic_returns_as_the_baseline_can_carry_it(self, world: World) -> None:
        started(world).judge(GOOD).until("Watching")
        stable, previous = world.status.stable, world.status.previous
        assert stable
        assert previous
        world.lose(previous.revision, 3).tick(1)
        world.judge(BAD).tick(1)
        world.run(30)
        assert world.status.phase == "RollingBack"
        assert world.status.weights.candidate == 75
        world.lose(previous.revision, 0).until("RolledBack")

    def test_the_way_back_ends_in_time_as_long_as_one_pod_is_ready(self, world: World) -> None:
        world.judge(GOOD).until("Watching")
        assert world.status.previous
        world.lose(world.status.previous.revision, 3).judge(BAD).until("RolledBack", limit=700)

    def test_a_flapping_candidate_is_unstable(self, world: World) -> None:
        started(world)
        for _ in range(4):
            world.lose(world.revision, 1).run(5).lose(world.revision, 0).run(5)
        assert world.status.history[0].reason == "CandidateUnstable"

    def test_restarting_containers_are_unstable(self, world: World) -> None:
        started(world)
        world.restarts[world.revision] = 3
        world.until("RolledBack", limit=60)
        assert world.status.history[0].reason == "CandidateUnstable"

    def test_scaling_up_in_a_step_does_not_drop_the_weight(self, world: World) -> None:
        started(world)
        workload = {**world.spec["workload"], "replicas": 40}
        world.edit(workload=workload)
        weights = [world.tick(1) and world.status.weights.candidate for _ in range(5)]
        assert set(weights) == {10}
        assert world.status.candidate and world.status.candidate.desired == 4

    def test_pods_that_come_seconds_after_the_baselines_cost_no_weight(self, world: World) -> None:
        started(world)
        world.edit(workload={**world.spec["workload"], "replicas": 40}).tick(1)
        world.lose(world.revision, 3)
        weights = [world.tick(1) and world.status.weights.candidate for _ in range(20)]
        assert set(weights) == {10}
        world.run(20)
        assert world.status.weights.candidate == 2, "they do not come at all"


def test_a_restored_cluster_goes_on_with_what_serves() -> None:
    world = World(spec=spec_of("2"))
    world.pods["aaaaaaaaaa"] = [START]
    world.pinned = "aaaaaaaaaa"
    world.tick()
    assert world.status.stable and world.status.stable.revision == "aaaaaaaaaa"
    assert world.status.attempt == 1
    assert world.status.candidate and world.status.candidate.revision == world.revision


class TestBadSpecs:
    """A spec that is not acceptable freezes forward motion only."""

    def test_an_invalid_first_spec_is_invalid_and_heals(self) -> None:
        world = World(problem="spec.x: write y")
        world.tick()
        assert world.status.phase == "Invalid"
        assert world.condition("Stalled") == ("True", "InvalidSpec")
        assert world.events[-1] == ("Invalid", "InvalidSpec: spec.x: write y")
        world.run(20)
        assert len(world.events) == 1
        world.problem = None
        world.healthy()

    def test_an_invalid_edit_holds_the_next_step_and_harm_still_rolls_back(self, world: World) -> None:
        started(world)
        world.problem = "spec.x: write y"
        world.generation += 1
        world.run(300)
        assert world.status.step and world.status.step.index == 0
        assert world.condition("Ready") == ("False", "InvalidSpec")
        world.judge(BAD).until("RolledBack")

    def test_another_route_waits_for_rest(self, world: World) -> None:
        started(world).edit(traffic={"gatewayAPI": {"parentRefs": [{"name": "other"}]}}).run(10)
        assert world.condition("Accepted") == ("False", "NotNow")
        assert world.status.accepted
        assert world.status.accepted["traffic"]["gatewayAPI"]["parentRefs"][0]["name"] == "public"


class TestPlanEdits:
    """The plan changes in the middle of a rollout."""

    def edit(self, world: World, *weights: int, duration: str = "1m") -> World:
        steps = [{"weight": weight, "duration": duration} for weight in weights]
        return world.edit(strategy={"canary": {"steps": steps}})

    def test_an_unchanged_step_stays_with_its_clock(self, world: World) -> None:
        started(world)
        assert world.status.step
        ends = world.status.step.ends_at
        self.edit(world, 1, 10, 70).tick(1)
        assert world.status.step.ends_at == ends
        assert world.status.step.display == "2/3"

    def test_a_smaller_weight_restarts_the_clock(self, world: World) -> None:
        started(world)
        self.edit(world, 5, 70).tick(1)
        assert world.status.weights.candidate == 5
        assert world.status.step and world.status.step.started_at is None

    def test_an_edit_never_raises_the_weight(self, world: World) -> None:
        started(world)
        self.edit(world, 20, 70).tick(1)
        assert world.status.weights.candidate == 10
        assert world.status.step and world.status.step.display == "1/3"
        world.run(70)
        assert world.status.step and world.status.step.index >= 0
        assert world.status.plan[world.status.step.index].weight == 20

    def test_a_longer_duration_adds_to_what_is_left(self, world: World) -> None:
        started(world)
        assert world.status.step
        ends = world.status.step.ends_at
        assert ends
        world.edit(
            strategy={
                "canary": {"steps": [{"weight": 10, "duration": "3m"}, {"weight": 50, "duration": "2m"}]}
            }
        ).tick(1)
        assert world.status.step.ends_at == ends + 120


class TestDurationEdits:
    """A duration changes while its clock runs, or is held: what it gains or loses is added to what is left."""

    ANALYSIS = spec_of()["analysis"]

    def left(self, end: float | None, rest: float | None, world: World) -> float:
        assert (end is None) != (rest is None)
        return rest if end is None else end - world.now  # type: ignore[return-value]

    @pytest.mark.parametrize(
        ("deadline", "left"),
        [("24h", 18 * 3600.0), ("1h", -5 * 3600.0), ("6h", 0.0)],
        ids=["longer", "shorter", "the same"],
    )
    @pytest.mark.parametrize("paused", [False, True], ids=["running", "held"])
    def test_the_deadline(self, world: World, deadline: str, left: float, paused: bool) -> None:
        started(world).edit(paused=paused).run(30)
        status = world.status
        before = self.left(status.deadline_at, status.deadline_left, world)
        world.edit(analysis={**self.ANALYSIS, "deadline": deadline}, paused=paused).tick(0)
        status = world.status
        assert self.left(status.deadline_at, status.deadline_left, world) == pytest.approx(before + left)
        now = world.now
        world.run(30)
        after = self.left(world.status.deadline_at, world.status.deadline_left, world)
        assert before + left - (world.now - now) <= after <= before + left, "only once"

    def test_a_deadline_that_gets_longer_in_time_does_not_pass(self, world: World) -> None:
        world.edit(analysis={**self.ANALYSIS, "deadline": "1h"})
        started(world).judge(NEUTRAL).run(3000)
        world.edit(analysis={**self.ANALYSIS, "deadline": "3h"}).run(2000)
        assert world.status.phase == "Progressing"
        world.until("Paused", limit=3 * 3600, every=30)
        assert world.condition("Reconciling") == ("True", "Inconclusive")

    def test_a_resumption_with_another_deadline_grants_that_one(self, world: World) -> None:
        world.edit(analysis={**self.ANALYSIS, "deadline": "1h"})
        started(world).judge(NEUTRAL).until("Paused", limit=4000)
        world.edit(analysis={**self.ANALYSIS, "deadline": "3h"}).ask("resume").tick(0)
        assert world.status.deadline_at == world.now + 3 * 3600

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "held"])
    def test_the_watch(self, world: World, paused: bool) -> None:
        world.judge(GOOD).until("Watching")
        world.edit(paused=paused).run(30)
        watch = world.status.watch
        assert watch
        before, latest = self.left(watch.ends_at, watch.left, world), watch.latest
        world.edit(watch={"duration": "24h", "holdback": 10}, paused=paused).tick(0)
        watch, more = world.status.watch, 24 * 3600.0 - 600.0
        assert watch
        assert self.left(watch.ends_at, watch.left, world) == pytest.approx(before + more)
        assert watch.latest == latest + 2 * more
        if not paused:
            world.run(12 * 3600, every=60)
            assert world.status.phase == "Watching"
        world.edit(watch={"duration": "10m", "holdback": 10}, paused=False).until("Healthy")

    def test_the_deadline_of_progress(self, world: World) -> None:
        world.broken.add(world.revision)
        world.run(300)
        ends = world.status.progress_deadline_at
        assert ends
        world.edit(progressDeadline="30m").tick(1)
        assert world.status.progress_deadline_at == ends + 1200
        world.run(600)
        assert world.status.phase == "Progressing"

    def test_a_shorter_drain_delay_lets_go_what_retires_for_too_long(self, world: World) -> None:
        """What holds accelerators for hours by mistake."""
        world.edit(drainDelay="1h")
        started(world).judge(BAD).until("RolledBack").run(120)
        assert world.status.retiring
        world.edit(drainDelay="1m").tick(0)
        assert not world.status.retiring

    def test_a_longer_one_comes_in_time_for_what_still_answers(self, world: World) -> None:
        world.edit(drainDelay="1h")
        started(world).judge(BAD).until("RolledBack").run(120)
        (before,) = world.status.retiring
        world.edit(drainDelay="2h").tick(0)
        (after,) = world.status.retiring
        assert after.until == before.until + 3600
        world.run(3600)
        assert world.status.retiring


def test_nothing_is_written_when_nothing_changes() -> None:
    """S11."""
    world = World().healthy()
    world.run(60)
    writes = world.writes
    world.run(600)
    assert world.writes == writes


def test_a_pod_outlier_holds_weight_and_clock(world: World) -> None:
    started(world).judge(NEUTRAL, assessment=assessment(outlier=True)).run(300)
    assert world.status.step and world.status.step.index == 0
    assert world.status.phase == "Progressing"
    assert world.reasons().count("PodOutlier") == 1


def test_a_wrong_split_holds_then_pauses(world: World) -> None:
    started(world).judge(NEUTRAL, split_off="observed 2 %, configured 10 %").run(300)
    assert world.status.phase == "Progressing"
    world.until("Paused", limit=400)
    assert world.condition("Reconciling") == ("True", "TrafficMismatch")


def test_the_step_says_what_it_waits_for(world: World) -> None:
    said = set()
    for _ in range(40):
        world.tick(5)
        reason = world.status.step.reason if world.status.step else None
        assert reason in (None, world.condition("Reconciling")[1])
        said.add(reason)
    assert said >= {"AwaitingPods", "AwaitingDuration"}


def test_mode_off_promotes_after_the_steps_unproven() -> None:
    spec = spec_of(analysis={"mode": "Off", "metrics": []})
    world = World(spec=spec).healthy().release("2").judge(Judgement())
    world.until("Watching")
    assert world.status.history[0].unproven


class TestPodRatio:
    """Readiness is weight."""

    def world(self, **changes: Any) -> World:
        return World(spec=spec_of(traffic={"podRatio": {}}, **changes)).healthy().release("2")

    def test_pods_are_exchanged_with_one_surge_pod_at_most(self) -> None:
        world = self.world().judge(GOOD)
        most = 0
        for _ in range(400):
            world.tick(5)
            most = max(most, sum(len(since) for since in world.pods.values()))
            if world.status.phase == "Watching":
                break
        assert world.status.phase == "Watching"
        assert most <= 5
        assert world.status.stable and world.status.stable.desired == 3
        assert world.status.previous and world.status.previous.desired == 1
        world.until("Healthy")
        assert world.status.stable.desired == 4

    def test_a_rollback_returns_pod_by_pod(self) -> None:
        world = started(self.world()).judge(BAD).until("RolledBack")
        assert world.status.stable and world.status.stable.ready == 4

    def test_one_replica_runs_one_of_each(self) -> None:
        workload = {**spec_of()["workload"], "replicas": 1}
        world = self.world(workload=workload).judge(GOOD)
        world.until("Watching")
        assert world.status.stable and world.status.stable.desired == 1
        world.until("Healthy")
