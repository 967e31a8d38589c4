"""A model whose every secret is known: the age is in one cube of a small brain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bidsapp.importance.brain import Brain
from models.contract import InputContract, ModelCard, Output, Uncertainty
from models.prediction import BrainAgeModel

SHAPE = (20, 22, 18)
PLACE = (slice(4, 8), slice(10, 14), slice(6, 10))
"""Where the planted model looks."""


class Planted(nn.Module):
    """Says the mean intensity of one cube."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(1, 1, *SHAPE)
        weight[(0, 0, *PLACE)] = 1 / 64
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum((1, 2, 3, 4))


def card(shape: tuple[int, int, int] = SHAPE, name: str = "planted") -> ModelCard:
    contract = InputContract(
        "MNI152NLin2009aSym", 12, shape,
        ((2.0, 0, 0, -20), (0, 2.0, 0, -20), (0, 0, 2.0, -20), (0, 0, 0, 1.0)),
        True, True, "tissue", (20, 80),
    )  # fmt: skip
    return ModelCard(
        name, "Planted", "1", "None.", "CC0-1.0", "None.", contract, Uncertainty(5.0, (-8, 8)),
        Output(50.0, 100.0), weights_sha256="0" * 64,
    )  # fmt: skip


@pytest.fixture
def planted() -> BrainAgeModel:
    return BrainAgeModel(card(), [Planted().eval()])


@pytest.fixture
def make_brains() -> Callable[..., list[Brain]]:
    """Function (number) -> brains, whose cube is brighter in the old."""

    def make(number: int) -> list[Brain]:
        rng = np.random.default_rng(1)
        place = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2 + 0.5
        mask = (place**2).sum(0) < 8.5**2
        found = []
        for person in range(number):
            image = 0.8 + 0.1 * rng.normal(size=SHAPE)
            image[PLACE] += 0.2 * (person / max(1, number - 1) - 0.5)
            found.append(Brain(np.where(mask, image, 0).astype(np.float32), mask, "F"))
        return found

    return make
