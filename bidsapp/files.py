"""Files that are there whole or not at all, and JSON and tables as BIDS wants them."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.errors import UserError

TEMPORARY = ".brainage-*.tmp"


def replace(path: Path, data: bytes) -> None:
    """Put a complete file in the place of `path`, whoever else does the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / TEMPORARY.replace("*", uuid.uuid4().hex)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn NumPy values, tuples and paths into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table_cell(value: Any) -> str:
    """A value as a cell of a BIDS table."""
    value = plain(value)
    if value is None or value == "":
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    UserError
        The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return content


def sidecar_path(path: Path) -> Path:
    """The JSON beside an image or a transform."""
    return path.with_name(path.name.split(".")[0] + ".json")
