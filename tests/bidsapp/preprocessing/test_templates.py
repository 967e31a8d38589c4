"""The bundled template and those of a TEMPLATEFLOW_HOME, without a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.errors import UserError
from bidsapp.preprocessing.templates import BUNDLED, load_template
from bidsapp.settings import Settings

NAME = "MNI152Tiny"


def test_the_bundled_template_is_a_brain_in_the_middle() -> None:
    template = load_template()
    assert template.name == BUNDLED == Settings.template
    assert template.source == "nilearn package data" and len(template.sha256) == 64
    assert template.brain.data.shape == template.mask.shape == (197, 233, 189)
    assert template.brain.zooms == (1, 1, 1)
    assert nib.aff2axcodes(template.brain.affine) == ("R", "A", "S")
    assert 1600 < template.mask.sum() * template.brain.voxel_ml < 2000
    assert not template.brain.data[~template.mask].any() and template.brain.data.min() == 0
    centre = nib.affines.apply_affine(template.brain.affine, ndimage.center_of_mass(template.mask))
    np.testing.assert_allclose(centre, (0, -20, 10), atol=12)
    assert load_template(BUNDLED) is load_template(BUNDLED)


def test_on_another_grid() -> None:
    template = load_template()
    affine = np.array([[4.0, 0, 0, -90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
    brain, mask = template.on((46, 55, 46), affine)
    assert brain.data.shape == mask.shape == (46, 55, 46) and mask.dtype == bool
    assert mask.sum() * brain.voxel_ml == pytest.approx(template.mask.sum() / 1000, rel=0.01)
    assert ndimage.center_of_mass(mask) == pytest.approx(
        nib.affines.apply_affine(
            np.linalg.inv(affine) @ template.brain.affine, ndimage.center_of_mass(template.mask)
        ),
        abs=0.1,
    )


# --- TemplateFlow ---


def write_image(path: Path, data: np.ndarray) -> None:
    affine = np.array([[-2.0, 0, 0, 40], [0, 2, 0, -40], [0, 0, 2, -40], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(data, affine), path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """A TEMPLATEFLOW_HOME with one template, of which `left_empty` are placeholders."""
    # its first import fills a home with placeholders: not the one of whoever runs the tests
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "unused"))
    import requests
    from templateflow import TemplateFlowClient, api

    def no_network(*_arguments: Any, **_keywords: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    def make(left_empty: str = "") -> Path:
        folder = tmp_path / "home" / f"tpl-{NAME}"
        folder.mkdir(parents=True)
        (folder.parent / "dataset_description.json").write_text(
            json.dumps({"Name": "Templates", "BIDSVersion": "1.0.0"})
        )
        (folder / "template_description.json").write_text(
            json.dumps({"Name": NAME, "Identifier": NAME, "res": {"01": {}}})
        )
        head = np.full((40, 41, 42), 50, np.int16)
        head[10:30, 10:30, 10:30] = 100
        head[25, 15, 15] = 250  # on the left: the first axis runs to the left
        brain = np.zeros(head.shape, np.uint8)
        brain[10:30, 10:30, 10:30] = 1
        for suffix, data in (("T1w", head), ("desc-brain_mask", brain)):
            path = folder / f"tpl-{NAME}_res-01_{suffix}.nii.gz"
            write_image(path, data)
            if suffix == left_empty:
                path.write_bytes(b"")
        monkeypatch.setattr(api, "_client", TemplateFlowClient(root=folder.parent))
        return folder

    monkeypatch.setattr(requests, "get", no_network)
    load_template.cache_clear()
    yield make
    load_template.cache_clear()


def test_a_template_that_lies_in_the_home_is_taken(home: Callable[..., Path]) -> None:
    folder = home()
    template = load_template(NAME)
    assert template.name == NAME and template.source == "TemplateFlow"
    scan = folder / f"tpl-{NAME}_res-01_T1w.nii.gz"
    assert template.sha256 == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert nib.aff2axcodes(template.brain.affine) == ("R", "A", "S")
    assert template.mask.sum() == 20**3
    assert not template.brain.data[~template.mask].any()  # its skull is gone
    (brightest,) = np.argwhere(template.brain.data == 250)
    place = nib.affines.apply_affine(template.brain.affine, brightest)
    np.testing.assert_allclose(place, (40 - 2 * 25, -40 + 2 * 15, -40 + 2 * 15))


@pytest.mark.parametrize("left_empty", ["T1w", "desc-brain_mask"])
def test_a_placeholder_is_refused_in_one_sentence(
    left_empty: str, home: Callable[..., Path]
) -> None:
    home(left_empty)
    check_refusal(NAME)


@pytest.mark.parametrize("name", ["NoSuchTemplate", "MNI152"])
def test_an_unknown_template_is_refused_in_one_sentence(
    name: str, home: Callable[..., Path]
) -> None:
    home()
    check_refusal(name)


def check_refusal(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_template(name)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert f"template {name} " in message and "TEMPLATEFLOW_HOME" in message
    assert message.endswith(".") and "\n" not in message
