"""Planted cohorts age at their place and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from models.simulation.brain import Ageing, Appearance, Template
from models.simulation.planted import (
    OLDEST,
    STAGES,
    YOUNGEST,
    Planted,
    people,
    plant,
    segmented_people,
)

GRID = (28, 32, 28)
AFFINE = np.diag([2.0, 2, 2, 1])
AFFINE[:3, 3] = (-27.5, -31.5, -27.5)


def ball() -> Template:
    """A ball of white matter with a ventricle in it, under cortex, in fluid."""
    place = np.indices((60, 68, 60), np.float32)
    place -= np.array([29.5, 33.5, 29.5], np.float32)[:, None, None, None]
    radius = np.sqrt((place**2).sum(0))
    gray, white = (
        ndimage.gaussian_filter(tissue.astype(np.float32), 1)  # cortex borders on mixtures
        for tissue in ((radius > 17) & (radius <= 21), (radius > 5) & (radius <= 17))
    )
    t1 = np.where(radius < 24, 0.2 + 0.4 * gray + 0.8 * white, 0).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = (-29.5, -33.5, -29.5)
    return Template(t1, gray, white, affine)


@pytest.fixture(scope="module")
def planted() -> Planted:
    """With a patch of cortex that thins."""
    with pytest.MonkeyPatch.context() as patch:
        template = ball()
        # the anatomy that these two look for is not in a ball
        patch.setattr("models.simulation.brain.cortex_fraction", lambda t: t.gray)
        patch.setattr(
            "models.simulation.brain._ventricle_core", lambda t, csf: (csf > 0) & ~_rim(t)
        )
        return plant(template, Ageing(cortex=0.8), GRID, AFFINE, within=patch_of(template))


def _rim(template: Template) -> np.ndarray:
    """Outer half of the ball."""
    place = np.indices(template.t1.shape) - np.array([29.5, 33.5, 29.5])[:, None, None, None]
    return (place**2).sum(0) > 12**2


def patch_of(template: Template) -> np.ndarray:
    within = np.zeros(template.t1.shape, np.float32)
    within[:, 40:, 35:] = 1
    return within


def test_the_brain_changes_at_its_place_alone(planted: Planted) -> None:
    assert planted.stages.shape == (STAGES + 1, *GRID)
    changed = planted.effect > 0.05
    assert changed.sum() > 50
    mm = np.argwhere(changed) @ AFFINE[:3, :3] + AFFINE[:3, 3]
    assert (mm[:, 1] > 0).all() and (mm[:, 2] > 0).all()
    levels = [stage[changed].sum() for stage in planted.stages]
    assert all(np.diff(levels) < 0)  # cortex turns into fluid


def test_people_differ_everywhere_and_by_age_at_the_place(planted: Planted) -> None:
    young, old = people(planted, [YOUNGEST, OLDEST], seed=1)
    assert young.shape == GRID and young.dtype == np.float32 and young.min() == 0
    assert np.abs(young - old)[(young > 0) & (old > 0)].mean() > 0.01
    (again,) = people(planted, [YOUNGEST], seed=1)
    np.testing.assert_array_equal(young, again)


def test_tissue_of_the_same_people_changes_at_the_place_alone(planted: Planted) -> None:
    first, last = planted.shares[0], planted.shares[-1]
    gray, white, fluid = last - first
    changed = planted.effect > 0.05
    assert gray[changed].sum() < -10
    assert fluid[changed].sum() == pytest.approx(-gray[changed].sum(), rel=0.05)
    assert np.abs(white).max() < 0.05 and np.abs(gray[~changed]).max() < 0.3
    ages = [YOUNGEST, OLDEST]
    still = Appearance(warp=0.5, noise=0)
    found = list(segmented_people(planted, ages, seed=1, appearance=still))
    assert found[0].shape == (3, *GRID)
    for shares, image in zip(found, people(planted, ages, seed=1), strict=True):
        inside = ndimage.binary_erosion(image > 0, iterations=3)
        np.testing.assert_allclose(shares.sum(0)[inside], 1, atol=0.05)
        white, fluid = (image[inside & (each > 0.9)] for each in shares[1:])
        assert white.mean() > 2 * fluid.mean()  # where the image has it
    (noisy,) = segmented_people(planted, ages[:1], seed=1)
    assert 0.001 < np.abs(noisy - found[0]).mean() < 0.02 and noisy.max() <= 1


def test_other_ages_are_refused(planted: Planted) -> None:
    with pytest.raises(ValueError, match="20 to 80 years, not to 90"):
        next(people(planted, [90.0], seed=1))
