"""Load, validate and reorient a T1-weighted scan; the only module here that reads scans."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from bidsapp.errors import ScanError

Array = NDArray[np.float32]
LARGEST = 288 * 288 * 288
"""Voxels kept in memory; a larger scan is averaged over blocks while it is read."""
THICK_MM = 4.0
SMALLEST_MM, LARGEST_MM = 0.2, 10.0
FARTHEST_MM = 1e4
_RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class Image:
    """A volume and where it lies.

    ``data`` is (X, Y, Z) with axes running to the right, to the front and up (RAS);
    ``affine`` (4, 4) takes voxel indices to mm.
    """

    data: NDArray
    affine: NDArray[np.float64]

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel sizes in mm."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def with_data(self, data: NDArray) -> Image:
        """Another volume on the same grid."""
        return Image(data, self.affine)


@dataclass(frozen=True)
class T1w:
    """A validated scan: ``image`` for the work, the rest to write on the file's own grid."""

    image: Image
    file_shape: tuple[int, int, int]
    file_affine: NDArray[np.float64]
    reduction: int
    warnings: tuple[str, ...]

    def on_file_grid(self, labels: NDArray) -> NDArray:
        """Carry a label volume (X, Y, Z; RAS) back to the axes and the shape of the file."""
        to_file = ornt_transform(_RAS, io_orientation(self.file_affine))
        back = apply_orientation(labels, to_file)
        for axis in range(3) if self.reduction > 1 else ():
            back = back.repeat(self.reduction, axis)
        missing = [(0, n - m) for n, m in zip(self.file_shape, back.shape)]
        return np.pad(back, missing, mode="edge") if any(m for _, m in missing) else back


def load_t1w(path: Path) -> T1w:
    """Read a scan, refuse what cannot be one, and turn its axes to RAS.

    Raises
    ------
    ScanError
        One sentence that names the file, what is wrong with it, and what to do.
    """
    nifti = _open(path)
    shape = _spatial_shape(nifti, path)
    affine = _checked_affine(nifti, path)
    reduction = math.ceil((math.prod(shape) / LARGEST) ** (1 / 3))
    data = _read(nifti, shape, reduction, path)
    _check_values(data, path)
    # of the file's affine, as in on_file_grid: of an oblique scan it may hang on the last bit
    canonical = io_orientation(affine)
    turned = np.ascontiguousarray(apply_orientation(data, canonical), dtype=np.float32)
    turned_affine = affine @ _block_affine(reduction) @ inv_ornt_aff(canonical, data.shape)
    image = Image(turned, turned_affine)
    return T1w(image, shape, affine, reduction, _warnings(image, path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as it lies on disk; a ScanError where it cannot be read."""
    with _opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise ScanError(
            f"{path} does not exist or is a dangling link; fetch its content (e.g. `datalad get`)."
        ) from None
    except OSError as error:
        raise ScanError(f"{path} cannot be read ({error.strerror}); check it.") from None


_UNREADABLE = (
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
    OSError, EOFError, ValueError, zlib.error,
)  # fmt: skip


def _open(path: Path) -> nib.Nifti1Image:
    with _opened(path) as stream:
        is_empty = not stream.read(1)
    if is_empty:
        raise ScanError(f"{path} is empty (0 bytes); copy it again from its source.")
    try:
        # kept open: slabs of a compressed file would each be sought from its beginning
        nifti = nib.load(path, keep_file_open=True)
    except _UNREADABLE:
        raise ScanError(
            f"{path} is not a readable NIfTI file (damaged, truncated or of another format); "
            "copy or convert it again."
        ) from None
    if not isinstance(nifti, nib.Nifti1Image | nib.Nifti2Image):
        raise ScanError(f"{path} is not a NIfTI-1 or NIfTI-2 image; convert it to .nii.gz.")
    return nifti


def _spatial_shape(nifti: nib.Nifti1Image, path: Path) -> tuple[int, int, int]:
    if nifti.get_data_dtype().fields is not None or nifti.get_data_dtype().kind == "c":
        raise ScanError(
            f"{path} holds colour or complex values, not intensities; supply the grey T1w image."
        )
    shape = nifti.shape
    if len(shape) > 3 and any(n != 1 for n in shape[3:]):
        raise ScanError(
            f"{path} holds {int(np.prod(shape[3:]))} volumes; a T1w image has one: "
            "extract it or correct the file's BIDS suffix."
        )
    if len(shape) < 3 or min(shape[:3]) < 16:
        raise ScanError(
            f"{path} has the shape {'x'.join(map(str, shape))}, which is no brain volume; "
            "supply the 3D acquisition."
        )
    return shape[0], shape[1], shape[2]


def _checked_affine(nifti: nib.Nifti1Image, path: Path) -> NDArray[np.float64]:
    header = nifti.header
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise ScanError(
            f"{path} does not say how it is oriented (sform and qform codes are 0); "
            "convert it again from DICOM or set its orientation."
        )
    affine = np.asarray(nifti.affine, np.float64)
    finite = np.isfinite(affine).all()
    zooms = nib.affines.voxel_sizes(affine) if finite else np.zeros(3)
    if header["sform_code"] == 0 and not _stored_zooms(nifti, path).all():
        zooms = np.zeros(3)
    if (
        zooms.min() == 0
        or abs(np.linalg.det(affine[:3, :3] / zooms)) < 0.5
        or np.abs(affine[:3, 3]).max() > FARTHEST_MM
    ):
        raise ScanError(
            f"{path} has an impossible affine (zero, skewed, far away or not a number); "
            "convert it again from DICOM or repair its header."
        )
    if zooms.min() < SMALLEST_MM or zooms.max() > LARGEST_MM:
        raise ScanError(
            f"{path} claims voxels of {' x '.join(f'{z:.3g}' for z in zooms)} mm; "
            "repair its header (units, affine) or supply another scan."
        )
    return affine


def _stored_zooms(nifti: nib.Nifti1Image, path: Path) -> NDArray[np.float32]:
    """Voxel sizes as they lie in the file: nibabel takes a zero for 1 mm."""
    with nib.openers.ImageOpener(str(path)) as stream:
        return type(nifti.header).from_fileobj(stream, check=False)["pixdim"][1:4]


def _read(
    nifti: nib.Nifti1Image, shape: tuple[int, int, int], reduction: int, path: Path
) -> Array:
    try:
        if reduction == 1:
            return np.asarray(nifti.dataobj, np.float32).reshape(shape)
        return _read_blocks(nifti, shape, reduction)
    except (OSError, EOFError, ValueError, zlib.error):
        raise ScanError(
            f"{path} is damaged or truncated: its header promises {'x'.join(map(str, shape))} "
            "voxels that cannot be read; copy it again from its source."
        ) from None


def _read_blocks(nifti: nib.Nifti1Image, shape: tuple[int, int, int], size: int) -> Array:
    """Average over blocks, a few slices at a time, so that memory stays bounded."""
    x, y, z = (n // size for n in shape)
    out = np.empty((x, y, z), np.float32)
    for k in range(z):
        slab = np.asarray(nifti.dataobj[:, :, k * size : (k + 1) * size], np.float32)
        slab = slab.reshape(shape[0], shape[1], size)[: x * size, : y * size]
        out[:, :, k] = slab.reshape(x, size, y, size, size).mean((1, 3, 4))
    return out


def _block_affine(size: int) -> NDArray[np.float64]:
    block = np.diag([size, size, size, 1.0])
    block[:3, 3] = (size - 1) / 2
    return block


def _check_values(data: Array, path: Path) -> None:
    wrong = int(data.size - np.isfinite(data).sum())
    if wrong:
        raise ScanError(
            f"{path} has {wrong} voxels that are NaN or infinite; replace them (0 outside the "
            "head) or convert the scan again."
        )
    if data.min() == data.max():
        raise ScanError(f"{path} is constant ({data.min():g} everywhere); supply another scan.")


def _warnings(image: Image, path: Path) -> tuple[str, ...]:
    found = []
    if max(image.zooms) > THICK_MM:
        found.append(
            f"{path} has slices of {max(image.zooms):.1f} mm: too thick for a trustworthy age"
        )
    extent = np.array(image.data.shape) * image.zooms
    if extent.min() < 100:
        found.append(f"{path} covers {extent.min():.0f} mm only: part of the brain may be missing")
    return tuple(found)
