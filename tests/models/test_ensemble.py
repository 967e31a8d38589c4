"""Several predictions of one scan become one."""

import dataclasses

import numpy as np
import pytest

from models.contract import Prediction
from models.ensemble import combine, weights_of, within_ages

ONE = Prediction(40.0, 4.0, (33.0, 48.0), 0.9, True, False)


def other(**changes):
    return dataclasses.replace(ONE, **changes)


def test_one_prediction_stays_as_it_is():
    assert combine([ONE]) is ONE


def test_equals_give_the_same_again():
    assert combine([ONE, ONE, ONE]) == ONE


def test_the_surer_model_counts_more():
    """Inverse variances: 1/16, 1/16 and 1/64 weigh 4 to 4 to 1."""
    found = combine([ONE, ONE, other(predicted_age=49.0, standard_deviation=8.0,
                                     interval=(35, 64))])  # fmt: skip
    assert found.predicted_age == pytest.approx(41)
    assert found.standard_deviation == pytest.approx((8 * 4 + 8) / 9)  # no independence claimed
    low, high = found.interval
    assert low == pytest.approx(41 + (8 * -7 - 14) / 9)
    assert high == pytest.approx(41 + (8 * 8 + 15) / 9)
    assert found.coverage == 0.9


def test_no_model_decides_alone():
    """By precision the first would have 94 % of the vote."""
    np.testing.assert_allclose(weights_of([2, 10, 14.1421356]), [1 / 2, 1 / 3, 1 / 6])
    np.testing.assert_allclose(weights_of([2.0, 10.0]), [1 / 2, 1 / 2])
    np.testing.assert_allclose(weights_of([4, 4, 8]), [4 / 9, 4 / 9, 1 / 9])


def test_order_does_not_matter():
    several = [
        other(predicted_age=a, standard_deviation=s) for a, s in ((30, 3), (44, 5), (61, 9))
    ]
    several = [
        other(**{**vars(p), "interval": (p.predicted_age - 5, p.predicted_age + 6)})
        for p in several
    ]
    first, second = combine(several), combine(several[::-1])
    np.testing.assert_allclose(
        (first.predicted_age, first.standard_deviation, *first.interval),
        (second.predicted_age, second.standard_deviation, *second.interval),
    )
    assert 30 < first.predicted_age < 61
    assert first.interval[0] < first.predicted_age < first.interval[1]


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, False)])
def test_doubts_of_any_model_are_kept(first, second):
    found = combine([other(within_training_ages=first, sex_assumed=not first),
                     other(within_training_ages=second, sex_assumed=not second)])  # fmt: skip
    assert found.within_training_ages is (first and second)
    assert found.sex_assumed is (not first or not second)


@pytest.mark.parametrize(
    ("seen", "votes"),
    [
        ((25.0, 28.0), 2),
        ((25.0, 60.0), 3),
        ((50.0, 60.0), 3),
        ((86.0, 92.0), 2),
        ((37.0, 39.0), 3),
    ],
)
def test_a_model_of_some_ages_has_no_vote_on_others(seen, votes):
    """The third, which knows 42 to 82 years alone, votes where the mean of the others is there."""
    elder = other(predicted_age=45.0, standard_deviation=1.0)
    predictions = [*(other(predicted_age=age) for age in seen), elder]
    assert within_ages(predictions, [(20, 95), (20, 95), (42, 82)]) == predictions[:votes]


def test_alone_any_model_votes():
    assert within_ages([ONE], [(42, 82)]) == [ONE]
    wild = other(predicted_age=99.0)
    assert combine(within_ages([wild], [(42, 82)])) is wild  # the ensemble of one is that one
    strangers = within_ages([ONE, other(predicted_age=70.0)], [(60, 82), (20, 40)])
    assert [each.predicted_age for each in strangers] == [55, 45]


def test_a_vote_far_beyond_the_ages_counts_as_one_at_their_margin():
    wild = other(predicted_age=3.0, interval=(-4.0, 11.0))
    found = within_ages([ONE, wild], [(19, 80), (19, 80)])
    assert found[0] is ONE
    assert (found[1].predicted_age, found[1].interval) == (14.0, (7.0, 22.0))
    above = other(predicted_age=90.0)
    assert within_ages([ONE, above], [(19, 80), (19, 80)])[1].predicted_age == 85
