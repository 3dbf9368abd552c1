"""What peers' users ran into, played on a real API server where no other test does: see `tests/scenarios.py`.

Each story has a namespace of its own; they run side by side under one operator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.kube import KubeError, Object, path_of
from lab.process import wait_until
from tests.cluster.harness import (
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    analysis,
    condition,
    seconds,
    title,
    version_of,
    weights_of,
)
from tests.cluster.test_releases import CONTAINER, LONG, in_order_once, message, outcomes

STORIES = Stories()
story = STORIES.story
POLICIES = "admissionregistration.k8s.io/v1"
OFF = {"mode": "Off"}


def workload(replicas: int = 2, *, image: str = "lab/pause:1", **more: Any) -> Object:
    template = {"spec": {"containers": [CONTAINER | {"image": image}]}}
    return {"replicas": replicas, "template": template, **more}


def steps(*given: Object) -> Object:
    return {"canary": {"steps": list(given)}}


def candidate(obj: Object) -> str:
    return str(obj["status"]["candidate"]["revision"])


def pause(rollout: Rollout, revision: str) -> Object:
    rollout.ask("pause", revision)
    return rollout.wait(lambda obj: obj["status"]["phase"] == "Paused", "the pause")


def finish(rollout: Rollout) -> Object:
    """Wait for the promotion and the end of the watch."""
    rollout.wait_phase("Watching")
    status: Object = rollout.wait_phase("Healthy")["status"]
    return status


@contextmanager
def refused(
    rollout: Rollout, group: str, resource: str, operation: str, probe: Callable[[], object]
) -> Iterator[None]:
    """The API server refuses an operation in a rollout's namespace; `probe` tries it, without effect."""
    client, name = rollout.client, f"{resource}-{rollout.namespace}"
    rules = {"apiGroups": [group], "apiVersions": ["*"], "operations": [operation], "resources": [resource]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": rollout.namespace}}
    policy = {
        "matchConstraints": {"resourceRules": [rules], "namespaceSelector": here},
        "validations": [{"expression": "false", "message": f"{resource} are frozen"}],
    }
    kinds = {"ValidatingAdmissionPolicy": policy}
    kinds["ValidatingAdmissionPolicyBinding"] = {"policyName": name, "validationActions": ["Deny"]}
    for kind, spec in kinds.items():
        client.apply({"apiVersion": POLICIES, "kind": kind, "metadata": {"name": name}, "spec": spec})
    try:
        wait_until(lambda: not passes(probe), timeout=60, what=f"the refusal of {resource}")
        yield
    finally:
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            client.delete(path_of(POLICIES, plural, None, name))
    wait_until(lambda: passes(probe), timeout=60, what=f"the end of the refusal of {resource}")


def passes(probe: Callable[[], object]) -> bool:
    try:
        probe()
    except KubeError as error:
        if "are frozen" not in error.message:
            raise
        return False
    return True


def carried_at(rollout: Rollout, route: Object, capacity: int) -> None:
    """Each revision in a version of the route had the ready pods for its share, to a pod."""
    for service, weight in weights_of(route).items():
        ready = rollout.ready_at(service.removeprefix(f"{rollout.name}-"), version_of(route))
        assert ready >= max(1, capacity * weight // 100) or not weight, (
            f"{service}: {weight} % on {ready} pods"
        )


# 1 – 3: aborts and bad images


@story
def a_step_is_aborted_tried_again_and_finished_and_the_events_tell_it_in_order(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=steps({"weight": 50, "duration": "10m"}))
    new = candidate(rollout.wait_step("1/1"))
    rollout.ask("abort", new)
    rollout.wait_phase("RolledBack")
    rollout.patch(strategy=steps({"weight": 40, "duration": "2s"}))
    rollout.ask("retry", new)
    assert finish(rollout)["stable"]["revision"] == new
    rollout.wait_event("WatchCompleted")
    first, tried = ["RolloutStarted", "Promoted"], ["RolloutStarted", "WeightChanged"]
    done = ["StepCompleted", "Promoted", "WatchCompleted"]
    assert rollout.reasons() == [*first, *tried, "Aborted", "RolledBack", *tried, *done]


@story
def an_image_that_is_not_there_takes_nothing_from_what_serves_and_the_next_bad_one_replaces_it(
    world: World,
) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    since = rollout.applied
    rollout.apply("2", workload=workload(image="registry.example/none:1"))
    first = candidate(rollout.wait(lambda obj: "ImagePullBackOff" in message(obj), "the reason of the pods"))
    rollout.apply("3", workload=workload(image="registry.example/none:2"), progressDeadline="10s")
    back = rollout.wait_phase("RolledBack")["status"]
    assert outcomes(back) == [("RolledBack", "fraud 3"), ("Superseded", "fraud 2"), ("Promoted", "fraud 1")]
    assert back["rejected"]["reason"] == "ProgressDeadlineExceeded"
    assert "ImagePullBackOff" in back["history"][0]["message"]
    world.deployments.wait_gone(rollout.namespace, rollout.child(first))
    serving = [
        d for d in world.deployments.versions(rollout.namespace, rollout.child(old)) if version_of(d) > since
    ]
    assert all((d["spec"]["replicas"], d["status"]["readyReplicas"]) == (2, 2) for d in serving)
    routes = world.routes.versions(rollout.namespace, "fraud")
    assert all(weights_of(route) == {rollout.child(old): 100} for route in routes)


# 7 – 11: what changes during a pause, and edits of the plan


@story
def a_pause_that_is_longer_than_the_progress_deadline_is_no_timeout(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    new = candidate(rollout.wait_step("1/2"))
    rollout.patch(progressDeadline="2s")
    held = pause(rollout, new)
    over = seconds(held["status"], "pause", "since") + 2 * 2
    later = rollout.wait(
        lambda obj: world.rollouts.seen(version_of(obj)) > over, "a commit after the deadline"
    )
    assert later["status"]["phase"] == "Paused"
    rollout.patch(progressDeadline="60s")
    rollout.ask("promote", new)
    assert finish(rollout)["stable"]["revision"] == new


@story
def a_candidate_that_loses_its_pods_while_paused_is_rolled_back_at_the_deadline(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    new = candidate(rollout.wait_step("1/2"))
    rollout.patch(progressDeadline="3s")
    pause(rollout, new)
    rollout.set_ready(new, False)
    back = rollout.wait(lambda obj: obj["status"]["phase"] == "RolledBack", "the way back")["status"]
    assert (back["stable"]["revision"], back["rejected"]["reason"]) == (old, "ProgressDeadlineExceeded")
    assert "0 of 1 pods ready" in back["history"][0]["message"]


@story
def replicas_go_up_and_down_while_paused_and_while_a_pod_is_not_ready(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    new = candidate(rollout.wait_step("1/2"))
    held = pause(rollout, new)
    rollout.set_ready(old, False, most=1)
    rollout.wait(lambda obj: obj["status"]["stable"]["ready"] == 1, "the loss of a pod")
    for replicas, ready in (
        (5, 4),
        (3, 3),
        (1, 2),
    ):  # the pod that is not ready goes first, and 2 is the least
        rollout.client.patch(f"{rollout.path}/scale", {"spec": {"replicas": replicas}})
        size = max(2, replicas)
        scaled = rollout.wait(
            lambda obj, size=size, ready=ready: (  # type: ignore[misc]
                (obj["status"]["stable"]["desired"], obj["status"]["stable"]["ready"]) == (size, ready)
            ),
            f"{size} pods, of which {ready} are ready",
        )
        assert scaled["status"]["phase"] == "Paused"
        assert scaled["status"]["step"]["left"] == held["status"]["step"]["left"]
    rollout.client.patch(f"{rollout.path}/scale", {"spec": {"replicas": 4}})
    rollout.patch(strategy=steps({"weight": 20, "duration": "1s"}, {"weight": 50, "duration": "1s"}))
    rollout.ask("resume", new)
    done = finish(rollout)
    assert (done["stable"]["revision"], done["stable"]["ready"]) == (new, 4)
    paused = [s for s in rollout.history() if s.get("phase") == "Paused"]
    assert {s["weights"]["candidate"] for s in paused} == {20}


@story
def a_plan_that_is_raised_or_taken_away_in_a_step_raises_no_weight_by_itself(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    before = rollout.wait_step("1/2")["status"]["step"]
    rollout.patch(strategy=steps({"weight": 40, "duration": "1s"}, {"weight": 60, "duration": "1s"}))
    raised = rollout.wait(
        lambda obj: obj["status"]["step"]["display"] == "1/3", "the plan with the present step"
    )
    assert raised["status"]["step"]["endsAt"] == before["endsAt"], "the present step goes on to its end"
    assert raised["status"]["weights"]["candidate"] == 20
    # Without steps they are planned, and the present weight is one of theirs; what was 10 minutes long has no length.
    rollout.patch(strategy={"canary": {"steps": None}})
    done = finish(rollout)
    assert done["history"][0]["reason"] == "ProvenHarmless"
    weights = [s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"]
    assert in_order_once(weights, [0, 20, 35, 50])


@story
def the_size_of_the_candidate_is_set_apart_from_its_weight(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", workload=workload(4))
    sized = steps({"weight": 10, "size": 75, "duration": "2s"}, {"weight": 30, "duration": "2s"})
    rollout.apply("2", workload=workload(4), strategy=sized)
    finish(rollout)
    comparing = [s for s in rollout.history() if s.get("phase") == "Progressing"]
    assert {s["candidate"]["ready"] for s in comparing if s["weights"]["candidate"]} == {3}
    assert {s["stable"]["desired"] for s in comparing} == {4}


# 12, 13: a baseline that is shrunk


ELASTIC = {"workload": workload(4, elastic=True)}
HALF = steps({"weight": 50, "duration": "10m"})


def exchanged(rollout: Rollout) -> str:
    """Wait until a candidate carries half of the traffic and half of the baseline is gone; the candidate."""
    half = rollout.wait(
        lambda obj: (
            obj["status"].get("step", {}).get("startedAt") and obj["status"]["stable"]["desired"] == 2
        ),
        "half of the baseline",
    )
    assert half["status"]["weights"]["candidate"] == 50
    return candidate(half)


@story
def the_way_back_to_a_shrunken_baseline_moves_traffic_only_as_pods_can_carry_it(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1", **ELASTIC)
    rollout.apply("2", strategy=HALF, **ELASTIC)
    new = exchanged(rollout)
    asked = version_of(rollout.ask("abort", new))
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "Aborted"
    world.deployments.wait_gone(rollout.namespace, rollout.child(new))
    for route in world.routes.versions(rollout.namespace, "fraud"):
        carried_at(rollout, route, 4)
    gone = world.routes.wait(
        rollout.namespace,
        "fraud",
        lambda r: weights_of(r) == {rollout.child(old): 100},
        "the way back",
        after=asked,
    )
    assert rollout.ready_at(new, version_of(gone)) >= 1, "its pods drain after its traffic is gone"
    rollout.check_drained(new)


@story
def a_third_revision_waits_until_a_shrunken_baseline_has_grown_again(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", **ELASTIC)
    rollout.apply("2", strategy=HALF, **ELASTIC)
    second = exchanged(rollout)
    named = version_of(rollout.apply("3", **ELASTIC))
    done = finish(rollout)
    third = done["stable"]["revision"]
    assert outcomes(done) == [("Promoted", "fraud 3"), ("Superseded", "fraud 2"), ("Promoted", "fraud 1")]
    routes = [r for r in world.routes.versions(rollout.namespace, "fraud") if version_of(r) > named]
    for route in routes:
        carried_at(rollout, route, 4)
        weights = weights_of(route)
        assert not (weights.get(rollout.child(third)) and weights.get(rollout.child(second)))
    assert any(weights_of(route).get(rollout.child(third)) == 50 for route in routes)


# 15, 16: the router, and the drain delay


@story
def a_router_that_refuses_a_write_holds_the_step_and_is_named_until_it_takes_it(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    path = path_of("gateway.networking.k8s.io/v1", "httproutes", rollout.namespace, "fraud")

    def probe() -> object:
        return rollout.client.patch(path, {"metadata": {"labels": {"probe": "1"}}}, dryRun="All")

    with refused(rollout, "gateway.networking.k8s.io", "httproutes", "UPDATE", probe):
        rollout.apply("2")
        rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 20, "the decision for the weight")
        told = rollout.wait(
            lambda obj: "httproutes are frozen" in message(obj), "the words of the API server"
        )
        assert told["status"]["phase"] == "Progressing"
        assert "startedAt" not in told["status"]["step"], "the clock waits for the route"
        assert weights_of(rollout.route()) == {rollout.child(old): 100}
    done = finish(rollout)
    assert done["history"][0]["outcome"] == "Promoted"


@story
def an_abort_keeps_the_pods_for_the_drain_delay(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG, drainDelay="4s")
    new = candidate(rollout.wait_step("1/2"))
    rollout.ask("abort", new)
    back = rollout.wait_phase("RolledBack")["status"]
    (gone,) = back["retiring"]
    until = seconds(gone, "until")
    assert gone["revision"] == new
    assert until - seconds(back, "history", 0, "endedAt") == pytest.approx(4.0)
    rollout.wait(lambda obj: not obj["status"].get("retiring"), "the end of the drain delay")
    rollout.check_drained(new)


# 17 – 21: the analysis


@story
def harm_is_found_in_a_pause_as_well(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    new = candidate(rollout.wait_step("1/2"))
    pause(rollout, new)
    world.traffic.spoil(rollout.namespace, new, 0.3)
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "HarmProven"


@story
def what_can_not_be_proven_in_time_pauses_with_the_reason_until_somebody_decides(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    usual = analysis(deadline="4s", onInconclusive="Pause")
    usual["metrics"][0]["margin"] = {"accept": {"ratio": "1.001", "absolute": "0.00001"}}
    rollout.apply("2", strategy=steps({"weight": 50, "duration": "1s"}), analysis=usual)
    held = rollout.wait_phase("Paused")
    assert condition(held, "Reconciling")["reason"] == "Inconclusive"
    assert "within 4s" in rollout.wait_event("Inconclusive")["note"]
    rollout.wait(lambda obj: "promote, abort, or resume" in message(obj), "what can be done about it")
    rollout.ask("promote", candidate(held))
    done = finish(rollout)
    assert done["history"][0]["unproven"] is True


@story
def a_guardrail_counts_only_failures_in_a_row(world: World) -> None:
    """It is breached in every second poll until told otherwise, and three in a row are needed. An answer that the operator
    does not use, as on a machine that is too busy, makes two of them neighbours, and not three."""
    rollout, polls, bad = world.rollout(), dict[float, int](), threading.Event()
    name = f"heat_{rollout.namespace.replace('-', '_')}"

    def value(at: float) -> float:
        number = polls.setdefault(at, len(polls))
        return 100.0 if bad.is_set() or number % 2 else 50.0

    world.prometheus.can(name, value)
    rollout.deploy("1")
    usual = analysis()
    usual["metrics"].append(
        {"name": "heat", "guardrail": {"query": f"max({name})", "max": "70", "failures": 3}}
    )
    rollout.apply("2", strategy=LONG, analysis=usual)
    rollout.wait_step("1/2")
    seen = len(polls)
    told = rollout.wait(lambda _: len(polls) >= seen + 9, "nine polls")
    assert told["status"]["phase"] == "Progressing"
    bad.set()
    assert rollout.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "GuardrailBreached"
    assert "3 times in a row" in rollout.status()["history"][0]["message"]


# 25 – 30: promotions, re-applied specs, odd plans


@story
def a_promotion_whose_pods_do_not_come_goes_back_and_the_candidate_never_carried_more_than_its_step(
    world: World,
) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", strategy=steps({"weight": 50, "duration": "4s"}))
    new = candidate(rollout.wait_step("1/1"))
    rollout.patch(progressDeadline="4s")
    pod = {"metadata": {"generateName": "probe-"}, "spec": {"containers": [CONTAINER]}}
    pods = path_of("v1", "pods", rollout.namespace)
    pod["metadata"]["labels"] = {}
    with refused(rollout, "", "pods", "CREATE", lambda: rollout.client.create(pods, pod, dryRun="All")):
        back = rollout.wait_phase("RolledBack")["status"]
    assert "Promoting" in rollout.phases()
    assert (back["stable"]["revision"], back["rejected"]["reason"]) == (old, "ProgressDeadlineExceeded")
    assert "1 of 2 pods ready" in back["history"][0]["message"]
    routes = world.routes.versions(rollout.namespace, "fraud")
    assert max(weights_of(route).get(rollout.child(new), 0) for route in routes) == 50


@story
def the_promoted_spec_applied_again_starts_nothing(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2")
    finish(rollout)
    rollout.apply("2")
    rollout.apply("2", drainDelay="2s")  # another round, which is seen
    again = rollout.wait_phase("Healthy")["status"]
    assert (again["attempt"], len(again["history"])) == (2, 2)
    assert rollout.phases().count("Progressing") == 1


@story
def without_an_analysis_an_image_that_can_not_start_is_not_promoted(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1", analysis=OFF)
    rollout.apply(
        "2", analysis=OFF, workload=workload(image="registry.example/none:1"), progressDeadline="10s"
    )
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "ProgressDeadlineExceeded"
    assert "ImagePullBackOff" in back["history"][0]["message"]
    routes = world.routes.versions(rollout.namespace, "fraud")
    assert all(weights_of(route) == {rollout.child(old): 100} for route in routes)


def odd(name: str, plan: list[Object]) -> Story:
    """A plan that nobody would write in earnest."""

    def run(world: World) -> None:
        rollout = world.rollout()
        rollout.deploy("1", analysis=OFF)
        rollout.apply("2", analysis=OFF, strategy=steps(*plan), watch={"duration": "0s"})
        rollout.wait(lambda obj: obj["status"]["attempt"] == 2, "the start")
        done = rollout.wait_phase("Healthy")
        assert done["status"]["history"][0]["outcome"] == "Promoted"
        comparing = [s for s in rollout.history() if s.get("phase") == "Progressing"]
        weights = [s["weights"]["candidate"] for s in comparing]
        assert weights == sorted(weights)
        assert set(weights) >= {step["weight"] for step in plan}
        shown = list(dict.fromkeys(s["step"]["display"] for s in comparing))
        assert shown == [f"{n}/{len(plan)}" for n in range(1, len(plan) + 1)]

    run.__name__ = name
    return story(run)


odd("one_step_of_99_percent_and_no_length", [{"weight": 99}])
odd("one_step_of_1_percent", [{"weight": 1, "duration": "1s"}])
odd("twelve_steps_of_the_same_weight", [{"weight": 30}] * 12)
odd("steps_without_a_length", [{"weight": w} for w in (1, 2, 50, 99)])


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
