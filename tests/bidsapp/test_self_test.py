"""The self test: what it compares, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bidsapp import cli, self_test
from bidsapp.errors import UserError
from models import registry

AGES = {"average": {"wssa": 36.285, "ensemble": 36.285}, "degree0": {"wssa": 45.141}}


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of expected ages, of weights that are the embedded ones."""
    path = tmp_path / "expected.toml"
    weights = {"wssa": "1" * 64, "segmentation": "2" * 64}
    self_test.write_expected(weights, AGES, path)
    assert self_test.read_expected(path) == (weights, AGES)
    monkeypatch.setattr(self_test, "embedded_weights", lambda: weights)
    monkeypatch.setattr(self_test, "read_expected", lambda: (weights, AGES))
    return path


def off_by(years: float) -> self_test.Ages:
    return AGES | {"degree0": {"wssa": AGES["degree0"]["wssa"] + years}}


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize(
    ("found", "faults"),
    [
        (AGES, 0),
        (off_by(0.09), 0),
        (off_by(-0.11), 1),
        (off_by(float("nan")), 1),
        ({"average": AGES["average"]}, 1),
        (AGES | {"degree1": {"wssa": 58.0}}, 1),
        ({}, 3),
    ],
)
def test_an_age_that_is_off_or_missing_is_a_fault(
    found: self_test.Ages, faults: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(self_test, "compute", lambda: found)
    assert self_test.run() == min(faults, 1)
    said = capsys.readouterr().out
    assert said.count("<--") == faults
    assert ("computes what it should" in said) is (not faults)


@pytest.mark.usefixtures("expected")
def test_ages_of_other_weights_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(self_test, "embedded_weights", lambda: {"wssa": "3" * 64})
    monkeypatch.setattr(self_test, "compute", lambda: pytest.fail("computed"))
    assert self_test.run() == 1
    assert "are not of these weights" in capsys.readouterr().err


def test_the_expected_ages_are_those_of_the_embedded_weights() -> None:
    weights, ages = self_test.read_expected()
    assert weights == self_test.embedded_weights(), "run python -m bidsapp.self_test --update"
    models = {*registry.embedded(), "ensemble"}
    assert {brain: set(by_model) for brain, by_model in ages.items()} == {
        "average": models, "degree0": models, "degree1": models
    }  # fmt: skip


def test_the_option_is_the_whole_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag, code in (("--self-test", 0), ("--self_test", 1)):
        monkeypatch.setattr(self_test, "run", lambda code=code: code)
        assert cli.main([flag]) == code

    def fails() -> int:
        raise UserError("There is nothing to test.")

    monkeypatch.setattr(self_test, "run", fails)
    assert cli.main(["--self-test"]) == 2
    assert "There is nothing to test." in capsys.readouterr().err


@pytest.mark.integration
def test_this_installation_passes() -> None:
    run = Path(__file__).resolve().parents[2] / "run.py"
    done = subprocess.run(
        [sys.executable, run, "--self-test"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "computes what it should" in done.stdout
