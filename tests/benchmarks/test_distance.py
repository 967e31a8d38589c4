"""How unlike other data sets are, by networks that have seen the first alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import distance
from models import registry
from models.compact.network import CompactCNN

SHAPE = (16, 16, 16)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Three small networks in the place of the folds of a model that has two in use."""
    torch.manual_seed(1)
    card = replace(registry.card("wssa"), architecture="compact")
    small = replace(card, contract=replace(card.contract, shape=SHAPE),
                    network={"shape": list(SHAPE), "channels": [4, 6]})  # fmt: skip
    registry.save_model(tmp_path, small, [CompactCNN(SHAPE, (4, 6)) for _ in range(3)])
    return tmp_path


def test_each_data_set_has_a_row(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(roots: list[Path], rule: str) -> SimpleNamespace:
        assert rule == registry.card("wssa").image_contract.intensity
        random = np.random.default_rng(len(roots[0].name))
        level = 30 if roots == [Path("another")] else 1
        images = [torch.from_numpy(level * random.random(SHAPE, "f4")) for _ in range(12)]
        return SimpleNamespace(scans=[SimpleNamespace(image=image) for image in images])

    monkeypatch.setattr(distance, "load_training_set", load)
    monkeypatch.setattr(distance, "dataset_name", lambda folder: folder.name)
    text = distance.distances(training, [Path("home"), Path("alike"), Path("another")])
    _, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    home, alike, another = rows
    assert [row[:2] for row in rows] == [["home", "12"], ["alike", "12"], ["another", "12"]]
    assert float(home[2]) < 1.1 and home[4] == "0"  # held out from the reference, but like it
    assert float(alike[3]) < float(another[2]) and another[4] == "12"
