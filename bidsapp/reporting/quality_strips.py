"""Quality figures in words, and as strips of all scans of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bidsapp.reporting.svg import Svg

SOUND, FLAGGED, QUIET = "#0072B2", "#D55E00", "#444"
_WIDTH, _HEIGHT, _INSET, _MIDDLE = 400, 64, 14, 24


@dataclass(frozen=True)
class Quantity:
    """How a quality figure is named, and what it means when it is out of its accepted range."""

    title: str
    unit: str
    digits: int
    meaning: str
    warning: str


QUALITY = {
    "registration_correlation": Quantity(
        "Correlation with the template", "", 3, "1 is a perfect match",
        "The scan may not lie well on the template",
    ),
    "mask_overlap": Quantity(
        "Overlap with the template's brain", "", 3, "Dice, 1 is a perfect match",
        "The brain outline may not match the template",
    ),
    "brain_volume_ml": Quantity(
        "Brain volume", "ml", 0, "inside the brain mask",
        "The brain volume is implausible: the brain may not have been found correctly",
    ),
    "affine_determinant": Quantity(
        "Change of volume by registration", "", 2, "determinant of the affine",
        "The registration shrinks or stretches the brain implausibly",
    ),
    "affine_shear": Quantity(
        "Shear of the registration", "", 3, "0 is none",
        "The registration shears the brain implausibly",
    ),
    "largest_voxel_mm": Quantity(
        "Largest voxel side", "mm", 1, "as scanned",
        "The resolution is too coarse",
    ),
    "cnr": Quantity(
        "Contrast to noise", "", 2, "cortex against white matter, higher is better",
        "Grey and white matter are hard to tell apart",
    ),
    "snr": Quantity(
        "Signal to noise", "", 1, "in white matter, higher is better",
        "The image is noisy",
    ),
    "cjv": Quantity(
        "Joint variation", "", 2, "of cortex and white matter, lower is better",
        "The image is noisy or unevenly bright",
    ),
    "mask_asymmetry": Quantity(
        "Asymmetry of the brain mask", "", 3, "against its mirror image, 0 is none",
        "A part of one side may be missing, or the brain lies askew",
    ),
    "rotation_degrees": Quantity(
        "Rotation by the registration", "degrees", 0, "of the head from straight",
        "The orientation labels may be wrong, or the registration has gone astray",
    ),
    "tissue_deviation": Quantity(
        "Deviation of the tissue volumes", "", 2, "from those of reference people, 1 is usual",
        "The volumes of the brain's parts are unusual: they may not have been found correctly",
    ),
    "side_difference": Quantity(
        "Difference of left and right", "", 3, "in volume, 0 is none",
        "Left and right differ much: a part of the brain may be missing",
    ),
    "largest_cut_cm2": Quantity(
        "Largest flat cut", "cm²", 0, "where the brain mask ends on one plane",
        "The brain may be cut off by the field of view or a mask",
    ),
    "weakest_slice": Quantity(
        "Weakest slice", "", 2, "against its neighbours, 1 is best",
        "Slices may be missing or dark",
    ),
    "edge_sharpness": Quantity(
        "Sharpness of edges", "", 2, "between cortex and white matter, higher is better",
        "The image is blurred, by motion or thick slices",
    ),
    "noise": Quantity(
        "Noise", "", 3, "in white matter, lower is better",
        "The image is noisy, or has ghosts",
    ),
    "bias_field_ratio": Quantity(
        "Strength of the bias field", "", 2, "bright over dark, 1 is none",
        "The image is very unevenly bright",
    ),
    "clipped_share": Quantity(
        "Clipped share of the brain", "", 4, "at its highest intensity, 0 is none",
        "Bright parts of the brain are clipped",
    ),
    "efc": Quantity(
        "Entropy focus criterion", "", 3, "lower is better", "The image is blurred or has ghosts",
    ),
    "fber": Quantity(
        "Foreground to background", "", 2, "energy, logarithm, higher is better",
        "The background is bright",
    ),
    "ghosting": Quantity(
        "Ghosting", "", 3, "in the air beside the head, lower is better",
        "There are ghosts beside the head: the person may have moved",
    ),
    "model_disagreement_years": Quantity(
        "Disagreement of the models", "years", 1, "highest less lowest predicted age",
        "The models disagree",
    ),
    "years_within_trained_ages": Quantity(
        "Distance from the ends of the trained ages", "years", 1, "negative is outside",
        "The predicted age lies outside the ages that the models were trained on",
    ),
    "distance_from_training": Quantity(
        "Distance from the training images", "", 2, "1 is exceeded by one in a hundred of these",
        "The image is unlike those that the models were trained on",
    ),
}  # fmt: skip


def titled(name: str) -> Quantity:
    """What a figure is called; one that is not known here by its name."""
    return QUALITY.get(name) or Quantity(
        name.replace("_", " ").capitalize(), "", 3, "", ""
    )  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """One scan: its value, its name, whether the figure is flagged, and the page it leads to."""

    value: float
    name: str
    flagged: bool = False
    link: str = ""


def strip_figure(title: str, unit: str, digits: int, dots: Sequence[Dot]) -> str:
    """Draw one figure of all scans: dots, flagged ones large; the median and the middle half.

    Returns
    -------
    str
        An SVG to stand in a page, where its dots are links; 400 units wide.
    """
    values = np.array([dot.value for dot in dots])
    low, high = float(values.min()), float(values.max())
    unit = f" {unit}" if unit else ""
    quartiles = np.percentile(values, (25, 50, 75))
    said = f"{title}: {len(dots)} scans, median {quartiles[1]:.{digits}f}{unit}"
    svg = Svg(_WIDTH, _HEIGHT, f"{said}, {low:.{digits}f} to {high:.{digits}f}.", "group")

    def x(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return _INSET + (_WIDTH - 2 * _INSET) * share

    svg.line(x(quartiles[0]), _MIDDLE, x(quartiles[2]), _MIDDLE, "#d5e7f5", 40)
    svg.line(x(quartiles[1]), _MIDDLE - 20, x(quartiles[1]), _MIDDLE + 20, "#00507f", 2)
    for number, dot in enumerate(sorted(dots, key=lambda dot: dot.flagged)):
        # spread evenly, not at random: the same picture in every run
        y = _MIDDLE + 30 * ((number * 0.61803) % 1 - 0.5)
        name = f"{dot.name}: {dot.value:.{digits}f}{unit}{', flagged' * dot.flagged}"
        color, radius = (FLAGGED, 5.5) if dot.flagged else (SOUND, 3.2)
        svg.dot(x(dot.value), y, color, radius, dot.link, name)
    ends = ((low, "start"), (high, "end")) if high > low else ((low, "middle"),)
    for value, anchor in ends:
        svg.text(x(value), _HEIGHT - 3, f"{value:.{digits}f}{unit}", anchor=anchor, color=QUIET)
    return svg.written()
