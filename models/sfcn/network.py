"""SFCN, the simple fully convolutional network (Peng et al. 2021, Medical Image Analysis).

Parameter names are those of the published weights, so that these load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Published: 40 bins of one year, the first from 42 to 43 years.
YOUNGEST, BINS = 42.0, 40


class SFCN(nn.Module):
    """3D CNN that gives a probability to each year of age; the output is their mean.

    Parameters
    ----------
    channels
        Of the convolutions: all but the last with kernel 3 and halved by pooling, the last with
        kernel 1.
    shape
        The image's grid, multiples of 32 voxels; published weights belong to 160 x 192 x 160,
        but their number does not depend on it.
    dropout
        Rate before the classifier.
    """

    centres: Tensor

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256, 256, 64),
        shape: Sequence[int] = (160, 192, 160),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        halvings = len(channels) - 1
        self.feature_extractor = nn.Sequential()
        for index, (wide_in, wide_out) in enumerate(zip((1, *channels), channels, strict=False)):
            block = _pooled_block if index < halvings else _last_block
            self.feature_extractor.add_module(f"conv_{index}", block(wide_in, wide_out))
        self.classifier = nn.Sequential()
        self.classifier.add_module(
            "average_pool", nn.AvgPool3d(tuple(side // 2**halvings for side in shape))
        )
        self.classifier.add_module("dropout", nn.Dropout(dropout))
        self.classifier.add_module(f"conv_{len(channels)}", nn.Conv3d(channels[-1], BINS, 1))
        # not part of the state dict: the published file does not hold it
        self.register_buffer("centres", YOUNGEST + 0.5 + torch.arange(BINS), persistent=False)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N, 40), the logarithm of the probability of each year of age."""
        return self.classifier(self.feature_extractor(x)).flatten(1).log_softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N,), the mean of the distribution, in years."""
        return (self.log_probabilities(x).exp() * self.centres).sum(1)


def _pooled_block(wide_in: int, wide_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(wide_in, wide_out, 3, padding=1),
        nn.BatchNorm3d(wide_out),
        nn.MaxPool3d(2),
        nn.ReLU(),
    )


def _last_block(wide_in: int, wide_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(wide_in, wide_out, 1), nn.BatchNorm3d(wide_out), nn.ReLU())


def build(config: dict[str, Any]) -> SFCN:
    """Make the network; ``config`` holds arguments of ``SFCN`` that differ from the published."""
    return SFCN(**config)
