"""Singularity.def, without Apptainer: its sections are run on the unpacked image by bubblewrap."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp import __version__
from tests.container.definition import DEFINITION, sections

Contained = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def contained(root: Path) -> Contained:
    """Function (section, *arguments, mounts={inside: outside}, environment={}).

    What ``apptainer run --cleanenv --containall`` does: nothing of the host but the mounts, an
    empty home folder and /tmp, our own user, no network, and a read-only root.
    """
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap (bwrap) stands for Apptainer, and is not here")
    parts = sections(DEFINITION.read_text())

    def run(
        section: str,
        *arguments: object,
        mounts: dict[str, Path] | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = ["bwrap", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"]
        command += ["--tmpfs", "/tmp", "--tmpfs", "/mnt", "--unshare-all", "--uid", "4711"]
        for inside, outside in (mounts or {}).items():
            command += ["--ro-bind" if inside.endswith(":ro") else "--bind", str(outside)]
            command += [inside.removesuffix(":ro")]
        variables = {"HOME": "/mnt/home", "APPTAINER_CONTAINER": "/images/brainage.sif",
                     "PATH": "/usr/bin:/bin", **(environment or {})}  # fmt: skip
        script = f"set -e\n{parts['environment']}\n{parts[section]}"
        command += ["--clearenv"]
        for name, value in variables.items():
            command += ["--setenv", name, value]
        command += ["/bin/sh", "-c", script, "sh", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if (trial := run("runscript", "--version")).returncode != 0 and "bwrap:" in trial.stderr:
        pytest.skip(f"bubblewrap does not work here: {trial.stderr.strip()}")
    return run


def test_runscript(contained: Contained) -> None:
    assert contained("runscript", "--version").stdout == f"brainage {__version__}\n"


def test_the_pythons_of_the_host_are_kept_out(contained: Contained) -> None:
    hostile = {"PYTHONPATH": "/mnt", "PYTHONHOME": "/mnt", "TEMPLATEFLOW_HOME": "/mnt/templates"}
    assert contained("runscript", "--version", environment=hostile).returncode == 0


def test_self_test(contained: Contained) -> None:
    done = contained("test")
    assert done.returncode == 0, done.stdout + done.stderr


def test_group_level(contained: Contained, tmp_path: Path) -> None:
    """As far as the app itself: there is nothing to summarise."""
    (tmp_path / "out").mkdir()
    mounts = {"/mnt/data:ro": tmp_path, "/mnt/out": tmp_path / "out"}
    done = contained("runscript", "/mnt/data", "/mnt/out", "group", mounts=mounts)
    assert done.returncode == 3
    assert "run the participant level first" in " ".join(done.stderr.split())


@pytest.mark.parametrize("base", ["python", "image"])
def test_post_builds_it(
    base: str, engine: str, image: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """%files and %post, as a container build: on Python alone, and on the Docker image."""
    from tests.container.conftest import BASE, REPOSITORY

    parts = sections(DEFINITION.read_text(), torch="cpu", offline="1", pip_extra_index_url="")
    lines = [f"FROM {BASE if base == 'python' else image}", "USER 0"]
    lines += [f"COPY {' '.join(line.split())}" for line in parts["files"].strip().splitlines()]
    (tmp_path / "post.sh").write_text(f"set -e\n{parts['post']}")
    context = tmp_path / "context"
    shutil.copytree(
        REPOSITORY, context,
        ignore=lambda folder, names: set(names) - _wanted(Path(folder), names),
    )  # fmt: skip
    shutil.copyfile(tmp_path / "post.sh", context / "post.sh")
    lines += ["COPY post.sh /post.sh", "RUN sh /post.sh && rm /post.sh"]
    lines += ['ENTRYPOINT ["/opt/brainage/bin/brainage"]']
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    flags = os.environ.get("BUILD_FLAGS", "").split()
    tag = f"brainage-test-{base}:post"
    built = subprocess.run([engine, "build", *flags, "-t", tag, str(context)], check=False)
    assert built.returncode == 0
    request.addfinalizer(
        lambda: subprocess.run([engine, "rmi", tag], check=False, capture_output=True)
    )
    told = subprocess.run(
        [engine, "run", "--rm", "--user=12345", "--read-only", "--network=none", tag, "--version"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout == f"brainage {__version__}\n"


def _wanted(folder: Path, names: list[str]) -> set[str]:
    from tests.container.conftest import REPOSITORY

    if folder == REPOSITORY:
        return {"LICENSE", "README.md", "bidsapp", "constraints.txt", "container", "models",
                "pyproject.toml"}  # fmt: skip
    return {name for name in names if name != "__pycache__"}
