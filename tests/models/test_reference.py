"""Images unlike those of the training are far from them in a model's features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import registry
from models.compact.network import CompactCNN
from models.contract import ModelError
from models.prediction import BrainAgeModel
from models.reference import AXES, Reference, features_of, fit


def features(n: int, seed: int = 1) -> np.ndarray:
    """Points on a plane in 30 dimensions, and a little noise; (n, 30)."""
    plane = np.random.default_rng(0).normal(size=(2, 30))
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, 2)) @ plane + 0.1 * random.normal(size=(n, 30))).astype("f4")


def test_what_is_usual_is_near_and_what_is_not_is_far() -> None:
    found = fit(features(200), axes=2)
    usual = [found.relative(each) for each in features(200, seed=2)]
    assert np.mean(np.array(usual) > 1) < 0.05
    assert np.median([found.distance(each) for each in features(200, 3)]) == pytest.approx(
        np.sqrt(2), abs=0.3
    )
    ahead = found.mean + 8 * found.deviations[0] * found.axes[0]  # in the plane
    beside = found.mean + np.random.default_rng(4).normal(size=30)  # out of it
    assert found.relative(ahead) > 1.5 and found.relative(beside) > 1.5


def test_the_distances_are_held_out() -> None:
    """With fewer images than dimensions, what an image has been fitted to looks too near."""
    given = np.random.default_rng(1).normal(size=(60, 100)).astype("f4")
    found = fit(given)
    assert len(found.distances) == 60 and (np.diff(found.distances) >= 0).all()
    assert found.axes.shape == (AXES, 100) and found.deviations.shape == (AXES,)
    seen = [found.distance(each) for each in given]
    new = [found.distance(each) for each in np.random.default_rng(2).normal(size=(60, 100))]
    assert np.mean(seen) < 0.9 * np.mean(found.distances)
    assert np.mean(new) == pytest.approx(np.mean(found.distances), rel=0.15)


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="9 images are too few"):
        fit(features(9))


def network(seed: int) -> CompactCNN:
    torch.manual_seed(seed)
    return CompactCNN(shape=(16, 16, 16), channels=(4, 6)).eval()


def test_features_are_those_of_every_network() -> None:
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = network(1), network(2)
    found = features_of([first, second], image)
    assert found is not None and found.shape == (12,)
    with torch.inference_mode():
        last = second.attended(image)[-1]
    np.testing.assert_allclose(found[6:], last.mean((2, 3, 4))[0], rtol=1e-5)
    assert features_of([first, nn.Linear(1, 1)], image) is None


def reference() -> Reference:
    return fit(features(40), axes=3)


def test_a_reference_is_kept_and_belongs_to_its_weights(tmp_path: Path) -> None:
    path = registry.save_reference(tmp_path, reference(), "a" * 64)
    assert path == tmp_path / "reference.safetensors"
    found = registry.load_reference(path, "a" * 64)
    assert found is not None
    image = features(1, seed=5)[0]
    assert found.relative(image) == pytest.approx(reference().relative(image), rel=1e-4)
    assert found.sha256 == reference().sha256 != replace(found, rest=found.rest + 1).sha256
    assert registry.load_reference(path, "b" * 64) is None
    assert registry.load_reference(tmp_path / "none.safetensors", "a" * 64) is None
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="is no reference of a model"):
        registry.load_reference(path, "a" * 64)


def test_a_model_knows_how_unlike_an_image_is() -> None:
    card = registry.card("wssa")
    card = replace(card, contract=replace(card.contract, shape=(16, 16, 16)))
    random = np.random.default_rng(1)
    images = random.random((30, 16, 16, 16), dtype=np.float32)
    without = BrainAgeModel(card, [network(1)])
    assert without.unlikeness(images[0]) is None
    rows = [features_of(without.networks, without.tensor(image)) for image in images]
    model = replace(without, reference=fit(np.stack([r for r in rows if r is not None])))
    usual, odd = model.unlikeness(images[0]), model.unlikeness(3 * images[0])
    assert usual is not None and odd is not None and usual < 1.2 < 2 < odd
