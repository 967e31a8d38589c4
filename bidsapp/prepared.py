"""A preprocessed scan, and what each model sees of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.settings import Settings
from bidsapp.toolbox import GRID_AFFINE, GRID_SHAPE, Toolbox
from models.contract import InputContract, ModelCard, VolumeContract

if TYPE_CHECKING:
    from bidsapp.preprocessing.image import Image, T1w
    from bidsapp.preprocessing.segmentation import Segmentation

DEGREES_OF_FREEDOM = 12
MODEL_REGISTRATION = "model_registration"
"""Step that is done for models alone that take another template, or another registration."""


@dataclass
class Prepared:
    """A scan after preprocessing, and what a model's image is made of.

    ``brain`` lies on the standard grid, zero outside ``mask``, and so do the ``shares`` of
    tissue, (3, X, Y, Z); ``native`` is None where the images of an earlier run serve.
    """

    brain: Image
    mask: NDArray[np.bool_]
    shares: NDArray[np.float32]
    levels: dict[str, float]
    volumes_ml: dict[str, float | None]
    quality: dict[str, Any]
    steps: list[dict[str, Any]]
    seconds: dict[str, float]
    native: Native | None = None

    @property
    def segmentation(self) -> Segmentation:
        """Of a scan that was preprocessed in this run."""
        assert self.native is not None
        return self.native.segmentation


@dataclass(frozen=True)
class Native:
    """The bias-corrected scan on its own grid, and its brain on the working grid."""

    t1w: T1w
    corrected: Image
    working: Image
    segmentation: Segmentation
    to_scan: NDArray[np.float64]
    transforms: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict)


def model_input(
    prepared: Prepared, card: ModelCard, tools: Toolbox, settings: Settings
) -> NDArray[np.float32]:
    """What a model takes: the brain on its grid with its intensities, or volumes in ml."""
    if isinstance(card.contract, VolumeContract):
        return np.array(card.contract.select(prepared.volumes_ml), np.float32)
    return on_model_grid(prepared, card.contract, tools, settings)[0]


def on_model_grid(
    prepared: Prepared, contract: InputContract, tools: Toolbox, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Image and mask of a model's contract, and from voxels of the standard grid to its (4, 4)."""
    from bidsapp.preprocessing import registration
    from bidsapp.preprocessing.resampling import resample
    from bidsapp.preprocessing.templates import load_template
    from bidsapp.preprocessing.tissue import tissue_shares
    from models import intensity

    if takes_standard_grid(contract, tools.template.name):
        image, mask = intensity.view(
            prepared.brain.data, prepared.mask, prepared.shares, prepared.levels,
            contract.intensity,
        )  # fmt: skip
        return image, mask, np.eye(4)
    native = prepared.native
    assert native is not None  # can_reuse sees to it
    place = contract.template, contract.degrees_of_freedom
    if place not in native.transforms:
        native.transforms[place], record = registration.register(
            native.working, load_template(contract.template), contract.degrees_of_freedom,
            settings.random_seed, settings.work_dir,
        )  # fmt: skip
        prepared.steps.append(record | {"step": MODEL_REGISTRATION})
    to_scan, affine = native.transforms[place], np.array(contract.affine)
    brain = native.corrected.with_data(native.segmentation.on_scan.brain.astype(np.float32))
    mask = resample(brain, to_scan, contract.shape, affine, order=1).data > 0.5
    image = resample(native.corrected, to_scan, contract.shape, affine).data.clip(0) * mask
    shares = tissue_shares(native.segmentation, to_scan, contract.shape, affine)
    image, inside = intensity.view(image, mask, shares, prepared.levels, contract.intensity)
    from_standard = np.linalg.inv(to_scan @ affine) @ native.to_scan @ prepared.brain.affine
    return image, inside, from_standard


def takes_standard_grid(contract: InputContract, template: str) -> bool:
    """Whether a model takes the grid, and the registration, of the images that are written."""
    return (
        contract.template == template
        and contract.degrees_of_freedom == DEGREES_OF_FREEDOM
        and contract.shape == GRID_SHAPE
        and bool(np.allclose(contract.affine, GRID_AFFINE))
    )
