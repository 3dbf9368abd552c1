"""What stands on the wire, and what it is in memory.

Kubernetes writes times as RFC3339, durations as Go strings and (by its API conventions) never floats. Inside, both are
plain `float` seconds, so that arithmetic needs no conversion and pure code needs no `datetime`. The conversions live here
and nowhere else. In Python the fields take floats; from the wire (`Model.from_wire`) only the strings are accepted, as the
API server does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WIRE = {"wire": True}

# The pattern of the Gateway API (GEP-2257), and microseconds: bounded, so that CEL can estimate what it costs.
DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms|us)){1,5}$"
DURATION_LENGTH = 35
_DURATION = re.compile(DURATION_PATTERN)
_DURATION_PART = re.compile(r"([0-9]+)(ms|us|h|m|s)")
_UNITS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}

_LONGEST = 99_999 * 3600.0

DECIMAL_PATTERN = r"^-?[0-9]{1,15}(\.[0-9]{1,9})?$"
DECIMAL_LENGTH = 26
_DECIMAL = re.compile(DECIMAL_PATTERN)

_TIME = re.compile(
    r"^(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})$", re.ASCII
)


def parse_time(text: str) -> float:
    """Epoch seconds of an RFC3339 time, to the microsecond. Raises ValueError with a sentence."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not an RFC3339 time like 2026-11-20T08:30:00Z")
    day, clock, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}{zone}")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time: {error}") from error
    microseconds = (whole - _EPOCH) // _MICROSECOND + int((fraction or "0").ljust(6, "0")[:6])
    return microseconds / 1e6


def format_time(seconds: float) -> str:
    """RFC3339 in UTC of epoch seconds, with no more digits of the second than it has (at most six)."""
    moment = _EPOCH + timedelta(microseconds=round(seconds * 1e6))
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as 90s, 10m or 1h30m. Raises ValueError with a sentence."""
    if not _DURATION.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a duration: write whole numbers with h, m, s or ms, like 90s or 1h30m"
        )
    return sum(int(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)) / 1e6


def format_duration(seconds: float) -> str:
    """The shortest Go duration of that many seconds, to the microsecond. Negative ones become 0s, and the longest that the
    pattern takes stands for all longer ones, infinity among them."""
    left = round(min(seconds, _LONGEST) * 1e6) if seconds > 0 else 0
    parts = []
    for unit, size in _UNITS.items():
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def parse_decimal(text: str) -> float:
    """The number of a decimal string such as 0.01. Raises ValueError with a sentence."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f'{text!r} is not a decimal number in a string: write it like "0.01"')
    return float(text)


def format_decimal(number: float) -> str:
    """The shortest decimal string that reads back as this number (to nine decimal places), never with an exponent."""
    text = f"{round(Decimal(repr(float(number))), 9):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _reader(parse: Callable[[str], float], what: str) -> BeforeValidator:
    def read(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, bool) or (info.context or {}).get("wire"):
            raise ValueError(f"{what} is a string, not {value!r}: put it in quotes")
        return value

    return BeforeValidator(read)


Time = Annotated[
    float,
    _reader(parse_time, "a time"),
    PlainSerializer(format_time, return_type=str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""Epoch seconds (UTC); RFC3339 on the wire."""

Duration = Annotated[
    float,
    _reader(parse_duration, "a duration"),
    PlainSerializer(format_duration, return_type=str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "maxLength": DURATION_LENGTH}),
]
"""Seconds; a Go duration string on the wire."""

DecimalString = Annotated[
    float,
    _reader(parse_decimal, "a decimal number"),
    PlainSerializer(format_decimal, return_type=str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": DECIMAL_LENGTH}),
]
"""A number; a decimal string on the wire."""

Int = Annotated[int, Field(strict=True)]
Bool = Annotated[bool, Field(strict=True)]
Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
"""A whole share in percent."""

JsonObject: TypeAlias = dict[str, Any]
"""An object that the schema keeps as it is."""


class Model(BaseModel):
    """Base of all parts of a ModelRollout: immutable, camelCase on the wire, and strict about unknown fields."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="null",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any, info: ValidationInfo) -> Any:
        # The API server prunes nulls before it applies defaults; files read offline must mean the same.
        if isinstance(data, Mapping) and (info.context or {}).get("wire"):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form, as strictly as the API server. Raises pydantic.ValidationError."""
        return cls.model_validate(data, context=_WIRE)

    def to_wire(self) -> JsonObject:
        """The JSON form, ready for the API server; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
