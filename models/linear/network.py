"""A weighted sum of the tissue map at 4 mm: what can be said of age without a network's layers.

The image is smoothed, for folds of the cortex lie elsewhere in everybody, and averaged with its
mirror image, for both sides age alike. What is left is linear, so that the weights are a map of
where tissue makes a brain look older or younger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.coarse import amounts, at_4_mm, smoothed


class LinearMap(nn.Module):
    """``gain`` times the sum of ``weight`` over the prepared image, plus ``bias``.

    The largest weight is 1, so that a weight file of small floats holds them all; ``gain`` and
    ``bias`` are buffers, which it holds exactly.

    Parameters
    ----------
    shape
        Of the images at 4 mm; with another axis before it where there are several of a person.
    smoothing
        How often the image is averaged over 3 x 3 x 3 voxels of 4 mm.
    solid, power
        Of ``models.coarse.amounts``, for maps of tissue.
    """

    gain: Tensor
    bias: Tensor

    def __init__(
        self,
        shape: Sequence[int] = (46, 55, 46),
        smoothing: int = 1,
        solid: float = 0.0,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.smoothing, self.solid, self.power = smoothing, solid, power
        self.weight = nn.Parameter(torch.zeros(tuple(shape)))
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def prepared(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) at 2 or 4 mm -> (N, *shape): smoothed, left and right the same.

        Several images of a person come as (N, 1, C, X, Y, Z).
        """
        coarse = smoothed(
            amounts(at_4_mm(x.flatten(1, -4)), self.solid, self.power), self.smoothing
        )
        return ((coarse + coarse.flip(2)) / 2).reshape(len(x), *self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N,), age in the card's units."""
        weighted = self.prepared(x) * self.weight
        return weighted.flatten(1).sum(1) * self.gain + self.bias


def build(config: dict[str, Any]) -> LinearMap:
    """Make the network; ``config`` holds arguments of ``LinearMap``."""
    return LinearMap(**config)
