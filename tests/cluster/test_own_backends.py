"""InferencePools in place of Services, and Services of the user's in a route of the user's, on a real API server with the real
CRDs: the operator as a process, and a route that says where requests go.

`tests/lab/test_routers.py` sends real requests to pools.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.build import istio_crds, pool_crds
from lab.cluster import install_crds
from lab.kube import KubeError, Object, path_of
from lab.lab import Lab
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    BAD,
    GATEWAY,
    GOOD,
    ROUTES,
    Chronicle,
    Gateway,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    condition,
    phase_is,
    title,
)
from tests.cluster.test_own_workloads import (
    DEPLOYMENTS,
    OFF,
    QUICK,
    SERVICES,
    OwnTraffic,
    deployment,
    look,
    put,
    service,
)

GRPC_ROUTES = ("gateway.networking.k8s.io/v1", "grpcroutes")
VIRTUAL_SERVICES = ("networking.istio.io/v1", "virtualservices")
POOL = "InferencePool"
POOLS = ("inference.networking.k8s.io/v1", "inferencepools")
CRD = path_of(
    "apiextensions.k8s.io/v1", "customresourcedefinitions", name="inferencepools.inference.networking.k8s.io"
)
FINALIZER = "modelrollout.dev/restore"
BORROWED: Object = {"traffic": {"httpRoute": {"name": "fraud"}}}
SLOW = {"strategy": {"canary": {"steps": [{"weight": 20, "duration": "10m"}]}}, "analysis": OFF}
STORIES = Stories()
story = STORIES.story


@pytest.fixture(scope="module", autouse=True)
def virtual_services(lab: Lab) -> None:
    """The API server serves them before the operator looks for what it is to watch."""
    install_crds(lab.client, istio_crds())
    wait_until(lambda: served(lab, VIRTUAL_SERVICES), timeout=30, what="serving VirtualServices")


@pytest.fixture(scope="module")
def pools(lab: Lab) -> None:
    """The API server serves InferencePools."""
    serve_pools(lab)


def serve_pools(lab: Lab) -> None:
    install_crds(lab.client, pool_crds())
    wait_until(lambda: served(lab), timeout=30, what="serving InferencePools")


def served(lab: Lab, kind: tuple[str, str] = POOLS) -> bool:
    try:
        lab.client.get(path_of(*kind, "default"))
    except KubeError as error:
        if error.status in (404, 429):
            return False
        raise
    return True


def pool(namespace: str, name: str, *, app: str, mode: str = "FailOpen") -> Object:
    """A pool as its Helm chart makes it; nothing here runs an endpoint picker."""
    picker = {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": mode}
    spec = {
        "selector": {"matchLabels": {"app": app}},
        "targetPorts": [{"number": 8080}],
        "endpointPickerRef": picker,
    }
    return {
        "apiVersion": POOLS[0],
        "kind": POOL,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@contextlib.contextmanager
def versions(world: World, kind: str = POOL, routes: tuple[str, str] = ROUTES) -> Iterator[Rollout]:
    """Three versions of the user's, each behind a Service or pool of its own; the ModelRollout is not applied yet."""
    rollout = world.rollout()
    for app, uri in (("v1", GOOD), ("v2", GOOD), ("v3", BAD)):
        put(rollout, deployment(rollout.namespace, f"model-{app}", app=app, uri=uri))
        make = pool if kind == POOL else service
        put(rollout, make(rollout.namespace, f"fraud-{app}", app=app))
    traffic = OwnTraffic(world, rollout.namespace, routes)
    traffic.start()
    try:
        yield rollout
    finally:
        traffic.stop()


def own(stable: str, candidate: str | None = None, *, kind: str = POOL) -> Object:
    """The spec's names."""
    found: Object = {"stable": {"name": f"fraud-{stable}", "kind": kind}}
    if candidate:
        found["candidate"] = {"name": f"fraud-{candidate}", "kind": kind}
    return {"workload": {"services": found}}


def ref(name: str, kind: str = POOL, **more: Any) -> Object:
    """A reference as people write it."""
    if kind == POOL:
        return {"group": POOLS[0].partition("/")[0], "kind": POOL, "name": name, **more}
    return {"name": name, "port": 80, **more}


def route(rollout: Rollout, *backends: Object) -> Object:
    """A route that the user keeps."""
    rule = {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": list(backends)}
    return {
        "apiVersion": ROUTES[0],
        "kind": "HTTPRoute",
        "metadata": {"name": "fraud", "namespace": rollout.namespace, "labels": {"team": "risk"}},
        "spec": {"parentRefs": GATEWAY["gatewayAPI"]["parentRefs"], "rules": [rule]},
    }


def apply_route(rollout: Rollout, *backends: Object) -> Object:
    """What Git compares, once Git's content is applied."""
    rollout.client.apply(route(rollout, *backends), field_manager="helm")
    return written(rollout)


def written(rollout: Rollout) -> Object:
    live = rollout.route()
    return {"metadata": {k: live["metadata"].get(k) for k in ("labels", "annotations")}, "spec": live["spec"]}


def refs(rollout: Rollout) -> list[Object]:
    found: list[Object] = rollout.route()["spec"]["rules"][0]["backendRefs"]
    return found


def weights(rollout: Rollout) -> dict[str, int]:
    return {one["name"]: one["weight"] for one in refs(rollout)}


def stable(rollout: Rollout) -> str:
    return str(rollout.status()["stable"]["revision"])


# The CRD


def test_without_the_crd_a_sentence_says_so_and_it_may_be_installed_later(
    world: World, operator: Operator
) -> None:
    lab = world.lab
    lab.client.delete(CRD, missing_ok=True)
    wait_until(lambda: not served(lab), timeout=30, what="no InferencePools")
    rollout = world.rollout()
    rollout.apply("1", **own("v1"), analysis=OFF)
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    said = condition(refused, "Accepted")
    assert said["reason"] == "NotSupported"
    assert "the cluster has no InferencePool (inference.networking.k8s.io/v1)" in said["message"]
    serve_pools(lab)
    put(rollout, deployment(rollout.namespace, "model-v1", app="v1"))
    put(rollout, pool(rollout.namespace, "fraud-v1", app="v1"))
    rollout.wait_phase("Healthy")
    assert weights(rollout) == {"fraud-v1": 100}


# Pools


@story
def a_pool_is_promoted_and_the_next_one_rolled_back(world: World) -> None:
    with versions(world) as rollout:
        rollout.deploy("1", **own("v1"))
        assert refs(rollout) == [ref("fraud-v1", weight=100)], "a port would mean nothing"
        rollout.apply("2", **own("v1", "v2"))
        promoted = rollout.wait_phase("Healthy")["status"]
        assert (promoted["history"][0]["outcome"], promoted["history"][0]["reason"]) == (
            "Promoted",
            "ProvenHarmless",
        )
        assert weights(rollout) == {"fraud-v2": 100}
        rollout.apply("3", **own("v2", "v3"))
        back = rollout.wait_phase("RolledBack")["status"]
        assert back["history"][0]["reason"] == "HarmProven"
        assert weights(rollout) == {"fraud-v2": 100}


@story
def a_pool_gets_no_request_before_it_has_ready_pods_and_none_after_they_are_gone(world: World) -> None:
    with versions(world) as rollout:
        put(rollout, pool(rollout.namespace, "fraud-v9", app="v9"))
        rollout.deploy("1", **own("v1"), **SLOW)
        rollout.apply("9", **own("v1", "v9"), **SLOW)
        rollout.wait(phase_is("Progressing"), "the rollout")
        assert all("fraud-v9" not in str(r) for r in world.routes.versions(rollout.namespace, "fraud"))
        put(rollout, deployment(rollout.namespace, "model-v9", app="v9"))
        rollout.wait_step("1/1")
        assert weights(rollout) == {"fraud-v1": 80, "fraud-v9": 20}
        path = path_of(*DEPLOYMENTS, rollout.namespace, "model-v9")
        rollout.client.patch(path, {"spec": {"replicas": 0}})
        rollout.wait(lambda obj: not obj["status"]["weights"].get("candidate"), "no weight without pods")
        wait_until(
            lambda: weights(rollout) == {"fraud-v1": 100},
            timeout=30,
            what="no pool without pods in the route",
        )


@story
def a_pool_without_its_endpoint_picker_gets_no_request(world: World) -> None:
    with versions(world) as rollout:
        put(rollout, pool(rollout.namespace, "fraud-v4", app="v2", mode="FailClose"))
        rollout.deploy("1", **own("v1"), **SLOW)
        rollout.apply("4", **own("v1", "v4"), **SLOW)
        rollout.wait(
            lambda obj: "PickerNotReady: Service fraud-v4-epp" in str(obj["status"].get("message")),
            "the missing picker",
        )
        assert all("fraud-v4" not in str(r) for r in world.routes.versions(rollout.namespace, "fraud"))
        put(rollout, deployment(rollout.namespace, "picker", app="picker", replicas=1))
        put(rollout, service(rollout.namespace, "fraud-v4-epp", app="picker"))
        rollout.wait_step("1/1")
        rollout.client.patch(path_of(*DEPLOYMENTS, rollout.namespace, "picker"), {"spec": {"replicas": 0}})
        rollout.wait(lambda obj: not obj["status"]["weights"].get("candidate"), "no weight without a picker")


@story
def a_release_from_a_service_to_a_pool_takes_the_reference_over(world: World) -> None:
    with versions(world) as rollout:
        put(rollout, service(rollout.namespace, "fraud-v1", app="v1"))
        brief = {"analysis": OFF, **QUICK, **BORROWED}
        before = apply_route(rollout, ref("fraud-v1", "Service"))
        rollout.deploy("1", **own("v1", kind="Service"), **brief)
        assert written(rollout) == before
        both = own("v1", "v2")
        both["workload"]["services"]["stable"]["kind"] = "Service"
        rollout.apply("2", **both, **brief)
        rollout.wait_phase("Healthy")
        assert refs(rollout) == [ref("fraud-v2", weight=100)]


@story
def pools_in_a_route_of_the_users_are_split_there_and_restored(world: World) -> None:
    with versions(world) as rollout:
        before = apply_route(rollout, ref("fraud-v1", weight=3), ref("legacy", "Service", weight=1))
        rollout.deploy("1", **own("v1"), **SLOW, **BORROWED)
        assert written(rollout) == before, "the first deployment does not touch the route"
        rollout.apply("2", **own("v1", "v2"), **SLOW, **BORROWED)
        rollout.wait_step("1/1")
        assert weights(rollout) == {"fraud-v1": 240, "fraud-v2": 60, "legacy": 100}
        assert [one["kind"] for one in refs(rollout)] == [POOL, POOL, "Service"]
        rollout.ask("abort", rollout.status()["candidate"]["revision"])
        rollout.wait_phase("RolledBack")
        wait_until(lambda: written(rollout) == before, timeout=30, what="the route as the user wrote it")


@story
def after_a_promotion_the_users_route_names_the_new_pool_until_git_does(world: World) -> None:
    with versions(world) as rollout:
        brief = {"analysis": OFF, **QUICK, **BORROWED}
        apply_route(rollout, ref("fraud-v1"))
        rollout.deploy("1", **own("v1"), **brief)
        rollout.apply("2", **own("v1", "v2"), **brief)
        rollout.wait_phase("Healthy")
        assert weights(rollout) == {"fraud-v2": 100}
        assert rollout.route()["metadata"]["annotations"].keys() >= {"modelrollout.dev/steered-by"}
        rollout.client.apply(route(rollout, ref("fraud-v2")), field_manager="helm", force=True)
        wait_until(
            lambda: not rollout.route()["metadata"].get("annotations"),
            timeout=30,
            what="a route without a trace",
        )
        assert weights(rollout) == {"fraud-v2": 1}
        assert "TrafficDrift" not in rollout.reasons()
        rollout.apply("2", **own("v2"), **brief)
        assert rollout.wait_phase("Healthy")["status"]["attempt"] == 2


@story
def deletion_after_a_promotion_sends_nobody_back(world: World) -> None:
    with versions(world, "Service") as rollout:
        brief = {"analysis": OFF, **QUICK, **BORROWED}
        apply_route(rollout, ref("fraud-v1", "Service"))
        rollout.deploy("1", **own("v1", kind="Service"), **brief)
        rollout.apply("2", **own("v1", "v2", kind="Service"), **brief)
        assert rollout.wait_phase("Healthy")["metadata"]["finalizers"] == [FINALIZER]
        rollout.client.delete(rollout.path)
        world.rollouts.wait_gone(rollout.namespace, rollout.name)
        assert weights(rollout) == {"fraud-v2": 100}
        assert not rollout.route()["metadata"].get("annotations")


@story
def a_route_that_names_another_version_than_what_serves_is_refused(world: World) -> None:
    with versions(world, "Service") as rollout:
        before = apply_route(rollout, ref("fraud-v2", "Service"))
        rollout.apply("2", **own("v1", "v2", kind="Service"), **SLOW, **BORROWED)
        # As long as fraud-v1 has no ready pod, that is what is said.
        why = "HTTPRoute fraud has no backend that is Service fraud-v1, so there is nothing"
        mend = "name as workload.services.stable the one that it names"
        refused = rollout.wait(
            lambda obj: mend in condition(obj, "Accepted").get("message", ""), "the refusal"
        )
        accepted = condition(refused, "Accepted")
        assert accepted["status"] == "False"
        assert accepted["message"].startswith(why) and accepted["message"].endswith(mend)
        assert written(rollout) == before


# Services in routes of other kinds


@dataclass(frozen=True)
class Kept:
    """A kind of route that the user keeps: how it sends requests to a version, and how it says so."""

    kind: str
    where: tuple[str, str]
    traffic: Object
    spec: Callable[[str], Object]
    field: str  # of the spec, that holds the rules
    backends: str  # of a rule
    mixed: tuple[int, int]  # parts of "legacy" and of the model where both have some, as the user writes them

    def manifest(self, rollout: Rollout, app: str) -> Object:
        labels, annotations = {"team": "risk"}, {"example.com/owner": "risk"}
        metadata = {"name": "fraud", "namespace": rollout.namespace}
        kept = {"labels": labels, "annotations": annotations}
        return {
            "apiVersion": self.where[0],
            "kind": self.kind,
            "metadata": metadata | kept,
            "spec": self.spec(app),
        }

    def apply(self, rollout: Rollout, app: str) -> Object:
        """What Git compares, once Git's content is applied."""
        rollout.client.apply(self.manifest(rollout, app), field_manager="helm", force=True)
        return self.written(rollout)

    def written(self, rollout: Rollout) -> Object:
        live = rollout.client.get(path_of(*self.where, rollout.namespace, "fraud"))
        metadata = {k: live["metadata"].get(k) for k in ("labels", "annotations", "finalizers")}
        return {"metadata": metadata, "spec": live["spec"]}

    def parts(self, rule: Object) -> dict[str, int]:
        """By backend; the only one of a VirtualService has all."""
        names = [one.get("name") or one["destination"]["host"] for one in rule[self.backends]]
        return dict(zip(names, [one.get("weight", 100) for one in rule[self.backends]], strict=True))

    def extras(self, route: Object) -> list[Object]:
        """What the model's backends have besides: filters or headers."""
        backends = route["spec"][self.field][0][self.backends]
        return [
            {k: v for k, v in one.items() if k not in ("name", "destination", "weight")} for one in backends
        ]

    def rest(self, route: Object) -> list[Object]:
        """The rules without their backends; that for the website whole."""
        *steered, website = route["spec"][self.field]
        return [{k: v for k, v in rule.items() if k != self.backends} for rule in steered] + [website]


ADDED = {"set": [{"name": "x-model", "value": "fraud"}]}
FILTERS = {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": ADDED}]}


def grpc_route(app: str) -> Object:
    model = {"name": f"fraud-{app}", "port": 80}
    legacy = {"name": "legacy", "port": 80, "weight": 1}
    rules = [
        {
            "matches": [{"method": {"service": "fraud.v1.Scores"}}],
            **FILTERS,
            "backendRefs": [model | FILTERS],
        },
        {
            "matches": [{"method": {"service": "fraud.v2.Scores"}}],
            "backendRefs": [legacy, model | {"weight": 3}],
        },
        {"backendRefs": [{"name": "website", "port": 80}]},
    ]
    return {
        "parentRefs": GATEWAY["gatewayAPI"]["parentRefs"],
        "hostnames": ["fraud.example.com"],
        "rules": rules,
    }


def virtual_service(app: str) -> Object:
    model, port = f"fraud-{app}", {"number": 80}
    rules = [
        {
            "name": "scores",
            "match": [{"uri": {"prefix": "/fraud"}}],
            "route": [
                {"destination": {"host": model}, "headers": {"request": {"set": {"x-model": "fraud"}}}}
            ],
            "mirror": {"host": "fraud-v2.staging.svc.cluster.local"},  # another team's, of the same name
            "mirrorPercentage": {"value": 5},
            "retries": {"attempts": 2, "perTryTimeout": "2s"},
        },
        {
            "name": "mixed",
            "match": [{"uri": {"prefix": "/mixed"}}],
            "route": [
                {"destination": {"host": "legacy"}, "weight": 25},
                {"destination": {"host": model, "port": port}, "weight": 75},
            ],
            "timeout": "10s",
        },
        {"route": [{"destination": {"host": "website"}}]},
    ]
    return {"hosts": ["fraud.example.com"], "gateways": ["public"], "http": rules}


KEPT = [
    Kept(
        "GRPCRoute", GRPC_ROUTES, {"grpcRoute": {"name": "fraud"}}, grpc_route, "rules", "backendRefs", (1, 3)
    ),
    Kept(
        "VirtualService",
        VIRTUAL_SERVICES,
        {"istio": {"virtualService": {"name": "fraud"}}},
        virtual_service,
        "http",
        "route",
        (25, 75),
    ),
]


def released_in(kept: Kept) -> Story:
    def run(world: World) -> None:
        gateway = Gateway(world.lab.client, GRPC_ROUTES)
        with contextlib.ExitStack() as stack:
            rollout = stack.enter_context(versions(world, "Service", kept.where))
            seen = Chronicle(world.lab.client, path_of(*kept.where, rollout.namespace))
            for part in (seen, gateway):
                part.start()
                stack.callback(part.stop)
            usual = {"traffic": kept.traffic}
            first = kept.apply(rollout, "v1")
            rollout.deploy("1", **own("v1", kind="Service"), **usual)
            assert kept.written(rollout) == first, "the first deployment does not touch the route"
            rollout.apply("2", **own("v1", "v2", kind="Service"), **usual)
            promoted = rollout.wait_phase("Healthy")["status"]["history"][0]
            assert (promoted["outcome"], promoted["reason"]) == ("Promoted", "ProvenHarmless")
            check_split(kept, rollout, seen, 20, 50)

            kept.apply(rollout, "v2")
            second = json.loads(json.dumps(first).replace("fraud-v1", "fraud-v2"))
            wait_until(
                lambda: kept.written(rollout) == second and no_trace(kept, rollout),
                timeout=30,
                what="Git's route, without a trace of ours",
            )
            rollout.apply("3", **own("v2", "v3", kind="Service"), **usual)
            back = rollout.wait_phase("RolledBack")["status"]
            assert back["history"][0]["reason"] == "HarmProven"
            wait_until(
                lambda: kept.written(rollout) == second, timeout=30, what="the route as the user wrote it"
            )
            assert no_trace(kept, rollout)
            assert any(
                "fraud-v3" in str(route["spec"]) for route in seen.versions(rollout.namespace, "fraud")
            )
            assert "TrafficDrift" not in rollout.reasons()

    run.__name__ = (
        f"services of the users in a {kept.kind} are promoted and taken back without a trace".replace(
            " ", "_"
        )
    )
    return story(run)


def no_trace(kept: Kept, rollout: Rollout) -> bool:
    metadata = rollout.client.get(path_of(*kept.where, rollout.namespace, "fraud"))["metadata"]
    steered = "modelrollout.dev/steered-by" in (metadata.get("annotations") or {})
    return not steered and "modelrollout" not in {entry["manager"] for entry in metadata["managedFields"]}


def check_split(kept: Kept, rollout: Rollout, seen: Chronicle, *shares: int) -> None:
    """Each share stood in both rules; nothing else of the route was ever changed."""
    routes = seen.versions(rollout.namespace, "fraud")
    legacy, model = kept.mixed
    for share in shares:
        alone = {"fraud-v1": 100 - share, "fraud-v2": share}
        mixed = {"legacy": legacy * 100} | {name: model * part for name, part in alone.items()}
        split = [[kept.parts(rule) for rule in route["spec"][kept.field][:2]] for route in routes]
        assert [alone, mixed] in split, f"{share} %: {split}"
    for route in routes:
        assert kept.rest(route) == kept.rest(routes[0])
        assert all(one == kept.extras(routes[0])[0] for one in kept.extras(route)), route["spec"]
        assert route["metadata"]["labels"] == {"team": "risk"}
        assert route["metadata"]["annotations"]["example.com/owner"] == "risk"


for _kept in KEPT:
    released_in(_kept)


# Requests


@story
def a_version_that_is_still_there_comes_back_by_request(world: World) -> None:
    with versions(world, "Service") as rollout:
        brief = {"analysis": OFF, **QUICK, **BORROWED}
        before = apply_route(rollout, ref("fraud-v1", "Service"))
        first = rollout.deploy("1", **own("v1", kind="Service"), **brief)
        rollout.apply("2", **own("v1", "v2", kind="Service"), **brief)
        rollout.wait_phase("Healthy")
        second = stable(rollout)
        rollout.ask("restart", second)
        assert "the pods behind your Services are yours" in rollout.wait_event("RequestIgnored")["note"]
        rollout.ask("undo", first)
        back = rollout.wait(
            lambda obj: phase_is("Healthy")(obj) and obj["status"]["stable"]["revision"] == first,
            "the way back",
        )
        assert back["status"]["attempt"] == 3
        assert back["status"]["stable"]["model"] == "fraud 1"
        wait_until(lambda: written(rollout) == before, timeout=30, what="the route as the user wrote it")
        rollout.apply("2", **own("v1", "v2", kind="Service"), **brief, drainDelay="2s")
        kept = rollout.wait_phase("Healthy")
        assert (kept["status"]["stable"]["revision"], kept["status"]["attempt"]) == (first, 3)
        rollout.client.delete(path_of(*SERVICES, rollout.namespace, "fraud-v2"))
        rollout.apply("1", **own("v1", kind="Service"), **brief)
        rollout.wait_phase("Healthy")
        seen = len(rollout.events("RequestIgnored"))
        rollout.ask("undo", second)
        wait_until(lambda: len(rollout.events("RequestIgnored")) > seen, timeout=30, what="an answer")
        assert any(
            "Service fraud-v2, which it was behind, does not exist any more" in event["note"]
            for event in rollout.events("RequestIgnored")
        )
        assert "undo" not in rollout.status()


@story
def a_template_of_the_users_deployment_is_undone_and_restarted_like_any_other(world: World) -> None:
    rollout = world.rollout()
    put(rollout, deployment(rollout.namespace, "legacy", app="legacy"))
    spec = {"workload": {"replicas": 1, "deploymentRef": {"name": "legacy"}}, "analysis": OFF, **QUICK}
    first = rollout.deploy(**spec)
    change = {"spec": {"template": {"metadata": {"annotations": {"example.com/build": "2"}}}}}
    rollout.client.patch(path_of(*DEPLOYMENTS, rollout.namespace, "legacy"), change)
    rollout.wait(
        lambda obj: phase_is("Healthy")(obj) and obj["status"]["stable"]["revision"] != first,
        "the edit's end",
    )
    rollout.ask("undo", first)
    rollout.wait(
        lambda obj: phase_is("Healthy")(obj) and obj["status"]["stable"]["revision"] == first, "the way back"
    )
    made = look(world, DEPLOYMENTS, rollout.namespace, rollout.child(first))
    assert "annotations" not in made["spec"]["template"]["metadata"]
    before = {pod["metadata"]["uid"] for pod in rollout.pods(first)}
    users = look(world, DEPLOYMENTS, rollout.namespace, "legacy")["spec"]
    rollout.ask("restart", first)
    rollout.wait_event("Restarted")
    wait_until(
        lambda: not before & {pod["metadata"]["uid"] for pod in rollout.pods(first)},
        timeout=60,
        what="new pods",
    )
    assert look(world, DEPLOYMENTS, rollout.namespace, "legacy")["spec"] == users, "it is left alone"
    assert (rollout.status()["phase"], rollout.status()["attempt"]) == ("Healthy", 3)


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(pools: None, side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)
