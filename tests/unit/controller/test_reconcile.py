"""Whole releases through the loop, in a world in memory, and what goes wrong around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.types import parse_time
from modelrollout.cluster.errors import Conflict, Forbidden, Unavailable
from modelrollout.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    MODEL_ROLLOUT,
    REVISION_LABEL,
    SERVICE,
    Object,
)
from modelrollout.cluster.port import Hooks, Write
from modelrollout.cluster.store import Key
from modelrollout.controller.memory import UnreadableStatus
from modelrollout.telemetry.servers import ServerSettings
from tests.unit.controller.world import ERRORS, KEY, NAME, NAMESPACE, World, _Meter, deployed, manifest

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
    for _ in range(3):
        world.reconciler._memories._all[KEY].note_revert("kubectl-edit", world.now)
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
    world = await late_world(monkeypatch, delay=10)
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
