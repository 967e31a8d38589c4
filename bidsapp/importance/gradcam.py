"""Grad-CAM (Selvaraju et al. 2017) at every convolution of a CNN, and merged.

The feature maps of a layer are added up, each weighted by the mean gradient of the predicted age
with respect to it. The original takes the positive part, since a class has no opposite; here the
absolute value counts, for what makes a brain look younger matters as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bidsapp.importance.brain import Array, Brain, Unsuited
from models.prediction import BrainAgeModel


def suited(model: BrainAgeModel) -> bool:
    """Whether the networks show their layers: by ``attended``, ``regress`` and ``places``."""
    return all(hasattr(network, "places") for network in model.networks)


def gradcam(model: BrainAgeModel, brain: Brain) -> list[Array]:
    """One map (X, Y, Z) for each layer, the first layer first: the mean over the members.

    The unit is years times the unit of the layer's features: compare places, not layers.

    Raises
    ------
    Unsuited
        Where the networks do not show their layers.
    """
    if not suited(model):
        raise Unsuited(
            f"gradcam is made for CNNs that show their layers; {model.card.name} is not"
        )
    image = model.tensor(brain.image)
    found = []
    for network in model.networks:
        found.append(_layers(network, image))
        if getattr(network, "mirror", False):
            found.append([layer[::-1] for layer in _layers(network, image.flip(2))])
    scale = abs(model.card.output.scale)
    means = (np.mean(layers, axis=0) for layers in zip(*found, strict=True))
    return [np.where(brain.mask, scale * layer, 0).astype(np.float32) for layer in means]


def merged(layers: list[Array]) -> Array:
    """The mean of the layers that tell places apart, each scaled to a highest value of 1."""
    varied = [layer / layer.max() for layer in layers if _tells_places_apart(layer)]
    return np.mean(varied, axis=0) if varied else np.zeros_like(layers[0])


def _tells_places_apart(layer: Array) -> bool:
    inside = layer[layer > 0]
    return inside.size > 0 and float(np.ptp(inside)) > 1e-6 * float(inside.max())


def _layers(network: Any, image: Tensor) -> list[Array]:
    image = image.detach().requires_grad_(True)  # so that there is a graph: weights are frozen
    with torch.enable_grad():
        maps = network.attended(image)
        gradients = torch.autograd.grad(network.regress(maps[-1]).sum(), maps)
    shape = tuple(image.shape[2:])
    found = []
    for features, gradient, (step, offset) in zip(
        maps, gradients, network.places(shape), strict=True
    ):
        weights = gradient.mean((2, 3, 4), keepdim=True)
        cam = (weights * features).sum(1).abs()[0].detach().cpu().numpy()
        on_image = ndimage.affine_transform(
            cam, np.eye(3) / step, -offset / step, output_shape=shape, order=1, mode="nearest",
            output=np.float32,
        )  # fmt: skip
        found.append(on_image)
    return found
