r"""Which training recipe carries over to another scanner: the tables of docs/training.md.

    python benchmarks/ablation.py --home DERIVATIVES --away DERIVATIVES --retest DERIVATIVES \
        --out DIR [--table wssa] [--write]

Each recipe is trained on the data set at home alone, by folds, and shown people of another scanner
(by all the folds' networks together) and the same heads scanned again (`benchmarks/retest.py`; by
the network that has not seen them).
What is trained stays in --out, and is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import variants  # noqa: E402
from benchmarks.markdown import put, table  # noqa: E402
from benchmarks.retest import CHANGES, ages_again, moves_of  # noqa: E402
from models import registry  # noqa: E402
from models.prediction import BrainAgeModel  # noqa: E402
from models.training.__main__ import build_parser, regression_options  # noqa: E402
from models.training.__main__ import main as train  # noqa: E402
from models.training.data import TrainingScan, load_training_set  # noqa: E402
from models.training.export import runs_of  # noqa: E402
from models.training.folds import assign_folds  # noqa: E402
from models.training.objectives import LabelDistribution, Objective  # noqa: E402
from models.training.regression import train_fold  # noqa: E402

PAGE = REPOSITORY / "docs" / "training.md"
FOLDS, SEED = 3, 2
COMPACT = "--device cpu --epochs 40 --learning-rate 1e-3"
SMOOTH = f"{COMPACT} --network smoothing=2 attention=true"
WSSA = (
    "--device cpu --epochs 40 --learning-rate 1e-3"
    " --network normalise=true coarse=true smoothing=2 attention_after_pooling=true"
    " mirror=true dropout_conv=0.3 dropout_dense=0.0"
)


CENTRED = f"{WSSA} leak=0.1 --readout centred --without translation"


@dataclass(frozen=True)
class Recipe:
    """A row: what is trained, how, and by what epochs where they are not the trainer's own."""

    name: str
    words: str
    network: str
    options: str
    objective: Callable[[], Objective] | None = None


RECIPES = (
    Recipe("map", "tissue map, smoothed; attention; flip, affine, erosion", "compact",
           f"{SMOOTH} --without translation"),
    Recipe("linear", "tissue map, smoothed; ridge regression", "linear", ""),
    Recipe("wssa", "as the first, with shared attention", "wssa",
           f"{WSSA} --without translation"),
    Recipe("wssa-own", "as the first, attention of each layer's own", "wssa",
           f"{WSSA} shared=false --without translation"),
    Recipe("map-rim", "without erosion", "compact", f"{SMOOTH} --without translation erosion"),
    Recipe("map-plain", "without any augmentation", "compact", f"{SMOOTH} --without all"),
    Recipe("map-bare", "without attention", "compact",
           f"{COMPACT} --network smoothing=2 --without translation"),
    Recipe("map-sharp", "not smoothed", "compact",
           f"{COMPACT} --network attention=true --without translation"),
    Recipe("t1", "intensities (`tissue`) in place of the map", "compact",
           f"{SMOOTH} --intensity tissue --without translation curve bias noise blur"),
    Recipe("t1-all", "intensities; and curve, bias, noise, blur", "compact",
           f"{SMOOTH} --intensity tissue --without translation"),
)  # fmt: skip
TRIED = (
    Recipe("wssa", "ReLU in the dense layers, from a random start", "wssa",
           f"{WSSA} --without translation"),
    Recipe("wssa-centred", "dense layers that start centred and leak", "wssa", CENTRED),
    Recipe("wssa-two", "the same, two networks", "wssa", f"{CENTRED} --networks 2"),
    Recipe("wssa-mixed", "as the second; images mixed with the next in age", "wssa", CENTRED,
           variants.Mixed),
    Recipe("wssa-aged", "as the second; ageing simulated", "wssa", CENTRED, variants.Aged),
    Recipe("wssa-deep", "as the second; deep supervision", "wssa", CENTRED,
           variants.DeepSupervision),
    Recipe("wssa-labels", "as the second; label distribution", "wssa",
           f"{CENTRED} --helper distribution"),
    Recipe("wssa-labels-two", "the same, two networks", "wssa",
           f"{CENTRED} --helper distribution --networks 2"),
    Recipe("wssa-labels-aged", "the same, and ageing simulated", "wssa",
           f"{CENTRED} --helper distribution --networks 2",
           lambda: variants.Aged(LabelDistribution())),
    Recipe("wssa-dropout", "as the second; dropout 0.5 after the convolutions", "wssa",
           CENTRED.replace("dropout_conv=0.3", "dropout_conv=0.5")),
    Recipe("wssa-squares", "as the second; squared error", "wssa", f"{CENTRED} --loss mse"),
    Recipe("wssa-last", "as the second; the last weights, not averaged", "wssa",
           f"{CENTRED} --average 0"),
)  # fmt: skip
TABLES = {"ablation": RECIPES, "wssa": TRIED}
"""By their places in the page."""


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, words in (("home", "to train on"), ("away", "of another scanner"),
                        ("retest", "of the same heads scanned again")):  # fmt: skip
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DERIVATIVES",
                            help=f"output folder of the participant level, {words}")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="where trained models are kept")
    parser.add_argument("--table", choices=TABLES, default="ablation", help="(%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows, by their names")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    options = parser.parse_args(arguments)
    recipes = [r for r in TABLES[options.table] if not options.only or r.name in options.only]
    rows = [row(each, options) for each in recipes]
    header = ["recipe", "network", "home: MAE", "r", "away: MAE", "mean error", "r",
              *CHANGES]  # fmt: skip
    found = table(header, rows)
    print(found)
    if options.write:
        put(PAGE, options.table, found)


def row(recipe: Recipe, options: argparse.Namespace) -> list[str]:
    """Train by a recipe where that was not done, and measure."""
    folder = options.out / recipe.name
    call = [recipe.network, "--data", str(options.home), "--out", str(folder),
            "--folds", str(FOLDS), "--seed", str(SEED), *recipe.options.split()]  # fmt: skip
    if not (folder / registry.CARD).exists():
        if recipe.objective:
            train_by(recipe.objective, call)
            call.append("--finish")
        if train(call) != 0:
            raise SystemExit(f"The recipe {recipe.name} could not be trained.")
    model = registry.load(recipe.network, weights=folder)
    card = model.card
    away = load_training_set([options.away], card.image_contract.intensity).scans
    error = predicted(model, away) - [scan.age for scan in away]
    r = np.corrcoef(predicted(model, away), [scan.age for scan in away])[0, 1]
    again = load_training_set([options.retest], card.image_contract.intensity).scans
    moves = moves_of(ages_again(folder, again)).mean()
    return [recipe.words, recipe.network, f"{card.figures['mae']:.2f}", f"{card.figures['r']:.3f}",
            f"{np.abs(error).mean():.2f}", f"{error.mean():+.1f}", f"{r:.2f}",
            *(f"{moves[name]:.2f}" for name in CHANGES)]  # fmt: skip


def train_by(objective: Callable[[], Objective], call: list[str]) -> None:
    """Train the folds that a call of the trainer would train, by another objective."""
    chosen = build_parser().parse_args(call)
    how = regression_options(chosen)
    data = load_training_set(chosen.data, how.intensity)
    people, strata = [s.person for s in data.scans], [s.stratum for s in data.scans]
    folds = assign_folds(people, strata, data.ages.tolist(), how.folds, how.seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    small = data.pooled(2)
    for fold in range(how.folds):
        for name, each in runs_of(fold, how):
            train_fold(small, folds == fold, name, each, chosen.out, objective=objective())


def predicted(model: BrainAgeModel, scans: tuple[TrainingScan, ...]) -> NDArray[np.float64]:
    """Years, one per scan."""
    found = [model.predict(scan.image.float().numpy(), scan.sex) for scan in scans]
    return np.array([each.predicted_age for each in found])


if __name__ == "__main__":
    main()
