"""Rows packed as trees give the states, and the gradients, of the rows run one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safeedit.model import packing
from safeedit.model.handle import ModelHandle
from safeedit.model.packing import can_be_packed, packed_states
from tests.tiny_models import FAMILIES, tiny_handle

ROWS = [
    [11, 12, 13, 14, 15, 16, 17],
    [11, 12, 13, 14, 20],
    [30, 31],
    [11, 12, 13, 14, 15, 16, 18, 19],
    [30, 31],
    [30],
    [11, 12, 40, 41, 42, 43],
]
"""Some begin alike, two are equal, one begins others."""

DISTINCT = 7 + 1 + 2 + 2 + 4
"""Tokens of :data:`ROWS`, what is shared counted once."""


def shapes_seen(handle: ModelHandle) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    handle.embedding.register_forward_pre_hook(lambda m, args: shapes.append(tuple(args[0].shape)))
    return shapes


def with_shift(handle: ModelHandle, shift: Tensor, rows: list[list[int]]) -> list[Tensor]:
    (site,) = handle.sites("mlp_out", [1])
    with handle.intercepted([site], lambda site, written: written + shift, "output"):
        return packed_states(handle, rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_row_alone(family: str) -> None:
    handle = tiny_handle(family)
    with torch.no_grad():
        for row, states in zip(ROWS, packed_states(handle, ROWS), strict=True):
            ids = torch.tensor([row])
            (alone,) = handle.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_sums_of_each_row_alone(family: str) -> None:
    handle = tiny_handle(family)
    shift = torch.zeros(handle.d_model, requires_grad=True)
    together = torch.cat(with_shift(handle, shift, ROWS))
    weights = torch.arange(together.shape[1]) / together.shape[1]
    (found,) = torch.autograd.grad((together * weights).sum(), shift)

    each = [(with_shift(handle, shift, [row])[0] * weights).sum() for row in ROWS]
    (expected,) = torch.autograd.grad(torch.stack(each).sum(), shift)

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_rows_share_is_run_once_and_nothing_is_padded() -> None:
    handle = tiny_handle("llama")
    shapes = shapes_seen(handle)
    with torch.no_grad():
        packed_states(handle, ROWS)
    assert shapes == [(1, DISTINCT)]


def test_many_tokens_make_several_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LONGEST_PACK", 9)
    handle = tiny_handle("llama")
    shapes = shapes_seen(handle)
    with torch.no_grad():
        whole = packed_states(handle, ROWS)
        alone = [packed_states(handle, [row])[0] for row in ROWS]
    assert shapes[0][0] > 1
    assert shapes[0][1] <= 9
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_beyond_a_sliding_window_are_not_packed() -> None:
    handle = tiny_handle("mistral", sliding_window=6)
    assert can_be_packed(handle, [[1] * 6])
    assert not can_be_packed(handle, [[1] * 6, [1] * 7])
    assert can_be_packed(tiny_handle("llama"), [[1] * 200])
