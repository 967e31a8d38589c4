"""What finished output folders hold, and what is known of people whom a model had not seen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

import models
from benchmarks import ages as unseen_ages
from bidsapp.errors import UserError
from bidsapp.reporting.methods import stem_of
from bidsapp.settings import Settings
from bidsapp.study import load_study
from models.ensemble import voters, weights_of
from models.training.data import dataset_name

UNKNOWN = "n/a"
OUT_OF_FOLD, UNSEEN = unseen_ages.OUT_OF_FOLD, "unseen"


@dataclass(frozen=True)
class Results:
    """What a finished output folder holds."""

    name: str
    folder: Path
    records: list[dict[str, Any]]

    @property
    def dataset(self) -> str:
        """The name by which training knows the data set."""
        return dataset_name(self.folder)

    def settings(self) -> Settings | None:
        """Settings of the newest run."""
        path = self._newest_settings
        return Settings.from_toml(path.read_text(encoding="utf-8")) if path else None

    @property
    def side_by_side(self) -> str:
        """How many scans the newest run had side by side: by its log, else as was asked for."""
        log = self._newest_settings and self._newest_settings.with_name("log.txt")
        text = log.read_text(encoding="utf-8") if log and log.is_file() else ""
        found = re.search(r"Scans side by side: (\d+)", text)
        settings = self.settings()
        return found[1] if found else str((settings and settings.nprocs) or UNKNOWN)

    @property
    def _newest_settings(self) -> Path | None:
        return max(self.folder.glob("logs/*/settings.toml"), default=None)

    def scans(self) -> set[str]:
        """Stems of all T1w scans of the data set, so far as it is still there, or was tried."""
        tried = {path.name.removeprefix("crash-").removesuffix(".txt")
                 for path in self.folder.glob("logs/*/crash-*.txt")}  # fmt: skip
        tried |= self.complete()
        settings = self.settings()
        if settings is None:
            return tried
        everybody = replace(
            settings, participant_label=(), session_label=(), bids_filter_file=None
        )
        try:
            return tried | {scan.stem for scan in load_study(everybody).scans}
        except UserError:
            return tried

    def complete(self) -> set[str]:
        """Stems of the scans that have a record."""
        return {stem_of(record) for record in self.records}


def predicted_ages(results: list[Results], told: pd.DataFrame) -> pd.DataFrame:
    """True and predicted ages: out of fold where a model has seen the data set."""
    names = {each.dataset: each.name for each in results}
    told = told[told["kind"] == OUT_OF_FOLD]
    seen = {
        name: set(models.card(name).training.get("datasets", ())) for name in models.embedded()
    }
    frames = []
    for model, frame in told.groupby("model"):
        seen[str(model)] = seen.get(str(model), set()) | set(frame["dataset"])
        frames.append(frame.replace({"dataset": names}))
    frames += ensemble_of(frames, OUT_OF_FOLD)
    rows = [
        {"dataset": each.name, "participant_id": record["participant_id"], "age": record["age"],
         "model": model, "predicted_age": found["predicted_age"], "kind": UNSEEN}
        for each in results
        for record in each.records
        for model, found in record["predictions"].items()
        if not _has_seen(model, each.dataset, seen)
        and not (model == "ensemble" and len(record["predictions"]) == 2)
    ]  # fmt: skip
    columns = ["dataset", "participant_id", "age", "model", "predicted_age", "kind"]
    frames.append(pd.DataFrame(rows, columns=columns))
    found = pd.concat(frames, ignore_index=True)[columns].dropna()
    return found.astype({"age": float, "predicted_age": float})


def ensemble_of(frames: list[pd.DataFrame], kind: str) -> list[pd.DataFrame]:
    """The predictions of those models that vote, averaged as ``models.ensemble`` does it."""
    names = voters({name: models.card(name) for name in models.embedded()})
    deviations = [models.card(name).uncertainty.standard_deviation for name in names]
    weights = dict(zip(names, weights_of(deviations)))
    frames = [frame for frame in frames if frame["model"].isin(weights).all()]
    if len(frames) < 2:
        return []
    everything = pd.concat(frames)
    everything["weight"] = everything["model"].map(weights)
    everything["weighted"] = everything["weight"] * everything["predicted_age"]
    people = everything.groupby(["dataset", "participant_id", "age"], sort=False)
    members = everything["model"].nunique()
    sums = people[["weight", "weighted"]].sum()[people.size() == members].reset_index()
    return [sums.assign(predicted_age=sums["weighted"] / sums["weight"], model="ensemble",
                        kind=kind)]  # fmt: skip


def carried_over(results: list[Results], told: pd.DataFrame) -> list[pd.DataFrame]:
    """Predictions of models of one or several data sets for people of the others."""
    names = {each.dataset: each.name for each in results}
    rows = told[(told["kind"] == unseen_ages.UNSEEN) & told["dataset"].isin(names)]
    rows = rows.replace({"dataset": names}).assign(kind=alone_kind(rows))
    return with_ensemble(rows)


def of_alone(told: pd.DataFrame) -> pd.DataFrame:
    """Predictions out of fold of models of one or several data sets, by model and kind."""
    rows = told[told["kind"] == unseen_ages.ALONE]
    rows = rows.assign(kind=alone_kind(rows))
    return pd.concat([rows[:0], *with_ensemble(rows)], ignore_index=True)


def with_ensemble(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of each model, and of the ensemble where all were trained on the same data sets."""
    frames = [frame for _, frame in rows.groupby("model")]
    return frames + (ensemble_of(frames, *kinds) if len(kinds := {*rows["kind"]}) == 1 else [])


def alone_kind(rows: pd.DataFrame) -> pd.Series:
    """What to call predictions of models that have seen fewer data sets."""
    return UNSEEN + "; trained on " + rows["trained_on"].astype(str) + " alone"


def _has_seen(model: str, dataset: str, seen: Mapping[str, set[str]]) -> bool:
    """Whether a model, or any member of the ensemble, was trained on a data set."""
    if model == "ensemble":
        return any(dataset in each for each in seen.values())
    return dataset in seen.get(model, ())
