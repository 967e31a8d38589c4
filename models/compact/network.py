"""A small CNN at 4 mm: no paper's, but hard to beat with a hundred brains to learn from.

At 4 mm a brain has an eighth of the voxels, and what is left is what several people share. Four
convolutions with batch normalisation, and one layer over all that remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from models.coarse import at_4_mm, smoothed, voxels_per_4_mm
from models.wssa.network import SpatialAttention

MOMENTUM = 0.02


class CompactCNN(nn.Module):
    """Convolutions of 3 x 3 x 3, each normalised, rectified and pooled, then one dense layer.

    Parameters
    ----------
    shape
        Of the images at 4 mm.
    channels
        Of the convolutions.
    dropout
        Before the dense layer.
    mirror
        In use, predict from the image and from its mirror image, and average.
    smoothing
        How often the image is smoothed by the mean of 3 x 3 x 3 voxels of 4 mm before all else.
    attention
        Whether WSSA's spatial attention, one module for all layers, follows each pooling.
    """

    def __init__(
        self,
        shape: Sequence[int] = (46, 55, 46),
        channels: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.3,
        mirror: bool = True,
        smoothing: int = 0,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.mirror = mirror
        self.smoothing = smoothing
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(wide_in, wide_out, 3, padding=1),
                # slow: what is kept for use must not hang on the last few batches
                nn.BatchNorm3d(wide_out, momentum=MOMENTUM),
            )
            for wide_in, wide_out in zip((1, *channels), channels, strict=False)
        )
        self.attention = SpatialAttention(3) if attention else nn.Identity()
        voxels = 1
        for side in shape:
            voxels *= side >> len(channels)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(channels[-1] * voxels, 1)

    def attended(self, x: Tensor) -> list[Tensor]:
        """The feature maps of every layer, first layer first (for Grad-CAM)."""
        maps: list[Tensor] = []
        x = smoothed(at_4_mm(x), self.smoothing)
        for block in self.blocks:
            x = self.attention(functional.max_pool3d(functional.relu(block(x)), 2))
            maps.append(x)
        return maps

    def places(self, shape: Sequence[int]) -> list[tuple[float, float]]:
        """Where the maps of ``attended`` lie: voxel j of a map at step * j + offset of the image.

        Parameters
        ----------
        shape
            Of the image.

        Returns
        -------
        list
            Step and offset, in voxels of the image, of each layer.
        """
        steps = [voxels_per_4_mm(shape) * 2**layer for layer in range(1, len(self.blocks) + 1)]
        return [(step, (step - 1) / 2) for step in steps]

    def regress(self, last: Tensor) -> Tensor:
        """From the last of ``attended`` to the output, (N,)."""
        return self.last(self.dropout(last.flatten(1))).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) at 2 or 4 mm -> (N,), age in the units of the card's output."""
        x = at_4_mm(x)
        found = self.regress(self.attended(x)[-1])
        if self.mirror and not self.training:
            found = (found + self.regress(self.attended(x.flip(2))[-1])) / 2
        return found


def build(config: dict[str, Any]) -> CompactCNN:
    """Make the network; ``config`` holds arguments of ``CompactCNN``."""
    return CompactCNN(**config)
