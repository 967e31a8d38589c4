"""Percentile curves of the reference people in the participants' reports.

    python benchmarks/reference.py --out DIR ...

writes bidsapp/reporting/reference.toml from finished output folders of the app (for the volumes)
and from the ages that the models that vote predicted out of fold (benchmarks/ages.py), and prints
how well the curves fit. Run it again when a model gets other weights.

Each quantity is normal with a mean that is quadratic in age and a log standard deviation that is
linear in age, both fitted by maximum likelihood; volumes after taking their logarithm. Scans that
failed quality, that were stripped before (so that their intracranial volume is not known), or
whose person has no age, are left out of the volumes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import models  # noqa: E402
from benchmarks import ages as unseen_ages  # noqa: E402
from benchmarks.markdown import table  # noqa: E402
from bidsapp.derivatives import Derivatives  # noqa: E402
from bidsapp.reporting.reference import (  # noqa: E402
    FILE,
    PERCENTILES,
    REGIONS,
    WHOLES,
    percent,
)
from bidsapp.settings import Settings  # noqa: E402
from models.ensemble import voters, weights_of  # noqa: E402

Array = NDArray[np.float64]
STEP = 2.0
"""Years between two points of a curve."""
SCORES = np.array([NormalDist().inv_cdf(each / 100) for each in PERCENTILES])


class Fit:
    """Mean and standard deviation of a quantity by age."""

    def __init__(self, ages: Array, values: Array, log: bool) -> None:
        self.log, self.middle = log, float(ages.mean())
        observed = np.log(values) if log else values
        terms = self._terms(ages)
        start = np.linalg.lstsq(terms, observed, rcond=None)[0]
        spread = np.log((observed - terms @ start).std())

        def loss(given: Array) -> float:
            log_sd = given[3] + given[4] * terms[:, 1]
            return float(
                (log_sd + ((observed - terms @ given[:3]) / np.exp(log_sd)) ** 2 / 2).sum()
            )

        self.found = minimize(loss, [*start, spread, 0.0], method="BFGS").x

    def curves(self, ages: Array) -> Array:
        """Percentiles (percentiles, ages)."""
        terms = self._terms(ages)
        mean, sd = terms @ self.found[:3], np.exp(self.found[3] + self.found[4] * terms[:, 1])
        values = mean + SCORES[:, None] * sd
        return np.exp(values) if self.log else values

    def _terms(self, ages: Array) -> Array:
        decades = (ages - self.middle) / 10
        return np.stack([np.ones_like(decades), decades, decades**2], 1)


def main() -> None:
    """Fit all curves, write them and print their fit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, nargs="+", required=True)
    parser.add_argument("--ages", type=Path, default=unseen_ages.FOLDER, metavar="DIR",
                        help="with the tables of benchmarks/ages.py (%(default)s)")  # fmt: skip
    parser.add_argument("--to", type=Path, default=REPOSITORY / "bidsapp/reporting" / FILE)
    options = parser.parse_args()
    fits: dict[str, tuple[Array, Array, Array, Array]] = {}

    ages, shares, sources = volumes(options.out)
    grid = ages_of(ages)
    text = [
        "# Percentiles by age of the reference people in the reports.",
        "# Made by benchmarks/reference.py, which says how; not to be edited.",
        "",
        "[volumes]",
        f"people = {len(ages)}",
        f'who = "{len(ages)} people ({words(sources)})"',
        'license = "CC-BY-SA-3.0"',
        f"ages = {numbers(grid, 0)}",
    ]
    for (whole, region), values in shares.items():
        curves = Fit(ages, values, log=True).curves(grid)
        fits[f"{region}, % of {whole}"] = ages, values, grid, curves
        text += section(f"volumes.{whole}.{region}", curves, 4)

    found, weights, datasets = predicted_ages(unseen_ages.read(options.ages))
    grid = ages_of(found["age"].to_numpy())
    text += [
        "",
        "[predicted_age]",
        f"people = {len(found)}",
        f'who = "{len(found)} people ({words(datasets)}), predicted by networks that had not '
        'seen them"',
        'license = "CC-BY-SA-3.0"',
        f"ages = {numbers(grid, 0)}",
        "",
        "[predicted_age.weights_sha256]",
        *(f'{name} = "{digest}"' for name, digest in weights.items()),
    ]
    for name in (*weights, "ensemble"):
        of_model = found["age"].to_numpy(), found[name].to_numpy()
        curves = Fit(*of_model, log=False).curves(grid)
        fits[f"predicted age, {name}"] = *of_model, grid, curves
        text += section(f"predicted_age.models.{name}", curves, 2)
    options.to.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(report(fits))


def volumes(folders: Sequence[Path]) -> tuple[Array, dict[tuple[str, str], Array], Counter[str]]:
    """Ages, volumes in percent by whole and region, and how many people of which data set."""
    ages: list[float] = []
    shares: dict[tuple[str, str], list[float]] = {}
    sources: Counter[str] = Counter()
    for folder in folders:
        for record in Derivatives(folder, folder, Settings.template).records():
            of = {
                (whole, region): percent(record["volumes_ml"], region, whole)
                for whole in WHOLES
                for region in REGIONS
            }
            if record["age"] is None or not record["quality"]["passed"] or None in of.values():
                continue
            ages.append(record["age"])
            sources[folder.resolve().name] += 1
            for key, value in of.items():
                assert value is not None
                shares.setdefault(key, []).append(value)
    return np.array(ages), {key: np.array(values) for key, values in shares.items()}, sources


def predicted_ages(told: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], Counter[str]]:
    """Ages predicted out of fold, by model and by all together; hashes of the weights."""
    cards = {name: models.card(name) for name in told["model"].unique()}
    names = voters(cards)
    told = told[told["kind"] == unseen_ages.OUT_OF_FOLD]
    wide = told.pivot_table(
        index=["dataset", "participant_id", "age"], columns="model", values="predicted_age",
        aggfunc="first", sort=False,
    )[names].dropna().reset_index()  # fmt: skip
    shares = weights_of([cards[name].uncertainty.standard_deviation for name in names])
    wide["ensemble"] = wide[names].to_numpy() @ shares
    return wide, {name: cards[name].weights_sha256 for name in names}, Counter(wide["dataset"])


# --- words ---


def ages_of(ages: Array) -> Array:
    """Ages at which curves are given: whole years inside of those of the people."""
    first, last = np.ceil(ages.min()), np.floor(ages.max())
    return np.append(np.arange(first, last, STEP), last)


def section(name: str, curves: Array, digits: int) -> list[str]:
    """A table of TOML."""
    rows = [f"p{p} = {numbers(row, digits)}" for p, row in zip(PERCENTILES, curves)]
    return ["", f"[{name}]", *rows]


def numbers(values: Array, digits: int) -> str:
    """A list of TOML."""
    return f"[{', '.join(f'{value:.{digits}f}' for value in values)}]"


def words(sources: Counter[str]) -> str:
    """Data sets with their numbers."""
    return ", ".join(f"{name} {n}" for name, n in sources.most_common())


def report(fits: Mapping[str, Any]) -> str:
    """Share of the people below each curve, of all and of each third by age."""
    rows = []
    for name, (ages, values, grid, curves) in fits.items():
        thirds = np.digitize(ages, np.quantile(ages, (1 / 3, 2 / 3)))
        below = [values < np.interp(ages, grid, curve) for curve in curves]
        rows.append([
            name,
            str(len(ages)),
            *(f"{100 * under.mean():.0f} %" + " ("
              + ", ".join(f"{100 * under[thirds == third].mean():.0f}" for third in range(3))
              + ")" for under in below),
        ])  # fmt: skip
    return table(["of", "people", *(f"below p{p}" for p in PERCENTILES)], rows)


if __name__ == "__main__":
    main()
