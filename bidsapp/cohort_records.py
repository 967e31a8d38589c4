"""Records of the participant level, read one after the other for the cohort."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

import models
from bidsapp.cohort_tables import WHO
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings
from bidsapp.statistics.verdict import Verdict

VOLUMES = ("brain", "gray_matter", "ventricles")
_FIGURES = ("predicted_age", "standard_deviation", "interval_low", "interval_high", "coverage")


@dataclass
class Found:
    """What the records say of what was asked for, filled one record at a time."""

    settings: Settings
    without_vote: set[str]
    asked: Callable[[str, str | None, str], bool]
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
        """Take what a record says of a scan; ``wanted`` are columns beside `WHO`."""
        participant, session = str(record.get("participant_id") or "n/a"), record.get("session_id")
        if not self.asked(participant, session, str(record.get("source"))):
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


def check_found(found: Found, settings: Settings) -> None:
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


def left_out(found: Found, settings: Settings) -> list[Verdict]:
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


def without_vote() -> set[str]:
    """The models whose cards give them no vote in the ensemble."""
    return {name for name, card in models.known().items() if not card.in_ensemble}


def figures_of(values: Sequence[tuple[float, ...]], order: pd.Index) -> pd.DataFrame:
    """Figures of one model with a row for every scan."""
    table = pd.DataFrame(values, columns=["row", *_FIGURES]).astype({"row": int})
    return table.set_index("row").reindex(order).reset_index(drop=True)


def mixed_verdicts(found: Found, allowed: bool) -> list[Verdict]:
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
