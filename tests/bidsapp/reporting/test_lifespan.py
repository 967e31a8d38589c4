"""Pictures of a person among others and over time: marks lie where the numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from bidsapp.reporting.lifespan import (
    BANDS,
    PERSON,
    Point,
    _step,
    lifespan_figure,
    sessions_figure,
)
from bidsapp.reporting.reference import Curves

SVG = "{http://www.w3.org/2000/svg}"
CURVES = Curves(np.array([20.0, 80]), np.array([[p, p + 1] for p in (1.0, 2, 3, 4, 5)]), 100)


def marks(svg: str, name: str) -> list[dict[str, str]]:
    return [element.attrib for element in ElementTree.fromstring(svg).iter(f"{SVG}{name}")]


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def places(points: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in points.split()], float)


def test_a_person_on_a_curve_is_drawn_on_it() -> None:
    svg = lifespan_figure("Cortex", CURVES, [Point(20, 3.0), Point(80, 4.0)])
    median = places(marks(svg, "polyline")[0]["points"])
    dots = np.array([[dot["cx"], dot["cy"]] for dot in marks(svg, "circle")], float)
    assert np.allclose(dots, median, atol=0.11)
    assert [area["fill"] for area in marks(svg, "polygon")] == list(BANDS)
    outer, inner = (places(area["points"])[:, 1] for area in marks(svg, "polygon"))
    assert outer.min() < inner.min() and outer.max() > inner.max()


def test_higher_is_up_and_older_is_right() -> None:
    svg = lifespan_figure("Cortex", CURVES, [Point(30, 1.5), Point(70, 5.5)])
    (first, second) = marks(svg, "circle")
    assert float(first["cx"]) < float(second["cx"]) and float(first["cy"]) > float(second["cy"])


def test_the_axes_reach_a_person_far_from_the_reference() -> None:
    svg = lifespan_figure("Cortex", CURVES, [Point(97, 40.0, (30.0, 55.0))])
    assert all(0 <= float(dot["cx"]) <= 360 for dot in marks(svg, "circle"))
    interval = next(line for line in marks(svg, "line") if line["stroke"] == PERSON)
    assert 20 < float(interval["y2"]) < float(interval["y1"]) < 220
    assert "80" in words(svg)


def test_the_line_of_equality_lies_inside() -> None:
    ages = Curves(CURVES.ages, np.array([[p, p + 50] for p in (10.0, 20, 30, 40, 50)]), 9)
    svg = lifespan_figure("Predicted age", ages, [Point(40, 40.0)], equal=True)
    (line,) = [line for line in marks(svg, "line") if "stroke-dasharray" in line]
    dot = marks(svg, "circle")[0]
    x1, y1, x2, y2 = (float(line[key]) for key in ("x1", "y1", "x2", "y2"))
    share = (float(dot["cx"]) - x1) / (x2 - x1)
    assert float(dot["cy"]) == pytest.approx(y1 + share * (y2 - y1), abs=0.2)


@pytest.mark.parametrize("by_age", [True, False])
def test_scans_over_time(by_age: bool) -> None:
    scans = [Point(61 if by_age else 1, 63, (55, 70), "Session <a>"),
             Point(64.5 if by_age else 2, 69, (61, 77), "Session b")]  # fmt: skip
    svg = sessions_figure(scans, by_age)
    dots = marks(svg, "circle")
    assert float(dots[0]["cx"]) < float(dots[1]["cx"])
    assert float(dots[0]["cy"]) > float(dots[1]["cy"])
    assert bool([line for line in marks(svg, "line") if "stroke-dasharray" in line]) == by_age
    assert ("number of the scan" in words(svg)) != by_age
    assert "<a>" not in svg and "&lt;a&gt;" in svg


@pytest.mark.parametrize(
    ("values", "expected"), [((0, 5), 1), ((0, 0.9), 0.2), ((20, 90), 20), ((3, 3), None)]
)
def test_steps(values: tuple[float, float], expected: float | None) -> None:
    assert _step(values) > 0 if expected is None else _step(values) == pytest.approx(expected)
