"""From the checkpoints that the authors of BrainRotViT publish to this network.

They are two: the encoder, a ViT with the parameter names of ``transformers`` (as ``peft`` saves
it, with DoRA adapters on query and value, or merged) or of ``timm`` (query, key and value as one
layer), and the residual CNN with its dense layers. Theirs has no licence: nothing of it is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from models.brainrotvit.dora import merged_weight
from models.brainrotvit.network import BrainRotViT, build
from models.checkpoints import tensors
from models.contract import ModelError

DORA_SCALE = 16 / 8
"""Published alpha over rank; the checkpoint does not hold it."""
PARTS = ("model_state_dict", "model_state", "state_dict")
"""Where training checkpoints keep the parameters."""

_WRAPPERS = r"^(?:_orig_mod\.|base_model\.model\.)*(?:vit\.)?"
_NAMES = {
    # transformers
    r"embeddings\.cls_token": "encoder.class_token",
    r"embeddings\.position_embeddings": "encoder.position",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"encoder.patches.\1",
    r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)": r"encoder.blocks.\1.norm1.\2",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(\w+)\.(\w+)":
        r"encoder.blocks.\1.attention.\2.\3",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)":
        r"encoder.blocks.\1.attention.out.\2",
    r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)": r"encoder.blocks.\1.norm2.\2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)": r"encoder.blocks.\1.mlp.0.\2",
    r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)": r"encoder.blocks.\1.mlp.2.\2",
    r"layernorm\.(\w+)": r"encoder.norm.\1",
    r"classifier\.(\w+)": r"encoder.head.\1",
    # timm
    r"cls_token": "encoder.class_token",
    r"pos_embed": "encoder.position",
    r"patch_embed\.proj\.(\w+)": r"encoder.patches.\1",
    r"blocks\.(\d+)\.(norm[12])\.(\w+)": r"encoder.blocks.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.(query|key|value)\.(\w+)": r"encoder.blocks.\1.attention.\2.\3",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"encoder.blocks.\1.attention.out.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(\w+)": r"encoder.blocks.\1.mlp.0.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(\w+)": r"encoder.blocks.\1.mlp.2.\2",
    r"norm\.(\w+)": r"encoder.norm.\1",
    r"head\.(\w+)": r"encoder.head.\1",
    # the residual CNN
    r"conv_block1\.conv\.(\w+)": r"regressors.0.convs.0.conv.\1",
    r"conv_block2\.conv\.(\w+)": r"regressors.0.convs.1.conv.\1",
    r"conv_block3\.conv\.(\w+)": r"regressors.0.convs.2.conv.\1",
    r"conv_block1\.projection\.(\w+)": r"regressors.0.convs.0.project.\1",
    r"conv_block2\.projection\.(\w+)": r"regressors.0.convs.1.project.\1",
    r"conv_block3\.projection\.(\w+)": r"regressors.0.convs.2.project.\1",
    r"fc1\.(\w+)": r"regressors.0.dense.0.0.\1",
    r"fc1_bn\.(\w+)": r"regressors.0.dense.0.1.\1",
    r"fc2\.(\w+)": r"regressors.0.dense.1.0.\1",
    r"fc2_bn\.(\w+)": r"regressors.0.dense.1.1.\1",
    r"fc3\.(\w+)": r"regressors.0.last.\1",
}  # fmt: skip


def network_of(
    checkpoints: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> tuple[BrainRotViT, dict[str, Any]]:
    """The network of published checkpoints.

    Parameters
    ----------
    checkpoints
        What the files hold, encoder and regressor in any order.
    config
        As for ``build``; the number of classes is that of the checkpoint.

    Returns
    -------
    BrainRotViT, dict
        In evaluation mode, and the config to build it again.

    Raises
    ------
    ModelError
        Where a parameter is missing, unknown, or of another size.
    """
    found: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        found |= state_dict(checkpoint)
    encoder = dict(config.get("encoder", {}))
    if (head := found.get("encoder.head.weight")) is not None:
        encoder["classes"] = len(head)
    config = {**config, "encoder": encoder}
    network = build(config)
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        fault = str(error).splitlines()[1].strip().rstrip(".")
        raise ModelError(
            f"The checkpoints do not make a BrainRotViT; give those of the encoder and of the"
            f" regressor ({fault[:200]})."
        ) from None
    return network.eval(), config


def state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters by the names of this network.

    Parameters
    ----------
    checkpoint
        Parameters by their published names, or a training checkpoint that holds them.

    Raises
    ------
    ModelError
        Where a name is not known.
    """
    inside = next((checkpoint[part] for part in PARTS if part in checkpoint), checkpoint)
    named = {re.sub(_WRAPPERS, "", key): value for key, value in tensors(inside).items()}
    named = _query_key_value(_without_adapters(named))
    found = {_name(key): value.float() for key, value in named.items()}
    if "encoder.patches.weight" in found:
        _take_plain_slices(found)
    return found


def _name(key: str) -> str:
    for pattern, name in _NAMES.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    raise ModelError(f"The checkpoint has a parameter '{key}', which no BrainRotViT has.")


def _without_adapters(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge what ``peft`` keeps beside the layers it adapts."""
    plain = {
        re.sub(r"\.(base_layer|modules_to_save\.default)\b", "", key): value
        for key, value in named.items()
        if not re.search(r"\.(lora_\w+|original_module)\.", key)
    }
    for layer in [key.partition(".lora_A.")[0] for key in named if ".lora_A." in key]:
        names = "lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default"
        down, up, magnitude = (
            named.get(f"{layer}.{name}", named.get(f"{layer}.{name}.weight")) for name in names
        )
        if down is None or up is None or magnitude is None:
            raise ModelError(f"The adapter of '{layer}' in the checkpoint is no complete DoRA.")
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = merged_weight(weight, down, up, magnitude, DORA_SCALE)
    return plain


def _query_key_value(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the fused layer of ``timm`` into its three thirds."""
    split = {}
    for key, value in named.items():
        if ".qkv." in key:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                split[key.replace(".qkv.", f".{part}.")] = third
        else:
            split[key] = value
    return split


def _take_plain_slices(found: dict[str, Tensor]) -> None:
    """Published slices run from -1 to 1, ours from 0 to 1: the first layer takes up 2 x - 1."""
    weight = found["encoder.patches.weight"]
    bias = found["encoder.patches.bias"] - weight.sum(dim=(1, 2, 3))
    found |= {"encoder.patches.weight": 2 * weight, "encoder.patches.bias": bias}
