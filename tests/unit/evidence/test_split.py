"""Does the traffic follow the weight?"""

import pytest

from modelrollout.evidence.split import Split, observe


def see(weight: int, *polls: tuple[float, float], phi: float = 1.0, split: Split | None = None) -> Split:
    split = split or Split()
    for candidate, baseline in polls:
        split = observe(split, weight=weight, candidate=candidate, baseline=baseline, phi=phi)
    return split


CASES: dict[str, tuple[Split, bool]] = {
    "exactly the weight is on": (see(10, *[(100, 900)] * 3), False),
    "half of the weight is off": (see(10, *[(100, 1900)] * 3), True),
    "twice the weight is off": (see(10, *[(200, 800)] * 3), True),
    "no candidate traffic at all is off": (see(10, *[(0, 1000)] * 3), True),
    "20 % off is within the band": (see(10, *[(1200, 8800)] * 3), False),
    "two polls are not enough": (see(10, *[(0, 5000)] * 2), False),
    "fewer than 1000 requests are not enough": (see(50, *[(50, 250)] * 3), False),
    "fewer than 200 expected on the smaller side are not enough": (see(1, *[(0, 5000)] * 3), False),
    "200 expected on the smaller side are enough": (see(1, *[(0, 7000)] * 3), True),
    "outside of the band but within four deviations is on": (see(20, *[(89, 245)] * 3, phi=9), False),
    "the same without clustering is off": (see(20, *[(89, 245)] * 3), True),
    "exactly the weight is on above 50 % too": (see(90, *[(900, 100)] * 3), False),
    "above 50 % the band is that of the smaller side": (see(90, *[(800, 200)] * 3), True),
    "a split of halves may be off": (see(50, *[(300, 700)] * 3), True),
    "another weight starts a new window": (see(20, (200, 800), split=see(10, *[(200, 800)] * 2)), False),
    "weight 0 is not checked": (see(0, *[(500, 500)] * 3), False),
}


@pytest.mark.parametrize(("split", "off"), CASES.values(), ids=CASES.keys())
def test_split(split: Split, off: bool) -> None:
    assert split.off is off


def test_it_is_cleared_by_the_next_pooled_window_inside() -> None:
    off = see(10, *[(200, 800)] * 3)
    assert off.off
    assert off.observed == pytest.approx(0.2)
    assert see(10, (100, 900), split=off).off
    assert not see(10, *[(100, 900)] * 3, split=off).off


@pytest.mark.parametrize("weight", [0, 100])
def test_where_nothing_is_split_nothing_is_off(weight: int) -> None:
    off = see(10, *[(200, 800)] * 3)
    assert not see(weight, (0, 1000), split=off).off
    assert not see(10, (200, 800), split=see(weight, (0, 1000), split=off)).off


def test_a_window_too_small_to_tell_leaves_it_as_it_is() -> None:
    off = see(10, *[(200, 800)] * 3)
    assert see(10, *[(1, 9)] * 3, split=off).off
