"""An in-memory cluster for tests of pure reconciliation: the same port, no processes, no waiting.

It keeps what decisions depend on: resourceVersions that rise only when something changed, conflicts, the status
subresource, generations, uids, preconditions, finalizers, garbage collection by owner, server-side apply with removal
of what is no longer applied, and some of the defaults that a real API server fills in. `tests/cluster/test_port.py`
runs against it and against a real API server; what is not tested there is not to be relied on here.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from modelrollout.cluster.errors import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    KindNotServed,
    NotFound,
    Unavailable,
)
from modelrollout.cluster.events import Correlator, Occurrence, post
from modelrollout.cluster.kinds import (
    DEPLOYMENT,
    EVENT,
    HTTP_ROUTE,
    NAMESPACE,
    SERVICE,
    Kind,
    Object,
    kind_of,
    name_of,
)
from modelrollout.cluster.port import EventType, Hooks, Propagation, Request, Write
from modelrollout.cluster.store import Ref, ref_of
from modelrollout.cluster.times import micro_time

OURS = "modelrollout"
OTHER = "someone-else"
GENERATED = {"Deployment", "ReplicaSet", "ModelRollout", "HTTPRoute", "HorizontalPodAutoscaler"}
WITH_STATUS = GENERATED | {"Service", "Pod", "Namespace"}
SERVER_FIELDS = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
)

Path = tuple[str, ...]


class FakeCluster:
    """`Cluster` in memory. `namespaces` None: every namespace exists. `absent`: kinds whose CRD is not installed."""

    def __init__(
        self,
        *,
        hooks: Hooks | None = None,
        now: Callable[[], float] = lambda: 1_700_000_000.0,
        namespaces: set[str] | None = None,
        absent: frozenset[str] = frozenset(),
    ) -> None:
        self.hooks = hooks or Hooks()
        self.requests: list[Request] = []
        self.writes: list[Write] = []
        self._now = now
        self._namespaces = namespaces
        self._absent = absent
        self._objects: dict[Ref, Object] = {}
        self._managers: dict[Ref, dict[Path, str]] = {}
        self._applied: dict[Ref, set[Path]] = {}
        self._version = 1000
        self._uids = 0
        self._correlator = Correlator()
        self._subscribers: list[Callable[[str, Object], None]] = []

    # For tests: looking, and acting as someone else. None of it is counted or stopped by hooks.

    def serve(self, kind: Kind) -> None:
        """Somebody installs the CRD of a kind that was absent."""
        self._absent -= {kind.kind}

    def subscribe(self, callback: Callable[[str, Object], None]) -> None:
        """Like a watch: called with ADDED, MODIFIED or DELETED and the object, before the write is answered."""
        self._subscribers.append(callback)

    def look(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        return copy.deepcopy(self._objects.get(Ref(kind.kind, namespace or "", name)))

    def look_all(self, kind: Kind) -> list[Object]:
        return [copy.deepcopy(self._objects[ref]) for ref in sorted(self._objects) if ref.kind == kind.kind]

    @property
    def events(self) -> list[tuple[str, str]]:
        """(reason, note) of all events, in order."""
        found = sorted(self.look_all(EVENT), key=lambda event: int(event["metadata"]["resourceVersion"]))
        return [(event["reason"], event["note"]) for event in found]

    def seed(self, obj: Object) -> Object:
        """Create or replace as another writer, its status included."""
        ref = ref_of(obj)
        live = self._objects.get(ref)
        if live is None:
            return self._store_new(copy.deepcopy(obj), manager=OTHER, keep_status=True)
        return self._update(ref, copy.deepcopy(obj), manager=OTHER, status=True)

    def set_status(self, kind: Kind, namespace: str, name: str, status: Mapping[str, Any]) -> Object:
        """As the controller of a built-in kind does."""
        live = self._objects[Ref(kind.kind, namespace, name)]
        return self.seed(live | {"status": dict(status)})

    def erase(self, kind: Kind, namespace: str | None, name: str) -> None:
        """Delete as another writer."""
        self._delete(Ref(kind.kind, namespace or "", name), "Background")

    # The port.

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        kind.path(namespace, name)
        self._require_served(kind, "get")
        found = self.look(kind, namespace, name)
        self._answer("get", kind, 200 if found else 404)
        return found

    async def list(
        self, kind: Kind, namespace: str | None, label_selector: str | None = None, *, name: str | None = None
    ) -> tuple[list[Object], str]:
        self._require_served(kind, "list")
        self._answer("list", kind, 200)
        items = [
            obj
            for obj in self.look_all(kind)
            if namespace in (None, obj["metadata"].get("namespace"))
            and _selected(obj, label_selector)
            and name in (None, obj["metadata"]["name"])
        ]
        return items, str(self._version)

    async def watch(
        self,
        kind: Kind,
        namespace: str,
        *,
        label_selector: str | None = None,
        name: str | None = None,
        resource_version: str,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Changes from now on; the state that was listed must be the present one."""
        self._require_served(kind, "watch")
        if resource_version != str(self._version):
            raise Unavailable("too old resource version", status=410)
        queue: asyncio.Queue[tuple[str, Object]] = asyncio.Queue()

        def seen(what: str, obj: Object) -> None:
            metadata = obj["metadata"]
            here = kind_of(obj) == kind and metadata.get("namespace") == namespace
            if here and _selected(obj, label_selector) and name in (None, metadata["name"]):
                queue.put_nowait((what, obj))

        self._subscribers.append(seen)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.remove(seen)

    async def apply(
        self,
        obj: Object,
        *,
        dry_run: bool = False,
        force: bool = True,
        resource_version: str | None = None,
        uid: str | None = None,
    ) -> Object:
        def act() -> Object:
            _require_seen(obj, self._objects.get(ref_of(obj)), resource_version, uid)
            return self._apply(copy.deepcopy(obj), force, dry_run)

        return await self._write("apply", obj, act, persists=not dry_run)

    async def create(self, obj: Object) -> Object:
        return await self._write("create", obj, lambda: self._store_new(copy.deepcopy(obj), manager=OURS))

    async def replace(self, obj: Object) -> Object:
        return await self._write("replace", obj, lambda: self._replace(obj, status=False))

    async def replace_status(self, obj: Object) -> Object:
        return await self._write("replace-status", obj, lambda: self._replace(obj, status=True))

    async def patch_json(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Object:
        ref = Ref(kind.kind, namespace or "", name)

        def act() -> Object:
            patched = copy.deepcopy(self._live(ref))
            for operation in operations:
                apply_operation(patched, copy.deepcopy(dict(operation)))
            return self._update(ref, patched, manager=OURS)

        return await self._write("patch", _stub(kind, namespace, name), act)

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
        ref = Ref(kind.kind, namespace or "", name)

        def act() -> Object:
            metadata = self._live(ref)["metadata"]
            for field, wanted in (("uid", uid), ("resourceVersion", resource_version)):
                if wanted and metadata[field] != wanted:
                    raise Conflict(f"delete {name}: {field} is {metadata[field]}, not {wanted}", status=409)
            self._delete(ref, propagation)
            return {}

        try:
            await self._write("delete", _stub(kind, namespace, name), act)
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
        await post(self, self._correlator, regarding, what, now=self._now(), instance="fake")

    # Requests.

    async def _write(
        self, verb: str, obj: Mapping[str, Any], act: Callable[[], Object], *, persists: bool = True
    ) -> Object:
        kind, (namespace, name) = kind_of(obj), name_of(obj)
        kind.path(namespace, name)
        write = Write(verb, kind.kind, namespace, name, len(self.writes) + 1, obj)
        if persists:
            self.writes.append(write)
            await self.hooks.before_write(write)
        self._require_served(kind, verb)
        try:
            self._require_namespace(kind, namespace)
            answer = copy.deepcopy(act())
        except ClusterError as error:
            self._answer(verb, kind, error.status)
            raise
        self._answer(verb, kind, 200)
        if persists:
            await self.hooks.after_write(write)
        return answer

    def _answer(self, verb: str, kind: Kind, status: int) -> None:
        request = Request(verb, kind.kind, status, 0.0)
        self.requests.append(request)
        self.hooks.answered(request)

    def _require_served(self, kind: Kind, verb: str) -> None:
        if kind.kind in self._absent:
            self._answer(verb, kind, 404)
            raise KindNotServed(f"{verb} {kind.kind}: 404 page not found", status=404)

    def _require_namespace(self, kind: Kind, namespace: str | None) -> None:
        if kind.namespaced and self._namespaces is not None and namespace not in self._namespaces:
            raise NotFound(f'namespaces "{namespace}" not found', status=404, reason="NotFound")
        holder = self._objects.get(Ref(NAMESPACE.kind, "", namespace or ""))
        if holder and holder["metadata"].get("deletionTimestamp"):
            causes = ({"reason": "NamespaceTerminating"},)
            raise Forbidden(f"namespace {namespace} is being terminated", status=403, causes=causes)

    # Objects.

    def _live(self, ref: Ref) -> Object:
        live = self._objects.get(ref)
        if live is None:
            raise NotFound(f'{ref.kind} "{ref.name}" not found', status=404, reason="NotFound")
        return live

    def _store_new(self, obj: Object, *, manager: str, keep_status: bool = False) -> Object:
        ref = ref_of(obj)
        if ref in self._objects:
            raise AlreadyExists(f'{ref.kind} "{ref.name}" already exists', status=409, reason="AlreadyExists")
        _validate(obj)
        _default(obj)
        self._uids += 1
        if ref.kind in WITH_STATUS and not keep_status:
            obj.pop("status", None)
        obj["metadata"] |= {
            "uid": f"00000000-0000-4000-8000-{self._uids:012d}",
            "creationTimestamp": _second(self._now()),
            "resourceVersion": self._next_version(),
        }
        if ref.kind in GENERATED:
            obj["metadata"]["generation"] = 1
        self._objects[ref] = obj
        self._managers[ref] = {path: manager for path, _ in _leaves(_tree(obj))}
        self._tell("ADDED", obj)
        return obj

    def _replace(self, obj: Object, *, status: bool) -> Object:
        ref = ref_of(obj)
        if not obj["metadata"].get("resourceVersion"):
            raise ValueError(f"{ref.kind} {ref.name}: metadata.resourceVersion is missing")
        live = self._live(ref)
        _require_version(ref, live, obj["metadata"]["resourceVersion"])
        if obj["metadata"].get("uid") not in (None, live["metadata"]["uid"]):
            raise Conflict(f"{ref.kind} {ref.name}: another uid", status=409)
        if status:
            wanted = copy.deepcopy(live) | {"status": copy.deepcopy(obj.get("status", {}))}
        else:
            wanted = copy.deepcopy(obj)
        return self._update(ref, wanted, manager=OURS, status=status)

    def _update(self, ref: Ref, wanted: Object, *, manager: str, status: bool = False) -> Object:
        live = self._objects[ref]
        _validate(wanted)
        _default(wanted)
        for field in SERVER_FIELDS:
            wanted["metadata"].pop(field, None)
            if field in live["metadata"]:
                wanted["metadata"][field] = live["metadata"][field]
        if ref.kind in WITH_STATUS and not status:
            wanted.pop("status", None)
            if "status" in live:
                wanted["status"] = copy.deepcopy(live["status"])
        if wanted == live:
            return live
        if ref.kind in GENERATED and _content(wanted) != _content(live):
            wanted["metadata"]["generation"] += 1
        wanted["metadata"]["resourceVersion"] = self._next_version()
        before = dict(_leaves(_tree(live)))
        owners = self._managers[ref]
        self._managers[ref] = {
            path: owners.get(path, manager) if before.get(path) == value else manager
            for path, value in _leaves(_tree(wanted))
        }
        self._objects[ref] = wanted
        if wanted["metadata"].get("deletionTimestamp") and not wanted["metadata"].get("finalizers"):
            self._drop(ref, "Background")
        else:
            self._tell("MODIFIED", wanted)
        return wanted

    def _apply(self, obj: Object, force: bool, dry_run: bool) -> Object:
        ref = ref_of(obj)
        for field in SERVER_FIELDS:
            obj["metadata"].pop(field, None)
        applied = _tree(obj)
        live = self._objects.get(ref)
        fields = {path for path, _ in _leaves(applied)}
        if live is None:
            made = self._dry(obj) if dry_run else self._store_new(obj, manager=OURS)
        else:
            if not force:
                self._refuse_foreign(ref, _tree(live), applied)
            merged = _tree(live)
            for path in self._applied.get(ref, set()) - fields:
                if self._managers[ref].get(path) == OURS:
                    _cut(merged, path)
            _merge(merged, applied)
            wanted = _untree(merged)
            made = self._dry(wanted) if dry_run else self._update(ref, wanted, manager=OURS)
        if not dry_run and ref in self._objects:
            self._applied[ref] = fields
            self._managers[ref].update((path, OURS) for path in fields)
        return made

    @staticmethod
    def _dry(obj: Object) -> Object:
        _validate(obj)
        _default(obj)
        return obj

    def _refuse_foreign(self, ref: Ref, live: Any, applied: Any) -> None:
        present = dict(_leaves(live))
        foreign = [
            path
            for path, value in _leaves(applied)
            if path in present
            and present[path] != value
            and self._managers[ref].get(path) not in (None, OURS)
        ]
        if foreign:
            message = f'conflict with "{OTHER}": .{".".join(foreign[0])}'
            causes = ({"reason": "FieldManagerConflict", "message": message},)
            raise Conflict(message, status=409, reason="Conflict", causes=causes)

    def _delete(self, ref: Ref, propagation: Propagation) -> None:
        live = self._live(ref)
        if live["metadata"].get("finalizers"):
            if not live["metadata"].get("deletionTimestamp"):
                marked = copy.deepcopy(live)
                marked["metadata"]["deletionTimestamp"] = _second(self._now())
                marked["metadata"]["resourceVersion"] = self._next_version()
                self._objects[ref] = marked
                self._tell("MODIFIED", marked)
            return
        self._drop(ref, propagation)

    def _drop(self, ref: Ref, propagation: Propagation) -> None:
        gone = self._objects.pop(ref)
        self._managers.pop(ref, None)
        self._applied.pop(ref, None)
        gone["metadata"]["resourceVersion"] = self._next_version()
        self._tell("DELETED", gone)
        for child_ref, child in list(self._objects.items()):
            owners = child["metadata"].get("ownerReferences") or []
            left = [owner for owner in owners if owner["uid"] != gone["metadata"]["uid"]]
            if len(left) == len(owners) or child_ref not in self._objects:
                continue
            if propagation == "Orphan" or left:
                orphan = copy.deepcopy(child)
                orphan["metadata"]["ownerReferences"] = left
                self._update(child_ref, orphan, manager=OTHER)
            else:
                self._delete(child_ref, propagation)

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def _tell(self, type: str, obj: Object) -> None:
        for subscriber in self._subscribers:
            subscriber(type, copy.deepcopy(obj))


def _stub(kind: Kind, namespace: str | None, name: str) -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def _second(now: float) -> str:
    return micro_time(now)[:19] + "Z"


def _require_version(ref: Ref, live: Object, version: str) -> None:
    if live["metadata"]["resourceVersion"] != version:
        message = f"{ref.kind} {ref.name}: the object has been modified"
        raise Conflict(message, status=409, reason="Conflict")


def _require_seen(obj: Object, live: Object | None, version: str | None, uid: str | None) -> None:
    """As the API server does: of an object that is gone, a uid is missed and a resourceVersion is not."""
    metadata = obj["metadata"]
    version, uid = version or metadata.get("resourceVersion"), uid or metadata.get("uid")
    if live is not None and version:
        _require_version(ref_of(obj), live, version)
    if uid and (live is None or live["metadata"]["uid"] != uid):
        raise Conflict(f"{ref_of(obj).kind} {metadata['name']}: uid mismatch", status=409, reason="Conflict")


def _content(obj: Object) -> Object:
    return {field: value for field, value in obj.items() if field not in ("metadata", "status")}


def _selected(obj: Object, selector: str | None) -> bool:
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, (selector or "").split(",")):
        key, sign, value = re.fullmatch(r"([^=!]+)(==|=|!=)?(.*)", term).groups()  # type: ignore[union-attr]
        if sign is None and key not in labels:
            return False
        if sign in ("=", "==") and labels.get(key) != value:
            return False
        if sign == "!=" and labels.get(key) == value:
            return False
    return True


def _validate(obj: Object) -> None:
    """The few refusals that the contract tests name."""
    name = obj["metadata"]["name"]
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise Invalid(f"metadata.name: Invalid value: {name!r}", status=422, reason="Invalid")
    if obj["kind"] != DEPLOYMENT.kind:
        return
    template = (obj.get("spec") or {}).get("template") or {}
    containers = (template.get("spec") or {}).get("containers")
    if containers is not None and not isinstance(containers, list):
        raise Invalid("failed to create typed patch object: expected list", status=500)
    if not containers:
        raise Invalid("spec.template.spec.containers: Required value", status=422, reason="Invalid")
    selector = obj["spec"]["selector"]["matchLabels"]
    labels = template["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        raise Invalid(
            "spec.template.metadata.labels: `selector` does not match", status=422, reason="Invalid"
        )


def _default(obj: Object) -> None:
    """A few of the defaults of a real API server: enough to trip whoever compares without thinking of them."""
    spec = obj.get("spec") or {}
    if obj["kind"] == DEPLOYMENT.kind:
        spec.setdefault("replicas", 1)
        spec.setdefault("progressDeadlineSeconds", 600)
        spec.setdefault("revisionHistoryLimit", 10)
        spec["template"]["spec"].setdefault("restartPolicy", "Always")
        for container in spec["template"]["spec"]["containers"]:
            container.setdefault("imagePullPolicy", "IfNotPresent")
            for port in container.get("ports") or ():
                port.setdefault("protocol", "TCP")
    if obj["kind"] == SERVICE.kind:
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("clusterIP", "10.96.0.1")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
    if obj["kind"] == HTTP_ROUTE.kind:
        for parent in spec.get("parentRefs") or ():
            parent.setdefault("group", "gateway.networking.k8s.io")
            parent.setdefault("kind", "Gateway")
        for backend in (b for rule in spec.get("rules") or () for b in rule.get("backendRefs") or ()):
            backend.setdefault("group", "")
            backend.setdefault("kind", "Service")
            backend.setdefault("weight", 1)


# Server-side apply: objects become trees in which a list with keys is a mapping, so that merging needs no list.

LIST_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
}
PORT_KEYS = {"Deployment": ("containerPort", "protocol"), "Service": ("port", "protocol")}


class _Keyed(dict[str, Any]):
    """A list whose items have keys."""


def _tree(obj: Object) -> Any:
    whole = _branch(obj, str(obj.get("kind")))
    metadata = {field: value for field, value in whole["metadata"].items() if field not in SERVER_FIELDS}
    return whole | {"metadata": metadata}


def _branch(value: Any, kind: str, field: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _branch(item, kind, name) for name, item in value.items()}
    keys = PORT_KEYS.get(kind) if field == "ports" else LIST_KEYS.get(field)
    by_key = isinstance(value, list) and keys and (field == "ownerReferences" or kind in PORT_KEYS)
    if by_key and all(isinstance(item, dict) for item in value):
        return _Keyed(("/".join(str(i.get(k, "TCP")) for k in keys or ()), _branch(i, kind)) for i in value)
    return copy.deepcopy(value)


def _untree(value: Any) -> Any:
    if isinstance(value, _Keyed):
        return [_untree(item) for item in value.values()]
    if isinstance(value, dict):
        return {name: _untree(item) for name, item in value.items()}
    return value


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(tree, dict) and tree:
        for name, item in tree.items():
            yield from _leaves(item, (*path, name))
    else:
        yield path, tree


def _merge(into: Any, tree: Any) -> None:
    for name, item in tree.items():
        if isinstance(item, dict) and isinstance(into.get(name), dict) and item:
            _merge(into[name], item)
        else:
            into[name] = copy.deepcopy(item)


def _cut(tree: Any, path: Path) -> None:
    """Remove a leaf, and the branches that it leaves empty."""
    if not isinstance(tree, dict) or path[0] not in tree:
        return
    if len(path) > 1:
        _cut(tree[path[0]], path[1:])
        if tree[path[0]] not in ({}, []):
            return
    del tree[path[0]]


def apply_operation(obj: Any, operation: dict[str, Any]) -> None:
    """One operation of RFC 6902: test, add, replace or remove."""
    steps = [s.replace("~1", "/").replace("~0", "~") for s in operation["path"].split("/")[1:]]
    failed = Conflict(f"testing value {operation['path']} failed", status=422)
    try:
        for step in steps[:-1]:
            obj = obj[int(step)] if isinstance(obj, list) else obj[step]
        last: Any = steps[-1]
        if isinstance(obj, list):
            last = len(obj) if last == "-" else int(last)
        if operation["op"] == "add":
            if isinstance(obj, list):
                obj.insert(last, operation["value"])
            else:
                obj[last] = operation["value"]
            return
        present = obj[last]
    except (KeyError, IndexError, TypeError) as error:
        raise failed from error
    if operation["op"] == "test":
        if present != operation["value"]:
            raise failed
    elif operation["op"] == "replace":
        obj[last] = operation["value"]
    elif operation["op"] == "remove":
        del obj[last]
    else:
        raise ValueError(f"{operation['op']}: not known here")
