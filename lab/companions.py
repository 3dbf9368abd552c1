"""Processes that outlive the command that started them, and end with `python -m lab down`: operator and load of a demo that
was told to keep running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.process import is_alive, wait_until

_FILE = "companions.json"


def start(
    folder: Path, name: str, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
) -> int:
    """Start a process in a session of its own; its pid is noted in the lab's folder."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
    known = _read(folder)
    known[name] = {"pid": process.pid, "born": _born(process.pid)}
    (folder / _FILE).write_text(json.dumps(known), encoding="utf-8")
    return process.pid


def stop_all(folder: Path) -> list[str]:
    """End all that was started for this lab; the names of those that still ran."""
    ended = []
    for name, entry in _read(folder).items():
        pid = int(entry["pid"])
        # After a reboot the number may be somebody else's.
        if not is_alive(pid) or _born(pid) != entry["born"]:
            continue
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_alive(pid), timeout=30, what=f"the end of {name}")  # type: ignore[misc]
        ended.append(name)
    (folder / _FILE).unlink(missing_ok=True)
    return ended


def _read(folder: Path) -> dict[str, dict[str, int | str]]:
    try:
        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _born(pid: int) -> str:
    """When a process started, in the kernel's own count; empty where that can't be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
