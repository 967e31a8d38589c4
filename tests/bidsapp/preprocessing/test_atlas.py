"""The atlas of the region tables: a user's own, and CerebrA where TemplateFlow has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import UserError
from bidsapp.preprocessing.atlas import SPACE, load_atlas

AFFINE = np.diag([2.0, 2, 2, 1])


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    load_atlas.cache_clear()
    yield
    load_atlas.cache_clear()


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, str]:
    image, table = tmp_path / "mine.nii.gz", tmp_path / "mine.tsv"
    nib.save(nib.Nifti1Image(np.arange(27, dtype=np.float32).reshape(3, 3, 3), AFFINE), image)
    table.write_text("index\tname\n1\tA\n", encoding="utf-8")
    return str(image), str(table)


def test_an_atlas_of_the_users(own: tuple[str, str]) -> None:
    atlas = load_atlas(own)
    assert atlas.name == "mine" and atlas.space == ""
    assert atlas.labels.dtype == np.int32 and atlas.labels.max() == 26
    np.testing.assert_array_equal(atlas.affine, AFFINE)
    assert atlas.table.startswith("index")


@pytest.mark.parametrize("kind", ["no image", "fractions", "no table"])
def test_what_is_no_atlas_is_refused_in_one_sentence(kind: str, own: tuple[str, str]) -> None:
    image, table = map(Path, own)
    if kind == "no image":
        image.write_bytes(b"nothing")
    elif kind == "fractions":
        nib.save(nib.Nifti1Image(np.full((3, 3, 3), 0.5, np.float32), AFFINE), image)
    else:
        table.unlink()
    with pytest.raises(UserError) as caught:
        load_atlas(own)
    assert "mine.nii.gz" in str(caught.value) and str(caught.value).endswith(".")


def templateflow_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(root.parent / "unused"))
    import requests
    from templateflow import TemplateFlowClient, api

    def no_network(*_arguments: Any, **_keywords: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setattr(api, "_client", TemplateFlowClient(root=root))


def test_cerebra_from_templateflow(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    templateflow_at(shared_data / "templateflow", monkeypatch)
    atlas = load_atlas()
    assert (atlas.name, atlas.space) == ("CerebrA", SPACE)
    assert atlas.labels.shape == (193, 229, 193) and len(np.unique(atlas.labels)) == 103
    assert len(atlas.table.splitlines()) == 103


def test_a_home_without_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home" / f"tpl-{SPACE}"
    folder.mkdir(parents=True)
    (folder / "template_description.json").write_text('{"Name": "T", "Identifier": "T"}')
    (folder.parent / "dataset_description.json").write_text('{"Name": "T", "BIDSVersion": "1"}')
    for ending in ("_res-1_atlas-CerebrA_dseg.nii.gz", "_atlas-CerebrA_dseg.tsv"):
        (folder / f"tpl-{SPACE}{ending}").write_bytes(b"")
    templateflow_at(folder.parent, monkeypatch)
    with pytest.raises(UserError, match=r"TEMPLATEFLOW_HOME.*--atlas"):
        load_atlas()
