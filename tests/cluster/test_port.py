"""One contract for the port, kept by the real API server and by the in-memory cluster of the unit tests.

A test that only one of them passes is the fault of the fake: then unit tests would prove nothing about Kubernetes.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from lab.kube import KubeClient, KubeError
from lab.lab import Lab
from modelrollout.cluster.client import Credentials, KubernetesCluster, load_credentials
from modelrollout.cluster.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KindNotServed,
    NotFound,
    Unavailable,
)
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    HTTP_ROUTE,
    LEASE,
    MODEL_ROLLOUT,
    NAMESPACE,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.lease import LeaderElection
from modelrollout.cluster.port import Cluster, Hooks, Request, Write
from tests.fakes.cluster import FakeCluster

# A kind whose definition is installed nowhere.
UNKNOWN = Kind("unknown.example", "v1", "things", "Thing")


@dataclass
class Recorder:
    """Hooks that write down what passes, and raise what a test asks for."""

    requests: list[Request] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    fail_before: Callable[[Write], Exception | None] = lambda _: None
    fail_after: Callable[[Write], Exception | None] = lambda _: None

    def hooks(self) -> Hooks:
        return Hooks(answered=self.requests.append, before_write=self._before, after_write=self._after)

    async def _before(self, write: Write) -> None:
        self.writes.append(write)
        if error := self.fail_before(write):
            raise error

    async def _after(self, write: Write) -> None:
        if error := self.fail_after(write):
            raise error


class Other(Protocol):
    """Another writer: reads an object, changes it, writes it back under a name of its own."""

    def __call__(self, kind: Kind, name: str, change: Callable[[Object], None]) -> Awaitable[None]: ...


@dataclass
class Given:
    cluster: Cluster
    namespace: str
    recorder: Recorder
    other: Other


def write_as_other(client: KubeClient, namespace: str) -> Other:
    async def act(kind: Kind, name: str, change: Callable[[Object], None]) -> None:
        path = kind.path(namespace, name)
        for _ in range(20):
            obj = client.get(path)
            change(obj)
            try:
                client.replace(path, obj, fieldManager="someone-else")
            except KubeError as error:
                # The built-in controllers write too.
                if error.status != 409:
                    raise
            else:
                return
        raise AssertionError(f"{path} never stood still")

    return act


def write_to_fake(cluster: FakeCluster, namespace: str) -> Other:
    async def act(kind: Kind, name: str, change: Callable[[Object], None]) -> None:
        obj = cluster.look(kind, namespace, name)
        assert obj is not None
        change(obj)
        cluster.seed(obj)

    return act


@pytest.fixture(params=["fake", "real"])
async def given(request: pytest.FixtureRequest) -> AsyncIterator[Given]:
    namespace, recorder = f"port-{uuid.uuid4().hex[:8]}", Recorder()
    if request.param == "fake":
        absent = frozenset({UNKNOWN.kind})
        fake = FakeCluster(hooks=recorder.hooks(), namespaces={namespace}, absent=absent)
        yield Given(fake, namespace, recorder, write_to_fake(fake, namespace))
        return
    lab: Lab = request.getfixturevalue("lab")
    metadata = {"name": namespace}
    lab.client.create(NAMESPACE.path(None), {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    credentials = await load_credentials(lab.kubeconfig)
    async with KubernetesCluster(credentials, hooks=recorder.hooks()) as cluster:
        yield Given(cluster, namespace, recorder, write_as_other(lab.client, namespace))


def deployment(given: Given, name: str = "fraud-a", **spec: Any) -> Object:
    labels = {"modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": "a"}
    container = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": given.namespace, "labels": dict(labels)},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": {"containers": [container]}},
        }
        | spec,
    }


def service(given: Given, name: str = "fraud-a", **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": given.namespace, "labels": {"app": name}, **metadata},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }


def rollout(given: Given, name: str = "fraud") -> Object:
    container = {"name": "model", "image": "lab/pause:1"}
    return {
        "apiVersion": MODEL_ROLLOUT.api_version,
        "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": given.namespace},
        "spec": {
            "workload": {"template": {"spec": {"containers": [container]}}},
            "service": {"ports": [{"port": 80, "targetPort": 8080}]},
            "analysis": {"mode": "Off"},
        },
    }


def controller_revision(given: Given, name: str = "fraud-a") -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": name, "namespace": given.namespace},
        "revision": 1,
        "data": {"spec": {"image": "x"}},
    }


def version_of(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


async def test_get_answers_none_for_what_is_not_there(given: Given):
    assert await given.cluster.get(DEPLOYMENT, given.namespace, "nothing") is None
    assert await given.cluster.get(NAMESPACE, None, "nothing-at-all") is None


async def test_a_kind_that_is_not_installed_can_be_told_from_an_object_that_is_missing(given: Given):
    with pytest.raises(KindNotServed):
        await given.cluster.get(UNKNOWN, given.namespace, "x")
    with pytest.raises(KindNotServed):
        await given.cluster.list(UNKNOWN, None)


async def test_apply_creates_and_answers_with_the_whole_object(given: Given):
    made = await given.cluster.apply(deployment(given))
    assert made["metadata"]["uid"]
    assert made["metadata"]["generation"] == 1
    assert made["spec"]["progressDeadlineSeconds"] == 600, "defaults are in the answer"
    found = await given.cluster.get(DEPLOYMENT, given.namespace, "fraud-a")
    assert found is not None
    assert (found["apiVersion"], found["kind"]) == ("apps/v1", "Deployment")
    assert found["metadata"]["uid"] == made["metadata"]["uid"]


async def test_apply_of_the_same_again_changes_nothing(given: Given):
    first = await given.cluster.apply(service(given))
    second = await given.cluster.apply(service(given))
    assert version_of(first) == version_of(second)


async def test_apply_removes_what_it_no_longer_names_and_leaves_what_others_wrote(given: Given):
    obj = service(given, annotations={"ours": "1", "dropped": "1"})
    await given.cluster.apply(obj)
    await given.other(SERVICE, "fraud-a", lambda live: live["metadata"]["annotations"].update(theirs="2"))
    result = await given.cluster.apply(service(given, annotations={"ours": "3"}))
    assert result["metadata"]["annotations"] == {"ours": "3", "theirs": "2"}


async def test_apply_merges_lists_by_their_keys(given: Given):
    obj = deployment(given)
    container = obj["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]
    await given.cluster.apply(obj)

    def inject(live: Object) -> None:
        live["spec"]["template"]["spec"]["containers"].append({"name": "sidecar", "image": "lab/pause:2"})

    await given.other(DEPLOYMENT, "fraud-a", inject)
    container["env"] = [{"name": "B", "value": "2"}]
    result = await given.cluster.apply(obj)
    containers = {c["name"]: c for c in result["spec"]["template"]["spec"]["containers"]}
    assert set(containers) == {"model", "sidecar"}
    assert containers["model"]["env"] == [{"name": "B", "value": "2"}]


async def test_a_forced_apply_takes_a_field_back_and_an_unforced_one_names_the_other_manager(given: Given):
    await given.cluster.apply(deployment(given, replicas=0))

    def scale(live: Object) -> None:
        live["spec"]["replicas"] = 3
        live["spec"]["template"]["spec"]["containers"] = []
        live["spec"]["template"]["spec"]["containers"] = deployment(given)["spec"]["template"]["spec"][
            "containers"
        ]

    await given.other(DEPLOYMENT, "fraud-a", scale)
    with pytest.raises(Conflict) as refused:
        await given.cluster.apply(deployment(given, replicas=0), force=False)
    assert any("someone-else" in str(cause.get("message")) for cause in refused.value.causes)
    taken = await given.cluster.apply(deployment(given, replicas=0))
    assert taken["spec"]["replicas"] == 0


async def test_apply_with_the_version_seen_conflicts_with_a_change_since(given: Given):
    seen = await given.cluster.apply(service(given))
    changed = await given.cluster.apply(
        service(given, annotations={"a": "1"}), resource_version=version_of(seen)
    )
    assert changed["metadata"]["annotations"] == {"a": "1"}
    with pytest.raises(Conflict):
        await given.cluster.apply(service(given, annotations={"a": "2"}), resource_version=version_of(seen))


async def test_apply_with_the_uid_seen_never_brings_back_what_was_deleted_but_the_version_alone_does(
    given: Given,
):
    seen = await given.cluster.apply(service(given))
    version, uid = version_of(seen), seen["metadata"]["uid"]
    await given.cluster.apply(service(given), resource_version=version, uid=uid)
    await given.cluster.delete(SERVICE, given.namespace, "fraud-a")
    with pytest.raises(Conflict):
        await given.cluster.apply(service(given), resource_version=version, uid=uid)
    assert await given.cluster.get(SERVICE, given.namespace, "fraud-a") is None
    again = await given.cluster.apply(service(given), resource_version=version)
    assert again["metadata"]["uid"] != uid


async def test_a_dry_run_checks_and_changes_nothing(given: Given):
    answer = await given.cluster.apply(deployment(given), dry_run=True)
    assert answer["spec"]["progressDeadlineSeconds"] == 600
    assert await given.cluster.get(DEPLOYMENT, given.namespace, "fraud-a") is None
    await given.cluster.apply(deployment(given, replicas=0))
    await given.cluster.apply(deployment(given, replicas=9), dry_run=True)
    kept = await given.cluster.get(DEPLOYMENT, given.namespace, "fraud-a")
    assert kept is not None
    assert kept["spec"]["replicas"] == 0


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_template_that_cannot_be_parsed_is_the_users_error(given: Given, dry_run: bool):
    broken = deployment(given)
    broken["spec"]["template"]["spec"]["containers"] = {"name": "not a list"}
    with pytest.raises(Invalid, match="failed to create typed patch object"):
        await given.cluster.apply(broken, dry_run=dry_run)


async def test_a_template_with_a_bad_value_is_the_users_error_and_the_message_names_the_field(given: Given):
    broken = deployment(given)
    broken["spec"]["template"]["metadata"]["labels"] = {"other": "labels"}
    with pytest.raises(Invalid, match=r"spec\.template\.metadata\.labels"):
        await given.cluster.apply(broken)


async def test_a_missing_namespace_is_not_found(given: Given):
    lost = service(given)
    lost["metadata"]["namespace"] = "no-such-namespace"
    with pytest.raises(NotFound) as refused:
        await given.cluster.create(lost)
    assert not isinstance(refused.value, KindNotServed)


async def test_create_refuses_a_name_that_is_taken(given: Given):
    await given.cluster.create(controller_revision(given))
    with pytest.raises(AlreadyExists):
        await given.cluster.create(controller_revision(given))


async def test_replace_needs_the_present_version(given: Given):
    made = await given.cluster.create(service(given))
    made["metadata"]["labels"]["new"] = "label"
    replaced = await given.cluster.replace(made)
    assert replaced["metadata"]["labels"]["new"] == "label"
    with pytest.raises(Conflict):
        await given.cluster.replace(made)
    del made["metadata"]["resourceVersion"]
    with pytest.raises(ValueError, match="resourceVersion is missing"):
        await given.cluster.replace(made)


async def test_replace_status_writes_the_status_and_nothing_else(given: Given):
    made = await given.cluster.create(rollout(given))
    wanted = copy.deepcopy(made) | {"status": {"phase": "Pending", "message": "hello"}}
    wanted["spec"]["replicas"] = 7
    written = await given.cluster.replace_status(wanted)
    assert written["status"]["message"] == "hello"
    assert written["spec"].get("replicas") != 7
    assert written["metadata"]["generation"] == 1
    assert version_of(written) != version_of(made)


async def test_a_status_decided_on_an_older_version_is_a_conflict(given: Given):
    made = await given.cluster.create(rollout(given))
    await given.other(MODEL_ROLLOUT, "fraud", lambda live: live["spec"].update(paused=True))
    with pytest.raises(Conflict):
        await given.cluster.replace_status(made | {"status": {"phase": "Pending"}})
    now = await given.cluster.get(MODEL_ROLLOUT, given.namespace, "fraud")
    assert now is not None
    assert now["metadata"]["generation"] == 2
    assert "phase" not in now.get("status", {})


async def test_the_same_status_again_is_no_change(given: Given):
    made = await given.cluster.create(rollout(given))
    first = await given.cluster.replace_status(made | {"status": {"phase": "Pending"}})
    second = await given.cluster.replace_status(copy.deepcopy(first))
    assert version_of(first) == version_of(second)


async def test_a_status_of_an_object_that_is_gone_is_not_found(given: Given):
    made = await given.cluster.create(rollout(given))
    await given.cluster.delete(MODEL_ROLLOUT, given.namespace, "fraud")
    with pytest.raises((NotFound, Conflict)):
        await given.cluster.replace_status(made | {"status": {"phase": "Pending"}})


async def test_a_write_by_spec_does_not_touch_the_status(given: Given):
    made = await given.cluster.create(rollout(given))
    written = await given.cluster.replace_status(made | {"status": {"phase": "Pending"}})
    written["spec"]["paused"] = True
    written["status"] = {"phase": "Healthy"}
    replaced = await given.cluster.replace(written)
    assert replaced["status"]["phase"] == "Pending"
    assert replaced["metadata"]["generation"] == 2


async def test_a_json_patch_whose_tests_hold_is_applied(given: Given):
    await given.cluster.create(service(given))
    operations = [
        {"op": "test", "path": "/spec/selector/app", "value": "fraud-a"},
        {"op": "replace", "path": "/spec/selector/app", "value": "fraud-b"},
        {"op": "add", "path": "/metadata/annotations", "value": {"a/b": "1"}},
        {"op": "test", "path": "/metadata/annotations/a~1b", "value": "1"},
    ]
    patched = await given.cluster.patch_json(SERVICE, given.namespace, "fraud-a", operations)
    assert patched["spec"]["selector"] == {"app": "fraud-b"}
    assert patched["metadata"]["annotations"] == {"a/b": "1"}


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(
            [{"op": "test", "path": "/spec/selector/app", "value": "no"}], id="a value that is another"
        ),
        pytest.param(
            [{"op": "test", "path": "/spec/nowhere/deep", "value": "no"}], id="a path that is not there"
        ),
        pytest.param([{"op": "remove", "path": "/metadata/annotations/gone"}], id="nothing to remove"),
        pytest.param(
            [{"op": "test", "path": "/metadata/resourceVersion", "value": "1"}], id="another version"
        ),
    ],
)
async def test_a_json_patch_whose_test_fails_is_a_conflict_and_changes_nothing(
    given: Given, operations: list[dict[str, Any]]
):
    made = await given.cluster.create(service(given))
    change = {"op": "add", "path": "/metadata/labels/new", "value": "x"}
    with pytest.raises(Conflict):
        await given.cluster.patch_json(SERVICE, given.namespace, "fraud-a", [change, *operations])
    kept = await given.cluster.get(SERVICE, given.namespace, "fraud-a")
    assert kept is not None
    assert version_of(kept) == version_of(made)


async def test_a_json_patch_of_nothing_is_not_found(given: Given):
    with pytest.raises(NotFound):
        await given.cluster.patch_json(SERVICE, given.namespace, "none", [{"op": "remove", "path": "/spec"}])


async def test_finalizers_go_by_json_patch(given: Given):
    obj = service(given, finalizers=["modelrollout.dev/restore"])
    made = await given.cluster.create(obj)
    assert await given.cluster.delete(SERVICE, given.namespace, "fraud-a", uid=made["metadata"]["uid"])
    held = await given.cluster.get(SERVICE, given.namespace, "fraud-a")
    assert held is not None
    assert held["metadata"]["deletionTimestamp"]
    operations = [
        {"op": "test", "path": "/metadata/finalizers/0", "value": "modelrollout.dev/restore"},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ]
    await given.cluster.patch_json(SERVICE, given.namespace, "fraud-a", operations)
    assert await given.cluster.get(SERVICE, given.namespace, "fraud-a") is None


async def test_delete_takes_exactly_the_object_that_was_seen(given: Given):
    made = await given.cluster.create(service(given))
    delete = given.cluster.delete
    with pytest.raises(Conflict):
        await delete(SERVICE, given.namespace, "fraud-a", uid="00000000-0000-0000-0000-000000000000")
    await given.other(SERVICE, "fraud-a", lambda live: live["metadata"]["labels"].update(x="y"))
    seen = {"uid": made["metadata"]["uid"], "resource_version": version_of(made)}
    with pytest.raises(Conflict):
        await delete(SERVICE, given.namespace, "fraud-a", **seen)
    assert await delete(SERVICE, given.namespace, "fraud-a", uid=made["metadata"]["uid"])
    assert await delete(SERVICE, given.namespace, "fraud-a", uid=made["metadata"]["uid"]) is False


async def test_children_go_with_their_owner(given: Given):
    # Not a ModelRollout: a garbage collector takes half a minute to hear of a new kind.
    owner = await given.cluster.create(controller_revision(given))
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    await given.cluster.apply(service(given, ownerReferences=[reference]))
    kind, uid = CONTROLLER_REVISION, owner["metadata"]["uid"]
    await given.cluster.delete(kind, given.namespace, "fraud-a", uid=uid)
    async with asyncio.timeout(60):
        # The garbage collector works in its own time; there is nothing to await but the object's absence.
        while await given.cluster.get(SERVICE, given.namespace, "fraud-a"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_list_says_what_each_item_is_and_honours_namespace_and_selector(given: Given):
    for name in ("one", "two"):
        await given.cluster.create(service(given, name))
    items, version = await given.cluster.list(SERVICE, given.namespace)
    assert {item["metadata"]["name"] for item in items} == {"one", "two"}
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "Service")}
    assert int(version) >= max(int(version_of(item)) for item in items)
    chosen, _ = await given.cluster.list(SERVICE, None, "app=two")
    assert [i["metadata"]["name"] for i in chosen if i["metadata"]["namespace"] == given.namespace] == ["two"]
    nothing, _ = await given.cluster.list(SERVICE, given.namespace, "app=three")
    assert nothing == []


async def test_list_finds_the_one_of_a_name(given: Given):
    for name in ("one", "two"):
        await given.cluster.create(service(given, name))
    items, _ = await given.cluster.list(SERVICE, given.namespace, name="two")
    assert [item["metadata"]["name"] for item in items] == ["two"]


@pytest.mark.parametrize("by", [{"name": "one"}, {"label_selector": "app=one"}], ids=["name", "selector"])
async def test_a_watch_tells_what_becomes_of_what_was_listed_and_of_nothing_else(given: Given, by: Any):
    await given.cluster.create(service(given, "one"))
    _, version = await given.cluster.list(SERVICE, given.namespace, **by)
    events = given.cluster.watch(SERVICE, given.namespace, resource_version=version, **by)

    async def next_event() -> tuple[str, Object]:
        async with asyncio.timeout(10):
            async for what, obj in events:
                if what != "BOOKMARK":
                    return what, obj
        raise AssertionError("the watch ended")

    first = asyncio.create_task(next_event())
    await asyncio.sleep(0)
    await given.cluster.create(service(given, "two"))
    await given.other(SERVICE, "one", lambda obj: obj["metadata"].update(annotations={"a": "b"}))
    what, obj = await first
    assert (what, obj["metadata"]["name"], obj["metadata"]["annotations"]) == ("MODIFIED", "one", {"a": "b"})
    assert (obj["apiVersion"], obj["kind"]) == ("v1", "Service")
    second = asyncio.create_task(next_event())
    await asyncio.sleep(0)
    await given.cluster.delete(SERVICE, given.namespace, "one")
    what, gone = await second
    assert what == "DELETED"
    assert int(version_of(gone)) > int(version_of(obj)), "from there a watch goes on"


async def events_of(given: Given) -> list[Object]:
    return (await given.cluster.list(EVENT, given.namespace))[0]


async def test_an_event_is_posted_once_and_repetitions_are_counted_on_it(given: Given):
    about = await given.cluster.create(rollout(given))
    for _ in range(4):
        await given.cluster.event(about, type="Warning", reason="TrafficDrift", note="weight was changed")
    await given.cluster.event(about, type="Normal", reason="Promoted", note="n" * 3000)
    found = {event["reason"]: event for event in await events_of(given)}
    assert set(found) == {"TrafficDrift", "Promoted"}
    drift = found["TrafficDrift"]
    assert drift["series"]["count"] == 4
    assert (drift["type"], drift["note"]) == ("Warning", "weight was changed")
    assert drift["regarding"]["uid"] == about["metadata"]["uid"]
    assert drift["reportingController"] == "modelrollout.dev/operator"
    assert len(found["Promoted"]["note"].encode()) == 1024


async def test_an_event_that_is_refused_does_not_stop_the_work(given: Given):
    lost = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x", "namespace": "no-such-namespace"},
    }
    await given.cluster.event(lost, type="Normal", reason="Promoted", note="x")
    assert await events_of(given) == []


async def test_requests_are_counted_by_verb_and_kind_and_writes_are_numbered(given: Given):
    made = await given.cluster.apply(service(given))
    await given.cluster.apply(service(given), dry_run=True)
    await given.cluster.get(SERVICE, given.namespace, "fraud-a")
    await given.cluster.list(SERVICE, given.namespace)
    await given.cluster.delete(SERVICE, given.namespace, "fraud-a", uid=made["metadata"]["uid"])
    counted = [(r.verb, r.kind, r.status // 100) for r in given.recorder.requests]
    assert counted == [(verb, "Service", 2) for verb in ("apply", "apply", "get", "list", "delete")]
    assert [(w.verb, w.kind, w.name, w.number) for w in given.recorder.writes] == [
        ("apply", "Service", "fraud-a", 1),
        ("delete", "Service", "fraud-a", 2),
    ]
    assert {w.namespace for w in given.recorder.writes} == {given.namespace}


class Crash(Exception):
    """The process dies here."""


async def test_a_fault_before_the_write_leaves_nothing_and_one_after_it_leaves_the_object(given: Given):
    given.recorder.fail_before = lambda write: Crash() if write.number == 1 else None
    given.recorder.fail_after = lambda write: Conflict("injected") if write.number == 2 else None
    with pytest.raises(Crash):
        await given.cluster.apply(service(given, "one"))
    with pytest.raises(Conflict, match="injected"):
        await given.cluster.apply(service(given, "two"))
    await given.cluster.apply(service(given, "three"))
    items, _ = await given.cluster.list(SERVICE, given.namespace)
    assert sorted(item["metadata"]["name"] for item in items) == ["three", "two"]


async def test_a_lease_is_won_lost_and_released(given: Given):
    def elect(identity: str) -> LeaderElection:
        return LeaderElection(
            given.cluster, namespace=given.namespace, name="leader", identity=identity, retry=0.1
        )

    stop, started = asyncio.Event(), asyncio.Event()
    first, second = elect("first"), elect("second")
    lost = asyncio.Event()
    task = asyncio.create_task(first.run(stop=stop, on_started=started.set, on_lost=lost.set))
    async with asyncio.timeout(30):
        await started.wait()
        stop_second, second_started = asyncio.Event(), asyncio.Event()
        other = asyncio.create_task(
            second.run(stop=stop_second, on_started=second_started.set, on_lost=lost.set)
        )
        stop.set()
        await task
        await second_started.wait()
    lease = await given.cluster.get(LEASE, given.namespace, "leader")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "second"
    assert (first.leading, second.leading) == (False, True)
    stop_second.set()
    await other
    lease = await given.cluster.get(LEASE, given.namespace, "leader")
    assert lease is not None
    assert "holderIdentity" not in lease["spec"]
    assert not lost.is_set()


async def test_a_route_keeps_its_status_and_gets_its_defaults(given: Given):
    route = {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": "public", "namespace": given.namespace},
        "spec": {
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "rules": [{"backendRefs": [{"name": "fraud-a", "port": 80, "weight": 100}]}],
        },
    }
    made = await given.cluster.apply(route)
    assert made["metadata"]["generation"] == 1
    assert made["spec"]["rules"][0]["backendRefs"][0]["kind"] == "Service"
    again = await given.cluster.apply(route)
    assert version_of(again) == version_of(made)


# What only a real server, or only a broken one, can show.


async def test_a_long_list_comes_in_pages(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modelrollout.cluster.client.PAGE", 2)
    recorder, namespace = Recorder(), f"pages-{uuid.uuid4().hex[:8]}"
    metadata = {"name": namespace}
    lab.client.create(NAMESPACE.path(None), {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    async with KubernetesCluster(await load_credentials(lab.kubeconfig), hooks=recorder.hooks()) as cluster:
        given = Given(cluster, namespace, recorder, write_as_other(lab.client, namespace))
        for n in range(5):
            await cluster.create(controller_revision(given, f"r{n}"))
        items, version = await cluster.list(CONTROLLER_REVISION, namespace)
    assert sorted(item["metadata"]["name"] for item in items) == [f"r{n}" for n in range(5)]
    assert version
    assert [r.verb for r in recorder.requests].count("list") == 3


async def test_a_missing_right_is_forbidden(lab: Lab):
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "nobody", "namespace": "default"},
    }
    if lab.client.find("/api/v1/namespaces/default/serviceaccounts/nobody") is None:
        lab.client.create("/api/v1/namespaces/default/serviceaccounts", account)
    credentials = await load_credentials(lab.kubeconfig_for("default", "nobody"))
    async with KubernetesCluster(credentials) as cluster:
        with pytest.raises(Forbidden, match="cannot list resource"):
            await cluster.list(DEPLOYMENT, "default")


async def test_a_namespace_that_is_going_refuses_new_objects_in_a_way_that_can_be_told(lab: Lab):
    namespace = f"going-{uuid.uuid4().hex[:8]}"
    metadata = {"name": namespace}
    lab.client.create(NAMESPACE.path(None), {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    async with KubernetesCluster(await load_credentials(lab.kubeconfig)) as cluster:
        given = Given(cluster, namespace, Recorder(), write_as_other(lab.client, namespace))
        await cluster.create(service(given, "held", finalizers=["modelrollout.dev/restore"]))
        await cluster.delete(NAMESPACE, None, namespace)
        with pytest.raises(Forbidden) as refused:
            await cluster.create(service(given))
        assert refused.value.namespace_terminating
        operation = {"op": "remove", "path": "/metadata/finalizers"}
        await cluster.patch_json(SERVICE, namespace, "held", [operation])


async def test_a_token_that_is_no_longer_valid_is_read_anew(lab: Lab):
    path = lab.kubeconfig_for("default", "default")
    content = yaml.safe_load(path.read_text())
    token = content["users"][0]["user"]["token"]
    credentials = await load_credentials(path)
    renewed = 0

    async def renew() -> None:
        nonlocal renewed
        renewed += 1
        await credentials.renew()

    credentials.configuration.api_key["BearerToken"] = f"Bearer {token[:-4]}xxxx"
    async with KubernetesCluster(Credentials(credentials.configuration, renew)) as cluster:
        with pytest.raises(Forbidden):
            await cluster.list(DEPLOYMENT, "default")
    assert renewed == 1


async def test_the_service_accounts_token_is_read_from_its_file_and_again_when_it_was_rotated(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = yaml.safe_load(lab.kubeconfig_for("default", "default").read_text())
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    server = config["clusters"][0]["cluster"]
    ca.write_bytes(ca_of(server))
    host, _, port = server["server"].removeprefix("https://").rpartition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr("modelrollout.cluster.client.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("modelrollout.cluster.client.SERVICE_CERT_FILENAME", str(ca))
    token.write_text("expired")
    credentials = await load_credentials()
    async with KubernetesCluster(credentials) as cluster:
        with pytest.raises(Unavailable) as refused:
            await cluster.get(SERVICE, "default", "x")
        assert refused.value.status == 401
        token.write_text(config["users"][0]["user"]["token"])
        with pytest.raises(Forbidden):
            await cluster.get(SERVICE, "default", "x")


def ca_of(server: dict[str, str]) -> bytes:
    inline = server.get("certificate-authority-data")
    return base64.b64decode(inline) if inline else Path(server["certificate-authority"]).read_bytes()


async def test_a_server_that_hangs_or_is_away_is_unavailable_within_the_time_limit(lab: Lab):
    hanging = await asyncio.start_server(lambda reader, writer: asyncio.sleep(3600), "127.0.0.1", 0)
    host, port = hanging.sockets[0].getsockname()[:2]
    credentials = await load_credentials(lab.kubeconfig)
    recorder = Recorder()
    credentials.configuration.host = f"http://{host}:{port}"
    async with KubernetesCluster(credentials, request_seconds=0.3, hooks=recorder.hooks()) as cluster:
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            await cluster.get(SERVICE, "default", "x")
    hanging.close()
    async with KubernetesCluster(credentials, request_seconds=5, hooks=recorder.hooks()) as cluster:
        with pytest.raises(Unavailable):
            await cluster.get(SERVICE, "default", "x")
    assert [request.status for request in recorder.requests] == [0, 0]
