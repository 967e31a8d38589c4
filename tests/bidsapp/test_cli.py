import errno
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bidsapp
from bidsapp import cli
from bidsapp.cli import build_parser, main, parse_args
from bidsapp.errors import NothingToDo, ScanError, UserError
from bidsapp.settings import Settings

RUN = Path(__file__).resolve().parents[2] / "run.py"


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir()
    return [str(tmp_path / "in"), str(tmp_path / "out")]


def levels(
    monkeypatch: pytest.MonkeyPatch, participant: Any = 0, group: Any = 0
) -> list[tuple[str, Settings]]:
    """Replace the two levels by functions that return or raise what is given; return the calls."""
    calls: list[tuple[str, Settings]] = []

    def level(name: str, answer: Any) -> SimpleNamespace:
        def run(settings: Settings) -> int:
            calls.append((name, settings))
            if isinstance(answer, BaseException):
                raise answer
            return int(answer)

        return SimpleNamespace(run=run)

    for name, answer in (("participant", participant), ("group", group)):
        module = level(name, answer)
        monkeypatch.setitem(sys.modules, f"bidsapp.{name}", module)
        monkeypatch.setattr(bidsapp, name, module, raising=False)
    return calls


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("--participant-label sub-01 02", "participant_label", ("01", "02")),
        ("--participant_label 01 --participant_label 02", "participant_label", ("01", "02")),
        ("--participant-labels 01", "participant_label", ("01",)),
        ("--session-label ses-a b", "session_label", ("a", "b")),
        ("--session_label a", "session_label", ("a",)),
        ("--session-id a", "session_label", ("a",)),
        ("--session_id a", "session_label", ("a",)),
        ("--skip-bids-validation", "skip_bids_validation", True),
        ("--skip_bids_validation", "skip_bids_validation", True),
        ("--skip_bids_validator", "skip_bids_validation", True),
        ("--bids-filter-file {file}", "bids_filter_file", "{file}"),
        ("--bids_filter_file {file}", "bids_filter_file", "{file}"),
        ("--bids-database-dir {there}/db", "bids_database_dir", "{there}/db"),
        ("-d fs={there}", "derivatives", ("fs={there}",)),
        ("--derivatives fs={there}", "derivatives", ("fs={there}",)),
        ("-w {there}/w", "work_dir", "{there}/w"),
        ("--work-dir {there}/w", "work_dir", "{there}/w"),
        ("--work_dir {there}/w", "work_dir", "{there}/w"),
        ("--nprocs 3", "nprocs", 3),
        ("--nthreads 3", "nprocs", 3),
        ("--n_cpus 3", "nprocs", 3),
        ("--n-cpus 3", "nprocs", 3),
        ("--omp-nthreads 2", "omp_nthreads", 2),
        ("--omp_nthreads 2", "omp_nthreads", 2),
        ("--ants-nthreads 2", "omp_nthreads", 2),
        ("--mem 8000", "mem_gb", 8.0),
        ("--mem 8G", "mem_gb", 8.0),
        ("--mem_mb 8000", "mem_gb", 8.0),
        ("--mem-mb 8000", "mem_gb", 8.0),
        ("--mem_gb 8", "mem_gb", 8.0),
        ("--mem-gb 8", "mem_gb", 8.0),
        ("--low-mem", "low_mem", True),
        ("-vv -v", "verbose", 3),
        ("--verbose", "verbose", 1),
        ("--reports-only", "reports_only", True),
        ("--reports_only", "reports_only", True),
        ("--stop-on-first-crash", "stop_on_first_crash", True),
        ("--stop_on_first_crash", "stop_on_first_crash", True),
        ("--random-seed 7", "random_seed", 7),
        ("--random_seed 7", "random_seed", 7),
        ("--notrack", "notrack", True),
        ("--dry-run", "dry_run", True),
        ("--output-spaces MNI152NLin6Asym", "template", "MNI152NLin6Asym"),
        ("--output-spaces MNI152NLin6Asym:res-2 T1w", "template", "MNI152NLin6Asym"),
        ("--output_spaces T1w", "template", "MNI152NLin2009aSym"),
        ("--template MNI152NLin6Asym", "template", "MNI152NLin6Asym"),
        ("--skull-strip-t1w skip", "skull_strip_t1w", "skip"),
        ("--skull_strip_t1w force", "skull_strip_t1w", "force"),
        ("--quality fail", "quality", "fail"),
        ("--models wssa sfcn", "models", ("wssa", "sfcn")),
        ("--model-file wssa={there}", "model_file", ("wssa={there}",)),
        ("--device cpu", "device", "cpu"),
        ("--covariates IQ cnr", "covariates", ("IQ", "cnr")),
        ("--phenotype-terms MMSE", "phenotype_terms", ("MMSE",)),
        ("--phenotype {file}", "phenotype", "{file}"),
        ("--reference dx=CN", "reference", "dx=CN"),
        ("--contrast AD-CN", "contrast", ("AD-CN",)),
        ("--permutations 0", "permutations", 0),
        ("--bias-correction cole", "bias_correction", "cole"),
        ("--bias-degree 2", "bias_degree", "2"),
        ("--bias_robust", "bias_robust", True),
        ("--bias-force", "bias_force", True),
        ("--bias-correction-from {file}", "bias_correction_from", "{file}"),
        ("--harmonize", "harmonize", True),
        ("--include-failed-quality", "include_failed_quality", True),
        ("--allow_mixed", "allow_mixed", True),
        ("--importance none", "importance", ()),
        ("--atlas cerebra", "atlas", ("cerebra",)),
        ("--atlas {file} {file}.tsv", "atlas", ("{file}", "{file}.tsv")),
    ],
)
def test_spellings(
    options: str, name: str, value: Any, folders: list[str], tmp_path: Path
) -> None:
    def fill(text: str) -> str:
        return text.format(file=tmp_path / "filter.json", there=tmp_path)

    for file in ("filter.json", "filter.json.tsv"):
        (tmp_path / file).write_text("{}")
    settings = parse_args([*folders, "participant", *fill(options).split()])
    expected = tuple(map(fill, value)) if isinstance(value, tuple) else value
    expected = Path(fill(expected)) if isinstance(expected, str) and "{" in expected else expected
    assert getattr(settings, name) == expected


def test_every_setting_has_an_option() -> None:
    from dataclasses import fields

    destinations = {action.dest for action in build_parser()._actions}
    assert {setting.name for setting in fields(Settings)} <= destinations


def test_defaults_are_those_of_the_settings(folders: list[str]) -> None:
    assert parse_args([*folders, "participant"]) == Settings(*folders, ("participant",))


def test_label_list_in_a_file(folders: list[str], tmp_path: Path) -> None:
    labels = tmp_path / "list.txt"
    labels.write_bytes("\ufeffsub-01\r\n02 03\r\n\r\n".encode())
    settings = parse_args([*folders, "participant", "--participant-label", f"@{labels}", "04"])
    assert settings.participant_label == ("01", "02", "03", "04")


def test_command_line_beats_config_file_beats_defaults(folders: list[str], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('nprocs = 2\nomp_nthreads = 2\nbids_dir = "/elsewhere"\n')
    argv = [*folders, "participant", "--config-file", str(config), "--nprocs", "5"]
    settings = parse_args(argv)
    assert (settings.nprocs, settings.omp_nthreads, settings.random_seed) == (5, 2, 1)
    assert str(settings.bids_dir) == folders[0]


def test_settings_of_a_run_serve_as_config_file(folders: list[str], tmp_path: Path) -> None:
    first = parse_args([*folders, "participant", "--low-mem", "--nprocs", "2"])
    (tmp_path / "settings.toml").write_text(first.to_toml())
    again = parse_args([*folders, "participant", "--config-file", str(tmp_path / "settings.toml")])
    assert again == Settings(**{**vars(first), "config_file": tmp_path / "settings.toml"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--atlas aal", "--atlas takes 'cerebra', or two files"),
        ("--atlas not there", "not is not a file"),
        ("--part 01", "unrecognized arguments: --part"),
        ("--nprocs many", "invalid int value: 'many'"),
        ("--mem 1000 --mem-gb 1", "not allowed with argument"),
        ("--mem lots", "'lots' is not an amount of memory"),
        ("--device tpu", "invalid choice: 'tpu'"),
        ("--output-spaces A B", "takes one template, not A, B"),
        ("--output-spaces A:res-1", "always at 2 mm"),
        ("--bids-filter-file /nowhere.json", "--bids-filter-file /nowhere.json is not a file"),
        ("--phenotype /nowhere.tsv", "--phenotype /nowhere.tsv is not a file"),
        ("--participant-label @/nowhere", "--participant-label /nowhere cannot be read: No such"),
        ("--config-file /nowhere", "--config-file /nowhere cannot be read: No such"),
        ("--model-file wssa=/nowhere", "--model-file wssa=/nowhere: there is no such file"),
        ("--model-file wssa", "--model-file takes NAME=PATH, not 'wssa'"),
        ("--derivatives fs=/nowhere", "--derivatives fs=/nowhere: there is no such"),
        ("-w {in}/work", "--work-dir {in}/work is inside bids_dir"),
        ("--bids-database-dir {in}/derivatives/db", "is inside bids_dir"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_code_2(
    options: str, message: str, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = (text.replace("{in}", folders[0]) for text in (options, message))
    assert main([*folders, "participant", *options.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_missing_and_wrong_positionals(folders: list[str]) -> None:
    assert main([]) == 2
    assert main(folders) == 2
    assert main([*folders, "session"]) == 2


def test_bids_dir_that_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no"), str(tmp_path / "out"), "participant"]) == 2
    assert f"bids_dir {tmp_path / 'no'} is not a folder" in capsys.readouterr().err


def test_group_level_needs_the_output_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = levels(monkeypatch)
    argv = [str(tmp_path / "no"), str(tmp_path / "out"), "group"]
    assert main(argv) == 2
    assert "the group level reads what the participant level wrote" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main(argv) == 0
    assert [name for name, _ in calls] == ["group"]


@pytest.mark.parametrize("output", ["", "out", "sub-01/x", "link"])
def test_output_inside_bids_dir_is_refused(
    output: str, folders: list[str], tmp_path: Path
) -> None:
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    suggestion = Path(folders[0]) / "derivatives" / "brainage"
    with pytest.raises(UserError, match=f"use {suggestion}"):
        parse_args([folders[0], str(Path(folders[0]) / output), "participant"])
    parse_args([folders[0], str(suggestion), "participant"])
    assert not suggestion.exists()


def test_unwritable_output_is_refused(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is not a folder"):
        parse_args([folders[0], str(tmp_path / "file" / "out"), "participant"])
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"written to by user .*: no permission in {tmp_path}"):
        parse_args([*folders, "participant"])


@pytest.mark.parametrize(
    ("asked", "participant", "group", "code", "called"),
    [
        (["participant"], 0, 0, 0, ["participant"]),
        (["participant"], 1, 0, 1, ["participant"]),
        (["group"], 0, 0, 0, ["group"]),
        (["participant", "group"], 0, 0, 0, ["participant", "group"]),
        (["group", "participant"], 0, 0, 0, ["participant", "group"]),
        (["participant", "group"], 1, 0, 1, ["participant", "group"]),
        (["participant", "group"], 0, 1, 1, ["participant", "group"]),
        (["participant", "group", "--stop-on-first-crash"], 1, 0, 1, ["participant"]),
        (["participant", "group"], NothingToDo("none"), 0, 3, ["participant"]),
        (["participant"], UserError("bad"), 0, 2, ["participant"]),
        (["participant"], ScanError("bad"), 0, 1, ["participant"]),
        (["participant"], KeyboardInterrupt(), 0, 130, ["participant"]),
        (["participant"], OSError(errno.ENOSPC, "No space left", "f"), 0, 1, ["participant"]),
    ],
)
def test_exit_codes(
    asked: list[str], participant: Any, group: Any, code: int, called: list[str],
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "out").mkdir()
    calls = levels(monkeypatch, participant, group)
    assert main([*folders, *asked]) == code
    assert [name for name, _ in calls] == called
    raised = isinstance(participant, BaseException)
    assert capsys.readouterr().err.count("\n") == (1 if raised else 0)


def test_faults_of_the_program_are_not_hidden(
    folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main([*folders, "participant"])


def test_help_and_version_are_quick_from_any_folder(tmp_path: Path) -> None:
    for flag, text in (
        ("--version", f"brainage {bidsapp.__version__}\n"),
        ("--help", "exit codes"),
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, RUN, flag], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # of its own time: a busy machine may let it wait
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
        assert text in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bidsapp.cli import main; main(['--help']); main(['a', 'b', 'group']);"
        "heavy = {'torch', 'ants', 'pandas', 'bids', 'nibabel', 'numpy', 'rich'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=RUN.parent, capture_output=True)
    assert done.returncode == 0, done.stderr
