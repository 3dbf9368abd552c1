"""The port to Kubernetes: what the operator may ask of a cluster, on plain dicts.

The reconcile loop sees only this Protocol. `client.py` speaks to a real API server; tests have an in-memory cluster
that passes the same contract tests. Plain dicts, because typed models drop fields they do not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from modelrollout.cluster.kinds import Kind, Object

FIELD_MANAGER = "modelrollout"
REPORTING_CONTROLLER = "modelrollout.dev/operator"

Propagation = Literal["Background", "Foreground", "Orphan"]
EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered, or was not: `status` 0."""

    verb: str
    kind: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Write:
    """One write about to be sent, and what is sent. `number` counts the writes of this port from 1; dry runs are not counted."""

    verb: str
    kind: str
    namespace: str | None
    name: str
    number: int
    body: Any = field(default=None, repr=False, compare=False)


def _ignore(_: Request) -> None:
    """No one counts."""


async def _pass(_: Write) -> None:
    """No fault is injected."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Places to listen and to interfere.

    `answered` sees every request, also each page of a list and each dry run. `before_write` is awaited before each
    write and `after_write` once the server has taken it: what they raise reaches the caller, so a test can crash or
    conflict at the n-th write, on either side of it.
    """

    answered: Callable[[Request], None] = _ignore
    before_write: Callable[[Write], Awaitable[None]] = _pass
    after_write: Callable[[Write], Awaitable[None]] = _pass


class Cluster(Protocol):
    """A Kubernetes cluster. Every method may raise the errors of `errors.py`, and none runs without a time limit."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """The object, or None if there is none. KindNotServed if the cluster does not know the kind."""

    async def list(
        self, kind: Kind, namespace: str | None, label_selector: str | None = None, *, name: str | None = None
    ) -> tuple[list[Object], str]:
        """All objects of a kind (namespace None: in all namespaces; `name`: only the one of that name) and the
        resourceVersion of that state."""

    def watch(
        self,
        kind: Kind,
        namespace: str,
        *,
        label_selector: str | None = None,
        name: str | None = None,
        resource_version: str,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Changes after a state, as (ADDED | MODIFIED | DELETED | BOOKMARK, object), whose resourceVersion is the next state.
        Ends after some minutes; raises Unavailable when the state is too old, or the connection broke: then list anew."""

    async def apply(
        self,
        obj: Object,
        *,
        dry_run: bool = False,
        force: bool = True,
        resource_version: str | None = None,
        uid: str | None = None,
    ) -> Object:
        """Server-side apply with field manager `modelrollout`; the answer is the whole object.

        With `resource_version`, another version is a Conflict. An object that is gone is made anew all the same (so
        it is on every API server): only with its `uid` is that a Conflict too. Give both for what was seen. Without
        `force`, a field owned by another manager is a Conflict whose causes name it.
        """

    async def create(self, obj: Object) -> Object:
        """Create; AlreadyExists if it is there."""

    async def replace(self, obj: Object) -> Object:
        """Replace an object whole; its metadata.resourceVersion must be the present one, else Conflict."""

    async def patch_json(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Object:
        """A JSON patch (RFC 6902). A failed `test`, or a path that is not there, is a Conflict."""

    async def replace_status(self, obj: Object) -> Object:
        """Replace only the status; the object's metadata.resourceVersion must be the present one, else Conflict."""

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
        """Delete exactly this object. False if it is gone already, Conflict if it is another or a newer one."""

    async def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: EventType,
        reason: str,
        note: str,
        action: str = "Reconcile",
    ) -> None:
        """Tell the user, as an events.k8s.io/v1 Event. Repetitions are counted on the first one, and limited.

        An event is a comment: a ClusterError while posting it is logged, never raised.
        """
