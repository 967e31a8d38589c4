"""The cohort of the group level: records and tables become one row per scan, with its role."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import models
from bidsapp.demographics import COLUMNS, Remarks, Table, cells_of, is_missing
from bidsapp.derivatives import Derivatives
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings
from bidsapp.statistics.verdict import Verdict
from bidsapp.study import Demographics, People, Scan, phenotype_table

REFERENCE, OTHER, REPEAT = "reference", "other", "repeat"
DUPLICATE, NO_AGE, FAILED_QUALITY, NO_PREDICTION = (
    f"excluded: {reason}"
    for reason in ("duplicate", "age unknown", "failed quality", "no prediction")
)
ROLES = {
    REFERENCE: "Of the reference, on which corrections are fitted",
    OTHER: "Not of the reference",
    REPEAT: "A further scan of a person, who counts once in every test",
    DUPLICATE: "The same scan has a record already",
    NO_AGE: "Chronological age is not known",
    FAILED_QUALITY: "A quality figure is out of its range",
    NO_PREDICTION: "The model gave no age",
}
_COUNTED = {
    REFERENCE: "scans of the reference",
    OTHER: "scans of others",
    REPEAT: "further scans of the same people",
    DUPLICATE: "excluded: duplicate records",
    NO_AGE: "excluded: age unknown",
    FAILED_QUALITY: "excluded: failed quality",
}
WHO = ("age", "sex", "site", "group")
VOLUMES = ("brain", "gray_matter", "ventricles")
_FIGURES = ("predicted_age", "standard_deviation", "interval_low", "interval_high", "coverage")
_OLDEST = 125.0
_STRANGE = 0.2
"""Share of a column's values up to which those that are no numbers are taken as missing."""
_CONTROLS = {
    "control", "healthy control", "normal control", "healthy", "normal", "healthy volunteer",
    "healthy subject", "healthy participant", "healthy comparison", "cognitively normal",
    "typically developing", "neurotypical", "unaffected", "ctrl", "ctl", "con", "hc", "hv", "nc",
    "cn", "td", "tdc",
}  # fmt: skip
_CONTROLS_DESCRIBED = r"(?i)\b(healthy|controls?|neurotypical|typically developing)\b"


@dataclass(frozen=True)
class Cohort:
    """All scans with a prediction, and what each counts as.

    Attributes
    ----------
    scans
        One row per scan, in the order of participants and sessions: ``participant_id``,
        ``session_id``, ``source``, `WHO`, ``quality_passed`` (bool or None), ``quality_flags``,
        the volumes as ``NAME_ml``, ``undated`` (a further session of the same age, which no table
        gives for the session), ``is_reference`` (also where left out), ``role``, and the columns
        that were asked for. Ages in years.
    predictions
        By model, with the rows of `scans`: predicted age, its standard deviation and interval
        (years), and coverage of the interval; NaN where a model has none.
    levels
        Values of the group column that mean the reference; empty where that is everybody.
    reference
        Who the reference is, in words.
    weights, versions
        Hashes of the weights by model, and versions of the app, that made the records.
    counts
        What was found, left out and kept: words and number, in order.
    verdicts
        What a reader must know about the collection.
    quality
        Quality figures, with the rows of `scans`; NaN where one was not measured.
    """

    scans: pd.DataFrame
    predictions: Mapping[str, pd.DataFrame]
    levels: tuple[str, ...]
    reference: str
    weights: Mapping[str, tuple[str, ...]]
    versions: tuple[str, ...]
    counts: tuple[tuple[str, int], ...]
    verdicts: tuple[Verdict, ...]
    quality: pd.DataFrame

    def role(self, model: str) -> pd.Series:
        """Role of each scan for a model, (scans,)."""
        absent = self.predictions[model]["predicted_age"].isna()
        return self.scans["role"].mask(absent, NO_PREDICTION)

    def tested(self, model: str) -> pd.Series:
        """Which scans enter fits and tests of a model, (scans,) bool."""
        return self.role(model).isin([REFERENCE, OTHER, REPEAT])

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Hashes of the weights of the models that the ensemble is made of, by model."""
        names = voting(self.predictions, _without_vote()) if "ensemble" in self.predictions else []
        return {name: self.weights.get(name, ()) for name in names}

    @property
    def distinct_models(self) -> list[str]:
        """The models without an ensemble that repeats the only one."""
        names = list(self.predictions)
        others = [name for name in names if name != "ensemble"]
        if "ensemble" in names and len(others) == 1:
            one, all_ = (self.predictions[n]["predicted_age"] for n in (others[0], "ensemble"))
            if np.allclose(one, all_, equal_nan=True):
                return others
        return names


@dataclass
class _Found:
    """What the records say of what was asked for, filled one record at a time."""

    settings: Settings
    without_vote: set[str]
    scans: list[dict[str, Any]] = field(default_factory=list)
    quality: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    made_by: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    without_prediction: int = 0
    withheld: int = 0
    not_asked: int = 0
    seen: set[str] = field(default_factory=set)
    other_members: set[str] = field(default_factory=set)

    def add(self, record: Mapping[str, Any], wanted: Sequence[str]) -> None:
        participant, session = str(record.get("participant_id") or "n/a"), record.get("session_id")
        if not self.settings.asks_for(participant, session):
            self.not_asked += 1
            return
        everything = record.get("predictions") or {}
        predictions = self._asked(everything)
        quality, volumes = record.get("quality") or {}, record.get("volumes_ml") or {}
        if not predictions:
            withheld = not everything and quality.get("passed") is False
            self.withheld += withheld
            self.without_prediction += not withheld
            return
        row = {name: record.get(name) for name in ("participant_id", "session_id", "source", *WHO)}
        row |= {
            "participant_id": participant,
            "quality_passed": quality.get("passed"),
            "quality_flags": ",".join(map(str, quality.get("flags") or ())),
        }
        row |= {f"{name}_ml": _number(volumes.get(name)) for name in VOLUMES}
        row |= {name: quality[name] for name in wanted if name in quality}
        row |= {f"{name}_ml": volumes[name] for name in volumes if f"{name}_ml" in wanted}
        for model, prediction in predictions.items():
            low, high = prediction.get("interval") or (None, None)
            values = prediction | {"interval_low": low, "interval_high": high}
            figures = (_number(values.get(name)) for name in _FIGURES)
            self.figures.setdefault(model, []).append((len(self.scans), *figures))
            self._count(f"weights of {model}", prediction.get("weights_sha256"), record)
        self._count("version", (record.get("software") or {}).get("brainage"), record)
        together = sorted(voting(predictions, self.without_vote))
        of_ensemble = "ensemble" in predictions and " + ".join(together)
        self._count("models of the ensemble", of_ensemble, record)
        named = (name for name in quality if name not in ("passed", "flags"))
        self.quality.append({name: _number(quality[name]) for name in named})
        self.scans.append(row)

    def _asked(self, predictions: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the models that were asked for, and of the ensemble if all its members were."""
        self.seen |= predictions.keys() - {"ensemble"}
        asked = self.settings.models
        if not asked:
            return dict(predictions)
        kept = [name for name in predictions if name in asked and name != "ensemble"]
        if "ensemble" in predictions:
            self.other_members |= set(voting(predictions, self.without_vote)) - set(asked)
            kept += [] if self.other_members else ["ensemble"]
        return {name: predictions[name] for name in kept}

    def leave_out_ensemble(self) -> None:
        """Drop the ensemble of all records, as that of some has members that were not named."""
        self.figures.pop("ensemble", None)
        self.made_by.pop("models of the ensemble", None)

    def _count(self, what: str, value: Any, record: Mapping[str, Any]) -> None:
        if value:
            self.made_by.setdefault(what, Counter())[str(value)] += 1
            self.examples.setdefault((what, str(value)), str(record.get("source") or "n/a"))


def collect(out: Derivatives, settings: Settings) -> Cohort:
    """Read all records and what the tables of the study say about their scans.

    Records are read one after the other and not kept. Ages, sexes, sites and groups are those of
    the tables as they are today, where these say something, and those of the records elsewhere.

    Raises
    ------
    NothingToDo
        No record holds a prediction.
    UserError
        A record is damaged, records are of several versions or weights, or a column or reference
        does not exist.
    """
    asked = _asked_columns(settings)
    people = People(settings.bids_dir) if settings.bids_dir.is_dir() else None
    more = phenotype_table(settings.phenotype) if settings.phenotype else None
    found = _Found(settings, _without_vote())
    for record in out.records():
        found.add(record, asked)
    _check_found(found, settings)
    verdicts = _left_out(found, settings)
    verdicts += _mixed(found, settings.allow_mixed)
    scans = pd.DataFrame(found.scans)
    counts = [("records with a prediction", len(scans))]
    counts += [("records without a prediction", found.without_prediction)]
    counts += [("records of others than were named", found.not_asked)]
    counts += [("failed quality, age withheld (--quality fail)", found.withheld)]
    verdicts += _absent(scans, people, settings)
    if people or more:
        verdicts += _from_tables(scans, people, more, asked, settings)
    participants = people.participants if people else None
    counts += _unmatched(scans, participants, settings)
    _check_columns(asked, scans, [table for table in (participants, more) if table], settings)
    levels_of = _columns_of_levels(settings)
    for name in asked:
        scans[name], told = _typed(scans[name], name, words_count=name in levels_of)
        verdicts += told
    scans["age"] = _numbers(scans["age"]).where(lambda age: age.between(0, _OLDEST))
    # In the order of time within a person: the first scan is the one that counts.
    order = scans.sort_values(["participant_id", "age"], kind="stable").index
    scans = scans.loc[order].reset_index(drop=True)
    scans["undated"] = _undated(scans, people, settings)
    verdicts += _undated_verdict(scans)
    described = participants.descriptions if participants else {}
    is_reference, levels, reference, said = _reference(scans, settings.reference, described)
    scans["is_reference"] = is_reference
    scans["role"] = _roles(scans, is_reference, settings.include_failed_quality)
    verdicts += said
    counts += [(words, int((scans["role"] == role).sum())) for role, words in _COUNTED.items()]
    verdicts += _role_verdicts(scans)
    return Cohort(
        scans,
        {name: _figures(values, order) for name, values in found.figures.items()},
        levels,
        reference,
        {
            what.removeprefix("weights of "): tuple(seen)
            for what, seen in found.made_by.items()
            if what.startswith("weights of ")
        },
        tuple(found.made_by.get("version", ())),
        tuple((words, n) for words, n in counts if n),
        tuple(verdicts),
        pd.DataFrame(found.quality).loc[order].reset_index(drop=True),
    )


# --- records ---


def _check_found(found: _Found, settings: Settings) -> None:
    """Refuse models that no record knows, and a cohort without scans."""
    absent = [name for name in settings.models if name not in found.seen]
    if absent and found.seen:
        raise UserError(
            f"--models {' '.join(absent)}: no record holds an age by this model; the records hold "
            f"those by {', '.join(sorted(found.seen))}, and by their ensemble where --models "
            "names all that have a vote in it."
        )
    if not found.scans:
        only = " of the participants and sessions that were named" if found.not_asked else ""
        raise NothingToDo(
            f"{settings.output_dir} holds no predictions{only} (in *_brainage.json); run the "
            "participant level first."
        )


def _left_out(found: _Found, settings: Settings) -> list[Verdict]:
    """Leave out an ensemble of models that were not named; tell of it and of lacking labels."""
    said = []
    if found.other_members:
        found.leave_out_ensemble()
        text = (
            f"The ensemble is left out: {', '.join(sorted(found.other_members))} had a vote in it "
            "and was not named by --models."
        )
        said.append(Verdict("ensemble_left_out", text, "note"))
    recorded = {row["participant_id"] for row in found.scans}
    labels = [f"sub-{label}" for label in settings.participant_label]
    if lacking := [label for label in labels if label not in recorded]:
        text = f"There is no prediction of {', '.join(lacking)}, named by --participant-label."
        said.append(Verdict("label_without_record", text))
    return said


def voting(names: Iterable[str], without_vote: set[str]) -> list[str]:
    """Those of the models that an ensemble of them is made of."""
    names = [name for name in names if name != "ensemble"]
    return [name for name in names if name not in without_vote] or names


def _without_vote() -> set[str]:
    """The models whose cards give them no vote in the ensemble."""
    return {name for name, card in models.known().items() if not card.in_ensemble}


def _figures(values: Sequence[tuple[float, ...]], order: pd.Index) -> pd.DataFrame:
    """Figures of one model with a row for every scan."""
    table = pd.DataFrame(values, columns=["row", *_FIGURES]).astype({"row": int})
    return table.set_index("row").reindex(order).reset_index(drop=True)


def _mixed(found: _Found, allowed: bool) -> list[Verdict]:
    """Refuse records that do not compare, or warn of them."""
    said = []
    for what, seen in found.made_by.items():
        if len(seen) > 1:
            counted = seen.most_common()
            hashed = what.startswith("weights of ")
            cases = (f"{value[:12] if hashed else value} in {n} records" for value, n in counted)
            rare = found.examples[what, counted[-1][0]].removeprefix("bids:raw:")
            said.append(f"{what}: {', '.join(cases)}, such as that of {rare}")
    if not said:
        return []
    text = f"the records were made in different ways ({'; '.join(said)})"
    if not allowed:
        raise UserError(
            f"{text}, so their ages do not compare; run the participant level again for all, or "
            "analyse them together all the same with --allow-mixed."
        )
    return [Verdict("mixed_records", f"{text[0].upper()}{text[1:]}: ages may not compare.")]


def _number(value: Any) -> float:
    """A finite number, or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


# --- tables ---


def _asked_columns(settings: Settings) -> list[str]:
    """Columns beside `WHO` that the options name."""
    named = [*settings.covariates, *settings.phenotype_terms]
    named += [text.partition(":")[0] for text in settings.contrast if ":" in text]
    named += _column_and_value(settings.reference)[:1] if settings.reference else []
    names = dict.fromkeys(name.strip() for name in named)
    return [name for name in names if name and name.lower() not in WHO]


def _columns_of_levels(settings: Settings) -> set[str]:
    """Columns whose values the options name, so that a word among numbers may be one."""
    named = [text.partition(":")[0] for text in settings.contrast]
    named += [settings.reference.partition("=")[0]] if settings.reference else []
    return {name.strip() for name in named}


def _column_and_value(asked: str) -> list[str]:
    column, equals, value = (part.strip() for part in asked.partition("="))
    if not (column and equals and value):
        raise UserError(f"--reference takes COLUMN=VALUE, as in group=control, not '{asked}'.")
    return [column, value]


def _from_tables(
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
            differ[name] += _known(before) and _known(now) and before != now
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


def _absent(scans: pd.DataFrame, people: People | None, settings: Settings) -> list[Verdict]:
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
    source, session = _text(row["source"]), _text(row["session_id"])
    path = PurePosixPath(source.removeprefix("bids:raw:"))
    place = settings.bids_dir / (path if source.startswith("bids:raw:") else "unknown")
    stem = path.name.split("_T1w")[0]
    return Scan(place, source, row["participant_id"], session or None, stem, Demographics())


def _undated(scans: pd.DataFrame, people: People | None, settings: Settings) -> pd.Series:
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


def _undated_verdict(scans: pd.DataFrame) -> list[Verdict]:
    people = scans.loc[scans["undated"], "participant_id"].nunique()
    if not people:
        return []
    text = (
        f"{people} people have several sessions of one and the same age, which no table gives for "
        "the session: their order is that of their names, and they are not taken as retests. Give "
        "the age at each session in sub-*_sessions.tsv."
    )
    return [Verdict("sessions_of_one_age", text)]


def _unmatched(
    scans: pd.DataFrame, participants: Table | None, settings: Settings
) -> list[tuple[str, int]]:
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


def _check_columns(
    asked: Sequence[str], scans: pd.DataFrame, tables: Sequence[Table], settings: Settings
) -> None:
    there = [column for table in tables for column in table.columns]
    for name in asked:
        if name in scans and scans[name].map(_known).any():
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


def _known(value: Any) -> bool:
    if value is None or value != value:
        return False
    return not (isinstance(value, str) and is_missing(value.strip()))


def _numbers(column: pd.Series) -> pd.Series:
    """Finite numbers; NaN elsewhere."""
    numbers = pd.to_numeric(column.where(column.map(_known), None), errors="coerce")
    return numbers.where(np.isfinite(numbers)).astype(float)


def _typed(column: pd.Series, name: str, words_count: bool) -> tuple[pd.Series, list[Verdict]]:
    """Numbers where all that is known is a number, or most is and words do not count; else words.

    A comma before digits is a decimal comma where that makes all, or most, a number.
    """
    known = column.where(column.map(_known), None)
    pointed = known.map(_with_point, na_action="ignore")
    numbers = _numbers(pointed)
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


# --- roles ---


def _reference(
    scans: pd.DataFrame, asked: str | None, described: Mapping[str, Any]
) -> tuple[NDArray[np.bool_], tuple[str, ...], str, list[Verdict]]:
    """Find the reference: its scans, its levels of the group column, and words for it."""
    groups = scans["group"].map(_text)
    if asked:
        column, value = _column_and_value(asked)
        texts = scans[column.lower() if column.lower() in WHO else column].map(_text)
        chosen = texts == value
        if not chosen.any():
            there = ", ".join(sorted(set(texts) - {""})[:20]) or "none"
            raise UserError(f"--reference {asked}: nobody has it; the values there are {there}.")
        levels = tuple(sorted(set(groups[chosen]) - set(groups[~chosen]) - {""}))
        return chosen.to_numpy(), levels, f"{column} = {value}", []
    columns = (described[name] for name in COLUMNS["group"] if name in described)
    of_column: Mapping[str, Any] = next(columns, {})
    levels = tuple(
        level for level in sorted(set(groups) - {""}) if _means_control(level, of_column)
    )
    if levels:
        return groups.isin(levels).to_numpy(), levels, f"group = {' or '.join(levels)}", []
    text = (
        "Nobody is known to be a control, so everybody is the reference: gaps are then relative "
        "to this sample's own mean, and a difference that all share cannot be seen. Name the "
        "controls with --reference COLUMN=VALUE."
    )
    everybody = np.ones(len(scans), dtype=bool)
    return everybody, (), "everybody", [Verdict("reference_everybody", text)]


def _means_control(level: str, about: Mapping[str, Any]) -> bool:
    word = " ".join(re.split(r"[\W_]+", level.lower())).strip()
    if word in _CONTROLS or word.removesuffix("s") in _CONTROLS:
        return True
    levels = about.get("Levels")
    words = str(levels.get(level, "") if isinstance(levels, Mapping) else "")
    return bool(re.search(_CONTROLS_DESCRIBED, words)) and "patient" not in words.lower()


def _text(value: Any) -> str:
    """A cell for comparison: 1.0 is written "1"."""
    if not _known(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _roles(
    scans: pd.DataFrame, is_reference: NDArray[np.bool_], include_failed: bool
) -> pd.Series:
    failed = np.array([passed is False for passed in scans["quality_passed"]])
    duplicate = scans["source"].notna() & scans["source"].duplicated()
    role = pd.Series(np.where(is_reference, REFERENCE, OTHER), index=scans.index, dtype=object)
    if not include_failed:
        role[failed] = FAILED_QUALITY
    role[scans["age"].isna()] = NO_AGE
    role[duplicate] = DUPLICATE
    fit = role.isin([REFERENCE, OTHER])
    role[fit & scans["participant_id"].where(fit).duplicated()] = REPEAT
    return role


def _role_verdicts(scans: pd.DataFrame) -> list[Verdict]:
    """One verdict per reason for which scans were left out, with their number."""
    seen = Counter(scans["role"])
    said = []
    for role, name, words in (
        (FAILED_QUALITY, "failed_quality", "failed quality and are left out of all fits "
         "(--include-failed-quality takes them in)"),
        (NO_AGE, "age_unknown", "have no chronological age; they stay in the table and are left "
         "out of all fits"),
        (DUPLICATE, "duplicate", "have the same source as another record and are left out"),
    ):  # fmt: skip
        if seen[role]:
            said.append(Verdict(name, f"{seen[role]} of {len(scans)} scans {words}."))
    for name in ("sex", "group", "site"):
        missing = int((~scans[name].map(_known)).sum())
        if 0 < missing < len(scans):
            text = f"{name} is not known for {missing} of {len(scans)} scans."
            said.append(Verdict(f"{name}_unknown", text[0].upper() + text[1:], "note"))
    return said
