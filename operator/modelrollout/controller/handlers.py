"""Kopf's part: it watches, reconnects and starts and stops; what it sees goes into the store, and keys into the queue.

Only `on.event` handlers, because they write nothing: handlers of other kinds put annotations or finalizers on every
object, and fight GitOps tools.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from itertools import chain, repeat
from typing import Any

import kopf

from modelrollout.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    JOB,
    MODEL_ROLLOUT,
    POD,
    ROLLOUT_LABEL,
    ROUTES,
    SERVICE,
    Kind,
    Object,
)
from modelrollout.controller.settings import Settings

CHILDREN: tuple[Kind, ...] = (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    SERVICE,
    ENDPOINT_SLICE,
    POD,
    JOB,
)
"""Kinds of which only objects with our label are watched."""

# (kind, object, whether it is gone, whether it comes from a fresh listing)
Seen = Callable[[Kind, Object, bool, bool], None]


def watched(settings: Settings) -> tuple[Kind, ...]:
    """All that is watched. The user's routes carry no label of ours between rollouts, so of routes all are. Jobs only with
    the right to them."""
    children = [kind for kind in CHILDREN if kind is not JOB or settings.gate_jobs]
    return (MODEL_ROLLOUT, *children, *ROUTES)


def selector_of(kind: Kind) -> str | None:
    """The label selector that a kind is watched and listed with."""
    return ROLLOUT_LABEL if kind in CHILDREN else None


def make_registry(
    seen: Seen, kinds: Iterable[Kind], *, without: Collection[str] = ()
) -> kopf.OperatorRegistry:
    """A registry with one event handler for each of these kinds, `without` those that the cluster does not have."""
    registry = kopf.OperatorRegistry()
    for kind in kinds:
        if kind.kind not in without:
            _handle(registry, kind, seen)
    login = _login_in_cluster if os.environ.get("KUBERNETES_SERVICE_HOST") else kopf.login_with_kubeconfig
    kopf.on.login(registry=registry)(login)
    return registry


def _login_in_cluster(**kwargs: Any) -> Any:
    # A kubeconfig that was named explicitly counts even inside of a pod.
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**kwargs)
    return kopf.login_with_service_account(**kwargs)


def _handle(registry: kopf.OperatorRegistry, kind: Kind, seen: Seen) -> None:
    async def handler(event: Any, **_: Any) -> None:
        what, obj = event["type"], dict(event["object"])
        # Items of a list come without the two fields that say what they are.
        obj.setdefault("apiVersion", kind.api_version)
        obj.setdefault("kind", kind.kind)
        seen(kind, obj, what == "DELETED", what is None)

    kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"see-{kind.plural}")(handler)


def make_settings(settings: Settings) -> kopf.OperatorSettings:
    """Kopf's settings: no peering, no posting of log lines, bounded watches, and patience with the API server."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    made.posting.enabled = False
    made.scanning.disabled = True
    made.watching.server_timeout = 10 * 60
    made.watching.client_timeout = 11 * 60
    made.watching.connect_timeout = 10
    made.watching.chunk_size = 500
    # Kopf gives a watch up after the last of these, and then the process; an API server may be away for longer.
    made.networking.error_backoffs = tuple(chain((1, 1, 2, 3, 5), repeat(8, 10_000)))
    made.networking.request_timeout = 60
    made.queueing.worker_limit = None
    made.queueing.idle_timeout = 1.0
    made.process.ultimate_exiting_timeout = 10
    for kind in CHILDREN:
        group = kind.group or ""
        made.watching.label_selectors[group, kind.version, kind.plural] = selector_of(kind) or ""
    return made
