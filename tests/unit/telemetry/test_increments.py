"""From raw samples to increments: the rules, one by one."""

from collections.abc import Mapping, Sequence

import pytest

from modelrollout.evidence.poll import Arm
from modelrollout.telemetry.increments import (
    Counters,
    Latency,
    Measured,
    Ratio,
    Score,
    Shape,
    measure,
    reach,
)
from modelrollout.telemetry.samples import RawSeries
from modelrollout.telemetry.sides import Pod, Side, Sides

INTERVAL = 15.0
OLD = Pod("s-1", ready_since=-1000, started=-1100)
NEW = Pod("c-1", ready_since=-1000, started=-1100)


def series(
    pod: str, samples: Mapping[float, float], broken: Sequence[float] = (), **labels: str
) -> RawSeries:
    every = {"pod": pod, "instance": f"{pod}:8080", "job": "pods", **labels}
    return RawSeries(every, tuple(samples), tuple(samples.values()), tuple(broken))


def run(
    total: Sequence[RawSeries],
    parts: Sequence[RawSeries] = (),
    *,
    shape: Shape | None = None,
    cuts: Sequence[float] = (100.0, 115.0),
    old: Pod = OLD,
    new: Pod = NEW,
    warmup: float = 30.0,
    up: Sequence[RawSeries] = (),
) -> Measured:
    sides = Sides(Side({old.name: old}), Side({new.name: new}))
    lower = cuts[0] - reach(INTERVAL)
    for one in (*total, *parts, *up):
        assert all(lower < t <= cuts[-1] for t in one.times), "a sample that the query would not return"
    return measure(
        Counters(total, parts, up), shape or Ratio(), sides=sides, cuts=cuts, interval=INTERVAL, warmup=warmup
    )


def pods(measured: Measured, poll: int = 0) -> tuple[Arm, Mapping[str, Arm]]:
    return measured.polls[poll].baseline, measured.polls[poll].candidate_pods


def test_an_increment_belongs_to_the_poll_of_its_later_sample() -> None:
    got = run(
        [series("s-1", {90: 5, 105: 8, 120: 20}), series("c-1", {100: 7, 115: 9, 130: 10})],
        cuts=(100, 115, 130),
    )
    assert pods(got, 0) == (Arm(3, (0,)), {"c-1": Arm(2, (0,))})
    assert pods(got, 1) == (Arm(12, (0,)), {"c-1": Arm(1, (0,))})
    assert not got.troubles
    assert not got.polls[0].partial


def test_a_sample_at_the_cut_belongs_to_the_poll_that_ends_there() -> None:
    assert pods(run([series("s-1", {100: 5, 115: 8})]))[0].n == 3
    assert pods(run([series("s-1", {85: 1, 100: 5})]))[0].n == 0


def test_all_series_of_a_pod_are_summed() -> None:
    got = run(
        [series("c-1", {95: 1, 110: 3}, code="200"), series("c-1", {95: 1, 110: 2}, code="500")],
        [series("c-1", {95: 1, 110: 2}, code="500")],
    )
    assert pods(got)[1] == {"c-1": Arm(3, (1,))}


def test_bad_requests_are_zero_as_long_as_only_the_total_has_samples() -> None:
    assert pods(run([series("c-1", {95: 1, 110: 4})]))[1] == {"c-1": Arm(3, (0,))}


def test_bad_requests_without_a_total_are_no_data() -> None:
    got = run([series("s-1", {95: 1, 110: 4})], [series("c-1", {95: 1, 110: 2})])
    assert pods(got)[1] == {}
    assert got.seen == {"baseline": frozenset({"s-1"}), "candidate": frozenset()}


def test_the_first_error_counts_if_the_target_was_scraped_before() -> None:
    total = [series("c-1", {80: 1, 95: 1, 110: 4})]
    assert pods(run(total, [series("c-1", {110: 2}, code="500")]))[1] == {"c-1": Arm(3, (2,))}


def test_a_new_series_counts_from_zero_also_when_only_up_shows_the_scrape() -> None:
    total = [series("c-1", {110: 4})]
    assert pods(run(total))[1] == {}
    up = [series("c-1", {80: 1, 95: 1, 110: 1})]
    assert pods(run(total, up=up))[1] == {"c-1": Arm(4, (0,))}
    failed = [series("c-1", {80: 0, 95: 0, 110: 1})]
    assert pods(run(total, up=failed))[1] == {}
    other = [series("c-1", {80: 1, 95: 1, 110: 1}, instance="another target of the pod")]
    assert pods(run(total, up=other))[1] == {}


def test_a_new_pod_counts_from_zero_only_if_its_container_just_started() -> None:
    total = [series("c-1", {110: 4})]
    fresh = Pod("c-1", ready_since=102, started=101)
    assert pods(run(total, new=fresh, warmup=0))[1] == {}, "before it was ready nothing counts"
    fresh = Pod("c-1", ready_since=101, started=101)
    assert pods(run(total, new=fresh, warmup=0))[1] == {"c-1": Arm(4, (0,))}
    known_long = Pod("c-1", ready_since=0, started=0)
    got = run(total, new=known_long, warmup=0)
    assert pods(got)[1] == {}
    assert got.polls[0].partial
    side_car = Pod("c-1", ready_since=0, started=0, restarted=101)
    assert pods(run(total, new=side_car, warmup=0))[1] == {}, "only a side car started"


def test_a_reset_with_a_restart_counts_from_zero_for_all_series_of_the_target() -> None:
    restarted = Pod("c-1", ready_since=-1000, started=104)
    got = run(
        [series("c-1", {95: 100, 110: 9}, code="200"), series("c-1", {95: 2, 110: 3}, code="500")],
        [series("c-1", {95: 2, 110: 3}, code="500")],
        new=restarted,
    )
    assert pods(got)[1] == {"c-1": Arm(12, (3,))}, "the errors after the restart are 3, not 3 - 2"
    assert not got.troubles
    assert not got.polls[0].partial


def test_a_reset_without_a_restart_is_inconsistent() -> None:
    got = run([series("c-1", {95: 100, 110: 9})])
    assert [(t.reason, t.start) for t in got.troubles] == [("CountersInconsistent", 110)]
    assert got.trouble_in(100, 115)
    assert not got.trouble_in(115, 130)
    assert not run([series("c-1", {80: 100, 95: 9, 110: 10})]).trouble_in(100, 115), "it lies before the cut"


def test_bad_requests_that_fall_alone_are_inconsistent() -> None:
    got = run([series("c-1", {95: 100, 110: 101})], [series("c-1", {95: 5, 110: 1})])
    assert [t.reason for t in got.troubles] == ["CountersInconsistent"]


def test_bad_requests_that_fall_tell_of_a_restart_that_the_total_hides() -> None:
    restarted = Pod("c-1", ready_since=-1000, started=104)
    got = run([series("c-1", {95: 10, 110: 40})], [series("c-1", {95: 5, 110: 3})], new=restarted)
    assert pods(got)[1] == {"c-1": Arm(40, (3,))}


def test_a_restart_that_no_counter_shows_is_not_counted() -> None:
    restarted = Pod("c-1", ready_since=-1000, started=-1100, restarted=104)
    got = run([series("c-1", {95: 1000, 110: 1010})], new=restarted)
    assert pods(got)[1] == {}
    assert got.polls[0].partial
    after = run([series("c-1", {95: 1000, 110: 1010, 125: 1020})], new=restarted, cuts=(100, 115, 130))
    assert pods(after, 1)[1] == {"c-1": Arm(10, (0,))}


def test_samples_far_apart_are_a_new_baseline_and_make_the_poll_partial() -> None:
    got = run(
        [series("s-1", {95: 10, 110: 12, 140: 15, 190: 99, 205: 100})],
        cuts=(100, 115, 130, 145, 160, 175, 190, 205),
    )
    assert [poll.baseline.n for poll in got.polls] == [2, 0, 3, 0, 0, 0, 1]
    assert [poll.partial for poll in got.polls] == [False, False, False, False, False, True, False]


def test_one_missed_scrape_loses_nothing() -> None:
    assert pods(run([series("s-1", {80: 1, 110.4: 4})]))[0].n == 3


@pytest.mark.parametrize("label", ["job", "endpoint", "instance", "replica", "prometheus_replica"])
def test_two_targets_of_a_pod_are_duplicates(label: str) -> None:
    got = run(
        [series("s-1", {95: 1, 110: 2}, **{label: "a"}), series("s-1", {96: 1, 111: 2}, **{label: "b"})]
    )
    (trouble,) = got.troubles
    assert trouble.reason == "DuplicateSeries"
    assert trouble.text == f"pod s-1 has series with {label} 'a' and 'b': pick one in the selector"
    assert got.trouble_in(100, 115)


def test_a_pod_that_got_a_new_address_is_no_duplicate() -> None:
    got = run(
        [series("s-1", {80: 50, 95: 60}, instance="a"), series("s-1", {110: 3}, instance="b")],
        old=Pod("s-1", ready_since=-1000, started=101),
    )
    assert not got.troubles
    assert pods(got)[0] == Arm(3, (0,))


def test_duplicates_that_ended_trouble_only_the_polls_they_touch() -> None:
    got = run(
        [
            series("s-1", {95: 1, 110: 2, 125: 3, 140: 4}, replica="a"),
            series("s-1", {96: 1, 111: 2}, replica="b"),
        ],
        cuts=(100, 115, 130, 145),
    )
    assert [bool(got.trouble_in(start, start + 15)) for start in (100, 115, 130)] == [True, False, False]


def test_warm_up_is_counted_once_from_the_first_readiness() -> None:
    samples = {95: 10, 110: 20, 125: 40, 140: 80, 155: 160}
    cuts = (100, 115, 130, 145, 160)
    young = Pod("c-1", ready_since=95, started=70)
    got = run([series("c-1", samples)], new=young, cuts=cuts, warmup=30)
    assert [sum(a.n for a in p.candidate_pods.values()) for p in got.polls] == [0, 0, 40, 80]
    assert not any(p.partial for p in got.polls)
    again = Pod("c-1", ready_since=-1000, started=104)
    got = run([series("c-1", {95: 10, 110: 2, 125: 4})], new=again, cuts=(100, 115, 130), warmup=30)
    assert [sum(a.n for a in p.candidate_pods.values()) for p in got.polls] == [2, 2], (
        "a restart is no new warm-up"
    )
    never = Pod("c-1", ready_since=None, started=70)
    assert pods(run([series("c-1", {95: 10, 110: 20})], new=never))[1] == {}


@pytest.mark.parametrize(
    ("pod", "warmup", "untold"),
    [
        pytest.param(
            Pod("c-1", ready_since=-1000, started=-1100), 30, [False] * 3, id="a pod that was ready"
        ),
        pytest.param(
            Pod("c-1", started=100), 0, [True] * 3, id="a pod of which nobody has told that it is ready"
        ),
        pytest.param(Pod("c-1", started=100), 30, [False, False, True], id="not before it could be warm"),
        pytest.param(
            Pod("c-1", ready_since=124, started=100), 0, [False] * 3, id="one that was not ready then"
        ),
        pytest.param(Pod("c-2"), 0, [True] * 3, id="a pod that nobody knows"),
    ],
)
def test_requests_that_count_once_their_pod_is_known_are_told(
    pod: Pod, warmup: float, untold: list[bool]
) -> None:
    samples = {103: 1, 118: 11, 131: 21, 140: 31}
    sides = Sides(Side({OLD.name: OLD}), Side({pod.name: pod}, workload="c"))
    name = pod.name if pod.name == "c-1" else "c-6d4f9-abcde"
    got = measure(
        Counters([series(name, samples)], []),
        Ratio(),
        sides=sides,
        cuts=(102, 117, 130, 145),
        interval=INTERVAL,
        warmup=warmup,
    )
    assert list(got.untold) == untold


def test_a_pod_without_requests_is_waited_for_by_nobody() -> None:
    got = run([series("c-1", {95: 10, 110: 10})], new=Pod("c-1", started=70), warmup=0)
    assert got.untold == (False,)


def test_a_nan_troubles_its_poll_and_the_next_sample_is_only_a_baseline_for_all_series() -> None:
    got = run(
        [series("c-1", {95: 10, 110: 20, 125: 30, 140: 40})],
        [series("c-1", {95: 1, 125: 3, 140: 4}, broken=[110], code="500")],
        cuts=(100, 115, 130, 145),
    )
    assert [t.reason for t in got.troubles] == ["NotANumber"]
    assert got.trouble_in(100, 115)
    assert [dict(p.candidate_pods) for p in got.polls] == [{}, {}, {"c-1": Arm(10, (1,))}]


@pytest.mark.parametrize(
    ("shape", "sums", "counts", "bad"),
    [
        pytest.param(
            Score(0, 1), (5.0, 12.5), (10, 20), 2.5, id="higher is better: what is missing to the best"
        ),
        pytest.param(Score(0, 1, "Lower"), (5.0, 12.5), (10, 20), 7.5, id="lower is better: the sum"),
        pytest.param(Score(1, 5), (30.0, 65.0), (10, 20), 3.75, id="a range is scaled to one"),
        pytest.param(
            Score(-1, 1), (5.0, 3.0), (10, 20), 6.0, id="a sum may fall where values may be negative"
        ),
    ],
)
def test_a_score_is_a_bad_mass(
    shape: Score, sums: tuple[float, float], counts: tuple[float, float], bad: float
) -> None:
    got = run(
        [series("c-1", {95: counts[0], 110: counts[1]})],
        [series("c-1", {95: sums[0], 110: sums[1]})],
        shape=shape,
    )
    assert pods(got)[1] == {"c-1": Arm(10, (bad,))}
    assert not got.troubles


def test_a_score_out_of_its_range_is_said() -> None:
    got = run([series("c-1", {95: 10, 110: 20})], [series("c-1", {95: 5, 110: 40})], shape=Score(0, 1))
    assert [t.reason for t in got.troubles] == ["ScoreOutOfRange"]
    late = run([series("c-1", {95: 10, 110: 20})], [series("c-1", {95: 5, 110: 16})], shape=Score(0, 1))
    assert not late.troubles, "sum and count are not written at one instant"
    assert pods(late)[1] == {"c-1": Arm(10, (0,))}


def test_a_count_without_a_sum_is_missing_data() -> None:
    assert [t.reason for t in run([series("c-1", {95: 10, 110: 20})], shape=Score(0, 1)).troubles] == [
        "SumMissing"
    ]


def test_a_sum_that_falls_with_the_count_is_a_reset() -> None:
    restarted = Pod("c-1", ready_since=-1000, started=104)
    got = run(
        [series("c-1", {95: 100, 110: 10})],
        [series("c-1", {95: 3, 110: 8})],
        shape=Score(0, 1),
        new=restarted,
    )
    assert pods(got)[1] == {"c-1": Arm(10, (2,))}


@pytest.mark.parametrize("shape", [Ratio(), Score(0, 1), Latency((0.25,))], ids=["ratio", "score", "latency"])
@pytest.mark.parametrize("falls", ["total", "part"])
def test_a_counter_that_falls_by_what_was_rounded_stands_still(shape: Shape, falls: str) -> None:
    above, below = 0.1 + 0.2, 0.3
    assert below < above
    times = {95: above, 110: below} if falls == "total" else {95: above, 110: above}
    less = {95: above, 110: below} if falls == "part" else {95: 0.1, 110: 0.1}
    got = run([series("c-1", times, le="+Inf")], [series("c-1", less, le="0.25")], shape=shape)
    assert all(min(arm.n, *arm.x) >= 0 for arm in pods(got)[1].values())
    assert not got.troubles


def test_bad_requests_that_fall_by_what_was_rounded_are_none() -> None:
    got = run([series("c-1", {95: 10, 110: 14})], [series("c-1", {95: 0.1 + 0.2, 110: 0.3})])
    assert pods(got)[1] == {"c-1": Arm(4, (0,))}


def buckets(pod: str, *, les: Mapping[str, tuple[float, float]]) -> list[RawSeries]:
    return [series(pod, {95: a, 110: b}, le=le) for le, (a, b) in les.items()]


def test_latency_counts_what_is_slower_than_each_bound() -> None:
    parts = buckets("c-1", les={"0.10": (5, 12), "0.25": (8, 17), "1.0": (10, 20)})
    total = buckets("c-1", les={"+Inf": (10, 20)})
    got = run(total, parts, shape=Latency((0.1, 0.25, 1.0)))
    assert pods(got)[1] == {"c-1": Arm(10, (3, 1, 0))}
    assert not got.troubles


def test_buckets_are_compared_as_numbers_and_must_be_there() -> None:
    total = buckets("c-1", les={"+Inf": (10, 20)}) + buckets("s-1", les={"+Inf": (10, 20)})
    parts = buckets("c-1", les={"0.250": (8, 17)}) + buckets("s-1", les={"0.25": (8, 17), "0.5": (9, 18)})
    assert not run(total, parts, shape=Latency((0.25,))).troubles
    got = run(total, parts, shape=Latency((0.25, 0.5)))
    assert [t.text for t in got.troubles] == [
        "pod c-1 has no bucket with le=0.5: give both revisions the same buckets"
    ]


def test_pods_are_known_by_their_deployment_when_nobody_remembers_them() -> None:
    sides = Sides(
        Side({}, workload="fraud-aaaaaaaaaa"),
        Side({"odd": Pod("odd")}, workload="fraud-bbbbbbbbbb"),
    )
    assert sides.locate(series("fraud-aaaaaaaaaa-6d5f7c9b8-x2x4z", {})) == (
        "baseline",
        "fraud-aaaaaaaaaa-6d5f7c9b8-x2x4z",
    )
    assert sides.locate(series("fraud-bbbbbbbbbb-6d5f7c9b8-x2x4z", {})) == (
        "candidate",
        "fraud-bbbbbbbbbb-6d5f7c9b8-x2x4z",
    )
    assert sides.locate(series("odd", {})) == ("candidate", "odd")
    another_rollout = "fraud-aaaaaaaaaa-cccccccccc-6d5f7c9b8-x2x4z"
    assert sides.locate(series(another_rollout, {})) is None
    assert sides.locate(series("fraud-aaaaaaaaaa", {})) is None
    gone = "fraud-bbbbbbbbbb-6d5f7c9b8-x2x4z"
    got = measure(
        Counters([series(gone, {95: 1, 110: 4})], []),
        Ratio(),
        sides=sides,
        cuts=(100, 115),
        interval=15,
        warmup=30,
    )
    assert pods(got)[1] == {gone: Arm(3, (0,))}


def test_very_long_names_are_cut_as_the_api_server_cuts_them() -> None:
    name = "n" * 52
    sides = Sides(Side({}, workload=f"{name}-aaaaaaaaaa"), Side({}, workload=f"{name}-bbbbbbbbbb"))
    pod = f"{name}-aaaaaaaaaa-6d5f7c9b8-"[:58] + "x2x4z"
    assert sides.locate(series(pod, {})) == ("baseline", pod)


@pytest.mark.parametrize("cuts", [(100.0,), (100.0, 100.0), (100.0, 90.0)])
def test_cuts_must_ascend(cuts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending cuts"):
        measure(Counters([], []), Ratio(), sides=Sides(Side(), Side()), cuts=cuts, interval=15, warmup=0)
