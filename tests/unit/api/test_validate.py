"""Bad manifests are refused with a sentence that names the field; good ones are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.api.rules import RULES
from modelrollout.api.validate import parse
from tests.unit.api.manifests import BAD, GOOD, Bad, good, minimal

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.why)
def test_refused(case: Bad) -> None:
    spec, problems = parse(case.manifest())
    assert spec is None
    assert case.at in [problem.field for problem in problems], problems
    assert any(case.names in str(problem) for problem in problems)
    assert all(problem.message for problem in problems)


@pytest.mark.parametrize("name", GOOD)
def test_accepted(name: str) -> None:
    spec, problems = parse(good(name))
    assert problems == []
    assert spec is not None


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_example_is_accepted(file: Path) -> None:
    spec, problems = parse(yaml.safe_load(file.read_text()))
    assert problems == []
    assert spec is not None


def test_there_are_at_least_forty_bad_manifests_and_their_reasons_differ() -> None:
    assert len({case.why for case in BAD}) == len(BAD) >= 40


def test_every_rule_refuses_some_bad_manifest() -> None:
    said = {problem.message for case in BAD for problem in parse(case.manifest())[1]}
    assert [rule.message for rule in RULES if rule.message not in said] == []


def test_a_misspelt_field_is_answered_with_the_right_one() -> None:
    obj = minimal()
    obj["spec"]["analysis"]["intervall"] = "15s"
    assert [str(problem) for problem in parse(obj)[1]] == [
        "spec.analysis.intervall: intervall is not a field of this API: did you mean interval?"
    ]


def test_all_problems_are_told_at_once() -> None:
    obj = minimal()
    obj["metadata"]["name"] = "2"
    obj["spec"]["paused"] = "no"
    obj["spec"]["drainDelay"] = 3
    assert [problem.field for problem in parse(obj)[1]] == ["metadata.name", "spec.drainDelay", "spec.paused"]


def test_nulls_mean_left_out_as_the_api_server_sees_them() -> None:
    obj = minimal()
    obj["spec"] |= {"watch": None, "paused": None, "analysis": obj["spec"]["analysis"] | {"interval": None}}
    spec, problems = parse(obj)
    assert problems == []
    assert spec is not None
    assert (spec.watch.holdback, spec.analysis.interval) == (10, 15.0)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


FULL = yaml.safe_load((EXAMPLES / "fraud.yaml").read_text())


@settings(deadline=None)
@given(place=st.sampled_from([place for place in _places(FULL) if place]), junk=_JSON)
def test_never_raises_whatever_stands_anywhere(place: tuple[Any, ...], junk: Any) -> None:
    obj = yaml.safe_load((EXAMPLES / "fraud.yaml").read_text())
    inner = obj
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    spec, problems = parse(obj)
    assert (spec is None) == bool(problems)
    assert all(isinstance(str(problem), str) for problem in problems)
