"""Training images for the segmentation network: real heads disturbed, and heads made from labels.

Two images in three are real scans with random contrast curves, many of them on their own grid;
the others are painted from label maps (Billot 2023, SynthSeg): each label draws its own mean and
spread, so that no contrast is ever familiar. Most then go through the same spoiling: bias field,
blur to another resolution, noise, cropped necks and vertices, removed faces, stripped skulls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from models.segmentation.inference import BOX, normalise
from models.segmentation.labels import OUTER_CSF, left_from_muse, structures_from_muse

Array = NDArray[np.float32]
SMALL_BOX = (80, 96, 80)
"""Field of view of three images in four: just the brain; the others show the neck as well."""
AS_SCANNED = 0.4
"""Share of images on the grid they were scanned on, half of them not spoilt either."""
SURROUNDINGS = 6
"""Number of clusters that stand for everything outside the skull's contents."""


@dataclass(frozen=True)
class Head:
    """One training head on its own 2 mm grid (RAS axes); all arrays (X, Y, Z).

    ``paint`` holds the labels an image is synthesised from: MUSE numbers inside the skull,
    208 ... 213 for clusters outside it. ``structure`` and ``left`` are the targets.
    """

    name: str
    image: NDArray[np.float16]
    paint: NDArray[np.uint8]
    structure: NDArray[np.uint8]
    left: NDArray[np.bool_]


def prepare_head(name: str, image: Array, muse: NDArray[np.integer], seed: int) -> Head:
    """Targets and paint labels of a scan (X, Y, Z) and its MUSE map on the same grid."""
    from sklearn.cluster import KMeans

    image = normalise(image)
    outside = muse == 0
    smooth = ndimage.gaussian_filter(image, 0.7)
    clusters = KMeans(SURROUNDINGS, n_init=2, random_state=seed)
    sample = smooth[outside][:: max(1, int(outside.sum()) // 20000), None]
    clusters.fit(sample)
    order = np.argsort(np.argsort(clusters.cluster_centers_[:, 0]))
    paint = muse.astype(np.uint8)
    paint[outside] = 208 + order[clusters.predict(smooth[outside][:, None])]
    return Head(
        name,
        image.astype(np.float16),
        paint,
        structures_from_muse(muse),
        left_from_muse(muse),
    )


@dataclass(frozen=True)
class Example:
    """One training example: ``image`` (1, X, Y, Z), targets (X, Y, Z)."""

    image: torch.Tensor
    structure: torch.Tensor
    left: torch.Tensor


def draw_example(head: Head, rng: np.random.Generator) -> Example:
    """One random view of a head, in a box of ``SMALL_BOX`` or ``BOX`` voxels."""
    box, miss = (BOX, 14) if rng.random() < 0.25 else (SMALL_BOX, 6)
    # labels that are turned lose their edges to the nearest voxel: two in five images stay as they
    # were scanned, so that the network learns where a boundary really runs
    as_scanned = rng.random() < AS_SCANNED
    grid = _own_grid(head, box, miss, rng) if as_scanned else _random_grid(head, box, miss, rng)
    flip = rng.random() < 0.5
    structure = _sample(head.structure, grid, flip, nearest=True).astype(np.uint8)
    left = _sample(head.left, grid, flip, nearest=True) > 0.5
    if flip:
        left = ~left
    if as_scanned or rng.random() < 0.5:
        image = random_contrast(np.clip(_sample(head.image, grid, flip, nearest=False), 0, 2), rng)
    else:
        image = paint_labels(_sample(head.paint, grid, flip, nearest=True).astype(np.uint8), rng)
    if not (as_scanned and rng.random() < 0.5):
        image = spoil(image, rng)
    image, structure = remove_parts(image, structure, rng)
    return Example(
        torch.from_numpy(normalise(image))[None],
        torch.from_numpy(structure.astype(np.int64)),
        torch.from_numpy(left.astype(np.float32)),
    )


def _own_grid(
    head: Head, box: tuple[int, int, int], miss: float, rng: np.random.Generator
) -> torch.Tensor:
    """Positions as in :func:`_random_grid` that fall on the head's own voxels."""
    centre = np.rint(_centre(head) + rng.uniform(-miss, miss, 3))
    axes = [np.arange(n) - n // 2 + c for n, c in zip(box, centre)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return _normalised(torch.from_numpy(points.astype(np.float32)), head)


def _centre(head: Head) -> NDArray[np.float64]:
    """Median voxel of the brain along each axis."""
    return np.array([np.median(axis) for axis in np.nonzero(head.structure > OUTER_CSF)])


def _normalised(points: torch.Tensor, head: Head) -> torch.Tensor:
    """Voxel positions (X, Y, Z, 3) as ``grid_sample`` wants them: -1 ... 1, in z, y, x order."""
    size = torch.tensor(head.structure.shape, dtype=torch.float32)
    return ((2 * points + 1) / size - 1).flip(-1)[None]


def _random_grid(
    head: Head, box: tuple[int, int, int], miss: float, rng: np.random.Generator
) -> torch.Tensor:
    """Sampling positions (1, X, Y, Z, 3) in torch's normalised z, y, x order.

    Rotation up to 25 degrees, scaling 0.87 ... 1.15, a smooth warp of about 2 voxels, and a box
    that misses the brain's centre by up to ``miss`` voxels.
    """
    from scipy.spatial.transform import Rotation

    spread = 25.0 if rng.random() < 0.3 else 8.0
    rotation = Rotation.from_euler("xyz", rng.uniform(-spread, spread, 3), degrees=True)
    matrix = rotation.as_matrix() @ np.diag(1 / rng.uniform(0.87, 1.15, 3))
    centre = _centre(head) + rng.uniform(-miss, miss, 3)
    axes = [np.arange(n) - (n - 1) / 2 for n in box]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ matrix.T + centre
    points = torch.from_numpy(points.astype(np.float32))
    coarse = torch.from_numpy(
        rng.normal(0, rng.uniform(0, 2.0), (1, 3, 7, 8, 7)).astype(np.float32)
    )
    warp = F.interpolate(coarse, size=box, mode="trilinear", align_corners=True)
    return _normalised(points + warp[0].permute(1, 2, 3, 0), head)


def _sample(volume: NDArray, grid: torch.Tensor, flip: bool, *, nearest: bool) -> Array:
    source = torch.from_numpy(np.asarray(volume, np.float32))[None, None]
    mode = "nearest" if nearest else "bilinear"
    found = F.grid_sample(source, grid, mode=mode, padding_mode="zeros", align_corners=False)
    result = found[0, 0].numpy()
    return np.ascontiguousarray(result[::-1]) if flip else result


def random_contrast(image: Array, rng: np.random.Generator) -> Array:
    """A random monotone curve through (0, 0): another T1 weighting, the same order of tissues."""
    knots = np.linspace(0, 2, 7)
    steps = np.exp(rng.normal(0, 0.6, 6))
    curve = np.concatenate([[0], np.cumsum(steps)])
    return np.interp(image, knots, curve / curve[3]).astype(np.float32)


def paint_labels(paint: NDArray[np.uint8], rng: np.random.Generator) -> Array:
    """An image from labels: mostly in T1 order (fluid, grey, white), else at random."""
    means = rng.uniform(0, 1, 256)
    if rng.random() < 0.65:
        _order_like_t1(means, rng)
    else:
        _share_means(means, rng)
    spreads = rng.uniform(0, 0.06, 256)
    if rng.random() < 0.8:  # the air around the head is black in most magnitude images
        means[[0, 208]] = rng.uniform(0, 0.05)
        spreads[[0, 208]] = rng.uniform(0, 0.03)
    means, spreads = means.astype(np.float32), spreads.astype(np.float32)
    grain = rng.standard_normal(paint.shape, dtype=np.float32)
    image = means[paint] + spreads[paint] * grain
    return ndimage.gaussian_filter(image, rng.uniform(0.3, 0.7)).clip(0)


_TISSUES = (
    (1, 46),  # outer fluid
    (4, 11, 49, 50, 51, 52),  # ventricles
    (*range(100, 208), 47, 48, 31, 32),  # cortex and allocortex
    (*range(81, 96),),  # white matter
    (23, 30, 36, 37, 57, 58, 75, 76),  # striatum
    (55, 56),
    (59, 60),
    (38, 39, 71, 72, 73),  # cerebellar cortex
    (40, 41),
    (35, 61, 62, 69),
)


def _share_means(means: NDArray, rng: np.random.Generator) -> None:
    """Labels of one tissue share a mean up to a little."""
    for tissue in _TISSUES:
        means[list(tissue)] = rng.uniform(0, 1) + rng.normal(0, 0.02, len(tissue))


def _order_like_t1(means: NDArray, rng: np.random.Generator) -> None:
    fluid = rng.uniform(0.0, 0.3)
    white = rng.uniform(0.6, 1.0)
    grey = fluid + (white - fluid) * rng.uniform(0.35, 0.8)
    levels = (fluid, fluid, grey, white, *(grey + (white - grey) * rng.uniform(0, 0.8, 3)),
              grey, white, grey + (white - grey) * rng.uniform(0.4, 1.0))  # fmt: skip
    for tissue, level in zip(_TISSUES, levels):
        means[list(tissue)] = level + rng.normal(0, 0.02, len(tissue))


def smooth_field(shape: tuple[int, ...], knots: int, rng: np.random.Generator) -> Array:
    """A smooth random field (X, Y, Z) of about unit height."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, knots, knots, knots), dtype=np.float32))
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def spoil(image: Array, rng: np.random.Generator) -> Array:
    """Bias field, blur to 1 ... 3 mm in each axis, Rician noise."""
    if rng.random() < 0.8:
        knots = int(rng.integers(2, 6))
        image = image * np.exp(rng.uniform(0, 0.4) * smooth_field(image.shape, knots, rng))
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0, 0.8, 3))
    if rng.random() < 0.7:
        sigma = rng.uniform(0, 0.08) * float(image.max() or 1) / 2
        real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
        imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.hypot(real, imaginary)
    return image.astype(np.float32)


def remove_parts(
    image: Array, structure: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Array, NDArray[np.uint8]]:
    """Take away what a scan may lack: skull, face, neck, vertex. Lost voxels become background."""
    image, structure = image.copy(), structure.copy()
    brain = structure > OUTER_CSF
    if not brain.any():
        return image, structure
    if rng.random() < 0.3:
        keep = _stripped(structure, brain, rng)
    else:
        keep = np.ones(image.shape, bool)
        low, high = np.nonzero(brain.any((0, 1)))[0][[0, -1]]
        front = np.nonzero(brain.any((0, 2)))[0][-1]
        if rng.random() < 0.4:  # the neck, at times with the lowest brain
            keep[:, :, : max(0, low + int(rng.integers(-12, 8)))] = False
        if rng.random() < 0.15:  # the vertex
            keep[:, :, high + int(rng.integers(-6, 6)) :] = False
        if rng.random() < 0.2:  # the face, as defacing tools do
            y, z = np.meshgrid(*(np.arange(n) for n in image.shape[1:]), indexing="ij")
            face = (y - front) + rng.uniform(0.6, 1.4) * (low + 8 - z) > rng.uniform(-8, 2)
            keep &= ~(face[None] & ~ndimage.binary_dilation(brain, iterations=2))
    image[~keep] = 0
    structure[~keep] = 0
    return image, structure


def _stripped(
    structure: NDArray[np.uint8], brain: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A mask as stripping tools leave it: with the outer fluid or without, ragged, eroded."""
    mask = structure > 0 if rng.random() < 0.4 else ndimage.binary_fill_holes(brain)
    change = int(rng.integers(-1, 3))
    if change > 0:
        mask = ndimage.binary_dilation(mask, iterations=change)
    depth = ndimage.distance_transform_edt(mask)
    ragged = 0.8 * smooth_field(structure.shape, 12, rng)
    return (depth > np.maximum(ragged, 0) + (1 if change < 0 else 0)) & mask
