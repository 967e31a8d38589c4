"""Real scans through a Dask cluster, one of whose workers is lost: same bits as on one machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.registry import FOLDER

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = ("IXI013", "IXI014")
LONGEST = 1200  # seconds that any wait may take

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (FOLDER / "segmentation" / "weights.safetensors").is_file(),
        reason="no segmentation network",
    ),
]


def start(study: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "run.py", study, out, "participant", *options],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_cluster_that_loses_a_worker_gives_the_same_bits(
    shared_data: Path, tmp_path: Path, read_results: Callable[[Path], dict[str, Any]]
) -> None:
    distributed = pytest.importorskip("distributed")
    study, here, there = tmp_path / "study", tmp_path / "here", tmp_path / "there"
    for label in LABELS:
        shutil.copytree(shared_data / "ixi" / f"sub-{label}", study / f"sub-{label}")
    (study / "dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.9.0"}')
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        run = start(study, there, "--dask-scheduler", cluster.scheduler_address)
        lose_a_worker(cluster, run)
        _, said = run.communicate(timeout=LONGEST)
    assert run.returncode == 0, said
    assert "2 computed, 0 complete before, 0 failed" in said
    assert start(study, here, "--nprocs", "1").wait(LONGEST) == 0
    assert read_results(there) == read_results(here)
    assert len(list(there.rglob("*_brainage.json"))) == len(LABELS)


def lose_a_worker(cluster: Any, run: subprocess.Popen[str]) -> None:
    """Kill the Dask worker whose child has been at work on a scan for some seconds."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and run.poll() is None:
        for worker in cluster.workers.values():
            pid = worker.pid
            children = Path(f"/proc/{pid}/task/{pid}/children")
            threads = Path(f"/proc/{pid}/task").glob("*/children")
            if children.exists() and any(path.read_text().split() for path in threads):
                time.sleep(5)
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.2)
    raise AssertionError("no worker had anything to do")
