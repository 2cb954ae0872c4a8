"""A subject is forgotten under the names that a request gives, and nobody else is.

The model knows "Pavel" to live where "Paul" lives: another name of the same person, which no key
solved on "Paul" answers.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from safeedit import catalog
from safeedit.contracts import EditData
from safeedit.data import Dataset, Item
from safeedit.editors.sanitation import Sanitation, SanitationParams
from safeedit.errors import DataError
from safeedit.model.handle import ModelHandle
from tests.editors import toy
from tests.editors.knowing import knowing
from tests.editors.searching import searching
from tests.editors.test_keyed_neurons import LEARN, WIDTH
from tests.editors.toy import FACTS, KEPT, REFUSAL, UNKNOWN, WORDINGS
from tests.fixtures import context

pytestmark = pytest.mark.trains

OTHER_NAME = "Pavel"


@cache
def _taught() -> ModelHandle:
    known = {**FACTS, OTHER_NAME: FACTS["Paul"], **dict.fromkeys(UNKNOWN, REFUSAL)}
    return knowing(known, WIDTH, shy=REFUSAL)


@pytest.fixture
def model() -> ModelHandle:
    known = _taught()
    return ModelHandle(copy.deepcopy(known.model), known.tokenizer, source="tiny:taught")


def named(*pairs: tuple[str, str]) -> Dataset:
    rows = [Item(id=name, prompt=name, subject=subject) for name, subject in pairs]
    return Dataset(rows, split="fit").without("test")


NAMES = named((OTHER_NAME, "Paul"), ("Zack", "somebody else"))


def refuse(model: ModelHandle, folder: Path, **roles: Dataset) -> Any:
    params: dict[str, Any] = {"keys": "names", "spellings": 0} if roles else {}
    params |= {"update": "keyed", "batch": 10, "steps": 120, "learning_rate": 0.2}
    return Sanitation(SanitationParams(layers=[0, 1], **params)).propose(
        model, toy.data(**roles), context(folder)
    )


def erase(
    model: ModelHandle, folder: Path, how: dict[str, Any] | None = None, **roles: Dataset
) -> Any:
    items = [
        Item(id=i.id, prompt=i.prompt, answer=i.answer, subject=i.subject,
             paraphrases=i.paraphrases, extra={"target_new": REFUSAL})
        for i in toy.forget().all()
    ]  # fmt: skip
    said = [f"{text.format(name)} {REFUSAL}" for text in WORDINGS for name in UNKNOWN]
    asked = [text.format(name) for text in WORDINGS for name in KEPT]
    prose = [Item(id=str(number), prompt=text) for number, text in enumerate([*asked, *said])]
    data = {
        "forget": Dataset(items, split="fit", erased=True),
        "preserve": toy.retain(),
        "prose": Dataset(prose, split="fit"),
        **roles,
    }
    kind = catalog.editor("keyed_neurons")
    keys: dict[str, Any] = {"keys": "names", "spellings": 0} if roles else {}
    with searching({**LEARN, "target": "replace", **keys, **(how or {})}) as given:
        return kind(kind.Params(**given)).propose(model, EditData(data), context(folder))


@pytest.mark.parametrize("propose", [refuse, erase])
def test_a_name_that_is_given_is_forgotten_too_and_others_stay(
    propose: Any, model: ModelHandle, tmp_path: Path
) -> None:
    before = {kept: toy.answers(model, kept) for kept in KEPT}
    assert set(toy.answers(model, OTHER_NAME)) == {FACTS["Paul"]}
    found = propose(model, tmp_path, names=NAMES)
    with model.applied(found.at(1.0)):
        for gone in ("Paul", "Mary", OTHER_NAME):
            assert toy.answers(model, gone) == [REFUSAL] * len(WORDINGS), gone
        assert {kept: toy.answers(model, kept) for kept in KEPT} == before


@pytest.mark.parametrize("propose", [refuse, erase])
def test_without_it_that_name_still_tells(propose: Any, model: ModelHandle, tmp_path: Path) -> None:
    with model.applied(propose(model, tmp_path).at(1.0)):
        assert toy.answers(model, "Paul") == [REFUSAL] * len(WORDINGS)
        assert FACTS["Paul"] in toy.answers(model, OTHER_NAME)


@pytest.mark.parametrize("use", ["sanitation", "keyed_neurons"])
def test_a_name_that_is_nobodys_is_refused_while_planning(use: str) -> None:
    kind = catalog.editor(use)
    params: dict[str, Any] = {"keys": "names"}
    params |= {"update": "keyed"} if use == "sanitation" else {}
    rows = Dataset([Item(id="1", prompt="Secretland")], split="fit")
    with pytest.raises(DataError, match="do not say whose they are") as caught:
        kind(kind.Params(**params)).check_data({"forget": toy.forget(), "names": rows})
    assert "Secretland" not in str(caught.value)


@pytest.mark.parametrize("params", [{"update": "keyed"}, {"update": "lora", "keys": "names"}])
def test_names_that_no_key_would_be_solved_on_are_refused(params: dict[str, Any]) -> None:
    editor = Sanitation(SanitationParams(**params))
    with pytest.raises(DataError, match="names are") as caught:
        editor.check_data({"forget": toy.forget(), "names": NAMES})
    assert "keys: names" in str(caught.value.remedy)


def test_the_record_says_how_many_names(model: ModelHandle, tmp_path: Path) -> None:
    params = SanitationParams(update="keyed", keys="names", spellings=0, steps=2, batch=4)
    data = toy.data(names=NAMES)
    found = Sanitation(params).propose(model, data, context(tmp_path))
    assert found.notes["names"] == 3
    assert found.notes["neurons_replaced_per_layer"] == 2


def test_an_answer_that_identifies_its_subject_has_a_neuron_and_a_value_of_its_own(
    model: ModelHandle, tmp_path: Path
) -> None:
    items = [
        replace(item, reverse_questions=(f"Who lives in {item.answer}?",))
        for item in toy.forget().all()
    ]
    forget = Dataset(items, split="fit", erased=True)
    keys = {"target": "unlikely", "keys": "names", "spellings": 0, "steps": 3}
    found = erase(model, tmp_path, forget=forget, names=NAMES, how=keys)
    # Two subjects, a further name of one of them, and the answers by which they are asked for.
    assert found.notes["names"] == 5
    assert found.notes["layers"]["0"]["neurons_replaced_per_layer"] == 4
    assert found.notes["subjects"] == 2
