"""An API server in miniature: defaults, `managedFields` and server-side apply as the real one does them.

`tests/cluster/test_children.py` shows the same behaviour on a real API server. Fields are kept flat, by their path in
`managedFields`, so that who owns what is a set operation.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from modelrollout.cluster.actions import Action, Apply, Create, Delete, JsonPatch
from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HTTP_ROUTE,
    INFERENCE_POOL,
    REVISION_LABEL,
    ROLLOUT_LABEL,
    ROUTES,
    SERVICE,
    Kind,
    kind_of,
)
from modelrollout.cluster.pods import Pod, strip
from modelrollout.workloads import Children
from modelrollout.workloads.children import bound_to
from tests.fakes.cluster import apply_operation

Object = dict[str, Any]
Path = tuple[str, ...]

_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
}
_WHOLE = {"selector", "nodeSelector", "data"}
_SYSTEM = {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "name", "namespace"}


class Server:
    """Objects by kind and name, in namespace ml. `run` carries actions out as `execute` would."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], Object] = {}
        self._owners: dict[tuple[str, str], dict[tuple[str, str], set[Path]]] = {}
        self._slices: dict[str, Object] = {}
        self._members: dict[str, frozenset[str]] = {}
        self._pods: dict[str, Pod] = {}
        self._version = 100

    def run(self, actions: Sequence[Action]) -> list[Action]:
        """Carry out; the same preconditions as a real server, as assertions."""
        for action in actions:
            match action:
                case Create():
                    assert self._key(action.obj) not in self._objects, "it exists"
                    self._apply(action.obj)
                case Apply():
                    live = self._objects[self._key(action.obj)]
                    assert live["metadata"]["resourceVersion"] == action.resource_version
                    self._apply(action.obj)
                case Delete():
                    live = self._objects[(action.kind.kind, action.name)]
                    assert (action.uid, action.resource_version) == (
                        live["metadata"]["uid"],
                        live["metadata"]["resourceVersion"],
                    )
                    del self._objects[(action.kind.kind, action.name)]
                    self._slices.pop(action.name, None)
                case JsonPatch():
                    self._patch(action)
                case _:
                    raise AssertionError(f"{action} is not served here")
        return list(actions)

    def put(self, obj: Object) -> None:
        """Something that another one made."""
        key = self._key(obj)
        self._objects[key] = copy.deepcopy(obj)
        self._owners[key] = {("kubectl", "Update"): set(_flat(obj))}
        self._objects[key]["metadata"] |= {"uid": f"uid-{key[1]}"} | obj["metadata"]
        self._finish(key, changed=True)

    def get(self, kind: Kind, name: str) -> Object:
        return self._objects[(kind.kind, name)]

    def edit(self, kind: Kind, name: str, changes: Any, manager: str = "kubectl-edit") -> None:
        """A merge patch of another writer: it owns what it changes, and nobody else does."""
        key = (kind.kind, name)
        before = _flat(copy.deepcopy(self._objects[key]))
        _merge(self._objects[key], changes)
        after = _flat(self._objects[key])
        moved = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        for paths in self._owners[key].values():
            paths -= moved
        self._owners[key].setdefault((manager, "Update"), set()).update(moved & after.keys())
        self._finish(key, changed=True)

    def _patch(self, action: JsonPatch) -> None:
        key = (action.kind.kind, action.name)
        changed = copy.deepcopy(self._objects[key])
        before = _flat(copy.deepcopy(changed))
        for operation in action.operations:
            apply_operation(changed, dict(operation))
        self._objects[key] = changed
        after = _flat(changed)
        moved = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        for paths in self._owners[key].values():
            paths -= moved
        left = {(entry["manager"], entry["operation"]) for entry in changed["metadata"]["managedFields"]}
        self._owners[key] = {who: paths for who, paths in self._owners[key].items() if who in left}
        if moved & after.keys():
            self._owners[key].setdefault(("modelrollout", "Update"), set()).update(moved & after.keys())
        self._finish(key, changed=True)

    def accept(
        self, name: str, *, kind: Kind = HTTP_ROUTE, generation: int | None = None, **statuses: str
    ) -> None:
        """A gateway's controller reports on every parent of a route."""
        live = self._objects[(kind.kind, name)]
        conditions = [
            {
                "type": kind,
                "status": statuses.get(kind, "True"),
                "reason": "Because",
                "message": "it is so",
                "observedGeneration": live["metadata"]["generation"] if generation is None else generation,
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        live["status"] = {
            "parents": [
                {
                    "parentRef": parent,
                    "controllerName": "example.com/gateway",
                    "conditions": copy.deepcopy(conditions),
                }
                for parent in live["spec"]["parentRefs"]
            ]
        }

    def pods(self, service: str, revision: str, ready: int, *, into: Iterable[str] = ()) -> None:
        """The ready pods of a revision, as endpoints of its Service (or as members of its pool) and of others."""
        names = [f"{revision}-{number}" for number in range(ready)]
        self._pods = {name: pod for name, pod in self._pods.items() if pod.revision != revision}
        self._pods |= {
            name: strip(pod_object(name, revision, ready_at="2026-11-20T08:00:00Z")) for name in names
        }
        if (INFERENCE_POOL.kind, service) in self._objects:
            self._members[service] = frozenset(names)
        else:
            self._slices[service] = slice_of(service, names)
        for other in into:
            kept = [e["targetRef"]["name"] for e in self._slices.get(other, {}).get("endpoints", ())]
            kept = [name for name in kept if not name.startswith(f"{revision}-")]
            self._slices[other] = slice_of(other, [*kept, *names])

    def endpoints(self, service: str, names: Sequence[str]) -> None:
        self._slices[service] = slice_of(service, names)

    def children(self) -> Children:
        def named(kind: Kind) -> dict[str, Object]:
            return {name: obj for (k, name), obj in self._objects.items() if k == kind.kind}

        records = named(CONTROLLER_REVISION)
        own = {obj["metadata"]["labels"][REVISION_LABEL]: bound_to(obj) for obj in records.values()}
        return Children(
            controller_revisions=records,
            bound={revision: backend for revision, backend in own.items() if backend},
            pools=named(INFERENCE_POOL),
            members=dict(self._members),
            deployments=named(DEPLOYMENT),
            services=named(SERVICE),
            routes={
                name: obj
                for name, obj in named(HTTP_ROUTE).items()
                if ROLLOUT_LABEL in obj["metadata"].get("labels", {})
            },
            borrowed={
                (kind.kind, name): obj
                for kind in ROUTES
                for name, obj in named(kind).items()
                if ROLLOUT_LABEL not in obj["metadata"].get("labels", {})
            },
            endpointslices=dict(self._slices),
            pods=dict(self._pods),
        )

    def snapshot(self) -> Object:
        return copy.deepcopy({f"{kind}/{name}": obj for (kind, name), obj in self._objects.items()})

    @staticmethod
    def _key(obj: Object) -> tuple[str, str]:
        return kind_of(obj).kind, obj["metadata"]["name"]

    def _apply(self, obj: Object) -> None:
        key = self._key(obj)
        if key not in self._objects:
            identity = {k: obj["metadata"][k] for k in ("name", "namespace")}
            metadata = identity | {"uid": f"uid-{key[1]}", "generation": 0}
            self._objects[key] = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata}
            self._owners[key] = {}
        live, owners = self._objects[key], self._owners[key]
        wanted, present = _flat(obj), _flat(live)
        mine = owners.get(("modelrollout", "Apply"), set())
        held = set().union(*(paths for who, paths in owners.items() if who != ("modelrollout", "Apply")))
        changed = {path for path, value in wanted.items() if present.get(path) != value}
        for who, paths in owners.items():
            if who != ("modelrollout", "Apply"):
                paths -= changed
        for path in sorted(mine - wanted.keys() - held):
            _cut(live, path)
        for path, value in wanted.items():
            _set(live, path, copy.deepcopy(value))
        owners[("modelrollout", "Apply")] = set(wanted)
        self._finish(key, changed=bool(changed) or mine != set(wanted))

    def _finish(self, key: tuple[str, str], *, changed: bool) -> None:
        live = self._objects[key]
        _default(live)
        metadata = live["metadata"]
        if changed:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
            metadata["generation"] = int(metadata.get("generation") or 0) + 1
        metadata["managedFields"] = [
            {"manager": who, "operation": how, "time": f"{self._version}", "fieldsV1": _nested(paths)}
            for (who, how), paths in self._owners[key].items()
            if paths
        ]


def pod_object(name: str, revision: str, *, ready_at: str | None = None, **status: Any) -> Object:
    """A pod as the kubelet reports it."""
    conditions = [{"type": "PodScheduled", "status": "True"}]
    if ready_at:
        conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": ready_at})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ml",
            "uid": f"uid-{name}",
            "labels": {"modelrollout.dev/rollout": "fraud", "modelrollout.dev/revision": revision},
        },
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


def slice_of(
    service: str,
    pods: Sequence[str],
    *,
    name: str | None = None,
    address: str = "10.244.0.",
    **conditions: Any,
) -> Object:
    """An EndpointSlice as the controller makes it."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{service}-x7x2p",
            "namespace": "ml",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [
            {
                "addresses": [f"{address}{number + 1}"],
                "conditions": {"ready": True, "serving": True, "terminating": False} | conditions,
                "targetRef": {"kind": "Pod", "namespace": "ml", "name": pod, "uid": f"uid-{pod}"},
                "nodeName": "node-1",
            }
            for number, pod in enumerate(pods)
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def _flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Leaves by path, without what identifies the object."""
    if not path:
        kept = {k: v for k, v in value.items() if k not in ("apiVersion", "kind", "status")}
        metadata = {k: v for k, v in kept["metadata"].items() if k not in _SYSTEM}
        value = kept | {"metadata": metadata}
    name = path[-1][2:] if path else ""
    if isinstance(value, dict) and value and name not in _WHOLE:
        return {
            p: leaf for key, item in value.items() for p, leaf in _flat(item, (*path, f"f:{key}")).items()
        }
    keys = _keys_of(name, value) if isinstance(value, list) and value else ()
    if keys:
        found: dict[Path, Any] = {}
        for item in value:
            key = {k: item.get(k, "TCP" if k == "protocol" else None) for k in keys}
            found |= _flat(item, (*path, f"k:{json.dumps(key, separators=(',', ':'))}"))
        return found
    return {path: value}


def _keys_of(name: str, items: list[Any]) -> tuple[str, ...]:
    if name == "ports":
        return ("containerPort", "protocol") if "containerPort" in items[0] else ("port", "protocol")
    return _KEYS.get(name, ())


def _nested(paths: Iterable[Path]) -> Object:
    root: Object = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {".": {}} if element.startswith("k:") else {})
    return root


def _step(node: Any, element: str) -> Any:
    """The value below, made if it is missing."""
    rest = element[2:]
    if element.startswith("f:"):
        return node.setdefault(rest, None)
    key = json.loads(rest)
    found = next((i for i in node if all(i.get(k, "TCP") == v for k, v in key.items())), None)
    if found is None:
        found = dict(key)
        node.append(found)
    return found


def _set(obj: Object, path: Path, value: Any) -> None:
    node: Any = obj
    for element, below in itertools.pairwise(path):
        empty: Any = [] if below.startswith("k:") else {}
        if element.startswith("f:") and node.get(element[2:]) is None:
            node[element[2:]] = empty
        node = _step(node, element)
    node[path[-1][2:]] = value


def _cut(obj: Object, path: Path) -> None:
    """Remove a leaf, and the list item or map that it leaves without content."""
    nodes: list[Any] = [obj]
    for element in path[:-1]:
        nodes.append(_step(nodes[-1], element))
    nodes[-1].pop(path[-1][2:], None)
    for index in range(len(path) - 2, -1, -1):
        element, node = path[index], nodes[index]
        if element.startswith("k:") and nodes[index + 1].keys() <= json.loads(element[2:]).keys():
            node.remove(nodes[index + 1])


def _merge(into: Any, changes: Any) -> None:
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _default(obj: Object) -> None:
    """What the real API server adds, as far as it matters here."""
    match obj["kind"]:
        case "Service":
            _fill(
                obj["spec"],
                type="ClusterIP",
                sessionAffinity="None",
                clusterIP="10.96.0.10",
                clusterIPs=["10.96.0.10"],
                ipFamilies=["IPv4"],
                ipFamilyPolicy="SingleStack",
                internalTrafficPolicy="Cluster",
            )
            for port in obj["spec"].get("ports", ()):
                _fill(port, protocol="TCP", targetPort=port["port"])
            obj.setdefault("status", {"loadBalancer": {}})
        case "Deployment":
            _default_deployment(obj)
        case "HTTPRoute" | "GRPCRoute":
            for parent in obj["spec"]["parentRefs"]:
                _fill(parent, group="gateway.networking.k8s.io", kind="Gateway")
            for rule in obj["spec"]["rules"]:
                if obj["kind"] == "HTTPRoute":
                    _fill(rule, matches=[{"path": {"type": "PathPrefix", "value": "/"}}])
                for ref in rule.get("backendRefs", ()):
                    _fill(ref, group="", kind="Service", weight=1)


def _default_deployment(obj: Object) -> None:
    obj["metadata"].setdefault("annotations", {})["deployment.kubernetes.io/revision"] = "1"
    _fill(obj["spec"], revisionHistoryLimit=10, progressDeadlineSeconds=600, replicas=1)
    _fill(obj["spec"]["strategy"]["rollingUpdate"], maxSurge="25%")
    template = obj["spec"]["template"]
    template["metadata"].setdefault("creationTimestamp", None)
    _fill(
        template["spec"],
        restartPolicy="Always",
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
        terminationGracePeriodSeconds=30,
        securityContext={},
    )
    for container in template["spec"]["containers"]:
        _fill(
            container,
            imagePullPolicy="IfNotPresent",
            terminationMessagePath="/dev/termination-log",
            terminationMessagePolicy="File",
            resources={},
        )
        for port in container.get("ports", ()):
            _fill(port, protocol="TCP")
    obj.setdefault("status", {"observedGeneration": 1, "replicas": 0})


def _fill(into: Object, **defaults: Any) -> None:
    for key, value in defaults.items():
        into.setdefault(key, value)
