"""Repeated scans: reliability of predicted age and gap, and their change over the years."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as fisher_f
from scipy.stats import norm
from scipy.stats import t as student_t

from bidsapp.statistics.labels import codes, words
from bidsapp.statistics.verdict import Verdict

Floats = NDArray[np.float64]

QUANTITIES = ("predicted_age", "brain_age_gap")
RETEST_YEARS = 0.5
FEW = 30
"""People below whom the interval of a reliability is wide enough to say so."""
FEWEST_FOR_CHANGE = 5
SAME_AGE = 0.01
"""Years: scans closer than that are of the same time."""


@dataclass(frozen=True)
class ICC:
    """Intraclass correlation of single scans with its F interval (Shrout & Fleiss 1979).

    Attributes
    ----------
    type
        ``ICC(2,1)``: absolute agreement; ``ICC(3,1)``: consistency.
    low, high
        95 % interval unless asked otherwise (McGraw & Wong 1996).
    sem
        Standard error of measurement, the root of the residual mean square.
    sdc
        Smallest detectable change, 1.96 sqrt(2) sem.
    n, k
        People, and scans of each.
    """

    type: str
    icc: float
    low: float
    high: float
    sem: float
    sdc: float
    n: int
    k: int


@dataclass(frozen=True)
class BlandAltman:
    """Agreement of two scans of each person.

    Attributes
    ----------
    mean, difference
        Of second and first scan, (n,); difference is second minus first.
    bias, bias_low, bias_high
        Mean difference with its 95 % interval.
    lower, upper
        95 % limits of agreement, bias -+ 1.96 sd.
    lower_low, lower_high, upper_low, upper_high
        Their 95 % intervals (Bland & Altman 1999).
    """

    mean: Floats
    difference: Floats
    bias: float
    bias_low: float
    bias_high: float
    lower: float
    lower_low: float
    lower_high: float
    upper: float
    upper_low: float
    upper_high: float


@dataclass(frozen=True)
class Reliability:
    """Agreement of repeated scans of one model.

    Attributes
    ----------
    table
        One row per quantity and type: ``quantity``, then the fields of `ICC`; empty without
        repeats.
    bland_altman
        By quantity; first two scans of each person.
    participants, scans
        People with repeats, and their scans.
    left_out
        Scans of them beyond the balanced block of the predicted age.
    verdicts
        ``no_repeats``, ``few_repeats``, ``unbalanced``, ``identical_scans``.
    """

    table: pd.DataFrame
    bland_altman: dict[str, BlandAltman]
    participants: int
    scans: int
    left_out: int
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Change:
    """Yearly change over sessions: d ~ time + baseline age + sex + (1 | participant).

    Attributes
    ----------
    gap_change, gap_low, gap_high, p
        Years of gap per year of time, 95 % interval, p of no change; t with (scans - people - 1)
        degrees of freedom.
    age_change, age_low, age_high
        Years of predicted age per year of time: 1 + the gap's.
    method
        ``mixed model``, ``least squares`` (clustered by person, where the mixed model fails), or
        ``none``.
    participants, scans, mean_years
        People with scans at several ages, their scans, and their mean time of observation.
    verdicts
        ``too_few``, ``cannot_fit``, ``no_convergence``, ``no_person_variance``.
    """

    gap_change: float
    gap_low: float
    gap_high: float
    p: float
    age_change: float
    age_low: float
    age_high: float
    method: str
    participants: int
    scans: int
    mean_years: float
    verdicts: tuple[Verdict, ...]


_CHANGES = ("gap_change", "gap_low", "gap_high", "p", "age_change", "age_low", "age_high")


def icc(values: ArrayLike, confidence: float = 0.95) -> tuple[ICC, ICC]:
    """ICC(2,1) and ICC(3,1) of (people, scans), without missing values; NaN where undefined."""
    x = np.asarray(values, dtype=float)
    n, k = x.shape
    agreement = consistency = (np.nan, np.nan, np.nan)
    sem = np.nan
    if n > 1 and k > 1 and np.isfinite(x).all():
        people, scans, error = _mean_squares(x)
        sem = float(np.sqrt(error))
        if people > 0:
            agreement = _agreement(n, k, people, scans, error, (1 + confidence) / 2)
            consistency = _consistency(n, k, people, error, (1 + confidence) / 2)
    sdc = 1.96 * float(np.sqrt(2)) * sem
    return (
        ICC("ICC(2,1)", agreement[0], agreement[1], agreement[2], sem, sdc, n, k),
        ICC("ICC(3,1)", consistency[0], consistency[1], consistency[2], sem, sdc, n, k),
    )


def bland_altman(first: ArrayLike, second: ArrayLike) -> BlandAltman:
    """Limits of agreement of (n,) and (n,); pairs with a missing value are left out."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    d, n = b - a, a.size
    bias = float(d.mean()) if n else np.nan
    sd = float(d.std(ddof=1)) if n > 1 else np.nan
    t = float(student_t.ppf(0.975, n - 1)) if n > 1 else np.nan
    z = float(norm.ppf(0.975))
    of_bias = t * sd / np.sqrt(max(n, 1))
    of_limit = t * sd * np.sqrt(1 / max(n, 1) + z**2 / (2 * max(n - 1, 1)))
    lower, upper = bias - z * sd, bias + z * sd
    return BlandAltman(
        mean=(a + b) / 2,
        difference=d,
        bias=bias,
        bias_low=bias - of_bias,
        bias_high=bias + of_bias,
        lower=lower,
        lower_low=lower - of_limit,
        lower_high=lower + of_limit,
        upper=upper,
        upper_low=upper - of_limit,
        upper_high=upper + of_limit,
    )


def reliability(frame: pd.DataFrame, within_years: float = RETEST_YEARS) -> Reliability:
    """Test-retest reliability of one model's scans.

    Parameters
    ----------
    frame
        One row per scan in the order of time: ``participant_id``, ``age``, ``predicted_age`` and
        ``brain_age_gap``, in years; ``undated`` (bool) where it is known: scans of whose time
        nothing is known, which are not used.
    within_years
        Scans later than that after the person's first one are no retest and not used; a scan
        without age counts as one.

    Notes
    -----
    Unbalanced numbers of scans: the first k scans of everybody who has k, with the k that leaves
    the most degrees of freedom for the error, (n_k - 1)(k - 1); so the F intervals stay exact.
    """
    if "undated" in frame:
        frame = frame[~frame["undated"]]
    after = frame["age"] - frame.groupby("participant_id")["age"].transform("min")
    retests = frame[~(after > within_years)]
    rows, plots, left_out = [], {}, 0
    verdicts: list[Verdict] = []
    repeated = _wide(retests, "predicted_age").notna().sum(axis=1)
    repeated = repeated[repeated > 1]
    if not len(repeated):
        verdicts.append(
            Verdict("no_repeats", "Nobody has several scans of the same time.", "note")
        )
    for quantity in QUANTITIES if len(repeated) else ():
        wide = _wide(retests, quantity)
        block = _balanced(wide)
        rows += [{"quantity": quantity} | asdict(each) for each in icc(block)]
        pairs = wide.reindex(columns=[0, 1])
        plots[quantity] = bland_altman(pairs[0], pairs[1])
        if quantity == "predicted_age":
            left_out = int(repeated.sum()) - block.size
            verdicts += _remarks(block, left_out)
    return Reliability(
        table=pd.DataFrame(rows, columns=["quantity", *(each.name for each in fields(ICC))]),
        bland_altman=plots,
        participants=len(repeated),
        scans=int(repeated.sum()),
        left_out=left_out,
        verdicts=tuple(verdicts),
    )


def change(frame: pd.DataFrame) -> Change:
    """Change of one model's gap over sessions with ages, or the verdict why there is none.

    The intercept differs between people, the change does not: people who truly change at
    different rates make the interval too narrow.

    Parameters
    ----------
    frame
        One row per scan: ``participant_id``, ``age``, ``brain_age_gap`` (years), ``sex`` where
        known.
    """
    scans = _longitudinal(frame, "brain_age_gap")
    person, design = codes(scans["participant_id"]), _change_design(scans)
    people = len(np.unique(person))
    years = scans.groupby("participant_id")["time"].max().mean()
    none = Change(
        **dict.fromkeys(_CHANGES, np.nan),
        method="none",
        participants=people,
        scans=len(scans),
        mean_years=float(years),
        verdicts=(),
    )
    if people < FEWEST_FOR_CHANGE:
        text = (
            f"{people} people have scans at several ages, and {FEWEST_FOR_CHANGE} are needed to "
            "tell a yearly change."
        )
        return replace(none, verdicts=(Verdict("too_few", text, "warning" if people else "note"),))
    if np.linalg.matrix_rank(design) < design.shape[1]:
        text = "Baseline age, sex and time cannot be told apart: there is no model of change."
        return replace(none, verdicts=(Verdict("cannot_fit", text),))

    verdicts: tuple[Verdict, ...] = ()
    found = _mixed_model(scans["brain_age_gap"].to_numpy(float), design, person)
    method, freedom = "mixed model", len(scans) - people - 1
    if found is None:
        method, freedom = "least squares", people - 1
        model = sm.OLS(scans["brain_age_gap"].to_numpy(float), design)
        fitted = model.fit(cov_type="cluster", cov_kwds={"groups": person})
        found = float(fitted.params[1]), float(fitted.bse[1]), np.nan
        text = "The mixed model of change did not converge; least squares stand in, by person."
        verdicts = (Verdict("no_convergence", text),)
    slope, error, between = found
    if between < 1e-6:
        text = (
            "People differ by no more than their scans do: the mixed model has no person effect."
        )
        verdicts = (Verdict("no_person_variance", text, "note"),)
    half = float(student_t.ppf(0.975, freedom)) * error
    return Change(
        gap_change=slope,
        gap_low=slope - half,
        gap_high=slope + half,
        p=float(2 * student_t.sf(abs(slope) / error, freedom)) if error > 0 else np.nan,
        age_change=1 + slope,
        age_low=1 + slope - half,
        age_high=1 + slope + half,
        method=method,
        participants=people,
        scans=len(scans),
        mean_years=float(years),
        verdicts=verdicts,
    )


def _mean_squares(x: Floats) -> tuple[float, float, float]:
    """Two-way analysis of variance of (people, scans): people, scans, residual; rounding is 0."""
    n, k = x.shape
    rounding = (1e-12 * np.abs(x).max()) ** 2
    x = x - x.mean()
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    rest = x - rows[:, None] - columns
    found = np.array(
        [
            k * (rows @ rows) / (n - 1),
            n * (columns @ columns) / (k - 1),
            (rest * rest).sum() / ((n - 1) * (k - 1)),
        ]
    )
    people, scans, error = np.where(found > rounding, found, 0.0).tolist()
    return people, scans, error


def _consistency(
    n: int, k: int, people: float, error: float, tail: float
) -> tuple[float, float, float]:
    """ICC(3,1) of mean squares with its interval; without an error there is no F."""
    if error == 0:
        return 1.0, np.nan, np.nan
    f, freedom, rest = people / error, n - 1, (n - 1) * (k - 1)
    low = f / float(fisher_f.ppf(tail, freedom, rest))
    high = f * float(fisher_f.ppf(tail, rest, freedom))
    return (f - 1) / (f + k - 1), (low - 1) / (low + k - 1), (high - 1) / (high + k - 1)


def _agreement(
    n: int, k: int, people: float, scans: float, error: float, tail: float
) -> tuple[float, float, float]:
    """ICC(2,1) of mean squares, its interval with Satterthwaite's degrees of freedom.

    The interval is too narrow where the scans differ as much as their errors: 92 % for 4 of them.
    """
    found = (people - error) / (people + (k - 1) * error + k * (scans - error) / n)
    if error == 0:
        return found, np.nan, np.nan
    a, b = k * found * scans / error, n * (1 + (k - 1) * found) - k * found
    freedom = n - 1
    rest = freedom * (k - 1) * (a + b) ** 2 / (freedom * a**2 + b**2)
    f_low = float(fisher_f.ppf(tail, freedom, rest))
    f_high = float(fisher_f.ppf(tail, rest, freedom))
    common = k * scans + (k * n - k - n) * error
    low = n * (people - f_low * error) / (f_low * common + n * people)
    high = n * (f_high * people - error) / (common + n * f_high * people)
    return found, low, high


def _wide(scans: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """(people, scans in their order), the missing ones last."""
    known = scans[np.isfinite(scans[quantity].to_numpy(float))]
    known = known.assign(order=known.groupby("participant_id").cumcount())
    return known.pivot(index="participant_id", columns="order", values=quantity)


def _balanced(wide: pd.DataFrame) -> Floats:
    """The first k scans of the people who have k, for the k with most degrees of freedom."""
    have = wide.notna().sum(axis=1).to_numpy()
    freedom = {k: ((have >= k).sum() - 1) * (k - 1) for k in range(2, wide.shape[1] + 1)}
    k = max(freedom, key=freedom.__getitem__, default=2)
    return wide[have >= k].reindex(columns=range(k)).to_numpy(float)


def _remarks(block: Floats, left_out: int) -> list[Verdict]:
    (n, k), found = block.shape, []
    if n < FEW:
        text = f"Reliability stands on {n} people with repeated scans; fewer than {FEW} are few."
        found.append(Verdict("few_repeats", text))
    if left_out:
        text = (
            f"Numbers of repeated scans differ: reliability is of the first {k} scans of the "
            f"{n} people who have them, and {left_out} scans are left out."
        )
        found.append(Verdict("unbalanced", text, "note"))
    if n and not np.ptp(block, axis=1).any():
        text = "Repeated scans have the same predictions to the last digit: are they copies?"
        found.append(Verdict("identical_scans", text))
    return found


def _longitudinal(frame: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Scans with age and quantity of people with several ages, with ``time`` and ``baseline``."""
    known = np.isfinite(frame["age"].to_numpy(float)) & np.isfinite(
        frame[quantity].to_numpy(float)
    )
    scans = frame[known]
    ages = scans.groupby("participant_id")["age"]
    first = ages.transform("min")
    scans = scans.assign(time=scans["age"] - first, baseline=first)
    return scans[ages.transform("max") - first > SAME_AGE]


def _change_design(scans: pd.DataFrame) -> Floats:
    """Columns 1, time, baseline age, sex; those that do not vary are left out."""
    sex = words(scans.get("sex"), len(scans))
    baseline = scans["baseline"].to_numpy(float)
    columns = [np.ones(len(scans)), scans["time"].to_numpy(float)]
    if baseline.size and np.ptp(baseline) > SAME_AGE:
        columns.append(baseline - baseline.mean())
    columns += [(sex == level).astype(float) for level in np.unique(sex)[1:]]
    return np.stack(columns, axis=1)


def _mixed_model(
    gap: Floats, design: Floats, person: NDArray[np.intp]
) -> tuple[float, float, float] | None:
    """Slope over time, its standard error, and the variance of people over that of scans."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what they say is in what is returned
        try:
            found = sm.MixedLM(gap, design, groups=person).fit()
        except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):
            return None
        slope, error = float(found.fe_params[1]), float(found.bse_fe[1])
        between = float(found.cov_re[0, 0] / found.scale)
    if not (found.converged and np.isfinite([slope, error]).all() and error > 0):
        return None
    return slope, error, between
