"""The model of morphometry: its contract, and what the embedded one makes of more fluid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.contract import TISSUES, ModelCard, ModelError, MorphometryContract
from models.linear.network import LinearMap
from models.registry import load


def test_its_contract_survives_a_card() -> None:
    card = load("morphometry").card
    again = ModelCard.from_toml(card.to_toml())
    assert again == card and isinstance(again.contract, MorphometryContract)
    assert again.contract.shape == (len(TISSUES), *again.contract.grid)
    with pytest.raises(ModelError, match="'morphometry' takes maps of tissue, and no image"):
        _ = card.image_contract


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tissues": ("WM", "GM", "CSF")}, "tissues must be GM, WM, CSF"),
        ({"tissues": ("GM",)}, "tissues must be GM, WM, CSF"),
        ({"grid": (46, 55)}, "three positive whole numbers"),
        ({"grid": (46, 55, 0)}, "three positive whole numbers"),
        ({"ages": (80.0, 20.0)}, "a younger and an older age"),
    ],
)
def test_contracts_that_cannot_be_are_refused(changes: dict, words: str) -> None:
    contract = MorphometryContract("T", TISSUES, (46, 55, 46), (20, 80))
    with pytest.raises(ModelError, match=words):
        dataclasses.replace(contract, **changes)


def test_three_maps_are_three_images_of_a_person() -> None:
    network = LinearMap((3, 4, 5, 6), smoothing=1)
    network.weight.data += torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    maps = torch.rand(2, 1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    each = [LinearMap((4, 5, 6), smoothing=1) for _ in range(3)]
    for number, part in enumerate(each):
        part.weight.data += network.weight.data[number]
    with torch.inference_mode():
        found = network(maps)
        summed = torch.stack([part(maps[:, :, n]) for n, part in enumerate(each)]).sum(0)
    torch.testing.assert_close(found, summed)


def test_the_embedded_one_sees_more_fluid_and_less_cortex() -> None:
    model = load("morphometry")
    grid = model.card.contract.shape[1:]
    place = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in grid), indexing="ij"))
    r = np.sqrt((place**2).sum(0))
    grey, white, fluid = (r < 17) & (r >= 14), (r < 14) & (r >= 3), r < 3
    young = np.stack([grey, white, fluid]).astype(np.float32)
    old = young.copy()
    old[0] *= 0.9
    old[2, (r < 5)] += 0.4
    ages = [model.predict(maps).predicted_age for maps in (young, old)]
    assert ages[1] > ages[0] + 2
    with pytest.raises(ModelError, match="not finite"):
        model.predict(np.full_like(young, np.nan))
    with pytest.raises(ModelError, match=r"takes \(3, 46, 55, 46\) voxels"):
        model.predict(young[0])
