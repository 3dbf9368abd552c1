"""Weights without a router: the ratio of ready pods behind one Service makes the split.

Nothing is written here. The committed sizes are the weights, and the Service for callers drops its pin to one revision
while two have weight; both are written with the workloads. kube-proxy splits connections, not requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelrollout.api.conditions import Reason
from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import Phase, Status
from modelrollout.cluster.actions import Action
from modelrollout.cluster.kinds import REVISION_LABEL, ROLLOUT_LABEL, Kind, Object
from modelrollout.traffic.base import RouteReading, Split
from modelrollout.workloads import Children, Problem, Record, foreign_manager, name_taken, record_of
from modelrollout.workloads.children import child_name, deleting, name_in
from modelrollout.workloads.observation import answering, ready_pods
from modelrollout.workloads.revisions import pin_of, root_service, weights_by_revision

_NO_MIRROR = (
    f"{Reason.NOT_SUPPORTED}: copies of requests need a router; traffic.podRatio has none: choose another member of "
    "spec.traffic"
)


_OTHER_PORT = (
    "service.ports: port {name} goes to {new} of the containers, and to {old} in {revision}, which serves: by pod ratio one "
    "Service sends requests to the pods of both, and for that one number or name must be right in both. Write the name of "
    "the container's port as targetPort once the pods that serve have a port of that name; after that its number may "
    "change. Or choose a router in spec.traffic"
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
        """Each port must be reached in the pods of what serves and of what is to come by one number or name: behind one
        Service there is no other. Before anything has served there is nothing to be shared."""
        status = rollout.get("status") or {}
        stable = (status.get("stable") or {}).get("revision")
        undone = (status.get("undo") or {}).get("revision")
        revision = hash_revision(spec) if spec.workload.template else undone
        if not stable or revision in (None, stable) or status.get("phase") == Phase.PENDING:
            return []
        serving = record_of(rollout, spec, children, stable)
        coming = record_of(rollout, spec, children, revision)
        if serving is None or coming is None:
            return []
        held_back = spec.watch.duration > 0 and spec.watch.holdback > 0
        return [
            Problem(Reason.NOT_SUPPORTED, _OTHER_PORT.format(name=name, new=new, old=old, revision=stable))
            for name, old, new in _shared_ports(serving, coming)
            if coming.listening(old) != coming.listening(new)
            or (held_back and serving.listening(old) != serving.listening(new))
        ]

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


def _shared_ports(serving: Record, coming: Record) -> Iterator[tuple[str, int | str, int | str]]:
    """Name and targets of each port that both have: where it goes in what serves, and in what is to come."""
    by_name = {port.get("name"): port for port in coming.ports}
    by_number = {port["port"]: port for port in coming.ports}
    for old in serving.ports:
        new = by_name.get(old.get("name")) or by_number.get(old["port"])
        if new is not None:
            yield str(old.get("name")), old["targetPort"], new["targetPort"]


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
