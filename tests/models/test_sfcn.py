"""SFCN: published sizes and key names, and parity with a plain restatement."""

import math

import pytest
import torch
from torch.nn import functional

from models import card, embedded, known
from models.registry import load_networks, save_weights
from models.sfcn.network import build

SMALL = {"shape": [32, 64, 32]}


def make():
    """A network with random weights and running statistics, on a small grid."""
    torch.manual_seed(0)
    network = build(SMALL).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif key.endswith("conv_6.weight"):
            value.normal_(0, 1)
    return network


def restated(state, x):
    """The distribution over the 40 years, from the weights alone."""
    for block in range(6):
        key = f"feature_extractor.conv_{block}."
        x = functional.conv3d(
            x, state[key + "0.weight"], state[key + "0.bias"], padding=1 if block < 5 else 0
        )
        mean, variance, gain, shift = (
            state[key + f"1.{name}"].reshape(1, -1, 1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / torch.sqrt(variance + 1e-5) * gain + shift
        if block < 5:
            x = functional.max_pool3d(x, 2)
        x = x.clamp(min=0)
    x = x.mean((2, 3, 4))
    logits = x @ state["classifier.conv_6.weight"].flatten(1).T + state["classifier.conv_6.bias"]
    return torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)


def test_parameters_are_those_of_the_paper():
    assert sum(parameter.numel() for parameter in build({}).parameters()) == 2_952_936


def test_key_names_are_the_published_ones():
    keys = build({}).state_dict().keys()
    expected = {
        f"feature_extractor.conv_{block}.{part}"
        for block in range(6)
        for part in (
            "0.weight",
            "0.bias",
            "1.weight",
            "1.bias",
            "1.running_mean",
            "1.running_var",
            "1.num_batches_tracked",
        )
    }
    assert keys == expected | {"classifier.conv_6.weight", "classifier.conv_6.bias"}


def test_the_published_grid_ends_at_one_voxel():
    with torch.device("meta"):
        network = build({})
        image = torch.zeros(1, 1, 160, 192, 160)
        assert network.feature_extractor(image).shape == (1, 64, 5, 6, 5)
        assert network.log_probabilities(image).shape == (1, 40)


def test_parity_with_a_plain_restatement():
    network = make()
    image = torch.rand(2, 1, *SMALL["shape"], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = restated(network.state_dict(), image)
        said, ages = network.log_probabilities(image).exp(), network(image)
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
    for age, row in zip(ages.tolist(), expected.tolist(), strict=True):
        by_hand = math.fsum(p * (42.5 + year) for year, p in enumerate(row))
        assert age == pytest.approx(by_hand, abs=1e-4)
    assert said.max() > 0.05  # not a flat distribution, whose mean is 62 whatever the weights


@pytest.mark.parametrize(("year", "age"), [(0, 42.5), (39, 81.5)])
def test_the_years_run_from_42_to_82(year, age):
    network = make()
    torch.nn.init.zeros_(network.classifier.conv_6.weight)
    network.classifier.conv_6.bias.data = 50.0 * (torch.arange(40) == year)
    assert network(torch.rand(1, 1, *SMALL["shape"])).item() == pytest.approx(age)


def test_weights_saved_by_dataparallel_load_as_published(tmp_path):
    network = make()
    file = tmp_path / "weights.safetensors"
    sha256 = save_weights(file, [torch.nn.DataParallel(network)], torch.float32)
    (again,) = load_networks(file, lambda: build(SMALL), sha256)
    image = torch.rand(1, 1, *SMALL["shape"])
    assert torch.equal(network(image), again(image))


def test_the_card_is_known_and_tells_where_its_weights_are_but_they_are_not_embedded():
    assert "sfcn" in known()
    assert "sfcn" not in embedded()
    this = card("sfcn")
    assert this.license == this.source["license"] == "MIT"
    assert this.source["git_blob_sha1"] == "3631938002f789a842469132155380fa36de7d4d"
    # the centre of the crop of FSL's grid, whose voxel (90, 126, 72) is the template's origin
    assert [row[3] for row in this.contract.affine[:3]] == [90 - 11, -126 + 13, -72 + 11]
