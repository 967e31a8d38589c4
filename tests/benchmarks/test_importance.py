"""Scores of maps against what was planted, and the tables made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import importance
from bidsapp.importance.regions import Atlas, Region

AFFINE = np.array(importance.AFFINE)
PLANTED = (slice(10, 14), slice(10, 14), slice(10, 14))


@pytest.fixture
def atlas() -> Atlas:
    """One planted region with two sides, and another."""
    labels = np.zeros(importance.SHAPE, np.int16)
    labels[10:12, 10:14, 10:14], labels[12:14, 10:14, 10:14], labels[30:40, 30:40, 30:40] = 1, 2, 3
    regions = (Region(1, "Here", "L"), Region(2, "Here", "R"), Region(3, "There", ""))
    return Atlas("a", labels, np.array(importance.AFFINE), regions, "")


def test_a_map_of_the_truth_scores_highest_and_one_of_another_place_low(atlas: Atlas) -> None:
    mask = np.zeros(importance.SHAPE, bool)
    mask[5:45, 5:45, 5:45] = True
    place = np.zeros(importance.SHAPE, bool)
    place[PLANTED] = True
    truth = {"region": place, "effect": place}
    found = importance.scores(-1.0 * place, mask, truth, ["Here"], atlas, AFFINE)
    assert found["region"] == pytest.approx(40**3 / 4**3) and found["ranks"] == [1]
    elsewhere = (atlas.labels == 3).astype(np.float32)
    found = importance.scores(elsewhere, mask, truth, ["Here"], atlas, AFFINE)
    assert found["effect"] < 1.1 and found["ranks"] == [2] and found["top"][0] == "There"


def test_tables_of_what_is_there_go_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = {"region": 7.0, "effect": 8.04, "ranks": [1, 3], "top": ["A", "B", "C", "D"]}
    found = {"mae": 4.0, "baseline": 15.0, "r": 0.9, "maps": {"noise": scored}}
    (tmp_path / "planted_sensorimotor_linear.json").write_text(json.dumps(found))
    page = tmp_path / "importance.md"
    page.write_text(importance.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(importance, "PAGE", page)
    importance.main(["tables", "--work", str(tmp_path)])
    row = "| sensorimotor | linear | 4.0 of 15.0, r 0.90 | noise | 7.0 | 8.0 | 1 and 3 | A, B, C |"
    assert row in page.read_text(encoding="utf-8")
