"""The models this software knows: their cards, and weights that others publish."""

import argparse
import sys
from pathlib import Path

from models import registry
from models.contract import ModelError


def build_parser() -> argparse.ArgumentParser:
    """The command line; pure, so that tests can read it."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every known model, one a line")
    show = commands.add_parser("show", help="the card of one model, as TOML")
    show.add_argument("name", metavar="NAME")
    fetch = commands.add_parser(
        "fetch", help="download published weights, check them, and store them for the app"
    )
    fetch.add_argument("name", metavar="NAME")
    fetch.add_argument(
        "--from", dest="file", type=Path, metavar="FILE",
        help="the published file, if it was downloaded by other means",
    )  # fmt: skip
    convert = commands.add_parser(
        "convert", help="make a model of the checkpoints that others publish"
    )
    convert.add_argument("name", choices=["brainrotvit"])
    convert.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="checkpoints: encoder and regressor"
    )
    convert.add_argument(
        "out", type=Path, metavar="OUT", help="folder for card and weights, for --model-file"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for; 2 where that is not possible."""
    chosen = build_parser().parse_args(arguments)
    try:
        match chosen.command:
            case "list":
                _list()
            case "show":
                print(_card_text(chosen.name), end="")
            case "fetch":
                _fetch(chosen.name, chosen.file)
            case "convert":
                _convert(chosen.files, chosen.out)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    return 0


def _list() -> None:
    """Print one line per model."""
    embedded, fetched = registry.embedded(), registry.fetched()
    for name, card in registry.known().items():
        low, high = card.contract.ages
        state = "embedded" if name in embedded else "fetched" if name in fetched else "not here"
        people = f"{card.training['people']} people" if "people" in card.training else ""
        print(
            f"{name:<14}{state:<10}{f'{low:.0f}-{high:.0f} y':<9}{people:<14}{card.license:<14}"
            f"{card.title}"
        )


def _card_text(name: str) -> str:
    """The card as TOML; that of the segmentation network, which predicts no age, as it is."""
    if name == registry.SEGMENTATION:
        return registry.read(registry.FOLDER / name / registry.CARD).decode()
    return registry.card(name).to_toml()


def _fetch(name: str, file: Path | None) -> None:
    from models.fetch import fetch

    stored = fetch(name, file)
    print(f"'{name}' is ready to run (licence: {registry.card(name).license}): {stored}")


def _convert(files: list[Path], out: Path) -> None:
    from dataclasses import replace

    import torch

    from models import checkpoints
    from models.brainrotvit.convert import network_of

    contents = [checkpoints.read(registry.read(file), str(file)) for file in files]
    card = registry.read_card(registry.FOLDER / "brainrotvit" / "published.toml")
    network, config = network_of(contents, card.network)
    registry.save_model(out, replace(card, network=config), [network], torch.float32)
    print(f"{out}: run it with --model-file {card.name}={out}")


if __name__ == "__main__":
    sys.exit(main())
