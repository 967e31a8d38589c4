"""The small CNN at 4 mm."""

from __future__ import annotations

import pytest
import torch

from models.coarse import at_4_mm
from models.compact.network import CompactCNN, build


@pytest.fixture(scope="module")
def network() -> CompactCNN:
    torch.manual_seed(1)
    return build({}).eval()


def test_parameters(network: CompactCNN) -> None:
    convolutions = sum(27 * a * b + b for a, b in ((1, 16), (16, 32), (32, 64), (64, 128)))
    normalisation = 2 * (16 + 32 + 64 + 128)
    dense = 128 * 2 * 3 * 2 + 1
    assert sum(p.numel() for p in network.parameters()) == convolutions + normalisation + dense


def test_blocks_are_means_of_eight_voxels() -> None:
    image = torch.rand(1, 1, 91, 109, 91)
    pooled = at_4_mm(image)
    assert pooled.shape == (1, 1, 46, 55, 46)
    torch.testing.assert_close(pooled[0, 0, 3, 4, 5], image[0, 0, 6:8, 8:10, 10:12].mean())
    assert at_4_mm(pooled) is pooled


def test_takes_both_grids(network: CompactCNN) -> None:
    image = torch.rand(1, 1, 91, 109, 91)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network(at_4_mm(image)))


def test_mirror_image_gets_the_same_age(network: CompactCNN) -> None:
    image = torch.rand(1, 1, 46, 55, 46)
    one_sided = build({"mirror": False}).eval()
    one_sided.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network(image.flip(2)))
        assert (one_sided(image) - one_sided(image.flip(2))).abs() > 1e-6


def test_maps_lead_to_the_output(network: CompactCNN) -> None:
    image = torch.rand(1, 1, 46, 55, 46)
    one_sided = build({"mirror": False}).eval()
    one_sided.load_state_dict(network.state_dict())
    with torch.inference_mode():
        maps = one_sided.attended(image)
        assert [m.shape[1] for m in maps] == [16, 32, 64, 128]
        torch.testing.assert_close(one_sided.regress(maps[-1]), one_sided(image))


def test_smoothing_spares_a_plain_image_and_spreads_a_spark() -> None:
    torch.manual_seed(1)
    sharp, smooth = build({}).eval(), build({"smoothing": 2}).eval()
    smooth.load_state_dict(sharp.state_dict())
    plain = torch.full((1, 1, 46, 55, 46), 0.6)
    spark = plain.clone()
    spark[0, 0, 20:22, 20:22, 20:22] = 1.0
    with torch.inference_mode():
        torch.testing.assert_close(smooth(plain), sharp(plain))
        touched = [
            ((net.attended(spark)[0] - net.attended(plain)[0]).abs() > 1e-6).any(1).sum()
            for net in (sharp, smooth)
        ]
    assert touched[1] > 2 * touched[0] > 0


def test_one_attention_serves_all_layers() -> None:
    torch.manual_seed(1)
    network = build({"attention": True}).eval()
    weights = [name for name in network.state_dict() if name.startswith("attention")]
    assert weights == ["attention.conv.weight", "attention.conv.bias"]
    image = torch.rand(1, 1, 46, 55, 46)
    with torch.inference_mode():
        maps = network.attended(image)
        network.attention.conv.bias.fill_(-99)  # nothing is let through
        assert all(float(each.abs().max()) > 0 for each in maps)
        assert float(network.attended(image)[0].abs().max()) < 1e-6
