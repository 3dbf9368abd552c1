"""The store: what is accepted, whom it concerns, what is evicted."""

from typing import Any

import pytest

from modelrollout.cluster.kinds import (
    DEPLOYMENT,
    ENDPOINT_SLICE,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    POD,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.cluster.store import Key, Ref, Store

FRAUD = Key("shop", "fraud")
OWNER = {"apiVersion": MODEL_ROLLOUT.api_version, "kind": "ModelRollout", "name": "fraud", "uid": "u-fraud"}


def make(
    kind: Kind,
    name: str,
    version: int | str,
    *,
    rollout: str | None = "fraud",
    namespace: str = "shop",
    uid: str | None = None,
    **extra: Any,
) -> Object:
    labels = {"modelrollout.dev/rollout": rollout} if rollout else {}
    labels |= extra.pop("labels", {})
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"u-{name}",
        "resourceVersion": str(version),
        "labels": labels,
    } | extra.pop("metadata", {})
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **extra}


def make_slice(name: str, service: str, version: int, **options: Any) -> Object:
    labels = {"kubernetes.io/service-name": service}
    return make(ENDPOINT_SLICE, name, version, rollout=None, labels=labels, **options)


def test_a_new_object_concerns_its_rollout_and_the_same_version_again_does_not():
    store = Store()
    assert store.put(make(DEPLOYMENT, "fraud-a", 5)) == {FRAUD}
    assert store.put(make(DEPLOYMENT, "fraud-a", 5)) == set()


@pytest.mark.parametrize(
    ("present", "offered", "accepted"),
    [
        pytest.param("9", "10", True, id="a newer one is accepted, compared as a number and not as a text"),
        pytest.param("10", "9", False, id="an older one is refused"),
        pytest.param("10", "10", False, id="the echo of our own write is no news"),
        pytest.param("abc", "abb", True, id="versions that are no numbers: another one is accepted"),
        pytest.param("abc", "abc", False, id="versions that are no numbers: the same one is no news"),
        pytest.param("10", "", True, id="an object without a version is accepted"),
    ],
)
def test_versions(present: str, offered: str, accepted: bool):
    store = Store()
    store.wrote(make(DEPLOYMENT, "fraud-a", present, spec={"replicas": 1}))
    changed = store.put(make(DEPLOYMENT, "fraud-a", offered, spec={"replicas": 2}))
    stored = store.get(DEPLOYMENT, "shop", "fraud-a")
    assert stored is not None
    assert (stored["spec"]["replicas"] == 2) is accepted
    assert bool(changed) is accepted


def test_a_deletion_of_the_former_object_does_not_remove_the_one_we_made_since():
    store = Store()
    store.put(make(DEPLOYMENT, "fraud-a", 5, uid="old"))
    store.wrote(make(DEPLOYMENT, "fraud-a", 8, uid="new"))
    assert store.remove(make(DEPLOYMENT, "fraud-a", 7, uid="old")) == set()
    assert store.get(DEPLOYMENT, "shop", "fraud-a") is not None
    assert store.remove(make(DEPLOYMENT, "fraud-a", 9, uid="new")) == {FRAUD}
    assert store.get(DEPLOYMENT, "shop", "fraud-a") is None
    assert store.remove(make(DEPLOYMENT, "fraud-a", 9, uid="new")) == set()


def test_the_late_answer_to_a_write_does_not_bring_back_what_was_deleted_meanwhile():
    store = Store()
    store.put(make(MODEL_ROLLOUT, "fraud", 5))
    store.remove(make(MODEL_ROLLOUT, "fraud", 7))
    assert store.wrote(make(MODEL_ROLLOUT, "fraud", 6)) == set()
    assert store.rollouts() == []
    assert store.put(make(MODEL_ROLLOUT, "fraud", 9, uid="another")) == {FRAUD}


def test_nor_does_it_after_a_list_without_it():
    store = Store()
    store.put(make(MODEL_ROLLOUT, "fraud", 5))
    store.resync(MODEL_ROLLOUT, [], "7")
    assert store.wrote(make(MODEL_ROLLOUT, "fraud", 6)) == set()


def test_only_so_many_deleted_objects_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modelrollout.cluster.store.GRAVES", 2)
    store = Store()
    for n in range(5):
        store.remove(make(SERVICE, f"s{n}", 7))
    assert list(store._gone) == ["u-s3", "u-s4"]


def test_an_object_that_lost_its_label_comes_back_with_it():
    store = Store()
    store.put(make(SERVICE, "fraud", 5))
    store.remove(make(SERVICE, "fraud", 7))
    assert store.put(make(SERVICE, "fraud", 8)) == {FRAUD}


@pytest.mark.parametrize("kind", [SERVICE, ENDPOINT_SLICE, POD], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("first", ["the watch by label", "the watch by name"])
def test_a_users_object_that_lost_our_label_stays_whichever_watch_tells_it_first(kind: Kind, first: str):
    """The API server ends a watch by label with DELETED: the former object, at the version of the change."""
    store = Store()
    store.put(make(kind, "theirs", 5))
    tells = [
        lambda: store.remove(make(kind, "theirs", 7)),
        lambda: store.put(make(kind, "theirs", 7, rollout=None)),
    ]
    for tell in tells if first == "the watch by label" else reversed(tells):
        tell()
    assert store.count(kind) == 1
    store.remove(make(kind, "theirs", 7, rollout=None))
    assert store.count(kind) == 0


def test_nor_does_the_watch_by_label_that_tells_it_late_undo_what_came_after() -> None:
    store = Store()
    store.put(make(DEPLOYMENT, "theirs", 5))
    store.put(make(DEPLOYMENT, "theirs", 7, rollout=None))
    store.put(make(DEPLOYMENT, "theirs", 8, rollout=None))
    store.remove(make(DEPLOYMENT, "theirs", 7))
    assert store.count(DEPLOYMENT) == 1


@pytest.mark.parametrize("first", ["a list by label", "the watch by name"])
def test_nor_is_it_lost_where_a_list_tells_of_it(first: str):
    """The watch by label was down when the label went, and the watch by name was down for longer."""
    store = Store()
    store.put(make(SERVICE, "theirs", 5))
    tells = [
        lambda: store.resync(SERVICE, [], "9"),
        lambda: store.put(make(SERVICE, "theirs", 7, rollout=None)),
    ]
    for tell in tells if first == "a list by label" else reversed(tells):
        tell()
    assert store.count(SERVICE) == 1


def test_the_late_answer_to_a_write_does_not_bring_back_a_users_object_either():
    store = Store()
    store.put(make(DEPLOYMENT, "legacy", 5, rollout=None))
    store.put(make(DEPLOYMENT, "legacy", 7, rollout=None))
    store.remove(make(DEPLOYMENT, "legacy", 7, rollout=None))
    assert store.wrote(make(DEPLOYMENT, "legacy", 7, rollout=None)) == set()
    assert store.count(DEPLOYMENT) == 0


def test_children_are_those_with_the_label_those_with_the_owner_and_the_slices_of_their_services():
    store = Store()
    store.put(make(MODEL_ROLLOUT, "fraud", 1, rollout=None, uid="u-fraud"))
    store.put(make(DEPLOYMENT, "fraud-b", 2))
    store.put(make(DEPLOYMENT, "fraud-a", 3))
    store.put(make(DEPLOYMENT, "stripped", 4, rollout=None, metadata={"ownerReferences": [OWNER]}))
    store.put(make(SERVICE, "fraud-a", 5))
    store.put(make_slice("fraud-a-x1", "fraud-a", 6))
    store.put(make(POD, "fraud-a-0", 7, labels={"modelrollout.dev/revision": "a"}))
    store.put(make(DEPLOYMENT, "other-a", 8, rollout="other"))
    store.put(make(DEPLOYMENT, "fraud-a", 9, namespace="elsewhere"))
    store.put(make_slice("foreign", "something", 10))
    children = store.children("shop", "fraud")
    assert [d["metadata"]["name"] for d in children.of(DEPLOYMENT)] == ["fraud-a", "fraud-b", "stripped"]
    assert {d["metadata"]["namespace"] for d in children.of(DEPLOYMENT)} == {"shop"}
    assert [s["metadata"]["name"] for s in children.of(ENDPOINT_SLICE)] == ["fraud-a-x1"]
    assert [(p.name, p.revision) for p in children.pods] == [("fraud-a-0", "a")]
    assert children.of(MODEL_ROLLOUT) == ()


def test_a_child_whose_label_was_removed_still_concerns_its_rollout():
    store = Store()
    store.put(make(DEPLOYMENT, "fraud-a", 1, metadata={"ownerReferences": [OWNER]}))
    unlabelled = make(DEPLOYMENT, "fraud-a", 2, rollout=None, metadata={"ownerReferences": [OWNER]})
    assert store.put(unlabelled) == {FRAUD}
    assert store.put(unlabelled | {"metadata": unlabelled["metadata"] | {"resourceVersion": "3"}}) == {FRAUD}


def test_a_relabelled_object_concerns_both_rollouts():
    store = Store()
    store.put(make(DEPLOYMENT, "x", 1, rollout="fraud"))
    assert store.put(make(DEPLOYMENT, "x", 2, rollout="spam")) == {FRAUD, Key("shop", "spam")}
    assert store.children("shop", "fraud").of(DEPLOYMENT) == ()


def test_an_endpoint_slice_concerns_the_rollout_of_its_service():
    store = Store()
    assert store.put(make_slice("s1", "fraud-a", 1)) == set()
    store.put(make(SERVICE, "fraud-a", 2))
    assert store.put(make_slice("s1", "fraud-a", 3)) == {FRAUD}
    assert store.remove(make_slice("s1", "fraud-a", 4)) == {FRAUD}
    assert store.endpoint_slices("shop", "fraud-a") == []


def test_references_make_a_users_route_and_service_concern_a_rollout_until_they_are_replaced():
    store = Store()
    route, service = Ref("HTTPRoute", "shop", "public"), Ref("Service", "shop", "byo")
    store.refer(FRAUD, [route, service])
    store.refer(Key("shop", "spam"), [route])
    both = {FRAUD, Key("shop", "spam")}
    assert store.put(make(HTTP_ROUTE, "public", 1, rollout=None)) == both
    assert store.referrers(HTTP_ROUTE, "shop", "public") == both
    assert store.put(make_slice("byo-1", "byo", 2)) == {FRAUD}
    store.refer(FRAUD, [])
    assert store.put(make(HTTP_ROUTE, "public", 3, rollout=None)) == {Key("shop", "spam")}
    assert store.put(make_slice("byo-1", "byo", 4)) == set()


def test_a_resync_evicts_ghosts_and_tells_only_what_was_news():
    store = Store()
    store.put(make(DEPLOYMENT, "kept", 1))
    store.put(make(DEPLOYMENT, "ghost", 2, rollout="spam"))
    store.put(make(SERVICE, "fraud-a", 3))
    affected = store.resync(DEPLOYMENT, [make(DEPLOYMENT, "kept", 1)], "10")
    assert affected == {Key("shop", "spam")}
    assert store.get(DEPLOYMENT, "shop", "ghost") is None
    assert store.get(SERVICE, "shop", "fraud-a") is not None, "another kind is not touched"
    assert store.resync(DEPLOYMENT, [make(DEPLOYMENT, "kept", 7)], "11") == {FRAUD}


def test_a_resync_of_one_namespace_leaves_the_others_alone():
    store = Store()
    store.put(make(DEPLOYMENT, "a", 1, namespace="one"))
    store.put(make(DEPLOYMENT, "a", 2, namespace="two"))
    store.resync(DEPLOYMENT, [], "10", namespace="one")
    assert store.count(DEPLOYMENT) == 1
    assert store.get(DEPLOYMENT, "two", "a") is not None


def test_a_list_that_was_read_before_our_write_takes_nothing_of_it_back():
    store = Store()
    store.wrote(make(DEPLOYMENT, "fraud-a", 20, spec={"replicas": 2}))
    store.wrote(make(DEPLOYMENT, "fraud-new", 21))
    assert store.resync(DEPLOYMENT, [make(DEPLOYMENT, "fraud-a", 5)], "15") == set()
    kept = store.get(DEPLOYMENT, "shop", "fraud-a")
    assert kept is not None
    assert kept["spec"] == {"replicas": 2}
    assert store.get(DEPLOYMENT, "shop", "fraud-new") is not None


def test_after_a_restore_of_the_cluster_lower_versions_are_accepted():
    store = Store()
    store.resync(DEPLOYMENT, [make(DEPLOYMENT, "a", 900), make(DEPLOYMENT, "b", 901)], "1000")
    assert store.resync(DEPLOYMENT, [make(DEPLOYMENT, "a", 300)], "400") == {FRAUD}
    assert store.count(DEPLOYMENT) == 1
    assert store.put(make(DEPLOYMENT, "a", 401)) == {FRAUD}


def test_nothing_is_left_in_the_indexes_of_rollouts_that_went():
    store = Store()
    for n in range(20):
        key = Key("shop", f"r{n}")
        objects = [
            make(MODEL_ROLLOUT, key.name, 1, rollout=None, uid=f"u{n}"),
            make(SERVICE, f"{key.name}-a", 2, rollout=key.name, metadata={"ownerReferences": [OWNER]}),
            make_slice(f"{key.name}-a-1", f"{key.name}-a", 3),
            make(POD, f"{key.name}-0", 4, rollout=key.name),
        ]
        store.refer(key, [Ref("HTTPRoute", "shop", f"route{n}")])
        for obj in objects:
            store.put(obj)
        for obj in objects:
            store.remove(obj)
        store.refer(key, [])
    # Which objects are gone is remembered of a bounded number.
    kept = {name: value for name, value in vars(store).items() if name != "_gone"}
    indexes = {name: value for name, value in kept.items() if hasattr(value, "__len__")}
    assert {name: len(value) for name, value in indexes.items() if value} == {}


def test_managed_fields_are_kept_where_they_tell_who_else_writes():
    store = Store()
    fields = {"managedFields": [{"manager": "argocd"}]}
    store.put(make(HTTP_ROUTE, "public", 1, metadata=fields))
    store.put(make(DEPLOYMENT, "fraud-a", 2, metadata=fields))
    store.put(make(ENDPOINT_SLICE, "fraud-a-1", 3, metadata=fields))
    route, deployment = store.get(HTTP_ROUTE, "shop", "public"), store.get(DEPLOYMENT, "shop", "fraud-a")
    assert route is not None
    assert deployment is not None
    assert route["metadata"]["managedFields"] == [{"manager": "argocd"}]
    assert deployment["metadata"]["managedFields"] == [{"manager": "argocd", "fieldsV1": "{}"}]
    slices = store.get(ENDPOINT_SLICE, "shop", "fraud-a-1")
    assert slices is not None
    assert "managedFields" not in slices["metadata"]


POD_STATUS = {
    "phase": "Running",
    "podIP": "10.244.0.7",
    "startTime": "2026-01-01T00:00:00Z",
    "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"},
        {"type": "PodScheduled", "status": "True"},
    ],
    "containerStatuses": [
        {"name": "model", "restartCount": 2, "state": {"running": {"startedAt": "2026-01-01T00:00:30Z"}}},
    ],
}


def test_a_ready_pod_is_stripped_to_what_decisions_use():
    store = Store()
    store.put(make(POD, "p", 1, spec={"nodeName": "n1", "containers": [{}] * 50}, status=POD_STATUS))
    pod = store.pod("shop", "p")
    assert pod is not None
    assert (pod.start, pod.ready_since) == (1767225600.0, 1767225660.0)
    assert pod.restarts == (("model", 2),)
    assert pod.container_started == (("model", 1767225630.0),)
    assert (pod.node, pod.phase, pod.pod_ip, pod.ready, pod.waiting) == (
        "n1",
        "Running",
        "10.244.0.7",
        True,
        (),
    )
    assert store.get(POD, "shop", "p") == {}


def test_a_terminating_pod_is_not_ready_even_while_its_condition_says_so():
    store = Store()
    gone = {"deletionTimestamp": "2026-01-01T00:02:00Z"}
    store.put(make(POD, "p", 1, status=POD_STATUS, metadata=gone))
    pod = store.pod("shop", "p")
    assert pod is not None
    assert pod.terminating
    assert not pod.ready


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(
            {
                "containerStatuses": [
                    {"name": "m", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
                ]
            },
            ("m", "ImagePullBackOff", "no", None),
            id="an image that can't be pulled",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {
                        "name": "m",
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            },
            ("m", "CrashLoopBackOff", "", 137),
            id="a crash loop with its last exit code",
        ),
        pytest.param(
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            ("", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", None),
            id="accelerators are missing",
        ),
        pytest.param(
            {
                "initContainerStatuses": [
                    {"name": "get", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}
                ]
            },
            ("get", "Error", "", 2),
            id="an init container that failed",
        ),
    ],
)
def test_what_a_pod_waits_for(status: dict[str, Any], expected: tuple[Any, ...]):
    store = Store()
    store.put(make(POD, "p", 1, status=status))
    pod = store.pod("shop", "p")
    assert pod is not None
    (waiting,) = pod.waiting
    assert (waiting.container, waiting.reason, waiting.message, waiting.exit_code) == expected
    assert not pod.ready
