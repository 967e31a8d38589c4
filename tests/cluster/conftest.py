"""SLURM for the tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.local_slurm import Slurm, local_slurm, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    with local_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm
