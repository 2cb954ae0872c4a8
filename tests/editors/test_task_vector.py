"""Task vectors: negation, and what extraction before subtraction keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData
from safeedit.editors.task_vector import TaskVector, TaskVectorParams, extracted
from safeedit.errors import DataError
from tests.editors import toy
from tests.fixtures import context


def test_what_both_changes_share_is_not_subtracted() -> None:
    expert, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    # They share the direction (1, 1) / sqrt 2, of which the other has (1, 1).
    torch.testing.assert_close(extracted(expert, other, 1.0), torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(extracted(expert, 3 * expert, 5.0), expert)
    torch.testing.assert_close(extracted(expert, other, 0.0), expert)


def test_opposite_changes_share_nothing_and_rows_of_zeros_are_no_fault() -> None:
    expert = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[-2.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    found = extracted(expert, other, 1.0)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(extracted(expert[0], other[0], 1.0), found[0])


@pytest.mark.trains
def test_taking_away_undoes_what_learning_adds(tmp_path: Path) -> None:
    model = toy.taught()
    params = TaskVectorParams(update="full", layers=[0], steps=5, learning_rate=1e-3, batch=6)
    proposal = TaskVector(params).propose(model, toy.data(), context(tmp_path))
    one, two = proposal.at(1.0), proposal.at(2.0)
    for name, update in one.updates.items():
        torch.testing.assert_close(two.updates[name].parts["values"], 2 * update.parts["values"])
    assert proposal.notes["loss"] > 0


@pytest.mark.trains
@pytest.mark.parametrize("update", ["lora", "full"])
def test_the_expert_is_what_is_left_at_a_dose_of_next_to_nothing(
    update: Any, tmp_path: Path
) -> None:
    model = toy.taught()
    params = TaskVectorParams(method="ext_sub", update=update, layers=[0], steps=3, batch=4)
    proposal = TaskVector(params).propose(model, toy.data(), context(tmp_path))
    little, much = proposal.at(1e-6).norm(), proposal.at(2.0).norm()
    assert 0 < little < much
    assert proposal.notes["expert_loss"] > 0


def test_an_expert_needs_its_data() -> None:
    editor = TaskVector(TaskVectorParams(method="ext_sub"))
    with pytest.raises(DataError, match="needs retain questions"):
        editor.check_data(EditData({"forget": toy.forget()}).roles)
