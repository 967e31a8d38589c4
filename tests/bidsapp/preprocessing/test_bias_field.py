"""A bias field that is known is removed, and tissue contrast stays."""

from __future__ import annotations

import json
from typing import Any

import ants
import numpy as np
import pytest
from numpy.typing import NDArray

from bidsapp.preprocessing import bias_field
from bidsapp.preprocessing.bias_field import correct_bias_field
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import same_view
from bidsapp.preprocessing.segmentation import Parts, Segmentation

SIDE = 56
GREY, WHITE = 600.0, 1000.0


def radius(side: int = SIDE) -> NDArray[np.float64]:
    """Distance from the middle, 1 at the faces."""
    axis = np.linspace(-1, 1, side)
    return np.sqrt(sum(each**2 for each in np.meshgrid(axis, axis, axis, indexing="ij")))


def known_field(side: int = SIDE) -> NDArray[np.float64]:
    """Smooth, 0.5 to 2 or so inside the brain."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    return np.exp(0.6 * x - 0.4 * y * z + 0.3 * np.cos(2 * z))


def head(field: NDArray | float = 1.0) -> Image:
    """White matter inside grey matter, noise, and a bright scalp around them; 2 mm."""
    r = radius()
    tissue = np.select([r < 0.55, r < 0.8, r < 0.9, r < 1.0], [WHITE, GREY, 100, 1500], 0)
    noise = np.random.default_rng(1).normal(0, 20, tissue.shape)
    data = np.clip(tissue * field + noise, 0, None).astype(np.float32)
    return Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))


def segmentation(working: Image) -> Segmentation:
    mask = radius() < 0.8
    labels = np.where(radius() < 0.55, 2, mask.astype(np.uint8))
    return Segmentation(working, Parts(labels, mask, mask), Parts(labels, mask, mask), {})


def cv(image: Image, where: NDArray[np.bool_]) -> float:
    """Coefficient of variation."""
    return float(image.data[where].std() / image.data[where].mean())


def test_a_known_field_is_removed() -> None:
    field, mask, white = known_field(), radius() < 0.8, radius() < 0.5
    biased = head(field)
    scan, working, record = correct_bias_field(biased, segmentation(biased))
    before, after, ideal = (cv(image, white) for image in (biased, scan, head()))
    assert before > 0.13
    assert after < 0.25 * before and after < ideal + 0.03
    found = biased.data[mask] / scan.data[mask]
    assert found.mean() == pytest.approx(1, abs=1e-3)
    assert np.corrcoef(found, field[mask])[0, 1] > 0.97
    # the tissues stay as far apart as they were
    grey = (radius() > 0.6) & (radius() < 0.75)
    ratio = scan.data[grey].mean() / scan.data[white].mean()
    assert ratio == pytest.approx(GREY / WHITE, abs=0.05)
    np.testing.assert_array_equal(working.data, scan.data)
    json.dumps(record)
    low, high = record["field_range"]
    assert 0.3 < low < 0.8 < 1.2 < high < 3


def test_without_a_field_little_is_changed() -> None:
    flat = head()
    scan, _, _ = correct_bias_field(flat, segmentation(flat))
    mask = radius() < 0.8
    np.testing.assert_allclose(scan.data[mask], flat.data[mask], rtol=0.12)


@pytest.fixture
def n4(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """N4 replaced by a step from 1 to 50, left to right; what it was given."""
    given: dict[str, Any] = {}

    def stub(image: ants.ANTsImage, mask: ants.ANTsImage, **keywords: Any) -> ants.ANTsImage:
        given.update(keywords, image=image, mask=mask)
        field = np.ones(image.shape, np.float32)
        field[SIDE // 2 :] = 50
        return ants.from_numpy(field, spacing=image.spacing)

    monkeypatch.setattr(bias_field.ants, "n4_bias_field_correction", stub)
    return given


def test_what_n4_is_given(n4: dict[str, Any]) -> None:
    """A mask of another type than float it would not take as one."""
    biased = head()
    biased.data[10:20] = 0
    correct_bias_field(biased, segmentation(biased))
    assert n4["mask"].pixeltype == n4["image"].pixeltype == "float"
    np.testing.assert_array_equal(n4["mask"].numpy(), radius() < 0.8)
    assert n4["image"].min() > 0  # its logarithm is taken
    assert n4["image"].spacing == n4["mask"].spacing == (2, 2, 2)
    assert n4["return_bias_field"] is True


def test_the_field_is_carried_to_a_finer_scan_and_bounded(n4: dict[str, Any]) -> None:
    working = head()
    fine = Image(same_view(working.data, (2 * SIDE,) * 3), np.diag([1.0, 1.0, 1.0, 1.0]))
    scan, corrected, _ = correct_bias_field(fine, segmentation(working))
    assert scan.data.shape == fine.data.shape and scan.affine is fine.affine
    with np.errstate(invalid="ignore", divide="ignore"):
        full, coarse = fine.data / scan.data, working.data / corrected.data
    # 1 and 50 over their mean, which is about 25, the lower one held at 0.4
    assert np.nanmin(coarse) == pytest.approx(0.4) and np.nanmax(coarse) == pytest.approx(
        1.96, abs=0.1
    )
    inside = np.isfinite(full)
    np.testing.assert_allclose(full[: SIDE - 2][inside[: SIDE - 2]], 0.4, rtol=1e-3)
    np.testing.assert_allclose(full[SIDE + 2 :][inside[SIDE + 2 :]], np.nanmax(coarse), rtol=1e-3)


def test_a_fit_that_runs_away_is_repeated_on_a_finer_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def stub(image: ants.ANTsImage, shrink_factor: int, **_keywords: Any) -> ants.ANTsImage:
        tried.append(shrink_factor)
        field = np.ones(image.shape, np.float32)
        if shrink_factor == 3:
            field[SIDE // 2] = 0.01
        return ants.from_numpy(field, spacing=image.spacing)

    monkeypatch.setattr(bias_field.ants, "n4_bias_field_correction", stub)
    flat = head()
    scan, _, record = correct_bias_field(flat, segmentation(flat))
    assert tried == [3, 2] and record["parameters"]["shrink_factor"] == 2
    np.testing.assert_array_equal(scan.data, flat.data)
