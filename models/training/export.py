"""From trained folds to a model: weights, card, out-of-fold predictions and plots."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.contract import InputContract, ModelCard, ModelError
from models.registry import CARD, WEIGHTS, save_weights
from models.training import evaluation
from models.training.data import TrainingSet
from models.training.options import AUGMENTATIONS, Options
from models.training.recipes import Recipe
from models.training.regression import as_shipped, load_member, output_scale, predict_ages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEGREES_OF_FREEDOM = 12
NOTE = (
    "out of fold: each person is predicted by the one member that has not seen them;"
    " in use the members are averaged"
)


def export(
    data: TrainingSet,
    folds: NDArray[np.intp],
    name: str,
    recipe: Recipe,
    options: Options,
    folder: Path,
    license: str,
    version: str,
) -> ModelCard:
    """Write the model that the folds make together.

    Files: ``weights.safetensors``, ``card.toml``, ``out_of_fold.tsv``, ``figures.json``,
    ``calibration`` and ``learning_curve`` as .svg and .png.

    Parameters
    ----------
    folds
        The fold that holds each scan out.
    license
        SPDX name of the licence of the weights.

    Raises
    ------
    ModelError
        Where a fold is not complete.
    """
    predicted, members, histories = np.empty(len(folds)), [], {}
    for fold in range(options.folds):
        held_out = folds == fold
        member = load_member(data, held_out, f"fold{fold}", options, folder)
        if member is None:
            raise ModelError(f"Fold {fold} is not complete in {folder}; train it first.")
        members.append(as_shipped(member[0]))
        histories[f"fold {fold}"] = member[1]
        scans = [scan for scan, out in zip(data.scans, held_out) if out]
        predicted[held_out] = predict_ages(members[-1], scans, output_scale(data), options)
    people = [scan.person for scan in data.scans]
    figures = evaluation.accuracy(data.ages, predicted, people, options.seed)
    digest = save_weights(folder / WEIGHTS, members)
    card = _card(data, predicted, figures, digest, name, recipe, options, license, version)
    (folder / CARD).write_text(card.to_toml(), encoding="utf-8")
    table = evaluation.predictions_table(data, folds, predicted)
    (folder / "out_of_fold.tsv").write_text(table, encoding="utf-8")
    (folder / "figures.json").write_text(json.dumps(asdict(figures), indent=1) + "\n")
    datasets = [scan.dataset for scan in data.scans]
    plot = evaluation.calibration_plot(data.ages, predicted, datasets, figures)
    _save_plot(plot, folder / "calibration")
    _save_plot(evaluation.learning_curve_plot(histories), folder / "learning_curve")
    return card


def _card(
    data: TrainingSet,
    predicted: NDArray[np.float64],
    figures: evaluation.Accuracy,
    digest: str,
    name: str,
    recipe: Recipe,
    options: Options,
    license: str,
    version: str,
) -> ModelCard:
    ages = data.ages
    contract = InputContract(
        template=data.template,
        degrees_of_freedom=DEGREES_OF_FREEDOM,
        shape=data.shape,
        affine=data.affine,
        skull_stripped=True,
        bias_corrected=True,
        intensity=options.intensity,
        ages=(float(ages.min()), float(ages.max())),
        needs_sex=options.needs_sex,
    )
    return ModelCard(
        name=name,
        title=recipe.title,
        version=version,
        summary=recipe.summary,
        license=license,
        citation=recipe.citation,
        contract=contract,
        uncertainty=evaluation.uncertainty(ages, predicted),
        output=output_scale(data),
        weights_sha256=digest,
        architecture=options.architecture,
        known_failures=_known_failures(data, figures),
        network=options.network,
        training=_training(data, options),
        figures=_figures(data, predicted, figures),
    )


def _figures(
    data: TrainingSet, predicted: NDArray[np.float64], figures: evaluation.Accuracy
) -> dict[str, Any]:
    """All figures, and the error in each data set where there are several."""
    table: dict[str, Any] = {"kind": NOTE}
    table |= {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in asdict(figures).items()
    }
    names = [scan.dataset for scan in data.scans]
    if len(set(names)) > 1:
        error = np.abs(predicted - data.ages)
        table["mae_by_dataset"] = {
            each: round(float(error[[name == each for name in names]].mean()), 3)
            for each in sorted(set(names))
        }
    return table


def _training(data: TrainingSet, options: Options) -> dict[str, Any]:
    """On whom and how; ``people_sha256`` tells one training set from another."""
    first = {scan.person: scan for scan in data.scans}
    ages = data.ages
    chosen = asdict(options)
    for name in ("architecture", "network", "intensity", "needs_sex", "augmentation",
                 "threads", "device", "evaluate_every"):  # fmt: skip
        del chosen[name]
    used = [name for name in AUGMENTATIONS if getattr(options.augmentation, name)]
    return {
        "datasets": dict(Counter(scan.dataset for scan in data.scans)),
        "scans": len(data.scans),
        "people": len(first),
        "sexes": dict(sorted(Counter(scan.sex or "unknown" for scan in first.values()).items())),
        "age_mean": round(float(ages.mean()), 2),
        "age_standard_deviation": round(float(ages.std()), 2),
        "people_sha256": data.fingerprint(),
        "members": f"one network per fold, {options.folds} folds by participant",
        "augmentation": used,
        **chosen,
    }


def _known_failures(data: TrainingSet, figures: evaluation.Accuracy) -> tuple[str, ...]:
    names = sorted({scan.dataset for scan in data.scans})
    low, high = data.ages.min(), data.ages.max()
    return (
        f"Trained on {figures.people} people of {', '.join(names)} alone; on another scanner its"
        " level may be off by years.",
        f"A year of true age moves the prediction by {figures.slope:.2f} years; it is not to be"
        f" trusted outside {low:.0f} to {high:.0f} years.",
    )


def _save_plot(figure: Figure, path: Path) -> None:
    """As SVG and PNG; the same figures give the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})
