"""A stored revision in place of the spec's, and pods made anew, by request."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from modelrollout.decision.decide import decide
from modelrollout.decision.types import Decision, Observation, Wish
from tests.unit.decision.world import GOOD, TIMING, World, spec_of


@dataclass
class Stored(World):
    """A world in which every revision that was ever named has a record."""

    stored: set[str] = field(default_factory=set)
    hopeless: dict[str, str] = field(default_factory=dict)

    def tick(self, seconds: float = 0.0) -> Decision:
        self.stored.add(self.revision)
        return super().tick(seconds)

    def wish(self) -> Wish:
        wish, undo = super().wish(), self.status.undo
        undone = undo is not None and undo.over == wish.revision
        return replace(
            wish, written=wish.revision, revision=undo.revision if undo and undone else wish.revision
        )

    def seen(self) -> Observation:
        return replace(super().seen(), stored=frozenset(self.stored), lost=self.hopeless)

    def request(self, verb: str, revision: str, salt: str = "1") -> Stored:
        self.annotations[verb] = f"{revision}@{salt}"
        return self


@pytest.fixture
def world() -> Stored:
    """Version 2 was promoted over version 1, and the watch is over."""
    world = Stored(spec=spec_of(watch={"duration": "0s"}))
    world.healthy()
    world.judged = GOOD
    world.release("2").until("Progressing").until("Healthy")
    return world


def revisions(world: Stored) -> tuple[str, str]:
    first = world.status.history[-1].revision
    assert world.status.stable is not None
    return first, world.status.stable.revision


def test_an_old_revision_is_tried_and_promoted_as_any_other(world: Stored) -> None:
    old, new = revisions(world)
    world.request("undo", old).until("Progressing")
    assert (world.status.candidate and world.status.candidate.revision) == old
    assert (world.status.stable and world.status.stable.revision) == new
    assert world.status.attempt == 3
    world.until("Healthy").run(600)
    assert (world.status.stable and world.status.stable.revision, world.status.phase) == (old, "Healthy")
    assert "Undone" in world.reasons()


def test_it_lasts_until_the_spec_names_another_revision(world: Stored) -> None:
    old, _ = revisions(world)
    world.request("undo", old).until("Progressing").until("Healthy")
    world.edit(workload={**spec_of()["workload"], "replicas": 6}).run(60)
    assert (world.status.stable and world.status.stable.revision) == old
    world.release("3").until("Progressing").until("Healthy")
    assert (world.status.stable and world.status.stable.revision) == world.revision
    assert world.status.undo is None


def test_undoing_to_what_the_spec_names_ends_it(world: Stored) -> None:
    old, new = revisions(world)
    world.request("undo", old).until("Progressing").until("Healthy")
    world.request("undo", new, "2").until("Progressing").until("Healthy")
    assert (world.status.stable and world.status.stable.revision, world.status.undo) == (new, None)


def test_in_the_middle_of_a_rollout_undoing_to_the_baseline_is_a_revert(world: Stored) -> None:
    _, serving = revisions(world)
    world.release("3").until("Progressing").run(60)
    world.request("undo", serving).until("Healthy")
    assert world.status.history[0].outcome == "Reverted"
    world.run(300)
    assert (world.status.phase, world.status.stable and world.status.stable.revision) == ("Healthy", serving)


IGNORED = {
    "a revision without a record": ("undo", "aaaaaaaaaa", "no record"),
    "a restart of what has no pods": ("restart", "aaaaaaaaaa", "pods have"),
}


@pytest.mark.parametrize(("verb", "revision", "said"), IGNORED.values(), ids=IGNORED)
def test_ignored(world: Stored, verb: str, revision: str, said: str) -> None:
    before = world.status
    world.request(verb, revision).tick(5)
    assert [m for r, m in world.events if r == "RequestIgnored" and said in m]
    assert (world.status.undo, world.status.restarted, world.status.phase) == (None, [], before.phase)


def test_what_can_not_come_back_is_said_with_the_reason(world: Stored) -> None:
    old, _ = revisions(world)
    world.hopeless = {old: "its Service is gone"}
    world.request("undo", old).tick(5)
    assert [m for r, m in world.events if r == "RequestIgnored" and "its Service is gone" in m]
    assert world.status.undo is None


def test_what_is_asked_for_already_is_ignored(world: Stored) -> None:
    world.request("undo", revisions(world)[1]).tick(5)
    assert world.events[-1][0] == "RequestIgnored"


def test_a_restart_is_noted_once_and_starts_no_rollout(world: Stored) -> None:
    _, serving = revisions(world)
    world.request("restart", serving).run(60)
    (noted,) = world.status.restarted
    assert (noted.revision, world.status.phase, world.status.attempt) == (serving, "Healthy", 2)
    assert world.reasons().count("Restarted") == 1
    world.request("restart", serving, "2").tick(5)
    (again,) = world.status.restarted
    assert again.at > noted.at


def test_a_restart_is_forgotten_with_its_revision(world: Stored) -> None:
    world.request("restart", revisions(world)[1]).tick(5)
    world.release("3").until("Progressing").until("Healthy")
    world.tick(5)
    assert world.status.restarted == []


def test_a_spec_that_is_refused_does_not_end_it(world: Stored) -> None:
    old, _ = revisions(world)
    world.request("undo", old).until("Progressing").until("Healthy")
    wish = replace(world.wish(), spec=None, revision="", written="", problem="no")
    decision = decide(wish, world.status, world.seen(), GOOD, now=world.now, timing=TIMING)
    assert decision.status.undo == world.status.undo
