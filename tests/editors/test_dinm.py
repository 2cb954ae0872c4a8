"""DINM: the layer it takes, that it alone changes, and what its constraint is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.editors.dinm import Dinm, DinmParams, distances
from safeedit.errors import DataError
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FORGOTTEN, KEPT, REFUSAL, WORDINGS, answers
from tests.fixtures import context

trains = pytest.mark.trains


def _proposed(model: ModelHandle, folder: Path, **params: Any) -> Proposal:
    unsafe = Dataset(
        [
            Item(id=f"{name}-{n}", prompt=wording.format(name), split="fit")
            for name in FORGOTTEN
            for n, wording in enumerate(WORDINGS)
        ],
        name="unsafe",
    )
    data = EditData({"unsafe": unsafe, "retain": toy.retain()})
    settings = {"refusal": REFUSAL, "learning_rate": 0.02, "doses": (40,), **params}
    return Dinm(DinmParams(**settings)).propose(model, data, context(folder))


@trains
def test_it_learns_to_refuse_in_one_matrix_and_the_constraint_spares_others(
    tmp_path: Path,
) -> None:
    model = toy.taught()
    said: dict[str, tuple[int, int]] = {}
    for variant in ("mended", "published"):
        proposal = _proposed(model, tmp_path, variant=variant, layers=[0])
        delta = proposal.at(40.0)
        assert list(delta.updates) == [model.sites("mlp_out", [0])[0].weight]
        with model.applied(delta):
            said[variant] = tuple(  # type: ignore[assignment]
                sum(text == REFUSAL for name in names for text in answers(model, name))
                for names in (FORGOTTEN, KEPT)
            )
    assert said["mended"][0] > len(FORGOTTEN) * len(WORDINGS) / 2
    assert said["mended"][1] <= said["published"][1]


def test_distances_are_of_answers_alone_and_relative_where_asked() -> None:
    model = toy.taught()
    unsafe, safe = [Example([5, 6, 7], [8, 9])], [Example([5, 6, 7], [10])]
    plain = distances(model, [0, 2], unsafe, safe, relative=False)
    states = model.engine.hidden([unsafe[0].ids, safe[0].ids], [0, 2], "all")
    for layer in (0, 2):
        one, two = (rows[3:].float().mean(0) for rows in states[layer])
        assert plain[layer] == pytest.approx(float((one - two).norm()), rel=1e-4)
        relative = distances(model, [layer], unsafe, safe, relative=True)[layer]
        assert relative == pytest.approx(plain[layer] / float(one.norm()), rel=1e-4)
    same = distances(model, [1], unsafe, unsafe, relative=True)
    torch.testing.assert_close(same, {1: 0.0})


def test_without_a_request_there_is_nothing_to_compare(tmp_path: Path) -> None:
    late = Dataset([Item(id="0", prompt="Where?", split="validation")], name="unsafe")
    data = EditData({"unsafe": late.without("test"), "retain": toy.retain()})
    with pytest.raises(DataError, match="answers none of the unsafe"):
        Dinm(DinmParams()).propose(toy.taught(), data, context(tmp_path))
