"""WSSA: the published arithmetic, and parity with a plain restatement of it."""

import pytest
import torch
from torch.nn import functional

from models.coarse import at_4_mm
from models.wssa.network import build

GRID = (91, 109, 91)


@pytest.fixture
def images():
    coarse = torch.rand(2, 1, 4, 5, 4, generator=torch.Generator().manual_seed(7))
    coarse[1] += 0.5
    return functional.interpolate(coarse, (20, 26, 18), mode="trilinear")


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def make(**config):
    """A network with every parameter random, biases included."""
    torch.manual_seed(0)
    network = build(config).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def restated(state, x, layers=7, shared=True, after_pooling=False):
    """The network again, from its weights alone."""
    for layer in range(layers):
        attend = f"attention.{0 if shared else layer}.conv."

        def weigh(x, weight=state[attend + "weight"], bias=state[attend + "bias"]):
            pooled = torch.stack([x.amax(1), x.sum(1) / x.shape[1]], 1)
            score = functional.conv3d(pooled, weight, bias, padding=weight.shape[-1] // 2)
            return x / (1 + torch.exp(-score))

        x = functional.conv3d(
            x, state[f"convs.{layer}.weight"], state[f"convs.{layer}.bias"], padding=1
        )
        if after_pooling:
            x = weigh(functional.max_pool3d(x.clamp(min=0), 2))
        else:
            x = functional.max_pool3d(weigh(x).clamp(min=0), 2)
    x = x.reshape(len(x), -1)
    for layer in range(5):
        x = x @ state[f"dense.{layer}.weight"].T + state[f"dense.{layer}.bias"]
        x = x if layer == 4 else x.clamp(min=0)
    return x[:, 0]


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({}, 2 * 3**3 + 1),
        ({"attention_kernel": 7}, 2 * 7**3 + 1),
        ({"shared": False}, 7 * (2 * 3**3 + 1)),
        ({"attention_after_pooling": True}, 2 * 3**3 + 1),
    ],
)
def test_parameters_are_those_of_the_paper_plus_the_attention(config, attention):
    assert count(build(config)) == 5_407_541 + attention


def test_the_published_grid_ends_at_one_voxel():
    network = make()
    with torch.inference_mode():
        maps = network.attended(torch.rand(1, 1, *GRID))
    assert [each.shape[1] for each in maps] == [12, 16, 32, 64, 128, 512, 1024]
    assert maps[0].shape[2:] == (92, 110, 92)
    assert functional.max_pool3d(maps[-1], 2).shape == (1, 1024, 1, 1, 1)


def test_a_larger_grid_than_one_that_ends_at_one_voxel_is_refused():
    network = build({"channels": [2] * 7, "dense": [2, 2]})
    with pytest.raises(ValueError, match="at most 128 voxels"):
        network(torch.zeros(1, 1, 129, 8, 8))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("after_pooling", [True, False])
def test_parity_with_a_plain_restatement(images, shared, after_pooling):
    network = make(shared=shared, attention_after_pooling=after_pooling, attention_kernel=5)
    with torch.inference_mode():
        said = network(images)
        expected = restated(network.state_dict(), images, 7, shared, after_pooling)
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
    # two images, two answers: the parity of constants would say little
    assert abs(said[0] - said[1]) > 1e-3


def test_parity_on_the_published_grid():
    network, image = make(), torch.rand(1, 1, *GRID)
    with torch.inference_mode():
        expected = restated(network.state_dict(), image)
        torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-5)


def test_same_seed_same_network_same_answer(images):
    with torch.inference_mode():
        assert torch.equal(make()(images), make()(images))


def test_channels_last_and_bfloat16_say_nearly_the_same(images):
    network = make()
    with torch.inference_mode():
        plain = network(images)
        network = network.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(images).float(), plain, rtol=0.05, atol=0.05)


def test_the_gradient_reaches_every_layers_attended_map(images):
    network = make()
    maps = network.attended(images)
    gradients = torch.autograd.grad(network.regress(maps[-1]).sum(), maps)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_dropout_is_where_the_paper_puts_it(images):
    network = make(dropout_conv=0.5, dropout_dense=0.5).train()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_a_fresh_network_sees_the_image(images):
    torch.manual_seed(0)
    with torch.inference_mode():
        first, second = build({}).eval()(images)
    # started as torch starts layers, the two would agree to seven digits
    assert abs(first - second) > 0.01 * abs(first)


def test_normalised_at_4_mm_it_still_ends_at_one_voxel_of_5_4_million_parameters():
    network = make(normalise=True, coarse=True, smoothing=2, attention_after_pooling=True)
    channels = sum((12, 16, 32, 64, 128, 512, 1024))
    assert count(network) == count(make()) + 2 * channels
    image = torch.rand(1, 1, *GRID)
    with torch.inference_mode():
        maps = network.attended(image)
        assert tuple(maps[-1].shape) == (1, 1024, 1, 1, 1)
        torch.testing.assert_close(network(image), network(at_4_mm(image)))
        box = (slice(3, 9), slice(40, 50), slice(20, 30))
        near = network.near(image)(image, box=box)
        torch.testing.assert_close(near, network(image))


def test_places_of_a_coarse_network_lie_on_the_image_at_2_mm():
    """Voxel 0 of the first map is the middle of four voxels along each axis."""
    network = make(coarse=True, attention_after_pooling=True)
    assert network.places(GRID)[0] == (4.0, 0.5)
    assert network.places((46, 55, 46))[0] == (2.0, 0.0)
