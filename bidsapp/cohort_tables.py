"""What the tables of a study say about the scans of the cohort."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.demographics import Remarks, Table, cells_of, is_missing
from bidsapp.errors import UserError
from bidsapp.settings import Settings
from bidsapp.statistics.verdict import Verdict
from bidsapp.study import Demographics, People, Scan

WHO = ("age", "sex", "site", "group")
_STRANGE = 0.2
"""Share of a column's values up to which those that are no numbers are taken as missing."""


def asked_columns(settings: Settings) -> list[str]:
    """Columns beside `WHO` that the options name."""
    named = [*settings.covariates, *settings.phenotype_terms]
    named += [text.partition(":")[0] for text in settings.contrast if ":" in text]
    named += column_and_value(settings.reference)[:1] if settings.reference else []
    names = dict.fromkeys(name.strip() for name in named)
    return [name for name in names if name and name.lower() not in WHO]


def columns_of_levels(settings: Settings) -> set[str]:
    """Columns whose values the options name, so that a word among numbers may be one."""
    named = [text.partition(":")[0] for text in settings.contrast]
    named += [settings.reference.partition("=")[0]] if settings.reference else []
    return {name.strip() for name in named}


def column_and_value(asked: str) -> list[str]:
    """Both sides of COLUMN=VALUE."""
    column, equals, value = (part.strip() for part in asked.partition("="))
    if not (column and equals and value):
        raise UserError(f"--reference takes COLUMN=VALUE, as in group=control, not '{asked}'.")
    return [column, value]


def from_tables(
    scans: pd.DataFrame,
    people: People | None,
    more: Table | None,
    asked: Sequence[str],
    settings: Settings,
) -> list[Verdict]:
    """Fill in what the tables say, and tell where they differ from the records."""
    remarks = Remarks()
    lower = [name.lower() for name in asked]
    filled: dict[str, list[Any]] = {name: [] for name in (*WHO, *asked)}
    differ: Counter[str] = Counter()
    known_to_more: set[str] = set()
    for row in scans.to_dict("records"):
        scan = _scan(row, settings)
        cells: dict[str, str] = {}
        who: dict[str, Any] = dict.fromkeys(WHO)
        if people:
            who = vars(people.scan(scan).demographics)
            cells = people.cells(scan, lower) if asked else {}
        if more:
            key = scan.participant_id
            known_to_more |= {key} & more.rows.keys()
            cells |= cells_of([(more, key)], lower, scan.session_id, remarks)
        for name in WHO:
            before, now = row[name], who[name]
            differ[name] += is_known(before) and is_known(now) and before != now
            filled[name].append(before if now is None else now)
        for name in asked:
            filled[name].append(cells.get(name.lower(), row.get(name)))
    for name, values in filled.items():
        scans[name] = pd.Series(values, dtype=object)
    said = list(people.messages()) if people else []
    said += remarks.lines()
    verdicts = [Verdict("table_remark", f"{text}.", "note") for text in said]
    for name in WHO:
        if differ[name]:
            verdicts.append(
                Verdict(
                    f"{name}_changed",
                    f"For {differ[name]} scans, {name} is another one in the tables of the data "
                    "set than it was at the participant level; that of the tables is used.",
                    "warning" if name in ("age", "sex") else "note",
                )
            )
    if more and (absent := len(set(scans["participant_id"]) - known_to_more)):
        text = f"{more.name} has no row for {absent} of the participants with records."
        verdicts.append(Verdict("phenotype_absent", text))
    return verdicts


def absent_verdicts(
    scans: pd.DataFrame, people: People | None, settings: Settings
) -> list[Verdict]:
    """Tell where the tables, or scans of the records, are not in the data set."""
    root, said = settings.bids_dir, []
    if people is None or people.participants is None:
        lacks = "is not a folder" if people is None else "has no participants.tsv"
        text = (
            f"{root} {lacks}: ages, sexes, sites and groups that no other table gives are those "
            "of the records, as they were at the participant level."
        )
        said.append(Verdict("tables_not_found", text))
    if (root / "dataset_description.json").is_file():
        raw = scans["source"].astype(str)
        paths = raw[raw.str.startswith("bids:raw:")].str.removeprefix("bids:raw:")
        gone = [path for path in paths if not os.path.lexists(root / path)]
        if gone:
            text = (
                f"{len(gone)} of {len(scans)} records are of scans that {root} lacks, such as "
                f"{gone[0]}; they are analysed all the same. Delete the records of scans that "
                "were withdrawn."
            )
            said.append(Verdict("scans_not_found", text))
    return said


def _scan(row: Mapping[str, Any], settings: Settings) -> Scan:
    """The scan of a record, as far as tables can know it."""
    source, session = text_of(row["source"]), text_of(row["session_id"])
    path = PurePosixPath(source.removeprefix("bids:raw:"))
    place = settings.bids_dir / (path if source.startswith("bids:raw:") else "unknown")
    stem = path.name.split("_T1w")[0]
    return Scan(place, source, row["participant_id"], session or None, stem, Demographics())


def undated_scans(scans: pd.DataFrame, people: People | None, settings: Settings) -> pd.Series:
    """Scans of further sessions of the same age, unless tables give these ages by session.

    Ages of participants.tsv are the same at every session, however many years lie between them.
    """
    undated = pd.Series(False, index=scans.index)
    same = ["participant_id", "age"]
    repeated = scans[scans["age"].notna() & scans.duplicated(same, keep=False)]
    for _, rows in repeated.groupby(same):
        session = rows["session_id"].fillna("")
        further = session != session.iloc[0]
        if further.any() and not _told_by_session(rows, people, settings):
            undated[rows.index] = further
    return undated


def _told_by_session(rows: pd.DataFrame, people: People | None, settings: Settings) -> bool:
    if people is None:
        return False
    return all(
        people.tells_age_of_session(_scan(row, settings)) for row in rows.to_dict("records")
    )


def undated_verdict(scans: pd.DataFrame) -> list[Verdict]:
    """Tell of people whose sessions have one age."""
    people = scans.loc[scans["undated"], "participant_id"].nunique()
    if not people:
        return []
    text = (
        f"{people} people have several sessions of one and the same age, which no table gives for "
        "the session: their order is that of their names, and they are not taken as retests. Give "
        "the age at each session in sub-*_sessions.tsv."
    )
    return [Verdict("sessions_of_one_age", text)]


def unmatched(
    scans: pd.DataFrame, participants: Table | None, settings: Settings
) -> list[tuple[str, int]]:
    """Count participants of the table without a record, and records without a row in it."""
    if participants is None:
        return []
    recorded = set(scans["participant_id"])
    labels = {f"sub-{label}" for label in settings.participant_label}
    asked = participants.rows.keys() & labels if labels else participants.rows.keys()
    return [
        ("participants with records and no row in participants.tsv",
         len(recorded - participants.rows.keys())),
        ("participants in participants.tsv without a record",
         len(asked - recorded)),
    ]  # fmt: skip


def check_columns(
    asked: Sequence[str], scans: pd.DataFrame, tables: Sequence[Table], settings: Settings
) -> None:
    """Refuse columns that neither a table nor a record knows."""
    there = [column for table in tables for column in table.columns]
    for name in asked:
        if name in scans and scans[name].map(is_known).any():
            continue
        raise UserError(
            f"no table has a value in the column '{name}' for any scan; columns are taken from "
            f"participants.tsv, *_sessions.tsv and *_scans.tsv of {settings.bids_dir}, from the "
            "file of --phenotype, and from the quality figures and volumes (such as brain_ml) of "
            f"the records{_near(name, there)}."
        )


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name.lower(), list(names), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def is_known(value: Any) -> bool:
    """Whether a cell says anything."""
    if value is None or value != value:
        return False
    return not (isinstance(value, str) and is_missing(value.strip()))


def as_numbers(column: pd.Series) -> pd.Series:
    """Finite numbers; NaN elsewhere."""
    numbers = pd.to_numeric(column.where(column.map(is_known), None), errors="coerce")
    return numbers.where(np.isfinite(numbers)).astype(float)


def as_typed(column: pd.Series, name: str, words_count: bool) -> tuple[pd.Series, list[Verdict]]:
    """Numbers where all that is known is a number, or most is and words do not count; else words.

    A comma before digits is a decimal comma where that makes all, or most, a number.
    """
    known = column.where(column.map(is_known), None)
    pointed = known.map(_with_point, na_action="ignore")
    numbers = as_numbers(pointed)
    commas = int((known.notna() & (pointed != known)).sum())
    strange = known[known.notna() & numbers.isna()]
    total = int(known.notna().sum())
    if (words_count and len(strange)) or len(strange) > _STRANGE * total:
        return known.map(str, na_action="ignore"), []
    said = []
    if commas:
        text = f"{name} has a decimal comma in {commas} of {total} values; it is read as a point."
        said.append(Verdict("decimal_comma", text, "note"))
    if len(strange):
        shown = ", ".join(f"'{value}'" for value in strange.astype(str).unique()[:8])
        text = (
            f"{name} has {len(strange)} of {total} values that are no numbers, as the others are; "
            f"they are taken as missing: {shown}."
        )
        said.append(Verdict("no_number", text))
    return numbers, said


def _with_point(value: Any) -> Any:
    comma = isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d*,\d+\s*", value)
    return value.replace(",", ".") if comma else value


def text_of(value: Any) -> str:
    """A cell for comparison: 1.0 is written "1"."""
    if not is_known(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value).strip()
