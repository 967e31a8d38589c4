"""Fine-tuning: what is kept of the parent, and that it helps on another scanner."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.brainrotvit.dora import DoRALinear
from models.contract import InputContract, ModelCard, Output, Uncertainty
from models.registry import load, read_card, save_model
from models.sfcn import network as sfcn
from models.training import regression
from models.training.__main__ import build_parser, main, regression_options
from models.training.data import load_training_set
from models.training.fine_tuning import options_of
from models.training.options import Options
from models.training.readout import fit_readout
from models.wssa.network import build

Make = Callable[..., Path]
NETWORK = {
    "channels": [8, 8, 16, 16, 16, 32, 32], "dense": [32], "dropout_conv": 0.0,
    "dropout_dense": 0.0,
    "standardise": True,
}  # fmt: skip
SHIFT = 15
"""Years by which everybody looks older on the second scanner."""


@pytest.fixture
def home(make_derivatives: Make) -> Path:
    return make_derivatives("home", np.linspace(20, 65, 16).tolist())


@pytest.fixture
def abroad(make_derivatives: Make) -> Path:
    root = make_derivatives("abroad", np.linspace(30, 75, 16).tolist())
    for path in root.rglob("*_brainage.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"age": record["age"] - SHIFT, "site": "north"}))
    return root


@pytest.fixture
def parent(home: Path, tmp_path: Path) -> Path:
    """A model of the first scanner, under a licence of its own; two networks, of closed form."""
    data = load_training_set([home], "white_matter")
    x, y, z = data.shape
    contract = InputContract(
        data.template, 12, (x, y, z), data.affine, True, True, "white_matter", (20, 65)
    )
    card = ModelCard(
        "wssa", "Parent", "7", "For tests.", "CC0-1.0", "None.", contract,
        Uncertainty(5, (-8, 8)), Output(42, 14), network=NETWORK,
        training={"augmentation": [], "datasets": {"home-raw": 16}},
    )  # fmt: skip
    torch.manual_seed(1)
    networks = [build(NETWORK), build(NETWORK)]
    targets = (torch.from_numpy(data.ages) - card.output.offset) / card.output.scale
    for network in networks:
        fit_readout(network, [scan.image for scan in data.scans], targets)
    save_model(tmp_path / "parent", card, networks)
    return tmp_path / "parent"


def command(folder: Path, out: Path, parent: Path, *more: str) -> list[str]:
    return [
        "wssa", "--data", str(folder), "--out", str(out), "--from-weights", str(parent),
        "--folds", "2", "--batch-size", "4", "--device", "cpu", *more,
    ]  # fmt: skip


def test_it_helps_on_another_scanner_and_keeps_what_is_the_parents(
    abroad: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "tuned", load("wssa", weights=parent)
    data = load_training_set([abroad], "white_matter")
    images = [scan.image.float().numpy() for scan in data.scans]
    errors = [before.predict(image).predicted_age for image in images] - data.ages
    assert errors.mean() > SHIFT - 5
    assert main(command(abroad, out, parent, "--epochs", "3", "--average", "0.9")) == 0
    after = load("wssa", weights=out)
    assert after.card.figures["mae"] < 0.4 * np.abs(errors).mean()

    old, new = before.card, after.card
    assert (new.license, new.network, new.output) == ("CC0-1.0", old.network, old.output)
    assert new.contract == replace(old.contract, ages=(15, 65))  # of both
    assert new.training["augmentation"] == []
    assert new.training["sites"] == {"north": 16}
    assert new.training["learning_rate"] == 1e-4
    kept = new.training["parent"]
    assert kept["weights_sha256"] == old.weights_sha256 != new.weights_sha256
    assert (kept["name"], kept["license"], kept["datasets"]) == ("wssa", "CC0-1.0", ["home-raw"])
    assert "16 people of abroad-raw, of 15 to 60 years" in new.known_failures[0]
    assert len(new.known_failures) == 1
    assert new.title.endswith(", fine-tuned")
    capsys.readouterr()
    assert main(command(abroad, out, parent, "--epochs", "3", "--average", "0.9")) == 0
    assert "epoch" not in capsys.readouterr().out  # complete: nothing is trained again


def test_without_epochs_the_level_alone_is_moved(
    abroad: Path, parent: Path, tmp_path: Path
) -> None:
    assert main(command(abroad, tmp_path / "moved", parent, "--epochs", "0")) == 0
    before, after = (load("wssa", weights=each) for each in (parent, tmp_path / "moved"))
    for old, new in zip(before.networks, after.networks, strict=True):
        changed = [
            name
            for (name, one), other in zip(old.named_parameters(), new.parameters(), strict=True)
            if not torch.equal(one, other)
        ]
        assert changed == ["dense.1.bias"]
    assert abs(after.card.figures["mean_error"]) < 2


def test_figures_on_people_the_parent_has_seen_are_said_to_flatter(
    home: Path, parent: Path, tmp_path: Path
) -> None:
    assert main(command(home, tmp_path / "again", parent, "--epochs", "0")) == 0
    failures = read_card(tmp_path / "again" / "card.toml").known_failures
    assert "had seen people of home-raw: the figures flatter it" in failures[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--intensity", "tissue"], "--intensity cannot go with --from-weights"),
        (["--network", "shared=false"], "--network cannot go with --from-weights"),
        (["--readout", "ridge"], "--readout cannot go with --from-weights"),
        (["--license", "MIT"], "--license cannot go with --from-weights"),
        (["--from-weights", "nowhere"], "There is no weight file nowhere"),
        (["--from-weights", "wssa"], r"'wssa' takes images of \(91, 109, 91\) voxels"),
        (["--dora", "4"], "--dora adapts a transformer; wssa holds none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    more: list[str], message: str, home: Path, parent: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(command(home, tmp_path / "out", parent, "--epochs", "0", *more)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)


def test_weights_of_another_architecture_are_refused(
    home: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load("wssa", weights=parent)
    card = replace(model.card, architecture="sfcn", network={"shape": [32, 32, 32]})
    save_model(tmp_path / "sfcn", card, [sfcn.build(card.network)])
    assert main(command(home, tmp_path / "out", tmp_path / "sfcn")) == 2
    assert "weights of 'sfcn', and not of 'wssa'" in capsys.readouterr().err


def test_dora_trains_the_adapters_and_gives_back_a_plain_network(
    make_derivatives: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network with an encoder; the app's images do not fit the real one's yet."""

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.ModuleDict({"query": torch.nn.Linear(20, 6)})
            self.regressor = torch.nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.regressor(self.encoder["query"](x.mean((1, 2, 3)))).squeeze(1)

    monkeypatch.setattr(regression, "network_builder", lambda name: lambda config: Tiny())
    data = load_training_set([make_derivatives("one", [20.0, 40.0, 60.0, 80.0])], "tissue")
    options = Options(epochs=2, batch_size=2, dora=2, average=0, learning_rate=1e-2)
    held_out = np.array([True, False, False, False])
    started: list[torch.nn.Module] = []
    start = regression._start

    def spy(*arguments: object) -> regression.State:
        state = start(*arguments)  # type: ignore[arg-type]
        started.append(state.network)
        return state

    monkeypatch.setattr(regression, "_start", spy)
    torch.manual_seed(5)
    parent = Tiny()
    tuned = regression.train_fold(data, held_out, "a", options, tmp_path, lambda _: None, parent)
    adapter = started[0].get_submodule("encoder.query")
    assert isinstance(adapter, DoRALinear)
    assert torch.equal(adapter.linear.weight, parent.encoder["query"].weight)
    assert adapter.up.abs().max() > 0
    assert tuned.state_dict().keys() == parent.state_dict().keys()
    loaded = regression.load_member(data, held_out, "a", options, tmp_path)
    assert loaded is not None
    for one, other in zip(loaded[0].parameters(), tuned.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_options_come_from_the_card(parent: Path) -> None:
    card = read_card(parent / "card.toml")
    card = replace(card, training=card.training | {"augmentation": ["flip", "forgotten"]})
    chosen = build_parser().parse_args(
        ["wssa", "--data", "x", "--out", "y", "--from-weights", "z", "--device", "cpu"]
    )
    options = options_of(card, regression_options(chosen))
    assert options.intensity == "white_matter"
    assert options.augmentation.flip
    assert not options.augmentation.noise
    assert options.parent is not None
    assert options.parent.ages == (20, 65)
