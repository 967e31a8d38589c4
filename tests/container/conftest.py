"""The image, built as a user builds it, and what runs in it under the hardest settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HARD = ("--user=12345:12345", "--read-only", "--network=none", "--cap-drop=all", "--tmpfs=/tmp")
BASE = "docker.io/library/python:3.11-slim-bookworm"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def engine() -> str:
    """Docker or Podman, if they work here; buildah builds images, but runs no ENTRYPOINT."""
    named = os.environ.get("CONTAINER_ENGINE")
    for name in [named] if named else ["docker", "podman"]:
        if shutil.which(name) and _quiet(name, "info").returncode == 0:
            return name
    pytest.skip(f"no container engine: {named or 'neither docker nor podman'} works here")


@pytest.fixture(scope="session")
def image(engine: str) -> str:
    """The image that BRAINAGE_TEST_IMAGE names, else one that `make image` builds."""
    if given := os.environ.get("BRAINAGE_TEST_IMAGE"):
        return given
    if all(_quiet(engine, *how, BASE).returncode for how in (("image", "inspect"), ("pull",))):
        pytest.skip(f"no base image: {engine} has no {BASE} and cannot pull it")
    arguments = ["image", f"ENGINE={engine}", "IMAGE=brainage-test", "OFFLINE=1"]
    done = subprocess.run(["make", *arguments], cwd=REPOSITORY, check=False)
    assert done.returncode == 0
    return f"brainage-test:{_version()}"


@pytest.fixture(scope="session")
def run(engine: str, image: str) -> Run:
    """Function (*arguments, mounts={inside: outside}, options=HARD, entrypoint=None)."""

    def run(
        *arguments: object,
        mounts: dict[str, Path] | None = None,
        options: tuple[str, ...] = HARD,
        entrypoint: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = [engine, "run", "--rm", *options]
        command += [f"--volume={outside}:{inside}" for inside, outside in (mounts or {}).items()]
        command += [f"--entrypoint={entrypoint}"] if entrypoint else []
        return _quiet(*command, image, *map(str, arguments))

    return run


@pytest.fixture(scope="session")
def root(engine: str, image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system of the image, unpacked, as Apptainer and Charliecloud use it."""
    folder = tmp_path_factory.mktemp("root")
    created = _quiet(engine, "create", image)
    assert created.returncode == 0, created.stderr
    name = created.stdout.split()[-1]
    try:
        with subprocess.Popen([engine, "export", name], stdout=subprocess.PIPE) as export:
            subprocess.run(
                ["tar", "-x", "--exclude=dev/*", "-C", folder], stdin=export.stdout, check=True
            )
    finally:
        _quiet(engine, "rm", name)
    return folder


def _quiet(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _version() -> str:
    from bidsapp import __version__

    return __version__
