"""Where a latency test looks."""

from math import inf

import pytest

from modelrollout.evidence.cuts import choose_cuts

# 1000 past requests; tails 60 %, 40 %, 5 %, 1 %, .05 %.
PAST = [(0.1, 400), (0.25, 600), (0.5, 950), (1.0, 990), (2.5, 999.5), (inf, 1000)]

CASES: dict[str, tuple[list[tuple[float, float]], float | None, tuple[float, ...], float | None, str]] = {
    "bounds with a tail between .1 % and 50 %": (PAST, 0.5, (0.25, 0.5, 1.0), 0.5, ""),
    "the SLO is always among them": (PAST, 2.5, (0.25, 0.5, 1.0, 2.5), 2.5, ""),
    "an SLO that is no bound uses the next lower one and says so": (
        *(PAST, 0.8, (0.25, 0.5, 1.0), 0.5),
        "the SLO of 0.8s is no bucket bound: the next lower one, 0.5s, is used",
    ),
    "an SLO below all buckets uses the lowest and says so": (
        *(PAST, 0.05, (0.1, 0.25, 0.5, 1.0), 0.1),
        "the SLO of 0.05s is below all buckets: the lowest, 0.1s, is used",
    ),
    "an SLO that differs in the last digit is that bound": (PAST, 0.5 + 1e-12, (0.25, 0.5, 1.0), 0.5, ""),
    "without a past only the SLO": (
        *([(0.1, 0), (0.5, 0), (inf, 0)], 0.5, (0.5,), 0.5),
        "no past requests: only the SLO's bucket is compared",
    ),
    "without buckets none": ([], 0.5, (), None, "the histogram has no buckets yet"),
    "without an SLO the middle stands for it": (PAST, None, (0.25, 0.5, 1.0), 0.5, ""),
    "buckets may come in any order": (PAST[::-1], 0.5, (0.25, 0.5, 1.0), 0.5, ""),
}


@pytest.mark.parametrize(("past", "slo", "cuts", "slo_cut", "note"), CASES.values(), ids=CASES.keys())
def test_choice(
    past: list[tuple[float, float]],
    slo: float | None,
    cuts: tuple[float, ...],
    slo_cut: float | None,
    note: str,
) -> None:
    assert choose_cuts(past, slo) == (cuts, slo_cut, note)


def test_at_most_eight_and_the_slo_spread_over_the_tail() -> None:
    past = [(0.01 * (i + 1), 1000 * (1 - 0.8 ** (i + 1))) for i in range(30)]
    cuts, slo_cut, _ = choose_cuts([*past, (inf, 1000)], 0.15)
    assert len(cuts) == 9 or (len(cuts) == 8 and 0.15 in cuts)
    assert slo_cut == pytest.approx(0.15)
    assert cuts == tuple(sorted(set(cuts)))
    assert cuts[0] == pytest.approx(0.04)  # tail 41 %
    assert cuts[-1] == pytest.approx(0.30)  # tail .12 %
