"""Moments of activations, accumulated batch by batch.

Source: the covariance ``C = E[k k']`` of ROME and MEMIT (Meng et al., 2022, eq. 7), uncentred.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1024


class Moments:
    """Accumulates ``E[x]`` and ``E[x x']`` over rows; products in fp32, sums in fp64.

    Rows wait until there are enough for a matrix product worth its overhead.

    Args:
        width: Length of a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0.0
        self._waiting: list[Tensor] = []
        self._first = torch.zeros(width, dtype=torch.float64)
        self._second = torch.zeros(width, width, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add rows ``(n, width)``."""
        rows = rows.detach().reshape(-1, self.width).float()
        self.count += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _CHUNK:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        self._first += rows.sum(0).cpu().double()
        self._second += (rows.T @ rows).cpu().double()

    @property
    def mean(self) -> Tensor:
        """``(width,)``, fp64; zeros before the first row."""
        self._add_waiting()
        return self._first / max(self.count, 1.0)

    @property
    def second(self) -> Tensor:
        """``(width, width)``, fp64, uncentred; zeros before the first row."""
        self._add_waiting()
        return self._second / max(self.count, 1.0)

    @classmethod
    def balanced(cls, parts: Sequence[Moments]) -> Moments:
        """Parts of different size mixed in equal shares; empty ones are left out."""
        found = [part for part in parts if part.count]
        mixed = cls(parts[0].width)
        for part in found:
            mixed._first += part.mean / len(found)
            mixed._second += part.second / len(found)
        mixed.count = 1.0
        return mixed
