"""Strategies on the world in miniature: what users see of the candidate, when, and how it ends.

Every decision is held against the safety rules besides, those for copies of requests among them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from modelrollout.api.status import Phase
from modelrollout.decision.types import Data, Judgement
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, World, assessment, spec_of, started

SCORE_SILENT = replace(GOOD, assessment=assessment(harmless=True, score=True))


def released(strategy: dict[str, Any], **changes: Any) -> World:
    """A healthy rollout of version 1 with version 2 just named."""
    return World(spec=spec_of(strategy=strategy, **changes)).healthy().release("2")


def weights(world: World, seconds: float = 3600, *, every: float = 5.0) -> list[int]:
    """The candidate's weights until the watch, each once."""
    found = [world.status.weights.candidate]
    for _ in range(int(seconds / every)):
        world.tick(every)
        if world.status.phase in (Phase.WATCHING, Phase.HEALTHY, Phase.ROLLED_BACK):
            break
        if world.status.weights.candidate != found[-1]:
            found.append(world.status.weights.candidate)
    return found


class TestShadow:
    STRATEGY: ClassVar[dict[str, Any]] = {"shadow": {"mirror": 30, "duration": "5m"}}

    def test_users_never_get_the_candidate_and_the_verdict_is_kept(self) -> None:
        world = started(released(self.STRATEGY))
        assert (world.status.weights.candidate, world.status.weights.mirror) == (0, 30)
        assert world.status.candidate and world.status.candidate.desired == 2
        world.judge(GOOD)
        assert weights(world) == [0]
        status = world.status
        assert status.phase == Phase.HEALTHY
        assert status.stable and status.stable.model == "fraud 1"
        entry = status.history[0]
        assert (entry.outcome, entry.reason, entry.unproven) == ("Judged", "ProvenHarmless", False)
        assert world.condition("Ready") == ("True", "Healthy")
        assert status.message and "fraud 2 was judged and not taken over" in status.message
        assert "Judged" in world.reasons()
        world.run(600)
        assert world.status.phase == Phase.HEALTHY
        assert world.status.attempt == status.attempt, "it is not judged again by itself"
        assert not world.status.retiring

    def test_a_candidate_that_fails_on_copies_is_rolled_back(self) -> None:
        world = started(released(self.STRATEGY))
        world.judge(BAD).until("RolledBack")
        assert world.status.rejected and world.status.rejected.reason == "HarmProven"

    def test_it_is_judged_no_sooner_than_its_duration(self) -> None:
        world = started(released(self.STRATEGY)).judge(GOOD)
        world.run(290)
        assert world.status.phase == Phase.PROGRESSING

    def test_without_proof_the_deadline_says_what_happens(self) -> None:
        analysis = {**spec_of()["analysis"], "deadline": "30m"}
        world = started(released(self.STRATEGY, analysis=analysis))
        world.until("Paused")
        world.ask("promote").until("Watching")

    def test_without_proof_it_ends_unproven_if_the_deadline_may_promote(self) -> None:
        analysis = {**spec_of()["analysis"], "deadline": "30m", "onInconclusive": "Promote"}
        world = started(released(self.STRATEGY, analysis=analysis)).until("Healthy")
        entry = world.status.history[0]
        assert (entry.outcome, entry.reason, entry.unproven) == ("Judged", "Inconclusive", True)

    def test_a_score_without_labels_does_not_hold_it_up(self) -> None:
        world = started(released(self.STRATEGY)).judge(replace(SCORE_SILENT, data=Data.OK))
        world.run(30)
        assert world.status.message and "quality: not judged on copies" in world.status.message
        world.until("Healthy")
        assert not world.status.history[0].unproven

    def test_an_approval_is_waited_for_after_the_duration(self) -> None:
        world = started(released({"shadow": {"approval": True}})).judge(GOOD).until("Paused")
        assert world.status.step
        world.ask("approve", step=world.status.step.id).until("Healthy")
        assert world.status.history[0].outcome == "Judged"

    def test_canary_steps_go_on_once_it_is_proven(self) -> None:
        steps = [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}]
        strategy = {"shadow": {"mirror": 50, "then": "Canary", "canary": {"steps": steps}}}
        world = started(released(strategy))
        world.run(600)
        assert (world.status.weights.candidate, world.status.weights.mirror) == (0, 50)
        world.judge(GOOD)
        assert weights(world) == [0, 10, 50, 90]
        assert world.status.history[0].outcome == "Promoted"

    def test_who_judged_it_may_release_it_afterwards(self) -> None:
        world = started(released(self.STRATEGY)).judge(GOOD).until("Healthy")
        world.edit(strategy={"canary": {"steps": [{"weight": 20}]}}).run(60)
        assert world.status.phase == Phase.HEALTHY
        world.ask("retry").until("Watching")
        assert world.status.stable and world.status.stable.model == "fraud 2"

    def test_naming_the_old_model_again_forgets_the_verdict(self) -> None:
        world = started(released(self.STRATEGY)).judge(GOOD).until("Healthy")
        world.release("1").run(10)
        assert world.status.rejected is None
        world.release("2").tick()
        assert world.status.phase == Phase.PROGRESSING

    def test_the_steps_of_another_strategy_are_entered_when_it_is_over(self) -> None:
        world = started(released(self.STRATEGY))
        world.edit(strategy={"canary": {"steps": [{"weight": 10}]}}).judge(GOOD)
        assert weights(world) == [0, 10, 90]

    def test_users_lose_the_candidate_when_a_canary_becomes_a_shadow(self) -> None:
        world = started(released(spec_of()["strategy"]))
        assert world.status.weights.candidate == 10
        world.edit(strategy=self.STRATEGY).tick(1)
        assert world.status.weights.candidate == 0
        world.judge(GOOD).until("Healthy")
        assert world.status.history[0].outcome == "Judged"


class TestBlueGreen:
    MIRRORED: ClassVar[dict[str, Any]] = {"blueGreen": {"mirror": 20, "duration": "5m"}}
    APPROVED: ClassVar[dict[str, Any]] = {"blueGreen": {"approval": True}}

    def test_it_is_of_full_size_before_the_switch_and_then_gets_all_at_once(self) -> None:
        world = started(released(self.MIRRORED))
        assert world.status.candidate and world.status.candidate.desired == 4
        assert (world.status.weights.candidate, world.status.weights.mirror) == (0, 20)
        world.judge(GOOD)
        assert weights(world) == [0, 90]
        assert world.status.phase == Phase.WATCHING
        assert world.status.weights.mirror == 0
        assert world.status.previous and world.status.previous.desired == 4, "full standby"

    def test_the_switch_and_the_end_of_the_copies_are_one_write(self) -> None:
        world = started(released(self.MIRRORED)).judge(GOOD)
        seen = []
        for _ in range(200):
            world.tick(5)
            seen.append((world.status.weights.candidate, world.status.weights.mirror))
        assert sorted(set(seen), key=seen.index)[:2] == [(0, 20), (90, 0)]

    def test_without_a_holdback_everything_is_switched(self) -> None:
        world = started(released(self.MIRRORED, watch={"duration": "10m", "holdback": 0})).judge(GOOD)
        assert weights(world) == [0, 100]
        assert world.status.previous and world.status.previous.desired == 4

    def test_its_clock_starts_when_all_pods_are_ready(self) -> None:
        world = released(self.MIRRORED)
        world.tick()
        world.lose(world.revision, 1).run(120)
        assert world.status.step and world.status.step.started_at is None

    def test_an_approval_decides_where_nothing_is_compared(self) -> None:
        silent = replace(NEUTRAL, data=Data.NO_TRAFFIC, assessment=assessment(has_data=False, settled=0))
        world = released(self.APPROVED).judge(silent).until("Paused")
        assert world.status.step
        world.run(600)
        assert world.status.weights.candidate == 0
        world.ask("approve", step=world.status.step.id)
        assert weights(world) == [0, 90]
        assert world.status.history[0].unproven

    def test_proof_and_approval_are_both_needed(self) -> None:
        world = released({"blueGreen": {"mirror": 20, "approval": True}}).until("Paused")
        assert world.status.step
        world.ask("approve", step=world.status.step.id).run(300)
        assert (world.status.phase, world.status.weights.candidate) == (Phase.PROGRESSING, 0)
        world.judge(GOOD).until("Watching")
        assert not world.status.history[0].unproven

    def test_the_way_back_is_one_step_too(self) -> None:
        world = started(released(self.MIRRORED)).judge(GOOD).until("Watching")
        world.judge(BAD).tick(5)
        assert world.status.phase == Phase.ROLLING_BACK
        assert (world.status.weights.stable, world.status.weights.candidate) == (100, 0)
        world.until("RolledBack")
        assert world.status.history[0].outcome == "RolledBackAfterPromotion"

    def test_no_metrics_no_switch_before_the_pods_are_ready(self) -> None:
        world = released({"blueGreen": {}}, analysis={"mode": "Off"})
        world.run(20)
        assert world.status.weights.candidate == 0
        assert weights(world) == [0, 90]


class TestRolling:
    @pytest.mark.parametrize(
        ("batch", "shares"),
        [(1, [25, 50, 75]), (2, [50]), (3, [75]), ("25%", [25, 50, 75]), ("50%", [50]), (9, [75])],
    )
    def test_batches_are_exchanged_and_looked_at(self, batch: Any, shares: list[int]) -> None:
        strategy = {"rolling": {"batch": batch, "duration": "1m"}}
        world = started(released(strategy, traffic={"podRatio": {}}))
        world.judge(GOOD)
        found = dict.fromkeys([world.status.weights.candidate])
        most = 0
        for _ in range(400):
            world.tick(5)
            if world.status.phase != Phase.PROGRESSING:
                break
            roles = [world.status.stable, world.status.candidate]
            most = max(most, sum(role.desired for role in roles if role))
            found[world.status.weights.candidate] = None
        assert [weight for weight in found if weight] == shares
        assert most <= 5, "one surge pod at most"
        world.until("Healthy")

    def test_a_batch_waits_for_its_evidence_when_no_time_is_given(self) -> None:
        blank = replace(NEUTRAL, assessment=assessment(settled=0))
        world = started(released({"rolling": {"batch": 1}}, traffic={"podRatio": {}}).judge(blank))
        world.run(600)
        assert world.status.weights.candidate == 25
        world.judge(GOOD).until("Watching")

    def test_each_batch_may_wait_for_an_approval(self) -> None:
        world = released({"rolling": {"batch": 2, "approval": True}}, traffic={"podRatio": {}}).judge(GOOD)
        world.until("Paused")
        assert world.status.step
        world.ask("approve", step=world.status.step.id).until("Watching")

    def test_a_harmful_batch_is_taken_back_pod_by_pod(self) -> None:
        world = started(released({"rolling": {"batch": 2, "duration": "1m"}}, traffic={"podRatio": {}}))
        world.judge(BAD).until("RolledBack")
        assert world.status.stable and world.status.stable.desired == 4

    def test_with_a_router_the_workload_is_elastic(self) -> None:
        workload = {**spec_of()["workload"], "replicas": 7, "elastic": True}
        world = started(released({"rolling": {"batch": 2, "duration": "1m"}}, workload=workload))
        assert (
            world.status.weights.candidate,
            world.status.candidate and world.status.candidate.desired,
        ) == (28, 2)
        world.run(40)
        assert world.status.stable and world.status.stable.desired == 5
        assert [step.weight for step in world.status.plan] == [28, 57, 85]
        world.judge(GOOD).until("Healthy")

    @pytest.mark.parametrize(("replicas", "steps"), [(1, 1), (2, 1), (1000, 31)])
    def test_however_many_pods_there_are_the_batches_are_few(self, replicas: int, steps: int) -> None:
        workload = {**spec_of()["workload"], "replicas": replicas}
        world = released({"rolling": {"batch": 1}}, workload=workload, traffic={"podRatio": {}})
        world.tick()
        assert len(world.status.plan) == steps


class TestCanary:
    def test_it_may_begin_with_copies_and_need_room(self) -> None:
        steps = [{"weight": 0, "mirror": 50, "duration": "1m"}, {"weight": 10, "size": 100, "duration": "1m"}]
        world = started(released({"canary": {"steps": steps}}))
        assert world.status.candidate and world.status.candidate.desired == 2
        assert world.status.weights.mirror == 50
        world.judge(GOOD)
        assert weights(world) == [0, 10, 90]

    def test_the_size_of_a_step_is_ready_before_its_weight(self) -> None:
        world = released({"canary": {"steps": [{"weight": 10, "size": 100, "duration": "1m"}]}})
        world.tick()
        world.lose(world.revision, 3).run(100)
        assert world.status.weights.candidate == 0
        world.lose(world.revision, 0)
        started(world)
        assert world.status.weights.candidate == 10

    def test_copies_and_weight_need_pods_for_both(self) -> None:
        world = started(released({"canary": {"steps": [{"weight": 25, "mirror": 50, "duration": "1m"}]}}))
        assert world.status.candidate and world.status.candidate.desired == 3
        assert (world.status.weights.candidate, world.status.weights.mirror) == (25, 50)


def test_an_edit_of_the_holdback_takes_no_pods_from_a_weight_that_is_still_needed() -> None:
    """Found by the walk of test_invariants."""
    world = World(spec=spec_of(workload={**spec_of()["workload"], "replicas": 2})).healthy().release("2")
    world.run(50).ask("promote").until("Watching").run(50)
    assert world.status.stable
    world.lose(world.status.stable.revision, 1).tick()
    world.edit(watch={"duration": "10m", "holdback": 0, "standby": 0}).run(60)


METRICS = [
    {"name": "errors", "ratio": {"bad": 'r{code="5"}', "total": "r"}},
    {"name": "clicks", "score": {"sum": "c_sum", "count": "c_count"}},
]
BETTER = replace(GOOD, assessment=assessment(harmless=True, reward=True, superior=True))
AS_GOOD = replace(GOOD, assessment=assessment(harmless=True, reward=True))
BETTER_BUT = replace(NEUTRAL, assessment=assessment(reward=True, superior=True))
UNDECIDED = replace(NEUTRAL, assessment=assessment(reward=True))


@pytest.mark.parametrize(("delay", "grows"), [(0.0, True), (300.0, False)])
def test_a_planned_step_counts_the_time_until_samples_can_be_read(delay: float, grows: bool) -> None:
    found = assessment()
    found = replace(found, metrics=(replace(found.metrics[0], bound=30.0),))
    world = released({"canary": {}}).judge(replace(NEUTRAL, assessment=found, delay=delay))
    assert (max(weights(world, 60)) > world.status.plan[0].weight) is grows


class TestABTest:
    TEST: ClassVar[dict[str, Any]] = {"reward": "clicks", "weight": 30, "duration": "30m"}

    def running(self, more: dict[str, Any] | None = None, **analysis: Any) -> World:
        """An A/B test that runs, undecided."""
        strategy = {"abTest": {**self.TEST, **(more or {})}}
        world = released(strategy, analysis={"metrics": METRICS, **analysis}).judge(UNDECIDED)
        return started(world)

    def test_the_better_reward_wins_at_once(self) -> None:
        world = self.running()
        assert world.status.weights.candidate == 30
        world.judge(BETTER)
        assert weights(world) == [30, 90]
        entry = world.status.history[0]
        assert (entry.outcome, entry.reason, entry.unproven) == ("Promoted", "ProvenSuperior", False)
        assert entry.message == "clicks 99 % good, baseline 99 %, bad 1.00x [0.80, 1.30], better"

    def test_without_a_winner_its_time_ends_it_and_the_candidate_is_not_taken_over(self) -> None:
        world = self.running().judge(AS_GOOD)
        world.run(1750)
        assert world.status.phase == Phase.PROGRESSING
        world.until("Healthy")
        entry, stable = world.status.history[0], world.status.stable
        assert (entry.outcome, entry.reason, entry.unproven) == ("Judged", "NotSuperior", True)
        assert stable and stable.model == "fraud 1"
        assert (
            world.status.message
            and "fraud 2 was judged and not taken over (no winner" in world.status.message
        )
        world.run(600)
        assert world.status.phase == Phase.HEALTHY, "it is not tested again by itself"

    def test_what_is_proven_harmless_may_take_over_after_its_time(self) -> None:
        harmless = replace(GOOD, assessment=assessment(harmless=True))
        world = self.running({"otherwise": "Promote", "reward": "errors"}).judge(harmless).until("Watching")
        entry = world.status.history[0]
        assert (entry.outcome, entry.reason, entry.unproven) == ("Promoted", "ProvenHarmless", False)

    @pytest.mark.parametrize("otherwise", ["Stop", "Promote"])
    def test_what_is_not_proven_harmless_is_not_taken_over(self, otherwise: str) -> None:
        world = self.running({"otherwise": otherwise}).until("Healthy")
        assert world.status.history[0].reason == "NotSuperior"

    def test_a_better_reward_waits_for_the_proof_that_nothing_else_is_harmed(self) -> None:
        world = self.running().judge(BETTER_BUT).run(600)
        assert world.status.phase == Phase.PROGRESSING
        world.judge(BETTER).until("Watching")
        assert world.status.history[0].reason == "ProvenSuperior"

    def test_a_better_reward_does_not_make_up_for_harm(self) -> None:
        harmed = assessment(harm=True, reward=True, superior=True)
        world = self.running().judge(replace(BAD, assessment=harmed)).until("RolledBack")
        assert world.status.rejected and world.status.rejected.reason == "HarmProven"

    def test_a_better_reward_that_is_no_more_measured_does_not_win(self) -> None:
        silent = assessment(harmless=True, reward=True, superior=True, has_data=False)
        world = self.running().judge(replace(BETTER, assessment=silent)).run(600)
        assert world.status.phase == Phase.PROGRESSING

    def test_few_settled_polls_are_no_victory(self) -> None:
        early = assessment(harmless=True, reward=True, superior=True, settled=7)
        world = self.running().judge(replace(BETTER, assessment=early)).run(600)
        assert world.status.phase == Phase.PROGRESSING

    def test_nothing_is_won_before_enough_requests(self) -> None:
        world = self.running({"minRequests": 5000}).judge(BETTER).run(300)
        assert world.status.phase == Phase.PROGRESSING
        more = assessment(harmless=True, reward=True, superior=True, requests=7000)
        world.judge(replace(BETTER, assessment=more)).until("Watching")

    def test_its_time_ends_it_however_few_requests_came(self) -> None:
        world = self.running({"minRequests": 10**9}).until("Healthy")
        assert world.status.history[0].reason == "NotSuperior"

    def test_its_own_end_comes_before_a_deadline_that_is_due_then(self) -> None:
        world = self.running(deadline="30m").until("Healthy", "Paused")
        assert world.status.phase == Phase.HEALTHY

    def test_a_clock_that_is_held_for_too_long_is_the_deadlines_to_end(self) -> None:
        world = self.running(deadline="30m")
        world.lose(world.revision, 4).until("Paused", "RolledBack")
        assert world.status.history[0].reason != "NotSuperior"

    def test_metrics_that_are_away_hold_the_end(self) -> None:
        world = self.running()
        away = Judgement(data=Data.UNAVAILABLE, problem="x", failed_polls=3, outage_since=world.now)
        world.judge(away).run(3600)
        assert world.status.phase == Phase.PROGRESSING
        world.judge(BETTER).until("Watching")

    def test_without_a_reward_it_compares_for_its_time(self) -> None:
        world = released({"abTest": {"duration": "10m", "otherwise": "Promote"}}).judge(GOOD)
        assert weights(started(world)) == [50, 90]
        assert world.status.history[0].reason == "ProvenHarmless"

    def test_somebody_may_end_it(self) -> None:
        world = self.running().ask("promote").until("Watching")
        assert (world.status.history[0].reason, world.status.history[0].unproven) == (
            "PromoteRequested",
            True,
        )


CHOSEN: list[dict[str, Any]] = [{"headers": [{"name": "x-tester", "value": "yes"}]}]


class TestChosenRequests:
    TEST: ClassVar[dict[str, Any]] = {"abTest": {"matches": CHOSEN, "duration": "10m"}}

    def test_who_is_chosen_gets_the_candidate_and_nobody_else(self) -> None:
        world = started(released(self.TEST))
        status = world.status
        assert (status.weights.candidate, status.weights.matched) == (0, 100)
        assert status.candidate and status.candidate.desired == 4, "how many will match is not known"
        assert status.message and "0 % and requests that match · only guardrails decide" in status.message
        assert weights(world.judge(GOOD)) == [0]
        assert (world.status.history[0].outcome, world.status.weights.matched) == ("Judged", 0)

    def test_a_written_size_is_enough(self) -> None:
        strategy = {"abTest": {"matches": CHOSEN, "duration": "10m", "size": 25}}
        world = started(released(strategy))
        assert world.status.candidate and world.status.candidate.desired == 1

    def test_nothing_that_was_measured_of_them_decides(self) -> None:
        world = started(released(self.TEST)).judge(BAD).run(300)
        assert world.status.phase == Phase.PROGRESSING

    def test_after_their_time_what_breached_no_guardrail_may_take_over_unproven(self) -> None:
        strategy = {"abTest": {"matches": CHOSEN, "duration": "10m", "size": 50, "otherwise": "Promote"}}
        world = started(released(strategy)).until("Promoting", every=1)
        assert world.status.weights.matched == 100, "until the switch takes them along"
        world.until("Watching")
        entry = world.status.history[0]
        assert (entry.outcome, entry.reason, entry.unproven) == ("Promoted", "NotProven", True)
        assert world.status.weights.matched == 0

    def test_those_drawn_by_lot_are_compared(self) -> None:
        test = {"matches": CHOSEN, "randomized": True, "reward": "clicks", "duration": "1h"}
        world = started(released({"abTest": test}, analysis={"metrics": METRICS}).judge(UNDECIDED))
        world.judge(BETTER).until("Watching")
        assert world.status.history[0].reason == "ProvenSuperior"

    def test_they_are_the_first_step_of_a_canary(self) -> None:
        steps = [
            {"weight": 0, "matches": CHOSEN, "duration": "5m", "size": 25},
            {"weight": 20, "duration": "1m"},
        ]
        world = started(released({"canary": {"steps": steps}})).judge(GOOD)
        assert world.status.weights.matched == 100
        assert weights(world) == [0, 20, 90]
        assert world.status.history[0].reason == "ProvenHarmless"

    def test_an_edit_does_not_give_chosen_users_another_model(self) -> None:
        world = started(released({"canary": {"steps": [{"weight": 10, "duration": "10m"}]}}))
        world.edit(strategy=self.TEST).run(60)
        assert (world.status.weights.candidate, world.status.weights.matched) == (10, 0)
        started(released(self.TEST)).edit(
            strategy={"abTest": {"matches": [{"cookie": {"name": "a", "value": "b"}}], "duration": "10m"}}
        ).run(60)


BESIDE: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "copies of requests": ("mirror", 30, 2, {"shadow": {"mirror": 30, "duration": "5m"}}),
    "requests that match": ("matched", 100, 4, {"abTest": {"matches": CHOSEN, "duration": "10m"}}),
}


@pytest.mark.parametrize(("part", "whole", "pods", "strategy"), BESIDE.values(), ids=BESIDE)
class TestBesideTheWeight:
    """What the candidate gets though its weight is 0: which share, the whole of it, and the pods that it needs."""

    def test_it_waits_for_pods_that_are_ready_for_long(
        self, part: str, whole: int, pods: int, strategy: dict[str, Any]
    ) -> None:
        world = released(strategy)
        world.run(25)
        assert getattr(world.status.weights, part) == 0
        started(world)
        assert getattr(world.status.weights, part) == whole
        assert world.status.weights.candidate == 0
        assert world.status.candidate and world.status.candidate.desired == pods

    @pytest.mark.parametrize("all_of_them", [True, False], ids=["all of them", "all but one"])
    def test_it_goes_at_once_with_the_pods_that_answer(
        self, part: str, whole: int, pods: int, strategy: dict[str, Any], all_of_them: bool
    ) -> None:
        world = started(released(strategy))
        world.lose(world.revision, pods if all_of_them else pods - 1).tick(1)
        assert getattr(world.status.weights, part) == (0 if all_of_them else whole // pods)
        world.lose(world.revision, 0).run(60)
        assert getattr(world.status.weights, part) == whole

    def test_lost_metrics_take_it_away_after_a_while(
        self, part: str, whole: int, pods: int, strategy: dict[str, Any]
    ) -> None:
        world = started(released(strategy))
        away = Judgement(data=Data.UNAVAILABLE, problem="x", failed_polls=3, outage_since=world.now)
        world.judge(away).run(1790)
        assert getattr(world.status.weights, part) == whole
        world.run(60)
        assert (world.status.parked, getattr(world.status.weights, part)) == (True, 0)
        world.judge(NEUTRAL).run(60)
        assert getattr(world.status.weights, part) == whole

    def test_when_the_baseline_is_down_what_is_ready_serves(
        self, part: str, whole: int, pods: int, strategy: dict[str, Any]
    ) -> None:
        world = started(released(strategy))
        assert world.status.stable
        world.lose(world.status.stable.revision, 4).tick(1)
        assert (world.status.weights.candidate, getattr(world.status.weights, part)) == (100, 0)
        world.lose(world.status.stable.revision, 0).run(60)
        assert (world.status.weights.candidate, getattr(world.status.weights, part)) == (0, whole)


STEP: dict[str, Any] = {"weight": 20, "duration": "1h"}
COUNTED: dict[str, dict[str, Any]] = {
    "requests are drawn": {},
    "all go one way": {"strategy": {"canary": {"steps": [STEP | {"weight": 0}]}}},
}
UNCOUNTED: dict[str, dict[str, Any]] = {
    "copies": {"strategy": TestShadow.STRATEGY},
    "chosen requests": {"strategy": {"canary": {"steps": [STEP | {"weight": 0, "matches": CHOSEN}]}}},
    "users are drawn": {"strategy": {"abTest": STEP | {"stickiness": {"cookie": "side"}}}},
    "pods make the split": {"traffic": {"podRatio": {}}, "workload": {"replicas": 5}},
    "nothing is measured": {"analysis": {"mode": "Off"}},
    "only guardrails are measured": {
        "analysis": {"metrics": [{"name": "heat", "guardrail": {"query": "heat", "max": "1"}}]}
    },
}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        *(pytest.param(spec, ("True", "TrafficVerified"), id=name) for name, spec in COUNTED.items()),
        *(pytest.param(spec, ("Unknown", "SplitNotChecked"), id=name) for name, spec in UNCOUNTED.items()),
    ],
)
def test_a_split_is_verified_only_where_it_can_be_counted(
    spec: dict[str, Any], said: tuple[str, str]
) -> None:
    plain = {"strategy": {"canary": {"steps": [STEP]}}}
    world = started(released(**{**plain, **spec})).judge(NEUTRAL)
    world.run(60)
    assert world.status.phase == Phase.PROGRESSING
    assert world.condition("TrafficVerified") == said
