"""The whole way: train, be killed, go on, export, load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.compact.network import MOMENTUM, CompactCNN
from models.contract import ModelError
from models.registry import load, network_builder
from models.training import regression
from models.training.__main__ import main
from models.training.data import TrainingSet, load_training_set
from models.training.options import AugmentationOptions, Options

Make = Callable[..., Path]
NETWORK = {"channels": [4, 8, 8, 8, 8, 16, 16], "dense": [16, 8, 8, 8]}
WIDER = {
    "channels": [8, 8, 16, 16, 16, 32, 32],
    "dense": [32],
    "dropout_conv": 0.0,
    "dropout_dense": 0.0,
}
OPTIONS = Options(network=NETWORK, epochs=4, batch_size=4, learning_rate=1e-3, evaluate_every=2)


@pytest.fixture
def data(make_derivatives: Make) -> TrainingSet:
    ages = [float(age) for age in np.linspace(20, 80, 9)]
    return load_training_set([make_derivatives("one", ages)], "tissue")


class Killed(Exception):
    pass


def held_out(data: TrainingSet) -> np.ndarray:
    return np.arange(len(data.scans)) % 3 == 0


def test_resumed_weights_are_those_of_an_uninterrupted_run(
    data: TrainingSet, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()

    def kill(line: str) -> None:
        if "epoch 2/" in line:
            raise Killed

    straight = regression.train_fold(data, held_out(data), "a", OPTIONS, whole, lambda _: None)
    with pytest.raises(Killed):
        regression.train_fold(data, held_out(data), "a", OPTIONS, halves, kill)
    first = (halves / "a.csv").read_text().splitlines()
    resumed = regression.train_fold(data, held_out(data), "a", OPTIONS, halves, lambda _: None)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    log = (halves / "a.csv").read_text().splitlines()
    assert log[:3] == first[:3]
    assert len(log) == 5
    losses = [[line.split(",")[3] for line in (folder / "a.csv").read_text().splitlines()]
              for folder in (whole, halves)]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_checkpoint_of_other_options_is_refused(data: TrainingSet, tmp_path: Path) -> None:
    short = Options(network=NETWORK, epochs=1, batch_size=4)
    regression.train_fold(data, held_out(data), "a", short, tmp_path, lambda _: None)
    longer = Options(network=NETWORK, epochs=2, batch_size=4)
    with pytest.raises(ModelError, match="--fresh"):
        regression.train_fold(data, held_out(data), "a", longer, tmp_path, lambda _: None)
    with pytest.raises(ModelError, match="other scans"):
        regression.train_fold(data, ~held_out(data), "a", short, tmp_path, lambda _: None)
    changed = replace(data, content="of images that were made anew")
    with pytest.raises(ModelError, match="other scans"):
        regression.train_fold(changed, held_out(data), "a", short, tmp_path, lambda _: None)


def test_the_seed_decides(data: TrainingSet, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        options = Options(network=NETWORK, epochs=1, batch_size=4, seed=seed)
        name = f"run{number}"
        network = regression.train_fold(
            data, held_out(data), name, options, tmp_path, lambda _: None
        )
        found.append(torch.cat([p.flatten() for p in network.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_planted_signal_is_learned(make_derivatives: Make, tmp_path: Path) -> None:
    ages = np.linspace(20, 80, 24)
    data = load_training_set([make_derivatives("signal", ages.tolist())], "tissue")
    out = np.arange(24) % 3 == 1
    options = Options(
        network=WIDER, epochs=30, batch_size=4, learning_rate=3e-3, average=0.9,
        augmentation=AugmentationOptions.none(),
    )  # fmt: skip
    network = regression.train_fold(data, out, "a", options, tmp_path, lambda _: None)
    tests = [scan for scan, held in zip(data.scans, out) if held]
    found = regression.predict_ages(network, tests, regression.output_scale(data), options)
    error = np.abs(found - ages[out]).mean()
    assert error < 6  # predicting the mean: 15
    assert np.corrcoef(found, ages[out])[0, 1] > 0.95


def test_schedules() -> None:
    cosine = [
        regression.learning_rate(step, 100, Options(learning_rate=1.0)) for step in range(100)
    ]
    assert np.argmax(cosine) in (9, 10)
    assert max(cosine) == pytest.approx(1.0, abs=0.01)
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[-1] < 0.001
    constant = Options(learning_rate=0.3, schedule="constant")
    assert {regression.learning_rate(step, 100, constant) for step in range(100)} == {0.3}


def test_the_average_follows_the_weights() -> None:
    networks = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    for network, value in zip(networks, (1.0, 0.0)):
        torch.nn.init.constant_(network.weight, value)
    optimizer = torch.optim.SGD(networks[0].parameters(), 1.0)
    regression._update_average(regression.State(*networks, optimizer), 0.75)
    assert networks[1].weight.item() == pytest.approx(0.25)


def command(folder: Path, out: Path) -> list[str]:
    return [
        "wssa", "--data", str(folder), "--out", str(out), "--folds", "3", "--epochs", "2",
        "--batch-size", "4", "--device", "cpu", "--without", "flip", "--network",
        f"channels={NETWORK['channels']}", f"dense={NETWORK['dense']}",
    ]  # fmt: skip


def test_one_network_of_everybody(
    make_derivatives: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_derivatives("one", [float(age) for age in np.linspace(21, 79, 9)])
    out = tmp_path / "model"
    arguments = [*command(folder, out), "--whole"]
    assert main([*arguments, "--fold", "0"]) == 0
    printed = capsys.readouterr().out
    assert "whole: epoch 2/2" in printed and "fold0" not in printed
    assert main(arguments) == 0
    model = load("mine", weights=out)
    assert len(model.networks) == 1
    assert "everybody" in model.card.training["members"] + model.card.figures["kind"]
    folds = {
        line.split("\t")[5] for line in (out / "out_of_fold.tsv").read_text().splitlines()[1:]
    }
    assert folds == {"0", "1", "2"}
    seen = torch.load(out / "whole.pt", weights_only=True)["average"]
    assert torch.equal(seen["convs.0.bias"].half(), model.networks[0].convs[0].bias.half())
    assert model.card.in_ensemble
    assert main([*arguments, "--finish", "--no-vote"]) == 0
    assert not load("mine", weights=out).card.in_ensemble


def test_several_networks_a_fold(make_derivatives: Make, tmp_path: Path) -> None:
    folder = make_derivatives("one", [float(age) for age in np.linspace(21, 79, 9)])
    out = tmp_path / "model"
    arguments = [*command(folder, out), "--networks", "2", "--readout", "centred"]
    assert main([*arguments, "--fold", "0"]) == 0
    assert {path.stem for path in out.glob("*.pt")} == {"fold0", "fold0-2"}
    assert main(arguments) == 0
    model = load("mine", weights=out)
    assert len(model.networks) == 6
    assert model.card.training["members"].startswith("2 networks per fold, 3 folds")
    first, second = (each.dense[0].weight for each in model.networks[:2])
    assert not torch.equal(first, second)
    rows = [line.split("\t") for line in (out / "out_of_fold.tsv").read_text().splitlines()]
    table = [dict(zip(rows[0], row)) for row in rows[1:]]
    scans = {scan.participant_id: scan for scan in load_training_set([folder], "tissue_map").scans}
    for row in table:
        pair = model.networks[2 * int(row["fold"]) : 2 * int(row["fold"]) + 2]
        image = scans[row["participant_id"]].image.float().numpy()
        age = replace(model, networks=pair).predict(image, None).predicted_age
        assert float(row["predicted_age"]) == pytest.approx(age, abs=0.01)
    assert main([*arguments, "--whole"]) == 0
    model = load("mine", weights=out)
    assert len(model.networks) == 2 and "2 networks" in model.card.training["members"]


def test_a_network_that_died_is_refused(make_derivatives: Make, tmp_path: Path) -> None:
    data = load_training_set([make_derivatives("one", [30.0, 40, 50])], "tissue_map")
    options = Options(network=NETWORK, epochs=1)
    network = network_builder("wssa")(NETWORK)
    scale = regression.output_scale(data)
    regression.check_alive(network, data.scans, scale, options, "fold1")
    torch.nn.init.constant_(network.dense[-2].bias, -1e6)
    with pytest.raises(ModelError, match=r"fold1: .* same age of everybody.*--seed"):
        regression.check_alive(network, data.scans, scale, options, "fold1")


def test_folds_side_by_side_then_export_then_load(
    make_derivatives: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ages = [float(age) for age in np.linspace(21, 79, 9)]
    folder, out = make_derivatives("one", ages), tmp_path / "model"
    arguments = command(folder, out)
    assert main([*arguments, "--fold", "0"]) == 0
    assert not (out / "card.toml").exists()
    assert main([*arguments, "--finish"]) == 2
    assert "Fold 1 is not complete" in capsys.readouterr().err
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "fold0: epoch" not in printed  # it was complete
    assert "fold1: epoch 2/2" in printed

    model = load("mine", weights=out)
    assert model.card.contract.ages == (21, 79)
    assert model.card.contract.intensity == "tissue_map"
    assert model.card.license == "CC-BY-SA-3.0"
    assert model.card.training["people"] == 9
    assert model.card.training["datasets"] == {"one-raw": 9}
    assert model.card.training["augmentation"] == ["translation", "affine", "erosion"]
    assert len(model.networks) == 3
    for suffix in ("svg", "png"):
        assert (out / f"calibration.{suffix}").stat().st_size > 1000
        assert (out / f"learning_curve.{suffix}").stat().st_size > 1000

    data = load_training_set([folder], "tissue_map")
    rows = [line.split("\t") for line in (out / "out_of_fold.tsv").read_text().splitlines()[1:]]
    output = model.card.output
    for scan, row in zip(data.scans, rows, strict=True):
        image = model.tensor(scan.image.float().numpy())
        with torch.inference_mode():
            members = [output.offset + output.scale * n(image).item() for n in model.networks]
        assert members[int(row[5])] == pytest.approx(float(row[7]), abs=0.002)
        predicted = model.predict(scan.image.float().numpy()).predicted_age
        assert predicted == pytest.approx(np.mean(members), abs=1e-6)
    errors = [float(row[7]) - float(row[6]) for row in rows]
    assert model.card.figures["mae"] == pytest.approx(np.abs(errors).mean(), abs=0.01)
    assert model.card.uncertainty.standard_deviation == pytest.approx(
        np.std(errors, ddof=1), abs=0.01
    )


def test_fresh_starts_over(make_derivatives: Make, tmp_path: Path) -> None:
    folder, out = make_derivatives("one", [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]), tmp_path / "m"
    arguments = [*command(folder, out), "--fold", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "2"]) == 2
    assert main([*arguments, "--seed", "2", "--fresh"]) == 0


def test_the_segmentation_command_names_its_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from models.training import segmentation

    given = []
    monkeypatch.setattr(segmentation, "run", given.append)
    arguments = ["--data", "bids", "--labels", "muse", "--out", str(tmp_path), "--fold", "1"]
    assert main(["segmentation", *arguments, "--steps", "7"]) == 0
    assert given == [segmentation.Options(Path("bids"), Path("muse"), tmp_path, fold=1, steps=7)]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from models.training.__main__ import build_parser;"
        "build_parser().format_help(); sys.exit(bool({'torch', 'nibabel'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rule", ["tissue", "tissue_map"])
def test_averaged_weights_get_statistics_of_their_own(make_derivatives: Make, rule: str) -> None:
    """Means of the first layer over all people, stripped and whole, whatever was kept before."""
    ages = [float(age) for age in np.linspace(20, 80, 8)]
    data = load_training_set([make_derivatives("one", ages)], rule)
    network = CompactCNN((20, 24, 20), (4, 8)).eval()
    norm = network.blocks[0][1]
    norm.running_mean.fill_(99)
    options = Options(batch_size=4)
    regression.renew_statistics(network, data.scans, options)
    images = [view for scan in data.scans for view in (scan.image, scan.stripped)
              if view is not None]  # fmt: skip
    assert len(images) == (16 if rule == "tissue_map" else 8)
    with torch.inference_mode():
        maps = network.blocks[0][0](torch.stack(images)[:, None].float())
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3, 4)), atol=1e-4, rtol=1e-4)
    assert norm.momentum == MOMENTUM and not any(m.training for m in network.modules())
    before = norm.running_mean.clone()
    regression.renew_statistics(network, data.scans, options)
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("rule", ["tissue", "tissue_map"])
def test_the_level_is_that_of_the_training_people(
    make_derivatives: Make, tmp_path: Path, rule: str
) -> None:
    """Dropout leaves a mean error; stripped maps count as much as whole ones."""
    ages = [float(age) for age in np.linspace(20, 80, 9)]
    data = load_training_set([make_derivatives("one", ages)], rule)
    out = held_out(data)
    network = regression.train_fold(data, out, "a", OPTIONS, tmp_path, lambda _: None)
    shown = [replace(scan, image=view) for scan in np.array(data.scans)[~out]
             for view in (scan.image, scan.stripped) if view is not None]  # fmt: skip
    assert len(shown) == (12 if rule == "tissue_map" else 6)
    predicted = regression.predict_ages(network, shown, regression.output_scale(data), OPTIONS)
    assert np.mean(predicted - [scan.age for scan in shown]) == pytest.approx(0, abs=1e-3)
    assert np.ptp(predicted) > 0
