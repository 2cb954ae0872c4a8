"""Batches by length and memory: sorted, padded on the right, smaller where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from safeedit.errors import AuditError

T = TypeVar("T")

MAX_LOGITS = 1 << 26
"""Logits computed at a time: 128 MiB in bfloat16, and as much again while they are read."""


def pad_right(rows: Sequence[Sequence[int]], pad: int = 0) -> Tensor:
    """``(n, longest)`` on the CPU."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share."""
    if not rows:
        return 0
    # Whatever the least and the greatest share, all between them share.
    low, high = min(map(list, rows)), max(map(list, rows))
    shared = 0
    for a, b in zip(low, high, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "not enough memory" in said or "can't allocate memory" in said
    )


def release_memory() -> None:
    """Give back what a failed batch left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Batcher:
    """Runs work in batches, longest first, halving the batch whenever memory runs out.

    Args:
        max_tokens: Padded tokens in a batch. Falls when memory runs out, and stays there.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def each(
        self,
        lengths: Sequence[int],
        run: Callable[[list[int]], Sequence[T]],
        *,
        logits: Sequence[int] | None = None,
        together: Callable[[int, int], bool] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Yield ``(index, result)`` for every index, batch by batch.

        Args:
            lengths: Tokens of each.
            run: Indices of a batch -> their results, in that order.
            logits: Logits each asks for, if they count.
            together: Whether an index may join a batch that another began; default yes.

        Raises:
            AuditError: A single one does not fit into memory.
        """
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        start = 0
        while start < len(order):
            batch = self._batch(order[start:], lengths, logits, together)
            results = self.attempt(
                partial(run, batch), batch[0], count=len(batch), width=lengths[batch[0]]
            )
            if results is None:
                continue
            yield from zip(batch, results, strict=True)
            start += len(batch)

    def _batch(
        self,
        order: Sequence[int],
        lengths: Sequence[int],
        logits: Sequence[int] | None,
        together: Callable[[int, int], bool] | None,
    ) -> list[int]:
        width = max(1, lengths[order[0]])
        batch: list[int] = []
        n_logits = 0
        for index in order[: max(1, self.max_tokens // width)]:
            n_logits += logits[index] if logits else 0
            if batch and (n_logits > MAX_LOGITS or (together and not together(batch[0], index))):
                break
            batch.append(index)
        return batch

    def attempt(self, run: Callable[[], T], first: int, *, count: int, width: int) -> T | None:
        """What ``run`` returns; None where memory runs out: from then on batches are smaller.

        Args:
            run: Works on one batch.
            first: Index of one of it, to be named.
            count: How many it holds.
            width: Tokens of the longest.

        Raises:
            AuditError: It is one alone that does not fit.
        """
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if count == 1:
                raise AuditError(
                    f"prompt {first} alone does not fit into memory",
                    remedy="use shorter prompts, a smaller model, or a device with more memory",
                ) from error
        # Outside the handler, which would keep the failed batch's tensors alive.
        self.max_tokens = max(1, count // 2 * width)
        release_memory()
        return None
