"""From trained folds to a model: weights, card, out-of-fold predictions and plots."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.contract import TISSUES, InputContract, ModelCard, ModelError, MorphometryContract
from models.registry import CARD, WEIGHTS, save_weights, write
from models.training import evaluation
from models.training.data import MODULATED, TrainingSet
from models.training.options import AUGMENTATIONS, Options
from models.training.recipes import Recipe
from models.training.regression import (
    Epoch,
    as_shipped,
    load_member,
    output_scale,
    predict_ages,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

DEGREES_OF_FREEDOM = 12
NOBODY = -1
"""The fold that holds nobody out: of the network that is trained on everybody."""
NOTE = (
    "out of fold: each person is predicted by the one member that has not seen them;"
    " in use the members are averaged"
)
NOTE_WHOLE = (
    "out of fold: each person is predicted by a network that has not seen them; the one in use was"
    " trained in the same way on everybody"
)

WHOLE = "one network, trained on everybody"


def runs_of(fold: int, options: Options) -> list[tuple[str, Options]]:
    """The networks of a fold: name of checkpoint and log, and options with a seed of its own."""
    name = "whole" if fold == NOBODY else f"fold{fold}"
    return [
        (f"{name}-{n + 1}" if n else name, replace(options, seed=options.seed + n))
        for n in range(options.networks)
    ]


def _words(name: str) -> str:
    """A checkpoint's name as a plot says it: fold0-2 -> fold 0-2."""
    return name.replace("fold", "fold ")


def whole_words(networks: int = 1) -> str:
    """What the members are where they were trained on everybody."""
    return WHOLE if networks == 1 else f"{networks} networks, trained on everybody"


def export(
    data: TrainingSet,
    folds: NDArray[np.intp],
    name: str,
    recipe: Recipe,
    options: Options,
    folder: Path,
    license: str,
    version: str,
    *,
    whole: bool = False,
    vote: bool = True,
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
    whole
        The model is the network of the fold ``NOBODY``; the others give its figures.
    vote
        Whether it takes part in the ensemble, or stands beside it.

    Raises
    ------
    ModelError
        Where a fold is not complete.
    """
    predicted, histories = np.empty(len(folds)), dict[str, list[Epoch]]()
    members: list[nn.Module] = []
    output = output_scale(data, options)
    for fold in range(options.folds):
        held_out = folds == fold
        found = _members(data, held_out, fold, options, folder)
        histories |= {_words(name): history for name, (_, history) in found.items()}
        members += [network for network, _ in found.values()]
        scans = [scan for scan, out in zip(data.scans, held_out) if out]
        ages = [predict_ages(network, scans, output, options) for network, _ in found.values()]
        predicted[held_out] = np.mean(ages, axis=0)
    if whole:
        found = _members(data, folds == NOBODY, NOBODY, options, folder)
        members = [network for network, _ in found.values()]
    people = [scan.person for scan in data.scans]
    figures = evaluation.accuracy(data.ages, predicted, people, options.seed)
    digest = save_weights(folder / WEIGHTS, members)
    card = _card(data, predicted, figures, digest, name, recipe, options, license, version)
    if whole:
        card = replace(card, training=card.training | {"members": whole_words(options.networks)},
                       figures=card.figures | {"kind": NOTE_WHOLE})  # fmt: skip
    card = replace(card, in_ensemble=vote)
    write(folder / CARD, card.to_toml().encode())
    write_evaluation(data, folds, predicted, figures, folder)
    _save_plot(evaluation.learning_curve_plot(histories), folder / "learning_curve")
    return card


def write_evaluation(
    data: TrainingSet,
    folds: NDArray[np.intp],
    predicted: NDArray[np.float64],
    figures: evaluation.Accuracy,
    folder: Path,
) -> None:
    """Write what is known out of fold: predictions, figures and the plot of calibration."""
    table = evaluation.predictions_table(data, folds, predicted)
    write(folder / "out_of_fold.tsv", table.encode())
    write(folder / "figures.json", (json.dumps(asdict(figures), indent=1) + "\n").encode())
    datasets = [scan.dataset for scan in data.scans]
    plot = evaluation.calibration_plot(data.ages, predicted, datasets, figures)
    _save_plot(plot, folder / "calibration")


def _members(
    data: TrainingSet, held_out: NDArray[np.bool_], fold: int, options: Options, folder: Path
) -> dict[str, tuple[nn.Module, list[Epoch]]]:
    """The networks of a fold as they are shipped, and their logs, by the checkpoints' names."""
    found = {}
    for name, each in runs_of(fold, options):
        member = load_member(data, held_out, name, each, folder)
        if member is None:
            which = "The network of everybody" if fold == NOBODY else f"Fold {fold}"
            raise ModelError(f"{which} is not complete in {folder} ({name}.pt); train it first.")
        found[name] = as_shipped(member[0]), member[1]
    return found


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
    contract = contract_of(data, options.intensity, _ages(data, options), options.needs_sex)
    return ModelCard(
        name=name,
        title=f"{recipe.title}, fine-tuned" if options.parent else recipe.title,
        version=version,
        summary=recipe.summary,
        license=license,
        citation=recipe.citation,
        contract=contract,
        uncertainty=evaluation.uncertainty(ages, predicted),
        output=output_scale(data, options),
        weights_sha256=digest,
        architecture=options.architecture,
        known_failures=known_failures(data, figures, options),
        network=options.network,
        training=_training(data, options),
        figures=figures_table(data, predicted, figures),
    )


def contract_of(
    data: TrainingSet, intensity: str, ages: tuple[float, float], needs_sex: bool = False
) -> InputContract | MorphometryContract:
    """What a model takes that was trained on these images."""
    if intensity == MODULATED:
        _, x, y, z = data.scans[0].image.shape
        return MorphometryContract(data.template, TISSUES, (x, y, z), ages, needs_sex)
    return InputContract(
        template=data.template,
        degrees_of_freedom=DEGREES_OF_FREEDOM,
        shape=data.shape,
        affine=data.affine,
        skull_stripped=True,
        bias_corrected=True,
        intensity=intensity,
        ages=ages,
        needs_sex=needs_sex,
    )


def _ages(data: TrainingSet, options: Options) -> tuple[float, float]:
    """Youngest and oldest person trained on, those of the parent among them."""
    known = [*data.ages.tolist(), *(options.parent.ages if options.parent else ())]
    return min(known), max(known)


def figures_table(
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
    """On whom and how."""
    chosen = asdict(options)
    for name in ("architecture", "network", "intensity", "needs_sex", "augmentation",
                 "threads", "device", "evaluate_every"):  # fmt: skip
        del chosen[name]
    for name in ("dora", "helper"):
        if not chosen[name]:
            del chosen[name]
    if options.networks == 1:
        del chosen["networks"]
    used = [name for name in AUGMENTATIONS if getattr(options.augmentation, name)]
    return {
        **people_table(data),
        "members": per_fold(options.folds, options.networks),
        "augmentation": used,
        **chosen,
    }


def per_fold(folds: int, networks: int = 1) -> str:
    """What the members are where each fold has its own."""
    many = "one network" if networks == 1 else f"{networks} networks"
    return f"{many} per fold, {folds} folds by participant"


def people_table(data: TrainingSet) -> dict[str, Any]:
    """On whom; ``people_sha256`` tells one training set from another."""
    first = {scan.person: scan for scan in data.scans}
    ages = data.ages
    return {
        "datasets": dict(Counter(scan.dataset for scan in data.scans)),
        "scans": len(data.scans),
        "people": len(first),
        "sexes": dict(sorted(Counter(scan.sex or "unknown" for scan in first.values()).items())),
        "sites": dict(sorted(Counter(scan.site or "unknown" for scan in first.values()).items())),
        "age_mean": round(float(ages.mean()), 2),
        "age_standard_deviation": round(float(ages.std()), 2),
        "people_sha256": data.fingerprint(),
    }


def known_failures(
    data: TrainingSet, figures: evaluation.Accuracy, options: Options | None = None
) -> tuple[str, ...]:
    """What the people it was trained on, and its slope, leave to be feared."""
    names = sorted({scan.dataset for scan in data.scans})
    low, high = data.ages.min(), data.ages.max()
    if options and options.parent:
        failure = (
            f"Fine-tuned on {figures.people} people of {', '.join(names)}, of {low:.0f} to"
            f" {high:.0f} years, and good for scans made like theirs alone."
        )
        seen = ", ".join(sorted({*names} & {*options.parent.datasets}))
        flattery = f"Its parent had seen people of {seen}: the figures flatter it."
        return (failure, flattery) if seen else (failure,)
    return (
        f"Trained on {figures.people} people of {', '.join(names)} alone; on another scanner its"
        " level may be off by years.",
        f"A year of true age moves the prediction by {figures.slope:.2f} years; it is not to be"
        f" trusted outside {low:.0f} to {high:.0f} years.",
    )


def _save_plot(figure: Figure, path: Path) -> None:
    """As SVG and PNG; the same figures give the same bytes."""
    from matplotlib import rc_context

    svg, png = io.BytesIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    write(path.with_suffix(".svg"), svg.getvalue())
    write(path.with_suffix(".png"), png.getvalue())
