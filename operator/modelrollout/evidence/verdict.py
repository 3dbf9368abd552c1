"""What the evidence says at one moment, in the words of the API."""

from dataclasses import dataclass
from enum import StrEnum

from modelrollout.evidence.plan import Kind


class Verdict(StrEnum):
    """Values of `status.verdict` and of each metric's verdict."""

    SUPERIOR = "Superior"  # of a reward only
    HARMLESS = "Harmless"
    WORSE_WITHIN_MARGIN = "WorseWithinMargin"
    HARMFUL = "Harmful"
    POD_OUTLIER = "PodOutlier"
    INCONCLUSIVE = "Inconclusive"
    NO_DATA = "NoData"


@dataclass(frozen=True, slots=True)
class MetricAssessment:
    """One metric. Requests and bad events are sums over the test so far (latency: slower than the SLO's cut)."""

    name: str
    kind: Kind
    gating: bool
    verdict: Verdict
    log_harm: float  # ln e
    log_harmless: float
    ratio: float | None  # candidate's rate / baseline's rate; None at the edge of [.1, 30]
    low: float | None  # ends of its 95 % confidence sequence
    high: float | None
    baseline_requests: float
    baseline_bad: float
    candidate_requests: float
    candidate_bad: float
    harmless: bool
    settled_polls: int  # of the present step, with data of both sides
    remaining: float | None  # candidate requests still needed to be proven harmless if the sides are equal
    has_data: bool  # in the newest poll
    bound: float | None  # B: (p_c + d) / (p_s + d) is at most this; None for scores
    absolute: float  # d of the accept margin
    remaining_seconds: float | None = None  # the same as `remaining`, at the present rate and weight
    reward: bool = False  # whether it is asked if the candidate is better …
    superior: bool = False  # … and that is proven now
    log_superior: float = 0.0


@dataclass(frozen=True, slots=True)
class Assessment:
    """All metrics together. `harm` and `harmless` are never both true (both proven is `WorseWithinMargin`: harmless)."""

    verdict: Verdict
    harm: bool
    harm_metric: str | None  # the one that contributes most, when harm or an outlier was found
    outlier: bool  # harm that rests on one group of pods
    outlier_pod: str | None  # its pods, comma-separated
    harmless: (
        bool  # every gating metric is proven harmless now (the rule of ≥ 8 settled polls is the caller's)
    )
    settled_polls: (
        int  # of the present step: the fewest over the gating metrics, or all polls if there are none
    )
    metrics: tuple[MetricAssessment, ...]
    groups: int = 0  # groups of candidate pods seen; with 1, node and model can't be told apart
    step_polls: int = 0  # settled polls of the present step, with or without data
