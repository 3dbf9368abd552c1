"""Which events become requests, and what errors become."""

import json
from typing import Any

import pytest

from modelrollout.cluster.errors import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    KindNotServed,
    NotFound,
    Unavailable,
    error_from,
)
from modelrollout.cluster.events import BURST, REMEMBERED_OBJECTS, Correlator, Occurrence, Post, Repeat, cut
from modelrollout.cluster.kinds import EVENT, Object
from modelrollout.cluster.port import Hooks, Write
from tests.fakes.cluster import FakeCluster

DRIFT = Occurrence("Warning", "TrafficDrift", "weight was changed by kubectl", "Reconcile")


def regarding(name: str = "fraud") -> Object:
    metadata = {"name": name, "namespace": "shop", "uid": f"u-{name}"}
    return {"apiVersion": "modelrollout.dev/v1alpha1", "kind": "ModelRollout", "metadata": metadata}


def test_a_repeated_event_is_told_at_doubling_counts_on_the_first_one():
    correlator = Correlator()
    first = correlator.sort(regarding(), DRIFT, 0.0)
    assert isinstance(first, Post)
    told = [correlator.sort(regarding(), DRIFT, 10.0 * n) for n in range(1, 9)]
    assert told == [
        Repeat(first.name, 2),
        None,
        Repeat(first.name, 4),
        None,
        None,
        None,
        Repeat(first.name, 8),
        None,
    ]


def test_after_ten_quiet_minutes_it_is_a_new_event():
    correlator = Correlator()
    first = correlator.sort(regarding(), DRIFT, 0.0)
    assert isinstance(correlator.sort(regarding(), DRIFT, 599.0), Repeat)
    again = correlator.sort(regarding(), DRIFT, 1200.0)
    assert isinstance(again, Post)
    assert again != first


def test_another_note_or_another_object_is_another_event():
    correlator = Correlator()
    correlator.sort(regarding(), DRIFT, 0.0)
    other = Occurrence(DRIFT.type, DRIFT.reason, "weight was changed by helm", DRIFT.action)
    assert isinstance(correlator.sort(regarding(), other, 1.0), Post)
    assert isinstance(correlator.sort(regarding("spam"), DRIFT, 1.0), Post)


def test_one_object_cannot_post_without_end_and_does_not_silence_others():
    correlator = Correlator()
    notes = [Occurrence("Normal", "WeightChanged", f"to {n} %", "Reconcile") for n in range(100)]
    posted = [correlator.sort(regarding(), note, float(n)) for n, note in enumerate(notes)]
    assert sum(one is not None for one in posted) == BURST
    assert correlator.sort(regarding("spam"), DRIFT, 100.0) is not None
    assert correlator.sort(regarding(), DRIFT, 400.0) is not None, "one more after five minutes"
    assert correlator.sort(regarding(), notes[50], 401.0) is None


def test_memory_is_bounded():
    correlator = Correlator()
    for n in range(REMEMBERED_OBJECTS + 500):
        correlator.sort(regarding(f"r{n}"), DRIFT, 0.0)
    assert len(correlator._sources) == REMEMBERED_OBJECTS


@pytest.mark.parametrize("note", ["short", "x" * 1024, "x" * 5000, "ü" * 1000, "😀" * 400])
def test_a_note_is_cut_to_1024_bytes_and_stays_text(note: str):
    result = cut(note)
    assert len(result.encode()) <= 1024
    assert result == note or (result.endswith("…") and note.startswith(result[:-1]))


async def test_an_event_that_could_not_be_posted_is_not_counted_as_posted():
    fail = True

    async def before(_: Write) -> None:
        if fail:
            raise Unavailable("away")

    cluster = FakeCluster(hooks=Hooks(before_write=before))
    await cluster.event(regarding(), type="Normal", reason="Promoted", note="done")
    assert cluster.events == []
    fail = False
    await cluster.event(regarding(), type="Normal", reason="Promoted", note="done")
    assert cluster.events == [("Promoted", "done")]


async def test_an_event_that_the_server_dropped_is_posted_anew_the_next_time():
    cluster = FakeCluster()
    await cluster.event(regarding(), type="Normal", reason="Promoted", note="done")
    (event,) = cluster.look_all(EVENT)
    cluster.erase(EVENT, "shop", event["metadata"]["name"])
    for _ in range(2):
        await cluster.event(regarding(), type="Normal", reason="Promoted", note="done")
    assert cluster.events == [("Promoted", "done")]


def status(**fields: Any) -> bytes:
    return json.dumps({"kind": "Status", **fields}).encode()


NAMED = {"name": "x", "kind": "deployments"}


@pytest.mark.parametrize(
    ("code", "body", "patch", "expected"),
    [
        pytest.param(404, status(details=NAMED), False, NotFound, id="a missing object"),
        pytest.param(404, b"404 page not found\n", False, KindNotServed, id="a group that is not installed"),
        pytest.param(404, status(details={}), False, KindNotServed, id="a kind that is not installed"),
        pytest.param(409, status(reason="Conflict"), False, Conflict, id="another version"),
        pytest.param(409, status(reason="AlreadyExists"), False, AlreadyExists, id="a name that is taken"),
        pytest.param(422, status(reason="Invalid", details=NAMED), False, Invalid, id="a bad value"),
        pytest.param(
            422, status(reason="Invalid", details=NAMED), True, Invalid, id="a patch with a bad value"
        ),
        pytest.param(422, status(details={}), True, Conflict, id="a failed test of a JSON patch"),
        pytest.param(422, status(details={}), False, Invalid, id="the same answer without a patch"),
        pytest.param(400, status(), False, Invalid, id="a request that can't be read"),
        pytest.param(413, b"too large", False, Invalid, id="an object that is too large"),
        pytest.param(403, status(), False, Forbidden, id="a missing right"),
        pytest.param(401, status(), False, Unavailable, id="a token that ran out"),
        pytest.param(429, status(), False, Unavailable, id="too many requests"),
        pytest.param(500, status(), False, Unavailable, id="an error of the server's"),
        pytest.param(503, b"<html>", False, Unavailable, id="a proxy without a server"),
        pytest.param(
            500,
            status(
                message="failed to create typed patch object (a/b; apps/v1, Kind=Deployment): expected list"
            ),
            False,
            Invalid,
            id="a malformed template, which is a 500",
        ),
    ],
)
def test_errors_are_sorted_by_what_to_do(code: int, body: bytes, patch: bool, expected: type[ClusterError]):
    error = error_from(code, body, {}, what="apply Deployment x", patch=patch)
    assert type(error) is expected
    assert error.status == code
    assert str(error).startswith("apply Deployment x: ")


@pytest.mark.parametrize(
    ("headers", "details", "expected"),
    [
        pytest.param({"Retry-After": "7"}, {}, 7.0, id="the header"),
        pytest.param({}, {"retryAfterSeconds": 3}, 3.0, id="the body"),
        pytest.param(
            {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {"retryAfterSeconds": 3}, 3.0, id="a date"
        ),
        pytest.param({"Retry-After": "999999"}, {}, None, id="a time beyond reason"),
        pytest.param({}, {}, None, id="none"),
    ],
)
def test_retry_after(headers: dict[str, str], details: dict[str, Any], expected: float | None):
    assert error_from(429, status(details=details), headers, what="get").retry_after == expected


def test_a_terminating_namespace_can_be_told_from_a_missing_right():
    causes = [{"reason": "NamespaceTerminating", "message": "namespace shop is being terminated"}]
    error = error_from(403, status(details={"causes": causes}), {}, what="create")
    assert isinstance(error, Forbidden)
    assert error.namespace_terminating
