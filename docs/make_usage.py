"""Writes docs/usage.md from the argument parser: ``python docs/make_usage.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bidsapp.cli import build_parser

PAGE = Path(__file__).with_name("usage.md")
HEAD = """\
# Usage

This page is made from the argument parser by `docs/make_usage.py`; `run.py --help` says the same.

```
run.py bids_dir output_dir {participant,group} [{participant,group}] [options]
```

Where two spellings are given they mean the same; every long option may be written with underscores
in place of dashes as well. Options of one run can be kept in a TOML file (`--config-file`): each
run writes its own as `logs/<run id>/settings.toml`.
"""


def usage(parser: argparse.ArgumentParser) -> str:
    """Describe every argument and option, group by group, as Markdown."""
    parts = [HEAD]
    for group in parser._action_groups:
        rows = [f"| {_names(action)} | {_help(action)} |" for action in group._group_actions]
        if rows:
            head = f"## {_capitalised(group.title or '')}\n\n| argument | meaning |\n| --- | --- |"
            parts.append("\n".join([head, *rows]))
    parts.append(_capitalised(" ".join((parser.epilog or "").split())))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _names(action: argparse.Action) -> str:
    """Spellings of an argument with dashes; the first with its value."""
    choices = "{" + ",".join(map(str, action.choices or ())) + "}"
    value = action.metavar or (choices if action.choices else action.dest)
    flags = [flag for flag in action.option_strings if "_" not in flag]
    if flags and action.nargs != 0:
        value += " ..." if action.nargs == "+" else ""
        flags[0] += f" {value}"
    return ", ".join(f"`{name}`" for name in flags or [value])


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("|", "\\|")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(usage(build_parser()), encoding="utf-8")
