"""Ways to train WSSA that the trainer does not have: objectives for ``train_fold``.

Mixing, simulated ageing and deep supervision help elsewhere; what they do on a hundred people,
docs/training.md says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.contract import Output
from models.training.data import TrainingScan
from models.training.objectives import Batch, Helped, Objective, loss_of
from models.training.options import Options


class Mixed(Objective):
    """Each image mixed with that of the next in age of its batch, and so are their ages.

    After mixup (Zhang et al. 2018), between neighbours as in C-Mixup (Yao et al. 2022).
    """

    def loss(self, network: nn.Module, heads: nn.ModuleList, batch: Batch) -> Tensor:
        """Of the mixtures."""
        order = batch.target.argsort()
        images, target = batch.inputs[0][order], batch.target[order]
        share = torch.from_numpy(batch.rng.beta(1, 1, len(target))).to(target)
        other = torch.arange(len(target)).roll(-1)
        other[-1] = max(0, len(target) - 2)
        of_image = share[:, None, None, None, None]
        mixed = images * of_image + images[other] * (1 - of_image)
        between = target * share + target[other] * (1 - share)
        return loss_of(network(mixed).float(), between, batch.options)


class Aged(Objective):
    """Each image made older or younger by up to ``REACH``, along the mean change with age.

    Atrophy simulated: the change of every voxel with age is that of a linear regression over the
    training people. What is made of the images after that is another objective's matter.
    """

    REACH = 0.6
    """Standard deviations of age, about 10 years."""

    def __init__(self, then: Objective | None = None) -> None:
        self.then = then or Objective()
        self.change: Tensor | None = None

    def heads(self, network: nn.Module) -> nn.ModuleList:
        """Those of the other objective."""
        return self.then.heads(network)

    def prepare(self, training: Sequence[TrainingScan], output: Output, options: Options) -> None:
        """The mean change of every voxel for a standard deviation of age; once."""
        if self.change is None:
            images = torch.stack([scan.image.to(options.device).float() for scan in training])
            ages = torch.tensor([scan.age for scan in training], device=options.device)
            target = (ages - ages.mean()) / output.scale
            self.change = torch.tensordot(target, images, 1) / target.square().sum()

    def loss(self, network: nn.Module, heads: nn.ModuleList, batch: Batch) -> Tensor:
        """Of the aged images."""
        assert self.change is not None
        years = batch.rng.uniform(-self.REACH, self.REACH, len(batch.target))
        older = torch.from_numpy(years).to(batch.target)
        aged = batch.inputs[0] + older[:, None, None, None, None] * self.change
        batch = replace(batch, inputs=(aged,), target=batch.target + older)
        return self.then.loss(network, heads, batch)


class DeepSupervision(Helped):
    """Ages are also told from the maps of the third to the sixth layer (Lee et al. 2015)."""

    LAYERS = slice(2, 6)

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """A linear head for each of these layers."""
        return nn.ModuleList(nn.Linear(width, 1) for width in channels[self.LAYERS])

    def help(self, heads: nn.ModuleList, means: Sequence[Tensor], batch: Batch) -> Tensor:
        """Mean loss of the heads' ages."""
        found = [head(mean)[:, 0] for head, mean in zip(heads, means[self.LAYERS])]
        return torch.stack([loss_of(each, batch.target, batch.options) for each in found]).mean()
