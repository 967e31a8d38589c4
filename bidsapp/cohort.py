"""The cohort of the group level: records and tables become one row per scan, with its role."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bidsapp import cohort_records as records
from bidsapp import cohort_tables as tables
from bidsapp.cohort_tables import WHO
from bidsapp.demographics import COLUMNS
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.settings import Settings
from bidsapp.statistics.verdict import Verdict
from bidsapp.study import People, asked_for, phenotype_table

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
_OLDEST = 125.0
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
        if "ensemble" not in self.predictions:
            return {}
        names = records.voting(self.predictions, records.without_vote())
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
    asked = tables.asked_columns(settings)
    people = People(settings.bids_dir) if settings.bids_dir.is_dir() else None
    more = phenotype_table(settings.phenotype) if settings.phenotype else None
    found = records.Found(settings, records.without_vote(), asked_for(settings))
    for record in out.records():
        found.add(record, asked)
    records.check_found(found, settings)
    verdicts = records.left_out(found, settings)
    verdicts += records.mixed_verdicts(found, settings.allow_mixed)
    scans = pd.DataFrame(found.scans)
    counts = [("records with a prediction", len(scans))]
    counts += [("records without a prediction", found.without_prediction)]
    counts += [("records of others than were named", found.not_asked)]
    counts += [("failed quality, age withheld (--quality fail)", found.withheld)]
    verdicts += tables.absent_verdicts(scans, people, settings)
    if people or more:
        verdicts += tables.from_tables(scans, people, more, asked, settings)
    participants = people.participants if people else None
    counts += tables.unmatched(scans, participants, settings)
    tables.check_columns(
        asked, scans, [table for table in (participants, more) if table], settings
    )
    levels_of = tables.columns_of_levels(settings)
    for name in asked:
        scans[name], told = tables.as_typed(scans[name], name, words_count=name in levels_of)
        verdicts += told
    scans["age"] = tables.as_numbers(scans["age"]).where(lambda age: age.between(0, _OLDEST))
    # In the order of time within a person: the first scan is the one that counts.
    order = scans.sort_values(["participant_id", "age"], kind="stable").index
    scans = scans.loc[order].reset_index(drop=True)
    scans["undated"] = tables.undated_scans(scans, people, settings)
    verdicts += tables.undated_verdict(scans)
    described = participants.descriptions if participants else {}
    is_reference, levels, reference, said = _reference(scans, settings.reference, described)
    scans["is_reference"] = is_reference
    scans["role"] = _roles(scans, is_reference, settings.include_failed_quality)
    verdicts += said
    counts += [(words, int((scans["role"] == role).sum())) for role, words in _COUNTED.items()]
    verdicts += _role_verdicts(scans)
    return Cohort(
        scans,
        {name: records.figures_of(values, order) for name, values in found.figures.items()},
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


def _reference(
    scans: pd.DataFrame, asked: str | None, described: Mapping[str, Any]
) -> tuple[NDArray[np.bool_], tuple[str, ...], str, list[Verdict]]:
    """Find the reference: its scans, its levels of the group column, and words for it."""
    groups = scans["group"].map(tables.text_of)
    if asked:
        column, value = tables.column_and_value(asked)
        texts = scans[column.lower() if column.lower() in WHO else column].map(tables.text_of)
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
        missing = int((~scans[name].map(tables.is_known)).sum())
        if 0 < missing < len(scans):
            text = f"{name} is not known for {missing} of {len(scans)} scans."
            said.append(Verdict(f"{name}_unknown", text[0].upper() + text[1:], "note"))
    return said
