"""Mosaics of cuts through a volume: which cuts, where they stand, and what is drawn on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

Array = npt.NDArray[Any]

_WIDTH, _DPI = 14.0, 100  # of a mosaic: inches, pixels per inch
_LEGEND = 0.3  # inches per line of the legend
_LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Cut:
    """One slice of a volume inside a box, as it is shown: rows run up, columns to the right."""

    axis: int
    index: int
    box: tuple[slice, slice, slice]
    zooms: tuple[float, float, float]
    side: str  # for a sagittal cut: "left", "right" or "" at the midline

    def of(self, volume: Array) -> Array:
        """The slice of `volume` that is shown, (rows, columns)."""
        where: list[slice | int] = list(self.box)
        where[self.axis] = self.index
        return volume[tuple(where)].T

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in mm."""
        lengths = [(s.stop - s.start) * z for s, z in zip(self.box, self.zooms, strict=True)]
        width, height = (length for a, length in enumerate(lengths) if a != self.axis)
        return width, height


def views(
    brain: Array, zooms: Sequence[float], count: int, margin: float
) -> tuple[list[Cut], list[Cut], list[Cut]]:
    """`count` axial, coronal and sagittal cuts, evenly through the extent of `brain`.

    The shown box is the brain's and `margin` mm around it: wide enough to see what a mask has
    left out, narrow enough to leave a long neck away.
    """
    x_mm, y_mm, z_mm = (float(z) for z in zooms)
    extents = [extent(brain, axis) for axis in range(3)]
    pads = [ceil(margin / z) for z in (x_mm, y_mm, z_mm)]
    x, y, z = (
        slice(max(0, first - pad), min(length, last + 1 + pad))
        for (first, last), pad, length in zip(extents, pads, brain.shape, strict=True)
    )
    middle = (extents[0][0] + extents[0][1]) / 2
    near_midline = 5.0 / x_mm

    def side(index: int) -> str:
        if abs(index - middle) < near_midline:
            return ""
        return "left" if index < middle else "right"

    def row(axis: int) -> list[Cut]:
        first, last = extents[axis]
        places = np.linspace(first, last, count + 2)[1:-1].round().astype(int)
        return [Cut(axis, int(i), (x, y, z), (x_mm, y_mm, z_mm), side(int(i))) for i in places]

    return row(2), row(1), row(0)


def extent(mask: Array, axis: int) -> tuple[int, int]:
    """First and last index along `axis` where `mask` is true; the whole axis if nowhere."""
    others = tuple(a for a in range(3) if a != axis)
    where = np.flatnonzero(mask.any(axis=others))
    return (int(where[0]), int(where[-1])) if len(where) else (0, mask.shape[axis] - 1)


def foreground(image: Array) -> Array:
    """Voxels that are not air, roughly."""
    finite = np.nan_to_num(image)
    return finite > 0.1 * np.percentile(finite, 99)


def window(image: Array, brain: Array) -> tuple[float, float]:
    """Intensities shown black and white: from those of the brain, so that fat may saturate."""
    values = image[brain] if brain.any() else image
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (1, 99.5)))
    low = min(low, 0.0)
    return low, max(high, low + 1e-6)


class Mosaic:
    """A black picture with one row of panels per view, each row as wide as the picture.

    All panels share one pair of axes, in inches from the lower left corner: making axes is what
    takes matplotlib's time.
    """

    def __init__(self, views: Sequence[Sequence[Cut]], legend: Sequence[tuple[str, str]] = ()):
        strip = _LEGEND * ceil(len(legend) / _LEGEND_COLUMNS)
        scales = [_WIDTH / sum(cut.size[0] for cut in row) for row in views]
        heights = [scale * max(cut.size[1] for cut in row) for row, scale in zip(views, scales)]
        bottom = strip + sum(heights)
        self.figure = Figure(figsize=(_WIDTH, bottom), dpi=_DPI, facecolor="black")
        axes = self.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        self.panels = []
        for row, scale, height in zip(views, scales, heights, strict=True):
            bottom -= height
            left = 0.0
            for cut in row:
                width, own = (scale * side for side in cut.size)
                place = (left, bottom + (height - own) / 2, width, own)
                self.panels.append(Panel(axes, cut, place))
                left += width
        axes.set(xlim=(0, _WIDTH), ylim=(0, strip + sum(heights)), autoscale_on=False)
        if legend:
            self.figure.legend(
                handles=[Patch(color=color, label=name) for name, color in legend],
                loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, borderpad=0.2,
                labelcolor="white", fontsize=13,
            )  # fmt: skip

    def png(self, colored: bool = True) -> bytes:
        """PNG bytes in 64 greys or 256 colours: as good to look at, half the size.

        Maximum coverage keeps rare colours, as those of a legend, within a few steps of the truth.
        """
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        if not colored:
            picture = picture.convert("L").point(lambda level: int(level) & 0b11111100)
        else:
            method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
            picture = picture.quantize(256, method=method, dither=dither)
        stream = io.BytesIO()
        picture.save(stream, "png", optimize=True)  # writes no date, program name or the like
        return stream.getvalue()


@dataclass(frozen=True)
class Panel:
    """The place of one cut in a mosaic: left, bottom, width, height in inches."""

    axes: Axes
    cut: Cut
    place: tuple[float, float, float, float]

    def show(self, volume: Array, low: float, high: float) -> None:
        """Draw the scan, and the letters that say which side is which."""
        self._image(np.nan_to_num(self.cut.of(volume)), "bilinear", vmin=low, vmax=high)
        first, last = ("P", "A") if self.cut.axis == 0 else ("L", "R")
        middle = self.cut.side if self.cut.axis == 0 else ""
        left, bottom, width, _ = self.place
        for text, x in ((first, 0.04), (middle, 0.5), (last, 0.96)):
            self.axes.text(
                left + x * width, bottom + 0.05, text, color="white", fontsize=11, ha="center",
                path_effects=[withStroke(linewidth=2.5, foreground="black")],
            )  # fmt: skip

    def tint(self, labels: Array, colors: Mapping[int, str], opacity: float = 0.25) -> None:
        """Lay the colour of each label over its voxels."""
        here = self.cut.of(labels)
        picture = np.zeros((*here.shape, 4), np.float32)
        for label, color in colors.items():
            picture[here == label] = to_rgba(color, opacity)
        self._image(picture, "nearest")

    def outline(self, values: Array, level: float, color: str, width: float = 0.9) -> None:
        """Draw the line where the slice `values` (rows, columns) crosses `level`."""
        values = np.pad(values.astype(np.float32), 1)  # so that lines close at the border
        if not values.min() < level < values.max():
            return
        rows, columns = (n - 2 for n in values.shape)
        left, bottom, across, up = self.place
        x = left + (np.arange(-1, columns + 1) + 0.5) * across / columns
        y = bottom + (np.arange(-1, rows + 1) + 0.5) * up / rows
        self.axes.contour(x, y, values, levels=[level], colors=[color], linewidths=width)

    def heat(self, values: Array, shade: Callable[[Array], Array]) -> None:
        """Lay a map over the scan; `shade` gives the colours (RGBA) of values."""
        self._image(shade(self.cut.of(values)), "nearest")

    def through(self, seen: Array, shade: Callable[[Array], Array]) -> None:
        """Lay over it what is seen through the whole volume, along the axis of the cut."""
        self._image(shade(self._boxed(seen)), "bilinear")

    def outline_through(self, seen: Array) -> None:
        """Draw the outline of what is seen through the whole volume."""
        self.outline(self._boxed(seen), 0.5, "#bbbbbb")

    def _boxed(self, seen: Array) -> Array:
        box = [side for axis, side in enumerate(self.cut.box) if axis != self.cut.axis]
        return seen[tuple(box)].T

    def _image(self, picture: Array, interpolation: str, **window: Any) -> None:
        left, bottom, width, height = self.place
        self.axes.imshow(
            picture, cmap="gray", interpolation=interpolation, origin="lower", aspect="auto",
            extent=(left, left + width, bottom, bottom + height), **window,
        )  # fmt: skip
