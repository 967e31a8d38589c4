"""Reference people of the reports: percentiles of volumes and predicted ages by age.

The curves are in ``reference.toml``; ``benchmarks/reference.py`` makes them. No single person can
be read off from them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FILE = "reference.toml"
PERCENTILES = (5, 25, 50, 75, 95)
REGIONS = {
    "lateral_ventricles": ("left_lateral_ventricle", "right_lateral_ventricle"),
    "cortex": ("cortex",),
    "hippocampus": ("left_hippocampus", "right_hippocampus"),
}
"""The regions that have curves, and the volumes of a record that they are the sum of."""
WHOLES = {"intracranial": ("brain", "csf"), "brain": ("brain",)}
"""What volumes are given in percent of: with the fluid around the brain, or without it."""

_SCORES = [NormalDist().inv_cdf(percent / 100) for percent in PERCENTILES]


@dataclass(frozen=True)
class Curves:
    """Percentiles of a quantity by age.

    Attributes
    ----------
    ages
        (n,), years, rising.
    values
        (percentiles, n), in the order of `PERCENTILES`.
    people
        How many reference people there are.
    """

    ages: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    people: int

    def percentile(self, age: float, value: float) -> float | None:
        """Percentile of a person among reference people of this age.

        None where there are no such people. Beyond the outermost curves it is that curve's, since
        so few people say nothing about the tails.
        """
        if not self.ages[0] <= age <= self.ages[-1]:
            return None
        levels = [float(np.interp(age, self.ages, curve)) for curve in self.values]
        return 100 * NormalDist().cdf(float(np.interp(value, levels, _SCORES)))


@dataclass(frozen=True)
class Reference:
    """All curves, and who the people are in words.

    Attributes
    ----------
    volumes
        By what they are in percent of (`WHOLES`), then by region (`REGIONS`).
    predicted_ages
        By model; "ensemble" is that of all models in `weights`.
    weights
        SHA-256 of the weights of the models that the predicted ages are of.
    people
        Who they are, of the volumes and of the predicted ages.
    """

    volumes: Mapping[str, Mapping[str, Curves]]
    predicted_ages: Mapping[str, Curves]
    weights: Mapping[str, str]
    people: Mapping[str, str]

    def predicted_age(self, predictions: Mapping[str, Any]) -> Curves | None:
        """Curves of the ages that these models predict together, if it is of them.

        Parameters
        ----------
        predictions
            Of a record, without models that have no vote in the ensemble.
        """
        models = {name: p.get("weights_sha256") for name, p in predictions.items()}
        models.pop("ensemble", None)
        if not models or not models.items() <= self.weights.items():
            return None
        if len(models) == 1:
            return self.predicted_ages.get(next(iter(models)))
        return self.predicted_ages.get("ensemble") if len(models) == len(self.weights) else None


def percent(volumes_ml: Mapping[str, Any], region: str, whole: str) -> float | None:
    """Volume of one of `REGIONS` in percent of one of `WHOLES`; None where one is not known."""
    names = REGIONS[region], WHOLES[whole]
    part, of = (_sum([volumes_ml.get(name) for name in each]) for each in names)
    return 100 * part / of if part is not None and of else None


def _sum(volumes: Sequence[float | None]) -> float | None:
    known = [volume for volume in volumes if volume is not None]
    return sum(known) if len(known) == len(volumes) else None


@cache
def load() -> Reference:
    """Read the curves that come with the package."""
    table = tomllib.loads((files(__package__) / FILE).read_text(encoding="utf-8"))
    volumes, ages = table["volumes"], table["predicted_age"]
    return Reference(
        {whole: _curves(volumes[whole], volumes) for whole in WHOLES},
        _curves(ages["models"], ages),
        ages["weights_sha256"],
        {"volumes": volumes["who"], "predicted_age": ages["who"]},
    )


def _curves(tables: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Curves]:
    ages = np.array(about["ages"], float)
    return {
        name: Curves(ages, np.array([rows[f"p{p}"] for p in PERCENTILES]), int(about["people"]))
        for name, rows in tables.items()
    }
