"""What defines a test. An edit of any part that enters `fingerprint` is a new test: evidence gathered for one question
must not answer another one."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

Kind = Literal["ratio", "score", "latency"]


@dataclass(frozen=True, slots=True)
class Margin:
    """A tolerance: the candidate's rate may be up to `ratio` × the baseline's rate + `absolute`."""

    ratio: float
    absolute: float


@dataclass(frozen=True, slots=True)
class MetricTest:
    """The test of one metric. `weight` is its share of the error budget relative to the other gating metrics."""

    name: str
    kind: Kind
    harm: Margin
    accept: Margin
    weight: float
    gating: bool
    selectors: str  # opaque text, only for the fingerprint
    slo: float | None = None  # latency: the bound that harmless is proven at; None = the middle cut
    reward: bool = False  # ratio and score: whether it is asked, too, if the candidate is better


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole test. `settle` and `interval` are seconds; the two probabilities are alpha and beta."""

    metrics: tuple[MetricTest, ...]
    false_rollback: float
    false_promotion: float
    attempt: int
    baseline: str
    candidate: str
    settle: float
    interval: float


def fingerprint(plan: Plan, test: MetricTest) -> str:
    """A short hash of all that defines the test of one metric."""
    margins = (test.harm.ratio, test.harm.absolute, test.accept.ratio, test.accept.absolute)
    whole = (
        *(plan.attempt, plan.baseline, plan.candidate, plan.false_rollback),
        *(test.name, test.kind, margins, test.selectors, test.slo),
    )
    return sha256(repr(whole).encode()).hexdigest()[:16]
