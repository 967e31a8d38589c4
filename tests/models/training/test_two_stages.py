"""BrainRotViT in two stages: encoder on slices, frozen, then the regressor on its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.brainrotvit.network import build
from models.contract import TISSUES, ModelError, MorphometryContract
from models.prediction import SEX_CODES
from models.registry import load
from models.training import regression
from models.training.__main__ import main
from models.training.data import TrainingSet, load_inputs, load_training_set
from models.training.fine_tuning import check_fits
from models.training.options import EncoderOptions, Options
from models.training.two_stages import TwoStages, classes, components

Make = Callable[..., Path]
ENCODER = {"image_size": [16, 16], "patch_size": 8, "hidden": 16, "layers": 1, "heads": 2,
           "image_channels": 1}  # fmt: skip
SMALL = {"patch_size": 6, "hidden": 16, "layers": 1, "heads": 2, "image_channels": 2}
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
    assert changed == [{"encoder"}, {"regressors"}]
    images = torch.stack([s.image.float() for n, s in enumerate(data.scans) if n % 3])[:, None]
    assert first["mean"].shape == (10, 1, 16, 16)
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


def test_components_are_those_of_slices() -> None:
    """A slice starts as its scores, which are 1 in root mean square over all."""
    torch.manual_seed(1)
    differences = torch.randn(4, 5, 2, 12, 18) * torch.linspace(0.1, 2, 18)
    found = components(differences, 16)
    assert found.shape == (16, 2, 12, 18)
    network = build({"size": "tissue", "encoder": SMALL | {"image_size": (12, 18)},
                     "regressor": REGRESSOR, "balance": [1, 1]}).eval()  # fmt: skip
    network.encoder.patches.start(found)
    single = differences.flatten(0, 1)
    with torch.inference_mode():
        features = network.encoder.features(single)
        nothing = network.encoder.features(torch.zeros_like(single))
    scores = torch.einsum("nchw,kchw->nk", single, found)
    torch.testing.assert_close(features - nothing, scores, rtol=1e-3, atol=1e-3)
    assert scores.square().mean().item() == pytest.approx(1, rel=1e-3)
    exact = torch.linalg.svdvals(single.flatten(1))[:16].square()
    torch.testing.assert_close(scores.square().sum(0) / scores.square().sum(), exact / exact.sum(),
                               rtol=0.1, atol=0.01)  # fmt: skip


def test_several_regressors_read_one_encoder(data: TrainingSet, tmp_path: Path) -> None:
    options = replace(OPTIONS, network=OPTIONS.network | {"regressors": 2, "mirror": True})
    network = train(data, tmp_path / "two", options=options)
    first, second = network.regressors
    assert not torch.equal(first.last.weight, second.last.weight)
    assert torch.equal(first.mean, second.mean) and first.mean.any()
    training = [scan for number, scan in enumerate(data.scans) if number % 3]
    found = regression.predict_ages(network, training, output := regression.output_scale(data),
                                    options)  # fmt: skip
    image = training[0].image.float()[None, None]
    with torch.inference_mode():
        features, sex = network.encode(image), torch.tensor([SEX_CODES[str(training[0].sex)]])
        each = [one(x, sex) for one in (first, second) for x in (features, features.flip(1))]
    mean = output.offset + output.scale * float(sum(each)) / 4
    assert found[0] == pytest.approx(mean, abs=1e-3)
    # the level is that of the people it was trained on, whatever single regressors say
    assert found.mean() == pytest.approx(np.mean([scan.age for scan in training]), abs=1e-3)


@pytest.mark.parametrize("wrong", [{"foo": 1}, {"size": "huge"}, {"encoder": {"hidden": -1}}])
def test_a_network_that_cannot_be_built_is_refused(
    data: TrainingSet, tmp_path: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(ModelError, match=r"^--network: no brainrotvit can be built so \(.*\)\.$"):
        train(data, tmp_path / "a", options=replace(OPTIONS, network=OPTIONS.network | wrong))


def learn(folder: Path, out: Path, *more: str) -> None:
    """Train from the command line, as shortly as may be."""
    regressor = "{slices = 10, hidden = 16, kernels = [[3, 5], [2, 2], [1, 2]], dense = [8]}"
    arguments = ["brainrotvit", "--data", str(folder), "--out", str(out), "--folds", "2",
                 "--encoder-epochs", "1", "--epochs", "1", "--slices", "3", "--views", "2",
                 "--network", f"regressor = {regressor}", *more]  # fmt: skip
    assert main(arguments) == 0


def test_a_brain_of_several_maps_is_learned(make_derivatives: Make, tmp_path: Path) -> None:
    """From the command line to a model whose contract is that of morphometry."""
    ages = [float(age) for age in np.linspace(21, 79, 6)]
    folder, out = make_derivatives("one", ages), tmp_path / "model"
    encoder = "{image_size = [12, 12], patch_size = 6, hidden = 16, heads = 2}"
    learn(folder, out, "size = 'tissue'", f"encoder = {encoder}", "--intensity", "modulated",
          "--without", "translation")  # fmt: skip
    model = load("brainrotvit", weights=out)
    scans = load_inputs(model.card, [folder]).scans
    assert model.card.contract == MorphometryContract(
        "MNI152NLin2009aSym", TISSUES, tuple(scans[0].image.shape[1:]), (21, 79), True
    )
    assert model.card.training["augmentation"] == ["flip", "affine", "erosion"]
    network = model.networks[0]
    assert network.mean.shape == (10, 3, 12, 12) and network.mean.any()
    # before evenness, each tissue has its share of the variance
    slices = torch.cat([network.slices(s.image[None, None]) for s in scans])
    said = slices.square().mean((0, 1, 3, 4))[:2]
    assert said[0] / said[1] == pytest.approx(0.5, rel=0.5)
    deviation = network.regressors[0].deviation
    assert deviation.min() == deviation.max()  # one for all
    both = [model.predict(s.image.numpy(), s.sex).predicted_age for s in (scans[0], scans[-1])]
    assert np.isfinite(both).all() and both[0] != both[1]
    tuned = ["brainrotvit", "--data", str(folder), "--out", str(tmp_path / "tuned"), "--folds",
             "2", "--from-weights", str(out), "--epochs", "1", "--device", "cpu"]  # fmt: skip
    assert main(tuned) == 0
    card = load("brainrotvit", weights=tmp_path / "tuned").card
    assert (card.contract, card.network) == (model.card.contract, model.card.network)
    smaller = replace(scans[0], image=scans[0].image[:, 1:])
    with pytest.raises(ModelError, match="takes maps of .* and not those of"):
        check_fits(model, replace(load_inputs(card, [folder]), scans=(smaller,)))


@pytest.mark.parametrize("size", ["small", "base"])
def test_trained_from_the_command_line_and_loaded(
    make_derivatives: Make, tmp_path: Path, size: str
) -> None:
    ages = [float(age) for age in np.linspace(21, 79, 6)]
    folder, out = make_derivatives("one", ages), tmp_path / "model"
    encoder = "{image_size = 32, patch_size = 8, hidden = 16, layers = 1, heads = 2}"
    learn(folder, out, f"size = '{size}'", f"encoder = {encoder}")
    model = load("brainrotvit", weights=out)
    assert model.card.contract.needs_sex and model.card.training["encoder"]["epochs"] == 1
    assert model.networks[0].encoder.image_channels == {"small": 1, "base": 3}[size]
    assert model.networks[0].regressors[0].standardise is (size == "small")
    scan = load_training_set([folder], "tissue").scans[0]
    assert np.isfinite(model.predict(scan.image.float().numpy(), scan.sex).predicted_age)
