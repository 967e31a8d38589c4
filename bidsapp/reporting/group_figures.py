"""Figures of the group level: tables in, SVG text out; no files.

Groups are told apart by colour and by shape; those beyond the marks there are share one. Whoever
is left out of the fits is a grey cross. The same tables give the same text.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bidsapp.reporting.figures import COLORS

Tables = Mapping[str, pd.DataFrame]
"""Tables by the title of the model. Rows are scans, with ``age``, ``predicted_age``,
``brain_age_gap``, ``corrected_gap`` (years), ``group``, ``role``, ``is_reference``, ``tested``."""

BLUE, ORANGE, GREEN, SKY, PINK, AMBER = (COLORS[i] for i in (5, 3, 2, 1, 4, 0))
MARKS = list(zip((BLUE, ORANGE, GREEN, PINK, AMBER, SKY), "o^sDvP", strict=True))
LEFT_OUT, EVERYBODY, UNKNOWN = "left out", "everybody", "group not known"
OTHERS = "other groups"
"""Groups that have no mark of their own."""
_SIDES = {"brain_age_gap": "before correction", "corrected_gap": "after correction"}
_QUIET, _LINE = "#555555", "#d4d4d4"
_WIDTH = 8.6  # inches
_MANY = 3000  # points beyond which they become a picture inside of the SVG
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "brainage",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": "#1a1a1a",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "legend.frameon": False,
    "figure.dpi": 100,
}


def predicted_figure(tables: Tables) -> str:
    """Predicted against chronological age, a panel per model.

    The dashed line is where both are equal; the solid one is fitted to the reference.
    """
    with _figure(len(tables), 2, 4.1) as (figure, panels, written):
        groups = _groups(tables)
        for axes, (title, table) in zip(panels, tables.items()):
            known = table[["age", "predicted_age"]].dropna()
            low, high = _limits(known.to_numpy())
            axes.axline((low, low), slope=1, color=_QUIET, linestyle="--", linewidth=1, zorder=1)
            _points(axes, table, "age", "predicted_age", groups)
            _line(axes, table[_is_fitted(table)], "age", "predicted_age")
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=title)
            axes.set(xlabel="Chronological age (years)", ylabel="Predicted age (years)")
        _legend(figure, tables, groups)
    return written()


def gap_figure(tables: Tables, decades: Tables) -> str:
    """Gap against age before and after correction, a row per model.

    `decades` holds what is left in each decade of the reference: ``age_low``, ``age_high``,
    ``mean``, ``low``, ``high``.
    """
    count = len(_sides(tables)) * len(tables)
    with _figure(count, 2, _height(tables)) as (figure, panels, written):
        groups = _groups(tables)
        for axes, title, table, column in _gap_panels(tables, panels):
            axes.set_xlabel("Chronological age (years)")
            axes.set_ylim(_limits(table[list(_SIDES)].to_numpy(), 0.06))
            _points(axes, table, "age", column, groups)
            if column == "brain_age_gap":
                _line(axes, table[_is_fitted(table)], "age", column)
            else:
                _decade_means(axes, decades.get(title))
        _legend(figure, tables, groups)
    return written()


def group_figure(tables: Tables) -> str:
    """Gap by group before and after correction: every person, mean and its 95 % interval."""
    count = len(_sides(tables)) * len(tables)
    with _figure(count, 2, _height(tables)) as (_, panels, written):
        groups = [name for name in _groups(tables) if name != LEFT_OUT]
        for axes, _title, table, column in _gap_panels(tables, panels):
            tested = table[table["tested"]]
            axes.set_ylim(_limits(tested[list(_SIDES)].to_numpy(), 0.06))
            people = tested[(tested["role"] != "repeat") & tested[column].notna()]
            label, size = _label(people, groups), _size(len(people))
            sizes = [int((label == name).sum()) for name in groups]
            for place, name in enumerate(groups):
                values = people.loc[label == name, column].to_numpy()
                _strip(axes, place, values, size, _look(name, groups))
            ticks = [f"{name}\nn = {n}" for name, n in zip(groups, sizes)]
            axes.set_xticks(range(len(groups)), ticks)
            axes.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    return written()


def _gap_panels(
    tables: Tables, panels: Sequence[Axes]
) -> Iterator[tuple[Axes, str, pd.DataFrame, str]]:
    """A row of panels per model, a column per gap: axes, model, its table, name of the gap."""
    places = iter(panels)
    for title, table in tables.items():
        for column, side in _sides(tables).items():
            axes = next(places)
            axes.axhline(0, color=_QUIET, linestyle="--", linewidth=1, zorder=1)
            axes.set(title=f"{title}, {side}", ylabel="Brain-age gap (years)")
            yield axes, title, table, column


def forest_figure(rows: pd.DataFrame, title: str, axis: str) -> str:
    """Effects with their intervals, one below the other.

    Parameters
    ----------
    rows
        ``label``, ``heading`` (rows of one heading stand together), ``effect``, ``low``,
        ``high``, ``words`` (figures, written to the right), ``is_model``.
    """
    headings = list(dict.fromkeys(rows["heading"]))
    lines = len(rows) + len(headings)
    height = 0.8 + 0.27 * lines
    with _figure(1, 1, height) as (_, panels, written):
        axes = panels[0]
        place = 0.0
        ticks, labels = [], []
        for heading in headings:
            axes.text(-0.01, place, heading, transform=axes.get_yaxis_transform(), ha="right",
                      va="center", weight="bold")  # fmt: skip
            place += 1
            for row in rows[rows["heading"] == heading].itertuples():
                color, marker = (BLUE, "o") if row.is_model else (ORANGE, "s")
                axes.plot([row.low, row.high], [place, place], color=color, linewidth=2.2)
                axes.plot(row.effect, place, marker, color=color, markersize=6, mec="white")
                axes.text(1.02, place, row.words, transform=axes.get_yaxis_transform(),
                          va="center")  # fmt: skip
                ticks.append(place)
                labels.append(row.label)
                place += 1
        axes.axvline(0, color=_QUIET, linestyle="--", linewidth=1, zorder=1)
        axes.set_yticks(ticks, labels)
        axes.tick_params(axis="y", length=0, labelcolor="#1a1a1a")
        axes.set(ylim=(place - 0.4, -0.6), xlabel=axis, title=title)
        axes.margins(x=0.08)
        axes.grid(axis="x", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    return written()


def calibration_figure(tables: Tables) -> str:
    """Share of the reference inside of the intervals against the share that should be.

    Tables have ``interval`` ("model" or "local"), ``nominal``, ``observed``, ``low``, ``high``.
    """
    looks = {
        "model": ("of the model", ORANGE, "s", -0.006),
        "local": ("calibrated locally", BLUE, "o", 0.006),
    }
    with _figure(len(tables), 2, 3.6) as (_, panels, written):
        for axes, (title, table) in zip(panels, tables.items()):
            axes.axline((0, 0), slope=1, color=_QUIET, linestyle="--", linewidth=1, zorder=1)
            for kind, (name, color, marker, shift) in looks.items():
                rows = table[(table["interval"] == kind) & table["observed"].notna()]
                if rows.empty:
                    continue
                x = rows["nominal"] + shift
                axes.vlines(x, rows["low"], rows["high"], color=color, linewidth=1.6)
                axes.plot(x, rows["observed"], marker=marker, color=color, mec="white",
                          markersize=6.5, linewidth=1, label=name)  # fmt: skip
            axes.set(title=title, xlabel="Share the interval should hold", xlim=(0.4, 1.02),
                     ylim=(-0.02, 1.02), ylabel="Share it holds")  # fmt: skip
            axes.legend(title="Intervals", loc="lower right", alignment="left")
    return written()


def agreement_figure(pairs: Mapping[str, Any]) -> str:
    """Bland-Altman plots of the gap, a panel per model; values are `BlandAltman`."""
    with _figure(len(pairs), 2, 3.4) as (_, panels, written):
        for axes, (title, pair) in zip(panels, pairs.items()):
            axes.axhline(0, color=_LINE, linewidth=1, zorder=0)
            axes.plot(pair.mean, pair.difference, "o", color=BLUE, alpha=0.7, mec="white",
                      markersize=5.5, rasterized=len(pair.mean) > _MANY)  # fmt: skip
            levels = (
                (pair.bias, pair.bias_low, pair.bias_high, "mean"),
                (pair.upper, pair.upper_low, pair.upper_high, "upper limit"),
                (pair.lower, pair.lower_low, pair.lower_high, "lower limit"),
            )
            for level, low, high, name in levels:
                axes.axhline(level, color=ORANGE, linestyle="-" if name == "mean" else "--")
                axes.axhspan(low, high, color=ORANGE, alpha=0.12, linewidth=0)
                axes.text(1.01, level, f"{name}\n{_signed(level)}", va="center",
                          transform=axes.get_yaxis_transform(), color=_QUIET)  # fmt: skip
            axes.set(title=title, xlabel="Mean gap of two scans (years)",
                     ylabel="Second minus first (years)")  # fmt: skip
    return written()


# --- marks ---


def _points(axes: Axes, table: pd.DataFrame, x: str, y: str, groups: Sequence[str]) -> None:
    label = _label(table, groups)
    size = _size(len(table))
    alpha = 0.75 if len(table) < 400 else 0.5
    for name in groups:
        rows = table[label == name]
        color, marker = _look(name, groups)
        lone = name == LEFT_OUT
        axes.scatter(
            rows[x], rows[y], s=size, color=color, marker=marker, alpha=alpha,
            linewidths=1 if lone else 0.4 if size > 5 else 0, edgecolors=None if lone else "white",
            rasterized=len(table) > _MANY, zorder=2 if lone else 3,
        )  # fmt: skip


def _strip(axes: Axes, place: int, values: np.ndarray, size: float, look: tuple[str, str]) -> None:
    """All values of a group side by side, their mean and its 95 % interval."""
    if not len(values):
        return
    color, marker = look
    # spread evenly, not at random: the same picture in every run
    aside = ((np.arange(len(values)) * 0.61803) % 1 - 0.5) * min(0.5, 0.06 * len(values))
    axes.scatter(
        place + aside - 0.12, values, s=size, color=color, marker=marker, alpha=0.6,
        linewidths=0.4 if size > 5 else 0, edgecolors="white", rasterized=len(values) > _MANY,
    )  # fmt: skip
    mean = values.mean()
    if len(values) > 1:
        half = _t_975(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        axes.plot([place + 0.32] * 2, [mean - half, mean + half], color="black", linewidth=1.8)
    axes.plot(place + 0.32, mean, "D", color="black", markersize=6, mec="white")


def _line(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    known = table[[x, y]].dropna().to_numpy()
    if len(known) < 3 or np.ptp(known[:, 0]) == 0:
        return
    slope, intercept = np.polyfit(known[:, 0], known[:, 1], 1)
    ends = np.array([known[:, 0].min(), known[:, 0].max()])
    axes.plot(ends, intercept + slope * ends, color="black", linewidth=1.6, zorder=4)


def _decade_means(axes: Axes, decades: pd.DataFrame | None) -> None:
    for row in () if decades is None else decades.itertuples():
        middle = (row.age_low + row.age_high) / 2
        if np.isfinite(row.low):
            axes.plot([middle] * 2, [row.low, row.high], color="black", linewidth=1.6, zorder=4)
        axes.plot(middle, row.mean, "D", color="black", markersize=5, mec="white", zorder=5)


def _size(points: int) -> float:
    """Area of a mark, so that many of them can be told apart."""
    return 26 if points < 400 else 10 if points < _MANY else 3


# --- groups ---


def _label(table: pd.DataFrame, groups: Sequence[str] = ()) -> pd.Series:
    """What each scan is drawn as; where `groups` are given, one of them."""
    if table["group"].notna().any():
        label = table["group"].astype(object).where(table["group"].notna(), UNKNOWN).astype(str)
    else:
        label = pd.Series(EVERYBODY, index=table.index)
    label = label.where(table["tested"], LEFT_OUT)
    return label.where(label.isin([*groups, LEFT_OUT]), OTHERS) if groups else label


def _groups(tables: Tables) -> list[str]:
    """The reference first, then by size; who is left out last. No more than there are marks."""
    sizes: dict[str, int] = {}
    reference: dict[str, bool] = {}
    for table in tables.values():
        label = _label(table)
        for name, number in label.value_counts().items():
            sizes[str(name)] = sizes.get(str(name), 0) + int(number)
            is_reference = table.loc[label == name, "is_reference"].all()
            reference[str(name)] = bool(is_reference)
    last = (UNKNOWN, LEFT_OUT)
    names = [name for name in sizes if name not in last]
    names.sort(key=lambda name: (not reference[name], -sizes[name], name))
    room = len(MARKS) - (UNKNOWN in sizes)
    if len(names) > room:
        names = [*names[: room - 1], OTHERS]
    return names + [name for name in last if name in sizes]


def _look(name: str, groups: Sequence[str]) -> tuple[str, str]:
    if name == LEFT_OUT:
        return "#888888", "x"
    return MARKS[groups.index(name)]


def _is_fitted(table: pd.DataFrame) -> pd.Series:
    return table["tested"] & table["is_reference"]


def _legend(figure: Figure, tables: Tables, groups: Sequence[str]) -> None:
    reference = {
        name
        for table in tables.values()
        for name in groups
        if (of := table.loc[_label(table, groups) == name, "is_reference"]).all() and len(of)
    }
    handles = []
    for name in groups:
        color, marker = _look(name, groups)
        words = f"{name} (reference)" if name in reference and name not in (LEFT_OUT,) else name
        handles.append(Line2D([], [], color=color, marker=marker, linestyle="", label=words))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))


# --- canvas ---


@contextmanager
def _figure(
    count: int, columns: int, height: float
) -> Iterator[tuple[Figure, list[Axes], Callable[[], str]]]:
    """A figure of `count` panels of `height` inches, and the function that writes it."""
    columns = min(columns, count)
    rows = -(-count // columns)
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        width = _WIDTH if columns > 1 or height < 3 else 5.2
        figure = Figure(figsize=(width, height * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        panels = list(grid.flat)
        for spare in panels[count:]:
            spare.set_visible(False)
        yield figure, panels[:count], text.getvalue
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})


def _sides(tables: Tables) -> dict[str, str]:
    """Columns of gaps and what to call them; without the corrected one where there is none."""
    corrected = any(table["corrected_gap"].notna().any() for table in tables.values())
    return _SIDES if corrected else {"brain_age_gap": "not corrected"}


def _height(tables: Tables) -> float:
    """Of a row of panels: lower where there are many."""
    return 3.1 if len(tables) == 1 else 2.6


def _limits(values: np.ndarray, margin: float = 0.04) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    pad = margin * max(np.ptp(known), 1)
    return float(known.min() - pad), float(known.max() + pad)


def _t_975(df: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, df))


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
