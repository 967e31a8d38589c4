"""What a model that is fine-tuned keeps: contract, network, output, augmentations and licence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from models import registry
from models.contract import ModelCard, ModelError, MorphometryContract
from models.prediction import BrainAgeModel
from models.training.data import MODULATED, TrainingSet
from models.training.options import AUGMENTATIONS, Options, Parent


def load_parent(where: str, architecture: str) -> BrainAgeModel:
    """The model to start from.

    Parameters
    ----------
    where
        The name of a known model, or the folder or weight file of another.
    architecture
        What is to be trained.

    Raises
    ------
    ModelError
        Where there is no such model, or it is of another architecture.
    """
    known = where in registry.known()
    model = registry.load(where if known else architecture, weights=None if known else Path(where))
    if model.card.architecture != architecture:
        raise ModelError(
            f"--from-weights {where}: these are weights of '{model.card.architecture}', and not of"
            f" '{architecture}'."
        )
    return model


def options_of(card: ModelCard, options: Options) -> Options:
    """The options, with what the model to fine-tune decides."""
    used = card.training.get("augmentation", AUGMENTATIONS)
    parent = Parent(
        name=card.name,
        version=card.version,
        license=card.license,
        weights_sha256=card.weights_sha256,
        output=card.output,
        ages=card.contract.ages,
        datasets=tuple(card.training.get("datasets", ())),
    )
    return replace(
        options,
        network=card.network,
        intensity=intensity_of(card),
        needs_sex=card.contract.needs_sex,
        augmentation=options.augmentation.without(*(set(AUGMENTATIONS) - set(used))),
        parent=parent,
    )


def intensity_of(card: ModelCard) -> str:
    """The rule by which images are loaded for a model."""
    maps = isinstance(card.contract, MorphometryContract)
    return MODULATED if maps else card.image_contract.intensity


def check_fits(model: BrainAgeModel, data: TrainingSet) -> None:
    """Refuse to fine-tune a model on images of another template or grid.

    Raises
    ------
    ModelError
        Where they differ.
    """
    if isinstance(model.card.contract, MorphometryContract):
        takes, found = model.card.contract.shape, tuple(data.scans[0].image.shape)
        if (model.card.contract.template, takes) != (data.template, found):
            raise ModelError(
                f"'{model.card.name}' takes maps of {takes} in {model.card.contract.template}, and"
                f" not those of {found} in {data.template} that the app has written there."
            )
        return
    contract = model.card.image_contract
    if (contract.template, contract.shape) != (data.template, data.shape) or not np.allclose(
        contract.affine, data.affine
    ):
        raise ModelError(
            f"'{model.card.name}' takes images of {contract.shape} voxels in {contract.template},"
            f" and not those of {data.shape} voxels in {data.template} that the app has written"
            " there; only models of its standard grid can be fine-tuned."
        )
