"""Accuracy against scipy and scikit-learn; its intervals against truth and plain resampling."""

from dataclasses import asdict, fields

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from bidsapp.statistics.accuracy import FEWEST, Accuracy, accuracy, table

EXACT = 1e-9
WITH_INTERVAL = ("mae", "rmse", "bias", "r", "r2", "slope", "intercept", "gap_age_r")


def sample(n: int = 150, seed: int = 1):
    random = np.random.default_rng(seed)
    age = random.uniform(20, 80, n)
    return age, 15 + 0.7 * age + random.normal(0, 5, n)


def test_figures():
    age, predicted = sample()
    gap = predicted - age
    found = accuracy(age, predicted)
    line = stats.linregress(age, predicted)
    expected = {
        "n": 150,
        "participants": 150,
        "age_low": age.min(),
        "age_high": age.max(),
        "mae": metrics.mean_absolute_error(age, predicted),
        "rmse": metrics.root_mean_squared_error(age, predicted),
        "bias": gap.mean(),
        "r": line.rvalue,
        "spearman": stats.spearmanr(age, predicted).statistic,
        "r2": metrics.r2_score(age, predicted),
        "slope": line.slope,
        "intercept": line.intercept,
        "gap_age_r": stats.pearsonr(gap, age).statistic,
        "weighted_mae": np.abs(gap).mean() / np.ptp(age),
    }
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=EXACT)
    for name in WITH_INTERVAL:
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        assert low < getattr(found, name) < high


def test_intervals_are_those_of_plain_resampling():
    """People drawn with all their scans, and the figures of what was drawn."""
    age, predicted = sample(60)
    predicted = predicted - 0.6 * age
    person = np.arange(60) // 2
    found = accuracy(age, predicted, person, resamples=20_000)
    people = np.random.default_rng(5).integers(30, size=(20_000, 30))
    rows = np.concatenate([2 * people, 2 * people + 1], axis=1)
    y, p = age[rows], predicted[rows]
    mean_y, mean_p = y.mean(axis=1), p.mean(axis=1)
    slope = ((y - mean_y[:, None]) * (p - mean_p[:, None])).mean(axis=1) / y.var(axis=1)
    drawn = {
        "mae": np.abs(p - y).mean(axis=1),
        "r": slope * y.std(axis=1) / p.std(axis=1),
        "slope": slope,
        "intercept": mean_p - slope * mean_y,
    }
    for name, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        tolerance = 0.03 * (high - low)
        assert getattr(found, f"{name}_low") == pytest.approx(low, abs=tolerance)
        assert getattr(found, f"{name}_high") == pytest.approx(high, abs=tolerance)


def test_intervals_hold_the_truth():
    """In about 95 % of 200 studies: percentile intervals fall a little short of it."""
    truth = {"mae": 5 * np.sqrt(2 / np.pi), "rmse": 5.0, "bias": 0.0, "slope": 1.0}
    hits = dict.fromkeys(truth, 0)
    for seed in range(200):
        random = np.random.default_rng(seed)
        age = random.uniform(20, 80, 100)
        found = accuracy(age, age + random.normal(0, 5, 100), resamples=300)
        for name, value in truth.items():
            low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
            hits[name] += low < value < high
    least, most = stats.binom.ppf(0.0005, 200, 0.925), stats.binom.ppf(0.9995, 200, 0.95)
    assert all(least <= count <= most for count in hits.values()), hits


def test_copies_of_scans_do_not_narrow_the_interval():
    age, predicted = sample(80)
    once = accuracy(age, predicted, np.arange(80))
    thrice = accuracy(np.tile(age, 3), np.tile(predicted, 3), np.tile(np.arange(80), 3))
    assert (thrice.n, thrice.participants) == (240, 80)
    for name in WITH_INTERVAL:
        for end in ("", "_low", "_high"):
            assert getattr(thrice, name + end) == pytest.approx(getattr(once, name + end))


def test_the_seed_decides():
    age, predicted = sample()
    assert accuracy(age, predicted, seed=3) == accuracy(age, predicted, seed=3)
    assert accuracy(age, predicted, seed=3) != accuracy(age, predicted, seed=4)


def test_missing_values_are_left_out():
    age, predicted = sample()
    expected = accuracy(age, predicted, np.arange(150))
    age, predicted = np.r_[np.nan, 50.0, age], np.r_[50.0, np.inf, predicted]
    assert accuracy(age, predicted, np.r_[999, 0, np.arange(150)]) == expected


@pytest.mark.parametrize("n", [0, 1, 2, FEWEST - 1])
def test_little_data(n):
    age, predicted = sample(n)
    found = accuracy(age, predicted)
    assert found.n == n
    assert np.isnan([found.mae_low, found.r_high]).all()
    assert np.isnan(found.mae) == (n == 0) and np.isnan(found.r) == (n < 3)


def test_what_does_not_vary():
    age, _ = sample(50)
    same_age = accuracy(np.full(50, 40.1), age)
    assert np.isnan([same_age.r, same_age.spearman, same_age.r2, same_age.weighted_mae]).all()
    assert np.isfinite([same_age.mae, same_age.mae_low]).all()
    same_prediction = accuracy(age, np.full(50, 40.1))
    assert np.isnan([same_prediction.r, same_prediction.r_low]).all()
    assert same_prediction.slope == pytest.approx(0, abs=EXACT)
    perfect = accuracy(age, age + 3)
    assert perfect.r == pytest.approx(1) and perfect.mae == pytest.approx(3)
    assert np.isnan(perfect.gap_age_r)


def study(n: int = 60) -> pd.DataFrame:
    age, predicted = sample(n)
    rows = {
        "participant_id": [f"sub-{i}" for i in range(n)],
        "age": age,
        "sex": np.where(np.arange(n) % 3 > 0, "F", "M"),
        "site": ["ä"] * (n - 1) + [None],
    }
    raw = pd.DataFrame(rows | {"model": "wssa", "predicted_age": predicted})
    other = raw.assign(model="sfcn", predicted_age=age + 1)
    frame = pd.concat([raw, other], ignore_index=True)
    return frame.assign(corrected_age=frame["predicted_age"] - 1)


def test_table_of_models_strata_and_predictions():
    frame = study()
    found = table(frame, resamples=200)
    columns = [each.name for each in fields(Accuracy)]
    assert list(found.columns) == ["model", "stratum", "level", "prediction", *columns]
    decades = [f"{d}-{d + 9}" for d in range(20, 80, 10)]
    levels = [("all", "all"), ("sex", "F"), ("sex", "M"), ("site", "ä")]
    levels += [("decade", decade) for decade in decades]
    assert found[["stratum", "level"]].drop_duplicates().apply(tuple, axis=1).tolist() == levels
    assert len(found) == len(levels) * 4
    men = found.query("stratum == 'sex' and level == 'M' and model == 'wssa'")
    rows = frame[(frame["sex"] == "M") & (frame["model"] == "wssa")]
    for prediction, column in (("raw", "predicted_age"), ("corrected", "corrected_age")):
        alone = accuracy(rows["age"], rows[column], rows["participant_id"], resamples=200)
        one = men[men["prediction"] == prediction].iloc[0]
        assert one[columns].to_dict() == pytest.approx(asdict(alone), nan_ok=True)


def test_models_share_their_resamples():
    frame = study()
    frame.loc[frame["model"] == "sfcn", "predicted_age"] = (
        frame.loc[frame["model"] == "wssa", "predicted_age"].to_numpy()
    )  # fmt: skip
    found = table(frame, ["sex"], resamples=100)
    one, other = (
        found[found["model"] == model].drop(columns="model") for model in ("wssa", "sfcn")
    )
    raw = [part[part["prediction"] == "raw"].reset_index(drop=True) for part in (one, other)]
    pd.testing.assert_frame_equal(*raw)


def test_table_without_corrections_or_ages():
    frame = study().drop(columns=["corrected_age", "site", "sex"])
    assert set(table(frame, resamples=50)["prediction"]) == {"raw"}
    nobody = table(frame.assign(age=np.nan), resamples=50)
    assert nobody["n"].tolist() == [0, 0] and nobody["mae"].isna().all()
    assert table(frame.iloc[:0]).empty
