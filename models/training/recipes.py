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
    """

    title: str
    summary: str
    citation: str
    intensity: str = "tissue"
    needs_sex: bool = False


RECIPES: dict[str, Recipe] = {
    "wssa": Recipe(
        title="WSSA (Kancharla & Sinha 2024)",
        summary="A 3D CNN of 5.4 million parameters whose seven layers share one spatial"
        " attention module; architecture as published, weights trained by this software.",
        citation="Kancharla VK, Sinha N (2024). MRI volume-based robust brain age estimation using"
        " weight-shared spatial attention in 3D CNNs. arXiv:2407.06686."
        " https://doi.org/10.48550/arXiv.2407.06686",
    ),
}
