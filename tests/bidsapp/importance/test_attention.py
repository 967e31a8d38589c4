"""Attention maps of BrainRotViT: where the patches are, and guided backpropagation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from bidsapp.importance.attention import _GuidedBackpropagation, _tokens, attention, suited
from bidsapp.importance.brain import Brain, Unsuited
from models.brainrotvit.network import BrainRotViT, build
from models.contract import TISSUES, MorphometryContract
from models.prediction import BrainAgeModel

from .conftest import card

SHAPE = (12, 16, 16)


@pytest.fixture
def model() -> BrainAgeModel:
    torch.manual_seed(0)
    encoder = {"image_size": 16, "patch_size": 4, "hidden": 24, "layers": 2, "heads": 2}
    regressor = {
        "slices": 12,
        "hidden": 24,
        "kernels": ((2, 3), (2, 3), (2, 2)),
        "dense": (32, 16),
    }
    network = build({"encoder": encoder, "regressor": regressor}).eval().requires_grad_(False)
    this = card(SHAPE)
    return BrainAgeModel(
        replace(this, contract=replace(this.contract, needs_sex=True)), [network, network]
    )


def a_brain(sex: str | None = "F") -> Brain:
    rng = np.random.default_rng(1)
    mask = np.ones(SHAPE, bool)
    mask[0] = False
    return Brain(rng.random(SHAPE, np.float32) * mask, mask, sex)


def test_a_map_on_the_grid_of_the_slices(model: BrainAgeModel) -> None:
    values = attention(model, a_brain())
    assert values.shape == SHAPE and values.min() >= 0 and 0 < values.max() <= 1
    assert not values[0].any()
    np.testing.assert_array_equal(attention(model, a_brain()), values)
    assert attention(model, a_brain(None)).shape == SHAPE


def test_a_map_on_the_grid_of_an_image_that_is_interpolated_to_slices(
    model: BrainAgeModel,
) -> None:
    shape = (23, 30, 27)
    this = replace(model.card.contract, shape=shape)
    model = replace(model, card=replace(model.card, contract=this))
    mask = np.ones(shape, bool)
    mask[:, :, -1] = False
    image = np.random.default_rng(1).random(shape, np.float32)
    values = attention(model, Brain(image * mask, mask, "M"))
    assert values.shape == shape and not values[:, :, -1].any()
    assert values[mask].std() > 0 and values.min() >= 0 and values.max() <= 1


def test_a_map_of_a_network_that_sees_maps_of_tissue(model: BrainAgeModel) -> None:
    torch.manual_seed(1)
    encoder = {"image_size": 16, "patch_size": 4, "hidden": 24, "heads": 2}
    regressor = {"slices": 12, "hidden": 24, "kernels": ((2, 3), (2, 3), (2, 2))}
    config = {"size": "tissue", "encoder": encoder, "regressor": regressor}
    network = build(config).eval().requires_grad_(False)
    for block in network.encoder.blocks:
        torch.nn.init.normal_(block.attention.query.weight, std=0.5)
    contract = MorphometryContract("MNI152NLin2009aSym", TISSUES, SHAPE, (20, 80), True)
    model = BrainAgeModel(replace(model.card, contract=contract), [network])
    brain = a_brain()
    brain = replace(brain, image=np.stack([brain.image, 0.5 * brain.image, 0.1 * brain.image]))
    values = attention(model, brain)
    assert values.shape == SHAPE and values.min() >= 0 and 0 < values.max() <= 1
    slices = torch.rand(3, 3, 16, 16)
    tokens, attended = _tokens(network.encoder, slices)
    torch.testing.assert_close(tokens, network.encoder.tokens(slices))
    assert attended.shape == (3, 16) and (attended.sum(1) < 1).all()


def test_the_attention_is_that_of_the_network(model: BrainAgeModel) -> None:
    """Recomputed from queries and keys, it mixes the values into what the network's layer says."""
    network = model.networks[0]
    assert isinstance(network, BrainRotViT)
    slices = torch.rand(3, 1, 16, 16)
    tokens, attended = _tokens(network.encoder, slices)
    assert tokens.shape == (3, 17, 24) and attended.shape == (3, 16)
    torch.testing.assert_close(tokens, network.encoder.tokens(slices))
    assert (attended > 0).all() and (attended.sum(1) < 1).all()  # the class token has the rest


def test_guided_backpropagation_lets_positive_gradients_through_alone() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    with _GuidedBackpropagation():
        y = torch.nn.SiLU()(x)
    torch.testing.assert_close(y, functional.silu(x))
    (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, -1.0, 1.0])).sum(), x)
    assert gradient[0] == 0 and gradient[1] == 0 and gradient[2] > 1


def test_other_models_are_refused(planted: BrainAgeModel) -> None:
    assert not suited(planted)
    with pytest.raises(Unsuited, match="planted"):
        attention(planted, a_brain())
