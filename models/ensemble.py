"""Several models' predictions of one scan become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.contract import ModelCard, Prediction

MARGIN = 5.0
"""Years beyond the ages that a model was trained on within which it votes."""
LARGEST_SHARE = 0.5
"""Of the vote, of one model. Errors are known from scans like those that a model was trained on:
one that errs little there must not decide alone elsewhere."""


def voters(cards: Mapping[str, ModelCard]) -> list[str]:
    """The models that the ensemble is made of: all that have a vote, or all where none has."""
    return [name for name, card in cards.items() if card.in_ensemble] or list(cards)


def combine(predictions: Sequence[Prediction]) -> Prediction:
    """Average weighted by ``weights_of``; one prediction alone stays as it is.

    Models trained on the same people err together, so that no independence is claimed: the
    standard deviation and the interval's arms are averaged with the same weights.
    """
    if len(predictions) == 1:
        return predictions[0]
    weights = weights_of([each.standard_deviation for each in predictions])

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


def weights_of(deviations: Sequence[float]) -> NDArray[np.float64]:
    """Shares of the vote by precision (inverse variance), none above ``LARGEST_SHARE``.

    Parameters
    ----------
    deviations
        Standard deviations of two or more models' errors, in years.

    Returns
    -------
    numpy.ndarray
        As many, in sum 1.
    """
    weights = np.asarray(deviations, float) ** -2
    weights /= weights.sum()
    first = weights.argmax()
    if weights[first] > LARGEST_SHARE:
        others = np.arange(len(weights)) != first
        weights[others] *= (1 - LARGEST_SHARE) / weights[others].sum()
        weights[first] = LARGEST_SHARE
    return weights


def within_ages(
    predictions: Sequence[Prediction], ages: Sequence[tuple[float, float]]
) -> list[Prediction]:
    """The votes that models have on a brain, by the ages they were trained on.

    A model of people from 42 to 82 years calls nobody younger than 42, and is sure of it: it may
    not vote on a brain that the others together see more than ``MARGIN`` years outside of these.
    The person's own age has no say, for the prediction must not know it. All stay where none
    would. A vote beyond ``MARGIN`` counts as one at it: there a model has seen nobody, and on the
    scan of an unknown scanner one that is linear may name any age. A model alone is left as it is.

    Parameters
    ----------
    ages
        Youngest and oldest age each model was trained on, in years.
    """
    if len(predictions) == 1:
        return list(predictions)
    bounds = [(low - MARGIN, high + MARGIN) for low, high in ages]
    votes = [_bounded(each, *ends) for each, ends in zip(predictions, bounds, strict=True)]
    kept = []
    for index, (low, high) in enumerate(bounds):
        others = [each for i, each in enumerate(votes) if i != index]
        if low <= combine(others).predicted_age <= high:
            kept.append(votes[index])
    return kept or votes


def _bounded(prediction: Prediction, low: float, high: float) -> Prediction:
    """The prediction, moved with its interval to the nearer end where it lies outside."""
    moved = min(max(prediction.predicted_age, low), high) - prediction.predicted_age
    if not moved:
        return prediction
    start, end = prediction.interval
    return replace(prediction, predicted_age=prediction.predicted_age + moved,
                   interval=(start + moved, end + moved))  # fmt: skip
