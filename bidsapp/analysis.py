"""The analysis of the group level: what is done with the ages of a cohort.

A table of scans in, tables and verdicts out; no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bidsapp.cohort import Cohort
from bidsapp.errors import UserError
from bidsapp.settings import Settings
from bidsapp.statistics import accuracy, association, bias_correction, conformal, confounding
from bidsapp.statistics.bias_correction import Corrected, Correction
from bidsapp.statistics.harmonization import fit_site_effects
from bidsapp.statistics.verdict import Verdict

COMPARATORS = ("ventricles", "gray_matter")
"""Volumes, in percent of the brain, that stand beside the models."""
VOLUMES_MODEL = "volumes"
"""A model of volumes takes their place."""
FEWEST_FOR_ACCURACY = 2
MANY_MISSING = 1 / 3
"""Share of people without a value above which a test with it gets a warning."""


@dataclass(frozen=True)
class ModelResult:
    """What was done with the ages of one model.

    Attributes
    ----------
    frame
        One row per scan, with all columns of the table and those that were asked for.
    tested
        (scans,) which of them enter fits and tests.
    correction
        None where no correction was asked for.
    site_effects
        Where harmonised.
    calibration
        Of the local intervals.
    decades
        What is left of the age bias in each decade of the reference.
    coverages
        How much of the reference intervals of several coverages hold.
    verdicts
        Of all these steps.
    """

    model: str
    frame: pd.DataFrame
    tested: NDArray[np.bool_]
    correction: Correction | None
    site_effects: Mapping[str, Any] | None
    calibration: Mapping[str, Any]
    decades: pd.DataFrame
    coverages: pd.DataFrame
    verdicts: tuple[Verdict, ...]

    @property
    def sample(self) -> pd.DataFrame:
        """The rows that enter fits and tests."""
        return self.frame[self.tested]

    @property
    def reference(self) -> pd.DataFrame:
        """Those of the reference among them."""
        return self.frame[self.tested & self.frame["is_reference"].to_numpy()]


def analyse_model(
    model: str, cohort: Cohort, settings: Settings, earlier: Correction | None = None
) -> ModelResult:
    """Correct the gaps of a model for age and site, and calibrate its intervals."""
    frame = cohort.scans.drop(columns="role").join(cohort.predictions[model])
    frame["model"], frame["role"] = model, cohort.role(model)
    frame["brain_age_gap"] = frame["predicted_age"] - frame["age"]
    for name in COMPARATORS:
        frame[name] = 100 * frame[f"{name}_ml"] / frame["brain_ml"]
    tested = cohort.tested(model).to_numpy()
    reference = tested & frame["is_reference"].to_numpy()
    site = _sites(frame)
    people = frame["participant_id"].to_numpy()
    verdicts: list[Verdict] = []

    corrected = _correct(frame, reference, site, settings, earlier)
    correction = None
    frame["corrected_age"] = frame["corrected_gap"] = np.nan
    frame["extrapolated"] = False
    if corrected:
        correction = corrected.correction
        frame["corrected_age"] = corrected.corrected_age
        frame["corrected_gap"] = corrected.corrected_gap
        frame["extrapolated"] = corrected.extrapolated
        verdicts += corrected.verdicts

    effects = None
    if settings.harmonize:
        gap = "brain_age_gap" if frame["corrected_gap"].isna().all() else "corrected_gap"
        effects = fit_site_effects(frame, gap, reference)
        before = frame[gap].to_numpy()
        frame["corrected_gap"] = effects.apply(frame, gap)
        shown = frame["corrected_age"].fillna(frame["predicted_age"])
        frame["corrected_age"] = shown + frame["corrected_gap"] - before
        verdicts += effects.verdicts

    local = conformal.intervals(
        frame["age"], frame["predicted_age"], frame["standard_deviation"], reference, people,
        card=(frame["interval_low"], frame["interval_high"]),
        coverage=_coverage(frame), bins=site,
    )  # fmt: skip
    frame["interval_low_local"], frame["interval_high_local"] = local.low, local.high
    frame["interval_source"] = local.source
    verdicts += local.calibration.verdicts
    frame["accelerated_p"] = conformal.accelerated_ageing(
        frame["corrected_gap"], None, reference, people
    )
    of_reference = frame.loc[reference, ["age", "corrected_gap", "participant_id"]]
    return ModelResult(
        model,
        frame,
        tested,
        correction,
        effects.record() if effects else None,
        local.calibration.to_json(),
        bias_correction.remaining_bias(*of_reference.to_numpy().T),
        conformal.coverage_table(
            frame["age"], frame["predicted_age"], frame["standard_deviation"], reference, people,
            bins=site,
        ),
        tuple(dict.fromkeys(verdicts)),
    )  # fmt: skip


def measure_accuracy(results: Sequence[ModelResult], settings: Settings) -> pd.DataFrame:
    """Accuracy in the reference, whole and in strata, and in the other groups."""
    frames = []
    for result in results:
        reference = result.reference
        others = result.sample[~result.sample["is_reference"]]
        seed = settings.random_seed
        if len(reference) >= FEWEST_FOR_ACCURACY:
            frames.append(accuracy.table(reference, seed=seed))
        if len(others) >= FEWEST_FOR_ACCURACY and others["group"].notna().any():
            table = accuracy.table(others, strata=("group",), seed=seed)
            frames.append(table[table["stratum"] == "group"])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def compare_gaps(
    results: Sequence[ModelResult],
    cohort: Cohort,
    contrasts: Sequence[association.Contrast],
    settings: Settings,
) -> tuple[pd.DataFrame, list[Verdict]]:
    """Test groups and phenotypes, for every model and the volumes beside them."""
    plan = association.Plan(settings.covariates, settings.permutations, settings.random_seed)
    level = _reference_level(cohort)
    grouped = cohort.scans["group"].nunique() > 1
    of_groups = contrasts or _default_contrasts(results[0].sample, level)
    gap = "corrected_gap" if settings.harmonize else "brain_age_gap"
    main = main_model(results)
    outcomes = [(each.model, gap, each.sample) for each in results]
    compared = main.sample
    of_volumes = next((each for each in results if each.model == VOLUMES_MODEL), None)
    if of_volumes and of_volumes is not main:
        beside = [f"{VOLUMES_MODEL}_gap"]
        compared = compared.assign(**{beside[0]: of_volumes.frame[gap]})
    else:
        beside = [name for name in COMPARATORS if compared[name].notna().any()]
        outcomes += [(name, name, compared) for name in beside]

    tables = []
    for model, outcome, sample in outcomes if contrasts or grouped else ():
        tables.append(association.group_differences(
            sample, outcome, plan, contrasts=contrasts, reference=level, model=model
        ))  # fmt: skip
    for contrast in of_groups:
        tables += [
            association.binary_outcome(sample, outcome, contrast, plan, model=model)
            for model, outcome, sample in outcomes
        ]
        if beside:
            tables.append(association.added_value(
                compared, gap, beside, contrast, plan, model=main.model
            ))  # fmt: skip
    for term in settings.phenotype_terms:
        tables += [
            association.phenotype_association(sample, outcome, term, plan, model=model)
            for model, outcome, sample in outcomes
        ]
    tables += [table for each in results for table in _reference_means(each, plan)]
    tests = association.with_q(pd.concat(tables, ignore_index=True)) if tables else pd.DataFrame()

    verdicts = [*_reference_verdicts(tests, main.model), *_missing(main.sample, settings)]
    ages = (main.correction.age_low, main.correction.age_high) if main.correction else None
    for column in dict.fromkeys([*(c.column for c in contrasts), *(["group"] * grouped)]):
        of_column = level if column == "group" else None
        verdicts += confounding.design_warnings(main.sample, column, of_column, ages)
    return tests, verdicts


def main_model(results: Sequence[ModelResult]) -> ModelResult:
    """The model that comes first in the report: the ensemble, if there are several."""
    return next((each for each in results if each.model == "ensemble"), results[0])


# --- parts ---


def _correct(
    frame: pd.DataFrame,
    reference: NDArray[np.bool_],
    site: pd.Series | None,
    settings: Settings,
    earlier: Correction | None,
) -> Corrected | None:
    if earlier:
        # A single site is no contrast here, but may be one of several of the earlier study.
        known = frame["site"] if earlier.sites else None
        return bias_correction.apply_to_all(earlier, frame["age"], frame["predicted_age"], known)
    if settings.bias_correction == "none":
        return None
    degrees = {"auto": None, "1": 1, "2": 2, "3": 3, "bic": "bic"}
    degree = degrees[settings.bias_degree]
    try:
        return bias_correction.cross_fit(
            frame["age"], frame["predicted_age"], reference, frame["participant_id"],
            method=cast(Any, settings.bias_correction), degree=cast(Any, degree),
            robust=settings.bias_robust, site=site, seed=settings.random_seed,
            force=settings.bias_force,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(
            f"--bias-correction {settings.bias_correction} does not go with --bias-degree "
            f"{settings.bias_degree}: {error}."
        ) from error


def _reference_means(result: ModelResult, plan: association.Plan) -> Iterator[pd.DataFrame]:
    """Mean gap of the reference, raw and corrected, and raw at every site."""
    reference = result.reference
    for outcome in ("brain_age_gap", "corrected_gap"):
        if reference[outcome].notna().any():
            yield association.mean_of(
                reference, outcome, plan, label="reference", model=result.model
            )
    if reference["site"].nunique() > 1:
        for site, rows in reference.groupby("site"):
            yield association.mean_of(
                rows, "brain_age_gap", plan, label=f"reference, {site}", model=result.model
            )


def _reference_verdicts(tests: pd.DataFrame, main: str) -> Iterator[Verdict]:
    """Warn where the mean raw gap of the reference, or of a site's, is not 0."""
    if tests.empty:
        return
    means = tests[(tests["measure"] == "mean") & (tests["outcome"] == "brain_age_gap")]
    off = means[(means["effect_low"] > 0) | (means["effect_high"] < 0)]
    rows = off[off["model"] == main]
    if rows.empty:
        return
    said = "; ".join(
        f"{row.contrast}: {row.effect:+.1f} years, {row.effect_low:.1f} to {row.effect_high:.1f}"
        for row in rows.itertuples()
    )
    others = [model for model in dict.fromkeys(off["model"]) if model != main]
    also = f"; so it is for {', '.join(others)}" if others else ""
    text = (
        f"The mean gap of the reference should be 0 and is not ({said}{also}): compare with the "
        "reference of the same site, never with 0."
    )
    yield Verdict("reference_gap", text)


def _missing(sample: pd.DataFrame, settings: Settings) -> Iterator[Verdict]:
    """Warn of columns that many people lack, who are left out of the tests with them."""
    people = sample["participant_id"].nunique()
    for name in dict.fromkeys((*settings.covariates, *settings.phenotype_terms)):
        if name not in sample:
            continue
        lacking = int(sample.groupby("participant_id")[name].first().isna().sum())
        if lacking > MANY_MISSING * people:
            text = (
                f"{name} is not known for {lacking} of {people} participants, who are left out of "
                "all tests with it: the others may be unlike them."
            )
            yield Verdict("many_missing", text)


def _default_contrasts(
    sample: pd.DataFrame, reference: str | None
) -> tuple[association.Contrast, ...]:
    """Every group with the reference; without one, two groups with each other."""
    groups = sorted(sample["group"].dropna().astype(str).unique())
    if reference in groups:
        others = (group for group in groups if group != reference)
        return tuple(association.Contrast("group", group, str(reference)) for group in others)
    return (association.Contrast("group", groups[1], groups[0]),) if len(groups) == 2 else ()


def _reference_level(cohort: Cohort) -> str | None:
    """The group of the reference, the largest where several mean it."""
    groups = cohort.scans["group"]
    counts = groups[groups.isin(cohort.levels)].value_counts()
    return str(counts.index[0]) if len(counts) else None


def _sites(frame: pd.DataFrame) -> pd.Series | None:
    """Labels of the sites, if there are several; unknown ones count as a site of their own."""
    return frame["site"].fillna("n/a") if frame["site"].nunique(dropna=False) > 1 else None


def _coverage(frame: pd.DataFrame) -> float:
    """Coverage that the intervals of the records have, mostly."""
    modes = frame["coverage"].mode()
    return float(modes.iloc[0]) if len(modes) else 0.9
