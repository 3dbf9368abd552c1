"""Sentences for people: what was measured, what is missing, why it was decided."""

from __future__ import annotations

from modelrollout.api.status import Phase, RevisionStatus
from modelrollout.decision.round import Round
from modelrollout.evidence.verdict import Assessment, MetricAssessment


def span(seconds: float) -> str:
    """A length of time as a person would say it: 45s, 2m, 1h5m."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole}s"
    hours, minutes = divmod((whole + 30) // 60, 60)
    if not hours:
        return f"{minutes}m"
    return f"{hours}h{minutes}m" if minutes else f"{hours}h"


def count(number: float) -> str:
    """A count as a person would say it: 850, 3.1k, 2.4M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def ratio_text(metric: MetricAssessment) -> str:
    """`errors 1.02x [0.81, 1.31]`: the candidate's bad rate divided by the baseline's, with its 95 % interval."""
    if not metric.candidate_bad and not metric.baseline_bad:
        return f"{metric.name} none bad in {count(metric.candidate_requests)}"
    if metric.low is None and metric.high is None:
        return f"{metric.name} no ratio yet"
    if metric.ratio is None:
        return f"{metric.name} {'<' if metric.low is None else '>'}{metric.high or metric.low:.3g}x"
    low = "0" if metric.low is None else f"{metric.low:.2f}"
    high = "∞" if metric.high is None else f"{metric.high:.2f}"
    return f"{metric.name} {metric.ratio:.2f}x [{low}, {high}]"


def evidence_summary(round: Round) -> str:
    """What is known by gating metric, and what is still needed."""
    assessment = round.judged.assessment
    if round.spec.analysis.mode == "Off":
        return "nothing is compared (analysis.mode is Off)"
    if assessment is not None and assessment.metrics and not round.judged_at_random:
        shown = " · ".join(ratio_text(metric) for metric in assessment.metrics)
        return f"only guardrails decide, as users were chosen; {shown}"
    if assessment is None or not any(m.gating for m in assessment.metrics):
        return "no data yet" if round.spec.analysis.metrics else "nothing is compared"
    return " · ".join(_metric_text(round, metric) for metric in assessment.metrics if metric.gating)


def traffic_summary(round: Round) -> str:
    """What the candidate gets now: 10 %, or 0 % and copies of 20 %, or 0 % and requests that match."""
    weights = round.status.weights
    copies = f" and copies of {weights.mirror} %" if weights.mirror else ""
    part = f"{weights.matched} % of the " if weights.matched < 100 else ""
    chosen = f" and {part}requests that match" if weights.matched else ""
    return f"{weights.candidate} %{copies}{chosen}"


def _metric_text(round: Round, metric: MetricAssessment) -> str:
    if metric.kind == "score" and round.status.weights.mirror and not round.status.weights.candidate:
        return f"{metric.name}: not judged on copies, no labels arrive for them"
    if not metric.has_data and metric.candidate_requests == 0:
        return f"{metric.name}: no data yet"
    if metric.reward:
        return reward_text(metric)
    text = ratio_text(metric)
    if metric.harmless:
        return f"{text} harmless"
    if metric.remaining is None or round.phase == Phase.WATCHING:
        return text
    if metric.low is not None and metric.low > 1:
        return f"{text}, worse so far"  # what an equal model would need is no news then
    more = f"{count(metric.remaining)} more requests"
    share = round.status.weights.compared
    if round.judged.rate and share:
        more += f" (~{span(metric.remaining / (round.judged.rate * share / 100))})"
    return f"{text}, {more} to prove harmless"


def reward_text(metric: MetricAssessment) -> str:
    """`clicks 12.1 % good, baseline 10.3 %, 0.98x bad [0.97, 0.99], better`: both shares, and whether that is proven."""
    sides = (
        (metric.candidate_bad, metric.candidate_requests),
        (metric.baseline_bad, metric.baseline_requests),
    )
    if not all(requests for _, requests in sides):
        return f"{metric.name}: no data yet"
    candidate, baseline = (f"{100 * (1 - bad / requests):.3g} %" for bad, requests in sides)
    _, _, ratio = ratio_text(metric).partition(" ")
    word = "better" if metric.superior else "not proven better"
    return f"{metric.name} {candidate} good, baseline {baseline}, bad {ratio}, {word}"


def harm_summary(assessment: Assessment, candidate: RevisionStatus | None) -> str:
    """Which metric is worse, by how much, from which counts, and what is to be doubted of it."""
    named = [m for m in assessment.metrics if m.name == assessment.harm_metric] or list(assessment.metrics)
    doubt = pod_doubt(assessment, candidate)
    return "; ".join(
        [
            f"{ratio_text(m)}: {m.candidate_bad:.0f} of {count(m.candidate_requests)} bad, "
            f"baseline {m.baseline_bad:.0f} of {count(m.baseline_requests)}"
            for m in named[:1]
        ]
        + ([doubt] if doubt else [])
    )


def pod_doubt(assessment: Assessment, candidate: RevisionStatus | None) -> str:
    """Why the harm can't be told from an unlucky node: one pod answered all that was compared. Empty if it can."""
    if not assessment.harm or assessment.groups > 1:
        return ""
    pods = candidate.desired if candidate else 1
    if pods > 1:
        return f"all of it from one of {pods} candidate pods: its node may be the cause, not the model"
    return "the candidate has one pod: its node may be the cause as well as the model, with two pods this could be told"


def pods_summary(round: Round, role: RevisionStatus | None) -> str:
    """How many pods of a role are ready, and what keeps the others."""
    view = round.view(role)
    wanted = max(role.desired if role else 0, view.desired)
    settled = round.settled(role)
    if view.ready >= wanted and settled < wanted:
        return f"{view.ready} of {wanted} pods ready, {round.timing.raise_after:g}s of readiness are awaited"
    why = view.waiting[0] if view.waiting else ""
    tried = role is not None and role == round.status.candidate
    if tried and not why and view.pods < wanted and round.spec.workload.services is not None:
        why = f"your workload has {view.pods} in all, scale that to {wanted}"
    return f"{view.ready} of {wanted} pods ready{f': {why}' if why else ''}"
