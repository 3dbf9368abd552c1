"""An operator that can't reach the API server for minutes, in the middle of releases, while everybody else can.

Each story has an operator of its own, on a wire of its own, so that all others go on; `test_kills.py` tells them, as its runs
take as long.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from urllib.error import HTTPError
from urllib.request import urlopen

from lab.kube import Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    PLURAL,
    ROLLOUT_LABEL,
    TIMING,
    VERSION,
    Audit,
    Rollout,
    Stories,
    Story,
    World,
    seconds,
    weights_of,
)
from tests.cluster.line import Cut, Line

OUTAGE = 122.0  # seconds: longer than a Lease, a time limit of the client, or the silence that ends a watch
MOST_REQUESTS = 60  # of the operator, for each release, from the return to its end
NOT_READY = "[-] api-server: the API server does not answer"
STORIES = Stories()
GO_ON = ("steady", "over", "watched")  # of the releases; the others end in the first round that sees anything


def steps(duration: str) -> Object:
    return {"canary": {"steps": [{"weight": 20, "duration": duration}, {"weight": 50, "duration": "1s"}]}}


QUICK = {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}}
SHORT, LONG = steps("90s"), steps("160s")  # the one ends meanwhile, the other after


@dataclass
class Cast:
    """Releases in one namespace, each at its own point when the wire is cut."""

    steady: Rollout  # in a step that is longer than the outage
    over: Rollout  # in a step that ends meanwhile
    harmed: Rollout  # likewise; its candidate begins to fail meanwhile
    stopped: Rollout  # likewise; its user aborts it meanwhile
    broken: Rollout  # likewise, and nothing is compared; its candidate's pods are not ready any more
    watched: Rollout  # in a watch that is longer than the outage

    @property
    def all(self) -> list[Rollout]:
        return [getattr(self, one.name) for one in fields(self)]


def assemble(world: World, namespace: str) -> Cast:
    cast = Cast(*(world.rollout(namespace, one.name) for one in fields(Cast)))
    for rollout in cast.all:
        rollout.apply("1")
    for rollout in cast.all:
        rollout.wait_phase("Healthy")
    cast.watched.apply("2", strategy=QUICK, watch={"duration": "160s", "holdback": 10})
    cast.watched.wait_phase("Watching")
    cast.steady.apply("2", strategy=LONG)
    cast.broken.apply("2", strategy=SHORT, analysis={"mode": "Off"})
    for rollout in (cast.over, cast.harmed, cast.stopped):
        rollout.apply("2", strategy=SHORT)
    for rollout in (cast.over, cast.harmed, cast.stopped, cast.broken, cast.steady):
        rollout.wait_step("1/2")
    return cast


@dataclass
class Running:
    """An operator, and the codes with which its processes ended."""

    operator: Operator
    codes: list[int | None] = field(default_factory=list)

    def page(self, name: str) -> tuple[int, str]:
        """Status and words of a page of the operator's."""
        try:
            with urlopen(f"http://127.0.0.1:{self.operator.port}/{name}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as refused:
            return refused.code, refused.read().decode()


@contextmanager
def on_a_wire(world: World, namespace: str, line: Line, *, elect: bool) -> Iterator[Running]:
    """As with a kubelet, a process that has ended is followed by another one."""
    operator = Operator(
        world.lab,
        values=world.values | {"watchNamespaces": [namespace], "timing": TIMING | {"evidenceCommit": "5s"}},
        name=f"{namespace}-operator",
        namespace=f"{namespace}-system",
        module="modelrollout" if elect else "tests.cluster.unlucky",
        environment={} if elect else {"LUCK": "1:0"},  # no bad luck at all, and no Lease
        server=line.url,
    ).start()
    running, over = Running(operator), threading.Event()

    def keep() -> None:
        process = operator.process
        while process is not None and not over.wait(0.2):
            if not process.running:
                running.codes.append(process.returncode)
                process.start()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield running
    finally:
        over.set()
        keeper.join()
        for rollout in world.lab.client.list(path_of(VERSION, PLURAL, namespace)):
            world.lab.client.delete(path_of(VERSION, PLURAL, namespace, rollout["metadata"]["name"]))
        operator.__exit__()


def lease(world: World, namespace: str) -> Object:
    found = world.lab.client.list(path_of("coordination.k8s.io/v1", "leases", f"{namespace}-system"))
    spec: Object = found[0]["spec"] if found else {}
    return spec


def cut_off(how: Cut, *, elect: bool) -> Story:
    def run(world: World) -> None:
        namespace = world.namespace()
        with Line(world.lab.client.server) as line, on_a_wire(world, namespace, line, elect=elect) as running:
            cast = assemble(world, namespace)
            held, sent = lease(world, namespace), Audit(world.lab.audit_log)
            line.cut(how)
            stay_away(world, cast)
            assert running.codes == ([1] if elect else []), "it ends with its Lease, and once only"
            assert running.page("healthz")[0] == 200, "that is no reason to end it"
            code, said = running.page("readyz")
            assert code == 503 and NOT_READY in said, said
            user = f"system:serviceaccount:{namespace}-system:"
            before = len(sent.requests(user))
            line.mend()
            check_ends(cast)
            for rollout in cast.all:
                check_once(world, rollout)
            assert len(sent.requests(user)) - before <= MOST_REQUESTS * len(cast.all)
            if elect:
                check_lease(held, lease(world, namespace))
            log = running.operator.log.read_text()
            assert "Traceback" not in log
            wrong = [line for line in log.splitlines() if " ERROR modelrollout" in line]
            assert all(" lost to " in line for line in wrong), wrong

    whose = "with its Lease" if elect else "without a Lease"
    run.__name__ = f"an operator {whose} goes on after minutes on a wire that {how}".replace(" ", "_")
    return run


def stay_away(world: World, cast: Cast) -> None:
    """The world goes on, and nothing is decided."""
    until = time.monotonic() + OUTAGE
    world.traffic.spoil(cast.harmed.namespace, cast.harmed.status()["candidate"]["revision"], 0.3)
    cast.stopped.ask("abort", cast.stopped.status()["candidate"]["revision"])
    cast.broken.set_ready(cast.broken.status()["candidate"]["revision"], False)
    # What was under way when the line was cut has arrived by now.
    before = {rollout.name: (rollout.status(), rollout.route()) for rollout in cast.all}
    wait_until(lambda: time.monotonic() >= until, timeout=OUTAGE + 30, what="the end", interval=0.5)
    for rollout in cast.all:
        status, route = before[rollout.name]
        assert rollout.status() == status
        assert rollout.route()["spec"] == route["spec"]


def check_ends(cast: Cast) -> None:
    """Each comes to the end that it deserves by what is true now, at the time that stood in its status."""
    back = cast.harmed.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "HarmProven"
    back = cast.stopped.wait_phase("RolledBack")["status"]
    assert back["history"][0]["reason"] == "Aborted"
    cast.broken.wait(
        lambda obj: obj["status"]["weights"]["candidate"] == 0, "no weight for pods that are not ready"
    )
    cast.broken.ask("abort", cast.broken.status()["candidate"]["revision"])
    cast.broken.wait_phase("RolledBack")
    for rollout in (cast.harmed, cast.stopped, cast.broken):
        revision = rollout.status()["rejected"]["revision"]
        routes = rollout.world.routes.versions(rollout.namespace, rollout.name)
        shares = {weights_of(route).get(rollout.child(revision), 0) for route in routes}
        assert max(shares) == 20, f"{rollout.name}: {shares}"
    for rollout in (cast.over, cast.steady, cast.watched):
        done = rollout.wait_phase("Healthy")["status"]
        assert done["history"][0]["outcome"] == "Promoted"
        assert not {"RollingBack", "RolledBack"} & set(rollout.phases())
    for rollout in (cast.over, cast.steady):
        check_clock(rollout, [s for s in rollout.history() if display(s) == "1/2"], "step")
    watching = [s for s in cast.watched.history() if s.get("phase") == "Watching"]
    check_clock(cast.watched, [s for s in watching if not s["watch"]["ending"]], "watch")


def display(status: Object) -> str:
    return str((status.get("step") or {}).get("display"))


def check_clock(rollout: Rollout, during: list[Object], of: str) -> None:
    """Once it ran it was neither set anew nor held, and what came after it came when it was over."""
    running = list(itertools.dropwhile(lambda status: not status[of].get("endsAt"), during))
    assert {status[of].get("endsAt") for status in running} == {running[0][of]["endsAt"]}
    after = next(s for s in rollout.history() if s["version"] > running[-1]["version"])
    assert after["seen"] >= seconds(running[0], of, "endsAt")


def check_once(world: World, rollout: Rollout) -> None:
    """Each sample counted once, and each object made once."""
    if rollout.name in GO_ON:
        rollout.check_ledger()
    assert len(rollout.status()["history"]) == rollout.status()["attempt"] == 2
    namespace, ours = rollout.namespace, f"{ROLLOUT_LABEL}={rollout.name}"
    made = [name for name in world.deployments.every(namespace) if name.startswith(f"{rollout.name}-")]
    assert len(made) == 2
    records = rollout.client.list(path_of("apps/v1", "controllerrevisions", namespace), labelSelector=ours)
    assert len(records) == 2
    assert rollout.reasons().count("RolloutStarted") == 2, rollout.reasons()


def check_lease(before: Object, after: Object) -> None:
    """Taken again, by the process that came after."""
    assert after["holderIdentity"] not in ("", before["holderIdentity"])
    assert after["leaseTransitions"] == before["leaseTransitions"] + 1


STORIES += [cut_off("refuses", elect=True), cut_off("hangs", elect=False)]
