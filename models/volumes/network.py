"""Ridge regression of age on the volumes of regions: what an image model must beat.

Volumes enter as logarithms of their share in their own sum. So nothing but proportions count: not
the size of the head, and not how much fluid a skull stripping has left, which changes the volume
of "brain" from one laboratory to the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_SHARE = 1e-5
"""Of a region that the segmentation did not find."""


class VolumeRegression(nn.Module):
    """Linear in the standardised log shares of the volumes, and in the sex.

    Parameters
    ----------
    volumes
        How many there are.
    limit
        Standard scores beyond it count as it: one region that was segmented badly must not decide
        the age alone.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, volumes: int, limit: float = 4.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(volumes))
        self.register_buffer("deviation", torch.ones(volumes))
        self.last = nn.Linear(volumes + 1, 1)

    def scores(self, volumes: Tensor) -> Tensor:
        """(N, V) in ml -> standard scores of the log shares, (N, V)."""
        shares = log_shares(volumes)
        return ((shares - self.mean) / self.deviation).clamp(-self.limit, self.limit)

    def forward(self, volumes: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, V) in ml and (N,), M 0 and F 1 -> (N,); one brain may meet several sexes."""
        scores = self.scores(volumes[:, 0]).expand(len(sex), -1)
        return self.last(torch.cat([scores, sex[:, None].to(scores.dtype)], 1)).squeeze(1)


def log_shares(volumes: Tensor) -> Tensor:
    """(N, V) in ml -> logarithms of the shares in the sum, (N, V)."""
    return (volumes / volumes.sum(1, keepdim=True)).clamp(min=SMALLEST_SHARE).log()


def build(config: dict[str, Any]) -> VolumeRegression:
    """Make the network; ``config`` holds arguments of ``VolumeRegression``."""
    return VolumeRegression(**config)
