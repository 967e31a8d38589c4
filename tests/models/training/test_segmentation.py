"""Training of the segmentation network: what a cache and a checkpoint are good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from models.contract import ModelError
from models.training import segmentation
from models.training.segmentation import Options, checkpoint_key, load_heads, train
from models.training.synthesis import Example, Head


def head(name: str, seed: int) -> Head:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, (8, 8, 8)).astype(np.uint8)
    image = random.random((8, 8, 8)).astype(np.float16)
    return Head(name, image, labels, labels, labels > 2)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the heads that were prepared, and not read from the cache."""
    names = []

    def prepare(name: str, image: Any, muse: Any, seed: int) -> Head:
        names.append(name)
        return head(name, seed)

    monkeypatch.setattr(segmentation, "prepare_head", prepare)
    return names


@pytest.fixture
def study(tmp_path: Path) -> Options:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    for name in ("sub-01", "sub-02"):
        for path in (f"bids/{name}/anat/{name}_T1w.nii.gz", f"muse/{name}/{name}_dseg.nii.gz"):
            (tmp_path / path).parent.mkdir(parents=True)
            nib.save(image, tmp_path / path)
    return Options(tmp_path / "bids", tmp_path / "muse", tmp_path / "out", steps=2)


def heads_of(study: Options) -> list[Head]:
    return load_heads(study.data, study.labels, study.out / "heads", study.seed)


def test_heads_are_prepared_once(study: Options, prepared: list[str]) -> None:
    first, second = heads_of(study), heads_of(study)
    assert prepared == ["sub-01", "sub-02"]
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.image, other.image)
    assert not [path for path in (study.out / "heads").iterdir() if path.suffix != ".npz"]


@pytest.mark.parametrize("changed", ["scan", "labels", "seed", "damaged"])
def test_heads_of_other_files_or_another_seed_are_prepared_again(
    study: Options, prepared: list[str], changed: str
) -> None:
    heads_of(study)
    prepared.clear()
    image = nib.Nifti1Image(np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.eye(4))
    if changed == "scan":
        nib.save(image, study.data / "sub-02/anat/sub-02_T1w.nii.gz")
    elif changed == "labels":
        nib.save(image, study.labels / "sub-02/sub-02_dseg.nii.gz")
    elif changed == "damaged":
        stored = study.out / "heads" / "sub-02.npz"
        stored.write_bytes(stored.read_bytes()[:200])
    else:
        study = replace(study, seed=2)
    heads_of(study)
    assert prepared == (["sub-01", "sub-02"] if changed == "seed" else ["sub-02"])


def test_the_key_holds_what_changes_the_network(study: Options, tmp_path: Path) -> None:
    heads = [head("sub-01", 1), head("sub-02", 2)]
    key = checkpoint_key(heads, study)
    same = replace(study, out=tmp_path / "moved", threads=4, data=tmp_path / "moved")
    assert checkpoint_key(heads, same) == key
    weights = tmp_path / "first.pt"
    weights.write_bytes(b"1")
    others = [
        checkpoint_key(heads, replace(study, **{name: value}))
        for name, value in {"folds": 3, "fold": 1, "steps": 3, "learning_rate": 1e-3, "seed": 2,
                            "start_from": weights}.items()
    ]  # fmt: skip
    weights.write_bytes(b"2")
    others.append(checkpoint_key(heads, replace(study, start_from=weights)))
    others.append(checkpoint_key(heads[:1], study))
    others.append(checkpoint_key([heads[0], head("sub-02", 3)], study))
    assert len({key, *others}) == len(others) + 1


def test_a_checkpoint_of_another_run_is_refused(
    study: Options, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(_head: Head, rng: np.random.Generator) -> Example:
        image = torch.from_numpy(rng.random((1, 16, 16, 16), np.float32))
        return Example(image, torch.ones(16, 16, 16, dtype=torch.long), torch.zeros(16, 16, 16))

    monkeypatch.setattr(segmentation, "draw_example", small)
    monkeypatch.setattr(segmentation, "CHANNELS", (8, 8))
    first = train(study).state_dict()
    again = train(replace(study, threads=2)).state_dict()  # complete: nothing to train
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for changed in ({"steps": 4}, {"seed": 2}):
        with pytest.raises(ModelError, match=r"all\.pt was made with other options or other sca"):
            train(replace(study, **changed))
    older = torch.load(study.out / "all.pt", weights_only=True)
    del older["key"]
    torch.save(older, study.out / "all.pt")
    with pytest.raises(ModelError, match="choose another --out"):
        train(study)
