"""BIDS in: the raw T1w images of a data set, and who was scanned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bidsapp.demographics import (
    Demographics,
    Remarks,
    Table,
    cells_of,
    demographics,
    read_table,
)
from bidsapp.errors import NothingToDo, UserError
from bidsapp.settings import Settings

__all__ = [
    "Demographics",
    "People",
    "Scan",
    "Study",
    "load_study",
    "phenotype_table",
    "study_name",
]

_EXTENSIONS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Scan:
    """One T1w image.

    Attributes
    ----------
    path
        The file; it may turn out to be unreadable, or a link whose content was not fetched.
    source
        BIDS URI, such as ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``.
    participant_id, session_id
        Labels with their prefix; ``session_id`` is ``None`` where there are no sessions.
    stem
        The file name without ``_T1w`` and extension; unique in the data set.
    """

    path: Path
    source: str
    participant_id: str
    session_id: str | None
    stem: str
    demographics: Demographics


@dataclass(frozen=True)
class Study:
    """The scans of a data set that a run is about, sorted by `Scan.stem`."""

    root: Path
    name: str
    scans: tuple[Scan, ...]
    warnings: tuple[str, ...]


def load_study(settings: Settings) -> Study:
    """Find the T1w images that the settings ask for, with the demographics of each.

    Raises
    ------
    UserError
        The folder is no BIDS data set, a label of a participant or session is unknown, or a
        filter is wrong.
    NothingToDo
        No T1w image matches.
    """
    root = settings.bids_dir
    _, warnings = _describe(root)
    participants = _labels(root, "sub-*")
    _check_labels("participant", settings.participant_label, participants, root)
    if settings.session_label:
        _check_labels("session", settings.session_label, _labels(root, "sub-*/ses-*"), root)
    scans, remarks = _scans(_query(settings), root, settings)
    warnings += remarks
    if not scans:
        raise NothingToDo(_nothing(settings, remarks))
    narrowed = settings.session_label or settings.bids_filter_file
    asked = settings.participant_label or (() if narrowed else participants)
    without = {f"sub-{label}" for label in asked} - {scan.participant_id for scan in scans}
    without |= {f"ses-{s}" for s in settings.session_label} - {scan.session_id for scan in scans}
    if without:
        warnings.append(f"{root}: no T1w image matches for {_shortened(sorted(without))}")
    people = People(root)
    scans = [people.scan(scan) for scan in scans]
    warnings += people.warnings(scans)
    return Study(root, study_name(root), tuple(scans), tuple(warnings))


def asked_for(settings: Settings) -> Callable[[str, str | None, str], bool]:
    """Whether a scan that has a record was named, by its labels or by a filter file.

    Returns
    -------
    callable
        From the record's ``participant_id``, ``session_id`` and ``source`` to bool.

    Raises
    ------
    UserError
        A filter is wrong, or there is no data set to ask.
    NothingToDo
        No T1w image of the data set matches it.
    """
    chosen: set[str] | None = None
    if settings.bids_filter_file:
        _describe(settings.bids_dir)
        chosen = {f"bids:raw:{path}" for path in _query(settings)}
        if not chosen:
            raise NothingToDo(_nothing(settings, ()))

    def asked(participant_id: str, session_id: str | None, source: str) -> bool:
        labelled = settings.asks_for(participant_id, session_id)
        return labelled and (chosen is None or source in chosen)

    return asked


def study_name(root: Path) -> str:
    """Name of a data set: what its description says, or else that of its folder."""
    try:
        return str(_describe(root)[0].get("Name") or root.name)
    except UserError:
        return root.name


def _describe(root: Path) -> tuple[dict[str, Any], list[str]]:
    path = root / "dataset_description.json"
    if not path.is_file():
        raise UserError(
            f"{root} has no dataset_description.json, so it is not a BIDS data set; give the "
            "folder that holds that file, or write one with Name and BIDSVersion."
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(description, dict):
        raise UserError(f"{path} must hold a JSON object with Name and BIDSVersion.")
    warnings = [
        f"{path} has no {key}" for key in ("Name", "BIDSVersion") if key not in description
    ]
    if description.get("DatasetType", "raw") != "raw":
        warnings.append(
            f"{path} says DatasetType {description['DatasetType']}; raw T1w images are expected"
        )
    return description, warnings


def _labels(root: Path, pattern: str) -> list[str]:
    """Labels of the folders of this pattern, sorted."""
    names = {path.name for path in root.glob(pattern) if path.is_dir()}
    return sorted(name.partition("-")[2] for name in names)


def _check_labels(kind: str, labels: Sequence[str], existing: Sequence[str], root: Path) -> None:
    unknown = [label for label in labels if label not in existing]
    if not unknown:
        return
    near = [match for label in unknown for match in get_close_matches(label, existing, n=3)]
    shown = existing if len(existing) <= 30 else [*(near or existing[:20]), "..."]
    raise UserError(
        f"{root} has no {kind} {', '.join(unknown)}; the labels of its {len(existing)} "
        f"{kind}s are {', '.join(shown) or 'none'}."
    )


def _wanted(labels: Sequence[str]) -> str:
    """Return a pattern for the paths (from the root) of T1w images and the folders above them."""
    participant = "|".join(map(re.escape, labels)) or "[^/]+"
    return rf"/sub-({participant})(/ses-[^/]+)?(/anat(/[^/]+_T1w\.nii(\.gz)?)?)?"


def _query(settings: Settings) -> list[str]:
    """Ask PyBIDS for the T1w images, as paths from the root, without reading anything else."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    root, database = settings.bids_dir, settings.bids_database_dir
    filters = _filters(settings)
    # A database outlives this run, so it must hold every participant.
    wanted = _wanted(settings.participant_label if database is None else ())
    indexer = BIDSLayoutIndexer(index_metadata=False, ignore=[re.compile(rf"^(?!{wanted}$)")])
    try:
        layout = BIDSLayout(root, validate=False, indexer=indexer, database_path=database)
    except Exception as error:  # whatever SQLite makes of a folder that holds something else
        if database is None:
            raise
        raise UserError(
            f"--bids-database-dir {database} cannot be used: delete it or name another one."
        ) from error
    if Path(layout.root).resolve() != root.resolve():
        raise UserError(
            f"--bids-database-dir {database} is the index of {layout.root}, not of {root}: "
            "name another one."
        )
    if settings.participant_label:
        filters["subject"] = list(settings.participant_label)
    try:
        files = layout.get(**filters)
    except ValueError as error:
        raise UserError(
            f"{settings.bids_filter_file}: {str(error).split('.')[0]}; use names of BIDS entities "
            "such as session, acquisition, reconstruction or run."
        ) from error
    found = (Path(file.path).relative_to(layout.root).as_posix() for file in files)
    return sorted(path for path in found if re.fullmatch(_wanted(()), "/" + path))


def _filters(settings: Settings) -> dict[str, Any]:
    """Return the query: fMRIPrep's filter file, but never for anything else than T1w images."""
    from bids.layout import Query

    filters: dict[str, Any] = {}
    path = settings.bids_filter_file
    if path:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            filters = dict(content.get("t1w", {}))
            wrong = [key for key in content if key.lower() == "t1w" != key]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is not a filter file, which holds JSON such as "
                f'{{"t1w": {{"session": "01"}}}}: {error}.'
            ) from error
        if wrong:
            raise UserError(f"{path} has a key '{wrong[0]}': did you mean 't1w'?")
    special = {None: Query.NONE, "*": Query.ANY}
    for entity, value in filters.items():
        values = value if isinstance(value, list) else [value]
        chosen = [special.get(v, v) if v is None or isinstance(v, str) else v for v in values]
        filters[entity] = chosen if isinstance(value, list) else chosen[0]
    if "subject" in filters and settings.participant_label:
        raise UserError(f"{path} filters by subject; use either that or --participant-label.")
    return {"extension": list(_EXTENSIONS), **filters, "suffix": "T1w", "datatype": "anat"}


def _scans(paths: Sequence[str], root: Path, settings: Settings) -> tuple[list[Scan], list[str]]:
    """Turn files into scans; leave out, with a remark, those that cannot be told apart or used."""
    scans: dict[str, Scan] = {}
    remarks = []
    for path in paths:
        participant, *between, _, name = path.split("/")
        session = between[0] if between else None
        if settings.session_label and session not in [f"ses-{s}" for s in settings.session_label]:
            continue
        stem = re.sub(r"_T1w\.nii(\.gz)?$", "", name)
        fault = _fault(path, "_".join([participant, *between]), settings.skip_bids_validation)
        if not fault and stem in scans:
            fault = f"{scans[stem].path.name} beside it is used"
        if fault:
            remarks.append(f"{path} is left out: {fault}")
        else:
            source = f"bids:raw:{path}"
            scans[stem] = Scan(root / path, source, participant, session, stem, Demographics())
    return [scans[stem] for stem in sorted(scans)], remarks


def _fault(path: str, beginning: str, skip_validation: bool) -> str:
    from bids_validator import BIDSValidator

    name = path.split("/")[-1]
    if re.search(r"_(space|res|den|label|desc)-", name):
        return "it is a derivative, not a raw image"
    if re.search(r"_part-(phase|real|imag)_", name):
        return "it is not a magnitude image"
    if "_chunk-" in name:
        return "it shows a part of the head only"
    if not name.startswith(beginning + "_"):
        return f"its name should begin with {beginning}, as its folders say"
    if not skip_validation and not BIDSValidator().is_bids("/" + path):
        return "its name breaks the BIDS rules (--skip-bids-validation takes it all the same)"
    return ""


def _nothing(settings: Settings, remarks: Sequence[str]) -> str:
    asked = [
        f"{flag} {' '.join(values)}"
        for flag, values in (
            ("--participant-label", settings.participant_label),
            ("--session-label", settings.session_label),
            ("--bids-filter-file", (str(settings.bids_filter_file or ""),)),
        )
        if any(values)
    ]
    matching = f" matches {', '.join(asked)}" if asked else " was found"
    left_out = f"; {remarks[0]}" if remarks else ""
    more = f" (and {len(remarks) - 1} more)" if len(remarks) > 1 else ""
    return f"{settings.bids_dir}: no T1w image{matching}{left_out}{more}."


def phenotype_table(path: Path) -> Table:
    """Read a table of more columns about the participants, by the column ``participant_id``.

    Raises
    ------
    UserError
        It cannot be read, or lacks that column.
    """
    sidecar = path.with_suffix(".json")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        described = json.loads(sidecar.read_text("utf-8-sig")) if sidecar.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"--phenotype {path} cannot be read: {error}.") from error
    described = described if isinstance(described, dict) else {}
    table = read_table(text, path.name, "participant_id", described, "sub-")
    if "participant_id" not in table.columns:
        raise UserError(
            f"--phenotype {path} has no column participant_id; it must be a table with tabs "
            "between its columns and their names in its first row."
        )
    return table


class People:
    """The tables of a data set: participants.tsv, and per participant sessions and scans."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remarks = Remarks()
        self.unreadable: list[str] = []
        self._tables: dict[Path, Table | None] = {}
        self._sidecars: dict[Path, Mapping[str, Any]] = {}
        self.participants = self._table(
            root / "participants.tsv", "participant_id", [root / "participants.json"], "sub-"
        )

    def scan(self, scan: Scan) -> Scan:
        """Return the scan with its demographics; age at the scan or session comes first."""
        found = demographics(self._lookups(scan), scan.session_id, self.remarks)
        return replace(scan, demographics=found)

    def cells(self, scan: Scan, columns: Sequence[str]) -> dict[str, str]:
        """Return what the tables say about a scan in these columns (lower case)."""
        return cells_of(self._lookups(scan), columns, scan.session_id, self.remarks)

    def tells_age_of_session(self, scan: Scan) -> bool:
        """Whether an age is given for the scan or its session, and not for the person alone."""
        own = [
            (table, key)
            for table, key in self._lookups(scan)
            if table is not self.participants or "session_id" in table.columns
        ]
        return demographics(own, scan.session_id, Remarks()).age is not None

    def _lookups(self, scan: Scan) -> list[tuple[Table, str]]:
        """Return the tables that know a scan, the most specific first, and its key in each."""
        participant, session = scan.participant_id, scan.session_id
        above = self.root / participant
        folder = above / session if session else above
        prefix = f"{participant}_{session}" if session else participant
        lookups = []
        scans = self._table(
            folder / f"{prefix}_scans.tsv",
            "filename",
            [self.root / "scans.json", folder / f"{prefix}_scans.json"],
        )
        if scans:
            lookups.append((scans, scan.path.relative_to(folder).as_posix()))
        sessions = session and self._table(
            above / f"{participant}_sessions.tsv",
            "session_id",
            [self.root / "sessions.json", above / f"{participant}_sessions.json"],
            "ses-",
        )
        if sessions and session:
            lookups.append((sessions, session))
        if self.participants:
            lookups.append((self.participants, participant))
        return lookups

    def messages(self) -> list[str]:
        """Return what is wrong with the tables themselves, so far as they were read."""
        return [*self.unreadable, *self.remarks.lines()]

    def warnings(self, scans: Sequence[Scan]) -> list[str]:
        """Return all there is to say about the tables, now that every scan was looked up."""
        warnings = self.messages()
        table = self.participants
        if table is None:
            warnings.append(f"{self.root} has no participants.tsv")
        elif "participant_id" not in table.columns:
            warnings.append(
                f"participants.tsv, row 1: no column participant_id in '{' '.join(table.columns)}'"
            )
        else:
            absent = sorted({s.participant_id for s in scans} - table.rows.keys())
            if absent:
                warnings.append(f"participants.tsv has no row for {_shortened(absent)}")
        for name in ("age", "sex"):
            unknown = [s.stem for s in scans if getattr(s.demographics, name) is None]
            if unknown:
                warnings.append(f"{name} is unknown for {_shortened(unknown)}")
        return warnings

    def _table(
        self, path: Path, key: str, sidecars: Sequence[Path], prefix: str = ""
    ) -> Table | None:
        if path not in self._tables:
            self._tables[path] = self._read(path, key, sidecars, prefix)
        return self._tables[path]

    def _read(self, path: Path, key: str, sidecars: Sequence[Path], prefix: str) -> Table | None:
        if not path.is_file():
            return None
        name = path.relative_to(self.root).as_posix()
        try:
            text = path.read_bytes().decode("utf-8", errors="replace")
        except OSError as error:
            self.unreadable.append(f"{name} cannot be read: {error.strerror}")
            return None
        if "\ufffd" in text:
            self.unreadable.append(f"{name} is not UTF-8 text; some letters are lost")
        merged: dict[str, Any] = {}
        for sidecar in sidecars:
            merged |= self._sidecar(sidecar)
        return read_table(text, name, key, merged, prefix)

    def _sidecar(self, path: Path) -> Mapping[str, Any]:
        if path not in self._sidecars:
            self._sidecars[path] = {}
            if path.is_file():
                try:
                    content = json.loads(path.read_text(encoding="utf-8-sig"))
                    self._sidecars[path] = content if isinstance(content, dict) else {}
                except (OSError, ValueError) as error:
                    name = path.relative_to(self.root).as_posix()
                    self.unreadable.append(f"{name} cannot be read, so it is ignored: {error}")
        return self._sidecars[path]


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
