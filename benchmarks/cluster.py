"""Scans per hour side by side, through Dask, through SLURM and in the container.

    python benchmarks/cluster.py [--data FOLDER] [--scans N] [--image NAME] [--slurm]

Prints Markdown tables. Every way computes the same scans from nothing, in an output folder of its
own. Overhead is the wall time that a way takes beyond that of one process of `run.py`.
`--slurm` starts a SLURM of one node for the time of the measurement, which takes root and Debian's
packages slurm-wlm and munge. Let the machine be idle: nothing else here is of any consequence.
Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import table  # noqa: E402

RUN = [sys.executable, str(REPOSITORY / "run.py")]
REPEATS = 5
"""Of what takes a second."""


@dataclass(frozen=True)
class Measured:
    """Wall time in seconds, and the peak memory of the largest process in GB (10^9 bytes)."""

    seconds: float
    peak_gb: float = float("nan")


def main() -> None:
    """Measure what can be measured here, and print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        study = make_study(options.data / "ixi", folder / "study", options.scans)
        measured = local_runs(study, folder, options.scans)
        with dask_cluster() as address:
            dask = ["--nprocs", "1", "--dask-scheduler", address]
            measured["Dask, one worker of one thread"] = app(study, folder / "dask", dask)
        if options.slurm:
            measured |= slurm_runs(study, folder, options.scans)
        print(report(measured, options.scans))
        if options.image:
            print(container(options.engine, options.image, study, folder))


def _options() -> argparse.Namespace:
    raw_text = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw_text)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data",
                        help="folder that holds ixi/ (default: %(default)s)")  # fmt: skip
    parser.add_argument("--scans", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--slurm", action="store_true", help="measure SLURM too")
    parser.add_argument("--image", help="measure this container image too")
    parser.add_argument("--engine", default=shutil.which("docker") or "podman",
                        help="that runs it (default: %(default)s)")  # fmt: skip
    options = parser.parse_args()
    if not (options.data / "ixi").is_dir():
        parser.error(f"there is no folder {options.data / 'ixi'}; name the one that holds it")
    return options


# --- what is measured ---


def make_study(source: Path, root: Path, number: int) -> Path:
    """The first scans of a data set, as one of its own."""
    root.mkdir()
    for name in ("dataset_description.json", "participants.tsv"):
        shutil.copyfile(source / name, root / name)
    for subject in sorted(source.glob("sub-*"))[:number]:
        shutil.copytree(subject, root / subject.name)
    return root


def command(*arguments: object, environment: dict[str, str] | None = None) -> Measured:
    """Run a command, whose output is dropped; it must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, arguments)), env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(map(str, arguments))} failed: {os.waitstatus_to_exitcode(status)}")
    return Measured(seconds, used.ru_maxrss * 1024 / 1e9)


def app(study: Path, out: Path, options: Sequence[str]) -> Measured:
    """The participant level of the whole study."""
    return command(*RUN, study, out, "participant", *options)


def local_runs(study: Path, folder: Path, scans: int) -> dict[str, Measured]:
    """One process and two; first once without being measured, which fills the file cache."""
    first = sorted(path.name for path in study.glob("sub-*"))[0]
    app(study, folder / "warm", ["--nprocs", "1", "--participant-label", first])
    return {
        "one process": app(study, folder / "one", ["--nprocs", "1"]),
        "two processes": app(study, folder / "two", ["--nprocs", "2"]),
    }


@contextmanager
def dask_cluster() -> Iterator[str]:
    """The address of a scheduler with one worker."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


def slurm_runs(study: Path, folder: Path, scans: int) -> dict[str, Measured]:
    """All scans in one task, and each in its own, one task at a time; from submission to end."""
    from tests.cluster.local_slurm import local_slurm

    (folder / "slurm").mkdir()
    program = folder / "brainage"
    program.write_text(f'#!/bin/sh\nexec "{RUN[0]}" "{RUN[1]}" "$@"\n')
    program.chmod(0o755)
    measured = {}
    with local_slurm(folder / "slurm") as slurm:
        for name, per_task in (("one task", scans), ("a task for each scan", 1)):
            began = time.perf_counter()
            slurm.run(
                REPOSITORY / "hpc" / "slurm.sh", program, study, folder / f"slurm{per_task}",
                AT_ONCE="1", PER_TASK=str(per_task),
            )  # fmt: skip
            slurm.wait()
            measured[f"SLURM, {name}"] = Measured(time.perf_counter() - began)
    return measured


def container(engine: str, image: str, study: Path, folder: Path) -> str:
    """Size, and seconds to the version and to the first record, as a table."""
    inspect = [engine, "image", "inspect", "--format", "{{.Size}}", image]
    size = int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    run = [engine, "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp"]
    start = statistics.median(command(*run, image, "--version").seconds for _ in range(REPEATS))
    out = folder / "container"
    out.mkdir()
    out.chmod(0o777)
    first = sorted(path.name for path in study.glob("sub-*"))[0]
    arguments = ["/data", "/out", "participant", "--nprocs", "1", "--participant-label", first]
    one = command(*run, f"-v={study}:/data:ro", f"-v={out}:/out", image, *arguments)
    rows = [
        ["size of the image, GB", f"{size / 1e9:.2f}"],
        ["seconds to `--version`", f"{start:.1f}"],
        ["seconds from the start to the end of the first scan", f"{one.seconds:.1f}"],
    ]
    return "\n" + table(["container", engine.split("/")[-1]], rows)


# --- the table ---


def report(measured: dict[str, Measured], scans: int) -> str:
    """What each way took, beside one process."""
    one = measured["one process"].seconds
    rows = []
    for name, this in measured.items():
        overhead = "" if name == "two processes" else f"{100 * (this.seconds / one - 1):.1f} %"
        peak = "" if this.peak_gb != this.peak_gb or "Dask" in name else f"{this.peak_gb:.2f}"
        rows.append([name, f"{this.seconds:.1f}", f"{3600 * scans / this.seconds:.0f}",
                     f"{one / this.seconds:.2f}", overhead, peak])  # fmt: skip
    header = ["way", "seconds", "scans an hour", "times one process", "overhead", "peak GB"]
    return f"{scans} scans, start-up included:\n\n" + table(header, rows)


if __name__ == "__main__":
    main()
