"""What goes wrong around a rollout, and other writers; and that a rollout at rest asks nothing of the API server.

Each story has a namespace of its own; they run side by side under one operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from lab.kube import KubeError, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from modelrollout.controller.memory import RETRY_CONTESTED
from tests.cluster.harness import (
    BAD,
    GATEWAY,
    OURS,
    ROUTES,
    Audit,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    analysis,
    condition,
    is_ready,
    title,
    version_of,
    weights_of,
)

STORIES = Stories()
story = STORIES.story
HOOKS = "admissionregistration.k8s.io/v1"
OPERATOR = "system:serviceaccount:modelrollout-system:"
STEPS = {"canary": {"steps": [{"weight": 20, "duration": "2s"}, {"weight": 50, "duration": "2s"}]}}
APPROVED = {
    "canary": {
        "steps": [{"weight": 20, "duration": "2s"}, {"weight": 50, "duration": "2s", "approval": True}]
    }
}
LONG = {"canary": {"steps": [{"weight": 20, "duration": "10m"}, {"weight": 50, "duration": "1s"}]}}
RENEWALS = 10  # of the operator's own Lease, every two seconds: the clock of the quiet time


def message(obj: Object) -> str:
    return str((obj.get("status") or {}).get("message") or "")


# What is not acceptable (first, for an obstacle is looked at again after a minute)


def taken(kind: str, obj: Object, path: str) -> Story:
    """A foreign object stands where one of ours is to be."""

    def run(world: World) -> None:
        rollout = world.rollout()
        where = f"{path.format(namespace=rollout.namespace)}"
        rollout.client.create(where, obj)
        rollout.apply("1")
        refused = rollout.wait_phase("Invalid")
        accepted = condition(refused, "Accepted")
        assert accepted["reason"] == "NameTaken"
        assert kind in accepted["message"] and "fraud" in accepted["message"]
        assert world.deployments.names(rollout.namespace) == []
        rollout.client.delete(f"{where}/fraud")
        rollout.wait_phase("Healthy")

    run.__name__ = f"a_foreign_{kind}_under_our_name_is_left_alone_until_it_goes"
    return run


STORIES += [
    taken(
        "Service",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "fraud"},
            "spec": {"ports": [{"port": 1}]},
        },
        "/api/v1/namespaces/{namespace}/services",
    ),
    taken(
        "HTTPRoute",
        {"apiVersion": ROUTES[0], "kind": "HTTPRoute", "metadata": {"name": "fraud"}, "spec": {}},
        "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
    ),
]


# Prometheus


def away(obj: Object) -> bool:
    return condition(obj, "MetricsAvailable").get("status") == "False"


def wait_away(rollout: Rollout, reason: str) -> Object:
    """Something else may be told first, as a time-out where this machine is busy."""
    return rollout.wait(
        lambda obj: away(obj) and condition(obj, "MetricsAvailable")["reason"] == reason,
        f"the word that metrics are away: {reason}",
    )


def outage(mode: str, reason: str, *, lossless: bool = True) -> Story:
    """A release in whose second step Prometheus fails in one way for a while."""

    def run(world: World) -> None:
        rollout = world.rollout()
        rollout.deploy("1")
        rollout.apply("2", strategy=APPROVED)  # however slow this machine is, the step has not ended by then
        step = rollout.wait_step("2/2")["status"]
        world.prometheus.fail(mode, match=rollout.namespace, seconds=60.0)
        status = wait_away(rollout, reason)["status"]
        assert status["phase"] == "Progressing"
        assert status["weights"]["candidate"] == 50, "weight is held"
        assert "left" in status["step"], "the clock is held"
        assert "held" in status["message"]
        world.prometheus.heal(match=rollout.namespace)
        rollout.wait(lambda obj: not away(obj), "metrics again")
        rollout.ask("approve", f"{step['candidate']['revision']}/{step['step']['id']}")
        rollout.wait_phase("Watching")
        rollout.wait_phase("Healthy")
        assert rollout.status()["history"][0]["outcome"] == "Promoted"
        assert not {"RollingBack", "RolledBack"} & set(rollout.phases())
        assert {"MetricsUnavailable", "MetricsRestored"} <= set(rollout.reasons())
        if lossless:
            rollout.check_ledger()

    run.__name__ = f"prometheus_that_answers_with_{mode}_for_a_while_holds_and_then_the_release_is_finished"
    return run


STORIES += [
    outage("refuse", "PrometheusUnreachable"),
    outage("503", "PrometheusRefused"),
    outage("html", "PrometheusBadAnswer"),
    outage("nan", "NotANumber"),
    outage("inf", "NotANumber"),
    outage("slow", "PrometheusTimedOut"),
    outage("duplicate", "DuplicateSeries"),
    outage("warnings", "PartialAnswer"),
    outage("empty", "NotScraped", lossless=False),
]


@story
def a_prometheus_that_is_stopped_holds_all_rollouts_and_none_is_rolled_back(world: World) -> None:
    rollouts = [world.rollout() for _ in range(3)]
    frail = analysis(prometheus="frail")
    for rollout in rollouts:
        rollout.apply("1", analysis=frail)
    for rollout in rollouts:
        rollout.wait_phase("Healthy")
    for rollout in rollouts:
        rollout.apply("2", strategy=STEPS, analysis=frail)
    for rollout in rollouts:
        rollout.wait_step("1/2")
    world.frail.stop()
    for rollout in rollouts:
        assert wait_away(rollout, "PrometheusUnreachable")["status"]["phase"] == "Progressing"
    world.frail.start()
    for rollout in rollouts:
        rollout.wait_phase("Watching")
        assert rollout.wait_phase("Healthy")["status"]["history"][0]["outcome"] == "Promoted"
        assert "RollingBack" not in rollout.phases()
        rollout.check_ledger()


@story
def a_long_outage_parks_the_candidate_without_traffic_and_keeps_its_pods(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=STEPS, analysis=analysis(outage="4s"))
    new = rollout.wait_step("2/2")["status"]["candidate"]["revision"]
    pods = {pod["metadata"]["uid"] for pod in rollout.pods(new)}
    world.prometheus.fail("503", match=rollout.namespace)
    parked = rollout.wait(lambda obj: obj["status"]["parked"], "the parking")["status"]
    assert (parked["weights"]["candidate"], parked["phase"]) == (0, "Progressing")
    world.routes.wait(
        rollout.namespace,
        "fraud",
        lambda route: weights_of(route).get(rollout.child(new), 0) == 0,
        "weight 0 in the route",
        after=rollout.applied,
    )
    world.prometheus.heal(match=rollout.namespace)
    rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 50, "the weight of the step again")
    assert pods <= {pod["metadata"]["uid"] for pod in rollout.pods(new)}, "they stayed"
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")


# Pods


@story
def a_candidate_that_loses_readiness_loses_its_weight_before_anything_else_is_written(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=STEPS)
    new = rollout.wait_step("2/2")["status"]["candidate"]["revision"]
    audit = Audit(world.lab.audit_log)
    rollout.set_ready(new, False)
    taken = rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 0, "the loss of weight")
    route = world.routes.wait(
        rollout.namespace,
        "fraud",
        lambda obj: weights_of(obj).get(rollout.child(new), 0) == 0,
        "weight 0 in the route",
        after=version_of(taken),
    )
    lost = min(
        version_of(pod)
        for name in world.pods.names(rollout.namespace)
        for pod in world.pods.versions(rollout.namespace, name)
        if name.startswith(rollout.child(new)) and version_of(pod) > 0 and lost_readiness(pod)
    )
    assert lost < version_of(taken) < version_of(route)
    # A watch may tell of a write before the audit log does: a request is logged once its answer was sent.
    wait_until(lambda: bool(effects(audit, rollout.namespace)), timeout=30, what="an effect in the audit log")
    assert effects(audit, rollout.namespace)[0] == "patch httproutes"
    rollout.set_ready(new, True)
    rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 50, "the weight again")
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")


def lost_readiness(pod: Object) -> bool:
    annotations = pod["metadata"].get("annotations") or {}
    return not is_ready(pod) and "false" in annotations.values()


def effects(audit: Audit, namespace: str) -> list[str]:
    """What was written besides ModelRollouts and events, in order."""
    done = [f"{e['verb']} {e['objectRef']['resource']}" for e in writes(audit, namespace)]
    return [what for what in done if "modelrollouts" not in what and "events" not in what]


def writes(audit: Audit, namespace: str) -> list[Object]:
    """What the operator wrote in a namespace, in order."""
    return [
        event
        for event in audit.requests(OPERATOR)
        if event["objectRef"].get("namespace") == namespace and event["verb"] not in ("get", "list", "watch")
    ]


@story
def when_the_baseline_has_no_ready_pod_the_candidate_serves(world: World) -> None:
    rollout = world.rollout()
    old = rollout.deploy("1")
    rollout.apply("2", strategy=LONG)
    rollout.wait_step("1/2")
    rollout.set_ready(old, False)
    rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 100, "all weight on the candidate")
    rollout.wait_event("StableUnavailable")
    new = rollout.wait(lambda obj: obj["status"]["candidate"]["desired"] == 2, "full size of the candidate")
    wait_for_callers(rollout, new["status"]["candidate"]["revision"])
    rollout.set_ready(old, True)
    rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 20, "the weight of the step again")
    wait_for_callers(rollout, old)
    rollout.ask("abort", rollout.status()["candidate"]["revision"])
    rollout.wait_phase("RolledBack")


def wait_for_callers(rollout: Rollout, revision: str) -> None:
    """The Service for callers inside of the cluster goes to a revision."""
    path = path_of("v1", "services", rollout.namespace, rollout.name)
    wait_until(
        lambda: rollout.client.get(path)["spec"]["selector"].get("modelrollout.dev/revision") == revision,
        timeout=30,
        what=f"callers to go to {revision}",
    )


@contextmanager
def webhook_away(rollout: Rollout) -> Iterator[None]:
    """Nobody answers a webhook that the API server asks before it takes a Deployment of the rollout's namespace."""
    client, name, kind = rollout.client, f"away-{rollout.namespace}", "ValidatingWebhookConfiguration"
    hook = {
        "name": "away.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [
            {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": rollout.namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    client.apply({"apiVersion": HOOKS, "kind": kind, "metadata": {"name": name}, "webhooks": [hook]})

    def asked() -> bool:
        (first, *_) = client.list(path_of("apps/v1", "deployments", rollout.namespace))
        path = path_of("apps/v1", "deployments", rollout.namespace, first["metadata"]["name"])
        try:
            client.patch(path, {"metadata": {"labels": {"probe": "1"}}}, dryRun="All")
        except KubeError as error:
            return "failed calling webhook" in error.message
        return False

    try:
        wait_until(asked, timeout=60, what="the webhook")
        yield
    finally:
        client.delete(path_of(HOOKS, "validatingwebhookconfigurations", None, name))


@story
def a_webhook_that_is_away_keeps_traffic_neither_on_dead_pods_nor_on_a_harmful_candidate(
    world: World,
) -> None:
    rollout = world.rollout()
    old, new = rollout.compare(strategy=LONG)
    with webhook_away(rollout):
        rollout.set_ready(old, False)
        dead = rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 100, "all on the candidate")
        world.routes.wait(
            rollout.namespace,
            "fraud",
            lambda route: weights_of(route) == {rollout.child(new): 100},
            "the route away from dead pods",
            after=version_of(dead),
        )
        rollout.set_ready(old, True)
        rollout.wait(lambda obj: obj["status"]["weights"]["candidate"] == 20, "the weight of the step again")
        rollout.apply("3", strategy=LONG)  # the mend, and nobody can say whether it is acceptable
        held = rollout.wait(
            lambda obj: condition(obj, "Accepted")["reason"] == "NotChecked",
            "the word that it is not checked",
        )
        assert "failed calling webhook" in message(held)
        world.traffic.spoil(rollout.namespace, new, 0.1)
        back = rollout.wait_phase("RolledBack")
        assert back["status"]["rejected"] == {"revision": new, "reason": "HarmProven"}
        assert condition(back, "Accepted")["status"] == "Unknown"
    third = rollout.wait_step("1/2")["status"]["candidate"]["revision"]
    assert third not in (old, new)
    assert "Invalid" not in rollout.reasons()


# Other writers


@story
def a_route_that_another_writer_reverts_is_put_right_and_contested_after_three_times(world: World) -> None:
    rollout = world.rollout()
    old, new = rollout.compare(strategy=LONG)
    wanted = {rollout.child(old): 80, rollout.child(new): 20}
    for _ in range(3):
        foreign = version_of(revert(rollout, {rollout.child(old): 100}))
        corrected = world.routes.wait(
            rollout.namespace,
            "fraud",
            lambda route: weights_of(route) == wanted,
            "the correction",
            after=foreign + 1,
        )
    drift = rollout.wait_event("TrafficDrift")
    assert "HTTPRoute fraud" in drift["note"] and "argocd" in drift["note"]
    contested = rollout.wait(
        lambda obj: condition(obj, "TrafficVerified").get("reason") == "RouteContested", "the contest"
    )
    assert condition(contested, "TrafficVerified")["status"] == "False"
    assert "argocd" in condition(contested, "TrafficVerified")["message"]
    assert "left" in contested["status"]["step"], "the clock is held"
    rollout.ask("abort", new)
    back = world.routes.wait(
        rollout.namespace,
        "fraud",
        lambda route: weights_of(route) == {rollout.child(old): 100},
        "the way back",
        after=version_of(corrected) + 1,
    )
    took = world.routes.seen(version_of(back)) - world.routes.seen(version_of(corrected))
    assert took < RETRY_CONTESTED / 2, "what is decided meanwhile does not wait for the next correction"
    rollout.wait_phase("RolledBack")


def revert(rollout: Rollout, weights: dict[str, int]) -> Object:
    """As a GitOps tool that has another route in its repository."""
    refs = [{"name": name, "port": 80, "weight": weight} for name, weight in weights.items()]
    return rollout.client.apply(
        {
            "apiVersion": ROUTES[0],
            "kind": "HTTPRoute",
            "metadata": {"name": rollout.name, "namespace": rollout.namespace},
            "spec": {"rules": [{"backendRefs": refs}]},
        },
        field_manager="argocd",
    )


@story
def children_that_another_writer_changes_or_deletes_are_put_right(world: World) -> None:
    rollout = world.rollout()
    revision = rollout.deploy("1")
    name, namespace = rollout.child(revision), rollout.namespace
    deployment, service = (
        path_of("apps/v1", "deployments", namespace, name),
        path_of("v1", "services", namespace),
    )
    scaled = rollout.client.patch(deployment, {"spec": {"replicas": 5}}, fieldManager="kubectl-scale")
    world.deployments.wait(
        namespace, name, lambda obj: obj["spec"]["replicas"] == 2, "the size", after=version_of(scaled) + 1
    )
    assert "kubectl-scale" in rollout.wait_event("DriftCorrected")["note"]
    rollout.client.patch(f"{service}/fraud", {"spec": {"selector": {"modelrollout.dev/revision": "other"}}})
    selects = lambda name: rollout.client.find(f"{service}/{name}")  # noqa: E731
    wait_until(
        lambda: (selects("fraud") or {})["spec"]["selector"]["modelrollout.dev/revision"] == revision,
        timeout=30,
        what="the Service's selector",
    )
    rollout.client.delete(f"{service}/{name}")
    wait_until(lambda: selects(name) is not None, timeout=30, what="the Service")
    rollout.client.delete(path_of(*ROUTES, namespace, "fraud"))
    wait_until(lambda: weights_or_none(rollout) == {name: 100}, timeout=30, what="the route")


@story
def children_whose_label_is_taken_off_get_it_back_and_no_traffic_moves(world: World) -> None:
    """The control plane takes the label off the EndpointSlices of the Service too, and puts it back there."""
    rollout = world.rollout()
    old, new = rollout.compare(strategy=LONG)
    label = "modelrollout.dev/rollout"
    services = path_of("v1", "services", rollout.namespace)
    taken_off = (
        f"{services}/{rollout.child(old)}",
        f"{services}/fraud",
        path_of("apps/v1", "deployments", rollout.namespace, rollout.child(old)),
        path_of("apps/v1", "controllerrevisions", rollout.namespace, rollout.child(new)),
    )
    for path in taken_off:
        rollout.client.patch(path, {"metadata": {"labels": {label: None}}})
    labels = lambda path: rollout.client.get(path)["metadata"].get("labels") or {}  # noqa: E731
    wait_until(lambda: all(label in labels(path) for path in taken_off), timeout=30, what="the labels")
    rollout.ask("promote", new)
    rollout.wait_phase("Watching")
    assert "StableUnavailable" not in rollout.reasons()
    rollout.wait_phase("Healthy")


def weights_or_none(rollout: Rollout) -> dict[str, int] | None:
    route = rollout.client.find(path_of(*ROUTES, rollout.namespace, rollout.name))
    return weights_of(route) if route else None


@story
def another_client_that_writes_the_status_and_labels_only_causes_new_decisions(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", strategy=STEPS)
    rollout.wait_step("1/2")
    for n in range(12):
        rollout.client.patch(f"{rollout.path}/status", {"status": {"message": f"foreign {n}"}})
        rollout.client.patch(rollout.path, {"metadata": {"labels": {"touched": str(n)}}})
        rollout.wait(lambda obj: not message(obj).startswith("foreign"), "our message again")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")["status"]
    assert (done["attempt"], done["history"][0]["outcome"]) == (2, "Promoted")
    rollout.check_ledger()


# Specs


def template(**container: Any) -> Object:
    return {"spec": {"containers": [{"name": "model", "image": "lab/pause:1", **container}]}}


@story
def a_template_that_the_api_server_refuses_is_told_in_its_words_and_healed_by_a_good_one(
    world: World,
) -> None:
    rollout = world.rollout()
    broken = {"replicas": 2, "template": template(ports=[{"containerPort": 99999}])}
    rollout.apply("1", workload=broken)
    refused = rollout.wait_phase("Invalid")
    accepted = condition(refused, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidTemplate")
    assert "containerPort" in accepted["message"] and "99999" in accepted["message"]
    assert condition(refused, "Stalled")["status"] == "True"
    old = rollout.deploy("1")
    rollout.apply("2", workload=broken)
    frozen = rollout.wait(
        lambda obj: condition(obj, "Accepted").get("reason") == "InvalidTemplate", "the refusal"
    )
    assert frozen["status"]["phase"] == "Healthy", "what serves goes on serving"
    assert condition(frozen, "Ready")["status"] == "False"
    assert world.deployments.names(rollout.namespace) == [rollout.child(old)]
    rollout.apply("2")
    rollout.wait_phase("Watching")
    done = rollout.wait_phase("Healthy")
    assert condition(done, "Accepted")["status"] == "True"
    assert condition(done, "Stalled") == {}


@story
def an_invalid_edit_in_the_middle_of_a_step_freezes_only_what_goes_forward(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1")
    steps = [{"weight": 20, "duration": "1s", "approval": True}, {"weight": 50, "duration": "10m"}]

    def edit(prometheus: str) -> None:
        rollout.apply("2", strategy={"canary": {"steps": steps}}, analysis=analysis(prometheus=prometheus))

    def refused() -> None:
        found = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
        assert condition(found, "Accepted")["reason"] == "UnknownPrometheus"

    edit("default")
    asked = rollout.wait_phase("Paused")["status"]
    revision = asked["candidate"]["revision"]
    edit("nowhere")
    refused()
    rollout.ask("approve", f"{revision}/{asked['step']['id']}")
    frozen = rollout.wait(lambda obj: "waits for an acceptable spec" in message(obj), "what it waits for")
    assert (frozen["status"]["step"]["display"], frozen["status"]["weights"]["candidate"]) == ("1/2", 20)
    edit("default")
    rollout.wait_step("2/2")
    edit("nowhere")
    refused()
    # Not before: a bad one may be found out before its step begins.
    world.traffic.spoil(rollout.namespace, revision, 0.1)
    back = rollout.wait(lambda obj: obj["status"]["phase"] == "RolledBack", "the way back")["status"]
    assert back["history"][0]["reason"] == "HarmProven"


@story
def of_two_rollouts_on_one_service_the_later_waits_until_the_first_is_gone(world: World) -> None:
    namespace = world.namespace()
    first, later = world.rollout(namespace, "first"), world.rollout(namespace, "later")
    shared: dict[str, Any] = {
        "service": {"name": "shared", "ports": [{"port": 80, "targetPort": 8080}]},
        "traffic": {"podRatio": {}},
    }
    first.deploy("1", **shared)
    # Creation times have whole seconds; among equals the uid decides.
    wait_until(lambda: later_second(first), timeout=5, what="the next second")
    later.apply("1", **shared)
    refused = later.wait_phase("Invalid")
    assert condition(refused, "Accepted")["reason"] == "Conflict"
    assert "first" in condition(refused, "Accepted")["message"]
    assert {name.partition("-")[0] for name in world.deployments.every(namespace)} == {"first"}
    service = first.client.get(path_of("v1", "services", namespace, "shared"))
    assert service["metadata"]["labels"]["modelrollout.dev/rollout"] == "first", "it is not taken over"
    first.client.delete(first.path)
    done = later.wait_phase("Healthy")
    assert condition(done, "Accepted")["status"] == "True"


@story
def of_two_rollouts_that_take_the_same_requests_the_later_waits_until_the_first_takes_others(
    world: World,
) -> None:
    namespace = world.namespace()
    first, later = world.rollout(namespace, "first"), world.rollout(namespace, "later")
    shared = {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": [f"shared.{namespace}.example.com"]}}
    first.deploy("1", traffic=shared)
    wait_until(lambda: later_second(first), timeout=5, what="the next second")
    later.apply("1", traffic=shared)
    refused = later.wait_phase("Invalid")
    assert condition(refused, "Accepted")["reason"] == "Conflict"
    assert f"host shared.{namespace}.example.com" in condition(refused, "Accepted")["message"]
    assert "ModelRollout first" in condition(refused, "Accepted")["message"]
    first.apply("1")
    later.wait_phase("Healthy")
    assert condition(first.get(), "Accepted")["status"] == "True"


def later_second(rollout: Rollout) -> bool:
    """Whether an object made now would have a later creation time."""
    probe = {"metadata": {"generateName": "probe-", "namespace": rollout.namespace}}
    made = rollout.client.create(f"/api/v1/namespaces/{rollout.namespace}/configmaps", probe)
    return bool(made["metadata"]["creationTimestamp"] > rollout.get()["metadata"]["creationTimestamp"])


@story
def traffic_can_not_be_exchanged_in_the_middle_of_a_rollout(world: World) -> None:
    rollout = world.rollout()
    _, new = rollout.compare(strategy=LONG)
    rollout.apply("2", strategy=LONG, traffic={"podRatio": {}})
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    assert condition(refused, "Accepted")["reason"] == "NotNow"
    assert weights_or_none(rollout) is not None
    rollout.apply("2", strategy=LONG)
    rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "True", "acceptance")
    rollout.ask("promote", new)
    rollout.wait_phase("Watching")
    rollout.wait_phase("Healthy")


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)


def test_nothing_is_asked_of_the_api_server_while_nothing_changes(world: World, operator: Operator) -> None:
    """Of rollouts that wait, in all phases that may last, and of nothing that belongs to none: a failed story may have left
    one at work."""
    with ThreadPoolExecutor() as pool:
        resting = list(pool.map(lambda rest: rest(world), (healthy, rolled_back, watching, paused, borrowed)))
    ours = {rollout.namespace for rollout in resting}
    # The log tells of a write a moment after the watch does.
    before = Audit(world.lab.audit_log)
    wait_until(lambda: bool(renewals(before)), timeout=30, what="a renewal of the Lease")
    audit = Audit(world.lab.audit_log)
    versions = [version_of(rollout.get()) for rollout in resting]
    wait_until(
        lambda: len(renewals(audit)) >= RENEWALS, timeout=90, what="the Lease's renewals", interval=0.5
    )
    others = [
        f"{e['verb']} {e['requestURI']}"
        for e in audit.requests(OPERATOR)
        if e["verb"] != "watch" and e["objectRef"]["resource"] != "leases"
        if not e["objectRef"].get("namespace", "").startswith(OURS) or e["objectRef"]["namespace"] in ours
    ]
    assert others == []
    assert [version_of(rollout.get()) for rollout in resting] == versions


UNJUDGED = {
    "analysis": {"mode": "Off"},
    "strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}},
}


def healthy(world: World) -> Rollout:
    rollout = world.rollout()
    rollout.deploy("1")
    return settle(rollout)


def rolled_back(world: World) -> Rollout:
    rollout = world.rollout()
    rollout.deploy("1")
    rollout.apply("2", BAD)
    rollout.wait_phase("RolledBack")
    gone = rollout.child(rollout.status()["rejected"]["revision"])
    world.deployments.wait_gone(rollout.namespace, gone)
    path = path_of("v1", "services", rollout.namespace, gone)
    wait_until(
        lambda: rollout.client.find(path) is None, timeout=30, what="the end of the candidate's Service"
    )
    return settle(rollout)


def watching(world: World) -> Rollout:
    """Nothing is compared, or evidence would be committed now and then."""
    rollout = world.rollout()
    long = UNJUDGED | {"watch": {"duration": "10m", "holdback": 10}}
    rollout.deploy("1", **long)
    rollout.apply("2", **long)
    rollout.wait_phase("Watching")
    rollout.wait_event("Promoted")
    return settle(rollout)


def paused(world: World) -> Rollout:
    rollout = world.rollout()
    rollout.deploy("1", **UNJUDGED)
    approved = {"canary": {"steps": [{"weight": 50, "duration": "1s", "approval": True}]}}
    rollout.apply("2", **UNJUDGED | {"strategy": approved})
    rollout.wait_phase("Paused")
    rollout.wait_event("AwaitingApproval")
    return settle(rollout)


def borrowed(world: World) -> Rollout:
    """A route of the user's that has carried a release and was given back."""
    rollout = world.rollout()
    refs = {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": [{"name": "fraud", "port": 80}]}]}
    metadata = {"name": "shop", "namespace": rollout.namespace}
    rollout.client.apply({"apiVersion": ROUTES[0], "kind": "HTTPRoute", "metadata": metadata, "spec": refs})
    kept = UNJUDGED | {"traffic": {"httpRoute": {"name": "shop"}}, "watch": {"duration": "0s"}}
    old = rollout.deploy("1", **kept)
    rollout.apply("2", **kept)
    rollout.wait_phase("Healthy")
    world.deployments.wait_gone(rollout.namespace, rollout.child(old))
    path = path_of("v1", "services", rollout.namespace, rollout.child(old))
    wait_until(lambda: rollout.client.find(path) is None, timeout=30, what="the end of the old Service")
    return settle(rollout)


def renewals(audit: Audit) -> list[Object]:
    return [
        e
        for e in audit.requests(OPERATOR)
        if e["objectRef"]["resource"] == "leases" and e["verb"] == "update"
    ]


def settle(rollout: Rollout) -> Rollout:
    """Wait until the last word of a rollout is said: its pods are ready and what retired is gone."""
    rollout.wait(
        lambda obj: obj["status"]["stable"]["ready"] == 2 and not obj["status"].get("retiring"), "rest"
    )
    return rollout
