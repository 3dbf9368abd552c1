"""The operator is killed with SIGKILL on both sides of its writes, again and again, and what comes out is the same."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from lab.kube import Object
from lab.operator import Operator
from tests.cluster.harness import BAD, Rollout, World, seconds

SIDES = ("before", "after")
# A first deployment writes objects of each of these kinds. A life without its first write would have none at all: while
# evidence grows, that is a status.
KINDS = ("ControllerRevision", "Deployment", "Service", "HTTPRoute", "ModelRollout", "Event")
LATER = ("1", "2", "3", "HTTPRoute", "4", "5")
KILLS = [f"{side}:{kind}" for kind in KINDS for side in SIDES]
KILLS += [f"{side}:{which}" for _ in range(8) for which in LATER for side in SIDES]
STEPS = {"1/2": 2.0, "2/2": 3.0}


@pytest.fixture(scope="module")
def story(world: World) -> Iterator[dict[str, Rollout]]:
    """Three releases at once, gone through by an operator that is killed at every turn."""
    world.clear()
    good, bad, ratio = (world.rollout() for _ in range(3))
    environment = {"KILLS": " ".join(KILLS)}
    operator = Operator(
        world.lab, values=world.values, name="crashes", module="tests.cluster.faulty", environment=environment
    )
    with operator:
        good.apply()
        bad.apply()
        ratio.apply(traffic={"podRatio": {}})
        for rollout in (good, bad, ratio):
            rollout.wait_phase("Healthy")
        good.apply("2")
        bad.apply("2", BAD)
        ratio.apply("2", traffic={"podRatio": {}})
        good.wait_phase("Healthy")
        ratio.wait_phase("Healthy")
        bad.wait_phase("RolledBack")
        yield {"good": good, "bad": bad, "ratio": ratio}
        world.clear()


def kills(world: World) -> list[str]:
    log = (world.lab.folder / "logs" / "crashes.log").read_text()
    return re.findall(r"killed (.*)", log)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_it_was_killed_at_writes_of_every_kind(
    world: World, story: dict[str, Rollout], side: str, kind: str
) -> None:
    points = kills(world)
    assert any(point.startswith(side) and f" {kind} " in point for point in points)


def test_it_was_killed_all_through_the_releases(world: World, story: dict[str, Rollout]) -> None:
    assert len(kills(world)) >= 30


@pytest.mark.parametrize(
    ("name", "outcome", "phases"),
    [
        pytest.param(
            "good",
            "Promoted",
            ["Pending", "Healthy", "Progressing", "Promoting", "Watching", "Healthy"],
            id="a good model is promoted",
        ),
        pytest.param(
            "ratio",
            "Promoted",
            ["Pending", "Healthy", "Progressing", "Promoting", "Watching", "Healthy"],
            id="so it is without a router",
        ),
        pytest.param(
            "bad",
            "RolledBack",
            ["Pending", "Healthy", "Progressing", "RollingBack", "RolledBack"],
            id="a bad one is rolled back",
        ),
    ],
)
def test_the_outcome_is_as_if_nothing_had_happened(
    story: dict[str, Rollout], name: str, outcome: str, phases: list[str]
) -> None:
    rollout = story[name]
    status = rollout.status()
    assert rollout.phases() == phases
    assert [entry["outcome"] for entry in status["history"]] == [outcome, "Promoted"]
    assert status["attempt"] == 2, "no restart begins an attempt"
    assert not status["history"][0].get("unproven")


def running(rollout: Rollout, display: str) -> list[Object]:
    """Statuses in which the clock of a step had been started."""
    return [
        status
        for status in rollout.history()
        if status.get("phase") == "Progressing"
        and status["step"]["display"] == display
        and status["step"].get("startedAt")
    ]


@pytest.mark.parametrize("display", STEPS)
def test_no_restart_shortens_or_lengthens_a_step(story: dict[str, Rollout], display: str) -> None:
    found = running(story["good"], display)
    held = [f"{waits_for(status)}: {status['message']}" for status in found if "left" in status["step"]]
    assert held == [], "the clock was held"
    (end,) = {seconds(status, "step", "endsAt") for status in found}
    (start,) = {seconds(status, "step", "startedAt") for status in found}
    assert end - start == pytest.approx(STEPS[display])
    assert left_at(story["good"], found) >= end, "it ended too early"


@pytest.mark.parametrize("display", STEPS)
def test_nor_does_one_shorten_it_without_a_router(story: dict[str, Rollout], display: str) -> None:
    """It may last longer: the clock is held while pods that were to go before a crash are still there."""
    found = running(story["ratio"], display)
    (start,) = {seconds(status, "step", "startedAt") for status in found}
    assert left_at(story["ratio"], found) >= start + STEPS[display]


def left_at(rollout: Rollout, step: list[Object]) -> float:
    """When the status after those of a step was seen, in epoch seconds."""
    following = next(status for status in rollout.history() if status["version"] > step[-1]["version"])
    return float(following["seen"])


def waits_for(status: Object) -> str | None:
    return next((c["reason"] for c in status["conditions"] if c["type"] == "Reconciling"), None)


@pytest.mark.parametrize("name", ["good", "ratio", "bad"])
def test_no_sample_is_counted_twice_or_left_out(story: dict[str, Rollout], name: str) -> None:
    story[name].check_ledger()
