"""A/B tests through the whole loop: what is measured of whom, what decides, and what a restart remembers."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.cluster.kinds import HTTP_ROUTE
from tests.unit.controller.world import ERRORS, KEY, NAME, World, deployed

REWARD = {"reward": "errors", "duration": "6h"}
CHOSEN = {"matches": [{"cookie": {"name": "group", "value": "testers"}}], "duration": "30m"}


async def running(
    test: dict[str, Any], *, before: float, after: float, analysis: Any = None, memory: int = 0
) -> World:
    """An A/B test whose clock runs; `before` and `after` are the shares of errors of both versions."""
    world = await deployed()
    world.prometheus.can("memory_bytes", memory)
    world.errors = {world.status["stable"]["revision"]: before}
    given = {"strategy": {"abTest": test}, "analysis": analysis or {"metrics": [ERRORS]}}
    world.apply("2", **given)
    await world.run(60, until=lambda: "candidate" in world.status)
    world.errors[world.status["candidate"]["revision"]] = after
    await world.run(600, until=lambda: bool((world.status.get("step") or {}).get("startedAt")))
    assert world.status["step"]["startedAt"]
    return world


def said(world: World, name: str = "errors") -> dict[str, Any]:
    return next(dict(metric) for metric in world.status["metrics"] if metric["name"] == name)


async def test_the_better_one_wins_and_the_status_says_by_how_much() -> None:
    world = await running(REWARD, before=0.1, after=0.02)
    await world.run(6 * 3600, until=lambda: world.phase == "Watching")
    entry = world.status["history"][0]
    assert (entry["outcome"], entry["reason"]) == ("Promoted", "ProvenSuperior")
    assert entry["message"].endswith(", better")
    assert world.condition("Ready")["status"] == "True"


async def test_what_is_known_of_the_reward_is_exported() -> None:
    world = await running(REWARD, before=0.05, after=0.05)
    await world.run(1200)
    assert world.phase == "Progressing"
    assert 'claim="superior",metric="errors"' in world.exposition()
    assert "superior" in world.status["evidence"]["metrics"]["errors"]


async def test_an_equal_one_is_removed_when_its_time_is_over() -> None:
    world = await running(REWARD | {"duration": "1h"}, before=0.05, after=0.05)
    await world.run(2 * 3600, until=lambda: world.phase == "Healthy")
    entry = world.status["history"][0]
    assert (entry["outcome"], entry["reason"]) == ("Judged", "NotSuperior")


async def test_a_restart_forgets_nothing_of_the_reward() -> None:
    world = await running(REWARD, before=0.1, after=0.095)
    await world.run(1200)
    memory = world.reconciler._memories._all[KEY]
    assert memory.state is not None
    known = memory.state.metrics["errors"].superior
    assert any(known)
    await world.run(60)
    world.start()
    await world.run(120)
    memory = world.reconciler._memories._all[KEY]
    assert memory.state is not None
    assert memory.state.metrics["errors"].polls > 60
    assert memory.state.metrics["errors"].superior != (0.0,) * len(known)
    assert world.failures == []


async def test_of_chosen_users_metrics_are_told_and_decide_nothing() -> None:
    world = await running(CHOSEN, before=0.0, after=0.5)
    await world.run(900)
    assert (world.phase, world.status["weights"]["matched"]) == ("Progressing", 100)
    assert float(said(world)["candidateRequests"]) > 1000, "what they did is measured"
    assert said(world)["verdict"] == "Harmful", "and told"
    assert "only guardrails decide" in world.status["message"]
    assert "HarmProven" not in world.reasons()
    await world.run(3600, until=lambda: world.phase == "Healthy")
    assert world.status["history"][0]["outcome"] == "Judged"


async def test_a_split_that_is_none_is_not_checked() -> None:
    """Half of the requests match, and the weight is 0."""
    world = await running(CHOSEN, before=0.0, after=0.0)
    await world.run(900)
    assert world.condition("TrafficVerified")["reason"] == "SplitNotChecked"
    assert "splitOffSince" not in world.status


@pytest.mark.parametrize(
    ("stickiness", "off"),
    [({}, True), ({"stickiness": {"cookie": "side"}}, False)],
    ids=["requests are drawn", "users are drawn, and some ask for a lot"],
)
async def test_a_share_of_the_requests_that_is_not_the_weight(stickiness: dict[str, Any], off: bool) -> None:
    world = await running({"weight": 20, "duration": "2h", **stickiness}, before=0.0, after=0.0)
    world.rate = 100.0
    stable, candidate = (world.status[role]["revision"] for role in ("stable", "candidate"))
    world.drawn = {stable: 65, candidate: 35}
    await world.run(1800)
    assert ("TrafficMismatch" in world.reasons()) is off
    assert world.phase == ("Paused" if off else "Progressing")
    assert world.condition("TrafficVerified")["status"] == ("False" if off else "Unknown")


async def test_users_who_were_drawn_by_lot_are_compared() -> None:
    world = await running(CHOSEN | {"randomized": True}, before=0.0, after=0.5)
    await world.run(900, until=lambda: world.phase == "RolledBack")
    assert world.status["history"][0]["reason"] == "HarmProven"
    route = world.look(HTTP_ROUTE, NAME)
    assert route is not None
    assert len(route["spec"]["rules"]) == 1, "nobody is sent there any more"


async def test_a_guardrail_decides_of_chosen_users_too() -> None:
    guardrail = {"name": "memory", "guardrail": {"query": "memory_bytes", "max": "10"}}
    world = await running(CHOSEN, before=0.0, after=0.0, analysis={"metrics": [ERRORS, guardrail]}, memory=5)
    world.prometheus.can("memory_bytes", 11)
    await world.run(900, until=lambda: world.phase == "RolledBack")
    assert world.status["history"][0]["reason"] == "GuardrailBreached"


async def test_what_chosen_users_showed_is_no_evidence_for_the_next_step() -> None:
    world = await deployed()
    steps = [
        {"weight": 0, "matches": CHOSEN["matches"], "duration": "15m"},
        {"weight": 50, "duration": "10m"},
    ]
    world.apply("2", strategy={"canary": {"steps": steps}})
    await world.run(900)
    assert float(said(world)["candidateRequests"]) > 5000
    await world.run(900, until=lambda: (world.status.get("step") or {}).get("display") == "2/2")
    await world.run(120)
    assert float(said(world)["candidateRequests"]) < 2000, "the comparison began anew"
    await world.run(3 * 3600, until=lambda: world.phase == "Watching")
    assert world.status["history"][0]["reason"] == "ProvenHarmless"


@pytest.mark.parametrize("served", [True, False], ids=["served", "not served"])
async def test_sessions_are_asked_for_once_and_again_when_they_were_refused(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelrollout.cluster.errors import Invalid

    world, asked = World(), []
    apply = world.cluster.apply

    async def answer(obj: Any, **more: Any) -> Any:
        if more.get("dry_run") and obj["kind"] == HTTP_ROUTE.kind:
            asked.append(obj)
            if not served:
                raise Invalid("sessionPersistence: field not declared in schema", status=422)
            return obj
        return await apply(obj, **more)

    monkeypatch.setattr(world.cluster, "apply", answer)
    test = {"weight": 10, "duration": "1h", "stickiness": {"cookie": "side"}}
    world.apply(strategy={"abTest": test})
    await world.run(110)
    assert asked[0]["spec"]["rules"][0]["sessionPersistence"]["sessionName"] == "side"
    if served:
        assert (world.phase, len(asked)) == ("Healthy", 1)
    else:
        assert (world.condition("Accepted")["reason"], len(asked)) == ("NotSupported", 2)
        assert "experimental channel" in world.condition("Accepted")["message"]
