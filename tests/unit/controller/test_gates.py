"""What gates may do, how a question is signed, and that no round waits for an answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Spec
from modelrollout.cluster.errors import Unavailable
from modelrollout.cluster.kinds import JOB, SECRET, Kind
from modelrollout.cluster.port import Hooks, Write
from modelrollout.controller import gates
from modelrollout.controller.gates import GateRights
from modelrollout.controller.webhook import allowed, headers_of, parse_beginning, post
from tests.unit.controller.world import KEY, World, deployed, manifest

GATES = Path(__file__).resolve().parents[3] / "docs" / "gates.md"
JOB_GATE: dict[str, Any] = {
    "name": "evaluation",
    "job": {"template": {"spec": {"containers": [{"name": "e", "image": "e"}]}}},
}


def hook(url: str = "https://ci.example.com/gates/a", **more: Any) -> dict[str, Any]:
    return {"name": "hook", "webhook": {"url": url, **more}}


ALLOWED: dict[str, tuple[str, str, bool]] = {
    "the URL itself": ("https://ci.example.com/gates", "https://ci.example.com/gates", True),
    "what is below it": ("https://ci.example.com/gates/", "https://ci.example.com/gates/a?b=c", True),
    "a host with any path": ("https://ci.example.com", "https://ci.example.com/x", True),
    "the port that goes without saying": ("https://ci.example.com:443/", "https://CI.example.com/x", True),
    "any URL": ("*", "http://10.0.0.1/x", True),
    "not a host that begins so": ("https://ci.example.com", "https://ci.example.com.evil.org/", False),
    "not a user that is called so": ("https://ci.example.com", "https://ci.example.com@evil.org/", False),
    "not another port": ("https://ci.example.com", "https://ci.example.com:8443/", False),
    "not without encryption": ("https://ci.example.com", "http://ci.example.com/", False),
    "not a path that begins so": (
        "https://ci.example.com/gates",
        "https://ci.example.com/gates-of-hell",
        False,
    ),
    "not a way up": ("https://ci.example.com/gates/", "https://ci.example.com/gates/../admin", False),
    "not a way up in disguise": (
        "https://ci.example.com/gates/",
        "https://ci.example.com/gates/%2e%2e/admin",
        False,
    ),
    "not a way up in two disguises": (
        "https://ci.example.com/a/",
        "https://ci.example.com/a/%252e%252e/b",
        False,
    ),
    "not a way up for other servers": ("https://ci.example.com/a/", "https://ci.example.com/a/..\\b", False),
    "not a port that can't be": ("https://ci.example.com", "https://ci.example.com:99999/", False),
    "not another scheme": ("*", "file:///etc/passwd", False),
}


@pytest.mark.parametrize(("beginning", "url", "may"), ALLOWED.values(), ids=ALLOWED)
def test_a_webhook_may_call(beginning: str, url: str, may: bool) -> None:
    assert allowed(url, [beginning]) is may
    assert not allowed(url, [])


@pytest.mark.parametrize("text", ["ci.example.com", "ftp://a/", "https://", "https://a@b/", ""])
def test_a_beginning_that_says_no_whole_host_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="write the beginning of a URL with its whole host"):
        parse_beginning(text)


RIGHTS: dict[str, tuple[dict[str, Any], GateRights, str]] = {
    "a URL that was not allowed": (hook(), GateRights(), "gates.webhooks"),
    "a signature without the right to Secrets": (
        hook(secretRef={"name": "a", "key": "b"}),
        GateRights(webhooks=("*",)),
        "gates.secrets: true",
    ),
    "a Job without the right to it": (
        JOB_GATE,
        GateRights(webhooks=("*",), secrets=True),
        "gates.jobs: true",
    ),
}


@pytest.mark.parametrize(("gate", "rights", "says"), RIGHTS.values(), ids=RIGHTS)
def test_the_chart_value_is_named_that_allows(gate: dict[str, Any], rights: GateRights, says: str) -> None:
    for place, spec in (
        ("spec.gates.start", {"gates": {"start": [gate]}}),
        ("spec.gates.promotion", {"gates": {"promotion": [gate]}}),
        (
            "spec.strategy.canary.steps.gates",
            {"strategy": {"canary": {"steps": [{"weight": 5, "gates": [gate]}]}}},
        ),
    ):
        problem = rights.problem(Spec.from_wire(manifest(**spec)["spec"]))
        assert problem is not None
        assert problem.reason is Reason.NOT_SUPPORTED
        assert problem.message.startswith(f"{place}: gate {gate['name']}: ")
        assert says in problem.message
    assert GateRights(("*",), True, True).problem(Spec.from_wire(manifest(**spec)["spec"])) is None


def test_a_signature_covers_time_and_body_and_is_left_out_without_a_secret() -> None:
    headers = headers_of(b'{"a": 1}', "key", "1800000000", b"secret")
    digest = hmac.new(b"secret", b'1800000000.{"a": 1}', hashlib.sha256).hexdigest()
    assert headers["X-Modelrollout-Signature"] == f"sha256={digest}"
    assert headers["X-Modelrollout-Timestamp"] == "1800000000"
    assert headers["Idempotency-Key"] == "key"
    assert "X-Modelrollout-Signature" not in headers_of(b"", "key", "1", None)


def shape(value: Any) -> Any:
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


def documented(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", GATES.read_text(), re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_receiver_of_the_document_takes_what_is_sent_and_nothing_else() -> None:
    namespace: dict[str, Any] = {}
    exec(documented("python"), namespace)
    genuine = namespace["genuine"]
    headers = headers_of(b"{}", "key", "1800000000", b"secret")
    time, signature = headers["X-Modelrollout-Timestamp"], headers["X-Modelrollout-Signature"]
    assert genuine(b"secret", time, b"{}", signature)
    assert not genuine(b"secret", time, b"{ }", signature)
    assert not genuine(b"secret", "1800000001", b"{}", signature)
    assert not genuine(b"another", time, b"{}", signature)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(url: str, *, within: float = 10.0) -> tuple[bool | None, str]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session:
        reading = await post(session, url, b"{}", {}, within=within)
    return reading.passed, reading.message


ANSWERS: dict[str, tuple[int, str, bool, str]] = {
    "2xx passes with its first line": (200, "fine\nmore", True, "fine"),
    "so does one without words": (204, "", True, ""),
    "4xx does not": (404, "no such model", False, "answered 404 Not Found: no such model"),
    "5xx does not": (503, "", False, "answered 503 Service Unavailable"),
    "a page of HTML is cut": (502, "<html>" + "x" * 5000, False, "answered 502 Bad Gateway: <html>xxx"),
    "control characters are left out": (
        500,
        "a\x1b[31mb",
        False,
        "answered 500 Internal Server Error: a [31mb",
    ),
}


@pytest.mark.parametrize(("status", "text", "passed", "says"), ANSWERS.values(), ids=ANSWERS)
async def test_of_answers(status: int, text: str, passed: bool, says: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    async with serving(handler) as url:
        found = await ask(f"{url}/gate")
    assert found[0] is passed
    assert found[1].startswith(says)
    assert len(found[1]) <= 200


async def test_a_redirect_is_not_followed() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving(handler) as url:
        passed, message = await ask(f"{url}/gate")
    assert (passed, seen) == (False, ["/gate"])
    assert "redirects are not followed" in message


@pytest.mark.parametrize("headers_first", [False, True], ids=["before its headers", "before its end"])
async def test_an_answer_that_hangs_is_given_up_in_time(headers_first: bool) -> None:
    hold = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if headers_first:
            await answer.prepare(request)
            await answer.write(b"so far")
        await hold.wait()
        return answer

    async with serving(handler) as url:
        found = await ask(f"{url}/gate?token=secret", within=0.2)
        hold.set()
    assert found == (False, f"{url} did not answer within 0.2s")


async def test_only_the_beginning_of_an_endless_answer_is_read() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    async with serving(handler) as url:
        passed, message = await ask(f"{url}/gate")
    assert passed
    assert len(message) <= 200


async def test_nobody_there_is_no_yes() -> None:
    passed, message = await ask("http://127.0.0.1:1/gate?token=secret")
    assert passed is False
    assert message.startswith("http://127.0.0.1:1 can't be asked: ")
    assert "secret" not in message


async def test_a_round_does_not_wait_for_a_gate_and_a_new_process_asks_again() -> None:
    hold, asked = asyncio.Event(), asyncio.Event()
    keys, shapes = [], []

    async def handler(request: web.Request) -> web.StreamResponse:
        told = json.loads(await request.read())
        keys.append((request.headers["Idempotency-Key"], told["key"], told["asked"]))
        shapes.append(shape(told))
        asked.set()
        await hold.wait()
        return web.Response(text="welcome")

    async with serving(handler) as url:
        world = await deployed()
        world.rights = GateRights(webhooks=(url,))
        world.start()
        world.apply("2", gates={"start": [hook(f"{url}/gate", timeout="1m")]})
        await world.run(60, until=lambda: "waiting for gate hook" in str(world.status.get("message")))
        await asyncio.wait_for(asked.wait(), 10)
        await world.run(60)
        assert world.weights[world.status["stable"]["revision"]] == 100
        asked.clear()
        world.reconciler.close()
        world.start()
        await world.round()
        await asyncio.wait_for(asked.wait(), 10)
        assert keys[0] == keys[1]
        assert keys[0][0] == keys[0][1]
        assert shapes[0] | {"model": ()} == shape(json.loads(documented("json"))) | {"model": ()}
        hold.set()
        memory = world.reconciler._memories._all[KEY]
        assert memory.asking is not None
        await asyncio.wait({memory.asking.task})
        world.dirty = True
        await world.run(120, until=lambda: world.status["weights"]["candidate"] == 10)
        assert world.status["weights"]["candidate"] == 10
        world.reconciler.close()


async def test_a_job_is_made_after_the_commit_that_says_it_is_asked() -> None:
    states = []

    async def before_write(write: Write) -> None:
        if write.kind == "Job":
            states.append(world.status["step"]["gates"][0]["state"])

    world = await deployed(hooks=Hooks(before_write=before_write))
    world.rights = GateRights(jobs=True)
    world.start()
    world.apply("2", gates={"start": [JOB_GATE]})
    await world.run(120)
    assert states == ["Running"]
    (job,) = world.cluster.look_all(JOB)
    assert job["metadata"]["labels"]["modelrollout.dev/gate"] == "evaluation"
    assert "waiting for gate evaluation: Job fraud-gate-" in world.status["message"]


async def waiting_at(url: str, **webhook: Any) -> World:
    """A candidate whose start gate has just been asked in the committed status."""
    world = await deployed()
    world.rights = GateRights(webhooks=(url,), secrets=True)
    world.start()
    world.apply("2", gates={"start": [hook(f"{url}/gate", retries=0, **webhook) | {"onFailure": "Pause"}]})
    return world


async def answered(world: World) -> str:
    """What came of the question, as the status tells it."""

    async def reading() -> str:
        asking = world.reconciler._memories._all[KEY].asking
        if asking is not None:
            await asyncio.wait({asking.task}, timeout=10)
            world.dirty = True
        return str(world.status.get("message"))

    for _ in range(100):
        await world.run(1)
        if "gate hook" in await reading() and "waiting for" not in str(world.status.get("message")):
            return str(world.status["message"])
    raise AssertionError(world.status.get("message"))


def secret(data: dict[str, str]) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    metadata = {"name": "ci", "namespace": "ml"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(None, id="there is no such Secret"),
        pytest.param({"other": "x"}, id="it has no such key"),
        pytest.param({"hmac": ""}, id="the key is empty"),
    ],
)
async def test_nothing_is_asked_without_the_signature_that_is_wanted_when(
    data: dict[str, str] | None,
) -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response()

    async with serving(handler) as url:
        world = await waiting_at(url, secretRef={"name": "ci", "key": "hmac"})
        if data is not None:
            world.cluster.seed(secret(data))
        assert "there is no Secret ci with a key hmac that is not empty" in await answered(world)
        await world.reconciler._around.gates.close()
    assert seen == []


async def test_an_api_server_that_is_away_is_no_answer_and_the_question_goes_out_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "API_AWAY", 0.0)
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["X-Modelrollout-Signature"])
        return web.Response()

    async with serving(handler) as url:
        world = await waiting_at(url, secretRef={"name": "ci", "key": "hmac"})
        world.cluster.seed(secret({"hmac": "x"}))
        get, failures = world.cluster.get, [Unavailable("503"), Unavailable("503")]

        async def flaky(kind: Kind, *rest: Any) -> Any:
            if kind is SECRET and failures:
                raise failures.pop()
            return await get(kind, *rest)

        monkeypatch.setattr(world.cluster, "get", flaky)
        for _ in range(100):
            await world.run(1)
            asking = world.reconciler._memories._all[KEY].asking
            if asking is not None:
                await asyncio.wait({asking.task}, timeout=10)
                world.dirty = True
            if world.status["step"]["display"] == "2/3":
                break
        assert world.status["step"]["display"] == "2/3"
        await world.reconciler._around.gates.close()
    assert failures == []
    assert len(seen) == 1


async def test_a_process_that_does_not_lead_asks_nothing() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response()

    async with serving(handler) as url:
        world = await waiting_at(url)
        world.reconciler._around.gates._may_ask = lambda: False
        await world.run(60)
        assert world.status["step"]["gates"][0]["state"] == "Running"
        assert world.reconciler._memories._all[KEY].asking is None
    assert seen == []
