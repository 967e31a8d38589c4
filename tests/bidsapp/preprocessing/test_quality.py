"""Quality figures mean what their names say, and what is out of range is flagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.errors import ScanError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.intensity import tissue_levels
from bidsapp.preprocessing.quality import (
    LIMITS,
    TISSUE_SHARES,
    assess,
    judge,
    of_predictions,
    words,
)
from bidsapp.preprocessing.segmentation import Parts, Segmentation
from models.segmentation import labels

SHAPE = (80, 80, 80)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
CORTEX, WHITE = (labels.indices(structure=name)[0] for name in ("CTX", "WM"))
FROM_INSIDE = ("BS", "CBW", "CBC", "AMY", "HIP", "DGM", "LV", "WM", "CTX")


def ball(radius: float) -> NDArray[np.bool_]:
    away = np.indices(SHAPE) - 39.5
    return np.sqrt((away**2).sum(0)) < radius


def shells() -> NDArray[np.uint8]:
    """Every structure with its usual share of the ball, one around the other, cortex outside."""
    away = np.sqrt(((np.indices(SHAPE) - 39.5) ** 2).sum(0))
    brain = int(ball(33).sum())
    order = np.argsort(away, axis=None, kind="stable")[:brain]
    found = np.zeros(SHAPE, np.uint8)
    right = (np.indices(SHAPE)[0] >= 40).ravel()[order]
    end = brain
    for name in reversed(FROM_INSIDE):
        start = end - round(np.exp(TISSUE_SHARES[name][0]) * brain)
        one, *other = labels.indices(structure=name)
        found.flat[order[start:end]] = np.where(right[start:end], one, [*other, one][0])
        end = start
    return found


FOUND = shells()
CTX, WM = (np.isin(FOUND, labels.indices(structure=name)) for name in ("CTX", "WM"))
BALL = ball(33)


def head(**changes: float) -> Image:
    """White matter 1000, cortex 600, noise of 20; air is zero."""
    noise = changes.get("noise", 20)
    mean = np.select([CTX, BALL], [changes.get("grey", 600), 1000.0], 0)
    data = mean + np.random.default_rng(1).normal(0, noise, SHAPE)
    return Image((data * BALL).astype(np.float32), AFFINE)


def segmented(image: Image, **changes: Any) -> Segmentation:
    mask, found = changes.get("mask", BALL), changes.get("found", FOUND)
    return Segmentation(image, Parts(found, mask, mask), Parts(found, mask, mask), {})


def figures(image: Image | None = None, **changes: Any) -> dict[str, Any]:
    """`assess` on a brain that matches its template, apart from `changes`."""
    image = image or head()
    given = {
        "segmentation": segmented(image),
        "corrected": image,
        "scan": image,
        "registered": image,
        "registered_mask": BALL,
        "template": head(),
        "template_mask": BALL,
        "to_scan": np.eye(4),
        "field_range": (0.8, 1.2),
        "stripped": False,
    }
    return assess(**{**given, **changes})


def flags(image: Image | None = None, **changes: Any) -> list[str]:
    return judge(figures(image, **changes), "warn")["flags"]


def test_a_good_scan_passes() -> None:
    found = judge(figures() | of_predictions(40, [(41, (20, 80)), (39, (20, 80))]), "warn")
    assert found["flags"] == [] and found["passed"] is True
    assert found["registration_correlation"] > 0.9 and found["mask_overlap"] == 1
    assert found["brain_volume_ml"] == pytest.approx(BALL.sum() * 0.008)
    assert found["affine_determinant"] == 1 and found["affine_shear"] == 0
    assert found["mask_asymmetry"] == 0 and found["rotation_degrees"] == 0
    assert found["largest_voxel_mm"] == 2 and found["bias_field_ratio"] == pytest.approx(1.5)
    assert found["tissue_deviation"] < 0.1 and found["side_difference"] < 0.005
    assert set(LIMITS) < set(found)


# --- each figure ---


def test_contrast_and_noise() -> None:
    """White 1000 and grey 600, each with a standard deviation of 50."""
    found = figures(head(noise=50))
    assert found["cnr"] == pytest.approx(400 / np.hypot(50, 50), rel=0.02)
    assert found["snr"] == pytest.approx(20, rel=0.02)
    assert found["cjv"] == pytest.approx(100 / 400, rel=0.02)
    assert found["noise"] == pytest.approx(0.05, rel=0.05)


def test_contrast_has_a_sign() -> None:
    assert figures(head(grey=1400))["cnr"] < -5


def test_noise_knows_nothing_of_a_bias_field() -> None:
    ramp = np.linspace(0.5, 1.5, SHAPE[0])[:, None, None]
    image = head(noise=30)
    uneven = image.with_data(image.data * ramp)
    assert figures(uneven)["noise"] == pytest.approx(figures(image)["noise"], rel=0.05)


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    sharp, blurred = head(), head()
    blurred = sharp.with_data(ndimage.gaussian_filter(sharp.data, 1))
    assert figures(sharp)["edge_sharpness"] == pytest.approx(1, abs=0.05)
    assert figures(head(grey=800))["edge_sharpness"] == pytest.approx(1, abs=0.05)
    assert figures(blurred)["edge_sharpness"] < 0.6


def test_tissue_deviation_counts_standard_deviations() -> None:
    """Hippocampus missing: its logarithm alone is far off."""
    without = np.where(np.isin(FOUND, labels.indices(structure="HIP")), 0, FOUND)
    mean, deviation = TISSUE_SHARES["HIP"]
    score = (np.log(1 / BALL.sum()) - mean) / deviation
    found = figures(segmentation=segmented(head(), found=without.astype(np.uint8)))
    expected = abs(score) / np.sqrt(len(TISSUE_SHARES))
    assert found["tissue_deviation"] == pytest.approx(expected, rel=0.01)


def test_half_a_brain() -> None:
    half = BALL & (np.indices(SHAPE)[0] < 40)
    found = (FOUND * half).astype(np.uint8)
    seen = figures(segmentation=segmented(head(), mask=half, found=found), registered_mask=half)
    assert seen["side_difference"] == 1 and seen["mask_asymmetry"] == 1
    assert seen["largest_cut_cm2"] == pytest.approx(np.pi * 6.6**2, rel=0.02)
    assert {"side_difference", "mask_asymmetry", "mask_overlap"} <= set(
        judge(seen, "warn")["flags"]
    )


def test_a_lost_slice() -> None:
    image = head()
    data = image.data.copy()
    data[:, :, 40] *= 0.3
    assert figures(image)["weakest_slice"] > 0.97
    assert figures(image.with_data(data))["weakest_slice"] == pytest.approx(0.3, abs=0.02)


def test_shear_and_rotation_are_told_from_each_other_and_from_scale() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    found = figures(to_scan=turn @ np.diag([1.1, 0.9, 1, 1]))
    assert found["affine_shear"] < 1e-12
    assert found["rotation_degrees"] == pytest.approx(np.degrees(np.arctan2(0.6, 0.8)))
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    assert figures(to_scan=turn @ sheared)["affine_shear"] == pytest.approx(0.2)


def test_clipping() -> None:
    image = head()
    found = figures(image.with_data(np.minimum(image.data, 990)))
    assert found["clipped_share"] == pytest.approx((image.data[BALL] >= 985).mean(), abs=0.01)
    assert figures(image)["clipped_share"] < 1e-4


def test_ghosts_in_the_air() -> None:
    """The head again, weakly and moved along y: seen in front of and behind the head."""
    image = head()
    ghost = image.with_data(image.data + 0.1 * np.roll(image.data, 40, 1))
    found, clean = figures(ghost), figures(image)
    assert clean["ghosting"] == pytest.approx(0, abs=1e-3) and 0.02 < found["ghosting"] < 0.1
    assert found["fber"] < 4 < clean["fber"]
    assert found["efc"] > clean["efc"]


def test_without_air_there_is_no_figure_of_it() -> None:
    found = figures(stripped=True)
    assert [found[name] for name in ("efc", "fber", "ghosting")] == [None] * 3
    assert judge(found, "warn")["passed"] is True
    full = Image(np.ones(SHAPE, np.float32), AFFINE)
    assert figures(full)["ghosting"] is None


# --- what is flagged ---


def scaled(factor: float) -> NDArray[np.float64]:
    return np.diag([factor, factor, factor, 1.0])


def turned(degrees: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[1:3, 1:3] = [[c, -s], [s, c]]
    return matrix


EMPTY = np.zeros(SHAPE, bool)
FLAT = Image(np.ones(SHAPE, np.float32), AFFINE)
NOISE = Image(np.random.default_rng(2).random(SHAPE), AFFINE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"registered": NOISE}, ["registration_correlation"]),
        ({"registered": FLAT}, ["registration_correlation"]),
        ({"registered_mask": np.roll(BALL, 8, 1)}, ["mask_overlap"]),
        ({"registered_mask": np.roll(BALL, 8, 0)}, ["mask_overlap", "mask_asymmetry"]),
        ({"to_scan": scaled(0.6)}, ["affine_determinant"]),
        ({"to_scan": scaled(1.3)}, ["affine_determinant"]),
        ({"to_scan": turned(60)}, ["rotation_degrees"]),
        ({"to_scan": np.diag([-1.0, 1, 1, 1])}, ["affine_determinant", "rotation_degrees"]),
        ({"field_range": (0.4, 2.5)}, ["bias_field_ratio"]),
        ({"scan": Image(FLAT.data, np.diag([1.0, 1, 6, 1]))}, ["largest_voxel_mm"]),
    ],
)
def test_flags(changes: dict[str, Any], expected: list[str]) -> None:
    assert flags(**changes) == expected


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_brains_that_are_too_small_or_too_large(factor: float) -> None:
    image = Image(head().data, np.diag([2 * factor] * 3 + [1]))
    assert "brain_volume_ml" in flags(image)


def test_nothing_where_something_should_be() -> None:
    """No tissue, an empty mask: the worst figures, all finite, and no crash."""
    nothing = np.zeros(SHAPE, np.uint8)
    found = figures(segmentation=segmented(FLAT, mask=EMPTY, found=nothing), corrected=FLAT,
                    registered=FLAT, registered_mask=EMPTY)  # fmt: skip
    assert all(value is None or np.isfinite(value) for value in found.values())
    assert {
        "registration_correlation", "mask_overlap", "brain_volume_ml", "tissue_deviation", "cnr",
        "weakest_slice", "edge_sharpness", "noise",
    } <= set(judge(found, "warn")["flags"])  # fmt: skip


# --- the prediction ---


def test_disagreement_and_the_ends_of_the_ages() -> None:
    adults, old = (20.0, 80.0), (42.0, 82.0)
    found = of_predictions(30, [(25, adults), (35, adults), (43, old)])
    assert found["model_disagreement_years"] == 10  # the third does not know people of 30
    assert found["years_within_trained_ages"] == 10
    nobodys = of_predictions(18, [(5, adults), (20, adults)])
    assert nobodys["model_disagreement_years"] == 15  # all extrapolate
    assert of_predictions(81, [(81, adults)], [None]) == {
        "model_disagreement_years": None, "years_within_trained_ages": -1,
        "distance_from_training": None,
    }  # fmt: skip
    assert of_predictions(50, [(50, adults)] * 3, [0.5, 2.5, None]) == {
        "model_disagreement_years": 0, "years_within_trained_ages": 30,
        "distance_from_training": 2.5,
    }  # fmt: skip
    assert of_predictions(81, [(81, adults), (81, old)])["years_within_trained_ages"] == 1
    assert judge(of_predictions(85, [(85, adults)]), "warn")["passed"] is True
    assert judge(of_predictions(95, [(95, adults), (90, adults)]), "warn")["flags"] == [
        "years_within_trained_ages"
    ]
    assert judge(of_predictions(50, [(80, adults), (40, adults)]), "warn")["flags"] == [
        "model_disagreement_years"
    ]
    assert set(of_predictions(None, []).values()) == {None}


# --- the verdict ---


def test_the_verdict_and_its_words() -> None:
    bad = {"cnr": 0.3, "mask_overlap": 0.612345, "ghosting": None, "snr": 0.0}
    found = judge(bad, "warn")
    assert found == {"passed": False, "flags": ["mask_overlap", "cnr"], **bad}
    assert judge(bad, "fail") == found
    assert judge(bad, "off") == {"passed": None, "flags": [], **bad}
    assert judge({"cnr": 2.0}, "warn") == {"passed": True, "flags": [], "cnr": 2.0}
    low = f"at least {LIMITS['mask_overlap'][0]:g}"
    assert words(found).startswith(f"mask_overlap 0.612 ({low}), cnr 0.3 (at least")


@pytest.mark.parametrize(("value", "passed"), [(0.0, False), (np.nan, False), (9.0, True)])
def test_what_is_not_a_number_does_not_pass(value: float, passed: bool) -> None:
    assert judge({"cnr": value}, "warn")["passed"] is passed


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
