"""Weights without a router: the ratio of ready pods behind one Service makes the split.

Nothing is written here. The committed sizes are the weights, and the Service for callers drops its pin to one revision
while two have weight; both are written with the workloads. kube-proxy splits connections, not requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.conditions import Reason
from ..api.spec import Spec
from ..api.status import Status
from ..cluster.actions import Action
from ..cluster.kinds import REVISION_LABEL, ROLLOUT_LABEL, Kind, Object
from ..workloads import Children, Problem, foreign_manager, name_taken, record_of
from ..workloads.children import child_name, deleting, name_in
from ..workloads.observation import answering, ready_pods
from ..workloads.revisions import pin_of, root_service, weights_by_revision
from .base import RouteReading, Split

_NO_MIRROR = (
    f"{Reason.NOT_SUPPORTED}: copies of requests need a router; traffic.podRatio has none: choose another member of "
    "spec.traffic"
)


class PodRatioRouter:
    """spec.traffic.podRatio."""

    name = "podRatio"
    can_mirror = False
    can_match = False
    can_stick = False

    def reference(self, spec: Spec) -> tuple[Kind, str] | None:
        """None: there is no route."""
        return None

    def problems(self, rollout: Mapping[str, Any], spec: Spec, children: Children) -> list[Problem]:
        """None: there is no route."""
        return []

    def validate(self, spec: Spec) -> list[Problem]:
        """Every step is possible, if only as nearly as whole pods allow."""
        return []

    def probe(self, rollout: Mapping[str, Any], spec: Spec) -> Object | None:
        """None: nothing is asked for that may not be served."""
        return None

    def split(self, weight: int, capacity: int) -> Split:
        """k = max(1, floor(n·w/100)) candidate and max(1, n − k) baseline pods; all or nothing at 0 and 100."""
        if weight <= 0:
            return Split(0.0, 0, capacity)
        if weight >= 100:
            return Split(100.0, capacity, 0)
        candidate = max(1, capacity * weight // 100)
        baseline = max(1, capacity - candidate)
        return Split(100.0 * candidate / (candidate + baseline), candidate, baseline)

    def actions(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
    ) -> list[Action]:
        """Nothing: sizes and the Service for callers are written with the workloads."""
        return []

    def observe(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> RouteReading:
        """Who answers behind the Service, by its EndpointSlices.

        Accepted once those are exactly the ready pods of the revisions that have weight. The weights are then the
        committed ones, else what the pods come to.
        """
        name = spec.service_name(name_in(rollout))
        live = children.services.get(name)
        taken = name_taken(rollout, live)
        if live is None or taken or (status.stable or status.candidate) is None:
            return RouteReading(problem=f"{taken.reason}: {taken.message}" if taken else None)
        answers = answering(children, name)
        wanted = weights_by_revision(status)
        pin = pin_of(spec, status)
        selector = (live["spec"].get("selector") or {}) if not deleting(live) else {}
        expected = {ROLLOUT_LABEL: name_in(rollout)} | ({REVISION_LABEL: pin} if pin else {})
        settled = selector == expected and answers == _ready(rollout, children, wanted)
        return RouteReading(
            weights=wanted if settled else _percent(answers),
            accepted=settled and bool(answers) and not status.weights.mirror,
            identity=f"{live['metadata'].get('uid')}/{','.join(f'{r}={w}' for r, w in wanted.items())}",
            problem=_NO_MIRROR if status.weights.mirror else None,
            foreign_manager=_foreign_manager(rollout, spec, status, children, name),
        )

    def retire(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Nothing: the Service for callers stays, pinned."""
        return []

    def release(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Nothing: there is no route."""
        return []


def _ready(rollout: Mapping[str, Any], children: Children, revisions: Mapping[str, int]) -> dict[str, int]:
    counts = {r: len(ready_pods(children.slices_of(child_name(rollout, r)))) for r in revisions}
    return {revision: count for revision, count in counts.items() if count}


def _percent(counts: Mapping[str, int]) -> dict[str, int]:
    total = sum(counts.values())
    return {revision: 100 * count // total for revision, count in counts.items() if revision}


def _foreign_manager(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, name: str
) -> str | None:
    pin = pin_of(spec, status)
    main = pin or next(iter(weights_by_revision(status)), "")
    record = record_of(rollout, spec, children, main)
    if record is None:
        return None
    return foreign_manager(root_service(rollout, name, pin, record=record), children.services[name])
