"""The commands of `python -m lab`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import urllib3

from lab import build as builds
from lab import companions
from lab.kube import KubeError
from lab.lab import Lab, default_folder, read_owner, read_state, start_detached
from lab.models.train import ensure_trained
from lab.process import LabError, is_alive

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the lab keeps its state [<cache>/lab/default].",
)


def _parts(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which parts a lab has."""
    options = (
        click.option("--no-prometheus", is_flag=True, help="Without Prometheus."),
        click.option("--no-gateway", is_flag=True, help="Without gateway."),
        click.option(
            "--crowd", is_flag=True, help="Report every pod Ready and run no process, for tests of scale."
        ),
        click.option(
            "--scrape-interval",
            default=2.0,
            show_default=True,
            help="Prometheus' scrape interval in seconds.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """A real Kubernetes on this machine: control plane, node, gateway and Prometheus as processes on loopback."""


@lab.command()
def build() -> None:
    """Build what is missing: control plane, Prometheus, Helm; fetch the CRDs of others."""
    builds.build(_say)
    for name in builds.PROGRAMS:
        _say(f"{name}: {builds.program(name)}")
    _say(f"Gateway API: {builds.gateway_crds()}")
    _say(f"Gateway API Inference Extension: {builds.pool_crds()}")
    _say(f"models: {ensure_trained()}")


@lab.command()
@_folder
@_parts
def up(
    folder: Path | None, no_prometheus: bool, no_gateway: bool, crowd: bool, scrape_interval: float
) -> None:
    """Start the lab in the background; find it running the second time."""
    folder = (folder or default_folder()).resolve()
    flags = {"--no-prometheus": no_prometheus, "--no-gateway": no_gateway, "--crowd": crowd}
    arguments = [flag for flag, given in flags.items() if given] + ["--scrape-interval", str(scrape_interval)]
    start_detached(folder, arguments, say=_say)
    _describe(folder)


@lab.command(hidden=True)
@_folder
@_parts
def supervise(
    folder: Path | None, no_prometheus: bool, no_gateway: bool, crowd: bool, scrape_interval: float
) -> None:
    """Run the lab in this process until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    one = Lab(
        folder,
        prometheus=not no_prometheus,
        gateway=not no_gateway,
        crowd=crowd,
        scrape_interval=scrape_interval,
        supervised=True,
        say=_say,
    )
    with one:
        while True:
            signal.pause()


@lab.command()
@_folder
@click.option("--keep", is_flag=True, help="Keep the cluster's data for the next start.")
def down(folder: Path | None, keep: bool) -> None:
    """Stop the lab and leave no process of it; its logs stay."""
    folder = (folder or default_folder()).resolve()
    for name in companions.stop_all(folder):
        _say(f"{name} is stopped")
    if read_owner(folder) is None:
        _say(f"no lab was up in {folder}")
    Lab(folder).down(forget=not keep)
    _say(f"lab is down; logs are in {folder / 'logs'}")


@lab.command()
@_folder
def status(folder: Path | None) -> None:
    """Say what runs, and how to reach it; exit code 1 if the lab is not up or a part of it is gone."""
    folder = (folder or default_folder()).resolve()
    state = read_state(folder)
    if state is None:
        _say(f"no lab is up in {folder}")
        sys.exit(1)
    _describe(folder)
    gone = [name for name, pid in state["processes"].items() if not is_alive(pid)]
    for name, pid in state["processes"].items():
        _say(f"{name:24} process {pid}{' is gone' if name in gone else ''}")
    sys.exit(1 if gone else 0)


def _end(*_: Any) -> None:
    """End while the lab starts as well as while it runs; but a second signal must not break off its going down."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _describe(folder: Path) -> None:
    state = read_state(folder)
    if state is None:
        return
    _say(f"export KUBECONFIG={state['kubeconfig']}")
    for part in ("server", "prometheus", "gateway"):
        if state[part]:
            _say(f"{part:12} {state[part]}")
    _say(f"{'logs':12} {folder / 'logs'}")


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def main() -> None:
    """Run the command line; what goes wrong in the lab is one sentence and exit code 1."""
    try:
        lab(prog_name="python -m lab")
    except (LabError, KubeError, urllib3.exceptions.HTTPError, OSError) as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(1)


@lab.command()
@_folder
@click.option("--keep", is_flag=True, help="Leave all running, and print the commands to play with it.")
@click.option("--picture", type=click.Path(path_type=Path), help="Save what was printed as an SVG file.")
def demo(folder: Path | None, keep: bool, picture: Path | None) -> None:
    """A better model is promoted, a wrong one is rolled back; exit code 0 if both happened."""
    from lab.demo import main

    sys.exit(main(folder=folder, keep=keep, picture=picture))
