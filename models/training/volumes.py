"""Train the model of volumes: ridge regression, with the folds of the networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import ModelError, VolumeContract
from models.prediction import SEX_CODES
from models.training.closed_form import Method
from models.training.data import TrainingScan, TrainingSet
from models.training.recipes import VOLUMES
from models.volumes.network import VolumeRegression, log_shares

SIDED = ("cerebral_cortex", "cerebral_white_matter", "lateral_ventricle", "deep_grey_nuclei",
         "hippocampus")  # fmt: skip
REGIONS = tuple(f"{side}_{name}" for name in SIDED for side in ("left", "right"))
"""Of the forebrain, for the hindbrain is cut off in many scans; without the amygdala, whose small
volume differs between laboratories by more than ageing changes it."""
PENALTIES = np.logspace(-1, 3, 17)


def method(data: TrainingSet) -> Method:
    """The model of volumes, for people whose volumes ``REGIONS`` were loaded."""
    return Method(
        name="volumes",
        recipe=VOLUMES,
        contract=VolumeContract(REGIONS, (data.ages.min(), data.ages.max()), needs_sex=True),
        inputs=inputs,
        fit=fit,
        network={"volumes": len(REGIONS)},
        in_ensemble=False,
    )


def inputs(scans: Sequence[TrainingScan]) -> tuple[Tensor, Tensor]:
    """Volumes (N, 1, V) in ml and sexes (N,).

    Raises
    ------
    ModelError
        Where a sex is not known.
    """
    missing = [scan.name for scan in scans if scan.sex not in SEX_CODES]
    if missing:
        raise ModelError(f"This model needs the sex, which is not known of {', '.join(missing)}.")
    codes = [SEX_CODES[str(scan.sex)] for scan in scans]
    return torch.stack([scan.image for scan in scans])[:, None], torch.tensor(codes)


def fit(
    scans: Sequence[TrainingScan], targets: NDArray[np.float64]
) -> tuple[VolumeRegression, float]:
    """Ridge regression, its penalty chosen by the error of leaving one scan out.

    Parameters
    ----------
    targets
        (N,), standardised ages.

    Returns
    -------
    VolumeRegression, float
        In evaluation mode; and the penalty.
    """
    from sklearn.linear_model import RidgeCV

    volumes, sexes = inputs(scans)
    network = VolumeRegression(len(REGIONS))
    shares = log_shares(volumes[:, 0])
    network.mean.copy_(shares.mean(0))
    network.deviation.copy_(shares.std(0, correction=0).clamp(min=1e-3))
    scores = network.scores(volumes[:, 0]).double().numpy()
    sex = sexes.double().numpy()
    spread = max(float(sex.std()), 1e-3)
    ridge = RidgeCV(PENALTIES).fit(np.c_[scores, sex / spread], targets)
    *of_volumes, of_sex = ridge.coef_
    with torch.no_grad():
        network.last.weight.copy_(torch.tensor([[*of_volumes, of_sex / spread]]))
        network.last.bias.fill_(float(ridge.intercept_))
    return network.eval(), float(ridge.alpha_)
