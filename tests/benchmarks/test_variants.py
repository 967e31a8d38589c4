"""Ways to train that the ablation compares: they learn, and do what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import variants
from models.contract import Output
from models.training import regression
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
    [variants.Mixed, variants.Aged, variants.DeepSupervision, variants.LabelDistribution],
)
def test_a_network_learns_by_it(
    kind: type[variants.Plain], data: TrainingSet, tmp_path: Path
) -> None:
    out = np.arange(16) % 4 == 1
    network = regression.train_fold(data, out, "a", OPTIONS, tmp_path, lambda _: None,
                                    train_epoch=kind())  # fmt: skip
    tests = [scan for scan, held in zip(data.scans, out) if held]
    found = regression.predict_ages(network, tests, regression.output_scale(data), OPTIONS)
    assert np.corrcoef(found, data.ages[out])[0, 1] > 0.8
    assert not hasattr(network, "heads")  # they stay behind


def test_the_plain_one_is_the_trainers_own(data: TrainingSet, tmp_path: Path) -> None:
    out = np.arange(16) % 4 == 1  # twelve are left, in whole batches
    trained = []
    for name, how in (("plain", variants.Plain()), ("own", None)):
        trained.append(regression.train_fold(data, out, name, OPTIONS, tmp_path, lambda _: None,
                                             train_epoch=how))  # fmt: skip
    for mine, own in zip(*(network.state_dict().values() for network in trained)):
        assert torch.equal(mine, own)


def test_images_are_mixed_with_neighbours_in_age() -> None:
    seen = []

    class Looking(WSSA):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean((1, 2, 3, 4))

    ages = torch.tensor([2.0, -1.0, 0.5, 3.0])
    images = ages[:, None, None, None, None].expand(-1, 1, 2, 2, 2)
    loss = variants.Mixed().loss(Looking(**NETWORK), images, ages, OPTIONS,
                                 np.random.default_rng(1))  # fmt: skip
    assert loss < 1e-10  # the mixture's brightness is its age
    mixed = seen[0].mean((1, 2, 3, 4))
    ordered = ages.sort().values
    low = torch.minimum(ordered, torch.tensor([0.5, 2.0, 3.0, 2.0]))
    high = torch.maximum(ordered, torch.tensor([0.5, 2.0, 3.0, 2.0]))
    assert ((mixed >= low) & (mixed <= high)).all() and (mixed != ordered).all()


def test_the_change_with_age_is_that_of_the_people(data: TrainingSet) -> None:
    how, scale = variants.Aged(), regression.output_scale(data)
    how(regression._start(OPTIONS), data.scans, scale, 0, OPTIONS)
    assert how.change is not None
    assert float(how.change.mean()) == pytest.approx(scale.scale / 100, rel=0.02)  # 1 % a year


def test_heads_are_trained_and_teach_the_network(data: TrainingSet) -> None:
    torch.manual_seed(1)
    network = WSSA(**NETWORK)
    images = torch.stack([scan.image.float() for scan in data.scans[:4]])[:, None]
    target = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    for kind in (variants.DeepSupervision, variants.LabelDistribution):
        how = kind()
        network.zero_grad()
        plain = regression.loss_of(network.train()(images), target, OPTIONS)
        loss = how.loss(network, images, target, OPTIONS, np.random.default_rng(1))
        assert loss > plain
        loss.backward()
        assert all(head.weight.grad.abs().max() > 0 for head in how.heads)
        state = regression._start(OPTIONS)
        before = how.heads[0].weight.detach().clone()
        again = how.loss(state.network.train(), images, target, OPTIONS, np.random.default_rng(1))
        how.descend(state, again, 1e-3, 0, OPTIONS)
        assert not torch.equal(before, how.heads[0].weight)


def test_output_is_in_standard_deviations() -> None:
    centres = variants.LabelDistribution.CENTRES
    assert centres[0] == -centres[-1] and len(centres) == 26
    assert Output(45, 17).scale * float(centres[1] - centres[0]) == pytest.approx(3, abs=0.1)
