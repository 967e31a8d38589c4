"""A loaded model: one card, one or several networks, and the ages they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from models.contract import ModelCard, ModelError, Prediction
from models.reference import Reference, features_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Box = tuple[slice, slice, slice]

# What a network that needs the sex is told.
SEX_CODES = {"M": 0.0, "F": 1.0}


@dataclass(frozen=True)
class BrainAgeModel:
    """A model that is ready to predict.

    Attributes
    ----------
    card
        What the model is, and the contract its images must keep.
    networks
        The members of the ensemble (say, one per fold), in evaluation mode on one device.
        A member maps images (N, 1, X, Y, Z) to N numbers, or maps of three tissues
        (N, 1, 3, X, Y, Z), or volumes (N, 1, V). One that needs the sex takes it as a second
        argument (N numbers, M 0 and F 1), and may be given one image and several sexes.
    reference
        Where the training images lie in the networks' features, if that is known.
    """

    card: ModelCard
    networks: list[nn.Module]
    reference: Reference | None = None

    @property
    def device(self) -> str:
        """Where the networks live."""
        return str(next(self.networks[0].parameters()).device)

    def tensor(self, image: np.ndarray) -> Tensor:
        """Check an image against the contract; as (1, 1, X, Y, Z) on the networks' device.

        What a model takes in place of an image, volumes (V,) or maps of tissue (3, X, Y, Z), gets
        two axes before it as well.

        Raises
        ------
        ModelError
            Where the shape is not the contract's, or a value is not finite.
        """
        import torch

        name, shape = self.card.name, self.card.contract.shape
        what = "volumes" if len(shape) == 1 else "image"
        if image.shape != shape:
            unit = "volumes" if len(shape) == 1 else "voxels"
            raise ModelError(f"The model '{name}' takes {shape} {unit}, not {image.shape}.")
        if not np.isfinite(image).all():
            raise ModelError(
                f"The {what} for the model '{name}' holds values that are not finite (NaN or Inf);"
                " check the preprocessing of this scan."
            )
        parameter = next(self.networks[0].parameters())
        array = np.ascontiguousarray(image, dtype=np.float32)
        return torch.from_numpy(array)[None, None].to(parameter.device, parameter.dtype)

    def predict(
        self, image: np.ndarray, sex: str | None = None, age: float | None = None
    ) -> Prediction:
        """Predict the age of one brain.

        The mean over the members is the prediction. Their variance is added to the variance
        of the card, and the card's interval is widened in the same proportion, so that a scan
        the members disagree on is known less well. Where the sex is wanted and unknown, both
        are tried and count as members do.

        Parameters
        ----------
        image
            (X, Y, Z) on the grid of ``card.contract``, intensities by its rule; or its maps of
            tissue, (3, X, Y, Z); or its volumes, (V,), in ml.
        sex
            "F", "M" or None for unknown.
        age
            The person's age in years, where known. It never reaches the networks; it only
            helps to tell whether such people were trained on.

        Raises
        ------
        ModelError
            Where the image breaks the contract, or a network's answer is not finite.
        """
        assumed = self.card.contract.needs_sex and sex is None
        ages = self.card.output.offset + self.card.output.scale * self._outputs(image, sex)
        if not np.isfinite(ages).all():
            raise ModelError(
                f"The model '{self.card.name}' gave no finite age; check its weights and card."
            )
        predicted = float(ages.mean())
        error = self.card.uncertainty
        deviation = float(np.hypot(error.standard_deviation, ages.std()))
        widening = deviation / error.standard_deviation
        youngest, oldest = self.card.contract.ages
        return Prediction(
            predicted_age=predicted,
            standard_deviation=deviation,
            interval=(
                predicted + widening * error.interval[0],
                predicted + widening * error.interval[1],
            ),
            coverage=error.coverage,
            within_training_ages=all(
                youngest <= each <= oldest for each in (predicted, age) if each is not None
            ),
            sex_assumed=assumed,
        )

    def unlikeness(self, image: np.ndarray) -> float | None:
        """Distance from the training images; 1 is what one in a hundred of these exceeds.

        None where the model has no reference.

        Parameters
        ----------
        image
            As for `predict`.
        """
        if self.reference is None:
            return None
        features = features_of(self.networks, self.tensor(image))
        return None if features is None else self.reference.relative(features)

    def ages(self, images: Tensor, sex: str | None = None) -> Tensor:
        """Predicted ages as a function that gradients flow through: the mean over the members.

        Parameters
        ----------
        images
            (N, 1, X, Y, Z), each as from `tensor`.
        sex
            Of all of them, where it is wanted and known; else the mean over both.

        Returns
        -------
        Tensor
            (N,), years.
        """
        return self._mean_age(self.networks, images, sex)

    def near(self, image: Tensor, sex: str | None = None) -> Callable[[Tensor, Box], Tensor]:
        """`ages` for many images that differ from one image in a box alone.

        A network that knows what it need not compute again has a method ``near(image)``, which
        returns itself as a function of images and ``box``; others compute everything.

        Parameters
        ----------
        image
            (1, 1, X, Y, Z).

        Returns
        -------
        Callable
            From images (N, 1, X, Y, Z) and the box to years, (N,).
        """
        functions = []
        for network in self.networks:
            prepare = getattr(network, "near", None)
            functions.append(prepare(image) if prepare else lambda *x, box, f=network: f(*x))

        def ages(images: Tensor, box: Box) -> Tensor:
            return self._mean_age((partial(each, box=box) for each in functions), images, sex)

        return ages

    def _mean_age(
        self, functions: Iterable[Callable[..., Tensor]], images: Tensor, sex: str | None
    ) -> Tensor:
        """Years, (N,), from functions that answer as the networks do."""
        import torch

        inputs: list[tuple[Tensor, ...]] = [(images,)]
        if self.card.contract.needs_sex:
            codes = list(SEX_CODES.values()) if sex is None else [SEX_CODES[sex]]
            inputs = [(images, images.new_full((len(images),), code)) for code in codes]
        found = [function(*each) for function in functions for each in inputs]
        output = self.card.output
        return output.offset + output.scale * torch.stack(found).float().mean(0)

    def _outputs(self, image: np.ndarray, sex: str | None) -> np.ndarray:
        """What the members say, (members, sexes tried), float64."""
        import torch

        inputs = [self.tensor(image)]
        if self.card.contract.needs_sex:
            codes = list(SEX_CODES.values()) if sex is None else [SEX_CODES[sex]]
            inputs.append(torch.tensor(codes).to(inputs[0]))
        with torch.inference_mode():
            outputs = [network(*inputs) for network in self.networks]
        return torch.stack(outputs).detach().double().cpu().numpy()
