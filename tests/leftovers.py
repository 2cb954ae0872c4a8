"""What is no longer in use and yet stays in memory until the garbage collector comes by."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from safeedit.model.handle import ModelHandle


@dataclass
class Leftovers:
    """Of a block of code."""

    numbers: int = 0
    """Values of tensors that only the collector freed, a model's own aside."""


@contextmanager
def left_to_the_collector(model: ModelHandle) -> Iterator[Leftovers]:
    """Counts what a block leaves in cycles. Memory is freed at once where nothing refers to it any
    more; what refers to itself is freed when the collector runs, which with few objects, however
    large, is seldom."""
    left = Leftovers()
    own = {id(tensor) for tensor in model.model.state_dict(keep_vars=True).values()}
    gc.collect()
    gc.disable()
    try:
        yield left
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = {id(each): each for each in gc.garbage if isinstance(each, Tensor)}
        left.numbers = sum(each.numel() for key, each in found.items() if key not in own)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
