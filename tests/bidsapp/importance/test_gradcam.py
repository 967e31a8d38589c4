"""Grad-CAM lies where the network looks, at every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bidsapp.importance.brain import Brain, Unsuited
from bidsapp.importance.gradcam import gradcam, merged, suited
from models.compact.network import CompactCNN
from models.prediction import BrainAgeModel
from models.wssa.network import WSSA

from .conftest import card

MakeBrains = Callable[..., list[Brain]]
SHAPE = (32, 32, 32)


def brain_with_a_spark(place: tuple[int, int, int]) -> Brain:
    image = np.zeros(SHAPE, np.float32)
    image[place] = 1
    return Brain(image, np.ones(SHAPE, bool))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WSSA((4, 4, 4, 4, 4), (4, 4), attention_after_pooling=True),
        lambda: WSSA((4, 4, 4, 4, 4), (4, 4), attention_after_pooling=False),
        lambda: WSSA(
            (4, 4, 4, 4), (4, 4), attention_after_pooling=True, normalise=True, coarse=True
        ),
        lambda: CompactCNN(SHAPE, (4, 4, 4)),
    ],
    ids=["wssa pooled", "wssa", "wssa coarse", "compact"],
)
def test_maps_of_the_layers_lie_on_the_image(make: Callable[[], Any]) -> None:
    """The difference that a bright voxel makes is centred on it, at every layer."""
    torch.manual_seed(0)  # one channel in sixteen starts out dead: four of four must not
    network = make().eval()
    place = (9, 20, 13)
    dark = brain_with_a_spark((0, 0, 0))
    dark.image[:] = 0
    image, blank = (
        torch.from_numpy(b.image)[None, None] for b in (brain_with_a_spark(place), dark)
    )
    with torch.no_grad():
        change = [
            (one - other).abs().sum(1)[0].numpy()
            for one, other in zip(network.attended(image), network.attended(blank))
        ]
    for found, (step, offset) in zip(change[:3], network.places(SHAPE)):
        where = np.argwhere(found > 0.2 * found.max()) * step + offset
        assert np.abs(where.mean(0) - place).max() <= step  # within a voxel of the layer


def test_a_map_for_each_layer_on_the_image(make_brains: MakeBrains) -> None:
    torch.manual_seed(1)
    brain = make_brains(1)[0]
    model = BrainAgeModel(card(), [WSSA((4, 4, 4, 4, 4), (4, 4)).eval() for _ in "ab"])
    layers = gradcam(model, brain)
    assert len(layers) == 5
    for layer in layers:
        assert layer.shape == brain.image.shape and layer.min() >= 0
        assert not layer[~brain.mask].any()
    whole = merged(layers)
    assert 0 < whole.max() <= 1
    np.testing.assert_array_equal(gradcam(model, brain)[0], layers[0])


def test_a_mirrored_network_gives_a_mirrored_map() -> None:
    torch.manual_seed(1)
    network = WSSA((4, 4, 4, 4, 4), (4, 4), mirror=True).eval()
    model = BrainAgeModel(card(SHAPE), [network])
    rng = np.random.default_rng(1)
    image, mask = rng.random(SHAPE, np.float32), np.ones(SHAPE, bool)
    one = gradcam(model, Brain(image, mask))
    other = gradcam(model, Brain(np.ascontiguousarray(image[::-1]), mask))
    for a, b in zip(one, other):
        np.testing.assert_allclose(a, b[::-1], atol=1e-5 * max(1.0, a.max()))


def test_flat_layers_do_not_enter_the_whole() -> None:
    ramp = np.linspace(0, 2, 8, dtype=np.float32).reshape(2, 2, 2)
    np.testing.assert_allclose(merged([ramp, np.ones((2, 2, 2), np.float32)]), ramp / 2)
    assert not merged([np.zeros((2, 2, 2), np.float32)]).any()


def test_other_models_are_refused(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    assert not suited(planted)
    with pytest.raises(Unsuited, match="planted"):
        gradcam(planted, make_brains(1)[0])
