"""The control plane: etcd, API server, controller manager and scheduler of one lab.

Ports, certificates and tokens are made once per folder, so that a stopped API server comes back where its clients look
for it, with the same data.
"""

from __future__ import annotations

import csv
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lab.kube import KubeClient, KubeError, Object, path_of
from lab.process import Keeper, LabError, Process, answers, kept_port

# Who speaks to the API server, each with a token of its own, so that the audit log tells them apart.
_MASTERS = "system:masters"
_USERS: Mapping[str, tuple[str, str]] = {
    "admin": ("admin", _MASTERS),
    "controller-manager": ("system:kube-controller-manager", "system:authenticated"),
    "scheduler": ("system:kube-scheduler", "system:authenticated"),
    "node": ("lab:node", _MASTERS),
    "gateway": ("lab:gateway", _MASTERS),
    "prometheus": ("lab:prometheus", _MASTERS),
}

# Seconds until SIGKILL. An API server with open watches would take a minute to end them all; requests at work are done
# long before, and etcd has what was acknowledged.
_GRACE = 2.0

# Only what a rollout needs. The node-lifecycle controllers are left out: they would taint a node without a kubelet.
_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
)

# What the lab's gateway serves. The other CRDs would cost a second of the API server's start for nobody.
_SERVED_KINDS = {
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "inferencepools",
    "referencegrants",
    "virtualservices",
}

# The end of every request, without bodies. Probes of the API server's own health would only be noise.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted", "Panic"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]},
        {"level": "Metadata"},
    ],
}


class ControlPlane:
    """Starts and stops the control plane whose state is in `folder`; `program` is the built lab/controlplane."""

    def __init__(self, folder: Path, *, program: Path, keeper: Keeper) -> None:
        self.folder = folder
        self._program = program
        self._pki = folder / "pki"
        self._kubeconfigs = folder / "kubeconfigs"
        self.audit_log = folder / "logs" / "audit.jsonl"
        ports = folder / "ports"
        self._ports = {name: kept_port(ports / name) for name in ("etcd", "etcd-peer", "apiserver")}
        self.server = f"https://127.0.0.1:{self._ports['apiserver']}"
        self.etcd = self._process(keeper, "etcd", self._etcd_arguments())
        self.apiserver = self._process(keeper, "kube-apiserver", self._apiserver_arguments())
        self.controllers = self._process(keeper, "kube-controller-manager", self._controllers_arguments())
        self.scheduler = self._process(keeper, "kube-scheduler", self._scheduler_arguments())

    def _process(self, keeper: Keeper, name: str, arguments: list[str]) -> Process:
        log = self.folder / "logs" / f"{name}.log"
        return Process(name, [self._program, name, *arguments], log=log, keeper=keeper)

    @property
    def processes(self) -> list[Process]:
        return [self.etcd, self.apiserver, self.controllers, self.scheduler]

    def kubeconfig(self, user: str = "admin") -> Path:
        """The kubeconfig of one of the lab's own users: admin, node, gateway, prometheus."""
        return self._kubeconfigs / f"{user}.yaml"

    def start(self) -> None:
        """Start what does not run and wait until the API server serves. Raises LabError with the log's end if not."""
        self._write_files()
        self.start_etcd()
        self.start_apiserver()
        # They give up after ten seconds without an API server, so they come last.
        self.controllers.start()
        self.scheduler.start()

    def stop(self) -> None:
        for process in (self.scheduler, self.controllers, self.apiserver):
            process.signal(signal.SIGTERM)
        for process in (self.scheduler, self.controllers, self.apiserver, self.etcd):
            process.stop(grace=_GRACE)

    def start_etcd(self) -> None:
        """Start etcd and wait until it serves: an API server that finds none gives up after 20 seconds."""
        self.etcd.start()
        self.etcd.wait_ready(lambda: answers(f"http://127.0.0.1:{self._ports['etcd']}/health"))

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready."""
        self.apiserver.start()
        client = KubeClient(self.kubeconfig())
        try:
            self.apiserver.wait_ready(client.ready, timeout=90.0)
        finally:
            client.close()

    def stop_apiserver(self, *, grace: float = _GRACE) -> None:
        """Stop the API server; its data stay in etcd. `grace` 0 kills it."""
        self.apiserver.stop(grace) if grace else self.apiserver.kill()

    def _write_files(self) -> None:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._kubeconfigs.mkdir(exist_ok=True)
        if not (self._pki / "sa.pub").exists():
            done = subprocess.run([self._program, "pki", self._pki], capture_output=True, text=True)
            if done.returncode:
                raise LabError(f"the lab's certificates could not be made: {done.stderr.strip()}")
        for name, token in self._tokens().items():
            self._write_kubeconfig(self.kubeconfig(name), name, token)
        (self.folder / "audit-policy.yaml").write_text(yaml.safe_dump(_AUDIT_POLICY))

    def _tokens(self) -> dict[str, str]:
        """The token of each of the lab's users, made at the first start."""
        file = self.folder / "tokens.csv"
        if not file.exists():
            lines = [
                f'{secrets.token_hex(20)},{user},{name},"{group}"' for name, (user, group) in _USERS.items()
            ]
            file.touch(mode=0o600)
            file.write_text("\n".join(lines) + "\n")
        with file.open() as rows:
            return {name: token for token, _, name, *_ in csv.reader(rows)}

    def _write_kubeconfig(self, file: Path, user: str, token: str) -> None:
        cluster = {"server": self.server, "certificate-authority": str(self._pki / "ca.crt")}
        content: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [
                {"name": "lab", "context": {"cluster": "lab", "user": user, "namespace": "default"}}
            ],
        }
        _write_secret(file, content)

    def _etcd_arguments(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "etcd-peer"))
        return [str(self.folder / "etcd"), client, peer]

    def _apiserver_arguments(self) -> list[str]:
        pki = self._pki
        return [
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--bind-address=127.0.0.1",
            # Never written to an endpoint; set so that nothing asks for a default network interface.
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self._ports['apiserver']}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            # It gives each new Node the taint not-ready, which only the node-lifecycle controller would lift.
            "--disable-admission-plugins=TaintNodesByCondition",
            f"--audit-policy-file={self.folder / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-format=json",
            "--profiling=false",
        ]

    def _controllers_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig('controller-manager')}",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self._pki / 'sa.key'}",
            f"--root-ca-file={self._pki / 'ca.crt'}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            # 15 s by default, within which a test's whole step would pass.
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--profiling=false",
        ]

    def _scheduler_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig('scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--profiling=false",
        ]


def serviceaccount_kubeconfig(
    admin: Path, namespace: str, serviceaccount: str, *, seconds: int = 86400
) -> Path:
    """A kubeconfig beside the administrator's with a ServiceAccount's token, valid for `seconds`.

    Raises LabError if there is no such ServiceAccount.
    """
    client = KubeClient(admin)
    path = path_of("v1", "serviceaccounts", namespace, serviceaccount, "token")
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }
    try:
        token = client.create(path, body)["status"]["token"]
    except KubeError as error:
        raise LabError(
            f"no token for ServiceAccount {namespace}/{serviceaccount}: {error.message}"
        ) from error
    finally:
        client.close()
    content = yaml.safe_load(admin.read_text())
    user = f"{namespace}/{serviceaccount}"
    content["users"] = [{"name": user, "user": {"token": token}}]
    content["contexts"][0]["context"] |= {"user": user, "namespace": namespace}
    file = admin.with_name(f"{namespace}-{serviceaccount}.yaml")
    _write_secret(file, content)
    return file


def _write_secret(file: Path, content: Object) -> None:
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(content))


def install_crds(client: KubeClient, folder: Path, *, timeout: float = 30.0) -> list[str]:
    """Create the CRDs of a folder that are missing, as far as the lab has a use for them, and wait until they are established; the names of those."""
    files = [file for file in sorted(folder.glob("*.yaml")) if file.stem.rpartition("_")[2] in _SERVED_KINDS]
    manifests = [item for file in files for item in _documents(file)]
    missing = [item for item in manifests if client.find(client.object_path(item)) is None]
    for item in missing:
        client.create(client.object_path(item).rpartition("/")[0], item)
    deadline = time.monotonic() + timeout
    for item in missing:
        path = client.object_path(item)
        while item["kind"] == "CustomResourceDefinition" and not is_established(client.get(path)):
            if time.monotonic() > deadline:
                raise LabError(
                    f"the CRD {item['metadata']['name']} was not established within {timeout:.0f} s"
                )
            time.sleep(0.05)
    return [item["metadata"]["name"] for item in missing]


def _documents(file: Path) -> list[Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [item for item in yaml.load_all(file.read_text(), loader) if item]


def is_established(crd: Object) -> bool:
    """Whether the API server serves a CRD. A new one has no conditions, or none but null."""
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
