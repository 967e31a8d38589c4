"""The brain-age gap as a curve of age and site: its design and its fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from statsmodels.robust.norms import HuberT
from statsmodels.robust.scale import mad

from bidsapp.statistics.labels import words

Floats = NDArray[np.float64]

WEAKEST_SLOPE = 0.5
"""Of predicted on chronological age: below, a correction writes the age back (Butler 2021)."""
FEWEST_FOR_SLOPE = 30
"""People whom a site needs for a slope of its own."""
_ITERATIONS = 200
_RANK = 1e-7
"""What is smaller than that, relatively, is 0."""


@dataclass(frozen=True)
class Data:
    """Scans with both ages.

    Attributes
    ----------
    t
        (n,) years, age from the centre.
    gap
        (n,) years.
    site
        (n,) words, or None for one curve.
    person
        (n,) codes.
    """

    t: Floats
    gap: Floats
    site: NDArray[np.object_] | None
    person: NDArray[np.intp]

    def where(self, rows: NDArray[np.bool_]) -> Data:
        """Some of the scans, by (n,) bool."""
        site = None if self.site is None else self.site[rows]
        return Data(self.t[rows], self.gap[rows], site, self.person[rows])

    def at(self, sites: Iterable[str]) -> Data:
        """The scans of some sites; without sites nobody is at one."""
        return self.where(np.isin(words(self.site, self.t.size), list(sites)))

    @property
    def people(self) -> int:
        """Number of different persons."""
        return len(np.unique(self.person))

    @property
    def sites(self) -> dict[str, int]:
        """Scans by site; empty without sites."""
        names, counts = np.unique([] if self.site is None else self.site, return_counts=True)
        return dict(zip(map(str, names), map(int, counts)))


@dataclass(frozen=True)
class Curve:
    """A polynomial in age, with intercepts and slopes by site.

    Attributes
    ----------
    sites
        Scans of the reference at each site, each with its intercept.
    own_slope
        Sites with a slope of their own.
    shared_slope
        Whether the other sites have a common slope; they get the mean one if not.
    """

    degree: int
    sites: Mapping[str, int]
    own_slope: tuple[str, ...] = ()
    shared_slope: bool = True

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        names = [f"intercept[{site}]" for site in self.sites] or ["intercept"]
        names += ["age"] * self.shared_slope + [f"age[{site}]" for site in self.own_slope]
        return (*names, *(f"age^{power}" for power in range(2, self.degree + 1)))

    def design(self, t: Floats, site: ArrayLike | None) -> Floats:
        """(n, terms); a site that is not of the curve gets the mean over its sites."""
        intercepts, slopes = self._by_site()
        code = pd.Index(list(self.sites), dtype=object).get_indexer(
            words(site, len(t))
        )  # -1, the last row: unseen
        powers = [t[:, None] ** power for power in range(2, self.degree + 1)]
        return np.hstack([intercepts[code], t[:, None] * slopes[code], *powers])

    def within(self, sites: Mapping[str, int]) -> Curve:
        """The same where some sites are missing."""
        own = tuple(site for site in self.own_slope if site in sites)
        shared = not own or (self.shared_slope and len(own) < len(sites))
        return Curve(self.degree, sites, own, shared)

    def _by_site(self) -> tuple[Floats, Floats]:
        """Weights of intercepts and of slopes, a row per site and one for sites unseen."""
        if not self.sites:
            return np.ones((1, 1)), np.ones((1, 1))
        share = np.array(list(self.sites.values())) / sum(self.sites.values())
        own = [list(self.sites).index(site) for site in self.own_slope]
        if self.shared_slope:
            others = np.eye(1, 1 + len(own))
        else:
            others = share[None, own] / share[own].sum()
        slopes = np.repeat(others, len(share), axis=0)
        slopes[own] = np.eye(others.size)[int(self.shared_slope) :]
        return np.vstack([np.eye(len(share)), share]), np.vstack([slopes, share @ slopes])


class Solution(NamedTuple):
    """Coefficients, (terms,), their covariance, BIC, and whether it is the estimate asked for."""

    coefficients: Floats
    covariance: Floats
    bic: float
    as_asked: bool


class Slope(NamedTuple):
    """Of predicted on chronological age, with its 95 % interval."""

    slope: float
    low: float
    high: float

    @property
    def weak(self) -> bool:
        """Whether a correction by it is refused; also where it is not known."""
        return not (self.slope >= WEAKEST_SLOPE and self.low > 0)

    def __str__(self) -> str:
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def solve(data: Data, curve: Curve, robust: bool = False) -> Solution | None:
    """Least squares, or Huber's M-estimate; None where the scans cannot carry the curve.

    The figures are those of OLS and RLM of statsmodels, by normal equations: with tens of sites
    and thousands of scans that is a hundred times faster. The covariance of least squares is
    clustered by person where people have several scans.
    """
    design = curve.design(data.t, data.site)
    n, size = design.shape
    scale = np.sqrt((design**2).sum(axis=0))
    if n <= size or scale.min() < _RANK * scale.max():
        return None
    x = design / scale
    gram = x.T @ x
    if np.linalg.cond(gram) > _RANK**-2:
        return None
    inverse = np.linalg.inv(gram)
    found = inverse @ (x.T @ data.gap)
    rest = data.gap - x @ found
    covariance, as_asked = _covariance(x, rest, inverse, data), not robust
    if robust and (huber := _huber(x, data.gap, found)):
        found, rest, spread = huber
        covariance, as_asked = _huber_covariance(rest / spread, inverse, size) * spread**2, True
    deviance = n * np.log(max(rest @ rest, np.finfo(float).tiny) / n)
    bic = float(deviance + size * np.log(n))
    return Solution(found / scale, covariance / np.outer(scale, scale), bic, as_asked)


def _covariance(x: Floats, rest: Floats, inverse: Floats, data: Data) -> Floats:
    """Of least squares; a sandwich with a sum per person where people have several scans."""
    n, size = x.shape
    people = data.people
    if people == n or people == 1:
        return inverse * float(rest @ rest) / (n - size)
    order = np.argsort(data.person, kind="stable")
    starts = np.flatnonzero(np.diff(data.person[order], prepend=-1))
    sums = np.add.reduceat((x * rest[:, None])[order], starts)
    correction = people / (people - 1) * (n - 1) / (n - size)
    return correction * inverse @ (sums.T @ sums) @ inverse


def _huber(x: Floats, y: Floats, start: Floats) -> tuple[Floats, Floats, float] | None:
    """Coefficients, residuals and their scale by reweighted least squares; None if they fail."""
    found = start
    for _ in range(_ITERATIONS):
        rest = y - x @ found
        spread = float(mad(rest, center=0))
        if not spread > _RANK * float(np.abs(y).max()):
            return None
        weighted = x * HuberT().weights(rest / spread)[:, None]
        before, found = found, np.linalg.solve(weighted.T @ x, weighted.T @ y)
        if np.abs(found - before).max() < 1e-10 * np.abs(found).max():
            return found, y - x @ found, spread
    return None


def _huber_covariance(z: Floats, inverse: Floats, size: int) -> Floats:
    """Huber's H1 of residuals over their scale (Huber 1981, 7.6)."""
    slope = HuberT().psi_deriv(z)
    factor = 1 + size / z.size * slope.var() / slope.mean() ** 2
    psi = HuberT().psi(z)
    return factor**2 * float(psi @ psi) / (z.size - size) / slope.mean() ** 2 * inverse


def slope(data: Data, robust: bool = False) -> Slope:
    """Slope of predicted on chronological age within sites; NaN where it cannot be had."""
    curve = Curve(1, data.sites)
    found = solve(data, curve, robust)
    if found is None:
        return Slope(np.nan, np.nan, np.nan)
    at = curve.terms.index("age")
    # 1 more than that of the gap, whose every y is subtracted.
    value = 1 + float(found.coefficients[at])
    freedom = max(data.people - len(curve.terms), 1)
    half = float(student_t.ppf(0.975, freedom) * np.sqrt(max(found.covariance[at, at], 0)))
    return Slope(value, value - half, value + half)


def choose_slopes(data: Data, robust: bool = False) -> tuple[Curve, dict[str, Slope]]:
    """A line with the slopes by site that the data carry, and the slopes found too weak.

    A site has its own slope with `FEWEST_FOR_SLOPE` people and a line that is not weak; so have
    the other sites in common.
    """
    sites = data.sites
    large = {site: data.at([site]) for site, scans in sites.items() if scans >= FEWEST_FOR_SLOPE}
    slopes = {
        site: slope(scans, robust)
        for site, scans in large.items()
        if scans.people >= FEWEST_FOR_SLOPE
    }
    own = tuple(site for site, found in slopes.items() if not found.weak)
    weak = {site: found for site, found in slopes.items() if found.weak}
    if len(own) == len(sites):
        shared = False
    else:
        rest = data.at(set(sites) - set(own))
        shared = rest.people >= FEWEST_FOR_SLOPE and not slope(rest, robust).weak
    if len(own) + shared < 2:
        return Curve(1, sites), weak
    return Curve(1, sites, own, shared), weak


def choose_degree(data: Data, curve: Curve, degrees: Iterable[int]) -> dict[int, float]:
    """BIC of each degree that can be fitted, by least squares."""
    found = {degree: solve(data, replace(curve, degree=degree)) for degree in degrees}
    return {degree: solution.bic for degree, solution in found.items() if solution}
