"""Objectives, the trainer's and the ablation's: networks learn by them, and heads stay behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import variants
from models.contract import ModelError, Output
from models.training import objectives, regression
from models.training.data import TrainingScan, TrainingSet
from models.training.options import AugmentationOptions, Options
from models.wssa.network import WSSA

NETWORK = {"channels": [4, 8, 8, 16, 16, 16, 16], "dense": [16, 8], "normalise": True,
           "attention_after_pooling": True, "dropout_conv": 0.0, "dropout_dense": 0.0}  # fmt: skip
OPTIONS = Options(network=NETWORK, epochs=8, batch_size=4, learning_rate=3e-3, average=0.9,
                  augmentation=AugmentationOptions.none(), seed=3)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    """Sixteen people whose brains darken with age."""
    rng = np.random.default_rng(1)
    scans = [
        TrainingScan(f"s{n}", "here", f"p{n}", age, "F", "",
                     torch.from_numpy(rng.normal(age / 100, 0.05, (24, 24, 24))).half())
        for n, age in enumerate(np.linspace(20, 80, 16).tolist())
    ]  # fmt: skip
    return TrainingSet(tuple(scans), "t", tuple(map(tuple, np.eye(4))))


@pytest.mark.parametrize(
    "kind",
    [variants.Mixed, variants.Aged, variants.DeepSupervision, objectives.LabelDistribution],
)
def test_a_network_learns_by_it(
    kind: type[objectives.Objective], data: TrainingSet, tmp_path: Path
) -> None:
    out = np.arange(16) % 4 == 1
    network = regression.train_fold(data, out, "a", OPTIONS, tmp_path, lambda _: None,
                                    objective=kind())  # fmt: skip
    tests = [scan for scan, held in zip(data.scans, out) if held]
    found = regression.predict_ages(network, tests, regression.output_scale(data), OPTIONS)
    assert np.corrcoef(found, data.ages[out])[0, 1] > 0.8
    assert not hasattr(network, "heads")  # they stay behind
    member = regression.load_member(data, out, "a", OPTIONS, tmp_path)  # by who knows no heads
    assert member is not None and len(member[1]) == OPTIONS.epochs


def test_images_are_mixed_with_neighbours_in_age() -> None:
    seen = []

    class Looking(WSSA):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean((1, 2, 3, 4))

    ages = torch.tensor([2.0, -1.0, 0.5, 3.0])
    images = ages[:, None, None, None, None].expand(-1, 1, 2, 2, 2)
    batch = objectives.Batch((images,), ages, OPTIONS, np.random.default_rng(1))
    loss = variants.Mixed().loss(Looking(**NETWORK), torch.nn.ModuleList(), batch)
    assert loss < 1e-10  # the mixture's brightness is its age
    mixed = seen[0].mean((1, 2, 3, 4))
    ordered = ages.sort().values
    low = torch.minimum(ordered, torch.tensor([0.5, 2.0, 3.0, 2.0]))
    high = torch.maximum(ordered, torch.tensor([0.5, 2.0, 3.0, 2.0]))
    assert ((mixed >= low) & (mixed <= high)).all() and (mixed != ordered).all()


def test_the_change_with_age_is_that_of_the_people(data: TrainingSet) -> None:
    how, scale = variants.Aged(), regression.output_scale(data)
    how.prepare(data.scans, scale, OPTIONS)
    assert how.change is not None
    assert float(how.change.mean()) == pytest.approx(scale.scale / 100, rel=0.02)  # 1 % a year


def test_heads_are_trained_and_teach_the_network(data: TrainingSet) -> None:
    images = torch.stack([scan.image.float() for scan in data.scans[:4]])[:, None]
    target = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    for how in (variants.DeepSupervision(), objectives.LabelDistribution()):
        torch.manual_seed(1)
        state = regression._start(OPTIONS, objective=how)
        plain = objectives.loss_of(state.network.train()(images), target, OPTIONS)
        batch = objectives.Batch((images,), target, OPTIONS, np.random.default_rng(1))
        loss = how.loss(state.network, state.heads, batch)
        assert loss > plain
        before = [head.weight.detach().clone() for head in state.heads]
        regression.descend(state, loss, 0, OPTIONS)
        for head, old in zip(state.heads, before, strict=True):
            assert not torch.equal(head.weight, old)


def test_the_distribution_is_in_standard_deviations() -> None:
    centres = objectives.LabelDistribution.CENTRES
    assert centres[0] == -centres[-1] and len(centres) == 26
    assert Output(45, 17).scale * float(centres[1] - centres[0]) == pytest.approx(3, abs=0.1)


def test_a_killed_run_with_heads_goes_on_to_the_same_weights(
    data: TrainingSet, tmp_path: Path
) -> None:
    options = replace(OPTIONS, helper="distribution", epochs=3)
    out = np.arange(16) % 4 == 1
    whole = regression.train_fold(data, out, "whole", options, tmp_path, lambda _: None)

    def stop(line: str) -> None:
        if "epoch 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regression.train_fold(data, out, "killed", options, tmp_path, stop)
    resumed = regression.train_fold(data, out, "killed", options, tmp_path, lambda _: None)
    for mine, other in zip(whole.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(mine, other)


def test_a_helper_is_for_wssa(data: TrainingSet, tmp_path: Path) -> None:
    options = replace(OPTIONS, architecture="compact", network={}, helper="distribution")
    with pytest.raises(ModelError, match="--helper is for WSSA"):
        regression.train_fold(data, np.arange(16) < 4, "a", options, tmp_path)
