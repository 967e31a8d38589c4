"""The same heads again: what is changed, and how the change of age is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import ablation, retest
from bidsapp.demographics import Demographics
from bidsapp.study import Scan


@pytest.fixture
def head() -> Any:
    """A box off the middle, 2 x 2 x 3 mm voxels."""
    voxels = np.zeros((40, 44, 30), np.float32)
    voxels[8:28, 10:34, 8:24] = 500
    return nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0]))


def middle(image: Any) -> np.ndarray:
    """Centre of mass, mm."""
    voxels = image.get_fdata()
    return np.argwhere(voxels > 250).mean(0) @ image.affine[:3, :3] + image.affine[:3, 3]


def test_every_change_changes_the_head_and_nothing_else(head: Any) -> None:
    before = head.get_fdata()
    for change in retest.CHANGES.values():
        again = change(head)
        assert again.shape == head.shape and np.array_equal(again.affine, head.affine)
        assert not np.array_equal(again.get_fdata(), before)
    assert np.array_equal(head.get_fdata(), before)


def test_it_is_turned_about_its_middle_by_ten_degrees(head: Any) -> None:
    turned = retest.rotated(head)
    of_grid = (np.array(head.shape) - 1) / 2 * [2, 2, 3]
    assert np.linalg.norm(middle(turned) - of_grid) == pytest.approx(
        np.linalg.norm(middle(head) - of_grid), abs=0.3
    )
    assert (turned.get_fdata() > 250).sum() == pytest.approx(
        (head.get_fdata() > 250).sum(), rel=0.02
    )
    points = np.argwhere(turned.get_fdata() > 250) * [2, 2, 3]
    longest = np.linalg.eigh(np.cov(points.T))[1]
    straight = np.linalg.eigh(np.cov((np.argwhere(head.get_fdata() > 250) * [2, 2, 3]).T))[1]
    angles = np.degrees(np.arccos(np.abs((longest * straight).sum(0)).clip(0, 1)))
    assert 8 < angles.max() < 18  # twice 10 degrees, about two axes


def test_int16_says_the_same_in_another_unit(head: Any, tmp_path: Path) -> None:
    nib.save(retest.int16(head), tmp_path / "a.nii.gz")
    saved = nib.load(tmp_path / "a.nii.gz")
    assert saved.get_data_dtype() == np.int16
    np.testing.assert_allclose(saved.get_fdata(), 3.7 * head.get_fdata(), atol=0.1)


def test_people_are_spread_over_ages() -> None:
    scans = [
        Scan(Path("x"), "", f"sub-{age}", None, f"sub-{age}", Demographics(age=float(age)))
        for age in (70, 20, 50, 30, 40, 60, 80)
    ]
    found = retest.spread_over_ages(scans, 3)
    assert [scan.demographics.age for scan in found] == [20, 50, 80]
    assert len(retest.spread_over_ages(scans, 99)) == 7


def test_moves_are_counted_against_the_scan_as_it_was() -> None:
    """Two people; the shifted scans are 1 and 3 years off, the others 0."""
    ages = {"asitwas": (30, 40), "rotated": (30, 40), "noisy": (30, 40), "int16": (30, 40),
            "shifted": (31, 37)}  # fmt: skip
    scans: Any = [
        SimpleNamespace(participant_id=f"sub-{who}", name=f"sub-{who}_acq-{change}_run-1", sex="F",
                        image=torch.full((1, 1, 1), float(both[who])))
        for change, both in ages.items() for who in (0, 1)
    ]  # fmt: skip
    model: Any = SimpleNamespace(
        predict=lambda image, sex: SimpleNamespace(predicted_age=float(image.mean()))
    )
    moves = ablation.moved(model, scans)
    assert moves["shifted"] == 2 and moves.drop("shifted").eq(0).all()
    assert set(moves.index) == set(retest.CHANGES)
