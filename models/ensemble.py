"""Several models' predictions of one scan become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.contract import ModelCard, Prediction

MARGIN = 5.0
"""Years beyond the ages that a model was trained on at which it still votes."""


def voters(cards: Mapping[str, ModelCard]) -> list[str]:
    """The models that the ensemble is made of: all that have a vote, or all where none has."""
    return [name for name, card in cards.items() if card.in_ensemble] or list(cards)


def combine(predictions: Sequence[Prediction]) -> Prediction:
    """Average weighted by precision (inverse variance); one prediction alone stays as it is.

    Models trained on the same people err together, so that no independence is claimed: the
    standard deviation and the interval's arms are averaged with the same weights.
    """
    if len(predictions) == 1:
        return predictions[0]
    weights = np.array([each.standard_deviation**-2 for each in predictions])
    weights /= weights.sum()

    def mean(values: Sequence[float]) -> float:
        return float(np.dot(weights, values))

    age = mean([each.predicted_age for each in predictions])
    return Prediction(
        predicted_age=age,
        standard_deviation=mean([each.standard_deviation for each in predictions]),
        interval=(
            age + mean([each.interval[0] - each.predicted_age for each in predictions]),
            age + mean([each.interval[1] - each.predicted_age for each in predictions]),
        ),
        coverage=predictions[0].coverage,
        within_training_ages=all(each.within_training_ages for each in predictions),
        sex_assumed=any(each.sex_assumed for each in predictions),
    )


def within_ages(
    predictions: Sequence[Prediction], ages: Sequence[tuple[float, float]]
) -> list[Prediction]:
    """Those whose model was trained on brains about as old as the others take this one for.

    A model of people from 42 to 82 years calls nobody younger than 42, and is sure of it: it may
    not vote on a brain that the others together see outside these years. The person's own age
    has no say, for the prediction must not know it. All stay where none would, and within
    ``MARGIN`` of these years: so close to its end a model is worth more than none beside it.

    Parameters
    ----------
    ages
        Youngest and oldest age each model was trained on, in years.
    """
    kept = []
    for index, (low, high) in enumerate(ages):
        others = [each for i, each in enumerate(predictions) if i != index]
        if not others or low - MARGIN <= combine(others).predicted_age <= high + MARGIN:
            kept.append(predictions[index])
    return kept or list(predictions)
