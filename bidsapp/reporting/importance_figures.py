"""Figures of importance maps: glass brain, cuts on the template, bars of regions.

Volumes are (X, Y, Z) in RAS axes, as in `bidsapp.reporting.figures`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from bidsapp.reporting.mosaic import Array, Mosaic, views, window
from bidsapp.reporting.svg import Svg

MOST = 15
"""Regions in a bar chart."""
SHOWN_FROM = 60.0
"""Percentile of the brain's voxels from which a map without a sign is coloured."""
OLDER, YOUNGER = "#D55E00", "#0072B2"


@dataclass(frozen=True)
class MapSection:
    """What a report shows of one map.

    Attributes
    ----------
    title
        Such as "Noise, WSSA".
    words
        Sentences, the first about what the map shows.
    picture
        PNG bytes of `map_figure`.
    bars
        SVG of `region_bars`; empty without an atlas.
    intervals
        Whether these have intervals.
    """

    title: str
    words: Sequence[str]
    picture: bytes
    bars: str = ""
    intervals: bool = False

    @property
    def picture_uri(self) -> str:
        """For a page that needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"

    @property
    def bars_uri(self) -> str:
        """Likewise."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.bars.encode()).decode()}"


@dataclass(frozen=True)
class Shade:
    """From the values of a map to colours (RGBA).

    Where there is a sign, orange makes a brain look older and blue younger.
    """

    low: float
    high: float
    signed: bool
    unit: str = ""

    @classmethod
    def of(cls, values: Array, brain: Array, unit: str) -> Shade:
        """Fit for a map: bright from `SHOWN_FROM` % of the brain's voxels on."""
        inside = values[brain & np.isfinite(values)]
        if not inside.size:
            return cls(0, 1, False, unit)
        if inside.min() < 0:
            high = float(np.percentile(np.abs(inside), 99.5))
            return cls(0.0, high or 1.0, True, unit)
        low, high = (float(v) for v in np.percentile(inside, (SHOWN_FROM, 99.8)))
        return cls(low, max(high, low + 1e-6), False, unit)

    def __call__(self, values: Array) -> Array:
        """(...) -> (..., 4)."""
        size = np.abs(values) if self.signed else values
        share = np.clip((size - self.low) / (self.high - self.low), 0, 1)
        if self.signed:
            # dark in the middle and of even steps (Crameri 2018); orange is at its start
            found = np.array(colormaps["managua"](0.5 - np.sign(values) * (0.1 + 0.4 * share)))
        else:
            found = np.array(colormaps["inferno"](0.25 + 0.75 * share))
        found[..., 3] = np.where(share > 0, 0.35 + 0.6 * share, 0)
        return found

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Text and colour of some values."""
        unit = f" {self.unit}" if self.unit else ""
        shares = (0.3, 1.0) if self.signed else (0.05, 0.5, 1.0)
        values = [self.low + share * (self.high - self.low) for share in shares]
        signs = (1, -1) if self.signed else (1,)
        shown = [sign * value for sign in signs for value in values]
        return [
            (f"{value:{'+' if self.signed else ''}.2g}{unit}",
             to_hex(tuple(self(np.array(value))[:3])))
            for value in shown
        ]  # fmt: skip


def map_figure(
    values: Array, template: Array, zooms: Sequence[float], unit: str = "", columns: int = 7
) -> bytes:
    """Draw a map: highest values seen through the brain from the side, front and top, then cuts.

    Parameters
    ----------
    values : array (X, Y, Z)
        Importance; 0 outside of the brain.
    template : array (X, Y, Z)
        The template's brain on the same grid, 0 outside of it.
    zooms : three floats
        Size of a voxel in mm.
    unit : str
        Such as "years".
    columns : int
        Number of cuts along each axis.

    Returns
    -------
    bytes
        A PNG.
    """
    if values.ndim != 3 or values.shape != template.shape:
        raise ValueError(f"a map of {values.shape} voxels, a template of {template.shape}")
    brain: Array = template > 0
    shade = Shade.of(values, brain, unit)
    low, high = window(template, brain)
    cuts = views(brain, zooms, columns, margin=4.0)
    glass = [views(brain, zooms, 1, margin=4.0)[n][0] for n in (2, 1, 0)]
    mosaic = Mosaic([glass, *cuts], shade.legend)
    for number, panel in enumerate(mosaic.panels):
        if number < len(glass):
            axis = panel.cut.axis
            panel.show(np.zeros_like(template), 0, 1)
            panel.through(_strongest(values, axis), shade)
            panel.outline_through(np.any(brain, axis))
        else:
            panel.show(template, low, high)
            panel.heat(values, shade)
    return mosaic.png()


def _strongest(values: Array, axis: int) -> Array:
    """The value of the largest size along an axis."""
    where = np.expand_dims(np.abs(values).argmax(axis), axis)
    return np.take_along_axis(values, where, axis).squeeze(axis)


def region_bars(rows: Sequence[Mapping[str, Any]], unit: str = "") -> str:
    """Draw the most important regions of a table, with their intervals where there are any.

    Parameters
    ----------
    rows : sequence of mappings
        From `bidsapp.importance.regions.region_table`, the most important first.
    unit : str
        Of the importance.

    Returns
    -------
    str
        An SVG, 560 units wide.
    """
    shown = list(rows[:MOST])
    ends = [row.get(k) for row in shown
            for k in ("mean_importance", "importance_low", "importance_high")]  # fmt: skip
    values = [0.0, *(float(v) for v in ends if v is not None)]
    low, high = min(values), max(values)
    width, left, step, top = 560, 250, 22, 8
    scale = (width - left - 60) / ((high - low) or 1.0)
    said = "; ".join(f"{_name(row)} {row['mean_importance']:.3g}" for row in shown)
    svg = Svg(width, top + step * len(shown) + 30, f"Most important regions: {said}.")

    def x(value: float) -> float:
        return left + (value - low) * scale

    for number, row in enumerate(shown):
        y, mean = top + step * number + 11, float(row["mean_importance"])
        svg.text(left - 10, y + 5, _name(row), anchor="end")
        svg.line(x(0), y, x(mean), y, OLDER if mean >= 0 else YOUNGER, width=12)
        if row.get("importance_low") is not None:
            svg.line(x(float(row["importance_low"])), y, x(float(row["importance_high"])), y,
                     "#222", width=1.5)  # fmt: skip
        end = max([mean, float(row.get("importance_high") or mean), 0.0])
        svg.text(x(end) + 6, y + 5, f"{mean:.3g}", color="#444")
    svg.line(x(0), top, x(0), top + step * len(shown), "#888")
    below = top + step * len(shown) + 20
    svg.text(x(0), below, f"mean importance{f', {unit}' if unit else ''}", color="#444")
    return svg.written()


def _name(row: Mapping[str, Any]) -> str:
    side = {"L": " left", "R": " right"}.get(str(row.get("hemisphere")), "")
    return f"{row['region']}{side}"
