"""The model of volumes: it sees proportions alone, and stands beside the others."""

import dataclasses

import numpy as np
import pytest
import torch

from models.contract import ModelCard, ModelError, VolumeContract
from models.ensemble import voters
from models.registry import embedded, load
from models.volumes.network import build

HALF = {
    "cerebral_cortex": 275.0, "cerebral_white_matter": 250.0, "lateral_ventricle": 8.0,
    "deep_grey_nuclei": 17.5, "hippocampus": 4.2,
}  # fmt: skip
"""Of a middle-aged brain, ml a side."""
RECORD = {f"{side}_{name}": ml for name, ml in HALF.items() for side in ("left", "right")}


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = build({"volumes": 3}).eval()
    made.mean.copy_(torch.tensor([-1.0, -1.2, -0.9]))
    made.deviation.fill_(0.2)
    return made


def test_the_size_of_the_head_does_not_count(network):
    volumes = torch.tensor([[[300.0, 250.0, 400.0]]])
    with torch.inference_mode():
        one, larger = (network(volumes * size, torch.zeros(1)) for size in (1, 1.3))
        other = network(volumes * torch.tensor([1.0, 1.3, 1.0]), torch.zeros(1))
    torch.testing.assert_close(one, larger)
    assert abs(other - one) > 1e-3


def test_a_region_that_was_not_found_counts_no_more_than_the_limit(network):
    scores = network.scores(torch.tensor([[300.0, 0.0, 400.0]]))
    assert scores[0, 1] == -network.limit
    assert scores.isfinite().all()


def test_sex_and_both_sexes(network):
    volumes = torch.tensor([[[300.0, 250.0, 400.0]]])
    with torch.inference_mode():
        both = network(volumes, torch.tensor([0.0, 1.0]))
        each = [network(volumes, torch.tensor([code])) for code in (0.0, 1.0)]
    torch.testing.assert_close(both, torch.cat(each))
    torch.testing.assert_close(both[1] - both[0], network.last.weight[0, -1])


def test_its_contract_survives_a_card_and_selects_by_name():
    card = dataclasses.replace(load("volumes").card, weights_sha256="0" * 64)
    again = ModelCard.from_toml(card.to_toml())
    assert again == card and isinstance(again.contract, VolumeContract)
    found = again.contract.select(RECORD | {"left_hippocampus": None, "more": 1.0})
    assert found[0] == 275 and np.isnan(found[8]) and len(found) == again.contract.shape[0]
    with pytest.raises(ModelError, match="'volumes' takes volumes, and no image"):
        _ = card.image_contract


@pytest.mark.parametrize("volumes", ["[]", "[1]"])
def test_a_contract_without_names_is_refused(volumes):
    text = load("volumes").card.to_toml()
    line = next(line for line in text.splitlines() if line.startswith("volumes = ["))
    with pytest.raises(ModelError, match="must be names of volumes"):
        ModelCard.from_toml(text.replace(line, f"volumes = {volumes}"))


def test_the_embedded_one_sees_atrophy():
    model = load("volumes")
    order = model.card.contract.select

    def age(**changes):
        volumes = np.array(order(RECORD | changes), np.float32)
        return model.predict(volumes, "F").predicted_age

    young = age()
    wide = {f"{side}_lateral_ventricle": 25.0 for side in ("left", "right")}
    thin = {f"{side}_cerebral_cortex": 235.0 for side in ("left", "right")}
    assert 20 < young < 80
    assert age(**wide) > young + 1
    assert age(**thin) > young + 2
    unknown = model.predict(np.array(order(RECORD), np.float32))
    assert unknown.sex_assumed
    with pytest.raises(ModelError, match="not finite"):
        model.predict(np.array(order({}), np.float32))
    with pytest.raises(ModelError, match=r"takes \(10,\) volumes"):
        model.predict(np.ones(3, np.float32))


def test_it_votes_where_its_card_says_so():
    cards = {name: load(name).card for name in embedded() if name in ("volumes", "wssa")}
    beside = cards | {"volumes": dataclasses.replace(cards["volumes"], in_ensemble=False)}
    assert voters(beside) == ["wssa"]
    assert voters({"volumes": beside["volumes"]}) == ["volumes"]  # nobody else is there
    inside = cards | {"volumes": dataclasses.replace(cards["volumes"], in_ensemble=True)}
    assert voters(inside) == ["volumes", "wssa"]
