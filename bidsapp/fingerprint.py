"""What a scan's results depend on, as hashes: equal hashes need not be computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from bidsapp import __version__
from bidsapp.settings import Settings
from bidsapp.study import Scan
from models.ensemble import LARGEST_SHARE, MARGIN

PACKAGES = ("antspyx", "torch", "numpy", "scipy", "nibabel", "nilearn")
"""Packages whose numbers end up in the results."""


def software() -> dict[str, str]:
    """Versions of this app and of the packages that compute its results."""
    return {"brainage": __version__} | {name: version(name) for name in PACKAGES}


def fingerprint(
    scan: Scan,
    scan_sha256: str,
    settings: Settings,
    template_sha256: str,
    segmentation_sha256: str,
    models: Mapping[str, str],
    references: Mapping[str, str],
) -> dict[str, str]:
    """Hashes of what preprocessing and prediction depend on.

    Parameters
    ----------
    models
        Card of each model that predicts, as TOML; it holds the hash of the weights.
    references
        Hash of the reference of each model that has one.

    Returns
    -------
    dict
        ``preprocessing``: input, template, segmentation weights, options, versions;
        ``prediction``: all that, the models, how they are combined, what is known of the
        person, and ``--quality``.
    """
    preprocessing = {
        "scan": scan_sha256,
        "template": [settings.template, template_sha256],
        "segmentation": segmentation_sha256,
        "skull_strip_t1w": settings.skull_strip_t1w,
        "seed": settings.random_seed,
        "software": software(),
    }
    prediction = {
        "preprocessing": preprocessing,
        "models": dict(models),
        "references": dict(references),
        "ensemble": {"margin": MARGIN, "largest_share": LARGEST_SHARE},
        "person": asdict(scan.demographics),
        "source": scan.source,
        "quality": settings.quality,  # on which it hangs whether there is an age
    }
    return {"preprocessing": _hash(preprocessing), "prediction": _hash(prediction)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
