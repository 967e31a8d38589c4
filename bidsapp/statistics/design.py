"""From a table of scans to the rows and the design matrix of one test.

Whatever is left out on the way, rows or covariates, is counted in ``notes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

ALWAYS = ("age", "sex", "site")
"""Adjusted for in every test, where the table has them; age with its square."""
WORDS = ("sex", "site", "group")
"""Columns whose numbers are labels."""
MOST_PAIRS = 15
"""Pairs of levels that are compared one by one, at most."""
_MISSING = {"", "n/a", "nan", "None", "<NA>"}
_ALIASED = 1e-6


@dataclass(frozen=True)
class Design:
    """Complete rows of one test, one per participant.

    Attributes
    ----------
    rows
        The participants; columns are the outcome, the terms of interest and the covariates.
    outcome
        (n,)
    nuisance
        (n, k) constant and covariates, of full rank; numbers are standardised.
    covariates
        What is adjusted for, such as "age + age2 + sex + site".
    notes
        What was left out, in sentences.
    """

    rows: pd.DataFrame
    outcome: Matrix
    nuisance: Matrix
    covariates: str
    notes: tuple[str, ...]


def words(column: pd.Series) -> pd.Series:
    """Values as labels, missing ones as NaN; 1.0 and 1 are the same label."""

    def label(value: object) -> str | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip()
        return None if text in _MISSING else text

    labels = {value: label(value) for value in column.unique()}
    return column.map(labels).astype(object)


def numbers(column: pd.Series) -> pd.Series | None:
    """Values as finite numbers or NaN; ``None`` if a known value is no number."""
    known = column.where(~column.astype(str).str.strip().isin(_MISSING))
    values = pd.to_numeric(known, errors="coerce").astype(float)
    if (values.isna() & known.notna()).any():
        return None
    return values.where(np.isfinite(values))


def participants(
    table: pd.DataFrame,
    outcome: str,
    terms: Sequence[str],
    covariates: Sequence[str] = (),
    labels: bool = True,
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Return one row per participant, the covariates that the table has, and notes.

    The row is the participant's first session with an outcome, its scans averaged (labels: of the
    first scan). The first session is the one at the youngest age, or else the first by its label.
    So no participant counts twice, and none is averaged over a change of state.

    Parameters
    ----------
    terms
        Columns of interest, beside the outcome; never among the covariates.
    covariates
        To adjust for, beside ``ALWAYS``.
    labels
        Whether the terms are labels even if they look like numbers.
    """
    asked = [name for name in dict.fromkeys((*ALWAYS, *covariates))
             if name not in (outcome, *terms)]  # fmt: skip
    absent = [name for name in asked if name not in table and name not in ALWAYS]
    asked = [name for name in asked if name in table]
    about = [name for name in ("participant_id", "session_id") if name in table]
    needed = [name for name in dict.fromkeys((*about, "age", outcome, *terms, *asked))
              if name in table]  # fmt: skip
    rows = pd.DataFrame({name: _typed(table[name]) for name in needed})
    measured = pd.to_numeric(table[outcome], errors="coerce").astype(float)
    rows[outcome] = measured.where(np.isfinite(measured))
    if labels:
        rows[list(terms)] = table[list(terms)].apply(words)
    if about[:1] == ["participant_id"] and rows["participant_id"].duplicated().any():
        rows = _first_session(rows, outcome)
    notes = (f"No such column, so not adjusted for: {', '.join(absent)}.",) if absent else ()
    return rows, tuple(asked), notes


def build(
    rows: pd.DataFrame,
    outcome: str,
    terms: Sequence[str],
    covariates: Sequence[str],
    notes: Sequence[str] = (),
) -> Design:
    """Turn participants into complete rows and a matrix of full rank, without rows of leverage 1.

    A covariate that most participants lack, that is the same for all or that others determine is
    left out; so is who is alone at a site: a row that is fitted exactly tells nothing.
    """
    notes = list(notes)
    rare = [name for name in covariates if name != "age" and rows[name].notna().mean() < 0.5]
    if rare:
        notes.append(f"Unknown for most, so not adjusted for: {', '.join(rare)}.")
    names = [name for name in covariates if name not in rare]
    rows, lacking = _complete(rows, (outcome, *terms, *names))
    if lacking:
        notes.insert(0, lacking)
    constant = [name for name in names if rows[name].nunique() < 2]
    if constant and len(rows) > 1:
        notes.append(f"The same for all, so not adjusted for: {', '.join(constant)}.")
    names = [name for name in names if name not in constant]

    alone = 0
    while True:
        nuisance, leverage, used, aliased = _nuisance(rows, names)
        fitted_exactly = leverage > 1 - 1e-9
        if len(rows) <= nuisance.shape[1] or not fitted_exactly.any():
            break
        alone += int(fitted_exactly.sum())
        rows = rows[~fitted_exactly].reset_index(drop=True)
    if alone:
        notes.append(f"{alone} left out who are alone in a level of a covariate.")
    if aliased:
        notes.append(f"Determined by other covariates, so left out: {', '.join(aliased)}.")
    return Design(rows, rows[outcome].to_numpy(float), nuisance, " + ".join(used), tuple(notes))


def _first_session(rows: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """See `participants`; those without any outcome keep a row, to be counted later."""
    person = rows["participant_id"]
    known = rows[outcome].notna()
    rows = rows[known | ~known.groupby(person).transform("any")]
    order = [name for name in ("participant_id", "age", "session_id") if name in rows]
    rows = rows.sort_values(order, kind="stable")
    if "session_id" in rows:
        session = rows["session_id"].fillna("")
        rows = rows[session == session.groupby(rows["participant_id"]).transform("first")]
    how = {
        name: "mean" if pd.api.types.is_float_dtype(rows[name]) else "first"
        for name in rows.columns
        if name != "participant_id"
    }
    return rows.groupby("participant_id", sort=False).agg(how).reset_index()


def _complete(rows: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Rows that have all columns, and how many were left out for lack of which."""
    lacking = {}
    for name in dict.fromkeys(names):
        known = rows[name].notna()
        lacking[name] = int((~known).sum())
        rows = rows[known]
    counts = ", ".join(f"{name} ({count})" for name, count in lacking.items() if count)
    text = f"{sum(lacking.values())} left out for lack of {counts}." if counts else ""
    return rows.reset_index(drop=True), text


def _typed(column: pd.Series) -> pd.Series:
    """Numbers as floats, all else as labels."""
    values = None if column.name in WORDS else numbers(column)
    return words(column) if values is None else values


def _nuisance(
    rows: pd.DataFrame, covariates: Sequence[str]
) -> tuple[Matrix, Matrix, list[str], list[str]]:
    """Constant and covariates, leverages, names of what stands and of what is all aliased."""
    given = [("", np.ones(len(rows))), *_columns(rows, covariates)]
    basis = np.zeros((len(rows), len(given)))  # orthonormal, by Gram-Schmidt done twice
    kept: list[tuple[str, Matrix]] = []
    for name, column in given:
        left = column - basis @ (basis.T @ column)
        left -= basis @ (basis.T @ left)
        if np.linalg.norm(left) > _ALIASED * np.linalg.norm(column):
            basis[:, len(kept)] = left / np.linalg.norm(left)
            kept.append((name, column))
    if not kept:
        kept = given[:1]
    used = list(dict.fromkeys(name for name, _ in kept if name))
    aliased = [name for name in dict.fromkeys(name for name, _ in given[1:]) if name not in used]
    return np.column_stack([column for _, column in kept]), (basis**2).sum(axis=1), used, aliased


def _columns(rows: pd.DataFrame, covariates: Sequence[str]) -> list[tuple[str, Matrix]]:
    found: list[tuple[str, Matrix]] = []
    for name in covariates:
        if pd.api.types.is_float_dtype(rows[name]):
            values = rows[name].to_numpy()
            values = (values - values.mean()) / (values.std() or 1)
            found.append((name, values))
            if name == "age":
                found.append(("age2", values**2))
        else:
            levels = sorted(rows[name].unique())
            found += [(name, (rows[name] == level).to_numpy(float)) for level in levels[1:]]
    return found
