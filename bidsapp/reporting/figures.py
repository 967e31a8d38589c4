"""Figures of the reports: arrays in, PNG bytes or SVG text out; no files, no global state.

Volumes are (X, Y, Z) in RAS axes (x to the right, y to the front, z up). Axial and coronal cuts
are shown in the neurological convention (left is left), sagittal cuts with the front to the right.
The same arrays give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, NamedTuple

import numpy as np

from bidsapp.reporting.mosaic import Array, Mosaic, foreground, views, window
from bidsapp.reporting.svg import Svg

# Okabe & Ito (2008): told apart with every common form of colour blindness, and from grey.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
BRAIN_EDGE, TISSUE_EDGE = "#F0E442", "#56B4E9"
REGISTRATION_COLUMNS = 5
"""Panels in a row of the registration figures, which a page wipes all at once."""


class RegistrationFigure(NamedTuple):
    """Three PNG pictures of the same cuts; the flicker pair has one size in pixels."""

    contours: bytes
    """The registered scan with the outlines of the template's brain and tissue."""
    registered: bytes
    """The registered scan alone: the first picture of the flicker pair."""
    template: bytes
    """The template alone: the second picture of the flicker pair."""


def brain_mosaic(t1w: Array, brain: Array, zooms: Sequence[float], columns: int = 7) -> bytes:
    """Draw the outline of the brain mask on its scan, and nothing else.

    Parameters
    ----------
    t1w : array (X, Y, Z)
        The scan, in RAS axes; any intensity unit.
    brain : boolean array (X, Y, Z)
        The mask.
    zooms : three floats
        Size of a voxel along X, Y, Z in mm.
    columns : int
        Number of cuts along each axis; the same cuts as those of `mask_mosaic`.

    Returns
    -------
    bytes
        A PNG; the scan alone where the mask is empty.
    """
    _check_same_grid(t1w, brain)
    cuts = views(brain if brain.any() else foreground(t1w), zooms, columns, margin=20.0)
    low, high = window(t1w, brain)
    mosaic = Mosaic(cuts)
    for panel in mosaic.panels:
        panel.show(t1w, low, high)
        panel.outline(panel.cut.of(brain), 0.5, BRAIN_EDGE, width=1.3)
    return mosaic.png()


def mask_mosaic(
    t1w: Array,
    labels: Array,
    zooms: Sequence[float],
    colors: Mapping[int, str] | None = None,
    names: Mapping[int, str] | None = None,
    brain: Array | None = None,
    columns: int = 7,
) -> bytes:
    """Draw a segmentation on its scan, in axial, coronal and sagittal cuts through the brain.

    Parameters
    ----------
    t1w : array (X, Y, Z)
        The scan, in RAS axes; any intensity unit.
    labels : integer array (X, Y, Z)
        Label of each voxel, 0 outside the brain. A brain mask is the case of one label.
    zooms : three floats
        Size of a voxel along X, Y, Z in mm.
    colors : mapping from label to "#rrggbb", optional
        Labels of the same colour are drawn as one. By default `COLORS` in turn.
    names : mapping from label to name, optional
        Adds a legend of the labels that are present; labels of one name are listed once.
    brain : boolean array (X, Y, Z), optional
        What is outlined; by default where `labels` is not 0, outer fluid included.
    columns : int
        Number of cuts along each axis.

    Returns
    -------
    bytes
        A PNG. The brain is outlined, each label tinted. With no voxel labelled, the scan alone is
        shown: that is what a failed segmentation looks like.
    """
    _check_same_grid(t1w, labels)
    present = [int(label) for label in np.unique(labels) if label != 0]
    turn = {label: COLORS[i % len(COLORS)] for i, label in enumerate(present)}
    chosen = turn | {label: c for label, c in (colors or {}).items() if label in turn}
    legend: dict[str, str] = {}
    for label, name in (names or {}).items():
        if label in chosen:
            legend.setdefault(name, chosen[label])

    brain = labels != 0 if brain is None else brain
    _check_same_grid(t1w, brain)
    cuts = views(brain if brain.any() else foreground(t1w), zooms, columns, margin=20.0)
    low, high = window(t1w, brain)
    mosaic = Mosaic(cuts, list(legend.items()))
    of_color = {color: [i for i in present if chosen[i] == color] for color in chosen.values()}
    for panel in mosaic.panels:
        panel.show(t1w, low, high)
        panel.tint(labels, chosen)
        for color, members in of_color.items():
            panel.outline(np.isin(panel.cut.of(labels), members), 0.5, color, width=0.6)
        panel.outline(panel.cut.of(brain), 0.5, BRAIN_EDGE)
    return mosaic.png()


def registration_figure(
    template: Array,
    registered: Array,
    zooms: Sequence[float] = (1, 1, 1),
    columns: int = REGISTRATION_COLUMNS,
) -> RegistrationFigure:
    """Draw a registered scan against its template.

    Parameters
    ----------
    template : array (X, Y, Z)
        The template's brain, in RAS axes, 0 outside it; any intensity unit.
    registered : array (X, Y, Z)
        The scan on the template's grid; its unit may differ from the template's.
    zooms : three floats
        Size of a voxel along X, Y, Z in mm.
    columns : int
        Number of cuts along each axis.

    Returns
    -------
    RegistrationFigure
        Where the registration holds, the outlines follow the scan's own edges, and nothing
        moves when the flicker pair is swapped. The tissue outline is the brightest of three
        classes of the template's intensities (Otsu's method): white matter in a T1w image.
    """
    _check_same_grid(template, registered)
    brain = template > 0
    cuts = views(brain if brain.any() else foreground(template), zooms, columns, margin=8.0)
    tissue_edge = _otsu_thresholds(template[brain])[1] if brain.any() else None

    def draw(volume: Array, outlined: bool) -> bytes:
        # The scan's window comes from the template's brain, so that scalp left on shows bright.
        low, high = window(volume, brain)
        legend = [("template: brain", BRAIN_EDGE), ("template: white matter", TISSUE_EDGE)]
        mosaic = Mosaic(cuts, legend if outlined else [])
        for panel in mosaic.panels:
            panel.show(volume, low, high)
            if outlined and tissue_edge is not None:
                panel.outline(panel.cut.of(template), tissue_edge, TISSUE_EDGE)
                panel.outline(panel.cut.of(brain), 0.5, BRAIN_EDGE)
        return mosaic.png(colored=outlined)

    return RegistrationFigure(
        contours=draw(registered, outlined=True),
        registered=draw(registered, outlined=False),
        template=draw(template, outlined=False),
    )


def age_bars(
    predictions: Mapping[str, Mapping[str, Any]],
    age: float | None = None,
    titles: Mapping[str, str] | None = None,
) -> str:
    """Draw each model's predicted age with its interval, and the chronological age.

    Parameters
    ----------
    predictions : mapping from model to prediction
        The `predictions` of a record: `predicted_age` and `interval` (low, high) in years, either
        of which may be missing or None. Drawn in this order, top to bottom.
    age : float, optional
        Chronological age in years; drawn as a dashed line.
    titles : mapping from model to title, optional
        What to call a model; its name by default.

    Returns
    -------
    str
        An SVG, 420 units wide: small enough to be read on a phone.
    """
    rows = [_AgeRow.of(name, p, titles or {}) for name, p in predictions.items()]
    ages = [value for row in rows for value in row.values] + ([age] if age is not None else [])
    start, stop = _axis_range(ages)
    width, inset, row_height, top = 420, 16, 46, 26
    bottom = top + row_height * len(rows)

    def x(years: float) -> float:
        return inset + (width - 2 * inset) * (years - start) / (stop - start)

    said = "; ".join(f"{row.title}: {row.words}" for row in rows) or "no prediction"
    known = f" Age: {age:.1f} years." if age is not None else ""
    svg = Svg(width, bottom + 40, f"Predicted age in years. {said}.{known}")
    for tick in range(start, stop + 1, _tick_step(stop - start)):
        svg.line(x(tick), top, x(tick), bottom, "#d0d0d0")
        svg.text(x(tick), bottom + 16, str(tick), anchor="middle", color="#444")
    svg.text(width / 2, bottom + 34, "years", anchor="middle", color="#444")
    if age is not None:
        svg.line(x(age), top - 4, x(age), bottom, "#000", dashed=True)
        anchor = "start" if x(age) < 60 else "end" if x(age) > width - 60 else "middle"
        svg.text(x(age), 15, f"age {age:.1f}", anchor=anchor, bold=True)
    for number, row in enumerate(rows):
        y = top + row_height * number
        svg.text(inset, y + 17, f"{row.title}: {row.words}", halo=True, bold=number == 0)
        if row.interval is not None:
            svg.line(x(row.interval[0]), y + 32, x(row.interval[1]), y + 32, "#56B4E9", 8)
        if row.predicted is not None:
            svg.dot(x(row.predicted), y + 32, "#00507f")
    return svg.written()


def _check_same_grid(first: Array, second: Array) -> None:
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(
            f"two volumes on one 3D grid are needed, not {first.shape} and {second.shape}"
        )


def _otsu_thresholds(values: Array, bins: int = 128) -> tuple[float, float]:
    """The two thresholds that split `values` into three classes of least variance (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    weight = np.concatenate([[0.0], np.cumsum(counts / counts.sum())])
    centres = (edges[:-1] + edges[1:]) / 2
    moment = np.concatenate([[0.0], np.cumsum(counts / counts.sum() * centres)])

    def scatter(start: Array | int, stop: Array | int) -> Array:
        share = weight[stop] - weight[start]
        return (moment[stop] - moment[start]) ** 2 / np.maximum(share, 1e-12)

    first, second = np.triu_indices(bins + 1, k=1)
    between = scatter(0, first) + scatter(first, second) + scatter(second, bins)
    best = between >= between.max() * (1 - 1e-9)  # several, where bins between classes are empty
    low, high = (round(float(side[best].mean())) for side in (first, second))
    return float(edges[low]), float(edges[high])


@dataclass(frozen=True)
class _AgeRow:
    title: str
    predicted: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, name: str, prediction: Mapping[str, Any], titles: Mapping[str, str]) -> _AgeRow:
        low, high = prediction.get("interval") or (None, None)
        interval = None if low is None or high is None else (float(low), float(high))
        return cls(titles.get(name, name), prediction.get("predicted_age"), interval)

    @property
    def values(self) -> list[float]:
        values = [*([] if self.interval is None else self.interval), self.predicted]
        return [value for value in values if value is not None]

    @property
    def words(self) -> str:
        if self.predicted is None:
            return "not known"
        if self.interval is None:
            return f"{self.predicted:.1f}"
        return f"{self.predicted:.1f} ({self.interval[0]:.1f} to {self.interval[1]:.1f})"


def _axis_range(ages: Sequence[float]) -> tuple[int, int]:
    """Whole tens around the ages; at least two decades, so that small errors look small."""
    start = floor((min(ages, default=20) - 2) / 10) * 10
    stop = ceil((max(ages, default=80) + 2) / 10) * 10
    return start, max(stop, start + 20)


def _tick_step(span: int) -> int:
    return next((step for step in (5, 10, 20, 50) if span / step <= 9), 100)
