"""Age, sex, site and group of a scan, from the TSV tables of a data set as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Sex = Literal["F", "M"]
Descriptions = Mapping[str, Mapping[str, Any]]

COLUMNS = {
    "age": ("age",),
    "sex": ("sex", "gender"),
    "site": ("site",),
    "group": ("group", "diagnosis", "dx"),
}
"""Columns that may hold a field, the first that has a value wins; case does not matter."""

_MISSING = {"", "n/a", "na", "nan", "none", "null", "unknown", "-", "?", ".", "#n/a", "missing"}
_FEMALE = {"f", "female", "woman", "w", "girl", "females", "women"}
_MALE = {"m", "male", "man", "boy", "males", "men"}
_OTHER = {"o", "other", "intersex", "x", "d", "diverse", "nonbinary", "non-binary"}
_PER_YEAR = {"year": 1.0, "month": 12.0, "week": 365.25 / 7, "day": 365.25}
_UNITS = {"yr": "year", "y": "year", "mo": "month", "m": "month", "wk": "week", "w": "week",
          "d": "day"}  # fmt: skip
_OLDEST = 125.0


@dataclass(frozen=True)
class Demographics:
    """Who was scanned, at the time of the scan; ``None`` is unknown.

    Attributes
    ----------
    age
        Years.
    sex
        ``"F"`` or ``"M"``.
    site, group
        As written in the table.
    """

    age: float | None = None
    sex: Sex | None = None
    site: str | None = None
    group: str | None = None


@dataclass
class Remarks:
    """Warnings about table cells; equal ones are told once, with all their rows."""

    _rows: dict[tuple[str, str], dict[int, None]] = field(default_factory=dict)

    def add(self, file: str, row: int, text: str) -> None:
        """Remark on a row (a line number; the header is line 1)."""
        self._rows.setdefault((file, text), {})[row] = None

    def lines(self) -> tuple[str, ...]:
        """Return one sentence per remark, which names file, rows and value."""
        return tuple(
            f"{file}, {_row_numbers(list(rows))}: {text}"
            for (file, text), rows in self._rows.items()
        )


@dataclass(frozen=True)
class Table:
    """A TSV table and its JSON sidecar.

    Attributes
    ----------
    name
        What warnings call the file.
    rows
        Line numbers and cells (by lower-case column name) for each value of the key column.
    descriptions
        The sidecar, by lower-case column name.
    """

    name: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[tuple[int, Mapping[str, str]]]]
    descriptions: Descriptions

    @property
    def described(self) -> str:
        """Name of the sidecar, for warnings."""
        return self.name.removesuffix(".tsv") + ".json"


@dataclass(frozen=True)
class _Unclear:
    """A value that rows of one table contradict each other about."""


def read_table(
    text: str, name: str, key: str, descriptions: Mapping[str, Any], prefix: str = ""
) -> Table:
    """Parse a TSV table by the column `key`, whose values get `prefix` where they lack it.

    Byte order marks, Windows line ends, quoted cells, blank lines and short rows are borne with.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    columns = tuple(_cell(cell).lower() for cell in lines[0].split("\t"))
    rows: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    if key in columns:
        for number, line in enumerate(lines[1:], start=2):
            cells = dict(zip(columns, map(_cell, line.split("\t")), strict=False))
            label = cells.get(key, "")
            if label:
                label = label if label.startswith(prefix) else prefix + label
                rows.setdefault(label, []).append((number, cells))
    lower = {str(column).lower(): about for column, about in descriptions.items()}
    known = {column: about for column, about in lower.items() if isinstance(about, Mapping)}
    return Table(name, columns, rows, known)


def demographics(
    lookups: Sequence[tuple[Table, str]], session_id: str | None, remarks: Remarks
) -> Demographics:
    """Look a scan up in several tables, the most specific first.

    Parameters
    ----------
    lookups
        Pairs of a table and the scan's value of its key column. For each field the first table
        that has a value wins; where rows of that table contradict each other it stays unknown.
    session_id
        Keeps rows of another session out, in tables with a ``session_id`` column.
    remarks
        Takes the warnings.
    """
    rows = [(table, _rows_of(table, key, session_id, remarks)) for table, key in lookups]

    def first(name: str, parse: Callable[[str, str, Table], tuple[Any, str]]) -> Any:
        for table, matching in rows:
            value = _value(table, matching, name, parse, remarks)
            if value is not None:
                return None if isinstance(value, _Unclear) else value
        return None

    return Demographics(
        first("age", _parse_age),
        first("sex", _parse_sex),
        first("site", _parse_word),
        first("group", _parse_word),
    )


def cells_of(
    lookups: Sequence[tuple[Table, str]],
    columns: Sequence[str],
    session_id: str | None,
    remarks: Remarks,
) -> dict[str, str]:
    """Return the cells of a scan in some columns (lower case), as `demographics` finds them.

    A cell that is missing in the first table is taken from the next; one that rows of a table
    contradict each other about is left out.
    """
    found: dict[str, str] = {}
    for table, key in reversed(lookups):
        rows = _rows_of(table, key, session_id, remarks)
        for column in columns:
            values = {cells[column]: number for number, cells in rows
                      if not is_missing(cells.get(column, ""))}  # fmt: skip
            if len(values) == 1:
                found[column] = next(iter(values))
            elif values:
                said = f"{column} has several values ({', '.join(values)}); taken as unknown"
                remarks.add(table.name, max(values.values()), said)
                found.pop(column, None)
    return found


def is_missing(text: str) -> bool:
    """Whether a cell says that its value is not known."""
    return text.lower() in _MISSING


def _rows_of(
    table: Table, key: str, session_id: str | None, remarks: Remarks
) -> list[tuple[int, Mapping[str, str]]]:
    rows = list(table.rows.get(key, ()))
    if session_id and "session_id" in table.columns:
        label = session_id.removeprefix("ses-")
        rows = [
            (number, cells)
            for number, cells in rows
            if is_missing(of := cells.get("session_id", "")) or of.removeprefix("ses-") == label
        ]
    for number, _ in rows[1:]:
        remarks.add(table.name, number, f"'{key}' has a row already (row {rows[0][0]})")
    return rows


def _value(
    table: Table,
    rows: Sequence[tuple[int, Mapping[str, str]]],
    name: str,
    parse: Callable[[str, str, Table], tuple[Any, str]],
    remarks: Remarks,
) -> Any:
    """Return the one value the rows agree on, ``None``, or `_Unclear`."""
    found: dict[Any, tuple[int, str]] = {}
    for number, cells in rows:
        for column in COLUMNS[name]:
            text = cells.get(column, "")
            if is_missing(text):
                continue
            value, remark = parse(text, column, table)
            if remark:
                remarks.add(table.name, number, f"{column} '{text}' {remark}")
            if value is not None:
                found.setdefault(value, (number, text))
                break
    if len(found) > 1:
        (first, text), *others = found.values()
        for number, other in others:
            remark = f"{name} '{other}' contradicts '{text}' in row {first}; taken as unknown"
            remarks.add(table.name, number, remark)
        return _Unclear()
    return next(iter(found), None)


def _parse_age(text: str, column: str, table: Table) -> tuple[float | None, str]:
    said = str(table.descriptions.get(column, {}).get("Units", "")).strip().lower()
    match = re.fullmatch(
        r"([<>]?=?)\s*(\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)\s*([ymwd]?)(\+?)", text.lower()
    )
    if not match:
        return None, "is not an age; taken as unknown"
    bound, number, letter, plus = match.groups()
    unit = _unit(letter or said or "year")  # a letter as in DICOM, 038Y
    age = float(number.replace(",", ".")) / _PER_YEAR.get(unit, 1.0)
    if not age <= _OLDEST:
        hint = f"; if it is not in {unit}s, correct its Units in {table.described}"
        return None, f"is not a human age in {unit}s; taken as unknown{hint}"
    if bound or plus:
        return age, f"is a bound; taken as {age:g} years"
    if unit not in _PER_YEAR:
        return age, f"has the unknown Units '{said}' in {table.described}; taken as years"
    if "," in number:
        return age, f"has a decimal comma; taken as {age:g} years"
    return age, ""


def _unit(word: str) -> str:
    word = word if word in _PER_YEAR or word in _UNITS else word.removesuffix("s")
    return _UNITS.get(word, word)


def _parse_sex(text: str, column: str, table: Table) -> tuple[Sex | None, str]:
    sex = _sex_word(text)
    if sex:
        return sex, ""
    levels = table.descriptions.get(column, {}).get("Levels")
    levels = levels if isinstance(levels, Mapping) else {}
    number = re.sub(r"\.0*$", "", text)
    for level, about in levels.items():
        if str(level).lower() in (text.lower(), number):
            words = about.get("Description", "") if isinstance(about, Mapping) else about
            sex = next(filter(None, map(_sex_word, str(words).split())), None)
            if sex:
                return sex, ""
    if text.lower() in _OTHER:
        return None, ""
    return None, f"is not understood and no Levels in {table.described} explain it; unknown"


def _parse_word(text: str, column: str, table: Table) -> tuple[str, str]:
    return text, ""


def _sex_word(text: str) -> Sex | None:
    word = text.strip(" .,;()").lower()
    return "F" if word in _FEMALE else "M" if word in _MALE else None


def _cell(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _row_numbers(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8]))
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
