"""Train a network to tell age from an image, one fold of a cross-validation at a time.

On a CPU half of a step's time can go into page faults, for glibc returns the memory of large
tensors after every operation. The command line of this package turns that off; other programs
get the same by MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 in their environment.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.brainrotvit.dora import adapt, merge
from models.brainrotvit.network import BrainRotViT
from models.contract import ModelError, Output
from models.prediction import SEX_CODES
from models.registry import network_builder
from models.training.augmentation import view_of
from models.training.data import TrainingScan, TrainingSet
from models.training.objectives import Batch, Objective, objective_of
from models.training.options import Options
from models.training.precision import autocast
from models.training.readout import centre_readout, fit_readout
from models.wssa.network import WSSA

Progress = Callable[[str], None]
WARM_UP = 0.1
"""Share of the steps over which the cosine schedule rises."""


@dataclass(frozen=True)
class Epoch:
    """A row of the log; errors are those of the averaged weights on the held-out fold."""

    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    held_out_mae: float | None = None
    held_out_r: float | None = None


@dataclass
class State:
    """Everything a run needs to go on; ``heads`` are trained beside the network."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    heads: nn.ModuleList = field(default_factory=nn.ModuleList)
    history: list[Epoch] = field(default_factory=list)


TrainEpoch = Callable[[State, Sequence[TrainingScan], Output, int, Options], tuple[float, float]]
"""Trains for one epoch of that number; mean loss, and last learning rate."""


def output_scale(data: TrainingSet, options: Options | None = None) -> Output:
    """Mean and standard deviation of the ages, in whole years; or the parent's output.

    All folds share them, for they belong to one card; rounded, they say nothing of anybody
    who is held out.
    """
    if options and options.parent:
        return options.parent.output
    return Output(float(np.round(data.ages.mean())), float(max(1.0, np.round(data.ages.std()))))


def train_fold(
    data: TrainingSet,
    held_out: NDArray[np.bool_],
    name: str,
    options: Options,
    folder: Path,
    progress: Progress = print,
    start: nn.Module | None = None,
    train_epoch: TrainEpoch | None = None,
    objective: Objective | None = None,
) -> nn.Module:
    """Train on those who are not held out, or go on where a killed run stopped.

    Writes ``<name>.pt`` (checkpoint) and ``<name>.csv`` (log) after every epoch. With one thread
    the weights are the same whether or not a run was interrupted.

    Parameters
    ----------
    held_out
        One per scan.
    name
        Of the checkpoint and the log.
    start
        Network of ``options.parent`` to fine-tune. Its level is first moved to that of the people
        to train on, for a low learning rate would hardly take it there. Batch normalisation keeps
        the statistics of those that the parent was trained on.
    train_epoch
        What an epoch is, where it is not one pass over the images with a step for each batch.
    objective
        What a step goes down, where it is not what the options ask for.

    Returns
    -------
    nn.Module
        With the averaged weights, in evaluation mode.

    Raises
    ------
    ModelError
        Where the checkpoint is of another run, the loss is not finite, or the network says one
        age of everybody.
    """
    torch.set_num_threads(options.threads)
    training = [scan for scan, out in zip(data.scans, held_out) if not out]
    tests = [scan for scan, out in zip(data.scans, held_out) if out]
    output = output_scale(data, options)
    torch.manual_seed(options.seed)
    objective = objective or objective_of(options)
    state = _start(options, start, objective)
    key = checkpoint_key(data, held_out, options)
    _resume(state, folder / f"{name}.pt", key)
    if options.readout != "random" and not state.history:
        _start_readout(state, training, output, options)
        _save(state, folder / f"{name}.pt", key)
    if start is not None and not state.history:
        settle_level(state.network, training, output, options)
        state.average.load_state_dict(state.network.state_dict())
        _save(state, folder / f"{name}.pt", key)
    done = len(state.history)
    encoder_epochs = options.encoder.epochs if options.encoder else 0
    for epoch in range(done, options.epochs):
        began = time.monotonic()
        if train_epoch:
            loss, rate = train_epoch(state, training, output, epoch, options)
        else:
            loss, rate = _train_epoch(state, training, output, epoch, options, objective)
        if not math.isfinite(loss):
            raise ModelError(f"{name}: the loss is not finite; choose a lower learning rate.")
        row = Epoch(epoch + 1, round(time.monotonic() - began, 1), rate, loss)
        due = (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == options.epochs
        if due and train_epoch is None and start is None:
            renew_statistics(state.average, training, options)
        if epoch + 1 == options.epochs:
            settle_level(state.average, training, output, options)
        if tests and due and epoch >= encoder_epochs:
            row = _evaluated(row, state.average, tests, output, options)
        state.history.append(row)
        _save(state, folder / f"{name}.pt", key)
        _write_log(state.history, folder / f"{name}.csv")
        progress(f"{name}: {_describe(state.history[done:], options)}")
    check_alive(state.average, training, output, options, name)
    return merge(state.average.eval())


def check_alive(
    network: nn.Module,
    scans: Sequence[TrainingScan],
    output: Output,
    options: Options,
    name: str,
) -> None:
    """Refuse a network that says one age of everybody, for its units have died.

    Raises
    ------
    ModelError
        Where the ages of people who differ in age are the same to the last digit.
    """
    some = sorted(scans, key=lambda scan: scan.age)[:: max(1, len(scans) // 8)]
    if some[0].age < some[-1].age and np.ptp(predict_ages(network, some, output, options)) == 0:
        raise ModelError(
            f"{name}: the network says the same age of everybody; train it again (--fresh) with"
            " another --seed or a lower --learning-rate; for WSSA, --readout centred helps."
        )


def checkpoint_key(data: TrainingSet, held_out: NDArray[np.bool_], options: Options) -> str:
    """What a checkpoint must agree with to be continued: options, scans, and who is held out."""
    chosen = asdict(options)
    for name in ("threads", "device", "evaluate_every", "networks"):  # not of this checkpoint
        del chosen[name]
    out = np.flatnonzero(held_out).tolist()
    return json.dumps([chosen, data.fingerprint(), data.content, out], sort_keys=True)


def _start(
    options: Options, start: nn.Module | None = None, objective: Objective | None = None
) -> State:
    """A network with random weights, or those of ``start``; its average and its heads."""
    try:
        network = network_builder(options.architecture)(options.network)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"--network: no {options.architecture} can be built so ({error})."
        ) from None
    if start is not None:
        network.load_state_dict(start.state_dict())
    if options.dora:
        _adapt_encoder(network, options)
    network = network.to(options.device)
    if not any(value.dim() == 4 for value in network.parameters()):  # of convolutions in 2D
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False).eval()
    heads = (objective or objective_of(options)).heads(network).to(options.device)
    trained = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.Adam(
        trained, options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    return State(network, average, optimizer, heads)


def _start_readout(
    state: State, training: Sequence[TrainingScan], output: Output, options: Options
) -> None:
    if not isinstance(state.network, WSSA):
        asked = f"--readout {options.readout}"
        raise ModelError(f"{asked} is for WSSA, not for {options.architecture}.")
    images = [scan.image.to(options.device) for scan in training]
    if options.readout == "ridge":
        ages = torch.tensor([scan.age for scan in training], device=options.device)
        fit_readout(state.network, images, (ages - output.offset) / output.scale)
    else:
        centre_readout(state.network, images, options.batch_size)
    state.average.load_state_dict(state.network.state_dict())


def _adapt_encoder(network: nn.Module, options: Options) -> None:
    encoder = getattr(network, "encoder", None)
    if encoder is None:
        raise ModelError(f"--dora adapts a transformer; {options.architecture} holds none.")
    adapt(encoder, options.dora, alpha=2 * options.dora)


@torch.no_grad()
def settle_level(
    network: nn.Module, training: Sequence[TrainingScan], output: Output, options: Options
) -> None:
    """Take the mean error of the people to train on out of the bias of the last layer, or layers.

    Dropout, which is at work in training alone, leaves up to three years of it. Stripped tissue
    maps count as much as whole ones, as they do in training.
    """
    layers = _last_layers(network)
    if not layers:
        return  # a network that says a distribution, such as SFCN
    shown = [replace(scan, image=image) for scan in training
             for image in (scan.image, scan.stripped) if image is not None]  # fmt: skip
    ages = np.array([scan.age for scan in shown])
    error = ages - predict_ages(network, shown, output, options)
    for layer in layers:
        layer.bias.add_(float(error.mean()) / output.scale)


def _last_layers(network: nn.Module) -> list[nn.Linear]:
    """Those that say the age: of each regressor one, for the age is their mean."""
    readers = network.regressors if isinstance(network, BrainRotViT) else [network]
    found = []
    for reader in readers:
        layers = [layer for layer in reader.modules() if isinstance(layer, nn.Linear)]
        found += [
            layer for layer in layers[-1:] if layer.out_features == 1 and layer.bias is not None
        ]
    return found


def _train_epoch(
    state: State,
    training: Sequence[TrainingScan],
    output: Output,
    epoch: int,
    options: Options,
    objective: Objective,
) -> tuple[float, float]:
    """One pass over the scans; mean loss and last learning rate.

    All random numbers come from the seed and the number of the epoch, so that a resumed run
    draws those it would have drawn.
    """
    objective.prepare(training, output, options)
    torch.manual_seed(options.seed * 100_003 + epoch)
    rng = np.random.default_rng([options.seed, epoch])
    order = rng.permutation(len(training))
    batches = [order[i : i + options.batch_size] for i in range(0, len(order), options.batch_size)]
    state.network.train()
    if options.parent:  # a handful of people: their statistics would move the level again
        for layer in state.network.modules():
            if isinstance(layer, nn.BatchNorm3d):
                layer.eval()
    losses, rate = [], 0.0
    for number, batch in enumerate(batches):
        step = epoch * len(batches) + number
        rate = learning_rate(step, options.epochs * len(batches), options)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        scans = [training[i] for i in batch]
        inputs = _inputs(scans, [view_of(scan, options, rng) for scan in scans], options)
        target = torch.tensor([scan.age for scan in scans], device=options.device)
        target = (target - output.offset) / output.scale
        with autocast(options.device):
            these = Batch(inputs, target, options, rng)
            loss = objective.loss(state.network, state.heads, these)
        losses.append(descend(state, loss, step, options) * len(scans))
    return sum(losses) / len(training), rate


def descend(state: State, loss: Tensor, step: int, options: Options) -> float:
    """One step of the optimiser and of the average, after the gradient of a loss."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if options.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), options.clip)
    state.optimizer.step()
    _update_average(state, min(options.average, (1 + step) / (10 + step)))
    return loss.item()


def learning_rate(step: int, steps: int, options: Options) -> float:
    """The rate of one step; see ``Options.schedule``."""
    if options.schedule == "constant":
        return options.learning_rate
    rise = WARM_UP * steps
    if step + 1 < rise:
        return options.learning_rate * (step + 1) / rise
    done = (step - rise) / max(1.0, steps - rise)
    return options.learning_rate * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2


@torch.no_grad()
def _update_average(state: State, decay: float) -> None:
    """Move the averaged weights towards the network's; counters and the like are copied."""
    kept = [p.detach() for p in state.average.parameters()]
    torch._foreach_lerp_(kept, [p.detach() for p in state.network.parameters()], 1 - decay)
    for mine, theirs in zip(state.average.buffers(), state.network.buffers()):
        mine.copy_(theirs)


@torch.no_grad()
def renew_statistics(
    network: nn.Module, training: Sequence[TrainingScan], options: Options
) -> None:
    """Batch normalisation of averaged weights: its means and variances over the training people.

    An average of weights has other statistics than the weights it is the average of (Izmailov et
    al. 2018, section 3.2): with those, ages out of fold come out too low. Stripped tissue
    maps count as much as whole ones, as they do in training.
    """
    layers = [each for each in network.modules() if isinstance(each, nn.BatchNorm3d)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # of all batches alike
        layer.train()
    parts = max(1, round(len(training) / options.batch_size))
    for batch in np.array_split(np.arange(len(training)), parts):
        scans = [training[i] for i in batch]
        images = [scan.image for scan in scans]
        images += [scan.stripped for scan in scans if scan.stripped is not None]
        views = [image.to(options.device).float() for image in images]
        network(*_inputs((scans * 2)[: len(views)], views, options))
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
        layer.eval()


def _inputs(
    scans: Sequence[TrainingScan], images: Sequence[Tensor], options: Options
) -> tuple[Tensor, ...]:
    """A batch as networks take it: images (N, 1, X, Y, Z) and, where wanted, sexes (N,)."""
    batch = torch.stack(list(images))[:, None]
    if batch.dim() == 5:
        batch = batch.contiguous(memory_format=torch.channels_last_3d)
    if not options.needs_sex:
        return (batch,)
    missing = [scan.name for scan in scans if scan.sex not in SEX_CODES]
    if missing:
        raise ModelError(f"This model needs the sex, which is not known of {', '.join(missing)}.")
    codes = [SEX_CODES[str(scan.sex)] for scan in scans]
    return batch, torch.tensor(codes, device=batch.device)


# --- predictions ---


@torch.inference_mode()
def predict_ages(
    network: nn.Module,
    scans: Sequence[TrainingScan],
    output: Output,
    options: Options,
    *,
    fast: bool = False,
) -> NDArray[np.float64]:
    """Predicted age of each scan in years, in float32 as in use; ``fast``: in bfloat16."""
    network.eval()
    found = []
    for scan in scans:
        inputs = _inputs([scan], [scan.image.to(options.device).float()], options)
        if fast:
            with autocast(options.device):
                found.append(network(*inputs).item())
        else:
            found.append(network(*inputs).item())
    return output.offset + output.scale * np.array(found, dtype=np.float64)


def as_shipped(network: nn.Module) -> nn.Module:
    """A copy whose parameters are rounded to float16, as the weight file holds them."""
    shipped = copy.deepcopy(network).eval()
    with torch.no_grad():
        for value in shipped.parameters():
            value.copy_(value.half())
    return shipped


def load_member(
    data: TrainingSet, held_out: NDArray[np.bool_], name: str, options: Options, folder: Path
) -> tuple[nn.Module, list[Epoch]] | None:
    """The averaged network of a fold that is complete, and its log; None where it is not.

    Raises
    ------
    ModelError
        Where the checkpoint is of another run.
    """
    state = _start(options)
    key = checkpoint_key(data, held_out, options)
    stored = _stored(folder / f"{name}.pt", key, options.device)
    if stored is None or len(stored["history"]) < options.epochs:
        return None
    state.average.load_state_dict(stored["average"])
    return merge(state.average.eval()), [Epoch(**row) for row in stored["history"]]


# --- log and checkpoint ---


def _evaluated(
    row: Epoch, network: nn.Module, scans: list[TrainingScan], output: Output, options: Options
) -> Epoch:
    """A row with the errors on the held-out fold: for the learning curve, and for nothing else."""
    ages = np.array([scan.age for scan in scans])
    found = predict_ages(network, scans, output, options, fast=True)
    mae = float(np.abs(found - ages).mean())
    varied = len(scans) > 1 and ages.std() > 0 and found.std() > 0
    r = float(np.corrcoef(found, ages)[0, 1]) if varied else None
    return Epoch(row.epoch, row.seconds, row.learning_rate, row.loss, mae, r)


def _describe(rows: list[Epoch], options: Options) -> str:
    """One line on the epoch just done, with an estimate of the time left."""
    last = rows[-1]
    left = (options.epochs - last.epoch) * float(np.mean([row.seconds for row in rows[-10:]]))
    text = f"epoch {last.epoch}/{options.epochs}, loss {last.loss:.4f}"
    if last.held_out_mae is not None:
        text += f", held out MAE {last.held_out_mae:.2f} y"
    if last.held_out_r is not None:
        text += f" r {last.held_out_r:.3f}"
    return f"{text}, {last.seconds:.0f} s, {left / 60:.0f} min left"


def _write_log(history: list[Epoch], path: Path) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, asdict(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in history)
    partial = path.with_suffix(".csv.partial")
    partial.write_text(table.getvalue(), encoding="utf-8")
    partial.replace(path)


def _save(state: State, path: Path, key: str) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".pt.partial")
    torch.save(
        {
            "key": key,
            "network": state.network.state_dict(),
            "heads": state.heads.state_dict(),
            "average": state.average.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "history": [asdict(row) for row in state.history],
        },
        partial,
    )
    partial.replace(path)


def _resume(state: State, path: Path, key: str) -> None:
    """Go on from a checkpoint where there is one."""
    stored = _stored(path, key, str(next(state.network.parameters()).device))
    if stored is None:
        return
    state.network.load_state_dict(stored["network"])
    state.heads.load_state_dict(stored.get("heads", {}))
    state.average.load_state_dict(stored["average"])
    state.optimizer.load_state_dict(stored["optimizer"])
    state.history = [Epoch(**row) for row in stored["history"]]


def _stored(path: Path, key: str, device: str) -> dict[str, Any] | None:
    """What a checkpoint holds; None where there is none.

    Raises
    ------
    ModelError
        Where it is of another run.
    """
    if not path.exists():
        return None
    stored: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if stored["key"] != key:
        raise ModelError(
            f"The checkpoint {path} was made with other options or other scans; repeat them, add"
            " --fresh to start over, or choose another --out."
        )
    return stored
