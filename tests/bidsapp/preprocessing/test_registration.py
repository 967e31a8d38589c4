"""A transform that is known is found again."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bidsapp.preprocessing import registration, resampling
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.registration import register
from bidsapp.preprocessing.resampling import resample, to_working_grid
from bidsapp.preprocessing.templates import load_template
from models.contract import DEGREES_OF_FREEDOM

COARSE_MM = 4.0
CORNERS = np.array(list(itertools.product((-70, 70), (-100, 70), (-60, 75))))
"""Of the box around the template's brain, mm."""


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "WORKING_MM", COARSE_MM)


def transform(scales: tuple[float, float, float]) -> NDArray[np.float64]:
    """Template mm -> scan mm."""
    turn = Rotation.from_euler("xyz", (6, -4, 9), degrees=True).as_matrix()
    return from_matvec(turn @ np.diag(scales), (7, -12, 5))


@lru_cache
def scan(scales: tuple[float, float, float]) -> Image:
    """The template's brain as a scanner with voxels of its own would see it after `transform`."""
    grid = from_matvec(np.diag([4.2, 3.9, 4.0]), (-100, -130, -95))
    found = resample(load_template().brain, np.linalg.inv(transform(scales)), (48, 58, 48), grid)
    return found.with_data(found.data.clip(0))


def corner_error(found: NDArray, truth: NDArray) -> float:
    return float(
        np.linalg.norm(apply_affine(found, CORNERS) - apply_affine(truth, CORNERS), axis=1).max()
    )


@pytest.mark.parametrize(
    ("degrees_of_freedom", "scales", "kind"),
    [
        (6, (1, 1, 1), "Rigid"),
        (7, (1.08, 1.08, 1.08), "Similarity"),
        (12, (1.1, 0.93, 1.05), "Affine"),
    ],
)
def test_a_known_transform_is_recovered(
    degrees_of_freedom: int, scales: tuple[float, float, float], kind: str
) -> None:
    matrix, record = register(scan(scales), load_template(), degrees_of_freedom, seed=1)
    assert corner_error(np.eye(4), transform(scales)) > 10
    assert corner_error(matrix, transform(scales)) < 1
    assert record["parameters"] | {"type": kind, "seed": 1} == record["parameters"]
    assert record["template"]["name"] == "MNI152NLin2009aSym"
    np.testing.assert_array_equal(json.loads(json.dumps(record))["matrix"], matrix)


def test_every_registration_that_a_card_may_ask_for_can_be_done() -> None:
    assert set(registration._KINDS) == set(DEGREES_OF_FREEDOM)


def test_the_same_scan_gives_the_same_bits() -> None:
    brain = scan((1.1, 0.93, 1.05))
    first, second = (register(brain, load_template(), 12, seed=1)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_ants_sees_an_image_where_it_is() -> None:
    """ITK counts to the left and to the back; also where the axes are oblique."""
    turn = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    affine = from_matvec(turn @ np.diag([1.0, 2.0, 3.0]), (5, -6, 7))
    image = Image(np.random.default_rng(1).random((17, 18, 19)).astype(np.float32), affine)
    seen = registration._to_ants(image)
    np.testing.assert_array_equal(seen.numpy(), image.data)
    for index in ((0, 0, 0), (16, 0, 0), (3, 11, 18)):
        lps = np.asarray(seen.origin) + seen.direction @ (np.array(index) * seen.spacing)
        np.testing.assert_allclose(lps * (-1, -1, 1), apply_affine(affine, index), atol=1e-6)


def test_the_template_is_registered_on_its_working_grid() -> None:
    np.testing.assert_allclose(to_working_grid(load_template().brain).zooms, COARSE_MM, rtol=0.02)
