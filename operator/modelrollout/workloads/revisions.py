"""A revision as objects: its record, its Deployment and its Service; and the Service that callers use.

The record is a ControllerRevision with the rendered template and ports. Everything is made from the record, so a newer
operator that renders differently does not restart pods, and what is promoted is exactly what was analysed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import GROUP, ModelSource, Spec
from modelrollout.api.status import Phase, Status
from modelrollout.cluster.kinds import CONTROLLER_REVISION, DEPLOYMENT, SERVICE, Object
from modelrollout.workloads.backends import Backend
from modelrollout.workloads.children import Problem, bound_to, child_name, labels_for, name_in, owned

DATA_VERSION = 1
RESTARTED_ANNOTATION = f"{GROUP}/restarted-at"
_DEPLOYMENT_DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Record:
    """What a ControllerRevision remembers of a revision."""

    template: Mapping[str, Any]  # the pod template, rendered
    ports: Sequence[Mapping[str, Any]]  # of its Service
    backend: Backend | None = None  # the user's, of a revision that has no template

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Record:
        """Read the data of a ControllerRevision that `controller_revision` made."""
        data = obj["data"]
        return cls(template=data.get("template") or {}, ports=data["ports"], backend=bound_to(obj))

    @classmethod
    def render(
        cls, rollout: Mapping[str, Any], spec: Spec, revision: str, *, backend: Backend | None = None
    ) -> Record:
        """The record of the revision that a spec names; `backend` is the user's in front of it, if there is one."""
        return cls(
            backend=backend,
            template={} if backend else render_template(rollout, spec, revision),
            ports=[
                {"name": port.name, "port": port.port, "targetPort": port.target, "protocol": "TCP"}
                for port in spec.service.ports
            ],
        )

    @classmethod
    def running(cls, deployment: Mapping[str, Any], service: Mapping[str, Any]) -> Record:
        """What runs, when the ControllerRevision is gone: enough to go on with the same pods."""
        keys = ("name", "port", "targetPort", "protocol")
        return cls(
            template=without_nulls(copy.deepcopy(deployment["spec"]["template"])),
            ports=[{key: port[key] for key in keys if key in port} for port in service["spec"]["ports"]],
        )

    def port(self, name: str | None) -> int:
        """Number of the service port with a name; of the first one if there is none of that name."""
        named = (port for port in self.ports if port.get("name") == name)
        return int(next(named, self.ports[0])["port"])

    def listening(self, target: int | str) -> int | None:
        """Number of the containers' port that a Service's targetPort reaches; None if none has the name. The API server may
        not have seen the template yet."""
        if isinstance(target, int):
            return target
        pod = self.template.get("spec") or {}
        containers = [*objects(pod.get("containers")), *objects(pod.get("initContainers"))]
        ports = (port for container in containers for port in objects(container.get("ports")))
        return next((port.get("containerPort") for port in ports if port.get("name") == target), None)


def render_template(rollout: Mapping[str, Any], spec: Spec, revision: str) -> Object:
    """The pod template of a spec with our labels, and with the model as environment variables of each container.

    They come first, so that other variables can refer to them as `$(MODEL_URI)`; those that the template sets itself
    are left alone.
    """
    template: Object = without_nulls(copy.deepcopy(spec.workload.template))
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = (metadata.get("labels") or {}) | labels_for(rollout, revision)
    set_variables(template.setdefault("spec", {}), model_variables(spec.model))
    return template


def closed_port(record: Record, *, source: str | None) -> Problem | None:
    """A target by a name that no container has: the pods become ready, and no request reaches them, so no metric tells.

    `source` is the Deployment whose template it is, if it is one's.
    """
    for port in record.ports:
        if record.listening(port["targetPort"]) is None:
            whose = f"Deployment {source}'s template" if source else "workload.template"
            return Problem(
                Reason.INVALID_SPEC,
                f"spec.service.ports: port {port['name']} goes to {port['targetPort']!r}, and no container of {whose} has a port of "
                "that name: give one that name, or write its number as targetPort",
            )
    return None


def model_variables(model: ModelSource) -> dict[str, str | None]:
    """What containers are told of the model."""
    return {"MODEL_NAME": model.name, "MODEL_VERSION": model.version, "MODEL_URI": model.uri}


def set_variables(pod: Object, ours: Mapping[str, str | None]) -> None:
    """Add environment variables to each container of a pod's spec; those without a value are left out."""
    for containers in ("initContainers", "containers"):
        for container in pod.get(containers) or []:
            if isinstance(container, dict) and (variables := _variables(ours, container)):
                container["env"] = variables


def _variables(ours: Mapping[str, str | None], container: Mapping[str, Any]) -> list[Any]:
    present = container.get("env") or []
    names = [variable.get("name") for variable in objects(present)]
    return [
        *({"name": name, "value": value} for name, value in ours.items() if value and name not in names),
        *present,
    ]


def objects(value: Any) -> list[Object]:
    """The objects in a list of a template, whatever stands there: the API server says what does not belong there."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def without_nulls(value: Any) -> Any:
    """Go clients write `creationTimestamp: null`; a null means the same as nothing, except to server-side apply."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def controller_revision(
    rollout: Mapping[str, Any], spec: Spec, revision: str, *, record: Record, attempt: int
) -> Object:
    """The record of a revision. Its data never change; `revision` orders the history by attempt.

    Of what served before a ModelRollout was made of it, the model is not known.
    """
    what: Object = {"template": record.template}
    if record.backend is not None:
        what = {"service": record.backend.name} | (
            {"kind": record.backend.kind} if record.backend.pooled else {}
        )
    known = record.backend is None or hash_revision(spec) == revision
    return {
        "apiVersion": CONTROLLER_REVISION.api_version,
        "kind": CONTROLLER_REVISION.kind,
        "metadata": owned(rollout, child_name(rollout, revision), revision),
        "data": {
            "version": DATA_VERSION,
            "model": spec.model.to_wire() if known else {},
            **what,
            "ports": list(record.ports),
        },
        "revision": attempt,
    }


def deployment(
    rollout: Mapping[str, Any],
    spec: Spec,
    revision: str,
    *,
    record: Record,
    replicas: int,
    restarted_at: str | None = None,
) -> Object:
    """The Deployment of a revision. Another `restarted_at` makes all its pods anew; it is no part of the revision.

    Its own deadline only sets a condition that nobody acts on; it is not shorter than ours. Pods that are made anew are
    never missing: maxUnavailable 0, which no disruption budget can ask more of. An elastic workload has room for one more.
    """
    ready_seconds = spec.workload.min_ready_seconds
    deadline = max(_DEPLOYMENT_DEADLINE, spec.progress_deadline, ready_seconds + 60.0)
    surge = 1 if spec.workload.elastic else "25%"
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": owned(rollout, child_name(rollout, revision), revision),
        "spec": {
            "replicas": replicas,
            "minReadySeconds": ready_seconds,
            "progressDeadlineSeconds": math.ceil(deadline),
            "selector": {"matchLabels": labels_for(rollout, revision)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": surge}},
            "template": _restarted(record.template, restarted_at),
        },
    }


def _restarted(template: Mapping[str, Any], at: str | None) -> Mapping[str, Any]:
    if at is None:
        return template
    metadata = template.get("metadata") or {}
    annotations = (metadata.get("annotations") or {}) | {RESTARTED_ANNOTATION: at}
    return {**template, "metadata": {**metadata, "annotations": annotations}}


def restarted_at(live: Mapping[str, Any] | None) -> str | None:
    """When somebody asked last for all pods of a Deployment anew, as it stands there."""
    template = live["spec"]["template"] if live else {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    return annotations.get(RESTARTED_ANNOTATION)


def service(rollout: Mapping[str, Any], revision: str, *, record: Record) -> Object:
    """The Service of a revision: it selects its pods only, and is never pointed elsewhere."""
    return _service(
        owned(rollout, child_name(rollout, revision), revision), labels_for(rollout, revision), record
    )


def root_service(rollout: Mapping[str, Any], name: str, pin: str | None, *, record: Record) -> Object:
    """The Service that callers use: pinned to one revision, or selecting the pods of all (`pin` None)."""
    return _service(owned(rollout, name), labels_for(rollout, pin), record)


def preview_name(rollout: Mapping[str, Any]) -> str:
    """Name of the Service that reaches the candidate before the switch."""
    return f"{name_in(rollout)}-preview"


def _service(metadata: Object, selector: Mapping[str, str], record: Record) -> Object:
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": metadata,
        "spec": {"selector": dict(selector), "ports": [dict(port) for port in record.ports]},
    }


def followed(status: Status) -> str | None:
    """The revision that the Service for callers follows: the stable one. While a first deployment replaces another one
    there is none, and whoever is ready answers (S1)."""
    main = status.stable or status.candidate
    assert main is not None
    return None if status.phase == Phase.PENDING and status.retiring else main.revision


def pin_of(spec: Spec, status: Status) -> str | None:
    """The revision that the Service for callers is pinned to; None where the ratio of pods makes the split.

    With a router it is the one that is `followed`, unless none of its pods is ready: then the one that has all of the
    traffic (S1). By pod ratio its pods *are* the weight: it is pinned as long as one revision has all of it, and drops the
    pin while two have some.
    """
    main, weights = followed(status), weights_by_revision(status)
    split = spec.traffic.router == "podRatio"
    if main is None or (split and len(weights) > 1):
        return None
    away = status.stable is not None and status.stable.ready == 0
    return next(iter(weights), main) if len(weights) == 1 and (split or away) else main


def weights_by_revision(status: Status) -> dict[str, int]:
    """The committed weights above 0, by revision."""
    weights: dict[str, int] = {}
    for role, weight in (
        (status.stable, status.weights.stable),
        (status.candidate, status.weights.candidate),
        (status.previous, status.weights.previous),
    ):
        if role is not None and weight > 0:
            weights[role.revision] = weights.get(role.revision, 0) + weight
    return weights


def sizes_by_revision(status: Status, now: float) -> dict[str, int]:
    """Pods that each revision is to have, the stable one first; those that retired are left out once their time is
    over."""
    sizes: dict[str, int] = {}
    for role in (status.stable, status.candidate, status.previous):
        if role is not None:
            sizes[role.revision] = max(sizes.get(role.revision, 0), role.desired)
    for gone in status.retiring:
        if gone.until > now:
            sizes.setdefault(gone.revision, gone.desired)
    return sizes


def dry_run_object(rollout: Mapping[str, Any], spec: Spec, revision: str) -> Object:
    """The Deployment to be applied with `dryRun=All` before a revision exists: the schema of the pod template is the
    API server's to judge."""
    return deployment(
        rollout,
        spec,
        revision,
        record=Record.render(rollout, spec, revision),
        replicas=spec.workload.replicas,
    )
