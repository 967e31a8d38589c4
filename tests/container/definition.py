"""Sections of an Apptainer definition file."""

from __future__ import annotations

import re
from pathlib import Path

DEFINITION = Path(__file__).resolve().parents[2] / "Singularity.def"


def sections(text: str, **arguments: str) -> dict[str, str]:
    """The header (under "") and the body of each section, with template arguments filled in."""
    values = dict(re.findall(r"^    (\w+)=(.*)$", _split(text)["arguments"], re.MULTILINE))
    values |= arguments
    return _split(re.sub(r"\{\{ *(\w+) *\}\}", lambda match: values[match[1]], text))


def _split(text: str) -> dict[str, str]:
    parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[0::2], strict=True))
