"""The participant level on real scans, as a user runs it: ``run.py`` in a process of its own.

One data set of four sound scans and two broken ones is processed twice: in one go with one
process, and with two processes, killed, ended and taken up again in between.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp.settings import Settings
from models.contract import TISSUES
from models.registry import embedded
from models.segmentation.labels import OUTER_CSF

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = Settings.template
SOUND = {
    "sub-001": "pumi/sub-001",
    "sub-01": "ds002748/sub-01",  # its skull is stripped
    "sub-IXI013": "ixi/sub-IXI013",
    "sub-IXI646": "ixi/sub-IXI646",
}
BROKEN = {"sub-4D": "holds 2 volumes", "sub-cut": "is damaged or truncated"}
LONGEST = 600  # seconds that any wait may take

pytestmark = pytest.mark.integration


@dataclass
class Run:
    """A finished run of the app."""

    code: int
    text: str


@dataclass
class Output:
    """A folder that was filled in one go, and what was in it and in the input then."""

    folder: Path
    run: Run
    files: set[str]
    input_before: dict[str, bytes]


@dataclass
class History:
    """What was seen of the output folder while its run was killed, ended and taken up again."""

    folder: Path
    killed: Run = field(default_factory=lambda: Run(0, ""))
    ended: Run = field(default_factory=lambda: Run(0, ""))
    completed: Run = field(default_factory=lambda: Run(0, ""))
    after_kill: dict[str, bytes] = field(default_factory=dict)
    after_end: dict[str, bytes] = field(default_factory=dict)
    done_when_ended: dict[str, int] = field(default_factory=dict)


# --- what is run ---


@pytest.fixture(scope="module")
def study(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links and copies of real scans, a file cut in half, and one of two volumes."""
    weights = REPOSITORY / "models" / "segmentation" / "weights.safetensors"
    if not weights.exists():
        pytest.skip(f"no segmentation network: {weights} is absent")
    root = tmp_path_factory.mktemp("study")
    paths = {name: root / name / "anat" / f"{name}_T1w.nii.gz" for name in (*SOUND, *BROKEN)}
    for path in paths.values():
        path.parent.mkdir(parents=True)
    for name, folder in SOUND.items():
        source = shared_data / folder / "anat" / f"{Path(folder).name}_T1w.nii.gz"
        if name == "sub-IXI013":
            paths[name].symlink_to(source)  # as DataLad has them
        else:
            shutil.copyfile(source, paths[name])
    scan = nib.load(paths["sub-001"])
    twice = np.stack([np.asarray(scan.dataobj)] * 2, -1)
    nib.save(nib.Nifti1Image(twice, scan.affine), paths["sub-4D"])
    content = paths["sub-IXI646"].read_bytes()
    paths["sub-cut"].write_bytes(content[: len(content) // 2])
    description = {"Name": "Real scans", "BIDSVersion": "1.9.0", "License": "n/a"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\n" + "sub-001\t26\tF\nsub-01\t39\tn/a\nsub-IXI013\t46.71\tM\n"
    )
    return root


def start(study: Path, out: Path, *options: str) -> tuple[subprocess.Popen, Path]:
    """Begin a run from a folder of its own; its console goes to a file."""
    console = out.parent / f"{out.name}-console.txt"
    with console.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "run.py", study, out, *options],
            cwd=out.parent, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return process, console


def run(study: Path, out: Path, *options: str) -> Run:
    process, console = start(study, out, *options)
    return Run(process.wait(LONGEST), console.read_text())


@pytest.fixture(scope="module")
def output(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """One process, undisturbed."""
    out, before = tmp_path_factory.mktemp("one") / "out", contents(study)
    done = run(study, out, "participant", "--nprocs", "1")
    return Output(out, done, set(contents(out)), before)


@pytest.fixture(scope="module")
def history(study: Path, tmp_path_factory: pytest.TempPathFactory) -> History:
    """Two processes; kill -9 after the first scan, SIGTERM after the next, and then to the end."""
    history = History(tmp_path_factory.mktemp("two") / "out")
    options = ("participant", "--nprocs", "2")
    history.killed = interrupted(study, history.folder, options, signal.SIGKILL, 1)
    history.after_kill = contents(history.folder)
    history.ended = interrupted(study, history.folder, options, signal.SIGTERM, 2)
    history.after_end = contents(history.folder)
    history.done_when_ended = times(history.folder, records(history.folder))
    history.completed = run(study, history.folder, *options)
    return history


def interrupted(
    study: Path, out: Path, options: tuple[str, ...], number: signal.Signals, finished: int
) -> Run:
    """A run that gets a signal when there are `finished` records, in the middle of others."""
    process, console = start(study, out, *options)
    try:
        wait_until(lambda: len(records(out)) >= finished or process.poll() is not None)
        assert process.poll() is None, console.read_text()
        process.send_signal(number)
        code = process.wait(60)
        wait_until(lambda: not working(process.pid))
    finally:
        if working(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return Run(code, console.read_text())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def working(group: int) -> bool:
    """Whether any process of a process group still runs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


# --- what is looked at ---


def contents(folder: Path) -> dict[str, bytes]:
    """Hash of every file below a folder, links followed."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def times(folder: Path, names: Iterator[str] | list[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def records(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.glob("sub-*/anat/*_brainage.json"))


def record(out: Path, participant: str) -> dict[str, Any]:
    return json.loads((out / participant / "anat" / f"{participant}_brainage.json").read_text())


def results(out: Path) -> dict[str, bytes]:
    """Every file of every scan, byte for byte, but for the seconds in its record."""
    found = {
        name: (out / name).read_bytes()
        for name in contents(out)
        if name.startswith("sub-") and name.count("/") and not name.endswith("_brainage.json")
    }
    for name in records(out):
        about = json.loads((out / name).read_text())
        del about["seconds"]
        found[name] = json.dumps(about).encode()
    return found


def outputs_of(stem: str) -> set[str]:
    """The files of a scan, as the contract lists them."""
    space = f"{stem}_space-{TEMPLATE}_res-2"
    images = [f"{stem}_desc-brain_mask", f"{stem}_dseg", f"{space}_desc-preproc_T1w",
              f"{space}_desc-brain_mask",
              *(f"{space}_label-{tissue}{desc}_probseg" for tissue in TISSUES
                for desc in ("", "_desc-modulated"))]  # fmt: skip
    ways = [
        f"{stem}_from-{a}_mode-image_xfm" for a in (f"T1w_to-{TEMPLATE}", f"{TEMPLATE}_to-T1w")
    ]
    return {
        *(f"{stem}/anat/{image}{end}" for image in images for end in (".nii.gz", ".json")),
        *(f"{stem}/anat/{way}{end}" for way in ways for end in (".txt", ".json")),
        f"{stem}/anat/{stem}_brainage.json",
        *(f"{stem}/figures/{stem}_desc-{name}_T1w.png"
          for name in ("mask", "segmentation", "registration", "registered", "template")),
        f"{stem}.html",
    }  # fmt: skip


# --- one run ---


def test_sound_scans_are_done_and_broken_ones_named(output: Output) -> None:
    out, done = output.folder, output.run
    assert done.code == 1, done.text
    assert "4 computed, 0 complete before, 2 failed" in done.text
    last = done.text.splitlines()[-4:]
    for name, reason in BROKEN.items():
        (line,) = (line for line in last if line.startswith(f"{name} failed: "))
        assert f"{name}_T1w.nii.gz" in line and reason in line
        (crash,) = out.glob(f"logs/*/crash-{name}.txt")
        assert str(crash) in line and reason in crash.read_text()
    assert "Traceback" not in done.text


def test_every_output_is_there_and_no_other(output: Output) -> None:
    logs = {name for name in output.files if name.startswith("logs/")}
    expected = {"dataset_description.json", ".bidsignore", "README", "dseg.tsv", "dseg.json"}
    assert output.files - logs == expected.union(*map(outputs_of, SOUND))
    crashes = {f"crash-{name}.txt" for name in BROKEN}
    assert {Path(name).name for name in logs} == {
        "CITATION.md", "settings.toml", "log.txt", *crashes
    }  # fmt: skip
    assert len(logs) == 5


def test_the_bids_validator_finds_no_error(output: Output) -> None:
    beside = Path(sys.executable).parent / "bids-validator-deno"
    validator = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if not validator:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run(
        [validator, "--datasetTypes", "derivative", "--json", output.folder],
        capture_output=True,
        text=True,
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []


def test_the_input_is_as_it_was(study: Path, output: Output, history: History) -> None:
    assert contents(study) == output.input_before


@pytest.mark.parametrize("name", SOUND)
def test_images_lie_on_their_grids(name: str, study: Path, output: Output) -> None:
    anat = output.folder / name / "anat"
    scan = nib.load(study / name / "anat" / f"{name}_T1w.nii.gz")
    mask, dseg = (nib.load(anat / f"{name}_{kind}.nii.gz") for kind in ("desc-brain_mask", "dseg"))
    for image in (mask, dseg):
        assert image.shape == scan.shape and np.allclose(image.affine, scan.affine, atol=1e-4)
        assert image.get_data_dtype() == np.uint8
    inside, labels = (np.asarray(image.dataobj) for image in (mask, dseg))
    assert set(np.unique(inside)) == {0, 1} and 1 < labels.max() <= 19
    space = anat / f"{name}_space-{TEMPLATE}_res-2"
    brain, template_mask = (
        nib.load(f"{space}_desc-{kind}.nii.gz") for kind in ("preproc_T1w", "brain_mask")
    )
    assert brain.shape == template_mask.shape == (91, 109, 91)
    voxels = brain.get_fdata()
    assert np.isfinite(voxels).all() and voxels.min() == 0
    assert not voxels[np.asarray(template_mask.dataobj) == 0].any()


@pytest.mark.parametrize("name", SOUND)
def test_sidecars_say_where_from_and_how(name: str, output: Output) -> None:
    for path in sorted((output.folder / name / "anat").glob("*.json")):
        about = json.loads(path.read_text())
        if not path.name.endswith("_brainage.json"):
            assert about["Sources"][0] == f"bids:raw:{name}/anat/{name}_T1w.nii.gz"
            assert about["Steps"] and all("step" in step for step in about["Steps"])


@pytest.mark.parametrize("name", SOUND)
def test_records_are_complete(name: str, output: Output) -> None:
    about = record(output.folder, name)
    ages = {"sub-001": 26, "sub-01": 39, "sub-IXI013": 46.71, "sub-IXI646": None}
    assert (about["participant_id"], about["age"]) == (name, ages[name])
    volumes, quality = about["volumes_ml"], about["quality"]
    assert 900 < volumes["brain"] < 2100
    assert volumes["gray_matter"] > 0 and volumes["white_matter"] > 0 and volumes["ventricles"] > 0
    assert (volumes["csf"] is None) == (name == "sub-01")
    figures = ("registration_correlation", "mask_overlap", "cnr", "snr", "brain_volume_ml")
    assert all(np.isfinite(quality[figure]) for figure in figures)
    assert quality["passed"] == (quality["flags"] == [])
    assert quality["mask_overlap"] > 0.85
    steps = ["segmentation", "bias_field", "registration", "resampling", "warp", "intensity"]
    assert [step["step"] for step in about["steps"]] == steps
    assert set(about["predictions"]) == ({*embedded(), "ensemble"} if embedded() else set())


@pytest.mark.parametrize("name", SOUND)
def test_ages_are_predicted(name: str, output: Output) -> None:
    if not embedded():
        pytest.skip("no brain-age model has its weights in the repository")
    about = record(output.folder, name)
    for prediction in about["predictions"].values():
        low, high = prediction["interval"]
        assert 5 < prediction["predicted_age"] < 100
        assert low < prediction["predicted_age"] < high
        if about["age"] is None:
            assert prediction["brain_age_gap"] is None
        else:
            gap = prediction["predicted_age"] - about["age"]
            assert prediction["brain_age_gap"] == pytest.approx(gap)


def test_a_stripped_scan_keeps_its_mask(study: Path, output: Output) -> None:
    """And heads do not pass for stripped."""
    from scipy.ndimage import binary_fill_holes

    stripped = {
        name: record(output.folder, name)["steps"][0]["already_stripped"] for name in SOUND
    }
    assert stripped == {name: name == "sub-01" for name in SOUND}
    scan = nib.load(study / "sub-01" / "anat" / "sub-01_T1w.nii.gz").get_fdata()
    mask = nib.load(output.folder / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, binary_fill_holes(scan > 0))


@pytest.mark.parametrize("name", ["sub-IXI013", "sub-IXI646"])
def test_brains_are_those_of_the_reference(name: str, shared_data: Path, output: Output) -> None:
    """The automatic label maps of these heads: above 0 lie the brain and the fluid around it."""
    (path,) = (shared_data / "ixi" / "derivatives" / "dlmuse" / name).rglob("*_dseg.nii.gz")
    truth = np.asarray(nib.load(path).dataobj) > 0
    mask = nib.load(output.folder / name / "anat" / f"{name}_desc-brain_mask.nii.gz")
    found = np.asarray(mask.dataobj) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97


def test_the_written_transform_is_the_one_that_was_used(study: Path, output: Output) -> None:
    """ANTs, given mask and transform, finds the brain where the app's own resampling put it."""
    import ants

    name, template_to_scan = "sub-IXI013", f"from-T1w_to-{TEMPLATE}_mode-image_xfm.txt"
    anat = output.folder / name / "anat"
    fixed = ants.image_read(f"{anat}/{name}_space-{TEMPLATE}_res-2_desc-brain_mask.nii.gz")
    labels = ants.image_read(f"{anat}/{name}_dseg.nii.gz")
    mask = labels.new_image_like((labels.numpy() > OUTER_CSF).astype(np.float32))
    moved = ants.apply_transforms(
        fixed, mask, [f"{anat}/{name}_{template_to_scan}"], interpolator="linear"
    )
    ours, theirs = fixed.numpy() > 0, moved.numpy() > 0.5
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.99


# --- again, with other numbers of processes, and after a violent end ---


def test_a_second_run_computes_nothing(study: Path, output: Output) -> None:
    out = output.folder
    names = list(results(out))
    before = times(out, names)
    done = run(study, out, "participant", "--nprocs", "2")
    assert done.code == 1, done.text
    assert "0 computed, 4 complete before, 2 failed" in done.text
    assert times(out, names) == before


def test_any_number_of_processes_gives_the_same_bits(output: Output, history: History) -> None:
    assert history.completed.code == 1, history.completed.text
    one, two = results(output.folder), results(history.folder)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_a_killed_run_loses_nothing_that_was_finished(history: History) -> None:
    assert history.killed.code == -signal.SIGKILL
    assert history.ended.code == 143, history.ended.text
    assert "Ended by SIGTERM" in history.ended.text and "goes on from there" in history.ended.text
    kept = len(history.done_when_ended)
    assert 2 <= kept < len(SOUND)
    assert f"{4 - kept} computed, {kept} complete before, 2 failed" in history.completed.text
    for name, when in history.done_when_ended.items():
        assert (history.folder / name).stat().st_mtime_ns == when
        for image in outputs_of(Path(name).parts[0]) - {f"{Path(name).parts[0]}.html"}:
            assert contents(history.folder)[image] == history.after_end[image]


def test_no_half_file_under_a_final_name(output: Output, history: History) -> None:
    """What was there after the signals is, byte for byte, what a run in one go writes."""
    whole = contents(output.folder)
    for seen in (history.after_kill, history.after_end):
        finals = {name for name in seen if not Path(name).name.startswith(".brainage-")}
        images = {name for name in finals if name.endswith((".nii.gz", ".txt", ".png"))}
        images = {name for name in images if name.startswith("sub-")}
        assert images
        assert [name for name in images if seen[name] != whole[name]] == []
    for path in history.folder.rglob("*"):
        if path.name.endswith(".json"):
            json.loads(path.read_text())
        elif path.name.endswith(".nii.gz"):
            gzip.decompress(path.read_bytes())


def test_both_levels_in_one_call(study: Path, output: Output) -> None:
    if not embedded():
        pytest.skip("no brain-age model has its weights in the repository")
    out = output.folder
    named = ["01", "IXI013"]
    done = run(study, out, "participant", "group", "--participant-label", *named)
    assert done.code == 0, done.text
    lines = (out / "group_brainage.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(named) * (len(embedded()) + 1)
