"""The command line: a parser that documents itself from `Settings`, its checks, and `main`."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from bidsapp import __version__
from bidsapp.errors import UserError
from bidsapp.settings import Settings, parse_toml

NAME = "brainage"
_SETTINGS = {setting.name: setting for setting in fields(Settings)}
_EPILOG = """\
exit codes: 0 all done; 1 some scan failed, the others are written; 2 bad arguments;
3 nothing to do (no T1w image matched); 130 interrupted.
"""


class _SelfTest(argparse.Action):
    """Like ``--version``, an option that is the whole command."""

    def __init__(self, option_strings: Sequence[str], dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **keywords)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from bidsapp import self_test

        parser.exit(self_test.run())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser.

    It only knows spellings; what an option means and its default are declared in `Settings`.
    Options that were not given are absent from the parsed namespace.
    """
    parser = _Parser(
        prog="run.py",
        description="Brain age from T1-weighted MRI. Research only: not a medical device.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name in ("bids_dir", "output_dir"):
        parser.add_argument(name, help=_help(name))
    levels = _SETTINGS["analysis_level"].metadata["choices"]
    parser.add_argument(
        "analysis_level", nargs="+", choices=levels, metavar="{participant,group}",
        help=_help("analysis_level"),
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    parser.add_argument(
        *_spellings("--self-test"), action=_SelfTest,
        help="predict reference brains, compare with the ages this version must give, and exit: "
        "0 if all agree to 0.1 years, else 1; needs no other argument",
    )  # fmt: skip
    _add_filter_options(parser.add_argument_group("Options for filtering BIDS queries"))
    _add_model_options(parser.add_argument_group("Options for the models"))
    _add_image_options(parser.add_argument_group("Options for the preprocessing"))
    _add_group_options(parser.add_argument_group("Options for the group level"))
    _add_performance_options(parser.add_argument_group("Options to handle performance"))
    _add_other_options(parser.add_argument_group("Other options"))
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    """Parse and check a command line.

    Parameters
    ----------
    argv
        The arguments, without the name of the program; those of this process by default.

    Raises
    ------
    UserError
        The command line, a file it names, or the folders it names will not do.
    """
    given = vars(build_parser().parse_args(argv))
    if "participant_label" in given:
        given["participant_label"] = _expand_label_lists(given["participant_label"])
    if "session_label" in given:
        given["session_label"] = [
            label for text in given["session_label"] for label in text.split()
        ]
    if "output_spaces" in given:
        given["template"] = _one_template(given.pop("output_spaces"))
    from_file: dict[str, Any] = {}
    if "config_file" in given:
        from_file = parse_toml(_read(given["config_file"], "--config-file"), given["config_file"])
    settings = Settings(**{**from_file, **given})
    _check_inputs(settings)
    _check_folders(settings)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code (see the epilog of ``--help``)."""
    try:
        return _run(parse_args(argv))
    except SystemExit as stop:  # argparse has answered --help or --version
        return int(stop.code or 0)
    except UserError as error:
        print(f"{NAME}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted; run the same command to go on.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        print(f"{NAME}: error: {error.filename or 'writing'}: {error.strerror}.", file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    # Imported here because they bring in torch and ants, which --help does not need.
    code = 0
    if "participant" in settings.analysis_level:
        from bidsapp import participant

        code = participant.run(settings)
        if code and settings.stop_on_first_crash:
            return code
    if "group" in settings.analysis_level:
        from bidsapp import group

        code = max(code, group.run(settings))
    return code


def _add_filter_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "--skip-bids-validation", "--skip-bids-validator")
    _add(group, "--participant-label", "--participant-labels", metavar="LABEL")
    _add(group, "--session-label", "--session-id", metavar="LABEL")
    _add(group, "--bids-filter-file", metavar="FILE")
    _add(group, "-d", "--derivatives", metavar="PACKAGE=PATH")
    _add(group, "--bids-database-dir", metavar="PATH")


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "--models", metavar="NAME")
    _add(group, "--model-file", metavar="NAME=PATH")
    _add(group, "--device")
    _add(group, "--importance")
    _add(group, "--importance-max-scans", metavar="N")
    _add(group, "--importance-check")
    _add(group, "--noise-model", metavar="FILE")
    _add(group, "--atlas", metavar="ATLAS")


def _add_image_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "--skull-strip-t1w")
    _add(group, "--quality")
    spaces = group.add_mutually_exclusive_group()
    _add(spaces, "--template", metavar="NAME")
    spaces.add_argument(
        *_spellings("--output-spaces"), dest="output_spaces", nargs="+", metavar="SPACE",
        help="as in fMRIPrep: one template name, the same as --template; T1w and anat may be "
        "named too, since images in native space are always written",
    )  # fmt: skip


def _add_group_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "--reference", metavar="COLUMN=VALUE")
    _add(group, "--covariates", metavar="COLUMN")
    _add(group, "--phenotype", metavar="FILE")
    _add(group, "--phenotype-terms", metavar="COLUMN")
    _add(group, "--contrast", metavar="CONTRAST")
    _add(group, "--permutations", metavar="N")
    _add(group, "--bias-correction")
    _add(group, "--bias-degree")
    _add(group, "--bias-robust")
    _add(group, "--bias-force")
    _add(group, "--bias-correction-from", metavar="FILE")
    _add(group, "--harmonize")
    _add(group, "--include-failed-quality")
    _add(group, "--allow-mixed")


def _add_performance_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "--nprocs", "--nthreads", "--n-cpus", metavar="N")
    _add(group, "--omp-nthreads", "--ants-nthreads", metavar="N")
    memory = group.add_mutually_exclusive_group()
    memory.add_argument(
        *_spellings("--mem", "--mem-mb"), dest="mem_gb", type=_megabytes, metavar="MB",
        help="memory that may be used, in MB, or with a unit: 8G; see --mem-gb",
    )  # fmt: skip
    _add(memory, "--mem-gb", metavar="GB")
    _add(group, "--low-mem")
    _add(group, "--dask-scheduler", metavar="ADDRESS")


def _add_other_options(group: argparse._ArgumentGroup) -> None:
    _add(group, "-w", "--work-dir", metavar="PATH")
    _add(group, "--output-level")
    _add(group, "--reports-only")
    _add(group, "--stop-on-first-crash")
    _add(group, "--dry-run")
    _add(group, "--random-seed", metavar="N")
    _add(group, "--config-file", metavar="FILE")
    _add(group, "--notrack")
    _add(group, "-v", "--verbose", action="count")


def _add(group: argparse._ActionsContainer, *flags: str, **keywords: Any) -> None:
    """Add the option of a setting, named by its first long flag; its type says how it is read."""
    long_flags = [flag for flag in flags if flag.startswith("--")]
    name = long_flags[0].removeprefix("--").replace("-", "_")
    setting = _SETTINGS[name]
    kind = str(setting.type).removesuffix(" | None")
    if kind == "bool":
        keywords["action"] = "store_true"
    elif "action" not in keywords:
        keywords["type"] = {"int": int, "float": float}.get(kind, str)
        if kind.startswith("tuple"):
            keywords |= {"nargs": "+", "action": "extend"}
        if setting.metadata["choices"]:
            keywords["choices"] = setting.metadata["choices"]
    group.add_argument(*_spellings(*flags), dest=name, help=_help(name), **keywords)


def _spellings(*flags: str) -> list[str]:
    """Add the spelling with underscores to every long flag."""
    both = [(flag, "--" + flag[2:].replace("-", "_")) for flag in flags if flag.startswith("--")]
    short = [flag for flag in flags if not flag.startswith("--")]
    return short + list(dict.fromkeys(flag for pair in both for flag in pair))


def _help(name: str) -> str:
    setting = _SETTINGS[name]
    text = setting.metadata["help"].replace("%", "%%")
    plain = setting.default in (MISSING, None, False, ())
    default = " ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    return text if plain else f"{text} (default: {default})"


def _megabytes(text: str) -> float:
    """Return GB for fMRIPrep's notation: a number of MB, or a number with a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not an amount of memory such as 8000 or 8G")
    return float(match[1]) * {"K": 1e-6, "M": 1e-3, "G": 1, "T": 1e3}[match[2].upper() or "M"]


def _one_template(spaces: Sequence[str]) -> str:
    names = [space.split(":")[0] for space in spaces if space not in ("T1w", "anat")]
    if len(names) > 1:
        raise UserError(f"--output-spaces takes one template, not {', '.join(names)}.")
    for space in spaces:
        if ":" in space and not space.endswith((":res-2", ":res-02")):
            raise UserError(f"--output-spaces {space}: output images are always at 2 mm (res-2).")
    return names[0] if names else str(_SETTINGS["template"].default)


def _expand_label_lists(labels: Sequence[str]) -> list[str]:
    texts = [
        _read(label[1:], "--participant-label") if label.startswith("@") else label
        for label in labels
    ]
    return [label for text in texts for label in text.split()]


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"{flag} {path} cannot be read: {reason}.") from error


def _check_inputs(settings: Settings) -> None:
    from_output = settings.analysis_level == ("group",) or settings.reports_only
    if not from_output and not settings.bids_dir.is_dir():
        raise UserError(f"bids_dir {settings.bids_dir} is not a folder{_container_hint()}.")
    if settings.analysis_level == ("group",) and not settings.output_dir.is_dir():
        raise UserError(
            f"output_dir {settings.output_dir} is not a folder: the group level reads what the "
            "participant level wrote there."
        )
    for flag, file in (
        ("--bids-filter-file", settings.bids_filter_file),
        ("--phenotype", settings.phenotype),
        ("--bias-correction-from", settings.bias_correction_from),
    ):
        if file and not file.is_file():
            raise UserError(f"{flag} {file} is not a file.")
    atlas = settings.atlas if len(settings.atlas) == 2 else ()
    for flag, names in (("--noise-model", settings.noise_model), ("--atlas", atlas)):
        for name in names:
            if not Path(name).is_file():
                raise UserError(f"{flag} {name} is not a file.")
    for flag, paths in (
        ("--model-file", settings.model_paths),
        ("--derivatives", settings.derivative_paths),
    ):
        for name, path in paths.items():
            if not path.exists():
                raise UserError(f"{flag} {name}={path}: there is no such file or folder.")


def _check_folders(settings: Settings) -> None:
    bids_dir, output_dir = settings.bids_dir.resolve(), settings.output_dir.resolve()
    suggestion = settings.bids_dir / "derivatives" / NAME
    if output_dir == bids_dir:
        raise UserError(f"output_dir is bids_dir, which is never written to; use {suggestion}.")
    if output_dir.is_relative_to(bids_dir) and not output_dir.is_relative_to(
        bids_dir / "derivatives"
    ):
        raise UserError(
            f"output_dir {settings.output_dir} is inside bids_dir, which is never written to "
            f"outside of its derivatives folder; use {suggestion}."
        )
    for name in ("work_dir", "bids_database_dir"):
        folder = getattr(settings, name)
        if folder and folder.resolve().is_relative_to(bids_dir):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {folder} is inside bids_dir, which is never written to.")
        if folder:
            _check_writable(folder, name)
    _check_writable(settings.output_dir, "output_dir")


def _check_writable(folder: Path, name: str) -> None:
    """Check without writing: the folder, or the nearest one above it that exists."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{name} {folder} cannot be made: {there} is not a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        who = f"user {os.getuid()}"
        if os.environ.get("BRAINAGE_IMAGE"):
            who += " (another one can be given to Docker with --user)"
        raise UserError(
            f"{name} {folder} cannot be written to by {who}: no permission in {there}."
        )


def _container_hint() -> str:
    """Remind of the usual cause: a folder that the container was not given."""
    if os.environ.get("SINGULARITY_CONTAINER") or os.environ.get("APPTAINER_CONTAINER"):
        return " inside this container (was it bound with -B?)"
    marks = Path("/.dockerenv"), Path("/run/.containerenv")
    if os.environ.get("BRAINAGE_IMAGE") or any(mark.exists() for mark in marks):
        return " inside this container (was it mounted with -v?)"
    return ""
