"""Tables of a map's importance by the regions of an atlas."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsapp.importance.brain import Array

RESAMPLES = 1000
"""Of the bootstrap over participants."""
SIDES = ("L", "R")


@dataclass(frozen=True)
class Region:
    """One label of an atlas; ``hemisphere`` is "L", "R" or empty."""

    index: int
    name: str
    hemisphere: str


@dataclass(frozen=True, eq=False)
class Atlas:
    """Labels and what they mean.

    Attributes
    ----------
    labels
        (X, Y, Z), 0 for none.
    affine
        (4, 4), voxel -> mm of ``space``.
    regions
        By label; those without a voxel may be among them.
    space
        TemplateFlow name of the template it was drawn in; a file name for a user's own.
    """

    name: str
    labels: NDArray[np.integer]
    affine: NDArray[np.float64]
    regions: tuple[Region, ...]
    space: str

    def on(self, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.int32]:
        """The labels on another grid (voxel -> mm), each voxel by its nearest label.

        Templates of the MNI152 family share their millimetres to within a few; no warp between
        them is made.
        """
        to_voxel = np.linalg.inv(self.affine) @ np.asarray(affine)
        return ndimage.affine_transform(
            np.asarray(self.labels, np.int32), to_voxel[:3, :3], to_voxel[:3, 3],
            output_shape=shape, order=0, mode="constant",
        )  # fmt: skip


def read_labels(text: str, where: str) -> tuple[Region, ...]:
    """The regions of a BIDS label table (tab-separated: index, name, hemisphere where known).

    Without a column ``hemisphere`` the side is taken from the name, as in "Left Hippocampus",
    "Hippocampus_R" or "rh.precentral".

    Raises
    ------
    ValueError
        Where there is no such table; the message says what is missing.
    """
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise ValueError(f"{where} is not a table with the columns index and name, tab-separated")
    found = []
    for row in rows:
        try:
            index = int(row["index"])
        except (TypeError, ValueError):
            raise ValueError(f"{where} has the index '{row['index']}', not a number") from None
        name, side = " ".join((row["name"] or "").replace("_", " ").split()), row.get("hemisphere")
        found.append(Region(index, name, side if side in SIDES else _side(name)))
    return tuple(region for region in found if region.index > 0)


def _side(name: str) -> str:
    words = name.lower().replace(".", " ").replace("-", " ").split()
    for side, marks in (("L", {"left", "lh", "l"}), ("R", {"right", "rh", "r"})):
        if marks & {*words[:1], *words[-1:]}:
            return side
    return ""


def region_means(
    values: Array, labels: NDArray[np.int32], mask: NDArray[np.bool_], regions: Sequence[Region]
) -> NDArray[np.float64]:
    """Mean of a map over each region inside a mask; NaN where a region has no voxel in it."""
    inside = np.where(mask, labels, 0)
    size = max(int(labels.max()), *(region.index for region in regions)) + 1
    counts = np.bincount(inside.ravel(), minlength=size)
    sums = np.bincount(inside.ravel(), values.ravel().astype(np.float64), minlength=size)
    index = [region.index for region in regions]
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[index] / np.where(counts[index] > 0, counts[index], np.nan))


def region_table(
    means: NDArray[np.float64],
    volumes_ml: NDArray[np.float64],
    regions: Sequence[Region],
    seed: int = 1,
) -> list[dict[str, Any]]:
    """One row for each region that has voxels, the most important first.

    Parameters
    ----------
    means
        (participants, regions), from `region_means`.
    volumes_ml
        (regions,).

    Returns
    -------
    list of dict
        ``region``, ``hemisphere``, ``volume_ml``, ``mean_importance`` over participants,
        ``importance_low`` and ``importance_high`` (95 % by bootstrap over participants, percentile
        method; None for fewer than three), ``share`` of the importance of all regions, by mean
        times volume, and ``rank``. Where importance has a sign, ranks and shares go by its size.
    """
    centre = _mean_of_known(means)
    low, high = _bootstrap(means, seed) if len(means) >= 3 else (None, None)
    weight = np.nan_to_num(np.abs(centre)) * volumes_ml
    order = [n for n in np.argsort(-np.abs(np.nan_to_num(centre)), kind="stable")
             if np.isfinite(centre[n]) and volumes_ml[n] > 0]  # fmt: skip
    total = weight[order].sum()
    return [
        {
            "region": regions[n].name,
            "hemisphere": regions[n].hemisphere or None,
            "volume_ml": float(volumes_ml[n]),
            "mean_importance": float(centre[n]),
            "importance_low": None if low is None else float(low[n]),
            "importance_high": None if high is None else float(high[n]),
            "share": float(weight[n] / total) if total > 0 else None,
            "rank": rank,
        }
        for rank, n in enumerate(order, start=1)
    ]


def region_volumes(
    labels: NDArray[np.int32], regions: Sequence[Region], voxel_ml: float
) -> NDArray[np.float64]:
    """Volume of each region on the grid of the labels, ml."""
    size = max(int(labels.max()), *(region.index for region in regions)) + 1
    counts = np.bincount(labels.ravel(), minlength=size)
    return np.asarray(counts[[region.index for region in regions]] * voxel_ml, np.float64)


def _bootstrap(
    means: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng, count = np.random.default_rng(seed), len(means)
    drawn = np.stack(
        [_mean_of_known(means[rng.integers(0, count, count)]) for _ in range(RESAMPLES)]
    )
    known = np.isfinite(drawn).any(0)
    bounds = np.full((2, drawn.shape[1]), np.nan)
    bounds[:, known] = np.nanpercentile(drawn[:, known], [2.5, 97.5], axis=0)
    return bounds[0], bounds[1]


def _mean_of_known(means: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(means)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, means, 0).sum(0) / np.maximum(count, 1), np.nan)


COLUMNS: Mapping[str, Any] = {
    "model": "Model whose prediction is explained",
    "method": "Method that made the map",
    "region": "Region of the atlas",
    "hemisphere": {"Description": "Side", "Levels": {"L": "left", "R": "right"}},
    "volume_ml": {"Description": "Volume of the region in the template", "Units": "ml"},
    "mean_importance": "Mean over the region's voxels and over the scans; in years of predicted "
    "age for occlusion, where a plus says that the region makes the brain look older",
    "importance_low": "Lower bound of its 95 % interval, by bootstrap over the scans",
    "importance_high": "Upper bound of its 95 % interval",
    "share": "Share of the importance of all regions: mean times volume, without its sign",
    "rank": "1 for the region of the highest mean importance, without its sign",
    "split_half_r": "Correlation over voxels of the mean maps of two halves of the scans; one for "
    "all rows of a model and method",
}
"""Columns of ``group_regions.tsv``."""
