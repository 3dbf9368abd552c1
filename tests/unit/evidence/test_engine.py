"""The engine's rules: what counts as a poll, when harmless starts anew, what the verdict is, and what survives an edit."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.evidence.capital import capital
from modelrollout.evidence.engine import (
    State,
    assess,
    begin,
    consume,
    dump,
    load,
    may_advance,
    new_step,
    raise_weight,
)
from modelrollout.evidence.plan import Kind, Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, MetricPoll, Poll
from modelrollout.evidence.verdict import Assessment, Verdict

GOOD, EQUAL, BAD = 0.0, 1.0, 5.0  # times the baseline's rate of 1 %


def metric(name: str = "errors", kind: Kind = "ratio", **changes: object) -> MetricTest:
    margins = {
        "ratio": (Margin(1.05, 0.00025), Margin(1.25, 0.0025)),
        "score": (Margin(1, 0.0025), Margin(1, 0.01)),
        "latency": (Margin(1.25, 0.0025), Margin(1.5, 0.005)),
    }[kind]
    test = MetricTest(name, kind, *margins, weight=1, gating=True, selectors="s")
    return replace(test, **changes)  # type: ignore[arg-type]


def plan(*metrics: MetricTest, **changes: object) -> Plan:
    whole = Plan(metrics or (metric(),), 0.01, 0.05, 1, "a", "b", settle=30, interval=15)
    return replace(whole, **changes)  # type: ignore[arg-type]


def at(
    i: int,
    factor: float | Mapping[str, float] = EQUAL,
    *,
    names: tuple[str, ...] = ("errors",),
    n: float = 1000,
    cuts: int = 1,
    partial: bool = False,
) -> Poll:
    """The i-th poll of 15 s: equal requests on both sides, the baseline's rate 1 %, the candidate's by pod `factor` times that."""
    pods = factor if isinstance(factor, Mapping) else {"p1": factor}
    each = n / len(pods)
    arms = {pod: Arm(each, (each * 0.01 * f,) * cuts) for pod, f in pods.items()}
    found = MetricPoll(Arm(n, (n * 0.01,) * cuts), arms, partial)
    return Poll(15.0 * i, 15.0 * i + 15, dict.fromkeys(names, found))


def after(
    the_plan: Plan, polls: list[Poll], weight: int = 50, cuts: tuple[float, ...] = (), raised: float = -30
) -> State:
    state = begin(the_plan, None, cuts={m.name: cuts for m in the_plan.metrics if cuts})
    return consume(the_plan, raise_weight(state, weight, raised), polls)


def judge(the_plan: Plan, state: State, weight: int = 50) -> Assessment:
    return assess(the_plan, state, weight=weight, rate=100)


# Verdicts


def verdict_of(factor: float | Mapping[str, float], polls: int = 40, **changes: object) -> Verdict:
    the_plan = plan(metric(**changes))
    return judge(the_plan, after(the_plan, [at(i, factor) for i in range(polls)])).verdict


WIDE = {"accept": Margin(4.0, 0.1)}
VERDICTS: dict[str, tuple[Callable[[], Verdict], Verdict]] = {
    "nothing seen yet is NoData": (lambda: verdict_of(EQUAL, polls=0), Verdict.NO_DATA),
    "one poll decides nothing": (lambda: verdict_of(EQUAL, polls=1), Verdict.INCONCLUSIVE),
    "an equal candidate is Harmless in the end": (lambda: verdict_of(EQUAL), Verdict.HARMLESS),
    "five times the errors is Harmful": (lambda: verdict_of(BAD), Verdict.HARMFUL),
    "worse than harm's margin and within the other is not harm": (
        lambda: verdict_of(3.0, **WIDE),
        Verdict.WORSE_WITHIN_MARGIN,
    ),
    "two pods equally bad are Harmful": (lambda: verdict_of({"p1": BAD, "p2": BAD}), Verdict.HARMFUL),
    "one bad pod of four is an outlier": (
        lambda: verdict_of({"p1": EQUAL, "p2": EQUAL, "p3": 20.0, "p4": EQUAL}),
        Verdict.POD_OUTLIER,
    ),
}


@pytest.mark.parametrize(("found", "expected"), VERDICTS.values(), ids=VERDICTS.keys())
def test_verdict(found: Callable[[], Verdict], expected: Verdict) -> None:
    assert found() == expected


def test_the_outlier_is_named_and_is_neither_harm_nor_harmless() -> None:
    the_plan = plan()
    pods = {"p1": EQUAL, "p2": EQUAL, "p3": 20.0, "p4": EQUAL}
    found = judge(the_plan, after(the_plan, [at(i, pods) for i in range(40)]))
    assert (found.harm, found.harmless, found.outlier) == (False, False, True)
    assert (found.outlier_pod, found.harm_metric, found.groups) == ("p3", "errors", 4)
    assert found.metrics[0].verdict == Verdict.POD_OUTLIER


def test_a_single_pod_needs_no_other_group() -> None:
    the_plan = plan()
    found = judge(the_plan, after(the_plan, [at(i, BAD) for i in range(20)]))
    assert (found.harm, found.groups, found.harm_metric) == (True, 1, "errors")


def test_a_pod_without_requests_is_no_group() -> None:
    the_plan = plan()
    polls = []
    for i in range(20):
        poll = at(i, BAD)
        found = poll.metrics["errors"]
        idle = {**found.candidate_pods, "idle": Arm(0, (0,))}
        polls.append(replace(poll, metrics={"errors": replace(found, candidate_pods=idle)}))
    assert judge(the_plan, after(the_plan, polls)).harm


def test_pods_fall_into_four_groups_in_the_order_first_seen() -> None:
    state = after(plan(), [at(0, {"c": 1, "a": 1}), at(1, {"e": 1, "a": 1, "b": 1, "d": 1})])
    assert state.pods == {"c": 0, "a": 1, "e": 2, "b": 3, "d": 0}


def test_the_map_of_pods_stays_bounded_over_days_of_churn() -> None:
    state = after(plan(), [at(i, {f"pod-{i}": 1.0, f"pod-{i + 1}": 1.0}) for i in range(400)])
    assert len(state.pods) <= 130
    assert state.pods["pod-400"] == 0


def test_a_group_that_joins_late_is_left_out_of_its_own_time_only() -> None:
    """Until the second pod appears, the evidence without it is all of the evidence."""
    the_plan = plan()
    state = after(the_plan, [at(i, BAD) for i in range(10)])
    joined = consume(the_plan, state, [at(10, {"p1": EQUAL, "p2": EQUAL})])
    without_new = joined.metrics["errors"].without[1]
    assert without_new[0][3] == pytest.approx(joined.metrics["errors"].harm[0][3], rel=0.5)
    assert judge(the_plan, joined).outlier_pod == "p1"


# Several metrics


def test_harm_is_weighed_over_metrics_and_harmless_is_the_weakest() -> None:
    tests = (metric(), metric("quality", "score", weight=3.0))
    the_plan = plan(*tests)
    state = after(the_plan, [at(i, names=("errors", "quality")) for i in range(10)])
    assert [state.metrics[t.name].stake for t in tests] == pytest.approx([0.25, 0.75])
    found = judge(the_plan, state)
    assert found.harmless == all(m.harmless for m in found.metrics)
    worth = sum(capital(m) for m in state.metrics.values())
    assert found.harm == (worth >= 100)


def test_one_bad_metric_rolls_back_although_others_are_fine() -> None:
    the_plan = plan(metric(), metric("more"))
    state = begin(the_plan, None)
    for i in range(40):
        bad, fine = at(i, BAD), at(i, GOOD, names=("more",))
        state = consume(the_plan, state, [replace(bad, metrics={**bad.metrics, **fine.metrics})])
    found = judge(the_plan, raise_weight(state, 50, 0))
    assert (found.harm, found.harm_metric) == (True, "errors")


def test_a_metric_that_does_not_gate_is_reported_but_decides_nothing() -> None:
    the_plan = plan(metric(), metric("dry", gating=False))
    state = begin(the_plan, None)
    state = raise_weight(state, 50, -30)
    for i in range(40):
        fine, bad = at(i), at(i, BAD, names=("dry",))
        state = consume(the_plan, state, [replace(fine, metrics={**fine.metrics, **bad.metrics})])
    found = judge(the_plan, state)
    assert (found.harm, found.harmless, found.verdict) == (False, True, Verdict.HARMLESS)
    assert found.metrics[1].verdict == Verdict.HARMFUL


def test_without_gating_metrics_only_polls_are_counted() -> None:
    the_plan = plan(metric("dry", gating=False))
    found = judge(the_plan, after(the_plan, [at(i, BAD, names=("dry",)) for i in range(9)]))
    assert (found.harm, found.harmless, found.settled_polls) == (False, False, 9)


def test_both_proven_is_neither_harm_nor_an_outlier() -> None:
    the_plan = plan(metric(**WIDE))
    for factor in (3.0, {"p1": EQUAL, "p2": EQUAL, "p3": 9.0, "p4": EQUAL}):
        found = judge(the_plan, after(the_plan, [at(i, factor) for i in range(60)]))
        assert found.verdict == Verdict.WORSE_WITHIN_MARGIN
        assert (found.harm, found.outlier, found.harmless) == (False, False, True)


def test_one_metric_that_is_not_proven_keeps_all_from_being_harmless() -> None:
    the_plan = plan(metric(), metric("new"))
    state = after(the_plan, [at(i) for i in range(40)])
    state = consume(the_plan, state, [at(40, names=("errors", "new"))])
    found = judge(the_plan, state)
    assert [m.harmless for m in found.metrics] == [True, False]
    assert (found.harmless, found.settled_polls) == (False, 1)


# Polls


def test_a_poll_without_requests_on_a_side_changes_nothing_but_freshness() -> None:
    the_plan = plan()
    state = after(the_plan, [at(0)])
    silent = Poll(15, 30, {"errors": MetricPoll(Arm(1000, (900,)), {"p1": Arm(0, (0,))})})
    later = consume(the_plan, state, [silent])
    assert later.metrics["errors"] == replace(state.metrics["errors"], fresh=False)
    assert judge(the_plan, later).verdict == Verdict.NO_DATA
    assert judge(the_plan, later).metrics[0].has_data is False


def test_a_metric_that_is_silent_does_not_hide_that_others_are_compared() -> None:
    the_plan = plan(metric(), metric("quality", "score"))
    found = judge(the_plan, after(the_plan, [at(0)]))
    assert (found.verdict, found.metrics[1].verdict) == (Verdict.INCONCLUSIVE, Verdict.NO_DATA)


def test_samples_count_once_however_often_polls_are_handed_in() -> None:
    the_plan, polls = plan(), [at(i, BAD) for i in range(5)]
    once = after(the_plan, polls)
    assert consume(the_plan, once, polls) == once
    assert consume(the_plan, once, [replace(at(5), start=60.0)]) == once
    assert once.consumed == 75


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        pytest.param(Arm(1, (0, 0)), "2 bad counts", id="more cuts than the test has"),
        pytest.param(Arm(float("nan"), (0,)), "finite", id="not a number"),
        pytest.param(Arm(1, (-1,)), "negative", id="a counter that fell"),
    ],
)
def test_counts_that_can_not_be_are_refused(arm: Arm, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        after(plan(), [Poll(0, 15, {"errors": MetricPoll(Arm(10, (1,)), {"p": arm})})])


def test_bad_events_are_never_more_than_requests() -> None:
    """A scrape may fall between two counters; the exact form would take the logarithm of less than nothing."""
    the_plan = plan(metric(kind="score"))
    torn, whole = (MetricPoll(Arm(2, (x,)), {"p1": Arm(3, (1,))}) for x in (2.5, 2.0))
    states = [after(the_plan, [Poll(0, 15, {"errors": found})]) for found in (torn, whole)]
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["ratio", "score", "latency"])
def test_clustered_events_count_less_in_every_test(kind: Kind) -> None:
    the_plan = plan(metric(kind=kind, slo=1.0))
    found = []
    for phi in (1.0, 4.0):
        state = begin(the_plan, None, phi={"errors": phi}, cuts={"errors": (1.0,)})
        found.append(consume(the_plan, raise_weight(state, 50, -30), [at(0, 1.5)]).metrics["errors"])
    plain, clustered = found
    assert clustered.phi == 4
    for one, other in ((plain.harmless, clustered.harmless), (plain.bound, clustered.bound)):
        kept = [(a, b) for a, b in zip(one, other, strict=True) if a < log(10)]
        assert [b for _, b in kept] == pytest.approx([a / 4 for a, _ in kept])
    # S_k = g e_k after one poll, with one g for both.
    ratios = [(log(a), log(b)) for a, b in zip(plain.harm[0], clustered.harm[0], strict=True)]
    fresh = (4 * ratios[0][1] - ratios[0][0]) / 3
    assert all(b - fresh == pytest.approx((a - fresh) / 4) for a, b in ratios)


def test_splitting_the_candidate_into_pods_changes_no_evidence() -> None:
    one = after(plan(), [at(i, 2.0) for i in range(10)]).metrics["errors"]
    many = after(plan(), [at(i, {f"p{k}": 2.0 for k in range(8)}) for i in range(10)]).metrics["errors"]
    assert many.harm[0] == pytest.approx(one.harm[0])
    assert many.harmless == pytest.approx(one.harmless)


def test_only_polls_that_begin_settled_prove_harmless() -> None:
    the_plan = plan()
    state = after(the_plan, [at(i) for i in range(3)], raised=0)
    # Of the polls that begin at 0, 15 and 30 s only the last begins 30 s after the raise.
    settled = after(the_plan, [at(2)], raised=0)
    assert state.metrics["errors"].harmless == settled.metrics["errors"].harmless
    assert state.metrics["errors"].bound == settled.metrics["errors"].bound
    assert judge(the_plan, state).settled_polls == 1
    assert state.metrics["errors"].polls == 3


def test_before_any_raise_no_poll_is_settled() -> None:
    the_plan = plan()
    state = consume(the_plan, begin(the_plan, None), [at(i) for i in range(20)])
    assert (judge(the_plan, state).settled_polls, judge(the_plan, state).harmless) == (0, False)


def test_a_partial_poll_is_evidence_but_no_settled_poll() -> None:
    the_plan = plan()
    found = judge(the_plan, after(the_plan, [at(i, partial=True) for i in range(20)]))
    assert (found.harmless, found.settled_polls) == (True, 0)


# Weights and steps


def test_harmless_starts_anew_above_the_former_maximum_only() -> None:
    the_plan = plan()
    state = after(the_plan, [at(i) for i in range(40)], weight=20)
    assert judge(the_plan, state).harmless
    assert judge(the_plan, raise_weight(state, 20, 600)).harmless
    higher = raise_weight(state, 21, 600)
    assert not judge(the_plan, higher).harmless
    assert judge(the_plan, higher).settled_polls == 0
    assert higher.metrics["errors"].harm == state.metrics["errors"].harm
    assert higher.metrics["errors"].bound == state.metrics["errors"].bound


def test_a_step_counts_its_own_settled_polls() -> None:
    the_plan = plan()
    state = after(the_plan, [at(i) for i in range(12)])
    assert judge(the_plan, state).settled_polls == 12
    state = new_step(state)
    assert judge(the_plan, state).settled_polls == 0
    assert judge(the_plan, consume(the_plan, state, [at(12), at(13)])).settled_polls == 2


# Latency


def test_latency_averages_harm_over_cuts_and_proves_harmless_at_the_slo() -> None:
    the_plan = plan(metric("lat", "latency", slo=0.5))
    state = begin(the_plan, None, cuts={"lat": (0.1, 0.5, 1.0)})
    state = raise_weight(state, 50, -30)
    assert state.metrics["lat"].slo == 1
    slow_tail = MetricPoll(Arm(1000, (300, 50, 10)), {"p": Arm(1000, (300, 50, 60))})
    state = consume(the_plan, state, [Poll(15 * i, 15 * i + 15, {"lat": slow_tail}) for i in range(20)])
    found = judge(the_plan, state)
    assert found.metrics[0].baseline_bad == 1000
    # A tail that is slower above the SLO is harm; at the SLO itself both sides are equal.
    assert found.metrics[0].log_harm > log(100)
    assert found.metrics[0].harmless


@pytest.mark.parametrize(
    ("slo", "index"),
    [
        pytest.param(0.5, 1, id="the bound itself"),
        pytest.param(0.7, 1, id="between bounds the lower one"),
        pytest.param(9.0, 2, id="above all the highest"),
        pytest.param(0.01, 0, id="below all the lowest"),
        pytest.param(None, 1, id="none given the middle one"),
    ],
)
def test_the_cut_that_stands_for_the_slo(slo: float | None, index: int) -> None:
    the_plan = plan(metric("lat", "latency", slo=slo))
    assert begin(the_plan, None, cuts={"lat": (0.1, 0.5, 1.0)}).metrics["lat"].slo == index


def test_latency_without_cuts_waits_for_them() -> None:
    the_plan = plan(metric("lat", "latency", slo=0.5))
    state = begin(the_plan, None)
    polled = consume(the_plan, raise_weight(state, 1, 0), [at(0, names=("lat",))])
    assert judge(the_plan, polled).verdict == Verdict.NO_DATA
    ready = begin(the_plan, polled, cuts={"lat": (0.5,)})
    later = consume(the_plan, ready, [at(1, names=("lat",))])
    assert later.metrics["lat"].polls == 1
    assert begin(the_plan, later, cuts={"lat": (0.7,)}).metrics["lat"].cuts == (0.5,)


# Edits


def test_beginning_again_with_the_same_plan_changes_nothing() -> None:
    tests = (
        metric(),
        metric("quality", "score"),
        metric("lat", "latency", slo=1.0),
        metric("dry", gating=False),
    )
    the_plan = plan(*tests)
    names = tuple(t.name for t in tests)
    state = after(the_plan, [at(i, names=names) for i in range(5)], cuts=(1.0,))
    assert begin(the_plan, state) == state


KEEPS: dict[str, tuple[Plan, bool]] = {
    "the length of steps does not matter": (plan(interval=30, settle=60), True),
    "another metric beside it does not matter": (plan(metric(), metric("new")), True),
    "an edited margin is a new test": (plan(metric(harm=Margin(1.1, 0.00025))), False),
    "another selector is a new test": (plan(metric(selectors="other")), False),
    "another kind is a new test": (plan(metric(kind="score")), False),
    "another alpha is a new test": (plan(false_rollback=0.02), False),
    "another attempt is a new test": (plan(attempt=2), False),
    "another candidate is a new test": (plan(candidate="c"), False),
    "another baseline is a new test": (plan(baseline="c"), False),
    "becoming a dry run is a new test": (plan(metric(gating=False), metric("new")), False),
}


@pytest.mark.parametrize(("edited", "kept"), KEEPS.values(), ids=KEEPS.keys())
def test_an_edit_keeps_evidence_only_for_the_same_question(edited: Plan, kept: bool) -> None:
    state = after(plan(), [at(i) for i in range(5)])
    assert (begin(edited, state).metrics["errors"].polls == 5) is kept


def test_another_beta_keeps_harm_and_starts_harmless_anew() -> None:
    state = after(plan(), [at(i) for i in range(40)])
    edited = begin(plan(false_promotion=0.01), state)
    assert edited.metrics["errors"].harm == state.metrics["errors"].harm
    assert set(edited.metrics["errors"].harmless) == {0.0}


def test_an_edited_metric_starts_with_no_more_than_what_it_was_worth() -> None:
    state = after(plan(), [at(i, GOOD) for i in range(60)])
    worth = capital(state.metrics["errors"])
    assert worth < 0.5
    edited = begin(plan(metric(harm=Margin(1.1, 0.00025))), state)
    assert edited.metrics["errors"].stake == pytest.approx(worth)


def test_an_added_metric_is_paid_by_those_that_stay() -> None:
    state = after(plan(), [at(i) for i in range(3)])
    worth = capital(state.metrics["errors"])
    both = begin(plan(metric(), metric("new")), state)
    assert both.metrics["new"].stake == pytest.approx(worth / 2)
    assert capital(both.metrics["errors"]) == pytest.approx(worth / 2)


def test_capital_of_a_removed_metric_waits_for_one_that_is_added_later() -> None:
    tests = (metric(), metric("quality", "score"))
    state = after(plan(*tests), [at(0, names=("errors", "quality"))])
    alone = begin(plan(metric()), state)
    assert alone.reserve == pytest.approx(capital(state.metrics["quality"]))
    again = begin(plan(*tests), alone)
    paid_by_the_other = capital(alone.metrics["errors"]) - capital(again.metrics["errors"])
    assert again.metrics["quality"].stake == pytest.approx(alone.reserve + paid_by_the_other)
    assert again.reserve == 0


EDITS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4, unique=True),
        st.sampled_from(["s", "t"]),
        st.floats(0.1, 5),
        st.sampled_from([GOOD, EQUAL, BAD]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(edits=EDITS)
def test_no_sequence_of_edits_creates_capital(
    edits: list[tuple[list[str], str, float, float, bool]],
) -> None:
    state: State | None = None
    for i, (names, selectors, weight, factor, gating) in enumerate(edits):
        tests = [metric(n, selectors=selectors, weight=weight if n == "a" else 1.0) for n in names]
        tests[0] = replace(tests[0], gating=gating)
        the_plan = plan(*tests)
        before = _capital(state) if state else 1.0
        state = begin(the_plan, state)
        assert _capital(state) <= before * (1 + 1e-9)
        state = consume(the_plan, state, [at(i, factor, names=tuple(names))])


def _capital(state: State) -> float:
    return state.reserve + sum(capital(m) for m in state.metrics.values())


# State


def test_a_state_survives_json_at_any_poll_and_goes_on_alike() -> None:
    tests = (metric(), metric("quality", "score"), metric("lat", "latency", slo=1.0))
    the_plan, names = plan(*tests), tuple(t.name for t in tests)
    polls = [at(i, {"p1": 1.3, "p2": 0.7, "p3": EQUAL}, names=names) for i in range(30)]
    straight = after(the_plan, polls, cuts=(1.0,))
    state = after(the_plan, [], cuts=(1.0,))
    for poll in polls:
        state = consume(the_plan, load(json.loads(json.dumps(dump(state)))), [poll])
    for one, other in zip(judge(the_plan, straight).metrics, judge(the_plan, state).metrics, strict=True):
        assert one.log_harm == pytest.approx(other.log_harm, abs=1e-5)
        assert one.log_harmless == pytest.approx(other.log_harmless, abs=1e-5)
        assert one.ratio == pytest.approx(other.ratio, rel=1e-4)
        assert one.baseline_bad == other.baseline_bad
        for group in range(3):
            kept = [_flat(s.metrics[one.name].without[group]) for s in (straight, state)]
            assert kept[0] == pytest.approx(kept[1], rel=1e-5)
    assert judge(the_plan, straight).verdict == judge(the_plan, state).verdict
    assert load(dump(state)).consumed == state.consumed


def _flat(mixtures: Sequence[Sequence[float]]) -> list[float]:
    return [value for mixture in mixtures for value in mixture]


@pytest.mark.parametrize("kind", ["ratio", "score", "latency"])
def test_a_state_takes_a_few_kilobytes_per_metric(kind: Kind) -> None:
    cuts = tuple(0.1 * (i + 1) for i in range(9)) if kind == "latency" else ()
    pods = {f"p{k}": 1.37 for k in range(4)}
    state = after(
        plan(metric(kind=kind, slo=0.5)), [at(i, pods, cuts=len(cuts) or 1) for i in range(50)], cuts=cuts
    )
    assert len(json.dumps(dump(state))) < (7500 if kind == "latency" else 4000)


@pytest.mark.parametrize(
    "broken", [{}, {"format": 99}, {"format": 1}, {"format": 1, "metrics": []}], ids=repr
)
def test_a_state_that_was_not_written_here_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"status\.evidence"):
        load(broken)


def test_overwhelming_evidence_stays_finite_and_can_be_stored() -> None:
    the_plan = plan()
    state = after(the_plan, [at(i, 100.0) for i in range(2000)])
    assert judge(the_plan, load(json.loads(json.dumps(dump(state))))).harm


# What is still needed, and whether the weight may grow


def test_remaining_shrinks_to_nothing_and_is_given_in_seconds_too() -> None:
    the_plan = plan()
    early = judge(the_plan, after(the_plan, [at(0)])).metrics[0]
    late = judge(the_plan, after(the_plan, [at(i) for i in range(5)])).metrics[0]
    done = judge(the_plan, after(the_plan, [at(i) for i in range(40)])).metrics[0]
    assert early.remaining is not None
    assert late.remaining is not None
    assert early.remaining > late.remaining > 0
    assert early.remaining_seconds == pytest.approx(early.remaining / 50)
    assert done.remaining == 0


def test_clustering_makes_what_remains_longer() -> None:
    the_plan, needed = plan(), []
    for phi in (1.0, 4.0):
        state = raise_weight(begin(the_plan, None, phi={"errors": phi}), 50, 0)
        # Not settled yet, so nothing of it is evidence of being harmless.
        found = judge(the_plan, consume(the_plan, state, [at(0)])).metrics[0].remaining
        assert found is not None
        needed.append(found)
    assert needed[1] == pytest.approx(4 * needed[0], rel=1e-3)


def test_remaining_is_unknown_where_nothing_can_be_compared() -> None:
    the_plan = plan()
    state = after(the_plan, [at(0)])
    assert judge(the_plan, state, weight=0).metrics[0].remaining is None
    assert judge(the_plan, state, weight=100).metrics[0].remaining is None


def test_scores_that_come_late_do_not_keep_the_weight() -> None:
    the_plan = plan(metric(), metric("quality", "score"))
    found = judge(the_plan, after(the_plan, [at(i) for i in range(40)]))
    assert (found.settled_polls, found.step_polls) == (0, 40)
    given = {"settle": 30, "scrape_interval": 15, "delay": 0, "interval": 15, "exposure_budget": 120}
    assert may_advance(found, 50, rate=1000, **given)


def advance_to(
    weight: float,
    polls: int,
    *,
    factor: float = EQUAL,
    rate: float | None = 1000,
    delay: float = 0,
    **kinds: Kind,
) -> bool:
    the_plan = plan(*(metric(n, k) for n, k in (kinds or {"errors": "ratio"}).items()))
    names = tuple(t.name for t in the_plan.metrics)
    state = after(the_plan, [at(i, factor, names=names) for i in range(polls)], weight=1)
    return may_advance(
        judge(the_plan, state, weight=1),
        weight,
        settle=30,
        scrape_interval=15,
        delay=delay,
        interval=15,
        exposure_budget=120,
        rate=rate,
    )


ADVANCES: dict[str, tuple[Callable[[], bool], bool]] = {
    "no settled poll, no growth": (lambda: advance_to(2, 0), False),
    "one poll can refute nothing, because of the cap": (lambda: advance_to(2, 1), False),
    "two polls of 1000 allow a little": (lambda: advance_to(2, 2), True),
    "but not all if it looks twice as bad": (lambda: advance_to(50, 2, factor=2.0), False),
    "many polls of an equal candidate allow all": (lambda: advance_to(50, 40), True),
    "but not if samples come late": (lambda: advance_to(50, 40, delay=3600), False),
    "a candidate that looks four times worse stays small": (lambda: advance_to(50, 40, factor=4.0), False),
    "a slow service may risk a few bad events": (lambda: advance_to(50, 1, rate=0.05), True),
    "an unknown rate counts as a fast one": (lambda: advance_to(50, 1, rate=None), False),
    "a metric without data keeps the weight": (lambda: advance_to(2, 0, rate=1e-6), False),
    "scores do not gate": (lambda: advance_to(50, 1, quality="score"), True),
}


@pytest.mark.parametrize(("found", "expected"), ADVANCES.values(), ids=ADVANCES.keys())
def test_may_advance(found: Callable[[], bool], expected: bool) -> None:
    assert found() is expected
