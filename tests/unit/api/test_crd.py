"""The CRD is structural, says what the models say, and is what is checked in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelrollout.api.crd import IN_MEMORY, crd, lint, root_schema
from modelrollout.api.generate import CHART_FILE, CRD_FILE, main, outdated
from modelrollout.api.rules import RULES
from modelrollout.api.spec import LIST_KEYS
from modelrollout.api.types import Model

ROOT = Path(__file__).parents[3]
SCHEMA = root_schema()
SPEC = SCHEMA["properties"]["spec"]


def nodes(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def test_the_schema_is_structural() -> None:
    assert list(lint(SCHEMA)) == []


@pytest.mark.parametrize(
    ("model", "attribute"), LIST_KEYS, ids=lambda part: part if isinstance(part, str) else part.__name__
)
def test_a_list_with_a_key_is_one_of_the_model(model: type[Model], attribute: str) -> None:
    """A name that is written wrong would ask for nothing."""
    assert attribute in model.model_fields


STRING = {"type": "string", "description": "x"}


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        pytest.param({"$ref": "#/x", **STRING}, "$ref can't stand", id="a reference"),
        pytest.param({"const": 1, **STRING}, "const can't stand", id="a const"),
        pytest.param({"anyOf": [{"type": "null"}], **STRING}, "anyOf can't stand", id="a null branch"),
        pytest.param(
            {"type": "integer", "description": "x", "exclusiveMinimum": 0},
            "exclusiveMinimum",
            id="a numeric bound",
        ),
        pytest.param({"title": "X", **STRING}, "title", id="a title"),
        pytest.param({"description": "x"}, "has a type", id="no type"),
        pytest.param({"type": ["string", "null"], "description": "x"}, "one type", id="two types"),
        pytest.param(
            {"type": "array", "description": "x", "maxItems": 1}, "needs items", id="a list of anything"
        ),
        pytest.param(
            {"type": "array", "description": "x", "items": {"type": "integer"}},
            "maxItems",
            id="an endless list",
        ),
        pytest.param(STRING, "maxLength", id="an endless string"),
        pytest.param({"type": "integer"}, "description", id="no description"),
        pytest.param({"type": "number", "description": "x"}, "decimal strings", id="a float in the spec"),
        pytest.param(
            {
                "type": "object",
                "description": "x",
                "properties": {"a": {"type": "integer", "description": "x"}},
                "additionalProperties": {"type": "integer"},
            },
            "exclude each other",
            id="known and unknown properties",
        ),
        pytest.param(
            {
                "type": "array",
                "description": "x",
                "maxItems": 1,
                "items": {"type": "object", "properties": {"name": {"type": "integer", "description": "x"}}},
                "x-kubernetes-list-map-keys": ["name"],
            },
            "must be required",
            id="an optional key",
        ),
    ],
)
def test_what_structural_schemas_forbid_is_found(fragment: Mapping[str, Any], says: str) -> None:
    schema = {
        "type": "object",
        "description": "x",
        "properties": {"spec": {"type": "object", "description": "x", "properties": {"a": fragment}}},
    }
    assert any(says in line for line in lint(schema)), list(lint(schema))


def test_no_default_stands_on_or_inside_a_union() -> None:
    inside = ("traffic", "strategy", "ratio", "score", "latency", "guardrail", "template", "margin")
    with_default = [path for path, node in nodes(SPEC, "spec") if "default" in node]
    assert [path for path in with_default if any(f".{member}" in path for member in inside)] == []
    assert not any(IN_MEMORY in node for _, node in nodes(SCHEMA, ""))


def test_everything_else_that_has_a_default_has_it_in_the_schema() -> None:
    defaults = {path: node["default"] for path, node in nodes(SPEC, "spec") if "default" in node}
    assert defaults == {
        "spec.workload.replicas": 1,
        "spec.workload.minReadySeconds": 0,
        "spec.workload.elastic": False,
        "spec.workload.trackConfig": False,
        "spec.service.ports[].name": "http",
        "spec.gates.start[].onFailure": "Rollback",
        "spec.gates.promotion[].onFailure": "Rollback",
        "spec.analysis.mode": "On",
        "spec.analysis.prometheus": "default",
        "spec.analysis.interval": "15s",
        "spec.analysis.scrapeInterval": "15s",
        "spec.analysis.settle": "30s",
        "spec.analysis.warmup": "30s",
        "spec.analysis.falseRollback": "0.01",
        "spec.analysis.falsePromotion": "0.05",
        "spec.analysis.deadline": "6h",
        "spec.analysis.onInconclusive": "Pause",
        "spec.analysis.outage": "30m",
        "spec.analysis.exposureBudget": "2m",
        "spec.analysis.arms": {},
        "spec.analysis.arms.label": "pod",
        "spec.analysis.metrics[].weight": 1,
        "spec.analysis.metrics[].dryRun": False,
        "spec.watch": {},
        "spec.watch.duration": "1h",
        "spec.watch.holdback": 10,
        "spec.watch.standby": 100,
        "spec.watch.onAlarm": "Notify",
        "spec.progressDeadline": "10m",
        "spec.drainDelay": "30s",
        "spec.revisionHistoryLimit": 10,
        "spec.paused": False,
    }


def test_the_status_has_no_default_but_the_generation_of_a_fresh_object() -> None:
    status = SCHEMA["properties"]["status"]
    assert {path: node["default"] for path, node in nodes(status, "status") if "default" in node} == {
        "status": {"observedGeneration": -1}
    }


def test_every_rule_is_in_the_schema() -> None:
    messages = [
        rule["message"] for _, node in nodes(SCHEMA, "") for rule in node.get("x-kubernetes-validations", ())
    ]
    assert [rule.message for rule in RULES if rule.message not in messages] == []


def test_the_field_path_of_every_rule_exists() -> None:
    for path, node in nodes(SCHEMA, ""):
        for rule in node.get("x-kubernetes-validations", ()):
            inner = node
            for name in filter(None, rule.get("fieldPath", "").split(".")):
                assert name in inner["properties"], (path, rule["fieldPath"])
                inner = inner["properties"][name]


def test_the_subresources_and_columns_point_into_the_schema() -> None:
    version = crd()["spec"]["versions"][0]
    paths = [
        column["jsonPath"] for column in version["additionalPrinterColumns"] if "[" not in column["jsonPath"]
    ]
    scale = version["subresources"]["scale"]
    known = {path for path, _ in nodes(SCHEMA, "")}
    for path in [*paths, scale["specReplicasPath"], scale["statusReplicasPath"], scale["labelSelectorPath"]]:
        assert path in known or path.startswith(".metadata"), path
    assert "status" in version["subresources"]


def test_the_columns_tell_the_story() -> None:
    columns = crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Phase", "Step", "Weight", "Verdict", "Ready", "Age",
    ]  # fmt: skip
    assert [column["name"] for column in columns if column.get("priority")] == [
        "Stable",
        "Candidate",
        "Message",
    ]


def test_the_generated_files_are_current() -> None:
    assert outdated(ROOT) == []


def test_check_names_the_file_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / CHART_FILE).write_text("something else")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{CHART_FILE} differs from the models: run python -m modelrollout.api.generate"
    ]
    assert (tmp_path / CRD_FILE).read_text() != "something else"
