"""Whole releases by the real operator on a real API server: how they go, and what people can ask for meanwhile.

Each story has a namespace of its own; they run side by side under one operator.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from lab.kube import Object, path_of
from lab.node import READY_ANNOTATION
from tests.cluster.harness import (
    BAD,
    ROUTES,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    analysis,
    condition,
    table_of,
    title,
    version_of,
    weights_of,
)

STORIES = Stories()
story = STORIES.story
RELEASE = ["Pending", "Healthy", "Progressing", "Promoting", "Watching", "Healthy"]
LONG = {"canary": {"steps": [{"weight": 20, "duration": "10m"}, {"weight": 50, "duration": "2s"}]}}
SHORT = {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}}
CONTAINER = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}
NEVER_READY = {
    "metadata": {"annotations": {READY_ANNOTATION: "false"}},
    "spec": {"containers": [CONTAINER]},
}


def in_order(wanted: list[str], found: list[str]) -> bool:
    """Whether all that is wanted is found, in this order, with anything between."""
    left = iter(found)
    return all(one in left for one in wanted)


@story
def a_good_model_is_promoted_step_by_step_and_the_old_one_goes_after_the_watch(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")
    rollout.wait_event("WatchCompleted")
    assert rollout.phases() == RELEASE
    status = done["status"]
    new = status["stable"]["revision"]
    assert {share: weight for share, weight in status["weights"].items() if weight} == {"stable": 100}
    assert [h["outcome"] for h in status["history"]] == ["Promoted", "Promoted"]
    assert status["history"][0]["reason"] == "ProvenHarmless"
    told = "RolloutStarted Promoted RolloutStarted WeightChanged StepCompleted StepStarted WeightChanged"
    assert in_order([*told.split(), "StepCompleted", "Promoted", "WatchCompleted"], rollout.reasons())
    world.deployments.wait_gone(rollout.namespace, rollout.child(old))
    assert selector(rollout, "fraud")["modelrollout.dev/revision"] == new
    assert weights_of(rollout.route()) == {rollout.child(new): 100}
    records = rollout.client.list(path_of("apps/v1", "controllerrevisions", rollout.namespace))
    assert {r["metadata"]["name"] for r in records} == {rollout.child(old), rollout.child(new)}
    rollout.check_ready()
    splits = [weights_of(route) for route in world.routes.versions(rollout.namespace, "fraud")]
    assert in_order_once([s.get(rollout.child(new), 0) for s in splits], [0, 20, 50, 90, 100])


def in_order_once(found: list[int], wanted: list[int]) -> bool:
    runs = [weight for at, weight in enumerate(found) if at == 0 or weight != found[at - 1]]
    assert runs == wanted
    return True


def selector(rollout: Rollout, service: str) -> dict[str, str]:
    found: dict[str, str] = rollout.client.get(path_of("v1", "services", rollout.namespace, service))["spec"][
        "selector"
    ]
    return found


@story
def a_harmful_model_is_rolled_back_and_only_tried_again_on_request(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", BAD)
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["stable"]["revision"] == old
    assert back["rejected"]["reason"] == "HarmProven"
    assert "errors" in back["message"] and "baseline" in back["message"]
    bad = back["rejected"]["revision"]
    rollout.wait_event("RolledBack")
    assert in_order(["HarmProven", "RolledBack"], rollout.reasons())
    world.deployments.wait_gone(rollout.namespace, rollout.child(bad))
    # An autoscaler's write and an edit of the plan are no wish to try it again.
    rollout.patch(workload={"replicas": 3})
    scaled = rollout.wait_phase("RolledBack")["status"]
    rollout.patch(watch={"duration": "5s"})
    assert rollout.wait_phase("RolledBack")["status"]["attempt"] == scaled["attempt"] == 2
    rollout.ask("retry", bad)
    rollout.wait(lambda obj: obj["status"]["attempt"] == 3, "attempt 3")
    again = rollout.wait_phase("RolledBack")["status"]
    assert [h["outcome"] for h in again["history"]] == ["RolledBack", "RolledBack", "Promoted"]
    # Another version is the mend, and needs no word besides.
    rollout.apply("3")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert (outcomes(done)[0], done["attempt"], "rejected" in done) == (("Promoted", "fraud 3"), 4, False)


@story
def a_model_that_turns_bad_in_the_watch_is_taken_back(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1", watch={"duration": "10m", "holdback": 10})
    rollout.apply("2", watch={"duration": "10m", "holdback": 10})
    new = rollout.wait_phase("Watching")["status"]["stable"]["revision"]
    world.traffic.spoil(rollout.namespace, new, 0.3)
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["stable"]["revision"] == old
    assert back["history"][0]["outcome"] == "RolledBackAfterPromotion"
    assert weights_of(rollout.route())[rollout.child(old)] == 100


@story
def a_first_deployment_that_is_broken_is_replaced_by_the_fixed_one(world: World) -> None:
    rollout = world.rollout()
    rollout.apply("1", workload={"replicas": 2, "template": NEVER_READY})
    told = rollout.wait(lambda obj: "0 of 2 pods ready" in message(obj), "the word that no pod is ready")
    broken = told["status"]["stable"]["revision"]
    rollout.apply("2")
    status = rollout.wait_phase("Healthy")["status"]
    assert status["stable"]["ready"] == 2
    assert rollout.phases() == ["Pending", "Healthy"]
    assert outcomes(status) == [("Promoted", "fraud 2"), ("Superseded", "fraud 1")]
    world.deployments.wait_gone(rollout.namespace, rollout.child(broken))
    assert weights_of(rollout.route()) == {rollout.child(status["stable"]["revision"]): 100}


def outcomes(status: Object) -> list[tuple[str, str]]:
    return [(entry["outcome"], entry["model"]) for entry in status["history"]]


def message(obj: Object) -> str:
    return str((obj.get("status") or {}).get("message") or "")


@story
def a_candidate_that_never_gets_ready_is_rolled_back_at_the_progress_deadline_and_gets_no_request(
    world: World,
) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", workload={"replicas": 2, "template": NEVER_READY}, progressDeadline="3s")
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "ProgressDeadlineExceeded"
    assert "0 of 1 pods ready" in back["message"]
    routes = [weights_of(route) for route in world.routes.versions(rollout.namespace, "fraud")]
    assert all(set(weights) == {rollout.child(old)} for weights in routes)


@story
def a_route_that_the_gateway_refuses_is_rolled_back_once_it_is_read_back(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    world.gateway.refused.add(rollout.namespace)
    rollout.apply("2", progressDeadline="10s")
    rolling = rollout.wait_phase("RollingBack")["status"]
    assert rolling["history"][0]["reason"] == "RouteNotAccepted"
    assert "NotAllowedByListeners" in rolling["history"][0]["message"]
    rollout.patch(watch={"duration": "5s"})  # another round, later than the one that wrote the route
    rollout.wait_phase("RollingBack")
    world.gateway.accept(rollout.namespace)
    assert rollout.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "RouteNotAccepted"


@story
def the_third_revision_in_a_row_is_what_gets_promoted(world: World) -> None:
    rollout = world.rollout()
    first, second = rollout.compare()
    rollout.apply("3")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert outcomes(done) == [("Promoted", "fraud 3"), ("Superseded", "fraud 2"), ("Promoted", "fraud 1")]
    third = done["stable"]["revision"]
    for route in world.routes.versions(rollout.namespace, "fraud"):
        weights = {name: weight for name, weight in weights_of(route).items() if weight}
        assert len(weights) <= 2, "weight goes back before another revision has any"
        if rollout.child(third) in weights:
            assert rollout.child(second) not in weights
    rollout.check_ready()
    rollout.check_drained(second)
    compared = {
        (s["stable"]["revision"], s["candidate"]["revision"])
        for s in rollout.history()
        if s.get("phase") == "Progressing"
    }
    assert compared == {(first, second), (first, third)}, "each is compared with what served all the time"
    rollout.check_ledger()


@story
def going_back_to_the_old_version_during_the_watch_is_no_new_release(world: World) -> None:
    rollout = world.rollout()
    slow = {"duration": "10m", "holdback": 10}
    old = rollout.deploy("1", watch=slow)
    rollout.apply("2", watch=slow)
    rollout.wait_phase("Watching")
    rollout.apply("1", watch=slow)
    back = rollout.wait_phase("Healthy")["status"]
    assert back["stable"]["revision"] == old
    assert back["attempt"] == 2
    # The first outcome of an attempt stays the one that is told, with how it ended.
    assert back["history"][0]["outcome"] == "Reverted"
    rollout.check_ready()


@story
def abort_takes_the_traffic_back_and_retry_tries_the_same_again(world: World) -> None:
    rollout = world.rollout()
    _, new = rollout.compare(strategy=LONG)
    rollout.ask("abort", new)
    assert rollout.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "Aborted"
    rollout.patch(strategy={"canary": {"steps": [{"weight": 50, "duration": "2s"}]}})
    rollout.ask("retry", new)
    rollout.wait_phase("Watching")
    assert rollout.wait_phase("Healthy")["status"]["stable"]["revision"] == new


@story
def promote_skips_what_is_left_and_the_history_says_that_nothing_was_proven(world: World) -> None:
    rollout = world.rollout()
    _, new = rollout.compare(strategy=LONG)
    rollout.ask("promote", new)
    done = rollout.wait_phase("Watching")["status"]
    assert done["stable"]["revision"] == new
    assert done["history"][0]["reason"] == "PromoteRequested"
    assert done["history"][0]["unproven"] is True
    rollout.wait_phase("Healthy")
    routes = world.routes.versions(rollout.namespace, "fraud")
    assert in_order_once([weights_of(route).get(rollout.child(new), 0) for route in routes], [0, 20, 90, 100])
    for route in routes:
        if weights_of(route).get(rollout.child(new), 0) > 20:
            assert rollout.ready_at(new, version_of(route)) == 2, "nobody's wish makes up for pods"


@story
def a_pause_holds_weight_and_clock_until_it_is_resumed(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    steps = {"canary": {"steps": [{"weight": 20, "duration": "5s"}, {"weight": 50, "duration": "1s"}]}}
    rollout.apply("2", strategy=steps)
    new = rollout.wait_step("1/2")["status"]["candidate"]["revision"]
    rollout.ask("pause", new)
    held = rollout.wait(lambda obj: obj["status"]["phase"] == "Paused", "the pause")
    assert condition(held, "Reconciling")["reason"] == "UserRequest"
    left = held["status"]["step"]["left"]
    # A commit later than the pause: evidence goes on, the clock does not.
    later = rollout.wait(lambda obj: requests(obj) > requests(held), "evidence that grows during the pause")
    assert later["status"]["step"]["left"] == left
    assert "endsAt" not in later["status"]["step"]
    assert later["status"]["weights"]["candidate"] == 20
    rollout.ask("resume", new)
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")
    assert in_order(["Paused", "Resumed", "Promoted"], rollout.reasons()[3:])


def requests(obj: Object) -> int:
    metrics = obj["status"].get("metrics") or []
    return int(metrics[0]["candidateRequests"]) if metrics else 0


@story
def a_step_that_needs_approval_prints_the_command_and_goes_on_with_it(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    steps = [{"weight": 20, "duration": "1s", "approval": True}, {"weight": 50, "duration": "1s"}]
    rollout.apply("2", strategy={"canary": {"steps": steps}})
    waiting = rollout.wait(
        lambda obj: condition(obj, "Reconciling").get("reason") == "AwaitingApproval", "the wait for approval"
    )
    found = re.search(r"modelrollout\.dev/approve=(\S+)", message(waiting))
    assert found, message(waiting)
    rollout.ask("approve", "aaaaaaaaaa/step")
    note = rollout.wait_event("RequestIgnored")["note"]
    assert "aaaaaaaaaa" in note and waiting["status"]["candidate"]["revision"] in note
    rollout.ask("approve", found[1])
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert done["requests"]["approve"] == found[1]
    assert "AwaitingApproval" in rollout.reasons()


@story
def a_paused_spec_creates_nothing_until_it_is_resumed(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", paused=True)
    paused = rollout.wait_phase("Paused")["status"]
    new = paused["candidate"]["revision"]
    rollout.patch(watch={"duration": "2s"})  # another round, later than the one that would have created pods
    rollout.wait_phase("Paused")
    assert world.deployments.names(rollout.namespace) == [rollout.child(old)]
    rollout.patch(paused=False)
    rollout.wait_phase("Watching")
    assert rollout.wait_phase("Healthy")["status"]["stable"]["revision"] == new


def compares(obj: Object, label: str) -> bool:
    """Whether the clock of a step of this model runs."""
    candidate, step = obj["status"].get("candidate") or {}, obj["status"].get("step") or {}
    return candidate.get("model") == label and bool(step.get("startedAt"))


@story
def template_and_replicas_may_change_in_one_apply_in_the_middle_of_a_pause(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    for version, replicas in (("3", 4), ("4", 3)):
        label = f"fraud {int(version) - 1}"
        tried = rollout.wait(lambda obj, label=label: compares(obj, label), f"a step of {label}")["status"]
        rollout.ask("pause", tried["candidate"]["revision"])
        rollout.wait_phase("Paused")
        other = {"replicas": replicas, "template": {"spec": {"containers": [CONTAINER]}}}
        rollout.apply(version, workload=other, strategy=LONG if version == "3" else SHORT)
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert done["stable"]["model"] == "fraud 4"
    assert (done["stable"]["desired"], done["stable"]["ready"]) == (3, 3)
    assert [entry["outcome"] for entry in done["history"][:3]] == ["Promoted", "Superseded", "Superseded"]
    # What serves has the size that came with the candidate.
    sizes = {
        (s["candidate"]["model"], s["stable"]["desired"])
        for s in rollout.history()
        if s.get("phase") == "Progressing" and s["weights"]["candidate"] and s["attempt"] > 2
    }
    assert sizes == {("fraud 3", 4), ("fraud 4", 3)}
    rollout.check_ready()


@story
def an_edit_of_the_plan_never_raises_the_weight_and_keeps_the_evidence(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    rollout.wait_step("1/2")
    before = rollout.wait(lambda obj: requests(obj) > 0, "evidence")
    rollout.patch(
        strategy={"canary": {"steps": [{"weight": 10, "duration": "2s"}, {"weight": 40, "duration": "1s"}]}}
    )
    lowered = rollout.wait(
        lambda obj: (
            (obj["status"].get("step") or {}).get("startedAt") and obj["status"]["weights"]["candidate"] == 10
        ),
        "the lower weight",
    )
    assert lowered["status"]["step"]["display"] == "1/2"
    assert requests(lowered) >= requests(before)
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")
    weights = [s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"]
    assert in_order_once(weights, [0, 20, 10, 40])


@story
def replicas_written_through_the_scale_subresource_grow_both_sides_without_a_drop_of_the_weight(
    world: World,
) -> None:
    rollout = world.rollout()
    old, new = rollout.compare(strategy=LONG)
    scale = rollout.client.get(f"{rollout.path}/scale")
    assert scale["status"]["selector"] == "modelrollout.dev/rollout=fraud"
    scale["spec"]["replicas"] = 6
    rollout.client.replace(f"{rollout.path}/scale", scale)
    rollout.wait(
        lambda obj: obj["spec"]["workload"]["replicas"] == 6 and obj["status"]["stable"]["ready"] == 6,
        "six pods of the baseline",
    )
    rollout.patch(
        strategy={"canary": {"steps": [{"weight": 20, "duration": "1s"}, {"weight": 50, "duration": "1s"}]}}
    )
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert (done["stable"]["revision"], done["stable"]["ready"]) == (new, 6)
    assert old != new
    weights = [s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"]
    assert weights == sorted(weights)
    assert (weights[0], weights[-1]) == (0, 50)
    assert rollout.client.get(f"{rollout.path}/scale")["status"]["replicas"] == 6


@story
def the_better_model_of_a_test_wins_long_before_its_time(world: World) -> None:
    rollout = world.rollout()
    test = {"abTest": {"reward": "errors", "weight": 40, "duration": "1h"}}
    rollout.deploy("1", strategy=test)
    rollout.apply("2", "errors=0.001", strategy=test)
    rollout.wait_step("1/1")
    rollout.wait_phase("Watching")
    entry = rollout.wait_phase("Healthy")["status"]["history"][0]
    assert (entry["outcome"], entry["reason"]) == ("Promoted", "ProvenSuperior")
    assert not entry["unproven"]
    assert entry["message"].endswith(", better")
    rollout.check_ledger()


@story
def without_sessions_in_the_cluster_a_test_that_wants_them_is_refused_and_healed_without(
    world: World,
) -> None:
    """The lab serves the standard channel of the Gateway API."""
    rollout = world.rollout()
    test = {"weight": 40, "duration": "1s"}
    rollout.apply("1", strategy={"abTest": {**test, "stickiness": {"cookie": "side"}}})
    refused = condition(rollout.wait_phase("Invalid"), "Accepted")
    assert (refused["status"], refused["reason"]) == ("False", "NotSupported")
    assert "experimental channel" in refused["message"] and "sessionPersistence" in refused["message"]
    rollout.apply("1", strategy={"abTest": test})
    done = rollout.wait_phase("Healthy")
    assert condition(done, "Accepted")["status"] == "True"


@story
def without_a_router_the_ratio_of_pods_makes_the_split(world: World) -> None:
    rollout = world.rollout()
    ratio: dict[str, Any] = {
        "traffic": {"podRatio": {}},
        "workload": {"replicas": 4, "template": {"spec": {"containers": [CONTAINER]}}},
        "strategy": {
            "canary": {"steps": [{"weight": 25, "duration": "1s"}, {"weight": 50, "duration": "1s"}]}
        },
    }
    old = rollout.deploy("1", **ratio)
    assert selector(rollout, "fraud")["modelrollout.dev/revision"] == old
    rollout.apply("2", **ratio)
    rollout.wait_step("1/2")
    assert "modelrollout.dev/revision" not in selector(rollout, "fraud")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert selector(rollout, "fraud")["modelrollout.dev/revision"] == done["stable"]["revision"]
    assert rollout.client.list(path_of(*ROUTES, rollout.namespace)) == []
    weights = [s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"]
    assert in_order_once(weights, [0, 25, 50])


@story
def a_guardrail_that_is_breached_rolls_back_and_one_in_dry_run_only_tells(world: World) -> None:
    names = {"gating": f"gpu_{id(world)}_a", "dry": f"gpu_{id(world)}_b"}
    world.prometheus.can(names["gating"], 100.0)
    world.prometheus.can(names["dry"], 100.0)
    guarded, told = world.rollout(), world.rollout()
    for rollout, name, dry in ((guarded, names["gating"], False), (told, names["dry"], True)):
        rollout.deploy("1")
        usual = analysis()
        guardrail = {"query": f"max({name})", "max": "70", "failures": 2}
        usual["metrics"].append({"name": "gpu", "dryRun": dry, "guardrail": guardrail})
        rollout.apply("2", analysis=usual)
    assert guarded.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "GuardrailBreached"
    told.wait_phase("Watching")
    gpu = next(m for m in told.status()["metrics"] if m["name"] == "gpu")
    assert gpu["value"] == "100"
    told.wait_phase("Healthy")


@story
def the_table_and_the_events_tell_the_story_without_any_other_tool(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    rollout.wait_step("1/2")
    rollout.wait(lambda obj: requests(obj) > 0, "evidence")
    row = table(rollout)
    assert " ".join(row) == "Name Phase Step Weight Verdict Ready Age Stable Candidate Message"
    status = rollout.status()
    assert (row["Phase"], row["Step"], row["Weight"], row["Ready"]) == ("Progressing", "1/2", 20, "Unknown")
    assert (row["Stable"], row["Candidate"]) == (
        status["stable"]["revision"],
        status["candidate"]["revision"],
    )
    assert "20 %" in row["Message"] and "errors" in row["Message"]
    rollout.ask("abort", status["candidate"]["revision"])
    rollout.wait_phase("RolledBack")
    rollout.wait_event("RolledBack")
    assert table(rollout)["Phase"] == "RolledBack"
    told = [f"{event['type']} {event['reason']}: {event['note']}" for event in rollout.events()]
    assert any(
        re.fullmatch(r"Normal RolloutStarted: attempt 2: fraud 2 \(\w+\) is tried against \w+", line)
        for line in told
    )
    assert any(line.startswith("Normal WeightChanged: candidate 0 % → 20 %") for line in told)
    assert any(line.startswith("Warning RolledBack:") and "Aborted" in line for line in told)


def table(rollout: Rollout) -> dict[str, Any]:
    """The row that `kubectl get -o wide` prints."""
    answer = table_of(rollout.client, rollout.path)
    names = [column["name"] for column in answer["columnDefinitions"]]
    return dict(zip(names, answer["rows"][0]["cells"], strict=True))


@story
def deleting_a_rollout_takes_everything_with_it(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    rollout.wait_step("1/2")
    children = world.deployments.names(rollout.namespace)
    assert len(children) == 2
    rollout.client.delete(rollout.path)
    for name in children:
        world.deployments.wait_gone(rollout.namespace, name)
    world.routes.wait_gone(rollout.namespace, "fraud")


@story
def a_restored_cluster_with_empty_status_goes_on_with_what_serves(world: World) -> None:
    rollout = world.rollout()
    revision = rollout.deploy("1")
    pods = {pod["metadata"]["uid"] for pod in rollout.pods(revision)}
    emptied = rollout.get() | {"status": {}}
    rollout.applied = version_of(rollout.client.replace(f"{rollout.path}/status", emptied))
    status = rollout.wait_phase("Healthy")["status"]
    assert status["stable"]["revision"] == revision
    assert status["stable"]["everReady"] is True
    assert {pod["metadata"]["uid"] for pod in rollout.pods(revision)} == pods
    rollout.apply("2")
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")


@story
def a_cluster_restored_in_the_middle_of_a_rollout_compares_the_candidate_anew(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    rollout.wait_step("1/2")
    for _ in range(20):
        emptied = rollout.get() | {"status": {}}
        try:
            rollout.applied = version_of(rollout.client.replace(f"{rollout.path}/status", emptied))
            break
        except Exception as error:
            if getattr(error, "status", None) != 409:
                raise
    started = rollout.wait_step("1/2")["status"]
    assert started["stable"]["revision"] == old
    assert started["attempt"] == 1
    assert [entry["model"] for entry in started["history"]] == ["fraud 2"]
    rollout.ask("promote", started["candidate"]["revision"])
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
