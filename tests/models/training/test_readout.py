"""How the dense layers of WSSA start."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from models.training.readout import PENALTY, centre_readout, fit_readout
from models.wssa.network import WSSA

PEOPLE = 12


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(9, 11, 9, generator=generator) for _ in range(PEOPLE)]


@pytest.fixture(scope="module", params=[0.0, 0.3])
def fitted(images: list[torch.Tensor], request) -> tuple[WSSA, torch.Tensor]:
    torch.manual_seed(1)
    leak = request.param
    network = WSSA(attention_after_pooling=True, standardise=True, mirror=True, leak=leak)
    targets = torch.linspace(-1.5, 1.5, PEOPLE)
    fit_readout(network, images, targets)
    return network.eval(), targets


@torch.no_grad()
def test_the_network_says_what_the_ridge_says(images, fitted) -> None:
    network, targets = fitted
    views = [view for image in images for view in (image, image.flip(0))]
    features = torch.cat([network.features(view[None, None]) for view in views])
    standard = network.standardise(features).double().numpy()
    penalty = PENALTY * np.mean((standard**2).sum(1))
    ages = targets.repeat_interleave(2).double().numpy()
    ridge = Ridge(alpha=penalty, fit_intercept=False).fit(standard, ages - ages.mean())
    expected = (standard @ ridge.coef_ + ages.mean()).reshape(PEOPLE, 2).mean(1)
    found = np.array([float(network(image[None, None])) for image in images])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.corrcoef(found, targets)[0, 1] > 0.5


@torch.no_grad()
def test_an_image_and_its_mirror_image_are_of_one_age(images, fitted) -> None:
    network, _ = fitted
    for image in images[:3]:
        same = network(image.flip(0)[None, None])
        torch.testing.assert_close(network(image[None, None]), same, atol=1e-6, rtol=0)


def test_standardised_features_have_no_mean_and_unit_spread(images, fitted) -> None:
    network, _ = fitted
    views = [view for image in images for view in (image, image.flip(0))]
    with torch.no_grad():
        features = torch.cat([network.features(view[None, None]) for view in views])
        standard = network.standardise(features)
    assert standard.mean(0).abs().max() < 1e-3
    assert 0.3 < float(standard.std(0).median()) < 1.01


def test_no_parameter_is_added() -> None:
    with_it, without = WSSA(standardise=True, mirror=True), WSSA()
    assert sum(p.numel() for p in with_it.parameters()) == sum(
        p.numel() for p in without.parameters()
    )


@torch.no_grad()
def test_a_centred_start_lets_every_unit_tell_people_apart(images: list[torch.Tensor]) -> None:
    torch.manual_seed(1)
    network = WSSA(attention_after_pooling=True, normalise=True)
    network.dense[2].bias.fill_(-100)  # a layer that is off for everybody
    before = copy.deepcopy(network.state_dict())
    centre_readout(network, images, batch_size=4)
    x = copy.deepcopy(network).train().features(torch.stack(images)[:, None])
    for layer in list(network.dense)[:-1]:
        on = (layer(x) > 0).float().mean(0)
        assert 0.2 < on.mean() < 0.8 and (on > 0).all() and (on < 1).all()
        x = network.activate(layer(x))
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"dense.{number}.bias" for number in range(4)}
