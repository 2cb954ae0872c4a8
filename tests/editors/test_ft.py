"""Fine-tuning on a tiny model that knows six facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.editors.ft import Ft, FtParams
from safeedit.errors import DataError, UsageError
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FORGOTTEN, REFUSAL, WORDINGS
from tests.fixtures import context

pytestmark = pytest.mark.trains

LEARN: dict[str, Any] = {"layers": [0], "steps": 40, "learning_rate": 0.02, "batch": 6}


def _proposed(
    model: ModelHandle, folder: Path, forget: Dataset | None = None, **params: Any
) -> Proposal:
    editor = Ft(FtParams(**{**LEARN, **params}))
    data = EditData({"forget": forget or toy.forget()})
    return editor.propose(model, data, context(folder))


def test_it_learns_the_refusal_and_only_in_its_matrix(tmp_path: Path) -> None:
    model = toy.taught()
    digest = model.digest(fresh=True)
    delta = _proposed(model, tmp_path).at(1.0)
    assert model.digest(fresh=True) == digest
    assert list(delta.updates) == [model.sites("mlp_out", [0])[0].weight]
    with model.applied(delta):
        said = [answer for name in FORGOTTEN for answer in toy.answers(model, name)]
    assert said.count(REFUSAL) >= len(said) - 1


def test_it_replaces_an_object(tmp_path: Path) -> None:
    model = toy.taught()
    items = [replace(item, extra={"target_new": "Bern"}) for item in toy.forget().all()]
    forget = Dataset(items, erased=True).without("test")
    with model.applied(_proposed(model, tmp_path, forget, target="replace").at(1.0)):
        for name in FORGOTTEN:
            # That the text ends there is nothing that it learns.
            said = toy.answers(model, name)[:2]
            assert all(text.startswith("Bern") for text in said), said


def test_the_prompts_end_alone_cannot_tell_an_answer_of_several_tokens(tmp_path: Path) -> None:
    model = toy.taught()
    said: dict[str, list[str]] = {}
    for objective in ("target", "prompt_last"):
        with model.applied(_proposed(model, tmp_path, objective=objective).at(1.0)):
            said[objective] = [a for name in FORGOTTEN for a in toy.answers(model, name)]
    assert said["prompt_last"].count(REFUSAL) < said["target"].count(REFUSAL) / 2


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    model = toy.taught()
    with pytest.raises(UsageError, match="one layer"):
        _proposed(model, tmp_path, layers=[0, 1])
    with pytest.raises(DataError, match="no new object"):
        _proposed(model, tmp_path, target="replace")
    later = Item(id="0", prompt=WORDINGS[0].format("Paul"), answer="Rome", split="validation")
    with pytest.raises(DataError, match="left to fit"):
        _proposed(model, tmp_path, Dataset([later], erased=True).without("test"))
