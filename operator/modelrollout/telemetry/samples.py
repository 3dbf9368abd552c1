"""What Prometheus answers, as typed samples, and every way in which an answer is not good enough.

A comparison must never rest on half an answer: an error, a login page, a partial answer of a federated store or a NaN are
all refused here, each with one sentence that a person can act on. What passes is finite and complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

UNREACHABLE = "PrometheusUnreachable"
TIMED_OUT = "PrometheusTimedOut"
REFUSED = "PrometheusRefused"
BAD_ANSWER = "PrometheusBadAnswer"
PARTIAL = "PartialAnswer"
NOT_A_NUMBER = "NotANumber"
NO_RESULT = "NoResult"
SEVERAL_RESULTS = "SeveralResults"
NATIVE_HISTOGRAM = "NativeHistogram"


class QueryError(Exception):
    """A query without a usable answer. `reason` is one of this module's constants; `text` says what was wrong."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text


@dataclass(frozen=True, slots=True)
class RawSeries:
    """Raw samples of one series: ascending times (epoch seconds) and finite values.

    `broken` are the times of samples that were NaN or infinite; they are not among the samples.
    """

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]
    broken: tuple[float, ...] = ()


def parse_answer(status: int, content_type: str, body: bytes) -> Mapping[str, Any]:
    """The `data` of an answer of the query API. Raises QueryError for everything but a complete success."""
    if "json" not in content_type.lower():
        raise QueryError(
            BAD_ANSWER,
            f"HTTP {status} with {content_type or 'no content type'} instead of JSON: is this the URL of a Prometheus API, "
            "and are credentials configured?",
        )
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise QueryError(BAD_ANSWER, f"HTTP {status} with broken JSON: {error}") from error
    if not isinstance(answer, dict):
        raise QueryError(BAD_ANSWER, f"HTTP {status} with JSON that is no answer of Prometheus")
    if status != 200 or answer.get("status") != "success":
        kind = TIMED_OUT if answer.get("errorType") == "timeout" else REFUSED
        raise QueryError(
            kind,
            f"HTTP {status}, {answer.get('errorType', 'error')}: {answer.get('error', 'no reason given')}",
        )
    if answer.get("warnings"):
        raise QueryError(PARTIAL, "; ".join(str(warning) for warning in answer["warnings"]))
    data = answer.get("data")
    if not isinstance(data, dict) or "result" not in data or "resultType" not in data:
        raise QueryError(BAD_ANSWER, "a success without data")
    return data


def parse_matrix(data: Mapping[str, Any]) -> tuple[RawSeries, ...]:
    """The series of an instant query over a range selector. Raises QueryError."""
    if data["resultType"] != "matrix":
        raise QueryError(BAD_ANSWER, f"a {data['resultType']} instead of raw samples")
    try:
        return tuple(_series(item) for item in data["result"])
    except (KeyError, TypeError, ValueError) as error:
        raise QueryError(BAD_ANSWER, f"a series that can't be read: {error!r}") from error


def _series(item: Mapping[str, Any]) -> RawSeries:
    labels = {str(label): str(value) for label, value in item["metric"].items()}
    if item.get("histograms"):
        raise QueryError(
            NATIVE_HISTOGRAM,
            f"{labels.get('__name__', 'the metric')} is a native histogram: let Prometheus keep its classic buckets too "
            "(always_scrape_classic_histograms: true)",
        )
    times: list[float] = []
    values: list[float] = []
    broken: list[float] = []
    for time, text in item.get("values", ()):
        value = float(text)
        if math.isfinite(value):
            times.append(float(time))
            values.append(value)
        else:
            broken.append(float(time))
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"times of {labels} do not ascend")
    return RawSeries(labels, tuple(times), tuple(values), tuple(broken))


def parse_number(data: Mapping[str, Any]) -> float:
    """The one finite number of a scalar or of a vector with one element. Raises QueryError."""
    if data["resultType"] not in ("scalar", "vector"):
        raise QueryError(BAD_ANSWER, f"a {data['resultType']} instead of one number")
    result = data["result"]
    try:
        if data["resultType"] == "vector":
            if len(result) != 1:
                raise _wrong_count(result)
            if "histogram" in result[0]:
                raise QueryError(
                    NATIVE_HISTOGRAM, "a histogram instead of a number: use histogram_quantile()"
                )
            result = result[0]["value"]
        number = float(result[1])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise QueryError(BAD_ANSWER, f"a number that can't be read: {error!r}") from error
    if not math.isfinite(number):
        raise QueryError(NOT_A_NUMBER, f"the result is {result[1]}")
    return number


def _wrong_count(result: list[Any]) -> QueryError:
    if not result:
        return QueryError(NO_RESULT, "the result is empty")
    return QueryError(
        SEVERAL_RESULTS, f"{len(result)} series instead of one number: aggregate them, as with sum() or max()"
    )
