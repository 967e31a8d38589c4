"""The label scheme: what the segmentation network tells apart, and how MUSE labels map onto it.

The network names a *structure* for each voxel and, separately, its hemisphere; the label image
written by the app joins the two (``LABELS``). Structure and hemisphere are learned apart so that a
mirrored head is a valid training image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Structure:
    """One structure of the network's output, before it is split into hemispheres.

    ``tissue`` is one of ``"CSF"`` (outer), ``"GM"``, ``"WM"``, ``"ventricle"`` or ``""``;
    ``muse`` lists the MUSE/MICCAI-2012 label numbers it is made of.
    """

    name: str
    abbreviation: str
    tissue: str
    sided: bool
    muse: tuple[int, ...]


@dataclass(frozen=True)
class Label:
    """One value of the label image (``dseg``)."""

    index: int
    name: str
    abbreviation: str
    tissue: str
    hemisphere: str
    color: str


STRUCTURES: tuple[Structure, ...] = (
    Structure("Background", "BG", "", False, (0,)),
    Structure("Outer cerebrospinal fluid", "CSF", "CSF", False, (1, 46)),
    Structure("Cerebral cortex", "CTX", "GM", True, tuple(range(100, 208))),
    Structure("Cerebral white matter", "WM", "WM", True, (69, *range(81, 96))),
    Structure("Lateral ventricle", "LV", "ventricle", True, (49, 50, 51, 52)),
    Structure("Third and fourth ventricle", "V34", "ventricle", False, (4, 11)),
    Structure(
        "Deep grey nuclei", "DGM", "GM", True, (23, 30, 36, 37, 55, 56, 57, 58, 59, 60, 75, 76)
    ),
    Structure("Hippocampus", "HIP", "GM", True, (47, 48)),
    Structure("Amygdala", "AMY", "GM", True, (31, 32)),
    Structure("Cerebellar cortex", "CBC", "GM", True, (38, 39, 71, 72, 73)),
    Structure("Cerebellar white matter", "CBW", "WM", True, (40, 41)),
    Structure("Brain stem and ventral diencephalon", "BS", "WM", False, (35, 61, 62)),
)
"""Structures in the order of the network's channels (channel 0 is background)."""

OUTER_CSF = 1
HEMISPHERE_CHANNEL = len(STRUCTURES)
"""The network's last channel is a logit: above 0 the voxel lies in the left hemisphere."""

# Okabe-Ito and neighbours: told apart by people with colour-vision deficiency.
_COLORS = {
    "CSF": ("#56B4E9", "#56B4E9"),
    "CTX": ("#E69F00", "#D08A00"),
    "WM": ("#F0F0F0", "#DCDCDC"),
    "LV": ("#0072B2", "#005A8E"),
    "V34": ("#004466", "#004466"),
    "DGM": ("#CC79A7", "#B4608F"),
    "HIP": ("#F0E442", "#D6CA2A"),
    "AMY": ("#D55E00", "#B84F00"),
    "CBC": ("#009E73", "#00835F"),
    "CBW": ("#A6D9C8", "#8FC7B4"),
    "BS": ("#999999", "#999999"),
}


def _label_table() -> tuple[Label, ...]:
    table: list[Label] = []
    for structure in STRUCTURES[1:]:
        sides = (("L", "Left "), ("R", "Right ")) if structure.sided else (("", ""),)
        for (hemisphere, prefix), color in zip(sides, _COLORS[structure.abbreviation]):
            name = prefix + (structure.name.lower() if prefix else structure.name)
            short = (
                f"{hemisphere}-{structure.abbreviation}"
                if hemisphere
                else (structure.abbreviation)
            )
            table.append(Label(len(table) + 1, name, short, structure.tissue, hemisphere, color))
    return tuple(table)


LABELS: tuple[Label, ...] = _label_table()
"""Values of the label image, 1 ... 19; 0 is background."""


def _join_table() -> NDArray[np.uint8]:
    """Lookup (structure, is_left) -> label index."""
    table = np.zeros((len(STRUCTURES), 2), np.uint8)
    for number, structure in enumerate(STRUCTURES[1:], start=1):
        for label in LABELS:
            if label.abbreviation.split("-")[-1] == structure.abbreviation:
                if label.hemisphere in ("", "R"):
                    table[number, 0] = label.index
                if label.hemisphere in ("", "L"):
                    table[number, 1] = label.index
    return table


_JOIN = _join_table()


def join_hemispheres(
    structure: NDArray[np.integer], is_left: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Label image from structure numbers and a left-hemisphere mask of the same shape."""
    return _JOIN[structure, is_left.astype(np.uint8)]


def indices(tissue: str | None = None, structure: str | None = None) -> tuple[int, ...]:
    """Label values of one tissue (``"GM"``) or of one structure (``"LV"``), both hemispheres."""
    return tuple(
        label.index
        for label in LABELS
        if (tissue is None or label.tissue == tissue)
        and (structure is None or label.abbreviation.split("-")[-1] == structure)
    )


def structures_from_muse(muse: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Structure number of each voxel of a MUSE label map.

    Raises
    ------
    ValueError
        If the map holds a number that no structure claims.
    """
    table = np.full(256, 255, np.uint8)
    for number, structure in enumerate(STRUCTURES):
        table[list(structure.muse)] = number
    known = (muse >= 0) & (muse < 255)
    found = table[np.where(known, muse, 255).astype(np.uint8)]
    if (found == 255).any():
        unknown = sorted({int(v) for v in np.unique(muse[found == 255])})
        raise ValueError(f"MUSE labels {unknown} belong to no structure")
    return found


def left_from_muse(muse: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Left-hemisphere mask of a MUSE label map; unsided voxels take the side nearest to them."""
    from scipy.ndimage import distance_transform_edt

    right_muse = (23, 31, 36, 38, 40, 47, 49, 51, 55, 57, 59, 61, 76, 81, 83, 85, 87, 89, 91, 93)
    left_muse = (30, 32, 37, 39, 41, 48, 50, 52, 56, 58, 60, 62, 75, 82, 84, 86, 88, 90, 92, 94)
    cortex = muse >= 100  # even numbers lie on the right
    right = np.isin(muse, right_muse) | (cortex & (muse % 2 == 0))
    left = np.isin(muse, left_muse) | (cortex & (muse % 2 == 1))
    nearest = distance_transform_edt(~(right | left), return_distances=False, return_indices=True)
    return left[tuple(nearest)]
