"""Site effects of the gap: location and scale per site, fitted on controls.

ComBat's model (Johnson 2007; Fortin 2018) for one column: there is nothing to pool over, so no
empirical Bayes. Several columns are harmonised one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bidsapp.errors import UserError
from bidsapp.statistics.design import Matrix, participants, words
from bidsapp.statistics.verdict import Verdict

FEWEST_FOR_LOCATION = 10
FEWEST_FOR_SCALE = 30
"""Controls of a site."""


@dataclass(frozen=True)
class SiteEffects:
    """Location and scale of each site, relative to all controls.

    Attributes
    ----------
    location
        Shift of each site, in units of the outcome.
    scale
        Spread of each site's controls over that of all; 1 where too few controls to tell.
    controls
        Number of controls each site was fitted on, 10 at least; other sites are not fitted.
    mean_age
        Of the controls, years; the age term is centred there.
    coefficients
        Of intercept, age (per year, from ``mean_age``) and sex (male); 0 for sex where the
        controls have one sex or mostly none.
    verdicts
        What a reader must know.
    """

    location: Mapping[str, float]
    scale: Mapping[str, float]
    controls: Mapping[str, int]
    mean_age: float
    coefficients: tuple[float, float, float]
    verdicts: tuple[Verdict, ...]

    def apply(self, table: pd.DataFrame, outcome: str) -> NDArray[np.float64]:
        """Return the outcome without site effects, (rows,).

        NaN where the outcome, age or site (or sex, where it has a coefficient) of a row is
        unknown, or its site was not fitted.
        """
        site = words(table["site"])
        values = pd.to_numeric(table[outcome], errors="coerce").to_numpy(float)
        location, scale = (
            site.map(known).to_numpy(float) for known in (self.location, self.scale)
        )
        expected = self._expected(table)
        return np.asarray((values - expected - location) / scale + expected)

    def record(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return {
            "method": "location and scale per site on controls, without empirical Bayes",
            "sites": {
                name: {
                    "location": self.location[name],
                    "scale": self.scale[name],
                    "controls": self.controls[name],
                }
                for name in self.location
            },
            "mean_age": self.mean_age,
            "coefficients": dict(zip(("intercept", "age", "male"), self.coefficients)),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }

    def _expected(self, table: pd.DataFrame) -> Matrix:
        intercept, per_year, male = self.coefficients
        age = pd.to_numeric(table["age"], errors="coerce").to_numpy(float)
        expected = intercept + per_year * (age - self.mean_age)
        if male:
            expected = expected + male * _male(table["sex"])
        return np.asarray(expected)


def fit_site_effects(
    table: pd.DataFrame, outcome: str, controls: NDArray[np.bool_]
) -> SiteEffects:
    """Fit location and scale per site on the controls, adjusting for age and sex.

    Location is relative to the mean of all controls; scale is 1 where fewer than 30 controls tell
    too little of it. A participant counts once, by the first session.

    Parameters
    ----------
    table
        Columns `outcome`, ``age`` (years), ``sex`` ("F", "M"), ``site`` and ``participant_id``.
    controls
        (rows,) which rows to fit on.

    Raises
    ------
    UserError
        If fewer than two sites have 10 controls, or if all others were scanned at sites that have
        not: site and group cannot be told apart then.
    """
    rows, _, _ = participants(table[controls], outcome, ("site",))
    rows = rows.dropna(subset=[outcome, "age", "site"])
    if "sex" in rows and rows["sex"].notna().mean() > 0.5:
        rows = rows.dropna(subset=["sex"])
    else:
        rows = rows.assign(sex="F")
    count = rows["site"].value_counts()
    fitted = sorted(count.index[count >= FEWEST_FOR_LOCATION])
    _refuse(table["site"], controls, fitted)
    rows = rows[rows["site"].isin(fitted)]

    y, age = rows[outcome].to_numpy(float), rows["age"].to_numpy(float)
    male = _male(rows["sex"])
    at = (rows["site"].to_numpy()[:, None] == np.array(fitted)).astype(float)
    sexes = [male] if 0 < male.mean() < 1 else []
    design = np.column_stack([at, age - age.mean(), *sexes])
    solved, _, rank, _ = np.linalg.lstsq(design, y)
    residuals = y - design @ solved
    free = 1 - (np.linalg.qr(design)[0] ** 2).sum(axis=1)
    spread = (residuals**2).sum() / (len(y) - rank)

    n = at.sum(axis=0)
    intercept = float(n @ solved[: len(fitted)] / n.sum())
    per_site = (residuals**2 @ at) / (free @ at)
    scale = np.where(n >= FEWEST_FOR_SCALE, np.sqrt(per_site / spread), 1.0)
    slopes = (*solved[len(fitted) :].tolist(), 0.0)[:2]
    return SiteEffects(
        dict(zip(fitted, (solved[: len(fitted)] - intercept).tolist())),
        dict(zip(fitted, scale.tolist())),
        {name: int(count[name]) for name in fitted},
        float(age.mean()),
        (intercept, *slopes),
        tuple(_remarks(table["site"], count, fitted)),
    )


def _refuse(site: pd.Series, controls: NDArray[np.bool_], fitted: list[str]) -> None:
    if len(fitted) < 2:
        raise UserError(
            f"harmonisation takes {FEWEST_FOR_LOCATION} controls at each of two sites at least, "
            f"which {len(fitted)} of {words(site).nunique()} sites have; run without it."
        )
    others = words(site)[~controls].dropna()
    if len(others) and not others.isin(fitted).any():
        raise UserError(
            "harmonisation: site and group cannot be told apart, because everybody who is not a "
            f"control was scanned at sites with fewer than {FEWEST_FOR_LOCATION} controls "
            f"({', '.join(sorted(others.unique())[:5])}); run without it."
        )


def _remarks(site: pd.Series, count: pd.Series, fitted: list[str]) -> list[Verdict]:
    found = []
    at = words(site)
    if (unknown := int(at.isna().sum())) > 0:
        text = f"{unknown} scans of unknown site are not harmonised."
        found.append(Verdict("site_not_harmonised", text))
    for name, scans in at[~at.isin(fitted)].value_counts().sort_index().items():
        text = (
            f"{scans} scans of site {name} are not harmonised: it has {count.get(name, 0)} "
            f"controls, and {FEWEST_FOR_LOCATION} are needed."
        )
        found.append(Verdict("site_not_harmonised", text))
    unscaled = [name for name in fitted if count[name] < FEWEST_FOR_SCALE]
    if unscaled:
        text = (
            f"Only the location of {', '.join(unscaled)} is harmonised: the scale takes "
            f"{FEWEST_FOR_SCALE} controls."
        )
        found.append(Verdict("site_scale_kept", text, "note"))
    return found


def _male(sex: pd.Series) -> Matrix:
    return sex.map({"M": 1.0, "F": 0.0}).to_numpy(float)
