"""How well predicted ages agree with chronological ones, with bootstrap intervals by person.

All figures but Spearman's are functions of seven sums over people. A bootstrap sample is a weight
per person, so that its figures come from one matrix product: nothing is resampled row by row, and
10,000 people take as many resamples as ten do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from bidsapp.statistics.labels import codes, decade

RESAMPLES = 1000
STRATA = ("sex", "site", "decade")
PREDICTIONS = {"raw": "predicted_age", "corrected": "corrected_age"}
FEWEST = 5
"""People below whom there is no interval."""
_WEIGHTS_AT_ONCE = 2_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """Figures of one set of scans, years where a unit is due; d is predicted minus true age.

    Attributes
    ----------
    n, participants
        Scans with both ages, and people.
    age_low, age_high
        Of these scans: errors of sets with other age ranges do not compare (de Lange 2022).
    mae, rmse, bias, r, r2, slope, intercept, gap_age_r
        Mean absolute error; root mean squared error; mean of d; Pearson's r; 1 - SSE/SST; line of
        predicted on true age; Pearson's r of d with age. Each with ``_low`` and ``_high``: 95 %
        percentile bootstrap, people resampled with all their scans.
    spearman
        Rank correlation; without interval.
    weighted_mae
        MAE over age range.
    """

    n: int
    participants: int
    age_low: float
    age_high: float
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    rmse_low: float
    rmse_high: float
    bias: float
    bias_low: float
    bias_high: float
    r: float
    r_low: float
    r_high: float
    spearman: float
    r2: float
    r2_low: float
    r2_high: float
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    intercept_low: float
    intercept_high: float
    gap_age_r: float
    gap_age_r_low: float
    gap_age_r_high: float
    weighted_mae: float


def accuracy(
    age: ArrayLike,
    predicted: ArrayLike,
    participant: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> Accuracy:
    """Figures of (n,) ages in years; rows that lack one are left out, figures without data NaN."""
    y, p = np.asarray(age, dtype=float), np.asarray(predicted, dtype=float)
    who = codes(np.arange(len(y)) if participant is None else participant)
    return _accuracies([(y, p, who)], resamples, seed)[0]


def table(
    frame: pd.DataFrame,
    strata: Sequence[str] = STRATA,
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> pd.DataFrame:
    """Accuracy per model, stratum and prediction, raw beside corrected.

    Parameters
    ----------
    frame
        One row per scan and model: ``participant_id``, ``model``, ``age``, ``predicted_age``, and
        where they exist ``corrected_age`` and the columns of ``strata``; ``decade`` is made from
        ``age``. The caller chooses the rows (who is in, which quality).

    Returns
    -------
    One row each: ``model``, ``stratum`` ("all", "sex", ...), ``level`` ("all", "F", "30-39", ...),
    ``prediction`` ("raw" or "corrected"), then the fields of `Accuracy`. Everybody of a stratum
    gets the same resamples, whatever the model, so that figures compare.
    """
    frame = frame.assign(decade=decade(frame["age"]).to_numpy())
    predictions = {name: of for name, of in PREDICTIONS.items() if of in frame}
    rows = []
    for stratum, level, part in _parts(frame, strata):
        who = pd.Series(codes(part["participant_id"]), index=part.index)
        keys, sets = [], []
        for model, scans in part.groupby("model", sort=False):
            for name, of in predictions.items():
                keys.append(
                    {"model": model, "stratum": stratum, "level": level, "prediction": name}
                )
                sets.append([scans[c].to_numpy(float) for c in ("age", of)] + [who[scans.index]])
        found = _accuracies([(y, p, np.asarray(w)) for y, p, w in sets], resamples, seed)
        rows += [key | asdict(figures) for key, figures in zip(keys, found)]
    columns = ["model", "stratum", "level", "prediction", *(f.name for f in fields(Accuracy))]
    return pd.DataFrame(rows, columns=columns)


def _parts(
    frame: pd.DataFrame, strata: Sequence[str]
) -> Iterator[tuple[str, Hashable, pd.DataFrame]]:
    yield "all", "all", frame
    for stratum in strata:
        if stratum in frame:
            for level, part in frame.groupby(stratum, observed=True):
                yield stratum, level, part


def _accuracies(
    sets: Sequence[tuple[Floats, Floats, NDArray[np.intp]]], resamples: int, seed: int
) -> list[Accuracy]:
    """Figures of several (age, predicted, person) triples of the same people."""
    known = [(y[ok], p[ok], w[ok]) for y, p, w in sets for ok in [np.isfinite(y) & np.isfinite(p)]]
    if not sets:
        return []
    people = max((int(w.max()) + 1 for _, _, w in known if len(w)), default=0)
    centres = [float(y.mean()) if len(y) else np.nan for y, _, _ in known]
    sums = np.stack([_sums(*each, c, people) for each, c in zip(known, centres)], axis=1)
    present = sums[:, :, 0] > 0
    samples = _resample(sums[present.any(axis=1)], resamples, seed)
    return [
        _describe(*known[i], centres[i], sums[:, i].sum(axis=0), samples[:, i])
        for i in range(len(known))
    ]


def _sums(
    age: Floats, predicted: Floats, person: NDArray[np.intp], centre: float, people: int
) -> Floats:
    """(people, 7): scans, and sums of |d|, d, d^2, y, y^2, y d; y counted from ``centre``."""
    y, d = age - centre, predicted - age
    columns = [np.ones_like(y), np.abs(d), d, d**2, y, y**2, y * d]
    return np.stack([np.bincount(person, column, people) for column in columns], axis=1)


def _resample(sums: Floats, resamples: int, seed: int) -> Floats:
    """(resamples, ...) totals of as many people as there are, drawn with replacement."""
    people, *shape = sums.shape
    flat = sums.reshape(people, int(np.prod(shape)))
    totals = [np.empty((0, flat.shape[1]))]
    if people >= FEWEST:
        rng = np.random.default_rng(seed)
        step = max(1, _WEIGHTS_AT_ONCE // people)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            drawn = rng.integers(people, size=(count, people), dtype=np.int32)
            drawn += np.arange(count, dtype=np.int32)[:, None] * np.int32(people)
            weights = np.bincount(drawn.ravel(), minlength=count * people)
            totals.append(weights.reshape(count, people).astype(float) @ flat)
    return np.concatenate(totals).reshape(-1, *shape)


def _figures(sums: Floats, centre: float) -> dict[str, Floats]:
    """Figures from (..., 7) sums; NaN where something that divides does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        absolute, d, d2, y, y2, yd = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
        y_var, d_var, covariance = y2 - y**2, d2 - d**2, yd - y * d
        y_var = np.where(y_var > 1e-12 * y2, y_var, np.nan)
        d_var = np.where(d_var > 1e-12 * d2, d_var, np.nan)
        p_var = y_var + 2 * covariance + d2 - d**2
        p_var = np.where(p_var > 1e-12 * (y_var + d2), p_var, np.nan)
        slope = 1 + covariance / y_var
        return {
            "mae": absolute,
            "rmse": np.sqrt(d2),
            "bias": d,
            "r": (y_var + covariance) / np.sqrt(y_var * p_var),
            "r2": 1 - d2 / y_var,
            "slope": slope,
            "intercept": d + (y + centre) * (1 - slope),
            "gap_age_r": covariance / np.sqrt(y_var * d_var),
        }


def _describe(
    age: Floats,
    predicted: Floats,
    person: NDArray[np.intp],
    centre: float,
    sums: Floats,
    samples: Floats,
) -> Accuracy:
    figures = {name: float(value) for name, value in _figures(sums, centre).items()}
    people = len(np.unique(person))
    if len(age) < 3:  # a line through two points fits always
        figures |= dict.fromkeys(("r", "r2", "slope", "intercept", "gap_age_r"), np.nan)
    for name, drawn in _figures(samples, centre).items():
        drawn = drawn[np.isfinite(drawn)]
        enough = people >= FEWEST and len(drawn) > len(samples) / 2 and np.isfinite(figures[name])
        low, high = np.percentile(drawn, [2.5, 97.5]) if enough else (np.nan, np.nan)
        figures |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    low, high = (float(age.min()), float(age.max())) if len(age) else (np.nan, np.nan)
    varies = np.isfinite(figures["r"])
    return Accuracy(
        n=len(age),
        participants=people,
        age_low=low,
        age_high=high,
        spearman=_correlation(rankdata(age), rankdata(predicted)) if varies else np.nan,
        weighted_mae=figures["mae"] / (high - low) if high > low else np.nan,
        **figures,
    )


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
