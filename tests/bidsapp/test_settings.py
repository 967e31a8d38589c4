from dataclasses import fields
from pathlib import Path

import pytest

from bidsapp.errors import UserError
from bidsapp.settings import Settings, parse_toml

REQUIRED = {"bids_dir": "/in", "output_dir": "/out", "analysis_level": ["participant"]}


def test_every_setting_is_explained() -> None:
    assert all(setting.metadata["help"] for setting in fields(Settings))


def test_values_are_converted() -> None:
    settings = Settings(
        **REQUIRED, participant_label=["sub-01", "02", "01"], session_label=["ses-a"], work_dir="w"
    )
    assert settings.bids_dir == Path("/in")
    assert settings.participant_label == ("01", "02")
    assert settings.session_label == ("a",)
    assert settings.work_dir == Path.cwd() / "w"
    assert settings.nprocs == 0


def test_toml_round_trip() -> None:
    settings = Settings(
        **REQUIRED,
        participant_label=("01", "02"),
        work_dir=Path('/tmp/a "quoted" \\ path\n\x7f ü 🧠'),
        mem_gb=7.5,
        nprocs=3,
        low_mem=True,
        model_file=("wssa=/w",),
        verbose=2,
    )
    assert Settings.from_toml(settings.to_toml()) == settings


def test_scans_side_by_side_are_counted_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where the settings were written."""
    monkeypatch.setattr("bidsapp.settings.available_cpus", lambda: 64)
    monkeypatch.setattr("bidsapp.settings.available_memory_gb", lambda: 256.0)
    large = Settings(**REQUIRED)
    assert large.side_by_side == 64
    monkeypatch.setattr("bidsapp.settings.available_cpus", lambda: 4)
    assert Settings.from_toml(large.to_toml()).side_by_side == 4
    assert Settings(**REQUIRED, mem_gb=5).side_by_side == 2
    assert Settings(**REQUIRED, nprocs=9).side_by_side == 9
    assert Settings(**REQUIRED, nprocs=9, low_mem=True).side_by_side == 1


def test_toml_explains_every_option_it_holds() -> None:
    text = Settings(**REQUIRED).to_toml()
    assert "# seed of everything random\nrandom_seed = 1\n" in text
    assert "work_dir" not in text  # None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nprocs": "4"}, "'nprocs' must be of type int, not '4'"),
        ({"nprocs": True}, "'nprocs' must be of type int"),
        ({"nprocs": -1}, "'nprocs' must be 0 or more"),
        ({"mem_gb": float("nan")}, "'mem_gb' must be 0.1 or more"),
        ({"low_mem": 1}, "'low_mem' must be of type bool"),
        ({"models": "wssa"}, "'models' must be a list of words, not 'wssa'"),
        ({"models": [1]}, "'models' must be a list of words"),
        ({"work_dir": ""}, "'work_dir' must be a path"),
        ({"bids_dir": None}, "'bids_dir' must be a path"),
        ({"device": "tpu"}, "'device' must be one of auto, cpu, cuda, not 'tpu'"),
        ({"analysis_level": ["run"]}, "'analysis_level' must be one of"),
        ({"analysis_level": []}, "'analysis_level' is empty"),
        ({"template": "../x"}, "'../x' is not the name of a TemplateFlow template"),
    ],
)
def test_wrong_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        Settings(**{**REQUIRED, **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nprocs = ", "f.toml is not valid TOML"),
        ("nproc = 1", "f.toml has an unknown setting 'nproc': did you mean 'nprocs'"),
        ("zzz = 1", "f.toml has an unknown setting 'zzz': known are bids_dir"),
    ],
)
def test_wrong_toml_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_toml(text, "f.toml")


def test_toml_without_folders_is_refused() -> None:
    with pytest.raises(UserError, match="lacks analysis_level, bids_dir, output_dir"):
        Settings.from_toml("nprocs = 1")


def test_names_and_paths() -> None:
    settings = Settings(**REQUIRED, model_file=["wssa=/w"], derivatives=["fs=/a", "/b/fmriprep"])
    assert settings.model_paths == {"wssa": Path("/w")}
    assert settings.derivative_paths == {"fs": Path("/a"), "fmriprep": Path("/b/fmriprep")}
    with pytest.raises(UserError, match="--model-file takes NAME=PATH, not '/w'"):
        _ = Settings(**REQUIRED, model_file=["/w"]).model_paths


@pytest.mark.parametrize(("verbose", "level"), [(0, 20), (1, 15), (2, 10), (9, 10)])
def test_log_level(verbose: int, level: int) -> None:
    assert Settings(**REQUIRED, verbose=verbose).log_level == level


@pytest.mark.parametrize(
    ("participants", "sessions", "expected"),
    [
        ((), (), [True, True, True]),
        (("01",), (), [True, True, False]),
        (("sub-02",), (), [False, False, True]),
        ((), ("a",), [True, False, False]),
        (("01",), ("ses-b",), [False, False, False]),
    ],
)
def test_scans_that_were_asked_for(
    participants: tuple[str, ...], sessions: tuple[str, ...], expected: list[bool]
) -> None:
    settings = Settings(
        "/a", "/b", ("group",), participant_label=participants, session_label=sessions
    )
    scans = [("sub-01", "ses-a"), ("sub-01", None), ("sub-02", "ses-c")]
    assert [settings.asks_for(*scan) for scan in scans] == expected
