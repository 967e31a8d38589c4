"""Reliability against published figures, statsmodels and planted truth; change over the years."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import binom, ttest_rel

from bidsapp.statistics import reliability as module
from bidsapp.statistics.reliability import bland_altman, change, icc, reliability

SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def names(verdicts) -> set[str]:
    return {verdict.name for verdict in verdicts}


def is_95_percent(hits: int, trials: int) -> bool:
    low, high = binom.interval(0.999, trials, 0.95)
    return low <= hits <= high


def retests(n: int = 40, k: int = 2, seed: int = 1) -> pd.DataFrame:
    """Scans on the same day: true ages of 20 to 80, gaps of 4 years, errors of 2."""
    random = np.random.default_rng(seed)
    age, gap = random.uniform(20, 80, n), random.normal(0, 4, n)
    rows = np.repeat(np.arange(n), k)
    found = gap[rows] + random.normal(0, 2, n * k)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{row}" for row in rows],
            "age": age[rows],
            "predicted_age": age[rows] + found,
            "brain_age_gap": found,
        }
    )


def sessions(n: int = 30, seed: int = 1, rate: float = 0.3, k: int = 3) -> pd.DataFrame:
    """Scans a year apart of people whose gap grows by `rate` years a year."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n), k)
    time = np.tile(np.arange(k), n) + random.uniform(-0.2, 0.2, n * k)
    age = random.uniform(30, 80, n)[rows] + time
    gap = random.normal(0, 4, n)[rows] + rate * time + random.normal(0, 1, n * k)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{row}" for row in rows],
            "age": age,
            "sex": np.where(rows % 2 == 0, "F", "M"),
            "brain_age_gap": gap,
            "predicted_age": age + gap,
        }
    )


def test_icc_of_shrout_and_fleiss():
    """Their table 4, with the intervals of the R package psych."""
    agreement, consistency = icc(SHROUT_FLEISS)
    assert (agreement.type, agreement.n, agreement.k) == ("ICC(2,1)", 6, 4)
    found = [[each.icc, each.low, each.high] for each in (agreement, consistency)]
    expected = [[0.2898, 0.0188, 0.7611], [0.7148, 0.3425, 0.9459]]
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_icc_from_an_analysis_of_variance():
    x = np.random.default_rng(1).normal(size=(12, 3)) + np.arange(12)[:, None]
    frame = pd.DataFrame({"x": x.ravel(), "s": np.repeat(range(12), 3), "r": [0, 1, 2] * 12})
    anova = smf.ols("x ~ C(s) + C(r)", frame).fit()
    error = anova.mse_resid
    people = 3 * x.mean(axis=1).var(ddof=1)
    scans = 12 * x.mean(axis=0).var(ddof=1)
    agreement, consistency = icc(x)
    assert agreement.sem == pytest.approx(np.sqrt(error), abs=1e-9)
    assert agreement.sdc == pytest.approx(1.96 * np.sqrt(2 * error), abs=1e-9)
    assert consistency.icc == pytest.approx((people - error) / (people + 2 * error), abs=1e-9)
    below = people + 2 * error + 3 * (scans - error) / 12
    assert agreement.icc == pytest.approx((people - error) / below, abs=1e-9)


def test_icc_does_not_change_with_unit_or_origin():
    x = np.array(SHROUT_FLEISS, float)
    for one, other in zip(icc(x), icc(1000 + 7 * x)):
        assert [one.icc, one.low, one.high] == pytest.approx([other.icc, other.low, other.high])
        assert other.sem == pytest.approx(7 * one.sem)


def test_intervals_of_icc_hold_the_truth():
    """Of 500 studies; of the agreement with a difference between the scans."""
    hits = np.zeros(2, int)
    for seed in range(500):
        random = np.random.default_rng(seed)
        x = random.normal(0, 3, (30, 1)) + random.normal(0, 1, (30, 2))
        consistency, agreement = icc(x)[1], icc(x + random.normal(0, 0.5, 2))[0]
        hits += (
            consistency.low < 0.9 < consistency.high,
            agreement.low < 9 / 10.25 < agreement.high,
        )
    assert all(is_95_percent(int(count), 500) for count in hits)


@pytest.mark.parametrize(
    "values",
    [
        np.empty((0, 2)),
        np.empty((3, 0)),
        [[1.0, 2.0]],
        [[1.0], [2.0]],
        [[1.0, math.nan], [2.0, 3.0]],
        np.full((5, 2), 40.1),
    ],
)
def test_icc_that_is_not_defined(values):
    for found in icc(values):
        assert np.isnan([found.icc, found.low, found.high]).all()


def test_icc_without_error():
    same = np.repeat(np.linspace(20.1, 79.3, 9)[:, None], 2, axis=1)
    agreement, consistency = icc(same)
    assert (agreement.icc, consistency.icc, agreement.sem) == (1, 1, 0)
    assert np.isnan([agreement.low, consistency.high]).all()
    agreement, consistency = icc(same + np.array([0, 5]))
    assert consistency.icc == 1 and 0.9 < agreement.icc < 1


def test_bland_altman():
    random = np.random.default_rng(1)
    first = random.uniform(20, 80, 50)
    second = first + random.normal(1, 2, 50)
    found = bland_altman(np.append(first, np.nan), np.append(second, 1))
    d = second - first
    assert found.bias == pytest.approx(d.mean())
    assert found.upper - found.lower == pytest.approx(2 * 1.959964 * d.std(ddof=1))
    test = ttest_rel(second, first).confidence_interval()
    assert [found.bias_low, found.bias_high] == pytest.approx([test.low, test.high])
    np.testing.assert_array_equal(found.difference, d)
    error = (found.upper_high - found.upper_low) / 2 / 2.0096
    assert error == pytest.approx(d.std(ddof=1) * np.sqrt(1 / 50 + 1.96**2 / 98), rel=1e-3)


@pytest.mark.parametrize("n", [0, 1])
def test_bland_altman_of_few(n):
    found = bland_altman(np.full(n, 40.0), np.full(n, 42.0))
    assert math.isnan(found.lower) and math.isnan(found.bias) == (n == 0)


def test_reliability_of_age_and_gap():
    frame = retests()
    found = reliability(frame)
    assert list(zip(found.table["quantity"], found.table["type"])) == [
        (quantity, kind) for quantity in module.QUANTITIES for kind in ("ICC(2,1)", "ICC(3,1)")
    ]
    values = frame["brain_age_gap"].to_numpy().reshape(40, 2)
    table = found.table.set_index(["quantity", "type"])
    assert table.loc[("brain_age_gap", "ICC(3,1)"), "icc"] == icc(values)[1].icc
    # The age range makes the ICC of the predicted age look good; the errors are the same.
    assert table.loc[("predicted_age", "ICC(3,1)"), "icc"] > 0.97
    assert 0.6 < table.loc[("brain_age_gap", "ICC(3,1)"), "icc"] < 0.95
    assert table["sem"].to_numpy() == pytest.approx(table["sem"].iloc[0])
    assert (found.participants, found.scans, found.left_out) == (40, 80, 0)
    assert found.bland_altman["predicted_age"].difference.size == 40
    assert found.verdicts == ()


def test_unbalanced_scans_leave_a_balanced_block():
    frame = retests(40, 3)
    order = frame.groupby("participant_id").cumcount()
    person = frame["participant_id"].str[4:].astype(int)
    two = frame[(order < 2) | (person < 10)]  # 10 people have three scans, 30 have two
    found = reliability(two.sample(frac=1, random_state=1).sort_index())
    assert found.table["n"].unique().tolist() == [40] and found.table["k"].unique().tolist() == [2]
    assert (found.participants, found.scans, found.left_out) == (40, 90, 10)
    assert names(found.verdicts) == {"unbalanced"}
    most = frame[(order < 1) | (person < 30)]
    assert reliability(most).table[["n", "k"]].iloc[0].tolist() == [30, 3]


def test_later_sessions_are_no_retest():
    frame = retests(40, 3)
    order = frame.groupby("participant_id").cumcount()
    frame["age"] += 2 * (order == 1)
    found = reliability(frame)
    expected = reliability(frame[order != 1])
    pd.testing.assert_frame_equal(found.table, expected.table)
    frame["age"] = np.nan
    assert reliability(frame).table["k"].unique().tolist() == [3]


def test_scans_of_unknown_time_are_no_retest():
    frame = retests(40, 3)
    order = frame.groupby("participant_id").cumcount()
    expected = reliability(frame[order != 1])
    found = reliability(frame.assign(undated=order == 1))
    pd.testing.assert_frame_equal(found.table, expected.table)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (retests(20, 1), {"no_repeats"}),
        (retests(20).iloc[:0], {"no_repeats"}),
        (retests(20).assign(predicted_age=np.nan), {"no_repeats"}),
        (retests(1), {"few_repeats"}),
        (retests(2), {"few_repeats"}),
        (retests(35).assign(predicted_age=40.1), {"identical_scans"}),
        (retests(35).assign(predicted_age=lambda f: f["age"]), {"identical_scans"}),
        (retests(35).assign(brain_age_gap=np.nan), set()),
    ],
)
def test_reliability_that_is_not_there(frame, expected):
    found = reliability(frame)
    assert names(found.verdicts) == expected
    assert len(found.table) == (0 if "no_repeats" in expected else 4)


def test_change_is_that_of_a_formula():
    frame = sessions()
    frame["baseline"] = frame.groupby("participant_id")["age"].transform("min")
    frame["time"] = frame["age"] - frame["baseline"]
    formula = "brain_age_gap ~ time + baseline + sex"
    expected = smf.mixedlm(formula, frame, groups="participant_id").fit()
    found = change(frame)
    assert found.method == "mixed model" and found.verdicts == ()
    assert found.gap_change == pytest.approx(expected.params["time"], abs=1e-4)
    error = (found.gap_high - found.gap_low) / 2 / 2.0010  # t of 90 - 30 - 1
    assert error == pytest.approx(expected.bse["time"], rel=1e-3)
    assert found.age_change == 1 + found.gap_change
    assert (found.participants, found.scans) == (30, 90) and 1.5 < found.mean_years < 2.5
    alone = frame.iloc[[0]].assign(participant_id="sub-once")
    assert change(pd.concat([frame, alone])) == found


def test_intervals_of_change_hold_the_truth():
    """Of 40 studies: a second, the slowest test here."""
    hits = 0
    for seed in range(40):
        found = change(sessions(10, seed, k=2))
        hits += found.gap_low < 0.3 < found.gap_high
    assert is_95_percent(hits, 40)


def test_change_without_differences_between_people():
    random = np.random.default_rng(1)
    frame = sessions()
    frame["brain_age_gap"] = random.normal(0, 1, 90)
    frame["brain_age_gap"] -= frame.groupby("participant_id")["brain_age_gap"].transform("mean")
    found = change(frame)
    assert np.isfinite([found.gap_change, found.gap_low, found.p]).all()
    assert names(found.verdicts) <= {"no_person_variance", "no_convergence"} and found.verdicts


@pytest.mark.parametrize("failure", [np.linalg.LinAlgError("Singular matrix"), None])
def test_change_when_the_mixed_model_fails(monkeypatch, failure):
    class Fails:
        converged, fe_params, bse_fe = False, np.zeros(4), np.full(4, np.nan)
        cov_re, scale = np.zeros((1, 1)), 1.0

        def __init__(self, *_, **__): ...

        def fit(self):
            if failure:
                raise failure
            return self

    monkeypatch.setattr(module.sm, "MixedLM", Fails)
    found = change(sessions())
    assert found.method == "least squares" and names(found.verdicts) == {"no_convergence"}
    assert found.gap_low < 0.3 < found.gap_high


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (sessions().iloc[:0], "too_few"),
        (sessions(1), "too_few"),
        (sessions(4), "too_few"),
        (retests(), "too_few"),
        (sessions().assign(age=np.nan), "too_few"),
        (sessions().assign(brain_age_gap=np.nan), "too_few"),
    ],
)
def test_change_that_cannot_be_told(frame, verdict):
    found = change(frame)
    assert names(found.verdicts) == {verdict} and found.method == "none"
    assert math.isnan(found.gap_change) and math.isnan(found.age_high)


@pytest.mark.parametrize(
    "change_of",
    [
        {"brain_age_gap": 3.0},
        {"sex": None},
        {"sex": "F"},
        {"sex": [*"FM", None] * 30},
        {"brain_age_gap": lambda f: 0.5 * f["age"]},
    ],
)
def test_change_of_odd_tables(change_of):
    found = change(sessions().assign(**change_of))
    assert found.method != "none" and np.isfinite(found.gap_change)
    assert np.isfinite(change(sessions().drop(columns="sex")).gap_change)


def test_change_where_everybody_has_the_same_baseline():
    frame = sessions()
    first = frame.groupby("participant_id")["age"].transform("min")
    assert np.isfinite(change(frame.assign(age=frame["age"] - first + 40)).gap_change)
