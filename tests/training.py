"""What tests that train a tiny model share: their seed, emulated rounding, and their mark.

What a trained model came to must not hang on the CPU: matrix products are summed in another order
by every kernel, thread count and instruction set, and training magnifies the last bit. So every
test in which an optimiser takes a step carries the mark ``trains`` (``tests/conftest.py`` fails it
otherwise), and ``make test-kernels`` runs exactly those under several kernels, thread counts, seeds
and roundings:

- ``SAFEEDIT_TEST_SEED=n`` draws other weights, other orders of examples and other runs' seeds;
- ``SAFEEDIT_TEST_ROUNDING=n`` moves each weight a tiny model begins with by about half a unit in
  the last place of bfloat16, which is what another kernel's rounding comes to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

SEED = int(os.environ.get("SAFEEDIT_TEST_SEED", "0"))
ROUNDING = int(os.environ.get("SAFEEDIT_TEST_ROUNDING", "0"))

_HALF_ULP = 2.0**-9
"""Of bfloat16, relative."""

_Fixture = TypeVar("_Fixture", bound=Callable[..., Any])

_asked: list[Callable[[], None]] = []


def seeded(seed: int) -> int:
    """``seed``, or another that stands for it where the environment asks for other seeds."""
    return seed + 1_000_003 * SEED


def rounded_otherwise(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` as another kernel might have rounded it, where the environment asks for that."""
    if not ROUNDING:
        return weight
    generator = torch.Generator().manual_seed(1_000 * ROUNDING + weight.numel())
    return weight * (1 + _HALF_ULP * torch.randn(weight.shape, generator=generator))


def trained(fixture: _Fixture) -> _Fixture:
    """Says that a fixture trains: whoever uses it gets the mark. Goes under ``pytest.fixture``."""
    fixture.trains = True  # type: ignore[attr-defined]
    return fixture


def on_training(ask: Callable[[], None]) -> None:
    """Call ``ask`` whenever a test trains, or uses what another test of its process trained."""
    if not _asked:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(lambda *_: trains())
    _asked.append(ask)


def trains() -> None:
    """Says that the running test depends on training: for models that are trained once a process.

    (The optimiser's steps say so themselves.)
    """
    for ask in _asked:
        ask()
