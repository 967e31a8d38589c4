"""Corrections against their formulas, planted truth and every guard."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import ttest_ind

from bidsapp.statistics import bias_correction
from bidsapp.statistics.bias_correction import Correction, apply_to_all, cross_fit, fit

EXACT = 1e-9


def sample(n: int = 200, seed: int = 1, slope: float = 0.8, noise: float = 5.0):
    """Ages and predictions that regress to the mean."""
    random = np.random.default_rng(seed)
    age = random.uniform(20, 80, n)
    return age, 50 + slope * (age - 50) + random.normal(0, noise, n)


def names(verdicts) -> set[str]:
    return {verdict.name for verdict in verdicts}


def sites_of(n: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).choice(["a", "b", "c"], n, p=[0.5, 0.44, 0.06])


@pytest.mark.parametrize("sites", [None, sites_of(200)])
def test_offset_and_cole_are_one_line(sites):
    age, predicted = sample()
    offset = fit(age, predicted, method="offset", site=sites)
    cole = fit(age, predicted, method="cole", site=sites)
    assert offset.coefficients == cole.coefficients and offset.terms == cole.terms
    slope = 1 + offset.curve.design(np.ones(200), sites) @ offset.coefficients
    slope -= offset.curve.design(np.zeros(200), sites) @ offset.coefficients
    by_offset, by_cole = (each.apply(age, predicted, sites)[1] for each in (offset, cole))
    np.testing.assert_allclose(by_offset, slope * by_cole, atol=EXACT)
    assert abs(np.corrcoef(by_offset, age)[0, 1]) < EXACT
    assert abs(by_offset.mean()) < EXACT and abs(by_cole.mean()) < EXACT


def test_slopes_differ_by_one():
    age, predicted = sample()
    a, b = np.polyfit(age, predicted, 1)
    found = fit(age, predicted)
    assert found.coefficients[1] == pytest.approx(a - 1, abs=EXACT)
    assert found.slope == pytest.approx(a, abs=EXACT)
    corrected, gap = fit(age, predicted, method="cole").apply(age, predicted)
    np.testing.assert_allclose(corrected, (predicted - b) / a, atol=EXACT)
    np.testing.assert_allclose(gap, corrected - age, atol=EXACT)
    assert abs(np.corrcoef(gap, age)[0, 1]) < EXACT


def test_tests_on_offset_and_cole_agree():
    age, predicted = sample()
    patients, theirs = sample(60, seed=3)
    figures = []
    for method in ("offset", "cole"):
        found = fit(age, predicted, method=method)
        groups = found.apply(patients, theirs + 3)[1], found.apply(age, predicted)[1]
        spread = np.sqrt(sum(group.var(ddof=1) for group in groups))
        result = ttest_ind(*groups)
        effect = (groups[0].mean() - groups[1].mean()) / spread
        figures.append([result.statistic, result.pvalue, effect])
    np.testing.assert_allclose(*figures, atol=EXACT)


def test_smith_is_the_residual_on_age_and_its_square():
    age, predicted = sample()
    frame = pd.DataFrame({"y": age, "d": predicted - age})
    expected = smf.ols("d ~ y + I(y**2)", frame).fit().resid
    found = fit(age, predicted, method="smith")
    corrected, gap = found.apply(age, predicted)
    assert found.degree == 2
    np.testing.assert_allclose(gap, expected, atol=EXACT)
    np.testing.assert_allclose(corrected - age, gap, atol=EXACT)
    assert found.residual_sd == pytest.approx(np.sqrt((expected**2).sum() / 197), abs=EXACT)


def test_against_statsmodels():
    age, predicted = sample(300)
    site = sites_of(300)
    frame = pd.DataFrame({"t": age - age.mean(), "d": predicted - age, "s": site})
    found = fit(age, predicted, site=site, degree=2)
    # Site c is too small for a slope of its own: it has the mean slope of the others.
    assert found.terms == (
        "intercept[a]", "intercept[b]", "intercept[c]", "age[a]", "age[b]", "age^2",
    )  # fmt: skip
    share = np.array([found.sites["a"], found.sites["b"]]) / (300 - found.sites["c"])
    for name, part in zip("ab", share):
        own = (frame["s"] == name) + part * (frame["s"] == "c")
        frame[f"t{name}"] = frame["t"] * own
    expected = smf.ols("d ~ 0 + s + ta + tb + I(t**2)", frame).fit()
    np.testing.assert_allclose(found.coefficients, expected.params, atol=EXACT)
    np.testing.assert_allclose(found.covariance, expected.cov_params(), atol=EXACT)


def test_covariance_is_clustered_by_person():
    age, predicted = sample(120)
    age, predicted = np.tile(age, 2), np.concatenate([predicted, predicted + 1])
    person = np.tile(np.arange(120), 2)
    frame = pd.DataFrame({"t": age - age.mean(), "d": predicted - age})
    model = smf.ols("d ~ t", frame)
    expected = model.fit(cov_type="cluster", cov_kwds={"groups": person}).cov_params()
    found = fit(age, predicted, participant=person)
    assert (found.n, found.participants) == (240, 120)
    np.testing.assert_allclose(found.covariance, expected, atol=EXACT)
    alone = fit(age, predicted)
    assert found.slope_high - found.slope_low > 1.3 * (alone.slope_high - alone.slope_low)


def test_huber_is_that_of_statsmodels_and_resists_outliers():
    age, predicted = sample()
    predicted[:20] += 60
    frame = pd.DataFrame({"t": age - age.mean(), "d": predicted - age})
    expected = smf.rlm("d ~ t", frame).fit(tol=1e-12, maxiter=500)
    robust, plain = fit(age, predicted, robust=True), fit(age, predicted)
    np.testing.assert_allclose(robust.coefficients, expected.params, atol=1e-7)
    np.testing.assert_allclose(robust.covariance, expected.bcov_scaled, atol=1e-7)
    clean = fit(age[20:], predicted[20:])
    level = [found.apply(50.0 + np.zeros(1), np.array([50.0]))[0][0] for found in (robust, plain)]
    truth = clean.apply(50.0 + np.zeros(1), np.array([50.0]))[0][0]
    assert abs(level[0] - truth) < 2 < 4 < abs(level[1] - truth)


def test_huber_without_residuals_is_least_squares():
    age = np.linspace(20, 80, 50)
    found = fit(age, 5 + 0.9 * age, robust=True)
    assert "robust_failed" in names(found.verdicts) and found.usable
    assert found.coefficients[1] == pytest.approx(-0.1)


def test_bic_finds_the_degree():
    age, predicted = sample(400, noise=2)
    bend = 0.01 * (age - 50) ** 2
    assert fit(age, predicted, degree="bic").degree == 1
    found = fit(age, predicted + bend, degree="bic")
    assert found.degree == 2 and "degree_by_bic" in names(found.verdicts)
    assert found.coefficients[2] == pytest.approx(0.01, abs=0.002)
    assert fit(age, predicted + bend, degree="bic", method="cole").degree == 1


@pytest.mark.parametrize(
    ("method", "degree"), [("cole", 2), ("offset", 4), ("offset", "aic"), ("le", 1)]
)
def test_method_and_degree_that_do_not_exist(method, degree):
    with pytest.raises(ValueError, match="bias correction"):
        fit(*sample(), method=method, degree=degree)


def test_noise_is_refused_and_forced_noise_looks_perfect():
    """Butler 2021: a predictor without information, made to look like age."""
    random = np.random.default_rng(1)
    age, predicted = random.uniform(20, 80, 4000), random.normal(50, 3, 4000)
    refused = fit(age, predicted)
    assert not refused.usable and names(refused.verdicts) == {"weak_slope"}
    assert np.isnan(refused.apply(age, predicted)).all()
    forced = fit(age, predicted, force=True)
    assert forced.usable and forced.forced and names(forced.verdicts) == {"weak_slope"}
    corrected = forced.apply(age, predicted)[0]
    assert abs(np.corrcoef(predicted, age)[0, 1]) < 0.05
    assert np.corrcoef(corrected, age)[0, 1] > 0.98
    assert np.abs(corrected - age).mean() == pytest.approx(2.4, abs=0.1)


def test_slope_whose_interval_holds_zero_is_refused():
    age = np.linspace(49, 51, 40)
    found = fit(age, age + 10 * np.tile([-1, 1], 20))
    assert found.slope > 0.5 and found.slope_low < 0 and not found.usable


def test_few_people():
    assert names(fit(*sample(9)).verdicts) == {"tiny_reference"}
    assert fit(*sample(9), force=True).usable
    assert names(fit(*sample(20)).verdicts) == {"small_reference"}
    age, predicted = sample(9)
    many = fit(np.tile(age, 9), np.tile(predicted, 9), participant=np.tile(np.arange(9), 9))
    assert "tiny_reference" in names(many.verdicts)


@pytest.mark.parametrize("method", ["offset", "cole", "smith"])
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize(
    ("age", "predicted"),
    [
        ([], []),
        ([40.0], [41.0]),
        ([40.0, 50.0], [41.0, 49.0]),
        ([40.1] * 30, list(range(30))),
        ([math.nan] * 12, [41.0] * 12),
        ([40.0, math.nan, 50.0], [math.nan, 41.0, math.inf]),
    ],
)
def test_what_cannot_be_fitted_is_said(method, robust, age, predicted):
    sites = ["a"] * len(age)
    for force in (False, True):
        found = fit(age, predicted, method=method, robust=robust, site=sites, force=force)
        assert "cannot_fit" in names(found.verdicts) and not found.usable
        assert np.isnan(found.apply([30.0, 40.0], [30.0, 50.0])).all()
        assert json.dumps(found.to_json())
        people = [str(i) for i in range(len(age))]
        everybody = cross_fit(
            age, predicted, [True] * len(age), people,
            method=method, robust=robust, site=sites, force=force,
        )  # fmt: skip
        assert np.isnan(everybody.corrected_age).all()
        assert "cannot_fit" in names(everybody.verdicts)


def test_constant_prediction_is_refused():
    age, _ = sample(50)
    assert not fit(age, np.full(50, 60.0)).usable


def test_missing_values_are_counted_and_left_out():
    age, predicted = sample(100)
    expected = fit(age[2:], predicted[2:])
    age[0], predicted[1] = math.nan, math.nan
    found = fit(age, predicted)
    assert found.n == 98 and found.coefficients == expected.coefficients
    assert [v.text[:2] for v in found.verdicts if v.name == "missing_values"] == ["2 "]
    corrected, gap = found.apply(age, predicted)
    assert np.isnan(gap[:2]).all() and np.isfinite(gap[2:]).all()
    corrected, gap = fit(age, predicted, method="cole").apply(age, predicted)
    assert np.isfinite(corrected[0]) and np.isnan(gap[0])


def test_sites_and_their_slopes():
    age, predicted = sample(400, noise=2)
    site = np.repeat(["a", "b"], 200)
    predicted = predicted + 4 * (site == "b") + 0.15 * (age - age.mean()) * (site == "b")
    found = fit(age, predicted, site=site)
    value = dict(zip(found.terms, found.coefficients))
    assert value["intercept[b]"] - value["intercept[a]"] == pytest.approx(4, abs=0.6)
    assert value["age[b]"] - value["age[a]"] == pytest.approx(0.15, abs=0.03)
    few = np.r_[:200, 200:220]
    shared = fit(age[few], predicted[few], site=site[few])
    assert shared.terms == ("intercept[a]", "intercept[b]", "age")


def test_a_site_too_weak_for_its_own_slope_shares_one():
    age, predicted = sample(400, noise=2)
    site = np.repeat(["a", "b", "weak"], [180, 180, 40])
    predicted[360:] = np.random.default_rng(1).normal(50, 2, 40)
    found = fit(age, predicted, site=site)
    assert "age[weak]" not in found.terms and "site_slope_shared" in names(found.verdicts)


def test_unseen_sites_and_ages_are_named():
    age, predicted = sample(400, noise=2)
    site = np.repeat(["a", "b"], [100, 300])
    found = fit(age, predicted, site=site)
    new = found.apply([40.0], [45.0], ["new"])[0]
    old = [found.apply([40.0], [45.0], [name])[0] for name in "ab"]
    assert new == pytest.approx(0.25 * old[0] + 0.75 * old[1], abs=EXACT)
    said = found.check([40.0, 90.0, np.nan], ["a", "a", None])
    assert [v.name for v in said] == ["extrapolation", "site_unseen"]
    assert "1 of 3" in said[0].text and "n/a" in said[1].text
    assert found.extrapolated([40.0, 90.0, np.nan]).tolist() == [False, True, False]
    assert found.check([40.0], ["a"]) == ()


def test_cross_fit_leaves_people_out():
    age, predicted = sample(100)
    person = np.arange(100) // 2
    reference = np.arange(100) < 80
    found = cross_fit(age, predicted, reference, person, folds=5)
    assert set(found.fold[:80]) == set(range(5)) and (found.fold[80:] == -1).all()
    assert (found.fold[::2] == found.fold[1::2]).all()
    changed = predicted.copy()
    changed[0] += 30
    after = cross_fit(age, changed, reference, person, folds=5)
    same = found.fold == found.fold[0]
    same[0] = False
    np.testing.assert_array_equal(after.corrected_gap[same], found.corrected_gap[same])
    assert after.corrected_gap[0] - found.corrected_gap[0] == pytest.approx(30)
    assert (after.corrected_gap[80:] != found.corrected_gap[80:]).all()
    np.testing.assert_array_equal(
        found.corrected_gap[80:], found.correction.apply(age, predicted)[1][80:]
    )


def test_cross_fit_equals_a_fit_without_the_fold():
    age, predicted = sample(90)
    site = np.repeat(["a", "b", "c"], 30)
    person = [f"sub-{i}" for i in range(90)]
    found = cross_fit(age, predicted, np.ones(90, bool), person, site=site, degree=2, seed=7)
    assert (np.bincount(found.fold, minlength=10) == 9).all()
    assert all(len(set(site[found.fold == fold])) == 3 for fold in range(10))
    out = found.fold == 3
    t = age - age.mean()
    frame = pd.DataFrame({"t": t, "d": predicted - age, "s": site})
    model = smf.ols("d ~ 0 + s + s:t + I(t**2)", frame[~out]).fit()
    expected = frame["d"][out] - model.predict(frame[out])
    np.testing.assert_allclose(found.corrected_gap[out], expected, atol=EXACT)
    again = cross_fit(age, predicted, np.ones(90, bool), person, site=site, degree=2, seed=7)
    np.testing.assert_array_equal(again.corrected_age, found.corrected_age)


def test_another_scan_of_a_reference_member_is_left_out_with_them():
    age, predicted = sample(60)
    person = np.r_[np.arange(59), 0]
    reference = np.arange(60) < 59
    found = cross_fit(age, predicted, reference, person)
    assert found.fold[59] == found.fold[0]


def test_a_site_of_one_is_corrected_by_the_others():
    age, predicted = sample(61)
    site = ["a"] * 60 + ["alone"]
    found = cross_fit(age, predicted, np.ones(61, bool), np.arange(61), site=site)
    assert np.isfinite(found.corrected_age).all()
    assert {"site_held_out", "small_site"} <= names(found.verdicts)


def test_input_is_left_as_it_was():
    age, predicted = sample(40)
    age[0] = math.nan
    reference = np.ones(40, bool)
    frame = pd.DataFrame({"age": age, "predicted": predicted}, index=np.arange(40)[::-1])
    found = cross_fit(frame["age"], frame["predicted"], reference, frame.index)
    assert reference.all() and math.isnan(found.corrected_gap[0])
    biased = bias_correction.remaining_bias(frame["age"], frame["predicted"] - frame["age"])
    assert biased["n"].sum() == 39


def test_cross_fit_needs_folds():
    with pytest.raises(ValueError, match="folds"):
        cross_fit(*sample(20), np.ones(20, bool), np.arange(20), folds=1)


@pytest.mark.parametrize("site", [None, sites_of(200)])
def test_survives_json(site):
    age, predicted = sample()
    found = fit(age, predicted, site=site, degree=2)
    read = Correction.from_json(json.loads(json.dumps(found.to_json() | {"model": "wssa"})))
    assert read == found
    everybody = apply_to_all(read, age, predicted, site)
    np.testing.assert_array_equal(everybody.corrected_age, found.apply(age, predicted, site)[0])
    assert (everybody.fold == -1).all() and everybody.verdicts == found.verdicts


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("slope", ..., "lacks slope"),
        ("coefficients", [1.0], "2 coefficients"),
        ("coefficients", "ab", "cannot be read"),
        ("coefficients", [None, 1.0], "some of its coefficients"),
        ("covariance", [[1.0]], "2 coefficients"),
        ("terms", ["intercept"], "2 coefficients"),
        ("terms", ["age", "intercept"], "do not agree"),
        ("method", "le", "do not agree"),
        ("degree", 2, "do not agree"),
        ("degree", 0, "do not agree"),
        ("sites", [], "cannot be read"),
        ("verdicts", [{"name": "x"}], "cannot be read"),
    ],
)
def test_json_of_others(key, value, message):
    content = fit(*sample()).to_json()
    content = {k: v for k, v in (content | {key: value}).items() if v is not ...}
    with pytest.raises(ValueError, match=message):
        Correction.from_json(content)


def test_json_of_a_bent_line_of_cole():
    content = fit(*sample(), degree=2).to_json() | {"method": "cole"}
    with pytest.raises(ValueError, match="do not agree"):
        Correction.from_json(content)


def test_remaining_bias_by_decade():
    """A bend that a line leaves shows in the decades, and not in the correlation with age."""
    age, predicted = sample(1000, noise=1)
    gap = fit(age, predicted + 0.01 * (age - 50) ** 2).apply(
        age, predicted + 0.01 * (age - 50) ** 2
    )[1]
    found = bias_correction.remaining_bias(age, gap)
    assert found["decade"].tolist() == [f"{d}-{d + 9}" for d in range(20, 80, 10)]
    assert found["n"].sum() == 1000 and (found["mean"].iloc[[0, -1]] > 1).all()
    row = found.iloc[2]
    part = gap[(age >= 40) & (age < 50)]
    assert row["mean"] == pytest.approx(part.mean())
    assert row["high"] - row["low"] == pytest.approx(
        2 * 1.97 * part.std() / len(part) ** 0.5, 0.02
    )


def test_remaining_bias_of_little():
    found = bias_correction.remaining_bias(
        [25.0, 26.0, 45.0, np.nan], [1.0, 3.0, 2.0, 1.0], [*"aabc"]
    )
    assert found[["n", "participants"]].to_numpy().tolist() == [[2, 1], [1, 1]]
    assert found["mean"].tolist() == [2, 2] and found["low"].isna().all()
    assert bias_correction.remaining_bias([], []).empty
