"""Records and tables become one row per scan, each with its role; nothing goes without a count."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsapp.cohort import Cohort, collect
from bidsapp.derivatives import Derivatives
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings


def cohort(settings: Settings) -> Cohort:
    return collect(
        Derivatives(settings.output_dir, settings.bids_dir, settings.template), settings
    )


def verdicts(found: Cohort) -> dict[str, str]:
    return {verdict.name: verdict.text for verdict in found.verdicts}


def roles(found: Cohort) -> dict[str, str]:
    return dict(zip(found.scans["participant_id"], found.scans["role"], strict=True))


def people(*rows: str) -> dict[str, str]:
    return {"participants.tsv": "\n".join(row.replace(" ", "\t") for row in rows) + "\n"}


def test_a_row_per_scan_and_figures_beside_it(make_record: Any, write_records: Any) -> None:
    settings = write_records(
        [make_record("sub-02", ages={"a": 41.0, "b": 43.0}), make_record("sub-01", "ses-1")]
    )
    found = cohort(settings)
    assert list(found.scans["participant_id"]) == ["sub-01", "sub-02"]
    assert list(found.predictions) == ["wssa", "ensemble", "a", "b"]
    assert found.predictions["b"]["predicted_age"].tolist()[1] == 43
    assert list(found.role("b")) == ["excluded: no prediction", "reference"]
    assert found.scans["ventricles_ml"].tolist() == [24, 24]


def test_scans_of_a_person_are_in_the_order_of_age(make_record: Any, write_records: Any) -> None:
    found = cohort(write_records(
        [make_record("sub-1", "ses-a", age=44.0), make_record("sub-1", "ses-b", age=42.0)]
    ))  # fmt: skip
    assert list(found.scans["session_id"]) == ["ses-b", "ses-a"]
    assert list(found.scans["role"]) == ["reference", "repeat"]


SESSIONS = "session_id\tage\nses-a\t44\nses-b\t44\n"


@pytest.mark.parametrize(
    ("tables", "undated"),
    [
        ({}, [False, True]),
        (people("participant_id age", "sub-1 44"), [False, True]),
        ({"sub-1/sub-1_sessions.tsv": SESSIONS}, [False, False]),
        ({"sub-1/sub-1_sessions.tsv": SESSIONS.replace("ses-b\t44", "ses-b\tn/a")}, [False, True]),
        ({"sub-1/sub-1_sessions.tsv": SESSIONS.replace("ses-b\t44", "ses-b\t46")}, [False] * 2),
        (people("participant_id session_id age", "sub-1 a 44", "sub-1 b 44"), [False, False]),
    ],
    ids=["record", "person", "session", "one session", "other ages", "row per session"],
)
def test_sessions_of_one_age_are_told(
    tables: dict[str, str], undated: list[bool], make_record: Any, write_records: Any
) -> None:
    records = [make_record("sub-1", session, age=44.0) for session in ("ses-a", "ses-b")]
    found = cohort(write_records(records, tables))
    assert found.scans["undated"].tolist() == undated
    assert ("sessions_of_one_age" in verdicts(found)) == any(undated)
    if any(undated):
        assert "1 people have several sessions" in verdicts(found)["sessions_of_one_age"]


def test_runs_of_a_session_are_retests(make_record: Any, write_records: Any) -> None:
    runs = [
        make_record("sub-1", "ses-a", source=f"bids:raw:anat/sub-1_run-{n}_T1w.nii.gz")
        for n in (1, 2)
    ]
    found = cohort(write_records(runs))
    assert len(found.scans) == 2 and not found.scans["undated"].any()


def test_tables_of_today_win_and_changes_are_told(make_record: Any, write_records: Any) -> None:
    records = [make_record("sub-01", age=30.0), make_record("sub-02", site="Ulm", sex=None)]
    tables = people("participant_id age gender group", "sub-01 41 F AD", "sub-02 n/a M n/a",
                    "sub-99 50 F control")  # fmt: skip
    found = cohort(write_records(records, tables))
    scans = found.scans.set_index("participant_id")
    assert scans["age"].tolist() == [41, 30]
    assert scans["group"].tolist() == ["AD", "control"]
    assert scans["sex"].tolist() == ["F", "M"]
    assert scans.loc["sub-02", "site"] == "Ulm"
    assert "For 1 scans, age is another one" in verdicts(found)["age_changed"]
    assert "sex_changed" not in verdicts(found)
    assert dict(found.counts)["participants in participants.tsv without a record"] == 1


def test_labels_without_a_row_are_counted(make_record: Any, write_records: Any) -> None:
    found = cohort(write_records([make_record("sub-01")], people("participant_id", "sub-7")))
    counts = dict(found.counts)
    assert counts["participants with records and no row in participants.tsv"] == 1
    assert counts["participants in participants.tsv without a record"] == 1


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "study is not a folder: ages"),
        ({"README": ""}, "study has no participants.tsv: ages"),
        (people("participant_id age", "sub-01 41"), None),
    ],
)
def test_tables_that_are_not_there_are_told(
    tables: dict[str, str], said: str | None, make_record: Any, write_records: Any
) -> None:
    found = verdicts(cohort(write_records([make_record("sub-01")], tables)))
    assert said is None or said in found["tables_not_found"]
    assert ("tables_not_found" in found) == bool(said)
    assert "scans_not_found" not in found  # there is no description: it is no data set


def test_scans_that_are_not_there_are_told(make_record: Any, write_records: Any) -> None:
    records = [
        make_record("sub-01"),
        make_record("sub-02"),
        make_record("sub-03", source="x/sub-03_T1w.nii.gz"),
    ]
    scan = "sub-01/anat/sub-01_T1w.nii.gz"
    settings = write_records(records, {"dataset_description.json": "{}", scan: ""})
    said = verdicts(cohort(settings))["scans_not_found"]
    assert "1 of 3 records" in said and "such as sub-02/anat/sub-02_T1w.nii.gz;" in said
    link = settings.bids_dir / "sub-02/anat/sub-02_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("content that was not fetched")
    assert "scans_not_found" not in verdicts(cohort(settings))


def test_columns_come_from_all_tables(make_record: Any, write_records: Any) -> None:
    records = [make_record("sub-01", s, age=30.0 + i) for i, s in enumerate(("ses-a", "ses-b"))]
    tables = people("participant_id BMI hand", "sub-01 21.5 right") | {
        "sub-01/sub-01_sessions.tsv": "session_id\tdose\nses-a\t1\nses-b\t2\n",
        "phenotype/mmse.tsv": "participant_id\tsession_id\tMMSE\nsub-01\tses-b\t28\n",
    }
    settings = write_records(records, tables, covariates=("BMI", "dose", "cnr", "brain_ml"),
                             phenotype_terms=("MMSE", "hand"))  # fmt: skip
    settings = Settings(**vars(settings) | {"phenotype": settings.bids_dir / "phenotype/mmse.tsv"})
    scans = cohort(settings).scans
    assert scans["BMI"].tolist() == [21.5, 21.5]
    assert scans["dose"].tolist() == [1, 2]
    assert scans["cnr"].tolist() == [1.5, 1.5]
    assert scans["brain_ml"].tolist() == [1200, 1200]
    assert np.isnan(scans["MMSE"][0]) and scans["MMSE"][1] == 28
    assert scans["hand"].tolist() == ["right", "right"]


@pytest.mark.parametrize(
    ("cells", "values", "said"),
    [
        (["1,5", "2", ",5", "n/a", "1e1"], [1.5, 2, 0.5, np.nan, 10], "a decimal comma in 2 of 4"),
        (
            ["1,5", "2", "3", "4", "late"],
            [1.5, 2, 3, 4, np.nan],
            "1 of 5 values .*missing: 'late'",
        ),
        (["1", "2", "3", "late", "late"], ["1", "2", "3", "late", "late"], None),
        (["1", "2", "3", "4", "5"], [1, 2, 3, 4, 5], None),
        (["1,5,2", "2", "3", "4", "n/a"], ["1,5,2", "2", "3", "4", None], None),
    ],
)
def test_numbers_of_all_spellings(
    cells: list[str], values: list[Any], said: str | None, make_record: Any, write_records: Any
) -> None:
    records = [make_record(f"sub-{n}") for n in range(5)]
    rows = [f"sub-{n} {cell}" for n, cell in enumerate(cells)]
    tables = people("participant_id dose", *rows)
    found = cohort(write_records(records, tables, phenotype_terms=("dose",)))
    told = " ".join(verdicts(found).get(name, "") for name in ("decimal_comma", "no_number"))
    assert re.search(f"^dose has .*{said}" if said else r"^\s*$", told.strip())
    if isinstance(values[0], str):
        assert [v if isinstance(v, str) else None for v in found.scans["dose"]] == values
    else:
        assert found.scans["dose"].tolist() == pytest.approx(values, nan_ok=True)


def test_a_word_that_means_the_reference_stays(make_record: Any, write_records: Any) -> None:
    rows = [f"sub-{n} {n or 'well'}" for n in range(8)]
    settings = write_records(
        [make_record(f"sub-{n}") for n in range(8)], people("participant_id stage", *rows),
        covariates=("stage",), reference="stage=well",
    )  # fmt: skip
    assert list(roles(cohort(settings)).values()).count("reference") == 1


def test_a_phenotype_file_needs_no_data_set(make_record: Any, write_records: Any) -> None:
    settings = write_records([make_record("sub-01"), make_record("sub-02")],
                             {"p.tsv": "participant_id\tIQ\n01\t100\n"})  # fmt: skip
    changed = {"bids_dir": "/gone", "phenotype": settings.bids_dir / "p.tsv",
               "covariates": ("IQ",)}  # fmt: skip
    found = cohort(Settings(**vars(settings) | changed))
    assert found.scans["IQ"][0] == 100
    assert "no row for 1 of the participants" in verdicts(found)["phenotype_absent"]


def test_a_column_that_is_nowhere_is_named(make_record: Any, write_records: Any) -> None:
    tables = people("participant_id education", "sub-01 12")
    settings = write_records([make_record("sub-01")], tables, covariates=("educaton",))
    with pytest.raises(UserError, match="in the column 'educaton'.*did you mean 'education'"):
        cohort(settings)


def test_a_phenotype_file_without_labels_is_named(make_record: Any, write_records: Any) -> None:
    settings = write_records([make_record("sub-01")], {"p.tsv": "subject\tIQ\n01\t100\n"})
    settings = Settings(**vars(settings) | {"phenotype": settings.bids_dir / "p.tsv"})
    with pytest.raises(UserError, match="p.tsv has no column participant_id"):
        cohort(settings)


# --- what was asked for ---


def test_participants_and_sessions_that_were_named(make_record: Any, write_records: Any) -> None:
    records = [
        make_record(f"sub-0{n}", session, age=30.0 + i)
        for n in (1, 2, 3) for i, session in enumerate(("ses-a", "ses-b"))
    ]  # fmt: skip
    tables = people("participant_id", "sub-01", "sub-02", "sub-09")
    settings = write_records(
        records, tables, participant_label=("01", "sub-02", "09"), session_label=("b",)
    )
    found = cohort(settings)
    assert found.scans[["participant_id", "session_id"]].to_numpy().tolist() == [
        ["sub-01", "ses-b"], ["sub-02", "ses-b"],
    ]  # fmt: skip
    assert dict(found.counts)["records of others than were named"] == 4
    assert dict(found.counts)["participants in participants.tsv without a record"] == 1
    assert "no prediction of sub-09" in verdicts(found)["label_without_record"]
    with pytest.raises(NothingToDo, match="no predictions of the participants and sessions"):
        cohort(Settings(**vars(settings) | {"session_label": ("c",)}))


def test_scans_that_a_filter_file_names(
    make_record: Any, write_records: Any, make_study: Any, tmp_path: Path
) -> None:
    records = [make_record(f"sub-0{n}", age=30.0 + n) for n in (1, 2)]
    settings = write_records(records)
    study = make_study([records[1]["source"].removeprefix("bids:raw:")])
    (tmp_path / "filter.json").write_text('{"t1w": {"subject": "02"}}')
    changed = {"bids_dir": study, "bids_filter_file": tmp_path / "filter.json"}
    found = cohort(Settings(**vars(settings) | changed))
    assert found.scans["participant_id"].tolist() == ["sub-02"]
    assert dict(found.counts)["records of others than were named"] == 1


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ((), ["a", "b", "volumes", "ensemble"]),
        (("b", "a"), ["a", "b", "ensemble"]),
        (("a", "b", "volumes"), ["a", "b", "volumes", "ensemble"]),
        (("a", "volumes"), ["a", "volumes"]),
    ],
)
def test_models_that_were_named(
    asked: tuple[str, ...], kept: list[str], make_record: Any, write_records: Any
) -> None:
    ages = {"a": 30.0, "b": 34.0, "volumes": 40.0, "ensemble": 32.0}  # volumes has no vote
    first = {"a": 30.0, "volumes": 40.0, "ensemble": 30.0}
    records = [make_record("sub-01", ages=first), make_record("sub-02", ages=ages)]
    found = cohort(write_records(records, models=asked, allow_mixed=True))
    assert set(found.predictions) == set(kept)
    left_out = "ensemble" not in kept
    assert ("ensemble_left_out" in verdicts(found)) == left_out
    if left_out:
        assert "left out: b had a vote" in verdicts(found)["ensemble_left_out"]
        assert "mixed_records" not in verdicts(found)
    assert set(found.members) == (set() if left_out else {"a", "b"})


def test_a_model_that_no_record_knows_is_named(make_record: Any, write_records: Any) -> None:
    settings = write_records([make_record("sub-01")], models=("wssa", "linear"))
    with pytest.raises(UserError, match="--models linear: no record .* those by wssa, and"):
        cohort(settings)


# --- the reference ---


@pytest.mark.parametrize(
    "word", ["control", "Controls", "HC", "healthy_control", "Healthy Volunteers", "CN", "td"]
)
def test_usual_words_for_controls(word: str, make_record: Any, write_records: Any) -> None:
    records = [make_record("sub-01", group=word), make_record("sub-02", group="AD")]
    found = cohort(write_records(records))
    assert roles(found) == {"sub-01": "reference", "sub-02": "other"}
    assert found.levels == (word,)
    assert found.reference == f"group = {word}"


def test_what_the_sidecar_says_about_levels(make_record: Any, write_records: Any) -> None:
    tables = people("participant_id group", "sub-01 0", "sub-02 1")
    levels = {"0": "healthy people", "1": "patients, not healthy controls"}
    tables["participants.json"] = json.dumps({"group": {"Levels": levels}})
    found = cohort(write_records([make_record("sub-01"), make_record("sub-02")], tables))
    assert roles(found) == {"sub-01": "reference", "sub-02": "other"}


def test_a_reference_by_name(make_record: Any, write_records: Any) -> None:
    tables = people("participant_id dose", "sub-01 0", "sub-02 1", "sub-03 n/a")
    records = [make_record(f"sub-0{n}", group=None) for n in (1, 2, 3)]
    found = cohort(write_records(records, tables, reference="dose=0"))
    assert list(roles(found).values()) == ["reference", "other", "other"]
    assert found.reference == "dose = 0"


@pytest.mark.parametrize(
    ("asked", "message"),
    [("control", "takes COLUMN=VALUE"), ("group=CN", "nobody has it; the values there are AD"),
     ("dx=CN", "no table has a value in the column 'dx'")],
)  # fmt: skip
def test_a_reference_that_is_not_there(
    asked: str, message: str, make_record: Any, write_records: Any
) -> None:
    with pytest.raises(UserError, match=message):
        cohort(write_records([make_record("sub-01", group="AD")], reference=asked))


def test_without_controls_everybody_is_the_reference(make_record: Any, write_records: Any) -> None:
    found = cohort(write_records([make_record("sub-01", group="AD")]))
    assert roles(found) == {"sub-01": "reference"}
    assert "everybody is the reference" in verdicts(found)["reference_everybody"]


# --- who is left out ---


def test_who_is_left_out_stays_and_is_counted(make_record: Any, write_records: Any) -> None:
    bad = {"passed": False, "flags": ["cnr"]}
    found = cohort(write_records([
        make_record("sub-01"), make_record("sub-01"),
        make_record("sub-02", quality=bad),
        make_record("sub-03", age=None),
        make_record("sub-04", group="AD"),
        make_record("sub-05", predictions={}),
        make_record("sub-06", predictions={}, quality=bad),
    ]))  # fmt: skip
    assert list(found.scans["role"]) == [
        "reference", "excluded: duplicate", "excluded: failed quality", "excluded: age unknown",
        "other",
    ]  # fmt: skip
    assert dict(found.counts) == {
        "records with a prediction": 5, "records without a prediction": 1,
        "failed quality, age withheld (--quality fail)": 1,
        "scans of the reference": 1, "scans of others": 1, "excluded: duplicate records": 1,
        "excluded: age unknown": 1, "excluded: failed quality": 1,
    }  # fmt: skip
    assert {"failed_quality", "age_unknown", "duplicate"} <= verdicts(found).keys()
    assert found.tested("wssa").tolist() == [True, False, False, False, True]


def test_failed_quality_can_be_taken_in(make_record: Any, write_records: Any) -> None:
    bad = {"passed": False, "flags": ["cnr"]}
    settings = write_records([make_record("sub-01", quality=bad)], include_failed_quality=True)
    assert roles(cohort(settings)) == {"sub-01": "reference"}


def test_damaged_figures_count_as_missing(make_record: Any, write_records: Any) -> None:
    records = [
        make_record("sub-01", ages={"wssa": float("nan")}),
        make_record("sub-02", age=float("inf")),
        make_record("sub-03", age=-3.0),
        make_record("sub-04", volumes_ml={"brain": "large"}, quality=None),
    ]
    records[2]["predictions"]["wssa"]["predicted_age"] = "forty"
    found = cohort(write_records(records))
    assert list(found.role("wssa")) == [
        "excluded: no prediction", "excluded: age unknown", "excluded: no prediction", "reference",
    ]  # fmt: skip
    assert np.isnan(found.scans["brain_ml"][3])


def test_letters_of_all_kinds(make_record: Any, write_records: Any) -> None:
    tables = people("participant_id site group", "sub-01 Kölñ 対照", "sub-02 Ål control")
    found = cohort(write_records([make_record("sub-01"), make_record("sub-02")], tables))
    assert found.scans["group"].tolist() == ["対照", "control"]
    assert found.scans["site"].tolist() == ["Kölñ", "Ål"]


# --- records that do not compare ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"software": {"brainage": "2.0"}}, "version: 1.0 in 1 records, 2.0 in 1 records"),
        ({"ages": {"other": 30.0, "ensemble": 30.0}}, "models of the ensemble: wssa in 1"),
    ],
)
def test_mixed_records_are_refused(
    change: dict[str, Any], message: str, make_record: Any, write_records: Any
) -> None:
    records = [make_record("sub-01"), make_record("sub-02", **change)]
    with pytest.raises(UserError, match=message) as caught:
        cohort(write_records(records))
    assert "--allow-mixed" in str(caught.value)
    found = cohort(write_records([], allow_mixed=True))
    assert message.split(":")[0] in verdicts(found)["mixed_records"]


def test_other_weights_are_refused(make_record: Any, write_records: Any) -> None:
    records = [make_record("sub-01"), make_record("sub-02")]
    records[1]["predictions"]["wssa"]["weights_sha256"] = "f" * 64
    with pytest.raises(UserError, match="weights of wssa: wssa00000000 in 1 records, ffff"):
        cohort(write_records(records))


def test_mixed_records_are_named_in_full(make_record: Any, write_records: Any) -> None:
    many, few = (
        {"first": 30.0, "second": 31.0, "ensemble": 30.5},
        {"first": 30.0, "ensemble": 30.0},
    )
    records = [make_record(f"sub-{n}", ages=few if n == 1 else many) for n in range(4)]
    message = (
        "first . second in 3 records, first in 1 records, such as that of "
        "sub-1/anat/sub-1_T1w.nii.gz"
    )
    with pytest.raises(UserError, match=message):
        cohort(write_records(records))


def test_an_ensemble_of_one_is_not_tested_twice(make_record: Any, write_records: Any) -> None:
    assert cohort(write_records([make_record("sub-01")])).distinct_models == ["wssa"]
    several = {"a": 30.0, "b": 34.0, "ensemble": 32.0}
    for path in cohort_files(write_records([make_record("sub-01", ages=several)])):
        path.unlink()
    found = cohort(write_records([make_record("sub-01", ages=several)]))
    assert found.distinct_models == ["a", "b", "ensemble"]


def cohort_files(settings: Settings) -> list[Any]:
    return list(settings.output_dir.glob("sub-*/anat/*.json"))


def test_nothing_to_do(write_records: Any) -> None:
    with pytest.raises(NothingToDo, match="no predictions"):
        cohort(write_records([]))
