"""Conformal intervals and p-values against their definition, and against the rate they promise."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom, kstest, norm

from bidsapp.statistics.conformal import (
    BIN,
    FEWEST_IN_BIN,
    NOT_LOCAL,
    POOLED,
    accelerated_ageing,
    coverage_table,
    fewest,
    intervals,
)
from bidsapp.statistics.labels import decade


def sample(n: int = 120, seed: int = 1, noise: float = 6.0):
    """Age, prediction, a standard deviation that is too small, and the card's interval."""
    random = np.random.default_rng(seed)
    age = random.uniform(20, 80, n)
    spread = random.uniform(2, 4, n)
    predicted = age + noise / 3 * spread * random.normal(size=n)
    return age, predicted, spread, (predicted - 1, predicted + 1)


def smallest(scores, persons, coverage: float) -> float:
    """The definition: smallest score with enough weight up to it, each person weighing 1."""
    weights = 1 / np.array([np.count_nonzero(persons == person) for person in persons])
    need = coverage * (len(np.unique(persons)) + 1) - 1e-9
    for score in np.sort(scores):
        if weights[scores <= score].sum() >= need:
            return score
    return math.nan


def test_fewest():
    assert [fewest(coverage) for coverage in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_quantile_of_single_scans(coverage):
    age, predicted, spread, card = sample(41)
    control = np.arange(41) < 40
    found = intervals(age, predicted, spread, control, np.arange(41), card=card, coverage=coverage)
    score = np.abs(age - predicted) / spread
    rank = math.ceil(41 * coverage - 1e-9)
    expected = np.sort(score[:40])[rank - 1]
    assert found.calibration.quantile == expected
    assert found.high[40] == predicted[40] + expected * spread[40]
    others = np.sort(np.delete(score[:40], 7))[math.ceil(40 * coverage - 1e-9) - 1]
    assert found.low[7] == predicted[7] - others * spread[7]
    assert set(found.source) == {POOLED}


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_repeated_scans_weigh_as_one(coverage):
    age, predicted, spread, card = sample(60)
    random = np.random.default_rng(2)
    person = random.integers(25, size=60)
    control = random.random(60) < 0.8
    found = intervals(age, predicted, spread, control, person, card=card, coverage=coverage)
    score = np.abs(age - predicted) / spread
    for row in range(60):
        rows = control & (person != person[row])
        q = smallest(score[rows], person[rows], coverage)
        assert found.high[row] == pytest.approx(predicted[row] + q * spread[row], abs=1e-9)
    assert found.calibration.quantile == smallest(score[control], person[control], coverage)
    assert found.calibration.participants == len(set(person[control]))


def test_intervals_hold_their_share():
    """Of new people and, left out one by one, of the controls; over 300 studies."""
    inside = np.zeros((300, 2))
    for seed in range(300):
        age, predicted, spread, card = sample(60, seed)
        found = intervals(
            age, predicted, spread, np.arange(60) < 39, np.arange(60), card=card, coverage=0.9
        )
        hit = (found.low <= age) & (age <= found.high)
        inside[seed] = hit[:39].mean(), hit[39]
    new = inside[:, 1].sum()  # one of each study: independent
    assert binom.ppf(0.0005, 300, 0.9) <= new <= binom.ppf(0.9995, 300, 0.9)
    # n + 1 = 40 makes the share exact; the left-out ones have 39, hence 36 / 39.
    error = inside.std(axis=0) / np.sqrt(300)
    assert abs(inside[:, 0].mean() - 36 / 39) < 4 * error[0]


def test_too_few_controls_leave_the_interval_of_the_card():
    age, predicted, spread, card = sample(20)
    person = np.arange(20)
    found = intervals(age, predicted, spread, person < 8, person, card=card)
    assert set(found.source) == {NOT_LOCAL} and math.isnan(found.calibration.quantile)
    np.testing.assert_array_equal([found.low, found.high], card)
    assert [v.name for v in found.calibration.verdicts] == ["not_calibrated_locally"]
    assert "8 controls and 9" in found.calibration.verdicts[0].text
    # With 9, a new person has an interval; a control, with 8 others, has not.
    found = intervals(age, predicted, spread, person < 9, person, card=card)
    assert (found.source[:9] == NOT_LOCAL).all() and (found.source[9:] == POOLED).all()
    assert json.dumps(found.calibration.to_json())


def test_bins_with_enough_controls_have_their_own_interval():
    random = np.random.default_rng(1)
    bins = np.repeat(["narrow", "wide", "few", "none"], [200, 200, FEWEST_IN_BIN - 1, 3])
    n = len(bins)
    age = random.uniform(20, 80, n)
    predicted = age + np.where(bins == "wide", 8, 2) * random.normal(size=n)
    control = bins != "none"
    spread = np.full(n, 3.0)
    found = intervals(
        age, predicted, spread, control, np.arange(n),
        card=(predicted - 1, predicted + 1), coverage=0.8, bins=bins,
    )  # fmt: skip
    assert set(found.calibration.bins) == {"narrow", "wide"}
    assert found.calibration.bins["wide"] > 3 * found.calibration.bins["narrow"]
    for name, source in [("narrow", BIN), ("wide", BIN), ("few", POOLED), ("none", POOLED)]:
        assert set(found.source[bins == name]) == {source}
    inside = (found.low <= age) & (age <= found.high)
    for name in ("narrow", "wide"):
        assert binom.ppf(0.0005, 200, 0.8) <= inside[bins == name].sum() <= 176
    pooled = intervals(
        age, predicted, spread, control, np.arange(n), card=(age, age), coverage=0.8
    )
    np.testing.assert_array_equal(pooled.low[bins == "few"], found.low[bins == "few"])
    assert [v.name for v in found.calibration.verdicts] == ["bin_pooled"]
    assert "few, none" in found.calibration.verdicts[0].text


def test_bins_by_predicted_decade():
    age, predicted, spread, card = sample(500)
    found = intervals(
        age, predicted, spread, np.ones(500, bool), np.arange(500), card=card,
        bins=decade(predicted),
    )  # fmt: skip
    assert {"30-39", "40-49"} <= set(found.calibration.bins)


@pytest.mark.parametrize("scaled", [False, True])
def test_accelerated_ageing_by_its_definition(scaled):
    random = np.random.default_rng(3)
    person = random.integers(20, size=50)
    control = random.random(50) < 0.7
    gap = np.round(random.normal(0, 5, 50))  # with ties
    gap[4] = math.nan
    scale = random.choice([1.0, 2.0], 50) if scaled else None
    found = accelerated_ageing(gap, scale, control, person)
    score = gap / (scale if scaled else 1)
    for row in np.flatnonzero(np.isfinite(gap)):
        rows = control & (person != person[row]) & np.isfinite(gap)
        others = np.unique(person[rows])
        shares = [np.mean(score[rows & (person == other)] >= score[row]) for other in others]
        assert found[row] == pytest.approx((1 + sum(shares)) / (len(others) + 1), abs=1e-9)
    assert np.isnan(found[4])


def test_p_of_single_scans_is_the_textbook_one():
    gap = np.array([1.0, 2.0, 3.0, 4.0, 3.0])
    control = np.array([True, True, True, True, False])
    found = accelerated_ageing(gap, None, control, np.arange(5))
    assert found.tolist() == [4 / 4, 3 / 4, 2 / 4, 1 / 4, 3 / 5]


def test_p_is_uniform_without_and_small_with_an_effect():
    new = []
    for seed in range(200):
        gap = np.random.default_rng(seed).normal(0, 5, 100)
        new.append(accelerated_ageing(gap, None, np.arange(100) < 99, np.arange(100))[99])
    assert kstest(np.array(new) - 0.005, "uniform").pvalue > 0.001
    gap = np.append(np.random.default_rng(1).normal(0, 5, 99), 30)
    assert accelerated_ageing(gap, None, np.arange(100) < 99, np.arange(100))[99] == 0.01


def test_coverage_table():
    """Errors are twice what the model says: its intervals hold too few, local ones do not."""
    age, predicted, spread, _ = sample(400)
    found = coverage_table(age, predicted, spread, np.ones(400, bool), np.arange(400))
    assert list(found.columns) == [
        "interval", "nominal", "n", "participants", "observed", "low", "high", "width",
    ]  # fmt: skip
    model = found[found["interval"] == "model"].set_index("nominal")
    local = found[found["interval"] == "local"].set_index("nominal")
    for nominal in (0.5, 0.8, 0.9, 0.95):
        assert model.loc[nominal, "high"] < nominal
        assert local.loc[nominal, "low"] <= nominal <= local.loc[nominal, "high"]
        width = 2 * norm.ppf((1 + nominal) / 2) * spread.mean()
        assert model.loc[nominal, "width"] == pytest.approx(width)
        truth = 2 * norm.cdf(norm.ppf((1 + nominal) / 2) / 2) - 1
        assert model.loc[nominal, "observed"] == pytest.approx(truth, abs=0.08)
    assert local["width"].is_monotonic_increasing


def test_coverage_table_of_few_controls():
    age, predicted, spread, _ = sample(12)
    found = coverage_table(age, predicted, spread, np.arange(12) < 10, np.arange(12))
    local = found[found["interval"] == "local"].set_index("nominal")
    assert local["n"].tolist() == [10, 10, 10, 0] and math.isnan(local.loc[0.95, "observed"])


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, 40.0])
def test_degenerate_input(n, value):
    gap = np.full(n, value)
    ones, person = np.ones(n), np.arange(n)
    for control in (np.ones(n, bool), np.zeros(n, bool)):
        found = intervals(gap, ones, ones, control, person, card=(gap - 1, gap + 1), bins=person)
        assert set(found.source) <= {NOT_LOCAL}
        np.testing.assert_array_equal(found.low, gap - 1)
        p = accelerated_ageing(gap, None, control, person)
        assert np.isnan(p).all() if math.isnan(value) else ((p > 0) & (p <= 1)).all()
        assert len(coverage_table(gap, ones, ones, control, person)) == 8


def test_no_standard_deviation_is_no_local_interval():
    age, predicted, spread, card = sample(40)
    spread[:2] = [math.nan, 0]
    found = intervals(age, predicted, spread, np.ones(40, bool), np.arange(40), card=card)
    assert found.calibration.participants == 38
    assert found.low[0] == card[0][0] and found.source[0] == NOT_LOCAL
