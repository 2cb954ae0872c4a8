"""RepSelect: what flattening does to a gradient, and that the step unlearns within its budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.editors.repselect import RepSelect, RepSelectParams, flattened
from safeedit.errors import EditError
from tests.editors import toy
from tests.editors.toy import FORGOTTEN, KEPT, answers
from tests.fixtures import context

trains = pytest.mark.trains


def test_the_strongest_directions_become_the_weakest() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(12, 6))
    right, _ = torch.linalg.qr(torch.randn(9, 6))
    values = torch.tensor([32.0, 8.0, 4.0, 2.0, 1.0, 0.5])
    found = flattened((left * values) @ right.T, most=3)
    kept = torch.diag(left.T @ found @ right)
    # s_3 = 4: 16 / 32, 16 / 8, 16 / 4; the others are as they were.
    torch.testing.assert_close(kept, torch.tensor([0.5, 2.0, 4.0, 2.0, 1.0, 0.5]))
    torch.testing.assert_close(found, (left * kept) @ right.T)


def test_rounding_noise_is_not_taken_for_a_direction() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(8, 2) @ torch.randn(2, 6)  # of rank 2: one direction may be flattened
    found = flattened(gradient, most=512)
    torch.testing.assert_close(found, gradient)  # s_1^2 / s_1


def test_a_gradient_of_nothing_is_refused() -> None:
    with pytest.raises(EditError, match="no gradient in a matrix"):
        flattened(torch.zeros(4, 3), most=2)


@trains
def test_the_step_unlearns_and_keeps_to_its_budget(tmp_path: Path) -> None:
    model = toy.taught()
    prose = Dataset(
        [
            Item(id=str(n), prompt=f"{name} and the city of {name}", split="fit")
            for n, name in enumerate(KEPT)
        ],
        name="prose",
    )
    editor = RepSelect(RepSelectParams(directions=4, budget=0.05, layers="0-2"))
    data = EditData({"forget": toy.forget(), "prose": prose})
    proposal = editor.propose(model, data, context(tmp_path))
    assert 0.02 < proposal.notes["prose_kl"] <= 0.06
    asked = [text for name in FORGOTTEN for text in answers(model, name)]
    with model.applied(proposal.at(proposal.doses[-1])):
        said = [text for name in FORGOTTEN for text in answers(model, name)]
    assert said != asked
    once, twice = proposal.at(1.0).norm(), proposal.at(2.0).norm()
    assert twice == pytest.approx(2 * once, rel=1e-4)
