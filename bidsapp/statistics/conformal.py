"""Prediction intervals recalibrated on local controls: split conformal prediction.

Scores are |y - p| / s with y the age, p the predicted age, s the model's own standard deviation,
all in years. With several scans of a person each of them has the weight 1 / (scans of the person),
which is hierarchical conformal prediction (Lee, Barber & Willett 2023) and plain split conformal
where everybody has one scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from bidsapp.statistics.labels import codes, words
from bidsapp.statistics.verdict import Verdict

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

COVERAGES = (0.5, 0.8, 0.9, 0.95)
FEWEST_IN_BIN = 30
"""Controls of a bin below whom it takes the interval of all: extreme scores of few are chance."""
BIN, POOLED, NOT_LOCAL = "bin", "pooled", "not calibrated locally"
_EPSILON = 1e-9
"""Sums of 1/3 and (1 - 0.1) * 10 are no whole numbers."""


@dataclass(frozen=True)
class Calibration:
    """Intervals p -+ q s, fitted on controls.

    Attributes
    ----------
    coverage
        Share of people that an interval shall hold.
    quantile
        q from all controls; NaN where they are too few.
    participants
        Controls behind it.
    bins
        q by bin (Mondrian), for the bins with enough controls of their own.
    bin_participants
        Controls by bin.
    verdicts
        ``not_calibrated_locally``, ``bin_pooled``.
    """

    coverage: float
    quantile: float
    participants: int
    bins: Mapping[str, float]
    bin_participants: Mapping[str, int]
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, words, lists and dicts."""
        return asdict(self)


@dataclass(frozen=True)
class Intervals:
    """Local intervals of every scan.

    Attributes
    ----------
    low, high
        Years, (n,).
    source
        (n,) words: ``bin``, ``pooled``, or `NOT_LOCAL` where the card's interval stands.
    calibration
        That of all controls; each control's own interval comes from the other controls.
    """

    low: Floats
    high: Floats
    source: NDArray[np.object_]
    calibration: Calibration


def fewest(coverage: float) -> int:
    """Controls below which no interval of that coverage exists: ceil(1 / alpha) - 1."""
    return math.ceil(1 / (1 - coverage) - _EPSILON) - 1


def intervals(
    age: ArrayLike,
    predicted: ArrayLike,
    standard_deviation: ArrayLike,
    control: ArrayLike,
    participant: ArrayLike,
    *,
    card: tuple[ArrayLike, ArrayLike],
    coverage: float = 0.9,
    bins: ArrayLike | None = None,
) -> Intervals:
    """Interval of the age of each scan, (n,), from the controls; from the others for a control.

    Parameters
    ----------
    predicted
        Raw predicted age: a corrected one that took the age may not be used to bound it.
    control
        (n,) bool. Controls without age or prediction are left out.
    card
        Lower and upper bounds of the record, (n,) each: what stands where controls are too few.
    bins
        (n,) labels for Mondrian calibration, such as the site or ``labels.decade(predicted)``;
        never made from the true age, which is not known when an interval is needed.
    """
    p, s = (np.asarray(each, dtype=float) for each in (predicted, standard_deviation))
    score, used, person = _scores(age, p, s, control, participant)
    q, pooled = _quantiles(score, used, person, coverage)
    source = np.full(p.size, POOLED, dtype=object)
    by_bin: dict[str, float] = {}
    people: dict[str, int] = {}
    names, code = np.unique(words(bins, p.size), return_inverse=True)
    for number, name in enumerate(names if bins is not None else ()):
        rows = code == number
        people[name] = len(np.unique(person[rows & used]))
        if people[name] < max(FEWEST_IN_BIN, fewest(coverage) + 1):
            continue
        q[rows], by_bin[name] = _quantiles(score[rows], used[rows], person[rows], coverage)
        source[rows] = BIN
    controls = len(np.unique(person[used]))
    verdicts = _verdicts(controls, coverage, pooled, [n for n in people if n not in by_bin])
    low, high = (np.asarray(bound, dtype=float) for bound in card)
    half = q * np.where(s > 0, s, np.nan)
    local = np.isfinite(p + half)
    return Intervals(
        low=np.where(local, p - half, low),
        high=np.where(local, p + half, high),
        source=np.where(local, source, NOT_LOCAL),
        calibration=Calibration(coverage, pooled, controls, by_bin, people, verdicts),
    )


def accelerated_ageing(
    gap: ArrayLike, scale: ArrayLike | None, control: ArrayLike, participant: ArrayLike
) -> Floats:
    """One-sided conformal p of each scan: (1 + #{s_j >= s}) / (n + 1) over the (other) controls.

    Parameters
    ----------
    gap
        (n,) years; the corrected one, or p depends on age.
    scale
        (n,) standard deviations by which the gap is divided; None is 1.

    Returns
    -------
    (n,) p; NaN where the gap is missing, 1 where there are no (other) controls.
    """
    score = np.asarray(gap, dtype=float) / (
        1.0 if scale is None else np.asarray(scale, dtype=float)
    )
    person = codes(participant)
    known = np.isfinite(score)
    used = np.asarray(control, dtype=bool) & known
    weight = _weights(person, used)
    order = np.argsort(score[used])
    above = np.append(np.cumsum(weight[used][order][::-1])[::-1], 0)
    at_least = above[np.searchsorted(score[used][order], score)]

    # The person's own scans do not count: the same sum within the person.
    rank = np.unique(score, return_inverse=True)[1] + 1
    key = person * (rank.max(initial=0) + 1) + rank
    own = np.sort(key[used])
    last = np.searchsorted(own, (person + 1) * (rank.max(initial=0) + 1))
    at_least -= (last - np.searchsorted(own, key)) * weight
    others = len(np.unique(person[used])) - np.isin(person, person[used])
    return np.where(known, (1 + at_least) / (others + 1), np.nan)


def coverage_table(
    age: ArrayLike,
    predicted: ArrayLike,
    standard_deviation: ArrayLike,
    control: ArrayLike,
    participant: ArrayLike,
    *,
    coverages: Sequence[float] = COVERAGES,
    bins: ArrayLike | None = None,
) -> pd.DataFrame:
    """Calibration and sharpness on the controls, by the model's own figures and by conformal ones.

    Returns
    -------
    Rows by ``interval`` ("model": p -+ z s of a normal error; "local": each control by the
    others) and ``nominal`` coverage: ``n``, ``participants``, ``observed``, ``low``, ``high``
    (Wilson 95 %, people as the unit), ``width`` (mean, years: sharpness).
    """
    s = np.asarray(standard_deviation, dtype=float)
    score, used, person = _scores(age, predicted, s, control, participant)
    nothing = (np.full(s.size, np.nan), np.full(s.size, np.nan))
    rows = []
    for nominal in coverages:
        local = intervals(
            age, predicted, s, control, participant, card=nothing, coverage=nominal, bins=bins
        )
        halves = {"model": s * norm.ppf((1 + nominal) / 2), "local": (local.high - local.low) / 2}
        for kind, half in halves.items():
            figures = _coverage(score * s, half, person, used & np.isfinite(half))
            rows.append({"interval": kind, "nominal": nominal, **figures})
    return pd.DataFrame(rows)


def _scores(
    age: ArrayLike,
    predicted: ArrayLike,
    standard_deviation: ArrayLike,
    control: ArrayLike,
    participant: ArrayLike,
) -> tuple[Floats, NDArray[np.bool_], Codes]:
    """Scores, which of them are calibration, and whose they are."""
    y, p, s = (np.asarray(each, dtype=float) for each in (age, predicted, standard_deviation))
    score = np.abs(y - p) / np.where(s > 0, s, np.nan)
    return score, np.asarray(control, dtype=bool) & np.isfinite(score), codes(participant)


def _weights(person: Codes, used: NDArray[np.bool_]) -> Floats:
    """1 / (scans that the person has in the calibration), (n,); 0 for people who have none."""
    scans = np.bincount(person[used], minlength=person.max(initial=-1) + 1)[person]
    return np.divide(1.0, scans, out=np.zeros(scans.size), where=scans > 0)


def _quantiles(
    score: Floats, used: NDArray[np.bool_], person: Codes, coverage: float
) -> tuple[Floats, float]:
    """The q of every row, from other people than its own, (n,), and that of all; NaN if too few.

    The smallest score at which the weights of the scores up to it reach ``coverage`` times
    (people + 1). To leave a person out, its own part is added to what must be reached; the part
    depends on the place, so this repeats, at most as often as the person has scans.
    """
    person = codes(person)
    order = np.flatnonzero(used)[np.argsort(score[used], kind="stable")]
    who, reached = person[order], np.cumsum(_weights(person, used)[order])
    weight = _weights(person, used)[order]
    values = np.append(score[order], np.nan)
    people = len(np.unique(who))
    all_of_them = values[np.searchsorted(reached, coverage * (people + 1) - _EPSILON)]
    size = person.max(initial=-1) + 1
    in_calibration = np.bincount(who, minlength=size) > 0
    need = coverage * (people + 1 - in_calibration) - _EPSILON
    own = np.zeros(size)
    while True:
        at = np.searchsorted(reached, need + own)
        part = np.bincount(who, weight * (np.arange(who.size) <= at[who]), size)
        if np.allclose(part, own, rtol=0, atol=_EPSILON):
            return values[at][person], float(all_of_them)
        own = part


def _coverage(
    error: Floats, half: Floats, person: Codes, rows: NDArray[np.bool_]
) -> dict[str, float]:
    inside = pd.Series(error[rows] <= half[rows], dtype=float).groupby(person[rows]).mean()
    people = len(inside)
    if not people:
        figures = dict.fromkeys(("observed", "low", "high", "width"), np.nan)
        return {"n": 0, "participants": 0} | figures
    low, high = proportion_confint(inside.sum(), people, method="wilson")
    return {
        "n": int(rows.sum()),
        "participants": people,
        "observed": float(inside.mean()),
        "low": float(low),
        "high": float(high),
        "width": float(2 * half[rows].mean()),
    }


def _verdicts(
    controls: int, coverage: float, pooled: float, without: Sequence[str]
) -> tuple[Verdict, ...]:
    if not np.isfinite(pooled):
        text = (
            f"Intervals of {coverage:.0%} are {NOT_LOCAL}: there are {controls} controls and "
            f"{fewest(coverage)} are needed, so those of the model's card stand."
        )
        return (Verdict("not_calibrated_locally", text),)
    if without:
        text = f"Controls are too few for intervals of their own at: {', '.join(without)}."
        return (Verdict("bin_pooled", text, "note"),)
    return ()
