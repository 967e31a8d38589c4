"""``python -m models list`` and ``python -m models show NAME``."""

import argparse
import sys

from models.contract import ModelError
from models.registry import card, embedded, known


def _list() -> None:
    """Print one line per model."""
    shipped = embedded()
    for name, this in known().items():
        low, high = this.contract.ages
        weights = "embedded" if name in shipped else "not embedded"
        print(f"{name:<14}{weights:<14}{f'{low:g}-{high:g} y':<12}{this.license:<14}{this.title}")


def main(arguments: list[str] | None = None) -> int:
    """List the known models or show the card of one; 2 where the name is unknown."""
    parser = argparse.ArgumentParser(
        prog="python -m models", description="The models this software knows."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every known model, one a line")
    show = commands.add_parser("show", help="the card of one model, as TOML")
    show.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            _list()
        else:
            print(card(options.name).to_toml(), end="")
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
