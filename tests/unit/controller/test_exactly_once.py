"""Rule S7: each sample of Prometheus enters the evidence once, whatever happens to the process and to what it writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.cluster.errors import Conflict, Unavailable
from modelrollout.cluster.port import Hooks, Write
from modelrollout.controller import judge, record
from modelrollout.evidence.engine import consume
from modelrollout.evidence.state import load
from modelrollout.telemetry import sampler
from modelrollout.telemetry.sampler import sample
from tests.unit.controller import world as worlds
from tests.unit.controller.world import ERRORS, KEY, Crash, World, deployed, manifest

INTERVAL = 15.0


class Faults:
    """Crashes, conflicts and lost answers at random writes; outages and restarts at random times."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.active = False
        self.met: dict[str, int] = {}

    def _meet(self, fault: str, share: float) -> bool:
        met = self.active and self.random.random() < share
        if met:
            self.met[fault] = self.met.get(fault, 0) + 1
        return met

    async def before_write(self, write: Write) -> None:
        if self._meet("crash before", 0.06):
            raise Crash
        if write.verb == "replace-status" and self._meet("conflict", 0.15):
            raise Conflict("the object has been modified", status=409)

    async def after_write(self, write: Write) -> None:
        if self._meet("crash after", 0.12):
            raise Crash
        if self._meet("answer lost", 0.12):
            raise Unavailable("no answer")

    def disturb(self, world: World) -> None:
        """Once in a while between rounds."""
        world.server.away = "connection refused" if self._meet("outage", 0.25) else None
        if self._meet("restart", 0.2):
            world.start()


def truth(world: World, consumed: float, *, stable: str, candidate: str) -> tuple[list[float], int]:
    """Requests and bad ones of candidate and baseline in all polls in which both had requests, and how many these were."""
    sums, used, end = [0.0] * 4, 0, consumed
    while end > world.now - 6 * 3600:
        found = [*world.counted(candidate, end - INTERVAL, end), *world.counted(stable, end - INTERVAL, end)]
        if found[0] > 0 and found[2] > 0:
            sums, used = [a + b for a, b in zip(sums, found, strict=True)], used + 1
        end -= INTERVAL
    return sums, used


async def release_through_faults(seed: int) -> tuple[World, Faults]:
    """An hour of a comparison; then all faults are over."""
    faults = Faults(seed)
    hooks = Hooks(before_write=faults.before_write, after_write=faults.after_write)
    world = World(hooks=hooks, seed=seed)
    await begin_comparison(world, faults)
    for _ in range(40):
        faults.disturb(world)
        await world.run(45)
    faults.active, world.server.away = False, None
    await world.run(180)
    assert world.phase == "Progressing", world.status["message"]
    return world, faults


async def begin_comparison(world: World, faults: Faults) -> None:
    """Up to a candidate that gets 10 %, and then 50 % for hours; faults begin with the release."""
    steps = {"canary": {"steps": [{"weight": 10, "duration": "10m"}, {"weight": 50, "duration": "3h"}]}}
    analysis = {"metrics": [ERRORS]}
    world.apply()
    await world.run(300, until=lambda: world.phase == "Healthy")
    await world.run(120)
    stable = world.status["stable"]["revision"]
    world.errors[stable] = 0.02
    world.apply("2", strategy=steps, analysis=analysis)
    faults.active = True
    await world.run(60, until=lambda: "candidate" in world.status)
    candidate = world.status["candidate"]["revision"]
    world.errors[candidate] = 0.02


def counted_and_true(world: World) -> tuple[tuple[list[float], int], tuple[list[float], int]]:
    """Requests, bad ones and polls as the evidence has them, and as they were."""
    status, evidence = world.status, world.status["evidence"]
    metric = evidence["metrics"]["errors"]
    counted = [
        *(metric["candidateRequests"], *metric["candidateBad"]),
        *(metric["baselineRequests"], *metric["baselineBad"]),
    ]
    stable, candidate = (status[role]["revision"] for role in ("stable", "candidate"))
    return (counted, metric["polls"]), truth(world, evidence["consumed"], stable=stable, candidate=candidate)


@pytest.mark.parametrize("seed", range(6))
async def test_evidence_equals_the_truth_through_crashes_conflicts_and_outages(seed: int) -> None:
    world, faults = await release_through_faults(seed)
    assert len(faults.met) == 6, f"every kind of fault was met: {faults.met}"
    counted, true = counted_and_true(world)
    assert counted == true
    assert counted[1] > 60


async def compared(minutes: float) -> World:
    world = World()
    await begin_comparison(world, Faults(0))
    await world.run(60 * minutes)
    return world


async def test_a_clock_that_goes_back_a_little_is_waited_for_as_in_an_outage() -> None:
    world = await compared(20)
    world.behind = 180.0
    await world.run(90)
    told = world.condition("MetricsAvailable")
    assert (told["status"], told["reason"]) == ("False", "ClockBehind"), told
    assert world.condition("Reconciling")["reason"] == "MetricsUnavailable"
    await world.run(240)
    assert world.condition("MetricsAvailable")["status"] == "True"
    counted, true = counted_and_true(world)
    assert counted == true


@pytest.mark.parametrize("restarted", [False, True], ids=["the same process", "another one"])
async def test_a_clock_that_goes_back_far_is_not_waited_for_and_nothing_counts_twice(restarted: bool) -> None:
    world = await compared(60)
    before, asked = world.status["evidence"], world.server.asked
    world.behind = 1800.0
    if restarted:
        world.start()
    await world.run(90)
    evidence = world.status["evidence"]
    assert world.server.asked > asked
    assert before["consumed"] - 1800 < evidence["consumed"] < world.clock()
    assert 1 <= evidence["metrics"]["errors"]["polls"] <= 6 < before["metrics"]["errors"]["polls"]


def read_again(patch: pytest.MonkeyPatch) -> None:
    """Each look begins one poll too early, and what was consumed before is not left out."""

    async def early(*args: Any, since: float | None, **rest: Any) -> Any:
        return await sample(*args, since=None if since is None else since - INTERVAL, **rest)

    patch.setattr(judge, "sample", early)
    patch.setattr(
        judge, "consume", lambda plan, state, polls: consume(plan, replace(state, consumed=None), polls)
    )


def forget_the_cut(patch: pytest.MonkeyPatch) -> None:
    """A restart does not know up to where samples were read."""
    patch.setattr(record, "load", lambda data: replace(load(data), consumed=None))


@pytest.mark.parametrize("take_out", [read_again, forget_the_cut])
async def test_samples_that_count_twice_or_never_are_missed(
    monkeypatch: pytest.MonkeyPatch, take_out: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The rule taken out, the comparison with the truth fails."""
    take_out(monkeypatch)
    counted, true = counted_and_true((await release_through_faults(0))[0])
    assert counted != true


async def hear_late_of_a_pod() -> tuple[World, int]:
    """A third pod of each side serves, and that of the baseline is not known to be ready before a poll with samples of it
    is due; and how often Prometheus was asked meanwhile."""
    world = await deployed()
    steps = {"canary": {"steps": [{"weight": 50, "duration": "3h"}]}}
    world.apply("2", strategy=steps)
    await world.run(600, until=lambda: bool(world.status.get("metrics")))
    await world.run(60)
    third = f"fraud-{world.status['stable']['revision']}-2"
    world.veiled.add(third)
    workload = manifest()["spec"]["workload"] | {"replicas": 3}
    world.apply("2", strategy=steps, workload=workload)
    await world.run(60, until=lambda: third in world.meters)
    memory = world.reconciler._memories._all[KEY]
    await world.run(120, until=lambda: memory.unaware is not None)
    asked = world.server.asked
    await world.run(5)
    asked = world.server.asked - asked
    world.unveil()
    await world.run(1)
    assert memory.unaware is None, "news are looked at when they come"
    await world.run(60)
    return world, asked


async def test_samples_of_a_pod_whose_news_come_late_are_counted() -> None:
    world, asked = await hear_late_of_a_pod()
    counted, true = counted_and_true(world)
    assert counted == true
    assert not asked, "Prometheus is not asked while nothing new is known"


async def test_without_waiting_for_news_they_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "HEARSAY", 0.0)
    world, _ = await hear_late_of_a_pod()
    counted, true = counted_and_true(world)
    assert counted != true


@pytest.mark.parametrize("seconds", [5, 10, 15])
async def test_a_pod_that_is_never_ready_and_yet_counts_requests_puts_off_no_decision_for_ever(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worlds, "SCRAPE", 5.0)
    world = await deployed()
    world.rate = 100.0
    world.veiled.add(f"fraud-{world.status['stable']['revision']}-2")
    world.apply(
        "2",
        strategy={"canary": {"steps": [{"weight": 50, "duration": "2m"}]}},
        analysis={"metrics": [ERRORS], "interval": f"{seconds}s", "scrapeInterval": "5s"},
        workload=manifest()["spec"]["workload"] | {"replicas": 3},
    )
    await world.run(1800, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status["message"]
