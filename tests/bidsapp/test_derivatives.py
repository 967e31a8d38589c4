import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp import __version__
from bidsapp.demographics import Demographics
from bidsapp.derivatives import Derivatives, new_run_id
from bidsapp.errors import UserError
from bidsapp.files import TEMPORARY
from bidsapp.study import Scan
from models.contract import TISSUES

TEMPLATE = "MNI152NLin2009aSym"
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
LABELS = [
    SimpleNamespace(index=1, name="CSF", abbreviation="CSF", color="#56B4E9", tissue="CSF",
                    hemisphere=""),
    SimpleNamespace(index=2, name="Left cortex", abbreviation="CTX-L", color="#E69F00",
                    tissue="GM", hemisphere="L"),
]  # fmt: skip


def scan_of(stem: str) -> Scan:
    participant, *others = stem.split("_")
    session = others[0] if others and others[0].startswith("ses-") else None
    folder = f"{participant}/{session}/anat" if session else f"{participant}/anat"
    source = f"bids:raw:{folder}/{stem}_T1w.nii.gz"
    return Scan(Path(f"/in/{stem}"), source, participant, session, stem, Demographics())


SCAN = scan_of("sub-01")
LONG = scan_of("sub-02_ses-a_acq-mprage_rec-norm_run-1")


@pytest.fixture
def output(tmp_path: Path, tiny_study: Path) -> Derivatives:
    return Derivatives(tmp_path / "out", tiny_study, TEMPLATE)


def write_everything(output: Derivatives, scan: Scan) -> None:
    voxels = np.ones((4, 5, 6))
    xfm = output.xfm(scan, "T1w", TEMPLATE), output.xfm(scan, TEMPLATE, "T1w")
    sources = {"Sources": [scan.source]}
    output.write_image(output.brain_mask(scan), voxels, AFFINE, sources, np.uint8)
    output.write_image(output.dseg(scan), voxels, AFFINE, sources, np.uint8)
    output.write_image(output.preproc(scan), voxels, AFFINE, sources, np.float32)
    output.write_image(output.template_mask(scan), voxels, AFFINE, sources, np.uint8)
    for tissue in TISSUES:
        for path in (output.tissue(scan, tissue), output.modulated(scan, tissue)):
            output.write_image(path, voxels, AFFINE, sources, np.float32)
    output.write_image(output.importance(scan, "wssa", "noise"), voxels, AFFINE, {}, np.float32)
    for path in xfm:
        output.write_transform(path, np.eye(4), sources)
    output.write_bytes(output.figures(scan.participant_id) / f"{scan.stem}_mask.png", b"png")
    output.write_text(output.report(scan.participant_id), "<html></html>")
    output.write_json(output.record(scan), {"participant_id": scan.participant_id})


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# --- names ---


def test_file_list_is_that_of_the_contract(output: Derivatives) -> None:
    output.prepare()
    output.write_label_table(LABELS)
    write_everything(output, SCAN)
    write_everything(output, LONG)
    expected = {"dataset_description.json", ".bidsignore", "README", "logs/CITATION.md",
                "dseg.tsv", "dseg.json"}  # fmt: skip
    for anat, scan in (("sub-01/anat", SCAN), ("sub-02/ses-a/anat", LONG)):
        space = f"space-{TEMPLATE}_res-2"
        images = ["desc-brain_mask", "dseg", f"{space}_desc-preproc_T1w",
                  *(f"{space}_label-{tissue}{desc}_probseg" for tissue in TISSUES
                    for desc in ("", "_desc-modulated")),
                  f"{space}_desc-brain_mask", f"{space}_desc-wssanoise_importance"]  # fmt: skip
        names = [image + end for image in images for end in (".nii.gz", ".json")]
        names += [
            f"from-{a}_to-{b}_mode-image_xfm{end}"
            for a, b in (("T1w", TEMPLATE), (TEMPLATE, "T1w"))
            for end in (".txt", ".json")
        ]
        names += ["brainage.json"]
        expected |= {f"{anat}/{scan.stem}_{name}" for name in names}
        expected |= {f"{scan.participant_id}.html"}
        expected |= {f"{scan.participant_id}/figures/{scan.stem}_mask.png"}
    assert files(output.root) == expected


def test_other_names(output: Derivatives) -> None:
    run = output.root / "logs" / "r"
    assert output.log_dir("r") == run
    assert output.crash("r", SCAN.stem) == run / "crash-sub-01.txt"
    assert output.group("brainage.tsv") == output.root / "group_brainage.tsv"
    assert output.group_importance("wssa", "grad-cam").name == (
        f"group_space-{TEMPLATE}_res-2_desc-wssagradcam_importance.nii.gz"
    )
    assert output.uri(output.dseg(LONG)) == f"bids::sub-02/ses-a/anat/{LONG.stem}_dseg.nii.gz"


def test_run_ids_differ() -> None:
    first, second = new_run_id(), new_run_id()
    assert first != second
    assert time.strptime(first[:15], "%Y%m%d-%H%M%S")


@pytest.fixture(scope="module")
def validator() -> str:
    beside = Path(sys.executable).parent / "bids-validator-deno"
    found = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if not found:
        pytest.skip("bids-validator-deno is not installed")
    return found


def validator_errors(validator: str, root: Path) -> list[str]:
    done = subprocess.run(
        [validator, "--datasetTypes", "derivative", "--json", str(root)],
        capture_output=True,
        text=True,
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i.get("severity") == "error"]


def test_bids_validator_finds_no_error(output: Derivatives, validator: str) -> None:
    output.prepare()
    output.write_label_table(LABELS)
    for scan in (SCAN, LONG):
        write_everything(output, scan)
    output.write_text(output.crash("r", SCAN.stem), "Traceback")
    output.write_table(output.group("brainage.tsv"), [{"age": 1}], {"age": "Years"})
    output.write_image(
        output.group_importance("wssa", "noise"), np.ones((3, 3, 3)), AFFINE, {}, "f4"
    )
    (output.dseg(SCAN).parent / ".brainage-0123.tmp").write_bytes(b"left by a killed process")
    assert validator_errors(validator, output.root) == []
    stray = output.dseg(SCAN).parent / "sub-01_nonsense.nii.gz"
    stray.write_bytes(b"")
    assert any(stray.name in error for error in validator_errors(validator, output.root))


# --- the folder ---


def description(output: Derivatives) -> dict[str, Any]:
    return json.loads((output.root / "dataset_description.json").read_text())


def test_description(output: Derivatives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINAGE_IMAGE", "bids/brainage")
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    path = output.study_root / "dataset_description.json"
    path.write_text(json.dumps({"Name": "x", "License": "CC0", "DatasetDOI": "doi:10.1/2"}))
    assert output.prepare() == []
    found = description(output)
    assert found["DatasetType"] == "derivative"
    assert found["License"] == "CC0"
    container = {"Type": "docker", "Tag": f"bids/brainage:{__version__}"}
    assert found["GeneratedBy"] == [
        {"Name": "brainage", "Version": __version__, "Container": container}
    ]
    raw = output.study_root.as_uri()
    assert found["SourceDatasets"] == [{"URL": raw, "Name": "x", "DOI": "doi:10.1/2"}]
    assert found["DatasetLinks"]["raw"] == raw


def test_singularity_container(output: Derivatives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINAGE_IMAGE", "bids/brainage")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/brainage.sif")
    output.prepare()
    container = {"Type": "singularity", "Tag": f"bids/brainage:{__version__}"}
    assert description(output)["GeneratedBy"][0]["Container"] == container


def test_link_to_a_data_set_around_the_output(tiny_study: Path) -> None:
    output = Derivatives(tiny_study / "derivatives" / "brainage", tiny_study, TEMPLATE)
    output.prepare()
    assert description(output)["DatasetLinks"]["raw"] == "../.."


def test_preparing_again_changes_nothing(output: Derivatives) -> None:
    output.prepare()
    before = {path: path.stat().st_mtime_ns for path in output.root.rglob("*") if path.is_file()}
    output.prepare()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_own_lines_readme_and_citation_are_kept(output: Derivatives) -> None:
    output.root.mkdir()
    (output.root / ".bidsignore").write_text("mine.txt\n*.html\n")
    (output.root / "README").write_text("mine")
    output.prepare(citation="cite this")
    output.prepare()
    lines = (output.root / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["mine.txt", "*.html"]
    assert len(lines) == len(set(lines)) > 5
    assert (output.root / "README").read_text() == "mine"
    assert (output.root / "logs" / "CITATION.md").read_text() == "cite this"


def test_group_level_keeps_the_links_of_the_participant_level(output: Derivatives) -> None:
    output.prepare()
    before = description(output)
    Derivatives(output.root, output.root / "nowhere", TEMPLATE).prepare()
    assert description(output) == before


def test_names_of_the_data_sets_it_was_made_from(output: Derivatives) -> None:
    assert output.source_names() == {output.study_root.name}
    output.prepare()
    gone = Derivatives(output.root, output.root / "elsewhere", output.template)
    assert gone.source_names() == {output.study_root.name, "elsewhere"}


def test_folder_of_another_version_is_warned_about(output: Derivatives) -> None:
    output.prepare()
    path = output.root / "dataset_description.json"
    path.write_text(path.read_text().replace(f'"{__version__}"', '"0.0.1"'))
    (warning,) = output.prepare()
    assert f"was written by version 0.0.1, this is {__version__}" in warning
    assert output.prepare() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep"}]}', "belongs to 'fMRIPrep'"),
        ('{"Name": "Raw", "DatasetType": "raw"}', "belongs to 'Raw'"),
        ("{}", "belongs to 'unknown'"),
        ("{", "cannot be read"),
    ],
)
def test_folder_of_something_else_is_refused(output: Derivatives, text: str, message: str) -> None:
    output.root.mkdir()
    path = output.root / "dataset_description.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        output.prepare()
    assert files(output.root) == {path.name}
    assert path.read_text() == text


def of_data_set(output: Derivatives, folder: str, about: dict[str, Any]) -> Derivatives:
    """The same output folder for a data set of this place and description."""
    root = output.study_root.parent / folder
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(about))
    return Derivatives(output.root, root, TEMPLATE)


DOI = "doi:10.1/2"


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (("a", {"Name": "A"}), ("b", {"Name": "B"}), "refused"),
        (("a", {"Name": "A"}), ("b", {"Name": "A"}), ""),  # moved
        (("a", {"Name": "A"}), ("a", {"Name": "B"}), ""),  # renamed
        (("a", {"Name": "A", "DatasetDOI": DOI}), ("b", {"Name": "B", "DatasetDOI": DOI}), ""),
        (("a", {}), ("b", {"Name": "B"}), "it is taken for the same one"),
        (("a", {}), ("b", {}), "it is taken for the same one"),
        (("a", {}), ("a", {"Name": "A"}), ""),
    ],
)
def test_records_of_two_data_sets_are_not_mixed(
    first: tuple[str, dict], second: tuple[str, dict], outcome: str, output: Derivatives,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("BRAINAGE_IMAGE", raising=False)
    before = of_data_set(output, *first)
    before.prepare()
    after = of_data_set(output, *second)
    assert after.check() == []  # no record yet
    before.write_json(before.record(SCAN), {"participant_id": "sub-01"})
    was = description(output)
    if outcome == "refused":
        with pytest.raises(UserError, match="records of the data set 'A', and this is 'B': give"):
            after.prepare()
        assert description(output) == was
        return
    warnings = after.check()
    assert description(output) == was
    assert after.prepare() == warnings and bool(warnings) is bool(outcome)
    assert outcome in "".join(warnings)
    assert after.prepare() == []


def test_in_a_container_a_data_set_is_known_by_its_name(
    output: Derivatives, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one is at /data there."""
    monkeypatch.setenv("BRAINAGE_IMAGE", "bids/brainage")
    output = of_data_set(output, "data", {"Name": "A"})
    output.prepare()
    output.write_json(output.record(SCAN), {"participant_id": "sub-01"})
    assert of_data_set(output, "data", {"Name": "A", "License": "CC0"}).prepare() == []
    with pytest.raises(UserError, match="correct the name under SourceDatasets in"):
        of_data_set(output, "data", {"Name": "B"}).prepare()
    assert of_data_set(output, "data", {}).prepare() == []


# --- images ---


def test_image_and_sidecar(output: Derivatives) -> None:
    random = np.random.default_rng(0)
    voxels = random.integers(0, 23, (4, 5, 6))
    affine = np.array([[-1.9, 0.1, 0, 9], [0.1, 1.9, 0, -8], [0, 0, 3, 7.5], [0, 0, 0, 1]])
    path = output.dseg(SCAN)
    output.write_image(path, voxels, affine, {"Sources": [SCAN.source], "Steps": [1]}, np.uint8)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    sidecar = json.loads(path.with_name("sub-01_dseg.json").read_text())
    assert sidecar["Sources"] == [SCAN.source]
    assert sidecar["SpatialReference"] == SCAN.source
    assert sidecar["Manual"] is False
    assert sidecar["Steps"] == [1]


def test_template_image_says_so(output: Derivatives) -> None:
    path = output.preproc(SCAN)
    output.write_image(path, np.ones((2, 2, 2)), AFFINE, {"SkullStripped": False}, np.float32)
    assert int(nib.load(path).header["sform_code"]) == 4
    sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
    assert "2 mm" in sidecar["Resolution"]
    assert sidecar["SkullStripped"] is False  # what is given wins


def test_sheared_affine_is_kept_in_the_sform(output: Derivatives) -> None:
    affine = np.array([[2, 0.5, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    output.write_image(output.dseg(SCAN), np.ones((2, 2, 2)), affine, {}, np.uint8)
    image = nib.load(output.dseg(SCAN))
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert int(image.header["qform_code"]) == 0


def test_same_image_gives_the_same_bytes(
    output: Derivatives, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(0).normal(size=(9, 8, 7))
    output.write_image(output.preproc(SCAN), voxels, AFFINE, {}, np.float32)
    first = output.preproc(SCAN).read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    output.write_image(output.preproc(LONG), voxels, AFFINE, {}, np.float32)
    assert output.preproc(LONG).read_bytes() == first


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.ones((2, 2)), np.uint8, r"shape \(2, 2\)"),
        (np.full((2, 2, 2), 256), np.uint8, "values do not fit"),
        (np.full((2, 2, 2), 0.5), np.int16, "values do not fit"),
    ],
)
def test_images_that_would_change_are_refused(
    output: Derivatives, array: np.ndarray, dtype: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        output.write_image(output.dseg(SCAN), array, AFFINE, {}, dtype)
    assert not output.dseg(SCAN).exists()


# --- transforms, tables, JSON ---


def test_transform_is_itk_text_in_lps(output: Derivatives) -> None:
    matrix = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 1.0]])
    path = output.xfm(SCAN, "T1w", TEMPLATE)
    output.write_transform(path, matrix, {"Sources": [SCAN.source]})
    header, number, kind, parameters, fixed = path.read_text().splitlines()
    assert (header, number) == ("#Insight Transform File V1.0", "#Transform 0")
    assert kind == "Transform: AffineTransform_double_3_3"
    # x and y change sign between RAS and LPS
    assert parameters == "Parameters: 1 2 -3 5 6 -7 -9 -10 11 -4 -8 12"
    assert fixed == "FixedParameters: 0 0 0"
    assert json.loads(path.with_suffix(".json").read_text()) == {"Sources": [SCAN.source]}


def test_table_and_its_sidecar(output: Derivatives) -> None:
    path = output.group("accuracy.tsv")
    rows = [
        {"model": "wssa", "mae": np.float32(4.25), "n": np.int64(3), "ok": True},
        {"model": "two\twords\n", "mae": float("nan"), "n": None, "ok": ""},
        {"model": "x", "mae": 1 / 3},
    ]
    columns = {"model": "Name", "mae": {"Description": "Error", "Units": "years"}, "n": "N",
               "ok": "Yes or no"}  # fmt: skip
    output.write_table(path, rows, columns)
    assert path.read_text() == (
        "model\tmae\tn\tok\nwssa\t4.25\t3\ttrue\ntwo words\tn/a\tn/a\tn/a\nx\t0.333333\tn/a\tn/a\n"
    )
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["model"] == {"Description": "Name"}
    assert sidecar["mae"]["Units"] == "years"


def test_label_table(output: Derivatives) -> None:
    output.write_label_table(LABELS)
    assert output.label_table.read_text() == (
        "index\tname\tabbreviation\tcolor\ttissue\themisphere\n"
        "1\tCSF\tCSF\t#56B4E9\tCSF\tn/a\n"
        "2\tLeft cortex\tCTX-L\t#E69F00\tGM\tL\n"
    )


def test_json_has_null_for_what_is_not_finite(output: Derivatives) -> None:
    path = output.root / "x.json"
    value = {
        "b": float("nan"),
        "a": [np.float64("inf"), np.float32(0.5), (1, 2)],
        3: np.arange(2),
        "p": Path("/ü"),
        "t": np.bool_(True),
    }
    output.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "b": None, "a": [None, 0.5, [1, 2]], "3": [0, 1], "p": "/ü", "t": True,
    }  # fmt: skip
    assert list(json.loads(path.read_text())) == ["b", "a", "3", "p", "t"]


# --- records ---


def test_records_are_found_in_order(output: Derivatives) -> None:
    for scan in (LONG, SCAN):
        output.write_json(output.record(scan), {"stem": scan.stem})
    (output.root / "sub-01" / "figures").mkdir()
    (output.root / "sub-01" / "anat" / ".brainage-12.tmp").write_text("{")
    assert [record["stem"] for record in output.records()] == [SCAN.stem, LONG.stem]


@pytest.mark.parametrize("text", [None, '{"participant_id": ', "[]"])
def test_damaged_record_is_named(output: Derivatives, text: str | None) -> None:
    path = output.record(SCAN)
    if text is not None:
        output.write_text(path, text)
    with pytest.raises(
        UserError, match=r"sub-01_brainage.json .* run the participant level again"
    ):
        output.read_record(path)


# --- many writers, killed writers ---


def test_interrupted_writer_leaves_the_old_file(
    output: Derivatives, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = output.record(SCAN)
    output.write_text(path, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        output.write_text(path, "new")
    assert path.read_text() == "old"
    assert files(path.parent) == {path.name}


def test_only_stale_temporary_files_are_removed(output: Derivatives) -> None:
    folder = output.record(SCAN).parent
    folder.mkdir(parents=True)
    stale, fresh, other = (folder / n for n in (".brainage-1.tmp", ".brainage-2.tmp", "a.tmp"))
    for path in (stale, fresh, other):
        path.write_text("")
    for path in (stale, other):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    output.remove_stale(folder)
    assert files(folder) == {fresh.name, other.name}


def _prepare_and_write(output: Derivatives, letter: str) -> set[int]:
    """Write a large file again and again; return the sizes seen in between."""
    path = output.root / "shared.txt"
    sizes = set()
    for _ in range(25):
        output.prepare()
        output.write_text(path, letter * 200_000)
        sizes.add(len(path.read_text()))
        description(output)
    return sizes


def test_many_processes_at_once(output: Derivatives) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        sizes = pool.starmap(_prepare_and_write, [(output, letter) for letter in "abcd"])
    assert set.union(*sizes) == {200_000}
    assert len(set((output.root / "shared.txt").read_text())) == 1
    expected = {"shared.txt", "dataset_description.json", ".bidsignore", "README",
                "logs/CITATION.md"}  # fmt: skip
    assert files(output.root) == expected


def test_killed_process_leaves_no_half_file(output: Derivatives) -> None:
    writer = multiprocessing.get_context("fork").Process(
        target=_write_for_ever, args=(output,), daemon=True
    )
    writer.start()
    path = output.root / "x.txt"
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    writer.kill()
    writer.join()
    assert len(path.read_text()) == 5_000_000
    others = files(output.root) - {path.name}
    assert all(Path(name).match(TEMPORARY) for name in others)


def _write_for_ever(output: Derivatives) -> None:
    while True:
        output.write_text(output.root / "x.txt", "x" * 5_000_000)
