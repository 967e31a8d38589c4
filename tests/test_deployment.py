"""Containers, cluster scripts and descriptors agree with the code and with each other."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from bidsapp import __version__
from bidsapp.cli import build_parser
from tests.container.definition import DEFINITION, sections

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
FLAGS = {flag for action in build_parser()._actions for flag in action.option_strings}


def test_the_version_is_written_in_no_other_place() -> None:
    files = ["Dockerfile", "Singularity.def", "Makefile", "container/install.sh", "hpc/slurm.sh",
             "hpc/babs.yaml"]  # fmt: skip
    for name in files:
        assert __version__ not in (REPOSITORY / name).read_text(encoding="utf-8"), name


def test_docker_and_singularity_set_the_same_environment() -> None:
    last_stage = DOCKERFILE.rsplit("\nFROM ", 1)[1].replace("\\\n", " ")
    declared = re.search(r"^ENV (.+)$", last_stage, re.MULTILINE)
    assert declared
    docker = dict(pair.split("=", 1) for pair in declared[1].split())
    assert docker.pop("HOME") == "/tmp"  # Apptainer gives one
    exported = re.findall(r"export (\w+)=(.*)$", sections(DEFINITION.read_text())["environment"],
                          re.MULTILINE)  # fmt: skip
    assert dict(exported) == docker


def test_docker_and_singularity_take_the_same_files() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[0] for line in sections(DEFINITION.read_text())["files"].splitlines()
              if line.strip()]  # fmt: skip
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert all((REPOSITORY / name).exists() for name in copied)


def test_docker_and_singularity_stand_on_the_same_base() -> None:
    base = re.search(r"^ARG BASE=docker.io/library/(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base
    header = sections(DEFINITION.read_text())[""]
    assert f"From: {base[1]}\n" in header and "Bootstrap: docker\n" in header
    assert base[1] in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_singularity_uses_every_argument_that_it_declares() -> None:
    text = DEFINITION.read_text(encoding="utf-8")
    declaration = text.split("%arguments")[1].split("%files")[0]
    declared = set(re.findall(r"^    (\w+)=", declaration, re.MULTILINE))
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", text))
    assert declared == used


def test_singularity_can_be_filled_in() -> None:
    parts = sections(DEFINITION.read_text(), bootstrap="docker-daemon", **{"from": "x:1"})
    assert "Bootstrap: docker-daemon\nFrom: x:1\n" in parts[""]
    assert parts["runscript"].strip() == 'exec /opt/brainage/bin/brainage "$@"'
    assert "--self-test" in parts["test"] and "--self-test" in FLAGS
    assert "{{" not in "".join(parts.values())


@pytest.mark.parametrize("name", ["hpc/slurm.sh", "container/install.sh", ".ci/run"])
def test_scripts_are_executable_and_can_be_parsed(name: str) -> None:
    path = REPOSITORY / name
    assert path.stat().st_mode & 0o111
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", path], check=True)


def test_the_babs_configuration_names_options_that_exist() -> None:
    text = (REPOSITORY / "hpc" / "babs.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    arguments = found["bids_app_args"]
    given = [flag for flag in arguments if flag.startswith("-")]
    assert set(given) <= FLAGS
    assert arguments["$SUBJECT_SELECTION_FLAG"] in FLAGS
    assert "--bids-filter-file" in FLAGS  # which BABS adds
    assert all(arguments[flag] != "" or _takes_no_value(flag) for flag in given)


def _takes_no_value(flag: str) -> bool:
    return any(flag in action.option_strings and action.nargs == 0
               for action in build_parser()._actions)  # fmt: skip


def test_the_boutiques_descriptor_is_that_of_the_parser() -> None:
    program = _load(REPOSITORY / "boutiques" / "make_descriptor.py")
    written = json.loads(program.DESCRIPTOR.read_text(encoding="utf-8"))
    assert written == program.descriptor(build_parser()), "run python boutiques/make_descriptor.py"


def test_the_boutiques_descriptor_is_whole() -> None:
    descriptor = json.loads((REPOSITORY / "boutiques" / "descriptor.json").read_text())
    inputs = descriptor["inputs"]
    for key in ("id", "value-key"):
        assert len({each[key] for each in inputs}) == len(inputs)
    assert [f"[{name}]" for name in re.findall(r"\[(\w+)\]", descriptor["command-line"])] == [
        each["value-key"] for each in inputs
    ]
    given = {each["command-line-flag"] for each in inputs if each["optional"]}
    assert given <= FLAGS
    assert descriptor["tool-version"] == __version__


def _load(path: Path) -> ModuleType:
    """Import a program that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
