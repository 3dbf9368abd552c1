"""The fakes together: what the operator would see in its store while a revision comes up."""

from modelrollout.cluster.kinds import DEPLOYMENT, ENDPOINT_SLICE, HTTP_ROUTE, POD, Object
from modelrollout.cluster.store import Store
from tests.fakes.cluster import FakeCluster
from tests.fakes.nodes import Nodes

LABELS = {"modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": "a"}


def deployment(replicas: int) -> Object:
    template = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "model", "image": "x"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "fraud-a", "namespace": "shop", "labels": LABELS},
        "spec": {"replicas": replicas, "selector": {"matchLabels": LABELS}, "template": template},
    }


def service() -> Object:
    spec = {"selector": LABELS, "ports": [{"port": 80}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "fraud-a", "namespace": "shop", "labels": LABELS},
        "spec": spec,
    }


def follow(cluster: FakeCluster) -> Store:
    store = Store()
    cluster.subscribe(lambda type, obj: store.remove(obj) if type == "DELETED" else store.put(obj))
    return store


async def test_pods_come_up_become_ready_and_go():
    cluster = FakeCluster()
    store, nodes = follow(cluster), Nodes(cluster, now=lambda: 1.7e9, unready={"a"})
    await cluster.apply(deployment(2))
    await cluster.apply(service())
    nodes.settle()
    assert [(pod.name, pod.ready) for pod in store.children("shop", "fraud").pods] == [
        ("fraud-a-0", False),
        ("fraud-a-1", False),
    ]
    nodes.unready.clear()
    nodes.settle()
    assert [pod.ready for pod in store.children("shop", "fraud").pods] == [True, True]
    (endpoints,) = store.endpoint_slices("shop", "fraud-a")
    assert [e["conditions"]["ready"] for e in endpoints["endpoints"]] == [True, True]
    ready = store.get(DEPLOYMENT, "shop", "fraud-a")
    assert ready is not None
    assert ready["status"]["readyReplicas"] == 2
    await cluster.apply(deployment(1))
    nodes.settle()
    assert [pod.name for pod in store.children("shop", "fraud").pods] == ["fraud-a-0"]
    await cluster.delete(DEPLOYMENT, "shop", "fraud-a")
    nodes.settle()
    assert store.children("shop", "fraud").pods == ()
    assert cluster.look_all(POD) == []


async def test_a_world_that_has_settled_stands_still():
    cluster = FakeCluster()
    nodes = Nodes(cluster, now=lambda: 1.7e9)
    await cluster.apply(deployment(2))
    await cluster.apply(service())
    nodes.settle()
    changes: list[str] = []
    cluster.subscribe(lambda type, obj: changes.append(f"{type} {obj['kind']}"))
    nodes.settle()
    await cluster.apply(deployment(2))
    assert changes == []


async def test_pods_that_cannot_start_say_why():
    cluster = FakeCluster()
    store, nodes = (
        follow(cluster),
        Nodes(cluster, now=lambda: 1.7e9, waiting={"a": "ImagePullBackOff"}, limit={"a": 1}),
    )
    await cluster.apply(deployment(2))
    nodes.settle()
    reasons = [pod.waiting[0].reason for pod in store.children("shop", "fraud").pods]
    assert reasons == ["ImagePullBackOff", "Unschedulable"]


async def test_a_route_is_accepted_for_the_generation_that_was_written():
    cluster = FakeCluster()
    nodes = Nodes(cluster, now=lambda: 1.7e9)
    route = {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": "public", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"name": "gw"}],
            "rules": [{"backendRefs": [{"name": "fraud-a", "port": 80}]}],
        },
    }
    await cluster.apply(route)
    nodes.settle()
    route["spec"]["rules"][0]["backendRefs"][0]["weight"] = 9
    written = await cluster.apply(route)
    (parent,) = written["status"]["parents"]
    assert {c["observedGeneration"] for c in parent["conditions"]} == {1}
    assert written["metadata"]["generation"] == 2
    nodes.settle()
    seen = cluster.look(HTTP_ROUTE, "shop", "public")
    assert seen is not None
    assert {c["observedGeneration"] for c in seen["status"]["parents"][0]["conditions"]} == {2}
    assert cluster.look_all(ENDPOINT_SLICE) == []
