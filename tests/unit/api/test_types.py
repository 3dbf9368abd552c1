"""What goes over the wire comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelrollout.api.types import (
    DecimalString,
    Duration,
    Model,
    Time,
    format_decimal,
    format_duration,
    format_time,
    parse_decimal,
    parse_duration,
    parse_time,
)


class Sample(Model):
    at_noon: Time = 0.0
    lasts: Duration = 90.0
    share: DecimalString = 0.01
    maybe: Time | None = None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-11-20T08:30:00Z", 1795163400.0),
        ("2026-11-20T09:30:00+01:00", 1795163400.0),
        ("2026-11-20T08:30:00.5Z", 1795163400.5),
        ("2026-11-20T08:30:00.123456Z", 1795163400.123456),
        ("2026-11-20T08:30:00.123456789Z", 1795163400.123456),
        ("1969-12-31T23:59:59.75Z", -0.25),
    ],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-11-20", "2026-11-20T08:30:00", "2026-13-20T08:30:00Z", "2026-11-20T08:30:00Z\n"],
)
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_time(text)


@settings(deadline=None)
@given(st.integers(min_value=-(10**15), max_value=4 * 10**15))
def test_a_time_survives_the_wire_to_the_microsecond(microseconds: int) -> None:
    seconds = microseconds / 1e6
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds", "shortest"),
    [
        ("0s", 0.0, "0s"),
        ("90s", 90.0, "1m30s"),
        ("1h30m", 5400.0, "1h30m"),
        ("250ms", 0.25, "250ms"),
        ("6h", 21600.0, "6h"),
        ("1m1h", 3660.0, "1h1m"),
        ("1s500us", 1.0005, "1s500us"),
        ("99999h", 359996400.0, "99999h"),
    ],
)
def test_durations_are_read_and_written(text: str, seconds: float, shortest: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == shortest


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1.0, "0s"), (float("nan"), "0s"), (1e12, "99999h"), (float("inf"), "99999h")]
)
def test_impossible_durations_are_written_as_the_nearest_possible_one(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "90", "1.5h", "-5s", "5 m", "5m ", "1d", "forever", "90s\n", "100000h"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write whole numbers with h, m, s or ms"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**14))
def test_a_duration_survives_the_wire_to_the_microsecond(microseconds: int) -> None:
    seconds = microseconds / 1e6
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.01, "0.01"),
        (1.0, "1"),
        (70000.0, "70000"),
        (-0.5, "-0.5"),
        (1e-7, "0.0000001"),
        (-1e-12, "0"),
        (1e14, "1" + "0" * 14),
    ],
)
def test_decimals_have_one_form(number: float, text: str) -> None:
    assert format_decimal(number) == text
    assert parse_decimal(text) == pytest.approx(number, abs=1e-9)


@pytest.mark.parametrize("text", ["", "1e-3", "0,01", ".5", "+1", "1.", "NaN", "Inf", "0.01\n"])
def test_other_texts_are_no_decimals(text: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        parse_decimal(text)


def test_a_model_speaks_camel_case_and_leaves_out_what_is_none() -> None:
    sample = Sample(at_noon=1795163400.5, lasts=0.25)
    assert sample.to_wire() == {"atNoon": "2026-11-20T08:30:00.5Z", "lasts": "250ms", "share": "0.01"}
    assert Sample.from_wire(sample.to_wire()) == sample


@pytest.mark.parametrize(
    "data", [{"atNoon": 5}, {"lasts": 90}, {"share": 0.01}, {"lasts": True}, {"lasts": ["90s"]}]
)
def test_the_wire_takes_strings_only_as_the_api_server_does(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="put it in quotes"):
        Sample.from_wire(data)


def test_models_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().lasts = 5.0  # type: ignore[misc]
