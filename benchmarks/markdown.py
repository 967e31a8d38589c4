"""Tables as text, and where they stand in the pages of docs/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a Markdown table; all columns but the first to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in a page.

    Raises
    ------
    ValueError
        The page has no such place, or several.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    place = re.compile(f"(?<={re.escape(first)}).*?(?={re.escape(last)})", re.DOTALL)
    after, places = place.subn(lambda _: f"{text.strip()}\n", page.read_text(encoding="utf-8"))
    if places != 1:
        raise ValueError(f"{page} has {places} places '<!-- {name} -->', not one")
    page.write_text(after, encoding="utf-8")
