"""BrainRotViT in two stages: encoder on slices, frozen, then the regressor on its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.brainrotvit.network import build
from models.contract import ModelError
from models.registry import load
from models.training import regression
from models.training.__main__ import main
from models.training.data import TrainingSet, load_training_set
from models.training.options import EncoderOptions, Options
from models.training.two_stages import TwoStages, classes

Make = Callable[..., Path]
ENCODER = {"image_size": [16, 16], "patch_size": 8, "hidden": 16, "layers": 1, "heads": 2,
           "image_channels": 1}  # fmt: skip
REGRESSOR = {"slices": 10, "hidden": 16, "kernels": [[3, 5], [2, 2], [1, 2]], "dense": [8, 8],
             "standardise": True}  # fmt: skip
OPTIONS = Options(
    architecture="brainrotvit", network={"encoder": ENCODER, "regressor": REGRESSOR},
    needs_sex=True, epochs=5, batch_size=3, learning_rate=1e-3, evaluate_every=1,
    encoder=EncoderOptions(epochs=2, slices=4, views=2),
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture
def data(make_derivatives: Make) -> TrainingSet:
    ages = [float(age) for age in np.linspace(20, 80, 9)]
    return load_training_set([make_derivatives("one", ages)], "tissue")


def train(
    data: TrainingSet, folder: Path, kill_at: int = 0, options: Options = OPTIONS
) -> torch.nn.Module:
    folder.mkdir(exist_ok=True)

    def said(line: str) -> None:
        if f"epoch {kill_at}/" in line:
            raise Killed

    out = np.arange(len(data.scans)) % 3 == 0
    return regression.train_fold(data, out, "a", options, folder, said, None, TwoStages())


def test_classes_are_decade_and_sex(data: TrainingSet) -> None:
    first, *_, last = data.scans
    old = replace(last, age=104.0, sex="F")
    assert classes([replace(first, age=20.0, sex="M"), first, old]).tolist() == [4, 5, 19]
    with pytest.raises(ModelError, match="needs the sex"):
        classes([replace(first, sex=None)])


def test_the_encoder_learns_first_and_is_then_frozen(data: TrainingSet, tmp_path: Path) -> None:
    def weights(kill_at: int) -> dict[str, torch.Tensor]:
        with pytest.raises(Killed):
            train(data, tmp_path / str(kill_at), kill_at)
        return torch.load(tmp_path / str(kill_at) / "a.pt", weights_only=True)["network"]

    first, second, third, fourth = (weights(epoch) for epoch in (1, 2, 3, 4))
    changed = [
        {key.split(".")[0] for key in one if not torch.equal(one[key], other[key])}
        for one, other in ((first, second), (third, fourth))
    ]
    assert changed == [{"encoder"}, {"regressor"}]
    images = torch.stack([s.image.float() for n, s in enumerate(data.scans) if n % 3])[:, None]
    assert first["mean"].shape == (10, 16, 16)
    torch.testing.assert_close(first["mean"], first["mean"].flip(0))  # as views are mirrored
    network = build(OPTIONS.network)
    network.load_state_dict(first)
    assert network.slices(images).std().item() == pytest.approx(1, abs=0.05)
    log = (tmp_path / "4" / "a.csv").read_text().splitlines()[1:]
    assert [bool(line.split(",")[4]) for line in log] == [False, False, True, True]


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    data: TrainingSet, tmp_path: Path, kill_at: int
) -> None:
    straight = train(data, tmp_path / "straight")
    with pytest.raises(Killed):
        train(data, tmp_path / "halves", kill_at)
    resumed = train(data, tmp_path / "halves")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_those_held_out_are_seen_in_neither_stage(data: TrainingSet, tmp_path: Path) -> None:
    honest = train(data, tmp_path / "honest")
    scans = [replace(scan, image=1 - scan.image, sex="F") if number % 3 == 0 else scan
             for number, scan in enumerate(data.scans)]  # fmt: skip
    other = train(replace(data, scans=tuple(scans)), tmp_path / "other")
    for name, value in honest.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("size", ["small", "base"])
def test_trained_from_the_command_line_and_loaded(
    make_derivatives: Make, tmp_path: Path, size: str
) -> None:
    ages = [float(age) for age in np.linspace(21, 79, 6)]
    folder, out = make_derivatives("one", ages), tmp_path / "model"
    encoder = "{image_size = 32, patch_size = 8, hidden = 16, layers = 1, heads = 2}"
    regressor = "{slices = 10, hidden = 16, kernels = [[3, 5], [2, 2], [1, 2]], dense = [8, 8]}"
    arguments = ["brainrotvit", "--data", str(folder), "--out", str(out), "--folds", "2",
                 "--encoder-epochs", "1", "--epochs", "1", "--slices", "3", "--views", "2",
                 "--network", f"size = '{size}'", f"encoder = {encoder}",
                 f"regressor = {regressor}"]  # fmt: skip
    assert main(arguments) == 0
    model = load("brainrotvit", weights=out)
    assert model.card.contract.needs_sex and model.card.training["encoder"]["epochs"] == 1
    assert model.networks[0].encoder.image_channels == {"small": 1, "base": 3}[size]
    assert model.networks[0].regressor.standardise is (size == "small")
    scan = load_training_set([folder], "tissue").scans[0]
    assert np.isfinite(model.predict(scan.image.float().numpy(), scan.sex).predicted_age)
