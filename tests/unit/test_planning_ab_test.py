"""What an A/B test is as a step, and what can be said of it before it starts."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.spec import Spec
from modelrollout.api.status import PlanStep
from modelrollout.evidence.plan import Margin, MetricTest, Plan
from modelrollout.planning.preview import Past, preview
from modelrollout.planning.steps import compile_steps

CHOSEN = [{"cookie": {"name": "group", "value": "testers"}}]


def step_of(strategy: dict[str, Any], attempt: int = 1) -> PlanStep:
    spec = Spec.from_wire(
        {
            "workload": {"template": {"spec": {"containers": [{"name": "m"}]}}},
            "service": {"ports": [{"port": 80}]},
            "strategy": strategy,
        }
    )
    return compile_steps(spec, attempt=attempt, capacity=4)[0]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without a word, half of the requests": ({}, {"weight": 50, "size": 0, "stop": True, "randomized": True}),
    "a share": ({"weight": 7, "otherwise": "Promote"}, {"weight": 7, "stop": False, "load": 7, "room": 7}),
    "chosen users, for whom all pods stand ready": (
        {"matches": CHOSEN},
        {"weight": 0, "size": 100, "load": 100, "room": 100, "randomized": False},
    ),
    "chosen users, with a size": ({"matches": CHOSEN, "size": 30}, {"size": 30, "room": 30}),
    "users drawn by lot": ({"matches": CHOSEN, "randomized": True}, {"weight": 0, "randomized": True}),
    "a reward": (
        {"reward": "errors", "minRequests": 9},
        {"reward": "errors", "min_requests": 9, "timed": True},
    ),
}


@pytest.mark.parametrize(("test", "expected"), CASES.values(), ids=CASES)
def test_a_test_is_one_step(test: dict[str, Any], expected: dict[str, Any]) -> None:
    step = step_of({"abTest": {"duration": "1h", **test}})
    assert step.duration == 3600
    assert {name: getattr(step, name) for name in expected} == expected


def test_another_match_is_another_step() -> None:
    other = [{"cookie": {"name": "group", "value": "staff"}}]
    steps = [step_of({"abTest": {"duration": "1h", "matches": matches}}) for matches in (CHOSEN, other)]
    assert steps[0].id != steps[1].id


def test_steps_without_matches_keep_the_ids_that_approvals_name() -> None:
    """An operator that is updated in the middle of a rollout must find the step that it is in."""
    assert step_of({"canary": {"steps": [{"weight": 10, "duration": "5m"}]}}).id == "00d729"


def test_what_a_step_gives_is_said_to_people() -> None:
    assert (
        step_of({"abTest": {"duration": "1h", "matches": CHOSEN}}).aim
        == "requests that match to the candidate"
    )


def test_a_test_lasts_its_time_and_of_chosen_requests_nothing_is_foretold() -> None:
    metric = MetricTest(
        "errors", "ratio", Margin(1.05, 0.00025), Margin(1.25, 0.0025), 1, True, "", reward=True
    )
    plan = Plan((metric,), 0.01, 0.05, 1, "a", "b", settle=30, interval=15)
    spec = Spec.from_wire({"workload": {}, "service": {"ports": [{"port": 80}]}})
    past = Past(100.0, {"errors": 0.01}, {})
    share, chosen = (
        step_of({"abTest": {"duration": "1h", "minRequests": 10**9, **more}})
        for more in ({}, {"matches": CHOSEN})
    )
    (told,) = preview(spec, [share], plan, past).steps
    assert told.duration == 3600, "neither a proof nor a number of requests lengthens it"
    assert told.detects
    (told,) = preview(spec, [step_of({"abTest": {"duration": "1h", "reward": "errors"}})], plan, past).steps
    assert told.detects.startswith("errors ") and "errors better from 99.1 % good on" in told.detects
    forecast = preview(spec, [chosen], plan, past)
    assert (forecast.steps[0].duration, forecast.steps[0].detects) == (None, None)
    assert "can't see" not in (forecast.limits or "")
