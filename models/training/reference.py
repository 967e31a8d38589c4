"""The reference of a model, which tells how unlike its training images another image is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import registry
from models.contract import InputContract, ModelError
from models.prediction import BrainAgeModel
from models.reference import Features, Reference, features_of, fit
from models.training.data import TrainingScan, load_training_set


def write(name: str, roots: Sequence[Path], weights: Path | None = None) -> Path:
    """Write ``reference.safetensors`` beside a model's weights; returns the file.

    Parameters
    ----------
    name
        Of a known model.
    roots
        Output folders of the participant level: the people it was trained on.
    weights
        Folder of the model, where it is not a known one's own.

    Raises
    ------
    ModelError
        Where the model has no feature maps or takes no images, or an image is missing.
    """
    model = registry.load(name, weights=weights)
    if not isinstance(model.card.contract, InputContract):
        raise ModelError(f"The model '{name}' takes no images.")
    scans = load_training_set(roots, model.card.contract.intensity).scans
    reference = fitted(model, scans)
    folder = weights or registry.FOLDER / name
    return registry.save_reference(folder, reference, model.card.weights_sha256)


def fitted(model: BrainAgeModel, scans: Sequence[TrainingScan]) -> Reference:
    """The reference of a model to these scans.

    Raises
    ------
    ModelError
        Where the model has no feature maps, or there are too few scans.
    """
    found = [features(model, scan) for scan in scans]
    # in no order: neighbours of a data set must not fall into one fold
    order = np.random.default_rng(1).permutation(len(found))
    try:
        return fit(np.stack(found)[order])
    except ValueError as error:
        raise ModelError(str(error)) from error


def features(model: BrainAgeModel, scan: TrainingScan) -> Features:
    """What the networks of a model make of a scan, (F,).

    Raises
    ------
    ModelError
        Where they have no feature maps.
    """
    found = features_of(model.networks, model.tensor(scan.image.float().numpy()))
    if found is None:
        raise ModelError(f"The networks of the model '{model.card.name}' have no feature maps.")
    return found
