"""A preprocessed scan, and what each model sees of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.preprocessing.grid import GRID_AFFINE, GRID_SHAPE
from bidsapp.settings import Settings
from bidsapp.toolbox import Toolbox
from models.contract import (
    Contract,
    InputContract,
    ModelCard,
    MorphometryContract,
    VolumeContract,
)

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
    tissue, (3, X, Y, Z), and ``modulated``, the same warped to the template. ``native`` is None
    where the images of an earlier run serve.
    """

    brain: Image
    mask: NDArray[np.bool_]
    shares: NDArray[np.float32]
    modulated: NDArray[np.float32]
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
    """What a model takes: the brain on its grid, maps of tissue, or volumes in ml."""
    if isinstance(card.contract, VolumeContract):
        return np.array(card.contract.select(prepared.volumes_ml), np.float32)
    if isinstance(card.contract, MorphometryContract):
        from bidsapp.preprocessing.morphometry import at_4_mm

        return at_4_mm(modulated_in(prepared, card.contract.template, tools, settings))
    return on_model_grid(prepared, card.contract, tools, settings)[0]


def on_model_grid(
    prepared: Prepared, contract: InputContract, tools: Toolbox, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Image and mask of a model's contract, and from voxels of the standard grid to its (4, 4)."""
    from bidsapp.preprocessing.resampling import resample
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
    to_scan = _to_template(prepared, contract.template, contract.degrees_of_freedom, settings)
    affine = np.array(contract.affine)
    brain = native.corrected.with_data(native.segmentation.on_scan.brain.astype(np.float32))
    mask = resample(brain, to_scan, contract.shape, affine, order=1).data > 0.5
    image = resample(native.corrected, to_scan, contract.shape, affine).data.clip(0) * mask
    shares = tissue_shares(native.segmentation, to_scan, contract.shape, affine)
    image, inside = intensity.view(image, mask, shares, prepared.levels, contract.intensity)
    from_standard = np.linalg.inv(to_scan @ affine) @ native.to_scan @ prepared.brain.affine
    return image, inside, from_standard


def modulated_in(
    prepared: Prepared, template: str, tools: Toolbox, settings: Settings
) -> NDArray[np.float32]:
    """Modulated tissue in the template of a model, on the standard grid."""
    from bidsapp.preprocessing.morphometry import modulated_tissue
    from bidsapp.preprocessing.tissue import tissue_shares

    if template == tools.template.name:
        return prepared.modulated
    to_scan = _to_template(prepared, template, DEGREES_OF_FREEDOM, settings)
    shares = tissue_shares(prepared.segmentation, to_scan, GRID_SHAPE, GRID_AFFINE)
    fixed = tools.template_tissue(template)
    return modulated_tissue(shares, fixed, settings.random_seed, settings.work_dir)[0]


def _to_template(
    prepared: Prepared, template: str, degrees_of_freedom: int, settings: Settings
) -> NDArray[np.float64]:
    """(4, 4) from mm of a template to mm of the scan, estimated once for each."""
    from bidsapp.preprocessing import registration
    from bidsapp.preprocessing.templates import load_template

    native, place = prepared.native, (template, degrees_of_freedom)
    assert native is not None  # can_reuse sees to it
    if place not in native.transforms:
        native.transforms[place], record = registration.register(
            native.working, load_template(template), degrees_of_freedom, settings.random_seed,
            settings.work_dir,
        )  # fmt: skip
        prepared.steps.append(record | {"step": MODEL_REGISTRATION})
    return native.transforms[place]


def served(contract: Contract, template: str) -> bool:
    """Whether what is written of a scan is all that a model takes."""
    if isinstance(contract, InputContract):
        return takes_standard_grid(contract, template)
    return isinstance(contract, VolumeContract) or contract.template == template


def takes_standard_grid(contract: InputContract, template: str) -> bool:
    """Whether a model takes the grid, and the registration, of the images that are written."""
    return (
        contract.template == template
        and contract.degrees_of_freedom == DEGREES_OF_FREEDOM
        and contract.shape == GRID_SHAPE
        and bool(np.allclose(contract.affine, GRID_AFFINE))
    )
