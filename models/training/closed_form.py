"""Train models that are fitted in one step, with the folds and the figures of the networks.

It takes seconds, so that there is nothing to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.contract import Contract, ModelCard
from models.registry import save_model
from models.training import evaluation
from models.training.data import TrainingScan, TrainingSet
from models.training.export import (
    NOTE,
    NOTE_WHOLE,
    WHOLE,
    figures_table,
    known_failures,
    people_table,
    per_fold,
    write_evaluation,
)
from models.training.recipes import Recipe
from models.training.regression import as_shipped, output_scale


@dataclass(frozen=True)
class Method:
    """A model that is fitted in one step.

    Attributes
    ----------
    contract
        What it takes.
    inputs
        What its network takes of scans, a row each.
    fit
        The network, in evaluation mode, of scans and their standardised ages, (N,); and the
        penalty that was chosen.
    network
        Arguments of its ``build``.
    in_ensemble
        Whether it votes.
    architecture
        The folder of ``models`` that builds its network; empty: ``name``.
    """

    name: str
    recipe: Recipe
    contract: Contract
    inputs: Callable[[Sequence[TrainingScan]], tuple[Tensor, ...]]
    fit: Callable[[Sequence[TrainingScan], NDArray[np.float64]], tuple[nn.Module, float]]
    network: dict[str, Any] = field(default_factory=dict)
    in_ensemble: bool = True
    architecture: str = ""


def train(
    method: Method,
    data: TrainingSet,
    folds: NDArray[np.intp],
    seed: int,
    folder: Path,
    license: str,
    version: str,
    *,
    whole: bool = False,
) -> ModelCard:
    """Fit once without each fold, for the figures and for the members; write the model.

    Files: ``weights.safetensors``, ``card.toml``, ``out_of_fold.tsv``, ``figures.json`` and
    ``calibration`` as .svg and .png.

    Parameters
    ----------
    folds
        The fold that holds each scan out.
    seed
        Of the folds and of the bootstrap.
    whole
        The model is one network more, fitted to everybody; the others give its figures.
    """
    output, ages = output_scale(data), data.ages
    targets = (ages - output.offset) / output.scale
    predicted, members, penalties = np.empty(len(ages)), [], []
    for fold in np.unique(folds):
        out = folds == fold
        network, penalty = method.fit([s for s, o in zip(data.scans, out) if not o], targets[~out])
        members.append(network)
        penalties.append(penalty)
        held_out = method.inputs([s for s, o in zip(data.scans, out) if o])
        with torch.inference_mode():
            found = as_shipped(network)(*held_out).double().numpy()
        predicted[out] = output.offset + output.scale * found
    if whole:
        network, penalty = method.fit(data.scans, targets)
        members, penalties = [network], [penalty]
    figures = evaluation.accuracy(ages, predicted, [scan.person for scan in data.scans], seed)
    card = ModelCard(
        name=method.name,
        title=method.recipe.title,
        version=version,
        summary=method.recipe.summary,
        license=license,
        citation=method.recipe.citation,
        contract=method.contract,
        uncertainty=evaluation.uncertainty(ages, predicted),
        output=output,
        architecture=method.architecture,
        in_ensemble=method.in_ensemble,
        known_failures=known_failures(data, figures),
        network=method.network,
        training=people_table(data)
        | {
            "members": WHOLE if whole else per_fold(len(members)),
            "folds": len(np.unique(folds)),
            "seed": seed,
            "penalties": penalties,
        },
        figures=figures_table(data, predicted, figures) | {"kind": NOTE_WHOLE if whole else NOTE},
    )
    save_model(folder, card, members)
    write_evaluation(data, folds, predicted, figures, folder)
    return card
