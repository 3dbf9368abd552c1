"""Gates on the world in miniature: where they stand, how often they are asked, and what an answer does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.status import GateState, GateStatus, Phase
from modelrollout.decision.types import Data, GateReading
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, World, assessment, spec_of

TEMPLATE = {"spec": {"containers": [{"name": "e", "image": "e"}]}}


def hook(name: str = "hook", retries: int = 2, **more: Any) -> dict[str, Any]:
    return {"name": name, "webhook": {"url": "http://gate/", "retries": retries}, **more}


def job(name: str = "evaluation", **more: Any) -> dict[str, Any]:
    return {"name": name, "job": {"template": TEMPLATE}, **more}


def released(*, steps: list[Any] | None = None, **changes: Any) -> World:
    """A healthy rollout of version 1 with version 2 just named."""
    if steps is not None:
        changes["strategy"] = {"canary": {"steps": steps}}
    return World(spec=spec_of(**changes)).healthy().release("2")


def gate_of(world: World, name: str) -> GateStatus:
    assert world.status.step is not None
    return next(gate for gate in world.status.step.gates if gate.name == name)


def asked(world: World, name: str, *, limit: int = 600) -> World:
    """Until a gate is asked."""
    for _ in range(limit):
        world.tick(1)
        step = world.status.step
        if step and step.asking and step.asking.name == name:
            return world
    raise AssertionError(f"{name} was not asked: {world.status.phase}: {world.status.message}")


class TestWhereTheyStand:
    def test_before_the_first_step_a_pod_is_there_and_gets_nothing(self) -> None:
        world = asked(released(gates={"start": [hook()]}), "hook")
        status = world.status
        assert status.phase == Phase.PAUSED
        assert world.condition("Reconciling") == ("True", "AwaitingGate")
        assert status.weights.candidate == 0
        assert status.candidate and (status.candidate.desired, status.candidate.ready) == (1, 1)
        assert status.step and status.step.display == "1/3"
        world.answer("hook").run(60)
        assert world.status.weights.candidate == 10

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"traffic": {"podRatio": {}}}, id="with a ratio of pods"),
            pytest.param(
                {"workload": {**spec_of()["workload"], "elastic": True}}, id="of an elastic workload"
            ),
        ],
    )
    def test_before_the_first_step_the_baseline_keeps_all_its_pods(self, changes: dict[str, Any]) -> None:
        world = asked(released(gates={"start": [hook()]}, **changes), "hook").run(60)
        assert world.status.stable and world.status.stable.desired == 4
        assert world.status.candidate and world.status.candidate.desired == 1
        assert world.status.weights.candidate == 0
        world.answer("hook").judge(GOOD).until("Healthy")

    @pytest.mark.parametrize(
        "strategy",
        [
            pytest.param({"canary": {}}, id="of a planned canary"),
            pytest.param({"rolling": {"duration": "1m"}}, id="of a rolling update"),
            pytest.param({"blueGreen": {"mirror": 20}}, id="of a blueGreen switch"),
            pytest.param({"shadow": {"then": "Canary"}}, id="of a shadow that goes on"),
        ],
    )
    def test_both_stand_around_the_steps(self, strategy: dict[str, Any]) -> None:
        gates = {"start": [hook("first")], "promotion": [job("last")]}
        elastic = {"workload": {**spec_of()["workload"], "elastic": "rolling" in strategy}}
        world = asked(released(gates=gates, strategy=strategy, **elastic), "first")
        assert world.status.step and world.status.step.index == 0
        world.judge(GOOD).answer("first")
        asked(world, "last", limit=7200)
        assert world.status.step.index + 1 == world.status.step.count
        assert world.status.phase == Phase.PAUSED
        world.answer("last").until("Watching")

    def test_a_shadow_that_stops_is_judged_after_its_first_gate(self) -> None:
        world = asked(released(gates={"start": [hook()]}, strategy={"shadow": {"duration": "1m"}}), "hook")
        assert world.status.weights.mirror == 0
        world.judge(GOOD).answer("hook").until("Healthy")
        assert world.status.history[0].outcome == "Judged"

    def test_at_a_step_they_come_after_its_duration_and_before_its_approval(self) -> None:
        steps = [{"weight": 10, "duration": "5m", "gates": [hook()], "approval": True}, {"weight": 50}]
        world = released(steps=steps).run(290)
        assert world.status.step and not world.status.step.gates
        asked(world, "hook").answer("hook").run(10)
        assert world.condition("Reconciling") == ("True", "AwaitingApproval")
        world.ask("approve", step=world.status.step.id).run(10)
        assert world.status.step.index == 1

    def test_before_the_promotion_they_come_after_the_proof_which_must_hold_when_they_pass(self) -> None:
        world = released(gates={"promotion": [job()]}).run(1200)
        assert world.status.step and not world.status.step.gates, "not proven yet"
        asked(world.judge(GOOD), "evaluation")
        world.judge(NEUTRAL).answer("evaluation").run(600)
        assert world.status.phase == Phase.PROGRESSING
        world.judge(GOOD).until("Watching")

    def test_a_first_deployment_has_none(self) -> None:
        World(spec=spec_of(gates={"start": [hook()], "promotion": [job()]})).until("Healthy")


class TestAnswers:
    def test_gates_of_a_step_are_asked_one_after_the_other(self) -> None:
        world = asked(released(gates={"start": [hook("cheap"), job("dear")]}), "cheap").run(60)
        assert world.status.step and [gate.name for gate in world.status.step.gates] == ["cheap"]
        asked(world.answer("cheap"), "dear")
        assert gate_of(world, "cheap").state is GateState.PASSED

    def test_a_webhook_is_asked_again_with_growing_pauses_and_no_more_often_than_it_may_be(self) -> None:
        world = asked(released(gates={"start": [hook(retries=3)]}), "hook").answer("hook", False, "503")
        times = [gate_of(world, "hook").since]
        for _ in range(60):
            world.tick(0.5)
            if world.status.step is None:
                break
            gate = gate_of(world, "hook")
            if gate.state is GateState.RUNNING and gate.since != times[-1]:
                times.append(gate.since)
        pauses = [round(later - sooner) for sooner, later in itertools.pairwise(times)]
        assert len(pauses) == 3
        assert pauses == sorted(pauses)
        assert pauses[-1] >= 4
        world.until("RolledBack")
        entry = world.status.history[0]
        assert (entry.outcome, entry.reason) == ("RolledBack", "GateFailed")
        assert entry.message == "gate hook failed, asked 4 times: 503"
        assert "GateFailed" in world.reasons()

    def test_no_answer_is_waited_for_and_spends_no_active_time(self) -> None:
        analysis = {**spec_of()["analysis"], "deadline": "10m", "onInconclusive": "Rollback"}
        world = asked(released(gates={"start": [job()]}, analysis=analysis), "evaluation")
        world.run(7200, every=60)
        assert world.status.phase == Phase.PAUSED

    def test_a_value_is_kept_and_said(self) -> None:
        gates = [job("one"), job("two")]
        world = asked(released(gates={"start": gates}), "one").answer("one", True, "it is 0.93", "0.93")
        asked(world, "two")
        assert gate_of(world, "one").value == "0.93"
        assert ("GatePassed", "gate one passed: it is 0.93") in world.events

    def test_an_answer_to_an_earlier_question_does_not_count(self) -> None:
        world = asked(released(gates={"start": [hook(onFailure="Pause", retries=0)]}), "hook")
        old = gate_of(world, "hook").question
        world.answer("hook", False, "no").run(10)
        assert world.status.pause and world.status.pause.reason == "GateFailed"
        world.answers.clear()
        world.ask("resume").tick(1)
        asked(world, "hook", limit=5)
        assert gate_of(world, "hook").question != old
        assert GateReading(True) not in world.seen().gates.values()

    def test_a_gate_that_pauses_goes_on_after_a_resume_that_asks_it_anew(self) -> None:
        world = asked(released(gates={"promotion": [hook(onFailure="Pause", retries=0)]}).judge(GOOD), "hook")
        world.answer("hook", False, "no").run(600)
        assert world.status.phase == Phase.PAUSED
        assert world.condition("Reconciling") == ("True", "GateFailed")
        assert (
            world.status.message and "promote, abort, or resume to ask it once more" in world.status.message
        )
        world.answer("hook").ask("resume").until("Watching")

    def test_an_edit_that_mends_what_had_failed_goes_on_by_itself(self) -> None:
        world = asked(released(gates={"start": [hook(onFailure="Pause", retries=0)]}), "hook")
        world.answer("hook", False, "no").run(10).answer("hook")
        world.edit(gates={"start": [hook(onFailure="Pause", retries=1)]}).run(60)
        assert world.status.pause is None
        assert world.status.weights.candidate == 10


class TestWhileOneWaits:
    def test_promote_skips_it(self) -> None:
        world = asked(released(gates={"start": [hook()]}), "hook")
        world.ask("promote").until("Watching")

    def test_abort_takes_the_candidate_back(self) -> None:
        world = asked(released(gates={"start": [hook()]}), "hook")
        world.ask("abort").until("RolledBack")

    def test_harm_rolls_back(self) -> None:
        world = asked(released(gates={"promotion": [hook()]}).judge(GOOD), "hook")
        world.judge(BAD).until("RolledBack")
        assert world.status.rejected and world.status.rejected.reason == "HarmProven"

    def test_a_failure_rolls_back_even_while_somebody_paused(self) -> None:
        world = asked(released(gates={"start": [hook(retries=0)]}), "hook")
        world.ask("pause").run(10)
        assert world.condition("Reconciling") == ("True", "UserRequest")
        world.answer("hook", False, "no").until("RolledBack")

    def test_it_is_not_asked_again_while_somebody_paused(self) -> None:
        world = asked(released(gates={"start": [hook(retries=5)]}), "hook")
        world.ask("pause").answer("hook", False, "no").run(600)
        assert gate_of(world, "hook").asked == 1
        world.ask("resume").run(600).until("RolledBack")

    def test_an_outage_of_the_metrics_asks_nothing_more(self) -> None:
        world = asked(released(gates={"start": [hook(retries=5)]}), "hook")
        world.judge(NEUTRAL, data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now)
        world.answer("hook", False, "no").run(600)
        assert gate_of(world, "hook").asked == 1

    def test_a_spec_that_is_not_acceptable_asks_nothing_more(self) -> None:
        world = asked(released(gates={"start": [hook(retries=5)]}), "hook")
        world.problem = "spec.x: write y"
        world.answer("hook", False, "no").run(600)
        assert gate_of(world, "hook").asked == 1
        world.problem = None
        world.answer("hook").judge(GOOD).until("Watching")

    def test_a_candidate_that_lost_its_pod_is_waited_for(self) -> None:
        world = asked(released(gates={"start": [hook()]}), "hook")
        world.lose(world.revision, 1).answer("hook").run(30)
        assert world.status.step and world.status.step.index == 0
        assert world.status.weights.candidate == 0
        assert world.condition("Reconciling") == ("True", "AwaitingPods")


class TestEdits:
    STEPS = ({"weight": 10, "gates": [hook("kept"), hook("open")]}, {"weight": 50, "duration": "5m"})

    def waiting(self) -> World:
        world = asked(released(steps=list(self.STEPS)), "kept").answer("kept")
        return asked(world, "open")

    def test_an_unchanged_step_keeps_what_passed(self) -> None:
        world = self.waiting()
        world.edit(strategy={"canary": {"steps": [self.STEPS[0], {"weight": 70}]}}).run(10)
        assert gate_of(world, "kept").state is GateState.PASSED

    def test_a_changed_step_asks_all_anew(self) -> None:
        world = self.waiting()
        world.answers.clear()
        first = {"weight": 10, "gates": [hook("kept"), hook("open", retries=9)]}
        world.edit(strategy={"canary": {"steps": [first, self.STEPS[1]]}}).run(10)
        assert gate_of(world, "kept").state is GateState.RUNNING

    def test_a_gate_that_is_removed_is_not_waited_for(self) -> None:
        world = self.waiting()
        world.edit(strategy={"canary": {"steps": [{"weight": 10}, self.STEPS[1]]}}).run(60)
        assert world.status.step and world.status.step.index == 1

    def test_nor_is_one_of_a_step_that_stays_to_its_end_without_it(self) -> None:
        world = asked(released(gates={"start": [hook()]}), "hook")
        world.edit(gates={}).run(60)
        assert world.status.weights.candidate == 10

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            pytest.param(
                {"blueGreen": {"approval": True}},
                {"blueGreen": {"approval": True, "duration": "5m"}},
                id="a blueGreen candidate that stands by",
            ),
            pytest.param({"shadow": {"mirror": 20}}, {"shadow": {"mirror": 30}}, id="a shadow"),
        ],
    )
    def test_what_has_passed_before_the_start_is_not_asked_again(
        self, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        world = asked(released(gates={"start": [hook()]}, strategy=before), "hook").answer("hook").run(120)
        assert world.status.step and world.status.step.index == 1
        world.answers.clear()
        world.edit(strategy=after).run(10)
        assert world.status.step.index == 1
        assert world.status.phase == Phase.PROGRESSING or world.condition("Reconciling") == (
            "True",
            "AwaitingApproval",
        )

    def test_what_has_not_passed_before_the_start_is_not_skipped(self) -> None:
        world = asked(released(gates={"start": [hook()]}, strategy={"shadow": {}}), "hook")
        world.edit(gates={"start": [hook(retries=9)]}, strategy={"shadow": {"mirror": 50}}).run(60)
        assert world.status.step and world.status.step.index == 0
        assert world.status.weights.mirror == 0


WITH_REWARD: dict[str, Any] = {"abTest": {"reward": "clicks", "duration": "10m"}}
CLICKS: dict[str, Any] = {
    "metrics": [*spec_of()["analysis"]["metrics"], {"name": "clicks", "score": {"sum": "s", "count": "c"}}]
}


class TestContests:
    BETTER = replace(GOOD, assessment=assessment(harmless=True, reward=True, superior=True))

    def test_a_winner_is_asked_for_before_it_takes_over(self) -> None:
        world = asked(
            released(gates={"promotion": [hook()]}, strategy=WITH_REWARD, analysis=CLICKS).judge(self.BETTER),
            "hook",
        )
        assert world.status.phase == Phase.PAUSED
        world.answer("hook").until("Watching")
        assert world.status.history[0].reason == "ProvenSuperior"

    def test_nobody_is_asked_without_a_winner(self) -> None:
        world = (
            released(gates={"promotion": [hook()]}, strategy=WITH_REWARD, analysis=CLICKS)
            .judge(GOOD)
            .until("Healthy")
        )
        assert world.status.history[0].outcome == "Judged"
        assert "AwaitingGate" not in world.reasons()
