"""Filling in the region that a model looks at changes its prediction, and no other does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bidsapp.importance.brain import Brain
from bidsapp.importance.occlusion import as_map, fill_in, occlusion
from models.brainrotvit.network import build as build_brainrotvit
from models.prediction import BrainAgeModel
from models.wssa.network import WSSA

from .conftest import PLACE, SHAPE, card

MakeBrains = Callable[..., list[Brain]]


def labels() -> np.ndarray:
    """Label 1 is the place, 3 lies beside it, 2 is absent, 4 too small."""
    found = np.zeros(SHAPE, np.int32)
    found[PLACE] = 1
    found[10:14, 10:14, 6:10] = 3
    found[9, 9, 9] = 4
    return found


def test_years_come_from_the_region_that_counts(
    planted: BrainAgeModel, make_brains: MakeBrains
) -> None:
    oldest = make_brains(5)[-1]
    done = list[tuple[int, int]]()
    changes = occlusion(planted, oldest, labels(), progress=lambda *step: done.append(step))
    assert set(changes) == {1, 3}
    around = oldest.image[oldest.mask & (labels() == 0)].mean()
    expected = 100 * (oldest.image[PLACE].mean() - around)
    assert changes[1] == pytest.approx(expected, abs=3)
    assert changes[1] > 5  # the old have a bright cube, and it makes them look old
    assert changes[3] == pytest.approx(0, abs=1e-4)
    assert done[-1] == (3, 3)
    values = as_map(changes, labels(), oldest.mask)
    assert values.shape == SHAPE and np.all(values[PLACE] == np.float32(changes[1]))
    assert values[labels() == 0].max() == 0


def test_an_average_brain_stands_in(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    youngest, *_, oldest = make_brains(5)
    changes = occlusion(planted, oldest, labels(), youngest.image)
    expected = 100 * (oldest.image[PLACE].mean() - youngest.image[PLACE].mean())
    assert changes[1] == pytest.approx(expected, abs=0.1) and expected > 5
    assert changes[3] == pytest.approx(0, abs=1e-4)
    assert not any(occlusion(planted, oldest, labels(), oldest.image).values())


def test_a_region_is_filled_with_its_surroundings() -> None:
    image = np.ones((12, 12, 12), np.float32)
    image[..., 6:] = 3
    region = np.zeros(image.shape, bool)
    region[4:8, 4:8, 1:3] = True
    image[region] = 9
    filled = fill_in(image, region, ~region)
    assert filled[region] == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(filled[~region], image[~region])
    everything = np.ones(image.shape, bool)
    np.testing.assert_array_equal(fill_in(image, everything, ~everything), image)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("mirror", [True, False])
def test_wssa_reuses_its_first_layer_exactly(pooled: bool, mirror: bool) -> None:
    torch.manual_seed(0)
    network = WSSA((4, 4, 4, 4, 4), (8, 4), attention_after_pooling=pooled, mirror=mirror,
                   attention_kernel=3).eval()  # fmt: skip
    check_near(network, (31, 30, 28))


def test_brainrotvit_encodes_touched_slices_alone() -> None:
    torch.manual_seed(0)
    encoder = {"image_size": 16, "hidden": 24, "layers": 1, "heads": 2}
    regressor = {"slices": 12, "hidden": 24, "kernels": ((2, 3), (2, 3), (2, 2)), "dense": (8, 4)}
    network = build_brainrotvit({"encoder": encoder, "regressor": regressor}).eval()
    seen = list[int]()
    forward = network.encoder.features
    network.encoder.features = lambda x: (seen.append(len(x)), forward(x))[1]
    check_near(network, (12, 16, 16), torch.ones(1))
    assert min(seen) < 12


def check_near(network: nn.Module, shape: tuple[int, ...], *sex: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, *shape, generator=generator)
    with torch.inference_mode():
        near = network.near(image)  # type: ignore[operator]
        for corner in ((0, 0, 0), (5, 6, 7), tuple(side - 4 for side in shape)):
            box = tuple(slice(c, c + 4) for c in corner)
            other = image.clone()
            other[(0, 0, *box)] = torch.rand(4, 4, 4, generator=generator)
            torch.testing.assert_close(
                near(other, *sex, box=box), network(other, *sex), atol=1e-6, rtol=1e-6
            )


def test_a_model_answers_near_an_image_as_it_answers(make_brains: MakeBrains) -> None:
    torch.manual_seed(0)
    members: list[nn.Module] = [WSSA((4, 4, 4, 4, 4), (8, 4), mirror=True).eval() for _ in "ab"]
    model = BrainAgeModel(card(), members)
    brain = make_brains(1)[0]
    found = occlusion(model, brain, labels())
    plain = BrainAgeModel(card(), [nn.Sequential(member) for member in members])  # no ``near``
    assert found == pytest.approx(occlusion(plain, brain, labels()), abs=1e-4)
