"""Several operators, each with rights of its own, and an operator whose API server or Prometheus goes away altogether."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.kube import Informer, KubeClient, KubeError, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    BAD,
    PLURAL,
    VERSION,
    Audit,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    seconds,
    title,
)
from tests.cluster.test_gates import LEAVE, SECRET, Door, job

STORIES = Stories()
story = STORIES.story
STEPS = {"canary": {"steps": [{"weight": 20, "duration": "4s"}, {"weight": 50, "duration": "2s"}]}}


@pytest.fixture(scope="module")
def operator() -> None:
    """Each story has its own."""


@contextmanager
def operators(
    world: World, namespace: str, *names: str, module: str = "modelrollout", **values: Any
) -> Iterator[list[Operator]]:
    """Processes of one release that serve one namespace."""
    system = f"{namespace}-system"
    given = world.values | {"watchNamespaces": [namespace]} | values
    made = [
        Operator(world.lab, values=given, name=f"{namespace}-{n}", namespace=system, module=module)
        for n in names
    ]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for rollout in world.lab.client.list(path_of(VERSION, PLURAL, namespace)):
            world.lab.client.delete(path_of(VERSION, PLURAL, namespace, rollout["metadata"]["name"]))
        for one in made:
            one.__exit__()


def holder(world: World, namespace: str) -> str:
    """Who holds the Lease of a release; nobody is empty."""
    leases = path_of("coordination.k8s.io/v1", "leases", f"{namespace}-system")
    found = world.lab.client.list(leases)
    return str(found[0]["spec"].get("holderIdentity") or "") if found else ""


@contextmanager
def holders(world: World, namespace: str) -> Iterator[list[str]]:
    """Who holds the Lease of a release, from now on and after every change; nobody is empty."""
    seen: list[str] = []

    def see(_: str, lease: Object) -> None:
        seen.append(str(lease["spec"].get("holderIdentity") or ""))

    leases = path_of("coordination.k8s.io/v1", "leases", f"{namespace}-system")
    informer = Informer(world.lab.client, leases, see).start()
    try:
        assert informer.synced.wait(30)
        yield seen
    finally:
        informer.stop()


@story
def of_two_operators_one_works_and_the_other_takes_over_when_it_is_killed_or_stopped(world: World) -> None:
    rollout = world.rollout()
    with operators(world, rollout.namespace, "first", "second", replicas=2) as (first, second):
        leader = holder(world, rollout.namespace)
        rollout.deploy("1")
        rollout.apply("2", strategy=STEPS)
        before = rollout.wait_step("1/2")["status"]["step"]
        first.kill()
        after = rollout.wait_step("2/2")["status"]
        assert holder(world, rollout.namespace) not in ("", leader)
        clocks = [s["step"] for s in rollout.history() if (s.get("step") or {}).get("id") == before["id"]]
        ends = {step["endsAt"] for step in clocks if step.get("endsAt")}
        assert ends == {before["endsAt"]}, "the step's end did not move"
        assert [step for step in clocks if "left" in step] == []
        assert after["attempt"] == 2
        taken_over = holder(world, rollout.namespace)
        first.start()
        with holders(world, rollout.namespace) as seen:
            second.stop()
            wait_until(
                lambda: seen[-1] not in ("", taken_over), timeout=60, what="another holder of the Lease"
            )
        assert "" in seen, "a stopped operator lets go of the Lease: nobody has to wait for its end"
        rollout.wait_phase("Healthy")
        rollout.check_ledger()
        assert rollout.status()["history"][0]["outcome"] == "Promoted"


@story
def an_operator_of_one_namespace_has_no_rights_elsewhere_and_works_with_those_it_has(world: World) -> None:
    inside, outside = world.rollout(), world.rollout()
    audit = Audit(world.lab.audit_log)
    with operators(world, inside.namespace, "only"):
        outside.apply("1")
        inside.deploy("1")
        inside.apply("2")
        inside.wait_phase("Watching")
        inside.wait_phase("Healthy")
        inside.wait_event("WatchCompleted")
        assert outside.status() == {"observedGeneration": -1}
        user = f"system:serviceaccount:{inside.namespace}-system:"
        refused = [e["requestURI"] for e in audit.requests(user) if e["responseStatus"]["code"] in (401, 403)]
        assert refused == []
        check_rights(world, inside.namespace, outside.namespace)
    outside.client.delete(outside.path)


def account_of(world: World, namespace: str) -> KubeClient:
    """A client with the rights of the operator that serves a namespace."""
    accounts = world.lab.client.list(path_of("v1", "serviceaccounts", f"{namespace}-system"))
    name = next(a["metadata"]["name"] for a in accounts if a["metadata"]["name"] != "default")
    return KubeClient(world.lab.kubeconfig_for(f"{namespace}-system", name))


def check_rights(world: World, inside: str, outside: str) -> None:
    client = account_of(world, inside)
    assert client.list(path_of("apps/v1", "deployments", inside))
    for path in (
        path_of(VERSION, PLURAL),
        path_of(VERSION, PLURAL, outside),
        path_of("apps/v1", "deployments", outside),
        path_of("v1", "pods"),
        path_of("v1", "secrets", inside),
        path_of("v1", "namespaces"),
    ):
        with pytest.raises(KubeError, match="403"):
            client.list(path)
    client.close()


@story
def gates_of_one_namespace_are_asked_with_the_rights_that_the_chart_gives_there(world: World) -> None:
    rollout, elsewhere, door = world.rollout(), world.namespace(), Door().start()
    for namespace in (rollout.namespace, elsewhere):
        path = path_of("v1", "secrets", namespace)
        rollout.client.create(path, {"metadata": {"name": "gates"}, "stringData": {"key": SECRET}})
    granted = {"webhooks": [f"{door.url}/"], "secrets": True, "jobs": True}
    signed = door.hook("signed", (200, "welcome"), secretRef={"name": "gates", "key": "key"})
    evaluation = job("evaluation", LEAVE.format("0.93"), result={"min": "0.9"})
    plan: dict[str, Any] = {
        "analysis": {"mode": "Off"},
        "strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}},
        "watch": {"duration": "0s"},
        "gates": {"start": [signed], "promotion": [evaluation]},
    }
    audit = Audit(world.lab.audit_log)
    with operators(world, rollout.namespace, "gates", gates=granted):
        rollout.deploy("1", **plan)
        rollout.apply("2", **plan)
        assert rollout.wait_phase("Healthy")["status"]["history"][0]["outcome"] == "Promoted"
        passed = {event["note"].partition(":")[0] for event in rollout.events("GatePassed")}
        assert passed == {"gate signed passed", "gate evaluation passed"}
        (asked,) = door.asked("/gates/signed")
        assert asked.headers["X-Modelrollout-Signature"].startswith("sha256=")
        user = f"system:serviceaccount:{rollout.namespace}-system:"
        requests = audit.requests(user)
        assert [e["requestURI"] for e in requests if e["responseStatus"]["code"] in (401, 403)] == []
        # Jobs and Secrets are asked for by namespace, as a Role can't give more.
        named = [e["objectRef"] for e in requests if "objectRef" in e]
        of_gates = [ref for ref in named if ref["resource"] in ("jobs", "secrets")]
        assert {ref["resource"] for ref in of_gates} == {"jobs", "secrets"}
        assert {ref.get("namespace") for ref in of_gates} == {rollout.namespace}
        client = account_of(world, rollout.namespace)
        assert client.get(path_of("v1", "secrets", rollout.namespace, "gates"))
        for path in (
            path_of("v1", "secrets", rollout.namespace),
            path_of("v1", "secrets", elsewhere, "gates"),
            path_of("batch/v1", "jobs", elsewhere),
            path_of("batch/v1", "jobs"),
        ):
            with pytest.raises(KubeError, match="403"):
                client.get(path)
        client.close()
    door.stop()


@story
def an_operator_whose_watches_are_late_ends_as_one_whose_are_not(world: World) -> None:
    namespace = world.namespace()
    good, bad = world.rollout(namespace, "good"), world.rollout(namespace, "bad")
    with operators(world, namespace, "late", module="tests.cluster.late"):
        for rollout in (good, bad):
            rollout.apply("1")
        for rollout in (good, bad):
            rollout.wait_phase("Healthy")
        good.apply("2", strategy=STEPS)
        bad.apply("2", BAD, strategy=STEPS)
        assert bad.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "HarmProven"
        good.wait_phase("Watching")
        good.wait_phase("Healthy")
        assert good.phases() == ["Pending", "Healthy", "Progressing", "Promoting", "Watching", "Healthy"]
        assert bad.phases() == ["Pending", "Healthy", "Progressing", "RollingBack", "RolledBack"]
        assert [entry["outcome"] for entry in good.status()["history"]] == ["Promoted", "Promoted"]
        assert len(world.deployments.every(namespace)) == 4, "nothing is made twice"
        for rollout in (good, bad):
            weights = [
                s["weights"]["candidate"] for s in rollout.history() if s.get("phase") == "Progressing"
            ]
            assert weights == sorted(weights)
            rollout.check_ready()
        good.check_ledger()


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)


@pytest.fixture(scope="module")
def alone(world: World) -> Iterator[Operator]:
    """An operator for tests that take away what all others need."""
    world.clear()
    with Operator(world.lab, values=world.values, name="alone") as running:
        yield running
        world.clear()


def test_an_operator_that_is_stopped_ends_in_good_order_and_leaves_the_lease(
    world: World, alone: Operator
) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=STEPS)
    step = rollout.wait_step("1/2")["status"]["step"]
    assert alone.stop() == 0
    assert "ERROR modelrollout" not in alone.log.read_text()
    leases = path_of("coordination.k8s.io/v1", "leases", "modelrollout-system")
    assert not any(lease["spec"].get("holderIdentity") for lease in world.lab.client.list(leases))
    alone.start()
    rollout.wait_step("2/2")
    assert {s["step"]["startedAt"] for s in clocks(rollout, step["id"])} == {step["startedAt"]}
    assert seconds(step, "endsAt") - seconds(step, "startedAt") == pytest.approx(4.0)
    rollout.wait_phase("Healthy")


def test_an_api_server_that_is_killed_and_comes_back_loses_nothing(world: World, alone: Operator) -> None:
    progressing, resting = world.rollout(), world.rollout()
    resting.deploy("1")
    progressing.deploy("1")
    progressing.apply("2", strategy=STEPS)
    before = progressing.wait_step("1/2")["status"]["step"]
    with kept_running(alone):
        world.lab.stop_apiserver(grace=0)
        wait_until(lambda: said(alone, "replace-status ModelRollout"), timeout=30, what="a write that fails")
        world.lab.start_apiserver()
        go_on_after_the_outage(progressing, resting, before)


def test_an_api_server_that_is_away_for_longer_than_the_lease_lives_loses_nothing(
    world: World, alone: Operator
) -> None:
    progressing, resting = world.rollout(), world.rollout()
    resting.deploy("1")
    progressing.deploy("1")
    progressing.apply("2", strategy=STEPS)
    before = progressing.wait_step("1/2")["status"]["step"]
    world.lab.stop_apiserver(grace=0)
    try:
        assert alone.process is not None
        assert alone.process.wait(60) == 1, "it ends when it may not lead any more"
    finally:
        world.lab.start_apiserver()
    alone.start()
    go_on_after_the_outage(progressing, resting, before)


def go_on_after_the_outage(progressing: Rollout, resting: Rollout, before: Object) -> None:
    progressing.wait_step("2/2")
    starts = {s["step"]["startedAt"] for s in clocks(progressing, before["id"])}
    assert starts == {before["startedAt"]}
    progressing.wait_phase("Healthy")
    progressing.check_ledger()
    assert progressing.phases()[-1] == "Healthy"
    assert progressing.status()["history"][0]["outcome"] == "Promoted"
    assert [entry["outcome"] for entry in resting.status()["history"]] == ["Promoted"]
    # Its watches live: what changes now is seen.
    resting.apply("2")
    resting.wait_phase("Progressing")


@contextmanager
def kept_running(operator: Operator) -> Iterator[None]:
    """As a kubelet does: an operator that lost its Lease ends, and is started again."""
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            if operator.process is not None and operator.process.wait(0.2) is not None and not over.is_set():
                operator.start()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def clocks(rollout: Rollout, step: str) -> list[dict[str, Any]]:
    return [
        s for s in rollout.history() if (s.get("step") or {}).get("id") == step and s["step"].get("startedAt")
    ]


def said(operator: Operator, text: str) -> bool:
    return text in operator.log.read_text()
