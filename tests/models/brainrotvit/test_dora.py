"""DoRA: starts as the network it adapts, trains little of it, and merges back into it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.brainrotvit.dora import DoRALinear, adapt, merge, merged_weight
from models.brainrotvit.network import ViT

SMALL = {"image_size": 16, "patch_size": 8, "hidden": 24, "layers": 2, "heads": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViT(**SMALL).eval()


@pytest.fixture
def slices():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def trained(network, slices, steps=5):
    """The same network after a few steps of gradient descent on what is trainable."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    for _ in range(steps):
        loss = network.features(slices).square().mean() + network.features(slices)[:, 0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def test_it_starts_as_the_network_it_adapts(vit, slices):
    expected = vit.features(slices)
    torch.testing.assert_close(adapt(vit).features(slices), expected, rtol=1e-5, atol=1e-6)


def test_magnitudes_and_thin_matrices_alone_train(vit, slices):
    before = copy.deepcopy(vit.state_dict())
    adapted = trained(adapt(vit, rank=2), slices)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trainable} == {"magnitude", "up", "down"}
    # query and value of two layers: 24 magnitudes and two matrices of 2 x 24 each
    sizes = [adapted.get_parameter(name).numel() for name in trainable]
    assert sum(sizes) == 2 * 2 * (24 + 2 * 2 * 24)
    after = {key.replace(".linear.", "."): value for key, value in adapted.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    moved = [name for name in trainable if name.endswith("up")]
    assert all(adapted.get_parameter(name).abs().max() > 0 for name in moved)


def test_merged_is_the_same_network_of_plain_layers(vit, slices):
    keys, before = vit.state_dict().keys(), vit.features(slices)
    adapted = trained(adapt(vit, rank=3, alpha=6), slices).eval()
    expected = adapted.features(slices)
    assert (expected - before).abs().max() > 1e-2
    merged = merge(adapted)
    assert merged.state_dict().keys() == keys
    assert not any(isinstance(module, DoRALinear) for module in merged.modules())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(merged.features(slices), expected, rtol=1e-5, atol=1e-5)


def test_the_magnitude_is_the_length_of_each_outputs_weights():
    """Whatever the low-rank branch does, it turns the weights alone."""
    random = torch.Generator().manual_seed(2)
    weight, up, down = (torch.randn(*size, generator=random) for size in ((5, 7), (5, 2), (2, 7)))
    magnitude = torch.tensor([1.0, 2, 3, 4, 5])
    merged = merged_weight(weight, down, up, magnitude, 1.5)
    torch.testing.assert_close(merged.norm(dim=1), magnitude)
    direction = functional.normalize(weight + 1.5 * up @ down, dim=1)
    torch.testing.assert_close(functional.normalize(merged, dim=1), direction)


def test_dropout_touches_the_low_rank_branch_in_training_alone():
    torch.manual_seed(0)
    layer, x = DoRALinear(nn.Linear(6, 4), rank=2, alpha=2, dropout=1.0), torch.rand(3, 6)
    nn.init.ones_(layer.up)
    plain = functional.linear(x, layer.linear.weight)
    norm = (layer.linear.weight + layer.up @ layer.down).norm(dim=1)
    expected = plain * layer.magnitude / norm + layer.linear.bias
    torch.testing.assert_close(layer.train()(x), expected)
    assert (layer.eval()(x) - expected).abs().max() > 1e-2


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer named query or value"):
        adapt(nn.Sequential(nn.Linear(2, 2)))
