"""Figures of the group level are SVG, say what they should, and take whatever there is."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from bidsapp.reporting import group_figures as figures
from bidsapp.reporting import group_page
from bidsapp.reporting.group_page import JOINED


def scans(n: int = 40, **changes: Any) -> pd.DataFrame:
    random = np.random.default_rng(1)
    age = random.uniform(20, 80, n)
    gap = random.normal(0, 4, n) - 0.2 * (age - 50)
    table = pd.DataFrame({
        "age": age, "predicted_age": age + gap, "brain_age_gap": gap,
        "corrected_gap": gap + 0.2 * (age - 50),
        "group": np.where(np.arange(n) % 3 == 0, "AD", "control"),
        "tested": np.arange(n) != 1, "role": "reference",
    })  # fmt: skip
    return table.assign(**changes).assign(is_reference=lambda t: t["group"] != "AD")


DECADES = pd.DataFrame(
    {"age_low": [20.0, 30], "age_high": [29.0, 39], "mean": [1.0, 0], "low": [-1.0, np.nan],
     "high": [3.0, np.nan]}
)  # fmt: skip
COVERAGE = pd.DataFrame(
    {"interval": ["model", "local"] * 2, "nominal": [0.5, 0.5, 0.9, 0.9],
     "observed": [0.3, 0.5, 0.8, np.nan], "low": [0.2, 0.4, 0.7, np.nan],
     "high": [0.4, 0.6, 0.9, np.nan]}
)  # fmt: skip
PAIR = SimpleNamespace(
    mean=np.array([1.0, 2.0, 3.0]), difference=np.array([0.5, -0.5, 0.2]), bias=0.1, bias_low=-0.5,
    bias_high=0.7, lower=-0.9, lower_low=-2.0, lower_high=0.1, upper=1.1, upper_low=0.1,
    upper_high=2.1,
)  # fmt: skip
EFFECTS = pd.DataFrame(
    {"label": ["WSSA", "ventricles"], "heading": ["AD - control"] * 2, "effect": [0.5, 0.2],
     "low": [0.1, -0.2], "high": [0.9, 0.6], "words": ["+0.50", "+0.20"],
     "is_model": [True, False]}
)  # fmt: skip
DRAWN = {
    "predicted": lambda: figures.predicted_figure({"WSSA": scans(), "B & <c>": scans()}),
    "gap": lambda: figures.gap_figure({"WSSA": scans()}, {"WSSA": DECADES}),
    "groups": lambda: figures.group_figure({"WSSA": scans()}),
    "effects": lambda: figures.forest_figure(EFFECTS, "Title", "Hedges' g"),
    "calibration": lambda: figures.calibration_figure({"WSSA": COVERAGE}),
    "agreement": lambda: figures.agreement_figure({"WSSA": PAIR}),
}


def words(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_data_give_the_same_svg(name: str) -> None:
    first = DRAWN[name]()
    ElementTree.fromstring(first)
    assert first == DRAWN[name]()
    assert "http://www.w3.org/2000/svg" in first and "<date>" not in first.lower()
    assert "2026" not in first


def test_words_are_text_and_escaped() -> None:
    said = words(DRAWN["predicted"]())
    assert "Chronological age (years)" in said
    assert "B & <c>" in said
    assert "control (reference)" in said and "left out" in said


def test_groups_have_their_sizes_of_people() -> None:
    table = scans().assign(role=["repeat"] * 10 + ["other"] * 30)
    said = words(figures.group_figure({"WSSA": table}))
    people = table[table["tested"] & (table["role"] != "repeat")]["group"].value_counts()
    assert f"n = {people['control']}" in said and f"n = {people['AD']}" in said
    assert said.index("control") < said.index("AD")  # the reference first


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("number", [5, 6, 7, 12])
def test_groups_beyond_the_marks_are_joined_and_nobody_vanishes(
    number: int, unknown: bool
) -> None:
    names = [f"G{n:02d}" for n in range(number)]
    table = scans(8 * number, group=np.repeat(names, 8)).assign(tested=True)
    if unknown:
        table.loc[table.index[-1], "group"] = None
    shown = figures._groups({"WSSA": table})
    looks = [figures._look(name, shown) for name in shown]
    assert len({color for color, _ in looks}) == len({mark for _, mark in looks}) == len(shown)
    assert (figures.OTHERS in shown) == (number + unknown > len(figures.MARKS))
    drawn = figures._label(table, shown)
    assert set(drawn) == set(shown)
    said = words(figures.group_figure({"WSSA": table}))
    sizes = [int(size) for size in re.findall(r"n = (\d+)", said)]
    assert sum(sizes) == 2 * len(table)  # before and after correction
    for name, svg in (
        ("groups", figures.group_figure({"WSSA": table})),
        ("predicted", figures.predicted_figure({"WSSA": table})),
    ):
        assert (JOINED in group_page._caption(name, svg)) == (figures.OTHERS in shown)


def test_forest_has_headings_rows_and_figures() -> None:
    said = words(DRAWN["effects"]())
    assert all(word in said for word in ("AD - control", "WSSA", "ventricles", "+0.50"))


@pytest.mark.parametrize(
    "table",
    [
        scans(0),
        scans(1),
        scans(group=None),
        scans(corrected_gap=np.nan),
        scans(age=np.nan, brain_age_gap=np.nan, corrected_gap=np.nan),
        scans(tested=False),
        scans(age=30.0),
    ],
    ids=["none", "one", "no groups", "not corrected", "no ages", "all left out", "same age"],
)
def test_whatever_there_is_is_drawn(table: pd.DataFrame) -> None:
    nobody = DECADES.iloc[:0]
    for svg in (
        figures.predicted_figure({"WSSA": table}),
        figures.gap_figure({"WSSA": table}, {"WSSA": nobody}),
        figures.group_figure({"WSSA": table}),
    ):
        ElementTree.fromstring(svg)


def test_without_a_correction_there_is_no_panel_for_it() -> None:
    said = words(figures.gap_figure({"WSSA": scans(corrected_gap=np.nan)}, {}))
    assert "WSSA, not corrected" in said and "after correction" not in said
    assert "WSSA, after correction" in words(DRAWN["gap"]())


def test_many_points_become_a_picture() -> None:
    svg = figures.predicted_figure({"WSSA": scans(20_000)})
    assert "data:image/png;base64" in svg
    assert len(svg) < 1_000_000
