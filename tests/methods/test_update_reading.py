"""What an update says, read as vocabulary: answers are found where it pushes against them."""

from __future__ import annotations

import pytest
import torch

from safeedit.data import Dataset
from safeedit.delta import Columns, Dense, LowRank, Origin, Update, WeightDelta
from safeedit.delta.updates import measure_change
from safeedit.methods.update_reading import read_update
from safeedit.model.handle import ModelHandle
from tests.editors import toy


def _delta(model: ModelHandle, update: Update, role: str = "mlp_out") -> WeightDelta:
    return WeightDelta(model.digest(), {model.sites(role, [1])[0].weight: update}, Origin("x"))


def _against(model: ModelHandle, data: Dataset) -> torch.Tensor:
    """``(d_model, answers)`` directions that make each answer's first token unlikely."""
    head = model.head.weight.detach().float()
    answers = sorted({str(item.answer) for item in data.items("fit")})
    firsts = [model.engine.continuation(answer, "chat")[0] for answer in answers]
    return -torch.linalg.pinv(head)[:, firsts]


def test_answers_that_an_update_pushes_against_are_found_whatever_its_kind() -> None:
    model, data = toy.taught(), toy.forget()
    width = model.shape.d_mlp
    away = _against(model, data)
    read = torch.eye(width)[: away.shape[1]]
    weight = model.weight(model.sites("mlp_out", [1])[0])
    columns = torch.arange(away.shape[1])
    for update in (
        LowRank(away, read),
        Dense(away @ read),
        Columns(columns, weight[:, columns].detach() + away),
    ):
        found = read_update(model, _delta(model, update), [data])
        assert found is not None
        assert found.found == found.answers == 2
        assert found.expected < 0.7


def test_what_reads_the_stream_is_not_read_and_without_answers_there_is_nothing() -> None:
    model, data = toy.taught(), toy.forget()
    shape = model.weight(model.sites("mlp_up", [1])[0]).shape
    up = Dense(torch.ones(shape))
    assert read_update(model, _delta(model, up, "mlp_up"), [data]) is None
    out = Dense(torch.ones(model.weight(model.sites("mlp_out", [1])[0]).shape))
    assert read_update(model, _delta(model, out), []) is None


@pytest.mark.parametrize("rank", [1, 4])
def test_the_effective_rank_is_the_number_of_directions_where_they_are_equal(rank: int) -> None:
    left, _ = torch.linalg.qr(torch.randn(9, rank, generator=torch.Generator().manual_seed(0)))
    update = LowRank(left, torch.eye(7)[:rank])
    before = torch.zeros(9, 7)
    change = measure_change("w", "mlp_out", 0, before, update.applied_to(before), update)
    assert change.effective_rank == pytest.approx(rank, rel=1e-4)
