"""What a spec needs to have for itself, and who else wants it.

Two ModelRollouts that steer one Service would undo each other's work for ever, and a Service or autoscaler of somebody
else that selects our pods sends traffic past the split, or scales one side of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..api.conditions import Reason
from ..api.spec import Spec
from ..cluster.kinds import CONTROLLER_REVISION, DEPLOYMENT, HTTP_ROUTE, ROUTES, SERVICE, Kind, Object
from .children import Ownership, Problem, child_name, labels_of, name_in, ownership
from .revisions import preview_name

_REVISION_NAME = re.compile(r"-[a-z2-7]{10}")


def needed_names(rollout: Mapping[str, Any], spec: Spec, revision: str) -> list[tuple[Kind, str]]:
    """Kind and name of every object that a revision is made of; `name_taken` judges what stands there."""
    child = child_name(rollout, revision)
    if spec.workload.services is not None:
        names = [(CONTROLLER_REVISION, child)]
    else:
        names = [
            (SERVICE, spec.service_name(name_in(rollout))),
            (CONTROLLER_REVISION, child),
            (DEPLOYMENT, child),
            (SERVICE, child),
        ]
    if spec.traffic.router == "gatewayAPI":
        names.append((HTTP_ROUTE, name_in(rollout)))
    if spec.strategy.blue_green is not None and spec.workload.services is None:
        names.append((SERVICE, preview_name(rollout)))
    return names


def conflicts(rollouts: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Problem]:
    """The ModelRollouts, by namespace and name, that want what an earlier one has (S10).

    Earlier is by creation time, then by uid. A loser keeps its other claims: it may still be steering those objects.
    """
    taken: dict[tuple[str, str, str], str] = {}
    found: dict[tuple[str, str], Problem] = {}
    for rollout in sorted(rollouts, key=_seniority):
        namespace, name = rollout["metadata"]["namespace"], name_in(rollout)
        for kind, wanted in _claims(rollout):
            holder = taken.setdefault((namespace, kind, wanted), name)
            if holder != name:
                found.setdefault(
                    (namespace, name),
                    Problem(
                        Reason.CONFLICT,
                        f"{kind} {wanted} is steered by the older ModelRollout {holder}: choose another one, or "
                        f"delete {holder}",
                    ),
                )
    return found


def _seniority(rollout: Mapping[str, Any]) -> tuple[str, str]:
    metadata = rollout["metadata"]
    return str(metadata.get("creationTimestamp") or ""), str(metadata.get("uid") or "")


def _claims(rollout: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Objects that a ModelRollout steers now or by its spec, read leniently: it may be an invalid one."""
    accepted = (rollout.get("status") or {}).get("accepted")
    claims: dict[tuple[str, str], None] = {}
    for spec in (accepted, rollout.get("spec")):
        if isinstance(spec, dict):
            if not _text(spec, "workload", "services", "stable", "name"):
                claims[("Service", _text(spec, "service", "name") or name_in(rollout))] = None
            for kind, path in _REFERENCES:
                if name := _text(spec, *path):
                    claims[(kind, name)] = None
            for role in ("stable", "candidate"):
                if name := _text(spec, "workload", "services", role, "name"):
                    claims[_text(spec, "workload", "services", role, "kind") or SERVICE.kind, name] = None
    return list(claims)


_ROUTES = frozenset(kind.kind for kind in ROUTES)
_REFERENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("HTTPRoute", ("traffic", "httpRoute", "name")),
    ("GRPCRoute", ("traffic", "grpcRoute", "name")),
    ("VirtualService", ("traffic", "istio", "virtualService", "name")),
    ("Deployment", ("workload", "deploymentRef", "name")),
)


def _text(value: Any, *path: str) -> str | None:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def referred(rollout: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Kind and name of the routes that a ModelRollout names, read leniently: it may be an invalid one."""
    return {claim for claim in _claims(rollout) if claim[0] in _ROUTES}


def selector_overlap(
    rollout: Mapping[str, Any],
    pod_labels: Mapping[str, str],
    *,
    services: Iterable[Object] = (),
    autoscalers: Iterable[Object] = (),
    workloads: Iterable[Object] = (),
    source: str | None = None,
) -> Problem | None:
    """A foreign Service or autoscaler that selects pods with these labels (those of the rendered template).

    An autoscaler selects what it scales: `workloads` are the namespace's Deployments that it may name. One that scales
    the ModelRollout itself is as it should be. `source` is the Deployment whose template it is, if it is one's.
    """
    for obj in services:
        selector = (obj.get("spec") or {}).get("selector")
        if ownership(rollout, obj) is Ownership.FOREIGN and selector and _selects(selector, pod_labels):
            return _overlap(f"Service {name_in(obj)}", selector, "requests go past the split", source)
    selectors = {
        name_in(obj): (obj["spec"].get("selector") or {}).get("matchLabels") or {}
        for obj in workloads
        if ownership(rollout, obj) is Ownership.FOREIGN
    }
    for obj in autoscalers:
        target = (obj.get("spec") or {}).get("scaleTargetRef") or {}
        if target.get("kind") != DEPLOYMENT.kind:
            continue
        selector = selectors.get(str(target.get("name")))
        if selector and _selects(selector, pod_labels):
            return _overlap(f"HorizontalPodAutoscaler {name_in(obj)}", selector, "it counts our pods", source)
        if selector is None and _is_ours(rollout, str(target.get("name"))):
            return Problem(
                Reason.SELECTOR_OVERLAP,
                f"HorizontalPodAutoscaler {name_in(obj)} scales Deployment {target['name']}, whose size is the "
                f"operator's: let it scale ModelRollout {name_in(rollout)}",
            )
    return None


def _is_ours(rollout: Mapping[str, Any], name: str) -> bool:
    prefix = name_in(rollout)
    return name.startswith(prefix) and _REVISION_NAME.fullmatch(name[len(prefix) :]) is not None


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _overlap(who: str, selector: Mapping[str, str], consequence: str, source: str | None) -> Problem:
    text = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    if source is None:
        whose, mend = "workload.template", "change the labels of the template, or that selector"
    else:
        whose = f"Deployment {source}'s template"
        mend = f"add the pod-template-hash of {source}'s present pods to that selector, so that it stays with them"
        if "Autoscaler" in who:
            mend = "delete it, and let one scale the ModelRollout"
    return Problem(
        Reason.SELECTOR_OVERLAP,
        f"{who} selects {text}, which the pods of {whose} have too, so {consequence}: {mend}",
    )


def template_labels(template: Mapping[str, Any]) -> Mapping[str, str]:
    """Labels of the pods of a template."""
    return labels_of({"metadata": template.get("metadata") or {}})
