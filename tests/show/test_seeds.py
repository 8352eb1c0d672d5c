"""One number per seed: against SciPy, and by hand."""

import operator

import pytest
from scipy import stats

from posttrain.show import Seeds


def test_the_mean_and_its_interval_are_student_s():
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert Seeds(values).mean == pytest.approx(0.38)
    assert Seeds(values).interval == pytest.approx((test.low, test.high))
    assert f"{Seeds(values):.3f}" == f"0.380 [{test.low:.3f}, {test.high:.3f}]"
    assert Seeds([2, 2, 2]).interval == (2.0, 2.0)


OPERATIONS = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arithmetic_goes_seed_by_seed_with_seeds_and_numbers_on_either_side(operation):
    a, b = [1.0, 4.0, -2.0], [2.0, 0.5, 8.0]
    assert list(operation(Seeds(a), Seeds(b))) == [
        operation(x, y) for x, y in zip(a, b)
    ]
    assert list(operation(Seeds(a), 4)) == [operation(x, 4) for x in a]
    assert list(operation(4, Seeds(a))) == [operation(4, x) for x in a]
    assert list(-Seeds(a)) == [-1.0, -4.0, 2.0]


def test_a_difference_of_paired_seeds_is_narrower_than_the_means_intervals():
    start = Seeds([0.0, 10.0, 20.0])
    gain = Seeds([1.0, 11.2, 20.8]) - start
    assert f"{gain:+.1f}" == "+1.0 [+0.5, +1.5]"


def test_seeds_of_other_runs_do_not_pair():
    with pytest.raises(ValueError, match="^2 seeds and 3 do not pair: "):
        Seeds([1, 2]) - Seeds([1, 2, 3])
    with pytest.raises(ValueError, match="needs one value or more"):
        Seeds([])


def test_an_interval_of_shares_ends_at_0_and_100_percent_and_one_of_gaps_does_not():
    shares_, gaps = Seeds([0.9, 1.0, 1.0]), Seeds([0.0, 0.1, 0.2])
    assert f"{shares_:.0%}" == "97% [82%, 100%]"
    assert f"{gaps:.0%}" == "10% [0%, 35%]" and f"{gaps:+.0%}" == "+10% [-15%, +35%]"
    # Not shares: 120% of something
    assert f"{Seeds([0.9, 1.2]):.0%}" == "105% [-86%, 296%]"


def test_one_seed_prints_alone_and_has_no_interval():
    assert f"{Seeds([0.5]):.0%}" == "50%" and Seeds([0.5]).range(".1f") == "0.5"
    assert Seeds([0.501, 0.499]).range(".2f") == "0.50"
    with pytest.raises(ValueError, match="two values or more"):
        print(Seeds([0.5]).interval)


def test_a_word_before_the_format_prints_the_mean_alone_or_the_range():
    values = Seeds([0.003, 0.010, 0.005])
    assert f"{values:mean .3f}" == "0.006" and f"{values:range .3f}" == "0.003 to 0.010"
    assert (
        values.range(".3f") == "0.003 to 0.010" and f"{values}" == "0.01 [-0.00, 0.01]"
    )
    assert repr(Seeds([1, 2])) == "1.5 [-4.85, 7.85]"


def test_seeds_that_hold_are_counted_against_a_number_and_against_their_own_partner():
    values = Seeds([0.7, 0.75, 0.8])
    assert values.held(">=", 0.75) == 2 and values.of(">=", 0.75) == "2 of 3"
    assert values.held("<", Seeds([1.0, 0.0, 1.0])) == 2
    assert (min(values), max(values), values[0], len(values)) == (0.7, 0.8, 0.7, 3)


def test_seeds_are_cut_to_those_that_another_has():
    many, few = Seeds([1.0, 2.0, 3.0]), Seeds([1.0, 1.0])
    assert many[:2] == Seeds([1.0, 2.0]) == many.beside(few)
    assert many.beside(few) - few == Seeds([0.0, 1.0])
    with pytest.raises(ValueError, match="do not pair"):
        few.beside(many) - many


def test_a_share_has_an_interval_that_is_cut_off_at_none_and_all():
    assert f"{Seeds([0.2, 0.3]):.0%}" == "25% [0%, 89%]"
    assert f"{Seeds([0.0, 1.0]):.0%}" == "50% [0%, 100%]"
    assert f"{Seeds([1.0, 1.0]):.0%}" == "100% [100%, 100%]"
