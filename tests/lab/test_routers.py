"""Releases in a route that the user keeps, with real requests through a real proxy.

The operator has the rights that the chart gives it. What the route sent where is counted by the load; that nothing is left
of a release is read from the API server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from lab.gateway import GATEWAY_NAME, GATEWAY_NAMESPACE
from lab.kube import Object, path_of
from lab.lab import Lab
from lab.operator import Operator
from lab.process import wait_until
from tests.lab.rollouts import PATIENCE, Rollout, Story, sentence, template
from tests.lab.test_rollouts import assert_in_order, assert_split

FINALIZER = "modelrollout.dev/restore"


class Borrowed(Rollout):
    """A ModelRollout that works in an HTTPRoute of the user's, of its own name: that is what most people have."""

    def __init__(self, lab: Lab, name: str, **changes: Any) -> None:
        super().__init__(lab, name, traffic={"httpRoute": {"name": name}}, **changes)
        self.route_path = path_of("gateway.networking.k8s.io/v1", "httproutes", self.namespace, name)
        self.manifest: Object = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"team": "risk"}},
            "spec": {
                "parentRefs": [{"name": GATEWAY_NAME, "namespace": GATEWAY_NAMESPACE}],
                "hostnames": [f"{name}.example.com"],
                "rules": [{"backendRefs": [{"name": name, "port": 80}]}],
            },
        }

    def deploy(self) -> None:
        client = self.lab.client
        client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        client.apply(self.manifest, field_manager="helm")
        self.before = self.written_by_the_user()
        super().deploy()
        assert self.written_by_the_user() == self.before, "the first deployment does not touch the route"

    def written_by_the_user(self) -> Object:
        """What Git compares."""
        live = self.lab.client.get(self.route_path)
        metadata = {key: live["metadata"].get(key) for key in ("labels", "annotations", "finalizers")}
        return copy.deepcopy({"metadata": metadata, "spec": live["spec"]})

    def wait_restored(self) -> None:
        wait_until(
            lambda: self.written_by_the_user() == self.before,
            timeout=PATIENCE,
            what=f"the route of {self.name} as the user wrote it",
        )


class Pooled(Borrowed):
    """The same, where each version is a Deployment of the user's in an InferencePool of its own."""

    def __init__(self, lab: Lab, name: str, **changes: Any) -> None:
        super().__init__(lab, name, workload={"services": {"stable": self.pool(name, "v1")}}, **changes)
        reference = {"group": "inference.networking.k8s.io", **self.pool(name, "v1")}
        self.manifest["spec"]["rules"] = [{"backendRefs": [reference]}]

    @staticmethod
    def pool(name: str, version: str) -> Object:
        return {"kind": "InferencePool", "name": f"{name}-{version}"}

    def run(self, version: str, uri: str) -> None:
        """A version of the user's: pods, and a pool that selects them."""
        name, labels = f"{self.name}-{version}", {"app": f"{self.name}-{version}"}
        metadata = {"name": name, "namespace": self.namespace}
        made = template({"MODEL_NAME": self.name, "MODEL_VERSION": version, "MODEL_URI": uri})
        made["metadata"] = {"labels": labels, "annotations": {"prometheus.io/scrape": "true"}}
        workload = {"replicas": 2, "selector": {"matchLabels": labels}, "template": made}
        pool = {
            "selector": {"matchLabels": labels},
            "targetPorts": [{"number": 8080}],
            # As the lab's gateway has no pickers.
            "endpointPickerRef": {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": "FailOpen"},
        }
        for api, kind, spec in (
            ("apps/v1", "Deployment", workload),
            ("inference.networking.k8s.io/v1", "InferencePool", pool),
        ):
            self.lab.client.apply({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})

    def deploy(self) -> None:
        self.lab.client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        self.run("v1", "models/good")
        self.run("v2", "models/better")
        super().deploy()

    def try_out(self, version: str) -> None:
        """Name the pool of another version."""
        services = {"candidate": self.pool(self.name, version)}
        spec = {"model": {"version": version}, "workload": {"services": services}}
        generation = int(self.lab.client.patch(self.path, {"spec": spec})["metadata"]["generation"])
        self.wait(lambda seen: seen.status.get("observedGeneration") == generation, "the operator's notice")


def assert_taken_over(rollout: Rollout) -> None:
    """The new version was promoted by proof, got what the steps say, and answers alone; no request failed."""
    print(rollout.measured())
    assert rollout.outcome == ("Promoted", "ProvenHarmless")
    assert_split(rollout, "v2", [20, 50])
    assert rollout.failures() == {}
    after = rollout.counts()
    rollout.wait_answers(50)
    assert rollout.counts().since(after).by_version().keys() == {"v2"}
    assert not [note for reason, note in rollout.events() if reason == "TrafficDrift"]


def a_release_is_split_between_pools_in_the_users_route(lab: Lab) -> None:
    steps = [{"weight": weight, "duration": "6s", "minRequests": 100} for weight in (20, 50)]
    with Pooled(lab, "pools", rate=60, strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        rollout.try_out("v2")
        rollout.wait_end()
        rollout.wait_answers(50, "v2")
        assert_taken_over(rollout)
        (reference,) = lab.client.get(rollout.route_path)["spec"]["rules"][0]["backendRefs"]
        assert (reference["kind"], reference["name"]) == ("InferencePool", "pools-v2")


def a_release_is_split_in_the_users_route_and_leaves_no_trace(lab: Lab) -> None:
    steps = [{"weight": weight, "duration": "6s", "minRequests": 100} for weight in (20, 50)]
    with Borrowed(lab, "shop", rate=60, strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better")
        rollout.wait_end()
        rollout.wait_restored()
        rollout.wait_answers(50, "v2")
        assert_taken_over(rollout)
        assert lab.client.get(rollout.path)["metadata"]["finalizers"] == [FINALIZER]


def what_a_gitops_tool_puts_back_is_put_right_and_deletion_restores_it(lab: Lab) -> None:
    steps = [{"weight": 30, "duration": "1h"}]
    with Borrowed(lab, "drift", strategy={"canary": {"steps": steps}}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(lambda seen: bool((seen.status.get("step") or {}).get("startedAt")), "the step")
        lab.client.apply(rollout.manifest, field_manager="argocd-controller")
        wait_until(
            lambda: any(reason == "TrafficDrift" for reason, _ in rollout.events()),
            timeout=PATIENCE,
            what="the event TrafficDrift",
        )
        (note,) = (note for reason, note in rollout.events() if reason == "TrafficDrift")
        assert note == "HTTPRoute drift: spec.rules (by argocd-controller) was put right"
        rollout.wait_answers(20, "v2")
        assert_in_order(["RolloutStarted", "TrafficDrift"], [reason for reason, _ in rollout.events()])
        lab.client.delete(rollout.path)
        rollout.wait_restored()
        wait_until(
            lambda: lab.client.find(rollout.path) is None,
            timeout=PATIENCE,
            what="the end of the ModelRollout",
        )


def without_its_route_a_release_does_not_start(lab: Lab) -> None:
    with Borrowed(lab, "missing", loaded=False) as rollout:
        rollout.deploy()
        lab.client.delete(rollout.route_path)
        rollout.wait(
            lambda seen: seen.condition("Accepted").get("reason") == "ReferenceNotFound", "the missing route"
        )
        message = rollout.timeline[-1].condition("Accepted")["message"]
        assert message.startswith("traffic.httpRoute names HTTPRoute missing, which namespace missing-test")
        lab.client.apply(rollout.manifest, field_manager="helm")
        rollout.wait(lambda seen: seen.condition("Accepted").get("status") == "True", "the route's return")


STORIES = (
    a_release_is_split_between_pools_in_the_users_route,
    a_release_is_split_in_the_users_route_and_leaves_no_trace,
    what_a_gitops_tool_puts_back_is_put_right_and_deletion_restores_it,
    without_its_route_a_release_does_not_start,
)


@pytest.mark.parametrize("story", STORIES, ids=sentence)
def test_routes_of_the_user(play: Callable[[Story], None], operator: Operator, story: Story) -> None:
    play(story)
    log = operator.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "forbidden" not in log.lower()
