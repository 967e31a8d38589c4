"""The settings of one run: a frozen dataclass, read from and written to TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.errors import UserError
from bidsapp.resources import available_cpus, available_memory_gb, default_nprocs

LEVELS = ("participant", "group")
IMPORTANCE_METHODS = ("noise", "gradcam", "attention", "occlusion")
BIAS_CORRECTIONS = ("offset", "cole", "smith", "none")
BIAS_DEGREES = ("auto", "1", "2", "3", "bic")
GB_PER_SCAN = 2.0


def option(
    help: str,
    default: Any = MISSING,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
) -> Any:
    """Declare one setting: its help text, default and limits, in one place."""
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything a run was asked to do.

    Values are converted (text to ``Path``, list to ``tuple``, labels without their ``sub-`` or
    ``ses-``) and checked on creation, whether they come from the command line or from a file.

    Raises
    ------
    UserError
        A value has the wrong type or is outside its choices or limits.
    """

    bids_dir: Path = option("the BIDS data set to read; it is never written to")
    output_dir: Path = option("the folder to write to; it is made where needed")
    analysis_level: tuple[str, ...] = option(
        "what to do: 'participant' predicts every scan, 'group' summarises the output folder; "
        "both may be given in one call",
        choices=LEVELS,
    )

    participant_label: tuple[str, ...] = option(
        "participants to process, or to analyse at the group level, with or without 'sub-'; "
        "'@list.txt' reads labels from a file; all when not given",
        (),
    )
    session_label: tuple[str, ...] = option(
        "sessions to process, or to analyse at the group level, with or without 'ses-'; all when "
        "not given",
        (),
    )
    bids_filter_file: Path | None = option(
        "JSON file with PyBIDS filters for the key 't1w', as in fMRIPrep: null means 'absent', "
        "'*' means 'any'; at the group level, for the scans to analyse",
        None,
    )
    skip_bids_validation: bool = option(
        "take T1w images whose file names break the BIDS rules as well", False
    )
    bids_database_dir: Path | None = option(
        "keep the PyBIDS index in this folder and reuse it; delete the folder when the data set "
        "changes",
        None,
    )
    derivatives: tuple[str, ...] = option(
        "derivative data sets of the same participants, as PACKAGE=PATH or PATH; accepted for "
        "compatibility, not used yet",
        (),
    )

    work_dir: Path | None = option(
        "where to put temporary files, instead of the system's folder for them", None
    )
    nprocs: int = option(
        "scans processed side by side; 0, the default: as many as processors and memory allow",
        0,
        minimum=0,
    )
    omp_nthreads: int = option(
        "threads per scan, and of the maps of the group level; results are bit-identical between "
        "runs with 1",
        1,
        minimum=1,
    )
    mem_gb: float | None = option(
        "memory in GB that may be used: without --nprocs, a scan goes side by side for each 2 GB",
        None,
        minimum=0.1,
    )
    low_mem: bool = option("use less memory: one scan after the other", False)
    dask_scheduler: str | None = option(
        "send the scans to a Dask cluster, in place of --nprocs: the address of its scheduler or "
        "its scheduler file; its workers must see the same folders",
        None,
    )

    models: tuple[str, ...] = option(
        "brain-age models to run, or whose ages the group level analyses; by default all whose "
        "weights are part of this software or were fetched (python -m models fetch), and at the "
        "group level all that the records hold",
        (),
    )
    model_file: tuple[str, ...] = option(
        "use these weights for a model: NAME=PATH, where PATH is a model folder or a .safetensors "
        "file with its card beside it",
        (),
    )
    device: str = option(
        "where networks run; 'auto' takes a GPU if there is one",
        "auto",
        choices=("auto", "cpu", "cuda"),
    )
    importance: tuple[str, ...] = option(
        "methods that map where in the brain a prediction comes from; 'auto' is noise at the "
        "group level, from the images of the participant level, and none at the participant level",
        ("auto",),
        choices=("auto", "none", *IMPORTANCE_METHODS),
    )
    importance_max_scans: int = option(
        "scans that the maps of the group level are made from, spread over all ages",
        100,
        minimum=2,
    )
    importance_check: bool = option(
        "test whether the maps of the group level mean something: weights randomised layer by "
        "layer, important places erased, methods compared",
        False,
    )
    noise_model: tuple[str, ...] = option(
        "fitted noise models to use, at either level, in place of those that come with the models "
        "or are fitted at the group level",
        (),
    )
    atlas: tuple[str, ...] = option(
        "atlas for region tables: 'cerebra', which TemplateFlow fetches once, or a NIfTI file of "
        "labels in the template's space and its table (TSV with index, name and, if known, "
        "hemisphere); by default CerebrA if it is in TEMPLATEFLOW_HOME already",
        (),
    )

    template: str = option(
        "standard space of the output images, by its TemplateFlow name", "MNI152NLin2009aSym"
    )
    skull_strip_t1w: str = option(
        "whether to strip the skull: 'auto' leaves an image that is stripped already, 'skip' "
        "takes every image for stripped, 'force' strips all",
        "auto",
        choices=("auto", "skip", "force"),
    )
    quality: str = option(
        "what becomes of a scan with a quality figure out of its limits: 'warn' flags it and "
        "writes its age, 'fail' flags it, writes no age and counts it as failed, 'off' measures "
        "and does not judge",
        "warn",
        choices=("warn", "fail", "off"),
    )

    reference: str | None = option(
        "who the healthy reference is, as COLUMN=VALUE; by default the usual words for controls "
        "in the column group, diagnosis or dx, and everybody where there are none",
        None,
    )
    covariates: tuple[str, ...] = option(
        "columns of participants.tsv, sessions.tsv or the phenotype file to adjust for, beside "
        "age, its square, sex and site",
        (),
    )
    phenotype: Path | None = option(
        "TSV file with the column participant_id, and session_id where it matters, that holds "
        "more columns",
        None,
    )
    phenotype_terms: tuple[str, ...] = option(
        "columns to test against the brain-age gap: numbers by partial correlation, two values by "
        "logistic regression",
        (),
    )
    contrast: tuple[str, ...] = option(
        "two groups to compare, as 'COLUMN: A - B', such as 'group: AD - control'; by default "
        "every group with the reference",
        (),
    )
    permutations: int = option(
        "permutations per test (Freedman-Lane); 0 for none", 10_000, minimum=0
    )
    bias_correction: str = option(
        "how the dependence of the gap on age is removed, as fitted on the reference",
        "offset",
        choices=BIAS_CORRECTIONS,
    )
    bias_degree: str = option(
        "degree of the curve of age in the correction; 'auto' is 1, and 2 for smith; 'bic' lets "
        "the data choose",
        "auto",
        choices=BIAS_DEGREES,
    )
    bias_robust: bool = option("fit the correction robustly (Huber)", False)
    bias_force: bool = option("correct even where a guard advises against it", False)
    bias_correction_from: Path | None = option(
        "apply the correction of an earlier study: its group_bias_correction.json", None
    )
    harmonize: bool = option(
        "remove shift and spread of each site from the gap, as fitted on the site's reference",
        False,
    )
    include_failed_quality: bool = option("use scans that failed quality in fits as well", False)
    allow_mixed: bool = option(
        "analyse records together that other versions or weights have made", False
    )

    output_level: str = option(
        "what is kept of a scan: 'full', or 'minimal', its record alone: no images, transforms, "
        "pictures or page",
        "full",
        choices=("minimal", "full"),
    )
    reports_only: bool = option("only write the reports again, from existing outputs", False)
    stop_on_first_crash: bool = option("stop at the first scan that fails", False)
    dry_run: bool = option(
        "list what would be processed, and which scans have a record already; at the group level, "
        "who would be analysed and what there is to know about it; write nothing",
        False,
    )
    random_seed: int = option("seed of everything random", 1, minimum=0)
    verbose: int = option("say more; repeat for more still", 0, minimum=0)
    notrack: bool = option("accepted for compatibility; this program never sends anything", False)
    config_file: Path | None = option(
        "TOML file of settings, such as settings.toml of an earlier run; the command line wins",
        None,
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = _converted(setting.name, str(setting.type), getattr(self, setting.name))
            _check_limits(setting.name, setting.metadata, value)
            self._set(setting.name, value)
        if not self.analysis_level:
            raise UserError("setting 'analysis_level' is empty: give participant, group or both.")
        self._set("participant_label", _labels(self.participant_label, "sub-"))
        self._set("session_label", _labels(self.session_label, "ses-"))
        self._set("importance", tuple(name for name in self.importance if name != "none"))
        self._set("noise_model", _absolute(self.noise_model))
        if len(self.atlas) == 2:
            self._set("atlas", _absolute(self.atlas))
        elif self.atlas not in ((), ("cerebra",)):
            raise UserError(
                "--atlas takes 'cerebra', or two files: the label image and its table."
            )
        if not (self.template.isascii() and self.template.isalnum()):
            raise UserError(
                f"template '{self.template}' is not the name of a TemplateFlow template: "
                "letters and digits only, such as MNI152NLin2009aSym."
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def log_level(self) -> int:
        """Level for the logging module: a line per scan; each -v lowers it by 5, down to DEBUG."""
        return max(20 - 5 * self.verbose, 10)

    @property
    def side_by_side(self) -> int:
        """How many scans this machine is to process side by side, by what was asked for."""
        if self.low_mem or self.nprocs:
            return 1 if self.low_mem else self.nprocs
        memory = self.mem_gb or available_memory_gb()
        return default_nprocs(available_cpus(), memory, GB_PER_SCAN)

    def importance_at(self, level: str) -> tuple[str, ...]:
        """The methods that map importance at a level."""
        default = {"group": ("noise",)}.get(level, ())
        named = (name for name in self.importance if name != "auto")
        return tuple(dict.fromkeys((*(default if "auto" in self.importance else ()), *named)))

    def asks_for(self, participant_id: str, session_id: str | None) -> bool:
        """Whether a scan is of the participants and sessions that were named, if any were."""
        participant = participant_id.removeprefix("sub-")
        session = (session_id or "").removeprefix("ses-")
        return (not self.participant_label or participant in self.participant_label) and (
            not self.session_label or session in self.session_label
        )

    @property
    def model_paths(self) -> dict[str, Path]:
        """Weights given by the user, by model name."""
        return dict(_name_and_path("--model-file", item) for item in self.model_file)

    @property
    def derivative_paths(self) -> dict[str, Path]:
        """Derivative data sets given by the user, by package name."""
        return dict(_name_and_path("--derivatives", item, True) for item in self.derivatives)

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Make settings from TOML text that holds at least the three positional arguments."""
        values = parse_toml(text, "the TOML text")
        missing = {"bids_dir", "output_dir", "analysis_level"} - values.keys()
        if missing:
            raise UserError(f"the TOML text lacks {', '.join(sorted(missing))}.")
        return cls(**values)

    def to_toml(self) -> str:
        """Write the settings as TOML text with every option explained; ``None`` is left out."""
        lines = [f"# Settings of a run of brainage {__version__}"]
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is not None:
                lines += ["", f"# {setting.metadata['help']}"]
                lines += [f"{setting.name} = {_toml_value(value)}"]
        return "\n".join(lines) + "\n"


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Read TOML text into keyword arguments of `Settings`.

    Raises
    ------
    UserError
        The text is not TOML, or holds a key that is no setting. The message begins with `name`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not valid TOML: {error}.") from error
    known = [setting.name for setting in fields(Settings)]
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
            raise UserError(f"{name} has an unknown setting '{key}': {hint}")
    return values


def _converted(name: str, annotation: str, value: Any) -> Any:
    kind = annotation.removesuffix(" | None")
    if value is None and kind != annotation:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind:
        case "Path" if isinstance(value, (str, Path)) and str(value):
            return Path(value).expanduser().absolute()
        case "tuple[str, ...]" if isinstance(value, (list, tuple)):
            if all(isinstance(item, str) for item in value):
                return tuple(dict.fromkeys(value))
        case "float" if number:
            return float(value)
        case "int" if number and value == int(value):
            return int(value)
        case "bool" if isinstance(value, bool):
            return value
        case "str" if isinstance(value, str):
            return value
    words = {"tuple[str, ...]": "a list of words", "Path": "a path", "str": "a word"}
    raise UserError(
        f"setting '{name}' must be {words.get(kind, f'of type {kind}')}, not {value!r}."
    )


def _check_limits(name: str, metadata: Mapping[str, Any], value: Any) -> None:
    choices, minimum = metadata["choices"], metadata["minimum"]
    for word in value if isinstance(value, tuple) else (value,):
        if choices and word not in choices:
            raise UserError(f"setting '{name}' must be one of {', '.join(choices)}, not '{word}'.")
    if minimum is not None and value is not None and not value >= minimum:
        raise UserError(f"setting '{name}' must be {minimum} or more, not {value}.")


def _labels(labels: tuple[str, ...], prefix: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label.removeprefix(prefix) for label in labels))


def _absolute(files: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(Path(file).expanduser().absolute()) for file in files)


def _name_and_path(flag: str, item: str, name_optional: bool = False) -> tuple[str, Path]:
    name, equals, path = item.partition("=")
    if not equals and name_optional:
        name, path = Path(item).name, item
    if not name or not path:
        raise UserError(f"{flag} takes NAME=PATH, not '{item}'.")
    return name, Path(path).expanduser().absolute()


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    escapes = {ord("\\"): "\\\\", ord('"'): '\\"', 0x7F: "\\u007f"}
    escapes |= {code: f"\\u{code:04x}" for code in range(0x20)}
    return '"' + str(value).translate(escapes) + '"'
