"""A person among the reference people of every age, and over several scans: SVG text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from bidsapp.reporting.reference import Curves
from bidsapp.reporting.svg import Svg

PERSON, LINE, GRID, QUIET = "#9c3d00", "#00507f", "#e2e2e2", "#444"
BANDS = "#d5e7f5", "#a3cbe9"
_WIDTH, _HEIGHT = 360, 262
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 30, 214


@dataclass(frozen=True)
class Point:
    """One scan: age at the scan in years (or its number), value, interval, and its name."""

    age: float
    value: float
    interval: tuple[float, float] | None = None
    name: str = ""


class _Axes:
    """From years and values to places in a picture, with a grid."""

    def __init__(
        self, svg: Svg, ages: tuple[float, float], values: tuple[float, float],
        steps: tuple[float, float],
    ) -> None:  # fmt: skip
        self.svg, self.ages, self.values = svg, ages, values
        for tick in _ticks(ages, steps[0]):
            svg.line(self.x(tick), _TOP, self.x(tick), _BOTTOM, GRID)
            svg.text(self.x(tick), _BOTTOM + 17, f"{tick:g}", anchor="middle", color=QUIET)
        for tick in _ticks(values, steps[1]):
            svg.line(_LEFT, self.y(tick), _WIDTH - _RIGHT, self.y(tick), GRID)
            svg.text(_LEFT - 6, self.y(tick) + 5, f"{tick:g}", anchor="end", color=QUIET)

    def x(self, age: float) -> float:
        first, last = self.ages
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (age - first) / (last - first)

    def y(self, value: float) -> float:
        first, last = self.values
        return _BOTTOM - (_BOTTOM - _TOP) * (value - first) / (last - first)

    def places(self, ages: Iterable[float], values: Iterable[float]) -> list[tuple[float, float]]:
        return [(self.x(age), self.y(value)) for age, value in zip(ages, values)]

    def equal(self) -> None:
        """Draw the dashed line where both axes are the same number of years."""
        low, high = (pick(pair) for pick, pair in zip((max, min), zip(self.ages, self.values)))
        if low < high:
            self.svg.line(self.x(low), self.y(low), self.x(high), self.y(high), QUIET, 1, True)

    def person(self, points: Sequence[Point]) -> None:
        """Draw the scans of the person, joined in the order of age."""
        points = sorted(points, key=lambda point: point.age)
        self.svg.polyline(((self.x(p.age), self.y(p.value)) for p in points), PERSON, 2)
        for point in points:
            x = self.x(point.age)
            if point.interval is not None:
                low, high = point.interval
                self.svg.line(x, self.y(low), x, self.y(high), PERSON, 2)
            self.svg.dot(x, self.y(point.value), PERSON)


def lifespan_figure(
    title: str, curves: Curves, points: Sequence[Point], equal: bool = False
) -> str:
    """Draw the scans of a person over percentiles of the reference people.

    Parameters
    ----------
    title
        The quantity with its unit.
    points
        Scans with a known age.
    equal
        Draw where the value equals the age.

    Returns
    -------
    str
        An SVG, 360 units wide. Light band: percentiles 5 to 95; dark band: 25 to 75; line: the
        median.
    """
    ages = _tens([*curves.ages, *(point.age for point in points)])
    values = [*curves.values.ravel(), *(value for point in points for value in _values(point))]
    axes = _axes(title, "age (years)", points, ages, values, 20)
    outer_low, low, median, high, outer_high = curves.values
    for color, (lower, upper) in zip(BANDS, ((outer_low, outer_high), (low, high))):
        around = axes.places(curves.ages, lower) + axes.places(curves.ages, upper)[::-1]
        axes.svg.area(around, color)
    axes.svg.polyline(axes.places(curves.ages, median), LINE, 2)
    if equal:
        axes.equal()
    axes.person(points)
    return axes.svg.written()


def sessions_figure(points: Sequence[Point], ages_known: bool) -> str:
    """Draw predicted ages of several scans with their intervals.

    Parameters
    ----------
    points
        In the order of the scans; without known ages, `age` counts them from 1.

    Returns
    -------
    str
        An SVG, 360 units wide; with a dashed line where prediction and age are equal.
    """
    values = [value for point in points for value in _values(point)]
    ages = [point.age for point in points]
    below = "age at the scan (years)" if ages_known else "number of the scan"
    around = [min(ages) - 0.5, max(ages) + 0.5]
    title = "Predicted age (years)"
    axes = _axes(title, below, points, around, values + ages * ages_known,
                 _step(around) if ages_known else 1)  # fmt: skip
    if ages_known:
        axes.equal()
    axes.person(points)
    return axes.svg.written()


def _axes(
    title: str, below: str, points: Sequence[Point], ages: Sequence[float],
    values: Sequence[float], age_step: float,
) -> _Axes:  # fmt: skip
    said = "; ".join(f"{p.name}{': ' * bool(p.name)}{p.value:.3g} at {p.age:.3g}" for p in points)
    svg = Svg(_WIDTH, _HEIGHT, f"{title} by {below}. This person: {said or 'not known'}.")
    svg.text(2, 17, title, bold=True)
    svg.text((_WIDTH + _LEFT) / 2, _HEIGHT - 10, below, anchor="middle", color=QUIET)
    step = _step(values)
    low, high = floor(min(values) / step) * step, ceil(max(values) / step) * step
    return _Axes(svg, (min(ages), max(ages)), (low, max(high, low + step)), (age_step, step))


def _values(point: Point) -> tuple[float, ...]:
    return (point.value, *(point.interval or ()))


def _tens(ages: Sequence[float]) -> tuple[float, float]:
    return floor(min(ages) / 10) * 10, ceil(max(ages) / 10) * 10


def _step(values: Sequence[float]) -> float:
    """1, 2 or 5 of a power of ten, so that there are three to six ticks."""
    rough = max(max(values) - min(values), 1e-6) / 5
    power = 10.0 ** floor(log10(rough))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)


def _ticks(ends: tuple[float, float], step: float) -> list[float]:
    first, last = ceil(ends[0] / step - 1e-9), floor(ends[1] / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]
