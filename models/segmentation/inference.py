"""From a head at 2 mm to structures: normalise, look once at everything, once at the brain."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.segmentation.labels import HEMISPHERE_CHANNEL, OUTER_CSF

BOX = (96, 112, 96)
"""Field of view of a training image and of the second look, in voxels of 2 mm."""


def normalise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a head so that the 99th percentile of what is above its mean is 1, and clip at 2.

    The mean serves as a threshold between air and head, so that the amount of air around a head,
    or its absence in a stripped image, hardly moves the scale.
    """
    image = np.clip(image, 0, None)
    inside = image[image > image.mean()]
    high = float(np.percentile(inside, 99)) if inside.size else 1.0
    return np.clip(image / max(high, 1e-12), 0, 2).astype(np.float32)


@torch.inference_mode()
def segment(network: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of each structure, and of the left hemisphere.

    Parameters
    ----------
    network
        A :class:`models.segmentation.network.SegmentationUNet` in evaluation mode.
    image
        (X, Y, Z), RAS axes, about 2 mm; a whole head or a stripped brain in any unit.

    Returns
    -------
    (structures + 1, X, Y, Z) float32; the last channel is the probability of "left".
    Outside the box of the second look everything is background.
    """
    scaled = normalise(image)
    first = _probabilities(network, _volume(scaled))
    brain = first[2:HEMISPHERE_CHANNEL].sum(0) > 0.5
    if not brain.any():
        return first
    # median, not mean: islands of false brain in the neck must not pull the box down
    centre = [int(np.median(axis)) for axis in np.nonzero(brain)]
    box = tuple(
        slice(max(0, c - size // 2), min(n, c - size // 2 + size))
        for c, size, n in zip(centre, BOX, image.shape)
    )
    out = np.zeros_like(first)
    out[0] = 1
    out[(slice(None), *box)] = _with_mirror(network, _volume(normalise(image[box])))
    return out


def _volume(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image))[None, None]


def _with_mirror(network: nn.Module, volume: Tensor) -> NDArray[np.float32]:
    """Average over the image and its mirror image, in which left is right."""
    direct = _probabilities(network, volume)
    mirrored = _probabilities(network, volume.flip(2))[:, ::-1].copy()
    mirrored[HEMISPHERE_CHANNEL] = 1 - mirrored[HEMISPHERE_CHANNEL]
    return ((direct + mirrored) / 2).astype(np.float32, copy=False)


def _probabilities(network: nn.Module, volume: Tensor) -> NDArray[np.float32]:
    logits = _forward(network, volume)[0]
    structures = logits[:HEMISPHERE_CHANNEL].softmax(0)
    return torch.cat([structures, logits[HEMISPHERE_CHANNEL:].sigmoid()]).numpy()


def _forward(network: nn.Module, volume: Tensor) -> Tensor:
    """Logits; the volume is padded with air to the network's multiple and cropped back."""
    shape = volume.shape[2:]
    multiple = int(network.multiple)  # type: ignore[arg-type]
    padding = [(-n) % multiple for n in shape]
    padded = F.pad(volume, (0, padding[2], 0, padding[1], 0, padding[0]))
    padded = padded.contiguous(memory_format=torch.channels_last_3d)
    return network(padded)[..., : shape[0], : shape[1], : shape[2]]


def brain_mask(structures: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Brain with its ventricles, without the outer fluid; largest component, holes filled."""
    from scipy import ndimage

    inside = structures[:HEMISPHERE_CHANNEL].argmax(0)
    brain = inside > OUTER_CSF
    components, count = ndimage.label(brain)
    if count > 1:
        brain = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    return ndimage.binary_fill_holes(brain)


def intracranial_mask(
    structures: NDArray[np.float32], brain: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """What the skull encloses: ``brain`` and the fluid that touches it, holes filled."""
    from scipy import ndimage

    inside = structures[:HEMISPHERE_CHANNEL].argmax(0)
    within = brain | (inside == OUTER_CSF)
    return ndimage.binary_fill_holes(ndimage.binary_propagation(brain, mask=within))
