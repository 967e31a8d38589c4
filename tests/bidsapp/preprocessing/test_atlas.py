"""The atlas of the region tables: a user's own, and CerebrA where TemplateFlow has it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import UserError
from bidsapp.preprocessing.atlas import SPACE, load_atlas

AFFINE = np.diag([2.0, 2, 2, 1])
PLACEHOLDERS = ("res-1_atlas-CerebrA_dseg.nii.gz", "atlas-CerebA_dseg.tsv")


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


def no_network(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """TemplateFlow's client at a home, where asking it for what is not there fails."""
    import requests
    from templateflow import TemplateFlowClient, api

    def fail(*_arguments: Any, **_keywords: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", fail)
    monkeypatch.setattr(api, "_client", TemplateFlowClient(root=root))


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """TemplateFlow's software must not be asked: it would go to the network."""
    monkeypatch.setitem(sys.modules, "templateflow", None)


def home_with(folder: Path, names: Iterable[str], content: bytes) -> Path:
    (folder / f"tpl-{SPACE}").mkdir(parents=True)
    (folder / "dataset_description.json").write_text('{"Name": "T", "BIDSVersion": "1"}')
    description = folder / f"tpl-{SPACE}" / "template_description.json"
    description.write_text('{"Name": "T", "Identifier": "T"}')
    for name in names:
        (folder / f"tpl-{SPACE}" / f"tpl-{SPACE}_{name}").write_bytes(content)
    return folder


@pytest.mark.parametrize("named", [(), ("cerebra",)])
def test_cerebra_of_templateflow_without_a_network(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, untouched: None, named: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(shared_data / "templateflow"))
    atlas = load_atlas(named)
    assert (atlas.name, atlas.space) == ("CerebrA", SPACE)
    assert atlas.labels.shape == (193, 229, 193) and len(np.unique(atlas.labels)) == 103
    assert len(atlas.table.splitlines()) == 103


def test_both_spellings_of_its_files_are_found(
    own: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    names = ("res-01_atlas-CerebrA_dseg.nii.gz", "atlas-CerebrA_dseg.tsv")
    home = home_with(tmp_path / "home", names, b"")
    for name, file in zip(names, own, strict=True):
        (home / f"tpl-{SPACE}" / f"tpl-{SPACE}_{name}").write_bytes(Path(file).read_bytes())
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    assert load_atlas().labels.max() == 26


@pytest.mark.parametrize(
    "there", [(), PLACEHOLDERS, PLACEHOLDERS[:1]], ids=["nothing", "placeholders", "one of two"]
)
def test_what_is_not_there_is_not_fetched_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: None, there: tuple[str, ...]
) -> None:
    content = b"x" if len(there) == 1 else b""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home_with(tmp_path / "home", there, content)))
    with pytest.raises(UserError, match=r"not in TEMPLATEFLOW_HOME; --atlas cerebra fetches"):
        load_atlas()


def test_cerebra_that_was_named_and_cannot_be_fetched_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_with(tmp_path / "home", PLACEHOLDERS, b"")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    no_network(monkeypatch, home)
    with pytest.raises(UserError, match=r"cannot be fetched.*TEMPLATEFLOW_HOME.*--atlas FILE"):
        load_atlas(("cerebra",))
