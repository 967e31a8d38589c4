"""Train and cross-validate the segmentation network on heads with MUSE label maps."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from models.contract import ModelError, to_toml
from models.registry import read, save_weights, write
from models.segmentation.inference import brain_mask, intracranial_mask, segment
from models.segmentation.labels import (
    HEMISPHERE_CHANNEL,
    OUTER_CSF,
    STRUCTURES,
    join_hemispheres,
)
from models.segmentation.network import SegmentationUNet
from models.training.synthesis import Example, Head, draw_example, prepare_head

CHANNELS = (32, 64, 96, 128)
_SIDED = torch.tensor([structure.sided for structure in STRUCTURES])


@dataclass(frozen=True)
class Options:
    """What a training run is made of; ``fold`` None trains on everybody."""

    data: Path
    labels: Path
    out: Path
    folds: int = 2
    fold: int | None = None
    steps: int = 3000
    start_from: Path | None = None
    learning_rate: float = 2e-3
    seed: int = 1
    threads: int = 1


def load_heads(data: Path, labels: Path, cache: Path, seed: int) -> list[Head]:
    """All heads of a BIDS data set that have a MUSE map under ``labels``; cached as .npz.

    One that was made of other files, or with another seed, is made again.
    """
    cache.mkdir(parents=True, exist_ok=True)
    heads = []
    for path in sorted(labels.glob("sub-*/**/*_dseg.nii.gz")):
        name = path.name.split("_")[0]
        scan_path = next((data / name).glob("**/*_T1w.nii*"))
        made_of = json.dumps([_stamp(scan_path), _stamp(path), seed])
        head = _stored_head(name, cache / f"{name}.npz", made_of)
        if head is None:
            scan = nib.as_closest_canonical(nib.load(scan_path))
            muse = nib.as_closest_canonical(nib.load(path))
            head = prepare_head(
                name, scan.get_fdata(dtype=np.float32), np.asarray(muse.dataobj), seed
            )
            content = io.BytesIO()
            np.savez(content, made_of=np.array(made_of), **_arrays(head))
            write(cache / f"{name}.npz", content.getvalue())
        heads.append(head)
    return heads


def _stamp(path: Path) -> list[str | int]:
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def _stored_head(name: str, path: Path, made_of: str) -> Head | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile):  # of a killed run
        return None
    known = str(arrays.pop("made_of", ""))
    return Head(name, **arrays) if known == made_of else None


def _arrays(head: Head) -> dict[str, Any]:
    return {key: value for key, value in vars(head).items() if key != "name"}


def loss_of(logits: Tensor, structure: Tensor, left: Tensor) -> Tensor:
    """Cross-entropy + soft Dice over structures + binary cross-entropy of the hemisphere."""
    scores = logits[:, :HEMISPHERE_CHANNEL].float()
    entropy = F.cross_entropy(scores, structure)
    probability = scores.softmax(1).flatten(2)
    target = F.one_hot(structure, len(STRUCTURES)).movedim(-1, 1).flatten(2).float()
    overlap = (probability * target).sum((0, 2))
    total = probability.sum((0, 2)) + target.sum((0, 2))
    dice = (1 - (2 * overlap + 1) / (total + 1))[1:].mean()
    sided = _SIDED[structure].float()
    side = F.binary_cross_entropy_with_logits(
        logits[:, HEMISPHERE_CHANNEL].float(), left, weight=sided, reduction="sum"
    ) / sided.sum().clamp(min=1)
    return entropy + dice + 0.2 * side


def train(options: Options) -> nn.Module:
    """Train one network; a killed run goes on from its last checkpoint.

    Raises
    ------
    ModelError
        Where the checkpoint is of another run.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    heads = load_heads(options.data, options.labels, options.out / "heads", options.seed)
    heads = [h for i, h in enumerate(heads) if options.fold is None or not _held_out(i, options)]
    network = SegmentationUNet(len(STRUCTURES) + 1, CHANNELS)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if options.start_from:
        state = torch.load(options.start_from, weights_only=True)
        network.load_state_dict(state["network"])
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.05
    )
    name = "all" if options.fold is None else f"fold{options.fold}"
    checkpoint, log = options.out / f"{name}.pt", options.out / f"{name}.csv"
    first, key = 0, checkpoint_key(heads, options)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state.get("key") != key:
            raise ModelError(
                f"The checkpoint {checkpoint} was made with other options or other scans; repeat"
                " them, or choose another --out."
            )
        network.load_state_dict(state["network"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    network.train()
    began, recent = time.monotonic(), []
    # the next image is drawn in a process of its own while the network learns from this one
    views = DataLoader(_Views(heads, options.seed), None, sampler=range(first, options.steps),
                       num_workers=1, prefetch_factor=4)  # fmt: skip
    for step, example in enumerate(views, start=first):
        image = example.image[None].contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image)
        loss = loss_of(logits, example.structure[None], example.left[None])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            with log.open("a", newline="") as stream:
                seconds = round(time.monotonic() - began)
                csv.writer(stream).writerow([step + 1, round(float(np.mean(recent)), 4), seconds])
            recent = []
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            _save(checkpoint, key, network, average.module, optimizer, schedule, step + 1)
    return average.module.eval()


def checkpoint_key(heads: list[Head], options: Options) -> str:
    """What a checkpoint must agree with to be continued: options, first weights and heads."""
    chosen = asdict(options)
    for name in ("data", "labels", "out", "threads"):  # the heads say what data and labels hold
        del chosen[name]
    start = chosen.pop("start_from")
    weights = hashlib.sha256(read(start)).hexdigest() if start else None
    return json.dumps([chosen, weights, {head.name: _digest(head) for head in heads}])


def _digest(head: Head) -> str:
    arrays = (np.ascontiguousarray(value).tobytes() for value in _arrays(head).values())
    return hashlib.sha256(b"".join(arrays)).hexdigest()


class _Views(Dataset[Example]):
    """Random views of the heads, one a step; the same step always gives the same view."""

    def __init__(self, heads: list[Head], seed: int) -> None:
        self.heads, self.seed = heads, seed

    def __getitem__(self, step: int) -> Example:
        rng = np.random.default_rng([self.seed, step])
        return draw_example(self.heads[int(rng.integers(len(self.heads)))], rng)


def _held_out(index: int, options: Options) -> bool:
    return index % options.folds == options.fold


def _save(
    path: Path,
    key: str,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    step: int,
) -> None:
    state = {
        "key": key,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": step,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def dice(found: NDArray, truth: NDArray) -> float:
    """Dice overlap of two masks; nan where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else float("nan")


def evaluate(network: nn.Module, heads: list[Head]) -> list[dict[str, float | str]]:
    """Dice of each structure, of the brain with and without outer fluid, and of sides, by head.

    ``brain_mask`` is the mask that is handed out, against everything that the reference labels.
    """
    rows = []
    for head in heads:
        probability = segment(network, head.image.astype(np.float32))
        found = probability[:HEMISPHERE_CHANNEL].argmax(0)
        row: dict[str, float | str] = {"name": head.name}
        handed_out = intracranial_mask(probability, brain_mask(probability))
        row["brain_mask"] = dice(handed_out, head.structure > 0)
        row["brain_without_fluid"] = dice(found > OUTER_CSF, head.structure > OUTER_CSF)
        for number, structure in enumerate(STRUCTURES[1:], start=1):
            row[structure.abbreviation] = dice(found == number, head.structure == number)
        joined = join_hemispheres(found, probability[HEMISPHERE_CHANNEL] > 0.5)
        truth = join_hemispheres(head.structure, head.left)
        both = (joined > 0) & (found == head.structure)
        row["side_agreement"] = float((joined[both] == truth[both]).mean())
        rows.append(row)
    return rows


def run(options: Options) -> None:
    """Train; with a fold held out, evaluate on it and write ``fold<k>_dice.json``."""
    network = train(options)
    if options.fold is None:
        return
    heads = load_heads(options.data, options.labels, options.out / "heads", options.seed)
    held_out = [head for i, head in enumerate(heads) if _held_out(i, options)]
    rows = evaluate(network, held_out)
    write(options.out / f"fold{options.fold}_dice.json", json.dumps(rows, indent=1).encode())


def finish(options: Options) -> None:
    """Write ``weights.safetensors`` and ``card.toml`` of the network trained last.

    That is the one trained on everybody, where there is one, else the one of the first fold.
    The card's figures are the overlaps of every fold that was held out.
    """
    checkpoints = [options.out / f"{name}.pt" for name in ("all", "fold0")]
    found = next((path for path in checkpoints if path.exists()), None)
    if found is None:
        raise ModelError(f"{options.out} holds no checkpoint (all.pt, fold0.pt); train first.")
    network = SegmentationUNet(len(STRUCTURES) + 1, CHANNELS)
    state = torch.load(found, weights_only=True)
    network.load_state_dict(state["average"])
    digest = save_weights(options.out / "weights.safetensors", [network])
    folds = sorted(options.out.glob("fold*_dice.json"))
    rows = [row for path in folds for row in json.loads(path.read_text())]
    card = {
        "name": "segmentation",
        "title": "Segmentation network",
        "version": "0.1.0",
        "summary": "3D U-Net at 2 mm: brain mask, tissues and main regions of a T1-weighted head "
        "or of a stripped brain.",
        "license": "CC-BY-SA-3.0",
        "citation": "Trained on IXI (brain-development.org) with automatic MUSE label maps.",
        "weights_sha256": digest,
        "known_failures": [
            "Trained on adults of one 3 T scanner and on images synthesised from their labels; "
            "large lesions and children were not seen.",
        ],
        "network": {"classes": len(STRUCTURES) + 1, "channels": list(CHANNELS)},
        "training": {
            "data": "IXI, Hammersmith Hospital, 2 mm",
            "checkpoint": found.stem,
            "steps": state["step"],
            "heads": len(list((options.out / "heads").glob("*.npz"))),
            "folds": options.folds,
            "folds_held_out": len(folds),
        },
        "figures": {"held_out_heads": len(rows), "dice": _summary(rows)},
    }
    write(options.out / "card.toml", to_toml(card).encode())


def _summary(rows: list[dict[str, float | str]]) -> dict[str, dict[str, float]]:
    """Mean and fifth percentile of each overlap over the heads."""
    names = [name for name in (rows[0] if rows else {}) if name != "name"]
    values = {name: np.array([float(row[name]) for row in rows]) for name in names}
    return {
        name: {
            "mean": round(float(np.nanmean(of)), 4),
            "percentile_5": round(float(np.nanpercentile(of, 5)), 4),
        }
        for name, of in values.items()
    }
