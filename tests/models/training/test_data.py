from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from models.contract import ModelError
from models.training.data import load_training_set

Make = Callable[..., Path]


def test_reads_scans_of_known_age(make_derivatives: Make) -> None:
    one = make_derivatives("one", [20.0, None, 40.5], repeats=2)
    two = make_derivatives("two", [60.0])
    data = load_training_set([one, two], "tissue")
    assert [scan.age for scan in data.scans] == [20.0, 20.0, 40.5, 40.5, 60.0]
    assert data.skipped == 2
    assert {scan.dataset for scan in data.scans} == {"one-raw", "two-raw"}
    assert data.template == "MNI152NLin2009aSym"
    assert data.shape == (20, 24, 20)
    assert data.affine[0] == (2, 0, 0, 0)


def test_the_same_label_in_two_data_sets_is_two_people(make_derivatives: Make) -> None:
    roots = [make_derivatives("one", [20.0]), make_derivatives("two", [60.0])]
    assert len({scan.person for scan in load_training_set(roots, "tissue").scans}) == 2


def test_images_are_scaled_by_the_rule(make_derivatives: Make) -> None:
    scan = load_training_set([make_derivatives("one", [20.0])], "tissue").scans[0]
    assert scan.image.dtype == torch.float16
    near_white, near_grey = scan.image[10, 12, 14].item(), scan.image[10, 12, 17].item()
    assert near_white == pytest.approx(1.0, abs=0.1)
    assert near_grey == pytest.approx(0.6, abs=0.1)
    assert scan.image[0, 0, 0] == 0


def test_tissue_maps_come_from_shares_with_a_tight_strip_beside(make_derivatives: Make) -> None:
    """The strip takes the fluid around the brain, and not that of the ventricle."""
    scan = load_training_set([make_derivatives("one", [20.0])], "tissue_map").scans[0]
    assert scan.stripped is not None
    column = scan.image[10, 12], scan.stripped[10, 12]
    middle, white, grey, rim = 10, 14, 17, 19
    there, bare = ([each[z].item() for z in (middle, white, grey, rim)] for each in column)
    assert there == pytest.approx([0.4, 0, 1, 0.4], abs=1e-3)
    assert bare == pytest.approx([0.4, 0, 1, 0.6], abs=1e-3)
    assert scan.image[0, 0, 0].item() == pytest.approx(0.6, abs=1e-3)


def test_a_missing_tissue_map_is_named(make_derivatives: Make) -> None:
    root = make_derivatives("one", [20.0])
    next(root.glob("sub-00/anat/*_label-CSF_probseg.nii.gz")).unlink()
    with pytest.raises(ModelError, match="label-CSF_probseg"):
        load_training_set([root], "tissue_map")
    load_training_set([root], "tissue")


def test_no_age_is_one_clear_error(make_derivatives: Make) -> None:
    with pytest.raises(ModelError, match="no scan of known age"):
        load_training_set([make_derivatives("one", [None])], "tissue")


def test_grids_must_agree(make_derivatives: Make) -> None:
    root = make_derivatives("one", [20.0, 30.0])
    path = next(root.glob("sub-01/anat/*_T1w.nii.gz"))
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    with pytest.raises(ModelError, match="different grids"):
        load_training_set([root], "tissue")


def test_a_damaged_image_is_named(make_derivatives: Make) -> None:
    root = make_derivatives("one", [20.0])
    path = next(root.glob("sub-00/anat/*_T1w.nii.gz"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="sub-00_run-1_space"):
        load_training_set([root], "tissue")


def test_pooled_images_are_means_of_blocks(make_derivatives: Make) -> None:
    data = load_training_set([make_derivatives("one", [20.0])], "tissue")
    pooled, whole = data.pooled(2), data.scans[0].image.float()
    assert pooled.scans[0].image.shape == (10, 12, 10)
    expected = whole[8:10, 10:12, 8:10].mean().item()
    assert pooled.scans[0].image[4, 5, 4].item() == pytest.approx(expected, abs=1e-3)
    assert pooled.fingerprint() == data.fingerprint() and pooled.content == data.content
    assert data.pooled(1) is data


def test_other_images_of_the_same_people_are_told_apart(make_derivatives: Make) -> None:
    root = make_derivatives("one", [20.0])
    data = load_training_set([root], "tissue")
    assert load_training_set([root], "tissue").content == data.content
    other = load_training_set([root], "fluid_bright")
    assert other.fingerprint() == data.fingerprint() and other.content != data.content
