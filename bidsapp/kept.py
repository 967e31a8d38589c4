"""What the output folder keeps of a scan beside its record, and what of it can be used again."""

from __future__ import annotations

from typing import Any

import numpy as np

from bidsapp import report
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.prepared import MODEL_REGISTRATION, Prepared, served
from bidsapp.settings import Settings
from bidsapp.study import Scan
from bidsapp.toolbox import Toolbox
from models.contract import TISSUES

TIMED = ("segmentation", "bias_field", "registration", "resampling", "warp", "quality", "figures")
"""Steps whose seconds stay in the record when a scan is only predicted again."""


def images_of(scan: Scan, settings: Settings, out: Derivatives) -> dict[str, Any]:
    """The files of a scan beside its record."""
    return {
        "mask": out.brain_mask(scan),
        "dseg": out.dseg(scan),
        "forward": out.xfm(scan, "T1w", settings.template),
        "inverse": out.xfm(scan, settings.template, "T1w"),
        "preproc": out.preproc(scan),
        "template_mask": out.template_mask(scan),
        **{tissue: out.tissue(scan, tissue) for tissue in TISSUES},
        **{f"modulated {tissue}": out.modulated(scan, tissue) for tissue in TISSUES},
    }


def missing(scan: Scan, settings: Settings, out: Derivatives) -> list[str]:
    """Names of the images of a scan that are not there."""
    return [n for n, path in images_of(scan, settings, out).items() if not path.exists()]


def complete(scan: Scan, settings: Settings, out: Derivatives) -> bool:
    """Whether all the images are there that the settings want to be kept."""
    return settings.output_level == "minimal" or not missing(scan, settings, out)


def earlier_record(scan: Scan, out: Derivatives) -> dict[str, Any]:
    """The record of an earlier run; empty where there is none or it is damaged."""
    if not out.record(scan).exists():
        return {}
    try:
        return out.read_record(out.record(scan))
    except UserError:
        return {}


def same_images(earlier: dict[str, Any], key: dict[str, str]) -> bool:
    """Whether preprocessing would make the images of an earlier record again."""
    before = earlier.get("fingerprint")
    return isinstance(before, dict) and before.get("preprocessing") == key["preprocessing"]


def can_reuse(
    earlier: dict[str, Any], key: dict[str, str], scan: Scan, settings: Settings,
    tools: Toolbox, out: Derivatives,
) -> bool:  # fmt: skip
    """Whether only the predictions are out of date, and the written image serves every model."""
    from bidsapp.preprocessing import quality

    return (
        same_images(earlier, key)
        and not missing(scan, settings, out)
        and quality.LIMITS.keys() <= (earlier.get("quality") or {}).keys()
        and all(served(m.card.contract, settings.template) for m in tools.models.values())
    )


def reload(earlier: dict[str, Any], scan: Scan, out: Derivatives) -> Prepared:
    """A scan as an earlier run prepared it, from its images and its record."""
    from bidsapp.preprocessing.image import Image

    steps = [step for step in earlier["steps"] if step["step"] != MODEL_REGISTRATION]
    return Prepared(
        Image(*out.read_image(out.preproc(scan))),
        out.read_image(out.template_mask(scan))[0] > 0,
        np.stack([out.read_image(out.tissue(scan, tissue))[0] for tissue in TISSUES]),
        np.stack([out.read_image(out.modulated(scan, tissue))[0] for tissue in TISSUES]),
        next(step["levels"] for step in steps if step["step"] == "intensity"),
        earlier["volumes_ml"],
        {key: of for key, of in earlier["quality"].items() if key not in ("passed", "flags")},
        steps,
        {step: earlier["seconds"][step] for step in TIMED if step in earlier["seconds"]},
    )


def write_images(prepared: Prepared, scan: Scan, settings: Settings, out: Derivatives) -> None:
    """Write the images of a scan that was preprocessed in this run, and their sidecars."""
    native = prepared.native
    assert native is not None
    t1w, found, paths = native.t1w, native.segmentation.on_scan, images_of(scan, settings, out)
    out.remove(out.record(scan))  # of other settings: it must not vouch for the new images
    by = {step["step"]: step for step in prepared.steps}
    raw = {"Sources": [scan.source]}
    segmented = raw | {"Steps": [by["segmentation"]]}
    for name, labels in (("mask", found.intracranial), ("dseg", found.labels)):
        on_file = t1w.on_file_grid(labels).astype(np.uint8)
        out.write_image(paths[name], on_file, t1w.file_affine, segmented, np.uint8)
    transform = raw | {"Steps": [by["registration"]]}
    out.write_transform(paths["forward"], native.to_scan, transform)
    out.write_transform(paths["inverse"], np.linalg.inv(native.to_scan), transform)
    sources = [scan.source, out.uri(paths["mask"]), out.uri(paths["forward"])]
    in_template = {"Sources": sources, "Steps": prepared.steps}
    brain = prepared.brain
    out.write_image(paths["preproc"], brain.data, brain.affine, in_template, np.float32)
    out.write_image(
        paths["template_mask"], prepared.mask.astype(np.uint8), brain.affine, in_template, np.uint8
    )
    for tissue, share, amount in zip(TISSUES, prepared.shares, prepared.modulated):
        out.write_image(paths[tissue], share, brain.affine, in_template, np.float32)
        target = paths[f"modulated {tissue}"]
        out.write_image(target, amount, brain.affine, in_template, np.float32)


def remove_images(scan: Scan, settings: Settings, out: Derivatives) -> None:
    """Remove what an earlier run of another output level has left, and the new record belies."""
    out.remove(out.record(scan))
    for path in images_of(scan, settings, out).values():
        out.remove_with_sidecar(path)
    for name in report.FIGURES:
        out.remove(out.figure(scan.participant_id, scan.stem, name))
    out.remove(out.report(scan.participant_id))
