"""Evidence that a map means something.

- Cascading randomisation (Adebayo et al. 2018): with the model's weights replaced by noise, layer
  by layer from its end, a map that shows what the model learned must become another.
- Deletion and insertion (Petsiuk et al. 2018), in years: erasing what a map calls important must
  move the prediction more than erasing other places; putting it into a blank brain must bring
  the prediction back sooner.
- Agreement between methods.

Split halves come with the population map (`Population.split_half_r`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import nn

from bidsapp.importance.brain import Array, Brain, Mask
from models.prediction import BrainAgeModel

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Of the brain's voxels that are erased or put back."""
BLANK_SIGMA = 5.0
"""Voxels; Gaussian that blurs a brain until nothing is left to see."""
RANDOM_SIGMA = 3.0
"""Voxels; a random order goes by patches about as large as those of maps."""


def cascade(
    model: BrainAgeModel, stages: int, seed: int = 1
) -> Iterator[tuple[str, BrainAgeModel]]:
    """The model with more and more of its layers randomised, from its end to its beginning.

    A parameter is drawn anew with the mean and the deviation that it had, so that signals keep
    their size.

    Parameters
    ----------
    stages
        How many models, evenly through the layers; the last has no learned weight left.

    Yields
    ------
    tuple
        The last layer that was randomised, and the model.
    """
    networks = [copy.deepcopy(network) for network in model.networks]
    names = [name for name, module in networks[0].named_modules() if _has_own(module)][::-1]
    shown = {round(end) for end in np.linspace(0, len(names), stages + 1)[1:]}
    generator = torch.Generator().manual_seed(seed)
    for number, name in enumerate(names, start=1):
        for network in networks:
            _randomise(network.get_submodule(name), generator)
        if number in shown:
            yield name, replace(model, networks=copy.deepcopy(networks))


def _has_own(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    for value in module.parameters(recurse=False):
        deviation = value.std(correction=0).cpu()
        drawn = torch.randn(value.shape, generator=generator) * deviation + value.mean().cpu()
        value.copy_(drawn)


def similarity(a: Array, b: Array, mask: Mask) -> float:
    """Spearman's correlation over the brain's voxels, of sizes without signs; 0 for a flat map."""
    first, second = np.abs(a[mask]), np.abs(b[mask])
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def random_order(mask: Mask, seed: int) -> Array:
    """A map of nothing: smooth noise, (X, Y, Z)."""
    noise = np.random.default_rng(seed).normal(size=mask.shape).astype(np.float32)
    return ndimage.gaussian_filter(noise, RANDOM_SIGMA)


@dataclass(frozen=True)
class Curves:
    """Change of the predicted age, in years, at each of `FRACTIONS`.

    Attributes
    ----------
    deletion
        Between the brain and the brain without its most important voxels: more is better.
    insertion
        Between the brain and a blank one with these voxels alone: less is better.
    """

    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]


def curves(model: BrainAgeModel, brain: Brain, importance: Array) -> Curves:
    """Erase, and put back, the voxels of one brain in the order of a map."""
    order = np.argsort(-np.abs(importance[brain.mask]), kind="stable")
    blank = _blurred(brain)
    whole = _age(model, brain.image, brain)
    deletion, insertion = list[float](), list[float]()
    for fraction in FRACTIONS:
        chosen = np.zeros(brain.mask.shape, bool)
        values = np.zeros(len(order), bool)
        values[order[: round(fraction * len(order))]] = True
        chosen[brain.mask] = values
        for found, image in (
            (deletion, np.where(chosen, blank, brain.image)),
            (insertion, np.where(chosen, brain.image, blank)),
        ):
            found.append(abs(_age(model, image, brain) - whole))
    return Curves(np.array(deletion), np.array(insertion))


def mean_curves(every: Sequence[Curves]) -> Curves:
    """Over scans."""
    return Curves(
        np.mean([each.deletion for each in every], axis=0),
        np.mean([each.insertion for each in every], axis=0),
    )


def area(curve: NDArray[np.float64]) -> float:
    """Mean height of a curve over `FRACTIONS`, years, by the trapezoidal rule."""
    x = np.array(FRACTIONS)
    return float(np.trapezoid(curve, x) / (x[-1] - x[0]))


def _age(model: BrainAgeModel, image: Array, brain: Brain) -> float:
    with torch.inference_mode():
        return model.ages(model.tensor(image.astype(np.float32)), brain.sex).item()


def _blurred(brain: Brain) -> Array:
    """The brain smoothed inside its mask; what is outside stays."""
    weight = ndimage.gaussian_filter(brain.mask.astype(np.float32), BLANK_SIGMA)
    image, axes = np.where(brain.mask, brain.image, 0), (-3, -2, -1)
    total = ndimage.gaussian_filter(image, BLANK_SIGMA, axes=axes)
    return np.where(brain.mask, total / np.maximum(weight, 1e-6), brain.image)
