"""The noise models that come with the models, so that one scan has a map in seconds.

    python -m bidsapp.noise_models RESULTS [RESULTS ...] [--models NAME ...] [--scans 100]

fits them to the images of finished output folders of the participant level and writes
``models/NAME/noise.safetensors``, which names the weights that it belongs to. The predictions in
the folders are not looked at: they may be of earlier weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import models
from bidsapp.derivatives import Derivatives
from bidsapp.explain import NOISE_WEIGHTS
from bidsapp.explain_group import Images, good_sources, spread
from bidsapp.importance import noise
from bidsapp.importance.brain import Brain
from bidsapp.progress import Steps
from models import registry
from models.contract import VolumeContract
from models.prediction import BrainAgeModel

TEMPLATE = "MNI152NLin2009aSym"


class Chain(Sequence[Brain]):
    """Images of several output folders as one sequence."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.places = [(part, n) for part in parts for n in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        part, n = self.places[index]
        return part[n]


def images(model: BrainAgeModel, folders: Sequence[Derivatives], most: int) -> Sequence[Brain]:
    """At most so many scans of good quality, spread over the ages, as a model takes them."""
    whose = [(out, source) for out in folders for source in good_sources(out)]
    chosen = {id(source) for source in spread([source for _, source in whose], most)}
    return Chain([
        Images([s for other, s in whose if other is out and id(s) in chosen], model, out)
        for out in folders
    ])  # fmt: skip


def fit(name: str, folders: Sequence[Derivatives], most: int) -> noise.NoiseModel:
    """Fit the noise model of an embedded model."""
    model = models.load(name, "cpu")
    with Steps(f"Importance by noise, {name}") as progress:
        return noise.fit(model, images(model, folders, most), noise.Options(), progress=progress)


def with_images() -> list[str]:
    """The embedded models that see an image, or maps of tissue."""
    return [name for name in models.embedded()
            if not isinstance(models.card(name).contract, VolumeContract)]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Fit and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="output folders of the app")
    parser.add_argument("--models", nargs="+", default=with_images(), metavar="NAME")
    parser.add_argument("--scans", type=int, default=100, help="at most (default: 100)")
    options = parser.parse_args(arguments)
    for name in options.models:
        if isinstance(models.card(name).contract, VolumeContract):
            parser.error(f"{name} sees no image, so that no noise can be added to it; name"
                         f" {', '.join(with_images())}.")  # fmt: skip
    torch.set_num_threads(1)  # as at the group level; more change the last bits
    folders = [Derivatives(folder, folder, TEMPLATE) for folder in options.results]
    for name in options.models:
        fitted = fit(name, folders, options.scans)
        registry.write(registry.FOLDER / name / NOISE_WEIGHTS, fitted.to_bytes())
        print(
            f"{name}: {fitted.about['scans']} scans, the noise moves predictions by "
            f"{fitted.about['moved_years']:.2f} of {fitted.about['tolerance_years']:.2f} years"
        )


if __name__ == "__main__":
    main()
