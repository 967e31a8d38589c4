"""Train BrainRotViT as its paper does: the encoder on slices, then the regressor on its features.

Stage 1 has the encoder tell age decade and sex from single sagittal slices (cross-entropy). Then
it is frozen, in the average of its weights, and stage 2 fits the residual CNN to the features of
several random views of each scan. Source: Jalal et al. 2025, sections on the two stages; the views
are ours, for the paper has thousands of scans and we a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.brainrotvit.network import BrainRotViT, PlacedPatches, Regressor
from models.coarse import EVENNESS
from models.contract import ModelError, Output
from models.prediction import SEX_CODES
from models.training.augmentation import view_of
from models.training.data import TrainingScan
from models.training.objectives import loss_of
from models.training.options import EncoderOptions, Options
from models.training.precision import autocast
from models.training.regression import State, descend, learning_rate

DECADES = 10
SMALLEST_DEVIATION = 1e-3
"""Of an entry of the feature matrix, beside the mean deviation of all of them."""
SMALLEST_SPREAD = 0.1
"""Added to the spread of each voxel over people, beside the mean of all of them."""


class TwoStages:
    """An epoch of either stage, as ``regression.train_fold`` calls it; one object a fold."""

    def __init__(self) -> None:
        self._features: Tensor | None = None

    def __call__(
        self,
        state: State,
        training: Sequence[TrainingScan],
        output: Output,
        epoch: int,
        options: Options,
    ) -> tuple[float, float]:
        """Train for one epoch; mean loss, and last learning rate."""
        assert options.encoder is not None
        torch.manual_seed(options.seed * 100_003 + epoch)
        rng = np.random.default_rng([options.seed, epoch])
        if epoch < options.encoder.epochs:
            if epoch == 0:
                centre(state, training, options)
            return _encoder_epoch(state, training, epoch, options, rng)
        if self._features is None:  # of a resumed run as well: they are not in the checkpoint
            self._features = freeze(state, training, options)
        return _regressor_epoch(state, self._features, training, output, epoch, options, rng)


def classes(scans: Sequence[TrainingScan]) -> Tensor:
    """Age decade and sex of each scan as one number below 20, (N,).

    Raises
    ------
    ModelError
        Where a sex is not known.
    """
    missing = [scan.name for scan in scans if scan.sex not in SEX_CODES]
    if missing:
        raise ModelError(f"This model needs the sex, which is not known of {', '.join(missing)}.")
    decades = [min(int(scan.age // 10), DECADES - 1) for scan in scans]
    codes = [int(SEX_CODES[str(scan.sex)]) for scan in scans]
    return torch.tensor([2 * decade + code for decade, code in zip(decades, codes)])


def _encoder_epoch(
    state: State,
    training: Sequence[TrainingScan],
    epoch: int,
    options: Options,
    rng: np.random.Generator,
) -> tuple[float, float]:
    network, wanted = _networks(state)[0], cast(EncoderOptions, options.encoder)
    labels = classes(training).to(options.device)
    network.train()
    losses = []
    scheduled = replace(options, learning_rate=wanted.learning_rate)
    for step, steps, batch in _batches(len(training), epoch, wanted.epochs, options, rng):
        rate = _set_rate(state, step, steps, scheduled)
        parts = []
        for index in batch:
            slices = network.slices(view_of(training[index], options, rng)[None, None])[0]
            chosen = rng.choice(len(slices), min(wanted.slices, len(slices)), replace=False)
            parts.append(slices[torch.from_numpy(chosen)])
        target = labels[batch].repeat_interleave(len(parts[0]))
        with autocast(options.device):
            found = network.encoder(torch.cat(parts))
        loss = functional.cross_entropy(found.float(), target)
        losses.append(descend(state, loss, step, options) * len(batch))
    return sum(losses) / len(training), rate


@torch.no_grad()
def centre(state: State, training: Sequence[TrainingScan], options: Options) -> None:
    """Give a centred network, and its average, the mean of the people's slices and their spread.

    Both are the same in mirrored slices, for views are mirrored half of the time. Embeddings that
    belong to places start from the principal components of the slices.
    """
    network, average = _networks(state)
    if not network.centred:
        return
    both = [each for scan in training for each in (scan.image, scan.stripped) if each is not None]
    slices = torch.cat([network.slices(each[None, None].to(options.device).float())
                        for each in both])  # fmt: skip
    mean = (slices.mean(0) + slices.mean(0).flip(0)) / 2
    spread = (slices - mean).square().mean(0).sqrt()
    spread = (spread + spread.flip(0)) / 2
    smallest = SMALLEST_SPREAD * spread.mean((0, 2, 3), keepdim=True)
    deviation = (spread + smallest) ** EVENNESS
    said = ((slices - mean) / deviation).square().mean((0, 1, 3, 4))  # by each tissue
    deviation *= (said / said.new_tensor(network.balance)).sqrt()[:, None, None]
    deviation *= ((slices - mean) / deviation).std()
    for each in (network, average):
        each.mean.copy_(mean)
        each.deviation.copy_(deviation)
    if network.encoder.placed:
        directions = components((slices - mean) / deviation, network.encoder.position.shape[2])
        for each in (network, average):
            cast(PlacedPatches, each.encoder.patches).start(directions)


def components(differences: Tensor, count: int) -> Tensor:
    """Principal components of single slices, (count, maps, height, width).

    Scores along them are 1 in root mean square over all.

    Parameters
    ----------
    differences
        (people, slices, maps, height, width), from the mean.
    """
    single = differences.flatten(0, 1).flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the random projection, which is no choice of the user
        axes = torch.pca_lowrank(single, count, center=False, niter=4)[2]
    axes = axes / (single @ axes).square().mean().sqrt()
    return axes.T.unflatten(1, differences.shape[2:])


@torch.no_grad()
def freeze(state: State, training: Sequence[TrainingScan], options: Options) -> Tensor:
    """Give the network the averaged encoder, and the regressor the spread of its features.

    Returns
    -------
    Tensor
        (scans, views, slices, hidden), of random views that depend on the seed alone.
    """
    network, average = _networks(state)
    network.encoder.load_state_dict(average.encoder.state_dict())
    network.eval()
    found = []
    for number, scan in enumerate(training):
        rng = np.random.default_rng([options.seed, number, 1])
        views = [
            network.encode(view[None, None])
            for _ in range(cast(EncoderOptions, options.encoder).views)
            for view in (view_of(scan, options, rng),)
        ]
        found.append(torch.cat(views))
    features = torch.stack(found)
    everything = features.flatten(0, 1)
    mean, deviation = everything.mean(0), everything.std(0)
    smallest = SMALLEST_DEVIATION * deviation.mean()
    for each in (*network.regressors, *average.regressors):
        assert isinstance(each, Regressor)
        if each.standardise:
            each.mean.copy_(mean)
            each.deviation.copy_((deviation if each.evened else deviation.mean()) + smallest)
    return features


def _regressor_epoch(
    state: State,
    features: Tensor,
    training: Sequence[TrainingScan],
    output: Output,
    epoch: int,
    options: Options,
    rng: np.random.Generator,
) -> tuple[float, float]:
    network, before = _networks(state)[0], cast(EncoderOptions, options.encoder).epochs
    codes = [SEX_CODES[str(scan.sex)] for scan in training]
    sexes = torch.tensor(codes, device=options.device)
    ages = torch.tensor([scan.age for scan in training], device=options.device)
    targets = (ages - output.offset) / output.scale
    network.eval()
    network.regressors.train()
    losses = []
    total = options.epochs - before
    for step, steps, batch in _batches(len(training), epoch - before, total, options, rng):
        rate = _set_rate(state, step, steps, options)
        views = rng.integers(features.shape[1], size=len(batch))
        found = network.told(features[batch, torch.from_numpy(views)], sexes[batch])
        loss = loss_of(found, targets[batch].expand_as(found), options)
        losses.append(descend(state, loss, step, options) * len(batch))
    return sum(losses) / len(training), rate


def _batches(
    scans: int, epoch: int, epochs: int, options: Options, rng: np.random.Generator
) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """Number of the step in its stage, steps of the stage, and whom it takes."""
    order = rng.permutation(scans)
    starts = range(0, scans, options.batch_size)
    for number, start in enumerate(starts):
        batch = order[start : start + options.batch_size]
        yield epoch * len(starts) + number, epochs * len(starts), batch


def _set_rate(state: State, step: int, steps: int, options: Options) -> float:
    rate = learning_rate(step, steps, options)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _networks(state: State) -> tuple[BrainRotViT, BrainRotViT]:
    """The network and its average."""
    return cast(BrainRotViT, state.network), cast(BrainRotViT, state.average)
