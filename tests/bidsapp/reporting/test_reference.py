"""Percentile curves of the reference people: whole, ordered, and of the models in use."""

from __future__ import annotations

import numpy as np
import pytest

import models
from bidsapp.reporting import reference
from bidsapp.reporting.reference import PERCENTILES, REGIONS, WHOLES, Curves, percent

AGES = np.array([20.0, 40, 60])
FLAT = Curves(AGES, np.array([[p] * 3 for p in (10.0, 20, 30, 40, 50)]), 100)
VOLUMES = {
    "brain": 1200.0, "csf": 300.0, "cortex": 540.0,
    "left_lateral_ventricle": 7.0, "right_lateral_ventricle": 8.0,
    "left_hippocampus": 4.0, "right_hippocampus": 3.5,
}  # fmt: skip


def all_curves() -> list[Curves]:
    known = reference.load()
    tables = [*known.volumes.values(), known.predicted_ages]
    return [curves for table in tables for curves in table.values()]


def test_every_region_and_model_has_curves_that_do_not_cross() -> None:
    known = reference.load()
    assert {whole: set(of) for whole, of in known.volumes.items()} == {
        whole: set(REGIONS) for whole in WHOLES
    }
    assert set(known.predicted_ages) == {*known.weights, "ensemble"}
    for curves in all_curves():
        assert curves.values.shape == (len(PERCENTILES), len(curves.ages))
        assert (np.diff(curves.values, axis=0) > 0).all() and (np.diff(curves.ages) > 0).all()
        assert curves.people > 100


def test_ventricles_grow_cortex_shrinks_and_predictions_follow_age() -> None:
    known = reference.load()
    for of in known.volumes.values():
        medians = {region: curves.values[2] for region, curves in of.items()}
        assert medians["lateral_ventricles"][-1] > 2 * medians["lateral_ventricles"][0]
        assert medians["cortex"][-1] < 0.95 * medians["cortex"][0]
    for curves in known.predicted_ages.values():
        assert curves.values[2][-1] - curves.values[2][0] > 30


def test_predicted_ages_are_those_of_the_weights_in_use() -> None:
    in_use = {name: models.card(name).weights_sha256 for name in reference.load().weights}
    assert in_use == reference.load().weights, "run benchmarks/reference.py again"


@pytest.mark.parametrize(
    ("age", "value", "expected"),
    [(30, 30, 50), (30, 40, 75), (20, 10, 5), (30, 35, 63.2), (30, 0, 5), (30, 99, 95),
     (19.9, 30, None), (60.1, 30, None)],
)  # fmt: skip
def test_percentiles(age: float, value: float, expected: float | None) -> None:
    found = FLAT.percentile(age, value)
    assert found is None if expected is None else found == pytest.approx(expected, abs=0.05)


def test_shares_of_volumes() -> None:
    assert percent(VOLUMES, "lateral_ventricles", "intracranial") == pytest.approx(1.0)
    assert percent(VOLUMES, "cortex", "brain") == pytest.approx(45.0)
    stripped = VOLUMES | {"csf": None}
    assert percent(stripped, "cortex", "intracranial") is None
    assert percent(stripped, "cortex", "brain") == pytest.approx(45.0)
    assert percent({"brain": 1200.0}, "hippocampus", "brain") is None


def test_curves_of_predicted_ages_are_for_these_models_alone() -> None:
    known = reference.load()
    of = {name: {"weights_sha256": digest} for name, digest in known.weights.items()}
    one = next(iter(of))
    assert known.predicted_age(of | {"ensemble": {}}) is known.predicted_ages["ensemble"]
    assert known.predicted_age({one: of[one], "ensemble": {}}) is known.predicted_ages[one]
    assert known.predicted_age(of | {"other": {"weights_sha256": "0"}}) is None
    assert known.predicted_age({one: {"weights_sha256": "0" * 64}}) is None
    assert known.predicted_age({}) is None
