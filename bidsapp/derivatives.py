"""BIDS out: every name, sidecar and file of the output folder is made here.

Files appear under their names complete or not at all: each is written under a temporary name in
its folder and then renamed, so any number of processes may write to one output folder.
"""

from __future__ import annotations

import glob
import gzip
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bidsapp.description import (
    ABOUT,
    BIDSIGNORE,
    CITATION,
    README,
    check_owner,
    check_source,
    description,
    source_of,
)
from bidsapp.errors import UserError
from bidsapp.files import TEMPORARY, plain, read_json, replace, sidecar_path, table_cell

if TYPE_CHECKING:
    from bidsapp.study import Scan
    from models.segmentation.labels import Label

RESOLUTION = "2"
_STALE_SECONDS = 3600.0
# Measured on label maps and float images: level 6 takes a quarter of the time of 9 for 1-4 % more.
_COMPRESSION = 6

_DESCRIPTIONS = {
    "desc-brain_mask": "What the skull encloses: the brain and the fluid around it",
    f"res-{RESOLUTION}_desc-brain_mask": "The brain without the fluid around it: what models see",
    "dseg": "Tissues and regions of the brain, found by the segmentation network",
    "desc-preproc_T1w": "T1w image: bias field corrected, brain only, resampled to the template",
    "label-GM_probseg": "Share of grey matter in each voxel, by the segmentation",
    "label-WM_probseg": "Share of white matter in each voxel, by the segmentation",
    "label-CSF_probseg": "Share of fluid in each voxel, ventricles included, by the segmentation",
    "desc-modulated_probseg": "Amount of tissue in each voxel, warped to the template's tissue and"
    " multiplied by the volume that the warp took from it",
    "importance": "How much each place in the brain contributed to the predicted age",
}
_TABLE_KEYS = {
    "index": "Value in the label image",
    "name": "Name of the region",
    "abbreviation": "Short name of the region",
    "color": "Colour in which reports show the region, as RGB in hexadecimal",
    "tissue": "Tissue that the region counts towards",
    "hemisphere": "L for left, R for right, n/a for both or neither",
}


def new_run_id() -> str:
    """Return a name for the log folder of a run: date, time and a random part."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4()}"


@dataclass(frozen=True)
class Derivatives:
    """The output folder of a run.

    Attributes
    ----------
    root
        The output folder.
    study_root
        The BIDS data set, which the name ``raw`` in BIDS URIs stands for.
    template
        TemplateFlow name of the standard space.
    """

    root: Path
    study_root: Path
    template: str

    # --- names ---

    def brain_mask(self, scan: Scan) -> Path:
        """Brain mask on the grid of the scan."""
        return self._anat(scan, "desc-brain_mask.nii.gz")

    def dseg(self, scan: Scan) -> Path:
        """Label image on the grid of the scan."""
        return self._anat(scan, "dseg.nii.gz")

    def xfm(self, scan: Scan, origin: str, target: str) -> Path:
        """ITK affine that resamples an image of space `origin` to space `target`."""
        return self._anat(scan, f"from-{origin}_to-{target}_mode-image_xfm.txt")

    def preproc(self, scan: Scan) -> Path:
        """Preprocessed T1w image in the template."""
        return self._anat(scan, f"{self._space}_desc-preproc_T1w.nii.gz")

    def tissue(self, scan: Scan, tissue: str) -> Path:
        """Share of a tissue ("GM") in each voxel, in the template."""
        return self._anat(scan, f"{self._space}_label-{tissue}_probseg.nii.gz")

    def modulated(self, scan: Scan, tissue: str) -> Path:
        """Amount of a tissue ("GM") in each voxel, warped to the template."""
        return self._anat(scan, f"{self._space}_label-{tissue}_desc-modulated_probseg.nii.gz")

    def template_mask(self, scan: Scan) -> Path:
        """Brain mask in the template."""
        return self._anat(scan, f"{self._space}_desc-brain_mask.nii.gz")

    def importance(self, scan: Scan, model: str, method: str) -> Path:
        """Map of where a prediction comes from, in the template."""
        return self._anat(scan, f"{self._space}_desc-{_label(model + method)}_importance.nii.gz")

    def importance_figure(self, participant_id: str, stem: str, label: str, name: str) -> Path:
        """Picture of an importance map, such as ``map.png``; `label` is the map's."""
        return self.figures(participant_id) / f"{stem}_desc-{_label(label)}_{name}"

    def record(self, scan: Scan) -> Path:
        """Record of a scan, written last: where it is, the scan is done."""
        return self._anat(scan, "brainage.json")

    def report(self, participant_id: str) -> Path:
        """HTML report of a participant."""
        return self.root / f"{participant_id}.html"

    def figures(self, participant_id: str) -> Path:
        """Folder of the pictures in the report of a participant."""
        return self.root / participant_id / "figures"

    def figure(self, participant_id: str, stem: str, name: str) -> Path:
        """One picture of a scan."""
        return self.figures(participant_id) / f"{stem}_desc-{name}_T1w.png"

    def log_dir(self, run_id: str) -> Path:
        """Folder of the settings, messages and crash files of a run."""
        return self.root / "logs" / run_id

    def crash(self, run_id: str, stem: str) -> Path:
        """File that tells what went wrong with a scan."""
        return self.log_dir(run_id) / f"crash-{stem}.txt"

    def group(self, name: str) -> Path:
        """File of the group level, such as ``brainage.tsv``."""
        return self.root / f"group_{name}"

    @property
    def group_report(self) -> Path:
        """HTML report of the group level."""
        return self.root / "group.html"

    @property
    def group_page_content(self) -> Path:
        """What the report of the group level says, to make it again."""
        return self.group("report.json")

    def group_figure(self, name: str) -> Path:
        """One figure of the report of the group level."""
        return self.root / "figures" / f"group_{name}.svg"

    def group_importance(self, model: str, method: str, part: str = "") -> Path:
        """Importance map of the group in the template: the mean, or a part, as "stat-std"."""
        part = f"{part}_" if part else ""
        label = _label(model + method)
        return self.group(f"{self._space}_{part}desc-{label}_importance.nii.gz")

    def group_importance_figure(self, label: str, name: str) -> Path:
        """Picture of an importance map of the group; `label` is the map's."""
        return self.root / "figures" / f"group_desc-{_label(label)}_{name}"

    def group_noise_model(self, model: str, part: str = "noisemodel") -> Path:
        """Noise model that was fitted to the group."""
        return self.group(f"desc-{_label(model)}_{part}.safetensors")

    @property
    def label_table(self) -> Path:
        """Names of the values of every label image."""
        return self.root / "dseg.tsv"

    def uri(self, path: Path) -> str:
        """BIDS URI of a file in the output folder, for ``Sources`` in a sidecar."""
        return f"bids::{path.relative_to(self.root).as_posix()}"

    @property
    def _about(self) -> Path:
        return self.root / ABOUT

    @property
    def _space(self) -> str:
        return f"space-{self.template}_res-{RESOLUTION}"

    def _anat(self, scan: Scan, ending: str) -> Path:
        folder = self.root / scan.participant_id
        if scan.session_id:
            folder /= scan.session_id
        return folder / "anat" / f"{scan.stem}_{ending}"

    def source_names(self) -> set[str]:
        """Folder names of the data sets that this folder was made from."""
        path = self._about
        sources = read_json(path).get("SourceDatasets") or () if path.exists() else ()
        urls = (str(source.get("URL", "")) for source in sources if isinstance(source, Mapping))
        names = {Path(unquote(urlsplit(url).path)).name for url in urls}
        return (names | {self.study_root.name}) - {"", ".."}

    # --- the folder ---

    def prepare(self, citation: str | None = None) -> list[str]:
        """Write what describes the folder; to be called at the start of a run.

        Parameters
        ----------
        citation
            Markdown text of ``logs/CITATION.md``; without it a file that is there stays.

        Returns
        -------
        list of str
            Warnings, such as that another version wrote to the folder before.

        Raises
        ------
        UserError
            The folder is not ours, or holds records of another data set.
        """
        before, after, warnings = self._check()
        if after != before:
            self.write_json(self._about, after)
        ignored = self.root / ".bidsignore"
        lines = ignored.read_text(encoding="utf-8").splitlines() if ignored.exists() else []
        missing = [line for line in BIDSIGNORE.splitlines() if line not in lines]
        if missing:
            self.write_text(ignored, "\n".join(lines + missing) + "\n")
        readme, cite = self.root / "README", self.root / "logs" / "CITATION.md"
        if not readme.exists():
            self.write_text(readme, README)
        if citation or not cite.exists():
            self.write_text(cite, citation or CITATION)
        self.remove_stale(self.root)
        return warnings

    def check(self) -> list[str]:
        """Warn and raise as `prepare` does, and write nothing."""
        return self._check()[-1]

    def _check(self) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """The description of before, that of now, and what there is to warn of."""
        there = self._about.exists()  # asked once: another process may write it in between
        before = read_json(self._about) if there else {}
        warnings = check_owner(before, self._about) if there else []
        after = description(self.root, self.study_root, before)
        return (
            before,
            after,
            warnings
            + check_source(
                self.root, source_of(before), source_of(after), any(self.record_paths())
            ),
        )

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_with_sidecar(self, path: Path) -> None:
        """Remove an image or transform and what is said about it."""
        self.remove(path)
        self.remove(sidecar_path(path))

    def remove_scan(self, scan: Scan) -> None:
        """Remove all that was written of a scan, and the page that shows it."""
        record, stem = self.record(scan), glob.escape(scan.stem)
        self.remove(record)  # first: it must not vouch for what is half gone
        for pattern in ("desc-*", "dseg.*", "from-*", "space-*"):
            for path in record.parent.glob(f"{stem}_{pattern}"):
                self.remove(path)
        for path in self.figures(scan.participant_id).glob(f"{stem}_desc-*"):
            self.remove(path)
        self.remove(self.report(scan.participant_id))

    def importance_maps(self, participant_id: str, stem: str) -> dict[str, dict[str, Any]]:
        """Sidecars of a scan's importance maps by their labels; of a map's layers not."""
        folders = (f"{participant_id}/anat", f"{participant_id}/ses-*/anat")
        name = f"{glob.escape(stem)}_space-*_importance.nii.gz"
        paths = [path for folder in folders for path in self.root.glob(f"{folder}/{name}")]
        found = {_desc(path): self.read_sidecar(path) for path in sorted(paths)}
        return {label: about for label, about in found.items() if "Fingerprint" in about}

    def group_importance_maps(self) -> dict[str, dict[str, Any]]:
        """Sidecars of the group's mean importance maps by their labels."""
        paths = sorted(self.root.glob(f"group_{self._space}_desc-*_importance.nii.gz"))
        return {_desc(path): self.read_sidecar(path) for path in paths}

    def remove_group_importance(self) -> None:
        """Remove the group's importance maps, their pictures, table of regions and tests.

        They may be of other scans or weights. Fitted noise models stay, to be used again.
        """
        for pattern in ("group_*_importance.*", "figures/group_desc-*"):
            for path in self.root.glob(pattern):
                self.remove(path)
        for name in ("regions.tsv", "importance_check.tsv"):
            self.remove_with_sidecar(self.group(name))

    def remove_stale(self, folder: Path) -> None:
        """Remove temporary files that a killed process left in a folder an hour ago or earlier."""
        for path in folder.glob(TEMPORARY):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # its writer, or another run, was faster
                continue

    # --- writers ---

    def write_image(
        self,
        path: Path,
        array: NDArray[Any],
        affine: ArrayLike,
        sidecar: Mapping[str, Any],
        dtype: DTypeLike,
    ) -> None:
        """Write a NIfTI image and its JSON sidecar; the same content gives the same bytes.

        Parameters
        ----------
        path
            One of the names above.
        array
            Voxels, shape (X, Y, Z).
        affine
            Voxel indices to RAS mm, shape (4, 4).
        sidecar
            Added to what the name of the file says; wins over it.
        dtype
            Type on disk, without scaling.

        Raises
        ------
        ValueError
            `array` is not 3D, or an integer `dtype` would change its values.
        """
        import nibabel as nib

        array = np.asarray(array)
        data = array.astype(dtype)
        if data.ndim != 3:
            raise ValueError(f"{path.name}: shape {data.shape} is not that of a 3D image")
        if data.dtype.kind in "iu" and not np.array_equal(data, array):
            raise ValueError(f"{path.name}: values do not fit into {data.dtype}")
        matrix = np.asarray(affine, dtype=float)
        image = nib.Nifti1Image(data, matrix)
        code = ("mni" if "MNI" in self.template else "aligned") if "_space-" in path.name else 1
        image.set_sform(matrix, code)
        image.set_qform(matrix if _is_rigid(matrix) else None, code if _is_rigid(matrix) else 0)
        image.header.set_xyzt_units("mm")
        replace(path, gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0))
        self.write_json(sidecar_path(path), self._sidecar(path.name, sidecar))

    def write_transform(
        self, path: Path, matrix: ArrayLike, sidecar: Mapping[str, Any] | None = None
    ) -> None:
        """Write an affine as ITK text, with its sidecar.

        Parameters
        ----------
        path
            From `xfm`.
        matrix
            RAS mm of the target space to RAS mm of the origin, shape (4, 4): the direction in
            which ITK resamples an image of the origin on the grid of the target.
        """
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts from right to left and front to back
        lps = flip @ np.asarray(matrix, dtype=float) @ flip
        numbers = [*lps[:3, :3].ravel(), *lps[:3, 3]]
        text = (
            "#Insight Transform File V1.0\n#Transform 0\n"
            "Transform: AffineTransform_double_3_3\n"
            f"Parameters: {' '.join(f'{number + 0.0:.17g}' for number in numbers)}\n"
            "FixedParameters: 0 0 0\n"
        )
        self.write_text(path, text)
        self.write_json(sidecar_path(path), dict(sidecar or {}))

    def write_table(
        self, path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any]
    ) -> None:
        """Write a TSV table and a sidecar that describes every column.

        Parameters
        ----------
        rows
            Values by column; missing, ``None``, empty and non-finite ones become ``n/a``.
        columns
            Description of each column, in order; a text, or a mapping with ``Description``.
        """
        cells = ([table_cell(row.get(c)) for c in columns] for row in rows)
        lines = ("\t".join(line) + "\n" for line in chain([columns], cells))
        self.write_text(path, "".join(lines))
        described = {
            name: {"Description": about} if isinstance(about, str) else about
            for name, about in columns.items()
        }
        self.write_json(sidecar_path(path), described)

    def write_label_table(self, labels: Iterable[Label]) -> None:
        """Write the names of the values of the label images, once for the whole folder."""
        rows = ({key: getattr(label, key) for key in _TABLE_KEYS} for label in labels)
        self.write_table(self.label_table, rows, _TABLE_KEYS)

    def write_json(self, path: Path, value: Any) -> None:
        """Write JSON; keys keep their order, numbers that are not finite become null."""
        text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(path, text + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Write text as UTF-8."""
        replace(path, text.encode("utf-8"))

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Write bytes, such as those of a picture."""
        replace(path, data)

    def _sidecar(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Add what BIDS asks for and the name of the image already says."""
        sidecar: dict[str, Any] = {}
        for ending, about in _DESCRIPTIONS.items():
            if name.endswith(f"_{ending}.nii.gz"):
                sidecar["Description"] = about
        if "_space-" in name:
            sidecar["Resolution"] = f"{RESOLUTION} mm isotropic, in the space {self.template}"
        else:
            raw = [uri for uri in given.get("Sources", ()) if uri.startswith("bids:raw:")]
            sidecar |= {"SpatialReference": raw[0]} if raw else {}
        if name.endswith("_mask.nii.gz"):
            sidecar["Type"] = "Brain"
        if name.endswith("_T1w.nii.gz"):
            sidecar["SkullStripped"] = True
        if name.endswith("_dseg.nii.gz"):
            sidecar["Manual"] = False
        return sidecar | dict(given)

    def read_image(self, path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Read back an image written here: voxels (X, Y, Z) and affine (4, 4)."""
        import nibabel as nib

        image = nib.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj), np.asarray(image.affine, np.float64)

    def read_bytes(self, path: Path) -> bytes | None:
        """Read back a file of this folder; None where there is none."""
        return path.read_bytes() if path.is_file() else None

    def read_sidecar(self, path: Path) -> dict[str, Any]:
        """What is said about an image; nothing where it or its sidecar is absent or damaged."""
        sidecar = sidecar_path(path)
        if not (path.is_file() and sidecar.is_file()):
            return {}
        try:
            return read_json(sidecar)
        except UserError:
            return {}

    # --- records ---

    def read_record(self, path: Path) -> dict[str, Any]:
        """Read the record of a scan.

        Raises
        ------
        UserError
            There is none, or it is damaged.
        """
        try:
            return read_json(path)
        except UserError as error:
            raise UserError(f"{error} Delete it and run the participant level again.") from error

    def read_group_page_content(self) -> dict[str, Any]:
        """Read what the report of the group level says.

        Raises
        ------
        UserError
            There is none, or it is damaged.
        """
        if not self.group_page_content.is_file():
            raise UserError(
                f"{self.group_page_content} is not there, so the report of the group cannot be "
                "written again; run the group level without --reports-only."
            )
        return read_json(self.group_page_content)

    def record_paths(self, participant_id: str = "sub-*") -> list[Path]:
        """The records that are there, of one participant or of all, sorted."""
        folders = (f"{participant_id}/anat", f"{participant_id}/ses-*/anat")
        return sorted(p for f in folders for p in self.root.glob(f"{f}/sub-*_brainage.json"))

    def participants(self) -> list[str]:
        """The participants that have a record, sorted."""
        depth = len(self.root.parts)
        return sorted({path.parts[depth] for path in self.record_paths()})

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records of the folder, sorted by path."""
        yield from map(self.read_record, self.record_paths())


def _label(text: str) -> str:
    """Return a BIDS label: letters and digits."""
    return "".join(letter for letter in text if letter.isascii() and letter.isalnum())


def _desc(path: Path) -> str:
    """The label of an image's `desc` entity."""
    return path.name.split("_desc-")[1].split("_")[0]


def _is_rigid(affine: NDArray[np.float64]) -> bool:
    """Whether the axes are at right angles, without which a qform cannot hold the affine."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-6))
