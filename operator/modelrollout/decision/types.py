"""What a decision rests on, and what it is. Plain values: nothing here does I/O or reads a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelrollout.api.conditions import EventReason, Reason
from modelrollout.api.spec import Spec
from modelrollout.api.status import Forecast, Status
from modelrollout.evidence.state import State
from modelrollout.evidence.verdict import Assessment


@dataclass(frozen=True, slots=True)
class Timing:
    """Times that are the operator's, not the user's, in seconds."""

    raise_after: float = 30.0  # pods are ready this long before weight follows up
    data_plane: float = 5.0  # from the gateway's word that it accepted a route to its data plane
    split_hold: float = 600.0  # a wrong split holds the clock this long, then the rollout pauses
    evidence_commit: float = 60.0  # evidence that merely grows is committed this often at most


@dataclass(frozen=True, slots=True)
class RevisionView:
    """One revision as the cluster shows it."""

    desired: int = 0  # replicas asked of its Deployment; 0 when there is none
    ready: int = 0  # ready endpoints of its own Service
    ready_since: tuple[float, ...] = ()  # for each ready endpoint: when its pod became ready, ascending
    restarts: int = 0  # container restarts of all its pods
    pods: int = 0  # pods that exist, those being terminated included
    leaving: int = 0  # of these: pods that are being terminated
    waiting: tuple[str, ...] = ()  # "ImagePullBackOff: no such image", most telling first


@dataclass(frozen=True, slots=True)
class RouteView:
    """The traffic split as the cluster shows it."""

    weights: Mapping[str, int] | None = (
        None  # by revision, as it stands in the route; None: there is no route yet
    )
    routed_since: float | None = (
        None  # since when the present content is accepted by every parent; None: it is not
    )
    problem: str | None = None  # "RouteNotAccepted: NoMatchingParent …"
    contested_by: str | None = None  # field manager that keeps reverting the route


@dataclass(frozen=True, slots=True)
class GateReading:
    """What is known of a question that a gate was asked."""

    passed: bool | None  # None: the answer is still waited for
    message: str = ""  # the answer's first line, or what is waited for
    value: str | None = None  # the number that a Job left behind


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen of the cluster in one round."""

    revisions: Mapping[str, RevisionView] = field(default_factory=dict)
    route: RouteView = RouteView()
    stored: frozenset[str] = frozenset()  # revisions of which a record is kept
    gates: Mapping[str, GateReading] = field(default_factory=dict)  # by `GateStatus.question`
    lost: Mapping[str, str] = field(
        default_factory=dict
    )  # of those, why one that is asked for can't come back
    refused: bool = False  # the API server refuses a write, and would do so again
    pinned: str | None = None  # the revision that Service `service.name` selects, if it is ours

    def of(self, revision: str | None) -> RevisionView:
        """The view of a revision; an empty one if nothing of it exists."""
        return self.revisions.get(revision, RevisionView()) if revision else RevisionView()


class Data(StrEnum):
    """States of the data of one poll, for all gating metrics and guardrails together."""

    OK = "OK"
    NONE = "None"  # not polled in this round
    UNAVAILABLE = "Unavailable"
    NOT_SCRAPED = "NotScraped"
    NO_TRAFFIC = "NoTraffic"


@dataclass(frozen=True, slots=True)
class GuardrailReading:
    """The last reading of a guardrail."""

    name: str
    value: float | None
    bound: str  # "≤ 70000"
    breaches: int  # in a row
    breached: bool  # breaches ≥ failures
    gating: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the metrics say in this round."""

    data: Data = Data.NONE
    problem: str = ""  # why data are unavailable: "DuplicateSeries: …"
    pending: bool = False  # samples are due that are not read yet
    polled_at: float | None = None  # when Prometheus was last asked; None: never in this attempt
    failed_polls: int = 0  # in a row, this one included
    outage_since: float | None = None  # first failed poll
    quiet_polls: int = 0  # in a row in which no requests were counted, this one included
    assessment: Assessment | None = None
    state: State | None = None  # evidence up to here
    guardrails: tuple[GuardrailReading, ...] = ()
    split_off: str | None = None  # "observed 2.1 % of requests, configured 10 %"
    delay: float = 0.0  # seconds from a scrape until the server has its samples
    rate: float | None = None  # requests per second of both sides together
    forecast: Forecast | None = None  # made once an attempt, from what was measured before it
    notes: Mapping[str, str] = field(default_factory=dict)  # by metric: what a person should know of it
    alarm: str | None = None  # what the watch of a model without holdback found; once raised it stays


DEFAULT_TIMING = Timing()
NOT_JUDGED = Judgement()


@dataclass(frozen=True, slots=True)
class Wish:
    """What the object asks for, as read in this round."""

    namespace: str
    name: str
    generation: int
    revision: str  # hash of the spec, or what a request undid it to; "" when it can't be computed
    spec: Spec | None  # None: not acceptable
    fallback: Spec | None = None  # the last accepted spec, with an empty template
    reason: Reason | None = None  # why it is not acceptable …
    problem: str = ""  # … and a sentence that names the field and the mend
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False
    written: str = ""  # hash of the spec, whatever was asked for in its place; "": the same as `revision`


@dataclass(frozen=True, slots=True)
class Event:
    """An event to post once the status is committed."""

    reason: EventReason
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one round."""

    status: Status
    state: State | None  # evidence that belongs to the status
    events: tuple[Event, ...] = ()
    link: str = ""  # the link of the chain that decided
    assessment: Assessment | None = None  # that it rests on
    requeue_at: float | None = None  # the next time known at which something is due
