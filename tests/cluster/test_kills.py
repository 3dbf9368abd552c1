"""The operator is killed at each write that it makes, one run per write, and each run ends in the state of one that was not.
Others, meanwhile, are cut off from the API server (`partitions.py`): the one takes as long as the other.

SIGKILL, before the write is sent or after the server has taken it. A write that says nothing new (evidence that grew, another
message) is made as often as the machine's speed has it; of those that say the same one is killed at. What a run is made of is a plot: what is there before,
what the user does, and how that ends. `test_crashes.py` kills one operator of several rollouts again and again instead.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from lab.kube import KubeError, Object, path_of
from lab.process import LabError, wait_until
from tests.cluster.farm import Farm
from tests.cluster.harness import GATEWAY, ROUTES, Rollout, SideBySide, Story, World, title
from tests.cluster.partitions import STORIES

AT_ONCE = 16
TRIES = 3
NEVER, SIDES = "never", ("before", "after")
LONG = {"canary": {"steps": [{"weight": 50, "duration": "10m"}]}}
QUICK: Object = {
    "strategy": {"canary": {"steps": [{"weight": 20, "duration": "1s"}, {"weight": 60, "duration": "1s"}]}},
    "watch": {"duration": "1s", "holdback": 10},
}
ROUTE = {
    "parentRefs": GATEWAY["gatewayAPI"]["parentRefs"],
    "rules": [{"backendRefs": [{"name": "fraud", "port": 80}]}],
}
BORROWED: Object = {
    "traffic": {"httpRoute": {"name": "fraud"}},
    "analysis": {"mode": "Off"},
    "strategy": LONG,
}


@dataclass(frozen=True)
class Plot:
    """`prepare` is done before the operator's writes count; `play` is what it may be killed in, and waits for its end."""

    prepare: Callable[[Rollout], object]
    play: Callable[[Rollout], object]
    least: int  # different writes; if there are fewer, the plot does not play what it is to play
    judged: bool = False
    both: bool = False  # sides of each write; else one or the other in turn


def nothing(_: Rollout) -> None:
    """There is only the namespace."""


def at_rest(rollout: Rollout, phase: str, attempt: int) -> None:
    def rests(obj: Object) -> bool:
        status = obj["status"]
        return (status.get("phase"), status.get("attempt")) == (phase, attempt) and not status["retiring"]

    rollout.wait(rests, f"{phase} after attempt {attempt}")


def first(rollout: Rollout) -> None:
    rollout.apply("1", **QUICK)
    at_rest(rollout, "Healthy", 1)


def promoted(rollout: Rollout) -> None:
    rollout.apply("2", **QUICK)
    at_rest(rollout, "Healthy", 2)


def compared(rollout: Rollout) -> None:
    rollout.deploy("1", strategy=LONG)
    rollout.apply("2", strategy=LONG)
    rollout.wait(
        lambda obj: any(m["candidateRequests"] for m in obj["status"].get("metrics") or ()), "evidence"
    )


def rolled_back(rollout: Rollout) -> None:
    revision = rollout.status()["candidate"]["revision"]
    rollout.world.traffic.spoil(rollout.namespace, revision, 0.3)
    at_rest(rollout, "RolledBack", 2)


def borrowed(rollout: Rollout) -> None:
    metadata = {"name": "fraud", "namespace": rollout.namespace}
    route = {"apiVersion": ROUTES[0], "kind": "HTTPRoute", "metadata": metadata, "spec": ROUTE}
    rollout.client.apply(route, field_manager="helm")
    rollout.deploy("1", **BORROWED)
    rollout.apply("2", **BORROWED)
    rollout.wait_step("1/1")


def aborted(rollout: Rollout) -> None:
    rollout.ask("abort", rollout.status()["candidate"]["revision"])
    at_rest(rollout, "RolledBack", 2)


def deleted(rollout: Rollout) -> None:
    rollout.client.delete(rollout.path)
    rollout.world.rollouts.wait_gone(rollout.namespace, rollout.name)
    for name in rollout.world.deployments.names(rollout.namespace):
        rollout.world.deployments.wait_gone(rollout.namespace, name)


PLOTS = {
    "a first deployment": Plot(nothing, first, 9),
    "a release that is promoted": Plot(
        lambda rollout: rollout.deploy("1", **QUICK), promoted, 28, judged=True
    ),
    "a release that is rolled back": Plot(compared, rolled_back, 8, judged=True),
    "the way back in a borrowed route": Plot(borrowed, aborted, 8),
    "a deletion that restores a borrowed route": Plot(borrowed, deleted, 3, both=True),
}


def state(rollout: Rollout) -> Object:
    """All that is left of a run, but times, counts and comments."""
    client, namespace = rollout.client, rollout.namespace
    found = client.find(rollout.path) or {}
    status = found.get("status") or {}
    kept = ("phase", "attempt", "weights", "rejected", "unproven", "candidate", "previous", "retiring")
    told = ("outcome", "reason", "model", "unproven")

    def items(version: str, plural: str) -> list[Object]:
        return client.list(path_of(version, plural, namespace), labelSelector="modelrollout.dev/rollout")

    route = client.find(path_of(*ROUTES, namespace, "fraud")) or {}
    return {
        **{key: status.get(key) for key in kept},
        "stable": (status.get("stable") or {}).get("revision"),
        "history": [{key: entry.get(key) for key in told} for entry in status.get("history") or []],
        "conditions": sorted((c["type"], c["status"], c["reason"]) for c in status.get("conditions") or []),
        "finalizers": (found.get("metadata") or {}).get("finalizers"),
        # Each namespace has a host name of its own.
        "route": json.dumps(route.get("spec"), sort_keys=True).replace(namespace, "here"),
        "writers": sorted({m["manager"] for m in (route.get("metadata") or {}).get("managedFields", ())}),
        "deployments": {
            d["metadata"]["name"]: (d["spec"]["replicas"], d["status"].get("readyReplicas"))
            for d in items("apps/v1", "deployments")
        },
        "services": {s["metadata"]["name"]: s["spec"]["selector"] for s in items("v1", "services")},
        "records": sorted(r["metadata"]["name"] for r in items("apps/v1", "controllerrevisions")),
        "pods": sorted(p["metadata"]["labels"]["modelrollout.dev/revision"] for p in items("v1", "pods")),
    }


@dataclass
class Run:
    """One run of a plot, as it went."""

    kill: str
    end: Object = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    killed: str = ""
    problem: str = ""


def play(world: World, farm: Farm, plot: Plot, kill: str = NEVER, wanted: Object | None = None) -> Run:
    """One run, until it stands as wanted; the one that others are compared with, until it stands still."""
    run, rollout = Run(kill), world.rollout()
    try:
        farm.start(rollout.namespace, kill, armed=plot.prepare is nothing)
        plot.prepare(rollout)
        if plot.prepare is not nothing:
            farm.arm(rollout.namespace)
        plot.play(rollout)
        settle(run, rollout, wanted)
        if plot.judged and not run.problem:
            rollout.check_ledger()
    except (AssertionError, LabError, KubeError) as error:
        run.problem = f"{type(error).__name__}: {error}"
    finally:
        run.writes, run.killed = farm.writes(rollout.namespace), farm.killed(rollout.namespace)
        farm.stop(rollout.namespace)
        rollout.client.delete(rollout.path, missing_ok=True)
        world.traffic.forget(rollout.namespace)
    return run


def settle(run: Run, rollout: Rollout, wanted: Object | None) -> None:
    def stands() -> bool:
        before, run.end = run.end, state(rollout)
        return run.end == (before if wanted is None else wanted)

    try:
        wait_until(stands, timeout=40, what="the same end", interval=1.0 if wanted else 3.0)
    except LabError:
        differ = [key for key in run.end if wanted is None or run.end[key] != wanted[key]]
        run.problem = "; ".join(f"{key} is {run.end[key]}, not {(wanted or {}).get(key)}" for key in differ)


class Kills:
    """All runs, side by side; a plot's test waits for those of its plot."""

    def __init__(self, world: World, farm: Farm, plots: list[Plot]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._play = functools.partial(play, world, farm)
        self._whole = {id(plot): self._pool.submit(self._play, plot) for plot in plots}
        self._runs: dict[int, list[Future[Run]]] = {}
        for plot in plots:
            whole = self.whole(plot)
            writes = list(dict.fromkeys(whole.writes))
            if plot.both:
                kills = [f"{side}:{write}" for write in writes for side in SIDES]
            else:
                kills = [f"{SIDES[at % 2]}:{write}" for at, write in enumerate(writes)]
            self._runs[id(plot)] = [self._pool.submit(self._killed, plot, kill, whole.end) for kill in kills]

    def whole(self, plot: Plot) -> Run:
        return self._whole[id(plot)].result()

    def runs(self, plot: Plot) -> list[Run]:
        return [run.result() for run in self._runs[id(plot)]]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _killed(self, plot: Plot, kill: str, end: Object) -> Run:
        """Two decisions may fall into one round, and then into one write: a run in which the write does not occur is played
        again."""
        for _ in range(TRIES):
            run = self._play(plot, kill, end)
            if run.killed or run.problem:
                break
        return run


@pytest.fixture(scope="module")
def operator(world: World) -> Iterator[None]:
    """Each run and each story has its own."""
    world.clear()
    yield
    world.clear()


@pytest.fixture(scope="module")
def kills(request: pytest.FixtureRequest, world: World, side_by_side: SideBySide) -> Iterator[Kills]:
    """Of the plots that were chosen for this run; the stories that were chosen have begun before."""
    chosen = [
        item.callspec.params["plot"]
        for item in request.session.items
        if item.module is request.module and "plot" in item.callspec.params  # type: ignore[attr-defined]
    ]
    with Farm(world) as farm:
        running = Kills(world, farm, chosen)
        yield running
        running.close()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_killed_at_each_write_it_ends_the_same(kills: Kills, plot: Plot) -> None:
    whole, runs = kills.whole(plot), kills.runs(plot)
    assert not whole.problem, whole.problem
    assert len(set(whole.writes)) >= plot.least, whole.writes
    assert [
        f"killed {run.killed or 'never'} (wanted {run.kill}): {run.problem}" for run in runs if run.problem
    ] == []
    missed = [run.kill for run in runs if not run.killed]
    assert not missed


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
