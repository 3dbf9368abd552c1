"""Size under load: the real HorizontalPodAutoscaler on the scale subresource, and workloads that exchange their pods one
for one because there is no room for more.

Each story has a namespace of its own; they run side by side under one operator.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kube import Informer, KubeError, Object, path_of
from lab.lab import Lab
from lab.metrics import Metrics
from lab.process import wait_until
from tests.cluster.harness import (
    GOOD,
    PATIENCE,
    RATE,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    is_ready,
    phase_is,
    title,
    version_of,
)

STORIES = Stories()
story = STORIES.story
WORKLOADS = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"
AUTOSCALERS = ("autoscaling/v2", "horizontalpodautoscalers")
USUAL = 3  # pods that the usual rate keeps as busy as the documented autoscaler wants them
LONG = {"canary": {"steps": [{"weight": 50, "duration": "10m"}]}}
AT_ONCE = {"scaleDown": {"stabilizationWindowSeconds": 0}}


@pytest.fixture(scope="module", autouse=True)
def metrics(lab: Lab, world: World) -> Iterator[Metrics]:
    """Pods use the CPU that their requests cost, and all requests are counted where no pod is asked."""
    serving = Metrics(
        lab.client,
        lab.folder / "pki",
        world.traffic.cores,
        lambda namespace, _: world.traffic.rate(namespace),
    ).start()
    yield serving
    serving.stop()


def workload(replicas: int = USUAL, **more: Any) -> Object:
    resources = {"requests": {"cpu": "100m"}}
    container = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}
    template = {"spec": {"containers": [container | {"resources": resources}]}}
    return {"replicas": replicas, "template": template, **more}


# Autoscaling


def documented(kind: str, namespace: str) -> Object:
    """The object of a kind that people copy."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", WORKLOADS.read_text(), re.DOTALL | re.MULTILINE)
    objects = [obj for block in blocks for obj in yaml.safe_load_all(block)]
    (found,) = (obj for obj in objects if obj.get("kind") == kind)
    return found | {"metadata": found["metadata"] | {"namespace": namespace}}


class Autoscaler:
    """The documented HorizontalPodAutoscaler of a rollout, and every state in which it was seen."""

    def __init__(self, rollout: Rollout, **spec: Any) -> None:
        manifest = documented("HorizontalPodAutoscaler", rollout.namespace)
        manifest["spec"] |= spec
        self._rollout = rollout
        self.seen: list[Object] = []
        self._informer = Informer(
            rollout.client, path_of(*AUTOSCALERS, rollout.namespace), lambda _, obj: self.seen.append(obj)
        )
        rollout.client.apply(manifest)

    def __enter__(self) -> Autoscaler:
        self._informer.start()
        # Of a kind that is new in the cluster its controller may hear half a minute later.
        wait_until(
            lambda: bool(self.busy() or self.totals()),
            timeout=PATIENCE,
            what="an autoscaler that sees the load",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._informer.stop()

    def totals(self) -> list[str]:
        """What it saw of an external metric, by each pod that it counted."""
        return [
            metric["external"]["current"]["averageValue"]
            for obj in self.seen
            for metric in (obj.get("status") or {}).get("currentMetrics") or []
            if metric["type"] == "External"
        ]

    def asked(self) -> list[int]:
        """What stood in `spec.workload.replicas`, from the first time on that the autoscaler had been at work."""
        versions = self._rollout.world.rollouts.versions(self._rollout.namespace, self._rollout.name)
        return [obj["spec"]["workload"]["replicas"] for obj in versions]

    def busy(self) -> list[int]:
        """Mean CPU that it saw, in percent of what is requested."""
        return [
            metric["resource"]["current"]["averageUtilization"]
            for obj in self.seen
            for metric in (obj.get("status") or {}).get("currentMetrics") or []
            if metric["type"] == "Resource"
        ]


def release(rollout: Rollout, uri: str = GOOD) -> None:
    """Name another model and nothing else: the size is the autoscaler's."""
    rollout.patch(model={"version": "2", "uri": uri})


def sizes(rollout: Rollout, role: str, *phases: str) -> list[int]:
    return [s[role]["desired"] for s in rollout.history() if s.get("phase") in phases and s.get(role)]


def stable_of(size: int) -> Callable[[Object], bool]:
    """At rest, with as many pods, all of them ready."""

    def reached(obj: Object) -> bool:
        stable = (obj.get("status") or {}).get("stable") or {}
        at_rest = phase_is("Healthy", "RolledBack")(obj)
        return at_rest and (stable.get("desired"), stable.get("ready")) == (size, size)

    return reached


def scale(rollout: Rollout) -> Object:
    return rollout.client.get(rollout.path + "/scale")


@story
def the_pods_of_a_rollout_do_not_make_an_autoscaler_ask_for_more(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", workload=workload())
    with Autoscaler(rollout) as scaler:
        release(rollout)
        rollout.wait_phase("Watching")
        done = rollout.wait(phase_is("Healthy"), "the promotion")
    assert done["status"]["history"][0]["outcome"] == "Promoted"
    assert set(scaler.asked()) == {USUAL}
    # It did see the pods of both sides: with those of one it would have found them as busy as ever.
    assert min(scaler.busy()) < 0.6 * max(scaler.busy())
    assert min(sizes(rollout, "stable", "Progressing", "Promoting", "Watching")) == USUAL
    assert max(sizes(rollout, "candidate", "Promoting")) == USUAL
    assert scale(rollout)["status"]["replicas"] == USUAL


@story
def demand_that_rises_in_the_middle_is_met_on_both_sides_and_the_weight_stays(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", workload=workload(), strategy=LONG)
    with Autoscaler(rollout, behavior=AT_ONCE):
        release(rollout)
        new = rollout.wait_step("1/1")["status"]["candidate"]["revision"]
        world.traffic.demand(rollout.namespace, 3 * RATE)
        rollout.wait(lambda o: ready(o, "stable") == 8 and ready(o, "candidate") == 4, "more pods of both")
        # Less than at the start: not before the end of the watch.
        world.traffic.demand(rollout.namespace, RATE / 2)
        rollout.wait(lambda o: o["spec"]["workload"]["replicas"] == 2, "the wish for fewer")
        rollout.ask("promote", new)
        rollout.wait_phase("Watching")
        rollout.wait(stable_of(2), "the size that the autoscaler wants")
    weights = [s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"]
    # As much as its ready pods carry, had the baseline's come long before them.
    assert min(weights[weights.index(50) :]) >= 25
    assert weights[-1] == 50
    assert min(sizes(rollout, "stable", "Progressing", "Promoting", "Watching")) >= USUAL
    assert max(sizes(rollout, "candidate", "Promoting")) >= USUAL


def ready(obj: Object, role: str) -> int:
    return int(((obj.get("status") or {}).get(role) or {}).get("ready") or 0)


@story
def a_way_back_under_an_autoscaler_ends_with_the_size_that_it_wants(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1", workload=workload(), strategy=LONG)
    with Autoscaler(rollout) as scaler:
        release(rollout)
        new = rollout.wait_step("1/1")["status"]["candidate"]["revision"]
        world.traffic.demand(rollout.namespace, 3 * RATE)
        rollout.wait(lambda o: ready(o, "stable") == 8, "more baseline pods")
        world.traffic.spoil(rollout.namespace, new, 0.3)
        back = rollout.wait(stable_of(8), "the way back")["status"]
    assert (back["stable"]["revision"], back["history"][0]["reason"]) == (old, "HarmProven")
    assert max(scaler.asked()) == 8
    assert min(sizes(rollout, "stable", "RollingBack")) == 8


@story
def demand_that_rises_while_pods_are_exchanged_is_met(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", workload=workload(elastic=True), strategy=LONG)
    with Autoscaler(rollout):
        release(rollout)
        new = rollout.wait_step("1/1")["status"]["candidate"]["revision"]
        world.traffic.demand(rollout.namespace, 1.8 * RATE)
        rollout.wait(lambda o: ready(o, "stable") + ready(o, "candidate") >= 5, "more pods in all")
        rollout.ask("promote", new)
        done = rollout.wait(stable_of(5), "the promotion")
    assert done["status"]["stable"]["revision"] == new
    assert most_pods(rollout) <= 6


# The total of the requests, whoever answers them: as many for each pod as the usual rate gives to `USUAL`.
TOTAL: Object = {
    "type": "External",
    "external": {
        "metric": {"name": "requests_per_second"},
        "target": {"type": "AverageValue", "averageValue": f"{RATE / USUAL:.0f}"},
    },
}


@story
def the_total_of_the_requests_sizes_a_rollout_as_if_it_had_one_side(world: World) -> None:
    """Where pods are asked, demand that doubles while both sides stand at full size is met by the other side's pods, by the
    mean; the total has no such gap."""
    rollout = world.rollout()
    full = {"canary": {"steps": [{"weight": 50, "size": 100, "duration": "10m"}]}}
    rollout.deploy("1", workload=workload(), strategy=full)
    with Autoscaler(rollout, metrics=[TOTAL], behavior=AT_ONCE) as scaler:
        release(rollout)
        new = rollout.wait_step("1/1")["status"]["candidate"]["revision"]
        assert set(scaler.asked()) == {USUAL}, "six pods are no reason for more or less"
        world.traffic.demand(rollout.namespace, 2 * RATE)
        rollout.wait(lambda o: ready(o, "stable") == 2 * USUAL == ready(o, "candidate"), "more pods of both")
        world.traffic.demand(rollout.namespace, RATE / USUAL)
        rollout.wait(lambda o: o["spec"]["workload"]["replicas"] == 2, "the wish for fewer")
        rollout.ask("promote", new)
        rollout.wait_phase("Watching")
        done = rollout.wait(stable_of(2), "the size that the autoscaler wants")["status"]
    assert done["stable"]["revision"] == new
    assert max(scaler.asked()) == 2 * USUAL
    assert min(sizes(rollout, "stable", "Progressing", "Promoting", "Watching")) >= USUAL
    assert max(sizes(rollout, "candidate", "Promoting")) >= USUAL


# Without room: `elastic: true`


def most_pods(rollout: Rollout) -> int:
    """Pods of all revisions that were there at once, those included that found no place."""
    changes: list[tuple[int, int]] = []
    chronicle, present = rollout.world.pods, set(rollout.world.pods.names(rollout.namespace))
    for name in chronicle.every(rollout.namespace):
        versions = chronicle.versions(rollout.namespace, name)
        changes.append((version_of(versions[0]), 1))
        going = [v for v in versions if "deletionTimestamp" in v["metadata"]]
        if going or name not in present:
            changes.append((version_of((going or versions)[0 if going else -1]), -1))
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def fewest_ready(rollout: Rollout, after: int) -> int:
    """Ready pods of all revisions that were left, from a resourceVersion on."""
    versions = [
        v
        for name in rollout.world.pods.every(rollout.namespace)
        for v in rollout.world.pods.versions(rollout.namespace, name)
    ]
    ready: dict[str, bool] = {}
    counts = []
    for pod in sorted(versions, key=version_of):
        ready[pod["metadata"]["uid"]] = is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
        if version_of(pod) > after:
            counts.append(sum(ready.values()))
    return min(counts)


class Accelerators:
    """A resource of the node that only the pods of one rollout ask for."""

    def __init__(self, rollout: Rollout, count: int) -> None:
        self.name = f"example.com/{rollout.namespace}"
        self._client = rollout.client
        self.set(count)

    def set(self, count: int) -> None:
        (node,) = self._client.list(path_of("v1", "nodes"))
        path = path_of("v1", "nodes", None, node["metadata"]["name"], "status")
        room = {self.name: str(count)}
        self._client.patch(path, {"status": {"capacity": room, "allocatable": room}})

    def workload(self, replicas: int) -> Object:
        made = workload(replicas, elastic=True)
        made["template"]["spec"]["containers"][0]["resources"] = {"limits": {self.name: "1"}}
        return made


# A route of its own is what a rollout of the harness has.
ROUTERS: dict[str, Object] = {"a router": {}, "the ratio of pods": {"traffic": {"podRatio": {}}}}


def exchanging(world: World, router: str = "a router") -> tuple[Rollout, Accelerators, str]:
    """A rollout of three pods with room for one more, two of them exchanged; the candidate's revision."""
    rollout = world.rollout()
    # Two pods of three: the router's weight is rounded up to pods, the ratio of pods down.
    half, most = (33, 66) if router == "a router" else (34, 67)
    steps = [{"weight": half, "duration": "1s"}, {"weight": most, "duration": "10m"}]
    accelerators = Accelerators(rollout, USUAL + 1)
    spec = {"strategy": {"canary": {"steps": steps}}, **ROUTERS[router]}
    rollout.deploy("1", workload=accelerators.workload(USUAL), **spec)
    release(rollout)
    rollout.wait(
        lambda o: ready(o, "candidate") == 2 and o["status"]["stable"]["desired"] == 1, "two exchanged pods"
    )
    step = rollout.wait_step("2/2")["status"]
    assert (step["weights"]["candidate"], step["candidate"]["desired"]) == (66, 2)
    return rollout, accelerators, step["candidate"]["revision"]


def one_by_one(found: list[int]) -> bool:
    return all(abs(b - a) <= 1 for a, b in itertools.pairwise(found))


def never_to_missing_pods(rollout: Rollout) -> None:
    """What had weight had ready pods, whenever a status was written; and no more than they carry, on the way back."""
    for status in rollout.history():
        for role in ("stable", "candidate", "previous"):
            if (status.get("weights") or {}).get(role) and status["phase"] != "Pending":
                assert status[role]["ready"] > 0, status
    back = [status for status in rollout.history() if status.get("phase") == "RollingBack"]
    for before, after in itertools.pairwise(back):
        if 0 < after["weights"]["candidate"] < before["weights"]["candidate"]:
            assert after["weights"]["stable"] <= 100 * after["stable"]["ready"] / USUAL + 1


def promoted(router: str) -> Story:
    def run(world: World) -> None:
        rollout, _, new = exchanging(world, router)
        rollout.ask("promote", new)
        done = rollout.wait(stable_of(USUAL), "the promotion")["status"]
        assert done["stable"]["revision"] == new
        assert most_pods(rollout) == USUAL + 1
        for role in ("stable", "candidate"):
            assert one_by_one(sizes(rollout, role, "Progressing", "Promoting"))
        never_to_missing_pods(rollout)

    run.__name__ = f"an elastic release by {router} needs room for one more pod".replace(" ", "_")
    return story(run)


def taken_back(router: str) -> Story:
    def run(world: World) -> None:
        rollout, _, new = exchanging(world, router)
        before = rollout.applied
        rollout.ask("abort", new)
        back = rollout.wait(stable_of(USUAL), "the way back")["status"]
        assert (back["phase"], back["history"][0]["reason"]) == ("RolledBack", "Aborted")
        assert most_pods(rollout) == USUAL + 1
        assert fewest_ready(rollout, before) >= USUAL
        assert one_by_one(sizes(rollout, "stable", "RollingBack"))
        never_to_missing_pods(rollout)

    run.__name__ = f"an elastic way back by {router} needs room for one more pod and lacks none".replace(
        " ", "_"
    )
    return story(run)


for _router in ROUTERS:
    promoted(_router)
    taken_back(_router)


@story
def harm_in_the_middle_of_an_exchange_is_taken_back_within_the_room(world: World) -> None:
    rollout, _, new = exchanging(world)
    before = rollout.applied
    world.traffic.spoil(rollout.namespace, new, 0.3)
    back = rollout.wait(stable_of(USUAL), "the way back")["status"]
    assert back["history"][0]["reason"] == "HarmProven"
    assert most_pods(rollout) == USUAL + 1
    assert fewest_ready(rollout, before) >= USUAL
    never_to_missing_pods(rollout)


@story
def pods_that_come_back_to_a_full_cluster_get_the_room_of_the_candidates_one_by_one(world: World) -> None:
    rollout, accelerators, new = exchanging(world)
    accelerators.set(USUAL)
    before = version_of(rollout.patch(progressDeadline="10s"))
    rollout.ask("abort", new)
    rollout.wait(lambda o: phase_is("RollingBack")(o) and o["status"]["candidate"]["desired"] == 1, "room")
    back = rollout.wait(stable_of(USUAL), "the way back")["status"]
    assert back["phase"] == "RolledBack"
    assert fewest_ready(rollout, before) >= USUAL - 1
    never_to_missing_pods(rollout)


# Pods made anew


def restarted(elastic: bool) -> Story:
    def run(world: World) -> None:
        rollout = world.rollout()
        accelerators = Accelerators(rollout, 5 + (1 if elastic else 2))
        revision = rollout.deploy("1", workload=accelerators.workload(5) | {"elastic": elastic})
        before = {pod["metadata"]["uid"] for pod in rollout.pods(revision)}
        with budget(rollout) as healthy:
            pod = rollout.pods(revision)[0]["metadata"]["name"]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
            with pytest.raises(KubeError, match="429"):
                rollout.client.create(path_of("v1", "pods", rollout.namespace, pod, "eviction"), eviction)
            rollout.ask("restart", revision)
            wait_until(
                lambda: all(
                    is_ready(p) and p["metadata"]["uid"] not in before for p in rollout.pods(revision)
                ),
                timeout=PATIENCE,
                what="new pods",
            )
        assert min(healthy) >= 5
        made = world.deployments.versions(rollout.namespace, rollout.child(revision))[-1]
        assert made["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == (1 if elastic else "25%")
        # The new ReplicaSet may be scaled up before the pods of the old one were told to go.
        surge = 1 if elastic else 2
        assert most_pods(rollout) <= 5 + 2 * surge

    kind = "an elastic workload" if elastic else "a workload"
    run.__name__ = f"a restart of {kind} asks nothing of a disruption budget".replace(" ", "_")
    return story(run)


restarted(elastic=False)
restarted(elastic=True)


@contextmanager
def budget(rollout: Rollout) -> Iterator[list[int]]:
    """The documented PodDisruptionBudget, which allows nothing; healthy pods as its controller counts them, from the first count on."""
    healthy: list[int] = []

    def see(_: str, obj: Object) -> None:
        if (status := obj.get("status") or {}).get("expectedPods"):
            healthy.append(int(status["currentHealthy"]))

    path = path_of("policy/v1", "poddisruptionbudgets", rollout.namespace)
    rollout.client.apply(documented("PodDisruptionBudget", rollout.namespace))
    informer = Informer(rollout.client, path, see).start()
    try:
        wait_until(lambda: bool(healthy), timeout=PATIENCE, what="a disruption budget that counts")
        yield healthy
    finally:
        informer.stop()


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
