"""The columns of the tables of the group level, and what they mean."""

from __future__ import annotations

from typing import Any

from bidsapp.cohort import ROLES


def _years(description: str) -> dict[str, str]:
    return {"Description": description, "Units": "years"}


def _bounds(name: str, description: str) -> dict[str, dict[str, str]]:
    """A figure and its bootstrap interval."""
    return {
        name: _years(description),
        f"{name}_low": _years(f"Lower 95 % bound of {name}"),
        f"{name}_high": _years(f"Upper 95 % bound of {name}"),
    }


def _unitless(name: str, description: str) -> dict[str, str]:
    return {
        name: description,
        f"{name}_low": f"Lower 95 % bound of {name}",
        f"{name}_high": f"Upper 95 % bound of {name}",
    }


BRAINAGE: dict[str, Any] = {
    "participant_id": "Participant",
    "session_id": "Session",
    "source": "BIDS URI of the scan",
    "model": "Model that predicted; 'ensemble' is the combination of all",
    "age": _years("Chronological age at the scan"),
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "site": "Site of the scan",
    "group": "Group of the participant",
    "predicted_age": _years("Predicted age"),
    "standard_deviation": _years("Standard deviation of its error"),
    "interval_low": _years("Lower bound of the prediction interval"),
    "interval_high": _years("Upper bound of the prediction interval"),
    "brain_age_gap": _years("Predicted minus chronological age"),
    "corrected_age": _years("Predicted age after the age-bias correction"),
    "corrected_gap": _years("Brain-age gap after the age-bias correction, and harmonisation"),
    "interval_low_local": _years("Lower bound of the interval calibrated on the reference"),
    "interval_high_local": _years("Upper bound of the interval calibrated on the reference"),
    "interval_source": {
        "Description": "What the local interval was calibrated on",
        "Levels": {
            "bin": "the reference of the site",
            "pooled": "the whole reference",
            "not calibrated locally": "nothing: it is the interval of the model",
        },
    },
    "accelerated_p": "One-sided conformal p-value of a corrected gap this large, against the "
    "reference; not corrected for the number of scans",
    "extrapolated": "Whether the age is outside of those the correction was fitted on",
    "quality_passed": "Whether no quality figure was out of its range",
    "quality_flags": "Quality figures out of their range",
    "role": {"Description": "What the scan counts as", "Levels": ROLES},
}
"""Of ``group_brainage.tsv``: one row per scan and model."""

ACCURACY: dict[str, Any] = {
    "model": "Model",
    "stratum": "By what the scans are chosen; 'all' is the whole reference",
    "level": "Its value",
    "prediction": {
        "Description": "Which predicted age",
        "Levels": {
            "raw": "as predicted",
            "corrected": "after the age-bias correction, which uses the age itself: these figures "
            "say nothing about how well a model predicts (Butler 2021)",
        },
    },
    "n": "Scans",
    "participants": "People",
    "age_low": _years("Youngest"),
    "age_high": _years("Oldest"),
    **_bounds("mae", "Mean absolute error"),
    **_bounds("rmse", "Root mean squared error"),
    **_bounds("bias", "Mean of predicted minus chronological age"),
    **_unitless("r", "Pearson's correlation of predicted and chronological age"),
    "spearman": "Spearman's correlation of the two",
    **_unitless("r2", "1 - SSE / SST"),
    **_unitless("slope", "Slope of predicted on chronological age"),
    **_bounds("intercept", "Intercept of that line"),
    **_unitless("gap_age_r", "Pearson's correlation of the gap with age"),
    "weighted_mae": "Mean absolute error over the range of ages",
}
"""Of ``group_accuracy.tsv``: a row per model, stratum and prediction; bootstrap intervals."""

STATISTICS: dict[str, Any] = {
    "model": "Model, or the volume that stands beside the models for comparison",
    "outcome": "What is tested: brain_age_gap (years, not corrected for age, which is among the "
    "covariates), corrected_gap (years), or a volume in percent of the brain",
    "term": "Column that is tested",
    "contrast": "Levels that are compared, first minus second",
    "measure": "What the effect is",
    "n": "Participants",
    "n_level": "Participants of the first level of the contrast",
    "n_reference": "Participants of the second",
    "effect": "Estimate: a difference or mean has the unit of the outcome",
    "effect_low": "Lower 95 % bound of effect",
    "effect_high": "Upper 95 % bound of effect",
    "cohens_d": "Difference in standard deviations, not adjusted",
    "cohens_d_adjusted": "t sqrt(1/n1 + 1/n2) of the adjusted difference",
    "hedges_g": "Hedges' g of the adjusted difference",
    "hedges_g_low": "Lower 95 % bound of hedges_g",
    "hedges_g_high": "Upper 95 % bound of hedges_g",
    "auc": "Area under the ROC curve of the logistic model with the outcome, in sample",
    "auc_without": "The same without the outcome",
    "statistic": "t, F, or chi squared",
    "df": "Its degrees of freedom: of the residuals",
    "df_effect": "Degrees of freedom of the effect, where it is no t test",
    "p": "p-value, two-sided",
    "p_permutation": "p-value by Freedman-Lane permutation",
    "p_holm": "p-value after Holm's correction within one set of pairs of groups",
    "q": "Benjamini-Hochberg q over all p-values of the run",
    "method": "How it was tested",
    "covariates": "What was adjusted for",
    "verdict": "'tested', 'described', or why there is no test",
    "notes": "Who and what was left out",
}
"""Of ``group_statistics.tsv``: one row per test."""

RELIABILITY: dict[str, Any] = {
    "model": "Model",
    "quantity": {
        "Description": "What was repeated",
        "Levels": {
            "predicted_age": "its ICC is raised by the range of ages",
            "brain_age_gap": "the one to quote",
        },
    },
    "icc": "Intraclass correlation of single scans",
    "type": {
        "Description": "Its type",
        "Levels": {"ICC(2,1)": "absolute agreement", "ICC(3,1)": "consistency"},
    },
    "low": "Lower 95 % bound of icc",
    "high": "Upper 95 % bound of icc",
    "sem": _years("Standard error of measurement"),
    "sdc": _years("Smallest detectable change"),
    "n": "People",
    "k": "Scans of each",
}
"""Of ``group_reliability.tsv``: where people have several scans."""

OF = {"accuracy": ACCURACY, "statistics": STATISTICS, "reliability": RELIABILITY}
"""By the name of the table."""
