"""Scans are read in RAS at their own place in the world; what is no scan is refused in a line."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bidsapp.errors import ScanError
from bidsapp.preprocessing import image
from bidsapp.preprocessing.image import file_sha256, load_t1w

SHAPE, MM = (30, 32, 34), 3.5
AFFINE = np.array([[MM, 0, 0, -80], [0, MM, 0, -90], [0, 0, MM, -70], [0, 0, 0, 1]])
FLIPS = itertools.product((1, -1), repeat=3)
ORDERS = list(itertools.product(itertools.permutations(range(3)), FLIPS))


def voxels(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(1).integers(0, 900, shape).astype(np.int16)


VOXELS = voxels()


def nifti(data: NDArray = VOXELS, affine: NDArray = AFFINE, **fields: Any) -> bytes:
    """A NIfTI-1 file with sform and qform; then `fields` of its header are overwritten."""
    made = nib.Nifti1Image(data, affine)
    made.set_sform(affine, 1)
    made.set_qform(affine, 1)
    content = bytearray(made.to_bytes())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, buffer=content)
    for name, value in fields.items():
        header[name] = value
    return bytes(content)


def packed(*arguments: Any, **fields: Any) -> bytes:
    return gzip.compress(nifti(*arguments, **fields), 1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "sub-01_T1w.nii.gz") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def with_value(value: float) -> NDArray[np.float32]:
    data = VOXELS.astype(np.float32)
    data[3, 4, 5] = value
    return data


def mgh() -> bytes:
    return gzip.compress(nib.MGHImage(VOXELS, AFFINE).to_bytes())


def skewed() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 1] = affine[:3, 0] + [0, 1, 0]
    return affine


RGB = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
AIR = np.zeros(SHAPE, np.int16)
NO_SFORM = {"sform_code": 0}
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"not an image", "not a readable NIfTI"),
    "random bytes": (bytes(range(256)) * 20, "not a readable NIfTI"),
    "DICOM": (bytes(128) + b"DICM" + bytes(9000), "not a readable NIfTI"),
    "MGH renamed": (mgh(), "not a readable NIfTI"),
    "header cut": (packed()[:60], "not a readable NIfTI"),
    "data cut": (packed()[:-9000], "damaged or truncated"),
    "garbage inside": (gzip.compress(nifti()[:9000], 1) + b"???", "damaged or truncated"),
    "more voxels promised": (packed(dim=[3, 200, 200, 200, 1, 1, 1, 1]), "damaged or truncated"),
    "far too many promised": (packed(dim=[3, 900, 900, 900, 1, 1, 1, 1]), "damaged or truncated"),
    "unknown data type": (packed(datatype=999), "not a readable NIfTI"),
    "negative size": (packed(dim=[3, -30, 32, 34, 1, 1, 1, 1]), "no brain volume"),
    "2D": (packed(voxels((64, 64))), "64x64, which is no brain volume"),
    "one slice": (packed(voxels((64, 64, 1))), "64x64x1, which is no brain volume"),
    "several volumes": (packed(voxels((*SHAPE, 3))), "holds 3 volumes"),
    "vectors": (packed(voxels((*SHAPE, 1, 3))), "holds 3 volumes"),
    "RGB": (packed(RGB), "colour or complex"),
    "complex": (packed(VOXELS.astype(np.complex64)), "colour or complex"),
    "NaN": (packed(with_value(np.nan)), "1 voxels that are NaN or infinite"),
    "Inf": (packed(with_value(-np.inf)), "1 voxels that are NaN or infinite"),
    "all zero": (packed(AIR), r"constant \(0 everywhere\)"),
    "constant": (packed(AIR + 7), r"constant \(7 everywhere\)"),
    "no orientation": (packed(sform_code=0, qform_code=0), "does not say how it is oriented"),
    "affine NaN": (packed(srow_x=[np.nan, 0, 0, 0]), "impossible affine"),
    "affine infinite": (packed(srow_x=[MM, 0, 0, np.inf]), "impossible affine"),
    "affine zero": (packed(srow_x=[0, 0, 0, 0]), "impossible affine"),
    "affine skewed": (packed(affine=skewed()), "impossible affine"),
    "affine far away": (packed(srow_x=[MM, 0, 0, 1e30]), "impossible affine"),
    "zero voxel size": (packed(**NO_SFORM, pixdim=[1, 2, 0, 2, 1, 1, 1, 1]), "impossible affine"),
    "NaN voxel size": (packed(**NO_SFORM, pixdim=[1, 2, np.nan, 2, 1, 1, 1, 1]), "impossible"),
    "bad rotation": (packed(**NO_SFORM, quatern_b=5), "not a readable NIfTI"),
    "micrometres": (packed(affine=np.diag([0.001, 0.001, 0.001, 1])), "voxels of 0.001 x"),
    "huge voxels": (packed(affine=np.diag([50, 50, 50, 1])), "voxels of 50 x 50 x 50 mm"),
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(ScanError) as caught:
        load_t1w(path)
    return str(caught.value)


def check_sentence(message: str, path: Path, reason: str) -> None:
    assert message.startswith(str(path))  # the file
    assert re.search(reason, message)
    assert "; " in message or ": " in message  # what to do
    assert message.endswith(".") and "\n" not in message


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # nibabel multiplies the NaN
@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_scan_is_refused_in_one_sentence(fault: str, write: Callable) -> None:
    content, reason = BAD[fault]
    path = write(content)
    check_sentence(refusal(path), path, reason)


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_uncompressed_files_are_checked_as_well(length: int, write: Callable) -> None:
    path = write(nifti()[:length], "sub-01_T1w.nii")
    check_sentence(refusal(path), path, "is empty|not a readable|damaged or truncated")


def test_dangling_link_and_folder(tmp_path: Path) -> None:
    link, folder = tmp_path / "link_T1w.nii.gz", tmp_path / "folder_T1w.nii.gz"
    link.symlink_to(tmp_path / ".git" / "annex" / "content")
    folder.mkdir()
    check_sentence(refusal(link), link, "does not exist or is a dangling link")
    check_sentence(refusal(folder), folder, "cannot be read")


def test_large_files_are_checked_as_well(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "LARGEST", 1000)
    for fault in ("data cut", "garbage inside", "NaN", "constant"):
        content, reason = BAD[fault]
        path = write(content)
        check_sentence(refusal(path), path, reason.replace("1 voxels", ""))


# --- what is taken ---


SCALED = {"scl_slope": 2.0, "scl_inter": -5.0}
GOOD: dict[str, tuple[bytes, NDArray]] = {
    "integers": (nifti(), VOXELS),
    "one volume": (nifti(voxels((*SHAPE, 1))), voxels((*SHAPE, 1))[..., 0]),
    "scaled bytes": (nifti(VOXELS.astype(np.uint8), **SCALED),
                     VOXELS.astype(np.uint8) * 2.0 - 5),
    "slope NaN is no scaling": (nifti(scl_slope=np.nan), VOXELS),
    "doubles": (nifti(VOXELS / 3.0), VOXELS / 3.0),
    "big endian": (nib.Nifti1Image(VOXELS, AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
                   VOXELS),
    "NIfTI-2": (nib.Nifti2Image(VOXELS, AFFINE).to_bytes(), VOXELS),
    "negative": (nifti(VOXELS - np.int16(400)), VOXELS - 400),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a_T1w.nii", "a_T1w.nii.gz"])
@pytest.mark.parametrize("kind", GOOD)
def test_values_and_place_are_those_of_the_file(kind: str, name: str, write: Callable) -> None:
    content, expected = GOOD[kind]
    found = load_t1w(write(gzip.compress(content) if name.endswith("gz") else content, name))
    np.testing.assert_allclose(found.image.data, expected, rtol=1e-6)
    np.testing.assert_allclose(found.image.affine, AFFINE)
    assert found.image.data.dtype == np.float32 and found.image.data.flags.c_contiguous
    assert found.file_shape == SHAPE and found.reduction == 1 and found.warnings == ()
    assert found.image.zooms == (MM, MM, MM)
    assert found.image.voxel_ml == pytest.approx(MM**3 / 1000)


def test_hash_is_that_of_the_bytes_on_disk(write: Callable) -> None:
    path = write(packed())
    first = file_sha256(path)
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    write(gzip.compress(nifti(), 9))
    assert file_sha256(path) != first


def test_thick_slices_and_missing_parts_are_warned_of(write: Callable) -> None:
    path = write(packed(voxels((64, 64, 30)), np.diag([3.0, 3, 6, 1])))
    (warning,) = load_t1w(path).warnings
    assert str(path) in warning and "slices of 6.0 mm" in warning
    path = write(packed(voxels((100, 100, 40)), np.diag([2.0, 2, 2, 1])))
    (warning,) = load_t1w(path).warnings
    assert str(path) in warning and "covers 80 mm only" in warning


# --- axes ---


def place(affine: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """World position of every voxel, (X, Y, Z, 3) mm."""
    return nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))


def turned(order: tuple, oblique: NDArray) -> tuple[NDArray, NDArray]:
    """The same head stored with other axes: every voxel keeps its value and its place."""
    orientation = np.array(list(zip(*order)))
    affine = oblique @ AFFINE @ inv_ornt_aff(orientation, SHAPE)
    return apply_orientation(VOXELS, orientation), affine


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (12, -9, 5), degrees=True).as_matrix()


@pytest.mark.parametrize("oblique", [np.eye(4), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_any_order_of_axes_becomes_ras_at_the_same_place(
    order: tuple, oblique: NDArray, write: Callable
) -> None:
    data, affine = turned(order, oblique)
    found = load_t1w(write(packed(data, affine)))
    assert nib.aff2axcodes(found.image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(found.image.data, VOXELS)
    np.testing.assert_allclose(found.image.affine, oblique @ AFFINE, atol=1e-4)
    np.testing.assert_array_equal(found.on_file_grid(found.image.data), data)


def test_axes_half_way_between_two_directions_come_back_too(write: Callable) -> None:
    """At 45 degrees the nearest direction hangs on the last bit of the affine."""
    angles = itertools.product((0, 45), (45,), (0, 30, 45, 90))
    for order, turn in itertools.product(ORDERS[::5], angles):
        oblique = np.eye(4)
        oblique[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
        data, affine = turned(order, oblique)
        found = load_t1w(write(nifti(data, affine), "a_T1w.nii"))
        np.testing.assert_array_equal(found.on_file_grid(found.image.data), data)


# --- large scans ---


@pytest.mark.parametrize("shape", [(41, 44, 47), (40, 45, 42), (16, 71, 33)])
@pytest.mark.parametrize("order", ORDERS[::7], ids=str)
def test_blocks_lie_where_their_voxels_lay(
    order: tuple, shape: tuple[int, int, int], write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of positions over a block is the position of the block."""
    monkeypatch.setattr(image, "LARGEST", np.prod(shape) // 6)
    affine = OBLIQUE @ AFFINE @ inv_ornt_aff(np.array(list(zip(*order))), shape)
    mm = place(affine, shape)
    for axis in range(3):
        found = load_t1w(write(nifti(mm[..., axis].astype(np.float32), affine), "a_T1w.nii"))
        assert found.reduction == 2
        assert found.image.data.size <= image.LARGEST
        there = place(found.image.affine, found.image.data.shape)
        np.testing.assert_allclose(found.image.data, there[..., axis], atol=1e-3)
        back = found.on_file_grid(there[..., axis])
        assert back.shape == shape
        # half a voxel in each direction, one and a half at an odd end
        off = np.abs(back - mm[..., axis])
        assert off.max() <= 1.5 * MM * 3**0.5 and off.mean() <= MM


def test_one_volume_in_four_dimensions_may_be_large(
    write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    three, four = (
        write(packed(voxels(shape), AFFINE), f"{len(shape)}_T1w.nii.gz")
        for shape in ((32, 32, 40), (32, 32, 40, 1))
    )
    monkeypatch.setattr(image, "LARGEST", 10_000)
    expected, found = load_t1w(three), load_t1w(four)
    assert expected.reduction == 2
    np.testing.assert_array_equal(found.image.data, expected.image.data)


def test_blocks_grow_with_the_scan(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(packed(voxels((60, 61, 62))))
    for largest, reduction in ((60 * 61 * 62, 1), (30_000, 2), (10_000, 3), (4_000, 4)):
        monkeypatch.setattr(image, "LARGEST", largest)
        found = load_t1w(path)
        assert found.reduction == reduction and found.image.data.size <= largest
        assert found.on_file_grid(found.image.data).shape == (60, 61, 62)


def test_a_compressed_file_is_read_in_one_pass(
    write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened again for each slab, a scan of 512 slices would be unpacked 256 times."""
    path = write(packed(voxels((40, 40, 80))))
    monkeypatch.setattr(image, "LARGEST", 20_000)
    opened = []
    original = nib.openers.Opener.__init__

    def counting(self: Any, *arguments: Any, **keywords: Any) -> None:
        opened.append(arguments)
        original(self, *arguments, **keywords)

    monkeypatch.setattr(nib.openers.Opener, "__init__", counting)
    load_t1w(path)
    assert 0 < len(opened) < 6


def test_512_cubed_stays_within_bounds(tmp_path: Path) -> None:
    """A ball in 512^3 voxels of 0.5 mm: 270 MB as stored, 540 MB in floating point."""
    side, radius = 512, 180
    path = tmp_path / "sub-01_T1w.nii.gz"
    header = nifti(np.zeros((16, 16, 16), np.int16), np.diag([0.5, 0.5, 0.5, 1]),
                   dim=[3, side, side, side, 1, 1, 1, 1])[:352]  # fmt: skip
    axis = np.arange(side) - side / 2
    disc = axis[:, None] ** 2 + axis**2
    with gzip.open(path, "wb", 1) as stream:
        stream.write(header)
        for height in axis:
            stream.write(((disc + height**2 < radius**2) * np.int16(500)).tobytes())
    tracemalloc.start()
    try:
        found = load_t1w(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.reduction == 2 and found.image.zooms == (1, 1, 1)
    ball_ml = 4 / 3 * np.pi * (radius / 20) ** 3
    assert found.image.data.mean() / 500 * 256**3 / 1000 == pytest.approx(ball_ml, rel=0.01)
    assert peak < 180e6
