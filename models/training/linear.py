"""Train the linear map: ridge regression on voxels of 4 mm, with the folds of the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.coarse import at_4_mm
from models.linear.network import LinearMap
from models.training.closed_form import Method
from models.training.data import TrainingScan, TrainingSet
from models.training.export import contract_of
from models.training.recipes import LINEAR

PENALTIES = np.logspace(-1, 0, 5)
"""In units of the mean squared length of a person's difference from the mean image. Lower ones win
in some folds by little, and move more with every rescan of a head."""
SMALLEST_SPREAD = 1e-3
"""Standard deviation over people below which a voxel says nothing: it lies outside every brain."""


def method(data: TrainingSet) -> Method:
    """The linear map, for people whose tissue maps were loaded."""
    contract = contract_of(data, LINEAR.intensity, (data.ages.min(), data.ages.max()))
    return Method("linear", LINEAR, contract, inputs, fit, {"shape": _shape(data.scans)})


def _shape(scans: Sequence[TrainingScan]) -> tuple[int, ...]:
    """Of the images at 4 mm."""
    image = scans[0].image
    return (*image.shape[:-3], *at_4_mm(image[None, None].float().flatten(1, -4)).shape[2:])


def inputs(scans: Sequence[TrainingScan]) -> tuple[Tensor]:
    """Images (N, 1, X, Y, Z), or (N, 1, C, X, Y, Z)."""
    return (torch.stack([scan.image.float() for scan in scans])[:, None],)


def fit(
    scans: Sequence[TrainingScan],
    targets: NDArray[np.float64],
    evenness: float = 0.0,
    balance: Sequence[float] = (),
    stretched: bool = False,
    preparation: Mapping[str, Any] | None = None,
) -> tuple[LinearMap, float]:
    """Ridge regression, its penalty chosen by the error of leaving one scan out.

    It is chosen with whole maps, and the weights are then fitted to whole and to stripped ones:
    both of a person tell the same age, and to leave out one of them would leave out nobody.

    Parameters
    ----------
    scans
        N of them.
    targets
        (N,), standardised ages.
    evenness
        Power of its standard deviation over people by which a voxel is divided: with 0 those that
        vary most, by the ventricles, say most, with 1 all may say as much.
    balance
        How much the maps of several tissues may say, by the variance of each, in sum; empty: as
        they are.
    stretched
        Whether what the penalty has drawn to the mean is drawn out again, as ages that leave one
        out say.
    preparation
        Arguments of the network, of what it does to maps.

    Returns
    -------
    LinearMap, float
        In evaluation mode; and the penalty, in the units of ``PENALTIES``.
    """
    from sklearn.linear_model import Ridge

    network = LinearMap(_shape(scans), **(preparation or {}))
    whole = _prepared(network, [scan.image for scan in scans])
    stripped = [scan.stripped for scan in scans if scan.stripped is not None]
    both = np.concatenate([whole, _prepared(network, stripped)]) if stripped else whole
    spread = both.std(0)
    used = spread > SMALLEST_SPREAD
    used[..., (used.shape[-3] + 1) // 2 :, :, :] = False  # the other side says the same
    divisor = np.where(used, spread, 1) ** evenness
    for tissue, share in enumerate(balance):
        part = (whole[:, tissue] / divisor[tissue])[:, used[tissue]]
        divisor[tissue] *= np.sqrt(part.var(0).sum() / share)
    whole, both = whole[:, used] / divisor[used], both[:, used] / divisor[used]
    unit = whole.var(0).sum()
    penalty, slope = _penalty_and_slope(whole, targets, unit)
    stretch = max(1.0, slope) if stretched else 1.0
    ages = np.concatenate([targets, targets[: len(stripped)]])
    ridge = Ridge(penalty * unit * len(both) / len(whole)).fit(both, ages)
    weight, middle = torch.zeros(used.shape, dtype=torch.float64), float(targets.mean())
    weight[torch.from_numpy(used)] = torch.from_numpy(stretch * ridge.coef_ / divisor[used])
    _set(network, weight, middle + stretch * (float(ridge.intercept_) - middle))
    return network.eval(), penalty


def _penalty_and_slope(
    x: NDArray[np.float64], targets: NDArray[np.float64], unit: float
) -> tuple[float, float]:
    """The penalty that errs least on those left out, and the slope of true on foretold ages.

    The slope is above 1 where the penalty shrinks ages towards their mean.
    """
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(PENALTIES * unit, scoring="neg_mean_squared_error", store_cv_results=True)
    chosen = int(np.flatnonzero(ridge.fit(x, targets).alphas == ridge.alpha_)[0])
    slope = float(np.polyfit(ridge.cv_results_[:, chosen], targets, 1)[0])
    return float(PENALTIES[chosen]), slope


@torch.no_grad()
def _prepared(network: LinearMap, images: Sequence[Tensor]) -> NDArray[np.float64]:
    """(N, [C,] X, Y, Z), as the network sees the images."""
    found = [network.prepared(image[None, None].float())[0] for image in images]
    return torch.stack(found).double().numpy()


@torch.no_grad()
def _set(network: LinearMap, weight: Tensor, bias: float) -> None:
    """Give a network weights that were fitted to one side, half of them to each."""
    both = (weight + weight.flip(-3)) / 2
    network.gain.fill_(float(both.abs().max().clamp(min=1e-12)))
    network.weight.copy_(both / network.gain)
    network.bias.fill_(bias)
