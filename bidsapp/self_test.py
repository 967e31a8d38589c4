"""Does this installation compute what ours does? Reference brains go through the whole app.

``run.py --self-test`` compares the ages they get with those in ``self_test.toml``, which
``python -m bidsapp.self_test --update`` writes anew when code or weights were changed on purpose.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bidsapp import __version__, participant
from bidsapp.derivatives import Derivatives
from bidsapp.errors import UserError
from bidsapp.settings import Settings
from models import registry
from models.contract import to_toml

EXPECTED = Path(__file__).with_name("self_test.toml")
TOLERANCE = 0.1
"""Years by which an age may differ: processors round differently, and little else should."""
AGES = (35.0, 75.0)
"""Degrees of ageing, in years, beside the average brain as it is."""
RESOLUTION = 2.0
"""Voxel edge in mm of the aged brains; the average brain has 1 mm."""
HEAD = """\
# Ages (years) that the embedded models give to the reference brains of `run.py --self-test`, and
# the SHA-256 of their weights. Written by `python -m bidsapp.self_test --update`.
"""

Ages = dict[str, dict[str, float]]
"""Of each reference brain, by model."""


def run() -> int:
    """Compute, compare and print a table; 0 where every age is as expected, else 1."""
    weights, expected = read_expected()
    if weights != embedded_weights():
        print(f"The expected ages in {EXPECTED} are not of these weights; install brainage anew,"
              " or, having changed the weights, run python -m bidsapp.self_test --update.",
              file=sys.stderr)  # fmt: skip
        return 1
    print(f"Simulating {1 + len(AGES)} reference brains, and predicting their ages; a minute or"
          " two.", file=sys.stderr, flush=True)  # fmt: skip
    faults = compare(expected, compute())
    if faults:
        print(f"{faults} ages are not those of brainage {__version__}; please report this table,"
              " with your processor and the versions of your packages.")  # fmt: skip
        return 1
    print(f"All ages are within {TOLERANCE:g} y: this installation computes what it should.")
    return 0


def compare(expected: Ages, found: Ages) -> int:
    """Print expected and found ages side by side; returns how many are missing or off."""
    faults = 0
    print(f"{'brain':<14}{'model':<14}{'expected':>9}{'here':>9}{'difference':>12}")
    for brain in sorted(expected.keys() | found.keys()):
        wanted, got = expected.get(brain, {}), found.get(brain, {})
        for model in sorted(wanted.keys() | got.keys()):
            # what is missing is not a number, and so is its difference
            age, here = wanted.get(model, float("nan")), got.get(model, float("nan"))
            off = not abs(here - age) <= TOLERANCE
            faults += off
            print(f"{brain:<14}{model:<14}{age:>9.2f}{here:>9.2f}{here - age:>+12.3f}"
                  f"{'  <--' if off else ''}")  # fmt: skip
    return faults


def compute() -> Ages:
    """Predict the reference brains as any scans are predicted.

    Raises
    ------
    UserError
        Where no weights are embedded, or a brain could not be processed.
    """
    from models.simulation.dataset import average_brain, degrees, write_dataset

    if not registry.embedded():
        raise UserError("There is nothing to test: no model with weights is part of this copy.")
    with tempfile.TemporaryDirectory(prefix="brainage-") as folder, _few_messages():
        study, results = Path(folder) / "study", Path(folder) / "results"
        write_dataset(study, [average_brain(), *degrees(AGES, RESOLUTION)])
        models = tuple(registry.embedded())
        settings = Settings(study, results, ("participant",), models=models)
        if participant.run(settings):
            raise UserError("A reference brain could not be processed; see the messages above.")
        return {
            record["participant_id"].removeprefix("sub-"): {
                model: round(about["predicted_age"], 3)
                for model, about in record["predictions"].items()
            }
            for record in Derivatives(results, study, settings.template).records()
        }


def embedded_weights() -> dict[str, str]:
    """SHA-256 of all weights that have a part in the ages, by the name of their model."""
    _, segmentation = registry.load_segmentation()
    models = {name: registry.card(name).weights_sha256 for name in registry.embedded()}
    return models | {registry.SEGMENTATION: str(segmentation["weights_sha256"])}


def read_expected(path: Path = EXPECTED) -> tuple[dict[str, str], Ages]:
    """The weights for which ages are known, and the ages."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return table["weights"], table["ages"]


def write_expected(weights: Mapping[str, str], ages: Ages, path: Path = EXPECTED) -> None:
    """Write what this version must give from now on."""
    path.write_text(HEAD + to_toml({"weights": weights, "ages": ages}), encoding="utf-8")


@contextmanager
def _few_messages() -> Iterator[None]:
    """Of a run whose folder is gone in a minute, errors alone are of interest."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: list[str]) -> int:
    """``--update`` writes the expected ages; without it they are compared."""
    try:
        if arguments == ["--update"]:
            write_expected(embedded_weights(), compute())
            return 0
        return run()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
