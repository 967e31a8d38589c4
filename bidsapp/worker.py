"""What a worker process runs: one scan after another, whatever becomes of each."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import textwrap
import time
import traceback
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Literal, NamedTuple

from bidsapp.errors import UserError


class Answer(NamedTuple):
    """What comes back from a worker for one scan; `details` is the text of the crash file."""

    status: Literal["done", "skipped", "failed"]
    message: str
    details: str
    seconds: float


def serve(connection: Connection, log_level: int, idle_seconds: float | None = None) -> None:
    """Answer every ``(work, scan)`` that comes through the pipe, until it ends or is silent.

    Log records and warnings go to the parent through the same pipe.
    """
    _die_with_parent()
    root = logging.getLogger()
    root.setLevel(log_level)
    root.addHandler(_PipeHandler(connection))  # type: ignore[arg-type]
    logging.captureWarnings(True)
    with suppress(EOFError, BrokenPipeError):
        while connection.poll(idle_seconds):
            connection.send(_attempt(connection.recv_bytes()))


def _attempt(task: bytes) -> Answer:
    """Unpickle ``(work, scan)``, which imports what the work needs, and do it."""
    since = time.monotonic()
    try:
        work, scan = ForkingPickler.loads(task)
        since = time.monotonic()
        status = work(scan)
        if status not in ("done", "skipped"):
            raise ValueError(f"the work on a scan returned {status!r}, not 'done' or 'skipped'")
        return Answer(status, "", "", time.monotonic() - since)
    except BaseException as error:  # also SystemExit from a library: it is this scan's alone
        message = str(error)
        if not isinstance(error, UserError):
            message = textwrap.shorten(f"{type(error).__name__}: {message}", 400)
        if isinstance(error, MemoryError):
            message += " (lack of memory: use --nprocs 1 or --low-mem)"
        details = f"{message}\n\n{traceback.format_exc()}"
        return Answer("failed", message, details, time.monotonic() - since)


class _PipeHandler(QueueHandler):
    """Send log records to the parent, through the pipe of the answers."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]


def _die_with_parent() -> None:
    """End this process when its parent dies, however that happens.

    An idle worker sees its pipe end. A busy one may hold the interpreter for a minute inside
    ANTs, where no thread of ours could act; so the kernel is asked, where it can be (Linux).
    """
    parent = parent_process()
    if sys.platform == "linux" and parent is not None:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it died before we asked
            os._exit(1)
