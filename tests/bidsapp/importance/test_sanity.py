"""The tests of maps can tell a good map from a bad one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bidsapp.importance.brain import Brain
from bidsapp.importance.gradcam import gradcam, merged
from bidsapp.importance.sanity import (
    FRACTIONS,
    area,
    cascade,
    curves,
    mean_curves,
    random_order,
    similarity,
)
from models.prediction import BrainAgeModel
from models.wssa.network import WSSA

from .conftest import PLACE, SHAPE, card

MakeBrains = Callable[..., list[Brain]]


def test_the_cascade_goes_from_the_end_to_the_beginning() -> None:
    torch.manual_seed(0)
    model = BrainAgeModel(card(), [WSSA((4, 4, 4, 4, 4), (4, 4)).eval() for _ in "ab"])
    found = list(cascade(model, 3))
    assert len(found) == 3 and found[-1][0] == "convs.0"
    before = model.networks[1].state_dict()
    changed = [
        {k for k, v in each.networks[1].state_dict().items() if not torch.equal(v, before[k])}
        for _, each in found
    ]
    assert changed[0] < changed[1] < changed[2]
    assert all(name.startswith("dense") for name in changed[0])
    assert {name for name in before if name.endswith("weight")} <= changed[2]
    again = list(cascade(model, 3))[-1][1].networks[0].state_dict()
    for key, value in found[-1][1].networks[0].state_dict().items():
        assert torch.equal(value, again[key])


def test_a_map_of_a_randomised_model_is_another(make_brains: MakeBrains) -> None:
    torch.manual_seed(0)
    model = BrainAgeModel(card(), [WSSA((8, 8, 8, 8, 8), (8, 4)).eval()])
    brain = make_brains(1)[0]
    mine = merged(gradcam(model, brain))
    assert similarity(mine, mine, brain.mask) > 0.999
    *_, (_, last) = cascade(model, 2)
    assert similarity(mine, merged(gradcam(last, brain)), brain.mask) < 0.9


def test_similarity_knows_no_sign_and_no_scale() -> None:
    rng = np.random.default_rng(1)
    mask, values = np.ones((5, 5, 5), bool), rng.normal(size=(5, 5, 5)).astype(np.float32)
    assert similarity(values, -3 * values, mask) > 0.999
    assert similarity(values, np.zeros_like(values), mask) == 0


def test_curves_tell_the_right_map_from_a_random_one(
    planted: BrainAgeModel, make_brains: MakeBrains
) -> None:
    right = np.zeros(SHAPE, np.float32)
    right[PLACE] = 1
    brains = make_brains(3)[::2]
    good = mean_curves([curves(planted, brain, right) for brain in brains])
    bad = mean_curves([curves(planted, b, random_order(b.mask, 1)) for b in brains])
    assert good.deletion.shape == good.insertion.shape == (len(FRACTIONS),)
    assert area(good.deletion) > 1.5 * area(bad.deletion)
    assert area(good.insertion) < 0.7 * area(bad.insertion)
