"""Corruptions do what their names say, in proportion to their strength."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.corruptions import KINDS, Head

SHAPE = (48, 56, 40)
AFFINE = np.diag([4.0, 3.0, 4.0, 1.0])


def head(stripped: bool = False) -> Head:
    """A ball of 1000 with a core of 600, in a shell of 300 unless it is stripped."""
    x, y, z = np.ix_(*[(np.arange(n) - (n - 1) / 2) * d for n, d in zip(SHAPE, (4, 3, 4))])
    away = np.sqrt(x**2 + y**2 + z**2)
    shell = 0 if stripped else 300
    data = np.select([away < 30, away < 55, away < 68], [600, 1000, shell], 0).astype(np.float32)
    return Head(data, AFFINE, away < 55)


def spoilt(kind: str, strength: float, given: Head | None = None) -> Head:
    return KINDS[kind][0](given or head(), strength, np.random.default_rng(1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_a_scan_and_is_the_same_each_time(kind: str) -> None:
    strength = KINDS[kind][1][-1]
    before, after, again = head(), spoilt(kind, strength), spoilt(kind, strength)
    assert after.data.dtype == np.float32 and np.isfinite(after.data).all()
    assert after.inside.shape == after.data.shape
    np.testing.assert_array_equal(after.data, again.data)
    same = after.data.shape == before.data.shape and np.array_equal(after.data, before.data)
    if kind == "mirror":  # of a symmetric head
        assert same
    else:
        assert not same or not np.array_equal(after.affine, before.affine)


@pytest.mark.parametrize("kind", ["motion", "blur", "noise", "bias", "missing_slices",
                                  "wrong_contrast", "masked_away", "clipped"])  # fmt: skip
def test_the_stronger_the_further_from_the_truth(kind: str) -> None:
    truth = head().data
    errors = [np.abs(spoilt(kind, s).data - truth).mean() for s in KINDS[kind][1]]
    assert 0 <= errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("kind", ["motion", "blur", "noise", "ct"])
def test_what_was_stripped_off_stays_away(kind: str) -> None:
    given = head(stripped=True)
    assert given.stripped and not head().stripped
    found = spoilt(kind, KINDS[kind][1][-1], given)
    assert not found.data[given.data == 0].any()


def test_noise_has_its_size() -> None:
    found, before = spoilt("noise", 0.1), head()
    size = 0.1 * before.white * np.sqrt(8 / 48)
    core = before.data == 1000
    assert (found.data - before.data)[core].std() == pytest.approx(size, rel=0.1)


def test_a_bias_field_has_its_range() -> None:
    found, before = spoilt("bias", 6), head()
    ratio = (found.data / np.maximum(before.data, 1))[before.inside]
    low, high = np.percentile(ratio, (1, 99))
    assert high / low == pytest.approx(6, rel=0.05)


def test_wrong_labels_move_no_intensity() -> None:
    before = head()
    for strength in (1, 2, 3):
        found = spoilt("orientation", strength)
        np.testing.assert_array_equal(np.sort(found.data, None), np.sort(before.data, None))
    assert spoilt("orientation", 3).zooms.tolist() == [4, 4, 3]
    assert spoilt("voxel_size", 1.3).zooms.tolist() == pytest.approx([4, 3, 5.2])


def test_how_much_is_lost() -> None:
    before = head()
    found = spoilt("masked_away", 0.3)
    assert (found.data[before.inside] == 0).mean() == pytest.approx(0.3, abs=0.05)
    cropped = spoilt("cropped_vertex", 20)
    top = np.flatnonzero(before.inside.any((0, 1))).max()
    assert cropped.data.shape == (*SHAPE[:2], top + 1 - 5)
    dark = (spoilt("missing_slices", 0.15).data == 0).all((0, 1)) & before.inside.any((0, 1))
    assert dark.sum() == round(0.15 * before.inside.any((0, 1)).sum())


def test_contrast_is_turned_round() -> None:
    found, before = spoilt("wrong_contrast", 1), head()
    white, core = (found.data[before.data == value].mean() for value in (1000, 600))
    assert white < core
    np.testing.assert_array_equal(found.data[~before.inside], before.data[~before.inside])
