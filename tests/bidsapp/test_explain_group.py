"""Importance maps of a group: from images on disk to maps, tables and remarks.

A tiny cohort on a coarse grid, whose age is the brightness of the left hemisphere's front.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import models
from bidsapp import explain, explain_group, noise_models
from bidsapp.derivatives import Derivatives
from bidsapp.importance import noise as noise_method
from bidsapp.importance.noise import NoiseModel
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan
from models.contract import (
    TISSUES,
    InputContract,
    ModelCard,
    MorphometryContract,
    Output,
    Uncertainty,
)
from models.prediction import BrainAgeModel

SHAPE = (24, 28, 24)
AFFINE = np.array([[7.0, 0, 0, -80], [0, 7, 0, -115], [0, 0, 7, -65], [0, 0, 0, 1]])
FRONT = (slice(7, 10), slice(16, 19), slice(9, 12))
OPTIONS = noise_method.Options(steps=40, batch=2, channels=(8, 8), learning_rate=1e-2)


class Front(nn.Module):
    """Says the mean intensity of one place."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(1, 1, *SHAPE)
        weight[(0, 0, *FRONT)] = 1
        self.weight = nn.Parameter(weight / weight.sum(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum((1, 2, 3, 4))


def the_model() -> BrainAgeModel:
    contract = InputContract(
        "MNI152NLin2009aSym", 12, SHAPE, tuple(map(tuple, AFFINE.tolist())), True, True,
        "white_matter", (20, 80),
    )  # fmt: skip
    card = ModelCard(
        "front", "Front", "1", "None.", "CC0-1.0", "None.", contract, Uncertainty(5, (-8, 8)),
        Output(0, 100), "ab" * 32,
    )  # fmt: skip
    return BrainAgeModel(card, [Front().eval()])


def scan(number: int) -> Scan:
    name = f"sub-{number:02d}"
    return Scan(Path(name), f"bids:raw:{name}_T1w.nii.gz", name, None, name, Demographics())


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Function (number, **settings) that writes what the participant level leaves."""
    monkeypatch.setattr(models, "embedded", lambda: ["front"])
    monkeypatch.setattr(models, "load", lambda name, device, path=None: the_model())
    monkeypatch.setattr(noise_method, "Options", lambda **chosen: replace(OPTIONS, **chosen))
    explain.atlas_of.cache_clear()
    explain.noise_model.cache_clear()

    def make(number: int, **options: Any) -> Settings:
        settings = Settings(
            tmp_path / "gone", tmp_path / "out", ("group",), atlas=atlas(tmp_path), device="cpu",
            **options,
        )  # fmt: skip
        out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
        rng = np.random.default_rng(1)
        place = np.indices(SHAPE) - np.reshape([11.5, 14, 10], (3, 1, 1, 1))
        mask = (place**2).sum(0) < 100
        for person in range(number):
            age = 20 + 30 * person / max(1, number - 1)
            image = rng.normal(80, 4, SHAPE) * mask
            image[FRONT] += (age - 35) / 2.5
            out.write_image(out.preproc(scan(person)), image, AFFINE, {}, np.float32)
            out.write_image(out.template_mask(scan(person)), mask, AFFINE, {}, np.uint8)
            for tissue in TISSUES:
                grey = mask * float(tissue == "GM")
                for path in (out.tissue, out.modulated):
                    out.write_image(path(scan(person), tissue), grey, AFFINE, {}, np.float32)
            record = {
                "participant_id": scan(person).participant_id, "session_id": None, "age": age,
                "source": scan(person).source, "sex": "F", "quality": {"passed": True},
                "predictions": {"front": {"weights_sha256": "ab" * 32}},
                "steps": [{"step": "intensity",
                           "levels": {"cortex": 60.0, "white_matter": 100.0}}],
                "fingerprint": {"preprocessing": str(person)},
            }  # fmt: skip
            out.write_json(out.record(scan(person)), record)
        return settings

    return make


def atlas(folder: Path) -> tuple[str, str]:
    """Front and back, each with two sides."""
    labels = np.zeros(SHAPE, np.int16)
    labels[FRONT] = 1
    labels[(slice(14, 17), *FRONT[1:])] = 2
    labels[7:10, 9:12, 9:12], labels[14:17, 9:12, 9:12] = 3, 4
    image, table = folder / "atlas.nii.gz", folder / "atlas.tsv"
    nib.save(nib.Nifti1Image(labels, AFFINE), image)
    table.write_text("index\tname\themisphere\n1\tFront\tL\n2\tFront\tR\n3\tBack\tL\n4\tBack\tR\n")
    return str(image), str(table)


def run(settings: Settings) -> tuple[Derivatives, list[str]]:
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    return out, explain_group.population(settings, out)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_the_map_of_a_cohort_and_what_goes_with_it(study: Callable[..., Settings]) -> None:
    out, remarks = run(study(24))
    assert remarks == []
    path = out.group_importance("front", "noise")
    values, affine = out.read_image(path)
    np.testing.assert_array_equal(affine, AFFINE)
    assert values.dtype == np.float32 and values[FRONT].mean() > 2 * values[values > 0].mean()
    about = out.read_sidecar(path)
    assert about["Scans"] == 24 and about["Model"] == "front" and about["Method"] == "noise"
    assert about["NoiseModel"]["weight"] > 0 and "weight" in about["NoiseModel"]["rule"]
    assert about["SplitHalfCorrelation"] > 0.5
    assert about["Atlas"]["Name"] == "atlas"
    parts = sorted(p.name for p in out.root.glob("group_*_importance.nii.gz"))
    assert len(parts) == 2 + 3  # mean, deviation, and decades with five people or more
    table = rows(out.group("regions.tsv"))
    assert (table[0]["region"], table[0]["hemisphere"]) == ("Front", "L")
    assert {row["rank"] for row in table} == set("1234")
    assert float(table[0]["importance_low"]) < float(table[0]["mean_importance"])
    assert out.group_importance_figure("frontnoise", "map.png").read_bytes()[:4] == b"\x89PNG"
    assert list(out.group_importance_maps()) == ["frontnoise"]
    assert not list(out.root.glob("*checkpoint*"))
    assert not list(out.root.glob("sub-*/anat/*_importance.nii.gz"))  # not asked for


def test_a_second_run_does_not_fit_again(
    study: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(22)
    out, _ = run(settings)
    before = out.group_importance("front", "noise").read_bytes()
    monkeypatch.setattr(noise_method, "fit", None)
    run(settings)
    assert out.group_importance("front", "noise").read_bytes() == before


def test_maps_of_scans_where_noise_is_named(study: Callable[..., Settings]) -> None:
    out, _ = run(study(20, importance=("noise",), importance_max_scans=20))
    maps = list(out.root.glob("sub-*/anat/*desc-frontnoise_importance.nii.gz"))
    assert len(maps) == 20
    mean = np.mean([out.read_image(path)[0] for path in maps], axis=0)
    group = out.read_image(out.group_importance("front", "noise"))[0]
    np.testing.assert_allclose(mean, group, atol=1e-6)


def test_maps_of_scans_are_made_again_by_the_noise_model_of_a_new_cohort(
    study: Callable[..., Settings],
) -> None:
    out, _ = run(study(20, importance=("noise",)))
    first, second = (out.importance(scan(number), "front", "noise") for number in (0, 1))
    participant_level = out.read_sidecar(second) | {"Fingerprint": "of participant"}
    out.write_json(second.with_name(second.name.split(".")[0] + ".json"), participant_level)
    before = first.read_bytes(), second.read_bytes()
    out, _ = run(study(21, importance=("noise",)))
    assert first.read_bytes() != before[0] and second.read_bytes() == before[1]
    group = out.read_sidecar(out.group_importance("front", "noise"))
    assert out.read_sidecar(first)["NoiseModel"] == group["NoiseModel"]
    written = first.stat().st_mtime_ns
    run(study(21, importance=("noise",)))
    assert first.stat().st_mtime_ns == written


def test_few_scans_need_a_noise_model_of_others(
    study: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = study(3)
    out, remarks = run(settings)
    assert remarks == ["No noise map of front: 3 scans are too few to fit a noise model to, and "
                       "none of these weights is at hand."]  # fmt: skip
    assert not out.group_importance("front", "noise").exists()
    assert not out.group("regions.tsv").exists()
    file = tmp_path / "noise.safetensors"
    file.write_bytes(a_noise_model("ab" * 32))
    given = replace(settings, noise_model=(str(file),))
    out, remarks = run(given)
    assert remarks == [] and out.read_sidecar(out.group_importance("front", "noise"))["Scans"] == 3
    file.write_bytes(a_noise_model("cd" * 32))
    explain.noise_model.cache_clear()
    with pytest.raises(Exception, match="other weights of front"):
        run(given)
    file.write_bytes(b"nothing")
    explain.noise_model.cache_clear()
    with pytest.raises(Exception, match="cannot be used"):
        run(given)


def test_noise_models_that_come_with_models(
    study: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = study(6)
    (tmp_path / "models" / "front").mkdir(parents=True)
    monkeypatch.setattr(noise_models.registry, "FOLDER", tmp_path / "models")
    monkeypatch.setattr(models, "card", lambda name: the_model().card)
    noise_models.main([str(settings.output_dir), "--models", "front", "--scans", "5"])
    file = tmp_path / "models" / "front" / explain.NOISE_WEIGHTS
    about = NoiseModel.from_bytes(file.read_bytes()).about
    assert (about["model"], about["weights_sha256"], about["scans"]) == ("front", "ab" * 32, 5)
    out, remarks = run(settings)  # too few to fit one to, so that this one is used
    assert remarks == [] and out.read_sidecar(out.group_importance("front", "noise"))["Scans"] == 6


def test_a_model_of_volumes_has_no_noise_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        noise_models.main([str(tmp_path), "--models", "volumes"])
    assert "volumes sees no image" in capsys.readouterr().err


def a_noise_model(weights: str) -> bytes:
    network = noise_method.NoiseUNet((8, 8), SHAPE).eval()
    about = {
        "model": "front", "weights_sha256": weights, "scans": 50, "weight": 1.0,
        "moved_years": 1.0, "tolerance_years": 1.0, "options": {"channels": [8, 8]},
    }  # fmt: skip
    return NoiseModel(network, about).to_bytes()


def test_an_atlas_that_is_not_there_is_said_once_and_maps_are_made(
    study: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "empty"))
    explain.load_atlas.cache_clear()
    file = tmp_path / "noise.safetensors"
    file.write_bytes(a_noise_model("ab" * 32))
    settings = replace(study(3), atlas=(), noise_model=(str(file),))
    out, remarks = run(settings)
    assert remarks == [] and not out.group("regions.tsv").exists()
    sidecar = out.read_sidecar(out.group_importance("front", "noise"))
    assert "--atlas cerebra fetches it once" in sidecar["AtlasMissing"]
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [f"No tables of regions. {sidecar['AtlasMissing']}"]


def test_without_images_there_is_a_remark(study: Callable[..., Settings]) -> None:
    settings = study(3)
    for path in settings.output_dir.rglob("*_T1w.nii.gz"):
        path.unlink()
    _, remarks = run(settings)
    assert len(remarks) == 1 and "no scan of good quality has images" in remarks[0]


def test_other_methods_average_what_the_participant_level_made(
    study: Callable[..., Settings],
) -> None:
    settings = study(6, importance=("occlusion",))
    out, remarks = run(settings)
    assert remarks == ["No occlusion map of front: run the participant level with --importance "
                       "occlusion."]  # fmt: skip
    note = {"Model": "front", "WeightsSHA256": "ab" * 32}
    for person in range(3):
        values = np.full(SHAPE, float(person), np.float32)
        path = out.importance(scan(person), "front", "occlusion")
        of_image = note | {"PreprocessingFingerprint": str(person)}
        out.write_image(path, values, AFFINE, of_image, np.float32)
    others = [
        note | {"PreprocessingFingerprint": "3", "WeightsSHA256": "0"},
        note | {"PreprocessingFingerprint": "of the scan that was replaced"},
        note,  # of an older version
    ]
    for person, other in enumerate(others, start=3):
        path = out.importance(scan(person), "front", "occlusion")
        out.write_image(path, np.full(SHAPE, 99.0), AFFINE, other, np.float32)
    out, remarks = run(settings)
    assert remarks == []
    found = out.read_image(out.group_importance("front", "occlusion"))[0]
    assert found[FRONT].mean() == pytest.approx(1)
    assert out.read_sidecar(out.group_importance("front", "occlusion"))["Units"] == "years"


def test_checks_of_the_maps(study: Callable[..., Settings]) -> None:
    out, _ = run(study(20, importance_check=True))
    table = rows(out.group("importance_check.tsv"))
    checks = {(row["check"], row["detail"]): float(row["value"]) for row in table}
    assert {check for check, _ in checks} == {
        "split_halves", "randomised", "deletion", "insertion",
    }  # fmt: skip
    assert checks["deletion", "noise"] > checks["deletion", "random"]
    described = json.loads(out.group("importance_check.json").read_text())
    assert set(described["check"]["Levels"]) >= {check for check, _ in checks}


def test_brains_of_a_model_that_sees_warped_tissue(study: Callable[..., Settings]) -> None:
    out, _ = run(study(2, importance=("none",)))
    grid = tuple(-(-side // 2) for side in (91, 109, 91))
    contract = MorphometryContract("MNI152NLin2009aSym", TISSUES, grid, (20, 80))
    model = replace(the_model(), card=replace(the_model().card, contract=contract))
    sources = list(explain_group.good_sources(out))
    images = explain_group.Images(sources, model, out)
    grey = np.zeros((91, 109, 91), np.float32)
    grey[30:40, 30:40, 31:41] = 0.8
    for number, tissue in enumerate(TISSUES):
        path = out.modulated(scan(1), tissue)
        out.write_image(path, grey * (number == 0), AFFINE, {}, np.float32)
    view, affine = images.view(1)
    np.testing.assert_array_equal(affine, AFFINE)
    assert view.brain.image.shape == (3, *grid) and not view.brain.image[1:].any()
    assert view.mask.sum() == 1000 and np.array_equal(images.mask(1), view.mask)
    back = view.on_standard(view.brain.image[0])
    assert back[35, 35, 36] == pytest.approx(0.8) and not back[grey == 0].any()
    shape, coarse = explain.grid_of(model.card, AFFINE)
    assert shape == grid
    np.testing.assert_allclose(coarse @ [0, 0, 0, 1], AFFINE @ [0.5, 0.5, 0.5, 1])


def test_a_limit_on_scans_spreads_over_ages() -> None:
    sources = [explain_group.Source(scan(n), age, None, {}, {}, "")
               for n, age in enumerate([50.0, 20, 80, 35, 65, None])]  # fmt: skip
    assert [s.age for s in explain_group.spread(sources, 3)] == [20, 65, None] or len(
        explain_group.spread(sources, 3)
    ) == 3
    assert explain_group.spread(sources, 9) == sources


def test_a_model_with_another_grid_sees_the_same_brain() -> None:
    contract = replace(the_model().card.contract, shape=(12, 14, 12),
                       affine=((14.0, 0, 0, -76.5), (0, 14.0, 0, -111.5), (0, 0, 14.0, -61.5),
                               (0, 0, 0, 1.0)))  # fmt: skip
    image = np.zeros(SHAPE, np.float32)
    image[8:16, 10:20, 6:14] = 5
    mask = image > 0
    to_model = np.linalg.inv(np.array(contract.affine)) @ AFFINE
    shares = np.stack([mask, 0 * mask, 0 * mask]).astype(np.float32)
    coarse, inside, grey = explain_group._as_contract(image, mask, shares, to_model, contract)
    assert coarse.shape == inside.shape == (12, 14, 12)
    mm = np.argwhere(inside).mean(0) @ np.array(contract.affine)[:3, :3]
    mm += np.array(contract.affine)[:3, 3]
    np.testing.assert_allclose(mm, np.array([11.5, 14.5, 9.5]) * 7 + AFFINE[:3, 3], atol=1)
    assert coarse[inside].mean() == pytest.approx(5, rel=0.15)
    assert grey.shape == (3, 12, 14, 12) and grey[0][inside].mean() == pytest.approx(1, rel=0.15)
    assert not grey[1:].any()


def test_maps_are_of_the_scans_that_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [Scan(Path(), "", f"sub-0{n}", None, f"sub-0{n}", Demographics()) for n in (1, 2)]
    sources = [explain_group.Source(scan, None, None, {}, {}, "") for scan in scans]
    seen: list[explain_group.Source] = []
    monkeypatch.setattr(explain_group, "good_sources", lambda out: iter(sources))
    monkeypatch.setattr(explain_group, "_models", lambda _, named: seen.extend(named) or [])
    settings = Settings(tmp_path, tmp_path / "out", ("group",), participant_label=("02",))
    explain_group.population(settings, Derivatives(tmp_path / "out", tmp_path, settings.template))
    assert seen == sources[1:]
