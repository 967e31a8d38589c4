"""Tables are put where a page keeps a place for them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.markdown import put, table


def test_a_place_is_filled_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter <!-- two -->\n")
    text = table(["a", "b"], [["x", r"\1"]])
    for _ in range(2):
        put(page, "one", text)
    assert page.read_text() == (
        "before\n<!-- one -->\n| a | b |\n| --- | ---: |\n| x | \\1 |\n<!-- /one -->\n"
        "after <!-- two -->\n"
    )


@pytest.mark.parametrize("text", ["nothing", "<!-- one -->\n<!-- /one -->\n" * 2])
def test_a_page_without_one_place_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="places"):
        put(page, "one", "x")
    assert page.read_text() == text
