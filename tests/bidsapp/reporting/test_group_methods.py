"""The methods text of the group level says what was run, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from bidsapp.reporting.group_methods import Account, group_methods

CORRECTION: dict[str, Any] = {
    "method": "offset", "degree": 1, "robust": False, "terms": ["intercept", "age"], "n": 60,
    "participants": 58, "age_low": 20.0, "age_high": 80.0, "sites": {}, "forced": False,
    "verdicts": [],
}  # fmt: skip
TESTS = pd.DataFrame({
    "model": ["wssa", "ventricles"], "measure": "difference", "verdict": "tested", "p": 0.01,
    "p_permutation": 0.02, "covariates": "age + age2 + sex", "term": "groupAD",
})  # fmt: skip
ACCOUNT = Account(
    scans=70,
    participants=66,
    reference="group = control",
    titles={"wssa": "WSSA (2024)"},
    weights={"wssa": ("abcdef0123456789",)},
    versions=("1.0",),
    counts=(("records with a prediction", 70), ("excluded: failed quality", 2)),
    corrections={"wssa": CORRECTION},
    calibrations={"wssa": {"coverage": 0.9, "quantile": 1.7, "participants": 58, "bins": {}}},
    tests=TESTS,
    reliability=pd.DataFrame(),
    changed=False,
    options={
        "include_failed_quality": False, "bias_correction_from": None, "bias_degree": "auto",
        "harmonize": False, "permutations": 5000, "random_seed": 1,
    },
)  # fmt: skip


def text(**changes: Any) -> str:
    return group_methods(replace(ACCOUNT, **changes), "9.9").markdown()


def test_what_was_run_is_stated() -> None:
    said = text()
    for words in (
        "70 scans of 66 participants", "brainage 9.9", "version 1.0", "SHA-256 abcdef012345",
        "participants with group = control", "excluded: failed quality (2)",
        "a line in age, fitted to 60 scans of 58 people aged 20 to 80 years",
        "90 % of people were calibrated on 58", "(HC3)", "age + age squared + sex",
        "up to 5,000 permutations and seed 1", "over all 2 p-values", "ventricles and grey matter",
        "Beheshti", "Butler", "Benjamini", "statsmodels",
    ):  # fmt: skip
        assert words in said, words


def test_what_was_not_run_is_not() -> None:
    said = text()
    for words in ("Cole JH, Ritchie", "Smith SM, Vidaurre", "Huber", "ComBat", "Holm", "logistic",
                  "Shrout", "Bland", "mixed model"):  # fmt: skip
        assert words not in said, words


def test_options_change_the_text() -> None:
    robust = CORRECTION | {"method": "cole", "robust": True, "forced": True,
                           "sites": {"a": 30, "b": 30}}  # fmt: skip
    said = text(
        corrections={"wssa": robust},
        options=ACCOUNT.options | {"harmonize": True, "include_failed_quality": True},
        reference="everybody",
    )
    for words in ("inverting the line", "robustly (Huber)", "although a guard advises against it",
                  "intercept for each of 2 sites", "ComBat", "all participants served",
                  "were not left out"):  # fmt: skip
        assert words in said, words


def test_a_refused_correction_is_stated() -> None:
    refused = CORRECTION | {"verdicts": [{"name": "weak_slope", "severity": "refused"}]}
    assert "a guard refused it, and no corrected ages" in text(corrections={"wssa": refused})
    assert "No age-bias correction was made." in text(corrections={"wssa": None})


def test_little_is_stated_shortly() -> None:
    untested = TESTS.assign(verdict="too_few")
    uncalibrated = {"wssa": {"coverage": 0.9, "quantile": float("nan"), "participants": 3}}
    said = text(tests=untested, calibrations=uncalibrated)
    assert "No hypothesis was tested." in said
    assert "too small to calibrate" in said
    assert "No hypothesis was tested." in text(tests=pd.DataFrame())


def test_what_brain_age_adds_to_volumes_is_said_where_it_was_asked() -> None:
    assert "volumes among the covariates" not in text(tests=TESTS)
    given = TESTS.assign(term=["groupAD", "groupAD, given volumes_gap"])
    assert "volumes among the covariates" in text(tests=given)


def test_every_citation_has_a_reference() -> None:
    methods = group_methods(replace(ACCOUNT, reliability=pd.DataFrame({"icc": [0.9]})), "9.9")
    cited = {piece for part in methods.paragraphs for piece in part if isinstance(piece, int)}
    assert cited == set(range(1, len(methods.references) + 1))
    assert "[@" not in methods.markdown()
