"""Curves of the reference people: they find what was planted, and count whom they should."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

import models
from benchmarks import ages as unseen_ages
from benchmarks.reference import Fit, ages_of, predicted_ages, volumes
from bidsapp.reporting.reference import PERCENTILES


@pytest.mark.parametrize("log", [True, False])
def test_a_planted_course_is_found(log: bool) -> None:
    random = np.random.default_rng(1)
    ages = random.uniform(20, 80, 4000)
    decades = (ages - 50) / 10

    def course(at: Any, score: Any) -> Any:
        value = 1.0 + 0.2 * at + 0.05 * at**2 + np.exp(-1.5 + 0.1 * at) * score
        return np.exp(value) if log else value

    fit = Fit(ages, course(decades, random.normal(size=len(ages))), log)
    at = np.array([25.0, 50, 75])
    for percent, found in zip(PERCENTILES, fit.curves(at)):
        planted = course((at - 50) / 10, NormalDist().inv_cdf(percent / 100))
        np.testing.assert_allclose(found, planted, rtol=0.06)


def test_curves_end_inside_of_the_ages_of_the_people() -> None:
    ages = ages_of(np.array([20.4, 33.0, 28.7]))
    assert ages[0] == 21 and ages[-1] == 33 and (np.diff(ages) > 0).all()


def record(number: int, **changes: Any) -> dict[str, Any]:
    names = ("cortex", "left_lateral_ventricle", "right_lateral_ventricle",
             "left_hippocampus", "right_hippocampus")  # fmt: skip
    known = {"brain": 1000.0, "csf": 250.0} | dict.fromkeys(names, 5.0 + number)
    return {"age": 30.0 + number, "quality": {"passed": True}, "volumes_ml": known} | changes


def test_who_counts_for_volumes(tmp_path: Path) -> None:
    sound = record(1)
    stripped = sound["volumes_ml"] | {"csf": None}
    records = [
        sound, record(2), record(3, age=None), record(4, quality={"passed": False}),
        record(5, volumes_ml=stripped),
    ]  # fmt: skip
    for number, each in enumerate(records):
        path = tmp_path / "ixi" / f"sub-{number}" / "anat" / f"sub-{number}_brainage.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(each))
    ages, shares, sources = volumes([tmp_path / "ixi"])
    assert ages.tolist() == [31, 32] and sources == {"ixi": 2}
    assert shares["intracranial", "cortex"] == pytest.approx([100 * 6 / 1250, 100 * 7 / 1250])
    assert shares["brain", "hippocampus"] == pytest.approx([100 * 12 / 1000, 100 * 14 / 1000])


def test_predicted_ages_are_those_of_people_held_out_and_of_models_that_vote() -> None:
    found, weights, datasets = predicted_ages(unseen_ages.read())
    assert "volumes" not in weights and len(weights) > 1
    assert weights == {name: models.card(name).weights_sha256 for name in weights}
    assert sum(datasets.values()) == len(found) == models.card("wssa").training["people"]
    spread = found[list(weights)]
    assert (found["ensemble"] <= spread.max(axis=1)).all()
    assert (found["ensemble"] >= spread.min(axis=1)).all()
