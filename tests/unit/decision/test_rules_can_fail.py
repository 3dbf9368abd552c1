"""Each safety rule was seen to fail: it is taken out of the code, and a short story must then break the rule's check.

A rule that nothing can break is no rule. What is replaced is named by module and function, so a refactoring that moves a
rule says here where it went.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from modelrollout.api.status import GateState, GateStatus, PlanGate, Weights
from modelrollout.decision import capacity, chain, clocks, decide, gates, transitions
from modelrollout.decision.report import report
from modelrollout.decision.round import Round
from modelrollout.decision.types import Data, Judgement
from tests.unit.decision.world import BAD, GOOD, NEUTRAL, World, assessment, spec_of, started


def tried() -> World:
    return started(World().healthy().release("2"))


# Stories


def lose_the_candidate() -> None:
    world = tried()
    world.lose(world.revision, 1).tick(1)


def lose_the_baseline() -> None:
    world = tried()
    assert world.status.stable
    world.lose(world.status.stable.revision, 4).tick(1)


def lose_some_pods() -> None:
    steps = [{"weight": 50, "duration": "10m"}]
    world = started(World(spec=spec_of(strategy={"canary": {"steps": steps}})).healthy().release("2"))
    world.lose(world.revision, 1).tick(1)


def become_ready() -> None:
    World().healthy().release("2").run(20, every=1)


def roll_back() -> None:
    tried().judge(BAD).until("RolledBack").run(60, every=1)


def promote_without_holdback() -> None:
    spec = spec_of(watch={"duration": "10m", "holdback": 0, "standby": 0})
    World(spec=spec).healthy().release("2").judge(GOOD).until("Watching", every=1).run(60, every=1)


def promote_elastic() -> None:
    spec = spec_of(workload={**spec_of()["workload"], "elastic": True})
    World(spec=spec).healthy().release("2").judge(GOOD).until("Watching", every=1).run(60, every=1)


def roll_back_elastic() -> None:
    steps = {"canary": {"steps": [{"weight": 75, "duration": "10m"}]}}
    spec = spec_of(workload={**spec_of()["workload"], "elastic": True}, strategy=steps)
    world = World(spec=spec).healthy().release("2").run(600)
    world.judge(BAD).until("RolledBack").run(60, every=1)


def roll_back_from_the_watch() -> None:
    world = World().healthy().release("2").judge(GOOD).until("Watching")
    assert world.status.previous
    world.lose(world.status.previous.revision, 3).judge(BAD).run(900)


def flap_on_the_way_back() -> None:
    world = World().healthy().release("2").judge(GOOD).until("Watching")
    assert world.status.previous
    previous = world.status.previous.revision
    world.lose(previous, 3).judge(BAD).run(10).lose(previous, 2).run(10).lose(previous, 3).run(10)


def edit_while_promoting() -> None:
    world = World().healthy().release("2").judge(GOOD).until("Promoting")
    world.release("3").until("Watching")


def lose_metrics() -> None:
    world = tried()
    away = Judgement(data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now)
    world.judge(GOOD, data=away.data, failed_polls=3, outage_since=world.now).run(600)


def have_no_data() -> None:
    tried().judge(NEUTRAL, assessment=assessment(has_data=False)).run(600)


def pause() -> None:
    tried().edit(paused=True).run(60).edit(paused=False).run(20)


def scale_down() -> None:
    world = tried()
    world.edit(workload={**world.spec["workload"], "replicas": 2}).run(10)


def do_nothing() -> None:
    world = World().healthy().run(60)
    writes = world.writes
    world.run(60)
    assert world.writes == writes, "S11: written though nothing changed"


def shadowed() -> World:
    world = World(spec=spec_of(strategy={"shadow": {"mirror": 60, "duration": "1m"}}))
    return started(world.healthy().release("2"))


def shadow() -> None:
    World(spec=spec_of(strategy={"shadow": {}})).healthy().release("2").run(60, every=1)


def lose_the_shadow() -> None:
    world = shadowed()
    world.lose(world.revision, 3).tick(1)


def lose_what_is_shadowed() -> None:
    world = shadowed()
    assert world.status.stable
    world.lose(world.status.stable.revision, 4).tick(1)


def judge_the_shadow() -> None:
    shadowed().judge(GOOD).until("Healthy").run(60, every=1)


def lose_metrics_of_the_shadow() -> None:
    world = shadowed()
    world.judge(GOOD, data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now).run(600)


def gated(**answers: bool) -> World:
    """A candidate that gates stand around."""
    hook = {"name": "hook", "webhook": {"url": "http://gate/", "retries": 1}}
    gates = {"start": [hook], "promotion": [{**hook, "name": "last"}]}
    world = World(spec=spec_of(gates=gates)).healthy().release("2").judge(GOOD)
    for name, passed in answers.items():
        world.answer(name, passed)
    return world


def wait_before_the_first_step() -> None:
    gated().run(300)


def wait_before_the_promotion() -> None:
    gated(hook=True).run(3600)


def refuse_at_a_gate() -> None:
    gated(hook=False).run(300, every=1)


def replace_the_first() -> None:
    world = World()
    world.lost[world.revision] = 2
    world.run(30)
    assert world.status.phase == "Pending"
    world.release("2").broken.add(world.revision)
    world.run(300)


def ask_a_slow_prometheus() -> None:
    tried().judge(GOOD, pending=True).run(300)


def go_back_without_room() -> None:
    """The baseline lost its nodes, and the candidate has taken them."""
    spec = spec_of(watch={"duration": "10m", "holdback": 0, "standby": 0})
    world = World(spec=spec).healthy().release("2").judge(GOOD).until("Watching").run(120)
    world.room = 4
    world.judge(BAD).ask("abort").until("RolledBack", every=1)


CHOOSING = {"abTest": {"matches": [{"cookie": {"name": "bucket", "value": "b"}}], "duration": "1m"}}


def choosing() -> World:
    return started(World(spec=spec_of(strategy=CHOOSING)).healthy().release("2"))


def choose() -> None:
    World(spec=spec_of(strategy=CHOOSING)).healthy().release("2").run(60, every=1)


def lose_those_who_answer_the_chosen() -> None:
    world = choosing()
    world.lose(world.revision, 3).tick(1)


def lose_what_others_get() -> None:
    world = choosing()
    assert world.status.stable
    world.lose(world.status.stable.revision, 4).tick(1)


def end_the_test_of_chosen_requests() -> None:
    choosing().until("Healthy").run(60, every=1)


def lose_metrics_of_chosen_requests() -> None:
    world = choosing()
    world.judge(GOOD, data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now).run(1900)
    assert world.status.parked


TESTING = {"abTest": {"reward": "errors", "duration": "10m"}}


def have_an_equal_reward() -> None:
    equal = assessment(harmless=True)
    started(World(spec=spec_of(strategy=TESTING)).healthy().release("2")).judge(GOOD, assessment=equal).run(
        60
    )


def have_a_better_reward_and_perhaps_harm() -> None:
    spec = spec_of(strategy={"abTest": {"reward": "clicks", "duration": "10m"}})
    spec["analysis"]["metrics"].append({"name": "clicks", "score": {"sum": "s", "count": "c"}})
    better = assessment(reward=True, superior=True)
    started(World(spec=spec).healthy().release("2")).judge(NEUTRAL, assessment=better).run(60)


# Rules taken out


def no_gates(round: Round, *, promotion: bool = False) -> None:
    return None


def pass_by_itself(round: Round) -> Round:
    asking = round.status.step.asking if round.comparing and round.status.step else None
    if asking is None:
        return round
    passed = asking.model_copy(update={"state": GateState.PASSED})
    return round.put_step(gates=[passed if gate.id == asking.id else gate for gate in round.step.gates])


def without_end(round: Round, gate: GateStatus) -> PlanGate:
    return PlanGate(id=gate.id, name=gate.name, retries=99)


def all_at_once(round: Round) -> tuple[int, int, int]:
    return round.capacity, 1, 0


def with_the_last(round: Round) -> tuple[int, int, int]:
    return round.capacity, 0, 0


def no_wait(going: Round, move: Callable[..., Round], **why: Any) -> Round:
    return move(going, **why)


def gone(round: Round, role: Any) -> bool:
    return False


def all_of_it(round: Round, share: int, present: int, wanted: int) -> int:
    return share


def copies_stay(round: Round) -> Round:
    decided = _forward(round)
    alone = decided.status.weights.candidate == 100
    return decided.put(weights=Weights(candidate=100, mirror=60)) if alone else decided


def chosen_stay(round: Round) -> Round:
    decided = _forward(round)
    alone = decided.status.weights.candidate == 100
    return decided.put(weights=Weights(candidate=100, matched=100)) if alone else decided


def never_parked(round: Round) -> int:
    return 100 if round.status.step is not None and round.comparing else 0


def always(round: Round) -> bool:
    return True


def always_full(weight: int, ready: int, wanted: int) -> int:
    return weight


def keep_weights(round: Round) -> Round:
    gone = round.comparing and round.view(round.status.candidate).ready == 0
    return round if gone else _set_weights(round)


def nothing_left(baseline_ready: int, size: int) -> int:
    return 100


def no_emergency(round: Round, *, role: str) -> Round:
    return round.put(weights=Weights(stable=100))


def one_is_enough(round: Round) -> int:
    return 1


def ready_at_once(self: Round, role: Any) -> int:
    return self.view(role).ready


def at_once(round: Round, role: Any, wanted: int, weight: int) -> int:
    return wanted


def no_drain(round: Round, role: Any) -> Any:
    return _retire(round, role).model_copy(update={"until": round.now})


def named(round: Round) -> Round:
    assert round.status.candidate
    renamed = round.status.candidate.model_copy(update={"revision": round.wish.revision})
    return _take_over(round.put(candidate=renamed))


def blank_counts(round: Round) -> list[Any]:
    return []


def never(round: Round) -> bool:
    return False


def forgetful(end: float | None, left: float | None, now: float) -> tuple[float | None, float | None]:
    return (None, 0.0) if end is not None else (end, left)


def replicas(self: Round) -> int:
    return self.spec.workload.replicas


def spoken(round: Round) -> Round:
    return _report(round).put(message=f"looked at {round.now}")


_retire, _take_over = transitions._retire, transitions.take_over
_report, _set_weights, _forward = report, capacity.set_weights, capacity._forward


@dataclass(frozen=True)
class Taken:
    """A rule that is taken out, and what then breaks."""

    owner: Any
    name: str
    by: Any
    story: Callable[[], None]
    says: str


TAKEN = {
    "S1 weight stays on a candidate without ready pods": Taken(
        decide, "set_weights", keep_weights, lose_the_candidate, "S1"
    ),
    "S1 weight stays on a baseline without ready pods": Taken(
        capacity, "_emergency", no_emergency, lose_the_baseline, "S1"
    ),
    "S2 a weight is not lowered with its pods": Taken(
        capacity, "_carried", always_full, lose_some_pods, "S2"
    ),
    "S2 one pod carries every weight": Taken(capacity, "_answering", one_is_enough, lose_some_pods, "S2"),
    "S2 a weight rises at once": Taken(Round, "settled", ready_at_once, become_ready, "S2"),
    "S3 a standby shrinks with its promotion": Taken(
        capacity, "_shrunk", at_once, promote_without_holdback, "S3"
    ),
    "S3 an elastic baseline shrinks before its weight is read back": Taken(
        capacity, "_shrunk", at_once, promote_elastic, "S3"
    ),
    "S1 copies go on to a candidate without ready pods": Taken(
        capacity, "_beside", all_of_it, lose_the_shadow, "S1"
    ),
    "S1 chosen requests go to pods that are not ready": Taken(
        capacity, "_beside", all_of_it, lose_those_who_answer_the_chosen, "S1"
    ),
    "S1 chosen requests are apart when nothing but the candidate serves": Taken(
        capacity, "_forward", chosen_stay, lose_what_others_get, "S1"
    ),
    "S2 chosen requests do not wait for pods": Taken(Round, "settled", ready_at_once, choose, "S2"),
    "S3 a candidate of chosen requests does not drain": Taken(
        transitions, "_retire", no_drain, end_the_test_of_chosen_requests, "S3"
    ),
    "S6 chosen requests stay without metrics": Taken(
        capacity, "matched_goal", never_parked, lose_metrics_of_chosen_requests, "S6"
    ),
    "S6 what is equal wins": Taken(chain, "superior", always, have_an_equal_reward, "S6"),
    "S6 a better reward makes up for what is not proven harmless": Taken(
        chain, "proven", always, have_a_better_reward_and_perhaps_harm, "S6"
    ),
    "S1 copies go on when nothing but the candidate serves": Taken(
        capacity, "_forward", copies_stay, lose_what_is_shadowed, "S1"
    ),
    "S2 copies do not wait for pods": Taken(Round, "settled", ready_at_once, shadow, "S2"),
    "S3 a judged candidate does not drain": Taken(transitions, "_retire", no_drain, judge_the_shadow, "S3"),
    "S6 an outage is overlooked in a shadow": Taken(chain, "blind", never, lose_metrics_of_the_shadow, "S6"),
    "S3 a rolled back candidate does not drain": Taken(transitions, "_retire", no_drain, roll_back, "S3"),
    "S4 the way back does not look at the baseline": Taken(
        capacity, "_carried_back", nothing_left, roll_back_from_the_watch, "S4"
    ),
    "S4 the way back may rise": Taken(
        capacity, "min", lambda *numbers: numbers[-1], flap_on_the_way_back, "S4"
    ),
    "S1 a first deployment that answers goes when another one is named": Taken(
        decide, "_answers_still", gone, replace_the_first, "S1"
    ),
    "S4 room is made at once": Taken(capacity, "_backward_sizes", all_at_once, go_back_without_room, "S[34]"),
    "S4 room is made with the last pod": Taken(
        capacity, "_backward_sizes", with_the_last, go_back_without_room, "S[34]"
    ),
    "S6 an answer that is awaited is overlooked": Taken(
        chain, "_answered", no_wait, ask_a_slow_prometheus, "S6"
    ),
    "S5 an edit that arrives while promoting is promoted": Taken(
        chain, "take_over", named, edit_while_promoting, "S5"
    ),
    "S6 an outage is overlooked": Taken(chain, "blind", never, lose_metrics, "S6"),
    "S6 missing data are overlooked": Taken(chain, "_gating", blank_counts, have_no_data, "S6"),
    "S8 a held clock forgets what is left": Taken(clocks, "_held", forgetful, pause, "S8"),
    "S9 the baseline shrinks with the replicas": Taken(
        Round, "capacity", property(replicas), scale_down, "S9"
    ),
    "the first step is entered without its gate": Taken(
        chain, "awaiting", no_gates, wait_before_the_first_step, "gates"
    ),
    "the candidate is promoted without its gate": Taken(
        chain, "awaiting", no_gates, wait_before_the_promotion, "gates"
    ),
    "a gate passes by itself": Taken(
        decide, "note_gates", pass_by_itself, wait_before_the_first_step, "gates"
    ),
    "a gate is asked without end": Taken(gates, "_plan_gate", without_end, refuse_at_a_gate, "gates"),
    "elastic asks for all pods of the way back at once": Taken(
        capacity, "_within_room", lambda _, wanted: wanted, roll_back_elastic, "elastic"
    ),
    "S11 a message that changes by itself": Taken(decide, "report", spoken, do_nothing, "S11"),
}


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_a_rule_that_is_taken_out_is_missed(monkeypatch: pytest.MonkeyPatch, case: Taken) -> None:
    case.story()  # with the rule in place all is well
    monkeypatch.setattr(case.owner, case.name, case.by, raising=False)
    with pytest.raises(AssertionError, match=f"^({case.says})"):
        case.story()


def test_parking_and_restoring_hold_the_rules() -> None:
    """The walk of test_invariants seldom stays away from its metrics for so long."""
    world = tried()
    world.judge(replace(NEUTRAL, data=Data.UNAVAILABLE, failed_polls=3, outage_since=world.now)).run(
        2000, every=5
    )
    assert world.status.parked
    world.judge(NEUTRAL).run(60)
    assert world.rules.checked > 400
