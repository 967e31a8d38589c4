"""Checkpoints of the published form against a plain restatement of the published network."""

import io
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import __main__ as command
from models import registry
from models.brainrotvit.convert import network_of, state_dict
from models.checkpoints import read
from models.contract import ModelError

HIDDEN, LAYERS, HEADS, PATCH, SIZE, CLASSES = 24, 2, 2, 8, 16, 7
CONFIG = {
    "size": "base",
    "encoder": {"image_size": SIZE, "patch_size": PATCH, "hidden": HIDDEN, "layers": LAYERS,
                "heads": HEADS},
    "regressor": {"slices": 12, "hidden": HIDDEN, "kernels": [[3, 5], [2, 3], [2, 2]],
                  "dense": [16, 8]},
}  # fmt: skip
REGRESSOR = {
    "conv_block1.conv": (8, 1, 3, 5), "conv_block1.projection": (8, 1, 1, 1),
    "conv_block2.conv": (4, 8, 2, 3), "conv_block2.projection": (4, 8, 1, 1),
    "conv_block3.conv": (1, 4, 2, 2), "conv_block3.projection": (1, 4, 1, 1),
    "fc1": (16, 5 * 14), "fc1_bn": (16,), "fc2": (8, 16), "fc2_bn": (8,), "fc3": (1, 9),
}  # fmt: skip


def with_biases(shapes, random):
    table = {}
    for name, shape in shapes.items():
        table[f"{name}.weight"] = 0.4 * torch.randn(*shape, generator=random)
        table[f"{name}.bias"] = 0.4 * torch.randn(shape[0], generator=random)
    return table


def regressor():
    return with_biases(REGRESSOR, torch.Generator().manual_seed(1))


def transformers():
    """A ViTForImageClassification."""
    random = torch.Generator().manual_seed(2)
    shapes = {"vit.embeddings.patch_embeddings.projection": (HIDDEN, 3, PATCH, PATCH),
              "vit.layernorm": (HIDDEN,), "classifier": (CLASSES, HIDDEN)}  # fmt: skip
    for n in range(LAYERS):
        layer = f"vit.encoder.layer.{n}."
        for name in ("query", "key", "value"):
            shapes[f"{layer}attention.attention.{name}"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}attention.output.dense"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}intermediate.dense"] = (4 * HIDDEN, HIDDEN)
        shapes[f"{layer}output.dense"] = (HIDDEN, 4 * HIDDEN)
        shapes[f"{layer}layernorm_before"] = shapes[f"{layer}layernorm_after"] = (HIDDEN,)
    tokens = 1 + (SIZE // PATCH) ** 2
    return with_biases(shapes, random) | {
        "vit.embeddings.cls_token": torch.randn(1, 1, HIDDEN, generator=random),
        "vit.embeddings.position_embeddings": torch.randn(1, tokens, HIDDEN, generator=random),
    }


def adapted(magnitude=".weight"):
    """The same wrapped by peft, with DoRA of rank 8 on query and value, and what it becomes."""
    random, merged, table = torch.Generator().manual_seed(3), transformers(), {}
    for key, value in merged.items():
        layer, _, kind = key.rpartition(".")
        name = f"base_model.model.{layer}"
        if layer.endswith((".query", ".value")):
            table[f"{name}.base_layer.{kind}"] = value
            if kind == "weight":
                down = torch.randn(8, HIDDEN, generator=random)
                up = torch.randn(HIDDEN, 8, generator=random)
                length = torch.rand(HIDDEN, generator=random) + 0.5
                table[f"{name}.lora_A.default.weight"] = down
                table[f"{name}.lora_B.default.weight"] = up
                table[f"{name}.lora_magnitude_vector.default{magnitude}"] = length
                turned = value + (16 / 8) * up @ down
                merged[key] = turned / turned.norm(dim=1, keepdim=True) * length[:, None]
        elif layer == "classifier":
            table[f"{name}.original_module.{kind}"] = torch.zeros_like(value)
            table[f"{name}.modules_to_save.default.{kind}"] = value
        else:
            table[f"base_model.model.{key}"] = value
    return table, merged


def timm(state):
    """The same parameters by the names of timm, where query, key and value are one layer."""
    names = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
             "embeddings.patch_embeddings.projection": "patch_embed.proj",
             "encoder.layer": "blocks", "layernorm_before": "norm1", "layernorm_after": "norm2",
             "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1",
             "output.dense": "mlp.fc2", "layernorm": "norm", "classifier": "head"}  # fmt: skip
    table = {}
    for key, value in state.items():
        key = key.removeprefix("vit.")
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        if "attention.attention" not in key:
            table[key] = value
    for n in range(LAYERS):
        for kind in ("weight", "bias"):
            parts = [state[f"vit.encoder.layer.{n}.attention.attention.{name}.{kind}"]
                     for name in ("query", "key", "value")]  # fmt: skip
            table[f"blocks.{n}.attn.qkv.{kind}"] = torch.cat(parts)
    return table


def restated(vit, cnn, slices, sex):
    """Published forward pass of one brain, from the parameters; slices from -1 to 1."""

    def dense(x, table, name):
        return functional.linear(x, table[f"{name}.weight"], table[f"{name}.bias"])

    def norm(x, table, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * table[f"{name}.weight"] + table[f"{name}.bias"]

    photo = slices[:, None].expand(-1, 3, -1, -1)
    patches = "vit.embeddings.patch_embeddings.projection"
    x = functional.conv2d(photo, vit[f"{patches}.weight"], vit[f"{patches}.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([vit["vit.embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + vit["vit.embeddings.position_embeddings"]
    for n in range(LAYERS):
        layer = f"vit.encoder.layer.{n}."
        y = norm(x, vit, f"{layer}layernorm_before")
        query, key, value = (
            dense(y, vit, f"{layer}attention.attention.{name}")
            .reshape(len(y), -1, HEADS, HIDDEN // HEADS).permute(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )  # fmt: skip
        weights = (query @ key.transpose(2, 3) / (HIDDEN // HEADS) ** 0.5).softmax(-1)
        mixed = (weights @ value).permute(0, 2, 1, 3).flatten(2)
        x = x + dense(mixed, vit, f"{layer}attention.output.dense")
        y = norm(x, vit, f"{layer}layernorm_after")
        y = functional.gelu(dense(y, vit, f"{layer}intermediate.dense"))
        x = x + dense(y, vit, f"{layer}output.dense")
    x = norm(x, vit, "vit.layernorm").mean(1)[None, None]
    for n in (1, 2, 3):
        block = f"conv_block{n}."
        skip, x = x, functional.conv2d(x, cnn[f"{block}conv.weight"], cnn[f"{block}conv.bias"])
        x = functional.max_pool2d(functional.silu(x), 2, stride=1)
        skip = functional.conv2d(
            skip, cnn[f"{block}projection.weight"], cnn[f"{block}projection.bias"]
        )
        x = x + functional.interpolate(skip, size=x.shape[2:], mode="nearest")
    x = x.flatten(1)
    for n in (1, 2):
        x = functional.silu(norm(dense(x, cnn, f"fc{n}"), cnn, f"fc{n}_bn"))
    return dense(torch.cat([x, sex[:, None]], 1), cnn, "fc3").squeeze(1)


@pytest.fixture
def brain():
    return torch.rand(12, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("form", ["transformers", "timm", "peft", "older peft"])
@pytest.mark.parametrize("sex", [0.0, 1.0])
def test_converted_says_what_the_published_network_says(form, sex, brain):
    published, merged = transformers(), transformers()
    if form == "timm":
        published = timm(merged)
    elif form == "peft":
        published, merged = adapted()
    elif form == "older peft":
        published, merged = adapted(magnitude="")
    checkpoints = [{"model_state_dict": published, "epoch": 4}, {"model_state": regressor()}]
    network, config = network_of(checkpoints, CONFIG)
    assert config["encoder"]["classes"] == CLASSES
    with torch.inference_mode():
        expected = restated(merged, regressor(), 2 * brain - 1, torch.tensor([sex]))
        found = network(brain[None, None], torch.tensor([sex]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_published_size_takes_the_published_names():
    """Every parameter of the base network has a published name, and the sizes agree."""
    from models.brainrotvit.network import build

    with torch.device("meta"):
        base = build({"size": "base"}).state_dict()
    assert base["regressors.0.dense.0.0.weight"].shape == (512, 143 * 687)
    small = state_dict(transformers()) | state_dict(regressor())
    deep = {key for key in base if "blocks." not in key or int(key.split(".")[2]) < LAYERS}
    assert small.keys() == deep


def test_an_encoder_alone_is_no_brainrotvit():
    with pytest.raises(ModelError, match=r"give those of the encoder and of the regressor \(Miss"):
        network_of([transformers()], CONFIG)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ModelError, match="'fc9.weight', which no BrainRotViT has"):
        state_dict({"fc9.weight": torch.zeros(1)})


def test_an_incomplete_adapter_is_named():
    table, _ = adapted()
    layer = "base_model.model.vit.encoder.layer.1.attention.attention.value"
    del table[f"{layer}.lora_B.default.weight"]
    with pytest.raises(ModelError, match=r"layer\.1\.attention\.attention\.value' .* no complete"):
        state_dict(table)


# Files


def test_a_plain_pickle_gives_its_tensors_and_runs_nothing(tmp_path):
    """The regressor is published as one, beside the states of optimiser and generators."""

    class Harmful:
        def __reduce__(self):
            return (tmp_path / "harmed").touch, ()

    checkpoint = {
        "model_state": regressor(), "epoch": 3, "loss": np.float64(3.4), "other": Harmful(),
        "t_rng_st": torch.get_rng_state(), "n_rng_st": np.random.RandomState(1).get_state(),
    }  # fmt: skip
    found = read(pickle.dumps(checkpoint), "it")
    assert not (tmp_path / "harmed").exists()
    assert found["epoch"] == 3
    for name, value in regressor().items():
        assert torch.equal(found["model_state"][name], value)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04", pickle.dumps([1])])
def test_other_files_are_refused_in_one_line(content):
    with pytest.raises(ModelError, match=r"^mine\.pkl (cannot be read|holds no)") as caught:
        read(content, "mine.pkl")
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_model_that_the_registry_loads(tmp_path, monkeypatch, capsys, brain):
    stream = io.BytesIO()
    torch.save({"model_state_dict": adapted()[0]}, stream)
    (tmp_path / "vit.pth").write_bytes(stream.getvalue())
    (tmp_path / "cnn.pkl").write_bytes(pickle.dumps({"model_state": regressor()}))
    files = [str(tmp_path / name) for name in ("vit.pth", "cnn.pkl")]
    assert command.main(["convert", "brainrotvit", files[0], str(tmp_path / "out")]) == 2
    assert "do not make a BrainRotViT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    card = registry.read_card(registry.FOLDER / "brainrotvit" / "published.toml")
    assert card.network == {"size": "base"}
    monkeypatch.setattr(registry, "read_card", tiny(card))
    assert command.main(["convert", "brainrotvit", *files, str(tmp_path / "out")]) == 0
    monkeypatch.undo()
    model = registry.load("brainrotvit", weights=tmp_path / "out")
    assert model.card.license == "NOASSERTION"
    expected = restated(adapted()[1], regressor(), 2 * brain - 1, torch.tensor([1.0])).item()
    said = model.predict(brain.numpy(), sex="F")
    assert said.predicted_age == pytest.approx(expected, abs=1e-4)


def tiny(card):
    """A reader of cards that finds the published one, of a tiny network."""
    from dataclasses import replace

    contract = replace(card.contract, shape=(12, SIZE, SIZE))
    return lambda path: replace(card, network=CONFIG, contract=contract)


def test_the_published_card_covers_the_brain_of_the_template():
    card = registry.read_card(registry.FOLDER / "brainrotvit" / "published.toml")
    low = np.array(card.contract.affine) @ [-0.5, -0.5, -0.5, 1]
    high = np.array(card.contract.affine) @ [*(np.array(card.contract.shape) - 0.5), 1]
    np.testing.assert_allclose(low[:3], [-72.5, -107.5, -72.5])
    np.testing.assert_allclose(high[:3], [72.5, 73.5, 82.5])
