"""The evaluation page is made of records and out-of-fold predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import models
from benchmarks import ages as unseen_ages
from benchmarks import evaluate
from bidsapp.settings import Settings
from models.segmentation.labels import LABELS

OUT_OF_FOLD = [("sub-1", None, 20, 26), ("sub-2", None, 30, 36), ("sub-3", None, 50, 53)]


def write_ages(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    """What benchmarks/ages.py writes, of a model without a card."""
    table = pd.DataFrame(rows, columns=unseen_ages.COLUMNS).assign(weights="0")
    table.to_csv(folder / "stub.tsv", sep="\t", index=False, na_rep="n/a")


def write_results(folder: Path, dataset: str, ages: list[float], predicted: list[float]) -> Path:
    """An output folder with a record for each age, one of them flagged."""
    folder.mkdir()
    description = {"SourceDatasets": [{"URL": f"file:///data/{dataset}"}]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    for number, (age, found) in enumerate(zip(ages, predicted, strict=True), 1):
        person = f"sub-{number}"
        flags = ["cnr"] if number == 1 else []
        entry = {"predicted_age": found}
        record: dict[str, Any] = {
            "participant_id": person, "source": f"bids:raw:{person}/anat/{person}_T1w.nii.gz",
            "age": age, "group": "AD" if number == 3 else "control",
            "predictions": {"stub": entry, "ensemble": entry},
            "quality": {"passed": not flags, "flags": flags, "cnr": number / 2, "cjv": None},
            "seconds": {"segmentation": 1.0, "bias_field": float(number)},
            "volumes_ml": {"brain": 8.0, "csf": 1.0}
            | {label.name.lower().replace(" ", "_"): 1.0 for label in LABELS[1:]},
        }  # fmt: skip
        path = folder / person / "anat" / f"{person}_brainage.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    seen = write_results(tmp_path / "a", "seen", [20, 30, 50], [20, 30, 50])
    unseen = write_results(tmp_path / "b", "unseen", [20, 30, 61, 69], [22, 33, 60, 66])
    single = write_results(tmp_path / "c", "single", [26], [31])
    crash = unseen / "logs" / "run" / "crash-sub-9.txt"
    crash.parent.mkdir(parents=True)
    crash.touch()
    told = tmp_path / "ages"
    told.mkdir()
    write_ages(told, [("out of fold", "seen", "seen", *row) for row in OUT_OF_FOLD])
    return {"Seen": seen, "Unseen": unseen, "Single": single, "ages": told}


def rows_of(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], table: str, *more: str
) -> dict[str, list[str]]:
    """Rows of one printed table, by first cell."""
    outs = [
        w for name in ("Seen", "Unseen", "Single") for w in ("--out", f"{name}={folders[name]}")
    ]
    evaluate.main(["--table", table, *outs, "--ages", str(folders["ages"]), *more])
    printed = capsys.readouterr().out
    assert str(folders["Seen"].parent) not in printed
    cells = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_scans_without_a_record_are_counted(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(capsys, folders, "runs")
    assert rows["Unseen"] == ["5", "4", "1", "3", "cnr 1"]
    assert rows["Single"] == ["1", "1", "0", "0", "cnr 1"]


def test_data_sets_trained_on_are_shown_out_of_fold_alone(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(capsys, folders, "predictions")
    assert rows["Seen"][:3] == ["stub", "out of fold", "3"]
    assert rows["Seen"][3].startswith("5.00 [")  # in-sample it would be 0
    assert rows["Unseen"][:3] == ["stub", "unseen", "4"]
    assert rows["Unseen"][3].startswith("2.25 [")
    assert rows["Unseen"][5] == "+0.25"
    assert rows["Single"][2:6] == ["1", "5.0", "n/a", "+5.0"]


def test_models_of_fewer_data_sets_are_shown_on_the_others(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    away = [("sub-1", None, 20, 40), ("sub-2", None, 30, 40), ("sub-3", None, 50, 40)]
    write_ages(folders["ages"], [("alone, unseen", "other", "seen", *row) for row in away])
    rows = rows_of(capsys, folders, "predictions")
    assert rows["Seen"][:3] == ["stub", "unseen; trained on other alone", "3"]
    assert rows["Seen"][3].startswith("13.33 [") and rows["Seen"][5] == "+6.67"


def test_heads_scanned_again_count_for_models_that_vote(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ages = {"asitwas": 40, "rotated": 43, "shifted": 41, "noisy": 40, "int16": 40}
    again = [("again", "other", "n/a", "sub-1", name, None, age) for name, age in ages.items()]
    write_ages(folders["ages"], again)
    (folders["ages"] / "stub.tsv").rename(folders["ages"] / "linear.tsv")
    with pytest.raises(SystemExit, match="other weights"):
        rows_of(capsys, folders, "retest")
    table = pd.read_csv(folders["ages"] / "linear.tsv", sep="\t")
    table = table.assign(weights=models.card("linear").weights_sha256)
    table.to_csv(folders["ages"] / "linear.tsv", sep="\t", index=False)
    rows = rows_of(capsys, folders, "retest")
    assert rows["linear"] == rows["mean of these"]
    assert rows["linear"][1:3] == ["3.00 (3.00)", "1.00 (1.00)"] and rows["linear"][-1] == "1.00"


def test_error_by_decade(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, folders, "decades")
    assert rows["data set"][:3] == ["model", "scans", "20 to 29"]
    assert rows["Seen"][:3] == ["stub", "out of fold", "+6.0 (1)"]
    assert rows["Unseen"][:3] == ["stub", "unseen", "+2.0 (1)"]
    assert rows["Unseen"][-1] == "-2.0 (2)" and rows["Seen"][-1] == "n/a"
    assert "Single" not in rows  # too few


def test_errors_on_an_unseen_scanner_stand_beside_those_of_the_same_ages_at_home(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = [("sub-1", None, 20, 24), ("sub-2", None, 21, 25), ("sub-3", None, 80, 70)]
    away = [("sub-1", None, 20, 27), ("sub-2", None, 20, 29), ("sub-3", None, 20, 34)]
    write_ages(folders["ages"], [("alone, out of fold", "other", "other", *row) for row in home]
               + [("alone, unseen", "other", "seen", *row) for row in away])  # fmt: skip
    rows = rows_of(capsys, folders, "away")
    assert rows["Seen"][:3] == ["stub", "everybody", "3"]
    assert rows["Seen"][3].startswith("+10.0 [+1.0, ")
    assert rows["Seen"][4:] == ["+4.0", "10.0", "4.0"]  # those of 80 do not count at 20


def test_intervals_are_of_the_others_errors(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(capsys, folders, "calibration")
    # errors of 6, 6 and 3 years: the third lies outside of what the other two span, and they
    # outside of what 90 % of the others span; the widths are 2.7, 2.7 and 0
    assert rows["Seen"] == ["stub", "out of fold", "3", "0%", "0%", "0%", "0%", "1.8"]
    assert rows["Unseen"][:3] == ["stub", "unseen", "4"]
    assert "Single" not in rows  # too few


def test_nobody_calibrates_the_own_interval() -> None:
    errors = np.arange(-50.0, 51)
    people = pd.DataFrame({
        "dataset": "a", "participant_id": [f"sub-{n}" for n in range(101)],
        "age": 60.0 + errors, "predicted_age": 60.0,
    })  # fmt: skip
    inside, width = evaluate.held(people, people, 0.8)
    assert inside == pytest.approx(0.8, abs=0.02)
    assert width == pytest.approx(80, abs=1)
    lonely = people.assign(age=60.0 + np.where(errors == 50, 1000, errors))
    _, width = evaluate.held(lonely[lonely["age"] > 1000], lonely, 1.0)
    assert width == 99


def test_quality_and_time(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert rows_of(capsys, folders, "quality")["`cnr`"][1] == "0.55 / 1 / 1.45"
    rows = rows_of(capsys, folders, "seconds")
    assert rows["bias field"] == ["2.0", "2.5", "1.0"]
    assert rows["**sum**"] == ["**3.0**", "**3.5**", "**2.0**"]


def test_scans_side_by_side_are_those_of_the_newest_run(folders: dict[str, Path]) -> None:
    results = evaluate.Results("Seen", folders["Seen"], [])
    assert results.side_by_side == "n/a"
    run = folders["Seen"] / "logs" / "20260102-101010_a"
    run.mkdir(parents=True)
    settings = Settings("/in", folders["Seen"], ("participant",))
    (run / "settings.toml").write_text(settings.to_toml())
    assert results.side_by_side == "n/a"
    (run / "settings.toml").write_text(replace(settings, nprocs=4).to_toml())
    assert results.side_by_side == "4"
    (run / "log.txt").write_text("2026-01-02 10:10:10,123 INFO Scans side by side: 3\n")
    assert results.side_by_side == "3"


def test_groups_of_all_data_sets_as_one_study(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(capsys, folders, "groups")
    # controls of good quality: 6 out of fold, 3 and -3 unseen; Single is one scan, and left out
    assert rows["reference"][:3] == ["stub", "mean", "3"]
    assert rows["reference"][3].startswith("+2.00 [")


def test_volumes_are_compared_by_structure(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[:10, :10, :10] = 47  # hippocampus: 1000 voxels of 1 mm, 1 ml
    for number in (1, 2, 3):
        path = tmp_path / "maps" / f"sub-{number}" / "anat" / "x_dseg.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    rows = rows_of(capsys, folders, "volumes", "--muse", f"Seen={tmp_path / 'maps'}")
    assert rows["Hippocampus"][:5] == ["Seen", "3", "2.0", "1.0", "+100.0 %"]


def test_the_page_holds_every_table(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "evaluation.md"
    folder = str(folders["ages"])
    evaluate.main(["--out", f"Unseen={folders['Unseen']}", "--ages", folder, "--to", str(page)])
    text = page.read_text()
    for name, (title, _) in evaluate.TABLES.items():
        assert f"## {title} (`{name}`)\n" in text
    assert text.count("python benchmarks/evaluate.py --out Unseen=results/Unseen\n") == 1


def test_unknown_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--out", "IXI=/nowhere"])
    assert "IXI=/nowhere is not NAME=DIR" in capsys.readouterr().err
