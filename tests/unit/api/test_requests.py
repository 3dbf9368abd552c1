"""Requests are bound to a revision, happen once, and are never lost or repeated."""

from __future__ import annotations

import pytest

from modelrollout.api.requests import (
    BadRequest,
    Request,
    Verb,
    changed_requests,
    format_request,
    parse_request,
    record_requests,
)
from modelrollout.api.status import RequestsStatus

REVISION = "abcdefg234"


@pytest.mark.parametrize(
    ("verb", "value", "step"),
    [
        pytest.param("abort", REVISION, None, id="a revision"),
        pytest.param("abort", f"{REVISION}@2026-11-20T08:30:00Z/again", None, id="a revision and anything"),
        pytest.param("approve", f"{REVISION}/x7k2", "x7k2", id="a revision and a step"),
        pytest.param("approve", f"{REVISION}/x7k2@me", "x7k2", id="a revision, a step and anything"),
        pytest.param("pause", f"{REVISION}@", None, id="nothing after the at sign"),
    ],
)
def test_requests_are_read(verb: Verb, value: str, step: str | None) -> None:
    assert parse_request(verb, value) == Request(verb, value, REVISION, step)


@pytest.mark.parametrize(
    ("verb", "value", "says"),
    [
        pytest.param("abort", "true", "write <revision>", id="a boolean"),
        pytest.param("abort", "ABCDEFG234", "write <revision>", id="capitals"),
        pytest.param("abort", f"{REVISION}x", "write <revision>", id="a revision that is too long"),
        pytest.param(
            "approve", REVISION, f"write {REVISION}/<status.step.id>", id="an approval without a step"
        ),
        pytest.param("retry", f"{REVISION}@{'x' * 300}", "shorten", id="an endless value"),
    ],
)
def test_what_can_not_be_read_is_answered_with_the_mend(verb: Verb, value: str, says: str) -> None:
    answer = parse_request(verb, value)
    assert isinstance(answer, BadRequest)
    assert says in answer.problem
    assert answer.problem.startswith(f"modelrollout.dev/{verb} ")


def test_what_is_written_is_read() -> None:
    value = format_request(revision=REVISION, step="x7k2", salt="1")
    assert parse_request("approve", value) == Request("approve", value, REVISION, "x7k2")


def test_each_change_of_a_value_is_one_request() -> None:
    annotations = {"modelrollout.dev/abort": f"{REVISION}@1", "other.dev/abort": "x"}
    handled = RequestsStatus()
    assert [request.verb for request in changed_requests(annotations, handled)] == ["abort"]
    handled = record_requests(annotations, handled)
    assert changed_requests(annotations, handled) == ()
    annotations["modelrollout.dev/abort"] = f"{REVISION}@2"
    assert [request.value for request in changed_requests(annotations, handled)] == [f"{REVISION}@2"]


@pytest.mark.parametrize("value", ["nonsense", f"{REVISION}@{'x' * 300}", f" {REVISION} "])
def test_a_value_that_can_not_be_read_is_reported_once(value: str) -> None:
    annotations = {"modelrollout.dev/pause": value}
    assert len(changed_requests(annotations, RequestsStatus())) == 1
    assert changed_requests(annotations, record_requests(annotations, RequestsStatus())) == ()


def test_putting_the_same_value_back_asks_for_nothing() -> None:
    annotations = {"modelrollout.dev/retry": REVISION}
    handled = record_requests({}, record_requests(annotations, RequestsStatus()))
    assert changed_requests(annotations, handled) == ()


def test_what_takes_traffic_away_comes_first() -> None:
    annotations = {f"modelrollout.dev/{verb}": REVISION for verb in ("retry", "promote", "abort")}
    assert [request.verb for request in changed_requests(annotations, RequestsStatus())] == [
        "abort",
        "promote",
        "retry",
    ]


def test_no_annotations_are_no_requests() -> None:
    assert changed_requests(None, RequestsStatus()) == ()
