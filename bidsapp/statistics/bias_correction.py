"""Age-bias correction of predicted ages, fitted on a reference and applied to everybody.

y is the chronological age, p the predicted one, d = p - y the brain-age gap, all in years.

offset
    d = f(y) on the reference; p_c = p - f(y), d_c = d - f(y) (Beheshti 2019; de Lange & Cole
    2020). Takes the age of the person who is corrected.
cole
    p = a y + b on the reference; p_c = (p - b) / a (Cole 2018). Takes no age.
smith
    d_c is the residual of d on [1, y, y^2] (Smith 2019): the offset with degree 2.

Le 2018 leaves d as it is and covaries age; in a linear model of the gap that gives the inference
of the offset, so it has no method of its own here. With lines fitted on the same reference
slope_offset = slope_cole - 1 and d_c(offset) = slope_cole d_c(cole): t, r and Cohen's d agree and
only the years differ. One fit of d on age therefore serves all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from bidsapp.statistics import age_curve
from bidsapp.statistics.age_curve import WEAKEST_SLOPE, Curve, Data, Slope
from bidsapp.statistics.labels import codes, decade, words
from bidsapp.statistics.verdict import Verdict

Floats = NDArray[np.float64]
Method = Literal["offset", "cole", "smith"]
Degree = Literal[1, 2, 3, "bic"]

FEWEST, FEW = 10, 30
"""People of the reference below whom a correction is refused, or a warning."""


@dataclass(frozen=True)
class Correction:
    """One model's correction: d = f(site, y - centre) on the reference.

    Attributes
    ----------
    method, degree, robust
        What was fitted; ``degree`` is a number, also where BIC chose it.
    terms, coefficients, covariance
        Of the gap's curve: ``intercept`` or ``intercept[SITE]``, ``age`` and ``age[SITE]`` (sites
        with a slope of their own), ``age^2``, ``age^3``; age is counted from ``centre``.
    centre
        Mean age of the reference, years.
    n, participants
        Scans and people of the reference.
    age_low, age_high
        Youngest and oldest of the reference; beyond is extrapolation.
    sites
        Scans of the reference at each site; empty without sites.
    slope, slope_low, slope_high
        Of predicted on chronological age within sites, with its 95 % interval: the guard's figure.
    residual_sd
        Standard deviation of the corrected gap on the reference, years.
    forced
        Whether it is used although a guard refused it.
    verdicts
        What the guards say.
    """

    method: Method
    degree: int
    robust: bool
    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    centre: float
    n: int
    participants: int
    age_low: float
    age_high: float
    sites: Mapping[str, int]
    slope: float
    slope_low: float
    slope_high: float
    residual_sd: float
    forced: bool
    verdicts: tuple[Verdict, ...]

    @property
    def usable(self) -> bool:
        """Whether `apply` gives numbers: not refused, or forced."""
        return all(verdict.severity != "refused" for verdict in self.verdicts)

    @property
    def curve(self) -> Curve:
        """Of the gap over age and site."""
        own = tuple(site for site in self.sites if f"age[{site}]" in self.terms)
        return Curve(self.degree, self.sites, own, "age" in self.terms)

    def apply(
        self, age: ArrayLike, predicted: ArrayLike, site: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Corrected age and corrected gap, years, (n,) each.

        NaN where an input is missing, and everywhere if the correction is not usable. Sites that
        the reference lacks get the mean curve of its sites, weighted by their scans. Cole's
        correction of a person without age has a corrected age and no gap.
        """
        y, p = np.asarray(age, dtype=float), np.asarray(predicted, dtype=float)
        if not self.usable:
            return np.full_like(p, np.nan), np.full_like(p, np.nan)
        if self.method == "cole":
            level = self._gap(np.zeros_like(p), site)
            slope = 1 + self._gap(np.ones_like(p), site) - level
            slope = np.where(np.abs(slope) > 1e-9, slope, np.nan)
            corrected = self.centre + (p - self.centre - level) / slope
        else:
            corrected = p - self._gap(y - self.centre, site)
        return corrected, corrected - y

    def extrapolated(self, age: ArrayLike) -> NDArray[np.bool_]:
        """Whether each age, (n,), lies outside of the reference's; False where it is missing."""
        y = np.asarray(age, dtype=float)
        return (y < self.age_low) | (y > self.age_high)

    def check(self, age: ArrayLike, site: ArrayLike | None = None) -> tuple[Verdict, ...]:
        """Verdicts on applying it to these people: extrapolation, sites that it has not seen."""
        found = []
        beyond = self.extrapolated(age)
        if beyond.any():
            text = (
                f"{beyond.sum()} of {beyond.size} scans are of ages outside of the reference's "
                f"({self.age_low:.1f} to {self.age_high:.1f} years), to which its correction is "
                "extrapolated."
            )
            found.append(Verdict("extrapolation", text))
        labels = words(site, beyond.size)
        unseen = labels[~np.isin(labels, list(self.sites))] if self.sites else labels[:0]
        if unseen.size:
            text = (
                f"{unseen.size} scans are of sites without reference "
                f"({', '.join(np.unique(unseen))}); they get the mean correction of the others."
            )
            found.append(Verdict("site_unseen", text))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, words, lists and dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote (null is NaN); keys that it does not know are left alone.

        Raises
        ------
        ValueError
            If a key is missing or of the wrong kind; one clause without the file's name.
        """
        missing = [each.name for each in fields(cls) if each.name not in content]
        if missing:
            raise ValueError(f"the bias correction lacks {', '.join(missing)}")
        try:
            found = cls(
                method=content["method"],
                degree=int(content["degree"]),
                robust=bool(content["robust"]),
                terms=tuple(map(str, content["terms"])),
                coefficients=_numbers(content["coefficients"]),
                covariance=tuple(map(_numbers, content["covariance"])),
                n=int(content["n"]),
                participants=int(content["participants"]),
                sites={str(site): int(count) for site, count in content["sites"].items()},
                forced=bool(content["forced"]),
                verdicts=tuple(Verdict(**verdict) for verdict in content["verdicts"]),
                **{name: _numbers([content[name]])[0] for name in _FIGURES},
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the bias correction cannot be read ({error})") from error
        known = found.method in get_args(Method) and found.degree in (1, 2, 3)
        curved = found.method == "cole" and found.degree > 1
        if not known or curved or found.terms != found.curve.terms:
            raise ValueError("method, degree, sites and terms of the bias correction do not agree")
        size = len(found.terms)
        width = found.curve.design(np.zeros(1), None).shape[1]
        if [len(row) for row in (found.coefficients, *found.covariance)] != [width] * (size + 1):
            raise ValueError(f"the bias correction needs {width} coefficients with covariance")
        if found.usable and not np.isfinite([found.centre, *found.coefficients]).all():
            raise ValueError("the bias correction lacks some of its coefficients")
        return found

    def _gap(self, t: Floats, site: ArrayLike | None) -> Floats:
        return self.curve.design(t, site) @ np.array(self.coefficients)


_FIGURES = ("centre", "age_low", "age_high", "slope", "slope_low", "slope_high", "residual_sd")


@dataclass(frozen=True)
class Corrected:
    """Everybody's corrected figures, those of the reference by fits that left them out.

    Attributes
    ----------
    correction
        Fitted on the whole reference; applied to all who are not of it.
    corrected_age, corrected_gap
        Years, (n,).
    fold
        (n,) 0, 1, ... for scans of people of the reference, -1 for others.
    extrapolated
        (n,) bool.
    verdicts
        Those of the correction, of applying it here, and of the cross-fit.
    """

    correction: Correction
    corrected_age: Floats
    corrected_gap: Floats
    fold: NDArray[np.intp]
    extrapolated: NDArray[np.bool_]
    verdicts: tuple[Verdict, ...]


def fit(
    age: ArrayLike,
    predicted: ArrayLike,
    *,
    method: Method = "offset",
    degree: Degree | None = None,
    robust: bool = False,
    site: ArrayLike | None = None,
    participant: ArrayLike | None = None,
    force: bool = False,
) -> Correction:
    """Fit on the reference; scans without age or prediction are left out and counted.

    Parameters
    ----------
    age, predicted
        Years, (n,), of the reference alone.
    degree
        Of the polynomial in age; None is 1, and 2 for ``smith``; ``bic`` chooses among 1 to 3 by
        least squares. Cole's is a line.
    robust
        Huber's M-estimate in place of least squares.
    site
        (n,) labels. Each site has its intercept; its own slope where it has at least
        `age_curve.FEWEST_FOR_SLOPE` people and its line passes the slope guard.
    participant
        (n,) labels; with several scans of a person the covariance is clustered by person.
    force
        Use it although a guard refuses it; what cannot be computed stays refused.

    Raises
    ------
    ValueError
        If method and degree do not go together.
    """
    degrees = _degrees(method, degree)
    data, y, missing = _reference(age, predicted, site, participant)
    curve, weak_sites = age_curve.choose_slopes(data, robust)
    bic = age_curve.choose_degree(data, curve, degrees)
    curve = replace(curve, degree=min(bic, key=bic.__getitem__) if bic else degrees[0])
    found = age_curve.solve(data, curve, robust)
    pooled = age_curve.slope(data, robust)
    guards = _guards(data, pooled, curve, solved=found is not None)
    forced = [_forced(verdict) if force else verdict for verdict in guards]
    size = len(curve.terms)
    correction = Correction(
        method=method,
        degree=curve.degree,
        robust=robust,
        terms=curve.terms,
        coefficients=_numbers(found.coefficients if found else [np.nan] * size),
        covariance=tuple(
            map(_numbers, found.covariance if found else np.full((size, size), np.nan))
        ),
        centre=float(y.mean()) if y.size else np.nan,
        n=y.size,
        participants=data.people,
        age_low=float(y.min()) if y.size else np.nan,
        age_high=float(y.max()) if y.size else np.nan,
        sites=curve.sites,
        slope=pooled.slope,
        slope_low=pooled.low,
        slope_high=pooled.high,
        residual_sd=np.nan,
        forced=forced != guards,
        verdicts=(*forced, *_notes(missing, weak_sites, bic if degree == "bic" else {}, found)),
    )
    _, gap = correction.apply(y, y + data.gap, data.site)
    freedom = y.size - size
    residual_sd = float(np.sqrt(gap @ gap / freedom)) if freedom > 0 else np.nan
    return replace(correction, residual_sd=residual_sd)


def cross_fit(
    age: ArrayLike,
    predicted: ArrayLike,
    reference: ArrayLike,
    participant: ArrayLike,
    *,
    method: Method = "offset",
    degree: Degree | None = None,
    robust: bool = False,
    site: ArrayLike | None = None,
    folds: int = 10,
    seed: int = 1,
    force: bool = False,
) -> Corrected:
    """Fit on ``reference`` (n,) bool and correct all; its own people by folds that left them out.

    Degree and sites with slopes of their own are those of the whole reference in every fold. All
    scans of a person are in one fold, those that are not of the reference as well.
    """
    y, p = np.asarray(age, dtype=float), np.asarray(predicted, dtype=float)
    member = np.asarray(reference, dtype=bool)
    person, sites = codes(participant), None if site is None else words(site, y.size)
    correction = fit(
        y[member],
        p[member],
        method=method,
        degree=degree,
        robust=robust,
        site=None if sites is None else sites[member],
        participant=person[member],
        force=force,
    )
    everybody = apply_to_all(correction, y, p, sites)
    fold = _folds(person, member, words(sites, y.size), folds, seed)
    if not correction.usable:
        return replace(everybody, fold=fold)
    member = member & np.isfinite(y) & np.isfinite(p)
    data = Data(y - correction.centre, p - y, sites, person)
    corrected, gap = everybody.corrected_age.copy(), everybody.corrected_gap.copy()
    alone = 0
    for out in (fold == number for number in range(fold.max() + 1)):
        part = _refit(correction, data.where(member & ~out))
        there = None if sites is None else sites[out]
        corrected[out], gap[out] = part.apply(y[out], p[out], there)
        if there is not None:
            alone += int((member[out] & ~np.isin(there, list(part.sites))).sum())
    verdicts = list(everybody.verdicts)
    if alone:
        text = (
            f"{alone} scans of the reference have nobody else of their site to be corrected by; "
            "they get the mean correction of the other sites."
        )
        verdicts.append(Verdict("site_held_out", text))
    return replace(
        everybody,
        corrected_age=corrected,
        corrected_gap=gap,
        fold=fold,
        verdicts=tuple(verdicts),
    )


def apply_to_all(
    correction: Correction,
    age: ArrayLike,
    predicted: ArrayLike,
    site: ArrayLike | None = None,
) -> Corrected:
    """Correct everybody by a correction that was fitted on others, such as one that was loaded."""
    y = np.asarray(age, dtype=float)
    corrected, gap = correction.apply(y, predicted, site)
    return Corrected(
        correction=correction,
        corrected_age=corrected,
        corrected_gap=gap,
        fold=np.full(y.size, -1),
        extrapolated=correction.extrapolated(y),
        verdicts=correction.verdicts + correction.check(y, site),
    )


def remaining_bias(
    age: ArrayLike, gap: ArrayLike, participant: ArrayLike | None = None
) -> pd.DataFrame:
    """Mean gap per age decade, for the bias that is left within an age level (Zhang 2023).

    Returns
    -------
    One row per decade: ``decade`` (such as "30-39"), ``age_low``, ``age_high``, ``n``,
    ``participants``, ``mean``, ``low``, ``high`` (95 %, t over people; NaN for one person).
    """
    y, d = np.asarray(age, dtype=float), np.asarray(gap, dtype=float)
    person = np.arange(y.size) if participant is None else codes(participant)
    scans = pd.DataFrame({"decade": decade(y), "age": y, "gap": d, "person": person}).dropna()
    rows = []
    for name, part in scans.groupby("decade", observed=True):
        people = part.groupby("person")["gap"].mean()
        n, mean = len(people), people.mean()
        half = student_t.ppf(0.975, n - 1) * people.std() / np.sqrt(n) if n > 1 else np.nan
        ages = part["age"]
        rows.append([name, ages.min(), ages.max(), len(part), n, mean, mean - half, mean + half])
    columns = ["decade", "age_low", "age_high", "n", "participants", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _degrees(method: Method, degree: Degree | None) -> tuple[int, ...]:
    """The degrees among which to choose."""
    if method not in get_args(Method):
        raise ValueError(f"no bias correction is called {method}: {', '.join(get_args(Method))}")
    if degree not in (None, *get_args(Degree)):
        raise ValueError("the degree of a bias correction is 1, 2, 3 or bic")
    if method == "cole":
        if degree in (2, 3):
            raise ValueError("Cole's bias correction is a line: its degree is 1")
        return (1,)
    if degree == "bic":
        return (1, 2, 3)
    return (degree or (2 if method == "smith" else 1),)


def _reference(
    age: ArrayLike, predicted: ArrayLike, site: ArrayLike | None, participant: ArrayLike | None
) -> tuple[Data, Floats, int]:
    """Scans with both ages, their ages in years, and the number of the others."""
    y, p = np.asarray(age, dtype=float), np.asarray(predicted, dtype=float)
    known = np.isfinite(y) & np.isfinite(p)
    sites = None if site is None else words(site, y.size)[known]
    person = np.arange(y.size) if participant is None else codes(participant)
    y, p = y[known], p[known]
    return Data(y - y.mean() if y.size else y, p - y, sites, person[known]), y, int((~known).sum())


def _guards(data: Data, pooled: Slope, curve: Curve, solved: bool) -> list[Verdict]:
    """Reasons to refuse a correction or to take care."""
    people, found = data.people, []
    if not solved:
        text = (
            f"{people} people of {len(np.unique(data.t))} different ages in the reference cannot "
            f"carry a bias correction of {len(curve.terms)} coefficients."
        )
        return [Verdict("cannot_fit", text, "refused")]
    if people < FEWEST:
        text = f"The reference has {people} people, and a bias correction needs at least {FEWEST}."
        found.append(Verdict("tiny_reference", text, "refused"))
    elif people < FEW:
        text = f"The bias correction stands on {people} people; with fewer than {FEW} it is rough."
        found.append(Verdict("small_reference", text))
    if pooled.weak:
        text = (
            f"Predicted age rises by {pooled} years per year of age in the reference; below "
            f"{WEAKEST_SLOPE}, or with an interval that holds 0, a correction would mostly write "
            "the chronological age into the prediction."
        )
        found.append(Verdict("weak_slope", text, "refused"))
    small = [site for site, scans in data.sites.items() if scans < FEWEST]
    if small:
        text = f"Fewer than {FEWEST} scans of the reference are of {', '.join(small)}."
        found.append(Verdict("small_site", text))
    return found


def _forced(verdict: Verdict) -> Verdict:
    if verdict.severity != "refused" or verdict.name == "cannot_fit":
        return verdict
    return Verdict(verdict.name, f"{verdict.text} It is used because that was asked for.")


def _notes(
    missing: int,
    weak_sites: Mapping[str, Slope],
    bic: Mapping[int, float],
    found: age_curve.Solution | None,
) -> list[Verdict]:
    """How the correction was made."""
    notes = []
    if missing:
        text = f"{missing} scans of the reference lack an age or a prediction and are not fitted."
        notes.append(Verdict("missing_values", text, "note"))
    if weak_sites:
        slopes = ", ".join(f"{site}: {slope}" for site, slope in weak_sites.items())
        text = f"Sites too weak for a slope of their own share one with others ({slopes})."
        notes.append(Verdict("site_slope_shared", text, "note"))
    if bic:
        values = ", ".join(f"{degree}: {value:.1f}" for degree, value in bic.items())
        notes.append(Verdict("degree_by_bic", f"BIC by degree is {values}.", "note"))
    if found and not found.as_asked:
        text = "Huber's estimate did not converge; the correction is by least squares."
        notes.append(Verdict("robust_failed", text))
    return notes


def _folds(
    person: NDArray[np.intp], member: NDArray[np.bool_], site: NDArray, folds: int, seed: int
) -> NDArray[np.intp]:
    """Fold of every scan, people of each site spread over all; -1 for those not of reference."""
    if folds < 2:
        raise ValueError("a cross-fit needs at least 2 folds")
    people, first = np.unique(person[member], return_index=True)
    shuffled = np.random.default_rng(seed).random(people.size)
    order = np.lexsort((shuffled, codes(site[member][first])))
    fold = np.full(person.max(initial=-1) + 1, -1)
    fold[people[order]] = np.arange(people.size) % folds
    return fold[person]


def _refit(correction: Correction, data: Data) -> Correction:
    """The same correction on fewer people; NaN where they cannot carry it."""
    curve = correction.curve.within(data.sites)
    found = age_curve.solve(data, curve, correction.robust)
    coefficients = found.coefficients if found else [np.nan] * len(curve.terms)
    return replace(
        correction,
        terms=curve.terms,
        coefficients=_numbers(coefficients),
        covariance=(),
        sites=curve.sites,
    )


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(np.nan if value is None else float(value) for value in values)
