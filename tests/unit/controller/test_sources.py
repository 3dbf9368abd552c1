"""What a spec refers to can't always be read. Then nothing moves forward, and what was accepted is still judged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.cluster.errors import ClusterError, Forbidden, Unavailable
from modelrollout.cluster.references import References
from modelrollout.cluster.store import Store
from modelrollout.controller.sources import Source, Sources
from tests.fakes.cluster import FakeCluster
from tests.unit.controller.world import KEY, deployed, manifest

AWAY, REFUSED = Unavailable("no answer", status=500), Forbidden("configmaps is forbidden", status=403)
TEMPLATE = {
    "spec": {
        "containers": [{"name": "model", "image": "m", "envFrom": [{"configMapRef": {"name": "settings"}}]}]
    }
}
TRACKED = {"workload": {"template": TEMPLATE, "trackConfig": True}}
OTHERS = {"workload": {"deploymentRef": {"name": "legacy"}}}


def serving(candidate: str) -> dict[str, Any]:
    names = {"stable": {"name": "fraud-v1"}, "candidate": {"name": candidate}}
    return {"workload": {"services": names}, "traffic": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}}


class Given:
    """Sources over a cluster in which a LIST may fail."""

    def __init__(self) -> None:
        self.cluster, self.store = FakeCluster(), Store()
        self.fails: Callable[[str, str | None], ClusterError | None] = lambda kind, name: None
        for name in ("fraud-v1", "fraud-v2"):  # whose pods are seen only once they are
            metadata = {"name": name, "namespace": KEY.namespace}
            service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
            self.cluster.seed(service | {"spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
        real = self.cluster.list

        async def listed(kind: Any, namespace: Any, selector: Any = None, *, name: str | None = None) -> Any:
            error = self.fails(kind.kind, name or selector)
            if error is not None:
                raise error
            return await real(kind, namespace, selector, name=name)

        self.cluster.list = listed  # type: ignore[method-assign]
        self.references = References(self.cluster, self.store, lambda keys: None)
        self.sources = Sources(self.store, self.references, track_config=True)

    async def read(self, spec: Any, fallback: Any) -> Source:
        rollout = manifest("2", **spec)
        rollout["metadata"]["uid"] = "uid-fraud"
        accepted = Spec.from_wire(manifest("1", **fallback)["spec"]).without_template() if fallback else None
        before = None if accepted is None else Spec.from_wire(accepted)
        return await self.sources.read(KEY, rollout, Spec.from_wire(rollout["spec"]), before, Status())


@pytest.fixture
async def given(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Given]:
    monkeypatch.setattr("modelrollout.cluster.references.LISTED_WITHIN", 0.02)
    given = Given()
    yield given
    await given.references.close()


@pytest.mark.parametrize(
    ("spec", "fallback", "kind", "name", "error", "reason"),
    [
        (TRACKED, TRACKED, "ConfigMap", "settings", AWAY, "NotChecked"),
        (TRACKED, TRACKED, "ConfigMap", "settings", REFUSED, "NotSupported"),
        (OTHERS, OTHERS, "Deployment", "legacy", AWAY, "NotChecked"),
        (serving("fraud-v3"), serving("fraud-v2"), "Service", "fraud-v3", AWAY, "NotChecked"),
        (TRACKED, None, "ConfigMap", "settings", AWAY, "NotChecked"),
        (TRACKED, None, "ConfigMap", "settings", REFUSED, "NotSupported"),
        (
            serving("fraud-v2"),
            None,
            "EndpointSlice",
            "kubernetes.io/service-name=fraud-v1",
            AWAY,
            "NotChecked",
        ),
        (serving("fraud-v3"), serving("fraud-v2"), "Service", "fraud-v2", AWAY, None),
        (
            serving("fraud-v3"),
            serving("fraud-v2"),
            "EndpointSlice",
            "kubernetes.io/service-name=fraud-v1",
            AWAY,
            None,
        ),
        (serving("fraud-v3"), serving("fraud-v2"), "Pod", "app=fraud-v1", AWAY, None),
    ],
    ids=[
        "tracked configuration",
        "tracked configuration that may not be read",
        "the Deployment with the template",
        "a Service that only the new spec names",
        "with nothing accepted before, which serves nothing yet",
        "the same, where it may not be read",
        "the same, where it is not known what serves",
        "without a Service that serves the round fails, as nobody knows what is ready",
        "so it does without the endpoints",
        "and without the pods",
    ],
)
async def test_what_can_not_be_read_stops_only_what_needs_it(
    given: Given, spec: Any, fallback: Any, kind: str, name: str, error: ClusterError, reason: str | None
) -> None:
    given.fails = lambda found, of: error if (found, of) == (kind, name) else None
    if reason is None:
        with pytest.raises(type(error)):
            await given.read(spec, fallback)
        return
    source = await given.read(spec, fallback)
    assert source.problem is not None
    assert source.problem.reason == reason
    assert error.message in source.problem.message
    assert (source.spec, source.fallback is None) == (None, fallback is None)


async def test_after_a_restart_harm_is_acted_on_though_a_template_can_not_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelrollout.cluster.references.LISTED_WITHIN", 0.02)
    world = await deployed()
    world.apply("2")
    await world.run(600, until=lambda: bool((world.status.get("weights") or {}).get("candidate")))
    revision = world.status["candidate"]["revision"]

    async def away(*_: Any, **__: Any) -> Any:
        raise AWAY

    world.cluster.list = away  # type: ignore[method-assign]
    world.start()
    world.errors[revision] = 0.5
    world.apply("3", workload={"replicas": 2, "deploymentRef": {"name": "legacy"}})
    await world.run(1800, until=lambda: world.phase == "RolledBack")
    assert world.phase == "RolledBack", world.status
    assert not world.failures
