"""What is seen of a revision: ready as the proxies see it, since when, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.cluster.pods import strip
from modelrollout.workloads import Children, observe, pinned
from tests.unit.workloads.manifests import Object, manifest, spec_of
from tests.unit.workloads.server import pod_object, slice_of

NOW = 1_800_000_000.0
ROLLOUT = manifest()
REVISION = "abcdefghij"
SERVICE = f"fraud-{REVISION}"
READY = "2026-11-20T08:00:00Z"
SINCE = 1_795_161_600.0


def workload(replicas: int | None = 2, **status: Any) -> Object:
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": SERVICE, "namespace": "ml", "labels": {"modelrollout.dev/revision": REVISION}},
        "spec": {} if replicas is None else {"replicas": replicas},
        "status": status,
    }


def children(*pods: Object, slices: list[Object] | None = None, deployment: Object | None = None) -> Children:
    return Children(
        deployments={} if deployment is None else {SERVICE: deployment},
        endpointslices={s["metadata"]["name"]: s for s in slices or []},
        pods={pod["metadata"]["name"]: strip(pod) for pod in pods},
    )


def waiting(reason: str, message: str = "", exit_code: int | None = None, restarts: int = 0) -> Object:
    last = {} if exit_code is None else {"lastState": {"terminated": {"exitCode": exit_code}}}
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "model", "restartCount": restarts, "state": state, **last}


def stuck(name: str, container: Object) -> Object:
    return pod_object(name, REVISION, phase="Pending", containerStatuses=[container])


def unscheduled(name: str) -> Object:
    pod = pod_object(name, REVISION, phase="Pending")
    pod["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ]
    return pod


P1, P2 = pod_object("p1", REVISION, ready_at=READY), pod_object("p2", REVISION, ready_at=READY)
ENDPOINTS: dict[str, tuple[list[Object], int]] = {
    "two pods": ([slice_of(SERVICE, ["p1", "p2"])], 2),
    "no slice yet": ([], 0),
    "a pod that moves between two slices": (
        [slice_of(SERVICE, ["p1", "p2"], name="s1"), slice_of(SERVICE, ["p2"], name="s2")],
        2,
    ),
    "two IP families": (
        [
            slice_of(SERVICE, ["p1"], name="v4"),
            slice_of(SERVICE, ["p1"], name="v6", address="fd00::"),
        ],
        1,
    ),
    "a pod that is not ready": ([slice_of(SERVICE, ["p1"], ready=False)], 0),
    "a pod that goes, and still serves": (
        [slice_of(SERVICE, ["p1"], ready=False, serving=True, terminating=True)],
        0,
    ),
    "a pod of which the API says nothing": ([slice_of(SERVICE, ["p1"], ready=None)], 1),
    "the slice of another Service": ([slice_of("fraud", ["p1"])], 0),
}


@pytest.mark.parametrize(("slices", "ready"), ENDPOINTS.values(), ids=ENDPOINTS)
def test_ready_is_what_the_service_sends_requests_to(slices: list[Object], ready: int) -> None:
    view = observe(ROLLOUT, children(P1, P2, slices=slices), NOW)[REVISION]
    assert view.ready == ready
    assert view.ready_since == (SINCE,) * ready


GOING = pod_object("p3", REVISION, ready_at=READY)
GOING["metadata"]["deletionTimestamp"] = READY
SERVED: dict[str, tuple[list[Object], int]] = {
    "without any slice its Service is away: what pods say": ([], 2),
    "an empty slice says that there is none": ([slice_of(SERVICE, [])], 0),
    "a slice that knows one pod": ([slice_of(SERVICE, ["p1"])], 1),
}


@pytest.mark.parametrize(("slices", "ready"), SERVED.values(), ids=SERVED)
def test_of_a_revision_that_was_ready_the_loss_of_all_slices_says_nothing(
    slices: list[Object], ready: int
) -> None:
    seen = children(P1, P2, GOING, stuck("p4", waiting("CrashLoopBackOff")), slices=slices)
    assert observe(ROLLOUT, seen, NOW, served=[REVISION])[REVISION].ready == ready


def test_a_pod_that_has_not_said_since_when_counts_from_now() -> None:
    seen = children(P1, slices=[slice_of(SERVICE, ["p1", "unknown"])])
    assert observe(ROLLOUT, seen, NOW)[REVISION].ready_since == (SINCE, NOW)


DESIRED = {"asked": (workload(7), 7), "not said": (workload(None), 1), "no Deployment": (None, 0)}


@pytest.mark.parametrize(("deployment", "desired"), DESIRED.values(), ids=DESIRED)
def test_desired_is_what_the_deployment_asks_for(deployment: Object | None, desired: int) -> None:
    assert observe(ROLLOUT, children(P1, deployment=deployment), NOW)[REVISION].desired == desired


def test_pods_that_go_are_counted_and_those_that_are_over_are_not() -> None:
    going, over = pod_object("p2", REVISION), pod_object("p3", REVISION, phase="Failed")
    going["metadata"]["deletionTimestamp"] = READY
    assert observe(ROLLOUT, children(P1, going, over), NOW)[REVISION].pods == 2


def test_restarts_are_those_of_all_its_pods() -> None:
    pods = [stuck(f"p{n}", waiting("CrashLoopBackOff", exit_code=1, restarts=n)) for n in (1, 2)]
    other = pod_object("x", "other", containerStatuses=[{"name": "model", "restartCount": 40, "state": {}}])
    views = observe(ROLLOUT, children(*pods, other), NOW)
    assert views[REVISION].restarts == 3
    assert set(views) == {REVISION, "other"}


QUOTA = workload(
    conditions=[
        {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": "exceeded quota: gpus, requested: 1, used: 8, limited: 8",
        }
    ]
)
RUNNING = {"name": "model", "restartCount": 0, "state": {"running": {"startedAt": READY}}}
CRASHED_BEFORE = RUNNING | {
    "ready": False,
    "restartCount": 1,
    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
}
REASONS: dict[str, tuple[Children, tuple[str, ...]]] = {
    "an image that does not exist": (
        children(stuck("p1", waiting("ImagePullBackOff", 'Back-off pulling image "m:9"'))),
        ('ImagePullBackOff: Back-off pulling image "m:9"',),
    ),
    "a crash loop": (
        children(stuck("p1", waiting("CrashLoopBackOff", "back-off 5m0s restarting", 137, 4))),
        ("CrashLoopBackOff: container model exited with code 137",),
    ),
    "a crash, while it runs again": (
        children(pod_object("p1", REVISION, containerStatuses=[CRASHED_BEFORE])),
        ("OOMKilled: container model exited with code 137",),
    ),
    "no accelerator": (
        children(unscheduled("p1"), unscheduled("p2")),
        ("Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu. (2 pods)",),
    ),
    "a quota": (
        children(deployment=QUOTA),
        ("FailedCreate: exceeded quota: gpus, requested: 1, used: 8, limited: 8",),
    ),
    "a probe that does not pass": (
        children(pod_object("p1", REVISION, containerStatuses=[RUNNING])),
        ("NotReady: the container runs and its readiness probe does not pass",),
    ),
    "a pod that only just starts": (
        children(stuck("p1", waiting("ContainerCreating"))),
        ("ContainerCreating",),
    ),
    "the surest cause first": (
        children(
            stuck("p1", waiting("ContainerCreating")),
            unscheduled("p2"),
            stuck("p3", waiting("CrashLoopBackOff", exit_code=1)),
            stuck("p4", waiting("ErrImagePull", "no such image")),
            stuck("p5", waiting("CreateContainerConfigError", 'secret "s3" not found')),
            deployment=QUOTA,
        ),
        (
            "ErrImagePull: no such image",
            'CreateContainerConfigError: secret "s3" not found',
            "CrashLoopBackOff: container model exited with code 1",
            "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            "FailedCreate: exceeded quota: gpus, requested: 1, used: 8, limited: 8",
        ),
    ),
    "nothing of pods that are ready, or going": (children(P1, deployment=workload()), ()),
}


@pytest.mark.parametrize(("seen", "said"), REASONS.values(), ids=REASONS)
def test_a_person_reads_why_pods_are_not_there(seen: Children, said: tuple[str, ...]) -> None:
    assert observe(ROLLOUT, seen, NOW)[REVISION].waiting == said


def _service(selector: Object, **metadata: Any) -> Object:
    labels = {"modelrollout.dev/rollout": "fraud"}
    return {
        "kind": "Service",
        "metadata": {"name": "fraud", "namespace": "ml", "labels": labels, **metadata},
        "spec": {"selector": selector},
    }


OTHER = [{"kind": "Other", "apiVersion": "v1", "name": "x", "uid": "x", "controller": True}]
PINS = {
    "a revision": (_service({"modelrollout.dev/revision": REVISION}), REVISION),
    "the pods of all revisions": (_service({"modelrollout.dev/rollout": "fraud"}), None),
    "somebody else's": (_service({"modelrollout.dev/revision": REVISION}, ownerReferences=OTHER), None),
    "no Service": (None, None),
}


@pytest.mark.parametrize(("service", "pin"), PINS.values(), ids=PINS)
def test_what_callers_are_pinned_to_is_read_from_our_service(service: Object | None, pin: str | None) -> None:
    found = Children(services={} if service is None else {"fraud": service})
    assert pinned(ROLLOUT, spec_of(ROLLOUT), found) == pin
