"""Size under load: the real HorizontalPodAutoscaler on the scale subresource, and workloads that exchange their pods one
for one because there is no room for more.

Each story has a namespace of its own; they run side by side under one operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kube import Informer, Object, path_of
from lab.lab import Lab
from lab.metrics import PodMetrics
from lab.process import wait_until
from tests.cluster.harness import (
    BAD,
    GOOD,
    PATIENCE,
    RATE,
    Rollout,
    SideBySide,
    Story,
    World,
    phase_is,
    title,
)

STORIES: list[Story] = []
WORKLOADS = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"
AUTOSCALERS = ("autoscaling/v2", "horizontalpodautoscalers")
USUAL = 3  # pods that the usual rate keeps as busy as the documented autoscaler wants them
LONG = {"canary": {"steps": [{"weight": 50, "duration": "10m"}]}}
AT_ONCE = {"scaleDown": {"stabilizationWindowSeconds": 0}}


def story(function: Story) -> Story:
    STORIES.append(function)
    return function


@pytest.fixture(scope="module", autouse=True)
def metrics(lab: Lab, world: World) -> Iterator[PodMetrics]:
    """Pods use the CPU that their requests cost."""
    serving = PodMetrics(lab.client, lab.folder / "pki", world.traffic.cores).start()
    yield serving
    serving.stop()


def workload(replicas: int = USUAL, **more: Any) -> Object:
    resources = {"requests": {"cpu": "100m"}}
    container = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}
    template = {"spec": {"containers": [container | {"resources": resources}]}}
    return {"replicas": replicas, "template": template, **more}


# Autoscaling


def documented_autoscaler() -> Object:
    """The one that people copy."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", WORKLOADS.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = (obj for b in blocks if (obj := yaml.safe_load(b)).get("kind") == "HorizontalPodAutoscaler")
    assert isinstance(found, dict)
    return found


class Autoscaler:
    """The documented HorizontalPodAutoscaler of a rollout, and every state in which it was seen."""

    def __init__(self, rollout: Rollout, **spec: Any) -> None:
        manifest = documented_autoscaler()
        manifest["metadata"]["namespace"] = rollout.namespace
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
        wait_until(lambda: bool(self.busy()), timeout=PATIENCE, what="an autoscaler that sees the load")
        return self

    def __exit__(self, *_: object) -> None:
        self._informer.stop()

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


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
