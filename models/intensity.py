"""What a model sees of a brain, by the rule its contract names: the same in training and in use.

Most rules scale intensities. ``tissue_map`` looks at none: where grey matter, white matter and
fluid lie is the same in every contrast, and a model that sees nothing else carries over to
scanners it was not trained on (docs/training.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from models.contract import ModelError

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
GREY, WHITE, HIGHEST = 0.6, 1.0, 1.5
TISSUE_MAP = "tissue_map"
OUTSIDE, CODES = 0.6, (1.0, 0.0, 0.4)
"""Values of the tissue map where there is no brain, and where a voxel is all of one tissue.

White matter stands out most: between scanners its border moves less than that of the cortex with
the fluid around it (docs/training.md)."""


def tissue(image: Array, levels: Mapping[str, float]) -> Array:
    """A broken line through (0, 0), (cortex, 0.6) and (white matter, 1), clipped to 0 ... 1.5.

    Anchored on the subject's own tissues, so that a scanner's contrast between grey and white
    matter is taken out and shape remains. Where the medians are not in T1 order only the
    white matter is anchored.
    """
    grey, white = levels["cortex"], levels["white_matter"]
    if not 0 < grey < white:
        return white_matter(image, levels)
    low = image * (GREY / grey)
    high = GREY + (image - grey) * ((WHITE - GREY) / (white - grey))
    return np.clip(np.where(image < grey, low, high), 0, HIGHEST).astype(np.float32)


def white_matter(image: Array, levels: Mapping[str, float]) -> Array:
    """White-matter median 1, clipped to 0 ... 1.5."""
    return np.clip(image / levels["white_matter"], 0, HIGHEST).astype(np.float32)


def fluid_bright(image: Array, levels: Mapping[str, float]) -> Array:
    """1.3 less ``tissue``: fluid and everything outside the brain bright, white matter dark.

    Max pooling hands on what is bright; so it hands on the fluid, in which age shows.
    """
    return (1.3 - tissue(image, levels)).astype(np.float32)


def mean(image: Array, levels: Mapping[str, float]) -> Array:
    """Divided by the mean over FSL's whole 182 x 218 x 182 grid (SFCN; Peng 2021).

    The brain lies inside the crop that the network sees, so that the crop has the same sum.
    """
    return (image * (182 * 218 * 182 / image.sum())).astype(np.float32)


def slices(image: Array, levels: Mapping[str, float]) -> Array:
    """Each sagittal slice from its lowest to its highest value, 0 to 1 (Jalal et al. 2025)."""
    low, high = (f(image, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return ((image - low) / np.where(high > low, high - low, 1)).astype(np.float32)


RULES: dict[str, Callable[[Array, Mapping[str, float]], Array]] = {
    "tissue": tissue,
    "white_matter": white_matter,
    "fluid_bright": fluid_bright,
    "mean": mean,
    "slices": slices,
}


def tissue_map(shares: Array) -> Array:
    """Grey matter 1, white matter 0, fluid 0.4 and what is outside 0.6, mixed by their shares.

    Parameters
    ----------
    shares
        (3, X, Y, Z), of ``TISSUES`` in each voxel, 0 to 1.
    """
    codes = np.array(CODES, np.float32) - np.float32(OUTSIDE)
    return (OUTSIDE + np.tensordot(codes, shares, 1)).astype(np.float32)


def view(
    image: Array, mask: Mask, shares: Array, levels: Mapping[str, float], rule: str
) -> tuple[Array, Mask]:
    """A brain as a rule shows it, and the voxels in which it shows anything.

    Parameters
    ----------
    image, mask
        Brain (X, Y, Z), bias-corrected, zero outside its mask.
    shares
        (3, X, Y, Z), of ``TISSUES``.
    levels
        As in ``scale``.
    rule
        ``tissue_map`` or a key of ``RULES``.

    Raises
    ------
    ModelError
        If there is no such rule.
    """
    if rule == TISSUE_MAP:
        return tissue_map(shares), shares.sum(0) > 0.5
    return scale(image, levels, rule), mask


def check_rule(rule: str) -> None:
    """Raise a ModelError if there is no such rule."""
    known = (*RULES, TISSUE_MAP)
    if rule not in known:
        raise ModelError(
            f"There is no intensity rule '{rule}', which a model's card asks for; known are "
            f"{', '.join(known)}."
        )


def scale(image: Array, levels: Mapping[str, float], rule: str) -> Array:
    """Apply the rule of a model's contract.

    Parameters
    ----------
    image
        Brain (X, Y, Z), bias-corrected, zero outside its mask.
    levels
        Median intensity of the scan's ``cortex`` and ``white_matter``.
    rule
        A key of ``RULES``.

    Raises
    ------
    ModelError
        If there is no such rule.
    """
    check_rule(rule)
    return RULES[rule](image, levels)
