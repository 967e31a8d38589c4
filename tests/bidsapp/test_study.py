import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bidsapp.demographics import Demographics
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings
from bidsapp.study import Study, asked_for, load_study, study_name

MakeStudy = Callable[..., Path]


def load(root: Path, **settings: Any) -> Study:
    return load_study(_settings(root, **settings))


def _settings(root: Path, **settings: Any) -> Settings:
    return Settings(root, root.parent / "out", ("participant",), **settings)


def stems(study: Study) -> list[str]:
    return [scan.stem for scan in study.scans]


def filtered(root: Path, content: Any, **settings: Any) -> Study:
    path = root.parent / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load(root, bids_filter_file=path, **settings)


ALL = ["sub-01", "sub-02_ses-a_run-1", "sub-02_ses-a_run-2", "sub-02_ses-b_acq-mprage"]


def test_sessions_runs_and_acquisitions_are_told_apart(tiny_study: Path) -> None:
    study = load(tiny_study)
    assert (study.name, study.warnings) == ("Tiny", ())
    assert stems(study) == ALL
    scan = study.scans[1]
    assert scan.path == tiny_study / "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz"
    assert scan.source == "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz"
    assert (scan.participant_id, scan.session_id) == ("sub-02", "ses-a")
    assert [scan.session_id for scan in study.scans] == [None, "ses-a", "ses-a", "ses-b"]
    assert study.scans[0].demographics == Demographics(25.0, "F")
    assert {scan.demographics for scan in study.scans[1:]} == {Demographics(61.5, "M")}


def test_input_folder_is_not_written_to(tiny_study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_study.rglob("*")}
    load(tiny_study)
    assert {path: path.stat().st_mtime_ns for path in tiny_study.rglob("*")} == before


def test_only_raw_t1w_images_are_taken(make_study: MakeStudy) -> None:
    study = load(
        make_study(
            [
                "sub-01/anat/sub-01_T1w.nii.gz",
                "sub-01/anat/sub-01_T2w.nii.gz",
                "sub-01/anat/sub-01_inplaneT1.nii.gz",
                "sub-01/func/sub-01_task-rest_bold.nii.gz",
                "sub-01/extra/anat/sub-01_T1w.nii.gz",
                "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
                "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
                ".hidden/sub-01/anat/sub-01_T1w.nii.gz",
            ],
            {"sub-01/anat/sub-01_T1w.json": "{}", "sub-01/anat/sub-02_T1w.txt": ""},
        )
    )
    assert stems(study) == ["sub-01"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("sub-01_desc-defaced_T1w.nii.gz", "it is a derivative"),
        ("sub-01_part-phase_T1w.nii.gz", "it is not a magnitude image"),
        ("sub-01_chunk-1_T1w.nii.gz", "it shows a part of the head only"),
        ("sub-02_T1w.nii.gz", "its name should begin with sub-01"),
        ("sub-01_run-1_acq-x_T1w.nii.gz", "its name breaks the BIDS rules"),
        ("sub-01_T1w.nii.gz", "sub-01_T1w.nii beside it is used"),
    ],
)
def test_images_left_out_are_named(make_study: MakeStudy, name: str, fault: str) -> None:
    study = load(make_study(["sub-01/anat/sub-01_T1w.nii", f"sub-01/anat/{name}"]))
    assert stems(study) == ["sub-01"]
    assert study.warnings[0].startswith(f"sub-01/anat/{name} is left out: {fault}")


def test_validation_can_be_skipped(make_study: MakeStudy) -> None:
    root = make_study(["sub-01/anat/sub-01_run-1_acq-x_T1w.nii.gz"])
    assert stems(load(root, skip_bids_validation=True)) == ["sub-01_run-1_acq-x"]
    with pytest.raises(NothingToDo, match="its name breaks the BIDS rules"):
        load(root)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"participant_label": ["01"]}, ALL[:1]),
        ({"participant_label": ["sub-02", "sub-01"]}, ALL),
        ({"session_label": ["ses-b"]}, ALL[3:]),
        ({"session_label": ["a", "b"], "participant_label": ["02"]}, ALL[1:]),
    ],
)
def test_labels_choose(tiny_study: Path, settings: dict, expected: list[str]) -> None:
    assert stems(load(tiny_study, **settings)) == expected


def test_unknown_participant_names_those_that_exist(tiny_study: Path) -> None:
    with pytest.raises(UserError, match="no participant 1; .* 2 participants are 01, 02") as error:
        load(tiny_study, participant_label=["01", "1"])
    assert error.value.exit_code == 2


@pytest.mark.parametrize("labels", [("nosuch",), ("a", "nosuch")])
def test_unknown_session_names_those_that_exist(tiny_study: Path, labels: tuple) -> None:
    with pytest.raises(UserError, match="no session nosuch; .* 2 sessions are a, b") as caught:
        load(tiny_study, session_label=labels)
    assert caught.value.exit_code == 2


def test_many_participants_are_not_all_named(make_study: MakeStudy) -> None:
    root = make_study([])
    for number in range(100, 200):
        (root / f"sub-{number}").mkdir()
    with pytest.raises(UserError, match=r"its 100 participants are 117, .*, \.\.\.\.$") as error:
        load(root, participant_label=["sub-1117"])
    assert len(str(error.value)) < 300


def test_participant_without_t1w_is_named(make_study: MakeStudy) -> None:
    root = make_study(["sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T2w.nii"])
    study = load(root, participant_label=["01", "02"])
    assert stems(study) == ["sub-01"]
    assert f"{root}: no T1w image matches for sub-02" in study.warnings
    assert load(root).warnings == study.warnings  # not asked for by its label


def test_many_participants_without_t1w_are_counted(make_study: MakeStudy) -> None:
    root = make_study(["sub-01/anat/sub-01_T1w.nii"])
    for number in range(10, 30):
        (root / f"sub-{number}").mkdir()
    line = f"{root}: no T1w image matches for sub-10, "
    (warning,) = [each for each in load(root).warnings if each.startswith(line)]
    assert warning.endswith("sub-17 and 12 more")
    assert not any("matches" in each for each in filtered(root, {"t1w": {"run": None}}).warnings)


def test_a_session_without_t1w_is_named(tiny_study: Path) -> None:
    (tiny_study / "sub-02" / "ses-c").mkdir()
    study = load(tiny_study, session_label=["a", "c"])
    assert stems(study) == ALL[1:3]
    assert study.warnings == (f"{tiny_study}: no T1w image matches for ses-c",)


@pytest.mark.parametrize(
    "settings",
    [
        {"session_label": ["c"]},
        {"participant_label": ["01"], "session_label": ["a"]},
    ],
)
def test_nothing_to_do(tiny_study: Path, settings: dict) -> None:
    (tiny_study / "sub-02" / "ses-c").mkdir()
    with pytest.raises(NothingToDo, match="no T1w image matches .*--session-label") as error:
        load(tiny_study, **settings)
    assert error.value.exit_code == 3


def test_no_t1w_at_all(make_study: MakeStudy) -> None:
    with pytest.raises(NothingToDo, match="no T1w image was found"):
        load(make_study(["sub-01/anat/sub-01_T2w.nii.gz"]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"t1w": {"session": "a"}}, ALL[1:3]),
        ({"t1w": {"session": ["a", "b"], "run": 2}}, ALL[2:3]),
        ({"t1w": {"run": ["01"]}}, ALL[1:2]),
        ({"t1w": {"session": None}}, ALL[:1]),
        ({"t1w": {"acquisition": "*"}}, ALL[3:]),
        ({"t1w": {"acquisition": [None, "mprage"], "session": "b"}}, ALL[3:]),
        ({"t1w": {"extension": ".nii"}}, ALL[3:]),
        ({"t1w": {"suffix": "T2w", "subject": "01"}}, ALL[:1]),
        ({"bold": {"task": "rest"}}, ALL),
    ],
)
def test_filter_file(tiny_study: Path, content: Any, expected: list[str]) -> None:
    assert stems(filtered(tiny_study, content)) == expected
    scans = load(tiny_study).scans  # whose records the group level asks about
    named = asked_for(_settings(tiny_study, bids_filter_file=tiny_study.parent / "filter.json"))
    kept = [s.stem for s in scans if named(s.participant_id, s.session_id, s.source)]
    assert kept == expected


def test_labels_and_a_filter_file_narrow_together(tiny_study: Path) -> None:
    path = tiny_study.parent / "filter.json"
    path.write_text('{"t1w": {"session": "a"}}')
    source = "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz"
    named = asked_for(_settings(tiny_study, bids_filter_file=path, participant_label=["02"]))
    assert named("sub-02", "ses-a", source)
    assert not named("sub-02", "ses-a", source.replace("run-1", "run-7"))
    other = asked_for(_settings(tiny_study, bids_filter_file=path, session_label=["b"]))
    assert not other("sub-02", "ses-a", source)


def test_a_filter_at_the_group_level_that_matches_nothing(tiny_study: Path) -> None:
    path = tiny_study.parent / "filter.json"
    path.write_text('{"t1w": {"session": "z"}}')
    with pytest.raises(NothingToDo, match="no T1w image matches --bids-filter-file"):
        asked_for(_settings(tiny_study, bids_filter_file=path))
    with pytest.raises(UserError, match="gone"):
        asked_for(_settings(tiny_study.parent / "gone", bids_filter_file=path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "filter.json is not a filter file"),
        ([], "filter.json is not a filter file"),
        ({"T1w": {"session": "a"}}, "filter.json has a key 'T1w': did you mean 't1w'"),
        ({"t1w": {}, "T1W": {}}, "filter.json has a key 'T1W': did you mean 't1w'"),
        ({"t1w": 3}, "filter.json is not a filter file"),
        ({"t1w": {"sesion": "a"}}, "filter.json: 'sesion' is not a recognized entity"),
        ({"t1w": {"subject": "01"}}, "filter.json filters by subject; use either"),
    ],
)
def test_wrong_filter_file(tiny_study: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filtered(tiny_study, content, participant_label=["01"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no dataset_description.json, so it is not a BIDS data set"),
        ("{", "dataset_description.json cannot be read"),
        ("[]", "dataset_description.json must hold a JSON object"),
    ],
)
def test_folder_that_is_no_data_set(tiny_study: Path, text: str | None, message: str) -> None:
    path = tiny_study / "dataset_description.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(tiny_study)


def test_a_data_set_has_a_name(tiny_study: Path, tmp_path: Path) -> None:
    assert study_name(tiny_study) == "Tiny"
    assert study_name(tmp_path / "gone") == "gone"


def test_odd_description_is_warned_about(tiny_study: Path) -> None:
    text = json.dumps({"DatasetType": "derivative"})
    (tiny_study / "dataset_description.json").write_text(text, encoding="utf-8-sig")
    study = load(tiny_study)
    assert study.name == "study"
    assert len(study.warnings) == 3
    assert "DatasetType derivative; raw T1w images are expected" in study.warnings[2]


def test_links_without_content_stay_listed(make_study: MakeStudy) -> None:
    root = make_study(["sub-01/anat/sub-01_T1w.nii.gz"])
    link = root / "sub-02/anat/sub-02_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/nowhere")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "sub-01/anat/loop").symlink_to(root, target_is_directory=True)
    (root / "sub-03").symlink_to(root / "sub-01", target_is_directory=True)
    study = load(root)
    assert stems(study) == ["sub-01", "sub-02"]
    assert study.scans[1].path == link


def test_path_with_dots_and_through_a_link(tiny_study: Path) -> None:
    link = tiny_study.parent / "link"
    link.symlink_to(tiny_study, target_is_directory=True)
    for root in (link, tiny_study / ".." / "study"):
        assert [scan.source for scan in load(root).scans] == [
            scan.source for scan in load(tiny_study).scans
        ]


def test_database_is_kept_and_reused(tiny_study: Path, make_study: MakeStudy) -> None:
    database = tiny_study.parent / "db"
    first = load(tiny_study, bids_database_dir=database, participant_label=["01"])
    assert stems(first) == ALL[:1]
    assert stems(load(tiny_study, bids_database_dir=database)) == ALL
    os.rename(tiny_study / "sub-02", tiny_study / "sub-03")  # not seen: the index is reused
    assert stems(load(tiny_study, bids_database_dir=database)) == ALL
    other = make_study(["sub-01/anat/sub-01_T1w.nii"], root=tiny_study.parent / "other")
    with pytest.raises(UserError, match="is the index of .*study, not of .*other"):
        load(other, bids_database_dir=database)


def test_database_that_is_something_else(tiny_study: Path) -> None:
    database = tiny_study.parent / "db"
    database.mkdir()
    (database / "layout_index.sqlite").write_text("nonsense")
    with pytest.raises(UserError, match="cannot be used: delete it or name another one"):
        load(tiny_study, bids_database_dir=database)


def test_age_at_the_scan_or_session_comes_first(make_study: MakeStudy) -> None:
    images = [f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in "abc"]
    tables = {
        "participants.tsv": "participant_id\tage\tsex\nsub-01\t30\tF\n",
        "sub-01/sub-01_sessions.tsv": "session_id\tage\nses-a\t31\nses-b\t32\n",
        "sub-01/ses-b/sub-01_ses-b_scans.tsv": (
            "filename\tage\nanat/sub-01_ses-b_T1w.nii.gz\t396\nanat/other.nii.gz\t1\n"
        ),
        "scans.json": '{"age": {"Units": "months"}}',
    }
    study = load(make_study(images, tables))
    assert [scan.demographics.age for scan in study.scans] == [31.0, 33.0, 30.0]
    assert {scan.demographics.sex for scan in study.scans} == {"F"}
    assert study.warnings == ()


def test_scans_table_without_sessions(make_study: MakeStudy) -> None:
    tables = {"sub-01/sub-01_scans.tsv": "filename\tage\nanat/sub-01_T1w.nii.gz\t33\n"}
    study = load(make_study(["sub-01/anat/sub-01_T1w.nii.gz"], tables))
    assert study.scans[0].demographics.age == 33.0


@pytest.mark.parametrize(
    ("tables", "warning"),
    [
        ({}, "study has no participants.tsv"),
        (
            {"participants.tsv": "id\tage\nsub-01\t1\n"},
            "row 1: no column participant_id in 'id age'",
        ),
        ({"participants.tsv": "participant_id\tage\n"}, "participants.tsv has no row for sub-01"),
        (
            {"participants.tsv": "participant_id\tage\nsub-01\t9x\n"},
            "row 2: age '9x' is not an age",
        ),
        ({"participants.tsv": "", "participants.json": "{"}, "participants.json cannot be read"),
        ({"participants.tsv": "participant_id\tage\nsub-01\t1"}, "sex is unknown for sub-01"),
    ],
)
def test_faults_of_tables_are_warned_about(
    make_study: MakeStudy, tables: dict[str, str], warning: str
) -> None:
    study = load(make_study(["sub-01/anat/sub-01_T1w.nii.gz"], tables))
    assert any(warning in line for line in study.warnings), study.warnings


def test_table_that_is_not_utf8(tiny_study: Path) -> None:
    text = "participant_id\tage\tgroup\nsub-01\t40\tMüller\n"
    (tiny_study / "participants.tsv").write_bytes(text.encode("latin-1"))
    study = load(tiny_study)
    assert study.scans[0].demographics.age == 40.0
    assert "participants.tsv is not UTF-8 text; some letters are lost" in study.warnings


@pytest.mark.parametrize(
    ("name", "scans", "sexes"),
    [("ixi", 141, {"F": 71, "M": 70}), ("ds002748", 24, {"F": 20, "M": 4}), ("pumi", 1, {"F": 1})],
)
def test_real_data_sets(
    shared_data: Path, tmp_path: Path, name: str, scans: int, sexes: dict[str, int]
) -> None:
    study = load_study(Settings(shared_data / name, tmp_path, ("participant",)))
    assert len(study.scans) == scans
    assert study.warnings == ()
    assert all(scan.path.is_file() and scan.demographics.age for scan in study.scans)
    assert Counter(scan.demographics.sex for scan in study.scans) == sexes
