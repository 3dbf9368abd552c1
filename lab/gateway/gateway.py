"""The lab's Gateway API implementation: watches, translates, configures Envoy, then reports.

One thread does all the work whenever something it depends on has changed. The status is written after Envoy has taken
the configuration, so an observedGeneration in a route's status means that its weights are in force.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import urllib3

from lab.gateway import pools
from lab.gateway.attachment import ADDRESS_ANNOTATION, CONTROLLER_NAME, GROUP, key_of
from lab.gateway.envoy import Envoy
from lab.gateway.status import class_status, gateway_status, route_status
from lab.gateway.translation import EnvoyConfig, translate
from lab.kube import EventType, Informer, KubeClient, KubeError, Object, path_of
from lab.process import Keeper, LabError

CLASS_NAME = "lab"
GATEWAY_NAMESPACE = "gateways"
GATEWAY_NAME = "public"
_API = f"{GROUP}/v1"
_WATCHED = {
    "classes": path_of(_API, "gatewayclasses"),
    "gateways": path_of(_API, "gateways"),
    "routes": path_of(_API, "httproutes"),
    "services": path_of("v1", "services"),
    "endpointslices": path_of("discovery.k8s.io/v1", "endpointslices"),
    "pods": path_of("v1", "pods"),
    "pools": path_of(f"{pools.GROUP}/v1", "inferencepools"),
}
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the watches knew at one moment: classes and Gateways of ours, the rest whole."""

    classes: list[Object]
    gateways: list[Object]
    routes: list[Object]
    services: list[Object]
    endpointslices: list[Object]
    pods: list[Object]

    @classmethod
    def of(cls, objects: dict[str, list[Object]]) -> Snapshot:
        """What is in the watches, with a Service and its endpoints for each pool."""
        classes = [one for one in objects["classes"] if one["spec"]["controllerName"] == CONTROLLER_NAME]
        names = {one["metadata"]["name"] for one in classes}
        return cls(
            classes=classes,
            gateways=[one for one in objects["gateways"] if one["spec"]["gatewayClassName"] in names],
            routes=objects["routes"],
            services=[*objects["services"], *map(pools.service_of, objects["pools"])],
            endpointslices=[
                *objects["endpointslices"],
                *(pools.slice_of(pool, objects["pods"]) for pool in objects["pools"]),
            ],
            pods=objects["pods"],
        )

    def translate(self) -> EnvoyConfig:
        """What Envoy is to be told."""
        return translate(
            gateways=self.gateways,
            routes=self.routes,
            endpointslices=self.endpointslices,
            services=self.services,
            pods=self.pods,
        )


class Gateway:
    """Serves all Gateways of the lab's class on one loopback port.

    `folder` keeps the port, Envoy's files and its log. `keeper` ends Envoy if this process dies; without one the
    Gateway brings its own.
    """

    def __init__(self, kubeconfig: Path, folder: Path, *, keeper: Keeper | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._own_keeper: Keeper | None = None
        if keeper is None:
            keeper = self._own_keeper = Keeper()
        self.envoy = Envoy(folder.resolve(), keeper)
        self._client = KubeClient(kubeconfig)
        self._dirty = threading.Event()
        self._stopping = threading.Event()
        self._informers = {
            name: Informer(self._client, path, self._notice_pod if name == "pods" else self._notice)
            for name, path in _WATCHED.items()
        }
        self._pods: dict[tuple[str, str], tuple[str | None, bool] | None] = {}
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self.last_error: str | None = None
        """Why the last pass failed, None if it did not."""

    @property
    def port(self) -> int:
        """Envoy's listener on 127.0.0.1."""
        return self.envoy.port

    @property
    def url(self) -> str:
        """Where requests go; the Host header chooses the route."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Creates the Gateway `public` if it is missing; returns when Envoy serves all that the API server knew.

        Raises LabError if either of the two does not answer.
        """
        try:
            create_public_gateway(self._client)
        except (KubeError, urllib3.exceptions.HTTPError) as error:
            raise LabError(
                f"The Gateway {GATEWAY_NAMESPACE}/{GATEWAY_NAME} cannot be created: {error}"
            ) from error
        for informer in self._informers.values():
            informer.start()
        for name, informer in self._informers.items():
            if not informer.synced.wait(30.0):
                raise LabError(
                    f"The gateway could not list the {name}: is the API server up and the Gateway API installed?"
                )
        self.envoy.start(self._snapshot().translate())
        self._dirty.set()
        self._thread.start()
        wait_until_programmed(self._client)

    def stop(self) -> None:
        """Ends Envoy and all threads."""
        self._stopping.set()
        self._dirty.set()
        for informer in self._informers.values():
            informer.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout=10.0)
        self.envoy.stop()
        self._client.close()
        if self._own_keeper is not None:
            self._own_keeper.close()

    def _notice(self, _kind: EventType, _obj: Object) -> None:
        self._dirty.set()

    def _notice_pod(self, kind: EventType, pod: Object) -> None:
        # Pods change all the time (restarts); only a new address concerns a proxy, and for pools whether it is ready.
        address = (pod["metadata"].get("annotations") or {}).get(ADDRESS_ANNOTATION)
        seen = None if kind == "DELETED" else (address, pools.is_ready(pod))
        if self._pods.get(key_of(pod)) != seen:
            self._pods[key_of(pod)] = seen
            self._dirty.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            # The wake-up now and then is for Envoy alone: it is started again if it was killed.
            self._dirty.wait(_RETRY_SECONDS)
            if self._stopping.is_set():
                return
            try:
                if not self.envoy.process.running:
                    self.envoy.start()
                if self._dirty.is_set():
                    # Changes come in bursts: a moment's wait makes one configuration of them.
                    self._stopping.wait(0.01)
                    self._dirty.clear()
                    self._reconcile()
                self.last_error = None
            except (LabError, KubeError, urllib3.exceptions.HTTPError, OSError) as error:
                # The API server or Envoy is away, or someone else wrote first: look again in a moment.
                self.last_error = str(error)
                self._stopping.wait(_RETRY_SECONDS)
                self._dirty.set()

    def _snapshot(self) -> Snapshot:
        return Snapshot.of({name: informer.objects() for name, informer in self._informers.items()})

    def _reconcile(self) -> None:
        seen = self._snapshot()
        complaint = self.envoy.apply(seen.translate())
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        services = {key_of(service): service for service in seen.services}
        for one in seen.classes:
            self._write_status("gatewayclasses", one, class_status(one, now))
        for route in seen.routes:
            status = route_status(route, seen.gateways, services, now, rejected=complaint)
            self._write_status("httproutes", route, status)
        for gateway in seen.gateways:
            self._write_status("gateways", gateway, gateway_status(gateway, seen.routes, "127.0.0.1", now))

    def _write_status(self, plural: str, obj: Object, status: Object | None) -> None:
        if status is None:
            return
        namespace, name = key_of(obj)
        path = path_of(_API, plural, namespace or None, name, "status")
        try:
            # With the resourceVersion that was decided on: the entries of other controllers are never lost.
            self._client.replace(path, {**obj, "status": status})
        except KubeError as error:
            # Changed or deleted meanwhile: the watch brings news, and with it another pass.
            if error.status not in (404, 409):
                raise


def create_public_gateway(client: KubeClient) -> None:
    """Creates the GatewayClass `lab` and the Gateway `public` in namespace `gateways`, open to routes from everywhere.

    May be called again at any time.
    """
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY_NAMESPACE}})
    client.apply(
        {
            "apiVersion": _API,
            "kind": "GatewayClass",
            "metadata": {"name": CLASS_NAME},
            "spec": {"controllerName": CONTROLLER_NAME},
        }
    )
    client.apply(
        {
            "apiVersion": _API,
            "kind": "Gateway",
            "metadata": {"name": GATEWAY_NAME, "namespace": GATEWAY_NAMESPACE},
            "spec": {
                "gatewayClassName": CLASS_NAME,
                "listeners": [
                    {
                        "name": "http",
                        "protocol": "HTTP",
                        "port": 80,
                        "allowedRoutes": {"namespaces": {"from": "All"}},
                    }
                ],
            },
        }
    )


def wait_until_programmed(client: KubeClient, *, timeout: float = 20.0) -> None:
    """Returns when the Gateway `public` is served. Raises LabError after `timeout` seconds."""
    path = path_of(_API, "gateways", GATEWAY_NAMESPACE, GATEWAY_NAME)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = client.find(path) or {}
        conditions = found.get("status", {}).get("conditions") or []
        if any(c["type"] == "Programmed" and c["status"] == "True" for c in conditions):
            return
        time.sleep(0.05)
    raise LabError(f"The Gateway {GATEWAY_NAMESPACE}/{GATEWAY_NAME} was not served within {timeout:.0f} s.")
