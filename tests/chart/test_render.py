"""What the chart makes of its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelrollout.api.types import parse_duration
from modelrollout.controller.settings import read_config
from modelrollout.decision.types import Timing
from tests.chart.conftest import CHART, Helm, Object, Render
from tests.chart.values import BASIC, EVERYTHING, SERVER, SETS, TOKEN

SEE = {"list", "watch"}
OWN = SEE | {"get", "create", "patch", "delete"}

# All that the operator may do in a namespace that it serves. A right that is added here is one that an intruder gains.
RIGHTS = {
    ("modelrollout.dev", "modelrollouts"): SEE | {"patch"},
    ("modelrollout.dev", "modelrollouts/status"): {"update"},
    ("modelrollout.dev", "modelrollouts/finalizers"): {"update"},
    ("apps", "deployments"): OWN,
    ("apps", "controllerrevisions"): OWN,
    ("", "services"): OWN,
    ("gateway.networking.k8s.io", "httproutes"): OWN,
    ("gateway.networking.k8s.io", "grpcroutes"): SEE | {"patch"},
    ("networking.istio.io", "virtualservices"): SEE | {"patch"},
    ("inference.networking.k8s.io", "inferencepools"): SEE,
    ("", "pods"): SEE,
    ("discovery.k8s.io", "endpointslices"): SEE,
    ("autoscaling", "horizontalpodautoscalers"): {"list"},
    ("events.k8s.io", "events"): {"create", "patch"},
}


def _one(objects: list[Object], kind: str) -> Object:
    found = [obj for obj in objects if obj["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def _rights(role: Object) -> dict[tuple[str, str], set[str]]:
    rights: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert (group, resource) not in rights, f"{resource} is granted twice"
                rights[group, resource] = set(rule["verbs"])
    return rights


def _config(objects: list[Object]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_one(objects, "ConfigMap")["data"]["config.yaml"])
    return config


def _pod(objects: list[Object]) -> Object:
    pod: Object = _one(objects, "Deployment")["spec"]["template"]
    return pod


def _container(objects: list[Object]) -> Object:
    container: Object = _pod(objects)["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_helm_has_nothing_to_complain_of(helm: Helm, values: dict[str, Any]) -> None:
    done = helm.run("lint", "--strict", str(CHART), "--values", helm.file(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_every_object_is_named_once_and_says_to_which_release_it_belongs(
    render: Render, values: dict[str, Any]
) -> None:
    objects = render(values)
    seen = [
        (o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects
    ]
    assert len(seen) == len(set(seen))
    for obj in objects:
        assert obj["metadata"]["labels"]["app.kubernetes.io/instance"] == "rollouts"
        assert len(obj["metadata"]["name"]) <= 63


AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"


def _for_users(role: Object) -> bool:
    """Whether a role is part of the cluster's own roles, and not the operator's."""
    return any(label.startswith(AGGREGATE) for label in role["metadata"]["labels"])


class TestRights:
    def test_cluster_wide_the_operator_has_exactly_the_rights_it_needs(self, render: Render) -> None:
        objects = render()
        assert _rights(_one(objects, "ClusterRole")) == RIGHTS
        assert {obj["kind"] for obj in objects} >= {"ClusterRole", "ClusterRoleBinding"}

    def test_per_namespace_it_has_the_same_rights_there_and_none_in_the_cluster(self, render: Render) -> None:
        objects = render({"watchNamespaces": ["a", "b"]})
        assert not [obj for obj in objects if obj["kind"].startswith("Cluster")]
        roles = {
            o["metadata"]["namespace"]: o
            for o in objects
            if o["kind"] == "Role" and o["metadata"]["namespace"] != "operators"
        }
        assert set(roles) == {"a", "b"}
        for role in roles.values():
            assert _rights(role) == RIGHTS

    @pytest.mark.parametrize("spaces", [[], ["a"]], ids=["cluster-wide", "per namespace"])
    def test_configuration_is_read_only_where_that_was_granted(
        self, render: Render, spaces: list[str]
    ) -> None:
        objects = render({"trackConfig": True, "watchNamespaces": spaces})
        role = next(
            o for o in objects if o["kind"].endswith("Role") and not o["metadata"]["name"].endswith("-lease")
        )
        reading = {("", kind): SEE | {"get"} for kind in ("configmaps", "secrets")}
        assert _rights(role) == RIGHTS | reading
        assert "--track-config" in _container(objects)["args"]
        assert "--track-config" not in _container(render())["args"]

    @pytest.mark.parametrize("spaces", [[], ["a"]], ids=["cluster-wide", "per namespace"])
    @pytest.mark.parametrize(
        ("gates", "granted", "arguments"),
        [
            pytest.param({"jobs": True}, {("batch", "jobs"): OWN}, ["--gate-jobs"], id="Jobs"),
            pytest.param({"secrets": True}, {("", "secrets"): {"get"}}, ["--gate-secrets"], id="Secrets"),
            pytest.param(
                {"webhooks": ["https://ci.example.com/gates/", "*"]},
                {},
                ["--gate-webhook=https://ci.example.com/gates/", "--gate-webhook=*"],
                id="webhooks, which need no right",
            ),
        ],
    )
    def test_gates_may_do_only_what_was_granted(
        self, render: Render, spaces: list[str], gates: Object, granted: Object, arguments: list[str]
    ) -> None:
        objects = render({"gates": gates, "watchNamespaces": spaces})
        role = next(
            o for o in objects if o["kind"].endswith("Role") and not o["metadata"]["name"].endswith("-lease")
        )
        assert _rights(role) == RIGHTS | granted
        given = [argument for argument in _container(objects)["args"] if argument.startswith("--gate-")]
        assert given == arguments

    def test_users_who_look_can_change_nothing(self, render: Render) -> None:
        users = [obj for obj in render({"userRoles": True}) if _for_users(obj)]
        given = {obj["metadata"]["name"].rpartition("-")[2]: _rights(obj) for obj in users}
        assert given.keys() == {"view", "edit"}
        assert given["view"] == {("modelrollout.dev", "modelrollouts"): {"get", "list", "watch"}}
        assert not [
            obj
            for obj in users
            if f"{AGGREGATE}view" in obj["metadata"]["labels"] and _rights(obj) != given["view"]
        ]

    def test_secrets_that_are_tracked_and_that_sign_are_granted_once(self, render: Render) -> None:
        role = _one(render({"trackConfig": True, "gates": {"secrets": True}}), "ClusterRole")
        assert _rights(role)["", "secrets"] == SEE | {"get"}

    @pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
    def test_no_rule_has_a_wildcard_or_reaches_secrets(self, render: Render, values: dict[str, Any]) -> None:
        rules = [rule for obj in render(values) if obj["kind"].endswith("Role") for rule in obj["rules"]]
        named = [word for rule in rules for key in ("apiGroups", "resources", "verbs") for word in rule[key]]
        assert named
        assert not [
            word for word in named if "*" in word or word.startswith(("secrets", "configmaps", "namespaces"))
        ]
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(named)

    def test_only_the_own_lease_in_the_own_namespace_can_be_changed(self, render: Render) -> None:
        objects = render()
        role = _one(objects, "Role")
        assert role["metadata"]["namespace"] == "operators"
        lease = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
        assert role["rules"] == [
            {**lease, "verbs": ["create"]},
            {**lease, "resourceNames": ["rollouts-modelrollout"], "verbs": ["get", "update"]},
        ]
        assert "--lease-name=rollouts-modelrollout" in _container(objects)["args"]
        assert "--lease-namespace=operators" in _container(objects)["args"]

    @pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
    def test_every_binding_leads_from_the_pods_account_to_a_role_of_the_chart(
        self, render: Render, values: dict[str, Any]
    ) -> None:
        objects = render(values)
        account = _pod(objects)["spec"]["serviceAccountName"]
        roles = {
            (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
            for o in objects
            if o["kind"].endswith("Role") and not _for_users(o)
        }
        bound = set()
        for binding in (o for o in objects if o["kind"].endswith("Binding")):
            assert binding["subjects"] == [
                {"kind": "ServiceAccount", "name": account, "namespace": "operators"}
            ]
            bound.add(
                (binding["roleRef"]["kind"], binding["metadata"].get("namespace"), binding["roleRef"]["name"])
            )
        assert bound == roles


class TestPod:
    @pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
    def test_it_is_as_restricted_as_a_pod_can_be(self, render: Render, values: dict[str, Any]) -> None:
        pod = _pod(render(values))["spec"]
        assert (
            pod["securityContext"] | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
            == pod["securityContext"]
        )
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]

    def test_it_is_probed_where_the_operator_answers(self, render: Render) -> None:
        container = _container(render())
        assert "--listen=:8080" in container["args"]
        assert container["ports"] == [{"name": "http", "containerPort": 8080}]
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}

    def test_namespaces_become_arguments(self, render: Render) -> None:
        arguments = _container(render({"watchNamespaces": ["a", "b"]}))["args"]
        assert [a for a in arguments if a.startswith("--namespace=")] == ["--namespace=a", "--namespace=b"]
        assert not [a for a in _container(render())["args"] if a.startswith("--namespace")]

    def test_another_configuration_restarts_it_and_an_equal_one_does_not(self, render: Render) -> None:
        def stamp(values: dict[str, Any]) -> str:
            return str(_pod(render(values))["metadata"]["annotations"]["modelrollout.dev/config-hash"])

        assert stamp({"servers": [SERVER]}) != stamp({})
        assert stamp({"servers": [SERVER], "replicas": 2}) == stamp({"servers": [SERVER]})

    def test_a_digest_outranks_the_tag_and_the_tag_the_version(self, render: Render) -> None:
        version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
        digest = "sha256:" + "0" * 64
        assert _container(render())["image"] == f"modelrollout:{version}"
        assert _container(render({"image": {"tag": "next"}}))["image"] == "modelrollout:next"
        assert (
            _container(render({"image": {"tag": "next", "digest": digest}}))["image"]
            == f"modelrollout@{digest}"
        )

    def test_labels_of_the_user_never_break_the_selector(self, render: Render) -> None:
        deployment = _one(render(EVERYTHING), "Deployment")["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"].items() <= labels.items()
        assert labels["team"] == "ml"

    def test_everything_that_can_be_placed_is_placed(self, render: Render) -> None:
        pod = _pod(render(EVERYTHING))["spec"]
        for field in (
            "nodeSelector",
            "tolerations",
            "affinity",
            "topologySpreadConstraints",
            "priorityClassName",
            "imagePullSecrets",
        ):
            assert pod[field] == EVERYTHING[field]
        resources = _container(render(EVERYTHING))["resources"]
        assert resources == EVERYTHING["resources"]


class TestConfig:
    def test_the_defaults_name_no_server(self, render: Render) -> None:
        assert _config(render()) == {
            "servers": [],
            "timing": {"raiseAfter": "30s", "dataPlane": "5s", "splitHold": "10m", "evidenceCommit": "60s"},
        }

    def test_a_server_gets_the_usual_labels(self, render: Render) -> None:
        assert _config(render({"servers": [SERVER]}))["servers"] == [
            {**SERVER, "namespaceLabel": "namespace", "podLabel": "pod"}
        ]

    def test_every_file_that_it_names_is_mounted(self, render: Render) -> None:
        objects = render(EVERYTHING)
        default, gpu = _config(objects)["servers"]
        assert default["bearerTokenFile"] == "/etc/modelrollout/secrets/prometheus/token"
        assert default["caFile"] == "/etc/modelrollout/secrets/prometheus/ca.crt"
        assert default["headers"] == {"X-Scope-OrgID": "ml"}
        assert default["delay"] == "45s"
        assert (default["namespaceLabel"], default["podLabel"]) == (
            "kubernetes_namespace",
            "kubernetes_pod_name",
        )
        assert gpu["username"] == "modelrollout"
        assert gpu["passwordFile"] == "/etc/modelrollout/secrets/metrics/password"
        volumes = {v["name"]: v.get("secret", {}).get("secretName") for v in _pod(objects)["spec"]["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for m in _container(objects)["volumeMounts"]}
        assert mounts["/etc/modelrollout/secrets/prometheus"] == "prometheus"
        assert mounts["/etc/modelrollout/secrets/metrics"] == "metrics"
        assert (
            f"--config={next(path for path in mounts if path.endswith('config.yaml'))}"
            in _container(objects)["args"]
        )

    @pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
    def test_the_operator_understands_it(
        self, render: Render, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        config = _config(render(values))
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        servers, timing = read_config(file)
        assert {name: server.url for name, server in servers.items()} == {
            server["name"]: server["url"] for server in config["servers"]
        }
        assert timing.raise_after == parse_duration(config["timing"]["raiseAfter"])

    def test_the_values_say_the_operators_own_defaults(self, render: Render, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(_config(render())))
        assert read_config(file) == ({}, Timing())

    def test_no_secret_stands_in_any_object(self, render: Render) -> None:
        assert not [obj for obj in render(EVERYTHING) if obj["kind"] == "Secret"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("PodDisruptionBudget", {"podDisruptionBudget": {"enabled": True}}),
        ("PodMonitor", {"podMonitor": {"enabled": True}}),
    ],
)
def test_extras_are_made_only_on_request(render: Render, kind: str, values: dict[str, Any]) -> None:
    assert kind not in {obj["kind"] for obj in render()}
    objects = render(values)
    selector = _one(objects, kind)["spec"]["selector"]["matchLabels"]
    assert selector.items() <= _pod(objects)["metadata"]["labels"].items()


def test_the_namespace_of_a_metric_is_the_rollouts(render: Render) -> None:
    """Not the operator's own, by which the alerts of docs/operations.md would mix rollouts of one name."""
    monitor = _one(render({"podMonitor": {"enabled": True}}), "PodMonitor")
    assert [endpoint["honorLabels"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [True]


def _with_server(**fields: Any) -> dict[str, Any]:
    return {"servers": [{**SERVER, **fields}]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"replica": 2}, "replica"),
    "a value that an older chart of another project has": ({"rbac": {"create": True}}, "rbac"),
    "three replicas": ({"replicas": 3}, "/replicas"),
    "no replica": ({"replicas": 0}, "/replicas"),
    "replicas as text": ({"replicas": "2"}, "/replicas"),
    "a namespace pattern": ({"watchNamespaces": ["ml-*"]}, "/watchNamespaces/0"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
    "namespaces as one text": ({"watchNamespaces": "a,b"}, "/watchNamespaces"),
    "a server without a URL": ({"servers": [{"name": "default"}]}, "url"),
    "a server without a name": ({"servers": [{"url": "http://p"}]}, "name"),
    "a URL without a scheme": (_with_server(url="prometheus:9090"), "/servers/0/url"),
    "a password in the URL": (_with_server(url="http://me:secret@prometheus"), "/servers/0/url"),
    "a token in the values": (_with_server(auth={"bearerToken": "abc"}), "/servers/0/auth/bearerToken"),
    "a misspelt login": (_with_server(auth={"token": {}}), "/servers/0/auth"),
    "two logins": (_with_server(auth={**TOKEN, **BASIC}), "/servers/0/auth"),
    "a login without a user": (
        _with_server(auth={"basic": {"secretName": "s", "key": "k"}}),
        "/servers/0/auth/basic",
    ),
    "a delay without a unit": (_with_server(delay=45), "/servers/0/delay"),
    "a label that PromQL can't name": (_with_server(podLabel="pod-name"), "/servers/0/podLabel"),
    "a header with a colon": (_with_server(headers={"X-Scope:": "ml"}), "/servers/0/headers"),
    "a server name twice": ({"servers": [SERVER, SERVER]}, 'servers: the name "default" is given twice'),
    "the cluster's roles for some namespaces": (
        {"userRoles": True, "watchNamespaces": ["a"]},
        "userRoles: the cluster's own",
    ),
    "a duration without a unit": ({"timing": {"raiseAfter": "30"}}, "/timing/raiseAfter"),
    "a duration as a number": ({"timing": {"dataPlane": 5}}, "/timing/dataPlane"),
    "a time that does not exist": ({"timing": {"raise": "30s"}}, "/timing"),
    "a pull policy in lower case": ({"image": {"pullPolicy": "always"}}, "/image/pullPolicy"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "/image/digest"),
    "no account at all": ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    "a resource that is no quantity": (
        {"resources": {"limits": {"memory": "much"}}},
        "/resources/limits/memory",
    ),
    "an annotation that is no text": ({"podAnnotations": {"example.com/scrape": True}}, "/podAnnotations"),
    "a toleration as text": ({"tolerations": ["all"]}, "/tolerations/0"),
    "a misspelt affinity": ({"affinity": {"podAntiaffinity": {}}}, "/affinity"),
}


@pytest.mark.parametrize(("values", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_value_is_refused_with_its_name(helm: Helm, values: dict[str, Any], named: str) -> None:
    done = helm.template(values)
    assert done.returncode != 0, "it was rendered"
    assert named in done.stderr


def test_the_schema_knows_every_value_and_says_no_to_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(value: Any, node: dict[str, Any], path: str) -> None:
        if isinstance(value, dict) and "properties" in node:
            assert node["additionalProperties"] is False, path
            assert set(node["properties"]) - {"global", "claims"} >= set(value), path
            for key, inner in value.items():
                compare(inner, node["properties"][key], f"{path}.{key}")

    compare(values, schema, "values")
    assert set(values) == set(schema["properties"]) - {"global"}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_the_operator_takes_every_argument(render: Render, values: dict[str, Any]) -> None:
    from modelrollout.cli import main

    command, *arguments = _container(render(values))["args"]
    known = {option for parameter in main.commands[command].params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in arguments} <= known
