"""Quality figures in words, and the strips of a study."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from bidsapp.preprocessing.quality import LIMITS
from bidsapp.reporting.quality_strips import FLAGGED, QUALITY, Dot, strip_figure, titled

SVG = "{http://www.w3.org/2000/svg}"
DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_every_figure_has_words() -> None:
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^- `(\w+)`:", page, re.MULTILINE))
    assert set(QUALITY) == explained and set(LIMITS) <= set(QUALITY)
    assert titled("of_the_future").title == "Of the future"


def test_dots_lie_by_value_and_lead_to_pages() -> None:
    dots = [Dot(1.0, "sub-01", link="./sub-01.html"), Dot(3.0, "sub-02 <b>", flagged=True),
            Dot(2.0, "sub-03")]  # fmt: skip
    text = strip_figure("Contrast", "ml", 1, dots)
    root = ElementTree.fromstring(text)
    circles = {circle[0].text: circle.attrib for circle in root.iter(f"{SVG}circle")}
    names = ["sub-01: 1.0 ml", "sub-03: 2.0 ml", "sub-02 <b>: 3.0 ml, flagged"]
    assert sorted(circles, key=lambda name: float(circles[name]["cx"])) == names
    assert [name for name in circles if circles[name]["fill"] == FLAGGED] == [names[-1]]
    assert float(circles[names[-1]]["r"]) > float(circles[names[0]]["r"])
    assert [a.attrib["href"] for a in root.iter(f"{SVG}a")] == ["./sub-01.html"]
    assert "<b>" not in text
    assert "median 2.0 ml, 1.0 to 3.0" in root.findtext(f"{SVG}title", "")


def test_equal_values_lie_in_the_middle() -> None:
    root = ElementTree.fromstring(strip_figure("Voxels", "", 0, [Dot(2.0, "a"), Dot(2.0, "b")]))
    assert {circle.attrib["cx"] for circle in root.iter(f"{SVG}circle")} == {"200.0"}
