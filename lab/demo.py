"""The demo: a better model is promoted, a wrong-but-up one is rolled back, on a real cluster with real traffic.

`python -m lab demo` (or `make demo`). In a terminal it draws what `kubectl describe` would tell; elsewhere it prints lines.
The exit code is 0 only if both outcomes came.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab import companions
from lab.kube import KubeError, Object
from lab.lab import Lab, default_folder, start_detached
from lab.load import Counts, Load
from lab.operator import Operator
from lab.process import LabError, wait_until

MANIFEST = Path(__file__).with_name("demo.yaml")
HOST = "tumour.example.com"
RATE = 200.0
RELEASE_SECONDS = 240.0
EVENTS_SHOWN = 8
# Made for minutes, not for production: pods are believed sooner, and evidence is written more often.
TIMING = {"raiseAfter": "3s", "dataPlane": "1s", "evidenceCommit": "2s"}


@dataclass(frozen=True)
class Release:
    """A model that the demo releases, and what must become of it."""

    version: str
    uri: str
    what: str
    phase: str
    reason: str


RELEASES = (
    Release("v2", "models/better", "a better model", "Healthy", "ProvenHarmless"),
    Release("v3", "models/wrong", "a model that is up but wrong", "RolledBack", "HarmProven"),
)


@dataclass
class Ending:
    """What became of a release."""

    release: Release
    status: Object
    answers: int  # of the candidate, until the decision
    exposed: float  # seconds from its first answer to the decision
    seconds: float  # from the change of the spec to the end
    ok: bool


@dataclass
class Demo:
    """Everything that the views show."""

    lab: Lab
    console: Console
    load: Load
    album: Console  # what is worth a picture
    manifest: Object = field(
        default_factory=lambda: dict(yaml.safe_load(MANIFEST.read_text(encoding="utf-8")))
    )
    seen: Counts = field(default_factory=Counts)
    window: list[tuple[float, Counts]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The path of the ModelRollout."""
        return self.lab.client.object_path(self.manifest)

    def read(self) -> Object:
        """The object as it is now; empty while the API server does not answer."""
        try:
            return self.lab.client.get(self.path)
        except KubeError:
            return {}

    def observed(self, version: str) -> float | None:
        """Share of the last seconds' answers that came from a version, in percent."""
        now = time.monotonic()
        self.window.append((now, self.load.counts()))
        self.window[:] = [entry for entry in self.window if now - entry[0] <= 6]
        recent = self.window[-1][1].since(self.window[0][1])
        total = sum(recent.by_version(status=None).values())
        return 100 * recent.by_version(status=None).get(version, 0) / total if total else None

    def events(self) -> list[str]:
        """The last events of the rollout, oldest first."""
        namespace = self.manifest["metadata"]["namespace"]
        try:
            found = self.lab.client.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
        except KubeError:
            return []
        mine = [e for e in found if e.get("regarding", {}).get("kind") == "ModelRollout"]
        mine.sort(key=lambda e: str(e.get("eventTime")))
        return [f"{_clock(str(e.get('eventTime')))}  {e['reason']}: {e.get('note', '')}" for e in mine]


def _clock(time_text: str) -> str:
    try:
        return datetime.fromisoformat(time_text).strftime("%H:%M:%S")
    except ValueError:
        return "--:--:--"


def run(*, folder: Path | None, keep: bool, picture: Path | None = None) -> int:
    """The whole demo; its exit code. With `keep` everything runs on, and the commands to play with it are printed."""
    console = Console()
    album = Console(record=True, file=io.StringIO(), width=120)
    folder = (folder or default_folder("demo")).resolve()
    began = time.monotonic()
    with _lab(folder, console, keep=keep) as lab:
        servers = [{"name": "default", "url": lab.prometheus_url}]
        operator = Operator(lab, values={"servers": servers, "timing": TIMING}, detached=keep)
        console.print("operator: installing the chart, starting it with the chart's own rights")
        operator.start()
        try:
            demo = Demo(lab, console, Load(lab.gateway_url, HOST, RATE), album)
            endings = _play(demo)
        finally:
            operator.stop()
            operator.close()
        _summary(console, endings, time.monotonic() - began)
        if keep:
            _leave_running(console, lab, folder)
    if picture is not None:
        _summary(album, endings, time.monotonic() - began)
        album.save_svg(str(picture), title="make demo")
    return 0 if all(ending.ok for ending in endings) and len(endings) == len(RELEASES) else 1


@contextmanager
def _lab(folder: Path, console: Console, *, keep: bool) -> Iterator[Lab]:
    def say(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    if keep:
        start_detached(folder, say=say)
        yield Lab(folder).up()
        return
    with Lab(folder, say=say) as lab:
        yield lab
        lab.down(forget=True)


def _play(demo: Demo) -> list[Ending]:
    """Baseline, then each release to its end."""
    client, manifest = demo.lab.client, demo.manifest
    namespace = manifest["metadata"]["namespace"]
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    if client.find(demo.path) is not None:
        client.delete(demo.path)
        wait_until(lambda: client.find(demo.path) is None, timeout=30, what="deletion of the last demo")
    client.apply(manifest)
    demo.console.print(f"baseline: {manifest['spec']['model']['uri']} is deployed")
    wait_until(lambda: _phase(demo) == "Healthy", timeout=90, what="the baseline's deployment")
    endings = []
    with demo.load:
        demo.console.print(f"traffic: {RATE:.0f} requests/s through the gateway")
        wait_until(lambda: demo.load.counts().sent > RATE * 5, timeout=60, what="traffic")
        for release in RELEASES:
            endings.append(_release(demo, release))
            if not endings[-1].ok:
                break
    return endings


def _phase(demo: Demo) -> str:
    return str((demo.read().get("status") or {}).get("phase"))


def _release(demo: Demo, release: Release) -> Ending:
    model = {"version": release.version, "uri": release.uri}
    patched = demo.lab.client.patch(demo.path, {"spec": {"model": model}})
    generation = patched["metadata"]["generation"]
    before, began = demo.load.counts(), time.monotonic()
    first: float | None = None
    decided: tuple[float, Counts] | None = None
    status: Object = {}
    shot = Group()
    with _view(demo, release) as show:
        while time.monotonic() - began < RELEASE_SECONDS:
            status = demo.read().get("status") or {}
            show(status)
            if status.get("phase") == "Progressing" and status.get("metrics"):
                shot = _picture(demo, release, status)
            counts = demo.load.counts().since(before)
            if first is None and counts.by_version(status=None).get(release.version):
                first = time.monotonic()
            entry = (status.get("history") or [{}])[0]
            if decided is None and entry.get("reason") and entry.get("model", "").endswith(release.version):
                decided = (time.monotonic(), counts)
            current = status.get("observedGeneration") == generation
            if current and decided is not None and status.get("phase") in ("Healthy", "RolledBack"):
                break
            time.sleep(0.25)
    demo.album.print(shot)
    at, counts = decided or (time.monotonic(), demo.load.counts().since(before))
    entry = (status.get("history") or [{}])[0]
    return Ending(
        release,
        status,
        answers=counts.by_version(status=None).get(release.version, 0),
        exposed=at - (first or at),
        seconds=time.monotonic() - began,
        ok=status.get("phase") == release.phase and entry.get("reason") == release.reason,
    )


# Views


@contextmanager
def _view(demo: Demo, release: Release) -> Iterator[Callable[[Object], None]]:
    demo.console.rule(f"release {release.version}: {release.what}")
    if demo.console.is_terminal:
        with Live(console=demo.console, refresh_per_second=4, transient=False) as live:
            yield lambda status: live.update(_picture(demo, release, status))
        return
    last: list[str] = [""]
    told: set[str] = set(demo.events())

    def show(status: Object) -> None:
        line = f"{status.get('phase')}: {status.get('message')}"
        if line != last[0]:
            last[0] = line
            demo.console.print(line, highlight=False, markup=False, soft_wrap=True)
        for event in demo.events():
            if event not in told:
                told.add(event)
                demo.console.print(f"    {event}", style="dim", highlight=False, markup=False, soft_wrap=True)

    yield show


def _picture(demo: Demo, release: Release, status: Mapping[str, Any]) -> Group:
    step = status.get("step") or {}
    weights = status.get("weights") or {}
    observed = demo.observed(release.version)
    promoted = (status.get("stable") or {}).get("model", "").endswith(release.version)
    configured = weights.get("stable" if promoted else "candidate", 0)
    head = Table.grid(padding=(0, 3))
    head.add_row(
        f"[b]{status.get('phase', '')}[/b]",
        f"step {step.get('display', '–')}",
        f"weight {configured} %",
        "observed –" if observed is None else f"observed {observed:.1f} %",
        f"verdict {status.get('verdict') or '–'}",
    )
    events = Text("\n".join(demo.events()[-EVENTS_SHOWN:]), style="dim", overflow="ellipsis", no_wrap=True)
    message = Text(str(status.get("message") or ""))
    title = f"{release.version}: {release.what}"
    return Group(Panel(Group(head, message, _metrics_table(status), events), title=title))


def _metrics_table(status: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "metric",
        "verdict",
        "bad rate, candidate / baseline",
        "interval",
        "requests",
        "still needed",
    ):
        table.add_column(column)
    for metric in status.get("metrics") or []:
        ratio = metric.get("ratio")
        table.add_row(
            metric["name"],
            metric["verdict"],
            "–" if ratio is None else f"{float(ratio):.2f}x",
            f"[{_number(metric.get('low'), '0')}, {_number(metric.get('high'), '∞')}]".replace("[", "\\["),
            f"{metric.get('candidateRequests', 0)} / {metric.get('baselineRequests', 0)}",
            str(metric.get("remaining", "–")),
        )
    return table


def _number(value: str | None, otherwise: str) -> str:
    return otherwise if value is None else f"{float(value):.2f}"


def _summary(console: Console, endings: list[Ending], seconds: float) -> None:
    console.rule("what happened")
    for ending in endings:
        entry = (ending.status.get("history") or [{}])[0]
        outcome = entry.get("outcome") or ending.status.get("phase")
        lines = (
            f"{ending.release.version}, {ending.release.what}: {outcome}{'' if ending.ok else ' (not as expected)'}",
            f"  why       {entry.get('reason')}: {entry.get('message')}",
            f"  exposure  {ending.answers} answers of the candidate until the decision, {ending.exposed:.0f} s after its first",
            f"  in all    {ending.seconds:.0f} s",
        )
        for number, line in enumerate(lines):
            console.print(Text(line, style="bold" if number == 0 else ""), soft_wrap=True)
    console.print(f"The demo took {seconds:.0f} s.")


def _leave_running(console: Console, lab: Lab, folder: Path) -> None:
    """Keep the traffic going, and say what there is to play with."""
    command = [
        sys.executable,
        "-m",
        "lab.load",
        "--url",
        lab.gateway_url,
        "--host",
        HOST,
        "--rate",
        str(RATE),
    ]
    companions.start(folder, "load", command, log=folder / "logs" / "load.log", env=os.environ)
    kubeconfig = shlex.quote(str(lab.kubeconfig))
    console.print(f"\nEverything runs on, with {RATE:.0f} requests/s. To play with it:", highlight=False)
    for line in (
        f"export KUBECONFIG={kubeconfig}",
        "kubectl -n demo get mro -w",
        "kubectl -n demo describe mro tumour",
        'kubectl -n demo patch mro tumour --type merge -p \'{"spec": {"model": {"version": "v4", "uri": "models/errors"}}}\'',
        f"make lab-down FOLDER={shlex.quote(str(folder))}",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def main(*, folder: Path | None, keep: bool, picture: Path | None) -> int:
    """`run`, with errors as one sentence."""
    try:
        return run(folder=folder, keep=keep, picture=picture)
    except LabError as error:
        Console(stderr=True).print(f"demo: {error}", highlight=False)
        return 2
