"""The lab itself: what the other tests believe of the cluster they run in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.kube import Informer, KubeClient, KubeError, path_of
from lab.lab import ROOT, Lab, read_owner
from lab.process import Keeper, LabError, Process, is_alive, wait_until
from tests.lab.conftest import TINY

Object = dict[str, Any]
NAMESPACE = "lab-test"


@pytest.fixture(scope="module", autouse=True)
def namespace(lab: Lab) -> Iterator[None]:
    """The namespace of these tests, and its end: some of what is in it crashes for ever."""
    lab.client.create(path_of("v1", "namespaces"), {"metadata": {"name": NAMESPACE}})
    yield
    lab.client.delete(path_of("v1", "namespaces", None, NAMESPACE))


def pod_template(image: str = "lab/tiny:1", mode: str = "", **container: Any) -> Object:
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}
    own = {"name": "model", "image": image, "readinessProbe": probe, "env": [{"name": "MODE", "value": mode}]}
    return {"spec": {"terminationGracePeriodSeconds": 2, "containers": [own | container]}}


def deploy(lab: Lab, name: str, template: Object, *, replicas: int = 1) -> None:
    labels = {"app": name, "modelrollout.dev/rollout": name}
    body = {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template | {"metadata": {"labels": labels}},
        },
    }
    lab.client.create(path_of("apps/v1", "deployments", NAMESPACE), body)
    service = {
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    lab.client.create(path_of("v1", "services", NAMESPACE), service)


def pods(lab: Lab, name: str) -> list[Object]:
    return lab.client.list(path_of("v1", "pods", NAMESPACE), labelSelector=f"app={name}")


def statuses(lab: Lab, name: str) -> list[Object]:
    return [status for pod in pods(lab, name) for status in pod["status"].get("containerStatuses", [])]


def endpoints(lab: Lab, name: str) -> list[Object]:
    path = path_of("discovery.k8s.io/v1", "endpointslices", NAMESPACE)
    slices = lab.client.list(path, labelSelector=f"kubernetes.io/service-name={name}")
    return [endpoint for one in slices for endpoint in one["endpoints"] or []]


def ready_endpoints(lab: Lab, name: str) -> list[str]:
    return [
        address for one in endpoints(lab, name) if one["conditions"]["ready"] for address in one["addresses"]
    ]


def await_ready(lab: Lab, name: str, count: int = 1) -> None:
    wait_until(
        lambda: len(ready_endpoints(lab, name)) == count,
        timeout=30,
        what=f"{count} ready endpoints of {name}",
    )


def answer(pod: Object) -> Object:
    address = pod["metadata"]["annotations"]["lab.modelrollout.dev/address"]
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as response:
        said: Object = json.load(response)
        return said


def test_a_ready_pod_is_an_endpoint_of_its_service_and_answers_at_its_annotated_address(lab: Lab) -> None:
    environment = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {
            "name": "ROLLOUT",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['modelrollout.dev/rollout']"}},
        },
        {"name": "GREETING", "value": "I am $(POD), not $(NOBODY) or $$(POD)"},
    ]
    deploy(lab, "web", pod_template(env=environment, args=["--name", "$(POD)"]), replicas=2)
    await_ready(lab, "web", 2)
    found = pods(lab, "web")
    assert sorted(pod["status"]["podIP"] for pod in found) == sorted(ready_endpoints(lab, "web"))
    assert all(pod["status"]["podIP"].startswith("10.244.") for pod in found)
    name, said = found[0]["metadata"]["name"], answer(found[0])
    assert said["args"] == ["--name", name]
    wanted = {"POD": name, "IP": found[0]["status"]["podIP"], "ROLLOUT": "web"}
    assert wanted.items() <= said["env"].items()
    assert said["env"]["GREETING"] == f"I am {name}, not $(NOBODY) or $(POD)"


def test_prometheus_scrapes_the_pods_and_names_them_by_their_address_in_the_cluster(lab: Lab) -> None:
    deploy(lab, "scraped", pod_template())
    await_ready(lab, "scraped")
    (pod,) = pods(lab, "scraped")
    labels = {
        "namespace": NAMESPACE,
        "pod": pod["metadata"]["name"],
        "instance": pod["status"]["podIP"],
        "job": "pods",
    }

    def scraped() -> bool:
        return any(
            target["labels"] == labels and target["health"] == "up" for target in lab.prometheus_targets()
        )

    wait_until(scraped, timeout=30, what="a scrape of the pod")


def test_an_unknown_image_waits_as_a_kubelet_reports_it(lab: Lab) -> None:
    deploy(lab, "unknown", pod_template(image="registry.example/none:1"))
    wait_until(lambda: bool(statuses(lab, "unknown")), timeout=10, what="a container status")
    (status,) = statuses(lab, "unknown")
    assert status["state"]["waiting"]["reason"] == "ImagePullBackOff"
    assert pods(lab, "unknown")[0]["status"]["phase"] == "Pending"


def test_a_container_waits_for_the_secret_that_it_names(lab: Lab) -> None:
    source = {"secretKeyRef": {"name": "token", "key": "value"}}
    deploy(lab, "secretive", pod_template(env=[{"name": "TOKEN", "valueFrom": source}]))
    wait_until(lambda: bool(statuses(lab, "secretive")), timeout=10, what="a container status")
    assert statuses(lab, "secretive")[0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    secret = {"metadata": {"name": "token"}, "stringData": {"value": "s3cret"}}
    lab.client.create(path_of("v1", "secrets", NAMESPACE), secret)
    await_ready(lab, "secretive")
    assert answer(pods(lab, "secretive")[0])["env"]["TOKEN"] == "s3cret"


def test_a_crashing_container_backs_off_and_keeps_its_exit_code(lab: Lab) -> None:
    deploy(lab, "crashing", pod_template(mode="crash"))

    def backs_off() -> bool:
        return any(
            status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
            and status["restartCount"] >= 2
            for status in statuses(lab, "crashing")
        )

    wait_until(backs_off, timeout=30, what="CrashLoopBackOff after two restarts")
    assert statuses(lab, "crashing")[0]["lastState"]["terminated"]["exitCode"] == 3
    assert ready_endpoints(lab, "crashing") == []


def test_a_pod_whose_probe_fails_runs_but_is_no_ready_endpoint(lab: Lab) -> None:
    deploy(lab, "deadlocked", pod_template(mode="never-ready"))
    wait_until(lambda: len(endpoints(lab, "deadlocked")) == 1, timeout=15, what="an endpoint")
    (pod,) = pods(lab, "deadlocked")
    conditions = {condition["type"]: condition for condition in pod["status"]["conditions"]}
    assert pod["status"]["phase"] == "Running"
    assert conditions["Ready"]["status"] == "False"
    assert conditions["Ready"]["reason"] == "ContainersNotReady"
    assert ready_endpoints(lab, "deadlocked") == []


def test_a_failing_liveness_probe_restarts_the_container(lab: Lab) -> None:
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    deploy(
        lab, "unhealthy", pod_template(mode="never-ready", livenessProbe=probe | {"initialDelaySeconds": 1})
    )
    wait_until(
        lambda: any(s["restartCount"] for s in statuses(lab, "unhealthy")), timeout=20, what="a restart"
    )


def test_a_killed_process_makes_its_pod_unready_until_it_serves_again(lab: Lab) -> None:
    deploy(lab, "killed", pod_template())
    await_ready(lab, "killed")
    (pod,) = pods(lab, "killed")
    seen: list[tuple[int, bool]] = []

    def note(_: str, body: Object) -> None:
        seen.extend(
            (status["restartCount"], status["ready"]) for status in body["status"]["containerStatuses"]
        )

    informer = Informer(
        lab.client, path_of("v1", "pods", NAMESPACE), note, labelSelector="app=killed"
    ).start()
    informer.synced.wait(10)
    lab.kill_pod(NAMESPACE, pod["metadata"]["name"])
    wait_until(lambda: (1, True) in seen, timeout=20, what="the pod's return")
    informer.stop()
    assert seen.index((0, True)) < seen.index((1, False)) < seen.index((1, True))
    assert statuses(lab, "killed")[0]["lastState"]["terminated"]["exitCode"] == 137


def test_a_stopped_process_loses_readiness_and_regains_it(lab: Lab) -> None:
    deploy(lab, "flapping", pod_template())
    await_ready(lab, "flapping")
    name = pods(lab, "flapping")[0]["metadata"]["name"]
    lab.kill_pod(NAMESPACE, name, signal.SIGSTOP)
    await_ready(lab, "flapping", 0)
    lab.kill_pod(NAMESPACE, name, signal.SIGCONT)
    await_ready(lab, "flapping")
    assert statuses(lab, "flapping")[0]["restartCount"] == 0


@pytest.mark.parametrize("mode", ["", "deaf"], ids=["on SIGTERM", "with SIGKILL when it ignores SIGTERM"])
def test_a_deleted_pod_ends_its_process(lab: Lab, mode: str) -> None:
    name = f"deleted-{mode or 'polite'}"
    deploy(lab, name, pod_template(mode=mode))
    await_ready(lab, name)
    (pid,) = lab.pids(NAMESPACE, pods(lab, name)[0]["metadata"]["name"])
    lab.client.delete(path_of("apps/v1", "deployments", NAMESPACE, name))
    wait_until(lambda: not pods(lab, name), timeout=20, what="the end of the pod")
    assert not is_alive(pid)


def test_a_crowd_is_ready_without_processes(lab: Lab) -> None:
    deploy(lab, "crowd", pod_template(image="lab/pause:1"), replicas=100)
    await_ready(lab, "crowd", 100)
    assert all("containerID" not in status for status in statuses(lab, "crowd"))
    lab.client.delete(path_of("apps/v1", "deployments", NAMESPACE, "crowd"))
    wait_until(lambda: not pods(lab, "crowd"), timeout=30, what="the end of the crowd")


def test_a_service_account_has_its_rights_and_no_others(lab: Lab) -> None:
    lab.client.create(path_of("v1", "serviceaccounts", NAMESPACE), {"metadata": {"name": "reader"}})
    rbac = "rbac.authorization.k8s.io/v1"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    lab.client.create(path_of(rbac, "roles", NAMESPACE), {"metadata": {"name": "reader"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    binding = {"metadata": {"name": "reader"}, "subjects": [subject], "roleRef": reference}
    lab.client.create(path_of(rbac, "rolebindings", NAMESPACE), binding)
    reader = KubeClient(lab.kubeconfig_for(NAMESPACE, "reader"))
    reader.list(path_of("v1", "pods", NAMESPACE))
    with pytest.raises(KubeError) as refused:
        reader.list(path_of("v1", "secrets", NAMESPACE))
    reader.close()
    assert refused.value.status == 403
    user = f"system:serviceaccount:{NAMESPACE}:reader"
    requests = [event for event in lab.audit_events() if event["user"]["username"] == user]
    assert [
        (one["verb"], one["objectRef"]["resource"], one["responseStatus"]["code"]) for one in requests
    ] == [
        ("list", "pods", 200),
        ("list", "secrets", 403),
    ]


def test_the_cluster_goes_on_after_its_api_server_was_away(lab: Lab) -> None:
    deploy(lab, "lasting", pod_template())
    await_ready(lab, "lasting")
    lab.stop_apiserver()
    assert not lab.client.ready()
    lab.start_apiserver()
    path = path_of("apps/v1", "deployments", NAMESPACE, "lasting")
    lab.client.patch(path, {"spec": {"replicas": 2}})
    await_ready(lab, "lasting", 2)


def test_the_cluster_goes_on_after_etcd_was_restarted(lab: Lab) -> None:
    lab.restart_etcd()
    wait_until(lab.client.ready, timeout=30, what="the API server's return")
    deploy(lab, "after-etcd", pod_template())
    await_ready(lab, "after-etcd")


def test_prometheus_keeps_its_address_and_data_over_a_restart(lab: Lab) -> None:
    url = lab.prometheus_url
    lab.stop_prometheus()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/-/ready", timeout=2)
    lab.start_prometheus()
    assert lab.prometheus_url == url


def test_a_second_lab_in_the_same_folder_attaches(lab: Lab) -> None:
    with Lab(lab.folder) as second:
        assert second.prometheus_url == lab.prometheus_url
        assert second.client.server == lab.client.server
        with pytest.raises(LabError, match="only the process that started this lab"):
            second.stop_apiserver()
    assert lab.client.ready()
    with pytest.raises(LabError, match="for itself"):
        Lab(lab.folder).down()


def test_a_cluster_survives_going_down_and_up(tmp_path: Path) -> None:
    images = {"lab/tiny": (sys.executable, str(TINY))}
    with Lab(tmp_path, prometheus=False, gateway=False, images=images) as lab:
        lab.client.create(path_of("v1", "namespaces"), {"metadata": {"name": NAMESPACE}})
        deploy(lab, "surviving", pod_template())
        await_ready(lab, "surviving")
        (before,) = pods(lab, "surviving")
        lab.down()
        lab.up()
        wait_until(lambda: serves_again(lab), timeout=30, what="the pod's new process")
        (after,) = pods(lab, "surviving")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert answer(after)["args"] == []


def serves_again(lab: Lab) -> bool:
    return [(one["restartCount"], one["ready"]) for one in statuses(lab, "surviving")] == [(1, True)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments], env=environment, capture_output=True, text=True
    )


def test_up_is_idempotent_and_down_leaves_no_process(tmp_path: Path) -> None:
    parts = ("--folder", str(tmp_path), "--no-prometheus", "--no-gateway")
    first = run("up", *parts)
    assert first.returncode == 0, first.stderr
    state = json.loads((tmp_path / "state.json").read_text())
    owner = read_owner(tmp_path)
    second = run("up", *parts)
    assert "up already" in second.stdout
    assert read_owner(tmp_path) == owner
    assert run("status", "--folder", str(tmp_path)).returncode == 0
    assert run("down", "--folder", str(tmp_path)).returncode == 0
    assert owner is not None
    assert [pid for pid in (owner["pid"], *state["processes"].values()) if is_alive(pid)] == []
    assert run("status", "--folder", str(tmp_path)).returncode == 1


def test_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from lab.process import Keeper, Process;"
        "p = Process('sleeper', ['sleep', '60'], log=Path(sys.argv[1]), keeper=Keeper()).start();"
        "print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)

    wait_until(lambda: not is_alive(pid), timeout=10, what="the end of the orphan")


def test_a_program_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    keeper = Keeper()
    process = Process(
        "broken", ["sh", "-c", "echo no luck; exit 7"], log=tmp_path / "log", keeper=keeper
    ).start()
    with pytest.raises(LabError, match=r"broken ended with code 7 while starting:\nno luck"):
        process.wait_ready(lambda: False)
    with pytest.raises(LabError, match="missing cannot be started: /nowhere/at-all"):
        Process("missing", ["/nowhere/at-all"], log=tmp_path / "log", keeper=keeper).start()
    keeper.close()
