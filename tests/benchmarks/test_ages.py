"""The ages behind the published figures are in the repository, and give just these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import models
from benchmarks import ages
from models import registry
from models.training.__main__ import main as train
from models.training.volumes import REGIONS

PAGE = Path(ages.REPOSITORY) / "docs" / "evaluation.md"
NAMES = {"IXI": "ixi", "ds002748": "ds002748"}


def published() -> dict[tuple[str, str, str], tuple[int, float, float]]:
    """People, mean absolute error and r, by data set, model and kind of prediction."""
    text = PAGE.read_text().split("(`predictions`)")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    kept = [row for row in cells if row[0] in NAMES and row[1] != "ensemble"]
    return {
        (NAMES[name], model, kind): (int(n), float(error.split()[0]), float(r.split()[0]))
        for name, model, kind, n, error, _, _, r, *_ in kept
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [(ages.OUT_OF_FOLD, "out of fold"), (ages.UNSEEN, "unseen; trained on ixi alone")],
)
def test_published_figures_are_made_of_these_ages(kind: str, words: str) -> None:
    told = ages.read()
    told = told[told["kind"] == kind]
    assert {*told["model"]} == {*models.embedded()}
    found = published()
    for (model, dataset), part in told.groupby(["model", "dataset"]):
        if dataset in NAMES.values():
            people, error, r = found[str(dataset), str(model), words]
            assert people == len(part)
            assert (part["predicted_age"] - part["age"]).abs().mean() == pytest.approx(
                error, abs=0.006
            )
            assert part["predicted_age"].corr(part["age"]) == pytest.approx(r, abs=0.0006)


def test_ages_of_other_weights_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [[ages.OUT_OF_FOLD, "a", "a", "sub-1", None, 20, 26]], columns=ages.COLUMNS
    )
    table.assign(weights="0" * 64).to_csv(tmp_path / "wssa.tsv", sep="\t", index=False)
    with pytest.raises(SystemExit, match="wssa.tsv: of other weights"):
        ages.read(tmp_path)


def study(root: Path, random: np.random.Generator, stems: Sequence[str]) -> Path:
    """Records of people whose ventricles grow by 1 % a year."""
    for stem in stems:
        person, age = stem.split("_")[0], random.uniform(20, 80)
        volumes = {name: 100.0 * random.lognormal(0, 0.02) for name in REGIONS}
        volumes |= {
            f"{side}_lateral_ventricle": 5 * np.exp(age / 100) for side in ("left", "right")
        }
        folder = root / person / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"participant_id": person, "age": age, "sex": "F", "volumes_ml": volumes}
        (folder / f"{stem}_brainage.json").write_text(json.dumps(record))
    return root


def test_nobody_is_told_by_a_network_that_has_seen_them(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    here = study(tmp_path / "here", random, [f"sub-{n:02}" for n in range(24)])
    there = study(tmp_path / "there", random, [f"sub-{n:02}" for n in range(6)])
    again = study(
        tmp_path / "again", random, [f"sub-01_acq-{name}" for name in ("asitwas", "noisy")]
    )
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    folds = ["--folds", "3", "--seed", "1"]
    train(["volumes", "--data", str(here), str(there), "--out", str(whole), *folds, "--whole"])
    train(["volumes", "--data", str(here), "--out", str(alone), *folds])
    ages.main(["--training", str(whole), "--alone", str(alone), "--data", str(here), str(there),
               "--again", str(again), "--to", str(tmp_path / "ages")])  # fmt: skip
    found = pd.read_csv(tmp_path / "ages" / "volumes.tsv", sep="\t")
    people = found.groupby(["kind", "trained_on", "dataset"], dropna=False).size().to_dict()
    both = ages.trained_on(registry.read_card(whole / registry.CARD))
    assert people.pop((ages.AGAIN, "here", np.nan)) == 2
    assert people == {
        (ages.OUT_OF_FOLD, both, "here"): 24, (ages.OUT_OF_FOLD, both, "there"): 6,
        (ages.ALONE, "here", "here"): 24, (ages.UNSEEN, "here", "there"): 6,
    }  # fmt: skip
    unseen = found[found["kind"] == ages.UNSEEN]
    assert (unseen["predicted_age"] - unseen["age"]).abs().mean() < 8
