"""Tables as people have them become complete rows and matrices of full rank."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bidsapp.statistics.design import build, numbers, participants, words


def test_words_of_anything() -> None:
    mixed = pd.Series([1, 1.0, "1", " a ", "", "n/a", None, np.nan, pd.NA, "größe", 1.5])
    found = [None if pd.isna(word) else word for word in words(mixed)]
    expected = ["1", "1", "1", "a", None, None, None, None, None, "größe", "1.5"]
    assert found == expected


def test_numbers_of_anything() -> None:
    found = numbers(pd.Series(["1", " 2.5", "n/a", "", None, "1e3", "inf"]))
    assert found is not None
    assert found.tolist() == pytest.approx([1, 2.5, *[np.nan] * 3, 1000, np.nan], nan_ok=True)
    assert numbers(pd.Series(["1", "two"])) is None
    unknown = numbers(pd.Series([None, None]))
    assert unknown is not None and unknown.isna().all()
    flags = numbers(pd.Series([True, False]))
    assert flags is not None and flags.tolist() == [1, 0]


def test_first_session_of_each_participant() -> None:
    table = pd.DataFrame(
        [
            ("sub-1", "ses-b", 60.0, 1.0, "AD"),
            ("sub-1", "ses-a", 62.0, 2.0, "control"),
            ("sub-1", "ses-b", 60.0, 4.0, "AD"),
            ("sub-2", "ses-2", np.nan, 7.0, "AD"),
            ("sub-2", "ses-1", np.nan, 6.0, "control"),
            ("sub-3", None, 40.0, 8.0, "AD"),
            ("sub-4", None, 50.0, np.nan, "AD"),
            ("sub-4", None, 50.0, np.nan, "AD"),
        ],
        columns=["participant_id", "session_id", "age", "gap", "group"],
    )
    rows, covariates, notes = participants(table, "gap", ("group",))
    assert covariates == ("age",) and notes == ()
    assert rows.participant_id.tolist() == ["sub-1", "sub-2", "sub-3", "sub-4"]
    assert rows.gap.tolist() == pytest.approx([2.5, 6, 8, np.nan], nan_ok=True)
    assert rows.group.tolist() == ["AD", "control", "AD", "AD"]


def test_matrix_is_of_full_rank_and_no_row_decides_alone() -> None:
    random = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "gap": random.normal(size=40), "age": random.uniform(1e3, 2e3, 40),
            "site": ["a"] * 20 + ["b"] * 19 + ["c"], "scanner": ["x"] * 20 + ["y"] * 20,
            "weight": 1e-8 * random.normal(size=40),
        }
    )  # fmt: skip
    design = build(table, "gap", (), ("age", "site", "scanner", "weight"))
    assert np.linalg.matrix_rank(design.nuisance) == design.nuisance.shape[1] == 5
    assert design.covariates == "age + age2 + site + weight" and len(design.rows) == 39
    assert design.notes == (
        "1 left out who are alone in a level of a covariate.",
        "Determined by other covariates, so left out: scanner.",
    )
