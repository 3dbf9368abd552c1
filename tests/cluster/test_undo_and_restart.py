"""A stored revision that comes back, and pods that are made anew."""

from __future__ import annotations

import pytest

from lab.kube import Informer, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import BAD, GOOD, Rollout, World, is_ready, phase_is

OFF = {
    "analysis": {"mode": "Off"},
    "strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}},
    "watch": {"duration": "0s"},
}


@pytest.fixture
def rollout(world: World, operator: Operator) -> Rollout:
    return world.rollout()


def stable(obj: Object) -> str:
    return str(((obj.get("status") or {}).get("stable") or {}).get("revision"))


def names(rollout: Rollout, revision: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in rollout.pods(revision) if is_ready(pod)}


def env_of(world: World, rollout: Rollout, revision: str) -> dict[str, str]:
    path = path_of("apps/v1", "deployments", rollout.namespace, rollout.child(revision))
    container = world.lab.client.get(path)["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one.get("value", "") for one in container["env"]}


def test_an_old_revision_comes_back_as_it_was_until_the_spec_changes(world: World, rollout: Rollout) -> None:
    first = rollout.deploy("1", GOOD, **OFF)
    rollout.apply("2", BAD, **OFF)
    second = stable(rollout.wait_phase("Healthy"))
    rollout.ask("undo", first)
    back = rollout.wait(lambda o: phase_is("Healthy")(o) and stable(o) == first, "the way back")
    assert back["status"]["attempt"] == 3
    assert back["status"]["stable"]["model"] == "fraud 1"
    assert env_of(world, rollout, first)["MODEL_URI"] == GOOD
    rollout.apply("2", BAD, **OFF)  # a GitOps tool applies what stands in Git
    rollout.patch(drainDelay="2s")
    kept = rollout.wait_phase("Healthy")
    assert (stable(kept), kept["status"]["attempt"]) == (first, 3)
    rollout.ask("undo", f"{second}@again")
    rollout.wait(lambda o: phase_is("Healthy")(o) and stable(o) == second, "the spec's own revision")
    assert "undo" not in rollout.status()


def test_an_undone_revision_is_judged_like_any_other(rollout: Rollout) -> None:
    bad = rollout.deploy("1", BAD)
    rollout.apply("2", GOOD)
    good = stable(rollout.wait_phase("Healthy"))
    rollout.ask("undo", bad)
    status = rollout.wait(phase_is("RolledBack"), "the way back")["status"]
    assert (status["stable"]["revision"], status["history"][0]["reason"]) == (good, "HarmProven")


def test_a_restart_makes_all_pods_anew_and_never_lacks_one(world: World, rollout: Rollout) -> None:
    revision = rollout.deploy(**OFF)
    available: list[int] = []

    def watch(kind: str, obj: Object) -> None:
        available.append(int(obj["status"].get("availableReplicas") or 0))

    path = path_of("apps/v1", "deployments", rollout.namespace)
    informer = Informer(world.lab.client, path, watch)
    informer.start()
    try:
        for salt in ("1", "2"):
            before = names(rollout, revision)
            rollout.ask("restart", f"{revision}@{salt}")
            wait_until(
                lambda before=before: len(now := names(rollout, revision)) == 2 and not now & before,  # type: ignore[misc]
                timeout=60,
                what=f"new pods after request {salt}",
            )
    finally:
        informer.stop()
    assert min(available) >= 2
    assert rollout.status()["attempt"] == 1
    assert rollout.status()["phase"] == "Healthy"


def test_a_rollout_after_a_restart_leaves_the_restarted_pods_alone(rollout: Rollout) -> None:
    slow = OFF | {"strategy": {"canary": {"steps": [{"weight": 10, "duration": "10m"}]}}}
    revision = rollout.deploy("1", **slow)
    before = names(rollout, revision)
    rollout.ask("restart", revision)
    wait_until(
        lambda: len(now := names(rollout, revision)) == 2 and not now & before, timeout=60, what="new pods"
    )
    restarted = names(rollout, revision)
    rollout.apply("2", **slow)
    rollout.wait_step("1/1")
    candidate = rollout.status()["candidate"]["revision"]
    rollout.ask("restart", candidate)
    rollout.wait_event("Restarted")
    rollout.ask("abort", candidate)
    rollout.wait_phase("RolledBack")
    assert names(rollout, revision) == restarted
