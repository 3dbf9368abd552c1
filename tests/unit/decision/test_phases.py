"""The phases in which the links of the chain are asked, and their order where two things happen at once.

Each cause is tried in each phase that the design names for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from modelrollout.decision.types import GuardrailReading
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, World, assessment, spec_of, started

OUTLIER = replace(NEUTRAL, assessment=assessment(outlier=True))
HOT = GuardrailReading("gpu", 80000.0, "≤ 70000", breaches=3, breached=True, gating=True)


def progressing() -> World:
    return started(World().healthy().release("2"))


def paused() -> World:
    return progressing().edit(paused=True).run(10)


def promoting() -> World:
    return World().healthy().release("2").judge(GOOD).until("Promoting").judge(NEUTRAL)


def watching() -> World:
    return World().healthy().release("2").judge(GOOD).until("Watching").judge(NEUTRAL)


REACHED = {"Progressing": progressing, "Paused": paused, "Promoting": promoting, "Watching": watching}
COMPARING, ATTEMPT = ("Progressing", "Paused"), ("Progressing", "Paused", "Promoting", "Watching")


@dataclass(frozen=True)
class Cause:
    """What happens, in which phases it counts, and how the attempt then ends."""

    happen: Callable[[World, str], object]  # the world and the revision that is tried
    phases: tuple[str, ...]
    end: str
    outcome: str
    reason: str


def back(happen: Callable[[World, str], object], phases: tuple[str, ...], reason: str) -> Cause:
    return Cause(happen, phases, "RolledBack", "RolledBack", reason)


def restart(world: World, tried: str) -> None:
    world.restarts[tried] = 3


def rolled_back() -> World:
    return progressing().ask("abort").until("RolledBack").run(60)


def test_another_revision_starts_from_rest_whatever_came_of_the_last_one() -> None:
    for world in (rolled_back(), World().healthy()):
        before = world.status.attempt
        world.release("3").tick(1)
        assert (world.status.phase, world.status.attempt) == ("Progressing", before + 1)
        assert world.status.candidate and world.status.candidate.revision == world.revision
        assert world.status.rejected is None


CAUSES = {
    "the old revision is named again": Cause(
        lambda world, _: world.release("1"), ATTEMPT, "Healthy", "Reverted", "Reverted"
    ),
    "abort is asked for": back(lambda world, _: world.ask("abort"), ATTEMPT, "Aborted"),
    "another revision is named": Cause(
        lambda world, _: world.release("3"), COMPARING, "RollingBack", "Superseded", "Superseded"
    ),
    "the pods are lost": back(
        lambda world, tried: world.lose(tried, 4), (*COMPARING, "Promoting"), "ProgressDeadlineExceeded"
    ),
    "containers restart": back(restart, COMPARING, "CandidateUnstable"),
    "harm is proven": back(lambda world, _: world.judge(BAD), ATTEMPT, "HarmProven"),
    "a guardrail is breached": back(
        lambda world, _: world.judge(NEUTRAL, guardrails=(HOT,)), ATTEMPT, "GuardrailBreached"
    ),
    "promote is asked for": Cause(
        lambda world, _: world.ask("promote"), COMPARING, "Watching", "Promoted", "PromoteRequested"
    ),
}


@pytest.mark.parametrize(
    ("name", "phase"),
    [(name, phase) for name, cause in CAUSES.items() for phase in cause.phases],
)
def test_what_happens_counts_in_the_phase(name: str, phase: str) -> None:
    cause, world = CAUSES[name], REACHED[phase]()
    assert world.status.phase == phase
    cause.happen(world, world.revision)
    world.until(cause.end, limit=900)
    entry = world.status.history[0]
    after = "AfterPromotion" if phase == "Watching" and cause.outcome == "RolledBack" else ""
    assert (entry.outcome, entry.reason) == (cause.outcome + after, cause.reason)


# As the chain asks; what takes time is left out.
ORDER = (
    "the old revision is named again",
    "abort is asked for",
    "another revision is named",
    "containers restart",
    "harm is proven",
    "promote is asked for",
)
NAMED = {"the old revision is named again", "another revision is named"}


@pytest.mark.parametrize(("first", "second"), [p for p in combinations(ORDER, 2) if set(p) != NAMED])
def test_of_two_things_at_once_the_first_link_decides(first: str, second: str) -> None:
    world = progressing()
    for name in (second, first):
        CAUSES[name].happen(world, world.status.candidate.revision if world.status.candidate else "")
    world.tick(1)
    assert world.status.history[0].reason == CAUSES[first].reason


def test_an_approval_raises_no_weight_while_harm_rests_on_one_pod() -> None:
    steps = [{"weight": 10, "duration": "1m", "approval": True}, {"weight": 50, "duration": "2m"}]
    world = World(spec=spec_of(strategy={"canary": {"steps": steps}})).healthy().release("2").until("Paused")
    world.judge(OUTLIER).ask("approve", step=world.status.step.id if world.status.step else None).run(60)
    assert world.status.step and (world.status.step.index, world.status.weights.candidate) == (0, 10)
    assert world.condition("Reconciling") == ("True", "PodOutlier")
    world.judge(NEUTRAL).run(120)
    assert world.status.step.index == 1


def test_the_end_of_a_watch_waits_while_harm_rests_on_one_pod_for_as_long_as_it_lasts_at_most() -> None:
    world = watching().judge(OUTLIER)
    began = world.now
    world.run(900)
    assert (world.status.phase, world.status.weights.previous) == ("Watching", 10)
    world.until("Healthy")
    assert 1190 <= world.now - began <= 1230
