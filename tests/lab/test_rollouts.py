"""Whole releases on a real cluster: real requests through a real proxy, real model servers, a real Prometheus.

The operator is a process of its own with the rights that the chart gives it. What it is believed to do is counted by the
load, which knows the version behind every answer, or read from the API server's audit log.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from lab.kube import path_of
from lab.lab import Lab, read_state
from lab.process import wait_until
from tests.lab.rollouts import (
    ENDPOINTS_USER,
    ERRORS,
    GROUP,
    LATENCY,
    OPERATOR_USER,
    QUALITY,
    Rollout,
    Seen,
    Story,
    resource_of,
    sentence,
)

RELEASE_EVENTS = [
    "RolloutStarted",
    "WeightChanged",
    "StepCompleted",
    "StepStarted",
    "WeightChanged",
    "StepCompleted",
    "Promoted",
    "WatchCompleted",
]


def await_back(rollout: Rollout) -> None:
    """Wait until a release was rolled back and its last answer is counted."""
    rollout.wait_end()
    assert rollout.status["phase"] == "RolledBack", rollout.status["message"]
    rollout.wait_answers(20)


def exposure(rollout: Rollout, version: str) -> int:
    """Requests that a version answered, with whatever status."""
    return rollout.counts().by_version(status=None).get(version, 0)


def assert_split(rollout: Rollout, version: str, wanted: list[int]) -> None:
    """The true split was the configured one at each step, within five standard deviations."""
    measured = list(rollout.steps())
    assert [weight for weight, _ in measured] == wanted
    for weight, counts in measured:
        answers = counts.by_version(status=None)
        total, share = sum(answers.values()), weight / 100
        # What was under way when a step began is of the step before it.
        bound = 5 * math.sqrt(total * share * (1 - share)) + 3
        assert total >= 200, f"{weight} %: only {total} answers"
        assert abs(answers.get(version, 0) - total * share) <= bound, f"{weight} %: {answers}"


def assert_in_order(wanted: list[str], found: list[str]) -> None:
    """All of `wanted` stand in `found` in this order."""
    rest = iter(found)
    missing = [one for one in wanted if one not in rest]
    assert not missing, f"{missing[0]} is missing, or out of order, in {found}"


# Side by side, with nothing broken


def a_better_model_is_promoted_and_no_request_fails(lab: Lab) -> None:
    steps = [{"weight": 20, "duration": "10s"}, {"weight": 50, "duration": "5s"}]
    changes = {"strategy": {"canary": {"steps": steps}}, "analysis": {"metrics": [ERRORS, QUALITY, LATENCY]}}
    with Rollout(lab, "better", rate=60, **changes) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better")
        rollout.wait_end()
        rollout.wait_answers(50, "v2")
        print(rollout.measured())
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert not rollout.status["unproven"]
        assert rollout.status["history"][0]["model"] == "better v2"
        assert_split(rollout, "v2", [20, 50])
        assert rollout.failures() == {}
        rollout.wait_event("WatchCompleted")
        assert_in_order(
            ["RolloutStarted", "Promoted", *RELEASE_EVENTS],
            [reason for reason, _ in rollout.events()],
        )


def an_equal_model_is_promoted(lab: Lab) -> None:
    with Rollout(lab, "equal") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert rollout.failures() == {}


def a_wrong_but_up_model_is_rolled_back_for_its_quality(lab: Lab) -> None:
    with Rollout(lab, "wrong") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/wrong")
        await_back(rollout)
        print(rollout.measured())
        assert rollout.outcome == ("RolledBack", "HarmProven")
        assert "quality" in rollout.status["history"][0]["message"]
        assert 0 < exposure(rollout, "v2") <= 250
        assert rollout.failures() == {}
        after = rollout.counts()
        rollout.wait_answers(50)
        assert rollout.counts().since(after).by_version().keys() == {"v1"}
        rollout.wait_event("RolledBack")
        assert_in_order(["RolloutStarted", "HarmProven", "RolledBack"], [one for one, _ in rollout.events()])


def a_failing_model_is_rolled_back_for_its_errors(lab: Lab) -> None:
    with Rollout(lab, "errors") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/errors", environment={"ERROR_RATE": "0.3"})
        await_back(rollout)
        print(rollout.measured())
        assert rollout.outcome == ("RolledBack", "HarmProven")
        assert "errors" in rollout.status["history"][0]["message"]
        assert 0 < exposure(rollout, "v2") <= 250
        # What failed was the candidate's own answer, and nothing else.
        assert rollout.failures() == {500: rollout.counts().answers["v2", 500]}


def a_model_with_a_slow_tail_is_rolled_back_for_its_latency(lab: Lab) -> None:
    with Rollout(lab, "slow", analysis={"metrics": [ERRORS, LATENCY]}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/slow", environment={"SLOW_RATE": "0.3", "SLOW_SECONDS": "0.8"})
        await_back(rollout)
        print(rollout.measured())
        assert rollout.outcome == ("RolledBack", "HarmProven")
        assert "latency" in rollout.status["history"][0]["message"]
        assert 0 < exposure(rollout, "v2") <= 250
        assert rollout.failures() == {}


def a_late_regression_is_rolled_back_in_the_watch_at_once(lab: Lab) -> None:
    with Rollout(lab, "late", watch={"duration": "10m", "holdback": 30}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better")
        rollout.wait(lambda seen: seen.phase == "Watching", "the watch")
        revision = rollout.status["stable"]["revision"]
        before, mark = rollout.counts(), time.time()
        rollout.change_variant(revision, "wrong")
        back = rollout.wait(lambda seen: seen.phase in ("RollingBack", "RolledBack"), "the rollback")
        # The old pods were kept, so all traffic goes back with the decision itself.
        assert back.weight == 0
        await_back(rollout)
        print(rollout.measured(), "after the regression:", rollout.counts().since(before).by_version())
        assert rollout.outcome == ("RolledBackAfterPromotion", "HarmProven")
        assert "quality" in rollout.status["history"][0]["message"]
        writes = [
            resource_of(one)
            for one in rollout.audit(mark)
            if one["user"]["username"].startswith(OPERATOR_USER)
        ]
        assert "deployments" not in writes[: writes.index("httproutes")]
        assert rollout.failures() == {}
        assert exposure(rollout, "v2") - before.by_version(status=None)["v2"] <= 600


def planned_steps_rise_by_evidence_and_never_above_the_limit(lab: Lab) -> None:
    strategy = {"canary": {"maxWeight": 20}}
    with Rollout(lab, "planned", rate=40, strategy=strategy, analysis={"exposureBudget": "5s"}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better")
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        comparing = [seen for seen in rollout.timeline if seen.phase == "Progressing"]
        weights = [seen.weight for seen in comparing if seen.weight]
        assert weights == sorted(weights)
        assert sorted(set(weights)) == [1, 2, 5, 10, 20]
        waits = [seen.condition("Reconciling").get("reason") for seen in comparing if seen.weight < 20]
        assert "AwaitingEvidence" in waits
        assert rollout.failures() == {}


def three_revisions_in_a_row_end_with_the_last(lab: Lab) -> None:
    with Rollout(lab, "three") as rollout:
        rollout.deploy()
        for version in ("v2", "v3"):
            rollout.release(version, "models/good")
            rollout.wait_answers(10, version)
        rollout.release("v4", "models/better")
        rollout.wait(lambda seen: seen.status["history"][0].get("model") == "three v4", "the attempt with v4")
        rollout.wait_end()
        print(rollout.measured())
        outcomes = [(one["model"], one["outcome"]) for one in rollout.status["history"]]
        assert outcomes == [
            ("three v4", "Promoted"),
            ("three v3", "Superseded"),
            ("three v2", "Superseded"),
            ("three v1", "Promoted"),
        ]
        assert rollout.failures() == {}
        wait_until(lambda: sizes(rollout) == [2], timeout=60, what="the end of the old Deployments")
        assert len(rollout.pods(rollout.status["stable"]["revision"])) == 2


def sizes(rollout: Rollout) -> list[int]:
    """Replicas of the Deployments that have any."""
    deployments = rollout.lab.client.list(path_of("apps/v1", "deployments", rollout.namespace))
    return [one["spec"]["replicas"] for one in deployments if one["spec"]["replicas"]]


def killed_candidate_pods_lose_their_traffic_and_get_it_back(lab: Lab) -> None:
    steps = [{"weight": 50, "duration": "20s"}]
    with Rollout(lab, "killed", strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        release_slow_starter(rollout)
        service, mark = kill_candidate(rollout)
        rollout.wait(lambda seen: seen.weight == 50, "the weight's return")
        failed = rollout.failures()
        rollout.wait_end()
        print(rollout.measured())
        assert_weight_goes_with_the_pods(rollout, service, mark)
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert rollout.failures() == failed
        assert sum(failed.values()) <= 40


def release_slow_starter(rollout: Rollout) -> None:
    """A model whose pods are slow to come back, so that what is ordered does not depend on this machine's speed."""
    rollout.release("v2", "models/slow-start", environment={"SLOW_START_SECONDS": "8"})
    rollout.wait(step_runs, "the step")
    rollout.wait_answers(20, "v2")


def step_runs(seen: Seen) -> bool:
    """Whether the step's weight is in force."""
    return bool((seen.status.get("step") or {}).get("startedAt"))


def kill_candidate(rollout: Rollout) -> tuple[str, float]:
    """Kill the candidate's processes and wait for the loss of its weight; its Service, and when that was begun."""
    lab, revision = rollout.lab, rollout.status["candidate"]["revision"]
    mark = time.time()
    for pod in rollout.pods(revision):
        lab.kill_pod(rollout.namespace, pod["metadata"]["name"])
    rollout.wait(lambda seen: seen.weight == 0, "the loss of the weight")
    return f"{rollout.name}-{revision}", mark


def assert_weight_goes_with_the_pods(rollout: Rollout, service: str, mark: float) -> None:
    """After the kill: endpoints lost, status, route, and only then endpoints again."""
    seen = []
    for event in rollout.audit(mark):
        user, resource, name = (
            event["user"]["username"],
            resource_of(event),
            event["objectRef"].get("name", ""),
        )
        if user == ENDPOINTS_USER and resource == "endpointslices" and name.startswith(service):
            seen.append("endpoints")
        elif user.startswith(OPERATOR_USER) and resource in ("modelrollouts/status", "httproutes"):
            seen.append(resource)
    lost = seen.index("endpoints")
    again = seen.index("endpoints", lost + 1)
    assert_in_order(["modelrollouts/status", "httproutes"], seen[lost:again])


TOGETHER: list[Story] = [
    a_better_model_is_promoted_and_no_request_fails,
    an_equal_model_is_promoted,
    a_wrong_but_up_model_is_rolled_back_for_its_quality,
    a_failing_model_is_rolled_back_for_its_errors,
    a_model_with_a_slow_tail_is_rolled_back_for_its_latency,
    a_late_regression_is_rolled_back_in_the_watch_at_once,
    planned_steps_rise_by_evidence_and_never_above_the_limit,
    three_revisions_in_a_row_end_with_the_last,
    killed_candidate_pods_lose_their_traffic_and_get_it_back,
]


# While Prometheus is away, and where it is not needed


# Only one story at a time breaks Prometheus.
PROMETHEUS = threading.Lock()


def without_prometheus_a_release_is_held_and_then_finished(lab: Lab) -> None:
    steps = [{"weight": 50, "duration": "10s"}]
    with Rollout(lab, "blind", strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        with PROMETHEUS:
            rollout.release("v2", "models/better")
            rollout.wait(step_runs, "the step")
            rollout.wait_answers(20, "v2")
            lab.stop_prometheus()
            try:
                rollout.wait(away, "the notice that metrics are away")
                rollout.wait_answers(200)
                held = rollout.timeline[-1]
            finally:
                lab.start_prometheus()
        rollout.wait_end()
        print(rollout.measured())
        assert (held.phase, held.weight, away(held)) == ("Progressing", 50, True)
        assert "endsAt" not in held.status["step"]
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert {seen.phase for seen in rollout.timeline}.isdisjoint({"RollingBack", "RolledBack", "Paused"})
        rollout.wait_event("WatchCompleted")
        events = [reason for reason, _ in rollout.events()]
        assert_in_order(["MetricsUnavailable", "MetricsRestored", "Promoted"], events)
        assert rollout.failures() == {}


def pods_do_not_wait_for_a_prometheus_that_hangs(lab: Lab) -> None:
    steps = [{"weight": 50, "approval": True}]
    with Rollout(lab, "hung", strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        release_slow_starter(rollout)
        with PROMETHEUS:
            state = read_state(lab.folder)
            assert state is not None
            os.kill(state["processes"]["prometheus"], signal.SIGSTOP)
            try:
                # Longer than a poll: the operator waits for an answer now.
                rollout.wait_answers(60)
                service, mark = kill_candidate(rollout)
                wait_until(lambda: rollout.endpoints(service) != {}, timeout=60, what="the pods' return")
            finally:
                os.kill(state["processes"]["prometheus"], signal.SIGCONT)
        # What is back gets its weight again only once it can be judged.
        rollout.wait(lambda seen: seen.weight == 50, "the weight's return")
        print(rollout.measured())
        assert_weight_goes_with_the_pods(rollout, service, mark)
        assert sum(rollout.failures().values()) <= 40


def away(seen: Seen) -> bool:
    """Whether the status says that metrics can't be read."""
    return bool(seen.condition("MetricsAvailable").get("status") == "False")


def a_model_that_crashes_never_gets_a_request(lab: Lab) -> None:
    with Rollout(lab, "crash", progressDeadline="30s") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/crash")
        await_back(rollout)
        print(rollout.measured(), rollout.status["message"])
        outcome, reason = rollout.outcome
        assert outcome == "RolledBack"
        assert reason in ("CandidateUnstable", "ProgressDeadlineExceeded")
        message = rollout.status["history"][0]["message"]
        assert "exited with code 1" in message
        assert exposure(rollout, "v2") == 0
        assert rollout.failures() == {}


def a_model_that_never_becomes_ready_never_gets_a_request(lab: Lab) -> None:
    with Rollout(lab, "unready", progressDeadline="10s") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/never-ready")
        await_back(rollout)
        print(rollout.measured(), rollout.status["message"])
        assert rollout.outcome == ("RolledBack", "ProgressDeadlineExceeded")
        assert "0 of 1 pods ready" in rollout.status["history"][0]["message"]
        assert exposure(rollout, "v2") == 0
        assert rollout.failures() == {}


def an_image_that_does_not_exist_is_named(lab: Lab) -> None:
    with Rollout(lab, "absent", progressDeadline="5s") as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better", image="registry.example/none:1")
        await_back(rollout)
        print(rollout.measured(), rollout.status["message"])
        assert rollout.outcome == ("RolledBack", "ProgressDeadlineExceeded")
        assert "ImagePullBackOff" in rollout.status["history"][0]["message"]
        assert rollout.failures() == {}


def without_a_router_the_ratio_of_pods_is_the_split(lab: Lab) -> None:
    steps = [{"weight": 25, "approval": True}, {"weight": 50, "approval": True}]
    changes = {
        "workload": {
            "replicas": 4,
            "template": {"spec": {"containers": [{"name": "p", "image": "lab/pause:1"}]}},
        },
        "traffic": {"podRatio": {}},
        "strategy": {"canary": {"steps": steps}},
        "watch": {"duration": "2s", "holdback": 0},
    }
    with Rollout(lab, "ratio", loaded=False, **changes) as rollout:
        rollout.spec["analysis"] = {"mode": "Off"}
        rollout.deploy()
        service = path_of("v1", "services", rollout.namespace, "ratio")
        old = rollout.status["stable"]["revision"]
        ready = rollout.ready_endpoints("ratio")
        assert lab.client.get(service)["spec"]["selector"][f"{GROUP}/revision"] == old
        lab.client.patch(rollout.path, {"spec": {"model": {"version": "v2"}}})
        for baseline, candidate in ((3, 1), (2, 2)):
            paused = rollout.wait(
                lambda seen, step=candidate: (
                    seen.phase == "Paused" and seen.status["step"]["index"] == step - 1
                ),
                "the end of a step",
            )
            new = paused.status["candidate"]["revision"]
            assert rollout.endpoints("ratio") == {old: baseline, new: candidate}
            assert paused.weight == 25 * candidate
            assert f"{GROUP}/revision" not in lab.client.get(service)["spec"]["selector"]
            rollout.annotate("approve", f"{new}/{paused.status['step']['id']}")
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome[0] == "Promoted"
        assert rollout.status["history"][0]["unproven"]
        assert rollout.status["stable"]["revision"] == new
        assert lab.client.get(service)["spec"]["selector"][f"{GROUP}/revision"] == new
        assert rollout.endpoints("ratio") == {new: 4}
        # A pod more before a pod less: the capacity was there all the time.
        print("ratio: ready endpoints over time", ready)
        assert min(ready) >= 4


APART: list[Story] = [
    without_prometheus_a_release_is_held_and_then_finished,
    pods_do_not_wait_for_a_prometheus_that_hangs,
    a_model_that_crashes_never_gets_a_request,
    a_model_that_never_becomes_ready_never_gets_a_request,
    an_image_that_does_not_exist_is_named,
    without_a_router_the_ratio_of_pods_is_the_split,
]


@pytest.mark.parametrize("story", TOGETHER, ids=sentence)
def test_side_by_side(play: Callable[[Story], None], story: Story) -> None:
    play(story)


@pytest.mark.parametrize("story", APART, ids=sentence)
def test_with_prometheus_away(play: Callable[[Story], None], story: Story) -> None:
    play(story)
