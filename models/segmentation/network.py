"""A 3D U-Net that works on 2 x 2 x 2 blocks of voxels.

The input is folded into blocks (eight channels at half the resolution) and the logits are unfolded
again, so that every convolution runs on an eighth of the voxels: on a CPU this is the difference
between half a second and four. The blocks' inner detail lives in the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 2
DETAIL = 128


class ConvBlock(nn.Sequential):
    """Two 3x3x3 convolutions, each with group normalisation and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv3d(channels, outputs, 3, padding=1),
                nn.GroupNorm(8, outputs),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


class SegmentationUNet(nn.Module):
    """U-Net (Ronneberger 2015) over folded voxels.

    Parameters
    ----------
    classes
        Number of output channels (structures and the hemisphere logit).
    channels
        Width of each level; the sides of the input must divide by ``2 ** len(channels)``.
    """

    def __init__(self, classes: int, channels: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.classes = classes
        widths = [BLOCK**3, *channels]
        self.encoder = nn.ModuleList(ConvBlock(a, b) for a, b in zip(widths, widths[1:]))
        self.decoder = nn.ModuleList(
            ConvBlock(a + b, a) for a, b in zip(channels[-2::-1], channels[:0:-1])
        )
        self.head = nn.Conv3d(channels[0], classes * BLOCK**3, 1)
        # where a boundary runs inside a block is told by the block's own eight intensities
        last = nn.Conv3d(DETAIL, classes * BLOCK**3, 1)
        nn.init.zeros_(last.weight)
        self.detail = nn.Sequential(
            nn.Conv3d(channels[0] + BLOCK**3, DETAIL, 1), nn.LeakyReLU(0.01, inplace=True), last
        )
        self.multiple = BLOCK ** len(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, classes, X, Y, Z) of images (N, 1, X, Y, Z)."""
        folded = features = fold(image)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            features = block(F.max_pool3d(features, 2) if level else features)
            skips.append(features)
        for block, skip in zip(self.decoder, skips[-2::-1]):
            features = block(torch.cat([F.interpolate(features, scale_factor=2.0), skip], 1))
        logits = self.head(features) + self.detail(torch.cat([features, folded], 1))
        return unfold(logits, self.classes)


def fold(image: Tensor) -> Tensor:
    """(N, C, X, Y, Z) -> (N, 8 C, X/2, Y/2, Z/2); inverse of :func:`unfold`."""
    n, c, x, y, z = image.shape
    blocks = image.reshape(n, c, x // BLOCK, BLOCK, y // BLOCK, BLOCK, z // BLOCK, BLOCK)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        n, c * BLOCK**3, x // BLOCK, y // BLOCK, z // BLOCK
    )


def unfold(features: Tensor, channels: int) -> Tensor:
    """(N, 8 C, X/2, Y/2, Z/2) -> (N, C, X, Y, Z)."""
    n, _, x, y, z = features.shape
    blocks = features.reshape(n, channels, BLOCK, BLOCK, BLOCK, x, y, z)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        n, channels, x * BLOCK, y * BLOCK, z * BLOCK
    )


def build(config: Mapping[str, Any]) -> SegmentationUNet:
    """The network of a card's ``[network]`` table."""
    return SegmentationUNet(int(config["classes"]), tuple(config["channels"]))
