"""The crew on a Dask cluster: same outcomes as on one machine, and lost workers cost nothing."""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bidsapp.errors import ScanError, UserError
from bidsapp.execution import run_scans, worker_environment
from bidsapp.progress import Outcome, Progress

if TYPE_CHECKING:
    from distributed import LocalCluster

    from bidsapp.cluster import DaskCrew

# Dask is imported where it is used: the processes that work on scans import this module.


@dataclass(frozen=True)
class FakeScan:
    """As much of a scan as a crew looks at."""

    stem: str

    @property
    def path(self) -> Path:
        return Path(f"/study/{self.stem}_T1w.nii.gz")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread, with nannies, as ``dask worker`` and dask-jobqueue start them."""
    LocalCluster = pytest.importorskip("distributed").LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


def crew(address: str, shared: Path, **options: Any) -> DaskCrew:
    from bidsapp.cluster import DaskCrew

    return DaskCrew(address, worker_environment(1, 5), shared, **options)


def run(
    cluster: LocalCluster, shared: Path, stems: list[str], work: Any, **options: Any
) -> tuple[list[Outcome], dict[str, str]]:
    crashes: dict[str, str] = {}
    outcomes = run_scans(
        [FakeScan(stem) for stem in stems],  # type: ignore[misc]
        work,
        nprocs=1,
        threads=1,
        crash=lambda scan, text: crashes.update({scan.stem: text}),
        progress=Progress(len(stems), 1),
        crew=crew(
            cluster.scheduler_address, shared, all_at_once=not options.get("stop_on_first_crash")
        ),
        **options,
    )
    return outcomes, crashes


def until(condition: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return fulfilled


def misbehave(scan: FakeScan) -> str:
    """Do what the stem says."""
    match scan.stem:
        case "bad":
            raise ScanError("bad.nii.gz is truncated: copy it again.")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "skip":
            return "skipped"
    logging.getLogger("bidsapp.anything").info("thick slices in %s", scan.stem)
    return "done"


def test_each_scan_gets_its_own_fate_and_the_order_is_kept(
    cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stems = ["a", "kill", "skip", "bad", "z"]
    with caplog.at_level(logging.INFO):
        outcomes, crashes = run(cluster, tmp_path, stems, misbehave)
    assert [(o.scan.stem, o.status) for o in outcomes] == [
        ("a", "done"), ("kill", "failed"), ("skip", "skipped"), ("bad", "failed"), ("z", "done")
    ]  # fmt: skip
    assert outcomes[3].message == "bad.nii.gz is truncated: copy it again."
    assert "killed (signal 9)" in outcomes[1].message
    assert set(crashes) == {"kill", "bad"}
    assert "thick slices in a" in caplog.text and "thick slices in z" in caplog.text


def note_environment(folder: Path, scan: FakeScan) -> str:
    text = "\n".join(f"{name}={os.environ.get(name)}" for name in worker_environment(1, 5))
    (folder / scan.stem).write_text(f"{text}\n{hash('a string')}")
    (folder / f"{scan.stem}.pid").write_text(str(os.getpid()))
    return "done"


def test_the_environment_is_that_of_one_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    work = functools.partial(note_environment, tmp_path)
    run(cluster, tmp_path, ["a", "b", "c", "d"], work)
    run_scans([FakeScan("here")], work, nprocs=1, threads=1, seed=5, crash=print)  # type: ignore
    there = {(tmp_path / stem).read_text() for stem in "abcd"}
    assert there == {(tmp_path / "here").read_text()}
    pids = {int((tmp_path / f"{stem}.pid").read_text()) for stem in "abcd"}
    assert len(pids) <= 2  # a process takes one scan after the other
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def first_time_forever(folder: Path, scan: FakeScan) -> str:
    """Hang on the first attempt at "lost", be done on the second."""
    if scan.stem == "lost" and not (folder / "began").exists():
        (folder / "began.tmp").write_text(f"{os.getpid()} {os.getppid()}")
        (folder / "began.tmp").rename(folder / "began")
        time.sleep(300)
    return "done"


def test_the_scan_of_a_lost_worker_goes_to_another(cluster: LocalCluster, tmp_path: Path) -> None:
    def lose_it() -> None:
        assert until((tmp_path / "began").exists)
        os.kill(int((tmp_path / "began").read_text().split()[1]), signal.SIGKILL)

    thread = threading.Thread(target=lose_it)
    thread.start()
    work = functools.partial(first_time_forever, tmp_path)
    outcomes, crashes = run(cluster, tmp_path, ["a", "lost", "b", "c"], work)
    thread.join()
    assert [(o.scan.stem, o.status) for o in outcomes] == [
        (stem, "done") for stem in ("a", "lost", "b", "c")
    ]
    assert crashes == {}
    pid = (tmp_path / "began").read_text().split()[0]
    assert until(lambda: not Path(f"/proc/{pid}").exists(), 10)  # it died with its worker


def test_stop_on_first_crash_hands_over_no_more(cluster: LocalCluster, tmp_path: Path) -> None:
    stems = ["bad", *(f"s{i}" for i in range(30))]
    outcomes, _ = run(cluster, tmp_path, stems, misbehave, stop_on_first_crash=True)
    assert len(outcomes) < len(stems)


def test_a_folder_that_others_do_not_see_is_an_error(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    outcomes, crashes = run(cluster, tmp_path / "absent", ["a"], misbehave)
    assert outcomes[0].status == "failed"
    assert f"does not see {tmp_path / 'absent'}" in crashes["a"]


def test_nothing_is_left_in_the_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    from distributed import Client

    run(cluster, tmp_path, ["a"], misbehave)
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        plugins = client.run(lambda dask_worker: list(dask_worker.plugins))
    assert not [name for names in plugins.values() for name in names if "brainage" in name]


def hang(folder: Path, scan: FakeScan) -> str:
    (folder / "began").touch()
    time.sleep(300)
    return "done"


def test_a_lost_scheduler_ends_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")

    def lose_it() -> None:
        assert until((tmp_path / "began").exists)
        cluster.close()

    thread = threading.Thread(target=lose_it)
    thread.start()
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        pytest.raises(SystemExit) as ended,
    ):
        run(cluster, tmp_path, ["a", "b"], functools.partial(hang, tmp_path))
    thread.join()
    assert ended.value.code == 1
    assert "was lost" in caplog.text


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "/absent/scheduler.json"])
def test_no_scheduler(address: str, tmp_path: Path) -> None:
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")

    def clients() -> int:
        return sum(type(each) is distributed.Client for each in gc.get_objects())

    gc.collect()
    gc.disable()  # it must not be chance that closes what is left of a client
    try:
        before = clients()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(UserError, match="no Dask scheduler answers"),
            crew(address, tmp_path),
        ):
            pass
        assert clients() == before
    finally:
        gc.enable()


def test_workers_with_other_software_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bidsapp.cluster.software", other_software)
    with (
        pytest.raises(UserError, match="has torch 2, here it is 0.1;"),
        crew(cluster.scheduler_address, tmp_path),
    ):
        pass


def other_software() -> dict[str, str]:
    """Another version here than on the workers, which have a parent."""
    return {"torch": "2" if multiprocessing.parent_process() else "0.1"}
