"""What the output folder says of itself: whose it is, of which data set, and what to cite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.errors import UserError
from bidsapp.files import TEMPORARY, read_json

NAME = "brainage"
BIDS_VERSION = "1.10.0"
ABOUT = "dataset_description.json"

BIDSIGNORE = f"""\
*.html
figures
logs/
*_xfm.txt
*_xfm.json
*_brainage.json
*_importance.nii.gz
*_importance.json
group_*
{TEMPORARY}
"""
README = f"""\
Brain age from T1-weighted MRI, written by {NAME}.

sub-<label>.html is the report of a participant. sub-<label>/[ses-<label>/]anat holds the images
of each scan and *_brainage.json, its record: the predicted ages, image quality, volumes of the
tissues and how every step was done. group_* files, where present, summarise all records.
dseg.tsv names the values of the *_dseg.nii.gz images. Images with space-<template> in their names
lie in that template, the others on the grid of the scan. logs holds the settings and messages of
each run, and in CITATION.md what to cite. The folder is a BIDS derivative; .bidsignore lists the
names that BIDS does not define.

A predicted brain age is a research result and no medical finding.
"""
CITATION = f"""\
Brain age was predicted with {NAME} {__version__}. The steps that were done, the software they used
and the licences of the models are listed in the record of each scan (`*_brainage.json`).
"""


def description(root: Path, study_root: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder says of itself now; without the study, of its source what it said before."""
    generator: dict[str, Any] = {"Name": NAME, "Version": __version__}
    if image := container():
        generator["Container"] = image
    now: dict[str, Any] = {
        "Name": f"{NAME}: brain age from T1-weighted MRI",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
        "HowToAcknowledge": "See logs/CITATION.md.",
    }
    source = study_root / ABOUT
    if not source.is_file():  # the group level needs the output folder alone
        kept = ("License", "SourceDatasets", "DatasetLinks")
        return now | {key: before[key] for key in kept if key in before}
    about = read_json(source)
    link = study_root.absolute().as_uri()
    if root.resolve().is_relative_to(study_root.resolve()):
        link = os.path.relpath(study_root.resolve(), root.resolve())
    dataset = {"URL": link}
    for key, name in (("Name", "Name"), ("DatasetDOI", "DOI")):
        if about.get(key):
            dataset[name] = str(about[key])
    if about.get("License"):
        now["License"] = about["License"]
    links = {"raw": link, "templateflow": "https://github.com/templateflow/templateflow"}
    return now | {"SourceDatasets": [dataset], "DatasetLinks": links}


def check_source(
    root: Path, before: Mapping[str, Any], now: Mapping[str, Any], has_records: bool
) -> list[str]:
    """Refuse to mix the records of two data sets; warn where they may be two.

    A data set may be moved, or mounted elsewhere, and keeps its name; it may be renamed where
    it is, but for a container, in which every one is at the same place.
    """

    def same(key: str) -> bool | None:
        return before[key] == now[key] if before.get(key) and now.get(key) else None

    place = None if container() else same("URL")
    if same("Name") or same("DOI") or place or not has_records:
        return []
    if same("Name") is False:
        raise UserError(
            f"{root} holds records of the data set '{before['Name']}', and this is "
            f"'{now['Name']}': give an output folder of its own to each, or, if it was only "
            f"renamed, correct the name under SourceDatasets in {root / ABOUT}."
        )
    if place is False:
        return [
            f"{root} holds records of the data set at {before['URL']}, and this one is "
            f"at {now['URL']}: it is taken for the same one, which was moved"
        ]
    return []


def container() -> dict[str, str] | None:
    """Return the image this runs in, which says its name in the environment."""
    image = os.environ.get("BRAINAGE_IMAGE")
    if not image:
        return None
    by_singularity = any(map(os.environ.get, ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")))
    return {
        "Type": "singularity" if by_singularity else "docker",
        "Tag": f"{image}:{__version__}",
    }


def source_of(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a description says of the data set that was read."""
    sources = description.get("SourceDatasets")
    first = sources[0] if isinstance(sources, list) and sources else None
    return first if isinstance(first, Mapping) else {}


def check_owner(description: Mapping[str, Any], path: Path) -> list[str]:
    """Refuse a folder that is not ours; warn where another version of the app wrote it."""
    generators = description.get("GeneratedBy") or [{}]
    first = generators[0] if isinstance(generators, list) else {}
    if not isinstance(first, Mapping) or first.get("Name") != NAME:
        raise UserError(
            f"{path} says that the folder belongs to '{description.get('Name', 'unknown')}'; give "
            f"an output folder of its own to {NAME}."
        )
    if first.get("Version") != __version__:
        return [
            f"{path.parent} was written by version {first.get('Version')}, this is {__version__}: "
            "scans are processed again"
        ]
    return []
