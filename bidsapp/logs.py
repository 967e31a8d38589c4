"""Where messages of a run go: the console, and a file beside the run's settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def to_console_and_file(path: Path, level: int) -> Iterator[None]:
    """Send the log to standard error and, with times, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(level)
    for handler in (console, file):
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in (console, file):
            logger.removeHandler(handler)
            handler.close()
