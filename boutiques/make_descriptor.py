"""Writes descriptor.json from the argument parser: ``python boutiques/make_descriptor.py``.

Boutiques (Glatard 2018) describes a command line for platforms such as CBRAIN.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bidsapp import __version__
from bidsapp.cli import build_parser

DESCRIPTOR = Path(__file__).with_name("descriptor.json")
EXIT_CODES = {1: "Some scan failed, the others are written", 2: "Bad arguments",
              3: "Nothing to do: no T1w image matched"}  # fmt: skip
FILES = {"bids_dir", "output_dir", "bids_filter_file", "bids_database_dir", "config_file",
         "work_dir", "phenotype", "bias_correction_from"}  # fmt: skip
"""Arguments that are one path, a file or a folder."""


def descriptor(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The Boutiques descriptor of the app in its container."""
    actions = [action for action in parser._actions if not _is_whole_command(action)]
    inputs = [_input(action) for action in actions]
    return {
        "name": "brainage",
        "description": parser.description,
        "author": "The brainage developers",
        "tool-version": __version__,
        "schema-version": "0.5",
        "container-image": {"type": "docker", "image": f"bids/brainage:{__version__}"},
        "command-line": " ".join(
            ["/opt/brainage/bin/brainage", *(each["value-key"] for each in inputs)]
        ),
        "inputs": inputs,
        "groups": [_only_one(group) for group in parser._mutually_exclusive_groups],
        "output-files": [
            {
                "id": "output",
                "name": "Output folder",
                "description": "A BIDS derivative data set; docs/outputs.md lists its files",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "suggested-resources": {"cpu-cores": 1, "ram": 4, "walltime-estimate": 60},
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items()],
        "tags": {"domain": ["neuroinformatics", "bids", "mri"]},
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    """One argument; those with a value of their own kind are strings, which the app checks."""
    name = _id(action)
    found: dict[str, Any] = {
        "id": name,
        "name": name.replace("_", " ").capitalize(),
        "description": (action.help or "").replace("%%", "%"),
        "value-key": f"[{name.upper()}]",
        "type": "File" if name in FILES else _type(action),
        "optional": bool(action.option_strings),
    }
    if action.option_strings:
        found["command-line-flag"] = _flag(action)
    if action.type is int:
        found["integer"] = True
    if action.nargs == "+":
        found |= {"list": True, "min-list-entries": 1}
    if action.choices:
        found["value-choices"] = list(action.choices)
    return found


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    return "Number" if action.type in (int, float) else "String"


def _id(action: argparse.Action) -> str:
    """Its first long spelling: two options may be kept under one name."""
    flag = _flag(action) if action.option_strings else action.dest
    return flag.strip("-").replace("-", "_")


def _flag(action: argparse.Action) -> str:
    """The first long spelling, or the only one there is."""
    return next((f for f in action.option_strings if f.startswith("--")), action.option_strings[0])


def _is_whole_command(action: argparse.Action) -> bool:
    """Such as ``--help``, which goes with nothing else."""
    return action.dest in ("help", "version", "self_test")


def _only_one(group: argparse._MutuallyExclusiveGroup) -> dict[str, Any]:
    members = [_id(action) for action in group._group_actions]
    return {
        "id": "_or_".join(members),
        "name": " or ".join(members),
        "members": members,
        "mutually-exclusive": True,
    }


if __name__ == "__main__":
    text = json.dumps(descriptor(build_parser()), indent=2, ensure_ascii=False)
    DESCRIPTOR.write_text(text + "\n", encoding="utf-8")
