"""From labels on the working grid to shares of tissue in a template."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.segmentation import Parts, Segmentation
from bidsapp.preprocessing.tissue import tissue_shares
from models.contract import TISSUES
from models.segmentation import labels

SHAPE = (24, 26, 22)
GRID = np.diag([2.0, 2.0, 2.0, 1.0])
GRID[:3, 3] = -20
GREY, WHITE, FLUID = (slice(4, 8),), (slice(8, 14),), (slice(14, 20),)


@pytest.fixture
def found() -> Segmentation:
    """Slabs along x: cortex, white matter, then outer fluid and a ventricle."""
    values = np.zeros(SHAPE, np.uint8)
    values[GREY] = labels.indices(structure="CTX")[0]
    values[WHITE] = labels.indices(structure="WM")[1]
    values[FLUID] = labels.OUTER_CSF
    values[14:17] = labels.indices(structure="V34")[0]
    working = Image(np.zeros(SHAPE, np.float32), GRID)
    fine = np.zeros((48, 52, 44), np.uint8)  # of a scan of 1 mm, which must not matter
    coarse, fine = (Parts(each, each > 0, each > 0) for each in (values, fine))
    return Segmentation(working, coarse, fine, {})


def test_shares_say_where_each_tissue_lies(found: Segmentation) -> None:
    shares = tissue_shares(found, np.eye(4), SHAPE, GRID)
    assert shares.shape == (3, *SHAPE) and shares.dtype == np.float32
    for tissue, place in (("GM", GREY), ("WM", WHITE), ("CSF", FLUID)):
        expected = np.zeros(SHAPE, np.float32)
        expected[place] = 1
        np.testing.assert_allclose(shares[TISSUES.index(tissue)], expected, atol=1e-6)


def test_they_follow_the_transform_and_mix_at_borders(found: Segmentation) -> None:
    """Template mm + 3 = scan mm: half of a voxel past a whole one."""
    to_scan = np.eye(4)
    to_scan[0, 3] = 3
    grey = tissue_shares(found, to_scan, SHAPE, GRID)[0][:, 5, 5]
    np.testing.assert_allclose(grey[1:9], [0, 0.5, 1, 1, 1, 0.5, 0, 0], atol=1e-6)
