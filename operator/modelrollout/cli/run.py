"""`modelrollout run`: the operator."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from modelrollout.controller.settings import Settings


@click.command()
@click.option("--namespace", "namespaces", multiple=True, help="Serve this namespace only; can be repeated.")
@click.option("--prometheus", "servers", multiple=True, metavar="NAME=URL", help="A server; can be repeated.")
@click.option("--config", type=click.Path(path_type=Path), help="File with servers and timing.")
@click.option(
    "--kubeconfig", type=click.Path(path_type=Path), help="Left out: in-cluster, else the usual file."
)
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, help="Health and metrics; port 0: any."
)
@click.option("--leader-elect", is_flag=True, help="Work only while holding a Lease.")
@click.option("--lease-namespace", default="default", show_default=True)
@click.option("--lease-name", default="modelrollout", show_default=True)
@click.option("--workers", default=8, show_default=True, type=click.IntRange(1, 64))
@click.option(
    "--track-config", is_flag=True, help="Serve workload.trackConfig; needs the right to read Secrets."
)
@click.option(
    "--gate-webhook",
    "gate_webhooks",
    multiple=True,
    metavar="URL",
    help='Gates may call URLs that begin so; can be repeated; "*": any.',
)
@click.option("--gate-secrets", is_flag=True, help="Sign them; needs the right to get Secrets.")
@click.option("--gate-jobs", is_flag=True, help="Serve gates with a job; needs rights on Jobs.")
@click.option("--verbose", is_flag=True, help="Log what is decided in each round.")
def run(*, verbose: bool, **options: Any) -> None:
    """Run the operator."""
    import asyncio

    from modelrollout.controller.operator import run as run_operator

    _log_to_stderr(verbose)
    try:
        settings = _settings(**options)
        code = asyncio.run(run_operator(settings, ready=_tell_port))
    except ValueError as error:
        click.echo(f"modelrollout run: {error}", err=True)
        sys.exit(2)
    sys.exit(code)


def _tell_port(port: int) -> None:
    click.echo(f"health and metrics on port {port}", err=True)


def _settings(
    *,
    config: Path | None,
    servers: tuple[str, ...],
    listen: str,
    gate_webhooks: tuple[str, ...],
    **others: Any,
) -> Settings:
    """The settings that the options say; `others` have the same name and type there. Raises ValueError with a sentence."""
    from modelrollout.controller.settings import Settings, parse_listen, parse_server, read_config
    from modelrollout.controller.webhook import parse_beginning
    from modelrollout.decision.types import Timing

    known, timing = read_config(config) if config else ({}, Timing())
    host, port = parse_listen(listen)
    return Settings(
        servers=known | {server.name: server for server in map(parse_server, servers)},
        timing=timing,
        listen_host=host,
        listen_port=port,
        gate_webhooks=tuple(map(parse_beginning, gate_webhooks)),
        **others,
    )


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("modelrollout").setLevel(logging.DEBUG if verbose else logging.INFO)
    # Kopf tells of every handler call; what matters is in our own lines.
    logging.getLogger("kopf").setLevel(logging.WARNING)
