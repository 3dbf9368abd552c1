"""A stored revision that comes back, pods that are made anew, and an autoscaler at work during a rollout."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest

from lab.kube import Informer, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import BAD, GOOD, PLURAL, VERSION, Rollout, World, is_ready, manifest, phase_is

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


# Autoscaling


class Autoscaler:
    """Writes the scale subresource as a HorizontalPodAutoscaler does: the mean over the pods that the selector matches,
    and within its tolerance it asks for `status.replicas`. `load` is in pods that are busy as they should be."""

    def __init__(self, rollout: Rollout, load: Callable[[], float], most: int = 10) -> None:
        self._rollout, self._load, self._most = rollout, load, most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.asked: list[int] = []
        self.reported: list[int] = []

    def __enter__(self) -> Autoscaler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        rollout, client = self._rollout, self._rollout.client
        path = path_of(VERSION, PLURAL, rollout.namespace, rollout.name, "scale")
        pods = path_of("v1", "pods", rollout.namespace)
        while not self._stop.wait(0.3):
            scale = client.get(path)
            selector = scale["status"].get("selector")
            if not selector:
                continue
            ready = sum(is_ready(pod) for pod in client.list(pods, labelSelector=selector))
            reported = int(scale["status"].get("replicas") or 0)
            self.reported.append(reported)
            if not ready or not reported:
                continue
            ratio = self._load() / ready
            wanted = reported if abs(1 - ratio) <= 0.1 else math.ceil(ratio * ready)
            wanted = max(1, min(self._most, wanted))
            if wanted != scale["spec"].get("replicas"):
                self.asked.append(wanted)
                client.patch(path, {"spec": {"replicas": wanted}})


def sizes(rollout: Rollout, role: str, *phases: str) -> list[int]:
    return [s[role]["desired"] for s in rollout.history() if s.get("phase") in phases and s.get(role)]


def test_a_rollout_under_an_autoscaler_does_not_feed_itself(rollout: Rollout) -> None:
    usual = manifest(rollout.namespace)["spec"]["workload"] | {"replicas": 3}
    with Autoscaler(rollout, lambda: 3.0) as scaler:
        rollout.deploy("1", workload=usual)
        rollout.client.patch(rollout.path, {"spec": {"model": {"version": "2"}}})
        done = rollout.wait(
            lambda o: phase_is("Healthy")(o) and o["status"].get("attempt") == 2, "the promotion"
        )
    assert done["status"]["history"][0]["outcome"] == "Promoted"
    assert max([3, *scaler.asked]) == 3
    assert max(scaler.reported) == 3
    assert min(sizes(rollout, "stable", "Progressing", "Promoting")) >= 3
    assert rollout.get()["spec"]["workload"]["replicas"] == 3
    assert done["status"]["stable"]["desired"] == 3


def test_demand_that_rises_in_the_middle_is_met_and_falls_only_at_the_end(rollout: Rollout) -> None:
    busy = threading.Event()
    usual = manifest(rollout.namespace)["spec"]["workload"]
    steps = {"canary": {"steps": [{"weight": 50, "duration": "6s"}]}}
    with Autoscaler(rollout, lambda: 4.0 if busy.is_set() else 2.0):
        rollout.deploy("1", workload=usual, strategy=steps)
        rollout.client.patch(rollout.path, {"spec": {"model": {"version": "2"}}})
        rollout.wait_step("1/1")
        busy.set()
        rollout.wait(lambda o: (o["status"].get("stable") or {}).get("desired") == 4, "more baseline pods")
        busy.clear()
        done = rollout.wait(
            lambda o: phase_is("Healthy")(o) and o["status"].get("attempt") == 2, "the promotion"
        )
        rollout.wait(
            lambda o: phase_is("Healthy")(o) and o["status"]["stable"].get("ready") == 2,
            "the usual size again",
        )
    assert done["status"]["history"][0]["outcome"] == "Promoted"
    assert min(sizes(rollout, "stable", "Progressing", "Promoting", "Watching")) >= 2
