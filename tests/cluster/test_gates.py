"""Gates with a real HTTP server and the real Job controller: what is asked, when, how often, and what comes of the answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lab.kube import KubeError, Object, path_of
from lab.operator import Operator
from lab.process import wait_until
from tests.cluster.harness import (
    ROLLOUT_LABEL,
    Rollout,
    SideBySide,
    Stories,
    Story,
    World,
    condition,
    phase_is,
    title,
    weights_of,
)

STORIES = Stories()
story = STORIES.story
OFF: dict[str, Any] = {
    "analysis": {"mode": "Off"},
    "strategy": {"canary": {"steps": [{"weight": 50, "duration": "1s"}]}},
    "watch": {"duration": "0s"},
}
SECRET = "correct-horse-battery"


# The other side


@dataclass
class Asked:
    """One request, as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> Object:
        told: Object = json.loads(self.body)
        return told


@dataclass
class Door:
    """An HTTP server on loopback that answers each path as a test says: with a list of (status, text), the last for ever."""

    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    locations: dict[str, str] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)  # nothing is answered before it is set
    seen: list[Asked] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    def start(self) -> Door:
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, text = door.take(Asked(self.path, dict(self.headers), body))
                self.send_response(status)
                if self.path in door.locations:
                    self.send_header("Location", door.locations[self.path])
                data = text.encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Not here."""

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True  # whoever asked did not wait for the answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def take(self, asked: Asked) -> tuple[int, str]:
        self.seen.append(asked)
        answers = self.answers[asked.path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if asked.path in self.held:
            self.held[asked.path].wait(120)
        return answer

    def stop(self) -> None:
        for event in self.held.values():
            event.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_port}/gates"

    def asked(self, path: str) -> list[Asked]:
        return [one for one in self.seen if one.path == path]

    def hook(self, name: str, *answers: tuple[int, str], **webhook: Any) -> Object:
        """A gate that is answered so."""
        self.answers[f"/gates/{name}"] = list(answers)
        return {"name": name, "webhook": {"url": f"{self.url}/{name}", **webhook}}


DOOR = Door()


@pytest.fixture(scope="module")
def operator(world: World) -> Iterator[Operator]:
    world.clear()
    DOOR.start()
    gates = {"webhooks": [f"{DOOR.url}/"], "secrets": True, "jobs": True}
    with Operator(world.lab, values=world.values | {"gates": gates}, name="gates") as running:
        yield running
        DOOR.stop()
        world.clear()


def awaits(gate: str) -> Callable[[Object], bool]:
    """Whether a rollout waits for this gate."""

    def check(obj: Object) -> bool:
        return phase_is("Paused")(obj) and f"waiting for gate {gate}" in obj["status"]["message"]

    return check


def shares(rollout: Rollout, revision: str) -> list[int]:
    """Weights that a revision had in the route, in order."""
    routes = rollout.world.routes.versions(rollout.namespace, rollout.name)
    return [weights_of(route).get(rollout.child(revision), 0) for route in routes]


# Webhooks


@story
def a_webhook_before_the_first_step_is_asked_until_it_passes_and_nobody_gets_the_candidate_before(
    world: World,
) -> None:
    rollout = world.rollout()
    text = base64.b64encode(SECRET.encode()).decode()
    metadata = {"name": "gates", "namespace": rollout.namespace}
    rollout.client.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"key": text}})
    later = [(503, "the evaluation is not over\nsecond line"), (503, ""), (200, "accuracy 0.97")]
    gate = DOOR.hook("start", *later, secretRef={"name": "gates", "key": "key"})
    old = rollout.deploy("1", gates={"start": [gate]}, **OFF)
    assert DOOR.asked("/gates/start") == [], "a first deployment has nothing to wait for"
    rollout.apply("2", gates={"start": [gate]}, **OFF)
    waiting = rollout.wait(awaits("start"), "the wait for the gate")
    assert condition(waiting, "Reconciling")["reason"] == "AwaitingGate"
    assert condition(waiting, "Ready")["status"] == "Unknown"
    assert waiting["status"]["step"]["display"] == "1/2"
    new = waiting["status"]["candidate"]["revision"]
    assert len(rollout.pods(new)) == 1
    rollout.wait(lambda obj: "the evaluation is not over" in obj["status"]["message"], "the gate's words")
    rollout.wait_step("2/2")
    asked = DOOR.asked("/gates/start")
    assert len(asked) == 3
    told = asked[0].told
    assert told["rollout"]["name"] == rollout.name
    assert told["candidate"] == {"revision": new, "service": f"{rollout.name}-{new}.{rollout.namespace}.svc"}
    assert told["baseline"]["revision"] == old
    assert (told["step"]["weight"], told["model"]["version"]) == (0, "2")
    assert len({one.headers["Idempotency-Key"] for one in asked}) == 1
    for one in asked:
        signed = one.headers["X-Modelrollout-Timestamp"].encode() + b"." + one.body
        digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert one.headers["X-Modelrollout-Signature"] == f"sha256={digest}"
    assert rollout.wait_event("GatePassed")["note"] == "gate start passed: accuracy 0.97"
    rollout.wait_phase("Healthy")
    for version, status in enumerate(rollout.history()):
        if (status.get("step") or {}).get("display") == "1/2":
            assert status["weights"]["candidate"] == 0, version


@story
def a_webhook_that_refuses_at_a_step_takes_the_candidate_back(world: World) -> None:
    rollout = world.rollout()
    gate = DOOR.hook("refuses", (403, "the model card is missing"), retries=1)
    strategy = {"canary": {"steps": [{"weight": 20, "gates": [gate]}, {"weight": 50}]}}
    old = rollout.deploy("1", **OFF | {"strategy": strategy})
    rollout.apply("2", **OFF | {"strategy": strategy})
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "GateFailed"
    assert (
        "gate refuses failed, asked 2 times: answered 403 Forbidden: the model card is missing"
        in back["message"]
    )
    assert back["stable"]["revision"] == old
    assert len(DOOR.asked("/gates/refuses")) == 2
    assert max(shares(rollout, back["rejected"]["revision"])) == 20
    rollout.wait_event("GateFailed")


@story
def a_webhook_that_hangs_pauses_and_a_resume_asks_anew(world: World) -> None:
    rollout = world.rollout()
    gate = DOOR.hook("hangs", (200, "late"), timeout="3s", retries=0) | {"onFailure": "Pause"}
    DOOR.held["/gates/hangs"] = threading.Event()
    rollout.deploy("1", gates={"promotion": [gate]}, **OFF)
    rollout.apply("2", gates={"promotion": [gate]}, **OFF)

    def failed(obj: Object) -> bool:
        return ((obj.get("status") or {}).get("pause") or {}).get("reason") == "GateFailed"

    paused = rollout.wait(failed, "the pause")["status"]
    assert "did not answer within 3s; promote, abort, or resume" in paused["message"]
    assert paused["weights"]["candidate"] == 50
    DOOR.held["/gates/hangs"].set()
    rollout.ask("resume", paused["candidate"]["revision"])
    rollout.wait_phase("Healthy")
    keys = [one.headers["Idempotency-Key"] for one in DOOR.asked("/gates/hangs")]
    assert len(keys) == len(set(keys)) == 2


@story
def a_redirect_leads_nowhere_and_a_promotion_by_request_skips_the_gate(world: World) -> None:
    rollout = world.rollout()
    gate = DOOR.hook("moved", (307, ""), retries=0) | {"onFailure": "Pause"}
    DOOR.hook("elsewhere", (200, "welcome"))
    DOOR.locations["/gates/moved"] = "/gates/elsewhere"
    plan: dict[str, Any] = OFF | {"strategy": {"blueGreen": {}}, "gates": {"promotion": [gate]}}
    rollout.deploy("1", **plan)
    rollout.apply("2", **plan)
    paused = rollout.wait(lambda obj: "redirects are not followed" in obj["status"]["message"], "the refusal")
    candidate = paused["status"]["candidate"]
    assert candidate["desired"] == 2, "blueGreen stands at full size"
    assert DOOR.asked("/gates/elsewhere") == []
    rollout.ask("promote", candidate["revision"])
    done = rollout.wait_phase("Healthy")["status"]
    assert done["history"][0]["reason"] == "PromoteRequested"
    assert DOOR.asked("/gates/elsewhere") == []


@story
def a_harmful_model_is_rolled_back_while_a_gate_is_asked(world: World) -> None:
    rollout = world.rollout()
    gate = DOOR.hook("slow", (503, "not yet"), retries=100)
    strategy = {"canary": {"steps": [{"weight": 20, "duration": "1s", "gates": [gate]}, {"weight": 50}]}}
    rollout.deploy("1", strategy=strategy)
    rollout.apply("2", strategy=strategy)
    new = rollout.wait(awaits("slow"), "the wait for the gate")["status"]["candidate"]["revision"]
    world.traffic.spoil(rollout.namespace, new, 0.3)
    assert rollout.wait_phase("RolledBack")["status"]["rejected"]["reason"] == "HarmProven"


@story
def a_url_that_was_not_allowed_is_refused_with_the_value_that_would(world: World) -> None:
    rollout = world.rollout()
    gate = {"name": "far", "webhook": {"url": "http://127.0.0.1.example.com/gates/far"}}
    rollout.apply("1", gates={"start": [gate]}, **OFF)
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    said = condition(refused, "Accepted")
    assert said["reason"] == "NotSupported"
    assert "spec.gates.start: gate far" in said["message"] and "gates.webhooks" in said["message"]


# Jobs


def job(name: str, script: str, **more: Any) -> Object:
    container = {"name": "evaluate", "image": "lab/python:1", "args": ["-c", script]}
    template = {"spec": {"containers": [container]}}
    return {"name": name, "job": {"template": template, **more}}


LEAVE = "import os; open(os.environ['TERMINATION_LOG'], 'w').write({!r})"


def jobs(rollout: Rollout) -> list[Object]:
    return rollout.client.list(path_of("batch/v1", "jobs", rollout.namespace))


@story
def a_job_that_succeeds_lets_the_rollout_go_on_and_its_pods_are_no_pods_of_the_model(world: World) -> None:
    rollout = world.rollout()
    evaluation = job("evaluation", LEAVE.format('{"value": 0.93}'), result={"min": "0.9"})
    strategy = {"canary": {"steps": [{"weight": 50, "gates": [evaluation]}]}}
    ratio: dict[str, Any] = OFF | {"traffic": {"podRatio": {}}, "strategy": strategy}
    old = rollout.deploy("1", **ratio)
    rollout.apply("2", **ratio)
    rollout.wait(awaits("evaluation"), "the wait for the Job")
    passed = rollout.wait_event("GatePassed")["note"]
    assert "is 0.93" in passed
    rollout.wait_phase("Healthy")
    (made,) = jobs(rollout)
    template = made["spec"]["template"]
    assert ROLLOUT_LABEL not in template["metadata"]["labels"]
    env = {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}
    new = made["metadata"]["labels"]["modelrollout.dev/revision"]
    assert env == {
        "MODEL_NAME": "fraud",
        "MODEL_VERSION": "2",
        "MODEL_URI": env["MODEL_URI"],
        "ROLLOUT": "fraud",
        "GATE": "evaluation",
        "REVISION": new,
        "BASELINE_REVISION": old,
        "CANDIDATE_SERVICE": rollout.child(new),
        "BASELINE_SERVICE": rollout.child(old),
    }
    selected = rollout.client.list(
        path_of("v1", "pods", rollout.namespace), labelSelector=rollout.status()["selector"]
    )
    theirs = [
        pod["metadata"]["name"] for pod in selected if "modelrollout.dev/gate" in pod["metadata"]["labels"]
    ]
    assert selected and not theirs, "an autoscaler counts the model's pods only"


@story
def a_job_that_fails_takes_the_candidate_back_with_its_exit_code(world: World) -> None:
    rollout = world.rollout()
    gate = job("evaluation", LEAVE.format("no such data set") + "; raise SystemExit(3)")
    rollout.deploy("1", gates={"start": [gate]}, **OFF)
    rollout.apply("2", gates={"start": [gate]}, **OFF)
    back = rollout.wait_phase("RolledBack")["status"]
    assert back["rejected"]["reason"] == "GateFailed"
    assert "container evaluate exited with code 3 (no such data set)" in back["message"]
    assert not any(shares(rollout, back["rejected"]["revision"]))
    assert len(jobs(rollout)) == 1, "it is kept for its logs"


@story
def a_result_below_its_bound_takes_the_candidate_back(world: World) -> None:
    rollout = world.rollout()
    gate = job("evaluation", LEAVE.format("0.81"), result={"min": "0.9"})
    rollout.deploy("1", gates={"promotion": [gate]}, **OFF)
    rollout.apply("2", gates={"promotion": [gate]}, **OFF)
    back = rollout.wait_phase("RolledBack")["status"]
    assert "is 0.81, wanted ≥ 0.9" in back["message"]
    assert max(shares(rollout, back["rejected"]["revision"])) == 50


@story
def a_job_whose_pod_can_not_start_says_why_and_an_abort_ends_it(world: World) -> None:
    rollout = world.rollout()
    gate = job("evaluation", "pass")
    gate["job"]["template"]["spec"]["containers"][0]["image"] = "registry.example.com/nowhere:1"
    rollout.deploy("1", gates={"start": [gate]}, **OFF)
    rollout.apply("2", gates={"start": [gate]}, **OFF)
    waiting = rollout.wait(lambda obj: "ImagePullBackOff" in obj["status"]["message"], "the reason")
    assert "waiting for gate evaluation: Job fraud-gate-" in waiting["status"]["message"]
    rollout.ask("abort", waiting["status"]["candidate"]["revision"])
    rollout.wait_phase("RolledBack")
    wait_until(lambda: not jobs(rollout), timeout=60, what="the end of the Job", interval=0.2)


@story
def an_abort_ends_the_job_that_nobody_waits_for_any_more(world: World) -> None:
    rollout = world.rollout()
    gate = job("evaluation", "import time; time.sleep(600)")
    rollout.deploy("1", gates={"start": [gate]}, **OFF)
    rollout.apply("2", gates={"start": [gate]}, **OFF)
    running = rollout.wait(lambda obj: "Job fraud-gate-" in obj["status"]["message"], "the Job's name")
    rollout.ask("abort", running["status"]["candidate"]["revision"])
    rollout.wait_phase("RolledBack")
    wait_until(lambda: not jobs(rollout), timeout=60, what="the end of the Job", interval=0.2)
    left = path_of("v1", "pods", rollout.namespace)
    wait_until(
        lambda: not rollout.client.list(left, labelSelector="modelrollout.dev/gate"),
        timeout=60,
        what="the end of its pod",
        interval=0.2,
    )


@story
def a_template_that_the_api_server_refuses_is_told_with_the_name_of_its_gate(world: World) -> None:
    rollout = world.rollout()
    rollout.deploy("1", **OFF)
    gate = job("evaluation", "pass")
    gate["job"]["template"]["spec"]["restartPolicy"] = "Always"
    rollout.patch(gates={"start": [gate]})
    refused = rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "False", "the refusal")
    said = condition(refused, "Accepted")
    assert said["reason"] == "InvalidTemplate"
    assert "gate evaluation" in said["message"] and "restartPolicy" in said["message"]
    gate["job"]["template"]["spec"]["restartPolicy"] = "Never"
    rollout.patch(gates={"start": [gate]})
    rollout.wait(lambda obj: condition(obj, "Accepted").get("status") == "True", "the mended gate")


@pytest.mark.parametrize("story", STORIES, ids=title)
def test_that(side_by_side: SideBySide, story: Story) -> None:
    side_by_side.tell(story)


def test_an_operator_that_is_killed_while_a_gate_is_asked_asks_again_with_the_same_key_and_goes_on_once(
    world: World, operator: Operator
) -> None:
    rollout = world.rollout()
    gate = DOOR.hook("killed", (200, "welcome"), timeout="60s")
    DOOR.held["/gates/killed"] = threading.Event()
    evaluation = job("evaluation", LEAVE.format("1"))
    plan: dict[str, Any] = OFF | {"gates": {"start": [gate], "promotion": [evaluation]}}
    rollout.deploy("1", **plan)
    rollout.apply("2", **plan)
    rollout.wait(awaits("killed"), "the wait for the gate")
    wait_until(lambda: bool(DOOR.asked("/gates/killed")), timeout=60, what="the question", interval=0.05)
    operator.kill()
    DOOR.held["/gates/killed"].set()
    operator.start()
    rollout.wait_phase("Healthy")
    first, second = DOOR.asked("/gates/killed")
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.told["asked"] == second.told["asked"] == 1
    assert [entry["outcome"] for entry in rollout.status()["history"]] == ["Promoted", "Promoted"]
    assert len(jobs(rollout)) == 1


BAD_GATES = {
    "a gate with nothing to ask": ({"name": "a"}, "exactly one of webhook and job"),
    "a gate that is both": (
        {"name": "a", "webhook": {"url": "http://a/"}} | {"job": job("a", "pass")["job"]},
        "exactly one of webhook and job",
    ),
}


@pytest.mark.parametrize(("gate", "says"), BAD_GATES.values(), ids=BAD_GATES)
def test_the_api_server_refuses(world: World, gate: Object, says: str) -> None:
    rollout = world.rollout()
    with pytest.raises(KubeError, match=says):
        rollout.apply("1", gates={"start": [gate]}, **OFF)
