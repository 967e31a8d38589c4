"""bfloat16 where it is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SmallConvolutionsInFloat32(TorchFunctionMode):
    """Keeps convolutions of images smaller than their kernel out of autocast.

    On CPUs the weight gradient of such a convolution in bfloat16 is not computed but left as
    found in memory, at times as NaN (torch 2.13 with its oneDNN). They cost next to nothing.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv3d:
            image, weight = args[:2]
            if any(n < k for n, k in zip(image.shape[2:], weight.shape[2:])):
                with torch.autocast(image.device.type, enabled=False):
                    return func(image.float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Mixed precision of bfloat16 and float32, for float32 parameters."""
    with torch.autocast(torch.device(device).type, torch.bfloat16), _SmallConvolutionsInFloat32():
        yield
