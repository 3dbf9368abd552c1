"""Documents that can't lie: what people copy from them is parsed, followed and checked here, or run by another test."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from modelrollout.api.conditions import ConditionType, EventReason, Reason
from modelrollout.api.requests import VERBS, BadRequest, parse_request
from modelrollout.api.spec import GROUP, Strategy
from modelrollout.api.status import Phase
from modelrollout.api.validate import parse
from modelrollout.controller.metrics import Metrics
from modelrollout.controller.settings import read_config
from modelrollout.decision.types import Timing

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"

# Made elsewhere, from the models, and tested there.
GENERATED = {"docs/api.md"}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@dataclass(frozen=True)
class Command:
    document: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def _blocks(document: Path, language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(document.read_text()) if found == language]


def _commands() -> Iterator[Command]:
    for document in DOCUMENTS:
        for block in _blocks(document, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield Command(_name(document), line.strip())


def manifests() -> Iterator[Any]:
    """What the documents show as YAML, as parameters of a test."""
    for document in DOCUMENTS:
        for number, block in enumerate(_blocks(document, "yaml")):
            for found in yaml.safe_load_all(block):
                kind = found.get("kind", "fragment") if isinstance(found, Mapping) else "fragment"
                yield pytest.param(found, id=f"{_name(document)} block {number + 1} {kind}")


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# How the commands of documents are checked, by their first words.


def check_make(words: list[str]) -> None:
    """Run by .ci/run or, for the parts of `make test`, along with it."""
    target, *variables = words[1:]
    assert target in _make_targets()
    for variable in variables:
        assert f"$({variable.partition('=')[0]})" in (ROOT / "Makefile").read_text() or "KEEP" in variable


def check_helm(words: list[str]) -> None:
    """Run word for word, against a real API server, by tests/chart/test_install.py."""
    assert "_documented(document)" in (ROOT / "tests" / "chart" / "test_install.py").read_text()
    assert words[1] in {"install", "upgrade", "uninstall"}


def check_kubectl(words: list[str]) -> None:
    """Kinds, names, files, conditions and requests exist. That kubectl itself works is not ours to test."""
    verb, rest = words[1], words[2:]
    if verb == "apply":
        files = [word for word in rest if not word.startswith("-")]
        assert files
        assert all((ROOT / file).exists() for file in files)
    elif verb == "annotate":
        key, _, value = rest[-1].partition("=")
        group, _, request = key.partition("/")
        assert (group, request in VERBS) == (GROUP, True)
        parsed = parse_request(request, value)
        assert not isinstance(parsed, BadRequest), parsed.problem
        assert "--overwrite" in rest, "without it a second request is refused"
    elif verb == "wait":
        condition = next(word.removeprefix("--for=condition=") for word in rest if word.startswith("--for"))
        assert condition in list(ConditionType)
        assert rest[0].startswith("modelrollout/")
    else:
        assert verb in {"get", "describe"}
        assert rest[0] in {"modelrollout", "modelrollouts", "mro", "events"}


def check_modelrollout(words: list[str]) -> None:
    """The command line takes these options."""
    from click.testing import CliRunner

    from modelrollout.cli import main

    answer = CliRunner().invoke(main, [words[1], "--help"])
    assert answer.exit_code == 0, answer.output
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in answer.output


def check_docker(words: list[str]) -> None:
    """Not run: no container engine is asked of who runs the tests. The Dockerfile is read by test_dockerfile.py."""
    assert words[1] in {"build", "push"}


CHECKS = {
    "make": check_make,
    "helm": check_helm,
    "kubectl": check_kubectl,
    "modelrollout": check_modelrollout,
    "docker": check_docker,
}


@pytest.mark.parametrize("command", list(_commands()), ids=str)
def test_every_command_is_one_that_is_checked(command: Command) -> None:
    first = command.words[0]
    assert first in CHECKS, f"{first} is new in the documents: say how it is checked"
    CHECKS[first](command.words)


def test_the_commands_of_the_readme_are_run_by_ci() -> None:
    assert {"make lint", "make test"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


@pytest.mark.parametrize("manifest", list(manifests()))
def test_every_manifest_is_accepted(manifest: Any) -> None:
    if isinstance(manifest, Mapping) and manifest.get("kind") == "ModelRollout":
        spec, problems = parse(manifest)
        assert spec is not None, "\n".join(map(str, problems))


_SHOWN = re.compile(r"<!-- (examples/\S+) -->\n```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_readme_shows_the_smallest_example_as_it_is() -> None:
    assert [shown for shown, _ in _SHOWN.findall((ROOT / "README.md").read_text())] == [
        "examples/minimal.yaml"
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_what_is_shown_of_an_example_is_the_example(document: Path) -> None:
    for shown, text in _SHOWN.findall(document.read_text()):
        assert text == (ROOT / shown).read_text()


def test_every_strategy_has_its_section_and_an_example() -> None:
    text = (ROOT / "docs" / "strategies.md").read_text()
    sections = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    members = {info.alias or name for name, info in Strategy.model_fields.items()}
    assert {member.lower() for member in members} <= sections
    shown = {
        member
        for _, manifest in _SHOWN.findall(text)
        for member in yaml.safe_load(manifest)["spec"]["strategy"]
    }
    assert shown == members


def _anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = _HEADING.findall(_BLOCK.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_link_leads_somewhere(document: Path) -> None:
    lost = []
    for link in _LINK.findall(_BLOCK.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_no_document_names_a_path_of_one_machine(document: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\S*", document.read_text())


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if _name(d) not in GENERATED], ids=_name)
def test_every_block_says_what_it_is(document: Path) -> None:
    """A block without a language would be copied and never checked."""
    fences = re.findall(r"^```(.*)$", document.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) <= {"bash", "yaml", "text", "json", "python", "mermaid"}


class TestOperations:
    text = OPERATIONS.read_text()

    def _codes(self, heading: str) -> set[str]:
        """What stands in code in the first column of the table below a heading."""
        section = re.split(r"^#+ ", self.text.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        return {code for row in rows for code in re.findall(r"`([^`]+)`", row)}

    def test_every_reason_has_its_advice_and_no_other(self) -> None:
        assert self._codes("### Reasons, and what to do") == {reason.value for reason in Reason}

    def test_every_condition_is_explained(self) -> None:
        assert self._codes("### Conditions") == {condition.value for condition in ConditionType}

    def test_every_phase_is_explained(self) -> None:
        assert self._codes("## Seeing") == {phase.value for phase in Phase}

    def test_every_request_is_explained(self) -> None:
        assert self._codes("## Steering") == set(VERBS)
        assert EventReason.REQUEST_IGNORED in self.text

    def test_every_metric_is_listed_and_no_other(self) -> None:
        assert self._codes("### Metrics") == _metric_names()

    def test_alerts_ask_for_metrics_that_exist(self) -> None:
        (rules,) = (
            block["spec"]["groups"][0]["rules"]
            for text in _blocks(OPERATIONS, "yaml")
            if (block := yaml.safe_load(text)).get("kind") == "PrometheusRule"
        )
        for rule in rules:
            promql_parser.parse(rule["expr"])
            asked = set(re.findall(r"modelrollout_\w+", rule["expr"]))
            assert asked
            assert asked <= _metric_names()

    def test_the_configuration_file_is_one_that_the_operator_reads(self, tmp_path: Path) -> None:
        (block,) = (text for text in _blocks(OPERATIONS, "yaml") if text.startswith("servers:"))
        file = tmp_path / "config.yaml"
        file.write_text(block)
        servers, timing = read_config(file)
        assert list(servers) == ["default"]
        assert timing == Timing()

    def test_every_right_of_the_chart_is_explained(self) -> None:
        rules = (ROOT / "charts/modelrollout/templates/_helpers.tpl").read_text()
        granted = {
            name for found in re.findall(r"resources: \[([^]]+)\]", rules) for name in found.split(", ")
        }
        section = self.text.partition("## Rights\n")[2].partition("\n## ")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
        explained = {name.strip() for row in rows for name in row.split(",")}
        assert granted
        assert granted <= explained


def _metric_names() -> set[str]:
    """Names as they stand in Prometheus, without the suffixes of histograms."""
    names = set()
    for family in Metrics(version="0").registry.collect():
        if family.name.startswith("modelrollout_"):
            names.add(family.name + ("_total" if family.type == "counter" else ""))
    return names


def test_the_chart_says_the_version_of_the_package() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "charts/modelrollout/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert f"ARG VERSION={version}" in (ROOT / "Dockerfile").read_text()


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_schema_of_the_values_is_json() -> None:
    assert (
        json.loads((ROOT / "charts/modelrollout/values.schema.json").read_text())["additionalProperties"]
        is False
    )
