"""How far the run is: a bar with an estimate on a terminal, a log line per scan elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from bidsapp.study import Scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan; `message` is empty unless it failed, `seconds` are wall time."""

    scan: Scan
    status: Literal["done", "skipped", "failed"]
    message: str
    seconds: float


def progress_for(total: int, nprocs: int, stream: IO[str] | None = None) -> Progress:
    """Progress fit for `stream` (standard error by default): a bar if it is a terminal."""
    stream = stream or sys.stderr
    return ProgressBar(total, nprocs) if stream.isatty() else Progress(total, nprocs)


def seconds_left(outcomes: Sequence[Outcome], total: int, nprocs: int) -> float | None:
    """Estimate the time the rest will take, in seconds; None before a scan has been computed.

    Only computed scans tell how long one takes: those found complete took no time, and those
    that failed were cut short.
    """
    computed = [outcome.seconds for outcome in outcomes if outcome.status == "done"]
    remaining = total - len(outcomes)
    if not computed:
        return None
    return sum(computed) / len(computed) * remaining / max(1, min(nprocs, remaining))


def duration(seconds: float) -> str:
    """Seconds as a person would say them: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Announces each finished scan in one log line. A context, for what lasts as long as a run."""

    def __init__(self, total: int, nprocs: int) -> None:
        self.total, self.nprocs = total, nprocs
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def finished(self, outcome: Outcome) -> None:
        """Count a scan and say what became of it."""
        self.outcomes.append(outcome)
        level = logging.ERROR if outcome.status == "failed" else logging.INFO
        log.log(level, "%s", self._line(outcome))

    def left(self) -> str:
        """The estimate in words, or nothing."""
        seconds = seconds_left(self.outcomes, self.total, self.nprocs)
        return "" if not seconds else f"about {duration(seconds)} left"

    def _line(self, outcome: Outcome) -> str:
        head = f"[{len(self.outcomes)}/{self.total}] {outcome.scan.stem}"
        if outcome.status == "failed":
            return f"{head} failed after {outcome.seconds:.1f} s: {outcome.message}"
        what = "was already complete"
        if outcome.status == "done":
            what = f"done in {outcome.seconds:.1f} s"
        return ", ".join(filter(None, [f"{head} {what}", self.left()]))


class ProgressBar(Progress):
    """The same lines above a bar with count, time elapsed and time left."""

    def __init__(self, total: int, nprocs: int, console: Console | None = None) -> None:
        from rich import progress as rich  # here: --help should not wait for it
        from rich.console import Console

        super().__init__(total, nprocs)
        self._bar = rich.Progress(
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("scans,"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("{task.fields[left]}"),
            console=console or Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=total, left="")
        self._moved: list[tuple[logging.StreamHandler, IO[str]]] = []

    def __enter__(self) -> Self:
        direct = (sys.stderr, sys.stdout)
        self._bar.start()  # from here on sys.stderr prints above the bar; log handlers should too
        for handler in [*logging.getLogger().handlers, *logging.getLogger("bidsapp").handlers]:
            if isinstance(handler, logging.StreamHandler) and handler.stream in direct:
                self._moved.append((handler, handler.stream))
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, *_error: object) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._bar.stop()

    def finished(self, outcome: Outcome) -> None:
        """Do so, and move the bar."""
        super().finished(outcome)
        self._bar.update(self._task, advance=1, left=self.left())


class Steps:
    """How far one long computation is: a bar on a terminal, a log line per tenth elsewhere."""

    def __init__(self, name: str, stream: IO[str] | None = None) -> None:
        self.name, self._stream = name, stream or sys.stderr
        self._said = -1
        self._bar: RichProgress | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        if self._stream.isatty():
            from rich import progress as rich

            self._bar = rich.Progress(
                rich.TextColumn(self.name),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.description}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int, words: str = "") -> None:
        """`done` of `total` steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, description=words)
        tenth = 10 * done // max(1, total)
        if tenth > self._said and done:
            self._said = tenth
            left = (time.monotonic() - self._since) / done * (total - done)
            end = f"about {duration(left)} left" if done < total else ""
            said = ", ".join(filter(None, [f"{self.name}: {done} of {total}", words, end]))
            log.log(logging.DEBUG if self._bar else logging.INFO, "%s", said)
