"""The documentation says what the code does: outputs, options and quality limits."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.group import simulate
from bidsapp import group, group_tables, participant, toolbox
from bidsapp.cli import build_parser
from bidsapp.errors import ScanError
from bidsapp.preprocessing.image import Image
from bidsapp.preprocessing.quality import LIMITS
from bidsapp.preprocessing.templates import Template
from bidsapp.progress import Outcome
from bidsapp.settings import Settings
from bidsapp.statistics import association
from bidsapp.statistics.accuracy import Accuracy
from models.contract import InputContract, ModelCard, Uncertainty
from models.prediction import BrainAgeModel
from models.segmentation.labels import STRUCTURES

DOCS = Path(__file__).resolve().parents[1] / "docs"
AFFINE = np.array([[2.0, 0, 0, -64], [0, 2, 0, -64], [0, 0, 2, -64], [0, 0, 0, 1]])


class ByIntensity(nn.Module):
    """Stands for the segmentation network: dark is ventricle, grey is cortex, bright is white."""

    multiple = 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, len(STRUCTURES) + 1, *image.shape[2:])
        for channel, low, high in ((4, 0.1, 0.4), (2, 0.4, 0.8), (3, 0.8, 9)):
            logits[0, channel] = 20.0 * ((image[0, 0] >= low) & (image[0, 0] < high))
        logits[0, 0] = 10
        logits[0, -1, : image.shape[2] // 2] = 10
        return logits


class MeanOfImage(nn.Module):
    """Stands for a brain-age network."""

    def __init__(self) -> None:
        super().__init__()
        self.years = nn.Parameter(torch.tensor(40.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.years + image.mean((1, 2, 3, 4))


def phantom() -> np.ndarray:
    """A ball of white matter in cortex with a ventricle, and noise; (64, 64, 64), 2 mm."""
    place = np.indices((64, 64, 64)) - 31.5
    radius = np.sqrt((place**2 / np.array([1, 1.2, 0.9])[:, None, None, None]).sum(0))
    ball = np.select([radius < 7, radius < 18, radius < 23], [20, 100, 60], 0).astype(np.float32)
    return ball * np.random.default_rng(1).normal(1, 0.02, ball.shape).astype(np.float32)


def stub_toolbox() -> toolbox.Toolbox:
    brain = phantom()
    template = Template("MNI152NLin2009aSym", Image(brain, AFFINE), brain > 0, "stub", "0" * 64)
    contract = InputContract(
        template=template.name,
        degrees_of_freedom=12,
        shape=toolbox.GRID_SHAPE,
        affine=toolbox.GRID_AFFINE.tolist(),
        skull_stripped=True,
        bias_corrected=True,
        intensity="white_matter",
        ages=(20, 80),
    )
    error = Uncertainty(5.0, (-8.0, 8.0))
    card = ModelCard("stub", "Stub", "1", "None.", "CC0-1.0", "None.", contract, error)
    on_grid = template.on(toolbox.GRID_SHAPE, toolbox.GRID_AFFINE)
    model = BrainAgeModel(card, [MeanOfImage().eval()])
    tissue = np.zeros((3, *toolbox.GRID_SHAPE), np.float32)
    tissue[0, 20:60, 20:60, 20:60] = 1
    return toolbox.Toolbox(
        ByIntensity(), "0" * 64, template, *on_grid, lambda *_: tissue, {"stub": model}
    )


def one_after_the_other(scans: Any, work: Any, *, crash: Any, **_others: Any) -> list[Outcome]:
    """Run scans in this process, where the stubs are."""
    outcomes = []
    for scan in scans:
        try:
            outcomes.append(Outcome(scan, work(scan), "", 0.0))
        except ScanError as error:
            crash(scan, str(error))
            outcomes.append(Outcome(scan, "failed", str(error), 0.0))
    return outcomes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of both levels on two scans, of which the second is damaged."""
    folder = tmp_path_factory.mktemp("docs")
    study, out = folder / "study", folder / "out"
    for label in ("01", "02"):
        (study / f"sub-{label}" / "anat").mkdir(parents=True)
    (study / "dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.9.0"}')
    (study / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t40\tF\n")
    nib.save(nib.Nifti1Image(phantom(), AFFINE), study / "sub-01/anat/sub-01_T1w.nii.gz")
    (study / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"")
    tools = stub_toolbox()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participant, "toolbox", lambda settings: tools)
        patch.setattr(participant, "run_scans", one_after_the_other)
        settings = Settings(study, out, ("participant", "group"), nprocs=1)
        assert participant.run(settings) == 1
        assert group.run(settings) == 0
    return out


@pytest.fixture(scope="module")
def group_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the group level on simulated records that have everything."""
    folder = tmp_path_factory.mktemp("group") / "study"
    simulate(folder, 40, 1)
    settings = Settings(folder / "bids", folder / "out", ("group",), permutations=0,
                        phenotype_terms=("score",))  # fmt: skip
    assert group.run(settings) == 0
    return folder / "out"


def test_every_file_is_documented_and_nothing_else(results: Path) -> None:
    files = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    files = {name for name in files if not re.match(r"(figures/)?group[_.]", name)}
    images = {name for name in files if re.search(r"/anat/.*(nii\.gz|_xfm\.txt)$", name)}
    sidecars = {re.sub(r"\.(nii\.gz|txt)$", ".json", name) for name in images}
    assert sidecars <= files
    written = {_general_name(name) for name in files - sidecars}
    titles = "For the whole folder", "For each participant and scan"
    documented = {
        name.replace("[ses-<label>/]", "") for title in titles for name in _table("file", title)
    }
    assert documented == written


def test_every_key_of_a_sidecar_is_documented(results: Path) -> None:
    paths = [p for p in results.rglob("anat/*.json") if not p.name.endswith("_brainage.json")]
    keys = {key for path in paths for key in json.loads(path.read_text())}
    assert keys == _table("key", "For each participant and scan")


def test_every_key_of_a_record_is_documented_and_nothing_else(results: Path) -> None:
    record = json.loads((results / "sub-01/anat/sub-01_brainage.json").read_text())
    steps = record.pop("steps")
    keys = set(_leaves(record, ())) | {"steps", "steps.step"}
    for step in steps:
        keys |= set(_leaves(step, ("steps", step.pop("step"))))
    written = {re.sub(r"\.(stub|ensemble)\b", ".MODEL", key) for key in keys}
    assert _table("key", "The record") == written


def test_every_file_of_the_group_level_is_documented(group_results: Path) -> None:
    files = [*group_results.glob("group*"), *group_results.glob("figures/*")]
    written = {path.relative_to(group_results).as_posix() for path in files}
    documented = _table("file", "At the group level")
    of_maps = {name for name in documented if re.search("importance|regions", name)}
    assert documented - of_maps == written


def test_every_column_of_the_group_tables_is_documented() -> None:
    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    for name, columns in {"brainage": group.COLUMNS, **group_tables.OF}.items():
        part = page.split(f"### group_{name}.tsv\n")[1].split("\n##")[0]
        rows = [line.split(" | ")[0] for line in part.splitlines() if line.startswith("| `")]
        assert {word for row in rows for word in re.findall(r"`([^`]+)`", row)} == set(columns)


def test_the_tables_of_the_group_level_have_the_columns_of_the_statistics(
    group_results: Path,
) -> None:
    for name, columns in {"brainage": group.COLUMNS, **group_tables.OF}.items():
        described = json.loads((group_results / f"group_{name}.json").read_text())
        assert list(described) == list(columns)
    assert set(group_tables.STATISTICS) == set(association.COLUMNS)
    found = {field.name for field in fields(Accuracy)}
    assert found | {"model", "stratum", "level", "prediction"} == set(group_tables.ACCURACY)


def test_every_key_of_the_corrections_is_documented(group_results: Path) -> None:
    content = json.loads((group_results / "group_bias_correction.json").read_text())
    keys = {key for key in content if key != "models"}
    keys |= {f"models.MODEL.{key}" for of in content["models"].values() for key in of}
    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    part = page.split("### group_bias_correction.json\n")[1].split("\n##")[0]
    assert keys == set(re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE))


def test_usage_is_that_of_the_parser() -> None:
    program = _load(DOCS / "make_usage.py")
    assert program.PAGE.read_text(encoding="utf-8") == program.usage(build_parser()), (
        "run python docs/make_usage.py"
    )


def test_usage_names_every_option() -> None:
    page = (DOCS / "usage.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", page))
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert {flag for flag in flags if "_" not in flag} <= named


def test_quality_limits_are_those_of_the_code() -> None:
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)) == {
        name: _limits(low, high) for name, (low, high) in LIMITS.items()
    }


def test_every_quality_figure_is_explained(results: Path) -> None:
    record = json.loads((results / "sub-01/anat/sub-01_brainage.json").read_text())
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^- `(\w+)`:", page, re.MULTILINE))
    assert explained == record["quality"].keys() - {"passed", "flags"}


def _general_name(name: str) -> str:
    """A file name as in the documentation."""
    name = re.sub(r"^logs/[^/]+/", "logs/<run>/", name)
    name = re.sub(r"(figures/|anat/|crash-)sub-\w\w(?=[_.])", r"\1STEM", name)
    return name.replace("MNI152NLin2009aSym", "TPL").replace("sub-01", "sub-<label>")


def _leaves(value: Any, above: tuple[str, ...]) -> Iterator[str]:
    """Dotted paths of all values in nested dictionaries."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, (*above, key))
        else:
            yield ".".join((*above, key))


def _table(column: str, title: str) -> set[str]:
    """Names in the first column of a table of outputs.md."""
    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    table = section.split(f"| {column} | content |\n| --- | --- |\n")[1].split("\n\n")[0]
    first = [row.split(" | ")[0] for row in table.splitlines()]
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def _limits(low: float, high: float) -> str:
    if np.isinf(high):
        return f"at least {low:g}"
    return f"{low:g} to {high:g}" if low > 0 else f"at most {high:g}"


def _load(path: Path) -> ModuleType:
    """Import a program that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_was_measured() -> None:
    """Its table of errors is that of the evaluation, rounded."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (DOCS / "evaluation.md").read_text().splitlines()
            if line.startswith("|") and "| ensemble |" in line]  # fmt: skip
    measured = {(row[0], row[2]): (float(row[4].split()[0]), float(row[10]))
                for row in rows if len(row) == 11 and "[" in row[4]}  # fmt: skip
    readme = (DOCS.parent / "README.md").read_text()
    for words, key in {
        "other people of IXI, out of fold": ("IXI", "out of fold"),
        "other people of ds002748, out of fold": ("ds002748", "out of fold"),
        "ds002748, an unseen scanner": ("ds002748", "unseen; trained on ixi alone"),
    }.items():
        said = next(line for line in readme.splitlines() if words in line).split("|")[3:5]
        assert [float(cell) for cell in said] == pytest.approx(measured[key], abs=0.0501)
