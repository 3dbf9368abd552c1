"""Who holds the right to reject: the metrics' weights as capital that edits may move but never create.

The bound on false rollbacks belongs to Σ w_j e_j, not to one test. If an edit could start a metric afresh with full
weight, editing often enough would roll back any model. So an edited or added metric is paid from what was removed or held back,
and, if that is not enough, by the metrics that stay, in proportion.
"""

from collections.abc import Mapping, Sequence

from modelrollout.evidence.metric import MetricState, harm_value
from modelrollout.evidence.plan import MetricTest


def weights(metrics: Sequence[MetricTest]) -> dict[str, float]:
    """Shares of the gating metrics, summing to 1; 0 for the others."""
    gating = [m for m in metrics if m.gating]
    total = sum(m.weight for m in gating)
    share = {m.name: m.weight / total if total > 0 else 1 / len(gating) for m in gating}
    return {m.name: share.get(m.name, 0.0) for m in metrics}


def capital(state: MetricState) -> float:
    """c = stake · e: what a metric's harm test is worth now."""
    return state.stake * harm_value(state.harm, state.polls) if state.stake else 0.0


def share_out(
    wanted: Mapping[str, float], kept: Mapping[str, MetricState], pool: float
) -> tuple[dict[str, float], float]:
    """Stakes after an edit, and what is left of the pool.

    `wanted`: weights of the tests that start now; `kept`: states of those that go on; `pool`: capital that is free.
    """
    need = sum(wanted.values())
    held = sum(capital(s) for s in kept.values())
    paid = min(need, pool)
    # The metrics that stay give up the newcomers' share of what they hold, but no more than is missing.
    levy = min(held * need, need - paid)
    stakes = {name: s.stake * (1 - levy / held if held > 0 else 1) for name, s in kept.items()}
    given = (paid + levy) / need if need > 0 else 0.0
    stakes |= {name: weight * given for name, weight in wanted.items()}
    return stakes, pool - paid
