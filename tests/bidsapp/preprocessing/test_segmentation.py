"""From a head to its brain, with a network that reads labels off intensities."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bidsapp.errors import ScanError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.segmentation import Segmentation, segment
from models.segmentation import labels
from models.segmentation.labels import HEMISPHERE_CHANNEL, OUTER_CSF, STRUCTURES

NUMBER = {structure.abbreviation: n for n, structure in enumerate(STRUCTURES)}
LEVELS = {"BG": 0.0, "CSF": 0.2, "LV": 0.4, "CTX": 0.6, "WM": 1.0}
SKULL = 0.8
RADII = {"LV": 12, "WM": 36, "CTX": 46, "CSF": 50, "gap": 54, "skull": 72}  # mm


class Thresholds(nn.Module):
    """Names the structure whose level is nearest; left is what lies in the first half of x."""

    multiple = 1

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((1, HEMISPHERE_CHANNEL + 1, *image.shape[2:]), -60.0)
        for name, level in LEVELS.items():
            logits[:, NUMBER[name]] = -40 * (image[:, 0] - level).abs()
        # skull is background too
        skull = -40 * (image[:, 0] - SKULL).abs()
        logits[:, 0] = torch.maximum(logits[:, 0], skull)
        x = torch.linspace(20, -20, image.shape[2])
        logits[:, -1] = x[:, None, None]
        return logits


def distance(shape: tuple[int, ...], zooms: tuple[float, ...]) -> NDArray[np.float64]:
    """From the middle of the field of view, mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * zoom for n, zoom in zip(shape, zooms, strict=True)]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def head(
    shape: tuple[int, int, int] = (80, 82, 84),
    zooms: tuple[float, float, float] = (2, 2, 2),
    parts: tuple[str, ...] = tuple(RADII),
) -> Image:
    """Spheres in each other, in units of 700 per white matter; `parts` that are there."""
    r = distance(shape, zooms)
    data = np.zeros(shape, np.float32)
    for name in ("skull", "gap", "CSF", "CTX", "WM", "LV"):
        if name in parts:
            data[r < RADII[name]] = {"skull": SKULL, "gap": 0}.get(name, LEVELS.get(name, 0))
    return Image(data * 700, np.diag([*zooms, 1.0]))


BRAIN = ("CTX", "WM", "LV")


def segmented(scan: Image, strip: str = "auto") -> tuple[Segmentation, dict]:
    found, record = segment(scan, Thresholds(), strip)
    assert found.on_scan.mask.shape == found.on_scan.labels.shape == scan.data.shape
    assert found.on_working.mask.shape == found.on_working.labels.shape == found.working.data.shape
    assert record["parameters"]["skull_strip_t1w"] == strip
    json.dumps(record)
    return found, record


def ball_ml(outer: float, inner: float = 0) -> float:
    return 4 / 3 * np.pi * (outer**3 - inner**3) / 1000


def dice(a: NDArray, b: NDArray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_head_is_stripped_and_measured() -> None:
    scan = head()
    found, record = segmented(scan)
    assert record["already_stripped"] is False and 0.2 < record["filled_fraction"] < 0.5
    brain = distance(scan.data.shape, scan.zooms) < RADII["CTX"]
    np.testing.assert_array_equal(found.on_scan.mask, brain)
    np.testing.assert_array_equal(found.on_working.mask, brain)
    enclosed = distance(scan.data.shape, scan.zooms) < RADII["CSF"]
    np.testing.assert_array_equal(found.on_scan.intracranial, enclosed)
    np.testing.assert_array_equal(found.on_working.intracranial, enclosed)
    np.testing.assert_array_equal(found.on_scan.labels, found.on_working.labels)
    assert found.working is scan
    volumes = found.volumes_ml
    assert volumes["brain"] == pytest.approx(ball_ml(46), rel=0.01)
    assert volumes["gray_matter"] == volumes["cortex"]
    assert volumes["cortex"] == pytest.approx(ball_ml(46, 36), rel=0.02)
    assert volumes["white_matter"] == pytest.approx(ball_ml(36, 12), rel=0.02)
    assert volumes["ventricles"] == pytest.approx(ball_ml(12), rel=0.06)
    assert volumes["csf"] == pytest.approx(ball_ml(50, 46), rel=0.05)


def test_left_is_left() -> None:
    found, _ = segmented(head())
    left = [label.index for label in labels.LABELS if label.hemisphere == "L"]
    right = [label.index for label in labels.LABELS if label.hemisphere == "R"]
    middle = found.on_scan.labels.shape[0] // 2
    assert (
        np.isin(found.on_scan.labels[:middle], left).any()
        and np.isin(found.on_scan.labels[middle:], right).any()
    )
    assert not np.isin(found.on_scan.labels[:middle], right).any()  # axes run to the right
    assert not np.isin(found.on_scan.labels[middle:], left).any()
    both = found.volumes_ml
    assert both["left_cerebral_cortex"] == both["right_cerebral_cortex"] == both["cortex"] / 2
    assert both["left_lateral_ventricle"] > 0 and both["left_hippocampus"] == 0
    assert "outer_cerebrospinal_fluid" not in both


@pytest.mark.parametrize("rim", [(), ("CSF",)], ids=["tight", "with outer fluid"])
def test_a_stripped_image_keeps_its_own_mask(rim: tuple[str, ...]) -> None:
    scan = head(parts=BRAIN + rim)
    hole = (slice(38, 40),) * 3
    scan.data[hole] = 0  # inside the brain
    found, record = segmented(scan)
    assert record["already_stripped"] is True and record["filled_fraction"] > 0.95
    expected = scan.data > 0
    expected[hole] = True
    for parts in (found.on_scan, found.on_working):
        np.testing.assert_array_equal(parts.mask, expected)
        np.testing.assert_array_equal(parts.intracranial, expected)
    assert found.volumes_ml["csf"] is None  # what was cut off is not known
    assert found.volumes_ml["brain"] == pytest.approx(expected.sum() * 0.008)


def test_force_strips_what_is_stripped() -> None:
    scan = head(parts=(*BRAIN, "CSF"))
    found, record = segmented(scan, "force")
    assert record["already_stripped"] is False
    r = distance(scan.data.shape, scan.zooms)
    np.testing.assert_array_equal(found.on_scan.mask, r < RADII["CTX"])
    np.testing.assert_array_equal(found.on_scan.intracranial, r < RADII["CSF"])
    assert found.volumes_ml["csf"] == pytest.approx(ball_ml(50, 46), rel=0.05)


def test_skip_takes_everything_that_is_not_zero() -> None:
    found, record = segmented(head(), "skip")
    assert record["already_stripped"] is True
    whole = distance((80, 82, 84), (2, 2, 2)) < RADII["skull"]
    np.testing.assert_array_equal(found.on_scan.mask, whole)
    assert found.volumes_ml["csf"] is None


@pytest.mark.parametrize("strip", ["auto", "force"])
@pytest.mark.parametrize("parts", [tuple(RADII), BRAIN], ids=["head", "stripped"])
def test_labels_come_back_to_the_grid_of_the_scan(parts: tuple[str, ...], strip: str) -> None:
    """A scan of 1 x 1.2 x 3 mm: mask and labels lie where they are, at its own resolution."""
    shape, zooms = (160, 132, 56), (1.0, 1.2, 3.0)
    scan = head(shape, zooms, parts)
    found, _ = segmented(scan, strip)
    np.testing.assert_allclose(found.working.zooms, 2, rtol=0.02)
    r = distance(shape, zooms)
    assert dice(found.on_scan.mask, r < RADII["CTX"]) > 0.98
    assert dice(found.on_scan.intracranial, r < RADII["CSF" if "CSF" in parts else "CTX"]) > 0.97
    white = np.isin(found.on_scan.labels, labels.indices(structure="WM"))
    assert dice(white, (r < RADII["WM"]) & (r > RADII["LV"])) > 0.95
    assert not (found.on_scan.labels[r > RADII["CSF"] + 8] > OUTER_CSF).any()
    # both grids tell the same volume
    native_ml = found.on_scan.mask.sum() * scan.voxel_ml
    assert found.volumes_ml["brain"] == pytest.approx(native_ml, rel=0.02)


def test_holes_belong_to_the_brain_on_every_grid() -> None:
    scan = head()
    scan.data[38:41, 38:41, 38:41] = 0
    found, _ = segmented(scan, "force")
    assert (found.on_scan.labels[39, 39, 39], found.on_scan.mask[39, 39, 39]) == (0, True)
    np.testing.assert_array_equal(found.on_scan.mask, found.on_working.mask)


def test_islands_outside_the_brain_are_no_brain() -> None:
    scan = head()
    scan.data[2:6, 2:6, 2:6] = 700 * LEVELS["WM"]  # a fatty neck
    found, _ = segmented(scan)
    assert not found.on_scan.mask[:8, :8, :8].any() and not found.on_scan.labels[:8, :8, :8].any()
    assert not found.on_working.labels[:8, :8, :8].any()


def test_fluid_that_does_not_touch_the_brain_is_not_in_its_mask() -> None:
    scan = head()
    scan.data[2:6, 2:6, 2:6] = 700 * LEVELS["CSF"]  # an eye
    found, _ = segmented(scan)
    assert (found.on_scan.labels[2:6, 2:6, 2:6] == OUTER_CSF).any()
    assert not found.on_scan.intracranial[:8, :8, :8].any()
    assert not found.on_working.intracranial[:8, :8, :8].any()


class Nothing(Thresholds):
    """Sees background everywhere."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(image))


@pytest.mark.parametrize("strip", ["auto", "skip", "force"])
def test_no_brain_is_a_fault_of_the_scan(strip: str) -> None:
    with pytest.raises(ScanError, match=r"no brain was found .*; check .*\.$"):
        segment(head(), Nothing(), strip)


def test_a_tiny_brain_is_none() -> None:
    small = head(zooms=(1, 1, 1))  # of 400 ml
    assert segment(small, Thresholds(), "auto")[0].volumes_ml["brain"] > 300
    smaller = Image(small.data, np.diag([0.85, 0.85, 0.85, 1]))
    with pytest.raises(ScanError, match="less than 300 ml"):
        segment(smaller, Thresholds(), "auto")
