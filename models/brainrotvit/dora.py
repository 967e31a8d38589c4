"""Weight-decomposed low-rank adaptation of linear layers (DoRA; Liu et al. 2024, ICML).

A weight is the product of a magnitude per output and a direction. Fine-tuning trains the
magnitudes, and moves the directions by a product of two thin matrices: with few people to learn
from, a hundredth of the parameters. Merged again, the network is what it was, with other weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Network = TypeVar("Network", bound=nn.Module)
QUERY_AND_VALUE = ("query", "value")
"""What BrainRotViT adapts, with rank 8, alpha 16 and dropout 0.1 (Jalal et al. 2025)."""


class DoRALinear(nn.Module):
    """A frozen linear layer with trainable magnitude and low-rank change of direction.

    y = magnitude * (W + scale * up @ down) / |W + scale * up @ down| @ x + bias, the norm taken
    over the inputs of each output. It starts as the layer it was made of.

    Parameters
    ----------
    linear
        The layer; its parameters are frozen.
    rank
        Of the change of direction.
    alpha
        ``scale`` is alpha / rank.
    dropout
        Rate on the input of the low-rank branch, in training.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.magnitude = nn.Parameter(linear.weight.norm(dim=1))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        weight = self.linear.weight
        # a constant to the gradient, as the paper proposes (section 4.3)
        norm = (weight + self.scale * self.up @ self.down).norm(dim=1).detach()
        low = functional.linear(functional.linear(self.dropout(x), self.down), self.up)
        y = functional.linear(x, weight) + self.scale * low
        y = y * (self.magnitude / norm).to(y.dtype)
        return y if self.linear.bias is None else y + self.linear.bias

    def merged(self) -> nn.Linear:
        """The linear layer that does the same."""
        with torch.no_grad():
            self.linear.weight.copy_(
                merged_weight(self.linear.weight, self.down, self.up, self.magnitude, self.scale)
            )
        return self.linear.requires_grad_(True)


def merged_weight(
    weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor, scale: float
) -> Tensor:
    """The adapted weight, (outputs, inputs).

    Parameters
    ----------
    weight
        (outputs, inputs), frozen.
    down, up
        (rank, inputs) and (outputs, rank).
    magnitude
        (outputs,).
    """
    turned = weight + scale * up @ down
    return turned * (magnitude / turned.norm(dim=1))[:, None]


def adapt(
    network: Network,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.1,
    names: Collection[str] = QUERY_AND_VALUE,
) -> Network:
    """Freeze a network, and give its linear layers of these names trainable adapters, in place.

    Raises
    ------
    ValueError
        Where it has no such layer.
    """
    network.requires_grad_(False)
    places = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not places:
        raise ValueError(f"the network has no linear layer named {' or '.join(names)}")
    for parent, name in places:
        setattr(parent, name, DoRALinear(getattr(parent, name), rank, alpha, dropout))
    return network


def merge(network: Network) -> Network:
    """Put plain linear layers back that do what the adapted ones do, in place; all trainable."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DoRALinear):
                setattr(parent, name, child.merged())
    return network.requires_grad_(True)
