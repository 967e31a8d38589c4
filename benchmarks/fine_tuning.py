"""Whether fine-tuning helps on a scanner that a model has not seen, out of fold.

    python benchmarks/fine_tuning.py --parent TRAINING --away RESULTS/ds002748 --out DIR

TRAINING holds a model of fold networks that has not seen the people of RESULTS, a finished output
folder. Puts a table into docs/training.md. Before and after, a person is predicted by one network:
the one that is tuned without that person.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402
from models import registry  # noqa: E402
from models.training.__main__ import main as train  # noqa: E402
from models.training.data import load_inputs  # noqa: E402

PAGE = REPOSITORY / "docs" / "training.md"
STEPS = {"its level moved": 0, "20 epochs": 20}


def before(parent: Path, away: Path, folds: pd.Series) -> pd.DataFrame:
    """Ages by the network that each fold starts from: columns ``age``, ``predicted_age``."""
    name = registry.read_card(parent / registry.CARD).name
    model = registry.load(name, weights=parent)
    rows = []
    for scan in load_inputs(model.card, [away]).scans:
        network = model.networks[folds[scan.participant_id] % len(model.networks)]
        found = replace(model, networks=[network]).predict(scan.image.float().numpy(), scan.sex)
        rows.append({"age": scan.age, "predicted_age": found.predicted_age})
    return pd.DataFrame(rows)


def row(words: str, ages: pd.DataFrame) -> list[str]:
    """Error, mean error and correlation."""
    error = ages["predicted_age"] - ages["age"]
    r = np.corrcoef(ages["age"], ages["predicted_age"])[0, 1]
    return [words, str(len(ages)), f"{error.abs().mean():.2f}", f"{error.mean():+.1f}", f"{r:.2f}"]


def main(arguments: list[str] | None = None) -> None:
    """Fine-tune, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parent", type=Path, required=True, metavar="TRAINING")
    parser.add_argument("--away", type=Path, required=True, metavar="RESULTS")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args(arguments)
    name = registry.read_card(options.parent / registry.CARD).architecture
    rows = []
    for words, epochs in STEPS.items():
        folder = options.out / str(epochs)
        call = [name, "--from-weights", str(options.parent), "--data", str(options.away),
                "--out", str(folder), "--folds", str(options.folds), "--epochs", str(epochs),
                "--seed", "2", "--device", "cpu"]  # fmt: skip
        if train(call) != 0:
            sys.exit(f"{name} could not be fine-tuned.")
        ages = pd.read_csv(folder / "out_of_fold.tsv", sep="\t", dtype={"participant_id": str})
        if not rows:
            folds = ages.set_index("participant_id")["fold"]
            rows.append(row("as it was", before(options.parent, options.away, folds)))
        rows.append(row(words, ages))
    found = table([f"`{name}`", "people", "MAE", "mean error", "r"], rows)
    put(PAGE, "fine_tuning", found)
    print(found)


if __name__ == "__main__":
    main()
