"""What a real API server makes of our children: defaults are no difference, another writer's change is one.

Everything that `modelrollout.workloads.fields` assumes of server-side apply is shown here; the unit tests imitate it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lab.lab import Lab
from modelrollout.api.status import Status
from modelrollout.cluster.actions import Action, Apply, Done, NameTaken, execute
from modelrollout.cluster.client import KubernetesCluster, load_credentials
from modelrollout.cluster.errors import Conflict
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.managed_fields import slim_managed_fields
from modelrollout.traffic import route_actions
from modelrollout.workloads import Children, dry_run_object, workload_actions
from tests.unit.workloads.manifests import RICH, manifest, revision_of, spec_of, status_of, with_version

ROUNDS = 20
KEPT = ("whole", "slim", "missing")  # what a store keeps of managedFields
NOW = 1_800_000_000.0
GATEWAY = {"gatewayAPI": {"parentRefs": [{"name": "public", "namespace": "gateways"}]}}
KINDS = {
    "controller_revisions": CONTROLLER_REVISION,
    "deployments": DEPLOYMENT,
    "services": SERVICE,
    "routes": HTTP_ROUTE,
}


class World:
    """One ModelRollout in a namespace of a real cluster."""

    def __init__(self, lab: Lab, port: KubernetesCluster, rollout: Object) -> None:
        self.lab = lab
        self.port = port
        self.namespace = rollout["metadata"]["namespace"]
        created = {key: rollout["metadata"][key] for key in ("name", "namespace")}
        self.rollout = lab.client.create(MODEL_ROLLOUT.path(self.namespace), rollout | {"metadata": created})

    def children(self, managed: str = "whole") -> Children:
        """As found, with managedFields whole, slim, or missing; the stable revision has a ready endpoint."""
        found: dict[str, dict[str, Object]] = {}
        for attribute, kind in KINDS.items():
            items = self.lab.client.list(kind.path(self.namespace))
            ours = [obj for obj in items if "modelrollout.dev/rollout" in obj["metadata"].get("labels", {})]
            found[attribute] = {obj["metadata"]["name"]: _kept(kind, obj, managed) for obj in ours}
        slices = {name: endpoint_slice(name) for name in found["services"]}
        return Children(endpointslices=slices, **found)

    def actions(self, status: Status, managed: str = "whole", rollout: Object | None = None) -> list[Action]:
        rollout = self.rollout if rollout is None else rollout
        children, spec = self.children(managed), spec_of(rollout)
        return [
            *workload_actions(rollout, spec, status, children, NOW),
            *route_actions(rollout, spec, status, children, NOW),
        ]

    async def settle(self, status: Status, rollout: Object | None = None) -> list[Done]:
        """Rounds until nothing is to be written, each decided anew as the controllers write beside us."""
        done: list[Done] = []
        for _ in range(ROUNDS):
            actions = self.actions(status, rollout=rollout)
            if not actions:
                return done
            with contextlib.suppress(Conflict):
                await execute(self.port, actions, done=done.append)
        raise AssertionError(f"still writing after {ROUNDS} rounds: {[action.why for action in actions]}")

    def edit(self, kind: Kind, name: str, changes: Any, manager: str = "kubectl-edit") -> Object:
        """A merge patch of another writer."""
        path = kind.path(self.namespace, name)
        return self.lab.client.patch(path, changes, kind="merge", fieldManager=manager)

    def get(self, kind: Kind, name: str) -> Object:
        return self.lab.client.get(kind.path(self.namespace, name))


def _kept(kind: Kind, obj: Object, managed: str) -> Object:
    obj = {"apiVersion": kind.api_version, "kind": kind.kind} | copy.deepcopy(obj)
    entries = obj["metadata"].pop("managedFields")
    if managed != "missing":
        obj["metadata"]["managedFields"] = entries if managed == "whole" else slim_managed_fields(entries)
    return obj


def endpoint_slice(service: str) -> Object:
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": ["10.244.0.9"], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": 8080}],
    }


@pytest.fixture
async def port(lab: Lab) -> AsyncIterator[KubernetesCluster]:
    async with KubernetesCluster(await load_credentials(lab.kubeconfig)) as cluster:
        yield cluster


@pytest.fixture
def rich(lab: Lab, port: KubernetesCluster, namespace: str) -> World:
    return World(lab, port, manifest(RICH, namespace=namespace, traffic=GATEWAY))


async def test_the_defaults_of_the_server_are_no_difference(rich: World) -> None:
    status = status_of(revision_of(rich.rollout))
    done = await rich.settle(status)
    assert [result.action.obj["kind"] for result in done if not hasattr(result.action, "operations")] == [
        "ControllerRevision",
        "Service",
        "Deployment",
        "Service",
        "HTTPRoute",
    ]
    assert {managed: rich.actions(status, managed) for managed in KEPT} == {managed: [] for managed in KEPT}


async def test_what_others_add_to_our_objects_is_kept(rich: World) -> None:
    revision = revision_of(rich.rollout)
    status, name = status_of(revision), f"fraud-{revision}"
    await rich.settle(status)
    mine = {"metadata": {"annotations": {"example.com/owner": "me"}, "labels": {"cost": "42"}}}
    for kind, which in ((DEPLOYMENT, name), (SERVICE, name), (SERVICE, "fraud"), (HTTP_ROUTE, "fraud")):
        rich.edit(kind, which, mine)
    rich.edit(SERVICE, "fraud", {"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}})
    assert {managed: rich.actions(status, managed) for managed in KEPT} == {managed: [] for managed in KEPT}


DRIFTS = {
    "another size": (DEPLOYMENT, True, {"spec": {"replicas": 7}}, "spec.replicas (by kubectl-edit)"),
    "a label of the pods gone": (
        DEPLOYMENT,
        True,
        {"spec": {"template": {"metadata": {"labels": {"team": None}}}}},
        "",
    ),
    "another annotation of the pods": (
        DEPLOYMENT,
        True,
        {"spec": {"template": {"metadata": {"annotations": {"prometheus.io/scrape": "false"}}}}},
        "spec.template.metadata.annotations.prometheus.io/scrape (by kubectl-edit)",
    ),
    "our label gone": (SERVICE, True, {"metadata": {"labels": {"modelrollout.dev/revision": None}}}, ""),
    "a revision's Service pointed elsewhere": (
        SERVICE,
        True,
        {"spec": {"selector": {"app": "other"}}},
        "spec.selector (by kubectl-edit)",
    ),
    "the callers' Service pointed elsewhere": (
        SERVICE,
        False,
        {"spec": {"selector": {"app": "other"}}},
        "spec.selector (by kubectl-edit)",
    ),
    "another parent of the route": (
        HTTP_ROUTE,
        False,
        {"spec": {"parentRefs": [{"name": "private"}]}},
        "spec.parentRefs (by kubectl-edit)",
    ),
}


@pytest.mark.parametrize(("kind", "of_revision", "changes", "said"), DRIFTS.values(), ids=DRIFTS)
async def test_drift_is_seen_and_put_right(
    rich: World, kind: Kind, of_revision: bool, changes: Any, said: str
) -> None:
    revision = revision_of(rich.rollout)
    status, name = status_of(revision), f"fraud-{revision}" if of_revision else "fraud"
    await rich.settle(status)
    before = rich.get(kind, name)["spec"]
    rich.edit(kind, name, changes)
    for managed in KEPT:
        (action,) = rich.actions(status, managed)
        assert isinstance(action, Apply)
        assert action.drift == ("" if managed == "missing" else said)
    await rich.settle(status)
    assert rich.get(kind, name)["spec"] == before
    assert {managed: rich.actions(status, managed) for managed in KEPT} == {managed: [] for managed in KEPT}


async def test_ports_of_the_old_revision_leave_the_callers_service(rich: World) -> None:
    await rich.settle(status_of(revision_of(rich.rollout)))
    ports = [{"name": "http", "port": 8000}, {"name": "grpc", "port": 9000}]
    traffic = {"gatewayAPI": GATEWAY["gatewayAPI"] | {"port": "http", "hostnames": ["fraud.example.com"]}}
    newer = copy.deepcopy(rich.rollout)
    newer["spec"] |= {"service": {"ports": ports}, "traffic": traffic}
    await rich.settle(status_of(revision_of(newer)), newer)
    found = rich.get(SERVICE, "fraud")["spec"]["ports"]
    assert [(port["name"], port["port"], port["targetPort"]) for port in found] == [
        ("http", 8000, 8000),
        ("grpc", 9000, 9000),
    ]
    without = copy.deepcopy(newer)
    del without["spec"]["traffic"]["gatewayAPI"]["hostnames"]
    await rich.settle(status_of(revision_of(newer)), without)
    assert "hostnames" not in rich.get(HTTP_ROUTE, "fraud")["spec"]


async def test_a_release_from_start_to_end(rich: World) -> None:
    first, second = revision_of(rich.rollout), revision_of(with_version(rich.rollout, "2"))
    newer = with_version(rich.rollout, "2")
    await rich.settle(status_of(first))
    await rich.settle(status_of(first, second, weights=(90, 10, 0), attempt=2), newer)
    refs = rich.get(HTTP_ROUTE, "fraud")["spec"]["rules"][0]["backendRefs"]
    assert {(ref["name"], ref["weight"]) for ref in refs} == {(f"fraud-{first}", 90), (f"fraud-{second}", 10)}
    watching = status_of(second, previous=first, weights=(90, 0, 10), attempt=2)
    await rich.settle(watching, newer)
    selector = rich.get(SERVICE, "fraud")["spec"]["selector"]
    assert selector["modelrollout.dev/revision"] == second
    await rich.settle(status_of(second, retiring=((first, NOW + 30, 2),), attempt=2), newer)
    assert rich.get(DEPLOYMENT, f"fraud-{first}")["spec"]["replicas"] == 2
    await rich.settle(status_of(second, attempt=2), newer)
    left = rich.children()
    assert set(left.deployments) == {f"fraud-{second}"}
    assert set(left.services) == {"fraud", f"fraud-{second}"}
    assert set(left.controller_revisions) == {f"fraud-{first}", f"fraud-{second}"}


async def test_pod_ratio_pins_and_unpins_the_callers_service(
    lab: Lab, port: KubernetesCluster, namespace: str
) -> None:
    world = World(lab, port, manifest(namespace=namespace))
    first, newer = revision_of(world.rollout), with_version(world.rollout, "2")
    second = revision_of(newer)
    await world.settle(status_of(first))
    for weights, pin in (((75, 25, 0), None), ((100, 0, 0), first)):
        await world.settle(status_of(first, second, weights=weights, attempt=2), newer)
        expected = {"modelrollout.dev/rollout": "fraud"} | ({"modelrollout.dev/revision": pin} if pin else {})
        assert world.get(SERVICE, "fraud")["spec"]["selector"] == expected


async def test_a_name_that_is_taken_is_never_adopted(rich: World) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "fraud", "namespace": rich.namespace},
        "spec": {"selector": {"app": "legacy"}, "ports": [{"port": 80}]},
    }
    before = rich.lab.client.create(SERVICE.path(rich.namespace), foreign)
    with pytest.raises(NameTaken) as raised:
        await execute(rich.port, rich.actions(status_of(revision_of(rich.rollout))))
    assert raised.value.obj["metadata"]["uid"] == before["metadata"]["uid"]
    assert rich.get(SERVICE, "fraud")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_orphans_are_taken_back(rich: World) -> None:
    status = status_of(revision_of(rich.rollout))
    await rich.settle(status)
    name = f"fraud-{revision_of(rich.rollout)}"
    rich.edit(DEPLOYMENT, name, {"metadata": {"ownerReferences": None}})
    await rich.settle(status)
    owners = rich.get(DEPLOYMENT, name)["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [rich.rollout["metadata"]["uid"]]


async def test_a_rich_template_passes_the_dry_run(rich: World) -> None:
    revision = revision_of(rich.rollout)
    answer = await rich.port.apply(
        dry_run_object(rich.rollout, spec_of(rich.rollout), revision), dry_run=True
    )
    assert answer["spec"]["template"]["spec"]["containers"][0]["env"][0]["name"] == "MODEL_NAME"
    assert rich.children().deployments == {}
