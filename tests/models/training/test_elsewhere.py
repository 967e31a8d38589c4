"""The command that writes into a card what its kind does on unseen data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import registry
from models.compact.network import CompactCNN
from models.contract import ModelError
from models.training import __main__ as program
from models.training import elsewhere
from models.training.data import TrainingScan, TrainingSet

SHAPE = (16, 16, 16)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model that was trained on data sets a and b, and ten people of data set c."""
    torch.manual_seed(1)
    card = replace(registry.card("wssa"), architecture="compact")
    small = replace(card, contract=replace(card.contract, shape=SHAPE),
                    network={"shape": list(SHAPE), "channels": [4, 6]},
                    training={"datasets": {"a": 10, "b": 5}})  # fmt: skip
    registry.save_model(tmp_path / "alone", small, [CompactCNN(SHAPE, (4, 6))])
    (tmp_path / registry.CARD).write_text(card.to_toml())
    random = np.random.default_rng(1)
    scans = tuple(
        TrainingScan(f"s{n}", "c", f"p{n}", 20.0 + 5 * n, "F", "",
                     torch.from_numpy(random.random(SHAPE, "f4")).half())
        for n in range(10)
    )  # fmt: skip

    def load(roots: Any, intensity: str) -> TrainingSet:
        dataset = str(roots[0])
        return TrainingSet(tuple(replace(scan, dataset=dataset) for scan in scans), "t", ())

    monkeypatch.setattr("models.training.data.load_training_set", load)
    return tmp_path / "alone"


def test_figures_of_unseen_people_go_into_the_card(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--alone", str(alone), "--data", "c", "--weights", str(tmp_path)]
    assert program.main(["elsewhere", "wssa", *arguments]) == 0
    path = tmp_path / registry.CARD
    assert capsys.readouterr().out.strip() == str(path)
    card = registry.read_card(path)
    found = card.figures["elsewhere"]
    assert (found["trained_on"], found["tested_on"], found["n"]) == ("a, b", "c", 10)
    model = registry.load("wssa", weights=alone)
    random = np.random.default_rng(1)
    images = [random.random(SHAPE, "f4").astype("f2").astype("f4") for _ in range(10)]
    error = [model.predict(image, "F").predicted_age - 20 - 5 * n
             for n, image in enumerate(images)]  # fmt: skip
    assert found["mae"] == pytest.approx(np.abs(error).mean(), abs=1e-3)
    assert found["mean_error"] == pytest.approx(np.mean(error), abs=1e-3)
    assert card.figures["mae"] == registry.card("wssa").figures["mae"]  # the others stay


def test_people_it_has_seen_are_refused(alone: Path) -> None:
    with pytest.raises(ModelError, match="was trained on b; choose --data"):
        elsewhere.write("wssa", alone, [Path("b")])


def test_another_model_is_refused(alone: Path) -> None:
    with pytest.raises(ModelError, match="holds the model 'wssa', not 'linear'"):
        elsewhere.write("linear", alone, [Path("c")])
