"""Tests of the brain-age gap: groups, phenotypes, and what the gap adds to other measures.

Every function takes a table with one row per scan (columns ``participant_id``, the outcome,
``age``, ``sex``, ``site``, and what is asked for; ``session_id`` where there is one) and returns
a table of tests with the columns of ``COLUMNS``, one row per test. The outcome is any column of
numbers: the gap of a model in years, or a volume in ml to compare it with.

A test that cannot be made is a row without figures whose ``verdict`` names the reason and whose
``notes`` say it in a sentence. Rows, levels and covariates that are left out are counted in
``notes``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.discrete.discrete_model import Logit
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.tools.sm_exceptions import PerfectSeparationError

from bidsapp.errors import UserError
from bidsapp.statistics.design import (
    MOST_PAIRS,
    Design,
    build,
    numbers,
    participants,
    words,
)
from bidsapp.statistics.permutation import freedman_lane, permutation_count

Matrix = NDArray[np.float64]

COLUMNS = (
    "model", "outcome", "term", "contrast", "measure", "n", "n_level", "n_reference",
    "effect", "effect_low", "effect_high", "cohens_d", "cohens_d_adjusted", "hedges_g",
    "hedges_g_low", "hedges_g_high", "auc", "auc_without", "statistic", "df", "df_effect", "p",
    "p_permutation", "p_holm", "q", "method", "covariates", "verdict", "notes",
)  # fmt: skip
"""Columns of a table of tests.

``measure`` says what ``effect`` is: "difference" or "mean" (in units of the outcome), "partial
eta squared" (of an omnibus F test), "partial r", "partial Spearman rho", "odds ratio per SD".
``cohens_d`` is raw; ``cohens_d_adjusted`` is t sqrt(1/n1 + 1/n2) with the classical t of the
adjusted difference, and ``hedges_g`` with its interval is made from it. ``df`` is that of the
residuals, ``df_effect`` that of an F or chi-square test. ``verdict`` is "tested", "described" (no
hypothesis), or why there is no test: "too_few", "too_many_levels", "no_variation", "confounded",
"separation", "no_column".
"""


@dataclass(frozen=True)
class Plan:
    """How all tests of a run are made.

    Attributes
    ----------
    covariates
        Columns to adjust for beside age, age squared, sex and site; numbers are linear terms,
        words are levels.
    permutations
        Of each Freedman-Lane test, at most; fewer in large tables (`permutation_count`); 0: none.
    seed
        Of the permutations.
    confidence
        Of all intervals.
    """

    covariates: tuple[str, ...] = ()
    permutations: int = 10_000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Contrast:
    """Two levels of a column; effects are `level` minus `reference`."""

    column: str
    level: str
    reference: str

    def __str__(self) -> str:
        return f"{self.column}: {self.level} - {self.reference}"


FEWEST = 3
"""Participants of a group, and degrees of freedom, below which there is no test."""
MOST_LEVELS = 20
"""Levels of a column beyond which it is no grouping."""
FEW_PER_TERM = 5
_NO_INFORMATION = 1e-9


class _NoTest(Exception):
    """Why a test cannot be made: its verdict, and the sentences about it."""

    def __init__(self, verdict: str, why: str, design: Design):
        notes = " ".join(dict.fromkeys((why, *design.notes)))
        self.row = {"verdict": verdict, "n": len(design.rows), "notes": notes}


def parse_contrast(text: str, table: pd.DataFrame) -> Contrast:
    """Read a contrast such as ``group: AD - control`` against the levels of the table.

    The column may be left out (``AD - control`` is of ``group``); levels may hold hyphens and
    spaces; case matters only where levels differ by nothing else.

    Raises
    ------
    UserError
        If the column or a level does not exist; the sentence lists those that do.
    """
    before, colon, after = text.partition(":")
    asked, sides = (before.strip(), after) if colon else ("group", text)
    column = _like(asked, [str(name) for name in table.columns])
    if column is None:
        raise UserError(
            f"contrast '{text}': there is no column '{asked}'; give one of "
            f"{', '.join(map(str, table.columns))}."
        )
    levels = sorted(words(table[column]).dropna().unique())
    cuts = [place for place, letter in enumerate(sides) if letter in "-\u2212\u2013"]
    pairs = [(_like(sides[:cut], levels), _like(sides[cut + 1 :], levels)) for cut in cuts]
    for level, other in pairs:
        if level and other and level != other:
            return Contrast(column, level, other)
    raise UserError(
        f"contrast '{text}' is not 'COLUMN: LEVEL - REFERENCE' with two levels of '{column}', "
        f"which are {', '.join(levels) or 'none'}."
    )


def group_differences(
    table: pd.DataFrame,
    outcome: str,
    plan: Plan,
    *,
    by: str = "group",
    contrasts: Sequence[Contrast] = (),
    reference: str | None = None,
    model: str = "",
) -> pd.DataFrame:
    """Adjusted differences of the outcome between levels of a column (ANCOVA, HC3).

    Without `contrasts`: with two levels their difference, with more an omnibus F test, then all
    pairs with Holm's p (with very many levels, the pairs with `reference` alone). A pair is fitted
    to the participants of its two levels.

    Parameters
    ----------
    outcome
        Column of the outcome.
    contrasts
        Test these, and only these (each of its own column; `by` is not used).
    reference
        Level that comes second in its contrasts (the controls).
    model
        For the column ``model`` of the result.
    """
    if contrasts:
        rows = [_difference(table, outcome, contrast, plan) for contrast in contrasts]
        return _tests(rows, model, outcome)
    if by not in table or outcome not in table:
        absent = by if by not in table else outcome
        return _tests([_no_column(by, absent)], model, outcome)
    people, covariates, notes = participants(table, outcome, (by,), plan.covariates)
    count = people.loc[people[outcome].notna(), by].value_counts()
    levels = sorted(count.index[count >= FEWEST], key=lambda level: (level != reference, level))
    if len(levels) < len(count):
        notes += (_left_out(count),)
    if len(levels) < 2:
        why = f"{by} has {len(levels)} level{'s' * (len(levels) != 1)} with enough participants."
        only = {"term": by, "verdict": "too_few" if len(count) > 1 else "no_variation"}
        return _tests([only | {"notes": " ".join((why, *notes))}], model, outcome)

    if len(levels) > MOST_LEVELS:
        why = f"{by} has {len(levels)} levels; more than {MOST_LEVELS} are no grouping."
        only = {"term": by, "verdict": "too_many_levels", "notes": " ".join((why, *notes))}
        return _tests([only], model, outcome)

    pairs = [Contrast(by, second, first) for first, second in combinations(levels, 2)]
    if len(pairs) > MOST_PAIRS:
        pairs = [pair for pair in pairs if pair.reference == reference]
        notes += (f"{by} has {len(levels)} levels: not all pairs are tested.",)
    kept = people[people[by].isin(levels)]
    rows = []
    if len(levels) > 2:
        rows.append(_attempt(_omnibus, kept, outcome, by, covariates, notes, plan))
    of_pairs = [_attempt(_pair, people, outcome, pair, covariates, notes, plan) for pair in pairs]
    if len(of_pairs) > 1:
        _fill_holm(of_pairs)
    return _tests(rows + of_pairs, model, outcome)


def phenotype_association(
    table: pd.DataFrame, outcome: str, phenotype: str, plan: Plan, *, model: str = ""
) -> pd.DataFrame:
    """Association of the outcome with another column, by what that column holds.

    More than two numbers: partial correlation and partial Spearman correlation. Two levels:
    logistic regression of the phenotype on the outcome. More than two words: as groups.
    """
    if phenotype not in table or outcome not in table:
        absent = phenotype if phenotype not in table else outcome
        return _tests([_no_column(phenotype, absent)], model, outcome)
    levels = sorted(words(table[phenotype]).dropna().unique())
    values = numbers(table[phenotype])
    if len(levels) == 2:
        if values is not None:
            levels.sort(key=float)
        contrast = Contrast(phenotype, levels[1], levels[0])
        return binary_outcome(table, outcome, contrast, plan, model=model)
    if values is None:
        return group_differences(table, outcome, plan, by=phenotype, model=model)
    people, covariates, notes = participants(
        table, outcome, (phenotype,), plan.covariates, labels=False
    )
    rows = [
        _attempt(_correlation, people, outcome, phenotype, covariates, notes, plan, ranks)
        for ranks in (False, True)
    ]
    return _tests(rows, model, outcome)


def binary_outcome(
    table: pd.DataFrame, outcome: str, contrast: Contrast, plan: Plan, *, model: str = ""
) -> pd.DataFrame:
    """Odds ratio of `contrast.level` per SD of the outcome (logistic regression).

    The p-value is that of the likelihood ratio of the model with the outcome to the model
    without; the intervals are Wald's; ``auc`` and ``auc_without`` are in sample. Participants at
    a site where all have the same level say nothing about the odds and are left out.
    """
    if contrast.column not in table or outcome not in table:
        absent = contrast.column if contrast.column not in table else outcome
        return _tests([_no_column(contrast.column, absent)], model, outcome)
    people, covariates, notes = participants(table, outcome, (contrast.column,), plan.covariates)
    row = _attempt(_logistic, people, outcome, contrast, covariates, notes, plan)
    return _tests([row], model, outcome)


def added_value(
    table: pd.DataFrame,
    outcome: str,
    beside: Sequence[str],
    contrast: Contrast,
    plan: Plan,
    *,
    model: str = "",
) -> pd.DataFrame:
    """Test what the outcome tells about a contrast that the columns `beside` do not.

    Two rows: the adjusted difference of the outcome with `beside` among the covariates, and the
    likelihood ratio and AUC of the logistic model with and without the outcome. Call it with
    outcome and `beside` exchanged for the reverse question.
    """
    term = f"{contrast.column}, given {' and '.join(beside)}"
    absent = [name for name in (contrast.column, outcome, *beside) if name not in table]
    if absent:
        return _tests([_no_column(term, absent[0])], model, outcome)
    plan = replace(plan, covariates=(*plan.covariates, *beside))
    difference = _tests([_difference(table, outcome, contrast, plan)], model, outcome)
    odds = binary_outcome(table, outcome, contrast, plan, model=model)
    return pd.concat([difference, odds], ignore_index=True).assign(term=term)


def mean_of(
    table: pd.DataFrame, outcome: str, plan: Plan, *, label: str = "controls", model: str = ""
) -> pd.DataFrame:
    """Mean of the outcome with its interval; no hypothesis (p stays empty).

    Give the rows of the controls: the interval of their gap should hold 0.
    """
    row: dict[str, Any] = {"term": "mean", "contrast": label, "measure": "mean"}
    if outcome not in table:
        return _tests([_no_column("mean", outcome)], model, outcome)
    people, _, _ = participants(table, outcome, ())
    design = build(people, outcome, (), ())
    values = design.outcome
    row |= {"n": len(values), "notes": " ".join(design.notes)}
    if len(values) < FEWEST:
        row |= {"verdict": "too_few", "notes": f"{row['notes']} Only {len(values)}.".strip()}
        return _tests([row], model, outcome)
    half = _t_quantile(plan, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    row |= {
        "effect": values.mean(), "effect_low": values.mean() - half,
        "effect_high": values.mean() + half, "df": len(values) - 1, "verdict": "described",
        "method": f"mean, t interval; {_PER_PERSON}",
    }  # fmt: skip
    return _tests([row], model, outcome)


def with_q(tests: pd.DataFrame) -> pd.DataFrame:
    """Fill ``q``: Benjamini-Hochberg over all p-values of a run (call it once, on all tests)."""
    p = tests["p"].to_numpy(float)
    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return tests.assign(q=q)


# --- one test, one row ---


def _difference(
    table: pd.DataFrame, outcome: str, contrast: Contrast, plan: Plan
) -> dict[str, Any]:
    for name in (contrast.column, outcome):
        if name not in table:
            return _no_column(contrast.column, name)
    people, covariates, notes = participants(table, outcome, (contrast.column,), plan.covariates)
    return _attempt(_pair, people, outcome, contrast, covariates, notes, plan)


def _pair(
    people: pd.DataFrame,
    outcome: str,
    contrast: Contrast,
    covariates: Sequence[str],
    notes: Sequence[str],
    plan: Plan,
) -> dict[str, Any]:
    """ANCOVA of two levels."""
    design, member = _two_levels(people, outcome, contrast, covariates, notes)
    remarks = _check(design, design.outcome, member)
    n1, n0 = int(member.sum()), int((1 - member).sum())
    classic = OLS(design.outcome, np.column_stack([design.nuisance, member])).fit()
    fit = classic.get_robustcov_results("HC3", use_t=True)
    low, high = fit.conf_int(1 - plan.confidence)[-1]
    adjusted = classic.tvalues[-1] * (1 / n1 + 1 / n0) ** 0.5
    return {
        "measure": "difference", "effect": fit.params[-1], "effect_low": low, "effect_high": high,
        "cohens_d": _cohens_d(design.outcome, member == 1), "cohens_d_adjusted": adjusted,
        **_hedges(adjusted, n1, n0, plan), "n_level": n1, "n_reference": n0,
        "statistic": fit.tvalues[-1], "df": fit.df_resid, "p": fit.pvalues[-1],
        **_permuted(design.outcome, member, design.nuisance, plan, "linear model, HC3 t test"),
        **_about(design, remarks),
    }  # fmt: skip


def _omnibus(
    people: pd.DataFrame,
    outcome: str,
    column: str,
    covariates: Sequence[str],
    notes: Sequence[str],
    plan: Plan,
) -> dict[str, Any]:
    """Whether any level differs."""
    design = build(people, outcome, (column,), covariates, notes)
    count = design.rows[column].value_counts()
    levels = sorted(count.index[count >= FEWEST])
    if len(levels) < len(count):
        kept = design.rows[design.rows[column].isin(levels)]
        design = build(kept, outcome, (column,), covariates, (*design.notes, _left_out(count)))
    if len(levels) < 2:
        raise _NoTest("too_few", f"Fewer than two levels have {FEWEST} each.", design)
    members = np.column_stack([design.rows[column] == level for level in levels[1:]]).astype(float)
    remarks = _check(design, design.outcome, members)
    classic = OLS(design.outcome, np.column_stack([design.nuisance, members])).fit()
    fit = classic.get_robustcov_results("HC3", use_t=True)
    test = fit.f_test(np.eye(len(fit.params))[design.nuisance.shape[1] :])
    without = OLS(design.outcome, design.nuisance).fit()
    return {
        "measure": "partial eta squared", "effect": 1 - classic.ssr / without.ssr,
        "statistic": float(test.fvalue), "df": fit.df_resid, "df_effect": members.shape[1],
        "p": float(test.pvalue),
        **_permuted(design.outcome, members, design.nuisance, plan, "linear model, HC3 F test"),
        **_about(design, remarks),
    }  # fmt: skip


def _correlation(
    people: pd.DataFrame,
    outcome: str,
    phenotype: str,
    covariates: Sequence[str],
    notes: Sequence[str],
    plan: Plan,
    ranks: bool,
) -> dict[str, Any]:
    """Partial correlation: that of the residuals of outcome and phenotype on the covariates."""
    design = build(people, outcome, (phenotype,), covariates, notes)
    y, x, nuisance = design.outcome, design.rows[phenotype].to_numpy(), design.nuisance
    remarks = _check(design, y, x)
    if ranks:
        y, x, nuisance = (stats.rankdata(given, axis=0) for given in (y, x, nuisance))
    left_y, left_x = _residuals(y, nuisance), _residuals(x, nuisance)
    r = float(left_y @ left_x / (np.linalg.norm(left_y) * np.linalg.norm(left_x)))
    r = float(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    df = len(y) - 1 - nuisance.shape[1]
    # Fisher; for ranks with the variance of Bonett & Wright (2000).
    spread = ((1 + r**2 / 2 if ranks else 1) / (df - 1)) ** 0.5
    half = stats.norm.ppf((1 + plan.confidence) / 2) * spread
    t = r * (df / (1 - r**2)) ** 0.5
    name = "Spearman rho" if ranks else "r"
    method = f"partial {'rank ' * ranks}correlation"
    return {
        "measure": f"partial {name}", "effect": r, "effect_low": np.tanh(np.arctanh(r) - half),
        "effect_high": np.tanh(np.arctanh(r) + half), "statistic": t, "df": df,
        "p": 2 * stats.t.sf(abs(t), df), **_permuted(y, x, nuisance, plan, method),
        **_about(design, remarks),
    }  # fmt: skip


def _logistic(
    people: pd.DataFrame,
    outcome: str,
    contrast: Contrast,
    covariates: Sequence[str],
    notes: Sequence[str],
    plan: Plan,
) -> dict[str, Any]:
    """Odds ratio per SD of the outcome."""
    design, member = _two_levels(people, outcome, contrast, covariates, notes)
    while (mute := _one_sided(design, member)).any():
        remark = (
            f"{mute.sum()} left out at levels of a covariate where all have one {contrast.column}."
        )
        design, member = _two_levels(
            design.rows[~mute], outcome, contrast, covariates, (*design.notes, remark)
        )
    remarks = _check(design, design.outcome, member)
    scaled = (design.outcome - design.outcome.mean()) / design.outcome.std(ddof=1)
    without, auc_without = _logit(member, design.nuisance, design)
    fit, auc = _logit(member, np.column_stack([design.nuisance, scaled]), design)
    low, high = np.exp(fit.conf_int(1 - plan.confidence)[-1])
    ratio = max(2 * (fit.llf - without.llf), 0.0)
    rarer = min(member.sum(), (1 - member).sum())
    if rarer < FEW_PER_TERM * len(fit.params):
        remarks.append(f"{rarer:.0f} of the rarer level for {len(fit.params)} terms: p is rough.")
    return {
        "measure": "odds ratio per SD", "effect": np.exp(fit.params[-1]), "effect_low": low,
        "effect_high": high, "auc": auc, "auc_without": auc_without, "statistic": ratio,
        "df_effect": 1, "p": stats.chi2.sf(ratio, 1), "n_level": int(member.sum()),
        "n_reference": int((1 - member).sum()),
        "method": "logistic regression, likelihood ratio chi-square, Wald interval, AUC in "
        f"sample; {_PER_PERSON}",
        **_about(design, remarks),
    }  # fmt: skip


# --- what the tests share ---

_TEXTS = ("term", "contrast", "measure", "method", "covariates", "verdict", "notes")
_PER_PERSON = "first session of each participant, its scans averaged"


def _attempt(
    test: Callable[..., dict[str, Any]], people: pd.DataFrame, outcome: str,
    term: str | Contrast, *given: Any,
) -> dict[str, Any]:  # fmt: skip
    """Row of a test, or the row that says why there is none."""
    row = {"term": term} if isinstance(term, str) else {
        "term": term.column, "contrast": f"{term.level} - {term.reference}"
    }  # fmt: skip
    try:
        return row | test(people, outcome, term, *given) | {"verdict": "tested"}
    except _NoTest as reason:
        return row | reason.row


def _tests(rows: Sequence[dict[str, Any]], model: str, outcome: str) -> pd.DataFrame:
    given = {"model": model, "outcome": outcome, **dict.fromkeys(_TEXTS, "")}
    tests = pd.DataFrame([given | row for row in rows], columns=list(COLUMNS))
    return tests.astype({name: float for name in COLUMNS if name not in given})


def _no_column(term: str, absent: str) -> dict[str, Any]:
    return {"term": term, "verdict": "no_column", "notes": f"There is no column '{absent}'."}


def _two_levels(
    people: pd.DataFrame,
    outcome: str,
    contrast: Contrast,
    covariates: Sequence[str],
    notes: Sequence[str],
) -> tuple[Design, Matrix]:
    """Design of the participants of a contrast, and who is of its level (1) or reference (0)."""
    of = people[contrast.column]
    pair = people[of.isin([contrast.level, contrast.reference])]
    design = build(pair, outcome, (contrast.column,), covariates, notes)
    member = (design.rows[contrast.column] == contrast.level).to_numpy(float)
    n1, n0 = int(member.sum()), int((1 - member).sum())
    if min(n1, n0) < FEWEST:
        counts = f"{contrast.level} {n1}, {contrast.reference} {n0}"
        raise _NoTest("too_few", f"{counts}: a test takes {FEWEST} of each.", design)
    return design, member


def _check(design: Design, target: Matrix, interest: Matrix) -> list[str]:
    """Refuse what cannot be estimated; return what a reader must know otherwise."""
    interest = interest[:, None] if interest.ndim == 1 else interest
    n, terms = len(target), design.nuisance.shape[1] + interest.shape[1]
    if n - terms < FEWEST:
        why = f"Too few participants ({n}) for a model of {terms} terms."
        raise _NoTest("too_few", why, design)
    for name, values in (("outcome", target), ("term", interest)):
        centred = values - values.mean(axis=0)
        if not (np.linalg.norm(centred, axis=0) > 1e-12 * np.linalg.norm(values, axis=0)).all():
            why = f"The {name} is the same for all."
            raise _NoTest("no_variation", why, design)
    apart = _independent_share(interest, design.nuisance)
    if apart < _NO_INFORMATION:
        why = f"The term follows exactly from the covariates ({design.covariates})."
        raise _NoTest("confounded", why, design)
    if _independent_share(target[:, None], design.nuisance) < _NO_INFORMATION:
        why = "The covariates leave no variation of the outcome."
        raise _NoTest("no_variation", why, design)
    full = np.linalg.qr(np.column_stack([design.nuisance, interest]))[0]
    if (full**2).sum(axis=1).max() > 1 - _NO_INFORMATION:
        why = "A single participant decides the result: the covariates leave no other to compare."
        raise _NoTest("confounded", why, design)
    if apart < 0.1:
        return [f"The covariates explain {1 - apart:.0%} of the term: hard to tell apart."]
    return []


def _about(design: Design, remarks: Sequence[str]) -> dict[str, Any]:
    return {
        "n": len(design.rows),
        "covariates": design.covariates,
        "notes": " ".join(dict.fromkeys((*remarks, *design.notes))),
    }


def _permuted(
    outcome: Matrix, interest: Matrix, nuisance: Matrix, plan: Plan, method: str
) -> dict[str, Any]:
    """Permutation p-value, and the words for the whole test."""
    count = permutation_count(plan.permutations, len(outcome))
    if not count:
        return {"method": f"{method}; {_PER_PERSON}"}
    p = freedman_lane(outcome, interest.reshape(len(outcome), -1), nuisance, count, plan.seed)
    shuffled = f"{count:,} Freedman-Lane permutations of its HC3 statistic"
    return {"p_permutation": p, "method": f"{method}; {shuffled}; {_PER_PERSON}"}


def _left_out(count: pd.Series) -> str:
    small = [f"{level} ({number})" for level, number in sorted(count.items()) if number < FEWEST]
    listed = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
    return f"Levels with fewer than {FEWEST} participants left out: {listed}."


def _residuals(values: Matrix, nuisance: Matrix) -> Matrix:
    left: Matrix = values - nuisance @ np.linalg.lstsq(nuisance, values)[0]
    return left


def _independent_share(interest: Matrix, nuisance: Matrix) -> float:
    """Least share of the variance of any combination of columns that the nuisance leaves."""
    centred = interest - interest.mean(axis=0)
    if np.linalg.matrix_rank(centred) < centred.shape[1]:
        return 0.0
    basis = np.linalg.qr(centred)[0]
    return float(np.linalg.svd(_residuals(basis, nuisance), compute_uv=False).min() ** 2)


def _cohens_d(values: Matrix, member: NDArray[np.bool_]) -> float:
    """Raw difference of means over the pooled standard deviation."""
    one, other = values[member], values[~member]
    squares = one.var() * len(one) + other.var() * len(other)
    pooled = (squares / (len(values) - 2)) ** 0.5
    return float((one.mean() - other.mean()) / pooled) if pooled > 0 else float("nan")


def _hedges(d: float, n1: int, n0: int, plan: Plan) -> dict[str, float]:
    """Hedges' g and its large-sample interval (Hedges & Olkin 1985)."""
    unbias = 1 - 3 / (4 * (n1 + n0) - 9)
    spread = ((n1 + n0) / (n1 * n0) + d**2 / (2 * (n1 + n0))) ** 0.5
    half = stats.norm.ppf((1 + plan.confidence) / 2) * spread
    return {"hedges_g": unbias * d, "hedges_g_low": unbias * (d - half),
            "hedges_g_high": unbias * (d + half)}  # fmt: skip


def _logit(member: Matrix, terms: Matrix, design: Design) -> tuple[Any, float]:
    """Logistic regression and the AUC of its fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is checked below
        try:
            fit = Logit(member, terms).fit(disp=0, maxiter=50)
            apart = not fit.mle_retvals["converged"] or np.abs(fit.fittedvalues).max() > 30
        except (np.linalg.LinAlgError, PerfectSeparationError):
            apart = True
    if apart:
        why = "The two levels are told apart perfectly: there is no finite odds ratio."
        raise _NoTest("separation", why, design)
    cases, others = fit.fittedvalues[member == 1], fit.fittedvalues[member == 0]
    above = stats.mannwhitneyu(cases, others, method="asymptotic").statistic
    return fit, float(above / (len(cases) * len(others)))


def _one_sided(design: Design, member: Matrix) -> NDArray[np.bool_]:
    """Rows at a level of a covariate (a site) where all are of one level of the contrast."""
    mute = np.zeros(len(member), bool)
    for name in design.covariates.split(" + "):
        if name in design.rows and not pd.api.types.is_float_dtype(design.rows[name]):
            share = pd.Series(member).groupby(design.rows[name]).transform("mean")
            mute |= share.isin([0.0, 1.0]).to_numpy()
    return mute


def _fill_holm(rows: Sequence[dict[str, Any]]) -> None:
    tested = [row for row in rows if row["verdict"] == "tested"]
    if tested:
        corrected = multipletests([row["p"] for row in tested], method="holm")[1]
        for row, p in zip(tested, corrected, strict=True):
            row["p_holm"] = p


def _like(text: str, names: Sequence[str]) -> str | None:
    """Name that is meant: the same, or the only one that differs by case alone."""
    text = text.strip()
    like = [name for name in names if name.casefold() == text.casefold()]
    return text if text in names else like[0] if len(like) == 1 else None


def _t_quantile(plan: Plan, df: int) -> float:
    return float(stats.t.ppf((1 + plan.confidence) / 2, df))
