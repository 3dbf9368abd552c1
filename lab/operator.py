"""The operator in the lab: a process of its own, with exactly the rights and arguments that the Helm chart gives it.

The chart is rendered by the real Helm and applied, but for the Deployment, whose image can't run here: its arguments
start the process, and its ServiceAccount's token is all that the process has. A missing right fails a test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from lab import build, companions
from lab.kube import Object
from lab.lab import Lab
from lab.process import Keeper, LabError, Process, wait_until

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "modelrollout"
NAMESPACE = "modelrollout-system"


def render(values: Mapping[str, Any], *, namespace: str = NAMESPACE) -> list[Object]:
    """The objects that the chart makes of these values, its CRDs first. Raises LabError with Helm's words.

    The release bears the name of its namespace's first part, so that two of them in one cluster do not share rights.
    """
    release = namespace.removesuffix("-system")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.yaml"
        file.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        command = [build.program("helm"), "template", release, CHART, "--namespace", namespace]
        done = subprocess.run(
            [*map(str, command), "--include-crds", "--values", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": folder},
        )
    if done.returncode:
        raise LabError(f"helm template: {done.stderr.strip()}")
    objects = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
    return sorted(objects, key=lambda obj: obj["kind"] != "CustomResourceDefinition")


class Operator:
    """One operator of a lab. `values` are the chart's; `module` is what runs in place of the package (for tests), and
    `server` the address at which it finds the API server.

    Two processes of one release, or releases in several `namespace`s, run side by side if their `name` differs.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        values: Mapping[str, Any] | None = None,
        name: str = "operator",
        namespace: str = NAMESPACE,
        module: str = "modelrollout",
        environment: Mapping[str, str] | None = None,
        server: str | None = None,
        detached: bool = False,
    ) -> None:
        self._lab = lab
        self._values = dict(values or {})
        self._name = name
        self._namespace = namespace
        self._folder = lab.folder / name
        self._keeper = Keeper()
        self._module = module
        self._environment = dict(environment or {})
        self._server = server
        self._detached = detached  # it ends with `python -m lab down`, not with us
        self._arguments: list[str] = []
        self._account = ""
        self.process: Process | None = None

    @property
    def log(self) -> Path:
        """Its log file."""
        return self._lab.folder / "logs" / f"{self._name}.log"

    @property
    def port(self) -> int:
        """The port of health and metrics. Raises LabError before it is open."""
        found = re.findall(r"health and metrics on port (\d+)", self.log.read_text(encoding="utf-8"))
        if not found:
            raise LabError("the operator has not opened its port")
        return int(found[-1])

    def install(self) -> Operator:
        """Apply the chart: CRDs, ServiceAccount, rights, configuration."""
        client = self._lab.client
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._namespace}}
        client.apply(namespace)
        for obj in render(self._values, namespace=self._namespace):
            if obj["kind"] == "Deployment":
                self._arguments = list(obj["spec"]["template"]["spec"]["containers"][0]["args"])
                self._account = obj["spec"]["template"]["spec"]["serviceAccountName"]
                continue
            if obj["kind"] == "ConfigMap":
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / "config.yaml").write_text(obj["data"]["config.yaml"], encoding="utf-8")
            client.apply(obj)
        return self

    def arguments(self) -> list[str]:
        """What the chart starts it with, on this machine, with the rights of its ServiceAccount."""
        if not self._arguments:
            self.install()
        replaced = {"--config": str(self._folder / "config.yaml"), "--listen": "127.0.0.1:0"}
        arguments = []
        for argument in self._arguments:
            name, equals, _ = argument.partition("=")
            arguments.append(f"{name}={replaced[name]}" if equals and name in replaced else argument)
        kubeconfig = self._lab.kubeconfig_for(self._namespace, self._account)
        if self._server is not None:
            config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
            config["clusters"][0]["cluster"]["server"] = self._server
            kubeconfig = self._folder / "kubeconfig.yaml"
            kubeconfig.touch(mode=0o600)
            kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
        return [*arguments, "--kubeconfig", str(kubeconfig)]

    def start(self) -> Operator:
        """Start the process and wait until it has read the cluster."""
        arguments = self.arguments()
        paths = f"{ROOT / 'operator'}{os.pathsep}{ROOT}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        command = [sys.executable, "-m", self._module, *arguments]
        env = {**os.environ, "PYTHONPATH": paths, **self._environment}
        if self._detached:
            companions.start(self._lab.folder, "operator", command, log=self.log, env=env)
            wait_until(self._ready, timeout=60, what=f"readiness of the operator (see {self.log})")
            return self
        self.process = Process("operator", command, log=self.log, keeper=self._keeper, env=env)
        self.process.start()
        self.process.wait_ready(self._ready, timeout=60)
        return self

    def _ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (LabError, URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> int | None:
        """SIGTERM, and wait; the exit code."""
        return self.process.stop(20) if self.process is not None else None

    def metrics(self) -> str:
        """The text of its own metrics."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def __enter__(self) -> Operator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()

    def close(self) -> None:
        """Let go; a detached operator runs on."""
        self._keeper.close()
