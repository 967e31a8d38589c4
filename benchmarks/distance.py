"""How unlike its training images a model finds scans that it has not seen, for docs/quality.md.

    python benchmarks/distance.py --training TRAINING --data RESULTS/IXI RESULTS/ds002748 ...

TRAINING holds a model of fold networks that have seen the first data set alone; as many of them
are taken as are in use. Of that data set, each scan is held out from the reference, though not
from the networks.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.markdown import put, table  # noqa: E402
from bidsapp.preprocessing.quality import LIMITS  # noqa: E402
from models import registry  # noqa: E402
from models.training.data import dataset_name, load_training_set  # noqa: E402
from models.training.reference import features, fitted  # noqa: E402

PAGE = REPOSITORY / "docs" / "quality.md"


def main(arguments: list[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--training", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR",
                        help="output folders of the app; first that of the training")  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    put(PAGE, "distance", distances(options.training, options.data))


def distances(training: Path, data: list[Path]) -> str:
    """Of each data set, relative to what one in a hundred training images exceeds."""
    card = registry.read_card(training / registry.CARD)
    model = registry.load(card.name, weights=training)
    model = replace(model, networks=model.networks[: len(registry.load(card.name).networks)])
    home, *others = data
    rule = model.card.image_contract.intensity
    reference = fitted(model, load_training_set([home], rule).scans)
    found = {dataset_name(home): reference.distances / np.quantile(reference.distances, 0.99)}
    for folder in others:
        scans = load_training_set([folder], rule).scans
        each = [reference.relative(features(model, scan)) for scan in scans]
        found[dataset_name(folder)] = np.array(each)
    limit = LIMITS["distance_from_training"][1]
    rows = [
        [name, str(len(each)), f"{np.median(each):.2f}", f"{each.max():.2f}",
         str(int((each > limit).sum()))]
        for name, each in found.items()
    ]  # fmt: skip
    return table(["data set", "scans", "median", "largest", f"beyond {limit:g}"], rows)


if __name__ == "__main__":
    main()
