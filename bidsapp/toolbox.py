"""What a worker needs for every scan, loaded once: networks and template; checked before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import models
from bidsapp.errors import UserError
from bidsapp.preprocessing.grid import GRID_AFFINE, GRID_SHAPE
from bidsapp.settings import Settings
from models import registry
from models.contract import ModelCard, ModelError, VolumeContract

if TYPE_CHECKING:
    from torch import nn

    from bidsapp.preprocessing.image import Image
    from bidsapp.preprocessing.templates import Template
    from models.prediction import BrainAgeModel

TAKEN = frozenset({"ensemble", "segmentation", "registration", "resampling", "warp", "quality",
                   "figures"})  # fmt: skip
"""Names that stand beside those of models in the predictions and the seconds of a record."""


@dataclass(frozen=True)
class Toolbox:
    """What a worker loads once: networks, template, and the template on the standard grid.

    ``template_tissue`` gives the shares of tissue of a template, by its name, on that grid.
    """

    segmentation: nn.Module
    segmentation_sha256: str
    template: Template
    template_brain: Image
    template_mask: NDArray[np.bool_]
    template_tissue: Callable[[str], NDArray[np.float32]]
    models: dict[str, BrainAgeModel]


@lru_cache(maxsize=1)
def toolbox(settings: Settings) -> Toolbox:
    """Load networks and template, once per process."""
    import torch

    from bidsapp.preprocessing.templates import load_template
    from bidsapp.preprocessing.tissue import tissue_of_template

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    template = load_template(settings.template)
    try:
        segmentation, card = registry.load_segmentation()
        loaded = {
            name: models.load(name, device, settings.model_paths.get(name))
            for name in model_names(settings)
        }
    except ModelError as error:
        raise UserError(str(error)) from error
    return Toolbox(
        segmentation,
        str(card["weights_sha256"]),
        template,
        *template.on(GRID_SHAPE, GRID_AFFINE),
        lru_cache(partial(tissue_of_template, segmentation)),
        loaded,
    )


def model_names(settings: Settings) -> tuple[str, ...]:
    """The models to run: those asked for, else all whose weights are here and the user's own."""
    ready = models.available()
    for name in settings.model_paths.keys() & TAKEN:
        raise UserError(
            f"--model-file {name}={settings.model_paths[name]}: records call something else "
            f"'{name}'; give the model another name, here and on its card."
        )
    names = settings.models or (*ready, *settings.model_paths)
    for name in names:
        if name in settings.model_paths or name in ready:
            continue
        if name in models.known():
            raise UserError(
                f"--models {name}: its weights are not part of this software; "
                f"{registry.how_to_get(models.card(name))}."
            )
        known = ", ".join(models.known()) or "none"
        raise UserError(f"--models: there is no model '{name}'; known are {known}.")
    return tuple(dict.fromkeys(names))


def _card(name: str, settings: Settings) -> ModelCard:
    """The card of a model, if need be of the user's own, whose weights are checked too."""
    path = settings.model_paths.get(name)
    if path is None:
        return models.card(name)
    try:
        return registry.own_card(name, path)
    except ModelError as error:
        raise UserError(f"--model-file {name}={path} cannot be used: {error}") from error


def check_resources(settings: Settings, names: tuple[str, ...]) -> None:
    """Learn once, and before the first scan, what a model lacks, or that there is no GPU."""
    from bidsapp.preprocessing.templates import load_template

    wanted = {settings.template: ""}
    for name in names:
        why = f"The model '{name}' wants another template; --models can leave it out. "
        contract = _card(name, settings).contract
        if not isinstance(contract, VolumeContract):
            wanted.setdefault(contract.template, why)
    for template in sorted(wanted.keys() - {Settings.template}):  # the default one is bundled
        try:
            load_template(template)
        except UserError as error:
            raise UserError(f"{wanted[template]}{error}") from error
    if settings.device == "cuda" and not settings.dask_scheduler:  # this may be a login node
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU was found that PyTorch can use.")
