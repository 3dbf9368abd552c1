"""What to write so that the workloads match the committed status: a pure function, run anew in every round.

It remembers nothing and computes no size: a crash between two writes is healed by the next round. What grows comes
before what shrinks, and a Service goes only when no route names it and no caller is pointed at it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.api.types import format_time
from modelrollout.cluster.actions import Action, Apply, Create
from modelrollout.cluster.kinds import REVISION_LABEL, SERVICE, Object, kind_of
from modelrollout.workloads.children import (
    Children,
    Ownership,
    Problem,
    child_name,
    delete,
    deleting,
    name_in,
    name_taken,
    ownership,
    replicas_of,
    retake,
    revision_of,
)
from modelrollout.workloads.fields import differences, drift, spell
from modelrollout.workloads.revisions import (
    Record,
    controller_revision,
    deployment,
    pin_of,
    preview_name,
    restarted_at,
    root_service,
    service,
    sizes_by_revision,
)


def workload_actions(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
) -> list[Action]:
    """Writes that make ControllerRevisions, Deployments and Services match the status; none if they do.

    `spec` is the accepted one; it may lack the template, which is only needed for a record that is missing. `now` is in
    epoch seconds. Nothing is written for an object that is being deleted, or as long as no revision is known.
    """
    sizes = sizes_by_revision(status, now)
    if deleting(rollout) or not sizes:
        return []
    records, made = _records(rollout, spec, status, children, sizes)
    if spec.workload.services is not None:
        return [*made, *_pruned(rollout, spec, children, sizes)]
    grow, shrink = _deployments(rollout, spec, status, children, sizes, records)
    return [
        *made,
        *_services(rollout, children, sizes, records),
        *grow,
        *_root(rollout, spec, status, children, records),
        *_preview(rollout, status, children, records),
        *shrink,
        *_retired(rollout, spec, status, children, sizes),
        *_pruned(rollout, spec, children, sizes),
    ]


def ensure(rollout: Mapping[str, Any], desired: Object, live: Object | None, why: str) -> list[Action]:
    """Make an object be as desired: nothing if it is, is going, or is somebody else's."""
    if live is None:
        return [Create(desired, why)]
    owner = ownership(rollout, live)
    if deleting(live) or owner is Ownership.FOREIGN:
        return []
    if owner is Ownership.STALE:
        return [retake(rollout, live)]
    found = differences(desired, live)
    if not found:
        return []
    changes = ", ".join(spell(path) for path in found[:3]) + (", …" if len(found) > 3 else "")
    # Of an object that is gone the API server misses a uid, but no resourceVersion: it would make a new one.
    seen = desired | {"metadata": desired["metadata"] | {"uid": live["metadata"]["uid"]}}
    version = live["metadata"]["resourceVersion"]
    return [Apply(seen, version, f"{why} ({changes})", drift(desired, live))]


def name_problems(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
) -> list[Problem]:
    """Children that stand in our way because they are somebody else's; `name_taken` judges an object that was read."""
    wanted = {child_name(rollout, revision) for revision in sizes_by_revision(status, float("-inf"))}
    records = [children.controller_revisions.get(name) for name in sorted(wanted)]
    if spec.workload.services is not None:
        found = [*records, children.routes.get(name_in(rollout))]
        return [problem for obj in found if (problem := name_taken(rollout, obj)) is not None]
    found = [
        *records,
        *(children.deployments.get(name) for name in sorted(wanted)),
        *(children.services.get(name) for name in sorted(wanted | {spec.service_name(name_in(rollout))})),
        children.services.get(preview_name(rollout)) if spec.strategy.blue_green is not None else None,
        children.routes.get(name_in(rollout)) if spec.traffic.router == "gatewayAPI" else None,
    ]
    return [problem for obj in found if (problem := name_taken(rollout, obj)) is not None]


def record_of(rollout: Mapping[str, Any], spec: Spec, children: Children, revision: str) -> Record | None:
    """The record of a revision: the one that exists; else one made from the spec if it names that revision; else, if
    somebody deleted the record, what runs."""
    name = child_name(rollout, revision)
    live = children.controller_revisions.get(name)
    if live is not None:
        return Record.of(live) if ownership(rollout, live) is not Ownership.FOREIGN else None
    if _names(spec, revision, children):
        return Record.render(rollout, spec, revision, backend=children.bound.get(revision))
    running = [obj.get(name) for obj in (children.deployments, children.services)]
    if any(obj is None or ownership(rollout, obj) is Ownership.FOREIGN for obj in running):
        return None
    return Record.running(*(obj for obj in running if obj is not None))


def _names(spec: Spec, revision: str, children: Children) -> bool:
    """Whether the spec says what the revision consists of."""
    if spec.workload.services is not None:
        return revision in children.bound
    return bool(spec.workload.template) and hash_revision(spec) == revision


def _records(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, sizes: Mapping[str, int]
) -> tuple[dict[str, Record], list[Action]]:
    records: dict[str, Record] = {}
    actions: list[Action] = []
    for revision, size in sizes.items():
        name = child_name(rollout, revision)
        live = children.controller_revisions.get(name)
        record = record_of(rollout, spec, children, revision)
        if record is None or (live is None and size == 0 and name not in children.deployments):
            continue
        records[revision] = record
        if live is None and not _names(spec, revision, children):
            continue  # the record is made from a spec, never guessed from what runs
        wanted = controller_revision(rollout, spec, revision, record=record, attempt=status.attempt)
        if live is not None:
            tried = status.candidate is not None and status.candidate.revision == revision
            attempt = max(int(live.get("revision") or 0), status.attempt if tried else 0)
            wanted |= {"data": live["data"], "revision": attempt}
        actions += ensure(rollout, wanted, live, "record the revision")
    return records, actions


def _services(
    rollout: Mapping[str, Any], children: Children, sizes: Mapping[str, int], records: Mapping[str, Record]
) -> Iterator[Action]:
    for revision, record in records.items():
        live = children.services.get(child_name(rollout, revision))
        if live is not None or sizes[revision] > 0:
            wanted = service(rollout, revision, record=record)
            yield from ensure(rollout, wanted, live, "the revision's Service")


def _deployments(
    rollout: Mapping[str, Any],
    spec: Spec,
    status: Status,
    children: Children,
    sizes: Mapping[str, int],
    records: Mapping[str, Record],
) -> tuple[list[Action], list[Action]]:
    """Those that grow (or are new, or put right), and those that shrink."""
    grow: list[Action] = []
    shrink: list[Action] = []
    for revision, record in records.items():
        size = sizes[revision]
        live = children.deployments.get(child_name(rollout, revision))
        if live is None and size == 0:
            continue
        asked = next((one.at for one in status.restarted if one.revision == revision), None)
        # What stands there stays: without it the pods would be made anew once more.
        restarted = restarted_at(live) if asked is None else format_time(asked)
        wanted = deployment(rollout, spec, revision, record=record, replicas=size, restarted_at=restarted)
        present = 0 if live is None else replicas_of(live)
        why = f"{size} pods, not {present}" if size != present else "fields"
        actions = ensure(rollout, wanted, live, why) or _restart(rollout, wanted, live, restarted)
        (shrink if size < present else grow).extend(actions)
    return grow, shrink


def _restart(rollout: Mapping[str, Any], wanted: Object, live: Object | None, at: str | None) -> list[Action]:
    """Values in templates are not compared, where the API server rewrites them; of this one it is the value that counts."""
    if (
        live is None
        or deleting(live)
        or ownership(rollout, live) is not Ownership.OURS
        or at == restarted_at(live)
    ):
        return []
    seen = wanted | {"metadata": wanted["metadata"] | {"uid": live["metadata"]["uid"]}}
    return [Apply(seen, live["metadata"]["resourceVersion"], "all pods anew, as somebody asked")]


def _root(
    rollout: Mapping[str, Any],
    spec: Spec,
    status: Status,
    children: Children,
    records: Mapping[str, Record],
) -> Iterator[Action]:
    name = spec.service_name(name_in(rollout))
    pin = pin_of(spec, status)
    main = status.stable or status.candidate
    record = records.get(pin or (main.revision if main else ""))
    if record is not None:
        wanted = root_service(rollout, name, pin, record=record)
        why = f"callers go to {pin}" if pin else "callers go to the pods of all revisions"
        yield from ensure(rollout, wanted, children.services.get(name), why)


def _preview(
    rollout: Mapping[str, Any], status: Status, children: Children, records: Mapping[str, Record]
) -> Iterator[Action]:
    """The Service that reaches the candidate before the switch; `_retired` deletes it afterwards."""
    name, revision = preview_name(rollout), status.previewed
    if revision is not None and (record := records.get(revision)) is not None:
        wanted = root_service(rollout, name, revision, record=record)
        yield from ensure(rollout, wanted, children.services.get(name), f"{revision} can be previewed")


def _retired(
    rollout: Mapping[str, Any],
    spec: Spec,
    status: Status,
    children: Children,
    sizes: Mapping[str, int],
) -> Iterator[Action]:
    """Deployments and Services of revisions that have no role any more, and a Service for callers whose name changed."""
    root, preview = spec.service_name(name_in(rollout)), preview_name(rollout)
    routed = children.routed_services
    found = (*children.deployments.values(), *children.services.values())
    ours = [obj for obj in found if _made(rollout, obj, (root, preview))]
    pinned = {
        (obj["spec"].get("selector") or {}).get(REVISION_LABEL) for obj in ours if revision_of(obj) is None
    }
    for obj in ours:
        if deleting(obj):
            continue
        revision = revision_of(obj)
        if revision is None:
            kept = {root, *routed, *(child_name(rollout, one) for one in sizes)}
            kept |= {preview} if status.previewed else set()
            renamed = kind_of(obj) == SERVICE and name_in(obj) not in kept
            if renamed and root in children.services:
                yield delete(obj, f"callers use Service {root}")
        elif (
            revision not in sizes
            and child_name(rollout, revision) not in routed
            and revision not in pinned
            and name_in(obj) == child_name(rollout, revision)
        ):
            yield delete(obj, "its revision has retired")


def _made(rollout: Mapping[str, Any], obj: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether an object is one that we made. Somebody's own Service may carry our label to be found by it, so without an
    owner its name and what it selects must say it too."""
    owner = ownership(rollout, obj)
    if owner is Ownership.ORPHAN:
        named = name_in(obj) in names and REVISION_LABEL in (obj["spec"].get("selector") or {})
        return revision_of(obj) is not None or named
    return owner is not Ownership.FOREIGN


def _pruned(
    rollout: Mapping[str, Any], spec: Spec, children: Children, sizes: Mapping[str, int]
) -> Iterator[Action]:
    """Records beyond the history limit, the oldest attempts first; never one that is in use."""
    past = [
        obj
        for name, obj in children.controller_revisions.items()
        if revision_of(obj) not in sizes
        and name not in children.deployments
        and not deleting(obj)
        and ownership(rollout, obj) is not Ownership.FOREIGN
    ]
    past.sort(key=lambda obj: (int(obj.get("revision") or 0), name_in(obj)), reverse=True)
    for obj in past[spec.revision_history_limit :]:
        yield delete(obj, f"more than {spec.revision_history_limit} revisions")
