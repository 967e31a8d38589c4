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
    """

    title: str
    summary: str
    citation: str
    intensity: str = "tissue"
    needs_sex: bool = False
    pooling: int = 1


RECIPES: dict[str, Recipe] = {
    "wssa": Recipe(
        title="WSSA (Kancharla & Sinha 2024)",
        summary="A 3D CNN of 5.4 million parameters whose seven layers share one spatial"
        " attention module; architecture as published, weights trained by this software.",
        citation="Kancharla VK, Sinha N (2024). MRI volume-based robust brain age estimation using"
        " weight-shared spatial attention in 3D CNNs. arXiv:2407.06686."
        " https://doi.org/10.48550/arXiv.2407.06686",
    ),
    "compact": Recipe(
        title="Compact CNN at 4 mm",
        summary="A 3D CNN of 0.3 million parameters that sees 4 mm; no paper's, trained by this"
        " software.",
        citation="This software.",
        pooling=2,
    ),
}
