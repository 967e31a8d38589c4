"""How well predicted ages agree with true ones: figures with intervals, tables and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.contract import Uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from models.training.data import TrainingSet
    from models.training.regression import Epoch

Ages = NDArray[np.float64]
RESAMPLES = 2000
COVERAGE = 0.9


@dataclass(frozen=True)
class Accuracy:
    """Agreement of predicted with true ages; years where a unit is due.

    Attributes
    ----------
    mean_error
        Of predicted minus true age.
    slope
        Of predicted age on true age, by least squares.
    baseline_mae
        Of predicting everybody's mean age.
    mae_low, mae_high, r_low, r_high
        Bootstrap 95 % intervals, people resampled with all their scans.
    """

    n: int
    people: int
    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    mean_error: float
    r: float
    r_low: float
    r_high: float
    spearman: float
    slope: float
    baseline_mae: float


def accuracy(true: Ages, predicted: Ages, people: Sequence[Hashable], seed: int = 1) -> Accuracy:
    """Compute the figures.

    Parameters
    ----------
    true, predicted
        Years, (scans,).
    people
        Whose scan it is, one per scan.
    seed
        Of the bootstrap.
    """
    from scipy.stats import rankdata

    error = predicted - true
    samples = _resample(people, np.random.default_rng(seed))
    maes = [np.abs(error[rows]).mean() for rows in samples]
    correlations = [_correlation(true[rows], predicted[rows]) for rows in samples]
    mae_low, mae_high = np.percentile(maes, [2.5, 97.5])
    r_low, r_high = np.percentile(correlations, [2.5, 97.5])
    return Accuracy(
        n=len(true),
        people=len(set(people)),
        mae=float(np.abs(error).mean()),
        mae_low=float(mae_low),
        mae_high=float(mae_high),
        rmse=float(np.sqrt((error**2).mean())),
        mean_error=float(error.mean()),
        r=_correlation(true, predicted),
        r_low=float(r_low),
        r_high=float(r_high),
        spearman=_correlation(rankdata(true), rankdata(predicted)),
        slope=float(np.polyfit(true, predicted, 1)[0]),
        baseline_mae=float(np.abs(true - true.mean()).mean()),
    )


def uncertainty(true: Ages, predicted: Ages) -> Uncertainty:
    """Spread of true minus predicted age, with the quantiles that hold nine of ten people."""
    error = true - predicted
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(error, [tail, 1 - tail])
    return Uncertainty(float(error.std(ddof=1)), (float(low), float(high)), COVERAGE)


def _resample(people: Sequence[Hashable], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Scans of as many people as there are, drawn with replacement, time and again."""
    groups: dict[Hashable, list[int]] = {}
    for index, person in enumerate(people):
        groups.setdefault(person, []).append(index)
    rows = [np.array(group) for group in groups.values()]
    draws = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    return [np.concatenate([rows[i] for i in draw]) for draw in draws]


def _correlation(true: Ages, predicted: Ages) -> float:
    """Pearson's r; nan where one of them does not vary."""
    x, y = true - true.mean(), predicted - predicted.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def predictions_table(data: TrainingSet, folds: NDArray[np.intp], predicted: Ages) -> str:
    """Tab-separated: one row per scan, predicted by the network that has not seen the person."""
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(
        ["dataset", "participant_id", "scan", "sex", "site", "fold", "age", "predicted_age"]
    )
    for scan, fold, found in zip(data.scans, folds, predicted):
        who = [scan.dataset, scan.participant_id, scan.name, scan.sex or "n/a", scan.site or "n/a"]
        writer.writerow([*who, fold, f"{scan.age:.2f}", f"{found:.3f}"])
    return table.getvalue()


def calibration_plot(
    true: Ages, predicted: Ages, datasets: Sequence[str], figures: Accuracy
) -> Figure:
    """Predicted against true age, with the line of no error and the fitted line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = np.array([min(true.min(), predicted.min()) - 2, max(true.max(), predicted.max()) + 2])
    axes.plot(ends, ends, color="0.6", linewidth=1, label="no error")
    fitted = np.polyfit(true, predicted, 1)
    axes.plot(ends, np.polyval(fitted, ends), "k--", linewidth=1, label=f"slope {fitted[0]:.2f}")
    for name in dict.fromkeys(datasets):
        rows = np.array([each == name for each in datasets])
        axes.scatter(true[rows], predicted[rows], s=14, alpha=0.7, label=name)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="age (years)", ylabel="predicted age, out of fold (years)")
    axes.set_title(f"MAE {figures.mae:.2f} y, r {figures.r:.3f}, n {figures.n}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def learning_curve_plot(histories: Mapping[str, Sequence[Epoch]]) -> Figure:
    """Training loss and held-out error of each fold, over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        left.plot([row.epoch for row in history], [row.loss for row in history], label=name)
        if not history:
            continue
        known = [(e.epoch, e.held_out_mae) for e in history if e.held_out_mae is not None]
        right.plot(*zip(*known), marker=".", label=name)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="held-out mean absolute error (years)", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    return figure
