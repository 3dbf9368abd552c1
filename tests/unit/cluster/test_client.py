"""What the client does before there is a server: paths, and credentials that can't be used."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from modelrollout.cluster import client
from modelrollout.cluster.client import Credentials, KubernetesCluster, load_credentials
from modelrollout.cluster.errors import Unavailable
from modelrollout.cluster.kinds import (
    DEPLOYMENT,
    HTTP_ROUTE,
    MODEL_ROLLOUT,
    NAMESPACE,
    POD,
    Kind,
    kind_of,
    name_of,
)


@pytest.mark.parametrize(
    ("kind", "parts", "path"),
    [
        pytest.param(POD, ("shop", "p"), "/api/v1/namespaces/shop/pods/p", id="the core group"),
        pytest.param(DEPLOYMENT, ("shop",), "/apis/apps/v1/namespaces/shop/deployments", id="a collection"),
        pytest.param(DEPLOYMENT, (None,), "/apis/apps/v1/deployments", id="a collection in all namespaces"),
        pytest.param(NAMESPACE, (None, "shop"), "/api/v1/namespaces/shop", id="a kind without namespace"),
        pytest.param(
            MODEL_ROLLOUT,
            ("shop", "fraud", "status"),
            "/apis/modelrollout.dev/v1alpha1/namespaces/shop/modelrollouts/fraud/status",
            id="a subresource",
        ),
        pytest.param(
            HTTP_ROUTE,
            ("a/../b", "x?y"),
            "/apis/gateway.networking.k8s.io/v1/namespaces/a%2F..%2Fb/httproutes/x%3Fy",
            id="a name can't leave its place in the path",
        ),
    ],
)
def test_paths(kind: Kind, parts: tuple[str, ...], path: str):
    assert kind.path(*parts) == path


def test_an_object_in_no_namespace_is_a_mistake():
    with pytest.raises(ValueError, match="Deployment x: a namespace is needed"):
        DEPLOYMENT.path(None, "x")


def test_an_unknown_kind_and_a_missing_name_are_told():
    with pytest.raises(ValueError, match="'Node' is not served here"):
        kind_of({"apiVersion": "v1", "kind": "Node"})
    with pytest.raises(ValueError, match=r"Pod: metadata\.name is missing"):
        name_of({"kind": "Pod", "metadata": {}})


BROKEN = {
    "a file that is not there": None,
    "an empty file": "",
    "a file that is not YAML": "{[",
    "a file without contexts": "apiVersion: v1\nkind: Config\ncurrent-context: x\n",
    "a context that is not defined": "current-context: x\ncontexts: []\nclusters: []\nusers: []\n",
    "a list": "- a\n",
    "a file that is no text": "\udcff",
}


@pytest.mark.parametrize("content", list(BROKEN.values()), ids=list(BROKEN))
async def test_an_unusable_kubeconfig_is_one_sentence_that_names_the_file_and_the_mend(
    tmp_path: Path, content: str | None
):
    file = tmp_path / "config"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"kubeconfig .*config: .*--kubeconfig") as refused:
        await load_credentials(file)
    assert "\n" not in str(refused.value)
    assert ("there is no such file" in str(refused.value)) is (content is None)


async def test_a_pod_without_its_service_account_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("modelrollout.cluster.client.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="the pod's service account: "):
        await load_credentials()


async def test_a_watch_on_a_dead_connection_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "SILENT_SECONDS", 0.2)
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "BOOKMARK", "object": {}}\n')
        await over.wait()
        return response

    async def renew() -> None:
        """Nothing to renew."""

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with KubernetesCluster(Credentials(configuration, renew)) as cluster:
            events = cluster.watch(POD, "ml", name="fraud", resource_version="1")
            assert (await anext(events))[0] == "BOOKMARK"
            with pytest.raises(Unavailable, match="watch Pod ml/fraud"):
                await asyncio.wait_for(anext(events), 10)
    finally:
        over.set()
        await runner.cleanup()
