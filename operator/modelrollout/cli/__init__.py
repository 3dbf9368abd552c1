"""The command `modelrollout`. Each subcommand imports what it needs when it is called, so that `judge` starts at once."""

from __future__ import annotations

import click

from modelrollout.cli.judge import judge
from modelrollout.cli.run import run
from modelrollout.version import package_version


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_version(), prog_name="modelrollout", message="%(prog)s %(version)s")
def main() -> None:
    """Release machine-learning models on Kubernetes, step by step, by evidence."""


main.add_command(judge)
main.add_command(run)
