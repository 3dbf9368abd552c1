"""Which version this is, for the metrics and for who asks on the command line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The version of the installed package; of a checkout, a placeholder."""
    try:
        return version("modelrollout")
    except PackageNotFoundError:
        return "0.0.0+checkout"
