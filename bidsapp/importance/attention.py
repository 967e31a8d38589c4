"""Importance of every patch of every slice in BrainRotViT (Jalal et al. 2025).

The attention that the class token pays to each patch in the last layer (mean over the heads),
times what the patch contributes to the age: its token times the gradient of the residual CNN with
respect to the features of its slice, by guided backpropagation (Springenberg et al. 2015). Both
are scaled to 0 ... 1 within the slice, as published; the slices are stacked to a volume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bidsapp.importance.brain import Array, Brain, Unsuited
from models.brainrotvit.network import BrainRotViT, ViT
from models.prediction import SEX_CODES, BrainAgeModel

SLICES_AT_ONCE = 16


def suited(model: BrainAgeModel) -> bool:
    """Whether the model is a BrainRotViT."""
    return all(isinstance(network, BrainRotViT) for network in model.networks)


def attention(model: BrainAgeModel, brain: Brain) -> Array:
    """The map (X, Y, Z) in [0, 1] on the model's grid: the mean over the members.

    Raises
    ------
    Unsuited
        Where the model is not a BrainRotViT.
    """
    if not suited(model):
        raise Unsuited(
            f"attention is made for the slices of BrainRotViT, not for {model.card.name}"
        )
    image = model.tensor(brain.image)
    codes = list(SEX_CODES.values()) if brain.sex is None else [SEX_CODES[brain.sex]]
    maps = [
        _of_member(network, image, image.new_tensor(codes))
        for network in model.networks
        if isinstance(network, BrainRotViT)
    ]
    return np.where(brain.mask, np.mean(maps, axis=0), 0).astype(np.float32)


def _of_member(network: BrainRotViT, image: Tensor, sexes: Tensor) -> Array:
    slices = network.slices(image)[0]
    parts = [_tokens(network.encoder, part) for part in slices.split(SLICES_AT_ONCE)]
    tokens, attended = (torch.cat(each) for each in zip(*parts, strict=True))
    features = network.encoder.read(tokens)[None].requires_grad_(True)
    with torch.enable_grad(), _GuidedBackpropagation():
        age = network.regress(features, sexes).mean()
        gradient = torch.autograd.grad(age, features)[0][0]
    contribution = torch.einsum("sph,sh->sp", tokens[:, 1:], gradient)
    patches = _scaled(attended) * _scaled(contribution)
    height, width = network.encoder.grid
    if len(slices) == image.shape[-3]:
        volume = patches.view(-1, 1, height, width)
        whole = functional.interpolate(volume, size=list(image.shape[-2:]), mode="bilinear")[:, 0]
    else:
        volume = patches.view(1, 1, -1, height, width)
        whole = functional.interpolate(volume, size=list(image.shape[-3:]), mode="trilinear")[0, 0]
    return whole.detach().cpu().numpy()


@torch.no_grad()
def _tokens(encoder: ViT, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, 1 + patches, hidden) and attention (N, patches) in the last layer.

    It is that of the class token, as published, or the mean of those that are read.
    """
    found: list[Tensor] = []
    last: Any = encoder.blocks[-1].attention

    def look(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        query, key = (
            layer(inputs[0]).unflatten(2, (last.heads, -1)).transpose(1, 2)
            for layer in (last.query, last.key)
        )
        asking = slice(1, None) if encoder.feature == "patches" else slice(0, 1)
        weights = query[:, :, asking] @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        found.append(weights.softmax(-1).mean((1, 2))[:, 1:])

    handle = last.register_forward_hook(look)
    try:
        tokens = encoder.tokens(slices)
    finally:
        handle.remove()
    return tokens, found[0]


def _scaled(values: Tensor) -> Tensor:
    """Each row from its lowest to its highest value, 0 to 1."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-12)


class _GuidedSiLU(torch.autograd.Function):
    """SiLU that hands back positive gradients alone, and where it is active."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))
        return gradients[0].clamp(min=0) * slope * (x > 0)


class _GuidedBackpropagation(TorchFunctionMode):
    """Inside, every SiLU is a guided one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.silu:
            return _GuidedSiLU.apply(args[0])
        return func(*args, **(kwargs or {}))
