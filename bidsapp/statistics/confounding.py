"""What in the design of a study weakens its comparisons between groups."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from bidsapp.statistics.design import MOST_PAIRS, participants, words
from bidsapp.statistics.verdict import Verdict

FEW = 10
"""Participants of a group below which its figures are rough."""
FAR_APART = 1.0
"""Difference of two groups' mean ages, in standard deviations, that deserves a warning."""


def design_warnings(
    table: pd.DataFrame,
    by: str = "group",
    reference: str | None = None,
    reference_ages: tuple[float, float] | None = None,
) -> list[Verdict]:
    """What in the design weakens comparisons between the levels of a column.

    Names of the verdicts: ``no_level``, ``small_group``, ``ages_apart``,
    ``ages_beyond_reference``, ``site_and_group``.

    Parameters
    ----------
    table
        One row per scan; columns `by`, ``age`` (years) and, where known, ``participant_id``,
        ``session_id`` and ``site``.
    reference
        The level all others are compared with (the controls); without it, all pairs are.
    reference_ages
        Youngest and oldest age, in years, of the rows the bias correction was fitted on.
    """
    if by not in table or "age" not in table:
        return []
    people, _, _ = participants(table, "age", (by,))
    unknown = people[by].isna()
    found = []
    if unknown.any():
        text = f"{unknown.sum()} participants have no {by} and are in no comparison of it."
        found.append(Verdict("no_level", text, "note"))
    people = people[~unknown]
    found += _small_groups(people, by)
    found += _ages_apart(people, by, reference)
    if reference_ages:
        found += _ages_beyond(people, by, reference_ages)
    if "site" in people and by != "site":
        found += _sites_apart(people, by)
    return found


def site_group_confounding(site: pd.Series, group: pd.Series) -> str | None:
    """Say, in a sentence, why site and group cannot be told apart; ``None`` where they can.

    They cannot where the sites fall into sets that share no group: the difference between two
    sets is then one of site or of group. Rows that lack either do not count.
    """
    pairs = pd.DataFrame({"site": words(site), "group": words(group)}).dropna().drop_duplicates()
    groups_at = pairs.groupby("site")["group"].agg(set).to_dict()
    sets: list[tuple[set[str], set[str]]] = []
    for name, groups in groups_at.items():
        joined = [each for each in sets if each[1] & groups]
        sets = [each for each in sets if not each[1] & groups]
        sites = {name}.union(*(each[0] for each in joined))
        sets.append((sites, groups.union(*(each[1] for each in joined))))
    if len(sets) < 2 or pairs["group"].nunique() < 2:
        return None
    parts = "; ".join(
        f"{_listed(groups)} at {_listed(sites)} only" for sites, groups in sorted(sets, key=str)
    )
    return f"Site and group cannot be told apart: {parts}."


def _small_groups(people: pd.DataFrame, by: str) -> list[Verdict]:
    count = people[by].value_counts()
    small = [f"{level} ({number})" for level, number in sorted(count.items()) if number < FEW]
    if not small or len(count) < 2:
        return []
    text = f"Fewer than {FEW} participants of {by} {', '.join(small)}: figures of them are rough."
    return [Verdict("small_group", text)]


def _ages_apart(people: pd.DataFrame, by: str, reference: str | None) -> list[Verdict]:
    of = people["age"].groupby(people[by])
    mean, spread = of.mean().to_dict(), of.std().fillna(0.0).to_dict()
    pairs = combinations(sorted(mean, key=lambda level: (level != reference, level)), 2)
    found = []
    for one, other in list(pairs)[: MOST_PAIRS if reference not in mean else len(mean) - 1]:
        years = abs(mean[one] - mean[other])
        pooled = ((spread[one] ** 2 + spread[other] ** 2) / 2) ** 0.5
        if years > FAR_APART * pooled:
            text = (
                f"{other} (mean {mean[other]:.1f} years) and {one} ({mean[one]:.1f} years) are "
                f"{years:.1f} years apart: their comparison rests on the terms of age."
            )
            found.append(Verdict("ages_apart", text))
    return found


def _ages_beyond(people: pd.DataFrame, by: str, ages: tuple[float, float]) -> list[Verdict]:
    low, high = ages
    beyond = (people["age"] < low) | (people["age"] > high)
    found = []
    for level, outside in beyond.groupby(people[by]):
        if outside.any():
            text = (
                f"{outside.sum()} of {len(outside)} participants of {by} {level} are outside the "
                f"reference's ages, {low:.1f} to {high:.1f} years: their correction extrapolates."
            )
            found.append(Verdict("ages_beyond_reference", text))
    return found


def _sites_apart(people: pd.DataFrame, by: str) -> list[Verdict]:
    why = site_group_confounding(people["site"], people[by])
    if why:
        return [Verdict("site_and_group", why)]
    known = people[people["site"].notna()]
    if known["site"].nunique() < 2 or known[by].nunique() < 2:
        return []
    alone = known.groupby("site")[by].transform("nunique") == 1
    if alone.mean() <= 0.5:
        return []
    text = (
        f"{alone.sum()} of {len(known)} participants are at sites with one {by} alone: "
        "comparisons rest on the others."
    )
    return [Verdict("site_and_group", text)]


def _listed(names: set[str]) -> str:
    """Join a few names, count the rest."""
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")
