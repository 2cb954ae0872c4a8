"""How fast this machine multiplies matrices, for time estimates."""

from __future__ import annotations

import time
from functools import cache

import torch

_SIDE = 1024


@cache
def measured_flops(dtype: str) -> float:
    """Floating-point operations per second of one matrix product here, best of five.

    Args:
        dtype: ``auto`` and ``bfloat16`` time bfloat16, otherwise the named dtype.
    """
    kind = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(_SIDE, _SIDE, dtype=kind, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        b = a @ a
        float(b[0, 0])  # waits for an asynchronous device
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
