"""Rounding of weights: exact where it can be, and telling for edits that hide below its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeedit.attacks.quantize import Params, Quantize
from safeedit.contracts import EditData, RunContext
from safeedit.model.handle import ModelHandle
from tests.fixtures import gaussian
from tests.tiny_models import tiny_handle


@pytest.fixture(scope="module")
def model() -> ModelHandle:
    return tiny_handle("llama")


def rounded(model: ModelHandle, weight: Tensor, tmp_path: Path, **params: Any) -> list[Tensor]:
    """A matrix at every strength."""
    attack = Quantize(Params.model_validate(params))
    ctx = RunContext(seed=0, cache=tmp_path, secret=b"s" * 32)
    proposal = attack.propose(model, EditData({}), ctx)
    found = [next(iter(proposal.at(dose).values())) for dose in proposal.doses]
    return [rewrite(weight) for rewrite in found]


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32), (4, 0), (3, 16), (2, 32)])
def test_no_number_moves_by_more_than_half_a_step_of_its_own_scale(
    model: ModelHandle, tmp_path: Path, bits: int, group: int
) -> None:
    weight = gaussian(6, 64)
    (found,) = rounded(model, weight, tmp_path, bits=(bits,), group=group)
    blocks = weight.reshape(6, -1, group or 64)
    step = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    moved = (found.reshape(blocks.shape) - blocks).abs()
    assert (moved <= step / 2 * (1 + 1e-5)).all()
    assert all(len(block.unique()) <= 2**bits - 1 for block in found.reshape(-1, group or 64))


def test_what_lies_on_the_grid_stays_where_it_is(model: ModelHandle, tmp_path: Path) -> None:
    weight = torch.randint(-7, 8, (4, 64), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::32] = 7.0  # the scale of every group
    (found,) = rounded(model, weight, tmp_path, bits=(4,), group=32)
    assert torch.equal(found, weight)


def test_an_edit_smaller_than_the_step_is_undone(model: ModelHandle, tmp_path: Path) -> None:
    """What an edit that is not seen in four bits looks like: the rounded models are the same."""
    weight = torch.randint(-6, 7, (4, 64), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::32] = 7.0
    edit = 0.3 * torch.ones_like(weight)
    edit[:, ::32] = 0.0
    for bits, same in ((4, True), (8, False)):
        (before,) = rounded(model, weight, tmp_path, bits=(bits,), group=32)
        (after,) = rounded(model, weight + edit, tmp_path, bits=(bits,), group=32)
        assert torch.equal(before, after) == same


def test_nothing_is_0_and_stays_so(model: ModelHandle, tmp_path: Path) -> None:
    formats = ("nf4", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
    for found in rounded(model, torch.zeros(3, 64), tmp_path, bits=(8, 4), formats=formats):
        assert torch.equal(found, torch.zeros(3, 64))


def test_nf4_takes_the_nearest_of_its_sixteen_levels(model: ModelHandle, tmp_path: Path) -> None:
    weight = gaussian(5, 64)
    (found,) = rounded(model, weight, tmp_path, bits=(), formats=("nf4",))
    scale = weight.abs().amax(1, keepdim=True)
    units = [row.unique() for row in found / scale]
    assert all(len(row) <= 16 for row in units)
    assert float((found - weight).abs().max()) <= float(scale.max()) * 0.152 + 1e-6
    assert torch.equal(found[weight.abs() == scale], weight[weight.abs() == scale])


@pytest.mark.parametrize(
    ("name", "worst"),
    [("q8_0", 0.01), ("q5_1", 0.06), ("q5_0", 0.06), ("q4_1", 0.1), ("q4_0", 0.15)],
)
def test_types_of_gguf_files_lose_what_their_width_says(
    model: ModelHandle, tmp_path: Path, name: str, worst: float
) -> None:
    weight = gaussian(4, 64)
    (found,) = rounded(model, weight, tmp_path, bits=(), formats=(name,))
    most = weight.reshape(-1, 32).abs().amax(-1).max()
    assert 0 < float((found - weight).abs().max()) <= worst * float(most)


def test_a_width_that_the_blocks_of_a_gguf_type_do_not_fit_is_left(
    model: ModelHandle, tmp_path: Path
) -> None:
    weight = gaussian(4, 50)
    (found,) = rounded(model, weight, tmp_path, bits=(), formats=("q4_0",))
    assert torch.equal(found, weight)


@pytest.mark.parametrize("bits", [1, 9, 17, 0])
def test_widths_that_make_no_sense_are_refused(bits: int) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"bits": (bits,)})
