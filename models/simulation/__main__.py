"""Write a small BIDS data set of brains of known age: ``python -m models.simulation FOLDER``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

AGES = (20.0, 40.0, 60.0, 80.0)


def build_parser() -> argparse.ArgumentParser:
    """The command line; pure, so that tests can read it."""
    parser = argparse.ArgumentParser(prog="python -m models.simulation", description=__doc__)
    parser.add_argument("folder", type=Path, help="BIDS folder to write: new, or empty")
    parser.add_argument(
        "--ages", type=float, nargs="*", default=list(AGES), metavar="YEARS",
        help="ages (18 to 90) to which the average brain is aged, one subject each "
        "(default: 20, 40, 60, 80)",
    )  # fmt: skip
    parser.add_argument(
        "--people", type=int, default=0, metavar="N",
        help="further subjects with a head, an age and a deviation of their own (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--resolution", type=float, default=1.0, metavar="MM",
        help="voxel edge of the scans (default: 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Write the data set; 0 when it is written, 2 when the arguments do not allow it."""
    options = build_parser().parse_args(arguments)
    # Late, so that --help answers at once.
    from models.simulation.dataset import average_brain, degrees, people, write_dataset

    subjects = [
        average_brain(),
        *degrees(options.ages, options.resolution),
        *people(options.people, options.resolution, options.seed),
    ]
    try:
        write_dataset(options.folder, subjects, options.seed, progress=print)
    except (ValueError, OSError) as error:
        print(f"python -m models.simulation: {error}", file=sys.stderr)
        return 2
    print(f"{len(subjects)} simulated scans in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
