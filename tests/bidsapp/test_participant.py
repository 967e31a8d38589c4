"""The participant level: what is computed, what is kept, and what each fault does.

Preprocessing is replaced by a stub that counts; the real one is in the integration tests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from bidsapp import explain, kept, participant
from bidsapp.demographics import Demographics
from bidsapp.derivatives import Derivatives
from bidsapp.errors import NothingToDo, ScanError, UserError
from bidsapp.prepared import Native, Prepared, model_input
from bidsapp.preprocessing import (
    bias_field,
    morphometry,
    registration,
    segmentation,
    templates,
)
from bidsapp.preprocessing.atlas import load_atlas
from bidsapp.preprocessing.grid import GRID_AFFINE, GRID_SHAPE
from bidsapp.preprocessing.image import Image, T1w
from bidsapp.preprocessing.quality import LIMITS
from bidsapp.preprocessing.segmentation import Parts, Segmentation
from bidsapp.preprocessing.templates import Template
from bidsapp.progress import Outcome
from bidsapp.settings import Settings
from bidsapp.study import Scan
from bidsapp.toolbox import Toolbox
from models import registry
from models.contract import (
    TISSUES,
    InputContract,
    ModelCard,
    MorphometryContract,
    Output,
    Uncertainty,
    VolumeContract,
)
from models.prediction import BrainAgeModel
from models.reference import fit
from models.segmentation import labels

TEMPLATE = Settings.template
STEM = "sub-01"
CORTEX, WHITE = (labels.indices(structure=name)[0] for name in ("CTX", "WM"))
CARD = ModelCard(
    name="first",
    title="A mean",
    version="1",
    summary="For tests.",
    license="CC0-1.0",
    citation="Nobody.",
    weights_sha256="a" * 64,
    contract=InputContract(
        template=TEMPLATE,
        degrees_of_freedom=12,
        shape=GRID_SHAPE,
        affine=tuple(map(tuple, GRID_AFFINE)),
        skull_stripped=True,
        bias_corrected=True,
        intensity="white_matter",
        ages=(20, 80),
    ),
    output=Output(offset=20, scale=100),
    uncertainty=Uncertainty(standard_deviation=4, interval=(-6, 7)),
)


class Mean(nn.Module):
    """The mean of an image stands for its age; `effect` is that of the sex."""

    def __init__(self, effect: float = 0.0) -> None:
        super().__init__()
        self.zero, self.effect = nn.Parameter(torch.zeros(())), effect

    def forward(self, x: torch.Tensor, sex: torch.Tensor | None = None) -> torch.Tensor:
        mean = x.mean((1, 2, 3, 4)) + self.zero
        return mean if sex is None else mean + self.effect * sex


def model(name: str = "first", effect: float = 0.0, **changes: Any) -> BrainAgeModel:
    """A model with a changed card; `contract_...` changes its contract."""
    contract = {key[9:]: changes.pop(key) for key in list(changes) if key.startswith("contract_")}
    changes["contract"] = dataclasses.replace(CARD.contract, **contract)
    return BrainAgeModel(dataclasses.replace(CARD, name=name, **changes), [Mean(effect).eval()])


def prepared(t1w: T1w) -> Prepared:
    """What preprocessing would return, made of the mean of the scan alone."""
    inside = np.zeros(GRID_SHAPE, bool)
    inside[30:60, 40:80, 30:60] = True
    level = float(t1w.image.data.mean())
    brain = Image((level * inside).astype(np.float32), GRID_AFFINE)
    mask = t1w.image.data > 0
    parts = Parts(mask * np.uint8(WHITE), mask, mask)
    found = Segmentation(t1w.image, parts, parts, {})
    steps: list[dict[str, Any]] = [
        {"step": "segmentation", "already_stripped": False},
        {"step": "registration", "matrix": np.eye(4).tolist()},
        {"step": "intensity", "levels": {"cortex": 300.0, "white_matter": 500.0}},
    ]
    to_scan = np.diag([1.1, 1, 1, 1])
    native = Native(t1w, t1w.image, t1w.image, found, to_scan, {(TEMPLATE, 12): to_scan})
    quality = dict.fromkeys(LIMITS) | {"cnr": 2.5}
    levels = steps[-1]["levels"]
    shares = np.stack([inside, 0 * inside, 0 * inside]).astype(np.float32)
    volumes = {"brain": 1.0, "csf": None}
    return Prepared(
        brain, inside, shares, 0.5 * shares, levels, volumes, quality, steps, {}, native
    )


def _no_tissue(*_grid: Any) -> np.ndarray:
    return np.zeros((3, *GRID_SHAPE), np.float32)


class Bench:
    """One scan, its settings and its output folder, with countable stubs of what is heavy."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = root / "study" / STEM / "anat" / f"{STEM}_T1w.nii.gz"
        self.settings = Settings(root / "study", root / "out", ("participant",))
        self.out = Derivatives(root / "out", root / "study", TEMPLATE)
        self.models = {"first": model()}
        self.preprocessed = 0
        self.who = Demographics(30.0, "F", None, None)
        self.failing: Exception | None = None
        self.write_scan()
        monkeypatch.setattr(participant, "toolbox", self._toolbox)
        monkeypatch.setattr(participant, "preprocess", self._preprocess)
        monkeypatch.setattr(participant.report, "write_figures", self._figures)

    def write_scan(self, seed: int = 1, zooms: tuple[float, ...] = (4, 4, 4)) -> None:
        data = np.random.default_rng(seed).integers(1, 900, (26, 27, 28)).astype(np.int16)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, np.diag([*zooms, 1])), self.path)

    def _toolbox(self, _settings: Settings) -> Toolbox:
        blank = Image(np.zeros(GRID_SHAPE, np.float32), GRID_AFFINE)
        template = Template(TEMPLATE, blank, blank.data > 0, "a test", "t" * 64)
        return Toolbox(
            nn.Identity(), "s" * 64, template, blank, blank.data > 0, _no_tissue, self.models
        )

    def _preprocess(self, t1w: T1w, _tools: Toolbox, _settings: Settings) -> Prepared:
        self.preprocessed += 1
        return prepared(t1w)

    def _figures(self, scan: Scan, *_arrays: Any) -> None:
        if self.failing:
            raise self.failing
        self.out.write_bytes(self.out.figure(scan.participant_id, scan.stem, "template"), b"png")

    @property
    def scan(self) -> Scan:
        source = f"bids:raw:{STEM}/anat/{self.path.name}"
        return Scan(self.path, source, STEM, None, STEM, self.who)

    def process(self, **changes: Any) -> str:
        settings = dataclasses.replace(self.settings, **changes)
        return participant.process(self.scan, settings, self.out)

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.out.record(self.scan).read_text())

    @property
    def images(self) -> dict[str, Path]:
        return kept.images_of(self.scan, self.settings, self.out)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Time and content of every file of the output folder."""
        return {
            path.relative_to(self.out.root).as_posix(): (
                path.stat().st_mtime_ns,
                path.read_bytes(),
            )
            for path in self.out.root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def complete(bench: Bench) -> Bench:
    """A bench whose scan has been processed."""
    assert bench.process() == "done"
    assert bench.preprocessed == 1
    return bench


# --- what is written ---


def test_images_with_sidecars_and_the_record(complete: Bench) -> None:
    space = f"{STEM}_space-{TEMPLATE}_res-2"
    expected = {
        f"{STEM}/figures/{STEM}_desc-template_T1w.png",
        f"{STEM}/anat/{STEM}_brainage.json",
        *(f"{STEM}/anat/{STEM}_from-{a}_to-{b}_mode-image_xfm{end}"
          for a, b in (("T1w", TEMPLATE), (TEMPLATE, "T1w")) for end in (".txt", ".json")),
        *(f"{STEM}/anat/{name}{end}"
          for name in (f"{STEM}_desc-brain_mask", f"{STEM}_dseg", f"{space}_desc-preproc_T1w",
                       f"{space}_desc-brain_mask", f"{space}_label-GM_probseg",
                       f"{space}_label-WM_probseg", f"{space}_label-CSF_probseg",
                       *(f"{space}_label-{t}_desc-modulated_probseg" for t in TISSUES))
          for end in (".nii.gz", ".json")),
    }  # fmt: skip
    assert set(complete.files()) == expected
    mask = nib.load(complete.images["mask"])
    scan = nib.load(complete.path)
    assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine)
    template_mask = np.asarray(nib.load(complete.images["template_mask"]).dataobj)
    assert template_mask.shape == GRID_SHAPE and template_mask.sum() == 30 * 40 * 30
    sidecar = json.loads(
        complete.out.preproc(complete.scan).with_suffix("").with_suffix(".json").read_text()
    )
    assert sidecar["Sources"][0] == complete.scan.source
    assert [step["step"] for step in sidecar["Steps"]] == [
        "segmentation",
        "registration",
        "intensity",
    ]


def test_the_record_says_everything(complete: Bench) -> None:
    record = complete.record
    assert list(record) == [
        "participant_id", "session_id", "source", "age", "sex", "site", "group", "predictions",
        "quality", "volumes_ml", "steps", "software", "seconds", "fingerprint",
    ]  # fmt: skip
    assert (record["age"], record["sex"], record["session_id"]) == (30, "F", None)
    assert record["volumes_ml"] == {"brain": 1.0, "csf": None}
    assert record["quality"]["passed"] is True
    assert set(record["seconds"]) == {"figures", "first"}
    prediction = record["predictions"]["first"]
    level = nib.load(complete.path).get_fdata().mean()
    age = 20 + 100 * min(level / 500, 1.5) * (30 * 40 * 30) / np.prod(GRID_SHAPE)
    assert prediction == {
        "predicted_age": pytest.approx(age, abs=1e-3),
        "standard_deviation": 4.0,
        "interval": [pytest.approx(age - 6, abs=1e-3), pytest.approx(age + 7, abs=1e-3)],
        "coverage": 0.9,
        "within_training_ages": True,
        "sex_assumed": False,
        "weights_sha256": "a" * 64,
        "license": "CC0-1.0",
        "brain_age_gap": pytest.approx(age - 30, abs=1e-3),
    }
    ensemble = record["predictions"]["ensemble"]
    assert ensemble == {key: prediction[key] for key in ensemble}  # one model alone


def test_without_models_there_are_no_predictions(bench: Bench) -> None:
    bench.models = {}
    assert bench.process() == "done"
    assert bench.record["predictions"] == {}


def test_unknown_age_and_sex(bench: Bench) -> None:
    bench.who = Demographics(None, None, None, None)
    bench.models = {
        "plain": model("plain"),
        "sexed": model("sexed", effect=0.02, contract_needs_sex=True),
    }
    bench.process()
    plain, sexed, both = (bench.record["predictions"][n] for n in ("plain", "sexed", "ensemble"))
    assert plain["brain_age_gap"] is sexed["brain_age_gap"] is both["brain_age_gap"] is None
    assert (plain["sex_assumed"], sexed["sex_assumed"], both["sex_assumed"]) == (False, True, True)
    assert sexed["predicted_age"] == pytest.approx(plain["predicted_age"] + 1, abs=1e-3)
    bench.who = Demographics(None, "F", None, None)
    bench.process()
    sexed = bench.record["predictions"]["sexed"]
    assert sexed["sex_assumed"] is False
    assert sexed["predicted_age"] == pytest.approx(plain["predicted_age"] + 2, abs=1e-3)


class MeanOfTissue(nn.Module):
    """The mean over a person's three maps."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.factor * maps.flatten(1).mean(1)


def of_tissue(template: str) -> BrainAgeModel:
    contract = MorphometryContract(template, TISSUES, (46, 55, 46), (20, 80))
    card = dataclasses.replace(CARD, name="tissue", contract=contract)
    return BrainAgeModel(card, [MeanOfTissue().eval()])


def test_a_model_of_morphometry_predicts_and_needs_no_image(bench: Bench) -> None:
    bench.process()
    bench.models["tissue"] = of_tissue(TEMPLATE)
    bench.process()
    assert bench.preprocessed == 1
    amount = 0.5 * 30 * 40 * 30 / 8 / (3 * 46 * 55 * 46)
    found = bench.record["predictions"]["tissue"]["predicted_age"]
    assert found == pytest.approx(20 + 100 * amount, abs=1e-3)


def test_a_model_of_morphometry_in_another_template_gets_a_warp_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered, warped = [], []

    def register(_brain: Any, template: Any, degrees: int, *_more: Any) -> tuple:
        registered.append((template, degrees))
        return np.eye(4), {"step": "registration"}

    def modulated(shares: np.ndarray, fixed: np.ndarray, seed: int, *_more: Any) -> tuple:
        warped.append((shares.shape, fixed.shape, seed))
        return np.ones_like(shares), {}

    monkeypatch.setattr(registration, "register", register)
    monkeypatch.setattr(templates, "load_template", lambda name: name)
    monkeypatch.setattr(morphometry, "modulated_tissue", modulated)
    bench.models = {"tissue": of_tissue("Other")}
    bench.process(random_seed=3)
    assert registered == [("Other", 12)]
    assert warped[0] == ((3, *GRID_SHAPE), (3, *GRID_SHAPE), 3)
    # the written maps are of the study's template, so that a change needs the scan again
    changed = dataclasses.replace(bench.models["tissue"].card, weights_sha256="b" * 64)
    bench.models = {"tissue": dataclasses.replace(bench.models["tissue"], card=changed)}
    bench.process(random_seed=3)
    assert bench.preprocessed == 2


class Tenth(nn.Module):
    """A tenth of the only volume."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.1))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.factor * volumes[:, 0, 0]


def of_volumes(**changes: Any) -> BrainAgeModel:
    contract = VolumeContract(("brain",), (20, 80))
    card = dataclasses.replace(CARD, name="volumes", contract=contract, **changes)
    return BrainAgeModel(card, [Tenth().eval()])


def test_a_model_of_volumes_predicts_and_votes_only_if_its_card_says_so(bench: Bench) -> None:
    bench.models["volumes"] = of_volumes(in_ensemble=False)
    bench.process()
    first, volumes, both = (
        bench.record["predictions"][name]["predicted_age"]
        for name in ("first", "volumes", "ensemble")
    )
    assert volumes == pytest.approx(20 + 100 * 0.1 * bench.record["volumes_ml"]["brain"])
    assert both == first != volumes
    bench.models["volumes"] = of_volumes()
    bench.process()
    assert bench.preprocessed == 1  # it needs no image
    together = bench.record["predictions"]["ensemble"]["predicted_age"]
    assert together == pytest.approx((first + volumes) / 2)


# --- what is kept ---


def test_what_is_complete_is_not_touched(complete: Bench) -> None:
    before = complete.files()
    assert complete.process() == "skipped"
    assert complete.preprocessed == 1
    assert complete.files() == before


@pytest.mark.parametrize(
    "changes",
    [{"nprocs": 7}, {"verbose": 1}, {"stop_on_first_crash": True}, {"low_mem": True},
     {"participant_label": ("01",)}],
    ids=str,
)  # fmt: skip
def test_settings_that_change_no_result_do_not_count(
    changes: dict[str, Any], complete: Bench
) -> None:
    assert complete.process(**changes) == "skipped"


@pytest.mark.parametrize("changes", [{"skull_strip_t1w": "force"}, {"random_seed": 2}], ids=str)
def test_settings_of_the_preprocessing_count(changes: dict[str, Any], complete: Bench) -> None:
    assert complete.process(**changes) == "done"
    assert complete.preprocessed == 2
    assert complete.process(**changes) == "skipped"


def test_another_scan_under_the_same_name_counts(complete: Bench) -> None:
    complete.write_scan(seed=2)
    before = complete.record["predictions"]
    assert complete.process() == "done"
    assert complete.preprocessed == 2
    assert complete.record["predictions"] != before


@pytest.mark.parametrize(
    "models",
    [
        {"first": model(weights_sha256="b" * 64)},
        {"first": model(output=Output(offset=10))},
        {"first": model(uncertainty=Uncertainty(5, (-8, 9)))},
        {"second": model("second")},
        {"first": model(), "second": model("second", contract_intensity="tissue")},
        {},
    ],
    ids=["weights", "output", "interval", "another", "one more", "none"],
)
def test_other_models_need_only_predictions(models: dict[str, Any], complete: Bench) -> None:
    before, old = complete.files(), complete.record
    complete.models = models
    assert complete.process() == "done"
    assert complete.preprocessed == 1
    changed = {name for name, state in complete.files().items() if before[name] != state}
    assert changed == {f"{STEM}/anat/{STEM}_brainage.json"}
    new = complete.record
    assert new["predictions"] != old["predictions"]
    for key in ("volumes_ml", "steps", "source"):
        assert new[key] == old[key]
    assert new["quality"]["cnr"] == old["quality"]["cnr"]
    # and the same as from the beginning
    complete.out.record(complete.scan).unlink()
    complete.process()
    assert complete.preprocessed == 2
    assert complete.record["predictions"] == new["predictions"]
    assert complete.process() == "skipped"


# --- what becomes of a scan of doubtful quality ---


@pytest.fixture
def doubtful(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose scan has a figure out of its limits."""
    monkeypatch.setitem(LIMITS, "cnr", (3, np.inf))
    return bench


def test_a_flag_is_a_warning_by_default(doubtful: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert doubtful.process() == "done"
    assert (doubtful.record["quality"]["passed"], doubtful.record["quality"]["flags"]) == (
        False, ["cnr"],
    )  # fmt: skip
    assert doubtful.record["predictions"]["ensemble"]["predicted_age"] > 0
    assert f"{doubtful.path} is of doubtful quality: cnr 2.5 (at least 3)" in caplog.text
    assert doubtful.process() == "skipped"


def test_a_flag_can_be_a_failure_and_leaves_no_age(doubtful: Bench) -> None:
    for _ in range(2):  # in a rerun as well
        with pytest.raises(ScanError, match=r"doubtful quality: cnr 2\.5 .*--quality warn"):
            doubtful.process(quality="fail")
    assert doubtful.preprocessed == 1 and doubtful.record["predictions"] == {}
    assert doubtful.record["quality"]["passed"] is False
    assert doubtful.process(quality="warn") == "done"  # from the images that are there
    assert doubtful.preprocessed == 1 and doubtful.record["predictions"].keys() == {
        "first", "ensemble",
    }  # fmt: skip


def test_a_sound_scan_does_not_fail(bench: Bench) -> None:
    assert bench.process(quality="fail") == "done"
    assert bench.record["quality"]["passed"] is True and bench.record["predictions"]


def test_quality_can_be_measured_and_not_judged(doubtful: Bench) -> None:
    assert doubtful.process(quality="off") == "done"
    found = doubtful.record["quality"]
    assert (found["passed"], found["flags"], found["cnr"]) == (None, [], 2.5)
    assert doubtful.record["predictions"]


def test_figures_of_the_prediction_are_judged_too(bench: Bench) -> None:
    bench.models = {"first": model(), "second": model("second", contract_ages=(70, 80))}
    bench.process()
    found, ages = bench.record["quality"], bench.record["predictions"]
    assert found["model_disagreement_years"] is None  # the second is not asked
    low, high = CARD.contract.ages
    age = ages["ensemble"]["predicted_age"]
    assert found["years_within_trained_ages"] == pytest.approx(min(age - low, high - age))


def test_a_record_without_a_figure_that_is_judged_is_made_again(complete: Bench) -> None:
    record = complete.record
    del record["quality"]["noise"]
    complete.out.write_json(complete.out.record(complete.scan), record)
    complete.models = {}
    assert complete.process() == "done"
    assert complete.preprocessed == 2 and "noise" in complete.record["quality"]


def test_a_reference_that_comes_later_needs_only_predictions(
    complete: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete.record["quality"]["distance_from_training"] is None
    images = np.random.default_rng(1).normal(size=(40, 6))
    first = dataclasses.replace(complete.models["first"], reference=fit(images, axes=3))
    complete.models["first"] = first
    monkeypatch.setattr("models.prediction.features_of", lambda *_: images[0])
    assert complete.process() == "done"
    assert complete.preprocessed == 1
    assert complete.record["quality"]["distance_from_training"] > 0
    assert complete.process() == "skipped"


def test_another_age_needs_only_predictions(complete: Bench) -> None:
    complete.who = Demographics(50.0, "F", None, None)
    assert complete.process() == "done"
    assert complete.preprocessed == 1
    assert complete.record["age"] == 50
    prediction = complete.record["predictions"]["first"]
    assert prediction["brain_age_gap"] == pytest.approx(prediction["predicted_age"] - 50)


@pytest.mark.parametrize(
    "name",
    ["mask", "dseg", "forward", "inverse", "preproc", "template_mask", "GM", "WM", "CSF"],
)
def test_a_missing_image_is_made_again(name: str, complete: Bench) -> None:
    content = complete.images[name].read_bytes()
    complete.images[name].unlink()
    assert complete.process() == "done"
    assert complete.preprocessed == 2
    assert complete.images[name].read_bytes() == content


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    return lambda text: json.dumps(change(json.loads(text)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: "[]",
        lambda text: "{}",
        rewritten(lambda record: {**record, "fingerprint": None}),
        rewritten(lambda record: {**record, "fingerprint": "abc"}),
        rewritten(lambda record: {**record, "fingerprint": {}}),
    ],
    ids=["empty", "half", "null", "list", "no keys", "no print", "text", "empty print"],
)
def test_a_damaged_record_is_made_again(damage: Callable[[str], str], complete: Bench) -> None:
    path, before = complete.out.record(complete.scan), complete.record
    path.write_text(damage(path.read_text()))
    assert complete.process() == "done"
    assert complete.preprocessed == 2
    assert complete.record["predictions"] == before["predictions"]


def test_a_record_does_not_vouch_for_images_of_other_settings(complete: Bench) -> None:
    """Ended between the images of one run and its record, with another run's record there."""
    complete.failing = RuntimeError("the power was cut")
    with pytest.raises(RuntimeError):
        complete.process(skull_strip_t1w="force")
    complete.failing = None
    assert not complete.out.record(complete.scan).exists()
    assert complete.process() == "done"
    assert complete.preprocessed == 3


def test_of_a_scan_that_was_replaced_nothing_stays_even_if_the_new_one_fails(
    complete: Bench,
) -> None:
    out, scan = complete.out, complete.scan
    out.write_bytes(out.importance(scan, "first", "gradcam"), b"a map")
    out.write_bytes(out.importance_figure(STEM, STEM, "firstgradcam", "map.png"), b"its picture")
    out.write_text(out.report(STEM), "a page")
    other = dataclasses.replace(scan, stem=f"{STEM}_run-2")
    beside = [
        out.record(other),
        out.dseg(other),
        out.preproc(other),
        out.importance(other, "first", "gradcam"),
        out.figure(STEM, other.stem, "mask"),
    ]
    for path in beside:
        out.write_bytes(path, b"of another scan")
    complete.path.write_bytes(complete.path.read_bytes()[:900])
    with pytest.raises(ScanError):
        complete.process()
    assert set(complete.files()) == {path.relative_to(out.root).as_posix() for path in beside}


def test_a_scan_whose_content_is_not_here_leaves_what_was_there(complete: Bench) -> None:
    before = complete.files()
    complete.path.unlink()
    complete.path.symlink_to("not-fetched.nii.gz")
    with pytest.raises(ScanError, match="dangling link"):
        complete.process()
    assert complete.files() == before


# --- the minimal output level ---


RECORD = f"{STEM}/anat/{STEM}_brainage.json"


def test_minimal_output_is_the_record_alone(bench: Bench) -> None:
    assert bench.process(output_level="minimal") == "done"
    assert set(bench.files()) == {RECORD}
    minimal = bench.record
    assert bench.process(output_level="minimal") == "skipped"
    assert bench.process() == "done"  # the images are wanted now
    full = bench.record
    for record in (minimal, full):
        record.pop("seconds")
    assert minimal == full
    assert bench.preprocessed == 2


def test_minimal_output_leaves_what_is_true(complete: Bench) -> None:
    before = complete.files()
    assert complete.process(output_level="minimal") == "skipped"
    assert complete.files() == before
    complete.out.write_text(complete.out.report(STEM), "a page of before")
    complete.write_scan(seed=2)
    assert complete.process(output_level="minimal") == "done"
    assert set(complete.files()) == {RECORD}


# --- faults ---


def test_a_fault_names_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_brain(*_arguments: Any) -> None:
        raise ScanError("no brain was found in it; check it.")

    monkeypatch.setattr(participant, "preprocess", no_brain)
    with pytest.raises(ScanError) as caught:
        bench.process()
    assert str(caught.value) == f"{bench.path}: no brain was found in it; check it."
    bench.path.write_bytes(b"")
    with pytest.raises(ScanError) as caught:
        bench.process()
    assert str(caught.value).count(str(bench.path)) == 1


def test_a_fault_of_a_model_names_the_file_too(bench: Bench) -> None:
    bench.models = {"first": model(output=Output(offset=float("nan")))}
    with pytest.raises(ScanError, match="gave no finite age") as caught:
        bench.process()
    assert str(caught.value).startswith(f"{bench.path}: ")
    bench.models = {"first": model(contract_intensity="unheard")}
    with pytest.raises(ScanError, match="no intensity rule 'unheard'"):
        bench.process()


def test_thick_slices_are_warned_of(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.write_scan(zooms=(4, 4, 6))
    with caplog.at_level(logging.WARNING):
        assert bench.process() == "done"
    assert str(bench.path) in caplog.text and "slices of 6.0 mm" in caplog.text


# --- images for models ---


OTHER_GRID = ((20, 24, 20), ((8, 0, 0, -80), (0, 8, 0, -96), (0, 0, 8, -80), (0, 0, 0, 1)))


def test_a_model_of_another_grid_gets_its_own_image(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the scan itself in one resampling; models of one template share a transform."""
    registered = []

    def register(brain: Image, template: Any, degrees: int, seed: int, *_more: Any) -> tuple:
        registered.append((template.name, degrees, seed))
        return np.eye(4), {"step": "registration", "template": {"name": template.name}}

    monkeypatch.setattr(registration, "register", register)
    monkeypatch.setattr(
        "bidsapp.preprocessing.templates.load_template", lambda name: SimpleNamespace(name=name)
    )
    shape, affine = OTHER_GRID
    other = {"contract_shape": shape, "contract_affine": affine, "contract_template": "Other"}
    bench.models = {
        "first": model(),
        "second": model("second", **other),
        "third": model("third", **other, contract_intensity="tissue"),
        "rigid": model("rigid", **other, contract_degrees_of_freedom=6),
    }
    assert bench.process(random_seed=3) == "done"
    assert registered == [("Other", 12, 3), ("Other", 6, 3)]
    assert set(bench.record["predictions"]) == {*bench.models, "ensemble"}
    steps = bench.record["steps"]
    assert [s["step"] for s in steps[2:]] == ["intensity", *["model_registration"] * 2]
    assert steps[-1]["template"] == {"name": "Other"}
    # the written image does not serve such models, so that a change needs the scan again
    bench.models["second"] = model("second", **other, weights_sha256="b" * 64)
    assert bench.process(random_seed=3) == "done"
    assert bench.preprocessed == 2
    # and without them their registrations are not of this record
    bench.models = {"first": model()}
    assert bench.process(random_seed=3) == "done"
    assert bench.preprocessed == 2
    assert bench.record["steps"] == steps[:3]


def test_no_model_has_the_name_of_a_step() -> None:
    """The record keeps the seconds of both in one table."""
    assert not set(kept.TIMED) & set(registry.known())


def test_another_grid_alone_needs_no_other_registration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "register", lambda *_: pytest.fail("registered again"))
    shape, affine = OTHER_GRID
    bench.models = {"first": model(contract_shape=shape, contract_affine=affine)}
    assert bench.process() == "done"
    assert bench.record["steps"][-1]["step"] == "intensity"


def test_the_image_of_another_grid_lies_where_the_scan_lies(bench: Bench) -> None:
    shape, affine = OTHER_GRID
    card = model(contract_shape=shape, contract_affine=affine).card
    data = np.zeros((80, 80, 80), np.float32)
    data[50:60, 20:30, 40:50] = 250
    image = Image(data, np.array([[2.0, 0, 0, -80], [0, 2, 0, -80], [0, 0, 2, -80], [0, 0, 0, 1]]))
    mask = np.ones(data.shape, bool)
    mask[:, :, 45:] = False
    found = prepared(T1w(image, data.shape, image.affine, 1, ()))
    whole = found.native.segmentation
    parts = dataclasses.replace(whole.on_scan, mask=mask)
    segmented = dataclasses.replace(whole, on_scan=parts)
    place = {(TEMPLATE, 12): np.eye(4)}
    found.native = dataclasses.replace(found.native, segmentation=segmented, transforms=place)
    seen = model_input(found, card, bench._toolbox(bench.settings), bench.settings)
    assert seen.shape == shape and seen.min() == 0
    (x, y, z) = (np.array(affine) @ [*np.unravel_index(seen.argmax(), shape), 1])[:3]
    np.testing.assert_allclose((x, y), (29, -31), atol=8)
    assert z < 10  # what lies above is outside the mask
    assert seen.max() == pytest.approx(0.5, abs=0.15)  # white matter is 500 in it


# --- the chain itself ---


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # correlation with an empty template
def test_the_steps_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A head at 4 mm of which the stubs find a box; nothing outside it is left."""
    shape = (46, 55, 46)
    scan = Image(np.full(shape, 50, np.float32), GRID_AFFINE @ np.diag([2.0, 2, 2, 1]))
    box = np.zeros(shape, bool)
    box[10:36, 10:45, 10:36] = True
    found = np.where(box, CORTEX, 0).astype(np.uint8)
    found[15:30, 15:40, 15:30] = WHITE
    scan.data[found == CORTEX], scan.data[found == WHITE] = 300, 500
    calls = []

    def segment(image: Image, _network: Any, strip: str) -> tuple:
        calls.append(("segment", strip))
        parts = Parts(found, box, box)
        return Segmentation(image, parts, parts, {"brain": 1.0}), {
            "step": "segmentation",
            "already_stripped": True,
        }

    def correct(image: Image, _found: Any) -> tuple:
        calls.append(("correct",))
        return (
            image.with_data(image.data * 2),
            image.with_data(image.data * 2),
            {"step": "bias_field", "field_range": [0.8, 1.2]},
        )

    def register(brain: Image, _template: Any, degrees: int, seed: int, *_more: Any) -> tuple:
        calls.append(("register", degrees, seed))
        assert not brain.data[~box].any() and brain.data[box].min() == 600
        return np.eye(4), {"step": "registration", "matrix": np.eye(4).tolist()}

    monkeypatch.setattr(segmentation, "segment", segment)
    monkeypatch.setattr(bias_field, "correct_bias_field", correct)
    monkeypatch.setattr(registration, "register", register)
    blank = Image(np.zeros(GRID_SHAPE, np.float32), GRID_AFFINE)
    template = Template(TEMPLATE, blank, blank.data > 0, "a test", "t" * 64)
    tissue = np.zeros((3, *GRID_SHAPE), np.float32)

    def modulated(shares: np.ndarray, fixed: np.ndarray, seed: int, *_more: Any) -> tuple:
        calls.append(("modulated", seed))
        assert fixed is tissue and shares.shape == (3, *GRID_SHAPE)
        return shares / 2, {"step": "warp"}

    monkeypatch.setattr(morphometry, "modulated_tissue", modulated)
    tools = Toolbox(
        nn.Identity(), "s" * 64, template, blank, blank.data == 0, lambda *_: tissue, {}
    )
    settings = Settings(tmp_path, tmp_path / "out", ("participant",), random_seed=5)
    result = participant.preprocess(T1w(scan, shape, scan.affine, 1, ()), tools, settings)

    assert calls == [("segment", "auto"), ("correct",), ("register", 12, 5), ("modulated", 5)]
    steps = ["segmentation", "bias_field", "registration", "resampling", "warp", "intensity"]
    assert [step["step"] for step in result.steps] == steps
    assert result.native is not None
    assert list(result.native.transforms) == [(TEMPLATE, 12)]  # for models of other grids
    assert set(result.seconds) == {
        "segmentation",
        "bias_field",
        "registration",
        "resampling",
        "warp",
        "quality",
    }
    np.testing.assert_array_equal(result.modulated, result.shares / 2)
    assert result.levels == {"cortex": 600, "white_matter": 1000}
    assert result.brain.data.shape == GRID_SHAPE and result.brain.data.dtype == np.float32
    assert not result.brain.data[~result.mask].any() and result.brain.data.min() == 0
    # the white box, 4 mm voxels 15 ... 29, is 2 mm voxels 31 ... 58
    np.testing.assert_allclose(result.brain.data[34:56, 34:76, 34:56], 1000, rtol=0.05)
    assert result.mask[22:70, 22:86, 22:70].all() and not result.mask[:18].any()
    assert result.quality["brain_volume_ml"] == pytest.approx(box.sum() * 0.064)


# --- a run ---


@pytest.fixture
def arguments(tiny_study: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "bids_dir": tiny_study,
        "output_dir": tmp_path / "out",
        "analysis_level": ("participant",),
    }


def finished(status: str) -> Callable[..., list[Outcome]]:
    """A stand-in of `run_scans` in which every scan ends alike, the first one well."""

    def run_scans(scans: tuple[Scan, ...], _work: Any, *, crash: Any, **_keywords: Any) -> list:
        states = ["done", *[status] * (len(scans) - 1)]
        for scan, state in zip(scans, states):
            if state == "failed":
                crash(scan, "what happened")
        return [
            Outcome(scan, state, f"{scan.path}: bad.", 1.0) for scan, state in zip(scans, states)
        ]

    return run_scans


def run(arguments: dict[str, Any], **changes: Any) -> int:
    return participant.run(Settings(**arguments, **changes))


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        ("done", 0, "4 computed, 0 complete before, 0 failed"),
        ("skipped", 0, "1 computed, 3 complete before, 0 failed"),
        ("failed", 1, "1 computed, 0 complete before, 3 failed"),
    ],
)
def test_a_run_ends_with_its_sum(
    status: str, code: int, line: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(participant, "run_scans", finished(status))
    monkeypatch.setattr("bidsapp.settings.default_nprocs", lambda *_: 3)
    assert run(arguments) == code
    assert line in caplog.text
    out = arguments["output_dir"]
    (folder,) = (path for path in (out / "logs").iterdir() if path.is_dir())
    log = (folder / "log.txt").read_text()
    assert line in log and "Scans side by side: 3\n" in log
    assert Settings.from_toml((folder / "settings.toml").read_text()) == Settings(**arguments)
    crashes = sorted(path.name for path in folder.glob("crash-*.txt"))
    assert len(crashes) == (3 if status == "failed" else 0)
    for name in crashes:
        assert f"{name[6:-4]} failed: " in caplog.text and name in caplog.text
    assert (out / "dataset_description.json").exists() and (out / "dseg.tsv").exists()


def test_dry_run_lists_and_writes_nothing(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (arguments["bids_dir"] / "sub-03").mkdir()
    assert run(arguments, dry_run=True) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 4
    assert "no T1w image matches for sub-03" in said.err
    assert lines[0].startswith("sub-01: ") and lines[0].endswith("sub-01_brainage.json")
    assert not arguments["output_dir"].exists()


def test_dry_run_refuses_a_folder_of_something_else(arguments: dict[str, Any]) -> None:
    about = arguments["output_dir"] / "dataset_description.json"
    about.parent.mkdir()
    about.write_text('{"Name": "fMRIPrep"}')
    with pytest.raises(UserError, match="belongs to 'fMRIPrep'"):
        run(arguments, dry_run=True)


def test_dry_run_says_what_has_a_record(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    record = arguments["output_dir"] / "sub-01" / "anat" / "sub-01_brainage.json"
    record.parent.mkdir(parents=True)
    record.touch()
    assert run(arguments, dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(" (has a record)") for line in lines] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("nosuch",)}, "no model 'nosuch'; known are .*sfcn"),
        (
            {"models": ("sfcn",)},
            "--models sfcn: its weights are not part .* --model-file sfcn=PATH",
        ),
        ({"template": "NoSuchTemplate"}, "template NoSuchTemplate cannot be had"),
        ({"device": "cuda"}, "--device cuda: no GPU"),
        ({"participant_label": ("07",)}, "no participant 07.* 01, 02"),
        ({"session_label": ("a", "z")}, "no session z.* a, b"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_wrong_for_all_scans_is_said_before_the_first(
    dry_run: bool, changes: dict[str, Any], message: str, arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def unknown(name: str) -> None:
        raise UserError(f"The template {name} cannot be had.")

    monkeypatch.setattr("bidsapp.preprocessing.templates.load_template", unknown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(participant, "run_scans", lambda *_, **__: pytest.fail("a scan was begun"))
    with pytest.raises(UserError, match=message) as caught:
        run(arguments, dry_run=dry_run, **changes)
    assert caught.value.exit_code == 2
    assert not arguments["output_dir"].exists()


OWN_CARD = """
name = "own"
title = "A model of one's own"
version = "1"
summary = "For tests."
license = "MIT"
citation = "Nobody (2026)."
architecture = "linear"
weights_sha256 = "{sha256}"
[contract]
template = "MNI152NLin2009aSym"
degrees_of_freedom = 12
shape = [9, 10, 11]
affine = [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
skull_stripped = true
bias_corrected = true
intensity = "white_matter"
ages = [20, 80]
[uncertainty]
standard_deviation = 5
interval = [-8.0, 8.5]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[contract]", "[contract", "is not a valid model card"),
        ("weights_sha256", "version_sha256", "is not a valid model card"),
        ("{sha256}", "0" * 64, "are not those of their card"),
        ('"linear"', '"nosuch"', "no architecture named 'nosuch'"),
        ('"white_matter"', '"unheard"', "no intensity rule 'unheard'.*tissue_map"),
        ("freedom = 12", "freedom = 9", "must be 6 .* or 12"),
        ("MNI152NLin2009aSym", "NoSuchTemplate", "The model 'own' wants another template"),
    ],
)
def test_a_faulty_model_of_ones_own_is_refused_before_the_first_scan(
    old: str, new: str, message: str, arguments: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def unknown(name: str) -> None:
        raise UserError(f"The template {name} cannot be had.")

    monkeypatch.setattr("bidsapp.preprocessing.templates.load_template", unknown)
    monkeypatch.setattr(participant, "run_scans", finished("done"))
    weights = tmp_path / "own" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    card = weights.with_name("card.toml")
    own = {"models": ("own",), "model_file": (f"own={weights.parent}",)}
    card.write_text(OWN_CARD.replace(old, new).replace("{sha256}", sha256))
    with pytest.raises(UserError, match=message) as caught:
        run(arguments, **own)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value) and "own" in str(caught.value)
    assert not arguments["output_dir"].exists()
    card.write_text(OWN_CARD.replace("{sha256}", sha256))
    assert run(arguments, **own) == 0


@pytest.mark.parametrize("name", ["ensemble", "warp"])
def test_a_model_of_ones_own_may_not_have_a_name_that_records_use(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--model-file {name}=.*: records call something else"):
        run(arguments, model_file=(f"{name}={tmp_path}",))
    assert not arguments["output_dir"].exists()


def test_no_scan_is_nothing_to_do(arguments: dict[str, Any]) -> None:
    with pytest.raises(NothingToDo):
        run(arguments, session_label=("a",), participant_label=("01",))


def test_reports_only_processes_nothing(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participant, "run_scans", lambda *_, **__: pytest.fail("a scan was begun"))
    out = Derivatives(arguments["output_dir"], arguments["bids_dir"], TEMPLATE)
    scan = Scan(Path("x"), "bids:raw:sub-01/anat/sub-01_T1w.nii.gz", "sub-01", None, "sub-01",
                Demographics())  # fmt: skip
    out.write_json(out.record(scan), {"participant_id": "sub-01", "source": scan.source})
    arguments["bids_dir"] = arguments["bids_dir"] / "moved away"
    assert run(arguments, reports_only=True) == 0
    assert (arguments["output_dir"] / "sub-01.html").exists()
    assert not (arguments["output_dir"] / "sub-02.html").exists()
    with pytest.raises(NothingToDo, match=r"no record \(\*_brainage.json\) of these"):
        run(arguments, reports_only=True, participant_label=("02",))


@pytest.mark.parametrize(
    ("importance", "said"),
    [
        (("auto",), []),
        (("noise",), ["No tables of regions. "]),
        (("noise", "occlusion"), ["No tables of regions, no occlusion maps. "]),
    ],
)
def test_that_there_is_no_atlas_is_said_before_the_first_scan_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importance: tuple[str, ...], said: list[str]
) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "empty"))
    load_atlas.cache_clear()
    explain.atlas_of.cache_clear()
    settings = Settings(tmp_path, tmp_path / "out", ("participant",), importance=importance)
    why = "The atlas CerebrA is not in TEMPLATEFLOW_HOME; --atlas cerebra fetches it once."
    assert explain.lacking(settings, "participant") == [line + why for line in said]
