"""Random disturbances of a brain image, so that a network reads shape rather than contrast.

Light enough for a CPU: everything happens in the box around the brain, about half of the grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.intensity import HIGHEST, OUTSIDE
from models.training.data import TrainingScan
from models.training.options import AugmentationOptions, Options

MARGIN = 3
"""Voxels around the brain that may be needed when it is moved and rotated."""
LEVELS = 2048
"""Steps of the table by which an intensity curve is applied."""


def view_of(scan: TrainingScan, options: Options, rng: np.random.Generator) -> Tensor:
    """One random view of a scan, (X, Y, Z), on the device."""
    image = scan.image.to(options.device)
    if scan.stripped is None:
        return augment(image, options.augmentation, rng)
    return augment_tissues(image, scan.stripped.to(options.device), options.augmentation, rng)


def augment(image: Tensor, options: AugmentationOptions, rng: np.random.Generator) -> Tensor:
    """One random view of a brain.

    Parameters
    ----------
    image
        (X, Y, Z), 0 outside the brain, 0 ... 1.5 inside; left as it is.
    rng
        Decides everything: the same state gives the same view.

    Returns
    -------
    Tensor, (X, Y, Z), float32
    """
    flip = options.flip and rng.random() < 0.5
    shift = rng.integers(-2, 3, 3) if options.translation else np.zeros(3, int)
    box = bounding_box(image, MARGIN)
    view = image[box].float()
    if flip:
        view = view.flip(0)
    if options.affine and rng.random() < 0.5:
        view = _jitter(view, rng)
    brain = view > 0
    if options.blur and rng.random() < 0.5:
        view = _blur(view, rng)
    if options.curve:
        view = random_curve(view, rng)
    if options.bias:
        view = view * smooth_field(view, 0.05, rng).add_(1)
    if options.noise and rng.random() < 0.5:
        grain = torch.randn(view.shape, generator=_generator(view, rng), device=view.device)
        view = torch.add(view, grain, alpha=rng.uniform(0, 0.05))
    if options.erosion and rng.random() < 0.5:
        brain = _erode(brain, rng)
    view = view.clamp(0, HIGHEST).mul_(brain)
    result = torch.zeros(image.shape, device=image.device)
    return _place(view, result, box, flip, shift)


def augment_tissues(
    image: Tensor, stripped: Tensor, options: AugmentationOptions, rng: np.random.Generator
) -> Tensor:
    """One random view of a tissue map, or of maps; contrast has no say in one.

    Parameters
    ----------
    image, stripped
        (X, Y, Z), `models.intensity.OUTSIDE` outside the brain; with all fluid around the brain,
        and as a tight strip leaves it. Or modulated maps (3, X, Y, Z), 0 outside.

    Returns
    -------
    Tensor, as ``image``, float32
    """
    outside = OUTSIDE if image.dim() == 3 else 0.0
    bare = options.erosion and rng.random() < 0.5
    maps = (stripped if bare else image).float().reshape(-1, *image.shape[-3:]) - outside
    if options.flip and rng.random() < 0.5:
        maps = maps.flip(1)
    if options.affine and rng.random() < 0.5:
        grid = functional.affine_grid(_random_affine(maps[0], rng), [1, 1, *maps.shape[1:]],
                                      align_corners=False)  # fmt: skip
        maps = functional.grid_sample(maps[None], grid, align_corners=False)[0]
    if options.translation:
        shift = rng.integers(-2, 3, 3)
        x, y, z = (slice(0, side) for side in maps.shape[1:])
        moved = [_place(each, torch.zeros_like(each), (x, y, z), False, shift) for each in maps]
        maps = torch.stack(moved)
    return maps.reshape(image.shape) + outside


def bounding_box(image: Tensor, margin: int = 0) -> tuple[slice, slice, slice]:
    """The box around all voxels that are not 0, and some more where there are."""
    filled = image > 0
    flat = filled.any(2)
    slices = []
    for axis, line in enumerate((flat.any(1), flat.any(0), filled.any(0).any(0))):
        inside = line.nonzero()
        if len(inside) == 0:
            slices.append(slice(0, image.shape[axis]))
        else:
            low, high = int(inside[0]) - margin, int(inside[-1]) + 1 + margin
            slices.append(slice(max(0, low), min(image.shape[axis], high)))
    return slices[0], slices[1], slices[2]


def _place(
    view: Tensor, result: Tensor, box: tuple[slice, ...], flip: bool, shift: np.ndarray
) -> Tensor:
    """Put a box back where it was, mirrored about the grid's middle and moved."""
    into, taken = [], []
    for axis, (side, move) in enumerate(zip(box, shift)):
        size = result.shape[axis]
        first = (size - side.stop if flip and axis == 0 else side.start) + int(move)
        low, high = max(0, first), min(size, first + view.shape[axis])
        into.append(slice(low, high))
        taken.append(slice(low - first, high - first))
    result[tuple(into)] = view[tuple(taken)]
    return result


def _jitter(view: Tensor, rng: np.random.Generator) -> Tensor:
    """A small random affine about the box's middle; the brain's edge stays sharp."""
    pair = torch.stack([view, (view > 0).float()])[None]
    theta = _random_affine(view, rng)
    grid = functional.affine_grid(theta, list(pair.shape), align_corners=False)
    moved, brain = functional.grid_sample(pair, grid, align_corners=False)[0]
    # of the image inside the brain alone: without the division the rim would be dark
    return torch.where(brain > 0.5, moved / brain.clamp(min=0.5), 0)


def _random_affine(view: Tensor, rng: np.random.Generator) -> Tensor:
    """(1, 3, 4), for ``affine_grid``: up to 3 degrees, 3 % of scale and of shear."""
    size = np.array(view.shape, dtype=float)[::-1]  # torch's order: z, y, x
    matrix = np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))
    turn = np.deg2rad(rng.uniform(-3, 3, 3))
    matrix += np.cross(np.eye(3), turn)
    matrix = matrix * size[None] / size[:, None]  # from voxels to normalised coordinates
    theta = np.c_[matrix, np.zeros(3)]
    return torch.tensor(theta, dtype=torch.float32, device=view.device)[None]


def _blur(view: Tensor, rng: np.random.Generator) -> Tensor:
    """Three-point smoothing along each axis, of a random share."""
    view = view.clone()
    for axis, share in enumerate(rng.uniform(0, 0.2, 3)):
        length = view.shape[axis] - 1
        step = torch.diff(view, dim=axis).mul_(share)
        view.narrow(axis, 0, length).add_(step)
        view.narrow(axis, 1, length).sub_(step)
    return view


def random_curve(view: Tensor, rng: np.random.Generator) -> Tensor:
    """A random monotone curve through (0, 0) and (1, 1): white matter stays where it was.

    Five knots below white matter with steps of log-normal size, and the last slope carried on.
    """
    steps = np.exp(rng.normal(0, 0.4, 5))
    knots = np.linspace(0, 1, 6)
    heights = np.concatenate([[0], np.cumsum(steps) / steps.sum()])
    top = 1 + (HIGHEST - 1) * (heights[-1] - heights[-2]) / 0.2
    table = np.interp(np.linspace(0, HIGHEST, LEVELS), [*knots, HIGHEST], [*heights, top])
    lookup = torch.tensor(table, dtype=torch.float32, device=view.device)
    index = (view * ((LEVELS - 1) / HIGHEST)).round_().int().clamp_(0, LEVELS - 1)
    return lookup.index_select(0, index.flatten()).view(view.shape)


def smooth_field(view: Tensor, height: float, rng: np.random.Generator) -> Tensor:
    """A smooth random field of the shape of ``view``, of about ``height`` standard deviation."""
    knots = [int(n) for n in rng.integers(2, 6, 3)]
    coarse = torch.from_numpy(rng.normal(0, height, (1, 1, *knots))).float().to(view.device)
    return functional.interpolate(
        coarse, size=list(view.shape), mode="trilinear", align_corners=True
    )[0, 0]


def _erode(brain: Tensor, rng: np.random.Generator) -> Tensor:
    """Lose the outermost voxels in random patches."""
    inner = brain.clone()
    for axis in range(3):
        length = brain.shape[axis] - 1
        before, after = brain.narrow(axis, 0, length), brain.narrow(axis, 1, length)
        inner.narrow(axis, 1, length).logical_and_(before)
        inner.narrow(axis, 0, length).logical_and_(after)
    kept = smooth_field(brain, 1.0, rng) > rng.uniform(-1.5, 1.5)
    return inner.logical_or_(kept.logical_and_(brain))


def _generator(view: Tensor, rng: np.random.Generator) -> torch.Generator:
    """Random numbers of the device where the image is."""
    return torch.Generator(view.device).manual_seed(int(rng.integers(2**62)))
