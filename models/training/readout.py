"""How the dense layers of WSSA start: centred, or fitted in closed form.

Ridge regression of age on its features: with a hundred people to learn from, gradient descent on
all of WSSA learns them by heart before it learns their age; what its convolutions see at their
random start already tells age, and a ridge on these features keeps to what generalises. It serves
alone or as a start for training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.wssa.network import WSSA, Standardise

PENALTY = 0.5
"""Of the ridge, relative to the mean squared length of a person's standardised features."""


@torch.no_grad()
def centre_readout(network: WSSA, images: Sequence[Tensor], batch_size: int) -> None:
    """Set the biases of the dense layers so that every unit is on for about half of the people.

    Features of aligned brains differ little between people, so that a unit with random weights is
    on for everybody or for nobody; once all of a narrow layer are off, the network says one age
    for ever. After the data-dependent start of Mishkin & Matas 2016 (LSUV), its mean alone.

    Parameters
    ----------
    images
        (X, Y, Z) each, of the training people.
    batch_size
        Batch normalisation goes by batches of so many, as in the first steps of training.
    """
    probe = copy.deepcopy(network).train()
    batches = torch.stack([image.float() for image in images])[:, None].split(batch_size)
    features = torch.cat([probe.features(batch) for batch in batches if len(batch) > 1])
    x = probe.standardise(features)
    for layer in list(network.dense)[:-1]:
        before = layer(x)
        layer.bias -= before.mean(0)
        x = network.activate(before - before.mean(0))


@torch.no_grad()
def fit_readout(network: WSSA, images: Sequence[Tensor], targets: Tensor) -> None:
    """Set the standardisation and the dense layers from images and their mirror images.

    Parameters
    ----------
    network
        With ``standardise``; its convolutions stay as they are.
    images
        (X, Y, Z) each.
    targets
        (N,), standardised ages.
    """
    assert isinstance(network.standardise, Standardise)
    network.eval()
    views = [
        view[None, None] for image in images for view in (image.float(), image.flip(0).float())
    ]
    features = torch.cat([network.features(view) for view in views])
    deviation = features.std(0)
    network.standardise.mean.copy_(features.mean(0))
    network.standardise.variance.copy_((deviation + 1e-2 * deviation.mean()).square())
    network.standardise.seen.fill_(len(features))
    standard = network.standardise(features).double()
    ages = targets.double().repeat_interleave(2)
    gram = standard @ standard.T
    penalty = PENALTY * gram.diagonal().mean()
    dual = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), ages - ages.mean())
    _pass_through(network, (standard.T @ dual).float(), float(ages.mean()))


def _pass_through(network: WSSA, weights: Tensor, level: float) -> None:
    """Let the dense layers carry one sum: its positive part in unit 0, the negative in 1."""
    first, *others = layers = cast(list[nn.Linear], list(network.dense))
    for layer in layers:
        layer.weight[:2] = 0
        layer.bias[:2] = 0
    first.weight[0], first.weight[1] = weights, -weights
    for layer in others[:-1]:
        layer.weight[0, 0] = layer.weight[1, 1] = 1
    last = others[-1]
    last.weight.zero_()
    whole = 1 + network.leak ** len(others)  # the other part comes through a little as well
    last.weight[0, 0], last.weight[0, 1] = 1 / whole, -1 / whole
    last.bias.fill_(level)
