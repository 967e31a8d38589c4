from __future__ import annotations

import pytest
import torch

from models.training.precision import autocast
from models.wssa.network import build


def test_a_cpu_computes_in_float32() -> None:
    conv = torch.nn.Conv3d(1, 2, 3)
    with autocast("cpu"):
        assert conv(torch.rand(1, 1, 5, 5, 5)).dtype == torch.float32


def test_a_gpu_computes_in_bfloat16() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    conv = torch.nn.Conv3d(1, 2, 3).cuda()
    with autocast("cuda"):
        assert conv(torch.rand(1, 1, 5, 5, 5).cuda()).dtype == torch.bfloat16


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
