"""What a training run is made of. Standard library only, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from models.contract import Output


@dataclass(frozen=True)
class AugmentationOptions:
    """Which disturbances a training image goes through; each can be left out for an ablation.

    Attributes
    ----------
    flip
        Left and right changed, half of the time.
    translation
        Up to 2 voxels along each axis.
    affine
        Half of the time: rotation up to 3 degrees, scaling and shear up to 3 %.
    curve
        A random monotone intensity curve: another T1 weighting.
    bias
        What a bias correction leaves: a smooth factor of up to about 10 %.
    noise
        Gaussian, up to 5 % of white matter.
    erosion
        Patches of the brain's outermost voxels are lost, as another stripping loses them; of a
        tissue map, half of the time, all the fluid around the brain.
    blur
        Another resolution.
    """

    flip: bool = True
    translation: bool = True
    affine: bool = True
    curve: bool = True
    bias: bool = True
    noise: bool = True
    erosion: bool = True
    blur: bool = True

    @classmethod
    def none(cls) -> Self:
        """Images as they are, which is how the papers train."""
        return cls().without(*(each.name for each in fields(cls)))

    def without(self, *names: str) -> Self:
        """The same, less those named."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(**(kept | dict.fromkeys(names, False)))


OF_INTENSITIES = ("curve", "bias", "noise", "blur")
"""Augmentations that a tissue map has no use for."""
AUGMENTATIONS = tuple(each.name for each in fields(AugmentationOptions))


@dataclass(frozen=True)
class Parent:
    """The model that fine-tuning starts from; ``weights_sha256`` says which weights exactly.

    Attributes
    ----------
    output
        From what its networks say to years; the fine-tuned ones say the same.
    ages
        Youngest and oldest age it was trained on, in years.
    datasets
        It was trained on.
    """

    name: str
    version: str
    license: str
    weights_sha256: str
    output: Output
    ages: tuple[float, float]
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncoderOptions:
    """The first of two stages: slices are classified, and the encoder is then frozen.

    Attributes
    ----------
    epochs
        Of this stage, among the epochs of the run.
    learning_rate
        The highest one.
    slices
        Of each scan and epoch, at random.
    views
        Random views of each scan that the regressor learns from in the second stage.
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    slices: int = 12
    views: int = 6


@dataclass(frozen=True)
class Options:
    """A regression of age on images.

    Attributes
    ----------
    architecture
        The folder of ``models`` whose ``network.py`` builds the network.
    network
        Handed to its ``build``.
    intensity
        Rule of ``models.intensity`` by which images are scaled.
    networks
        Of each fold, from random starts of their own; a fold's prediction is their mean.
    learning_rate
        Of Adam: the highest one of the schedule.
    schedule
        ``cosine``: a linear rise over a tenth of the steps, then half a cosine down to 0;
        ``constant``: the same rate throughout.
    readout
        How the dense layers of WSSA start (``models.training.readout``). ``centred``: where every
        unit answers to half of the training people. ``ridge``: from a ridge regression; with no
        epochs that is all the training there is.
    loss
        Of the standardised age; ``smooth_l1`` is quadratic below a fifth of its deviation.
    helper
        A head beside WSSA that has its say in the loss (``models.training.objectives``).
        ``distribution``: it tells a distribution over ages.
    average
        Decay per step of the running average of the weights, which is what is kept; 0 for none.
    clip
        Largest norm of a step's gradient; 0 for no limit.
    parent
        What the networks start from; None for random weights.
    encoder
        How the encoder of a BrainRotViT is trained first; None: all of a network at once.
    dora
        Rank of the adapters that alone train in the encoder (``models.brainrotvit.dora``); 0: all
        of it trains.
    evaluate_every
        Epochs between two points of the held-out learning curve, which decides nothing.
    threads, device, evaluate_every
        Do not enter the result, or by rounding alone.
    """

    architecture: str = "wssa"
    network: dict[str, Any] = field(default_factory=dict)
    intensity: str = "tissue"
    needs_sex: bool = False
    folds: int = 3
    networks: int = 1
    epochs: int = 60
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    readout: Literal["random", "centred", "ridge"] = "random"
    loss: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    helper: Literal["", "distribution"] = ""
    average: float = 0.99
    clip: float = 1.0
    augmentation: AugmentationOptions = AugmentationOptions()
    parent: Parent | None = None
    encoder: EncoderOptions | None = None
    dora: int = 0
    seed: int = 1
    evaluate_every: int = 5
    threads: int = 1
    device: str = "cpu"
