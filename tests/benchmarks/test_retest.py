"""The same heads again: what is changed, and how the change of age is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import models
from benchmarks import retest
from bidsapp.demographics import Demographics
from bidsapp.study import Scan
from models import registry
from models.contract import Output
from models.prediction import BrainAgeModel


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
    frame = pd.DataFrame(
        {"person": who, "change": change, "age": both[who]}
        for change, both in ages.items()
        for who in (0, 1)
    )
    moves = retest.moves_of(frame)
    assert moves["shifted"].tolist() == [1, 3]
    assert set(moves.columns) == set(retest.CHANGES)
    assert not moves.drop(columns="shifted").to_numpy().any()


def test_ages_come_from_the_network_that_has_not_seen_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network k says 10 k; the second person was held out in fold 1."""

    class Says(torch.nn.Module):
        def __init__(self, age: float) -> None:
            super().__init__()
            self.age = torch.nn.Parameter(torch.tensor(age))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.age.expand(len(x))

    card = replace(models.card("wssa"), output=Output())
    contract = replace(card.image_contract, shape=(2, 2, 2))
    model = BrainAgeModel(replace(card, contract=contract), [Says(0.0), Says(10.0)])
    monkeypatch.setattr(registry, "read_card", lambda path: card)
    monkeypatch.setattr(registry, "load", lambda name, weights: model)
    table = "participant_id\tfold\nsub-0\t0\nsub-1\t1\n"
    (tmp_path / "out_of_fold.tsv").write_text(table)
    scans: Any = [
        SimpleNamespace(participant_id=f"sub-{who}", name=f"sub-{who}_acq-noisy", sex="F",
                        image=torch.zeros(2, 2, 2))
        for who in (0, 1)
    ]  # fmt: skip
    found = retest.ages_again(tmp_path, scans)
    assert found["age"].tolist() == [0, 10]
    assert found["change"].tolist() == ["noisy", "noisy"]
