"""Tensors out of PyTorch's files, without running anything that such a file asks for."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from models.contract import ModelError


def read(content: bytes, where: str) -> dict[str, Any]:
    """What a file of ``torch.save``, or a plain pickle of tensors, holds.

    Parameters
    ----------
    where
        The name of the file, for messages.

    Raises
    ------
    ModelError
        Where it holds anything but tensors and plain values, or no dictionary.
    """
    found: object
    try:
        if _is_plain_pickle(content):
            found = _TensorsOnly(io.BytesIO(content)).load()
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # pickles and archives break in every way
        raise ModelError(
            f"{where} cannot be read: it is damaged, or holds more than tensors and plain values."
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"{where} holds no dictionary of tensors.")
    return found


def tensors(table: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a dictionary, their names without the ``module.`` of DataParallel."""
    return {
        key.removeprefix("module."): value
        for key, value in table.items()
        if isinstance(value, torch.Tensor)
    }


def _is_plain_pickle(content: bytes) -> bool:
    """Made by ``pickle.dump``: torch's own files are archives, or begin with a number."""
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    return content[:1] == b"\x80" and magic not in content[:16]


class _Ignored:
    """Stands for whatever is no tensor, such as the state of a random generator."""

    def __new__(cls, *_arguments: object, **_keywords: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass

    def __call__(self, *_arguments: object, **_keywords: object) -> _Ignored:
        return self


class _TensorsOnly(pickle.Unpickler):
    """Unpickles tensors and plain values; every other name in the file is an inert object."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that make tensors; nothing else is ever looked up."""
        return _MAKERS.get((module, name), _Ignored)


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_MAKERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
}
