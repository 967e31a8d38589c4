"""Find the brain, its tissues and main regions with the embedded network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from bidsapp.errors import ScanError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import same_view, to_working_grid
from models.segmentation import inference, labels

STRIPPED_FRACTION = 0.7
"""A scan counts as stripped when brain and fluid fill more than this share of what is not zero
(a whole head: about a third)."""
NEAR = 0.25
"""Share of a mask of the working grid in a voxel of the scan, from which on its labels count."""


@dataclass(frozen=True)
class Parts:
    """What a head is made of, on one grid (X, Y, Z).

    ``labels`` are those of ``models.segmentation.labels``. ``intracranial`` is the brain mask that
    is handed out: the brain and the fluid around it. ``mask`` is where the image is looked at: the
    brain without that fluid. Of a scan that was stripped before, both are what was left of it.
    """

    labels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    intracranial: NDArray[np.bool_]

    @property
    def brain(self) -> NDArray[np.bool_]:
        """What the models see: the mask less the outer fluid.

        Strips differ in how much fluid they leave around the brain; by the width of that rim a
        model could tell one data set from another.
        """
        return ndimage.binary_fill_holes(self.mask & (self.labels != labels.OUTER_CSF))


@dataclass(frozen=True)
class Segmentation:
    """Parts of a head on the 2 mm grid of ``working``, and on the grid of the scan."""

    working: Image
    on_working: Parts
    on_scan: Parts
    volumes_ml: dict[str, float | None]


def segment(scan: Image, network: nn.Module, strip: str) -> tuple[Segmentation, dict[str, Any]]:
    """Segment a scan at 2 mm and carry the labels back to its own grid.

    Parameters
    ----------
    scan
        The T1w image, RAS axes.
    network
        The embedded segmentation network.
    strip
        ``"auto"`` keeps the mask of a scan that was stripped before, ``"force"`` always finds its
        own, ``"skip"`` takes what is not zero as the brain.

    Raises
    ------
    ScanError
        If no brain is found.
    """
    working = to_working_grid(scan)
    probability = inference.segment(network, working.data)
    mask = inference.brain_mask(probability)
    if mask.sum() * working.voxel_ml < 300:
        raise ScanError(
            "no brain was found in it (less than 300 ml); check that it is a T1-weighted head "
            "and that its orientation is right."
        )
    structures, left = probability[: labels.HEMISPHERE_CHANNEL], probability[-1] > 0.5
    nonzero = ndimage.binary_fill_holes(working.data > 0.02 * np.median(working.data[mask]))
    filled = float((structures.argmax(0) > 0)[nonzero].sum() / max(nonzero.sum(), 1))
    stripped = strip == "skip" or (strip == "auto" and filled > STRIPPED_FRACTION)
    found = labels.join_hemispheres(structures.argmax(0), left)
    found[(found > labels.OUTER_CSF) & ~mask] = 0  # islands of "brain" in the neck
    fine = _on_scan_grid(probability, mask, scan.data.shape)
    if stripped:
        fine_mask = fine_inside = ndimage.binary_fill_holes(scan.data > 0)
        mask = inside = same_view(fine_mask, mask.shape) > 0.5
    else:
        fine_mask = ndimage.binary_fill_holes(fine > labels.OUTER_CSF)
        inside = inference.intracranial_mask(probability, mask)
        near = same_view(inside, scan.data.shape) > NEAR
        fine_inside = ndimage.binary_fill_holes((fine > 0) & near)
    segmentation = Segmentation(
        working, Parts(found, mask, inside), Parts(fine, fine_mask, fine_inside),
        volumes(found, mask, working, stripped),
    )  # fmt: skip
    record = {
        "step": "segmentation",
        "tool": "models.segmentation",
        "parameters": {"skull_strip_t1w": strip, "working_mm": list(working.zooms)},
        "already_stripped": stripped,
        "filled_fraction": filled,
    }
    return segmentation, record


def _on_scan_grid(
    probability: NDArray[np.float32], mask: NDArray[np.bool_], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Label image on the scan's grid: probabilities interpolated one by one, the largest wins."""
    if shape == mask.shape:
        winner, left = probability[: labels.HEMISPHERE_CHANNEL].argmax(0), probability[-1] > 0.5
        near = mask
    else:
        best = same_view(probability[0], shape)
        winner = np.zeros(shape, np.uint8)
        for number in range(1, labels.HEMISPHERE_CHANNEL):
            rival = same_view(probability[number], shape)
            better = rival > best
            winner[better] = number
            np.maximum(best, rival, out=best)
        left = same_view(probability[-1], shape) > 0.5
        near = same_view(mask, shape) > NEAR
    found = labels.join_hemispheres(winner, left)
    found[(found > labels.OUTER_CSF) & ~near] = 0
    return found


def volumes(
    found: NDArray[np.uint8], mask: NDArray[np.bool_], image: Image, stripped: bool
) -> dict[str, float | None]:
    """Volumes in ml; the outer fluid of a stripped scan is not known."""

    def volume(*, tissue: str | None = None, structure: str | None = None) -> float:
        return float(np.isin(found, labels.indices(tissue, structure)).sum() * image.voxel_ml)

    volumes: dict[str, float | None] = {
        "brain": float(mask.sum() * image.voxel_ml),
        "gray_matter": volume(tissue="GM"),
        "white_matter": volume(tissue="WM"),
        "csf": None if stripped else volume(tissue="CSF"),
        "ventricles": volume(tissue="ventricle"),
        "cortex": volume(structure="CTX"),
    }
    for label in labels.LABELS:
        key = label.name.lower().replace(" ", "_")
        if label.index != labels.OUTER_CSF:
            volumes[key] = float((found == label.index).sum() * image.voxel_ml)
    return volumes
