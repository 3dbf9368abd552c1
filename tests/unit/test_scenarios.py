"""The table of scenarios is complete, and what it names is there: on a real API server, or with real traffic."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.scenarios import SCENARIOS, Scenario


def test_there_are_thirty_six() -> None:
    assert [scenario.number for scenario in SCENARIOS] == list(range(1, 37))


def played(module: ModuleType) -> Iterator[str]:
    """Names of a module's tests, and of the stories in lists that its tests are parametrized with."""
    for name, value in vars(module).items():
        if name.startswith("test_") and callable(value):
            yield name
            for mark in getattr(value, "pytestmark", []):
                if mark.name == "parametrize" and mark.args[0] == "story":
                    yield from (story.__name__ for story in mark.args[1])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.number}: {scenario.what}")
def test_scenario(scenario: Scenario) -> None:
    assert scenario.tests
    for test in scenario.tests:
        path, _, name = test.partition("::")
        folder, _, module = path.removesuffix(".py").partition("/")
        assert folder in ("cluster", "lab"), f"{test} is not played on a real cluster"
        assert name in played(importlib.import_module(f"tests.{folder}.{module}")), f"there is no {test}"
