"""Whole releases through the loop, in a world in memory, and what goes wrong around them."""

from __future__ import annotations

import asyncio
import copy
import math
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.api.types import parse_time
from modelrollout.cluster.errors import ClusterError, Conflict, Forbidden, Invalid, Unavailable
from modelrollout.cluster.kinds import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    REVISION_LABEL,
    ROLLOUT_LABEL,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.port import Hooks, Write
from modelrollout.cluster.store import Key
from modelrollout.controller import judge
from modelrollout.controller.gates import GateRights
from modelrollout.controller.memory import UnreadableStatus
from modelrollout.decision.types import Judgement
from modelrollout.telemetry.servers import ServerSettings
from modelrollout.workloads.revisions import weights_by_revision
from tests.unit.controller.world import (
    ERRORS,
    KEY,
    NAME,
    NAMESPACE,
    Crash,
    World,
    _Meter,
    deployed,
    manifest,
)

GUARDRAIL = {"name": "memory", "guardrail": {"query": "max(memory_bytes)", "max": "10", "failures": 3}}


async def candidate(world: World) -> str:
    """Start version 2; its revision."""
    world.apply("2")
    await world.run(60, until=lambda: "candidate" in world.status)
    return str(world.status["candidate"]["revision"])


async def compared(world: World, polls: int = 4) -> None:
    """Until the candidate has been compared in so many polls."""

    def enough() -> bool:
        evidence = world.status.get("evidence") or {}
        return any(metric["polls"] >= polls for metric in (evidence.get("metrics") or {}).values())

    await world.run(900, until=enough)
    assert enough(), world.status


def state_of(world: World) -> Any:
    """The evidence in memory."""
    return world.reconciler._memories._all[KEY].state


async def test_a_good_release_is_promoted_watched_and_ends_healthy() -> None:
    world = await deployed()
    await candidate(world)
    await world.run(3600, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status
    await world.run(3600, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy"
    assert world.reasons().count("Promoted") == 2, "the first deployment, and this one"
    assert not world.failures


async def test_a_bad_release_goes_back() -> None:
    world = await deployed()
    world.errors[await candidate(world)] = 0.2
    await world.run(3600, until=lambda: world.phase == "RolledBack")
    assert world.phase == "RolledBack", world.status
    assert world.status["rejected"]["reason"] == "HarmProven"
    assert "its node may be the cause" in world.status["metrics"][0]["message"]
    assert world.weights == {world.status["stable"]["revision"]: 100}


# Rest


@pytest.mark.parametrize(
    "spec",
    [{}, {"traffic": {"podRatio": {}}}, {"drainDelay": "0s"}],
    ids=["by a route", "by pods", "no drain"],
)
async def test_a_first_deployment_that_answers_stays_until_its_replacement_is_ready(spec: Object) -> None:
    """S1: it never was Healthy, and yet callers are served; a new image may take minutes to arrive."""
    world = World()
    first, second = (hash_revision(Spec.from_wire(manifest(v, **spec)["spec"])) for v in "12")
    world.nodes.limit[first], world.nodes.waiting[second] = 1, "ErrImagePull"
    world.apply("1", **spec)
    await world.run(60)
    assert (world.phase, world.status["stable"]["ready"]) == ("Pending", 1)
    world.apply("2", **spec)
    before = world.writes()
    await world.run(600)
    deployment = world.look(DEPLOYMENT, f"{NAME}-{first}")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 2
    root = world.look(SERVICE, NAME)
    assert root is not None
    assert REVISION_LABEL not in root["spec"]["selector"], (
        "who is ready answers calls inside of the cluster, too"
    )
    assert world.writes() - before <= 30, "it is prolonged now and then"
    world.nodes.waiting.clear()
    await world.run(300, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy"
    await world.run(120)
    assert world.look(DEPLOYMENT, f"{NAME}-{first}") is None


async def test_at_rest_nothing_is_asked_and_nothing_is_written() -> None:
    world = await deployed()
    requests, rounds, asked = len(world.cluster.requests), len(world.rounds), world.server.asked
    await world.run(3600)
    assert len(world.cluster.requests) == requests
    assert world.server.asked == asked
    assert len(world.rounds) == rounds


async def test_evidence_that_merely_grows_is_committed_once_a_minute() -> None:
    world = await deployed()
    world.apply(
        "2", strategy={"canary": {"steps": [{"weight": 50, "duration": "1h"}]}}, watch={"duration": "1m"}
    )
    await compared(world)
    before = world.writes()
    await world.run(600)
    assert 8 <= world.writes() - before <= 10


# Hot loops


async def a_contested_route(world: World) -> None:
    """Somebody changed it three times; the cluster in memory does not tell who, so it is put in here."""
    status = Status.from_wire(world.status)
    wanted = (weights_by_revision(status), status.weights)
    for _ in range(3):
        world.reconciler._memories._all[KEY].note_revert("kubectl-edit", world.now, wanted)
        await world.run(5)
    world.dirty = True
    await world.run(1)
    assert world.condition("TrafficVerified")["reason"] == "RouteContested"


async def a_contested_route_in_a_rollout(world: World) -> None:
    await candidate(world)
    await compared(world)
    await a_contested_route(world)


async def an_outage(world: World) -> None:
    await candidate(world)
    await compared(world)
    world.server.away = "connection refused"


async def a_hanging_prometheus(world: World) -> None:
    await candidate(world)
    await compared(world)
    world.server.hangs = asyncio.Event()


async def an_unknown_server(world: World) -> None:
    await candidate(world)
    await compared(world)
    world.servers.clear()
    world.start()


async def a_missing_pod(world: World) -> None:
    world.nodes.waiting[await candidate(world)] = "ImagePullBackOff"


async def a_refused_route(world: World) -> None:
    world.nodes.accept_routes = False
    await candidate(world)


async def a_taken_name(world: World) -> None:
    taken = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other", "namespace": NAMESPACE}}
    world.cluster.seed(taken | {"spec": {"ports": [{"port": 80}]}})
    world.apply("1", service={"name": "other", "ports": [{"port": 80}]})


async def a_lost_status(world: World) -> None:
    await candidate(world)
    await compared(world)
    world.apply("3", traffic={"gatewayAPI": {"parentRefs": []}})
    obj = world.rollout
    obj.pop("status")
    world.cluster.seed(obj)


async def a_pause(world: World) -> None:
    revision = await candidate(world)
    await compared(world)
    world.ask("pause", revision)


async def an_unreadable_evidence(world: World) -> None:
    await candidate(world)
    await compared(world)
    obj = world.rollout
    obj["status"]["evidence"]["format"] = 99
    world.cluster.seed(obj)
    world.start()


async def an_older_definition_of_the_kind(world: World) -> None:
    """Helm never upgrades a CRD: the API server drops what it does not know, and says so to nobody."""
    real = world.cluster.replace_status

    async def prune(obj: Object) -> Object:
        status = {name: value for name, value in obj["status"].items() if name != "selector"}
        return await real(obj | {"status": status})

    world.cluster.replace_status = prune  # type: ignore[method-assign]
    await candidate(world)


SITUATIONS = [
    a_contested_route,
    a_contested_route_in_a_rollout,
    an_outage,
    a_hanging_prometheus,
    an_unknown_server,
    a_missing_pod,
    a_refused_route,
    a_taken_name,
    a_lost_status,
    a_pause,
    an_unreadable_evidence,
    an_older_definition_of_the_kind,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=[s.__name__.replace("_", " ") for s in SITUATIONS])
async def test_no_situation_makes_the_loop_spin(situation: Callable[[World], Any]) -> None:
    world = await deployed()
    await situation(world)
    began = len(world.rounds)
    await world.run(1200)
    per_minute = [0] * 21
    for when in world.rounds[began:]:
        per_minute[int((when - world.rounds[began]) // 60)] += 1
    assert max(per_minute) <= 20, per_minute


def take_over_the_route(world: World) -> None:
    """Another writer puts all weight on the stable revision."""
    route = copy.deepcopy(world.look(HTTP_ROUTE, NAME))
    assert route is not None
    (rule,) = route["spec"]["rules"]
    name = f"{NAME}-{world.status['stable']['revision']}"
    rule["backendRefs"] = [ref | {"weight": 100} for ref in rule["backendRefs"] if ref["name"] == name]
    world.cluster.seed(route)


async def test_a_contested_route_is_put_right_twice_a_minute_at_most() -> None:
    world = await deployed()
    await a_contested_route_in_a_rollout(world)
    before = world.weights
    take_over_the_route(world)
    await world.run(15)
    assert len(world.weights) == 1
    await world.run(15)
    assert world.weights == before


@pytest.mark.parametrize("cause", ["abort", "lost pods"])
async def test_who_contests_a_route_keeps_no_traffic_on_what_must_lose_it(cause: str) -> None:
    """Seldom to undo what another writer did is one thing; what was decided since is another."""
    world = await deployed()
    await a_contested_route_in_a_rollout(world)
    new = world.status["candidate"]["revision"]
    assert world.weights[new] == 10
    if cause == "abort":
        world.ask("abort", new)
    else:
        world.nodes.unready.add(new)
        world.nodes.settle()
    await world.run(5)
    assert not world.weights.get(new)


async def test_a_status_field_that_is_not_kept_is_told_once_and_the_rollout_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await deployed()
    await an_older_definition_of_the_kind(world)
    await world.run(1800, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching"
    told = [record.getMessage() for record in caplog.records if "does not keep" in record.getMessage()]
    assert len(told) == 1
    assert "status.selector of a ModelRollout" in told[0]
    assert world.reasons().count("RolloutStarted") == 2, "one for each attempt"


async def test_whose_definition_refuses_the_status_is_told_what_to_apply() -> None:
    """As an older one does that does not know a phase: no word of it can stand in the status itself."""
    said = 'replace-status ModelRollout ml/fraud: status.phase: Unsupported value: "Pending"'

    async def refuse(write: Write) -> None:
        if write.verb == "replace-status":
            raise Invalid(said, status=422, reason="Invalid")

    world = World(hooks=Hooks(before_write=refuse))
    world.apply()
    await world.run(10)
    (first, *_) = world.failures
    assert isinstance(first, Invalid)
    assert (first.status, first.reason) == (422, "Invalid")
    assert str(first).startswith(
        "the API server refuses the status that this operator writes: apply the Custom"
    )
    assert str(first).endswith(f"({said})")


async def test_a_prometheus_that_hangs_is_an_outage_and_not_a_reason_to_go_on() -> None:
    """What was measured before it hung must not carry the rollout into the next step."""
    world = await deployed()
    await a_hanging_prometheus(world)
    step = world.status["step"]["id"]
    await world.run(300)
    assert world.status["step"]["id"] == step
    told = world.condition("MetricsAvailable")
    assert (told["status"], told["reason"]) == ("False", "PrometheusTimedOut")
    hanging, world.server.hangs = world.server.hangs, None
    assert hanging is not None
    hanging.set()
    await asyncio.sleep(0)
    await world.run(900, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching"


# Commits that fail


def failing(error: Exception, *, when: Callable[[World], bool], after: bool = False) -> World:
    """A world in which one status write fails: before it is taken, or only its answer is lost."""
    box: list[World] = []
    done: list[Write] = []

    async def fail(write: Write) -> None:
        if write.verb == "replace-status" and box and not done and when(box[0]):
            done.append(write)
            raise error

    world = World(hooks=Hooks(after_write=fail) if after else Hooks(before_write=fail))
    box.append(world)
    return world


@pytest.mark.parametrize("after", [False, True], ids=["it was not taken", "only its answer is lost"])
async def test_a_step_whose_commit_fails_leaves_no_half_of_itself(after: bool) -> None:
    """The settled polls that a promotion rests on count from the step's start, not from the one before."""

    def entering(world: World) -> bool:
        step = world.status.get("step") or {}
        if after:
            return step.get("index") == 1
        return step.get("index") == 0 and "endsAt" in step and parse_time(step["endsAt"]) <= world.now

    world = failing(Unavailable("no answer"), when=entering, after=after)
    world.apply()
    await world.run(300, until=lambda: world.phase == "Healthy")
    await world.run(120)
    await candidate(world)
    await world.run(600, until=lambda: bool(world.failures))
    assert [type(error) for error in world.failures] == [Unavailable]
    await world.run(20, until=lambda: world.status["step"]["index"] == 1 and state_of(world) is not None)
    assert world.status["step"]["index"] == 1
    assert state_of(world).settled <= 1


async def test_the_forecast_is_told_even_if_its_round_came_to_nothing() -> None:
    seen: list[int] = []

    def first_look(world: World) -> bool:
        seen.append(world.server.asked)
        return world.server.asked > 0

    world = failing(Conflict("modified"), when=first_look)
    world.apply()
    await world.run(300, until=lambda: world.phase == "Healthy")
    await world.run(120)
    await candidate(world)
    await world.run(300)
    assert world.failures
    assert world.status["forecast"]["steps"]


async def test_what_can_not_be_known_is_said_once_with_the_forecast() -> None:
    world = await deployed()
    await candidate(world)
    await compared(world)
    limits = world.status["forecast"]["limits"]
    assert "past polls: that errors come singly, not in clusters, is assumed" in limits
    assert "a bad node and a bad model can't be told apart" in limits
    assert "message" not in world.status["metrics"][0], "nothing is wrong with the metric"


async def test_a_status_of_another_version_is_an_error_that_says_what_to_do() -> None:
    world = await deployed()
    obj = world.rollout
    obj["status"]["phase"] = "Teleporting"
    world.cluster.seed(obj)
    before = world.writes()
    await world.run(10)
    assert isinstance(world.failures[-1], UnreadableStatus)
    assert str(world.failures[-1]).startswith("status.phase can't be read")
    assert world.writes() == before


async def test_events_are_posted_once_for_a_commit_and_never_without_one() -> None:
    def starting(world: World) -> bool:
        return world.rollout["metadata"]["generation"] == 2

    world = failing(Conflict("modified"), when=starting)
    world.apply()
    await world.run(300, until=lambda: world.phase == "Healthy")
    await candidate(world)
    assert [type(error) for error in world.failures] == [Conflict]
    assert world.reasons().count("RolloutStarted") == 2, "one for each attempt"


def listening(**container: Any) -> Object:
    """A workload whose pods have these ports."""
    return {
        "replicas": 2,
        "template": {"spec": {"containers": [{"name": "model", "image": "m", **container}]}},
    }


async def test_a_port_by_a_name_that_no_container_has_is_not_tried_with_requests() -> None:
    world = World()
    by_name = {"ports": [{"port": 80, "targetPort": "web"}]}
    world.apply("1", service=by_name, workload=listening(ports=[{"name": "web", "containerPort": 8080}]))
    await world.run(120, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy", world.status
    serving = world.status["stable"]["revision"]
    world.apply("2", service=by_name, workload=listening(ports=[{"name": "http", "containerPort": 8080}]))
    await world.run(60)
    said = world.condition("Accepted")
    assert (said["status"], said["reason"]) == ("False", "InvalidSpec")
    labels = 'name="fraud",namespace="ml",reason="InvalidSpec",status="False",type="Accepted"'
    assert f"modelrollout_condition{{{labels}}} 1.0" in world.exposition()
    assert "port http goes to 'web'" in said["message"]
    assert world.weights == {serving: 100}
    world.apply("2", service=by_name, workload=listening(ports=[{"name": "web", "containerPort": 9090}]))
    await world.run(60, until=lambda: "candidate" in world.status)
    assert world.condition("Accepted")["status"] == "True"


async def test_a_refused_event_breaks_nothing() -> None:
    async def refuse(write: Write) -> None:
        if write.kind == "Event":
            raise Unavailable("no events today")

    world = await deployed(hooks=Hooks(before_write=refuse))
    await candidate(world)
    await world.run(1200, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching"
    assert not world.failures


# What a restart must not forget


async def test_an_operator_without_the_server_keeps_the_evidence_and_holds() -> None:
    world = await deployed()
    await candidate(world)
    await compared(world)
    evidence, step = world.status["evidence"], world.status["step"]["id"]
    world.servers.clear()
    world.start()
    await world.run(600)
    assert world.status["evidence"]["metrics"] == evidence["metrics"]
    assert world.status["step"]["id"] == step
    assert world.condition("Accepted")["reason"] == "UnknownPrometheus"
    assert world.condition("MetricsAvailable")["status"] == "False"
    world.servers["default"] = world.server
    world.start()
    await world.run(1800, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching"


async def test_evidence_of_another_version_is_kept_and_nothing_is_decided_from_it() -> None:
    world = await deployed()
    revision = await candidate(world)
    await compared(world)
    obj = world.rollout
    obj["status"]["evidence"]["format"] = 99
    world.cluster.seed(obj)
    world.start()
    await world.run(900)
    assert world.phase == "Progressing"
    assert world.status["evidence"] == obj["status"]["evidence"]
    told = world.condition("MetricsAvailable")
    assert (told["status"], "format 99" in told["message"]) == ("False", True)
    world.ask("abort", revision)
    await world.run(300, until=lambda: world.phase == "RolledBack")
    assert world.phase == "RolledBack"
    assert "evidence" not in world.status


async def test_breaches_of_a_guardrail_are_counted_over_restarts() -> None:
    world = await deployed()
    world.prometheus.can("memory_bytes", 5)
    world.apply("2", analysis={"metrics": [ERRORS, GUARDRAIL]})
    await compared(world)
    world.prometheus.can("memory_bytes", 11)
    for _ in range(3):
        assert world.phase == "Progressing"
        await world.run(15)
        world.start()
    await world.run(15)
    assert world.status["history"][0]["reason"] == "GuardrailBreached"


@pytest.mark.parametrize("away", [60, 3 * 3600], ids=["a minute", "three hours"])
async def test_what_a_guardrail_says_at_one_time_is_one_reading(away: int) -> None:
    """After a long absence several looks follow each other at once, to catch up with the samples."""
    world = await deployed()
    world.prometheus.can("memory_bytes", 5)
    steps = {"canary": {"steps": [{"weight": 50, "duration": "20h"}]}}
    world.apply("2", strategy=steps, analysis={"metrics": [ERRORS, GUARDRAIL], "deadline": "40h"})
    await compared(world)
    for _ in range(away):
        world._serve(world.now + 1)
        world.now += 1
    world.prometheus.can("memory_bytes", 11)
    world.start()
    await world.run(25)
    assert world.phase == "Progressing"
    await world.run(15)
    assert world.status["history"][0]["reason"] == "GuardrailBreached"


SLOW = {"name": "p99", "guardrail": {"query": "max(p99_seconds)", "max": "1"}}


def answers(world: World, *, without: float | None) -> None:
    """A number as long as the candidate gets requests; `without` any (None: no series at all)."""

    def value(_: float) -> float | None:
        candidate = (world.status.get("candidate") or {}).get("revision")
        return 0.5 if world.weights.get(candidate) else without

    world.prometheus.can("p99_seconds", value)


@pytest.mark.parametrize("without", [None, math.nan], ids=["no series", "NaN"])
async def test_a_guardrail_that_needs_requests_holds_nothing_while_there_are_none(
    without: float | None,
) -> None:
    world = await deployed()
    answers(world, without=without)
    world.apply("2", analysis={"metrics": [ERRORS, SLOW], "outage": "5m"})
    await compared(world)
    assert world.status["weights"]["candidate"] == 10
    world.server.away = "connection refused"
    await world.run(600)
    assert (world.status["parked"], world.status["weights"]["candidate"]) == (True, 0)
    world.server.away = None
    await world.run(1800, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status["message"]


async def test_a_guardrail_that_is_away_under_requests_is_tried_again_now_and_then() -> None:
    """Nobody can know at 0 % whether it would be back."""
    world = await deployed()
    world.prometheus.can("p99_seconds", lambda _: None)
    steps = {"canary": {"steps": [{"weight": 50, "duration": "20m"}]}}
    world.apply("2", strategy=steps, analysis={"metrics": [ERRORS, SLOW], "outage": "5m"})
    await world.run(900, until=lambda: world.status["weights"].get("candidate") == 50)
    for _ in range(2):
        await world.run(270)
        assert world.status["weights"]["candidate"] == 50
        await world.run(60, until=lambda: world.status["parked"])
        await world.run(270)
        assert (world.status["weights"]["candidate"], world.status["parked"]) == (0, True)
        await world.run(60, until=lambda: world.status["weights"].get("candidate") == 50)
    answers(world, without=None)
    await world.run(7200, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status["message"]


async def test_counts_that_can_not_be_hold_the_rollout_and_no_round_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await deployed()
    revision = await candidate(world)
    await compared(world)

    def refuse(*_: Any) -> None:
        raise ValueError("metric errors: counts must be finite and not negative")

    monkeypatch.setattr(judge, "consume", refuse)
    await world.run(600)
    told = world.condition("MetricsAvailable")
    assert (told["status"], told["reason"]) == ("False", "MetricsUnavailable")
    assert "counts must be finite" in world.status["message"]
    assert (world.phase, world.status["weights"]["candidate"]) == ("Progressing", 10)
    world.nodes.unready.add(revision)
    world.nodes.settle()
    await world.run(5)
    assert world.status["weights"]["candidate"] == 0, "S1 holds"
    assert not world.failures


async def test_without_holdback_a_promoted_model_is_held_against_the_past() -> None:
    world = await deployed()
    world.apply("2", watch={"duration": "1h", "holdback": 0})
    await world.run(1800, until=lambda: world.phase == "Watching")
    await world.run(300)
    alarm = world.status["evidence"]["alarms"]["errors"]
    assert (alarm["said"], alarm["bad"]) == ("", 0)
    assert alarm["requests"] > 1000
    world.errors[world.status["stable"]["revision"]] = 0.05
    world.start()
    await world.run(300)
    said = world.status["evidence"]["alarms"]["errors"]["said"]
    assert said.startswith("errors: ")
    assert "since the old revision lost its traffic" in said
    world.start()
    await world.run(90)
    assert world.status["evidence"]["alarms"]["errors"]["said"] == said, "once raised it stays as it is"
    assert world.status["watch"]["alarm"] == said
    assert world.reasons().count("WatchAlarm") == 1


async def test_the_alarm_allows_for_a_watch_that_an_edit_or_a_pause_made_longer() -> None:
    world = await deployed()
    world.apply("2", watch={"duration": "10m", "holdback": 0})
    await world.run(1800, until=lambda: world.phase == "Watching")

    def horizon() -> int:
        return int(world.status["evidence"]["alarms"]["errors"]["horizon"])

    await world.run(120)
    assert horizon() == 2 * 600 / 15
    world.apply("2", watch={"duration": "12m", "holdback": 0})
    await world.run(120)
    assert horizon() == 2 * 720 / 15
    world.apply("2", watch={"duration": "12m", "holdback": 0}, paused=True)
    await world.run(1700)
    assert world.phase == "Watching"
    assert horizon() > 2 * 720 / 15, "requests are compared, however long it is held"


async def test_a_rollout_without_requests_says_so_and_writes_no_more_for_it() -> None:
    world = await deployed()
    await candidate(world)
    await compared(world)
    world.rate = 0.0
    await world.run(300)
    told = world.condition("MetricsAvailable")
    assert (told["status"], told["reason"]) == ("True", "NoTraffic")
    assert "no requests to the baseline and the candidate" in told["message"]
    before = world.writes()
    await world.run(600)
    assert world.writes() - before <= 10, "how far the samples were read, once a minute"


LATE = 22.0  # seconds from a scrape until its samples can be read, where 15 are allowed for


async def late_world(monkeypatch: pytest.MonkeyPatch, *, delay: float) -> World:
    """A rollout, after ten minutes in which all samples were late."""
    world = World()
    world.server.settings = ServerSettings("default", "http://prometheus", delay=delay)

    def source(meter: _Meter, pick: Callable[[float, float], float]) -> Callable[[float, float], Any]:
        return lambda after, until: [
            (t, pick(n, x)) for t, n, x in meter.samples if after < t <= min(until, world.now - LATE)
        ]

    monkeypatch.setattr(_Meter, "source", source)
    world.apply()
    await world.run(120, until=lambda: world.phase == "Healthy")
    world.apply("2", strategy={"canary": {"steps": [{"weight": 50, "duration": "1h"}]}})
    await world.run(600)
    return world


async def test_samples_that_come_too_late_are_not_called_a_lack_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await late_world(monkeypatch, delay=0)
    told = world.condition("MetricsAvailable")
    assert (told["status"], told["reason"]) == ("False", "SamplesLate")
    assert "raise the delay of this Prometheus server" in told["message"]
    assert "MetricsUnavailable" not in world.reasons()


async def test_with_a_delay_late_samples_count(monkeypatch: pytest.MonkeyPatch) -> None:
    judgements: list[Judgement] = []
    judging = judge.Judge.judge

    async def noted(*given: Any) -> Judgement:
        judgements.append(await judging(*given))
        return judgements[-1]

    monkeypatch.setattr(judge.Judge, "judge", noted)
    world = await late_world(monkeypatch, delay=10)
    assert judgements[-1].delay == 10, "what a raise may cost is counted with it"
    assert world.condition("MetricsAvailable")["reason"] == "MetricsAvailable"
    revision, evidence = world.status["candidate"]["revision"], world.status["evidence"]
    seen = evidence["metrics"]["errors"]["candidateRequests"]
    assert seen == world.counted(revision, 0, evidence["consumed"])[0] > 1000


async def test_a_watch_with_holdback_raises_no_such_alarm() -> None:
    world = await deployed()
    await candidate(world)
    await world.run(1800, until=lambda: world.phase == "Watching")
    await world.run(300)
    assert "alarms" not in world.status["evidence"]


# Objects that are in the way


def foreign(kind: str, name: str) -> Object:
    version = "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}}


async def test_a_service_name_that_is_taken_is_told_and_nothing_else_suffers() -> None:
    world = await deployed()
    await a_taken_name(world)
    await world.run(300)
    told = world.condition("Accepted")
    assert (told["status"], told["reason"]) == ("False", "NameTaken")
    assert world.status["accepted"]["service"].get("name") != "other"
    before = world.writes()
    await world.run(1200)
    assert world.writes() == before, "it does not go to and fro"


async def test_calls_inside_of_the_cluster_go_to_whom_is_ready() -> None:
    """S1, whatever the router: the Service for callers has no weights, and must not stay on pods that are gone."""
    world = await deployed()
    stable, second = world.status["stable"]["revision"], await candidate(world)
    await world.run(300, until=lambda: world.weights.get(second) == 10)

    def pinned() -> str:
        root = world.look(SERVICE, NAME)
        assert root is not None
        return str(root["spec"]["selector"][REVISION_LABEL])

    assert pinned() == stable
    world.nodes.unready.add(stable)
    await world.run(10)
    assert (world.weights, pinned()) == ({second: 100}, second)
    world.nodes.unready.clear()
    await world.run(10)
    assert pinned() == stable


def take_label(world: World, kind: Kind, name: str) -> None:
    obj = world.look(kind, name)
    assert obj is not None
    del obj["metadata"]["labels"][ROLLOUT_LABEL]
    world.cluster.seed(obj)


UNLABELLED: dict[str, tuple[Kind, str]] = {
    "record": (CONTROLLER_REVISION, f"{NAME}-{{}}"),
    "Deployment": (DEPLOYMENT, f"{NAME}-{{}}"),
    "Service": (SERVICE, f"{NAME}-{{}}"),
    "Service for callers": (SERVICE, NAME),
}


@pytest.mark.parametrize(("kind", "name"), UNLABELLED.values(), ids=UNLABELLED)
async def test_a_child_that_lost_our_label_gets_it_back(kind: Kind, name: str) -> None:
    world = await deployed()
    name = name.format(world.status["stable"]["revision"])
    take_label(world, kind, name)
    await world.run(10)
    obj = world.look(kind, name)
    assert obj is not None
    assert obj["metadata"]["labels"][ROLLOUT_LABEL] == NAME
    assert len(world.failures) == 1, world.failures
    assert await candidate(world)
    await world.run(60, until=lambda: world.status["weights"]["candidate"] == 10)
    assert world.status["weights"]["candidate"] == 10


async def test_a_service_that_lost_our_label_moves_no_traffic() -> None:
    """The control plane takes the label off its EndpointSlices too, so nothing is known of who is ready behind it."""
    world = await deployed()
    stable, second = world.status["stable"]["revision"], await candidate(world)
    await world.run(300, until=lambda: world.weights.get(second) == 10)
    take_label(world, SERVICE, f"{NAME}-{stable}")
    before = len(world.cluster.events)
    await world.run(60)
    assert world.weights == {stable: 90, second: 10}
    assert world.reasons()[before:] == []


async def test_a_service_that_is_gone_for_good_takes_no_traffic() -> None:
    """S1: its pods are ready, and nobody reaches them."""
    world = await deployed()
    stable, second = world.status["stable"]["revision"], await candidate(world)
    await world.run(300, until=lambda: world.weights.get(second) == 10)
    world.cluster.erase(SERVICE, NAMESPACE, f"{NAME}-{stable}")
    world.cluster.seed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"{NAME}-{stable}", "namespace": NAMESPACE},
            "spec": {"ports": [{"port": 80}]},
        }
    )
    await world.run(60)
    assert world.weights == {second: 100}


async def test_a_child_that_can_not_be_written_does_not_keep_traffic_where_it_is() -> None:
    """A rollback moves the route even if something else of the rollout can't be written."""
    world = await deployed()
    revision = await candidate(world)
    await compared(world)
    service = world.look_service()
    world.cluster.erase(*service)
    world.cluster.seed(foreign("Service", service[2]) | {"spec": {"ports": [{"port": 80}]}})
    world.errors[revision] = 0.5
    await world.run(600, until=lambda: world.weights.get(revision, 0) == 0)
    assert world.weights.get(revision, 0) == 0, world.status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable('failed calling webhook "x": connection refused', status=500), "Deployment"),
        (Unavailable("no answer within 30 s"), "ControllerRevision"),
        (Conflict("it is there already, and ours", status=409), "Service"),
    ],
    ids=["a webhook is away", "no answer", "it never is what it was"],
)
async def test_traffic_leaves_dead_pods_though_a_child_can_not_be_written_now(
    error: ClusterError, kind: str
) -> None:
    """S1: the write is tried again, and the route does not wait for that."""
    refused: list[str] = []

    async def refuse(write: Write) -> None:
        if write.kind in refused:
            raise error

    world = await deployed(hooks=Hooks(before_write=refuse))
    revision = await candidate(world)
    await compared(world)
    stable = world.status["stable"]["revision"]
    refused.append(kind)
    if kind == "Service":
        world.cluster.erase(*world.look_service())
    if kind == "ControllerRevision":
        world.cluster.erase(CONTROLLER_REVISION, NAMESPACE, f"{NAME}-{revision}")
    world.nodes.unready.add(stable)
    world.nodes.settle()
    await world.run(60)
    assert world.weights == {revision: 100}, world.status
    assert error in world.failures, "it is tried again"
    told = error.message in world.status["message"]
    assert told == isinstance(error, Unavailable), "what is away is told, what has moved on is not"
    refused.clear()
    world.nodes.unready.clear()
    world.nodes.settle()
    await world.run(1200, until=lambda: world.weights.get(stable, 0) > 0)
    assert world.weights.get(stable, 0) > 0


async def test_a_write_that_is_forbidden_is_told_in_the_message() -> None:
    refused: list[str] = []

    async def refuse(write: Write) -> None:
        if write.kind in refused:
            raise Forbidden("deployments.apps is forbidden: exceeded quota", status=403)

    world = await deployed(hooks=Hooks(before_write=refuse))
    refused.append("Deployment")
    await candidate(world)
    await world.run(60)
    assert "exceeded quota" in world.status["message"]


@pytest.mark.parametrize("before", [True, False], ids=["from the start", "in the middle of a split"])
async def test_a_users_route_that_comes_to_carry_our_label_and_name_is_still_the_users(before: bool) -> None:
    """Tools put common labels on all objects of a release."""
    label = {ROLLOUT_LABEL: NAME}
    world, traffic = World(), {"httpRoute": {"name": NAME}}
    rules = [{"backendRefs": [{"name": NAME, "port": 80, "weight": 1}]}]
    world.cluster.seed(
        {
            "apiVersion": HTTP_ROUTE.api_version,
            "kind": HTTP_ROUTE.kind,
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": label if before else {}},
            "spec": {"parentRefs": [{"name": "public"}], "rules": rules},
        }
    )
    world.apply(traffic=traffic)
    await world.run(120, until=lambda: world.phase == "Healthy")
    world.apply("2", traffic=traffic)
    await world.run(120, until=lambda: 10 in world.weights.values())
    if not before:
        route = world.look(HTTP_ROUTE, NAME)
        assert route is not None
        route["metadata"]["labels"] = label
        world.cluster.seed(route)
        await world.run(60)
    assert sorted(world.weights.values()) == [10, 90]
    assert world.condition("Accepted")["status"] == "True"


async def test_a_refusal_that_is_worded_anew_each_time_is_not_tried_again_at_once() -> None:
    refused: list[str] = []

    async def refuse(write: Write) -> None:
        if write.kind == "Deployment" and armed:
            refused.append(write.name)
            raise Forbidden(f"denied by p.example.com, request {uuid.uuid4()}", status=403)

    armed = False
    world = await deployed(hooks=Hooks(before_write=refuse))
    armed = True
    await candidate(world)
    await world.run(60)
    assert "denied by p.example.com" in world.status["message"]
    assert len(refused) < 20


@pytest.mark.parametrize("pods", [1, 2], ids=["at the start", "at a larger step"])
async def test_time_in_which_nobody_asked_for_pods_is_not_the_candidates(pods: int) -> None:
    """The process dies between the commit and its effect, and no other one comes for longer than progressDeadline."""
    died: list[str] = []

    async def die(write: Write) -> None:
        if write.kind == "Deployment" and write.body["spec"]["replicas"] == pods and armed and not died:
            died.append(write.name)
            world.now += 660
            raise Crash

    armed = False
    world = await deployed(hooks=Hooks(before_write=die))
    armed = True
    steps = {"canary": {"steps": [{"weight": 10, "duration": "2m"}, {"weight": 90, "duration": "2m"}]}}
    world.apply("2", strategy=steps)
    await world.run(1800, until=lambda: world.phase in ("RolledBack", "Watching"))
    assert died
    assert world.phase == "Watching", world.status["message"]


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("deployments.apps is forbidden: exceeded quota", status=403),
        Unavailable("failed calling webhook", status=500),
    ],
    ids=["refused", "not asked for, as a webhook is away"],
)
async def test_pods_that_can_not_be_asked_for_have_that_time_only_if_they_are_refused(
    error: ClusterError,
) -> None:
    failing: list[str] = []

    async def fail(write: Write) -> None:
        if write.kind in failing:
            raise error

    world = await deployed(hooks=Hooks(before_write=fail))
    failing.append("Deployment")
    await candidate(world)
    await world.run(1500, until=lambda: world.phase == "RolledBack")
    assert error.message in world.status["message"]
    if isinstance(error, Forbidden):
        assert world.status["rejected"]["reason"] == "ProgressDeadlineExceeded"
        return
    failing.clear()
    await world.run(1800, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status["message"]


async def test_a_route_that_may_not_be_written_is_told_in_the_message_and_in_the_way_back() -> None:
    refused: list[str] = []

    async def refuse(write: Write) -> None:
        if write.kind in refused:
            raise Forbidden("httproutes are frozen", status=403)

    world = await deployed(hooks=Hooks(before_write=refuse))
    refused.append("HTTPRoute")
    revision = await candidate(world)
    await world.run(60)
    assert "waiting for the route: httproutes are frozen" in world.status["message"]
    await world.run(3600, until=lambda: world.status["phase"] == "RolledBack")
    assert world.status["rejected"] == {"revision": revision, "reason": "RouteNotAccepted"}
    assert "httproutes are frozen" in world.status["history"][0]["message"]


async def test_a_metric_that_is_edited_out_is_shown_no_more() -> None:
    world = await deployed()
    world.apply("2", analysis={"metrics": [ERRORS, ERRORS | {"name": "again"}]})
    await compared(world)
    assert 'metric="again"' in world.exposition()
    world.apply("2", analysis={"metrics": [ERRORS]})
    await world.run(30)
    assert 'metric="again"' not in world.exposition()
    assert 'metric="errors"' in world.exposition()


# Nobody can say whether a spec is acceptable


def silence(world: World, verb: str, kind: str) -> list[float]:
    """Have the API server give no answer to a request that writes nothing; the times at which it was asked."""
    asked: list[float] = []
    real = getattr(world.cluster, verb)

    async def away(subject: Any, *given: Any, **more: Any) -> Any:
        found = subject["kind"] if verb == "apply" else subject.kind
        if found != kind or (verb == "apply" and not more.get("dry_run")):
            return await real(subject, *given, **more)
        asked.append(world.now)
        raise Unavailable(f'{verb} {kind}: failed calling webhook "x": connection refused', status=500)

    setattr(world.cluster, verb, away)
    return asked


GATED = {
    "gates": {
        "start": [
            {"name": "smoke", "job": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}
        ]
    }
}


@pytest.mark.parametrize(
    ("verb", "kind", "spec"),
    [
        ("apply", "Deployment", {}),
        ("get", "Deployment", {}),
        ("list", "Service", {}),
        ("apply", "Job", GATED),
    ],
    ids=[
        "the dry run of the template",
        "who has the name",
        "who selects its pods",
        "the dry run of a gate's Job",
    ],
)
async def test_what_is_proven_harmful_goes_back_though_a_later_spec_can_not_be_checked(
    verb: str, kind: str, spec: Object
) -> None:
    """Often it is just the one that mends it."""
    world = await deployed()
    world.rights = GateRights(jobs=True)
    world.start()
    revision = await candidate(world)
    await compared(world)
    asked = silence(world, verb, kind)
    world.errors[revision] = 0.5
    world.apply("3", **spec)
    await world.run(30)
    told = {type: world.condition(type) for type in ("Accepted", "Ready", "Reconciling")}
    assert [(c["status"], c["reason"]) for c in told.values()] == [
        ("Unknown", "NotChecked"),
        ("Unknown", "NotChecked"),
        ("True", "NotChecked"),
    ]
    assert "failed calling webhook" in world.status["message"]
    await world.run(1800, until=lambda: world.phase == "RolledBack")
    assert world.phase == "RolledBack", world.status
    assert world.status["rejected"]["revision"] == revision
    assert not world.condition("Stalled"), "it is asked again"
    assert "Invalid" not in world.reasons(), "nothing is wrong with the spec"
    await world.run(600)
    assert world.phase == "RolledBack", "nothing moves forward"
    assert min(later - earlier for earlier, later in pairwise(asked)) >= 15.0
    assert not world.failures
    delattr(world.cluster, verb)
    await world.run(60, until=lambda: "candidate" in world.status)
    assert world.status["candidate"]["revision"] != revision, "the later one is tried"
    assert world.condition("Accepted")["status"] == "True"


async def test_a_first_spec_that_can_not_be_checked_is_told_tried_again_and_not_called_invalid() -> None:
    world = World()
    asked = silence(world, "apply", "Deployment")
    world.apply()
    await world.run(60)
    assert "phase" not in world.status
    told = {type: world.condition(type) for type in ("Accepted", "Ready", "Reconciling")}
    assert [(c["status"], c["reason"]) for c in told.values()] == [
        ("Unknown", "NotChecked"),
        ("Unknown", "NotChecked"),
        ("True", "NotChecked"),
    ]
    assert world.status["message"].count("failed calling webhook") == 1
    assert world.status["observedGeneration"] == world.rollout["metadata"]["generation"]
    assert not world.failures
    assert "Invalid" not in world.reasons()
    assert min(later - earlier for earlier, later in pairwise(asked)) >= 15.0
    delattr(world.cluster, "apply")
    await world.run(120, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy"


async def test_a_bad_first_spec_whose_mend_can_not_be_checked_is_tried_again_too() -> None:
    world = World()
    world.apply(analysis={"metrics": [ERRORS], "prometheus": "other"})
    await world.run(10)
    assert (world.phase, world.condition("Stalled")["status"]) == ("Invalid", "True")
    silence(world, "apply", "Deployment")
    world.apply()
    await world.run(10)
    assert (world.condition("Accepted")["status"], world.condition("Stalled")) == ("Unknown", {})
    delattr(world.cluster, "apply")
    await world.run(120, until=lambda: world.phase == "Healthy")
    assert world.phase == "Healthy"


# What is counted


def outcomes(world: World) -> list[str]:
    """Of the attempts after the first deployment, in the words of their series; one for each time that it was counted."""
    series = [
        line for line in world.exposition().splitlines() if line.startswith("modelrollout_outcomes_total{")
    ]
    found = [line.removeprefix("modelrollout_outcomes_total{outcome=").rpartition(" ") for line in series]
    return sorted(
        labels for labels, _, count in found for _ in range(int(float(count))) if "FirstDep" not in labels
    )


async def harm_in_the_watch(world: World) -> None:
    revision = await candidate(world)
    await world.run(1800, until=lambda: world.phase == "Watching")
    world.errors[revision] = 0.5
    await world.run(1800, until=lambda: world.phase == "RolledBack")


async def a_git_revert_in_the_watch(world: World) -> None:
    await candidate(world)
    await world.run(1800, until=lambda: world.phase == "Watching")
    world.apply("1")
    await world.run(1800, until=lambda: world.phase == "Healthy")


async def a_third_revision(world: World) -> None:
    """The end of one attempt and the beginning of the next one are one commit."""
    await candidate(world)
    await compared(world)
    world.apply("3")
    await world.run(120, until=lambda: world.status["attempt"] == 3)


async def harm(world: World) -> None:
    world.errors[await candidate(world)] = 0.5
    await world.run(1800, until=lambda: world.phase == "RolledBack")


@pytest.mark.parametrize(
    ("happens", "counted"),
    [
        (harm, ['"RolledBack",reason="HarmProven",unproven="false"}']),
        (
            harm_in_the_watch,
            [
                '"Promoted",reason="ProvenHarmless",unproven="false"}',
                '"RolledBackAfterPromotion",reason="HarmProven",unproven="false"}',
            ],
        ),
        (
            a_git_revert_in_the_watch,
            [
                '"Promoted",reason="ProvenHarmless",unproven="false"}',
                '"Reverted",reason="Reverted",unproven="false"}',
            ],
        ),
        (a_third_revision, ['"Superseded",reason="Superseded",unproven="false"}']),
    ],
    ids=["harm", "harm after the promotion", "a revert after the promotion", "a third revision"],
)
async def test_each_end_of_an_attempt_is_counted_once(
    happens: Callable[[World], Any], counted: list[str]
) -> None:
    world = await deployed()
    await happens(world)
    await world.run(300)
    assert outcomes(world) == counted


# Deletion


async def test_a_rollout_that_is_gone_leaves_nothing_behind() -> None:
    world = await deployed()
    assert NAME in world.exposition()
    world.cluster.erase(MODEL_ROLLOUT, NAMESPACE, NAME)
    await world.run(10)
    assert f'name="{NAME}"' not in world.exposition()
    assert KEY not in world.reconciler._memories._all


async def test_what_a_rollout_lets_go_of_is_free_once_that_is_committed() -> None:
    """The watch's echo of our own commit is no news to the store, so whoever waits must hear of the commit itself."""
    world = await deployed()
    later = world.rollout | {
        "status": {},
        "spec": world.rollout["spec"] | {"service": {"ports": [{"port": 80}]}},
    }
    later["spec"]["service"]["name"], later["spec"]["traffic"] = NAME, {"podRatio": {}}
    names = {"name": "later", "uid": "later", "creationTimestamp": "2999-01-01T00:00:00Z"}
    world.cluster.seed(later | {"metadata": later["metadata"] | names})
    waiting, conflict = Key(NAMESPACE, "later"), world.acceptance._claims.conflict
    assert conflict(waiting) is not None
    told, replace_status = list(world.cluster._subscribers), world.cluster.replace_status

    async def answer_before_echo(obj: Object) -> Object:
        world.cluster._subscribers.clear()
        written = await replace_status(obj)
        world.cluster._subscribers.extend(told)
        asyncio.get_running_loop().call_soon(world._see, "MODIFIED", written)
        return written

    world.cluster.replace_status = answer_before_echo  # type: ignore[method-assign]
    world.apply("1", service={"name": "other", "ports": [{"port": 80}]})
    await world.run(10)
    assert conflict(waiting) is None


# Tracked configuration


SETTINGS: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "settings", "namespace": NAMESPACE},
    "data": {"threshold": "0.5"},
}


async def settled(world: World, seconds: float) -> None:
    """Let the news of the watches come, and time pass."""
    for _ in range(10):
        await asyncio.sleep(0)
    await world.run(seconds)


async def test_configuration_that_is_made_anew_costs_neither_the_rollout_nor_the_way_back() -> None:
    world = World(track_config=True)
    container = {"name": "model", "image": "m", "envFrom": [{"configMapRef": {"name": "settings"}}]}
    spec = {
        "workload": {"replicas": 2, "trackConfig": True, "template": {"spec": {"containers": [container]}}}
    }
    world.cluster.seed(SETTINGS)
    world.apply("1", **spec)
    await world.run(300, until=lambda: world.phase == "Healthy")
    world.apply("2", **spec)
    for phase in ("Progressing", "Watching"):
        await world.run(3600, until=lambda phase=phase: world.phase == phase)
        compared = [world.status.get(role) for role in ("candidate", "stable", "previous")]
        world.cluster.erase(CONFIG_MAP, NAMESPACE, "settings")
        await settled(world, 20)
        assert world.condition("Accepted")["reason"] == "ReferenceNotFound"
        assert "ConfigMap settings" in world.condition("Accepted")["message"]
        world.cluster.seed(SETTINGS)
        await settled(world, 20)
        assert world.condition("Accepted")["status"] == "True"
        assert world.phase == phase
        after = [world.status.get(role) for role in ("candidate", "stable", "previous")]
        assert [(one or {}).get("revision") for one in after] == [
            (one or {}).get("revision") for one in compared
        ]
    await world.run(3600, until=lambda: world.phase == "Healthy")
    assert [entry["outcome"] for entry in world.status["history"]][:1] == ["Promoted"]


@pytest.mark.parametrize("held", [True, False], ids=["held", "not held"])
async def test_a_deployment_is_scaled_down_only_once_the_rollout_is_held(held: bool) -> None:
    """Without the finalizer a deletion would leave it without pods."""

    async def refuse(write: Write) -> None:
        if write.kind == MODEL_ROLLOUT.kind and write.verb == "patch" and not held:
            raise Forbidden("no right to patch modelrollouts", status=403)

    world = World(hooks=Hooks(before_write=refuse))
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    legacy = {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": {"name": "legacy", "namespace": NAMESPACE},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": template},
    }
    world.cluster.seed(legacy)
    workload = {"replicas": 2, "deploymentRef": {"name": "legacy", "scaleDown": "OnceHealthy"}}
    world.apply("1", workload=workload)
    await world.run(300)
    assert world.phase == "Healthy", world.status
    found = world.look(DEPLOYMENT, "legacy")
    assert found is not None
    assert found["spec"]["replicas"] == (0 if held else 3)
    assert ("TakenOver" in world.reasons()) is held
    assert world.rollout["metadata"].get("finalizers") == (["modelrollout.dev/restore"] if held else None)


async def test_an_analysis_that_is_turned_off_in_an_outage_waits_for_no_data() -> None:
    world = await deployed()
    steps = {"canary": {"steps": [{"weight": 50, "duration": "10m"}]}}
    world.apply("2", strategy=steps)
    await world.run(300)
    world.server.away = "connection refused"
    await world.run(120)
    assert world.status["outageSince"]
    world.apply("2", strategy=steps, analysis={"mode": "Off"})
    await world.run(1200, until=lambda: world.phase == "Watching")
    assert (world.phase, world.status.get("outageSince")) == ("Watching", None)


async def sleep(world: World, seconds: float) -> None:
    """Time without an operator; requests and scrapes go on."""
    until = world.now + seconds
    while world.now < until:
        world._serve(world.now + 1)
        world.now += 1
    world.start()


async def test_after_a_long_absence_nothing_goes_on_before_the_newest_samples_are_read() -> None:
    world = await deployed()
    world.rate = 40
    world.apply("2", strategy={"canary": {"steps": [{"weight": 50, "duration": "2h"}]}})
    await world.run(700)
    candidate = world.status["candidate"]["revision"]
    await sleep(world, 2 * 3600)
    world.errors[candidate] = 0.3
    await sleep(world, 2 * 3600)
    phases: list[str] = []
    world.cluster.subscribe(
        lambda _, obj: phases.append(obj["status"]["phase"]) if obj["kind"] == "ModelRollout" else None
    )
    await world.run(120)
    assert "Promoting" not in phases
    assert world.status["rejected"]["reason"] == "HarmProven"


async def test_a_guardrail_alone_needs_no_scrapes_of_the_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await deployed()
    monkeypatch.setattr(
        World, "_add", lambda world, name, revision: world.meters.update({name: _Meter(revision, 0)})
    )
    world.prometheus.can("dcgm", 0.5)
    guardrail = {"name": "gpu", "guardrail": {"query": "max(dcgm)", "max": "1"}}
    steps = {"canary": {"steps": [{"weight": 50, "duration": "1m"}]}}
    world.apply("2", strategy=steps, analysis={"metrics": [guardrail]})
    await world.run(1200, until=lambda: world.phase == "Watching")
    assert world.phase == "Watching", world.status["message"]
