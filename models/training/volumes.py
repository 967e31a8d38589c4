"""Train the model of volumes: ridge regression, with the folds of the networks.

It takes seconds, so that there is nothing to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ModelCard, ModelError, VolumeContract
from models.prediction import SEX_CODES
from models.registry import save_model
from models.training import evaluation
from models.training.data import TrainingScan, TrainingSet
from models.training.export import (
    NOTE_WHOLE,
    WHOLE,
    figures_table,
    known_failures,
    people_table,
    write_evaluation,
)
from models.training.recipes import VOLUMES
from models.training.regression import as_shipped, output_scale
from models.volumes.network import VolumeRegression, log_shares

SIDED = ("cerebral_cortex", "cerebral_white_matter", "lateral_ventricle", "deep_grey_nuclei",
         "hippocampus")  # fmt: skip
REGIONS = tuple(f"{side}_{name}" for name in SIDED for side in ("left", "right"))
"""Of the forebrain, for the hindbrain is cut off in many scans; without the amygdala, whose small
volume differs between laboratories by more than ageing changes it."""
PENALTIES = np.logspace(-1, 3, 17)


def train(
    data: TrainingSet, folds: NDArray[np.intp], seed: int, folder: Path, license: str, version: str
) -> ModelCard:
    """Fit on everybody, and once without each fold for the figures; write the model.

    Files: ``weights.safetensors``, ``card.toml``, ``out_of_fold.tsv``, ``figures.json`` and
    ``calibration`` as .svg and .png.

    Parameters
    ----------
    data
        As from ``load_volumes``, with the volumes ``REGIONS``.
    folds
        The fold that holds each scan out.
    seed
        Of the folds and of the bootstrap.
    """
    output, ages = output_scale(data), data.ages
    targets = (ages - output.offset) / output.scale
    volumes, sexes = inputs(data.scans)
    predicted = np.empty(len(ages))
    for fold in np.unique(folds):
        out = torch.from_numpy(folds == fold)
        network, _ = fit(volumes[~out], sexes[~out], targets[~out.numpy()])
        found = as_shipped(network)(volumes[out, None], sexes[out]).detach().double().numpy()
        predicted[out.numpy()] = output.offset + output.scale * found
    network, penalty = fit(volumes, sexes, targets)
    people = [scan.person for scan in data.scans]
    figures = evaluation.accuracy(ages, predicted, people, seed)
    card = ModelCard(
        name="volumes",
        title=VOLUMES.title,
        version=version,
        summary=VOLUMES.summary,
        license=license,
        citation=VOLUMES.citation,
        contract=VolumeContract(REGIONS, (ages.min(), ages.max()), needs_sex=True),
        uncertainty=evaluation.uncertainty(ages, predicted),
        output=output,
        in_ensemble=False,
        known_failures=known_failures(data, figures),
        network={"volumes": len(REGIONS)},
        training=people_table(data)
        | {"members": WHOLE, "folds": len(np.unique(folds)), "seed": seed, "penalty": penalty},
        figures=figures_table(data, predicted, figures) | {"kind": NOTE_WHOLE},
    )
    save_model(folder, card, [network])
    write_evaluation(data, folds, predicted, figures, folder)
    return card


def inputs(scans: Sequence[TrainingScan]) -> tuple[Tensor, Tensor]:
    """Volumes (N, V) in ml and sexes (N,).

    Raises
    ------
    ModelError
        Where a sex is not known.
    """
    missing = [scan.name for scan in scans if scan.sex not in SEX_CODES]
    if missing:
        raise ModelError(f"This model needs the sex, which is not known of {', '.join(missing)}.")
    codes = [SEX_CODES[str(scan.sex)] for scan in scans]
    return torch.stack([scan.image for scan in scans]), torch.tensor(codes)


def fit(
    volumes: Tensor, sexes: Tensor, targets: NDArray[np.float64]
) -> tuple[VolumeRegression, float]:
    """Ridge regression, its penalty chosen by the error of leaving one scan out.

    Parameters
    ----------
    volumes
        (N, V), ml.
    sexes
        (N,), M 0 and F 1.
    targets
        (N,), standardised ages.

    Returns
    -------
    VolumeRegression, float
        In evaluation mode; and the penalty.
    """
    from sklearn.linear_model import RidgeCV

    network = VolumeRegression(volumes.shape[1])
    shares = log_shares(volumes)
    network.mean.copy_(shares.mean(0))
    network.deviation.copy_(shares.std(0, correction=0).clamp(min=1e-3))
    scores = network.scores(volumes).double().numpy()
    sex = sexes.double().numpy()
    spread = max(float(sex.std()), 1e-3)
    ridge = RidgeCV(PENALTIES).fit(np.c_[scores, sex / spread], targets)
    *of_volumes, of_sex = ridge.coef_
    with torch.no_grad():
        network.last.weight.copy_(torch.tensor([[*of_volumes, of_sex / spread]]))
        network.last.bias.fill_(float(ridge.intercept_))
    return network.eval(), float(ridge.alpha_)
