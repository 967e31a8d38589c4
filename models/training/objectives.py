"""What a step of training goes down: the loss of a batch.

Heads beside the network may have their say in it. They are trained with the network, and are not
in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from models.contract import ModelError, Output
from models.training.data import TrainingScan
from models.training.options import Options
from models.wssa.network import WSSA

SHARE = 0.3
"""Of what the helping heads say in the loss."""


def loss_of(found: Tensor, target: Tensor, options: Options) -> Tensor:
    """The loss of standardised ages that the options ask for."""
    if options.loss == "mse":
        return functional.mse_loss(found, target)
    if options.loss == "l1":
        return functional.l1_loss(found, target)
    return functional.smooth_l1_loss(found, target, beta=0.2)


@dataclass(frozen=True)
class Batch:
    """What a step has.

    Attributes
    ----------
    inputs
        Images (N, 1, X, Y, Z) and, where the network wants them, sexes (N,).
    target
        (N,) standardised ages.
    rng
        For what is drawn at random.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    options: Options
    rng: Generator


class Objective:
    """The loss of the network's ages, and nothing beside."""

    def heads(self, network: nn.Module) -> nn.ModuleList:
        """What is trained beside the network."""
        return nn.ModuleList()

    def prepare(self, training: Sequence[TrainingScan], output: Output, options: Options) -> None:
        """What must be known of the training people before an epoch."""

    def loss(self, network: nn.Module, heads: nn.ModuleList, batch: Batch) -> Tensor:
        """Of the images of a step."""
        return loss_of(network(*batch.inputs).float(), batch.target, batch.options)


class Helped(Objective):
    """Heads on the maps of WSSA's layers have their say, by ``SHARE``."""

    def heads(self, network: nn.Module) -> nn.ModuleList:
        """Those that ``make`` makes.

        Raises
        ------
        ModelError
            Where the network is not WSSA.
        """
        if not isinstance(network, WSSA):
            raise ModelError("--helper is for WSSA: other networks have no maps to help from.")
        return self.make(network.channels)

    def loss(self, network: nn.Module, heads: nn.ModuleList, batch: Batch) -> Tensor:
        """Of the network's ages, and ``SHARE`` of what ``help`` says."""
        assert isinstance(network, WSSA)
        maps = network.attended(batch.inputs[0])
        means = [each.mean((2, 3, 4)).float() for each in maps]
        own = loss_of(network.regress(maps[-1]).float(), batch.target, batch.options)
        return own + SHARE * self.help(heads, means, batch)

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """The heads, of the numbers of channels of the layers' maps."""
        raise NotImplementedError

    def help(self, heads: nn.ModuleList, means: Sequence[Tensor], batch: Batch) -> Tensor:
        """The heads' loss, of the layers' maps averaged over space, (N, channels) each."""
        raise NotImplementedError


class LabelDistribution(Helped):
    """The last map also tells a distribution over ages (as SFCN does; Peng et al. 2021)."""

    CENTRES = torch.linspace(-2.25, 2.25, 26)
    WIDTH = 0.25
    """In standard deviations of age, about 3 and 4 years."""

    def make(self, channels: Sequence[int]) -> nn.ModuleList:
        """One linear head."""
        return nn.ModuleList([nn.Linear(channels[-1], len(self.CENTRES))])

    def help(self, heads: nn.ModuleList, means: Sequence[Tensor], batch: Batch) -> Tensor:
        """Cross-entropy with a normal distribution about the age."""
        away = (self.CENTRES.to(batch.target) - batch.target[:, None]) / self.WIDTH
        return functional.cross_entropy(heads[0](means[-1]), (-(away**2) / 2).softmax(1))


def objective_of(options: Options) -> Objective:
    """The one that the options ask for."""
    return LabelDistribution() if options.helper == "distribution" else Objective()
