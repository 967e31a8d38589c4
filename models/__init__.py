"""Learned models of brain age: architectures, cards and weights.

``known`` and ``card`` read cards alone and are fast; ``load`` is the first to import torch.
"""

from models.contract import InputContract, ModelCard, ModelError, Prediction
from models.registry import available, card, embedded, known, load

__all__ = [
    "InputContract",
    "ModelCard",
    "ModelError",
    "Prediction",
    "available",
    "card",
    "embedded",
    "known",
    "load",
]
