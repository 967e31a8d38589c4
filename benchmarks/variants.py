"""Ways to train WSSA that the trainer does not have: epochs for ``train_fold``.

Mixing, simulated ageing, deep supervision and label distribution help elsewhere; what they do on a
hundred people, docs/training.md says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from models.contract import Output
from models.training.augmentation import view_of
from models.training.data import TrainingScan
from models.training.options import Options
from models.training.precision import autocast
from models.training.regression import (
    State,
    descend,
    learning_rate,
    loss_of,
    renew_statistics,
)
from models.wssa.network import WSSA

SHARE = 0.3
"""Of what the helping heads say in the loss."""


class Plain:
    """One pass over the images with a step for each batch, as the trainer has it."""

    def __call__(
        self,
        state: State,
        training: Sequence[TrainingScan],
        output: Output,
        epoch: int,
        options: Options,
    ) -> tuple[float, float]:
        """Train for one epoch; mean loss, and last learning rate."""
        self.prepare(training, output, options)
        torch.manual_seed(options.seed * 100_003 + epoch)
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(training))
        batches = np.array_split(order, max(1, round(len(order) / options.batch_size)))
        state.network.train()
        losses = []
        for number, batch in enumerate(batches):
            step = epoch * len(batches) + number
            rate = learning_rate(step, options.epochs * len(batches), options)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            scans = [training[i] for i in batch]
            images = torch.stack([view_of(scan, options, rng) for scan in scans])[:, None]
            ages = torch.tensor([scan.age for scan in scans], device=options.device)
            target = (ages - output.offset) / output.scale
            with autocast(options.device):
                loss = self.loss(cast(WSSA, state.network), images, target, options, rng)
            losses.append(self.descend(state, loss, rate, step, options) * len(scans))
        if epoch + 1 == options.epochs:
            renew_statistics(state.average, training, options)
        return sum(losses) / len(training), rate

    def prepare(self, training: Sequence[TrainingScan], output: Output, options: Options) -> None:
        """What must be known of the training people before an epoch."""

    def loss(
        self, network: WSSA, images: Tensor, target: Tensor, options: Options, rng: Generator
    ) -> Tensor:
        """Of a batch of images (N, 1, X, Y, Z) and their standardised ages (N,)."""
        return loss_of(network(images).float(), target, options)

    def descend(
        self, state: State, loss: Tensor, rate: float, step: int, options: Options
    ) -> float:
        """One step of the optimiser; the loss before it."""
        return descend(state, loss, step, options)


class Mixed(Plain):
    """Each image mixed with that of the next in age of its batch, and so are their ages.

    After mixup (Zhang et al. 2018), between neighbours as in C-Mixup (Yao et al. 2022).
    """

    def loss(
        self, network: WSSA, images: Tensor, target: Tensor, options: Options, rng: Generator
    ) -> Tensor:
        """Of the mixtures."""
        order = target.argsort()
        images, target = images[order], target[order]
        share = torch.from_numpy(rng.beta(1, 1, len(target))).to(target)
        other = torch.arange(len(target)).roll(-1)
        other[-1] = max(0, len(target) - 2)
        of_image = share[:, None, None, None, None]
        mixed = images * of_image + images[other] * (1 - of_image)
        between = target * share + target[other] * (1 - share)
        return loss_of(network(mixed).float(), between, options)


class Aged(Plain):
    """Each image made older or younger by up to ``REACH``, along the mean change with age.

    Atrophy simulated: the change of every voxel with age is that of a linear regression over the
    training people.
    """

    REACH = 0.6
    """Standard deviations of age, about 10 years."""

    def __init__(self) -> None:
        self.change: Tensor | None = None

    def prepare(self, training: Sequence[TrainingScan], output: Output, options: Options) -> None:
        """The mean change of every voxel for a standard deviation of age; once."""
        if self.change is None:
            images = torch.stack([scan.image.to(options.device).float() for scan in training])
            ages = torch.tensor([scan.age for scan in training], device=options.device)
            target = (ages - ages.mean()) / output.scale
            self.change = torch.tensordot(target, images, 1) / target.square().sum()

    def loss(
        self, network: WSSA, images: Tensor, target: Tensor, options: Options, rng: Generator
    ) -> Tensor:
        """Of the aged images."""
        assert self.change is not None
        older = torch.from_numpy(rng.uniform(-self.REACH, self.REACH, len(target))).to(target)
        aged = images + older[:, None, None, None, None] * self.change
        return loss_of(network(aged).float(), target + older, options)


class Helped(Plain):
    """Heads beside the last layer have their say in the loss; in use they are not there."""

    def __init__(self) -> None:
        self.heads: nn.ModuleList | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def loss(
        self, network: WSSA, images: Tensor, target: Tensor, options: Options, rng: Generator
    ) -> Tensor:
        """Of the network's ages, and ``SHARE`` of what ``help`` says."""
        maps = network.attended(images)
        if self.heads is None:
            self.heads = self.make([each.shape[1] for each in maps]).to(images.device)
            self.optimizer = torch.optim.Adam(self.heads.parameters())
        helping = self.help([each.mean((2, 3, 4)).float() for each in maps], target, options)
        return loss_of(network.regress(maps[-1]).float(), target, options) + SHARE * helping

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """The heads, of the numbers of channels of the layers' maps."""
        raise NotImplementedError

    def help(self, means: Sequence[Tensor], target: Tensor, options: Options) -> Tensor:
        """The heads' loss, of the layers' maps averaged over space, (N, channels) each."""
        raise NotImplementedError

    def descend(
        self, state: State, loss: Tensor, rate: float, step: int, options: Options
    ) -> float:
        """One step of the heads as well."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = super().descend(state, loss, rate, step, options)
        self.optimizer.step()
        return before


class DeepSupervision(Helped):
    """Ages are also told from the maps of the third to the sixth layer (Lee et al. 2015)."""

    LAYERS = slice(2, 6)

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """A linear head for each of these layers."""
        return nn.ModuleList(nn.Linear(width, 1) for width in channels[self.LAYERS])

    def help(self, means: Sequence[Tensor], target: Tensor, options: Options) -> Tensor:
        """Mean loss of the heads' ages."""
        assert self.heads is not None
        found = [head(mean)[:, 0] for head, mean in zip(self.heads, means[self.LAYERS])]
        return torch.stack([loss_of(each, target, options) for each in found]).mean()


class LabelDistribution(Helped):
    """The last map also tells a distribution over ages (as SFCN does; Peng et al. 2021)."""

    CENTRES = torch.linspace(-2.25, 2.25, 26)
    WIDTH = 0.25
    """In standard deviations of age, about 3 and 4 years."""

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """One linear head."""
        return nn.ModuleList([nn.Linear(channels[-1], len(self.CENTRES))])

    def help(self, means: Sequence[Tensor], target: Tensor, options: Options) -> Tensor:
        """Cross-entropy with a normal distribution about the age."""
        assert self.heads is not None
        away = (self.CENTRES.to(target) - target[:, None]) / self.WIDTH
        return functional.cross_entropy(self.heads[0](means[-1]), (-(away**2) / 2).softmax(1))
