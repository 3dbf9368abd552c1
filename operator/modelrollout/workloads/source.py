"""Where a spec's pods come from, when they are not written in the spec itself.

A template that a user's Deployment holds, and the data of ConfigMaps and Secrets, are filled in before anything is decided,
so that everything after this sees one kind of spec: one with a whole template, whose hash is the revision.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import GROUP, Spec
from modelrollout.api.status import Status
from modelrollout.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    INFERENCE_POOL,
    POD,
    SECRET,
    SERVICE,
    SERVICE_NAME_LABEL,
    Kind,
    Object,
)
from modelrollout.cluster.references import DATA_HASH, Interest
from modelrollout.workloads.backends import Backend, picker_of, pool_selector
from modelrollout.workloads.children import Children, Problem
from modelrollout.workloads.gates import JOB_NAME_LABEL, job_outcome
from modelrollout.workloads.own_services import own_backends
from modelrollout.workloads.revisions import objects

CONFIG_ANNOTATION = f"{GROUP}/config-hash"
_HASH_LENGTH = 10

Lookup: TypeAlias = Callable[[Kind, str], Object | None]
"""An object of the rollout's namespace, as the store has it."""


def interests(
    rollout: Object, specs: Iterable[Spec], status: Status, children: Children, find: Lookup, *, track: bool
) -> set[Interest]:
    """What a rollout needs to see besides its children. Ask again once it is in the store: a Deployment's template names
    ConfigMaps, and a Service selects pods. `track`: whether the operator may read ConfigMaps and Secrets."""
    namespace = str(rollout["metadata"]["namespace"])
    wanted = {
        # Why it does not start is told by its pods only, which carry no label of ours.
        Interest(POD, namespace, selector=f"{JOB_NAME_LABEL}={name}")
        for name, job in children.jobs.items()
        if job_outcome(job) is None
    }
    for spec in specs:
        workload = spec.workload
        if workload.deployment_ref is not None:
            wanted.add(Interest(DEPLOYMENT, namespace, name=workload.deployment_ref.name))
        if workload.track_config and track:
            template = _template(spec, find)
            wanted |= {Interest(kind, namespace, name=name) for kind, name in config_names(template or {})}
        wanted |= backing(rollout, spec, status, children, find)
    return wanted


def backing(rollout: Object, spec: Spec, status: Status, children: Children, find: Lookup) -> set[Interest]:
    """Those of `interests` without which nobody knows which pods are ready behind the user's Services and pools."""
    if spec.workload.services is None:
        return set()
    namespace = str(rollout["metadata"]["namespace"])
    backends = own_backends(rollout, spec, status, children)
    return {one for backend in backends for one in _behind(namespace, backend, find)}


def _behind(namespace: str, backend: Backend, find: Lookup) -> Iterator[Interest]:
    name = backend.name
    yield Interest(backend.of_kind, namespace, name=name)
    if backend.pooled:
        pool = find(INFERENCE_POOL, name)
        if pool is not None:
            yield from pool_members(namespace, pool)
        if pool is not None and (picker := picker_of(pool)):
            yield _endpoints(namespace, picker)
        return
    yield _endpoints(namespace, name)
    obj = find(SERVICE, name)
    selector = (obj["spec"].get("selector") if obj else None) or {}
    if selector:
        text = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        yield Interest(POD, namespace, selector=text)


def _endpoints(namespace: str, service: str) -> Interest:
    return Interest(ENDPOINT_SLICE, namespace, selector=f"{SERVICE_NAME_LABEL}={service}")


def pool_members(namespace: str, pool: Mapping[str, Any]) -> Iterator[Interest]:
    """The pods that a pool selects; of one without a selector there are none."""
    if selector := pool_selector(pool):
        yield Interest(POD, namespace, selector=selector)


def filled_in(spec: Spec, find: Lookup, *, track: bool) -> tuple[Spec, Problem | None]:
    """The spec with the pod template that it refers to, and with the hash of tracked configuration in it."""
    template = _template(spec, find)
    ref = spec.workload.deployment_ref
    if ref is not None and template is None:
        return spec, Problem(
            Reason.REFERENCE_NOT_FOUND,
            f"spec.workload.deploymentRef names Deployment {ref.name}, which does not exist in this namespace: create it, or "
            "name another one",
        )
    if spec.workload.track_config:
        if not track:
            return spec, Problem(
                Reason.NOT_SUPPORTED,
                "spec.workload.trackConfig needs the right to read ConfigMaps and Secrets, which this operator was not given: "
                "install it with the chart's value trackConfig: true, or remove the field",
            )
        absent = [
            f"{kind.kind} {name}"
            for kind, name in _sorted(_needed(template or {}))
            if find(kind, name) is None
        ]
        if absent:
            # Its pods could not start. And one that is deleted to be made anew is no release.
            return spec, Problem(
                Reason.REFERENCE_NOT_FOUND,
                f"spec.workload.trackConfig: the pod template needs {absent[0]}, which does not exist in this namespace: create "
                "it, or mark the reference optional: true",
            )
        template = _with_hash(template or {}, find)
    elif ref is None:
        return spec, None
    workload = spec.workload.model_copy(update={"template": template})
    return spec.model_copy(update={"workload": workload}), None


def _template(spec: Spec, find: Lookup) -> Mapping[str, Any] | None:
    ref = spec.workload.deployment_ref
    if ref is None:
        return spec.workload.template
    obj = find(DEPLOYMENT, ref.name)
    return obj["spec"]["template"] if obj else None


def _with_hash(template: Mapping[str, Any], find: Lookup) -> Object:
    hashes = []
    for kind, name in _sorted(config_names(template)):
        obj = find(kind, name)
        hashes.append([kind.kind, name, obj[DATA_HASH] if obj else None])
    digest = hashlib.sha256(json.dumps(hashes).encode()).digest()
    hashed = copy.deepcopy(dict(template))
    metadata = hashed["metadata"] = dict(hashed.get("metadata") or {})
    text = base64.b32encode(digest).decode().lower()[:_HASH_LENGTH]
    metadata["annotations"] = (metadata.get("annotations") or {}) | {CONFIG_ANNOTATION: text}
    return hashed


def _sorted(names: Iterable[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    return sorted(names, key=lambda one: (one[0].kind, one[1]))


def config_names(template: Mapping[str, Any]) -> set[tuple[Kind, str]]:
    """ConfigMaps and Secrets that the pods of a template mount or take environment variables from."""
    return {(kind, name) for kind, name, _ in _config_references(template)}


def _needed(template: Mapping[str, Any]) -> set[tuple[Kind, str]]:
    """Those of `config_names` without which the pods do not start."""
    return {(kind, name) for kind, name, optional in _config_references(template) if not optional}


def _config_references(template: Mapping[str, Any]) -> Iterator[tuple[Kind, str, bool]]:
    """Kind, name, and whether the reference is optional."""
    pod = _object(template.get("spec"))
    for container in (*objects(pod.get("initContainers")), *objects(pod.get("containers"))):
        for source in objects(container.get("envFrom")):
            yield from _named(source, "configMapRef", "secretRef")
        for variable in objects(container.get("env")):
            yield from _named(_object(variable.get("valueFrom")), "configMapKeyRef", "secretKeyRef")
    for volume in objects(pod.get("volumes")):
        yield from _named(volume, "configMap", "secret")
        for source in objects(_object(volume.get("projected")).get("sources")):
            yield from _named(source, "configMap", "secret")


def _object(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _named(source: Object, config_map: str, secret: str) -> Iterator[tuple[Kind, str, bool]]:
    for kind, key in ((CONFIG_MAP, config_map), (SECRET, secret)):
        ref = _object(source.get(key))
        name = ref.get("name") or ref.get("secretName")
        if name:
            yield kind, str(name), bool(ref.get("optional"))
