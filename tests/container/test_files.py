"""Dockerfile, definition, scripts and descriptor, by the linters of each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.container.definition import DEFINITION, sections

REPOSITORY = Path(__file__).resolve().parents[2]


def lint(program: str, *arguments: object) -> None:
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed: pip install -e '.[container]'")
    command = [found, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile() -> None:
    lint("hadolint", REPOSITORY / "Dockerfile")


def test_scripts() -> None:
    lint("shellcheck", *(REPOSITORY / name for name in ("hpc/slurm.sh", "container/install.sh")))


def test_boutiques_descriptor() -> None:
    lint("bosh", "validate", REPOSITORY / "boutiques" / "descriptor.json")


def test_definition_as_singularity_python_reads_it(tmp_path: Path) -> None:
    singularity = pytest.importorskip("spython.main.parse.parsers.singularity")
    parts = sections(DEFINITION.read_text())
    del parts["arguments"]  # which it does not know
    path = tmp_path / "Singularity"
    path.write_text("".join(f"%{name}\n{text}" if name else text for name, text in parts.items()))
    recipe = singularity.SingularityParser(str(path)).parse()["spython-base"]
    assert recipe.fromHeader == "python:3.11-slim-bookworm"
    assert "pyproject.toml /source/pyproject.toml" in recipe.files
    assert recipe.cmd == 'exec /opt/brainage/bin/brainage "$@"'
    assert len(set(recipe.labels)) == 3


def test_singularity_scripts(tmp_path: Path) -> None:
    parts = sections(DEFINITION.read_text())
    for name in ("post", "environment", "runscript", "test"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{parts[name]}")
        # variables that other sections read are not unused, and exec ends a script
        lint("shellcheck", "--shell=sh", "--exclude=SC2034", tmp_path / name)
