"""Cohorts whose ages show at one known place in the brain and nowhere else: numerics only.

What a map of importance should find is then known. The brains lie on a model's grid as if
registered perfectly; people still differ everywhere by a smooth warp, a bias field, the contrast
of their scan and noise, so that a model has something to look away from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.simulation.brain import (
    Ageing,
    Appearance,
    Array,
    Template,
    _smooth_noise,
    csf_fraction,
    find_regions,
    grow_old,
)

YOUNGEST, OLDEST = 20.0, 80.0
STAGES = 4
"""Steps from the youngest to the oldest brain; between two of them images are interpolated."""
PEOPLE = Appearance(resolution=2.0, warp=0.5, bias=0.03, noise=0.02)


@dataclass(frozen=True)
class Planted:
    """An average brain at evenly spaced ages, on a model's grid.

    Attributes
    ----------
    stages
        (ages, X, Y, Z), from `YOUNGEST` to `OLDEST`; intensities of the template, 0 outside of
        the brain.
    effect
        (X, Y, Z), the largest change of intensity over all ages, as a fraction of white matter.
    shares
        (ages, 3, X, Y, Z), of grey matter, white matter and fluid in each voxel at these ages.
    """

    stages: Array
    effect: Array
    shares: Array


def plant(
    template: Template,
    oldest: Ageing,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    within: Array | None = None,
) -> Planted:
    """Let the average brain age from what it is to `oldest`, at one place.

    Parameters
    ----------
    template
        The average brain, at `YOUNGEST`.
    oldest
        What has become of ventricles and cortex at `OLDEST`; the logarithms of the factors are
        linear in age.
    shape, affine
        The grid, voxel -> template mm.
    within
        Template voxels, as fractions in [0, 1], outside of which no cortex ages.
    """
    regions = find_regions(template, within)
    stages, shares = [], []
    for share in np.linspace(0, 1, STAGES + 1):
        ageing = Ageing(oldest.ventricles**share, oldest.cortex**share)
        brain = grow_old(template, regions, ageing, within)
        sampled = _sampler(brain, shape, affine)
        inside = sampled((brain.t1 > 0).astype(np.float32))
        # of the brain alone: the rim would be dark without the division
        stages.append(np.where(inside > 0.5, sampled(brain.t1) / np.maximum(inside, 0.5), 0))
        tissues = brain.gray, brain.white, csf_fraction(brain)
        shares.append(np.stack([sampled(tissue) for tissue in tissues]))
    ages = np.stack(stages)
    white = np.median(template.t1[template.white > 0.9])
    return Planted(ages, (ages.max(0) - ages.min(0)) / white, np.stack(shares))


def people(
    planted: Planted, ages: Sequence[float], seed: int, appearance: Appearance = PEOPLE
) -> Iterator[Array]:
    """One image (X, Y, Z) for each age (years), 0 outside of the brain.

    Parameters
    ----------
    appearance
        Its resolution is the grid's; position and size do not count, for the brains are
        registered.
    """
    shape = planted.stages.shape[1:]
    top = np.percentile(planted.stages[0][planted.stages[0] > 0], 98)
    for number, age in enumerate(ages):
        rng = np.random.default_rng([seed, number])
        image, mm = _at_age(planted.stages, age), appearance.resolution
        at = _own_anatomy(shape, appearance, rng)
        brain = ndimage.map_coordinates((image > 0).astype(np.float32), at, order=1) > 0.5
        image = ndimage.map_coordinates(image, at, order=3, output=np.float32) / top
        image = np.clip(image, 0, None) ** np.float32(np.exp(rng.normal(0, 0.05)))
        image *= np.exp(appearance.bias * _smooth_noise(shape, mm, 40, rng))
        image += rng.normal(0, appearance.noise, shape).astype(np.float32)
        yield np.where(brain, np.clip(image, 0.01, None), 0).astype(np.float32)


def segmented_people(
    planted: Planted, ages: Sequence[float], seed: int, appearance: Appearance = PEOPLE
) -> Iterator[Array]:
    """Shares of grey matter, white matter and fluid (3, X, Y, Z) of the same people.

    As a segmentation finds them that errs by the noise of ``appearance``.
    """
    shape = planted.stages.shape[1:]
    for number, age in enumerate(ages):
        rng = np.random.default_rng([seed, number])
        at = _own_anatomy(shape, appearance, rng)
        shares = np.stack([
            ndimage.map_coordinates(each, at, order=1, output=np.float32)
            for each in _at_age(planted.shares, age)
        ])  # fmt: skip
        erring = shares + rng.normal(0, appearance.noise, shares.shape).astype(np.float32)
        yield np.where(shares.sum(0) > 0.5, np.clip(erring, 0, 1), 0).astype(np.float32)


def _own_anatomy(shape: Sequence[int], appearance: Appearance, rng: np.random.Generator) -> Array:
    """Where each voxel of a person lies in the average brain, (3, X, Y, Z), in voxels."""
    mm = appearance.resolution
    x, y, z = shape
    at = np.indices((x, y, z), np.float32)
    for axis in range(3):
        at[axis] += appearance.warp / mm * _smooth_noise((x, y, z), mm, 16, rng)
    return at


def _at_age(stages: Array, age: float) -> Array:
    if not YOUNGEST <= age <= OLDEST:
        raise ValueError(
            f"planted ages reach from {YOUNGEST:g} to {OLDEST:g} years, not to {age:g}"
        )
    place = (age - YOUNGEST) / (OLDEST - YOUNGEST) * STAGES
    before = min(int(place), STAGES - 1)
    share = np.float32(place - before)
    return (1 - share) * stages[before] + share * stages[before + 1]


def _sampler(
    brain: Template, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> Callable[[Array], Array]:
    """Averages images of a brain to the grid's voxels."""
    to_voxel = np.linalg.inv(brain.affine) @ affine
    size = np.abs(to_voxel[:3, :3]).max(0)
    sigma = np.sqrt(np.maximum(size**2 - 1, 0)) / 2.355

    def sampled(image: Array) -> Array:
        return ndimage.affine_transform(
            ndimage.gaussian_filter(image, sigma), to_voxel[:3, :3], to_voxel[:3, 3],
            output_shape=shape, order=1, output=np.float32,
        )  # fmt: skip

    return sampled
