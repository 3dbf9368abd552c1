"""Workloads that the user keeps: a Deployment whose template is released, and Services that only get traffic and judgement."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from lab.kube import Informer, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    BAD,
    GOOD,
    ROUTES,
    Rollout,
    Traffic,
    World,
    condition,
    is_ready,
    manifest,
    phase_is,
)

DEPLOYMENTS, SERVICES = ("apps/v1", "deployments"), ("v1", "services")
OFF = {"mode": "Off"}
QUICK = {"strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}}, "watch": {"duration": "0s"}}


def deployment(
    namespace: str, name: str, *, app: str, replicas: int = 2, uri: str = GOOD, **pod: Any
) -> Object:
    """A Deployment of the user's, with pods of the label app."""
    env = [{"name": "MODEL_URI", "value": uri}]
    container = {"name": "model", "image": "lab/pause:1", "ports": [{"containerPort": 8080}], "env": env}
    template = {"metadata": {"labels": {"app": app}}, "spec": {"containers": [container], **pod}}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": template}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def service(namespace: str, name: str, *, app: str) -> Object:
    spec = {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def look(world: World, where: tuple[str, str], namespace: str, name: str) -> Object:
    return world.lab.client.get(path_of(*where, namespace, name))


def annotate(world: World, namespace: str, name: str, annotations: Object) -> None:
    """Annotate the template of a Deployment."""
    change = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    world.lab.client.patch(path_of(*DEPLOYMENTS, namespace, name), change)


# workload.deploymentRef


@pytest.fixture
def legacy(world: World, operator: Operator) -> Rollout:
    """A Deployment of the user's, and a ModelRollout that takes its template; not applied yet."""
    rollout = world.rollout()
    world.lab.client.create(
        path_of(*DEPLOYMENTS, rollout.namespace), deployment(rollout.namespace, "legacy", app="legacy")
    )
    return rollout


def referring(scale_down: str = "Never", **workload: Any) -> Object:
    ref = {"name": "legacy", "scaleDown": scale_down}
    return {"workload": {"replicas": 1, "deploymentRef": ref, **workload}, "analysis": OFF, **QUICK}


def test_an_edit_of_the_users_deployment_starts_a_rollout(world: World, legacy: Rollout) -> None:
    first = legacy.deploy(**referring())
    made = look(world, DEPLOYMENTS, legacy.namespace, legacy.child(first))
    assert made["spec"]["template"]["metadata"]["labels"]["app"] == "legacy"
    annotate(world, legacy.namespace, "legacy", {"example.com/build": "2"})
    promoted = legacy.wait(
        lambda obj: phase_is("Healthy")(obj) and obj["status"]["stable"]["revision"] != first,
        "the promotion of the new template",
    )
    second = promoted["status"]["stable"]["revision"]
    made = look(world, DEPLOYMENTS, legacy.namespace, legacy.child(second))
    assert made["spec"]["template"]["metadata"]["annotations"] == {"example.com/build": "2"}
    kept = look(world, DEPLOYMENTS, legacy.namespace, "legacy")
    assert kept["spec"]["replicas"] == 2
    assert "finalizers" not in promoted["metadata"]


def test_scaling_the_users_deployment_starts_nothing(world: World, legacy: Rollout) -> None:
    first = legacy.deploy(**referring())
    path = path_of(*DEPLOYMENTS, legacy.namespace, "legacy")
    world.lab.client.patch(path, {"spec": {"replicas": 1}})
    annotate(world, legacy.namespace, "legacy", {"example.com/build": "2"})
    legacy.wait(phase_is("Progressing"), "the rollout of the edit that came after")
    assert legacy.status()["attempt"] == 2
    assert legacy.status()["stable"]["revision"] == first


def test_a_deployment_that_is_missing_is_named_and_waited_for(world: World, operator: Operator) -> None:
    rollout = world.rollout()
    rollout.apply(**referring())
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    accepted = condition(refused, "Accepted")
    assert accepted["reason"] == "ReferenceNotFound"
    assert "Deployment legacy" in accepted["message"]
    namespace = rollout.namespace
    world.lab.client.create(path_of(*DEPLOYMENTS, namespace), deployment(namespace, "legacy", app="legacy"))
    rollout.wait_phase("Healthy")


def test_a_service_that_would_select_our_pods_too_is_refused_with_the_way_out(
    world: World, legacy: Rollout
) -> None:
    namespace = legacy.namespace
    world.lab.client.create(path_of(*SERVICES, namespace), service(namespace, "front", app="legacy"))
    legacy.apply(**referring())
    refused = legacy.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    assert condition(refused, "Accepted")["reason"] == "SelectorOverlap"
    assert "pod-template-hash" in condition(refused, "Accepted")["message"]


def test_the_deployment_is_scaled_down_once_healthy_and_comes_back_at_deletion(
    world: World, legacy: Rollout
) -> None:
    sizes: list[tuple[int, str | None]] = []

    def watch(kind: str, obj: Object) -> None:
        if obj["metadata"]["name"] == "legacy":
            phase = legacy.status().get("phase") if sizes else None
            sizes.append((obj["spec"]["replicas"], phase))

    informer = Informer(world.lab.client, path_of(*DEPLOYMENTS, legacy.namespace), watch)
    informer.start()
    try:
        legacy.deploy(**referring("OnceHealthy"))
        legacy.wait_event("TakenOver")
        wait_until(lambda: sizes[-1][0] == 0, timeout=30, what="no pods of the user's Deployment")
        assert {size for size, _ in sizes} == {2, 0}
        assert next(phase for size, phase in sizes if size == 0) == "Healthy"
        world.lab.client.delete(legacy.path)
        world.rollouts.wait_gone(legacy.namespace, legacy.name)
    finally:
        informer.stop()
    back = look(world, DEPLOYMENTS, legacy.namespace, "legacy")
    assert (back["spec"]["replicas"], back["status"].get("readyReplicas")) == (2, 2)
    assert "modelrollout.dev/scaled-from" not in back["metadata"].get("annotations", {})


def test_whoever_scales_it_up_again_wins_and_is_told(world: World, legacy: Rollout) -> None:
    legacy.deploy(**referring("OnceHealthy"))
    legacy.wait_event("TakenOver")
    path = path_of(*DEPLOYMENTS, legacy.namespace, "legacy")
    world.lab.client.patch(path, {"spec": {"replicas": 3}})
    told = legacy.wait_event("ScaledUpAgain")
    assert "left alone" in told["note"]
    legacy.patch(drainDelay="2s")  # another round
    legacy.wait(lambda obj: obj["status"]["observedGeneration"] == obj["metadata"]["generation"], "a round")
    assert look(world, DEPLOYMENTS, legacy.namespace, "legacy")["spec"]["replicas"] == 3
    world.lab.client.delete(legacy.path)
    world.rollouts.wait_gone(legacy.namespace, legacy.name)
    assert look(world, DEPLOYMENTS, legacy.namespace, "legacy")["spec"]["replicas"] == 3


def test_a_deployment_that_went_holds_up_no_deletion(world: World, legacy: Rollout) -> None:
    legacy.deploy(**referring("OnceHealthy"))
    legacy.wait_event("TakenOver")
    world.lab.client.delete(path_of(*DEPLOYMENTS, legacy.namespace, "legacy"))
    world.lab.client.delete(legacy.path)
    world.rollouts.wait_gone(legacy.namespace, legacy.name)


def test_configuration_is_not_tracked_without_the_right_to_read_it(world: World, operator: Operator) -> None:
    rollout = world.rollout()
    rollout.apply(workload=manifest(rollout.namespace)["spec"]["workload"] | {"trackConfig": True})
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    said = condition(refused, "Accepted")
    assert said["reason"] == "NotSupported"
    assert "trackConfig: true" in said["message"]


# workload.services


class OwnTraffic(Traffic):
    """Traffic to pods of the user's: those with label app v1 are behind Service fraud-v1."""

    def __init__(self, world: World, namespace: str, routes: tuple[str, str] = ROUTES) -> None:
        super().__init__(world.lab.client, world.prometheus)
        self._informers = [
            Informer(world.lab.client, path_of("v1", "pods", namespace), self._on_own, labelSelector="app"),
            Informer(world.lab.client, path_of(*routes, namespace), self._on_route),
        ]

    def _on_own(self, kind: Any, body: Object) -> None:
        labels = body["metadata"]["labels"]
        ours = {"modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": labels["app"]}
        body = copy.deepcopy(body)
        body["metadata"]["labels"] = ours
        self._on_pod(kind, body)


@pytest.fixture
def pair(world: World, operator: Operator) -> Iterator[Rollout]:
    """Two versions of the user's behind Services of their own; the ModelRollout is not applied yet."""
    rollout = world.rollout()
    for app, uri in (("v1", GOOD), ("v2", GOOD), ("v3", BAD)):
        put(rollout, deployment(rollout.namespace, f"model-{app}", app=app, uri=uri))
        put(rollout, service(rollout.namespace, f"fraud-{app}", app=app))
    traffic = OwnTraffic(world, rollout.namespace)
    traffic.start()
    yield rollout
    traffic.stop()


def put(rollout: Rollout, obj: Object) -> None:
    rollout.client.create(rollout.client.object_path(obj).rpartition("/")[0], obj)


def services(stable: str, candidate: str | None = None) -> Object:
    second = {"candidate": {"name": f"fraud-{candidate}"}} if candidate else {}
    return {"workload": {"services": {"stable": {"name": f"fraud-{stable}"}, **second}}}


def scale(rollout: Rollout, app: str, replicas: int) -> None:
    path = path_of(*DEPLOYMENTS, rollout.namespace, f"model-{app}")
    rollout.client.patch(path, {"spec": {"replicas": replicas}})


def routed(rollout: Rollout) -> dict[str, int]:
    refs = rollout.route()["spec"]["rules"][0]["backendRefs"]
    return {ref["name"]: ref["weight"] for ref in refs}


def test_a_version_of_the_users_is_promoted_and_the_next_one_rolled_back(world: World, pair: Rollout) -> None:
    first = pair.deploy("1", **services("v1"))
    assert routed(pair) == {"fraud-v1": 100}
    pair.apply("2", **services("v1", "v2"))
    promoted = pair.wait_phase("Healthy")["status"]
    assert promoted["history"][0]["outcome"] == "Promoted"
    assert promoted["history"][0]["reason"] == "ProvenHarmless"
    assert promoted["stable"]["revision"] != first
    assert routed(pair) == {"fraud-v2": 100}
    weights = [s["weights"].get("candidate") for s in pair.history() if s.get("phase") == "Progressing"]
    assert sorted(set(weights)) == [0, 20, 50]
    # What was promoted is stable now; naming it so changes nothing.
    pair.apply("2", **services("v2"))
    settled = pair.wait_phase("Healthy")["status"]
    assert (settled["attempt"], settled["stable"]["revision"]) == (2, promoted["stable"]["revision"])
    pair.apply("3", **services("v2", "v3"))
    back = pair.wait_phase("RolledBack")["status"]
    assert back["history"][0]["reason"] == "HarmProven"
    assert routed(pair) == {"fraud-v2": 100}
    owned = world.lab.client.list(path_of(*DEPLOYMENTS, pair.namespace))
    assert {obj["metadata"]["name"] for obj in owned} == {"model-v1", "model-v2", "model-v3"}
    left = world.lab.client.list(path_of(*SERVICES, pair.namespace))
    assert {obj["metadata"]["name"] for obj in left} == {"fraud-v1", "fraud-v2", "fraud-v3"}


def test_with_a_candidate_at_creation_it_is_compared_with_what_serves(pair: Rollout) -> None:
    pair.apply("3", **services("v1", "v3"))
    back = pair.wait_phase("RolledBack")["status"]
    assert back["history"][0]["reason"] == "HarmProven"
    assert max(s["weights"].get("candidate", 0) for s in pair.history() if s.get("weights")) <= 50
    assert routed(pair) == {"fraud-v1": 100}


def test_names_are_swapped_for_the_release_after_the_next(pair: Rollout) -> None:
    brief = {"analysis": OFF, **QUICK}
    pair.deploy("1", **services("v1"), **brief)
    pair.apply("2", **services("v1", "v2"), **brief)
    pair.wait_phase("Healthy")
    assert routed(pair) == {"fraud-v2": 100}
    pair.apply("4", **services("v1", "v2"), **brief)  # forgot to swap
    refused = pair.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    said = condition(refused, "Accepted")
    assert said["reason"] == "InvalidSpec"
    assert "fraud-v1" in said["message"]
    assert "candidate" in said["message"]
    pair.apply("4", **services("v2", "v1"), **brief)
    pair.wait_phase("Healthy")
    assert routed(pair) == {"fraud-v1": 100}


def test_taking_the_candidate_away_goes_back(pair: Rollout) -> None:
    slow = {"strategy": {"canary": {"steps": [{"weight": 10, "duration": "10m"}]}}}
    first = pair.deploy("1", **services("v1"), **slow)
    pair.apply("2", **services("v1", "v2"), **slow)
    pair.wait_step("1/1")
    assert routed(pair) == {"fraud-v1": 90, "fraud-v2": 10}
    pair.apply("1", **services("v1"), **slow)
    status = pair.wait_phase("Healthy")["status"]
    assert (status["history"][0]["outcome"], status["stable"]["revision"]) == ("Reverted", first)
    assert routed(pair) == {"fraud-v1": 100}


def test_a_candidate_without_pods_is_rolled_back_and_gets_no_request(pair: Rollout) -> None:
    put(pair, service(pair.namespace, "fraud-v9", app="v9"))
    pair.deploy("1", **services("v1"), analysis=OFF)
    pair.apply("9", **services("v1", "v9"), analysis=OFF, progressDeadline="3s")
    status = pair.wait_phase("RolledBack")["status"]
    assert status["history"][0]["reason"] == "ProgressDeadlineExceeded"
    assert all("fraud-v9" not in str(r) for r in pair.world.routes.versions(pair.namespace, "fraud"))


def test_a_candidate_whose_service_names_no_port_of_its_pods_gets_no_request_and_the_mend_is_told(
    pair: Rollout,
) -> None:
    named = service(pair.namespace, "fraud-v9", app="v9")
    named["spec"]["ports"][0]["targetPort"] = "web"
    put(pair, named)
    slow = {"analysis": OFF, "strategy": {"canary": {"steps": [{"weight": 20, "duration": "10m"}]}}}
    pair.deploy("1", **services("v1"), **slow)
    pair.apply("9", **services("v1", "v9"), **slow)
    pair.wait(phase_is("Progressing"), "the rollout")
    put(pair, deployment(pair.namespace, "model-v9", app="v9"))
    told = pair.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    assert "Service fraud-v9 sends to 'web'" in condition(told, "Accepted")["message"]
    pair.wait(lambda obj: "PortNotFound" in str(obj["status"].get("message")), "the reason at the pods")
    wait_until(lambda: ready_pods(pair, "model-v9") == 2, timeout=60, what="pods that say they are ready")
    assert routed(pair) == {"fraud-v1": 100}
    named["spec"]["ports"][0]["targetPort"] = 8080
    pair.client.patch(path_of(*SERVICES, pair.namespace, "fraud-v9"), {"spec": named["spec"]})
    pair.wait_step("1/1")
    assert routed(pair) == {"fraud-v1": 80, "fraud-v9": 20}


def ready_pods(rollout: Rollout, name: str) -> int:
    """Ready pods of a Deployment of the user's."""
    live = rollout.client.get(path_of(*DEPLOYMENTS, rollout.namespace, name))
    return int(live["status"].get("readyReplicas") or 0)


def test_whoever_takes_over_must_have_as_many_pods_as_the_baseline_grew_to(pair: Rollout) -> None:
    put(pair, deployment(pair.namespace, "model-v8", app="v8"))
    put(pair, service(pair.namespace, "fraud-v8", app="v8"))
    brief = {
        "analysis": OFF,
        "strategy": {"canary": {"steps": [{"weight": 50, "approval": True}]}},
        "watch": {"duration": "0s"},
    }
    pair.deploy("1", **services("v1"), **brief)
    pair.apply("8", **services("v1", "v8"), **brief)
    status = pair.wait_step("1/1")["status"]
    scale(pair, "v1", 3)
    pair.wait(lambda obj: obj["status"]["stable"]["ready"] == 3, "the growth of the baseline")
    pair.ask("approve", f"{status['candidate']['revision']}/{status['step']['id']}")
    pair.wait(phase_is("Promoting"), "the promotion")
    scale(pair, "v8", 3)
    pair.wait_phase("Healthy")
    full = [
        s for s in pair.history() if s.get("phase") == "Promoting" and s["weights"].get("candidate") == 100
    ]
    assert full
    assert all(s["candidate"]["ready"] == 3 for s in full)


REFUSED = {
    "a Service that does not exist": (services("v1", "nowhere"), "ReferenceNotFound", "fraud-nowhere"),
    "a port that the Services do not have": (
        services("v1") | {"service": {"ports": [{"port": 8443}]}},
        "InvalidSpec",
        "8443",
    ),
    "two Services in front of the same pods": (services("v1", "twin"), "SelectorOverlap", "fraud-twin"),
    "nothing to compare with": (services("empty", "v2"), "AwaitingPods", "fraud-empty"),
}


@pytest.mark.parametrize(("spec", "reason", "names"), REFUSED.values(), ids=REFUSED)
def test_refused(pair: Rollout, spec: Object, reason: str, names: str) -> None:
    put(pair, service(pair.namespace, "fraud-twin", app="v1"))
    put(pair, service(pair.namespace, "fraud-empty", app="nobody"))
    wait_until(
        lambda: all(is_ready(pod) for pod in pair.client.list(path_of("v1", "pods", pair.namespace))),
        timeout=30,
        what="ready pods",
    )
    pair.apply("2", **spec)
    refused = pair.wait(lambda obj: condition(obj, "Accepted").get("reason") == reason, f"reason {reason}")
    assert names in condition(refused, "Accepted")["message"]
    assert refused["status"]["phase"] == "Invalid"
    assert pair.world.routes.versions(pair.namespace, "fraud") == []
