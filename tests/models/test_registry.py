"""Cards and weights on disk, and the ages a loaded model predicts from them."""

import dataclasses
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from models import __main__ as command
from models import card, embedded, known, load
from models.contract import InputContract, ModelCard, ModelError, Output, Uncertainty
from models.prediction import BrainAgeModel
from models.registry import load_networks, load_segmentation, save_weights
from models.wssa.network import build

SHAPE = (12, 14, 10)
NETWORK = {"channels": [2, 2, 2, 2, 2, 2, 4], "dense": [4, 3]}
CARD = ModelCard(
    name="mine",
    title="A model of one's own",
    version="1",
    summary="For tests.",
    license="CC0-1.0",
    citation="Nobody (2026).",
    contract=InputContract(
        template="MNI152NLin2009aSym",
        degrees_of_freedom=12,
        shape=SHAPE,
        affine=((2, 0, 0, -12), (0, 2, 0, -14), (0, 0, 2, -10), (0, 0, 0, 1)),
        skull_stripped=True,
        bias_corrected=True,
        intensity="white_matter",
        ages=(20, 80),
    ),
    output=Output(offset=50, scale=10),
    uncertainty=Uncertainty(standard_deviation=4, interval=(-6, 7)),
    architecture="wssa",
    network=NETWORK,
)


class Constant(nn.Module):
    """Says the same of every image, plus an effect of sex where it is told the sex."""

    def __init__(self, value, effect=0.0):
        super().__init__()
        self.value, self.effect = nn.Parameter(torch.tensor(value)), effect

    def forward(self, x, sex=None):
        return self.value.expand(len(x)) if sex is None else self.value + self.effect * sex


def networks(count):
    torch.manual_seed(0)
    return [build(NETWORK).eval() for _ in range(count)]


def install(folder, members=1, **changes):
    """Write weights and the card that goes with them; return the networks."""
    made = networks(members)
    folder.mkdir(exist_ok=True)
    sha256 = save_weights(folder / "weights.safetensors", made)
    this = dataclasses.replace(CARD, weights_sha256=sha256, **changes)
    (folder / "card.toml").write_text(this.to_toml())
    return made


def constant_model(*values, effect=0.0, needs_sex=False):
    contract = dataclasses.replace(CARD.contract, needs_sex=needs_sex)
    return BrainAgeModel(
        dataclasses.replace(CARD, contract=contract), [Constant(value, effect) for value in values]
    )


@pytest.fixture
def image():
    return np.random.default_rng(0).random(SHAPE, dtype=np.float32)


# Cards


def test_every_card_in_the_repository_is_valid_and_segmentation_is_no_brain_age_model():
    assert "segmentation" not in known()
    assert set(embedded()) <= set(known())
    for name, this in known().items():
        assert this.name == name


def test_a_folder_with_card_and_weights_is_all_a_model_needs(tmp_path):
    install(tmp_path / "mine")
    (tmp_path / "carded").mkdir()
    (tmp_path / "carded" / "card.toml").write_text(
        dataclasses.replace(CARD, name="carded").to_toml()
    )
    (tmp_path / "neither").mkdir()
    assert list(known(tmp_path)) == ["carded", "mine"]
    assert embedded(tmp_path) == ["mine"]


def test_an_unknown_model_is_refused_with_the_names_that_exist():
    for name in ("nosuch", "segmentation"):
        with pytest.raises(ModelError, match=f"no model named '{name}'.*sfcn"):
            card(name)


def test_a_known_model_without_weights_says_where_they_are():
    with pytest.raises(ModelError, match=r"not part of this software.*github\.com.*licence: MIT"):
        load("sfcn")


# Weight files


def test_half_precision_on_disk_single_precision_in_memory(tmp_path, image):
    (made,) = install(tmp_path / "mine")
    file = tmp_path / "mine" / "weights.safetensors"
    stored = safetensors.torch.load_file(file)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model = load("mine", root=tmp_path)
    (loaded,) = model.networks
    assert not loaded.training
    for ours, theirs in zip(made.parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert not theirs.requires_grad
        assert torch.equal(theirs, ours.half().float())
    age = model.predict(image).predicted_age
    expected = 50 + 10 * made(torch.from_numpy(image)[None, None]).item()
    assert age == pytest.approx(expected, abs=0.05)


def test_several_members_keep_their_order_and_are_averaged(tmp_path, image):
    made = install(tmp_path / "mine", members=11)  # member10 comes after member9, not after 1
    model = load("mine", root=tmp_path)
    with torch.inference_mode():
        x = torch.from_numpy(image)[None, None]
        ours = [network(x).item() for network in made]
        theirs = [network(x).item() for network in model.networks]
    assert len(set(ours)) == 11
    assert theirs == pytest.approx(ours, abs=5e-3)
    assert model.predict(image).predicted_age == pytest.approx(50 + 10 * np.mean(theirs), abs=1e-4)


def test_the_same_networks_make_the_same_file(tmp_path):
    first, second = (save_weights(tmp_path / name, networks(2)) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]  # no temporary file stays behind


def test_weights_that_half_precision_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    (network,) = networks(1)
    network.dense[0].bias.data[0] = 1e6
    with pytest.raises(ModelError, match=r"'dense\.0\.bias' do not fit torch\.float16"):
        save_weights(tmp_path / "weights.safetensors", [network])
    assert os.listdir(tmp_path) == []
    save_weights(tmp_path / "weights.safetensors", [network], torch.float32)


def test_a_wrong_hash_is_refused_with_one_clear_sentence(tmp_path):
    install(tmp_path / "mine")
    file = tmp_path / "mine" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match="are not those of their card") as caught:
        load("mine", root=tmp_path)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message


def test_a_card_that_names_no_hash_opens_no_weights(tmp_path):
    install(tmp_path / "mine")
    (tmp_path / "mine" / "card.toml").write_text(CARD.to_toml())
    with pytest.raises(ModelError, match="the card says nothing"):
        load("mine", root=tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    install(tmp_path / "mine", network=NETWORK | {"dense": [4, 4]})
    with pytest.raises(ModelError, match="do not fit the network of their card") as caught:
        load("mine", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    import hashlib

    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"not weights")
    sha256 = hashlib.sha256(b"not weights").hexdigest()
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_networks(file, lambda: build(NETWORK), sha256)


def test_ones_own_weights_are_a_folder_or_a_file_with_a_card_beside_it(tmp_path, image):
    install(tmp_path / "folder", name="other")
    own = tmp_path / "folder"
    ages = set()
    for weights in (own, own / "weights.safetensors"):
        model = load("anyname", weights=weights)
        assert model.card.name == "anyname"
        ages.add(model.predict(image).predicted_age)
    assert len(ages) == 1


def test_ones_own_weights_without_a_card_or_file_are_refused(tmp_path):
    install(tmp_path / "folder")
    (tmp_path / "folder" / "card.toml").unlink()
    with pytest.raises(ModelError, match="need their card beside them"):
        load("mine", weights=tmp_path / "folder")
    with pytest.raises(ModelError, match="There is no weight file"):
        load("mine", weights=tmp_path / "nowhere")


def test_an_unknown_architecture_is_refused(tmp_path):
    install(tmp_path / "mine", architecture="resnet")
    with pytest.raises(ModelError, match="no architecture named 'resnet'.*wssa"):
        load("mine", root=tmp_path)


def test_segmentation_is_loaded_by_the_same_checks(tmp_path, monkeypatch):
    monkeypatch.setattr("models.registry.network_builder", lambda name: build)
    install(tmp_path / "segmentation", network=NETWORK)
    network, table = load_segmentation(root=tmp_path)
    assert not network.training
    assert table["network"] == NETWORK
    (tmp_path / "segmentation" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="are not those of their card"):
        load_segmentation(root=tmp_path)


# Predictions


def test_prediction_of_one_member_is_the_cards_scale_and_interval(image):
    said = constant_model(0.3).predict(image)
    assert said.predicted_age == pytest.approx(53)
    assert said.standard_deviation == pytest.approx(4)
    assert said.interval == pytest.approx((47, 60))
    assert said.coverage == 0.9
    assert said.within_training_ages
    assert not said.sex_assumed


def test_members_that_disagree_widen_the_interval_in_proportion(image):
    said = constant_model(-0.3, 0.3).predict(image)  # 47 and 53 years, 3 from their mean
    assert said.predicted_age == pytest.approx(50)
    assert said.standard_deviation == pytest.approx(5)  # sqrt(4^2 + 3^2)
    assert said.interval == pytest.approx((50 - 6 * 5 / 4, 50 + 7 * 5 / 4))


def test_unknown_sex_is_averaged_and_said_to_be_assumed(image):
    model = constant_model(0.0, effect=0.4, needs_sex=True)
    man, woman, unknown = (model.predict(image, sex) for sex in ("M", "F", None))
    assert (man.predicted_age, woman.predicted_age) == pytest.approx((50, 54))
    assert unknown.predicted_age == pytest.approx(52)
    assert unknown.standard_deviation == pytest.approx(np.hypot(4, 2))
    assert [said.sex_assumed for said in (man, woman, unknown)] == [False, False, True]


def test_a_model_that_does_not_need_the_sex_never_assumes_it(image):
    assert not constant_model(0.0).predict(image, None).sex_assumed


@pytest.mark.parametrize(
    ("output", "age", "within"),
    [(0.0, None, True), (0.0, 79, True), (0.0, 19, False), (3.1, None, False), (3.1, 70, False)],
)
def test_ages_that_were_not_trained_on_are_flagged(image, output, age, within):
    assert constant_model(output).predict(image, age=age).within_training_ages is within


def test_the_age_does_not_change_the_prediction(image):
    model = constant_model(0.1)
    assert model.predict(image, age=25) == model.predict(image, age=75)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_refused(image, value):
    image[3, 4, 5] = value
    with pytest.raises(ModelError, match="'mine' holds values that are not finite"):
        constant_model(0.0).predict(image)


def test_an_image_off_the_grid_is_refused(image):
    with pytest.raises(ModelError, match=r"takes \(12, 14, 10\) voxels, not \(10, 14"):
        constant_model(0.0).predict(image.T)


def test_a_network_that_answers_nan_is_not_believed(image):
    with pytest.raises(ModelError, match="gave no finite age"):
        constant_model(float("nan")).predict(image)


def test_predictions_repeat_to_the_bit(tmp_path, image):
    install(tmp_path / "mine", members=2)
    first, second = (load("mine", root=tmp_path).predict(image) for _ in range(2))
    assert first == second


def test_any_memory_layout_and_precision_of_an_image_will_do(image):
    model = BrainAgeModel(CARD, networks(1))
    plain = model.predict(image)
    assert model.predict(np.asfortranarray(image)) == plain
    assert model.predict(image.astype(np.float64)) == plain


# Command line


def test_list_names_every_model_and_show_prints_its_card(capsys):
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(known())
    assert "not here" in next(line for line in lines if line.startswith("sfcn"))
    assert command.main(["show", "sfcn"]) == 0
    assert ModelCard.from_toml(capsys.readouterr().out) == card("sfcn")


def test_show_of_an_unknown_model_fails_in_one_line(capsys):
    assert command.main(["show", "nosuch"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
