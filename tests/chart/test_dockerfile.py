"""The image can't be built where there is no container engine, so the Dockerfile is read instead."""

from __future__ import annotations

import fnmatch
import re
import tomllib

import pytest

from tests.chart.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in TEXT.splitlines() if re.match(r"[A-Z]+ ", line)]
COPIED = [
    source
    for name, rest in INSTRUCTIONS
    if name == "COPY" and "--from=" not in rest
    for source in rest.split()[:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = False
    for pattern in (p for p in patterns if p and not p.startswith("#")):
        if fnmatch.fnmatch(source, pattern.removeprefix("!")):
            ignored = not pattern.startswith("!")
    assert not ignored


def test_what_the_package_is_built_of_is_copied_before() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {
        project["readme"],
        *project["license-files"],
        "pyproject.toml",
        "constraints.txt",
        "operator",
    } <= set(COPIED)


def test_it_runs_the_command_as_a_user_without_rights_and_with_pinned_versions() -> None:
    last: dict[str, str] = dict(INSTRUCTIONS)
    assert last["USER"] == "65532:65532"
    assert last["ENTRYPOINT"] == '["modelrollout"]'
    assert all(
        "-c constraints.txt" in rest or "--no-deps" in rest
        for name, rest in INSTRUCTIONS
        if " install " in rest
    )


def test_the_base_is_as_old_as_the_package_allows_and_named_in_both_stages() -> None:
    bases = [rest.split()[0] for name, rest in INSTRUCTIONS if name == "FROM"]
    assert bases == ["python:${PYTHON}-slim"] * 2
    version = next(rest.removeprefix("PYTHON=") for name, rest in INSTRUCTIONS if rest.startswith("PYTHON="))
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == f">={version}"
