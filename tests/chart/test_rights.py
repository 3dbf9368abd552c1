"""The operator at work with the ServiceAccount that the chart makes: a right that is missing shows as a 403.

A whole release is gone through, from the first deployment to the end of the old revision, with nothing compared: what is
looked at here are rights, not decisions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.kube import KubeClient, Object
from lab.lab import Lab
from lab.process import Keeper, Process, wait_until
from tests.chart.conftest import CHART, ROOT, Helm

OPERATORS = "rights-operators"
QUICK = {"timing": {"raiseAfter": "0s", "dataPlane": "0s"}}
SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    client: KubeClient
    lab: Lab
    user: str
    log: Path
    namespace: str

    def wait(self, check: Callable[[], bool], what: str) -> None:
        try:
            wait_until(check, timeout=SECONDS, what=what, interval=0.2)
        except Exception:
            print(self.log.read_text()[-4000:])
            raise

    def list(self, path: str) -> list[Object]:
        prefix, _, plural = path.rpartition("/")
        return self.client.list(f"{prefix}/namespaces/{self.namespace}/{plural}")

    def names(self, path: str) -> set[str]:
        return {obj["metadata"]["name"] for obj in self.list(path)}

    def rollout(self, name: str) -> Object:
        return self.client.get(
            f"/apis/modelrollout.dev/v1alpha1/namespaces/{self.namespace}/modelrollouts/{name}"
        )

    def requests(self) -> list[Object]:
        return [event for event in self.lab.audit_events() if event["user"]["username"] == self.user]


# A namespace for each: the garbage collector needs half a minute to learn of a new kind.
SCOPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cluster-wide": ("rights-all", QUICK | {"userRoles": True}),
    "per namespace": ("rights-one", QUICK | {"watchNamespaces": ["rights-one"]}),
}


@pytest.fixture(scope="module", params=SCOPES.values(), ids=SCOPES.keys())
def running(
    request: pytest.FixtureRequest,
    helm: Helm,
    lab: Lab,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """The operator as a process in place of its pod, with the arguments, the configuration and the account of the rendered Deployment."""
    served, values = request.param
    for name in (OPERATORS, served):
        lab.client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    where = ("operator", str(CHART), "--namespace", OPERATORS, "--values", helm.file(values))
    done = helm.run("install", *where, kubeconfig=lab.kubeconfig)
    assert done.returncode == 0, done.stderr
    deployment = lab.client.list(f"/apis/apps/v1/namespaces/{OPERATORS}/deployments")[0]
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    folder = tmp_path_factory.mktemp("operator")
    config = lab.client.get(f"/api/v1/namespaces/{OPERATORS}/configmaps/{deployment['metadata']['name']}")
    (folder / "config.yaml").write_text(config["data"]["config.yaml"])
    replaced = {"--config": folder / "config.yaml", "--listen": "127.0.0.1:0"}
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    arguments = [
        f"{key}={replaced[key]}" if (key := a.partition("=")[0]) in replaced else a for a in arguments
    ]
    kubeconfig = lab.kubeconfig_for(OPERATORS, account)
    command = [sys.executable, "-m", "modelrollout", *arguments, f"--kubeconfig={kubeconfig}"]
    keeper = Keeper()
    process = Process("operator", command, log=folder / "operator.log", keeper=keeper, cwd=ROOT)
    process.start()
    user = f"system:serviceaccount:{OPERATORS}:{account}"
    here = Running(lab.client, lab, user, folder / "operator.log", served)
    try:
        yield here
    finally:
        process.stop()
        keeper.close()
        done = helm.run("uninstall", "operator", "--namespace", OPERATORS, kubeconfig=lab.kubeconfig)
        assert done.returncode == 0, done.stderr


def _rollout(running: Running, name: str, version: str, **spec: Any) -> Object:
    container = {"name": "server", "image": f"lab/pause:{version}", "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": running.namespace},
        "spec": {
            "workload": {"template": {"spec": {"containers": [container]}}},
            "service": {"ports": [{"port": 80, "targetPort": 8080}]},
            "strategy": {"canary": {"steps": [{"weight": 50}]}},
            "analysis": {"mode": "Off"},
            "watch": {"duration": "0s"},
            "drainDelay": "0s",
            "revisionHistoryLimit": 0,
            **spec,
        },
    }


def test_a_release_needs_no_right_that_is_missing_and_nothing_is_refused(running: Running) -> None:
    name = "release"
    running.client.apply(_rollout(running, name, "1"))

    def phase() -> object:
        return (running.rollout(name).get("status") or {}).get("phase")

    running.wait(lambda: phase() == "Healthy", "the first deployment")
    first = running.names("/apis/apps/v1/deployments")
    running.client.apply(_rollout(running, name, "2"))
    running.wait(
        lambda: bool(running.names("/apis/apps/v1/deployments") - first), "the candidate's Deployment"
    )
    running.wait(lambda: phase() == "Healthy", "the promotion")
    running.wait(
        lambda: not running.names("/apis/apps/v1/deployments") & first, "the end of the old revision"
    )
    assert running.list("/apis/events.k8s.io/v1/events")
    assert not _refused(running)


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_the_clusters_own_roles_cover_modelrollouts_where_that_was_asked_for(
    running: Running, role: str
) -> None:
    verbs = {"get", "list", "watch"}
    if role != "view":
        verbs |= {"create", "update", "patch", "delete"}

    def granted() -> set[str]:
        rules = running.client.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")["rules"]
        return {
            verb for rule in rules if rule.get("resources") == ["modelrollouts"] for verb in rule["verbs"]
        }

    wanted = verbs if running.namespace == "rights-all" else set()
    running.wait(lambda: granted() == wanted, f"the rights of {role}")


def test_a_route_is_written_with_these_rights(running: Running) -> None:
    gateway = {"gatewayAPI": {"parentRefs": [{"name": "public", "namespace": "gateways"}]}}
    running.client.apply(_rollout(running, "routed", "1", traffic=gateway))
    running.wait(lambda: bool(running.list("/apis/gateway.networking.k8s.io/v1/httproutes")), "the HTTPRoute")
    assert not _refused(running)


def _refused(running: Running) -> list[str]:
    return [
        f"{event['verb']} {event['requestURI']}"
        for event in running.requests()
        if event["responseStatus"]["code"] in (401, 403)
    ]
