"""The group level: records become tables, a correction that can be used again, and a report."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsapp import group, report
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
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is not about them: they take most of the time."""
    monkeypatch.setattr(report, "_group_figures", lambda results: {})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "gone", tmp_path / "out", ("group",), importance=("none",))


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


@pytest.mark.usefixtures("no_figures")
def of_an_earlier_run(out: Derivatives) -> list[Path]:
    """What a group level leaves of importance maps."""
    mean = out.group_importance("wssa", "noise")
    image = np.ones((3, 3, 3))
    for path in (mean, out.group_importance("wssa", "noise", "age-30to39")):
        out.write_image(path, image, np.eye(4), {"Model": "wssa", "Method": "noise"}, np.float32)
    figures = [out.group_importance_figure("wssanoise", n) for n in ("map.png", "regions.svg")]
    tables = [out.group(f"{name}.tsv") for name in ("regions", "importance_check")]
    for path in figures:
        out.write_bytes(path, b"earlier")
    for path in tables:
        out.write_table(path, [], {"region": "Earlier"})
    images = out.root.glob("group_*_importance.*")
    return [*images, *figures, *tables, *(path.with_suffix(".json") for path in tables)]


def test_importance_maps_of_an_earlier_run_do_not_stay(
    settings: Settings, no_figures: None
) -> None:
    write(settings, *(record(f"sub-{number}") for number in range(4)))
    out = Derivatives(settings.output_dir, settings.bids_dir, settings.template)
    earlier = of_an_earlier_run(out)
    noise_model = out.group_noise_model("wssa")
    out.write_bytes(noise_model, b"to be used again")
    with pytest.raises(UserError):  # a run that is refused takes nothing away
        group.run(replace(settings, contrast=("group: A - B",)))
    assert len(earlier) == 10 and all(path.exists() for path in earlier)
    group.run(settings)
    assert not any(path.exists() for path in earlier)
    assert noise_model.exists()
    assert "Noise, " not in out.group_report.read_text(encoding="utf-8")


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


@pytest.mark.usefixtures("no_figures")
def test_every_column_is_described(settings: Settings) -> None:
    write(settings, record("sub-01"))
    group.run(settings)
    described = json.loads((settings.output_dir / "group_brainage.json").read_text())
    assert list(described) == list(table(settings)[0])
    assert all(column["Description"] for column in described.values())
    assert described["age"]["Units"] == "years"


@pytest.mark.usefixtures("no_figures")
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


# --- what is written ---


def read(settings: Settings, name: str) -> list[dict[str, str]]:
    with (settings.output_dir / f"group_{name}.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def content(settings: Settings) -> dict[str, bytes]:
    """Everything the group level has written, but its log."""
    paths = [*settings.output_dir.glob("group*"), *settings.output_dir.glob("figures/*")]
    return {path.name: path.read_bytes() for path in paths}


def log_of(settings: Settings) -> str:
    return "".join(path.read_text() for path in settings.output_dir.glob("logs/*/log.txt"))


@pytest.fixture
def rich(make_records: Any, write_records: Any) -> Settings:
    """A study that has everything: groups, sites, repeats, a phenotype, and scans left out."""
    records = make_records(
        45, sites=("Köln", "Ulm"), sessions=("ses-1", "ses-2"), models=("one", "two")
    )
    records[4]["quality"] = {"passed": False, "flags": ["cnr"]}
    records[7]["age"] = None
    lines = ["participant_id\tscore"]
    lines += [f"{r['participant_id']}\t{i % 7}" for i, r in enumerate(records[::2])]
    tables = {"participants.tsv": "\n".join([*lines, "sub-gone\t3"]) + "\n"}
    settings: Settings = write_records(records, tables, phenotype_terms=("score",))
    return settings


def test_all_files_are_written_and_a_second_run_repeats_them(rich: Settings) -> None:
    assert group.run(rich) == 0
    first = content(rich)
    tables = ("accuracy", "brainage", "reliability", "statistics")
    figures = ("agreement", "calibration", "effects", "gap", "groups", "phenotypes", "predicted")
    assert first.keys() == (
        {f"group_{name}.{kind}" for name in tables for kind in ("tsv", "json")}
        | {f"group_{name}.svg" for name in figures}
        | {"group.html", "group_bias_correction.json", "group_report.json"}
    )
    assert group.run(rich) == 0
    assert content(rich) == first


def test_the_page_alone_is_written_again(rich: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    group.run(rich)
    first = content(rich)
    (rich.output_dir / "sub-003.html").write_text("a page")
    (rich.output_dir / "group.html").unlink()
    monkeypatch.setattr(group, "collect", lambda *_: pytest.fail("the records were analysed"))
    assert group.run(replace(rich, reports_only=True)) == 0
    again = content(rich)
    page = again.pop("group.html").decode()
    links = re.findall(r'href="(./[^"]+)"', page)
    assert set(links) == {"./sub-003.html"} and len(links) > 2  # in the table and in strips
    plain = re.sub(r'<a href="./[^>]*>(.*?)</a>', r"\1", page)
    before = first.pop("group.html").decode()
    assert again == first
    assert plain == before.replace(
        "Each dot is a scan;", "Each dot is a scan and leads to the page of its participant;"
    )


@pytest.mark.parametrize("damage", ["", "{}", '{"study": 1}'])
def test_without_its_content_the_page_cannot_be_written_again(
    settings: Settings, damage: str
) -> None:
    settings.output_dir.mkdir(exist_ok=True)
    if damage:
        (settings.output_dir / "group_report.json").write_text(damage)
    with pytest.raises(UserError, match=r"group_report.json .* without --reports-only"):
        group.run(replace(settings, reports_only=True))


@pytest.mark.usefixtures("no_figures")
def test_tables_hold_what_their_sidecars_describe(rich: Settings) -> None:
    group.run(rich)
    for name in ("accuracy", "brainage", "reliability", "statistics"):
        rows = read(rich, name)
        described = json.loads((rich.output_dir / f"group_{name}.json").read_text())
        assert list(described) == list(rows[0]), name
        assert rows
    assert {row["model"] for row in read(rich, "statistics")} == {
        "one", "two", "ensemble", "ventricles", "gray_matter",
    }  # fmt: skip
    assert len(read(rich, "brainage")) == 90 * 3


@pytest.mark.usefixtures("no_figures")
def test_every_exclusion_is_counted_in_the_report_and_in_the_log(rich: Settings) -> None:
    group.run(rich)
    page = (rich.output_dir / "group.html").read_text()
    for words, number in (
        ("excluded: failed quality", 1), ("excluded: age unknown", 1),
        ("participants in participants.tsv without a record", 1),
        ("records with a prediction", 90),
    ):  # fmt: skip
        assert f"{words}: {number}" in log_of(rich)
        assert f"<dt>{words}</dt><dd>{number}</dd>" in page
    roles = [row["role"] for row in read(rich, "brainage") if row["model"] == "one"]
    assert roles.count("repeat") == 43  # of 45 people, two have one scan left
    assert roles.count("excluded: failed quality") == roles.count("excluded: age unknown") == 1


@pytest.mark.usefixtures("no_figures")
def test_the_page_begins_with_warnings(rich: Settings) -> None:
    group.run(rich)
    page = (rich.output_dir / "group.html").read_text()
    assert page.index("1 of 90 scans failed quality") < page.index("At a glance")
    assert "was analysed" in page or "were analysed" in page


@pytest.mark.usefixtures("no_figures")
def test_a_correction_can_be_used_again(
    make_records: Any, write_records: Any, tmp_path: Path
) -> None:
    settings = write_records(make_records(60))
    group.run(settings)
    corrections = settings.output_dir / "group_bias_correction.json"
    kept = tmp_path / "earlier.json"
    kept.write_bytes(corrections.read_bytes())
    first = {row["source"]: row for row in read(settings, "brainage")}
    again = replace(settings, bias_correction_from=kept)
    group.run(again)
    for row in read(again, "brainage"):
        if row["group"] == "AD":  # the reference was cross-fitted the first time
            assert row["corrected_gap"] == first[row["source"]]["corrected_gap"]
    of_model = json.loads(corrections.read_text())["models"]["wssa"]
    assert of_model["correction_from"] == str(kept)
    assert "an earlier study was applied" in (settings.output_dir / "group.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "[]", "is no group_bias_correction.json"),
        (lambda c: json.dumps({"models": {}}), "has no correction for wssa; it has some for no"),
        (lambda c: json.dumps(c).replace("wssa000", "fffffff"), "other weights of wssa"),
        (lambda c: json.dumps(c).replace('"coefficients"', '"x"'), "is no group_bias_correction"),
    ],
    ids=["no object", "no model", "other weights", "damaged"],
)
@pytest.mark.usefixtures("no_figures")
def test_a_correction_that_cannot_be_used_is_named(
    change: Any, message: str, make_records: Any, write_records: Any, tmp_path: Path
) -> None:
    settings = write_records(make_records(30))
    group.run(settings)
    before = json.loads((settings.output_dir / "group_bias_correction.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(change(before))
    with pytest.raises(UserError, match=message) as caught:
        group.run(replace(settings, bias_correction_from=other))
    assert str(other) in str(caught.value)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        (lambda members: members, True),
        (lambda members: {"one": members["one"]}, False),
        (lambda members: members | {"two": ["f" * 64]}, False),
        (lambda members: members | {"three": []}, False),
        (lambda members: None, False),
    ],
    ids=["the same", "one less", "other weights", "one more", "not said"],
)
def test_a_correction_of_another_ensemble_is_refused(
    change: Any, accepted: bool, make_records: Any, write_records: Any, tmp_path: Path
) -> None:
    settings = write_records(make_records(30, models=("one", "two", "volumes")))
    group.run(settings)
    before = json.loads((settings.output_dir / "group_bias_correction.json").read_text())
    members = before["models"]["ensemble"]["members"]
    assert members == {"one": [f"{'one':0<64}"], "two": [f"{'two':0<64}"]}  # volumes has no vote
    before["models"]["ensemble"]["members"] = change(members)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(before))
    again = replace(settings, bias_correction_from=other)
    if not accepted:
        with pytest.raises(UserError, match=r"was not fitted on an ensemble of one, two with"):
            group.run(again)
        again = replace(again, allow_mixed=True)
    assert group.run(again) == 0


@pytest.mark.usefixtures("no_figures")
def test_an_ensemble_of_one_takes_the_correction_of_that_one(
    make_records: Any, write_records: Any, tmp_path: Path
) -> None:
    settings = write_records(make_records(30, models=("one", "two")))
    group.run(settings)
    kept = tmp_path / "earlier.json"
    kept.write_bytes((settings.output_dir / "group_bias_correction.json").read_bytes())
    for path in settings.output_dir.glob("sub-*/anat/*.json"):
        path.unlink()
    alone = make_records(30, models=("one",))
    group.run(write_records(alone, bias_correction_from=kept))
    rows = {(row["source"], row["model"]): row for row in read(settings, "brainage")}
    assert {model for _, model in rows} == {"one", "ensemble"}
    for each in alone:
        both = [rows[each["source"], model]["corrected_gap"] for model in ("one", "ensemble")]
        assert both[0] == both[1]


@pytest.mark.usefixtures("no_figures")
def test_files_of_an_earlier_run_do_not_stay(make_records: Any, write_records: Any) -> None:
    settings = write_records(make_records(20, sessions=("ses-1", "ses-2")))
    group.run(settings)
    (settings.output_dir / "figures").mkdir(exist_ok=True)
    (settings.output_dir / "figures" / "group_agreement.svg").touch()
    for path in settings.output_dir.glob("sub-*/ses-2/anat/*.json"):
        path.unlink()
    group.run(settings)
    assert not (settings.output_dir / "group_reliability.tsv").exists()
    assert not (settings.output_dir / "group_reliability.json").exists()
    assert not (settings.output_dir / "figures" / "group_agreement.svg").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_contrast_that_cannot_be_made_is_named(make_records: Any, write_records: Any) -> None:
    settings = write_records(make_records(20), contrast=("Group: AD - controls",))
    with pytest.raises(UserError, match="'group', which are AD, control"):
        group.run(settings)
    assert group.run(replace(settings, contrast=("Group: AD - control",))) == 0


@pytest.mark.usefixtures("no_figures")
def test_a_model_that_was_trained_on_the_data_set_is_told(
    make_records: Any, write_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    card = SimpleNamespace(
        training={"datasets": {"study": 30}}, title="WSSA (2024)", in_ensemble=True
    )
    monkeypatch.setattr(group.models, "known", lambda: {"wssa": card})
    monkeypatch.setattr(group.models, "card", lambda name: card)
    settings = write_records(make_records(20))
    group.run(settings)
    page = (settings.output_dir / "group.html").read_text()
    assert "wssa was trained on a data set of the same name (study)" in page
    assert "WSSA (2024)" in page


# --- little, and less ---


def people(n: int, name: str = "sub-0", **changes: Any) -> list[dict[str, Any]]:
    made = []
    for number in range(n):
        about = {"age": 25.0 + 7 * number, "sex": "FM"[number % 2]} | changes
        gap = (-3.0, 2.0, 0.5)[number % 3]
        ages = {"wssa": prediction((about["age"] or 40) + gap)}
        made.append(record(f"{name}{number}", predictions=ages, **about))
    return made


SMALL = {
    "one participant": people(1),
    "two participants": people(2),
    "five controls, as in the demonstration": people(5),
    "nobody known to be a control": people(8, group=None),
    "all of one sex": people(12, sex="F"),
    "nobody's sex is known": people(12, sex=None),
    "a group of one": [*people(12), *people(1, "sub-a", group="AD")],
    "no controls among two groups": [
        *people(6, group="AD"), *people(6, "sub-m", group="MCI")
    ],
    "all of one age": people(12, age=40.0),
    "no ages": people(4, age=None),
    "all failed quality": people(4, quality={"passed": False, "flags": ["cnr"]}),
    "no volumes": people(12, volumes_ml={}),
    "the same scan twice": [*people(3), *people(3)],
    "a site for some": [*people(12), *people(3, "sub-s", site="Ålesund")],
}  # fmt: skip


@pytest.mark.parametrize("name", ["one participant", "no ages", "all failed quality"])
def test_little_is_drawn(name: str, settings: Settings) -> None:
    write(settings, *SMALL[name])
    assert group.run(replace(settings, permutations=0)) == 0
    assert "group_gap.svg" in content(settings)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", SMALL)
def test_little_is_no_error(name: str, settings: Settings) -> None:
    write(settings, *SMALL[name])
    assert group.run(replace(settings, permutations=49)) == 0
    page = (settings.output_dir / "group.html").read_text()
    assert "Before you use these results:" in page
    assert not re.search(r">\s*(nan|None|NaN)\s*<", page)
    rows = table(settings)
    assert len(rows) == len({record["source"] for record in SMALL[name]})
    if name.startswith("five controls"):
        assert "a bias correction needs at least 10" in page
        assert all(row["corrected_gap"] == "n/a" for row in rows)
        assert all(row["interval_source"] == "not calibrated locally" for row in rows)


@pytest.mark.usefixtures("no_figures")
def test_a_constant_covariate_is_left_out_and_told(make_records: Any, write_records: Any) -> None:
    settings = write_records(make_records(40), covariates=("cnr",))
    group.run(settings)
    first = read(settings, "statistics")[0]
    assert first["verdict"] == "tested" and "cnr" not in first["covariates"]
    assert "cnr" in first["notes"]


@pytest.mark.usefixtures("no_figures")
def test_what_was_said_is_kept_in_a_log(settings: Settings) -> None:
    write(settings, record("sub-01"), record("sub-02"))
    group.run(settings)
    (log,) = settings.output_dir.glob("logs/*/log.txt")
    assert "2 participants" in log.read_text()
    (kept,) = settings.output_dir.glob("logs/*/settings.toml")
    assert kept.parent == log.parent
    assert Settings.from_toml(kept.read_text()) == settings


# --- nothing but told ---


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_tells_and_writes_nothing(
    rich: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(rich.output_dir)
    assert group.run(replace(rich, dry_run=True)) == 0
    said = capsys.readouterr().out
    assert "group: 90 scans of 45 participants; models: one, two, ensemble\n" in said
    assert "group: warning: 1 of 90 scans failed quality" in said
    assert "group: excluded: age unknown: 1\n" in said
    assert f"-> {rich.output_dir / 'group_brainage.tsv'}\n" in said
    assert "importance" not in said
    assert everything(rich.output_dir) == before
    group.run(replace(rich, dry_run=True, importance=("noise",)))
    assert "importance maps by noise" in capsys.readouterr().out


def test_a_dry_run_finds_errors(rich: Settings) -> None:
    with pytest.raises(UserError, match="are AD, control"):
        group.run(replace(rich, dry_run=True, contrast=("group: AD - controls",)))


@pytest.mark.usefixtures("no_figures")
def test_a_dry_run_of_the_page_alone(rich: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    alone = replace(rich, dry_run=True, reports_only=True)
    with pytest.raises(UserError, match="without --reports-only"):
        group.run(alone)
    group.run(rich)
    before = everything(rich.output_dir)
    assert group.run(alone) == 0
    assert str(rich.output_dir / "group.html") in capsys.readouterr().out
    assert everything(rich.output_dir) == before


def test_a_dry_run_of_both_levels_needs_no_records(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    both = replace(settings, dry_run=True, analysis_level=("participant", "group"))
    assert group.run(both) == 0
    assert "holds no predictions yet" in capsys.readouterr().out
    with pytest.raises(NothingToDo):
        group.run(replace(settings, dry_run=True))


@pytest.mark.usefixtures("no_figures")
def test_maps_are_made_with_the_threads_that_were_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from bidsapp import explain_group

    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(explain_group, "population", lambda *_: seen.append("maps") or [])
    write(settings, *people(12))
    options = {"importance": ("noise",), "permutations": 0, "omp_nthreads": 3}
    assert group.run(replace(settings, **options)) == 0
    assert seen == [3, "maps"]
