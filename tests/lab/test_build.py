"""Builds: done once, again only if something they are made of changed, and with a Go that is new enough."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lab import build
from lab.process import LabError

_WRITES_ITS_TARGET = 'while [ "$1" != -o ]; do shift; done; echo program > "$2"; echo built >> "$CALLS"'


def script(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def fake_go(folder: Path, *, version: str = "go1.26.1", on_build: str = _WRITES_ITS_TARGET) -> None:
    script(folder, "go", f'case "$1" in env) echo {version};; build) {on_build};; esac')


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the lab's folder, an empty cache, and only fake programs on PATH."""
    lab = tmp_path / "lab"
    shutil.copytree(build.LAB / "controlplane", lab / "controlplane")
    monkeypatch.setattr(build, "LAB", lab)
    monkeypatch.setenv("MODELROLLOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return lab / "controlplane"


def calls(tmp_path: Path) -> int:
    file = tmp_path / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def silent(_: str) -> None:
    pass


def test_a_program_is_built_once(sources: Path, tmp_path: Path) -> None:
    fake_go(tmp_path / "bin")
    first = build.program("controlplane", silent)
    for source in sources.iterdir():
        source.touch()
    assert build.program("controlplane", silent) == first
    assert calls(tmp_path) == 1


@pytest.mark.parametrize("name", ["main.go", "go.mod", "go.sum"])
def test_a_changed_source_is_built_anew(sources: Path, tmp_path: Path, name: str) -> None:
    fake_go(tmp_path / "bin")
    first = build.program("controlplane", silent)
    (sources / name).write_text((sources / name).read_text() + "\n")
    assert build.program("controlplane", silent) != first
    assert calls(tmp_path) == 2


def test_a_failed_build_is_told_with_the_compilers_words_and_leaves_nothing(
    sources: Path, tmp_path: Path
) -> None:
    fake_go(tmp_path / "bin", on_build="echo main.go:7: undefined: etcd >&2; exit 1")
    with pytest.raises(LabError, match="undefined: etcd"):
        build.program("controlplane", silent)
    assert not build.PROGRAMS["controlplane"].path.exists()


@pytest.mark.parametrize(
    ("version", "installed"),
    [("go1.26.0", False), ("go1.27.3", False), ("go1.25.9", True), ("go1.9.2", True), ("nonsense", True)],
)
def test_a_go_too_old_is_passed_over(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, installed: bool
) -> None:
    fake_go(tmp_path / "bin", version=version)
    asked: list[Path] = []

    def install(target: Path, say: build.Say) -> None:
        asked.append(target)
        (target / "go").mkdir(parents=True)
        fake_go(target / "go" / "bin")

    monkeypatch.setattr(build, "_install_go", install)
    build.program("controlplane", silent)
    assert bool(asked) == installed
    assert calls(tmp_path) == 1


@pytest.mark.parametrize(
    ("version", "used"),
    [("2.42.0", True), ("3.14.0", True), ("2.41.1", False)],
    ids=["the oldest that will do", "a newer one", "one too old"],
)
def test_an_installed_prometheus_is_used_if_it_is_new_enough(
    sources: Path, tmp_path: Path, version: str, used: bool
) -> None:
    script(tmp_path / "bin", "prometheus", f"echo prometheus, version {version}")
    shutil.copytree(sources, sources.parent / "prometheus")
    fake_go(tmp_path / "bin")
    path = build.program("prometheus", silent)
    assert (path == tmp_path / "bin" / "prometheus") == used
