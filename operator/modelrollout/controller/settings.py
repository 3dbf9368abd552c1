"""What the operator is configured with: options of the command line, and one file for servers and timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from modelrollout.api.types import parse_duration
from modelrollout.decision.types import Timing
from modelrollout.telemetry.servers import ServerSettings, read_settings

_TIMING = {
    "raiseAfter": "raise_after",
    "dataPlane": "data_plane",
    "splitHold": "split_hold",
    "evidenceCommit": "evidence_commit",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the operator is told at its start."""

    kubeconfig: Path | None = None
    namespaces: tuple[str, ...] = ()  # empty: all of them
    servers: Mapping[str, ServerSettings] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    listen_host: str = "127.0.0.1"  # empty: every address
    listen_port: int = 0  # 0: a free one
    leader_elect: bool = False
    lease_namespace: str = "default"
    lease_name: str = "modelrollout"
    workers: int = 8
    track_config: bool = False  # whether ConfigMaps and Secrets may be read
    gate_webhooks: tuple[str, ...] = ()  # beginnings of the URLs that gates may call; "*": any
    gate_secrets: bool = False  # whether the Secrets that sign them may be read
    gate_jobs: bool = False  # whether Jobs may be made
    resync: float = 600.0  # seconds between two complete readings of the cluster


def parse_listen(text: str) -> tuple[str, int]:
    """Host (empty: every address) and port of `--listen`, like :8080 or 127.0.0.1:0. Raises ValueError with a sentence."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--listen is {text!r}: write HOST:PORT or :PORT, like :8080")
    return host.strip("[]"), int(port)


def read_config(file: Path) -> tuple[dict[str, ServerSettings], Timing]:
    """Servers and timing of a configuration file. Raises ValueError with a sentence that names file and key."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}: name a readable file with --config") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file}: a mapping with servers and timing is expected")
    unknown = sorted(set(data) - {"servers", "timing"})
    if unknown:
        raise ValueError(f"{file}: {unknown[0]!r} is no setting: there are servers and timing")
    try:
        return _servers(data.get("servers") or []), _timing(data.get("timing") or {})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _servers(items: Any) -> dict[str, ServerSettings]:
    servers: dict[str, ServerSettings] = {}
    if not isinstance(items, list):
        raise ValueError("servers must be a list of servers, each with name and url")
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"]:
            raise ValueError("servers: each server needs a name")
        name = item["name"]
        if name in servers:
            raise ValueError(f"servers: the name {name!r} is given twice")
        servers[name] = read_settings(name, {key: value for key, value in item.items() if key != "name"})
    return servers


def _timing(data: Any) -> Timing:
    if not isinstance(data, dict):
        raise ValueError(f"timing must be a mapping of {', '.join(_TIMING)}")
    given: dict[str, float] = {}
    for key, value in data.items():
        if key not in _TIMING:
            raise ValueError(f"timing.{key} is no setting: there are {', '.join(_TIMING)}")
        try:
            given[_TIMING[key]] = parse_duration(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"timing.{key} is {value!r}: write a duration like 30s") from error
    assert set(_TIMING.values()) == {f.name for f in fields(Timing)}
    return Timing(**given)


def parse_server(text: str) -> ServerSettings:
    """A server of `--prometheus NAME=URL`. Raises ValueError with a sentence."""
    name, equals, url = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--prometheus is {text!r}: write NAME=URL, like default=http://prometheus:9090")
    return read_settings(name, {"url": url})
