"""Scans side by side: a small crew of processes in which one bad scan cannot harm another.

A crew is whatever takes scans and gives answers: processes here, or a Dask cluster (`cluster`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Literal, Protocol, Self

from bidsapp.progress import Outcome, Progress, progress_for
from bidsapp.worker import Answer, serve

if TYPE_CHECKING:
    from pathlib import Path

    from bidsapp.study import Scan

log = logging.getLogger(__name__)

Work = Callable[["Scan"], Literal["done", "skipped"]]

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL = 0.2  # seconds within which a signal to the parent is obeyed
FAREWELL = 5.0  # seconds an idle worker gets to leave by itself


class Crew(Protocol):
    """Whoever works on scans; a context, on whose exit it lets go of those that are not done."""

    @property
    def places(self) -> int:
        """How many scans it takes at once."""

    @property
    def cores(self) -> int:
        """How many of them it works on at the same time, as far as it knows."""

    @property
    def busy(self) -> Sized:
        """The scans that it has."""

    def start(self, work: Work, index: int, scan: Scan) -> None:
        """Take a scan; `index` says which one in the answer."""

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each scan that has just ended, and its answer; wait a moment."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...


def run_scans(
    scans: Sequence[Scan],
    work: Work,
    *,
    nprocs: int,
    threads: int,
    crash: Callable[[Scan, str], None],
    seed: int = 1,
    work_dir: Path | None = None,
    stop_on_first_crash: bool = False,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> list[Outcome]:
    """Run `work` on every scan, in up to `nprocs` worker processes.

    With ``nprocs=1`` the work is done in a worker process too: every scan is computed in the same
    environment (`worker_environment`), so any number of workers gives the same bits. A worker
    takes many scans and imports what `work` needs once.

    Parameters
    ----------
    work
        Called as ``work(scan)`` in a worker; returns "done", or "skipped" if nothing was left to
        do, or raises. It must be picklable: a module-level function or a `functools.partial` of
        one. What it logs appears in the log of the parent.
    threads
        Threads of torch and BLAS in each worker; ITK always has one.
    work_dir
        Where workers put temporary files; the system's folder by default.
    crash
        Called as ``crash(scan, text)`` in the parent for every failed scan; the text is the
        message and, unless the process died, the traceback.
    stop_on_first_crash
        After a failure start no further scan; those running are finished.
    progress
        Where finished scans are announced; by default a bar on a terminal, lines elsewhere.
    crew
        Who does the work, instead of `nprocs` processes with `worker_environment`.

    Returns
    -------
    list of Outcome
        In the order of `scans`; scans that were never started are absent.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        After SIGINT, or SIGTERM (with code 143), once every worker has ended.
    """
    queue = deque(enumerate(scans))
    outcomes: dict[int, Outcome] = {}
    crew = crew or LocalCrew(worker_environment(threads, seed, work_dir), max(1, nprocs))
    with (
        _noted_signals() as noted,
        crew,
        progress or progress_for(len(scans), crew.cores) as progress,
    ):
        while (queue or crew.busy) and not noted:
            while queue and len(crew.busy) < crew.places:
                crew.start(work, *queue.popleft())
            for index, answer in crew.answers():
                outcome = Outcome(scans[index], answer.status, answer.message, answer.seconds)
                if outcome.status == "failed":
                    try:
                        crash(outcome.scan, answer.details)
                    except OSError as error:  # a full disk should not end the others
                        log.error("No crash file for %s: %s", outcome.scan.stem, error)
                    if stop_on_first_crash:
                        queue.clear()
                outcomes[index] = outcome
                progress.finished(outcome)
    if noted:
        log.warning(
            "Ended by %s with %d of %d scans finished; these are kept, and the same command "
            "goes on from there.", signal.Signals(noted[0]).name, len(outcomes), len(scans)
        )  # fmt: skip
        raise KeyboardInterrupt if noted[0] == signal.SIGINT else SystemExit(128 + noted[0])
    return [outcomes[index] for index in sorted(outcomes)]


def worker_environment(threads: int, seed: int, work_dir: Path | None = None) -> dict[str, str]:
    """Environment in which a scan gives the same bits each time; read when ants, torch load.

    ANTs repeats itself only with one ITK thread and a seed, and takes seed 0 to mean the clock.
    """
    return {
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
        "ANTS_RANDOM_SEED": str(max(1, seed)),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": "0",
        # glibc keeps the memory of large tensors: the networks take two thirds of the time
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        **({"TMPDIR": str(work_dir)} if work_dir else {}),
    }


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that they end the run between two steps of it."""
    noted: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # others cannot have handlers
    before = {
        number: signal.signal(number, lambda received, _frame: noted.append(received))
        for number in (ENDING_SIGNALS if in_main else ())
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LocalCrew:
    """Worker processes: started when needed, replaced when they die, all ended on exit."""

    def __init__(self, environment: Mapping[str, str], nprocs: int) -> None:
        self.environment = environment
        self.cores = self.places = nprocs
        self.idle: list[Worker] = []
        self.busy: dict[Connection, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def start(self, work: Work, index: int, scan: Scan) -> None:
        """Give a scan to a process that is idle, else to a new one."""
        self.idle = [worker for worker in self.idle if worker.process.is_alive()]
        worker = self.idle.pop() if self.idle else self._new()
        self.busy[worker.connection] = worker
        worker.give(work, index, scan)

    def _new(self) -> Worker:
        return Worker(self.environment, log.getEffectiveLevel())

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each scan that has just ended, and its answer; wait a moment."""
        for connection in wait(list(self.busy), timeout=POLL):
            assert isinstance(connection, Connection)
            worker = self.busy[connection]
            message = worker.message()
            if isinstance(message, logging.LogRecord):
                log_here(message)
                continue
            del self.busy[connection]
            self.idle.append(worker)
            yield worker.index, message

    def __exit__(self, *_error: object) -> None:
        end_workers(self.idle, self.busy.values())


def end_workers(idle: Collection[Worker], busy: Collection[Worker]) -> None:
    """End processes; the idle ones by themselves."""
    for worker in busy:
        worker.process.kill()
    for worker in idle:
        worker.connection.close()  # which it reads as the end of its work
    for worker in [*idle, *busy]:
        worker.process.join(FAREWELL)
        worker.process.kill()
        worker.process.join(FAREWELL)


class Worker:
    """One process and the parent's end of its pipe.

    It logs from `log_level` on, and ends by itself after `idle_seconds` without work.
    """

    def __init__(
        self, environment: Mapping[str, str], log_level: int, idle_seconds: float | None = None
    ) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        # Neither torch nor ITK survives a fork.
        self.process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, log_level, idle_seconds), daemon=True
        )
        with _inherited(environment):
            self.process.start()
        theirs.close()  # the child holds the only other end: its death ends the pipe

    def give(self, work: Work, index: int, scan: Scan) -> None:
        """Let the process work on a scan."""
        self.index, self.scan, self.since = index, scan, time.monotonic()
        with suppress(BrokenPipeError):  # died meanwhile: the next read of the pipe tells
            self.connection.send((work, scan))

    def message(self) -> Answer | logging.LogRecord:
        """Wait for what the process says next: the answer, or a log record before it."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # the pipe has ended, and so has the process
            return self._death()

    def _death(self) -> Answer:
        self.process.join(FAREWELL)
        code = self.process.exitcode
        self.process.kill()
        if code == -signal.SIGKILL:
            how = ("was killed (signal 9), most often for lack of memory: "
                   "use --nprocs 1 or --low-mem")  # fmt: skip
        else:
            end = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
            how = (f"ended abruptly ({end}), as a fault in a compiled library does: look at the "
                   "image, and report this if the image is sound")  # fmt: skip
        message = f"{self.scan.path}: the process working on it {how}."
        return Answer("failed", message, message, time.monotonic() - self.since)


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Let a process started inside have `environment`, and leave Ctrl-C and SIGTERM to us."""
    resource_tracker.ensure_running()  # before: its start would unblock the signals
    before = dict(os.environ)
    os.environ.update(environment)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        for name in environment:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def log_here(record: logging.LogRecord) -> None:
    """Log in this process what another one has to say."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
