"""Training the model of morphometry on what the participant level wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.contract import ModelError, MorphometryContract
from models.registry import load
from models.training.__main__ import main
from models.training.data import load_inputs, load_morphometry

Make = Callable[..., Path]
AGES = [22.0, 30, 38, 46, 54, 62, 70, 78]


def test_maps_are_read_at_4_mm_with_a_tight_strip_beside(make_derivatives: Make) -> None:
    data = load_morphometry([make_derivatives("one", [20.0, None])])
    assert (len(data.scans), data.skipped, data.template) == (1, 1, "MNI152NLin2009aSym")
    scan = data.scans[0]
    assert scan.image.shape[0] == 3 and scan.stripped is not None
    assert 0.7 < scan.image.sum(0).max() <= 0.75  # of what there is, in the made study
    fluid, bare = scan.image[2].sum(), scan.stripped[2].sum()
    assert bare < 0.5 * fluid


def test_a_model_is_trained_and_loads(make_derivatives: Make, tmp_path: Path) -> None:
    root, out = make_derivatives("one", AGES), tmp_path / "model"
    arguments = ["morphometry", "--data", str(root), "--out", str(out), "--folds", "4", "--whole"]
    assert main(arguments) == 0
    model = load("morphometry", weights=out)
    assert isinstance(model.card.contract, MorphometryContract) and len(model.networks) == 1
    data = load_inputs(model.card, [root])
    ages = [model.predict(scan.image.numpy()).predicted_age for scan in data.scans]
    assert torch.corrcoef(torch.tensor([ages, AGES]))[0, 1] > 0.8


def test_missing_maps_are_named(make_derivatives: Make) -> None:
    root = make_derivatives("one", [20.0])
    next(root.glob("sub-00/anat/*_label-WM_desc-modulated_probseg.nii.gz")).unlink()
    with pytest.raises(ModelError, match="label-WM_desc-modulated_probseg"):
        load_morphometry([root])


def test_several_templates_are_refused(make_derivatives: Make) -> None:
    roots = [make_derivatives(name, [20.0]) for name in ("one", "two")]
    for path in roots[1].glob("sub-00/anat/*"):
        path.rename(path.with_name(path.name.replace("MNI152NLin2009aSym", "Other")))
    with pytest.raises(ModelError, match="in several templates, MNI152NLin2009aSym and Other"):
        load_morphometry(roots)
