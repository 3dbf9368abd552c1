"""What every router does: make the committed weights stand, read back whether they do, and say what it can't.

A router is one file with one class, and one line in the table of this package. It holds no state and does no I/O: it
turns a committed status into writes, and objects that were seen into a reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.cluster.actions import Action
from modelrollout.cluster.kinds import Kind, Object
from modelrollout.workloads import Children, Problem


@dataclass(frozen=True, slots=True)
class RouteReading:
    """The split as the cluster shows it.

    `accepted`: the committed weights stand there and everything that carries them has said so; their way into the data
    plane is not in it. While it is true, `identity` changes when the content of the route changes, so the time since
    when it was accepted counts from the last change of either.
    """

    weights: Mapping[str, int] | None = (
        None  # percent by revision, as it stands there; None: there is no route yet
    )
    accepted: bool = False
    identity: str = ""
    problem: str | None = None  # "RouteNotAccepted: NoMatchingParent …"
    foreign_manager: str | None = None  # who changed the route to what we do not want
    mirror: int = 0  # percent of the requests that are copied to the candidate, as it stands there


@dataclass(frozen=True, slots=True)
class Split:
    """What a weight comes to: the real share in percent, and the pods of both sides where pods make the split."""

    share: float
    candidate_pods: int | None = None
    baseline_pods: int | None = None


def in_percent(weights: Mapping[str, int]) -> dict[str, int]:
    """The share of each part in the whole, rounded down; parts of weight 0 are left out."""
    total = sum(weights.values())
    return {key: 100 * weight // total for key, weight in weights.items() if weight > 0}


class Router(Protocol):
    """A way to split requests between revisions."""

    @property
    def name(self) -> str:
        """The member of spec.traffic that chooses it."""

    @property
    def can_mirror(self) -> bool:
        """Whether it can send copies of requests to the candidate, whose answers nobody sees."""

    @property
    def can_match(self) -> bool:
        """Whether it can send requests to the candidate by what they are: header, cookie or query."""

    @property
    def can_stick(self) -> bool:
        """Whether it can keep a user on one version while requests are split by weight."""

    def reference(self, spec: Spec) -> tuple[Kind, str] | None:
        """The route of the user's that the spec names, if the router works in such a one."""

    def problems(self, rollout: Mapping[str, Any], spec: Spec, children: Children) -> list[Problem]:
        """What is wrong with the route that the spec names."""

    def validate(self, spec: Spec) -> list[Problem]:
        """What of this spec the router can't do."""

    def probe(self, rollout: Mapping[str, Any], spec: Spec) -> Object | None:
        """An object for a dry run, if the spec asks for what not every cluster serves."""

    def split(self, weight: int, capacity: int) -> Split:
        """What a weight (percent) of the candidate comes to when `capacity` pods carry all traffic."""

    def actions(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
    ) -> list[Action]:
        """Writes that make the committed weights stand; none if they do."""

    def observe(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> RouteReading:
        """What stands there, compared with the committed weights."""

    def retire(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Deletion of what the router made, or restoration of what it changed, when another one has taken over."""

    def release(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Restoration of what the router changed, before the ModelRollout is gone."""
