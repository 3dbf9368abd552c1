"""Prometheus, which finds the pods through the API server as it does in a real cluster.

Pods have addresses that only the cluster's idea of them knows; where their process listens stands in an annotation. So
one rule more than usual puts that in the place of the address, and `instance` stays the pod's IP.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from lab.process import Keeper, Process, answers, kept_port

ADDRESS_ANNOTATION = "lab.modelrollout.dev/address"
_ADDRESS = "__meta_kubernetes_pod_annotation_lab_modelrollout_dev_address"
_SCRAPE = "__meta_kubernetes_pod_annotation_prometheus_io_scrape"
_ROLLOUT = "__meta_kubernetes_pod_labelpresent_modelrollout_dev_rollout"
_PATH = "__meta_kubernetes_pod_annotation_prometheus_io_path"


class Monitoring:
    """One Prometheus with its data in `folder`; it keeps its port over stop and start."""

    def __init__(
        self, folder: Path, *, program: Path, kubeconfig: Path, interval: float, keeper: Keeper
    ) -> None:
        self._folder = folder
        self._config = folder / "prometheus.yaml"
        self._kubeconfig = kubeconfig
        self._interval = interval
        self._port = kept_port(folder / "port")
        self.url = f"http://127.0.0.1:{self._port}"
        arguments = [
            f"--config.file={self._config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--storage.tsdb.retention.time=1d",
            "--log.level=warn",
        ]
        log = folder.parent / "logs" / "prometheus.log"
        self.process = Process("prometheus", [program, *arguments], log=log, keeper=keeper)

    def start(self) -> None:
        """Start it without waiting. Raises LabError if it cannot be started."""
        self._config.write_text(yaml.safe_dump(self._configuration(), sort_keys=False))
        self.process.start()

    def wait_ready(self) -> None:
        """Raises LabError with the log's end if it does not become ready."""
        self.process.wait_ready(self.ready, timeout=60.0)

    def stop(self) -> None:
        self.process.stop(grace=20.0)

    def ready(self) -> bool:
        return answers(f"{self.url}/-/ready")

    def targets(self) -> list[dict[str, Any]]:
        """The active targets, as Prometheus' API gives them: labels, health, lastError, scrapeUrl."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets?state=active", timeout=5.0) as answer:
            active: list[dict[str, Any]] = json.load(answer)["data"]["activeTargets"]
            return active

    def _configuration(self) -> dict[str, Any]:
        interval = f"{round(self._interval * 1000)}ms"
        return {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [
                {
                    "job_name": "pods",
                    "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(self._kubeconfig)}],
                    "relabel_configs": [
                        {"source_labels": [_SCRAPE, _ROLLOUT], "regex": "true;.*|.*;true", "action": "keep"},
                        {"source_labels": [_ADDRESS], "regex": ".+", "action": "keep"},
                        {
                            "source_labels": ["__meta_kubernetes_pod_phase"],
                            "regex": "Running",
                            "action": "keep",
                        },
                        {"source_labels": [_ADDRESS], "target_label": "__address__"},
                        {"source_labels": [_PATH], "regex": "(.+)", "target_label": "__metrics_path__"},
                        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                        {"source_labels": ["__meta_kubernetes_pod_ip"], "target_label": "instance"},
                    ],
                }
            ],
        }
