"""Planted site effects are found on controls and taken off; confounded designs are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bidsapp.errors import UserError
from bidsapp.statistics.harmonization import fit_site_effects

SHIFT = {"A": 4.0, "B": -2.0, "Zürich": 0.0}
SPREAD = {"A": 2.0, "B": 1.0, "Zürich": 0.5}


def study(n: int = 3000, seed: int = 1, **columns: Any) -> pd.DataFrame:
    """Gaps with shifts and spreads of sites; patients are 3 years older, site A's people too."""
    random = np.random.default_rng(seed)
    site = random.choice(list(SHIFT), n, p=[0.5, 0.3, 0.2])
    group = random.choice(["control", "patient"], n)
    age = random.uniform(30, 70, n) + 10 * (site == "A")
    sex = random.choice(["F", "M"], n)
    truth = 2 - 0.2 * (age - 50) + (sex == "M") + 3 * (group == "patient")
    error = random.normal(0, 3, n)
    spread, shift = (pd.Series(site).map(known).to_numpy() for known in (SPREAD, SHIFT))
    table = {
        "participant_id": [f"sub-{number}" for number in range(n)],
        "age": age, "sex": sex, "site": site, "group": group,
        "gap": truth + shift + spread * error, "error": error,
    }  # fmt: skip
    return pd.DataFrame(table).assign(**columns)


def controls(table: pd.DataFrame) -> np.ndarray:
    return (table.group == "control").to_numpy()


def test_planted_shifts_and_spreads_are_found() -> None:
    table = study()
    effects = fit_site_effects(table, "gap", controls(table))
    for site in ("B", "Zürich"):
        found = effects.location["A"] - effects.location[site]
        assert found == pytest.approx(SHIFT["A"] - SHIFT[site], abs=0.7)
        ratio = effects.scale["A"] / effects.scale[site]
        assert ratio == pytest.approx(SPREAD["A"] / SPREAD[site], rel=0.1)
    assert effects.coefficients[1] == pytest.approx(-0.2, abs=0.03)
    assert effects.coefficients[2] == pytest.approx(1, abs=0.6)
    assert sum(effects.controls.values()) == controls(table).sum() and not effects.verdicts
    weighted = sum(effects.location[name] * effects.controls[name] for name in SHIFT)
    assert weighted == pytest.approx(0, abs=1e-8 * len(table))


def test_after_it_sites_do_not_differ_and_groups_still_do() -> None:
    table = study()
    known = controls(table)
    table["gap"] = fit_site_effects(table, "gap", known).apply(table, "gap")
    again = fit_site_effects(table, "gap", known)
    assert list(again.location.values()) == pytest.approx([0, 0, 0], abs=0.1)
    assert list(again.scale.values()) == pytest.approx([1, 1, 1], abs=0.02)
    # Patients' distance is on the scale of their site's controls; the planted one is in years.
    for site, part in table.groupby("site"):
        left = part.gap + 0.2 * (part.age - 50) - (part.sex == "M")
        difference = left[part.group == "patient"].mean() - left[part.group == "control"].mean()
        expected = 3 / fit_site_effects(study(), "gap", controls(study())).scale[site]
        assert difference == pytest.approx(expected, abs=1)


def test_it_is_combat_without_empirical_bayes() -> None:
    """Against the formula of Johnson 2007, with variances of n - k as here."""
    table = study(600)
    known = controls(table)
    effects = fit_site_effects(table, "gap", known)
    part = table[known]
    at = pd.get_dummies(part.site).to_numpy(float)
    x = np.column_stack([part.age - part.age.mean(), part.sex == "M"]).astype(float)
    beta = np.linalg.lstsq(np.hstack([at, x]), part.gap.to_numpy())[0]
    alpha = at.mean(axis=0) @ beta[:3]
    gamma = pd.Series(beta[:3] - alpha, index=sorted(SHIFT))
    expected = alpha + x @ beta[3:]
    delta = part.site.map(effects.scale)
    by_hand = (part.gap - expected - part.site.map(gamma)) / delta + expected
    assert effects.apply(part, "gap") == pytest.approx(by_hand.to_numpy(), abs=1e-9)


def test_spread_needs_more_controls_than_location() -> None:
    table = study(60)
    table["site"] = ["A"] * 40 + ["B"] * 20
    table["group"] = "control"
    effects = fit_site_effects(table, "gap", controls(table))
    assert effects.scale["B"] == 1 != effects.scale["A"]
    assert effects.verdicts[0].name == "site_scale_kept" and "of B" in effects.verdicts[0].text


def test_sites_with_few_controls_are_told_and_stay_empty() -> None:
    table = study(200)
    table.loc[:4, "site"], table.loc[5:6, "site"] = "C", None
    table.loc[7, "age"] = np.nan
    effects = fit_site_effects(table, "gap", controls(table))
    empty = np.isnan(effects.apply(table, "gap"))
    assert empty[:8].all() and not empty[8:].any()
    texts = [verdict.text for verdict in effects.verdicts]
    assert "2 scans of unknown site are not harmonised." in texts
    assert any(text.startswith("5 scans of site C") for text in texts)


@pytest.mark.parametrize("sex", ["F", None])
def test_one_sex_or_none_known(sex: str | None) -> None:
    table = study(400, sex=sex)
    effects = fit_site_effects(table, "gap", controls(table))
    assert effects.coefficients[2] == 0
    assert np.isfinite(effects.apply(table, "gap")).all()


def test_a_participant_counts_once() -> None:
    table = study(400)
    again = pd.concat([table, table[table.site == "A"].assign(session_id="ses-2")])
    once = fit_site_effects(table.assign(session_id="ses-1"), "gap", controls(table))
    twice = fit_site_effects(again.fillna({"session_id": "ses-1"}), "gap", controls(again))
    assert twice.controls == once.controls
    assert list(twice.location.values()) == pytest.approx(list(once.location.values()))


def test_site_and_group_that_cannot_be_told_apart_are_refused() -> None:
    table = study(300, site=lambda rows: rows.group.map({"control": "A", "patient": "B"}))
    table.loc[table.index[table.group == "control"][:40], "site"] = "C"
    with pytest.raises(UserError, match=r"cannot be told apart.*fewer than 10 controls \(B\)"):
        fit_site_effects(table, "gap", controls(table))


@pytest.mark.parametrize("site", ["A", None, lambda rows: rows.participant_id])
def test_too_few_sites_are_refused(site: Any) -> None:
    table = study(100, site=site)
    with pytest.raises(UserError, match="10 controls at each of two sites at least, which"):
        fit_site_effects(table, "gap", controls(table))
    with pytest.raises(UserError, match="two sites"):
        fit_site_effects(study(100), "gap", np.zeros(100, bool))


def test_record_is_json() -> None:
    table = study(200)
    effects = fit_site_effects(table, "gap", controls(table))
    record = json.loads(json.dumps(effects.record(), allow_nan=False))
    assert record["sites"]["Zürich"]["controls"] == effects.controls["Zürich"]
    assert set(record["coefficients"]) == {"intercept", "age", "male"}


def test_a_site_without_spread_stays_finite() -> None:
    table = study(300)
    table.loc[table.site == "A", "gap"] = 1.0  # e.g. a model that failed there
    shown = fit_site_effects(table, "gap", controls(table)).apply(table, "gap")
    assert np.isfinite(shown).all()
