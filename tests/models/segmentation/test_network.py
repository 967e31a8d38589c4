"""The U-Net over folded voxels."""

import pytest
import torch

from models.registry import load_segmentation
from models.segmentation.network import SegmentationUNet, build, fold, unfold


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return SegmentationUNet(3, (8, 16)).eval()


def test_unfold_is_the_inverse_of_fold():
    image = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = fold(image)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded, 3), image)


def test_a_block_is_folded_into_the_channels_of_its_place():
    image = torch.zeros(1, 1, 4, 4, 4)
    image[0, 0, 2:, :2, 2:] = torch.arange(1.0, 9).reshape(2, 2, 2)
    folded = fold(image)
    assert torch.equal(folded[0, :, 1, 0, 1], torch.arange(1.0, 9))
    assert folded.sum() == image.sum()


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 8, 24)])
def test_logits_have_the_shape_of_the_image(tiny, shape):
    assert tiny.multiple == 4
    with torch.inference_mode():
        assert tiny(torch.randn(2, 1, *shape)).shape == (2, 3, *shape)


def test_sides_must_divide_by_the_multiple(tiny):
    with pytest.raises(RuntimeError):
        tiny(torch.randn(1, 1, 9, 8, 8))


def test_every_parameter_learns(tiny):
    """Within two steps: a layer may begin at zero."""
    optimizer = torch.optim.SGD(tiny.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (tiny(torch.randn(1, 1, 16, 16, 16)) - 1).square().mean().backward()
        optimizer.step()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_skips_carry_fine_detail(tiny):
    """One voxel's change reaches its own logits and those near it more than those far away."""
    image = torch.randn(1, 1, 32, 32, 32)
    changed = image.clone()
    changed[0, 0, 5, 5, 5] += 3
    with torch.inference_mode():
        change = (tiny(changed) - tiny(image)).abs().amax(1)[0]
    assert change[5, 5, 5] > 10 * change[26:, 26:, 26:].max()


def test_the_network_of_a_card():
    network = build({"classes": 5, "channels": [8, 8, 16]})
    assert network.classes == 5 and network.multiple == 8
    assert len(network.encoder) == 3 and len(network.decoder) == 2


def test_the_embedded_weights_are_those_of_their_card():
    network, table = load_segmentation()
    assert table["name"] == "segmentation" and not network.training
    assert network.classes == 13 and network.multiple == 16
    assert not any(parameter.requires_grad for parameter in network.parameters())
    again, _ = load_segmentation()
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(image), again(image))
