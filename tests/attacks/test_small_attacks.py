"""Pruning, noise and merging: what they do to a matrix, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeedit import catalog
from safeedit.contracts import EditData, RunContext
from safeedit.errors import EditError
from safeedit.model.handle import ModelHandle
from tests.fixtures import gaussian
from tests.tiny_models import tiny_handle


@pytest.fixture(scope="module")
def model() -> ModelHandle:
    return tiny_handle("llama")


def at(
    model: ModelHandle, tmp_path: Path, name: str, weight: Tensor, base: Tensor | None = None
) -> dict[float, Tensor]:
    """Dose -> what becomes of a matrix."""
    kind = catalog.attack(name)
    read = None if base is None else lambda tensor: base
    ctx = RunContext(seed=3, cache=tmp_path, secret=b"s" * 32, base_tensor=read)
    proposal = kind(kind.Params()).propose(model, EditData({}), ctx)
    rewrites = {dose: next(iter(proposal.at(dose).values())) for dose in proposal.doses}
    return {dose: rewrite(weight) for dose, rewrite in rewrites.items()}


def test_pruning_takes_the_smallest_and_no_others(model: ModelHandle, tmp_path: Path) -> None:
    weight = gaussian(10, 20)
    for share, found in at(model, tmp_path, "prune", weight).items():
        gone = found == 0
        assert int(gone.sum()) == round(share * 200)
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
        assert torch.equal(found[~gone], weight[~gone])


def test_noise_has_the_norm_it_is_to_have(model: ModelHandle, tmp_path: Path) -> None:
    weight = gaussian(40, 50)
    for share, found in at(model, tmp_path, "noise", weight).items():
        ratio = float((found - weight).norm() / weight.norm())
        assert ratio == pytest.approx(share, rel=1e-4)


def test_merging_goes_a_share_of_the_way_back(model: ModelHandle, tmp_path: Path) -> None:
    base, edit = gaussian(8, 9), gaussian(8, 9, seed=1)
    for share, found in at(model, tmp_path, "merge", base + edit, base).items():
        assert torch.allclose(found - base, (1 - share) * edit, atol=1e-6)


def test_the_base_merged_with_itself_is_the_base(model: ModelHandle, tmp_path: Path) -> None:
    base = gaussian(8, 9)
    for found in at(model, tmp_path, "merge", base, base).values():
        assert torch.equal(found, base)


def test_without_the_bases_files_there_is_no_merging(model: ModelHandle, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="untouched model's files"):
        at(model, tmp_path, "merge", gaussian(2, 2))


@pytest.mark.parametrize(
    ("name", "shares"),
    [("prune", [0.0]), ("prune", [1.0]), ("noise", [0]), ("merge", [1.0])],
)
def test_shares_that_are_none_or_all_are_refused(name: str, shares: list[float]) -> None:
    values: Any = {"shares": tuple(shares)}
    with pytest.raises(ValueError, match=r"shares"):
        catalog.attack(name).Params.model_validate(values)
