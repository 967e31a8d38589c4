"""Ages of people whom a network had not seen: what every figure of accuracy is made of.

    python benchmarks/ages.py --training DIR ... --alone DIR ... --data RESULTS ... --again RETEST

writes benchmarks/ages/NAME.tsv for each model. Networks of folds are too large to keep, their ages
are not: from these tables and finished output folders benchmarks/evaluate.py makes its page, and
benchmarks/reference.py the curves of the reports. `--training` are folders of the models in use;
`--alone` of the same recipes, trained on some of the data sets. Ages and people are those of the
public data sets that the cards name, under their licences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import models  # noqa: E402
from benchmarks.retest import ages_again  # noqa: E402
from models import registry  # noqa: E402
from models.contract import ModelCard  # noqa: E402
from models.training.data import load_inputs  # noqa: E402

FOLDER = Path(__file__).with_name("ages")
OUT_OF_FOLD, ALONE, UNSEEN, AGAIN = "out of fold", "alone, out of fold", "alone, unseen", "again"
"""Kinds of rows: by the fold that held a person out, of a model in use or of one that was trained
on fewer data sets; by the latter, of another data set; of the same heads again, by its folds."""
COLUMNS = ["kind", "trained_on", "dataset", "participant_id", "change", "age", "predicted_age"]


def main(arguments: list[str] | None = None) -> None:
    """Write the tables of some models."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--training", type=Path, nargs="+", required=True, metavar="DIR")
    add("--alone", type=Path, nargs="+", required=True, metavar="DIR")
    add("--data", type=Path, nargs="+", required=True, metavar="RESULTS",
        help="output folders of the participant level, of people of known age")  # fmt: skip
    add("--again", type=Path, required=True, metavar="RETEST",
        help="output folder of the data set of benchmarks/retest.py")  # fmt: skip
    add("--to", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    options.to.mkdir(exist_ok=True)
    alone = {registry.read_card(each / registry.CARD).name: each for each in options.alone}
    for training in options.training:
        card = registry.read_card(training / registry.CARD)
        frames = [out_of_fold(training, card, OUT_OF_FOLD)]
        frames += of_alone(alone[card.name], options.data, options.again)
        found = pd.concat(frames)[COLUMNS].assign(weights=card.weights_sha256)
        path = options.to / f"{card.name}.tsv"
        found.to_csv(path, sep="\t", index=False, float_format="%.3f", na_rep="n/a")
        print(path)


def out_of_fold(folder: Path, card: ModelCard, kind: str) -> pd.DataFrame:
    """Predictions of a training folder for the people it was trained on."""
    frame = pd.read_csv(folder / "out_of_fold.tsv", sep="\t", dtype={"participant_id": str})
    return frame.assign(kind=kind, trained_on=trained_on(card), change=None)


def of_alone(folder: Path, data: Sequence[Path], again: Path) -> list[pd.DataFrame]:
    """What a model of fewer data sets says of its own people, of others, and of heads again."""
    card = registry.read_card(folder / registry.CARD)
    model = models.load(card.name, weights=folder)
    scans = [
        scan for scan in load_inputs(card, data).scans
        if scan.dataset not in card.training["datasets"]
    ]  # fmt: skip
    unseen = pd.DataFrame({
        "kind": UNSEEN, "dataset": [scan.dataset for scan in scans],
        "participant_id": [scan.participant_id for scan in scans],
        "age": [scan.age for scan in scans],
        "predicted_age": [model.predict(scan.image.float().numpy(), scan.sex).predicted_age
                          for scan in scans],
    })  # fmt: skip
    same = ages_again(folder, load_inputs(card, [again]).scans).assign(kind=AGAIN, dataset=None)
    same = same.rename(columns={"person": "participant_id", "age": "predicted_age"})
    frames = [frame.assign(trained_on=trained_on(card)) for frame in (unseen, same)]
    return [out_of_fold(folder, card, ALONE), *frames]


def trained_on(card: ModelCard) -> str:
    """The data sets of a model."""
    return ", ".join(card.training["datasets"])


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """The tables of a folder, with a column ``model``.

    Raises
    ------
    SystemExit
        Where a table is of other weights than those that are shipped.
    """
    frames = [pd.DataFrame(columns=[*COLUMNS, "weights", "model"])]
    shipped = models.embedded()
    for path in sorted(folder.glob("*.tsv")):
        frame = pd.read_csv(path, sep="\t", dtype={"participant_id": str}).assign(model=path.stem)
        if path.stem in shipped and {*frame["weights"]} != {models.card(path.stem).weights_sha256}:
            sys.exit(f"{path}: of other weights than those in use; run benchmarks/ages.py again")
        frames.append(frame)
    return pd.concat(frames[1:] or frames, ignore_index=True)


if __name__ == "__main__":
    main()
