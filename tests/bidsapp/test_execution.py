"""The crew: same environment for any number of workers, and no scan harms another."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from bidsapp.errors import ScanError
from bidsapp.execution import run_scans, worker_environment
from bidsapp.progress import Outcome, Progress

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FakeScan:
    """As much of a scan as the crew looks at."""

    stem: str

    @property
    def path(self) -> Path:
        return Path(f"/study/{self.stem}_T1w.nii.gz")


def scans(*stems: str) -> list[FakeScan]:
    return [FakeScan(stem) for stem in stems]


def run(scans, work, **options) -> tuple[list[Outcome], dict[str, str]]:
    """Run with silent progress; also return the crash texts by stem."""
    crashes: dict[str, str] = {}
    options = {"nprocs": 2, "threads": 1, **options}
    outcomes = run_scans(
        scans,
        work,
        crash=lambda scan, text: crashes.update({scan.stem: text}),
        progress=Progress(len(scans), options["nprocs"]),
        **options,
    )
    return outcomes, crashes


def misbehave(scan):
    """Do what the stem says."""
    match scan.stem:
        case "skip":
            return "skipped"
        case "bad":
            raise ScanError("bad.nii.gz is truncated: copy it again.")
        case "bug":
            raise RuntimeError("first line\nsecond line")
        case "exit":
            sys.exit("a library wanted to leave")
        case "memory":
            raise MemoryError
        case "eof":
            raise EOFError("Compressed file ended")
        case "wrong":
            return None
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "gone":
            os._exit(3)
    return "done"


def test_each_scan_gets_its_own_fate_and_the_order_is_kept():
    failing = ["kill", "bad", "segfault", "bug", "exit", "gone", "memory", "eof", "wrong"]
    stems = ["a", *failing, "skip", "z"]
    outcomes, crashes = run(scans(*stems), misbehave)
    assert [outcome.scan.stem for outcome in outcomes] == stems
    by_stem = {outcome.scan.stem: outcome for outcome in outcomes}
    assert [by_stem[stem].status for stem in ("a", "skip", "z")] == ["done", "skipped", "done"]
    assert [o.scan.stem for o in outcomes if o.status == "failed"] == failing

    message = {stem: outcome.message for stem, outcome in by_stem.items()}
    assert message["bad"] == "bad.nii.gz is truncated: copy it again."
    assert message["bug"] == "RuntimeError: first line second line"
    assert message["exit"] == "SystemExit: a library wanted to leave"
    assert message["eof"] == "EOFError: Compressed file ended"
    assert "--low-mem" in message["memory"]
    assert "returned None" in message["wrong"]
    assert "kill_T1w.nii.gz" in message["kill"]
    assert "killed (signal 9), most often for lack of memory" in message["kill"]
    assert "--nprocs 1 or --low-mem" in message["kill"]
    assert "signal 11" in message["segfault"]
    assert "exit code 3" in message["gone"]
    assert all("\n" not in line for line in message.values())

    assert set(crashes) == set(failing)
    assert "Traceback" in crashes["bug"] and "in misbehave" in crashes["bug"]
    assert crashes["kill"] == message["kill"]


def test_a_crash_file_that_cannot_be_written_ends_nothing(caplog):
    def full(_scan, _text):
        raise OSError("No space left on device")

    outcomes = run_scans(scans("bug", "a"), misbehave, nprocs=1, threads=1, crash=full)
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert "No space left" in caplog.text


def write_environment(folder, scan):
    names = [*worker_environment(1, 1), "LEFT_ALONE"]
    text = "\n".join(f"{name}={os.environ.get(name)}" for name in names)
    (folder / scan.stem).write_text(f"{text}\n{hash('a string')}")
    (folder / f"{scan.stem}.pid").write_text(str(os.getpid()))
    return "done"


@pytest.mark.parametrize("nprocs", [1, 3])
def test_every_worker_has_the_same_environment(nprocs, tmp_path, monkeypatch):
    monkeypatch.setenv("LEFT_ALONE", "yes")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("ANTS_RANDOM_SEED", raising=False)
    before = dict(os.environ)
    stems = ["a", "b", "c", "d"]
    work = functools.partial(write_environment, tmp_path)
    run(scans(*stems), work, nprocs=nprocs, threads=2, seed=5)
    seen = {(tmp_path / stem).read_text() for stem in stems}
    assert len(seen) == 1
    lines = seen.pop().splitlines()
    assert lines[:6] == [
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1",
        "ANTS_RANDOM_SEED=5",
        "OMP_NUM_THREADS=2",
        "MKL_NUM_THREADS=2",
        "OPENBLAS_NUM_THREADS=2",
        "PYTHONHASHSEED=0",
    ]
    assert "LEFT_ALONE=yes" in lines
    pids = {(tmp_path / f"{stem}.pid").read_text() for stem in stems}
    assert len(pids) <= nprocs and str(os.getpid()) not in pids
    assert dict(os.environ) == before


def name_temporary_folder(scan):
    raise ScanError(tempfile.gettempdir())


def test_temporary_files_go_where_they_should(tmp_path):
    outcomes, _ = run(scans("a"), name_temporary_folder, work_dir=tmp_path)
    assert outcomes[0].message == str(tmp_path)


def test_seed_zero_is_not_the_clock():
    assert worker_environment(1, 0)["ANTS_RANDOM_SEED"] == "1"


def until(condition, seconds=30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return fulfilled


def meet(folder, scan):
    """Be done only if another scan is being worked on at the same time."""
    (folder / scan.stem).touch()
    assert until(lambda: len(list(folder.iterdir())) >= 2)
    return "done"


def test_scans_run_side_by_side(tmp_path):
    outcomes, _ = run(scans("a", "b"), functools.partial(meet, tmp_path), nprocs=2)
    assert [outcome.status for outcome in outcomes] == ["done", "done"]


def fail_while_the_other_runs(folder, scan):
    meet(folder, scan)
    if scan.stem == "a":
        raise ScanError("no")
    assert until(lambda: (folder / "crash of a").exists())
    return "done"


def test_stop_on_first_crash_starts_no_more_and_lets_the_running_finish(tmp_path):
    outcomes = run_scans(
        scans("a", "b", "c"),
        functools.partial(fail_while_the_other_runs, tmp_path),
        nprocs=2,
        threads=1,
        crash=lambda scan, _text: (tmp_path / f"crash of {scan.stem}").touch(),
        stop_on_first_crash=True,
    )
    assert [(o.scan.stem, o.status) for o in outcomes] == [("a", "failed"), ("b", "done")]


def test_nothing_to_do():
    assert run([], misbehave) == ([], {})


def speak(_scan):
    logging.getLogger("bidsapp.anything").info("thick slices in %s", "sub-01")
    logging.getLogger("bidsapp.anything").debug("not wanted")
    warnings.warn("from a library", stacklevel=1)
    return "done"


def test_workers_log_to_the_parent(caplog):
    with caplog.at_level(logging.INFO):
        run(scans("a"), speak)
    assert "thick slices in sub-01" in caplog.text
    assert "from a library" in caplog.text
    assert "not wanted" not in caplog.text


def test_works_outside_the_main_thread():
    result = []
    thread = threading.Thread(target=lambda: result.extend(run(scans("a"), misbehave)[0]))
    thread.start()
    thread.join()
    assert [outcome.status for outcome in result] == ["done"]


# -------------------------------------------------------------------- the parent's own end

SCRIPT = """
import ctypes, functools, os, sys
from pathlib import Path
from bidsapp.execution import run_scans
from test_execution import FakeScan

def work(folder, scan):
    if scan.stem == "quick":
        return "done"
    # Written under another name first: whoever sees the file sees the number in it.
    (folder / (scan.stem + ".tmp")).write_text(str(os.getpid()))
    (folder / (scan.stem + ".tmp")).rename(folder / scan.stem)
    ctypes.PyDLL(None).sleep(60)  # as ANTs does: holds the interpreter all the while
    return "done"

if __name__ == "__main__":
    run_scans([FakeScan("quick"), FakeScan("slow1"), FakeScan("slow2")],
              functools.partial(work, Path(sys.argv[1])), nprocs=2, threads=1, crash=print)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, -2)]
)
@pytest.mark.parametrize("whole_group", [False, True])
def test_no_worker_outlives_its_parent(number, code, whole_group, tmp_path):
    """As `kill` does, and as Ctrl-C or a scheduler does, which signal the workers as well."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [folder / "slow1", folder / "slow2"]
    try:
        assert until(lambda: all(pid.exists() for pid in pids)), parent.poll()
        workers = [int(pid.read_text()) for pid in pids]
        assert all(alive(pid) for pid in workers)

        (os.killpg if whole_group else os.kill)(parent.pid, number)
        assert until(lambda: not any(alive(pid) for pid in workers), seconds=5)
        out, err = parent.communicate(timeout=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert parent.returncode == code  # Python ends by SIGINT itself if nothing catches it
    assert out == ""  # being ended is not the fault of a scan
    if number != signal.SIGKILL:
        assert "1 of 3 scans finished" in err
    assert err.count("Traceback") == (number == signal.SIGINT)  # the workers are silent
