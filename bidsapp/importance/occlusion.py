"""Importance of a region: by how many years the prediction changes where the region is filled in.

Each region of an atlas is erased in turn, by what surrounds it (Zeiler & Fergus 2014, in 3D and by
anatomy). It is the one map here whose unit, years, needs no explanation. Where every voxel is the
same place in everybody, an average brain's region can stand in instead: a patch of mixed tissue is
nothing that any brain has there, and models are surprised by it everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.importance.brain import Array, Brain, Mask
from models.prediction import Box, BrainAgeModel

FEWEST_VOXELS = 4
"""Of a region on the model's grid; what is smaller is left out."""
MARGIN = 8
"""Voxels around a region from which it is filled, at least."""


def occlusion(
    model: BrainAgeModel,
    brain: Brain,
    labels: NDArray[np.integer],
    average: Array | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[int, float]:
    """Years that each region adds to the predicted age: as it is, less filled in.

    Parameters
    ----------
    labels
        (X, Y, Z), the atlas on the model's grid, 0 for none.
    average
        Of the shape of the brain's image: an average brain, whose region stands in. None: regions
        are filled in from their surroundings.

    Returns
    -------
    dict
        By label; regions of fewer than `FEWEST_VOXELS` voxels in the brain are absent.
    """
    image = model.tensor(brain.image)
    boxes = ndimage.find_objects(labels)
    present = [n for n, box in enumerate(boxes, start=1) if box is not None]
    changes: dict[int, float] = {}
    with torch.inference_mode():
        whole = model.ages(image, brain.sex).item()
        near = model.near(image, brain.sex)
        for done, label in enumerate(present, start=1):
            region = (labels[boxes[label - 1]] == label) & brain.mask[boxes[label - 1]]
            if region.sum() >= FEWEST_VOXELS:
                box = boxes[label - 1]
                if average is None:
                    filled = _filled(brain, labels, label, box)
                else:
                    whose = np.where(region, average[(..., *box)], brain.image[(..., *box)])
                    filled = whose.astype(np.float32)
                without = image.clone()
                without[(0, 0, ..., *box)] = torch.from_numpy(filled).to(image)
                changes[label] = whole - near(without, box).item()
            progress(done, len(present))
    return changes


def as_map(changes: dict[int, float], labels: NDArray[np.integer], mask: Mask) -> Array:
    """(X, Y, Z) of years: every voxel has its region's."""
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for label, years in changes.items():
        table[label] = years
    return np.where(mask, table[labels], 0).astype(np.float32)


def _filled(brain: Brain, labels: NDArray[np.integer], label: int, box: Box) -> Array:
    """The box of a region, the region filled in from its surroundings."""
    place = grown(box, MARGIN, labels.shape)
    region = (labels[place] == label) & brain.mask[place]
    around = brain.mask[place] & ~region
    images = brain.image.reshape(-1, *labels.shape)
    filled = np.stack([fill_in(each[place], region, around) for each in images])
    inside = tuple(
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in zip(box, place)
    )
    found = filled[(slice(None), *inside)]
    return np.ascontiguousarray(found.reshape(*brain.image.shape[:-3], *found.shape[1:]))


def fill_in(image: Array, region: Mask, around: Mask) -> Array:
    """Replace a region by a smooth continuation of what lies around it.

    Each voxel gets the Gaussian mean of the voxels ``around``; the kernel is as wide as the
    region is deep, so that its middle is reached too.
    """
    if not around.any():
        return image
    depth = ndimage.distance_transform_edt(region).max()
    sigma = max(1.0, depth / 2)
    weight = ndimage.gaussian_filter(around.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(around, image, 0.0), sigma, mode="constant")
    level = image[around].mean()
    # so little weight means that the surroundings are out of reach: then their mean
    mean = np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), level)
    return np.where(region, mean, image).astype(np.float32)


def grown(box: Box, margin: int, shape: Sequence[int]) -> Box:
    """A box with some voxels more on each side, inside of the grid."""
    x, y, z = (
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, size in zip(box, shape)
    )
    return x, y, z
