"""Lines, estimates and the bar."""

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from bidsapp.progress import Outcome, Progress, ProgressBar, duration, progress_for, seconds_left


def outcome(stem, status="done", seconds=10.0, message=""):
    return Outcome(SimpleNamespace(stem=stem), status, message, seconds)


@pytest.mark.parametrize(
    ("statuses", "nprocs", "expected"),
    [
        ([], 1, None),
        (["skipped", "failed"], 1, None),  # neither says how long a scan takes
        (["done"], 1, 90.0),
        (["done", "skipped", "failed"], 1, 70.0),
        (["done"], 3, 30.0),
        (["done"] * 9, 4, 10.0),  # one scan is not shared among four workers
        (["done"] * 10, 4, 0.0),
    ],
)
def test_estimate(statuses, nprocs, expected):
    seconds = {"done": 10.0, "skipped": 0.1, "failed": 1.0}
    outcomes = [outcome("sub-01", status, seconds[status]) for status in statuses]
    assert seconds_left(outcomes, 10, nprocs) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "1 s"), (89, "89 s"), (170, "3 min"), (5370, "1 h 30 min"), (7800, "2 h 10 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_plain_lines(caplog):
    caplog.set_level(logging.INFO)
    with Progress(24, nprocs=2) as progress:
        progress.finished(outcome("sub-01", "skipped", 0.0))
        progress.finished(outcome("sub-07", "done", 11.2))
        progress.finished(outcome("sub-08", "failed", 2.0, "sub-08_T1w.nii.gz: is 100% empty."))
    assert caplog.messages == [
        "[1/24] sub-01 was already complete",
        "[2/24] sub-07 done in 11.2 s, about 2 min left",
        "[3/24] sub-08 failed after 2.0 s: sub-08_T1w.nii.gz: is 100% empty.",
    ]
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2 + [logging.ERROR]


def test_last_line_says_nothing_of_time_left(caplog):
    caplog.set_level(logging.INFO)
    Progress(1, nprocs=1).finished(outcome("sub-07", "done", 11.24))
    assert caplog.messages == ["[1/1] sub-07 done in 11.2 s"]


def test_bar_below_the_lines():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    logger, handler = logging.getLogger("bidsapp"), logging.StreamHandler(sys.stderr)
    stream, level = handler.stream, logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with ProgressBar(2, nprocs=1, console=console) as progress:
            progress.finished(outcome("sub-07", "done", 40.0))
        assert handler.stream is stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "[1/2] sub-07 done in 40.0 s, about 40 s left" in text  # the handler writes above it
    assert re.search(r"1/2 scans, \d:\d\d:\d\d about 40 s left", text)


@pytest.mark.parametrize(("tty", "kind"), [(True, ProgressBar), (False, Progress)])
def test_bar_on_a_terminal_only(tty, kind):
    stream = io.StringIO()
    stream.isatty = lambda: tty
    assert type(progress_for(3, 1, stream)) is kind
