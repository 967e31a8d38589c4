"""Train a model, or the segmentation network: ``python -m models.training NAME --help``."""

from __future__ import annotations

import argparse
import ctypes
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.contract import ModelError
from models.training.options import (
    AUGMENTATIONS,
    OF_INTENSITIES,
    AugmentationOptions,
    EncoderOptions,
    Options,
)
from models.training.recipes import CLOSED_FORM, MORPHOMETRY, RECIPES, VOLUMES, Recipe

if TYPE_CHECKING:
    from torch import nn

    from models.prediction import BrainAgeModel

PROGRAM = "python -m models.training"
LICENSE = "CC-BY-SA-3.0"
FINE_TUNING_RATE = 1e-4


def build_parser() -> argparse.ArgumentParser:
    """The command line; pure, so that tests can read it."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="model", required=True, metavar="NAME")
    for name, recipe in RECIPES.items():
        parser_of = commands.add_parser(name, help=recipe.title, description=recipe.summary)
        _add_regression(parser_of)
        if recipe.two_stages:
            _add_encoder(parser_of)
    for name, recipe in CLOSED_FORM.items():
        parser_of = commands.add_parser(name, help=recipe.title, description=recipe.summary)
        _add_closed_form(parser_of, recipe)
    _add_reference(
        commands.add_parser(
            "reference", help="to a trained model: what is usual among its training images"
        )
    )
    _add_elsewhere(
        commands.add_parser(
            "elsewhere", help="to a trained model's card: how its kind does on unseen data"
        )
    )
    _add_segmentation(
        commands.add_parser("segmentation", help="the network that finds brain and tissues")
    )
    return parser


def _add_data(parser: argparse.ArgumentParser, people: str) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DERIVATIVES",
        help=f"output folders of the app's participant level, of {people}",
    )


def _add_regression(parser: argparse.ArgumentParser) -> None:
    default = Options()
    add = parser.add_argument
    _add_data(parser, "people of known age")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where checkpoints, logs and the model go; a killed run goes on from there",
    )
    add("--folds", type=int, default=default.folds, help="of the cross-validation (%(default)s)")
    add("--networks", type=int, default=default.networks, metavar="N",
        help="of each fold, from random starts of their own; their mean is its prediction"
        " (%(default)s)")  # fmt: skip
    add(
        "--fold",
        type=int,
        metavar="K",
        help="train this fold alone (from 0), and do not write the model: folds can so be"
        " trained side by side",
    )
    add("--finish", action="store_true", help="train nothing; write the model of complete folds")
    add(
        "--whole",
        action="store_true",
        help="train one more network, on everybody, and let the model be that one instead of the"
        " folds' networks, which then serve for its figures alone; with --fold, train it alone",
    )
    add("--no-vote", action="store_true",
        help="let the model stand beside the ensemble, where it is too far off")  # fmt: skip
    add("--fresh", action="store_true", help="start over, and drop what --out holds of a fold")
    add("--epochs", type=int, default=default.epochs, help="(%(default)s)")
    add("--batch-size", type=int, default=default.batch_size, help="scans a step (%(default)s)")
    add(
        "--from-weights",
        metavar="MODEL",
        help="fine-tune a model: the name of one that is known, or the folder of one of your own;"
        " its network, intensities, augmentations and licence are kept",
    )
    add(
        "--dora",
        type=int,
        default=default.dora,
        metavar="RANK",
        help="train low-rank adapters of this rank in the encoder, and merge them; 0: train all of"
        " it (%(default)s)",
    )
    add(
        "--learning-rate",
        type=float,
        default=None,
        help=f"({default.learning_rate:g}; {FINE_TUNING_RATE:g} with --from-weights)",
    )
    add("--weight-decay", type=float, default=default.weight_decay, help="(%(default)s)")
    add(
        "--schedule",
        choices=["cosine", "constant"],
        default=default.schedule,
        help="of the learning rate (%(default)s)",
    )
    add(
        "--readout",
        choices=["random", "centred", "ridge"],
        default=None,
        help=f"how the dense layers of WSSA start ({default.readout})",
    )
    add("--intensity", default=None, metavar="RULE", help="other than the recipe's")
    add("--loss", choices=["smooth_l1", "l1", "mse"], default=default.loss, help="(%(default)s)")
    add("--helper", choices=["distribution"], default=default.helper,
        help="a head beside WSSA that helps to train it, by a distribution over ages")  # fmt: skip
    add(
        "--average",
        type=float,
        default=default.average,
        metavar="DECAY",
        help="per step, of the running average of the weights; 0: none (%(default)s)",
    )
    add(
        "--without",
        nargs="+",
        default=[],
        choices=[*AUGMENTATIONS, "all"],
        metavar="NAME",
        help=f"augmentations to leave out, of {', '.join(AUGMENTATIONS)}, or all",
    )
    add(
        "--network",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the network's build, as in TOML (shared=false)",
    )
    add("--seed", type=int, default=default.seed, help="of all random numbers (%(default)s)")
    add("--threads", type=int, default=default.threads, help="(%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    add("--license", default=None, help=f"of the weights, SPDX name ({LICENSE})")
    add("--version", default="0.1.0", help="of the weights (%(default)s)")


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    default = EncoderOptions()
    add = parser.add_argument_group("first stage, without --from-weights").add_argument
    add("--encoder-epochs", type=int, default=default.epochs,
        help="of the encoder, before those of --epochs; 0: one stage (%(default)s)")  # fmt: skip
    add("--encoder-learning-rate", type=float, default=default.learning_rate,
        help="(%(default)s)")  # fmt: skip
    add("--slices", type=int, default=default.slices, help="a scan and epoch (%(default)s)")
    add("--views", type=int, default=default.views,
        help="random views of each scan for the second stage (%(default)s)")  # fmt: skip


def _add_closed_form(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    default = Options()
    add = parser.add_argument
    _add_data(parser, "people of known age and sex" if recipe.needs_sex else "people of known age")
    add("--out", type=Path, required=True, metavar="DIR", help="where the model goes")
    add("--folds", type=int, default=default.folds, help="of the cross-validation (%(default)s)")
    add("--whole", action="store_true",
        help="ship one network more, of everybody, in place of the folds'")  # fmt: skip
    add("--seed", type=int, default=default.seed, help="of the folds (%(default)s)")
    add("--license", default=LICENSE, help="of the weights, SPDX name (%(default)s)")
    add("--version", default="0.1.0", help="of the weights (%(default)s)")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="MODEL", help="a model that is known")
    _add_data(parser, "the people it was trained on")
    add("--weights", type=Path, metavar="DIR", help="folder of the model, where it is your own")


def _add_elsewhere(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="MODEL", help="a model that is known")
    add("--alone", type=Path, required=True, metavar="DIR",
        help="training folder of the same recipe, on fewer data sets")  # fmt: skip
    _add_data(parser, "people it has not seen")
    add("--weights", type=Path, metavar="DIR", help="folder of the model, where it is your own")


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="BIDS", help="BIDS data set of T1w scans")
    add("--labels", type=Path, required=True, metavar="DLMUSE", help="their MUSE label maps")
    add("--out", type=Path, required=True, metavar="DIR", help="checkpoints and logs")
    add("--folds", type=int, default=2, help="of the cross-validation (%(default)s)")
    add("--fold", type=int, metavar="K", help="fold to hold out (default: train on everybody)")
    add("--finish", action="store_true", help="train nothing; write the model")
    add("--steps", type=int, default=3000, help="(%(default)s)")
    add("--start-from", type=Path, metavar="FILE", help="checkpoint with weights to start from")
    add("--learning-rate", type=float, default=2e-3, help="(%(default)s)")
    add("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    add("--threads", type=int, default=1, help="(%(default)s)")


def main(arguments: list[str] | None = None) -> int:
    """Train; 0 when done, 2 where the arguments or the data do not allow it."""
    chosen = build_parser().parse_args(arguments)
    try:
        if chosen.model == "segmentation":
            _train_segmentation(chosen)
        elif chosen.model in CLOSED_FORM:
            _train_closed_form(chosen)
        elif chosen.model == "reference":
            _write_reference(chosen)
        elif chosen.model == "elsewhere":
            _write_elsewhere(chosen)
        else:
            _train_regression(chosen)
    except (ModelError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def _train_segmentation(chosen: argparse.Namespace) -> None:
    from models.training import segmentation

    _keep_memory()
    chosen.out.mkdir(parents=True, exist_ok=True)
    values = {k: v for k, v in vars(chosen).items() if k not in ("model", "finish")}
    options = segmentation.Options(**values)
    if chosen.finish:
        segmentation.finish(options)
    else:
        segmentation.run(options)


def _train_closed_form(chosen: argparse.Namespace) -> None:
    from models.training import closed_form, linear, morphometry, volumes
    from models.training.data import load_morphometry, load_training_set, load_volumes
    from models.training.folds import assign_folds

    _keep_memory()
    recipe = CLOSED_FORM[chosen.model]
    if recipe is VOLUMES:
        data = load_volumes(chosen.data, volumes.REGIONS)
        method = volumes.method(data)
    elif recipe is MORPHOMETRY:
        data = load_morphometry(chosen.data)
        method = morphometry.method(data)
    else:
        data = load_training_set(chosen.data, recipe.intensity)
        method = linear.method(data)
    people, strata = [s.person for s in data.scans], [s.stratum for s in data.scans]
    folds = assign_folds(people, strata, data.ages.tolist(), chosen.folds, chosen.seed)
    card = closed_form.train(
        method, data, folds, chosen.seed, chosen.out, chosen.license, chosen.version,
        whole=chosen.whole,
    )  # fmt: skip
    found = card.figures
    print(f"{chosen.out}: MAE {found['mae']:.2f} y, r {found['r']:.3f} out of fold.")


def _write_reference(chosen: argparse.Namespace) -> None:
    from models.training import reference

    print(reference.write(chosen.name, chosen.data, chosen.weights))


def _write_elsewhere(chosen: argparse.Namespace) -> None:
    from models.training import elsewhere

    print(elsewhere.write(chosen.name, chosen.alone, chosen.data, chosen.weights))


def _train_regression(chosen: argparse.Namespace) -> None:
    # Late, so that --help answers at once.
    from models.training.data import load_images
    from models.training.export import NOBODY, export, runs_of
    from models.training.fine_tuning import check_fits
    from models.training.folds import assign_folds
    from models.training.regression import train_fold
    from models.training.two_stages import TwoStages

    parent = _parent(chosen)
    recipe, options = RECIPES[chosen.model], regression_options(chosen, parent)
    if chosen.fold is not None and not 0 <= chosen.fold < options.folds:
        raise ModelError(f"--fold must be 0 to {options.folds - 1}.")
    _keep_memory()
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = load_images(chosen.data, options.intensity)
    people = [scan.person for scan in data.scans]
    print(f"{len(data.scans)} scans of {len(set(people))} people; {data.skipped} without age.")
    if parent:
        check_fits(parent, data)
    strata = [scan.stratum for scan in data.scans]
    folds = assign_folds(people, strata, data.ages.tolist(), options.folds, options.seed)
    numbers = list(range(options.folds)) if chosen.fold is None else [chosen.fold]
    if chosen.whole:
        numbers = [*([] if chosen.fold is not None else numbers), NOBODY]
    small = data.pooled(2 if options.network.get("coarse") else recipe.pooling)
    runs = [(fold, *run) for fold in numbers for run in runs_of(fold, options)]
    for fold, name, each in [] if chosen.finish else runs:
        if chosen.fresh:
            (chosen.out / f"{name}.pt").unlink(missing_ok=True)
        start = _start_of(parent, fold * options.networks + each.seed - options.seed)
        how = TwoStages() if options.encoder else None
        train_fold(small, folds == fold, name, each, chosen.out, _say, start, how)
    if chosen.fold is None:
        license = parent.card.license if parent else chosen.license or LICENSE
        card = export(data, folds, chosen.model, recipe, options, chosen.out,
                      license, chosen.version, whole=chosen.whole,
                      vote=not chosen.no_vote)  # fmt: skip
        found = card.figures
        print(f"{chosen.out}: MAE {found['mae']:.2f} y, r {found['r']:.3f} out of fold.")


def regression_options(chosen: argparse.Namespace, parent: BrainAgeModel | None = None) -> Options:
    """The options of a training run, of what the command line says and of the model to tune."""
    recipe = RECIPES[chosen.model]
    without = AUGMENTATIONS if "all" in chosen.without else chosen.without
    same = ("folds", "networks", "epochs", "batch_size", "weight_decay", "schedule", "loss",
            "helper", "average", "seed", "threads", "dora")  # fmt: skip
    options = Options(
        architecture=chosen.model,
        network=_parse_network(chosen.network),
        intensity=chosen.intensity or recipe.intensity,
        needs_sex=recipe.needs_sex,
        augmentation=AugmentationOptions(),
        learning_rate=chosen.learning_rate or (FINE_TUNING_RATE if parent else 1e-4),
        readout=chosen.readout or "random",
        device=_device(chosen.device),
        **{name: getattr(chosen, name) for name in same},
    )
    if parent:
        from models.training.fine_tuning import options_of

        options = options_of(parent.card, options)
    elif epochs := getattr(chosen, "encoder_epochs", 0):
        first = EncoderOptions(epochs, chosen.encoder_learning_rate, chosen.slices, chosen.views)
        options = replace(options, encoder=first, epochs=epochs + options.epochs)
    from models.intensity import TISSUE_MAP
    from models.training.data import MODULATED

    unused = OF_INTENSITIES if options.intensity in (TISSUE_MAP, MODULATED) else ()
    return replace(options, augmentation=options.augmentation.without(*without, *unused))


def _start_of(parent: BrainAgeModel | None, number: int) -> nn.Module | None:
    """The networks of a model to fine-tune in turn."""
    return parent.networks[number % len(parent.networks)] if parent else None


def _parent(chosen: argparse.Namespace) -> BrainAgeModel | None:
    """The model to fine-tune, where one was asked for."""
    if chosen.from_weights is None:
        return None
    for name in ("network", "intensity", "readout", "license"):
        if getattr(chosen, name):
            raise ModelError(f"--{name} cannot go with --from-weights: that of the model is kept.")
    from models.training.fine_tuning import load_parent

    return load_parent(chosen.from_weights, chosen.model)


def _parse_network(assignments: list[str]) -> dict[str, Any]:
    """From KEY=VALUE, with values as in TOML."""
    import tomllib

    try:
        return tomllib.loads("\n".join(assignments))
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"--network {' '.join(assignments)}: {error}.") from None


def _keep_memory() -> None:
    """Let glibc keep the memory of large tensors between steps; where there is no glibc, nothing.

    Otherwise it returns it after every operation, and half of the time goes into page faults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
