"""How unlike its training images an image is, in the features of a model's networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Features = NDArray[np.float32]

AXES = 20
"""Principal axes that are kept; what is left is measured as one distance."""
FOLDS = 5


@dataclass(frozen=True)
class Reference:
    """Where the training images lie among all features.

    Attributes
    ----------
    mean
        (F,), of the features.
    axes
        (K, F), principal axes of the training images, orthonormal.
    deviations
        (K,), their standard deviations.
    rest
        Root mean square of what the axes leave of an image.
    distances
        (N,), ascending: of the training images, each from a reference that has not seen it.
    """

    mean: Features
    axes: Features
    deviations: Features
    rest: float
    distances: Features

    @property
    def sha256(self) -> str:
        """Hash of all that distances depend on."""
        found = hashlib.sha256()
        for name, value in vars(self).items():
            found.update(f"{name} {np.shape(value)}".encode())
            found.update(np.ascontiguousarray(value, np.float32).tobytes())
        return found.hexdigest()

    def distance(self, features: Features) -> float:
        """Distance of one image from the training images; two parts that are 1 on average.

        Their root sum of squares: Mahalanobis' distance along the axes (over the root of their
        number), and how much of the image they leave, over what they leave of a training image.
        """
        centred = features - self.mean
        scores = self.axes @ centred
        left = np.linalg.norm(centred - self.axes.T @ scores) / self.rest
        return float(np.hypot(np.sqrt(np.mean((scores / self.deviations) ** 2)), left))

    def relative(self, features: Features) -> float:
        """The distance over that which one in a hundred training images exceeds."""
        return self.distance(features) / float(np.quantile(self.distances, 0.99))


def fit(features: Features, axes: int = AXES) -> Reference:
    """A reference of training images, (N, F), which are in no order.

    Raises
    ------
    ValueError
        Where there are too few images.
    """
    if len(features) < 2 * FOLDS:
        raise ValueError(f"{len(features)} images are too few to say what is usual.")
    fold = np.arange(len(features)) % FOLDS
    held_out = [
        _fit(features[fold != each], axes).distance(image)
        for each in range(FOLDS)
        for image in features[fold == each]
    ]
    found = _fit(features, axes)
    distances = np.sort(held_out).astype(np.float32)
    return Reference(found.mean, found.axes, found.deviations, found.rest, distances)


def _fit(features: Features, axes: int) -> Reference:
    mean = features.mean(0)
    _, sizes, directions = np.linalg.svd(features - mean, full_matrices=False)
    kept = min(axes, len(features) // 3)
    deviations = np.maximum(sizes[:kept] / np.sqrt(len(features) - 1), 1e-6)
    rest = float(np.sqrt(np.sum(sizes[kept:] ** 2) / len(features)))
    return Reference(mean, directions[:kept], deviations, max(rest, 1e-6), np.zeros(0, np.float32))


def features_of(networks: Sequence[Any], image: Tensor) -> Features | None:
    """Last feature map of each network, averaged over space, one after the other, (F,).

    None of networks without maps.

    Parameters
    ----------
    image
        (1, 1, X, Y, Z), as ``BrainAgeModel.tensor`` makes it.
    """
    import torch

    if not all(hasattr(network, "attended") for network in networks):
        return None
    with torch.inference_mode():
        maps = [network.attended(image)[-1] for network in networks]
    found = [each.flatten(2).mean(2)[0].float().cpu().numpy() for each in maps]
    return np.concatenate(found)
