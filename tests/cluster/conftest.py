"""One real control plane for all tests of this folder; each test works in a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.kube import KubeClient, KubeError
from lab.lab import Lab
from lab.operator import Operator
from lab.process import wait_until
from modelrollout.cluster.kinds import MODEL_ROLLOUT, NAMESPACE
from tests.cluster.harness import SideBySide, World

CRD = Path(__file__).resolve().parents[2] / "crds" / "modelrollouts.yaml"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """API server, controllers, scheduler and a node; ModelRollouts are served."""
    with Lab(tmp_path_factory.mktemp("lab"), prometheus=False, gateway=False) as lab:
        _serve_model_rollouts(lab.client)
        yield lab


@pytest.fixture(scope="session")
def world(lab: Lab) -> Iterator[World]:
    """Traffic, metrics and a gateway around the lab."""
    world = World.around(lab)
    yield world
    world.stop()


@pytest.fixture(scope="module")
def operator(request: pytest.FixtureRequest, world: World) -> Iterator[Operator]:
    """One operator for all tests of a module, which finds no rollout of other modules."""
    world.clear()
    name = request.module.__name__.rpartition(".")[2]
    with Operator(world.lab, values=world.values, name=name) as running:
        yield running
        world.clear()


@pytest.fixture(scope="module")
def side_by_side(request: pytest.FixtureRequest, world: World, operator: Operator) -> Iterator[SideBySide]:
    """The stories of this module that were chosen for this run, all of them running."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    parameters = [
        item.callspec.params for item in items if item.module is request.module and hasattr(item, "callspec")
    ]
    running = SideBySide(world, [p["story"] for p in parameters if "story" in p])
    yield running
    running.close()


@pytest.fixture
def namespace(lab: Lab) -> str:
    """A fresh namespace."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    lab.client.create(NAMESPACE.path(None), obj)
    return name


def _serve_model_rollouts(client: KubeClient) -> None:
    crd = yaml.safe_load(CRD.read_text())
    client.create(client.object_path(crd).rpartition("/")[0], crd)
    wait_until(lambda: _served(client), timeout=30, what="serving ModelRollouts")


def _served(client: KubeClient) -> bool:
    """A new kind answers 404, and then 429 while its storage is made."""
    try:
        client.get(MODEL_ROLLOUT.path("default"))
    except KubeError as error:
        if error.status in (404, 429):
            return False
        raise
    return True
