"""A small synchronous client of the Kubernetes API on plain dicts, by path.

The `kubernetes` package's typed models drop fields they do not know, and the lab must show an object as the API server
has it. One client may be used by many threads.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote, urlencode

import urllib3
import yaml

from lab.process import LabError

Object = dict[str, Any]
Objects = list[Object]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]
_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
_WATCH_SECONDS = 300
_GONE = 410


class KubeError(Exception):
    """The API server refused a request. `status` is the HTTP code, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


def path_of(
    api_version: str,
    plural: str,
    namespace: str | None = None,
    name: str | None = None,
    subresource: str | None = None,
) -> str:
    """The API path of a collection or an object, as `path_of("apps/v1", "deployments", "shop", "web")`."""
    parts = ["/apis" if "/" in api_version else "/api", api_version]
    if namespace:
        parts += ["namespaces", namespace]
    parts += [part for part in (plural, name, subresource) if part]
    return "/".join(parts)


class KubeClient:
    """Requests to the API server that a kubeconfig's current context names.

    Every method raises KubeError for an answer other than 2xx and `urllib3.exceptions.HTTPError` for none at all.
    """

    def __init__(self, kubeconfig: Path, *, timeout: float = 30.0) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        context = _named(config, "context", config["current-context"])
        cluster, user = _named(config, "cluster", context["cluster"]), _named(config, "user", context["user"])
        self.server: str = cluster["server"].rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "modelrollout-lab"}
        if token := user.get("token"):
            self._headers["Authorization"] = f"Bearer {token}"
        self._http = urllib3.PoolManager(
            num_pools=2,
            maxsize=32,
            ssl_context=_tls(cluster, user),
            retries=False,
            timeout=urllib3.Timeout(connect=5.0, read=timeout),
        )
        self._plurals: dict[str, dict[str, tuple[str, bool]]] = {}

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **query: Any,
    ) -> Any:
        """One request; the decoded answer."""
        headers = self._headers | ({"Content-Type": content_type} if body is not None else {})
        data = None if body is None else json.dumps(body)
        response = self._http.request(method, self._url(path, query), body=data, headers=headers)
        return _decoded(response)

    def _url(self, path: str, query: Mapping[str, Any]) -> str:
        given = {
            key: str(value).lower() if value in (True, False) else value
            for key, value in query.items()
            if value is not None
        }
        return f"{self.server}{quote(path)}" + (f"?{urlencode(given)}" if given else "")

    def get(self, path: str, **query: Any) -> Object:
        found: Object = self.request("GET", path, **query)
        return found

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def list(self, path: str, **query: Any) -> Objects:
        """The items of a collection, in chunks as the API server likes it."""
        items, _ = self.list_with_version(path, **query)
        return items

    def list_with_version(self, path: str, **query: Any) -> tuple[Objects, str]:
        """The items of a collection and the resourceVersion to watch from."""
        items: Objects = []
        token: str | None = None
        while True:
            page = self.get(path, limit=1000, **query, **({"continue": token} if token else {}))
            items += page["items"] or []
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"]["resourceVersion"]

    def create(self, path: str, body: Object, **query: Any) -> Object:
        created: Object = self.request("POST", path, body, **query)
        return created

    def replace(self, path: str, body: Object, **query: Any) -> Object:
        replaced: Object = self.request("PUT", path, body, **query)
        return replaced

    def patch(self, path: str, body: Any, kind: str = "merge", **query: Any) -> Object:
        """Patch; `kind` is merge, json, strategic or apply."""
        patched: Object = self.request("PATCH", path, body, content_type=_PATCHES[kind], **query)
        return patched

    def delete(
        self, path: str, body: Object | None = None, *, missing_ok: bool = False, **query: Any
    ) -> None:
        try:
            self.request("DELETE", path, body, **query)
        except KubeError as error:
            if not (missing_ok and error.status == 404):
                raise

    def apply(
        self, body: Object, *, namespace: str | None = None, field_manager: str = "lab", force: bool = True
    ) -> Object:
        """Server-side apply a whole object; its path comes from the API server's discovery."""
        path = self.object_path(body, namespace=namespace)
        return self.patch(path, body, "apply", fieldManager=field_manager, force=force)

    def object_path(self, body: Object, *, namespace: str | None = None) -> str:
        """The path of an object. Raises LabError if the API server does not serve its kind."""
        version, kind, metadata = body["apiVersion"], body["kind"], body["metadata"]
        known = self._plurals.get(version, {})
        if kind not in known:
            prefix = "/apis" if "/" in version else "/api"
            known = {
                entry["kind"]: (entry["name"], entry["namespaced"])
                for entry in self.get(f"{prefix}/{version}")["resources"]
                if "/" not in entry["name"]
            }
            self._plurals[version] = known
        if kind not in known:
            raise LabError(f"the API server does not serve {kind} of {version}")
        plural, namespaced = known[kind]
        where = (metadata.get("namespace") or namespace or "default") if namespaced else None
        return path_of(version, plural, where, metadata["name"])

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            answer = self._http.request("GET", f"{self.server}/readyz", headers=self._headers, timeout=2.0)
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200

    def watch(self, path: str, resource_version: str, **query: Any) -> Watch:
        """Events of a collection from a resourceVersion on, until the server ends it (after 5 minutes at most)."""
        url = self._url(
            path,
            query
            | {"watch": True, "resourceVersion": resource_version, "allowWatchBookmarks": True}
            | {"timeoutSeconds": _WATCH_SECONDS},
        )
        timeout = urllib3.Timeout(connect=5.0, read=_WATCH_SECONDS + 30.0)
        response = self._http.request(
            "GET", url, headers=self._headers, preload_content=False, timeout=timeout
        )
        if response.status >= 400:
            _decoded(response)
        return Watch(response)

    def close(self) -> None:
        self._http.clear()


class Watch:
    """An open watch: an iterator of (type, object) that another thread may close."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        buffered = b""
        try:
            for chunk in self._response.stream(65536, decode_content=True):
                buffered += chunk
                *lines, buffered = buffered.split(b"\n")
                for line in lines:
                    if line:
                        event = json.loads(line)
                        yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            # A watch ends in many ways, and always means the same: open the next one.
            if not self._closed:
                return
        finally:
            self._response.close()

    def close(self) -> None:
        """Wake the reading thread, which then ends."""
        self._closed = True
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
            self._response.shutdown()


class Informer:
    """A collection kept current in a thread, with a call for every change.

    `handle(type, object)` runs in the informer's thread, in order. After a break the collection is listed anew and what
    vanished meanwhile is handled as DELETED. A change at which `handle` fails with an error of the API, or of the way to
    it, is handed over again with the next list. `synced` is set after the first list was handled.
    """

    def __init__(
        self, client: KubeClient, path: str, handle: Callable[[EventType, Object], None], **query: Any
    ) -> None:
        self._client = client
        self._path = path
        self._handle = handle
        self._query = query
        self._stopped = threading.Event()
        self._watch: Watch | None = None
        self._objects: dict[str, Object] = {}
        self.synced = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"informer {path}", daemon=True)

    def start(self) -> Informer:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop watching; no call of `handle` begins after this returned."""
        self._stopped.set()
        if watch := self._watch:
            watch.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def objects(self) -> Objects:
        """A snapshot of the collection."""
        return list(self._objects.values())

    def _run(self) -> None:
        version: str | None = None
        while not self._stopped.is_set():
            try:
                if version is None:
                    version = self._relist()
                version = self._follow(version)
            except (KubeError, urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, KubeError) and error.status == _GONE:
                    version = None
                    continue
                # The API server is away or not ready; asking again is all there is to do.
                version = None
                self._stopped.wait(0.5)

    def _relist(self) -> str:
        items, version = self._client.list_with_version(self._path, **self._query)
        present = {item["metadata"]["uid"]: item for item in items}
        for uid in [uid for uid in self._objects if uid not in present]:
            self._emit("DELETED", self._objects[uid])
        for uid, item in present.items():
            known = self._objects.get(uid)
            if known is None:
                self._emit("ADDED", item)
            elif known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._emit("MODIFIED", item)
        self.synced.set()
        return version

    def _follow(self, version: str) -> str | None:
        """Handle events until the watch ends; the version to go on from, or None if only a new list helps."""
        self._watch = self._client.watch(self._path, version, **self._query)
        if self._stopped.is_set():
            self._watch.close()
        began = time.monotonic()
        for kind, item in self._watch:
            if self._stopped.is_set():
                return version
            if kind == "ERROR":
                return None
            version = item["metadata"]["resourceVersion"]
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                self._emit(cast(EventType, kind), item)
        if time.monotonic() - began < 0.5:
            # A server that ends watches at once is going down: do not ask it in a tight loop.
            self._stopped.wait(0.5)
        return version

    def _emit(self, kind: EventType, item: Object) -> None:
        uid = item["metadata"]["uid"]
        before = self._objects.get(uid)
        self._keep(uid, None if kind == "DELETED" else item)
        if self._stopped.is_set():
            return
        try:
            self._handle(kind, item)
        except BaseException:
            self._keep(uid, before)  # or the next list would hold it for handled
            raise

    def _keep(self, uid: str, item: Object | None) -> None:
        if item is None:
            self._objects.pop(uid, None)
        else:
            self._objects[uid] = item


def _named(config: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    for entry in config[f"{kind}s"]:
        if entry["name"] == name:
            value: dict[str, Any] = entry[kind]
            return value
    raise LabError(f"the kubeconfig has no {kind} named {name}")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if data := cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        context.load_verify_locations(cafile=file)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := user.get("client-certificate"):
        context.load_cert_chain(certificate, user.get("client-key"))
    elif "client-certificate-data" in user:
        raise LabError("the kubeconfig has its client certificate inline: name files or a token instead")
    return context


def _decoded(response: urllib3.BaseHTTPResponse) -> Any:
    text = response.data
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        body = {"message": text.decode(errors="replace")[:500]}
    if response.status >= 400:
        raise KubeError(
            response.status, str(body.get("reason", response.reason)), str(body.get("message", ""))
        )
    return body
