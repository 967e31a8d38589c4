"""Train the model of morphometry: the linear map, on modulated tissue in place of a tissue map."""

from __future__ import annotations

from functools import partial

from models.coarse import BALANCE, EVENNESS, POWER, SOLID
from models.contract import TISSUES, MorphometryContract
from models.training.closed_form import Method
from models.training.data import TrainingSet
from models.training.linear import fit, inputs
from models.training.recipes import MORPHOMETRY


def method(data: TrainingSet) -> Method:
    """The model of morphometry, for people whose modulated tissue was loaded."""
    shape = tuple(data.scans[0].image.shape)
    _, x, y, z = shape
    ages = (float(data.ages.min()), float(data.ages.max()))
    preparation = {"solid": SOLID, "power": POWER}
    return Method(
        name="morphometry",
        recipe=MORPHOMETRY,
        contract=MorphometryContract(data.template, TISSUES, (x, y, z), ages),
        inputs=inputs,
        fit=partial(
            fit, evenness=EVENNESS, balance=BALANCE, stretched=True, preparation=preparation
        ),
        network={"shape": shape, **preparation},
        architecture="linear",
    )
