"""Which image and weights an importance map was made of, as its sidecar says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREPROCESSING = "PreprocessingFingerprint"
"""Key of the fingerprint of the preprocessed image that the map was made of."""


def preprocessing_of(record: Mapping[str, Any]) -> str:
    """Fingerprint of a scan's preprocessed image; empty where its record has none."""
    return str((record.get("fingerprint") or {}).get("preprocessing") or "")


def weights_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the weights that predicted a scan's age, by model."""
    predictions = record.get("predictions") or {}
    return {name: str(each.get("weights_sha256") or "") for name, each in predictions.items()}


def belongs(sidecar: Mapping[str, Any], preprocessing: str, weights: Mapping[str, str]) -> bool:
    """Whether a map is of this preprocessed image and of the weights that predicted its age.

    One that does not say which image it was made of is taken for that of another.
    """
    model = str(sidecar.get("Model"))
    return (
        bool(preprocessing)
        and sidecar.get(PREPROCESSING) == preprocessing
        and model in weights
        and sidecar.get("WeightsSHA256") == weights[model]
    )
