"""What a model does on a data set that it has not seen, for its card.

A model that is shipped has seen all the data there are. What its kind does elsewhere is measured
by a model of the same recipe that was trained on fewer data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models import registry
from models.contract import ModelError
from models.training import evaluation
from models.training.data import load_inputs

KEPT = ("n", "mae", "mae_low", "mae_high", "mean_error", "r", "baseline_mae")


def write(name: str, alone: Path, roots: Sequence[Path], weights: Path | None = None) -> Path:
    """Write ``[figures.elsewhere]`` into the card of a model.

    Parameters
    ----------
    name
        Of a known model.
    alone
        Folder of a model of the same recipe, trained on other data sets than those of ``roots``.
    roots
        Output folders of the participant level, of people of known age.
    weights
        Folder of the model, where it is not a known one's own.

    Returns
    -------
    Path
        The card.

    Raises
    ------
    ModelError
        Where the second model is of another name, or has seen one of the data sets.
    """
    model = registry.load(registry.read_card(alone / registry.CARD).name, weights=alone)
    if model.card.name != name:
        raise ModelError(f"{alone} holds the model '{model.card.name}', not '{name}'.")
    data = load_inputs(model.card, roots)
    here, seen = sorted({scan.dataset for scan in data.scans}), model.card.training["datasets"]
    if both := sorted({*here} & {*seen}):
        raise ModelError(f"The model in {alone} was trained on {', '.join(both)}; choose --data"
                         " that it has not seen.")  # fmt: skip
    found = [model.predict(scan.image.float().numpy(), scan.sex).predicted_age
             for scan in data.scans]  # fmt: skip
    people = [scan.person for scan in data.scans]
    figures = evaluation.accuracy(data.ages, np.array(found), people)
    elsewhere = {"trained_on": ", ".join(seen), "tested_on": ", ".join(here)}
    elsewhere |= {key: round(getattr(figures, key), 3) for key in KEPT}
    path = (weights or registry.FOLDER / name) / registry.CARD
    card = registry.read_card(path)
    card = replace(card, figures=card.figures | {"elsewhere": elsewhere})
    registry.write(path, card.to_toml().encode())
    return path
