"""Fetch weights that others publish: download, check, convert, and store for the registry.

The published file is known by its git blob hash, which the card holds: who serves it does not
matter, so that mirrors may. It is a pickle, read as tensors only and stored as safetensors.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from models import registry
from models.contract import ModelCard, ModelError

Progress = Callable[[int, int | None], None]
"""Called with the bytes received, and those there are in all where the server says so."""
CHUNK = 1 << 16
TIMEOUT = 30.0  # seconds without a byte


def fetch(name: str, file: Path | None = None, root: Path = registry.FOLDER) -> Path:
    """Store the published weights of a model where the registry finds them.

    Parameters
    ----------
    name
        A known model whose card says where its weights are.
    file
        The published file, where it was downloaded by other means.

    Returns
    -------
    Path
        The stored weights: those that were there already, or new ones.

    Raises
    ------
    ModelError
        Where there is nothing to fetch, no folder to store it in, no network, or the file is not
        the published one.
    """
    card = registry.card(name, root)
    stored = registry.weights_file(name, root)
    if stored and hashlib.sha256(registry.read(stored)).hexdigest() == card.weights_sha256:
        return stored
    if registry.HASH not in card.source:
        raise ModelError(f"The card of '{name}' names no published weights to fetch.")
    folder = _folder(name)
    try:
        content = _checked(file, card) if file else _download(card, folder)
        return _store(content, card, folder)
    finally:
        with suppress(OSError):  # not empty: the weights, or what a broken download has got
            folder.rmdir()


def blob_sha1(content: bytes) -> str:
    """The name that git gives to the content of a file."""
    head = b"blob %d\0" % len(content)
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def _folder(name: str) -> Path:
    store = registry.store()
    if store is None:
        raise ModelError(
            f"Inside a container the environment variable {registry.STORE} must name the folder"
            " for fetched models: one that outlasts the container."
        )
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store(content: bytes, card: ModelCard, folder: Path) -> Path:
    """Convert the published file, and write weights and card."""
    import torch

    from models import checkpoints

    where = f"The published file of '{card.name}'"
    network = registry.network_builder(card.architecture)(card.network)
    try:
        network.load_state_dict(checkpoints.tensors(checkpoints.read(content, where)))
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip().rstrip(".")
        raise ModelError(f"{where} does not fit its network: {fault}.") from None
    return registry.save_model(folder, card, [network], torch.float32)


def _checked(file: Path, card: ModelCard) -> bytes:
    content = registry.read(file)
    if (found := blob_sha1(content)) != card.source[registry.HASH]:
        raise ModelError(
            f"{file} is not the published file of '{card.name}' (git blob hash {found[:12]}...,"
            f" the card says {card.source[registry.HASH][:12]}...); download it again."
        )
    return content


# --- download ---


def _download(card: ModelCard, folder: Path) -> bytes:
    """The published file from the first address that has it.

    What a broken download has got is kept beside the weights-to-be, and the next one goes on from
    there; a file with another hash is not.
    """
    wanted, addresses = card.source[registry.HASH], card.source["addresses"]
    partial, faults = folder / f".{wanted}.partial", []
    for address in addresses:
        try:
            with _bar(card.name) as progress:
                _receive(address, partial, progress)
        except (OSError, HTTPException) as error:
            faults.append(f"{urlsplit(address).netloc}: {_reason(error)}")
            continue
        content = partial.read_bytes()
        partial.unlink()
        if blob_sha1(content) == wanted:
            return content
        faults.append(f"{urlsplit(address).netloc}: not the published file, by its git blob hash")
    raise ModelError(
        f"The weights of '{card.name}' could not be downloaded ({'; '.join(faults)}); try again"
        f" on a machine with a network, or download {addresses[0]} by other means and run"
        f" python -m models fetch {card.name} --from FILE."
    )


def _receive(address: str, partial: Path, progress: Progress) -> None:
    """Download to the end; after a break go on, as long as each attempt brings something."""
    while True:
        before = _size(partial)
        try:
            return _go_on(address, partial, progress)
        except HTTPError:
            raise
        except (OSError, HTTPException):
            if _size(partial) <= before:
                raise


def _go_on(address: str, partial: Path, progress: Progress) -> None:
    """One request, for what is missing; a server that knows no ranges sends everything again."""
    begun = _size(partial)
    headers = {"User-Agent": "brainage"} | ({"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urlopen(Request(address, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if begun and error.code == 416:  # nothing is missing
            return
        raise
    with answer:
        rest = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        begun = begun if answer.status == 206 and rest and int(rest[1]) == begun else 0
        length = answer.headers.get("Content-Length")
        total = begun + int(length) if length else None
        with partial.open("ab" if begun else "wb") as stream:
            while chunk := answer.read(CHUNK):
                stream.write(chunk)
                progress(stream.tell(), total)
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"broken off after {_size(partial)} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A progress bar on a terminal, and nothing elsewhere."""
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn(name), rich.BarColumn(), rich.DownloadColumn(),
               rich.TransferSpeedColumn(), rich.TimeRemainingColumn())  # fmt: skip
    bar = rich.Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
