"""Cards and weights on disk: what there is, and how it is loaded and saved.

A model is one folder ``models/<name>/`` with ``network.py`` (``build(config) -> nn.Module``),
``card.toml`` and, where they are ours to give, ``weights.safetensors``. Weights that are not,
and that ``models.fetch`` has fetched, lie in the folder ``store()`` instead. The weight file holds
one network, or the members of an ensemble under ``member0.``, ``member1.``, and so on. It is
loaded only if its SHA-256 is the one on the card.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.contract import InputContract, ModelCard, ModelError
from models.intensity import check_rule
from models.prediction import BrainAgeModel
from models.reference import Reference

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FOLDER = Path(__file__).parent
CARD = "card.toml"
WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
SEGMENTATION = "segmentation"
HASH = "git_blob_sha1"
"""Key of a card's source: sha1("blob <size>\\0" + content), as git names the published file."""
STORE = "BRAINAGE_MODELS"
"""Environment variable that names the folder of fetched models."""


def known(root: Path = FOLDER) -> dict[str, ModelCard]:
    """The cards of all brain-age models below ``root``, by name."""
    folders = sorted(path.parent for path in root.glob(f"*/{CARD}"))
    return {each.name: card(each.name, root) for each in folders if each.name != SEGMENTATION}


def embedded(root: Path = FOLDER) -> list[str]:
    """The names of the brain-age models whose weights lie beside their card."""
    return [name for name in known(root) if (root / name / WEIGHTS).is_file()]


def fetched(root: Path = FOLDER) -> list[str]:
    """The names of the brain-age models whose weights were fetched (``models.fetch``)."""
    here = embedded(root)
    return [name for name in known(root) if name not in here and weights_file(name, root)]


def available(root: Path = FOLDER) -> list[str]:
    """The names of the brain-age models that are ready to run: embedded or fetched."""
    return [name for name in known(root) if weights_file(name, root)]


def store() -> Path | None:
    """Folder of fetched models: BRAINAGE_MODELS, else the user's own folder for data.

    None in a container where the variable is not set: what lies in its home folder is lost with
    the container, or is not the container's to write to.
    """
    if named := os.environ.get(STORE):
        return Path(named).expanduser().absolute()
    if in_container():
        return None
    import platformdirs

    return platformdirs.user_data_path("brainage", appauthor=False) / "models"


def in_container() -> bool:
    """Whether this is one, by the marks that Docker, Podman, Apptainer and Kubernetes leave."""
    marks = "/.dockerenv", "/run/.containerenv", "/.singularity.d"
    names = "container", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "KUBERNETES_SERVICE_HOST"
    return any(Path(mark).exists() for mark in marks) or any(map(os.environ.get, names))


def weights_file(name: str, root: Path = FOLDER) -> Path | None:
    """The weights of a known model, beside its card or fetched; None where there are none."""
    beside = root / name / WEIGHTS
    if beside.is_file():
        return beside
    kept = _kept_card(read_card(root / name / CARD))
    return kept.with_name(WEIGHTS) if kept else None


def card(name: str, root: Path = FOLDER) -> ModelCard:
    """The card of one model; with the hash of its weights where these were fetched.

    Raises
    ------
    ModelError
        Where there is no such model, or its card is not valid.
    """
    path = root / name / CARD
    if name == SEGMENTATION or not path.is_file():
        names = ", ".join(known(root)) or "none"
        raise ModelError(f"There is no model named '{name}'; those known are: {names}.")
    this = read_card(path)
    kept = None if path.with_name(WEIGHTS).is_file() else _kept_card(this)
    return replace(this, weights_sha256=read_card(kept).weights_sha256) if kept else this


def _kept_card(this: ModelCard) -> Path | None:
    """The card beside fetched weights, if they are made of the file that this card asks for."""
    folder = store() if HASH in this.source else None
    path = folder / this.name / CARD if folder else None
    if path is None or not path.is_file() or not path.with_name(WEIGHTS).is_file():
        return None
    return path if read_card(path).source.get(HASH) == this.source[HASH] else None


def read_card(path: Path) -> ModelCard:
    """Read a card file.

    Raises
    ------
    ModelError
        Where the file cannot be read or is not a valid card.
    """
    return ModelCard.from_toml(read(path).decode("utf-8", "replace"), str(path))


def load(
    name: str, device: str = "cpu", weights: Path | None = None, root: Path = FOLDER
) -> BrainAgeModel:
    """Load a model, ready to predict.

    Parameters
    ----------
    name
        One of ``known``; with ``weights`` also a name of your own.
    device
        Where the networks are to live, "cpu" or "cuda".
    weights
        A file or folder of your own: ``weights.safetensors`` with its ``card.toml`` beside it.
        Without a card beside it the card of the model ``name`` must fit.

    Raises
    ------
    ModelError
        Where the card or the weights are missing, unreadable or do not belong together.
    """
    file = weights
    if file is None:
        this, file = card(name, root), weights_file(name, root)
        if file is None:
            raise ModelError(
                f"The weights of the model '{name}' are not part of this software; get them from"
                f" {this.source.get('url', 'their authors')} (licence: {this.license}):"
                f" {how_to_get(this)}."
            )
    else:
        file = _own_file(file)
        this = _card_for(file, name, root)
    build = network_builder(this.architecture)
    networks = load_networks(file, lambda: build(this.network), this.weights_sha256, device)
    reference = load_reference(file.with_name(REFERENCE), this.weights_sha256)
    return BrainAgeModel(this, networks, reference)


def own_card(name: str, weights: Path, root: Path = FOLDER) -> ModelCard:
    """The card of weights of one's own, found fit for ``load`` without loading them.

    Raises
    ------
    ModelError
        Where the card or the weights are missing or unreadable, do not belong together, or ask
        for an architecture or an intensity rule that is not there.
    """
    file = _own_file(weights)
    this = _card_for(file, name, root)
    _check_architecture(this.architecture)
    if isinstance(this.contract, InputContract):
        check_rule(this.contract.intensity)
    _read_weights(file, this.weights_sha256)
    return this


def how_to_get(this: ModelCard) -> str:
    """What a user does to run a model whose weights are not here."""
    own = f"name a file of your own with --model-file {this.name}=PATH"
    return f"run python -m models fetch {this.name}, or {own}" if HASH in this.source else own


def load_segmentation(
    device: str = "cpu", root: Path = FOLDER
) -> tuple[nn.Module, dict[str, Any]]:
    """Load the embedded segmentation network, in evaluation mode, and its card as a dict.

    Raises
    ------
    ModelError
        Where the card or the weights are missing, unreadable or do not belong together.
    """
    folder = root / SEGMENTATION
    try:
        table = tomllib.loads(read(folder / CARD).decode("utf-8", "replace"))
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{folder / CARD} is not valid TOML: {error}.") from None
    build = network_builder(SEGMENTATION)
    networks = load_networks(
        folder / WEIGHTS,
        lambda: build(table.get("network", {})),
        table.get("weights_sha256", ""),
        device,
    )
    return networks[0], table


def network_builder(architecture: str) -> Callable[[dict[str, Any]], nn.Module]:
    """The ``build`` of ``models/<architecture>/network.py``.

    Raises
    ------
    ModelError
        Where there is no such architecture.
    """
    _check_architecture(architecture)
    return importlib.import_module(f"models.{architecture}.network").build


def _check_architecture(architecture: str) -> None:
    if not (FOLDER / architecture / "network.py").is_file():
        names = ", ".join(sorted(path.parent.name for path in FOLDER.glob("*/network.py")))
        raise ModelError(
            f"There is no architecture named '{architecture}'; those known are: {names}."
        )


def load_networks(
    weights: Path, build: Callable[[], nn.Module], sha256: str, device: str = "cpu"
) -> list[nn.Module]:
    """Load every member of a weight file, float32 in memory and in evaluation mode.

    The bytes that are checked are the bytes that are loaded: the file is read once.

    Parameters
    ----------
    weights
        A .safetensors file. Keys ``memberN.<parameter>``, or those of a single network, with
        or without the ``module.`` that DataParallel puts before them.
    build
        Makes one network with untrained weights.
    sha256
        What the card says; 64 hexadecimal digits.

    Raises
    ------
    ModelError
        Where the file is missing, unreadable, not the one of the card, or does not fit.
    """
    import safetensors
    import safetensors.torch

    content = _read_weights(weights, sha256)
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{weights} is not a safetensors file: {error}.") from None
    networks = []
    for member in _members(tensors):
        network = build()
        try:
            network.load_state_dict(member)
        except RuntimeError as error:
            fault = str(error).splitlines()[-1].strip().rstrip(".")
            raise ModelError(
                f"The weights in {weights} do not fit the network of their card: {fault}."
            ) from None
        networks.append(network.to(device).eval().requires_grad_(False))
    return networks


def _read_weights(weights: Path, sha256: str) -> bytes:
    """The content of a weight file, if it is the one of the card."""
    content = read(weights)
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ModelError(
            f"The weights in {weights} are not those of their card (SHA-256 {digest[:12]}..., the"
            f" card says {sha256[:12] or 'nothing'}...); get the file again, or the card made"
            " with it."
        )
    return content


def save_weights(
    path: Path, networks: Sequence[nn.Module], dtype: torch.dtype | None = None
) -> str:
    """Write the members of an ensemble to one file, whole or not at all.

    Parameters
    ----------
    path
        The file to write; .safetensors.
    networks
        At least one; all of one architecture.
    dtype
        Of the parameters on disk; float16 where not given. Buffers keep theirs.

    Returns
    -------
    str
        The SHA-256 of the file, for its card.

    Raises
    ------
    ModelError
        Where a value is not finite, or too large for ``dtype``.
    """
    import safetensors.torch
    import torch

    tensors = {}
    for index, network in enumerate(networks):
        running = dict(network.named_buffers())  # statistics are few, and need their digits
        for key, value in network.state_dict().items():
            stored = value.detach().to("cpu", copy=True).contiguous()
            if stored.is_floating_point() and key not in running:
                stored = stored.to(dtype or torch.float16)
                if not stored.isfinite().all():
                    raise ModelError(f"The weights '{key}' do not fit {stored.dtype}.")
            tensors[f"member{index}.{key}"] = stored
    content = safetensors.torch.save(tensors)
    write(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def save_model(
    folder: Path, this: ModelCard, networks: Sequence[nn.Module], dtype: torch.dtype | None = None
) -> Path:
    """Write a model's folder: weights, and the card with their hash last; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = save_weights(folder / WEIGHTS, networks, dtype)
    write(folder / CARD, replace(this, weights_sha256=sha256).to_toml().encode())
    return folder / WEIGHTS


def save_reference(folder: Path, reference: Reference, sha256: str) -> Path:
    """Write a model's reference, with the hash of the weights that it was made with."""
    from safetensors.numpy import save

    names = "mean", "axes", "deviations", "rest", "distances"
    arrays = {n: np.ascontiguousarray(getattr(reference, n), np.float32) for n in names}
    write(folder / REFERENCE, save(arrays, {"weights_sha256": sha256}))
    return folder / REFERENCE


def load_reference(path: Path, sha256: str) -> Reference | None:
    """The reference beside a model's weights; None without one, or with that of other weights.

    Raises
    ------
    ModelError
        Where the file cannot be read.
    """
    if not path.is_file():
        return None
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as file:
            if (file.metadata() or {}).get("weights_sha256") != sha256:
                return None
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Reference(**arrays | {"rest": arrays["rest"].item()})
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no reference of a model: {error}.") from None


def _own_file(weights: Path) -> Path:
    """The file of weights of one's own, which may be named by its folder."""
    return weights / WEIGHTS if weights.is_dir() else weights


def _card_for(file: Path, name: str, root: Path) -> ModelCard:
    """The card of a user's own weight file: the one beside it, else that of a known model."""
    beside = file.with_name(CARD)
    if not file.is_file():
        raise ModelError(f"There is no weight file {file}.")
    if beside.is_file():
        return replace(read_card(beside), name=name)
    if name not in known(root):
        raise ModelError(f"The weights {file} need their card beside them: {beside} is missing.")
    return card(name, root)


def _members(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split what a file holds into one state dict per member, in order."""
    members: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        member = re.fullmatch(r"(?:member(\d+)\.)?(?:module\.)?(.+)", key)
        assert member is not None
        members.setdefault(int(member[1] or 0), {})[member[2]] = value
    return [members[index] for index in sorted(members)]


def read(path: Path) -> bytes:
    """The content of a file.

    Raises
    ------
    ModelError
        Where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"The file {path} cannot be read: {error.strerror}.") from None


def write(path: Path, content: bytes) -> None:
    """Write beside the final name, then rename, so that no half file is ever found there."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
