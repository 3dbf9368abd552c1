"""Conditions keep their time until their status changes, and reasons are documented."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from modelrollout.api.conditions import ConditionType, EventReason, Reason, Wanted, merge_conditions
from modelrollout.telemetry import increments, samples

READY = Wanted(ConditionType.READY, "True", Reason.HEALTHY, "fine")


@pytest.mark.parametrize("reasons", [ConditionType, Reason, EventReason])
def test_every_constant_is_a_camel_case_word_with_a_meaning(
    reasons: type[ConditionType] | type[Reason] | type[EventReason],
) -> None:
    for reason in reasons:
        assert re.fullmatch(r"[A-Z][A-Za-z]+", reason.value)
        assert reason.meaning.endswith(".")
        assert str(reason) == reason.value == f"{reason}"


def test_the_time_moves_only_with_the_status() -> None:
    first = merge_conditions([], [READY], generation=1, now=100.0)
    again = Wanted(ConditionType.READY, "True", Reason.WATCHING, "watching")
    second = merge_conditions(first, [again], generation=2, now=200.0)
    assert (second[0].last_transition_time, second[0].reason, second[0].observed_generation) == (
        100.0,
        "Watching",
        2,
    )
    third = merge_conditions(
        second, [Wanted(ConditionType.READY, "False", Reason.ROLLED_BACK)], generation=2, now=300.0
    )
    assert third[0].last_transition_time == 300.0


def test_what_is_not_wanted_goes_and_the_order_is_fixed() -> None:
    stalled = Wanted(ConditionType.STALLED, "True", Reason.ROLLED_BACK)
    accepted = Wanted(ConditionType.ACCEPTED, "True", Reason.ACCEPTED)
    before = merge_conditions([], [stalled, READY, accepted], generation=1, now=1.0)
    assert [condition.type for condition in before] == ["Accepted", "Ready", "Stalled"]
    after = merge_conditions(before, [READY, accepted], generation=1, now=2.0)
    assert [condition.type for condition in after] == ["Accepted", "Ready"]


def test_nothing_changes_when_nothing_changed() -> None:
    before = merge_conditions([], [READY], generation=1, now=1.0)
    assert merge_conditions(before, [READY], generation=1, now=9.0) == before


def test_events_that_a_person_should_see_are_warnings() -> None:
    assert EventReason.ROLLED_BACK.type == "Warning"
    assert EventReason.PROMOTED.type == "Normal"


@pytest.mark.parametrize("module", [samples, increments], ids=["samples", "increments"])
def test_every_reason_of_the_telemetry_is_documented(module: ModuleType) -> None:
    words = [value for name, value in vars(module).items() if re.fullmatch(r"[A-Z][A-Z_]+", name)]
    reasons = [word for word in words if isinstance(word, str)]
    assert reasons
    assert [word for word in reasons if word not in set(Reason)] == []
