"""The models that ``python -m models.training`` can train; standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What the card of a trained model says that the training itself does not know.

    Attributes
    ----------
    intensity
        Rule of ``models.intensity`` by which its images are scaled.
    needs_sex
        Whether the network takes the sex beside the image.
    pooling
        Images are averaged over blocks of so many voxels before they are disturbed; for networks
        that would do it themselves, to save the time.
    two_stages
        Whether its encoder learns first, on slices (``models.training.two_stages``).
    """

    title: str
    summary: str
    citation: str
    intensity: str = "tissue_map"
    needs_sex: bool = False
    pooling: int = 1
    two_stages: bool = False


VOLUMES = Recipe(
    title="Regional volumes",
    summary="Ridge regression on the shares of ten regions' volumes in the forebrain, and sex:"
    " what a model of images must beat.",
    citation="This software.",
    needs_sex=True,
)

LINEAR = Recipe(
    title="Linear map",
    summary="Ridge regression on the tissue map at 4 mm, smoothed and averaged with its mirror"
    " image; no paper's, trained by this software.",
    citation="This software.",
)

MORPHOMETRY = Recipe(
    title="Morphometry",
    summary="Ridge regression on the tissue of every voxel of 4 mm after a warp to the template's"
    " tissue, smoothed and averaged with its mirror image; no paper's, trained by this software.",
    citation="This software.",
)

CLOSED_FORM = {"linear": LINEAR, "morphometry": MORPHOMETRY, "volumes": VOLUMES}
"""Fitted in one step."""

RECIPES: dict[str, Recipe] = {
    "wssa": Recipe(
        title="WSSA (Kancharla & Sinha 2024)",
        summary="A 3D CNN of 5.4 million parameters whose seven layers share one spatial"
        " attention module. Layers as published; with batch normalisation and at 4 mm, where its"
        " options say so. Weights trained by this software.",
        citation="Kancharla VK, Sinha N (2024). MRI volume-based robust brain age estimation using"
        " weight-shared spatial attention in 3D CNNs. arXiv:2407.06686."
        " https://doi.org/10.48550/arXiv.2407.06686",
    ),
    "compact": Recipe(
        title="Compact CNN at 4 mm",
        summary="A 3D CNN of 0.3 million parameters that sees 4 mm, with the attention of WSSA"
        " where its options say so; no paper's, trained by this software.",
        citation="This software.",
        pooling=2,
    ),
    "brainrotvit": Recipe(
        title="BrainRotViT small (Jalal et al. 2025)",
        summary="A vision transformer over sagittal slices, which learns to tell age decade and"
        " sex, and a residual CNN over its features; in a small size, for maps of tissue where"
        " its options say so. Weights trained by this software.",
        citation="Jalal W, Rahman MN, Rahman AH, Rahman MS (2025). BrainRotViT: Transformer-ResNet"
        " Hybrid for Explainable Modeling of Brain Aging from 3D sMRI. arXiv:2511.15188."
        " https://doi.org/10.48550/arXiv.2511.15188",
        needs_sex=True,
        pooling=2,
        two_stages=True,
    ),
}
