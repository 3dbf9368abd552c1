"""Jobs of gates: what is made and ended for a committed status, and what is read of a Job that is over."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.spec import JobResult, Spec
from modelrollout.api.status import GateState, GateStatus, Phase, Status, StepStatus
from modelrollout.cluster.actions import Create, Delete
from modelrollout.planning.steps import compile_steps, gates_by_id
from modelrollout.workloads.children import Children
from modelrollout.workloads.gates import first_line, gate_actions, job_name, read_job
from tests.unit.workloads.manifests import Object, manifest, spec_of, status_of

EVALUATE: Object = {
    "metadata": {
        "labels": {"app": "evaluation", "modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": "b"}
    },
    "spec": {
        "containers": [
            {"name": "evaluate", "image": "e", "env": [{"name": "MODEL_URI", "value": "mine"}]},
            {"name": "sidecar", "image": "s"},
        ]
    },
}


def gate(**job: Any) -> Object:
    return {"name": "evaluation", "job": {"template": EVALUATE, **job}}


def asking(
    gates: Object, state: GateState = GateState.RUNNING, phase: Phase = Phase.PAUSED, **more: Any
) -> tuple[Object, Spec, Status]:
    """A rollout that asks the first gate of its first step."""
    rollout = manifest(gates=gates)
    spec = spec_of(rollout)
    plan = list(compile_steps(spec, attempt=2, capacity=2))
    planned = plan[0].gates[0]
    asked = GateStatus(id=planned.id, name=planned.name, state=state, since=0.0, **more)
    step = StepStatus(id=plan[0].id, index=0, count=len(plan), display=f"1/{len(plan)}", gates=[asked])
    update = {"phase": phase, "plan": plan, "step": step}
    return rollout, spec, status_of("a", "b", attempt=2).model_copy(update=update)


def live(rollout: Object, name: str, *, condition: str = "") -> Object:
    owner = {
        "apiVersion": rollout["apiVersion"],
        "kind": "ModelRollout",
        "name": "fraud",
        "uid": rollout["metadata"]["uid"],
    }
    conditions = [{"type": condition, "status": "True", "reason": "R", "message": "m"}] if condition else []
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "ml",
            "uid": name,
            "resourceVersion": "7",
            "ownerReferences": [owner | {"controller": True}],
        },
        "spec": {"template": EVALUATE},
        "status": {"conditions": conditions},
    }


def made(rollout: Object, spec: Spec, status: Status) -> Object:
    (action,) = gate_actions(rollout, spec, status, Children(), 0.0)
    assert isinstance(action, Create)
    return action.obj


class TestMaking:
    def test_the_job_of_the_gate_that_is_asked_is_made_and_made_once(self) -> None:
        rollout, spec, status = asking({"start": [gate(deadline="90500ms", retries=2)]})
        job = made(rollout, spec, status)
        assert job["spec"]["backoffLimit"] == 2
        assert job["spec"]["activeDeadlineSeconds"] == 91
        assert job["metadata"]["ownerReferences"][0]["uid"] == rollout["metadata"]["uid"]
        name = job["metadata"]["name"]
        there = Children(jobs={name: live(rollout, name)})
        assert gate_actions(rollout, spec, status, there, 0.0) == []

    def test_its_pods_are_no_pods_of_the_model_whatever_the_template_says(self) -> None:
        labels = made(*asking({"start": [gate()]}))["spec"]["template"]["metadata"]["labels"]
        assert labels == {
            "app": "evaluation",
            "modelrollout.dev/gate": "evaluation",
            "modelrollout.dev/gate-of": "fraud",
        }

    def test_each_container_is_told_of_the_model_and_the_template_comes_first(self) -> None:
        pod = made(*asking({"start": [gate()]}))["spec"]["template"]["spec"]
        first, second = (
            {one["name"]: one["value"] for one in container["env"]} for container in pod["containers"]
        )
        assert first["MODEL_URI"] == "mine"
        assert second["MODEL_URI"] == "s3://models/fraud/1"
        assert (second["CANDIDATE_SERVICE"], second["BASELINE_SERVICE"]) == ("fraud-b", "fraud-a")
        assert (second["REVISION"], second["GATE"]) == ("b", "evaluation")
        assert pod["restartPolicy"] == "Never"

    @pytest.mark.parametrize("length", [1, 48, 49, 50, 52])
    def test_its_name_fits_into_a_label(self, length: int) -> None:
        rollout, _, status = asking({"start": [gate()]})
        rollout["metadata"]["name"] = "a" * (length - 1) + "b"
        assert status.step and status.step.asking
        assert len(job_name(rollout, status, status.step.asking)) <= 63

    def test_another_attempt_step_or_turn_is_another_job(self) -> None:
        rollout, _, status = asking({"start": [gate()]})
        assert status.step and status.step.asking
        asked = status.step.asking
        names = {
            job_name(rollout, status, asked),
            job_name(rollout, status.model_copy(update={"attempt": 3}), asked),
            job_name(rollout, status, asked.model_copy(update={"turn": 2})),
            job_name(
                rollout, status.model_copy(update={"step": status.step.model_copy(update={"id": "x"})}), asked
            ),
        }
        assert len(names) == 4

    @pytest.mark.parametrize(
        ("state", "phase"),
        [
            pytest.param(GateState.PASSED, Phase.PAUSED, id="for a gate that has passed"),
            pytest.param(GateState.WAITING, Phase.PAUSED, id="for a gate that waits until it is asked again"),
            pytest.param(GateState.RUNNING, Phase.PROMOTING, id="once the promotion was asked for"),
        ],
    )
    def test_nothing_is_made(self, state: GateState, phase: Phase) -> None:
        rollout, spec, status = asking({"start": [gate()]}, state=state, phase=phase)
        assert gate_actions(rollout, spec, status, Children(), 0.0) == []

    def test_nothing_is_made_from_what_was_last_accepted_which_has_no_templates(self) -> None:
        rollout, spec, status = asking({"start": [gate()]})
        accepted = Spec.from_wire(spec.without_template())
        assert gates_by_id(accepted).keys() == gates_by_id(spec).keys(), "it is the same gate all the same"
        assert accepted.without_template() == spec.without_template()
        assert "containers" not in str(spec.without_template()["gates"])
        assert gate_actions(rollout, accepted, status, Children(), 0.0) == []

    def test_a_job_that_nobody_waits_for_is_ended_and_one_that_is_over_kept_for_its_logs(self) -> None:
        rollout, spec, status = asking({"start": [gate()]}, phase=Phase.ROLLING_BACK)
        jobs = {
            "running": live(rollout, "running"),
            "over": live(rollout, "over", condition="Complete"),
            "failed": live(rollout, "failed", condition="Failed"),
        }
        (action,) = gate_actions(rollout, spec, status, Children(jobs=jobs), 0.0)
        assert isinstance(action, Delete)
        assert action.name == "running"


def pod(*ended: tuple[str, int, str], created: str = "2026-11-20T08:00:00Z") -> Object:
    statuses = [
        {"name": name, "state": {"terminated": {"exitCode": code, "message": message}}}
        for name, code, message in ended
    ]
    return {"metadata": {"creationTimestamp": created}, "status": {"containerStatuses": statuses}}


MIN, BOTH = JobResult(min=0.9), JobResult(min=0.9, max=1.0)
OUTCOMES: dict[str, tuple[str, list[Object], JobResult | None, bool, str, str | None]] = {
    "without bounds success is enough": ("Complete", [], None, True, "succeeded", None),
    "a number is shown without bounds too": (
        "Complete",
        [pod(("evaluate", 0, "0.8"))],
        None,
        True,
        "is 0.8",
        "0.8",
    ),
    "words are shown": (
        "Complete",
        [pod(("evaluate", 0, "all fine\nreally"))],
        None,
        True,
        "(all fine)",
        None,
    ),
    "a decimal within its bounds": (
        "Complete",
        [pod(("evaluate", 0, " 0.95\n"))],
        BOTH,
        True,
        "is 0.95",
        "0.95",
    ),
    "a value in JSON": ("Complete", [pod(("evaluate", 0, '{"value": 1, "n": 5}'))], BOTH, True, "is 1", "1"),
    "a number below": (
        "Complete",
        [pod(("evaluate", 0, "0.89"))],
        MIN,
        False,
        "is 0.89, wanted ≥ 0.9",
        "0.89",
    ),
    "a number above": ("Complete", [pod(("evaluate", 0, "2"))], BOTH, False, "is 2, wanted ≤ 1", "2"),
    "no number where one is wanted": (
        "Complete",
        [pod(("evaluate", 0, "good"))],
        MIN,
        False,
        "left no number",
        None,
    ),
    "no pod where a number is wanted": ("Complete", [], MIN, False, "left no number", None),
    "not a number": ("Complete", [pod(("evaluate", 0, "NaN"))], MIN, False, "left no number", None),
    "infinity": (
        "Complete",
        [pod(("evaluate", 0, '{"value": Infinity}'))],
        MIN,
        False,
        "left no number",
        None,
    ),
    "a number with a million digits": (
        "Complete",
        [pod(("evaluate", 0, "9" * 4000))],
        MIN,
        False,
        "left no",
        None,
    ),
    "true is no number": ("Complete", [pod(("evaluate", 0, "true"))], MIN, False, "left no number", None),
    "JSON without end": ("Complete", [pod(("evaluate", 0, "[" * 4000))], MIN, False, "left no number", None),
    "what another container says does not count": (
        "Complete",
        [pod(("sidecar", 0, "0.95"), ("evaluate", 0, "0.5"))],
        MIN,
        False,
        "is 0.5",
        "0.5",
    ),
    "a failed pod before the one that succeeded does not count": (
        "Complete",
        [pod(("evaluate", 1, "0.95")), pod(("evaluate", 0, "0.5"), created="2026-11-20T08:01:00Z")],
        MIN,
        False,
        "is 0.5",
        "0.5",
    ),
    "a failure has its exit code and its words": (
        "Failed",
        [pod(("evaluate", 3, "no data"))],
        None,
        False,
        "container evaluate exited with code 3 (no data)",
        None,
    ),
    "a failure without pods has the Job's words": ("Failed", [], None, False, "failed: R: m", None),
}


@pytest.mark.parametrize(
    ("condition", "pods", "result", "passed", "says", "value"), OUTCOMES.values(), ids=OUTCOMES
)
def test_a_job_that_is_over_says(
    condition: str, pods: list[Object], result: JobResult | None, passed: bool, says: str, value: str | None
) -> None:
    reading = read_job(live(manifest(), "fraud-gate-x", condition=condition), pods, result)
    assert reading.passed is passed
    assert says in reading.message
    assert "fraud-gate-x" in reading.message
    assert reading.value == value
    assert len(reading.message) < 500


def test_a_line_for_a_message_is_short_and_prints() -> None:
    assert first_line("\n  red\x07alarm \nmore") == "red alarm"
    assert first_line("x" * 1000) == "x" * 199 + "…"
    assert "\x1b" not in first_line("\x1b[31mred")
