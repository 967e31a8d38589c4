"""Scans per hour side by side, through Dask and through SLURM; or the container image.

    python benchmarks/cluster.py [--scans N] [--rounds N] [--slurm N ...] [--write]
    python benchmarks/cluster.py --image NAME [--write]

Prints Markdown tables; --write puts them into docs/hpc.md, or docs/container.md. Every way
computes the same scans from nothing, in an output folder of its own. Ways take turns, and of
several rounds the mean is taken. A scan takes the time from the first record to the last, so that
starting is counted apart. Processor time is that of everything that ran for it, engines included,
as a control group counts it, which takes root; unlike the clock it means something where others
use the machine too. --slurm starts a SLURM of one node for the time of the measurement, which
takes root and Debian's packages slurm-wlm and munge; it names how many scans a task has. Linux
only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402

RUN = [sys.executable, str(REPOSITORY / "run.py")]
REPEATS = 5
"""Of what takes a second."""
PLAN, CORES, PER_TASK = 50_000, 100, 20
"""Scans of the plan on paper, cores that work on them, and scans a task."""
PAGES = {"cluster": "hpc.md", "plan": "hpc.md", "image": "container.md"}
ONE, TWO = "one process", "two processes"


@dataclass(frozen=True)
class Measured:
    """Seconds to the first record, and of each scan from there: by the clock, of processors."""

    first: float
    each: float
    first_used: float
    each_used: float


@dataclass(frozen=True)
class Stored:
    """What a scan leaves on the disk: bytes, files and folders."""

    size: float
    files: float
    folders: float


Way = Callable[[Path], Measured]


def main() -> None:
    """Measure what can be measured here, and print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = options.keep or Path(scratch)
        study = make_study(options.data / "ixi", folder / "study", options.scans)
        if options.image:
            pages = {"image": container(options.engine, options.image, study, folder)}
        else:
            stack.enter_context(counted())
            memory = memory_of_one(study, folder / "minimal")
            every = ways(study, folder, options, stack)
            rounds = [
                {name: way(folder / f"{number}-{place}")
                 for place, (name, way) in enumerate(every.items())}
                for number in range(options.rounds)
            ]  # fmt: skip
            stored = stored_of(folder / "0-0"), stored_of(folder / "minimal")
            pages = {
                "cluster": report(rounds, options.scans, memory),
                "plan": plan(rounds[0][ONE], *stored),
            }
    for name, text in pages.items():
        print(text, end="\n\n")
        if options.write:
            put(REPOSITORY / "docs" / PAGES[name], name, text)


def _options() -> argparse.Namespace:
    raw_text = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw_text)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data",
                        help="folder that holds ixi/ (default: %(default)s)")  # fmt: skip
    parser.add_argument("--scans", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of each way (default: %(default)s)")
    parser.add_argument("--slurm", type=int, nargs="+", default=[], metavar="N",
                        help="measure SLURM too, with so many scans a task")  # fmt: skip
    parser.add_argument("--image", help="measure this container image instead")
    parser.add_argument("--engine", default=shutil.which("docker") or "podman",
                        help="that runs it (default: %(default)s)")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="new folder to leave all outputs in")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    options = parser.parse_args()
    if not (options.data / "ixi").is_dir():
        parser.error(f"there is no folder {options.data / 'ixi'}; name the one that holds it")
    if options.scans < 3:
        parser.error("--scans: two processes take three scans at least")
    return options


# --- what is measured ---


def make_study(source: Path, root: Path, number: int) -> Path:
    """The first scans of a data set, as one of its own."""
    root.mkdir(parents=True)
    for name in ("dataset_description.json", "participants.tsv"):
        shutil.copyfile(source / name, root / name)
    for subject in sorted(source.glob("sub-*"))[:number]:
        shutil.copytree(subject, root / subject.name)
    return root


def command(*arguments: object) -> float:
    """Seconds of a command, whose output is dropped; it must succeed."""
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, arguments)), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed: {done.stderr}")
    return seconds


@contextmanager
def counted() -> Iterator[None]:
    """Put this process, and all that it starts, into a control group of its own."""
    group = control_group()
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        print(f"No processor times: {error}", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):  # something in it has not ended yet
            group.rmdir()


def control_group() -> Path:
    """Where the control group is, of either version."""
    top = Path("/sys/fs/cgroup")
    first = top / "cpuacct"
    return (first if first.is_dir() else top) / f"brainage-benchmark-{os.getpid()}"


def used() -> float:
    """Processor seconds of everything in the control group; NaN without one."""
    group = control_group()
    if (nanoseconds := group / "cpuacct.usage").exists():
        return int(nanoseconds.read_text()) / 1e9
    if (lines := group / "cpu.stat").exists():
        return int(dict(map(str.split, lines.read_text().splitlines()))["usage_usec"]) / 1e6
    return float("nan")


def timed(work: Callable[[], object], out: Path, at_once: int) -> Measured:
    """Time what writes records, so many at once; they tell when each scan was done."""
    began, before = time.time(), used()
    seen = [(0.0, 0.0)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            seen.append((time.time() - began, used() - before))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        ended.set()
        watching.join()
    done = sorted(path.stat().st_mtime - began for path in out.rglob("*_brainage.json"))
    others = len(done) - at_once
    spent = np.interp(done, *zip(*seen, strict=True))
    return Measured(
        done[at_once - 1],
        (done[-1] - done[at_once - 1]) / others,
        float(spent[at_once - 1]),
        float(spent[-1] - spent[at_once - 1]) / others,
    )


def app(study: Path, options: Sequence[str], at_once: int, out: Path) -> Measured:
    """The participant level of the whole study."""
    return timed(partial(command, *RUN, study, out, "participant", *options), out, at_once)


def dask(study: Path, out: Path) -> Measured:
    """The same by a cluster of one worker with one thread, which is there already."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        options = ["--nprocs", "1", "--dask-scheduler", cluster.scheduler_address]
        return app(study, options, 1, out)


def ways(
    study: Path, folder: Path, options: argparse.Namespace, stack: ExitStack
) -> dict[str, Way]:
    """All ways to compute the study, each a function of an output folder."""
    found: dict[str, Way] = {
        ONE: partial(app, study, ["--nprocs", "1"], 1),
        TWO: partial(app, study, ["--nprocs", "2"], 2),
        "Dask, one worker of one thread": partial(dask, study),
    }
    if options.slurm:
        submit = stack.enter_context(slurm_cluster(study, folder / "slurm"))
        for per_task in options.slurm:
            found[f"SLURM, {per_task} a task, one task at a time"] = partial(submit, per_task)
    return found


def memory_of_one(study: Path, out: Path) -> float:
    """Most memory, in GB (10^9 bytes), that a run of one process has with all its children.

    It is the run that fills the file cache, since looking at memory takes time, and the one that
    writes records alone.
    """
    import psutil  # which Dask brings

    first = sorted(path.name for path in study.glob("sub-*"))[0]
    options = ["participant", "--nprocs", "1", "--participant-label", first]
    options += ["--output-level", "minimal"]
    run = subprocess.Popen([*RUN, study, out, *options], stderr=subprocess.DEVNULL)
    peak = 0
    while run.poll() is None:
        with suppress(psutil.Error):
            every = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in every))
        time.sleep(0.2)
    return peak / 1e9


@contextmanager
def slurm_cluster(study: Path, folder: Path) -> Iterator[Callable[[int, Path], Measured]]:
    """Function (participants a task, output folder), one task at a time."""
    from tests.cluster.local_slurm import local_slurm

    folder.mkdir()
    program = folder / "brainage"
    program.write_text(f'#!/bin/sh\nexec "{RUN[0]}" "{RUN[1]}" "$@"\n')
    program.chmod(0o755)
    script = REPOSITORY / "hpc" / "slurm.sh"
    with local_slurm(folder) as slurm:

        def submit(per_task: int, out: Path) -> Measured:
            def work() -> None:
                slurm.run(script, program, study, out, AT_ONCE="1", PER_TASK=str(per_task))
                slurm.wait()

            return timed(work, out, 1)

        yield submit


def container(engine: str, image: str, study: Path, folder: Path) -> str:
    """Size, and seconds to the version and to the first record, as a table."""
    inspect = [engine, "image", "inspect", "--format", "{{.Size}}", image]
    size = int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    run = [engine, "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp"]
    start = statistics.median(command(*run, image, "--version") for _ in range(REPEATS))
    out = folder / "container"
    out.mkdir()
    out.chmod(0o777)
    first = sorted(path.name for path in study.glob("sub-*"))[0]
    arguments = ["/data", "/out", "participant", "--nprocs", "1", "--participant-label", first]
    one = command(*run, f"-v={study}:/data:ro", f"-v={out}:/out", image, *arguments)
    rows = [
        ["size of the image, GB", f"{size / 1e9:.2f}"],
        ["seconds to `--version`", f"{start:.1f}"],
        ["seconds from the start to the end of the first scan", f"{one:.1f}"],
    ]
    return table(["image", engine.split("/")[-1]], rows)


def stored_of(out: Path) -> Stored:
    """Mean of the scans of an output folder; what they share, and the logs, left aside."""
    scans = len(list(out.rglob("*_brainage.json")))
    every = [path for top in out.glob("sub-*") for path in (top, *top.rglob("*"))]
    files = [path for path in every if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Stored(size / scans, len(files) / scans, (len(every) - len(files)) / scans)


# --- the tables ---


def report(rounds: Sequence[dict[str, Measured]], scans: int, memory: float) -> str:
    """What each way took, beside one process, and the memory of a task."""
    rows = []
    for name in rounds[0]:
        first, each, first_used, each_used = (
            _mean(rounds, name, what) for what in ("first", "each", "first_used", "each_used")
        )
        times = statistics.mean(of[ONE].each / of[name].each for of in rounds)
        more = statistics.mean(of[name].each_used / of[ONE].each_used for of in rounds) - 1
        rows.append([name, f"{first:.1f}", f"{each:.1f}", f"{3600 / each:.0f}", f"{times:.2f}",
                     f"{first_used:.1f}", f"{each_used:.1f}", f"{100 * more:+.1f} %"])  # fmt: skip
    header = ["way", "seconds to the first record", "a scan from there", "scans an hour",
              "times one process", "processor seconds to the first record", "a scan from there",
              "more than one process"]  # fmt: skip
    words = f"{scans} scans, {len(rounds)} round{'s' if len(rounds) > 1 else ''} in turns."
    task = f"A task, a run of one process with all its children, has {memory:.2f} GB at its peak."
    return f"{words}\n\n{table(header, rows)}\n\n{task}"


def plan(one: Measured, full: Stored, minimal: Stored) -> str:
    """What very many scans would take, if each took what it takes here."""
    start = one.first - one.each
    hours = (PLAN * one.each + PLAN / PER_TASK * start) / 3600
    rows = [
        ["processor time, hours", f"{hours:,.0f}"],
        [f"on {CORES} cores, hours", f"{hours / CORES:.1f}"],
        ["tasks", f"{PLAN // PER_TASK:,}"],
    ]
    for level, of in (("full", full), ("minimal", minimal)):
        every = PLAN * (of.files + of.folders)
        rows += [
            [f"a scan with `--output-level {level}`, MB", f"{of.size / 1e6:.3f}"],
            [f"a scan with `--output-level {level}`, files and folders",
             f"{of.files:.0f} and {of.folders:.0f}"],
            [f"all with `--output-level {level}`, GB", f"{PLAN * of.size / 1e9:.1f}"],
            [f"all with `--output-level {level}`, files and folders", f"{every:,.0f}"],
        ]  # fmt: skip
    return table([f"{PLAN:,} scans, {PER_TASK} a task", ""], rows)


def _mean(rounds: Sequence[dict[str, Measured]], name: str, what: str) -> float:
    return statistics.mean(getattr(of[name], what) for of in rounds)


if __name__ == "__main__":
    main()
