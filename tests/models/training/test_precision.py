from __future__ import annotations

import copy

import pytest
import torch

from models.training.precision import autocast
from models.wssa.network import build


@pytest.mark.parametrize(("kernel", "size"), [(2, 1), (3, 2), (3, 4), (5, 3)])
def test_gradients_of_small_images_are_right(kernel: int, size: int) -> None:
    torch.manual_seed(1)
    conv = torch.nn.Conv3d(4, 8, kernel, padding=kernel // 2)
    exact = copy.deepcopy(conv).double()
    x = torch.randn(2, 4, size, size, size)
    for _ in range(3):
        with autocast("cpu"):
            conv(x).float().square().sum().backward()
    exact(x.double()).square().sum().backward()
    assert conv.weight.grad is not None and exact.weight.grad is not None
    difference = conv.weight.grad.double() / 3 - exact.weight.grad
    assert difference.norm() < 0.02 * exact.weight.grad.norm()


def test_large_convolutions_are_in_bfloat16() -> None:
    conv = torch.nn.Conv3d(1, 2, 3)
    with autocast("cpu"):
        assert conv(torch.rand(1, 1, 5, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("after", [False, True])
def test_gradients_of_the_network_are_repeatable(after: bool) -> None:
    torch.manual_seed(1)
    network = build(
        {"channels": [4, 8, 8, 8, 8, 16, 16], "dense": [16, 8], "attention_after_pooling": after}
    ).eval()
    image = torch.rand(2, 1, 20, 24, 20)
    found = []
    for _ in range(3):
        network.zero_grad()
        with autocast("cpu"):
            network(image).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
