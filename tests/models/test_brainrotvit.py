"""BrainRotViT: published sizes, parity of its parts, and that sex comes in at the end."""

import pytest
import torch
from torch.nn import functional

from models.brainrotvit.network import Regressor, ResidualConv, ViT, build
from models.coarse import amounts

TINY = {
    "encoder": {
        "image_size": 16,
        "patch_size": 8,
        "hidden": 24,
        "layers": 2,
        "heads": 2,
        "image_channels": 1,
    },
    "regressor": {
        "slices": 12,
        "hidden": 24,
        "kernels": [[3, 5], [2, 3], [2, 2]],
        "dense": [16, 8],
    },
    "smoothing": 0,
    "centred": False,
}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(TINY).eval()


@pytest.fixture
def brains():
    return torch.rand(2, 1, 12, 16, 16, generator=torch.Generator().manual_seed(1))


def test_base_has_the_published_sizes():
    with torch.device("meta"):
        base = build({"size": "base"})
        matrix = base.regressors[0].convs(torch.zeros(1, 1, 160, 768))
    assert count(base.regressors[0]) == 50_374_296  # 50.37 million
    assert matrix.shape == (1, 1, 143, 687)
    # ViT-B/16 without its head, as in every library
    assert count(base.encoder) - count(base.encoder.head) == 85_798_656


def test_small_is_small():
    with torch.device("meta"):
        small = build({})
        assert small(torch.zeros(1, 1, 91, 109, 91), torch.zeros(1)).shape == (1,)
    assert count(small) < 1_000_000


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="base, small, tissue, not 'huge'"):
        build({"size": "huge"})


def test_encoder_equals_torchs_own_transformer():
    torch.manual_seed(0)
    vit = ViT(**TINY["encoder"]).eval()
    slices = torch.rand(3, 1, 16, 16)
    layer = torch.nn.TransformerEncoderLayer(
        24, 2, 96, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
        norm_first=True,
    ).eval()  # fmt: skip
    with torch.inference_mode():
        patches = functional.unfold(slices, 8, stride=8).transpose(1, 2)
        x = patches @ vit.patches.weight.flatten(1).T + vit.patches.bias
        x = torch.cat([vit.class_token.expand(3, 1, -1), x], 1) + vit.position
        for block in vit.blocks:
            parts = (block.attention.query, block.attention.key, block.attention.value)
            layer.load_state_dict(
                {
                    "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
                    "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
                    "self_attn.out_proj.weight": block.attention.out.weight,
                    "self_attn.out_proj.bias": block.attention.out.bias,
                    "linear1.weight": block.mlp[0].weight,
                    "linear1.bias": block.mlp[0].bias,
                    "linear2.weight": block.mlp[2].weight,
                    "linear2.bias": block.mlp[2].bias,
                    **{f"norm1.{k}": v for k, v in block.norm1.state_dict().items()},
                    **{f"norm2.{k}": v for k, v in block.norm2.state_dict().items()},
                }
            )
            x = layer(x)
        expected = functional.layer_norm(x, (24,), vit.norm.weight, vit.norm.bias, 1e-6)
        torch.testing.assert_close(vit.tokens(slices), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vit.features(slices), expected.mean(1), rtol=1e-5, atol=1e-5)


def test_residual_block_by_hand():
    torch.manual_seed(0)
    block, x = ResidualConv(1, 1, (3, 4)), torch.rand(1, 1, 9, 11)
    with torch.inference_mode():
        y = functional.conv2d(x, block.conv.weight, block.conv.bias)
        y = y * torch.sigmoid(y)
        y = functional.max_pool2d(y, 2, stride=1)
        rows = torch.arange(6) * 9 // 6
        columns = torch.arange(7) * 11 // 7
        skip = x[:, :, rows][:, :, :, columns] * block.project.weight + block.project.bias
        torch.testing.assert_close(block(x), y + skip, rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_how_many_slices_are_encoded_at_once(network, brains):
    with torch.inference_mode():
        whole, parts = network.encode(brains), network.encode(brains, slices_at_once=5)
    assert whole.shape == (2, 12, 24)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    alone = network.encoder.features(brains[1, :, 3][None])
    torch.testing.assert_close(whole[1, 3], alone[0], rtol=1e-5, atol=1e-5)


def test_sex_enters_the_last_layer_alone(network, brains):
    with torch.inference_mode():
        men, women = network(brains, torch.zeros(2)), network(brains, torch.ones(2))
    effect = network.regressors[0].last.weight[0, -1].item()
    torch.testing.assert_close(women - men, torch.full((2,), effect))


def test_one_brain_may_meet_both_sexes(network, brains):
    with torch.inference_mode():
        both = network(brains[:1], torch.tensor([0.0, 1.0]))
        each = [network(brains[:1], torch.tensor([sex])) for sex in (0.0, 1.0)]
    torch.testing.assert_close(both, torch.cat(each))


def test_classes_are_read_from_the_class_token(network, brains):
    slices = brains[:, :, 4]
    with torch.inference_mode():
        expected = network.encoder.head(network.encoder.tokens(slices)[:, 0])
        assert torch.equal(network.encoder(slices), expected)
    assert expected.shape == (2, 20)


def test_a_slice_becomes_the_mean_of_its_tokens_or_the_class_token(brains):
    """The mean as published, the class token in the small size."""
    slices = brains[:, :, 4]
    for size, published in (("base", True), ("small", False)):
        with torch.inference_mode():
            encoder = build({**TINY, "size": size}).eval().encoder
            tokens = encoder.tokens(slices)
            expected = tokens.mean(1) if published else tokens[:, 0]
            assert torch.equal(encoder.features(slices), expected)


def test_same_seed_same_network_same_answer(brains):
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.inference_mode():
            answers.append(build(TINY).eval()(brains, torch.ones(2)))
    assert torch.equal(*answers)


def test_the_regressor_takes_its_matrix_size_from_the_kernels():
    features = torch.rand(2, 20, 30)
    regressor = Regressor(20, 30, kernels=[[4, 6], [3, 3], [2, 4]], dense=[8, 4])
    assert regressor.dense[0][0].in_features == (20 - 9) * (30 - 13)
    assert regressor(features, torch.zeros(2)).shape == (2,)


@pytest.mark.parametrize("shape", [(12, 16, 16), (23, 20, 19), (5, 20, 19)])
def test_an_image_of_another_size_is_interpolated_to_slices(network, shape):
    torch.manual_seed(2)
    image = torch.rand(1, 1, *shape)
    slices = network.slices(image)
    assert slices.shape == (1, 12, 1, 16, 16)
    assert torch.equal(slices[:, :, 0], image[:, 0]) is (shape == (12, 16, 16))
    near, sex = network.near(image), torch.ones(2)
    for start in range(shape[0] - 1):
        box = (slice(start, start + 2), slice(3, 9), slice(2, 8))
        images = image.repeat(2, 1, 1, 1, 1)
        images[0, 0][box] = 0
        with torch.inference_mode():
            torch.testing.assert_close(near(images, sex, box=box), network(images, sex))


@pytest.mark.parametrize("shape", [(12, 16, 16), (91, 20, 24), (11, 18, 20)])
def test_slices_that_smoothing_reaches_are_encoded_again(shape):
    torch.manual_seed(3)
    network, image = build(TINY | {"smoothing": 2}).eval(), torch.rand(1, 1, *shape)
    near, sex = network.near(image), torch.ones(1)
    for start in range(0, shape[0] - 1, 5):
        box = (slice(start, start + 2), slice(3, 9), slice(2, 8))
        changed = image.clone()
        changed[0, 0][box] = 0
        with torch.inference_mode():
            torch.testing.assert_close(near(changed, sex, box=box), network(changed, sex))


def test_a_centred_network_sees_differences_from_the_mean(brains):
    network = build(TINY | {"centred": True})
    network.mean.copy_(brains[0, 0, :, None])
    network.deviation.fill_(0.5)
    torch.testing.assert_close(network.slices(brains[:1]), torch.zeros(1, 12, 1, 16, 16))
    torch.testing.assert_close(
        network.slices(brains[1:])[0, :, 0], 2 * (brains[1, 0] - brains[0, 0])
    )


def test_left_and_right_are_told_alike_in_use(brains):
    torch.manual_seed(4)
    network = build({"size": "small"}).eval()
    images = functional.interpolate(brains, size=(46, 48, 42))
    sex = torch.tensor([0.0, 1.0])[: len(images)]
    both = network(images, sex)
    torch.testing.assert_close(network(images.flip(2), sex), both)
    network.mirror = False
    one, other = network(images, sex), network(images.flip(2), sex)
    torch.testing.assert_close((one + other) / 2, both)
    assert not torch.allclose(one, other)


def test_amounts_are_of_one_size_and_have_slopes():
    """A root has none at 0, where most voxels lie."""
    maps = torch.rand(2, 3, 6, 7, 6, generator=torch.Generator().manual_seed(2))
    maps[:, :, :2] = 0
    maps.requires_grad_(True)
    found = amounts(maps, solid=100.0, power=0.5)
    torch.testing.assert_close(
        found.square()[:, :2].sum((1, 2, 3, 4)), torch.full((2,), 100.0), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(found, amounts(3 * maps, 100.0, 0.5))
    found.sum().backward()
    assert torch.isfinite(maps.grad).all() and maps.grad.abs().sum() > 0
    assert amounts(maps, 0, 1) is maps


def test_maps_of_tissue_are_seen_whole():
    """Where brains are scaled, a change anywhere changes every slice."""
    torch.manual_seed(5)
    config = {"size": "tissue", "encoder": {"image_size": 16, "patch_size": 8, "hidden": 24,
              "heads": 2}, "regressor": TINY["regressor"] | {"dense": [8]}}  # fmt: skip
    network, maps = build(config).eval(), torch.rand(1, 1, 3, 12, 16, 16)
    slices = network.slices(maps)
    assert slices.shape == (1, 12, 3, 16, 16)
    torch.testing.assert_close(network.slices(2 * maps), slices)
    changed, sex = maps.clone(), torch.ones(1)
    box = (slice(2, 4), slice(3, 9), slice(2, 8))
    changed[(0, 0, slice(None), *box)] = 0
    with torch.inference_mode():
        near = network.near(maps)(changed, sex, box=box)
        torch.testing.assert_close(near, network(changed, sex))
        mirrored = network(maps.flip(3), sex)
    torch.testing.assert_close(mirrored, network(maps, sex))
