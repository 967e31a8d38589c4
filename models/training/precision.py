"""Mixed precision on a GPU."""

from __future__ import annotations

import torch


def autocast(device: str) -> torch.autocast:
    """bfloat16 where it is safe, on a GPU; on a CPU everything stays in float32.

    Few CPUs have units for bfloat16: on others the transformer trains at half the speed in it, and
    the gradient of small convolutions may be left uncomputed (torch 2.13).
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")
