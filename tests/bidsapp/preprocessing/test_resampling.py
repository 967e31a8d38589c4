"""Nothing moves: what lies at a place in mm lies there on every grid."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bidsapp.preprocessing import resampling
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.resampling import anti_alias, resample, same_view, to_working_grid

GRID = (40, 48, 40), from_matvec(np.eye(3) * 2, (-40, -48, -40))
PLACE = np.array([7.3, -11.2, 4.4])
FWHM = 2 * np.sqrt(2 * np.log(2))


def affine_of(zooms: tuple[float, ...], shape: tuple[int, ...], angle: float = 0) -> NDArray:
    """A grid of that voxel size, turned by `angle` degrees, whose middle is near 0 mm."""
    turn = Rotation.from_euler("xyz", (angle, -angle, angle / 2), degrees=True).as_matrix()
    linear = turn @ np.diag(zooms)
    return from_matvec(linear, linear @ -np.array(shape) / 2 + (1, -2, 3))


def positions(image: Image) -> NDArray[np.float64]:
    return apply_affine(image.affine, np.stack(np.indices(image.data.shape), -1))


def blob(
    shape: tuple[int, ...], affine: NDArray, centre: NDArray = PLACE, sigma: float = 5
) -> Image:
    """A Gaussian (sigma in mm) at a place in mm."""
    empty = Image(np.zeros(shape, np.float32), affine)
    distance = np.linalg.norm(positions(empty) - centre, axis=-1)
    return empty.with_data(np.exp(-(distance**2) / (2 * sigma**2)).astype(np.float32))


def centroid(image: Image) -> NDArray[np.float64]:
    return np.average(positions(image).reshape(-1, 3), axis=0, weights=image.data.ravel())


def spread(image: Image) -> float:
    """Standard deviation in mm, over the three directions."""
    away = positions(image).reshape(-1, 3) - centroid(image)
    return float(np.sqrt(np.average((away**2).mean(1), weights=image.data.ravel())))


def mass(image: Image) -> float:
    return float(image.data.sum()) * image.voxel_ml


@pytest.mark.parametrize(
    ("zooms", "shape", "angle"),
    [
        ((1, 1, 1), (80, 80, 80), 0),
        ((0.9, 1.2, 1), (91, 77, 83), 0),
        ((1, 0.8, 1.7), (80, 101, 49), 14),
        ((3, 2, 4), (30, 40, 21), -8),
    ],
)
def test_working_grid_keeps_places(zooms: tuple, shape: tuple, angle: float) -> None:
    scan = blob(shape, affine_of(zooms, shape, angle))
    working = to_working_grid(scan)
    np.testing.assert_allclose(working.zooms, 2, rtol=0.02)
    np.testing.assert_allclose(centroid(working), PLACE, atol=0.05)
    assert mass(working) == pytest.approx(mass(scan), rel=0.01)
    # the outer faces of the field of view, half a voxel outside the first and last centres
    for end in (0, 1):
        faces = [
            apply_affine(i.affine, np.array(i.data.shape) * end - 0.5) for i in (scan, working)
        ]
        np.testing.assert_allclose(*faces, atol=1e-9)


def test_a_2_mm_scan_is_its_own_working_grid() -> None:
    scan = blob(*GRID)
    assert to_working_grid(scan) is scan


def test_thin_scans_keep_enough_voxels_for_the_network() -> None:
    assert to_working_grid(blob((40, 40, 17), np.diag([1.0, 1, 1, 1]))).data.shape == (20, 20, 16)


def test_same_view_there_and_back() -> None:
    data = blob((50, 60, 55), affine_of((1, 1, 1), (50, 60, 55))).data
    back = same_view(same_view(data, (25, 31, 28)), data.shape)
    assert np.abs(back - data).max() < 0.06
    np.testing.assert_array_equal(same_view(data, data.shape), data)


TO_SCAN = from_matvec(
    Rotation.from_euler("xyz", (8, -12, 15), degrees=True).as_matrix() @ np.diag([1.1, 0.9, 1.05]),
    (9, -6, 4),
)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("zooms", "shape", "angle"),
    [((1, 1, 1), (110, 110, 110), 0), ((2.1, 0.8, 1.3), (55, 130, 83), 11)],
)
def test_resampling_follows_the_transform(
    zooms: tuple, shape: tuple, angle: float, order: int
) -> None:
    scan = blob(shape, affine_of(zooms, shape, angle), apply_affine(TO_SCAN, PLACE))
    found = resample(scan, TO_SCAN, *GRID, order=order)
    assert found.data.shape == GRID[0] and found.data.dtype == np.float32
    np.testing.assert_array_equal(found.affine, GRID[1])
    np.testing.assert_allclose(centroid(found), PLACE, atol=0.05)
    assert mass(found) == pytest.approx(mass(scan) / np.linalg.det(TO_SCAN[:3, :3]), rel=0.01)


def test_a_ramp_stays_a_ramp() -> None:
    """Every voxel inside the scan gets the value of its place; far outside it gets 0."""
    shape = (100, 90, 95)
    scan = Image(np.zeros(shape, np.float32), affine_of((0.9, 1, 1.1), shape, 7))
    slope = np.array([1.0, -2.0, 0.5])
    scan = scan.with_data((positions(scan) @ slope + 300).astype(np.float32))
    found = resample(scan, TO_SCAN, *GRID)
    there = apply_affine(TO_SCAN, positions(found))
    voxel = apply_affine(np.linalg.inv(scan.affine), there)
    inside = ((voxel > 10) & (voxel < np.array(shape) - 11)).all(-1)
    outside = ((voxel < -1) | (voxel > np.array(shape))).any(-1)
    assert inside.sum() > 10_000 and outside.sum() > 100
    np.testing.assert_allclose(found.data[inside], (there @ slope + 300)[inside], atol=0.02)
    assert (found.data[outside] == 0).all()


def test_only_the_part_that_is_needed_is_worked_on() -> None:
    """A grid within the scan: the same values as from all of it."""
    shape = (120, 120, 120)
    random = np.random.default_rng(3).random(shape, dtype=np.float32)
    scan = Image(random, affine_of((1, 1, 1), shape))
    low, high = resampling._needed(
        np.linalg.inv(scan.affine) @ TO_SCAN @ GRID[1], (20, 20, 20), shape
    )
    assert (high - low < 100).all()
    small = resample(scan, TO_SCAN, (20, 20, 20), GRID[1])
    large = resample(scan, TO_SCAN, *GRID)
    np.testing.assert_allclose(small.data, large.data[:20, :20, :20], atol=2e-3)


def test_a_grid_beside_the_scan_is_empty() -> None:
    scan = blob((40, 40, 40), affine_of((1, 1, 1), (40, 40, 40)))
    away = from_matvec(np.eye(3), (500, 0, 0))
    assert not resample(scan, away, *GRID).data.any()


def test_masks_stay_between_0_and_1() -> None:
    shape = (100, 100, 100)
    ball = blob(shape, affine_of((1, 1, 1), shape), np.zeros(3), 20)
    mask = ball.with_data((ball.data > 0.6).astype(np.float32))
    found = resample(mask, TO_SCAN, *GRID, order=1)
    assert found.data.min() >= 0 and found.data.max() <= 1 + 1e-6
    half = found.with_data((found.data > 0.5).astype(np.float32))
    assert mass(half) == pytest.approx(mass(mask) / np.linalg.det(TO_SCAN[:3, :3]), rel=0.02)


# --- anti-aliasing ---


def test_detail_that_the_grid_cannot_hold_is_removed_not_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stripes of 1.8 mm come back as slow waves from a grid of 2 mm, unless smoothed before."""
    shape = (120, 60, 60)
    scan = Image(np.zeros(shape, np.float32), affine_of((0.6, 1, 1), shape))
    stripes = scan.with_data(np.sin(positions(scan)[..., 0] * 2 * np.pi / 1.8).astype("f4"))

    def strongest() -> tuple[float, float]:
        found = resample(stripes, np.eye(4), *GRID).data[14:26, 14:30, 14:26]
        return float(np.abs(found).max()), float(np.abs(to_working_grid(stripes).data[4:-4]).max())

    assert max(strongest()) < 0.1
    monkeypatch.setattr(resampling, "anti_alias", lambda image, _target: image.data)
    assert min(strongest()) > 0.5


@pytest.mark.parametrize("target", [2, 3, 5])
def test_width_of_the_smoothing(target: float) -> None:
    shape = (60, 60, 60)
    fine = blob(shape, affine_of((1, 1, 1), shape), sigma=3)
    coarse = fine.with_data(anti_alias(fine, (target,) * 3))
    expected = np.sqrt(3**2 + (target**2 - 1) / FWHM**2)
    assert spread(coarse) == pytest.approx(expected, rel=0.01)


def test_nothing_is_smoothed_on_a_finer_grid() -> None:
    coarse = blob((20, 20, 20), affine_of((4, 4, 4), (20, 20, 20)))
    np.testing.assert_array_equal(anti_alias(coarse, (2, 2, 2)), coarse.data)
    thick = blob((40, 40, 14), affine_of((1, 1, 6), (40, 40, 14)))
    smooth = anti_alias(thick, (2, 2, 2))
    assert np.abs(smooth - thick.data).max() > 1e-3
    np.testing.assert_allclose(smooth.sum((0, 1)), thick.data.sum((0, 1)), rtol=0.01)
