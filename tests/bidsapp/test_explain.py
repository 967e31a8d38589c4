"""Importance maps of a scan: what is to be made, and what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from bidsapp import explain, report
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.importance.brain import Brain
from bidsapp.importance.noise import NoiseModel, NoiseUNet
from bidsapp.preprocessing.image import Image
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan
from models.contract import (
    TISSUES,
    InputContract,
    ModelCard,
    MorphometryContract,
    Uncertainty,
    VolumeContract,
)
from models.linear.network import LinearMap
from models.prediction import BrainAgeModel
from models.wssa.network import WSSA

SHAPE = (24, 28, 24)
AFFINE = np.array([[7.0, 0, 0, -80], [0, 7, 0, -115], [0, 0, 7, -65], [0, 0, 0, 1]])
SCAN = Scan(Path("a"), "bids:raw:a", "sub-01", "ses-1", "sub-01_ses-1", Demographics())
METHODS = ("noise", "gradcam", "attention", "occlusion")
KEY = {"preprocessing": "image", "prediction": "image, models and person"}
RECORD = {"fingerprint": KEY, "predictions": {"wssa": {"weights_sha256": "ab" * 32}}}


@pytest.fixture
def model() -> BrainAgeModel:
    torch.manual_seed(0)
    contract = InputContract(
        "MNI152NLin2009aSym", 12, SHAPE, tuple(map(tuple, AFFINE.tolist())), True, True,
        "tissue", (20, 80),
    )  # fmt: skip
    card = ModelCard("wssa", "WSSA", "1", "None.", "CC0-1.0", "None.", contract,
                     Uncertainty(5, (-8, 8)), weights_sha256="ab" * 32)  # fmt: skip
    members: list[nn.Module] = [WSSA((4, 4, 4, 4, 4), (4, 4)).eval().requires_grad_(False)]
    return BrainAgeModel(card, members)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    explain.atlas_of.cache_clear()
    explain.load_atlas.cache_clear()
    explain.noise_model.cache_clear()
    labels = np.zeros(SHAPE, np.int16)
    labels[6:12, 8:14, 8:14], labels[12:18, 8:14, 8:14] = 1, 2
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "a.nii.gz")
    (tmp_path / "a.tsv").write_text("index\tname\themisphere\n1\tHalf\tL\n2\tHalf\tR\n")
    about = {"model": "wssa", "weights_sha256": "ab" * 32, "scans": 50,
             "options": {"channels": [8, 8]}}  # fmt: skip
    torch.manual_seed(1)
    network = NoiseUNet((8, 8), SHAPE).eval()
    nn.init.normal_(network.head.weight)
    (tmp_path / "n.safetensors").write_bytes(NoiseModel(network, about).to_bytes())
    return Settings(
        tmp_path / "in", tmp_path / "out", ("participant",), importance=METHODS, device="cpu",
        atlas=(str(tmp_path / "a.nii.gz"), str(tmp_path / "a.tsv")),
        noise_model=(str(tmp_path / "n.safetensors"),),
    )  # fmt: skip


def what() -> explain.Explained:
    place = np.indices(SHAPE) - np.reshape([11.5, 13.5, 11.5], (3, 1, 1, 1))
    mask = (place**2).sum(0) < 100
    image = (np.random.default_rng(1).random(SHAPE) * mask).astype(np.float32)
    view = explain.View(Brain(image, mask, None), np.eye(4), mask)
    return explain.Explained(SCAN, lambda _name: view, Image(1.0 * mask, AFFINE), "image")


def derivatives(settings: Settings) -> Derivatives:
    return Derivatives(settings.output_dir, settings.bids_dir, settings.template)


def test_every_method_that_fits_the_model_is_written_once(
    settings: Settings, model: BrainAgeModel
) -> None:
    out, models = derivatives(settings), {"wssa": model}
    todo = explain.wanted(SCAN, KEY, models, settings, out)
    assert set(todo) == {("wssa", "noise"), ("wssa", "gradcam"), ("wssa", "occlusion")}
    explain.write_maps(what(), todo, models, settings, out)
    for (name, method), fingerprint in todo.items():
        path = out.importance(SCAN, name, method)
        values, affine = out.read_image(path)
        np.testing.assert_array_equal(affine, AFFINE)
        mask = what().views("wssa").mask
        assert values.shape == SHAPE and values[mask].any() and not values[~mask].any()
        about = out.read_sidecar(path)
        assert about["Fingerprint"] == fingerprint and about["Method"] == method
        assert [row["rank"] for row in about["Regions"]] == [1, 2]
        assert about["Units"] == ("years" if method == "occlusion" else "arbitrary")
    layers = list(out.root.glob("sub-01/ses-1/anat/*desc-wssagradcamlayer*_importance.nii.gz"))
    assert len(layers) == 5
    assert explain.wanted(SCAN, KEY, models, settings, out) == {}
    for changed in KEY:
        assert set(explain.wanted(SCAN, KEY | {changed: "other"}, models, settings, out)) == set(
            todo
        )
    sections = report._map_sections("sub-01", SCAN.stem, RECORD, out)
    assert [section.title for section in sections] == [
        f"{method}, WSSA (Kancharla & Sinha 2024)" for method in ("Gradcam", "Noise", "Occlusion")
    ]
    assert all(section.picture and section.bars for section in sections)


@pytest.mark.parametrize(
    "record",
    [
        RECORD | {"fingerprint": KEY | {"preprocessing": "another image"}},
        RECORD | {"predictions": {"wssa": {"weights_sha256": "cd" * 32}}},
        RECORD | {"predictions": {}},
        {},
    ],
)
def test_a_page_leaves_out_maps_of_another_image_or_of_other_weights(
    settings: Settings, model: BrainAgeModel, record: dict[str, Any]
) -> None:
    out, noise = derivatives(settings), replace(settings, importance=("noise",))
    todo = explain.wanted(SCAN, KEY, {"wssa": model}, noise, out)
    explain.write_maps(what(), todo, {"wssa": model}, noise, out)
    assert report._map_sections("sub-01", SCAN.stem, RECORD, out)
    assert report._map_sections("sub-01", SCAN.stem, record, out) == []


def test_a_map_that_does_not_name_its_image_is_left_out_and_made_again(
    settings: Settings, model: BrainAgeModel
) -> None:
    out, noise = derivatives(settings), replace(settings, importance=("noise",))
    todo = explain.wanted(SCAN, KEY, {"wssa": model}, noise, out)
    explain.write_maps(what(), todo, {"wssa": model}, noise, out)
    path = out.importance(SCAN, "wssa", "noise")
    values, affine = out.read_image(path)
    older = out.read_sidecar(path)
    del older["PreprocessingFingerprint"]
    out.write_image(path, values, affine, older, np.float32)
    assert report._map_sections("sub-01", SCAN.stem, RECORD, out) == []
    assert explain.wanted(SCAN, KEY, {"wssa": model}, noise, out) == todo


def test_without_an_atlas_maps_are_made_but_no_tables(
    settings: Settings, model: BrainAgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "atlas_of", lambda files, template: (None, "It cannot be had."))
    out = derivatives(settings)
    todo = explain.wanted(SCAN, KEY, {"wssa": model}, settings, out)
    assert set(todo) == {("wssa", "noise"), ("wssa", "gradcam")}
    explain.write_maps(what(), todo, {"wssa": model}, settings, out)
    about = out.read_sidecar(out.importance(SCAN, "wssa", "noise"))
    assert about["Atlas"] is None and about["AtlasMissing"] == "It cannot be had."
    sections = report._map_sections("sub-01", SCAN.stem, RECORD, out)
    assert not sections[0].bars and "No table of regions. It cannot be had." in sections[0].words


@pytest.mark.parametrize("level", ["participant", "group"])
def test_a_bad_noise_model_is_found_before_there_is_anything_to_map(
    settings: Settings, tmp_path: Path, level: str
) -> None:
    (tmp_path / "n.safetensors").write_bytes(b"no noise model")
    with pytest.raises(UserError, match=r"--noise-model .*n\.safetensors cannot be used: .*\.$"):
        explain.lacking(settings, level)
    assert explain.lacking(replace(settings, importance=("gradcam",)), level) == []


def test_noise_without_a_noise_model_is_left_out(settings: Settings, model: BrainAgeModel) -> None:
    other = replace(settings, noise_model=(), importance=("noise",))
    assert explain.wanted(SCAN, KEY, {"wssa": model}, other, derivatives(other)) == {}


def test_a_model_of_volumes_is_left_out_and_it_is_said(
    settings: Settings, model: BrainAgeModel, caplog: pytest.LogCaptureFixture
) -> None:
    explain._say_once.cache_clear()
    card = replace(model.card, name="volumes", contract=VolumeContract(("brain",), (20, 80)))
    volumes = {"volumes": replace(model, card=card)}
    assert explain.wanted(SCAN, KEY, volumes, settings, derivatives(settings)) == {}
    assert caplog.messages == [explain.NO_IMAGE.format("volumes")]


def test_maps_of_a_model_that_sees_warped_tissue(settings: Settings, tmp_path: Path) -> None:
    """Its places are those of the template, at 4 mm, and come back to the written grid."""
    fine, grid = (91, 109, 91), (46, 55, 46)
    affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    network = LinearMap((3, *grid), power=0.5)
    network.weight.data[1, 20:26, 25:31, 20:26] = 0.01
    contract = MorphometryContract("MNI152NLin2009aSym", TISSUES, grid, (20, 80))
    card = ModelCard("morphometry", "M", "1", "None.", "CC0-1.0", "None.", contract,
                     Uncertainty(5, (-8, 8)), weights_sha256="ab" * 32)  # fmt: skip
    model = BrainAgeModel(card, [network.eval().requires_grad_(False)])
    place = np.indices(fine) - np.reshape([45, 54, 45], (3, 1, 1, 1))
    white = ((place**2).sum(0) < 30**2).astype(np.float32)
    modulated = np.stack([0 * white, 0.9 * white, 0 * white])
    modulated[1, 40:72, 50:62, 40:52] *= 0.6  # less than around it, in both regions
    view = explain.view_of_tissue(modulated, None)
    assert view.brain.image.shape == (3, *grid) and view.brain.mask.shape == grid
    labels = np.zeros(fine, np.int16)
    labels[40:52, 50:62, 40:52], labels[60:72, 50:62, 40:52] = 1, 2
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "a.nii.gz")
    what = explain.Explained(SCAN, lambda _name: view, Image(white, affine), "image")
    out, models = derivatives(settings), {"morphometry": model}
    ours = replace(settings, importance=("occlusion", "gradcam", "attention"))
    todo = explain.wanted(SCAN, KEY, models, ours, out)
    assert set(todo) == {("morphometry", "occlusion")}
    explain.write_maps(what, todo, models, ours, out)
    path = out.importance(SCAN, "morphometry", "occlusion")
    values, found = out.read_image(path)
    np.testing.assert_array_equal(found, affine)
    assert values.shape == fine and not values[white == 0].any()
    assert abs(values[46, 56, 46]) > 10 * abs(values[66, 56, 46])
    about = out.read_sidecar(path)
    assert "the template's tissue in the region" in about["Description"]
    assert about["Description"].endswith("of tissue that was warped to the template")
    assert [s.split("label-")[1][:3] for s in about["Sources"]] == ["GM_", "WM_", "CSF"]


def test_a_shipped_noise_model_of_other_weights_is_left_out_and_named(
    settings: Settings, model: BrainAgeModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    explain._say_once.cache_clear()
    (tmp_path / "wssa").mkdir()
    (tmp_path / "n.safetensors").rename(tmp_path / "wssa" / explain.NOISE_WEIGHTS)
    monkeypatch.setattr(explain.registry, "FOLDER", tmp_path)
    ours = replace(settings, noise_model=(), importance=("noise",))
    assert explain.wanted(SCAN, KEY, {"wssa": model}, ours, derivatives(ours))
    explain.noise_model.cache_clear()
    other = replace(model, card=replace(model.card, weights_sha256="cd" * 32))
    assert explain.wanted(SCAN, KEY, {"wssa": other}, ours, derivatives(ours)) == {}
    assert "comes with wssa belongs to other weights than those in use" in caplog.text


def test_a_map_of_another_grid_comes_back_to_its_place() -> None:
    coarse = np.zeros((12, 14, 12), np.float32)
    coarse[3, 5, 7] = 1
    everywhere = np.ones(SHAPE, bool)
    view = explain.View(Brain(coarse, coarse > 0), np.diag([0.5, 0.5, 0.5, 1]), everywhere)
    found = view.on_standard(coarse)
    assert np.unravel_index(found.argmax(), SHAPE) == (6, 10, 14)
    assert found.max() == 1


@pytest.mark.parametrize("changed", ["labels", "affine", "names"])
def test_maps_are_made_again_with_another_atlas(
    settings: Settings, model: BrainAgeModel, tmp_path: Path, changed: str
) -> None:
    out, occlusion = derivatives(settings), replace(settings, importance=("occlusion",))
    before = explain.wanted(SCAN, KEY, {"wssa": model}, occlusion, out)
    path, table = tmp_path / "a.nii.gz", tmp_path / "a.tsv"
    labels = np.asarray(nib.load(path).dataobj)
    if changed == "names":
        table.write_text(table.read_text().replace("Half", "Side"))
    else:
        other = labels[::-1] if changed == "labels" else labels
        affine = AFFINE + 1.0 * (changed == "affine") * np.eye(4, k=3)
        nib.save(nib.Nifti1Image(other, affine), path)
    explain.atlas_of.cache_clear()
    explain.load_atlas.cache_clear()
    after = explain.wanted(SCAN, KEY, {"wssa": model}, occlusion, out)
    assert after.keys() == before.keys() and after != before
