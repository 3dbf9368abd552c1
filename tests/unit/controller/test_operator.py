"""The process around the loop: what it reads at its start, what it does about what it can't read, and when it must not write."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelrollout.cli import main
from modelrollout.cluster.errors import ClusterError, Forbidden, KindNotServed, Unavailable
from modelrollout.cluster.kinds import HTTP_ROUTE, LEASE, MODEL_ROLLOUT, POD
from modelrollout.cluster.lease import LeaderElection
from modelrollout.cluster.port import Hooks, Request, Write
from modelrollout.cluster.store import Key
from modelrollout.controller import operator
from modelrollout.controller.acceptance import Acceptance
from modelrollout.controller.gates import GateRights
from modelrollout.controller.handlers import make_registry
from modelrollout.controller.handlers import watched as kinds_of
from modelrollout.controller.metrics import Metrics
from modelrollout.controller.operator import _Parts
from modelrollout.controller.settings import Settings, read_config
from modelrollout.decision.types import Timing
from modelrollout.telemetry.servers import ServerSettings
from tests.fakes.cluster import FakeCluster
from tests.unit.controller.world import NAME, NAMESPACE, manifest

KEY = Key(NAMESPACE, NAME)


class Cluster(FakeCluster):
    """One whose listings can fail, and are counted."""

    def __init__(self, *, refuse: dict[str, ClusterError] | None = None, **given: object) -> None:
        super().__init__(**given)  # type: ignore[arg-type]
        self.refuse = refuse or {}
        self.listed: list[str] = []

    async def list(self, kind, namespace, label_selector=None):  # type: ignore[no-untyped-def]
        self.listed.append(kind.kind)
        if kind.kind in self.refuse:
            raise self.refuse[kind.kind]
        return await super().list(kind, namespace, label_selector)


def make_parts(cluster: FakeCluster, **settings: object) -> tuple[_Parts, Acceptance]:
    parts = _Parts(replace(Settings(), **settings), cluster, Metrics(version="test"))  # type: ignore[arg-type]
    acceptance = Acceptance(
        cluster,
        parts.store,
        servers=set(),
        query_problem=lambda rollout, spec: None,
        gates=GateRights(),
        now=lambda: 0.0,
        wake=lambda keys: operator._wake(parts, keys),
    )
    return parts, acceptance


# What vanished while a watch was down


async def test_a_rollout_that_was_deleted_while_the_watch_was_down_is_worked_on_once_more() -> None:
    cluster = FakeCluster()
    parts, acceptance = make_parts(cluster)
    cluster.seed(manifest())
    await operator._read_all(parts, acceptance)
    assert await parts.queue.get() == KEY
    parts.queue.done(KEY)
    cluster.erase(MODEL_ROLLOUT, NAMESPACE, NAME)
    await operator._read(parts, acceptance, MODEL_ROLLOUT)
    assert parts.store.get(MODEL_ROLLOUT, *KEY) is None
    assert await parts.queue.get() == KEY, "the round that finds nothing evicts memory and series"


@pytest.mark.parametrize(
    ("told", "owed"),
    [
        pytest.param(True, False, id="nothing is owed when the watch told of it"),
        pytest.param(False, True, id="a change that only the listing shows is owed by the watch"),
    ],
)
async def test_a_watch_is_dead_when_a_listing_knows_more(told: bool, owed: bool) -> None:
    cluster = FakeCluster()
    parts, acceptance = make_parts(cluster)
    cluster.seed(manifest())
    await operator._read_all(parts, acceptance)
    await operator._read(parts, acceptance, MODEL_ROLLOUT)
    assert parts.unseen is None, "an idle cluster owes nothing"
    changed = cluster.seed(manifest("2"))
    if told:
        parts.store.put(changed)
    await operator._read(parts, acceptance, MODEL_ROLLOUT)
    assert (parts.unseen is not None) is owed


@pytest.mark.looptime
async def test_a_resync_that_fails_slows_down_and_reads_only_what_it_misses() -> None:
    cluster = Cluster()
    parts, acceptance = make_parts(cluster, resync=30.0)
    task = asyncio.create_task(operator._resync(parts, acceptance))
    await asyncio.sleep(1)
    cluster.refuse["Pod"] = Forbidden("pods is forbidden", status=403)
    cluster.listed.clear()
    await asyncio.sleep(25)
    assert cluster.listed == [], "nothing is read while nothing is due"
    await asyncio.sleep(20)
    cluster.listed.clear()
    await asyncio.sleep(600)
    parts.stop.set()
    await task
    assert cluster.listed.count("Pod") <= 40
    assert cluster.listed.count("ModelRollout") <= 25


# An API server that was away


@pytest.mark.parametrize(
    ("silence", "status", "old"),
    [
        pytest.param(60.0, 200, True, id="after a long silence"),
        pytest.param(60.0, 409, True, id="a refusal is an answer"),
        pytest.param(60.0, 0, True, id="while there is no answer"),
        pytest.param(5.0, 200, False, id="not after a short silence"),
        pytest.param(5.0, 0, False, id="not yet"),
        pytest.param(None, 200, False, id="not without a silence"),
    ],
)
async def test_nothing_but_the_lease_is_written_by_what_is_old(
    silence: float | None, status: int, old: bool
) -> None:
    parts, _ = make_parts(FakeCluster())
    parts.silent = None if silence is None else time.monotonic() - silence
    hooks = operator._guarded(Hooks(), lambda: parts)
    hooks.answered(Request("list", "ModelRollout", status, 0.1))
    assert (parts.silent is None) is (status != 0)
    if old:
        with pytest.raises(Unavailable, match="the cluster is read anew first"):
            await hooks.before_write(Write("replace-status", "ModelRollout", NAMESPACE, NAME, 1))
    else:
        await hooks.before_write(Write("replace-status", "ModelRollout", NAMESPACE, NAME, 1))
    await hooks.before_write(Write("replace", LEASE.kind, NAMESPACE, NAME, 2))


@pytest.mark.looptime
async def test_after_a_silence_all_is_read_before_anything_is_decided_and_then_nobody_waits() -> None:
    cluster = Cluster()
    parts, acceptance = make_parts(cluster)
    task = asyncio.create_task(operator._resync(parts, acceptance))
    await asyncio.sleep(1)
    cluster.refuse = {
        kind.kind: Unavailable(f"list {kind.kind}: refused") for kind in kinds_of(parts.settings)
    }
    parts.silent = time.monotonic() - 60.0
    parts.queue.add_failed(KEY, at_least=3000.0)
    cluster.listed.clear()
    await asyncio.sleep(300)
    assert 25 <= len(cluster.listed) <= 60, (
        "it is looked for now and then, however long all rollouts back off"
    )
    assert set(cluster.listed) == {"ModelRollout"}, "one request is enough for that"
    del cluster.refuse["ModelRollout"]
    operator._note_silence(parts, Request("list", "ModelRollout", 200, 0.1))
    await asyncio.sleep(operator.SILENCE_CHECK + 1)
    assert parts.outdated, "pods could not be read yet"
    assert len(parts.queue) == 0
    cluster.refuse.clear()
    cluster.listed.clear()
    await asyncio.sleep(operator.SILENCE_CHECK + 1)
    assert not parts.outdated
    assert await parts.queue.get() == KEY
    assert {kind.kind for kind in kinds_of(parts.settings)} == set(cluster.listed)
    cluster.listed.clear()
    await asyncio.sleep(100)
    assert cluster.listed == []
    parts.stop.set()
    await task


# The start


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(
            KindNotServed("list ModelRollout: 404"),
            r"install the CustomResourceDefinition",
            id="without the CRD",
        ),
        pytest.param(
            Forbidden("list ModelRollout: forbidden"), r"rights of the chart's role", id="without rights"
        ),
        pytest.param(
            Unavailable("list ModelRollout: refused"), r"is the address right", id="without a server"
        ),
    ],
)
@pytest.mark.looptime
async def test_an_operator_that_can_not_read_says_why_and_goes_on_trying(
    error: ClusterError, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(refuse={"ModelRollout": error})
    parts, acceptance = make_parts(cluster)
    task = asyncio.create_task(operator._read_all(parts, acceptance))
    await asyncio.sleep(120)
    assert re.search(told, operator._unready(parts, age=120.0) or "")
    assert len([record for record in caplog.records if re.search(told, record.message)]) == 1, "told once"
    assert len(cluster.listed) < 30
    cluster.refuse.clear()
    await task
    assert operator._unready(parts, age=120.0) is None


async def test_a_kind_that_is_installed_later_makes_the_process_start_anew_with_a_watch() -> None:
    cluster = FakeCluster(absent=frozenset({"HTTPRoute"}))
    parts, acceptance = make_parts(cluster)
    await operator._read_all(parts, acceptance)
    assert parts.unserved == {"HTTPRoute"}
    registry = make_registry(lambda *seen: None, kinds_of(parts.settings), without=parts.unserved)
    watched = {str(handler.id) for handler in registry._watching._handlers}
    assert "see-httproutes" not in watched, "Kopf would warn of what it can't find"
    assert {"see-modelrollouts", "see-grpcroutes"} <= watched
    operator._note_served(parts, Request("list", POD.kind, 200, 0.0))
    operator._note_served(parts, Request("get", HTTP_ROUTE.kind, 404, 0.0))
    assert not parts.stop.is_set()
    operator._note_served(parts, Request("apply", HTTP_ROUTE.kind, 201, 0.0))
    assert parts.stop.is_set()


# The Lease


@pytest.mark.looptime
async def test_a_round_that_outlives_the_lease_writes_nothing() -> None:
    leases = FakeCluster()
    box: list[_Parts] = []
    cluster = FakeCluster(hooks=operator._guarded(Hooks(), lambda: box[0]))
    parts, _ = make_parts(cluster)
    box.append(parts)
    election = LeaderElection(leases, namespace="default", name="lease", identity="us")
    parts.election = election
    with pytest.raises(Unavailable, match="does not lead"):
        await cluster.apply(manifest())
    stop = asyncio.Event()
    task = asyncio.create_task(election.run(stop=stop, on_started=lambda: None, on_lost=lambda: None))
    await asyncio.sleep(1)
    await cluster.apply(manifest())
    stop.set()
    await task
    with pytest.raises(Unavailable, match="does not lead"):
        await cluster.apply(manifest("2"))
    await parts.cluster.event(manifest(), type="Normal", reason="Promoted", note="never told")
    assert cluster.events == []


async def test_the_lease_itself_is_written_before_one_leads() -> None:
    parts, _ = make_parts(FakeCluster())
    parts.election = LeaderElection(parts.cluster, namespace="default", name="lease", identity="us")
    hooks = operator._guarded(Hooks(), lambda: parts)
    await hooks.before_write(Write("create", LEASE.kind, "default", "lease", 1))
    with pytest.raises(Unavailable):
        await hooks.before_write(Write("apply", POD.kind, "default", "other", 1))


@pytest.mark.parametrize(
    ("age", "ready"),
    [
        pytest.param(5.0, True, id="at first it may still get it"),
        pytest.param(60.0, False, id="a minute later something is wrong"),
    ],
)
async def test_a_standby_of_nobody_is_not_ready(age: float, ready: bool) -> None:
    parts, _ = make_parts(FakeCluster())
    parts.election = LeaderElection(parts.cluster, namespace="default", name="lease", identity="us")
    assert (operator._unready(parts, age) is None) is ready


# Two that want one object


async def test_whoever_waits_for_a_name_is_woken_when_the_other_one_lets_go_of_it() -> None:
    """By an edit; the acceptance of that is told by `Acceptance.rollout_changed`, its echo in the watch is no news."""
    parts, acceptance = make_parts(FakeCluster())

    def see(name: str, version: int, **spec: object) -> None:
        obj = manifest("1", service={"name": "shared", "ports": [{"port": 80}]}, **spec)
        obj["metadata"] |= {"name": name, "uid": name, "resourceVersion": str(version)}
        operator._take(parts, acceptance, MODEL_ROLLOUT, obj, gone=False)

    async def woken() -> set[str]:
        found = set()
        while len(parts.queue):
            key = await parts.queue.get()
            parts.queue.done(key)
            found.add(key.name)
        return found

    see("a", 1)
    see("b", 2)
    assert await woken() == {"a", "b"}
    see("b", 3, paused=True)
    assert await woken() == {"b"}, "another edit concerns nobody else"
    see("b", 3, paused=True)
    assert await woken() == set()
    gone = parts.store.get(MODEL_ROLLOUT, NAMESPACE, "a")
    assert gone is not None
    operator._take(parts, acceptance, MODEL_ROLLOUT, gone, gone=True)
    assert await woken() == {"a", "b"}


# Options


OPTIONS = {
    "nothing": ([], {"listen_port": 8080}),
    "namespaces": (["--namespace=a", "--namespace=b"], {"namespaces": ("a", "b")}),
    "a server": (["--prometheus=a=http://a"], {"servers": {"a": ServerSettings("a", "http://a")}}),
    "a server in place of the file's": (
        ["--config={file}", "--prometheus=default=http://a"],
        {"servers": {"default": ServerSettings("default", "http://a")}, "timing": Timing(raise_after=5.0)},
    ),
    "where the cluster is": (["--kubeconfig=a"], {"kubeconfig": Path("a")}),
    "a place to listen": (["--listen=:0"], {"listen_host": "", "listen_port": 0}),
    "a Lease": (
        ["--leader-elect", "--lease-namespace=a", "--lease-name=b"],
        {"leader_elect": True, "lease_namespace": "a", "lease_name": "b"},
    ),
    "workers": (["--workers=3"], {"workers": 3}),
    "tracked configuration": (["--track-config"], {"track_config": True}),
    "gates": (
        ["--gate-webhook=https://a/b", "--gate-webhook=*", "--gate-secrets", "--gate-jobs"],
        {"gate_webhooks": ("https://a/b", "*"), "gate_secrets": True, "gate_jobs": True},
    ),
}


@pytest.mark.parametrize(("options", "wanted"), OPTIONS.values(), ids=OPTIONS)
def test_each_option_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], wanted: dict[str, object]
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_text("servers: [{name: default, url: http://b}]\ntiming: {raiseAfter: 5s}")
    seen = []

    async def run(settings: Settings, **_: object) -> int:
        seen.append(settings)
        return 3

    monkeypatch.setattr(operator, "run", run)
    answer = CliRunner().invoke(main, ["run", *(option.format(file=file) for option in options)])
    assert (answer.exit_code, answer.output) == (3, "")
    assert seen == [replace(Settings(), **{"listen_port": 8080, **wanted})]  # type: ignore[arg-type]


# Servers


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"\xff\xfe", "servers.yaml is not UTF-8 text", id="no text"),
        pytest.param(b"[", "servers.yaml is not YAML", id="no YAML"),
        pytest.param(b"- a", "a mapping with servers and timing", id="a list"),
        pytest.param(b"server: []", "'server' is no setting", id="a misspelt key"),
        pytest.param(b"timing: {raiseAfter: soon}", "timing.raiseAfter is 'soon'", id="no duration"),
    ],
)
def test_a_bad_configuration_is_one_sentence_that_names_the_file(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "servers.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says) as refused:
        read_config(file)
    assert "servers.yaml" in str(refused.value)


async def test_a_prometheus_that_hangs_keeps_nobody_waiting_who_asks_another() -> None:
    servers = {name: ServerSettings(name, f"http://{name}") for name in ("hanging", "well")}
    parts, _ = make_parts(FakeCluster(), servers=servers)
    async with AsyncExitStack() as stack:
        made = operator._servers(parts, stack)
        assert made["hanging"]._pool is not made["well"]._pool
