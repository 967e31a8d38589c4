r"""How far figures out of fold hang on who is in which fold: a table of docs/training.md.

    python benchmarks/folds.py --data RESULTS [RESULTS ...] [--write]

The models that are fitted in one step are fitted with several assignments of people to folds; the
networks would move as much, and take hours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402
from models.training import closed_form, linear, morphometry, volumes  # noqa: E402
from models.training.data import (  # noqa: E402
    TrainingSet,
    load_morphometry,
    load_training_set,
    load_volumes,
)
from models.training.folds import assign_folds  # noqa: E402

PAGE = REPOSITORY / "docs" / "training.md"
FOLDS, OURS = 5, 2


def figures(method: closed_form.Method, data: TrainingSet, seed: int) -> pd.DataFrame:
    """Error and correlation out of fold, a row for each data set."""
    people, strata = [s.person for s in data.scans], [s.stratum for s in data.scans]
    folds = assign_folds(people, strata, data.ages.tolist(), FOLDS, seed)
    with TemporaryDirectory() as folder:
        closed_form.train(method, data, folds, seed, Path(folder), "none", "0")
        found = pd.read_csv(Path(folder) / "out_of_fold.tsv", sep="\t")
    rows = [
        {"model": method.name, "dataset": name, "seed": seed,
         "mae": (each["predicted_age"] - each["age"]).abs().mean(),
         "r": np.corrcoef(each["predicted_age"], each["age"])[0, 1]}
        for name, each in found.groupby("dataset")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> list[list[str]]:
    """A row for each model and data set: ours, and mean and range over all assignments."""
    rows = []
    for (model, dataset), each in found.groupby(["model", "dataset"], sort=False):
        ours = each[each["seed"] == OURS].iloc[0]
        mae, r = each["mae"], each["r"]
        rows.append([
            str(model), str(dataset), f"{ours['mae']:.2f}",
            f"{mae.mean():.2f} ({mae.min():.2f} to {mae.max():.2f})", f"{ours['r']:.3f}",
            f"{r.mean():.3f} ({r.min():.3f} to {r.max():.3f})",
        ])  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Fit, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="RESULTS")
    parser.add_argument("--seeds", type=int, default=20, help="assignments (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    options = parser.parse_args(arguments)
    maps = load_training_set(options.data, linear.LINEAR.intensity)
    amounts = load_morphometry(options.data)
    shares = load_volumes(options.data, volumes.REGIONS)
    methods = (
        (linear.method(maps), maps),
        (morphometry.method(amounts), amounts),
        (volumes.method(shares), shares),
    )
    found = pd.concat([
        figures(method, data, seed)
        for method, data in methods
        for seed in range(1, options.seeds + 1)
    ])  # fmt: skip
    text = table(["model", "data set", "MAE, ours", "of all", "r, ours", "of all"], summary(found))
    print(text)
    if options.write:
        put(PAGE, "folds", text)


if __name__ == "__main__":
    main()
