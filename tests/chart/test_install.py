"""What a real API server makes of the chart: installed by the real Helm, as a user does it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kube import KubeClient, KubeError, Object
from lab.lab import Lab
from tests.chart.conftest import CHART, ROOT, Helm, Render
from tests.chart.values import EVERYTHING, SERVER, SETS

NAMESPACE = "operators"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:rollouts-modelrollout"


def _namespace(client: KubeClient, name: str, **labels: str) -> None:
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def _kubeconfig(lab: Lab) -> Path:
    path: Path = Path(lab.kubeconfig)
    return path


@pytest.fixture(scope="module")
def client(lab: Lab) -> KubeClient:
    """An administrator, in a cluster with the namespaces that the values name."""
    _namespace(lab.client, NAMESPACE, **{"pod-security.kubernetes.io/enforce": "restricted"})
    for name in ("a", "b", "fraud", "search", "elsewhere"):
        _namespace(lab.client, name)
    return lab.client


def _can(client: KubeClient, verb: str, resource: str, namespace: str, user: str = ACCOUNT) -> bool:
    """What the API server's own authorizer says."""
    group, _, rest = resource.rpartition("/")
    plural, _, subresource = rest.partition(":")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "namespace": namespace,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": attributes,
        },
    }
    review = client.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(review["status"]["allowed"])


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_the_api_server_takes_every_object_in_strict_mode(
    render: Render, client: KubeClient, values: dict[str, Any]
) -> None:
    for obj in render(values):
        if (
            obj["kind"] == "PodMonitor"
        ):  # Its CRD belongs to the Prometheus operator, which is not in the lab.
            continue
        path = client.object_path(obj, namespace=NAMESPACE)
        taken = client.patch(
            path, obj, "apply", fieldManager="helm", force=True, dryRun="All", fieldValidation="Strict"
        )
        assert taken["metadata"]["name"] == obj["metadata"]["name"]


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_a_namespace_with_the_restricted_level_admits_its_pod(
    render: Render, client: KubeClient, values: dict[str, Any]
) -> None:
    pod = _pod_of(render(values))
    _create_account(client, pod["spec"]["serviceAccountName"])
    client.create(f"/api/v1/namespaces/{NAMESPACE}/pods", pod, dryRun="All")


def test_the_restricted_level_is_enforced_here_at_all(render: Render, client: KubeClient) -> None:
    pod = _pod_of(render())
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    _create_account(client, pod["spec"]["serviceAccountName"])
    with pytest.raises(KubeError, match="allowPrivilegeEscalation"):
        client.create(f"/api/v1/namespaces/{NAMESPACE}/pods", pod, dryRun="All")


def _pod_of(objects: list[Object]) -> Object:
    template = next(obj for obj in objects if obj["kind"] == "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "operator"}
    return pod


def _create_account(client: KubeClient, name: str) -> None:
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }
    client.apply(account)


@contextmanager
def _installed(helm: Helm, lab: Lab, values: dict[str, Any]) -> Iterator[KubeClient]:
    # The tests above left an account of this name that is not Helm's.
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/rollouts-modelrollout"
    lab.client.delete(account, missing_ok=True)
    arguments = ("rollouts", str(CHART), "--namespace", NAMESPACE, "--values", helm.file(values))
    done = helm.run("install", *arguments, kubeconfig=_kubeconfig(lab))
    assert done.returncode == 0, done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    yield lab.client
    done = helm.run("uninstall", "rollouts", "--namespace", NAMESPACE, kubeconfig=_kubeconfig(lab))
    assert done.returncode == 0, done.stderr


class TestInstalledClusterWide:
    @pytest.fixture(scope="class")
    def cluster_wide(self, helm: Helm, lab: Lab, client: KubeClient) -> Iterator[KubeClient]:
        with _installed(helm, lab, {"servers": [SERVER]}) as installed:
            yield installed

    def test_cluster_wide_the_operator_may_do_its_work_in_every_namespace(
        self, cluster_wide: KubeClient
    ) -> None:
        for namespace in ("a", "elsewhere"):
            assert _can(cluster_wide, "watch", "modelrollout.dev/modelrollouts", namespace)
            assert _can(cluster_wide, "update", "modelrollout.dev/modelrollouts:status", namespace)
            assert _can(cluster_wide, "create", "apps/deployments", namespace)
        assert _can(cluster_wide, "list", "modelrollout.dev/modelrollouts", "")
        assert _can(cluster_wide, "create", "coordination.k8s.io/leases", NAMESPACE)

    @pytest.mark.parametrize(
        ("verb", "resource", "namespace"),
        [
            ("get", "secrets", "a"),
            ("list", "configmaps", "a"),
            ("update", "modelrollout.dev/modelrollouts", "a"),
            ("delete", "modelrollout.dev/modelrollouts", "a"),
            ("create", "pods", "a"),
            ("delete", "pods", "a"),
            ("create", "pods:exec", "a"),
            ("update", "apps/deployments:scale", "a"),
            ("list", "namespaces", ""),
            ("list", "apiextensions.k8s.io/customresourcedefinitions", ""),
            ("create", "coordination.k8s.io/leases", "a"),
            ("update", "coordination.k8s.io/leases", NAMESPACE),
            ("create", "rbac.authorization.k8s.io/rolebindings", "a"),
        ],
    )
    def test_what_it_does_not_need_is_forbidden(
        self, cluster_wide: KubeClient, verb: str, resource: str, namespace: str
    ) -> None:
        assert not _can(cluster_wide, verb, resource, namespace)

    def test_another_configuration_is_an_upgrade(
        self, cluster_wide: KubeClient, helm: Helm, lab: Lab
    ) -> None:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/rollouts-modelrollout"
        before = cluster_wide.get(path)["spec"]["template"]["metadata"]["annotations"]
        arguments = (
            "rollouts",
            str(CHART),
            "--namespace",
            NAMESPACE,
            "--reset-then-reuse-values",
            "--set",
            "timing.raiseAfter=1m",
        )
        done = helm.run("upgrade", *arguments, kubeconfig=_kubeconfig(lab))
        assert done.returncode == 0, done.stderr
        after = cluster_wide.get(path)["spec"]["template"]["metadata"]["annotations"]
        assert before["modelrollout.dev/config-hash"] != after["modelrollout.dev/config-hash"]
        config = cluster_wide.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/rollouts-modelrollout")
        parsed = yaml.safe_load(config["data"]["config.yaml"])
        assert (parsed["timing"]["raiseAfter"], parsed["servers"][0]["name"]) == ("1m", "default")


class TestInstalledPerNamespace:
    @pytest.fixture(scope="class")
    def per_namespace(self, helm: Helm, lab: Lab, client: KubeClient) -> Iterator[KubeClient]:
        with _installed(helm, lab, {"watchNamespaces": ["a", "b"]}) as installed:
            yield installed

    def test_per_namespace_it_may_do_its_work_there_and_nowhere_else(self, per_namespace: KubeClient) -> None:
        for namespace in ("a", "b"):
            assert _can(per_namespace, "watch", "modelrollout.dev/modelrollouts", namespace)
            assert _can(per_namespace, "patch", "gateway.networking.k8s.io/httproutes", namespace)
        for namespace in ("elsewhere", NAMESPACE, ""):
            assert not _can(per_namespace, "watch", "modelrollout.dev/modelrollouts", namespace)
            assert not _can(per_namespace, "list", "pods", namespace)


def _documented(document: str) -> list[list[str]]:
    """The Helm commands of a document, in their order."""
    text = (ROOT / document).read_text()
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace(
        "\\\n", " "
    )
    return [shlex.split(line) for line in blocks.splitlines() if line.startswith("helm ")]


@pytest.mark.parametrize("document", ["README.md", "docs/operations.md"])
def test_the_documented_commands_install_it(helm: Helm, lab: Lab, client: KubeClient, document: str) -> None:
    commands = _documented(document)
    assert [words[1] for words in commands][:1] == ["install"]
    for words in commands:
        done = helm.run(*words[1:], kubeconfig=_kubeconfig(lab))
        assert done.returncode == 0, (words, done.stderr)
    if commands[-1][1] != "uninstall":
        done = helm.run(
            "uninstall", "modelrollout", "--namespace", "modelrollout", kubeconfig=_kubeconfig(lab)
        )
        assert done.returncode == 0, done.stderr


def test_the_crds_come_with_it(helm: Helm, lab: Lab, client: KubeClient) -> None:
    base = ("rollouts", str(CHART), "--namespace", NAMESPACE)
    client.delete(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/rollouts-modelrollout", missing_ok=True)
    values = helm.file({key: value for key, value in EVERYTHING.items() if key != "podMonitor"})
    client.delete(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/releaser", missing_ok=True)
    done = helm.run("install", *base, "--values", values, kubeconfig=_kubeconfig(lab))
    assert done.returncode == 0, done.stderr
    crd = client.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelrollouts.modelrollout.dev")
    served = [version["name"] for version in crd["spec"]["versions"] if version["served"]]
    assert "v1alpha1" in served
    # Uninstalling the operator must not take the models with it.
    assert (
        helm.run("uninstall", "rollouts", "--namespace", NAMESPACE, kubeconfig=_kubeconfig(lab)).returncode
        == 0
    )
    assert client.find(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelrollouts.modelrollout.dev"
    )
