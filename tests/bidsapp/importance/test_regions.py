"""Region tables: means, ranks, shares and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.importance.regions import (
    COLUMNS,
    Atlas,
    Region,
    read_labels,
    region_means,
    region_table,
    region_volumes,
)

REGIONS = (Region(1, "Ventricle", "L"), Region(2, "Ventricle", "R"), Region(5, "Stem", ""),
           Region(9, "Absent", ""))  # fmt: skip


def labels() -> np.ndarray:
    found = np.zeros((6, 6, 6), np.int32)
    found[:2], found[4:], found[2:4, :3] = 1, 2, 5
    return found


def test_means_are_those_inside_the_brain() -> None:
    values = np.arange(216, dtype=np.float32).reshape(6, 6, 6)
    mask = np.ones(values.shape, bool)
    mask[0] = False
    means = region_means(values, labels(), mask, REGIONS)
    assert means[0] == values[1].mean() and means[1] == values[4:].mean()
    assert means[2] == values[2:4, :3].mean() and np.isnan(means[3])


def test_the_table_ranks_by_size_and_shares_by_volume() -> None:
    volumes = region_volumes(labels(), REGIONS, 0.008)
    np.testing.assert_allclose(volumes, [0.576, 0.576, 0.288, 0])
    rng = np.random.default_rng(1)
    means = np.array([1.0, -3.0, 2.0, np.nan]) + rng.normal(0, 0.1, (40, 4))
    rows = region_table(means, volumes, REGIONS)
    assert [(row["region"], row["hemisphere"], row["rank"]) for row in rows] == [
        ("Ventricle", "R", 1), ("Stem", None, 2), ("Ventricle", "L", 3),
    ]  # fmt: skip
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["share"] == pytest.approx(3 * 2 / (1 * 2 + 3 * 2 + 2 * 1), abs=0.01)
    for row, truth in zip(rows, (-3, 2, 1)):
        assert row["importance_low"] < row["mean_importance"] < row["importance_high"]
        assert row["importance_high"] - row["importance_low"] == pytest.approx(0.062, rel=0.4)
        assert row["mean_importance"] == pytest.approx(truth, abs=0.05)
    assert rows == region_table(means, volumes, REGIONS)
    assert set(rows[0]) <= set(COLUMNS)


def test_two_scans_have_no_interval() -> None:
    rows = region_table(np.ones((2, 4)), np.ones(4), REGIONS)
    assert rows[0]["importance_low"] is None


def test_an_atlas_on_another_grid_keeps_its_millimetres() -> None:
    fine = np.zeros((40, 40, 40), np.int16)
    fine[10:20, 10:20, 10:20] = 7  # mm -10 to 0
    affine = np.array([[-1.0, 0, 0, 20], [0, 1, 0, -20], [0, 0, 1, -20], [0, 0, 0, 1]])
    atlas = Atlas("a", fine, affine, (Region(7, "A", ""),), "T")
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = -19.5
    found = atlas.on((20, 20, 20), coarse)
    x, y, z = coarse[:3, :3] @ np.argwhere(found == 7).T + coarse[:3, 3:]
    assert (x.min(), x.max()) == (0.5, 10.5) or (x.min() > 0 and x.max() <= 10.5)
    assert y.min() >= -10.5 and y.max() <= 0 and z.min() >= -10.5 and z.max() <= 0
    assert (found == 7).sum() == 125


def test_label_tables() -> None:
    text = "index\tname\themisphere\n0\tBackground\tn/a\n3\tLateral_Ventricle\tL\n"
    assert read_labels(text, "t.tsv") == (Region(3, "Lateral Ventricle", "L"),)
    text = "index\tname\n1\tLeft Hippocampus\n2\tHippocampus_R\n3\trh.precentral\n4\tStem\n"
    assert [r.hemisphere for r in read_labels(text, "t.tsv")] == ["L", "R", "R", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "t.tsv is not a table"), ("a\tb\n1\t2\n", "index and name"),
     ("index\tname\nx\tA\n", "the index 'x'")],
)  # fmt: skip
def test_what_is_no_label_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(text, "t.tsv")
