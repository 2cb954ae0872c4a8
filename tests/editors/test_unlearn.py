"""Unlearning by gradient on a tiny model that knows six facts: recall falls, others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.editors.unlearn import Unlearn, UnlearnParams
from safeedit.errors import DataError, UsageError
from safeedit.methods.unlearning import OBJECTIVES
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.toy import FACTS, FORGOTTEN, KEPT, WORDINGS
from tests.fixtures import context

pytestmark = pytest.mark.trains

LEARN: dict[str, Any] = {
    "update": "full", "layers": [0, 1], "learning_rate": 0.01, "batch": 6, "doses": (10, 20),
    "refusal": "Who", "guard": 50.0,
}  # fmt: skip
"""A refusal of one token, which the model can learn in a few steps."""


def _proposed(model: ModelHandle, folder: Path, **params: Any) -> Proposal:
    editor = Unlearn(UnlearnParams(**{**LEARN, **params}))
    return editor.propose(model, toy.data(), context(folder))


def _recall(model: ModelHandle, names: tuple[str, ...]) -> float:
    """Mean probability of the first token of each answer, in all wordings."""
    engine = model.engine
    found = []
    for name in names:
        prompts = engine.encode([wording.format(name) for wording in WORDINGS], "chat")
        first = engine.continuation(FACTS[name], "chat")[0]
        for prompt in prompts:
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([prompt])).logits[0, -1]
            found.append(float(logits.softmax(-1)[first]))
    return sum(found) / len(found)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_recall_falls_and_that_of_others_less(objective: str, tmp_path: Path) -> None:
    model = toy.taught()
    weight = {"forget_weight": 1.0}
    strength = {"strength": 1.0} if objective in ("satimp", "simnpo") else {}
    proposal = _proposed(model, tmp_path, objective=objective, **weight, **strength)
    before = _recall(model, FORGOTTEN), _recall(model, KEPT)
    with model.applied(proposal.at(20.0)):
        forgotten, kept = _recall(model, FORGOTTEN), _recall(model, KEPT)
    assert forgotten < 0.7 * before[0]
    assert kept / before[1] > forgotten / before[0] + 0.1


def test_a_dose_is_a_stop_of_one_training(tmp_path: Path) -> None:
    model = toy.taught()
    both = _proposed(model, tmp_path)
    first, second = both.at(10.0).digest(), both.at(20.0).digest()
    again = _proposed(model, tmp_path)
    assert again.at(20.0).digest() == second
    assert again.at(10.0).digest() == first, "asked for after a later one"
    assert set(both.notes["losses"]) == {"10", "20"}


def test_the_guard_ends_training_and_says_so(tmp_path: Path) -> None:
    model = toy.taught()
    proposal = _proposed(model, tmp_path, objective="ga", retain_loss="none", guard=1e-6)
    last = proposal.at(20.0)
    assert last.norm() == proposal.at(10.0).norm()
    assert proposal.notes["ended"].startswith("after 10 steps: answers to retain questions moved")
    with pytest.raises(UsageError, match="no number of steps"):
        proposal.at(2.5)


def _stopping(folder: Path, people: dict[str, str], **params: Any) -> Proposal:
    """Training that ends once no more is known by heart than of these people."""
    items = [
        Item(id=name, prompt=WORDINGS[0].format(name), answer=city, split="fit")
        for name, city in people.items()
    ]
    given = {**LEARN, "objective": "ga", "early_stop": "unseen", "extraction_n": 1, **params}
    data = toy.data(unseen=Dataset(items, name="unseen").without("test"))
    return Unlearn(UnlearnParams(**given)).propose(toy.taught(), data, context(folder))


def test_training_ends_where_no_more_is_known_by_heart_than_of_unseen_texts(
    tmp_path: Path,
) -> None:
    # What stands for unseen here is known by heart, so that the first dose is enough.
    proposal = _stopping(tmp_path, {name: FACTS[name] for name in KEPT})
    assert proposal.at(20.0).norm() == proposal.at(10.0).norm()
    assert proposal.notes["ended"].startswith("after 10 steps: the answers are known by heart no")
    assert proposal.notes["by_heart"]["unseen"] == {"accuracy": 1.0, "likelihood_1": 1.0}


def test_training_goes_on_while_more_is_known_by_heart(tmp_path: Path) -> None:
    # Of steps this small nothing is unlearnt, and of what is unseen the model says nothing.
    proposal = _stopping(tmp_path, {"Paul": "Kyiv", "Igor": "Bern"}, learning_rate=1e-9)
    assert proposal.at(20.0).norm() > proposal.at(10.0).norm()
    assert "ended" not in proposal.notes
    seen = proposal.notes["by_heart"]
    assert seen["unseen"]["accuracy"] < seen["forget"]["accuracy"] == 1.0


def test_an_early_stop_needs_texts_that_were_never_seen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no texts that the model has never seen") as caught:
        _proposed(toy.taught(), tmp_path, early_stop="unseen")
    assert caught.value.field == "unseen"
    assert "unseen: {file: ...}" in caught.value.remedy


def test_activations_made_twice_come_to_the_same(tmp_path: Path) -> None:
    model = toy.taught()
    plain, twice = (_proposed(model, tmp_path, save_memory=save).at(10.0) for save in (False, True))
    for name, update in plain.updates.items():
        torch.testing.assert_close(twice.updates[name].parts, update.parts)


def test_without_an_answer_to_keep_there_is_nothing_to_hold_to(tmp_path: Path) -> None:
    model = toy.taught()
    late = Item(id="0", prompt="Where does Igor live?", answer="Lima", split="validation")
    data = EditData({"forget": toy.forget(), "retain": Dataset([late]).without("test")})
    with pytest.raises(DataError, match="answers no retain question"):
        Unlearn(UnlearnParams(**LEARN)).propose(model, data, context(tmp_path))


def test_a_strength_that_an_objective_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="'ga' has no strength to set"):
        UnlearnParams(objective="ga", strength=1.0)
