"""The command that writes a model's reference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models import registry
from models.compact.network import CompactCNN
from models.contract import ModelError
from models.training import __main__ as program
from models.training import reference


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model of its own, and twelve training images in place of those of a study."""
    from dataclasses import replace

    torch.manual_seed(1)
    card = replace(registry.card("wssa"), architecture="compact")
    small = replace(card, contract=replace(card.contract, shape=(16, 16, 16)),
                    network={"shape": [16, 16, 16], "channels": [4, 6]})  # fmt: skip
    registry.save_model(tmp_path, small, [CompactCNN((16, 16, 16), (4, 6))])
    random = np.random.default_rng(1)
    scans = [SimpleNamespace(image=torch.from_numpy(random.random((16, 16, 16), "f4")).half())
             for _ in range(12)]  # fmt: skip

    def load(roots: Any, intensity: str) -> SimpleNamespace:
        assert roots == [Path("out")] and intensity == card.contract.intensity
        return SimpleNamespace(scans=scans)

    monkeypatch.setattr(reference, "load_training_set", load)
    return tmp_path


def test_the_reference_lies_beside_the_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.load("own", weights=folder).reference is None
    arguments = ["reference", "own", "--data", "out", "--weights", str(folder)]
    assert program.main(arguments) == 0
    path = folder / registry.REFERENCE
    assert capsys.readouterr().out.strip() == str(path) and path.stat().st_size < 1e6
    model = registry.load("own", weights=folder)
    assert model.reference is not None and len(model.reference.distances) == 12
    flat = np.full((16, 16, 16), 3, np.float32)
    distance = model.unlikeness(flat)
    assert distance is not None and distance > 2


def test_a_model_of_volumes_has_none() -> None:
    if "volumes" not in registry.available():
        pytest.skip("the model of volumes has no weights here")
    with pytest.raises(ModelError, match="takes no images"):
        reference.write("volumes", [Path("out")])
