"""The port to a real API server, on the `kubernetes` package's asyncio client.

It builds the requests itself and uses that package for connection, TLS, proxies and credentials: its generated
classes drop unknown fields, and the one for custom objects does not serve the core group.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_kube_config
from kubernetes.aio.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_HOST_ENV_NAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)

from modelrollout.cluster.errors import NotFound, Unavailable, error_from
from modelrollout.cluster.events import Correlator, Occurrence, post
from modelrollout.cluster.kinds import Kind, Object, kind_of, name_of
from modelrollout.cluster.port import FIELD_MANAGER, EventType, Hooks, Propagation, Request, Write

REQUEST_SECONDS = 10.0
LIST_SECONDS = 30.0
WATCH_SECONDS = 300  # the server ends a watch after this long, or up to twice that: not all at once
SILENT_SECONDS = 90.0  # a watch that tells nothing for so long is dead: there is a bookmark every minute
PAGE = 500
MAX_PAGES = 10_000

_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to reach the API server. `renew` reads tokens anew; it is called after a 401."""

    configuration: Any
    renew: Callable[[], Awaitable[None]]


async def load_credentials(kubeconfig: Path | str | None = None, context: str | None = None) -> Credentials:
    """From the given kubeconfig; else from the pod's service account; else from $KUBECONFIG or ~/.kube/config.

    Raises ValueError with a sentence for the user if there is nothing usable.
    """
    configuration = Configuration()
    # The work queue does the waiting. A client that retries by itself would hide an outage from it.
    configuration.retries = None
    # Each watch holds a connection; with a limit, the watches of many rollouts would starve the requests.
    configuration.connection_pool_maxsize = 0
    in_cluster = kubeconfig is None and bool(os.environ.get(SERVICE_HOST_ENV_NAME))
    try:
        if in_cluster:
            return _load_in_cluster(configuration)
        return await _load_kubeconfig(configuration, kubeconfig, context)
    except (
        ConfigException,
        OSError,
        yaml.YAMLError,
        UnicodeDecodeError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:
        # The last ones: the loader indexes into whatever the file holds, an empty one or a list as well.
        malformed = isinstance(error, (UnicodeDecodeError, TypeError, AttributeError, KeyError))
        why = "it is not a kubeconfig" if malformed else " ".join(str(error).split())
        where = "the pod's service account" if in_cluster else f"kubeconfig {kubeconfig or 'default'}"
        raise ValueError(
            f"{where}: {why}. Name a usable file with --kubeconfig or the KUBECONFIG variable."
        ) from error


def _load_in_cluster(configuration: Any) -> Credentials:
    loader = InClusterConfigLoader(SERVICE_TOKEN_FILENAME, SERVICE_CERT_FILENAME)
    loader.load_and_set(configuration)

    async def renew() -> None:
        # The kubelet rotates the token file; the loader's own hook reads it once a minute.
        loader.token_expires_at = datetime.min

    return Credentials(configuration, renew)


def _require_file(name: str | None) -> None:
    if name is not None and not Path(name).is_file():
        raise ConfigException("there is no such file")  # the loader takes it for an empty one


async def _load_kubeconfig(configuration: Any, file: Path | str | None, context: str | None) -> Credentials:
    name = str(file) if file is not None else None
    _require_file(name)

    async def renew() -> None:
        # Never written back: the file is the user's.
        await load_kube_config(name, context, configuration, persist_config=False)

    await renew()
    return Credentials(configuration, renew)


class KubernetesCluster:
    """`Cluster` on a real API server. Use as an async context manager, or call `close`."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        hooks: Hooks | None = None,
        instance: str | None = None,
        request_seconds: float = REQUEST_SECONDS,
        user_agent: str = "modelrollout",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = credentials
        self._client = ApiClient(credentials.configuration)
        self._client.user_agent = user_agent
        self._hooks = hooks or Hooks()
        self._instance = instance or socket.gethostname()
        self._request_seconds = request_seconds
        self._now = now
        self._correlator = Correlator()
        self._writes = 0

    async def __aenter__(self) -> KubernetesCluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        try:
            return await self._send(
                "get", kind, "GET", kind.path(namespace, name), what=f"{namespace}/{name}"
            )
        except NotFound as error:
            if type(error) is not NotFound:
                raise
            return None

    async def list(
        self, kind: Kind, namespace: str | None, label_selector: str | None = None, *, name: str | None = None
    ) -> tuple[list[Object], str]:
        items: list[Object] = []
        selection = _selection(label_selector, name)
        query = {"limit": str(PAGE)} | selection
        for _ in range(MAX_PAGES):
            try:
                page = await self._send(
                    "list",
                    kind,
                    "GET",
                    kind.path(namespace),
                    query=query,
                    seconds=LIST_SECONDS,
                    what="objects",
                )
            except Unavailable as error:
                if error.status != 410 or "continue" not in query:
                    raise
                # The state that the pages were cut from has been compacted away: read a new one in one piece.
                items.clear()
                query = dict(selection)
                continue
            # Items of a list come without the two fields that say what they are.
            items += (
                {"apiVersion": kind.api_version, "kind": kind.kind} | item for item in page["items"] or ()
            )
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion") or "")
            query["continue"] = metadata["continue"]
        raise Unavailable(f"list {kind.kind}: still not at its end after {MAX_PAGES} pages")

    async def watch(
        self,
        kind: Kind,
        namespace: str,
        *,
        label_selector: str | None = None,
        name: str | None = None,
        resource_version: str,
    ) -> AsyncIterator[tuple[str, Object]]:
        seconds = round(WATCH_SECONDS * (1 + random.random()))
        query = _selection(label_selector, name) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "resourceVersion": resource_version,
        }
        named, status, began = f"watch {kind.kind} {namespace}/{name or '*'}", 0, time.monotonic()
        limit = aiohttp.ClientTimeout(
            total=seconds + 30, connect=self._request_seconds, sock_read=SILENT_SECONDS
        )
        response: Any = None
        try:
            request = await self._request("GET", kind.path(namespace), query, None, _JSON)
            response = (await self._client.call_api(*request, _request_timeout=limit)).response
            status = response.status
            if status != 200:
                raise error_from(status, await response.read(), response.headers, what=named)
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield _event(line, kind, named)
        except (TimeoutError, aiohttp.ClientError, OSError, ConfigException) as error:
            raise Unavailable(f"{named}: {type(error).__name__}: {error}") from error
        finally:
            if response is not None:
                response.close()
            self._hooks.answered(Request("watch", kind.kind, status, time.monotonic() - began))

    async def apply(
        self,
        obj: Object,
        *,
        dry_run: bool = False,
        force: bool = True,
        resource_version: str | None = None,
        uid: str | None = None,
    ) -> Object:
        kind, (namespace, name) = kind_of(obj), name_of(obj)
        seen = {"resourceVersion": resource_version, "uid": uid}
        obj = obj | {"metadata": obj["metadata"] | {field: value for field, value in seen.items() if value}}
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        return await self._write(
            "apply",
            kind,
            namespace,
            name,
            "PATCH",
            kind.path(namespace, name),
            query=query,
            body=obj,
            content_type=_APPLY,
            persists=not dry_run,
        )

    async def create(self, obj: Object) -> Object:
        kind, (namespace, name) = kind_of(obj), name_of(obj)
        return await self._write(
            "create", kind, namespace, name, "POST", kind.path(namespace), query=_MANAGED, body=obj
        )

    async def replace(self, obj: Object) -> Object:
        kind, (namespace, name) = kind_of(obj), name_of(obj)
        _require_version(obj)
        path = kind.path(namespace, name)
        return await self._write("replace", kind, namespace, name, "PUT", path, query=_MANAGED, body=obj)

    async def patch_json(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Object:
        return await self._write(
            "patch",
            kind,
            namespace,
            name,
            "PATCH",
            kind.path(namespace, name),
            query=_MANAGED,
            body=[dict(operation) for operation in operations],
            content_type=_JSON_PATCH,
        )

    async def replace_status(self, obj: Object) -> Object:
        kind, (namespace, name) = kind_of(obj), name_of(obj)
        _require_version(obj)
        path = kind.path(namespace, name, "status")
        return await self._write(
            "replace-status", kind, namespace, name, "PUT", path, query=_MANAGED, body=obj
        )

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
    ) -> bool:
        wanted = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {field: value for field, value in wanted.items() if value}
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": preconditions,
        }
        path = kind.path(namespace, name)
        try:
            await self._write("delete", kind, namespace, name, "DELETE", path, body=options)
        except NotFound:
            return False
        return True

    async def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: EventType,
        reason: str,
        note: str,
        action: str = "Reconcile",
    ) -> None:
        what = Occurrence(type, reason, note, action)
        await post(self, self._correlator, regarding, what, now=self._now(), instance=self._instance)

    async def _write(
        self,
        verb: str,
        kind: Kind,
        namespace: str | None,
        name: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        persists: bool = True,
    ) -> Object:
        write = Write(verb, kind.kind, namespace, name, self._writes + 1, body)
        if persists:
            self._writes += 1
            await self._hooks.before_write(write)
        answer = await self._send(
            verb,
            kind,
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            what=f"{namespace}/{name}" if namespace else name,
        )
        if persists:
            await self._hooks.after_write(write)
        return answer

    async def _send(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        seconds: float | None = None,
    ) -> Object:
        """One request, counted, within its time limit; once more after a 401, with credentials read anew."""
        seconds = seconds or self._request_seconds
        named = f"{verb} {kind.kind} {what}"
        for attempt in (1, 2):
            began, status = time.monotonic(), 0
            try:
                async with asyncio.timeout(seconds):
                    status, headers, answer = await self._call(
                        method, path, query, body, content_type, seconds, fresh=attempt == 2
                    )
            except TimeoutError as error:
                raise Unavailable(f"{named}: no answer within {seconds:g} s") from error
            except (aiohttp.ClientError, OSError, ConfigException) as error:
                raise Unavailable(f"{named}: {type(error).__name__}: {error}") from error
            finally:
                self._hooks.answered(Request(verb, kind.kind, status, time.monotonic() - began))
            if status == 401 and attempt == 1:
                continue
            if not 200 <= status < 300:
                raise error_from(status, answer, headers, what=named, patch=content_type == _JSON_PATCH)
            break
        return _body(answer, named)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        seconds: float,
        *,
        fresh: bool,
    ) -> tuple[int, Mapping[str, str], bytes]:
        if fresh:
            await self._credentials.renew()
        request = await self._request(method, path, query, body, content_type)
        limit = aiohttp.ClientTimeout(total=seconds)
        response = await self._client.call_api(*request, _request_timeout=limit)
        return response.status, response.headers, await response.read()

    async def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str
    ) -> Any:
        return await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": _JSON, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )


_MANAGED: Mapping[str, str] = {"fieldManager": FIELD_MANAGER}


def _selection(label_selector: str | None, name: str | None) -> dict[str, str]:
    fields = {"fieldSelector": f"metadata.name={name}"} if name else {}
    return ({"labelSelector": label_selector} if label_selector else {}) | fields


def _event(line: bytes, kind: Kind, named: str) -> tuple[str, Object]:
    event = _body(line, named)
    what, obj = str(event.get("type")), event.get("object") or {}
    if what == "ERROR":
        raise Unavailable(f"{named}: {obj.get('message')}", status=int(obj.get("code") or 0))
    return what, {"apiVersion": kind.api_version, "kind": kind.kind} | obj


def _require_version(obj: Mapping[str, Any]) -> None:
    """The API server takes a PUT without resourceVersion as "whatever it is now", and would lose another's write."""
    if not obj["metadata"].get("resourceVersion"):
        raise ValueError(
            f"{obj.get('kind')} {obj['metadata'].get('name')}: metadata.resourceVersion is missing"
        )


def _body(answer: bytes, named: str) -> Object:
    try:
        parsed = json.loads(answer)
    except ValueError as error:
        raise Unavailable(f"{named}: the answer is not JSON") from error
    if not isinstance(parsed, dict):
        raise Unavailable(f"{named}: the answer is not an object")
    return parsed
