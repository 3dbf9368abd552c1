"""Renders the chart with the real Helm, so that what is tested is what a user gets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import build
from lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "modelrollout"

Object = dict[str, Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Helm:
    """The real `helm`, with folders of its own so that no repository or plugin of the user's plays a part."""

    binary: Path
    folder: Path

    def run(self, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "HELM_CACHE_HOME": str(self.folder / "cache"),
            "HELM_CONFIG_HOME": str(self.folder / "config"),
            "HELM_DATA_HOME": str(self.folder / "data"),
            "KUBECONFIG": str(kubeconfig or self.folder / "none"),
        }
        return subprocess.run(
            [self.binary, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )

    def file(self, values: Values) -> str:
        """A values file; JSON is YAML."""
        path = self.folder / "values.yaml"
        path.write_text(json.dumps(values))
        return str(path)

    def template(self, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
        base = ("template", "rollouts", str(CHART), "--namespace", "operators", "--values", self.file(values))
        return self.run(*base, *arguments)


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(build.program("helm"), tmp_path_factory.mktemp("helm"))


Render = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The objects that the chart makes of these values."""

    def _render(values: Values | None = None, *arguments: str) -> list[Object]:
        done = helm.template(values or {}, *arguments)
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    return _render


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A real API server with its controllers, and a node that only says that pods are ready."""
    with Lab(tmp_path_factory.mktemp("lab"), prometheus=False, gateway=False, crowd=True) as running:
        yield running
