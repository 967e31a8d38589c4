"""Records of a study, for tests of the group level."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsapp.settings import Settings

Record = dict[str, Any]
MakeRecord = Callable[..., Record]
MakeRecords = Callable[..., list[Record]]
WriteRecords = Callable[..., Settings]


@pytest.fixture
def make_record() -> MakeRecord:
    """Function (participant, session=None, ages={model: years}, **changes) that makes a record."""
    return _record


def _record(
    participant: str,
    session: str | None = None,
    ages: Mapping[str, float] | None = None,
    **changes: Any,
) -> Record:
    stem = f"{participant}_{session}" if session else participant
    age = changes.get("age", 30.0)
    predictions = {
        model: {
            "predicted_age": years,
            "standard_deviation": 4.0,
            "interval": [years - 6, years + 7],
            "coverage": 0.9,
            "brain_age_gap": None if age is None else years - age,
            "weights_sha256": f"{model:0<64}",
        }
        for model, years in (ages or {"wssa": 33.3, "ensemble": 33.3}).items()
    }
    return {
        "participant_id": participant,
        "session_id": session,
        "source": f"bids:raw:{participant}/anat/{stem}_T1w.nii.gz",
        "age": age,
        "sex": "F",
        "site": None,
        "group": "control",
        "predictions": predictions,
        "quality": {"passed": True, "flags": [], "cnr": 1.5},
        "volumes_ml": {"brain": 1200.0, "gray_matter": 600.0, "ventricles": 24.0},
        "software": {"brainage": "1.0"},
    } | changes


@pytest.fixture
def make_records() -> MakeRecords:
    """Function (n, ...) that makes records of n people with a planted difference of AD."""

    def make(
        n: int = 80,
        effect: float = 8.0,
        slope: float = 0.8,
        noise: float = 3.0,
        sites: Iterable[str | None] = (None,),
        sessions: Iterable[str | None] = (None,),
        models: Iterable[str] = ("wssa",),
        seed: int = 1,
    ) -> list[Record]:
        random = np.random.default_rng(seed)
        sites, records = list(sites), []
        for number in range(n):
            age = round(float(random.uniform(20, 80)), 2)
            group = "AD" if number % 3 == 0 else "control"
            brain = random.normal(1250, 80)
            own = random.normal(0, noise) + effect * (group == "AD")
            for nth, session in enumerate(sessions):
                gap = (slope - 1) * (age - 50) + own + random.normal(0, 0.3 * noise)
                ages = {model: age + gap + random.normal(0, 0.5) for model in models}
                ages["ensemble"] = float(np.mean(list(ages.values())))
                records.append(_record(
                    f"sub-{number:03d}", session, ages,
                    age=round(age + 0.1 * nth, 2), group=group, sex="FM"[number % 2],
                    site=sites[number % len(sites)],
                    volumes_ml={
                        "brain": brain,
                        "gray_matter": 0.5 * brain - age + random.normal(0, 20),
                        "ventricles": 10 + 0.3 * age + random.normal(0, 4),
                    },
                ))  # fmt: skip
        return records

    return make


@pytest.fixture
def write_records(tmp_path: Path) -> WriteRecords:
    """Function (records, tables={path: text}, **options) that writes them; returns settings."""

    def write(
        records: Iterable[Record], tables: Mapping[str, str] | None = None, **options: Any
    ) -> Settings:
        bids, out = tmp_path / "study", tmp_path / "out"
        out.mkdir(exist_ok=True)
        for record in records:
            folder = out / record["participant_id"]
            folder = folder / record["session_id"] if record["session_id"] else folder
            stem = record["source"].rpartition("/")[2].removesuffix("_T1w.nii.gz")
            path = folder / "anat" / f"{stem}_brainage.json"
            while path.exists():  # a duplicate
                path = path.with_name(f"{path.name[:-14]}-again_brainage.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record), encoding="utf-8")
        for name, text in (tables or {}).items():
            (bids / name).parent.mkdir(parents=True, exist_ok=True)
            (bids / name).write_text(text, encoding="utf-8")
        quick = {"permutations": 99, "importance": ("none",)}
        return Settings(bids, out, ("group",), **quick | options)

    return write
