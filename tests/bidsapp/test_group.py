"""Records become one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bidsapp import group
from bidsapp.derivatives import Derivatives
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings
from bidsapp.study import Demographics, Scan


def prediction(age: float) -> dict[str, Any]:
    return {
        "predicted_age": age,
        "standard_deviation": 4.0,
        "interval": [age - 6, age + 7],
        "coverage": 0.9,
        "brain_age_gap": age - 30,
    }


def record(participant: str, session: str | None = None, **changes: Any) -> dict[str, Any]:
    stem = f"{participant}_{session}" if session else participant
    return {
        "participant_id": participant,
        "session_id": session,
        "source": f"bids:raw:{stem}_T1w.nii.gz",
        "age": 30.0,
        "sex": "F",
        "site": None,
        "group": "control",
        "predictions": {"wssa": prediction(33.3), "ensemble": prediction(32.0)},
        "quality": {"passed": True, "flags": []},
        **changes,
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "gone", tmp_path / "out", ("group",))


def write(settings: Settings, *records: dict[str, Any]) -> list[Path]:
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    paths = []
    for each in records:
        participant, session = each["participant_id"], each["session_id"]
        stem = f"{participant}_{session}" if session else participant
        scan = Scan(Path(stem), each["source"], participant, session, stem, Demographics())
        out.write_json(out.record(scan), each)
        paths.append(out.record(scan))
    return paths


def table(settings: Settings) -> list[dict[str, str]]:
    with (settings.output_dir / "group_brainage.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_one_row_per_scan_and_model_in_order(settings: Settings) -> None:
    write(settings, record("sub-02"), record("sub-01", "ses-b"), record("sub-01", "ses-a"))
    assert group.run(settings) == 0
    rows = table(settings)
    assert [(row["participant_id"], row["session_id"], row["model"]) for row in rows] == [
        (participant, session, model)
        for participant, session in (("sub-01", "ses-a"), ("sub-01", "ses-b"), ("sub-02", "n/a"))
        for model in ("wssa", "ensemble")
    ]
    first = rows[0]
    assert list(first) == list(group.COLUMNS)
    assert (first["age"], first["sex"], first["site"], first["group"]) == (
        "30",
        "F",
        "n/a",
        "control",
    )
    assert (first["predicted_age"], first["standard_deviation"]) == ("33.3", "4")
    assert (first["interval_low"], first["interval_high"]) == ("27.3", "40.3")
    assert first["brain_age_gap"] == "3.3"
    assert (first["quality_passed"], first["quality_flags"]) == ("true", "n/a")


def test_every_column_is_described(settings: Settings) -> None:
    write(settings, record("sub-01"))
    group.run(settings)
    described = json.loads((settings.output_dir / "group_brainage.json").read_text())
    assert list(described) == list(table(settings)[0])
    assert all(column["Description"] for column in described.values())
    assert described["age"]["Units"] == "years"


def test_what_is_not_known_and_what_is_flagged(settings: Settings) -> None:
    unknown = prediction(40) | {"brain_age_gap": None}
    write(
        settings,
        record("sub-01", age=None, sex=None, predictions={"wssa": unknown},
               quality={"passed": False, "flags": ["cnr", "mask_overlap"]}),
        record("sub-02", predictions={}),
    )  # fmt: skip
    group.run(settings)
    (row,) = table(settings)
    assert (row["age"], row["sex"], row["brain_age_gap"]) == ("n/a", "n/a", "n/a")
    assert (row["quality_passed"], row["quality_flags"]) == ("false", "cnr,mask_overlap")


def test_a_second_run_gives_the_same_table(settings: Settings) -> None:
    write(settings, record("sub-01"))
    group.run(settings)
    before = (settings.output_dir / "group_brainage.tsv").read_bytes()
    group.run(settings)
    assert (settings.output_dir / "group_brainage.tsv").read_bytes() == before


@pytest.mark.parametrize(
    "records", [[], [record("sub-01", predictions={})]], ids=["none", "empty"]
)
def test_without_predictions_there_is_nothing_to_do(
    records: list[dict[str, Any]], settings: Settings
) -> None:
    settings.output_dir.mkdir()
    write(settings, *records)
    with pytest.raises(NothingToDo, match="no predictions.*participant level first") as caught:
        group.run(settings)
    assert caught.value.exit_code == 3
    assert not (settings.output_dir / "group_brainage.tsv").exists()


def test_a_damaged_record_is_named(settings: Settings) -> None:
    _, path = write(settings, record("sub-01"), record("sub-02"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="Delete it and run the participant level again") as caught:
        group.run(settings)
    assert str(path) in str(caught.value)


def test_what_was_said_is_kept_in_a_log(settings: Settings) -> None:
    write(settings, record("sub-01"), record("sub-02"))
    group.run(settings)
    (log,) = settings.output_dir.glob("logs/*/log.txt")
    assert "2 participants" in log.read_text()
