"""The image: what is in it, what is not, and that it computes what the repository does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bidsapp import __version__

if TYPE_CHECKING:
    from tests.container.conftest import Run

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = "/opt/brainage/bin/brainage"


# --- what is in it ---


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"brainage {__version__}\n"
    assert "--participant-label" in run("--help").stdout
    assert run().stdout == run("--help").stdout


def test_labels(engine: str, image: str) -> None:
    told = subprocess.run(
        [engine, "image", "inspect", image], capture_output=True, text=True, check=True
    )
    config = json.loads(told.stdout)[0]["Config"]
    for name in ("org.opencontainers.image.version", "org.label-schema.version"):
        assert config["Labels"][name] == __version__
    assert config["Entrypoint"] == [PROGRAM]
    assert config["User"] not in ("", "0", "root")
    assert not config.get("Healthcheck")
    assert not config.get("ExposedPorts")


def test_packages_are_the_pinned_ones(run: Run) -> None:
    script = (
        "from importlib.metadata import distributions\n"
        "for each in distributions(): print(each.name, each.version)"
    )
    told = run("-c", script, entrypoint="/opt/brainage/bin/python").stdout
    inside = dict(line.split() for line in told.splitlines())
    assert inside.pop("brainage") == __version__
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    pins = {_plain(name): version for name, version in pins.items()}
    found = {_plain(name): version.split("+")[0] for name, version in inside.items()}
    assert found.items() <= pins.items(), sorted(found.items() - pins.items())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_anybody_may_read_all_and_write_nothing(run: Run) -> None:
    assert run("/opt", "!", "-readable", entrypoint="/usr/bin/find").stdout == ""
    writable = ("/opt", "-writable", "!", "-type", "l")
    options = ("--user=12345",)  # else it is the file system that forbids it
    found = run(*writable, entrypoint="/usr/bin/find", options=options)
    assert found.stdout == ""


def test_no_compilers_and_no_caches(run: Run) -> None:
    script = """
    for name in cc gcc g++ clang ld make cmake git curl wget; do command -v $name; done
    ls -d /source ~root/.cache /tmp/.cache 2>/dev/null
    find /opt /home /root /tmp /var -name '*.whl' -o -name '*.deb' -o -path '*/torch/include'
    ls /opt/brainage/bin/pip*
    true
    """
    assert run("-c", script, entrypoint="/bin/sh").stdout == ""


# --- what it computes ---


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real scans, or simulated ones where there are none."""
    folder = tmp_path_factory.mktemp("data")
    root = folder / "study"
    data = os.environ.get("BRAINAGE_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    source = Path(data) / "ixi"
    if not source.is_dir():
        ages = ["--ages", "30", "--resolution", "2"]
        subprocess.run([sys.executable, "-m", "models.simulation", root, *ages], check=True,
                       cwd=REPOSITORY)  # fmt: skip
        return root
    labels = sorted(path.name for path in source.glob("sub-*"))[:2]
    for label in labels:
        shutil.copytree(source / label, root / label)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.copyfile(source / "dataset_description.json", root / "dataset_description.json")
    head, *rows = (source / "participants.tsv").read_text().splitlines()
    rows = [row for row in rows if row.split("\t")[0] in labels]
    (root / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def outside(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the repository makes of the study."""
    out = tmp_path_factory.mktemp("outside") / "out"
    command = [sys.executable, REPOSITORY / "run.py", study, out, "participant", "group"]
    # Where these choose other instructions than the processor's own, last digits differ.
    environment = {name: os.environ[name] for name in os.environ if "OPENBLAS" not in name}
    subprocess.run([*command, "--nprocs", "1"], check=True, env=environment)
    return out


@pytest.fixture(scope="module")
def inside(run: Run, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image makes of it: unknown user, nothing writable but the output, no network."""
    from tests.container.conftest import HARD

    out = _writable(tmp_path_factory.mktemp("inside") / "out")
    done = run(
        "/data", "/out", "participant", "group", "--nprocs", "1",
        mounts={"/data:ro": study, "/out": out}, options=(*HARD, "--env=PYTHONVERBOSE=1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "not a writable" not in done.stderr
    out.with_name("stderr.txt").write_text(done.stderr)
    return out


def _writable(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def test_same_bits_inside_and_outside(
    inside: Path, outside: Path, read_results: Callable[[Path], dict[str, Any]]
) -> None:
    there, here = read_results(inside), read_results(outside)
    assert there.keys() == here.keys()
    assert sum(name.endswith("_brainage.json") and "/" in name for name in here) >= 2
    assert [name for name in here if there[name] != here[name]] == []


def test_the_description_names_the_image(inside: Path) -> None:
    description = json.loads((inside / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"] == {
        "Type": "docker",
        "Tag": f"bids/brainage:{__version__}",
    }


def test_reports_are_there_and_belong_to_the_user(inside: Path) -> None:
    assert len(list(inside.glob("sub-*.html"))) >= 2
    assert {path.stat().st_uid for path in inside.rglob("*")} == {12345}


def test_no_module_was_compiled_meanwhile(inside: Path) -> None:
    said = inside.with_name("stderr.txt").read_text()
    loaded = re.findall(r"^# code object from '?([^'\n]+)", said, re.MULTILINE)
    assert any(path.endswith(".pyc") for path in loaded)
    assert [path for path in loaded if path.endswith(".py")] == []


def test_a_second_run_has_nothing_to_do(run: Run, study: Path, inside: Path) -> None:
    done = run("/data", "/out", "participant", mounts={"/data:ro": study, "/out": inside})
    assert done.returncode == 0
    assert re.search(r"\b0 computed, [2-9] complete before, 0 failed", done.stderr), done.stderr


def test_what_was_not_mounted_is_said(run: Run, study: Path, tmp_path: Path) -> None:
    out = _writable(tmp_path / "out")
    done = run("/data", "/out", "participant", mounts={"/out": out})
    assert done.returncode == 2
    assert "was it mounted with -v?" in done.stderr
    out.chmod(0o755)
    done = run("/data", "/out", "participant", mounts={"/data:ro": study, "/out": out})
    assert done.returncode == 2
    assert "/out cannot be written to" in done.stderr
    assert "--user" in done.stderr
