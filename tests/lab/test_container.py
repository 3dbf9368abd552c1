"""A container as the kubelet keeps it: probes, command line, back-off."""

from __future__ import annotations

from typing import Any

import pytest

from lab.container import Container, Probe, expand

Object = dict[str, Any]


class Ended:
    """A process that ended at once."""

    pid = 7
    running = False

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def start(self) -> None:
        pass


def container(**spec: Any) -> Container:
    return Container({"name": "model", "image": "lab/model:1"} | spec, 8080, ("serve", "--fast"))


@pytest.mark.parametrize(
    ("spec", "answers", "passed"),
    [
        ({"failureThreshold": 3}, "+", True),
        ({"failureThreshold": 3}, "+--", True),
        ({"failureThreshold": 3}, "+---", False),
        ({"failureThreshold": 3}, "+--+--", True),
        ({"failureThreshold": 1, "successThreshold": 2}, "+", False),
        ({"failureThreshold": 1, "successThreshold": 2}, "++", True),
        ({"failureThreshold": 1, "successThreshold": 2}, "++-+", False),
        ({"failureThreshold": 1, "successThreshold": 2}, "++-++", True),
    ],
)
def test_a_probe_passes_and_fails_by_its_thresholds(spec: Object, answers: str, passed: bool) -> None:
    probe = Probe(spec, passed=False, due=0.0)
    for answer in answers:
        probe.record(answer == "+")
    assert probe.passed == passed


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$(NAME)-$(NAME)", "a-a"),
        ("$(NOBODY)", "$(NOBODY)"),
        ("$$(NAME)", "$(NAME)"),
        ("$NAME costs 5$", "$NAME costs 5$"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    assert expand(text, {"NAME": "a"}) == expanded


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ({}, ["serve", "--fast"]),
        ({"args": ["--name=$(NAME)"]}, ["serve", "--fast", "--name=a"]),
        ({"command": ["sleep"], "args": ["1"]}, ["sleep", "1"]),
    ],
    ids=["the image's own", "arguments follow it", "a command replaces it"],
)
def test_arguments(spec: Object, arguments: list[str]) -> None:
    assert container(**spec).arguments({"NAME": "a"}) == arguments


def run(one: Container, code: int, now: float, policy: str = "Always") -> None:
    assert one.may_start(now)
    one.start(Ended(code), now)  # type: ignore[arg-type]
    one.note_end(now, policy=policy)


def test_the_first_restart_is_immediate_and_each_later_one_waits_twice_as_long_up_to_a_limit() -> None:
    one, now, waits = container(), 100.0, []
    for _ in range(8):
        run(one, 1, now)
        (again,) = one.due()
        waits.append(again - now)
        assert not one.may_start(again - 0.01) or again == now
        now = again
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert one.restarts == 7


def test_a_container_that_ran_for_long_starts_its_back_off_anew() -> None:
    one = container()
    for now in (100.0, 100.0, 101.0):
        run(one, 1, now)
    assert one.due() == [103.0]
    one.start(Ended(1), 103.0)  # type: ignore[arg-type]
    one.note_end(200.0, policy="Always")
    assert one.due() == [200.0]


@pytest.mark.parametrize(
    ("policy", "returncode", "code", "reason"),
    [
        ("Never", 0, 0, "Completed"),
        ("Never", 3, 3, "Error"),
        ("Never", -9, 137, "Error"),
        ("OnFailure", 0, 0, "Completed"),
    ],
)
def test_a_container_ends_for_good_by_its_pods_policy(
    policy: str, returncode: int, code: int, reason: str
) -> None:
    one = container()
    run(one, returncode, 100.0, policy)
    assert one.final_code == code
    assert one.status("web_shop")["state"]["terminated"]["reason"] == reason
    assert not one.may_start(1e9)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Container({"name": "m", "image": "none:1"}, 1, None), "ImagePullBackOff"),
        (lambda: _crashed(), "CrashLoopBackOff"),
        (
            lambda: Container({"name": "m", "image": "m"}, 1, ("m",), misconfigured="no key"),
            "CreateContainerConfigError",
        ),
    ],
    ids=["no such image", "it crashed", "its environment is wrong"],
)
def test_a_container_says_why_it_waits(make: Any, reason: str) -> None:
    status = make().status("web_shop")
    assert status["state"]["waiting"]["reason"] == reason
    assert not status["ready"]


def _crashed() -> Container:
    one = container()
    run(one, 1, 100.0)
    return one
