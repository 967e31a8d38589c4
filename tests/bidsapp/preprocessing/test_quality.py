"""Quality figures mean what their names say, and what is out of range is flagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bidsapp.errors import ScanError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.intensity import tissue_levels
from bidsapp.preprocessing.quality import LIMITS, assess
from bidsapp.preprocessing.segmentation import Segmentation
from models.segmentation import labels

SHAPE = (60, 60, 60)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
CORTEX, WHITE = (labels.indices(structure=name)[0] for name in ("CTX", "WM"))


def ball(radius: float) -> NDArray[np.bool_]:
    away = np.indices(SHAPE) - 29.5
    return np.sqrt((away**2).sum(0)) < radius


def figures(**changes: Any) -> dict[str, Any]:
    """`assess` on a brain that matches its template, apart from `changes`."""
    random = np.random.default_rng(1)
    mask = ball(33)
    found = np.where(ball(24), WHITE, np.where(mask, CORTEX, 0)).astype(np.uint8)
    mean = np.select([found == WHITE, found == CORTEX], [1000.0, 600.0], 0)
    data = (mean + random.normal(0, 50, SHAPE)).astype(np.float32) * mask
    image = Image(data, AFFINE)
    given = {
        "segmentation": Segmentation(image, mask, found, mask, found, {}),
        "corrected": image,
        "scan": image,
        "registered": image,
        "registered_mask": mask,
        "template": image.with_data(data + random.normal(0, 50, SHAPE)),
        "template_mask": mask,
        "to_scan": np.eye(4),
    }
    return assess(**{**given, **changes})


def test_a_good_scan_passes() -> None:
    found = figures()
    assert found["passed"] is True and found["flags"] == []
    assert found["registration_correlation"] > 0.9 and found["mask_overlap"] == 1
    assert found["brain_volume_ml"] == pytest.approx(ball(33).sum() * 0.008)
    assert found["affine_determinant"] == 1 and found["affine_shear"] == 0
    assert found["largest_voxel_mm"] == 2
    assert set(LIMITS) < set(found)


def test_contrast_and_noise() -> None:
    """White 1000 and grey 600, each with a standard deviation of 50."""
    found = figures()
    assert found["cnr"] == pytest.approx(400 / np.hypot(50, 50), rel=0.02)
    assert found["snr"] == pytest.approx(20, rel=0.02)
    assert found["cjv"] == pytest.approx(100 / 400, rel=0.02)


def scaled(factor: float) -> NDArray[np.float64]:
    return np.diag([factor, factor, factor, 1.0])


EMPTY = np.zeros(SHAPE, bool)
FLAT = Image(np.ones(SHAPE, np.float32), AFFINE)
NOISE = Image(np.random.default_rng(2).random(SHAPE), AFFINE)
NOTHING = np.zeros(SHAPE, np.uint8)
UNKNOWN = Segmentation(FLAT, ball(33), NOTHING, ball(33), NOTHING, {})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # correlation of a constant
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"registered": NOISE}, ["registration_correlation"]),
        ({"registered": FLAT}, ["registration_correlation"]),
        ({"registered_mask": np.roll(ball(33), 20, 0)}, ["mask_overlap"]),
        ({"registered_mask": EMPTY}, ["registration_correlation", "mask_overlap"]),
        ({"to_scan": scaled(0.7)}, ["affine_determinant"]),
        ({"to_scan": scaled(1.3)}, ["affine_determinant"]),
        ({"to_scan": np.diag([-1.0, 1, 1, 1])}, ["affine_determinant"]),
        ({"corrected": FLAT}, ["cnr"]),
        ({"segmentation": UNKNOWN}, ["cnr"]),
        ({"scan": Image(FLAT.data, np.diag([1.0, 1, 6, 1]))}, ["largest_voxel_mm"]),
    ],
)  # fmt: skip
def test_flags(changes: dict[str, Any], flags: list[str]) -> None:
    found = figures(**changes)
    assert found["flags"] == flags and found["passed"] is False


@pytest.mark.parametrize("radius", [20, 29.9])
def test_brains_that_are_too_small_or_too_large(radius: float) -> None:
    mask = ball(radius)
    size = 2.0 if radius < 25 else 3.5
    working = Image(FLAT.data, np.diag([size, size, size, 1]))
    found = figures(
        segmentation=Segmentation(working, mask, NOTHING, mask, NOTHING, {}), corrected=working
    )
    assert "brain_volume_ml" in found["flags"]


def test_shear_is_told_from_rotation_and_scale() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert figures(to_scan=turn @ np.diag([1.1, 0.9, 1, 1]))["affine_shear"] < 1e-12
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    assert figures(to_scan=turn @ sheared)["affine_shear"] == pytest.approx(0.2)


# --- levels of the tissues ---


def test_levels_are_medians_of_both_hemispheres() -> None:
    found = np.zeros(SHAPE, np.uint8)
    image = np.zeros(SHAPE, np.float32)
    for structure, values in (("CTX", (500, 700)), ("WM", (900, 1100))):
        for label, value in zip(labels.indices(structure=structure), values, strict=True):
            found[label], image[label] = label, value
    image[labels.indices(structure="WM")[0], :3] = 9999  # a few bright voxels change nothing
    assert tissue_levels(image, found) == {"cortex": 600, "white_matter": 900 + 200}


@pytest.mark.parametrize("missing", ["CTX", "WM", "both", "black"])
def test_a_brain_without_a_tissue_is_refused(missing: str) -> None:
    found = np.zeros(SHAPE, np.uint8)
    found[:20], found[20:40] = CORTEX, WHITE
    if missing != "black":
        absent = (CORTEX, WHITE) if missing == "both" else labels.indices(structure=missing)
        found[np.isin(found, absent)] = 0
    image = np.zeros(SHAPE, np.float32) if missing == "black" else FLAT.data
    with pytest.raises(ScanError, match="no cortex or no white matter"):
        tissue_levels(image, found)
