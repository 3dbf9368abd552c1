"""What autoscalers ask for, behind the API server's aggregation layer: what pods use (`metrics.k8s.io`, as metrics-server has
it), and numbers that belong to no pod (`external.metrics.k8s.io`, as an adapter of Prometheus has them).

Both are whatever the caller says, so that a test sets the demand and the real controller does the rest.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from lab.kube import KubeClient, KubeError, Object, path_of
from lab.process import LabError

PODS, EXTERNAL, VERSION = "metrics.k8s.io", "external.metrics.k8s.io", "v1beta1"
NAMESPACE, SERVICE = "kube-system", "metrics"

# CPU that a pod uses, in cores; None where nothing is known of it yet.
Usage = Callable[[Object], float | None]
# A number by namespace and name of the metric; None where there is none.
External = Callable[[str, str], float | None]


class Metrics:
    """Serves them over TLS on loopback; `pki` is the folder with the API server's certificate."""

    def __init__(self, client: KubeClient, pki: Path, usage: Usage, external: External) -> None:
        self._client, self._usage, self._external = client, usage, external
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self, *, timeout: float = 30.0) -> Metrics:
        """Serve, and wait until the API server finds it. Raises LabError with its word on why not."""
        self._thread.start()
        for obj in self._objects(self._server.server_address[1]):
            self._client.apply(obj)
        deadline = time.monotonic() + timeout
        for group in (PODS, EXTERNAL):
            while (said := self._availability(group)) is not None:
                if time.monotonic() > deadline:
                    raise LabError(f"{VERSION}.{group} is not available after {timeout:.0f} s: {said}")
                time.sleep(0.1)
        return self

    def stop(self) -> None:
        """Take the APIs away, so that nobody's discovery fails on them, and end."""
        for group in (PODS, EXTERNAL):
            self._client.delete(_api_service(group), missing_ok=True)
        self._server.shutdown()
        self._server.server_close()

    def _objects(self, port: int) -> list[Object]:
        # EndpointSlices refuse loopback addresses; the name of one is followed.
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        return [service, *(_registration(group, port) for group in (PODS, EXTERNAL))]

    def _availability(self, group: str) -> str | None:
        """None once the API is available, else the API server's word on it."""
        conditions = (self._client.get(_api_service(group)).get("status") or {}).get("conditions") or []
        found = next((c for c in conditions if c["type"] == "Available"), {"message": "no condition yet"})
        return None if found.get("status") == "True" else str(found["message"])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, answer = metrics.answer(self.path)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, url: str) -> tuple[int, Object]:
        """Status and body for a GET: of the APIs themselves, of the pods of a namespace, by label selector, or of one number."""
        parts = urlsplit(url)
        match unquote(parts.path).split("/"):
            case ["", "apis", group, _]:
                found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/{VERSION}"}
                return 200, found | {"resources": _RESOURCES[group]}
            case ["", "apis", group, _, "namespaces", namespace, "pods"] if group == PODS:
                selector = parse_qs(parts.query).get("labelSelector")
                query = {"labelSelector": selector[0]} if selector else {}
                return self._pods(namespace, query)
            case ["", "apis", group, _, "namespaces", namespace, name] if group == EXTERNAL:
                return 200, self._number(namespace, name)
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}

    def _number(self, namespace: str, name: str) -> Object:
        value = self._external(namespace, name)
        item = {"metricName": name, "metricLabels": {}, "timestamp": _now(), "value": f"{value}"}
        items = [] if value is None else [item]
        return {"kind": "ExternalMetricValueList", "apiVersion": f"{EXTERNAL}/{VERSION}", "items": items}

    def _pods(self, namespace: str, query: Mapping[str, str]) -> tuple[int, Object]:
        try:
            pods = self._client.list(path_of("v1", "pods", namespace), **query)
        except KubeError as error:
            return error.status, {"kind": "Status", "apiVersion": "v1", "message": error.message}
        now = _now()
        items = [_metrics(pod, cores, now) for pod in pods if (cores := self._usage(pod)) is not None]
        return 200, {"kind": "PodMetricsList", "apiVersion": f"{PODS}/{VERSION}", "items": items}


_RESOURCES: dict[str, list[Object]] = {
    PODS: [
        {
            "name": "pods",
            "singularName": "",
            "namespaced": True,
            "kind": "PodMetrics",
            "verbs": ["get", "list"],
        }
    ],
    EXTERNAL: [],
}


def _registration(group: str, port: int) -> Object:
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{VERSION}.{group}"},
        "spec": {
            "group": group,
            "version": VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": SERVICE, "namespace": NAMESPACE, "port": port},
            "insecureSkipTLSVerify": True,
        },
    }


def _api_service(group: str) -> str:
    return path_of("apiregistration.k8s.io/v1", "apiservices", None, f"{VERSION}.{group}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _metrics(pod: Object, cores: float, now: str) -> Object:
    """The pod's usage, in its first container."""
    metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "labels")}
    usage = {"cpu": f"{round(cores * 1e9)}n", "memory": "0"}
    containers = [{"name": pod["spec"]["containers"][0]["name"], "usage": usage}]
    # An autoscaler leaves a pod out until it was ready for a window.
    return {"metadata": metadata, "timestamp": now, "window": "1s", "containers": containers}
