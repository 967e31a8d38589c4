"""Grids and resampling: the working grid, and the one resampling onto a model's grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from bidsapp.preprocessing.image import Image

WORKING_MM = 2.0
"""Voxel size of the grid on which masks, bias fields and transforms are estimated."""

_FWHM = 2 * np.sqrt(2 * np.log(2))


def to_working_grid(image: Image) -> Image:
    """The scan at about 2 mm on its own axes, smoothed first where that loses detail."""
    shape = tuple(
        max(16, round(n * zoom / WORKING_MM)) for n, zoom in zip(image.data.shape, image.zooms)
    )
    if shape == image.data.shape:
        return image
    smooth = anti_alias(image, (WORKING_MM,) * 3)
    return Image(same_view(smooth, shape), _affine_of_shape(image, shape))


def same_view(data: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Trilinear interpolation of (X, Y, Z) to another shape that covers the same field of view."""
    volume = torch.from_numpy(np.ascontiguousarray(data, np.float32))[None, None]
    found = F.interpolate(volume, size=shape, mode="trilinear", align_corners=False)
    return found[0, 0].numpy()


def _affine_of_shape(image: Image, shape: tuple[int, ...]) -> NDArray[np.float64]:
    step = np.array(image.data.shape) / np.array(shape)
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (step - 1) / 2
    return image.affine @ scale


def anti_alias(image: Image, target_mm: tuple[float, ...]) -> NDArray[np.float32]:
    """Gaussian smoothing by what the coarser grid cannot hold: FWHM^2 = target^2 - own^2."""
    sigma = [
        np.sqrt(max(target**2 - own**2, 0)) / _FWHM / own
        for target, own in zip(target_mm, image.zooms)
    ]
    if max(sigma) == 0:
        return np.asarray(image.data, np.float32)
    return ndimage.gaussian_filter(np.asarray(image.data, np.float32), sigma, truncate=3)


def resample(
    image: Image,
    to_scan: NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    *,
    order: int = 3,
) -> Image:
    """The one resampling: from the scan's own grid straight onto a grid in template space.

    Parameters
    ----------
    image
        The scan on its own grid.
    to_scan
        (4, 4), takes mm of the template to mm of the scan.
    shape, affine
        The grid: its size, and voxel -> template mm.
    order
        Spline order: 3 for intensities, 1 for masks.
    """
    target_mm = tuple(float(np.linalg.norm(affine[:3, i])) for i in range(3))
    to_voxel = np.linalg.inv(image.affine) @ to_scan @ affine
    low, high = _needed(to_voxel, shape, image.data.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high))
    smooth = anti_alias(Image(image.data[box], image.affine), target_mm)
    found = ndimage.affine_transform(
        smooth,
        to_voxel[:3, :3],
        to_voxel[:3, 3] - low,
        output_shape=shape,
        order=order,
        mode="constant",
        cval=0.0,
        output=np.float32,
    )
    return Image(found, affine)


def _needed(
    to_voxel: NDArray[np.float64], shape: tuple[int, ...], available: tuple[int, ...]
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Corner indices of the part of a scan that the grid can touch, with a margin."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    touched = to_voxel[:3, :3] @ corners + to_voxel[:3, 3:]
    low = np.clip(np.floor(touched.min(1)).astype(int) - 8, 0, np.array(available) - 1)
    high = np.clip(np.ceil(touched.max(1)).astype(int) + 9, low + 1, available)
    return low, high
