"""The noise model finds the place where the age is, and can be kept and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsapp.importance.brain import Brain
from bidsapp.importance.noise import (
    NoiseModel,
    NoiseUNet,
    Options,
    _fold,
    _tensors,
    fit,
    smooth,
)
from models.contract import TISSUES, MorphometryContract
from models.prediction import BrainAgeModel

from .conftest import PLACE, SHAPE, card

MakeBrains = Callable[..., list[Brain]]
OPTIONS = Options(steps=80, batch=2, channels=(8, 8), learning_rate=1e-2)
SHORT = replace(OPTIONS, steps=6)


def test_noise_is_kept_from_where_the_age_is(
    planted: BrainAgeModel, make_brains: MakeBrains
) -> None:
    brains = make_brains(6)
    noise = fit(planted, brains, OPTIONS)
    importance = noise.importance(brains[0])
    assert importance.shape == SHAPE and importance.dtype == np.float32
    assert not importance[~brains[0].mask].any()
    assert importance.min() >= 0 and importance.max() <= 1
    beside = brains[0].mask.copy()
    beside[tuple(slice(side.start - 2, side.stop + 2) for side in PLACE)] = False
    assert importance[PLACE].mean() > 5 * importance[beside].mean()
    about = noise.about
    ages = [planted.ages(planted.tensor(brain.image)).item() for brain in brains]
    assert about["tolerance_years"] == pytest.approx(np.sqrt(0.05) * np.std(ages), rel=0.05)
    assert about["moved_years"] == pytest.approx(about["tolerance_years"], rel=0.5)
    assert about["weight"] > 0 and about["scans"] == 6


class OfWhiteMatter(torch.nn.Module):
    """Says how much of the second of three tissues there is in one cube."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[(slice(None), 0, 1, *PLACE)].mean((1, 2, 3))


def test_noise_on_maps_of_tissue(make_brains: MakeBrains) -> None:
    """It is a share of what is there: where there is none, there is no noise either."""
    this = card()
    contract = MorphometryContract("MNI152NLin2009aSym", TISSUES, SHAPE, (20, 80))
    model = BrainAgeModel(replace(this, contract=contract), [OfWhiteMatter()])
    brains = [
        replace(brain, image=np.stack([0.1 * brain.image, brain.image, 0 * brain.image]))
        for brain in make_brains(6)
    ]
    noise = fit(model, brains, OPTIONS)
    importance = noise.importance(brains[0])
    assert importance.shape == SHAPE
    beside = brains[0].mask.copy()
    beside[tuple(slice(side.start - 2, side.stop + 2) for side in PLACE)] = False
    assert importance[PLACE].mean() > 5 * importance[beside].mean()
    again = NoiseModel.from_bytes(noise.to_bytes())
    np.testing.assert_array_equal(again.importance(brains[1]), noise.importance(brains[1]))
    *_, unit = _tensors(brains[0], torch.device("cpu"))
    assert unit.shape == (1, 3, *SHAPE) and not unit[0, 2].any()
    middle = tuple(side // 2 for side in SHAPE)
    assert unit[(0, 1, *middle)].item() == pytest.approx(brains[0].image[1].max(), rel=0.5)
    torch.testing.assert_close(unit[:, 0], 0.1 * unit[:, 1])


def test_the_same_seed_gives_the_same_map(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    brains = make_brains(3)
    one, other = (fit(planted, brains, SHORT) for _ in range(2))
    np.testing.assert_array_equal(one.importance(brains[1]), other.importance(brains[1]))
    third = fit(planted, brains, replace(SHORT, seed=2))
    assert not np.array_equal(one.importance(brains[1]), third.importance(brains[1]))


def test_an_interrupted_fit_ends_as_an_uninterrupted_one(
    planted: BrainAgeModel, make_brains: MakeBrains
) -> None:
    brains, kept = make_brains(3), list[bytes]()

    def stop_after_three(content: bytes) -> None:
        kept.append(content)
        if len(kept) == 3:
            raise KeyboardInterrupt

    whole = fit(planted, brains, SHORT, cohort="a")
    with pytest.raises(KeyboardInterrupt):
        fit(planted, brains, SHORT, cohort="a", keep=stop_after_three)
    steps = list[int]()
    resumed = fit(
        planted, brains, SHORT, cohort="a", checkpoint=kept[-1],
        progress=lambda done, _total, _words: steps.append(done),
    )  # fmt: skip
    assert steps == [4, 5, 6]
    assert resumed.about == whole.about
    np.testing.assert_array_equal(resumed.importance(brains[0]), whole.importance(brains[0]))
    steps.clear()
    fit(planted, brains, SHORT, cohort="b", checkpoint=kept[-1],
        progress=lambda done, _total, _words: steps.append(done))  # fmt: skip
    assert 1 in steps  # a checkpoint of others is not gone on with


def test_a_damaged_checkpoint_is_ignored(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    fit(planted, make_brains(2), replace(SHORT, steps=1), checkpoint=b"\x08" + bytes(20))


def test_a_noise_model_survives_its_file(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    brains = make_brains(3)
    noise = fit(planted, brains, SHORT, cohort="a")
    again = NoiseModel.from_bytes(noise.to_bytes())
    assert again.about == noise.about == json.loads(json.dumps(noise.about))
    np.testing.assert_array_equal(again.importance(brains[2]), noise.importance(brains[2]))
    assert again.belongs(planted, "a", SHORT)
    assert not again.belongs(planted, "b", SHORT)
    assert not again.belongs(planted, "a", OPTIONS)
    with pytest.raises(ValueError, match="not a safetensors file"):
        NoiseModel.from_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="holds no noise model"):
        NoiseModel.from_bytes(_other_file())


def _other_file() -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"a": torch.zeros(1)})


def test_one_scan_is_too_few(planted: BrainAgeModel, make_brains: MakeBrains) -> None:
    with pytest.raises(ValueError, match="two scans"):
        fit(planted, make_brains(1), SHORT)


@pytest.mark.parametrize("shape", [(16, 16, 16), (19, 22, 17)])
def test_the_network_takes_every_grid(shape: tuple[int, ...]) -> None:
    network = NoiseUNet((8, 8, 8), shape)
    borne = network(torch.randn(2, 1, *shape))
    assert borne.shape == (2, 1, *shape)
    assert torch.allclose(borne, torch.full_like(borne, 0.5))  # where it starts


def test_the_size_of_a_batch_does_not_change_maps() -> None:
    shape = (20, 22, 18)
    network = NoiseUNet((8, 8), shape).eval()
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.field, std=0.1)
    brains = torch.randn(3, 1, *shape)
    one_by_one = torch.cat([network(brain[None]) for brain in brains])
    assert one_by_one.std() > 0.1
    torch.testing.assert_close(network(brains), one_by_one, atol=1e-5, rtol=0)


def test_blocks_keep_their_place() -> None:
    x = torch.arange(64.0).view(1, 1, 4, 4, 4)
    folded = _fold(x)
    assert folded.shape == (1, 8, 2, 2, 2)
    assert set(folded[0, :, 1, 0, 1].tolist()) == set(x[0, 0, 2:4, 0:2, 2:4].flatten().tolist())


def test_smooth_noise_keeps_its_deviation() -> None:
    torch.manual_seed(1)
    noise = smooth(torch.randn(1, 1, 40, 40, 40), 1.5, unit_variance=True)
    assert noise[..., 8:-8, 8:-8, 8:-8].std().item() == pytest.approx(1, abs=0.1)
    constant = smooth(torch.ones(1, 1, 30, 30, 30), 1.5)
    assert constant[0, 0, 15, 15, 15].item() == pytest.approx(1, abs=1e-4)
