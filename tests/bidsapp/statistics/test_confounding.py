"""Designs that weaken a comparison are told, and sound ones are not slandered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bidsapp.statistics.confounding import design_warnings, site_group_confounding


def study(**columns: Any) -> pd.DataFrame:
    random = np.random.default_rng(1)
    table = {
        "participant_id": [f"sub-{number}" for number in range(80)],
        "age": random.uniform(20, 80, 80), "site": ["A", "B"] * 40,
        "group": ["control"] * 40 + ["patient"] * 40,
    }  # fmt: skip
    return pd.DataFrame(table).assign(**columns)


def found(table: pd.DataFrame, **options: Any) -> dict[str, str]:
    return {verdict.name: verdict.text for verdict in design_warnings(table, **options)}


def test_a_sound_design_has_no_warnings() -> None:
    assert found(study(), reference="control", reference_ages=(20, 80)) == {}
    assert found(study(group="control")) == {}
    assert found(study().drop(columns="group")) == {} == found(study()[:0])


def test_ages_apart() -> None:
    older = study(age=lambda rows: rows.age / 4 + 40 * (rows.group == "patient"))
    text = found(older, reference="control")["ages_apart"]
    assert text.startswith("patient (mean") and "years apart" in text
    third = older.assign(group=[*older.group[:-10], *["third"] * 10])
    pairs = [v.text for v in design_warnings(third, reference="control") if v.name == "ages_apart"]
    assert len(pairs) == 2 and all("and control" in pair for pair in pairs)


def test_ages_beyond_the_reference() -> None:
    table = study(age=[*np.linspace(20, 60, 40), *np.linspace(30, 69, 40)])
    text = found(table, reference_ages=(20, 60))["ages_beyond_reference"]
    assert text.startswith("9 of 40 participants of group patient") and "20.0 to 60.0" in text


def test_small_groups_and_unknown_ones() -> None:
    table = study(group=[*["control"] * 70, *["patient"] * 4, *[None] * 6])
    assert "patient (4)" in found(table)["small_group"]
    assert found(table)["no_level"].startswith("6 participants have no group")


def test_sites_of_one_group() -> None:
    apart = study(site=lambda rows: "of " + rows.group)
    assert "cannot be told apart" in found(apart)["site_and_group"]
    half = study(site=["A"] * 35 + ["B"] * 10 + ["C"] * 35)
    assert found(half)["site_and_group"].startswith("70 of 80 participants are at sites")


def test_scans_of_one_participant_count_once() -> None:
    twice = pd.concat([study(session_id="1"), study(session_id="2", age=90)])
    assert found(twice, reference_ages=(20, 80)) == {}


@pytest.mark.parametrize(
    ("pairs", "parts"),
    [
        ("a1 b2", ["1 at a only", "2 at b only"]),
        ("a1 a2 b3", ["1, 2 at a only", "3 at b only"]),
        ("a1 b1 b2 c3 d3", ["1, 2 at a, b only", "3 at c, d only"]),
        ("a1 b2 c1 c2", []),
        ("a1 b2 c3 d1 d2 e2 e3", []),
        ("a1 b1", []),
        ("a1 a2", []),
        ("", []),
    ],
)
def test_sites_and_groups_that_hang_together(pairs: str, parts: list[str]) -> None:
    site, group = ([pair[at] for pair in pairs.split()] for at in (0, 1))
    text = site_group_confounding(pd.Series(site, dtype=object), pd.Series(group, dtype=object))
    assert (text is not None) == bool(parts)
    assert all(part in (text or "") for part in parts)


def test_unknown_sites_do_not_count() -> None:
    site, group = pd.Series(["a", None, "b"]), pd.Series(["1", "2", "n/a"])
    assert site_group_confounding(site, group) is None
