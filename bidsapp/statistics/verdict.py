"""What a statistical step has to say about its own result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["refused", "warning", "note"]


@dataclass(frozen=True)
class Verdict:
    """A named finding, for the JSON files and for the top of the report.

    Attributes
    ----------
    name
        Fixed word, such as ``weak_slope``, by which software finds it.
    text
        One sentence for the reader, with the figures.
    severity
        ``refused``: there is no result; ``warning``: it needs care; ``note``: how it was made.
    """

    name: str
    text: str
    severity: Severity = "warning"

    def __post_init__(self) -> None:
        if self.severity not in get_args(Severity):
            raise ValueError(f"a verdict's severity is one of {', '.join(get_args(Severity))}")
