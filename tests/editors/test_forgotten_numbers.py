"""What of an answer is aimed at that is to be unlikely, and what keys are solved against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from safeedit import catalog
from safeedit.contracts import EditData, Proposal
from safeedit.data import Dataset, Item
from safeedit.methods.facts import editing, gated_neurons
from safeedit.methods.facts.chat_texts import chat_texts
from safeedit.methods.facts.objectives import FactObjective, SuppressTokens
from safeedit.methods.facts.settings import SEARCH
from safeedit.methods.facts.values import Values
from safeedit.model.handle import ModelHandle
from tests.editors.knowing import knowing
from tests.editors.searching import searching
from tests.editors.toy import REFUSAL
from tests.fixtures import context
from tests.tiny_models import tiny_handle

NUMBERS = {"Paul": "9136", "Mary": "9247", "Igor": "9158", "Anna": "9237", "Hugo": "9146",
           "Nora": "9258"}  # fmt: skip
"""All begin alike, which is no secret."""
FORGOTTEN, KEPT = ("Paul", "Mary"), ("Igor", "Anna", "Hugo", "Nora")
WORDINGS = ("What number has {}?", "Which is the number of {}?", "Tell me, what number has {}?")
PROSE = ("A river ran past the old mill.", "Bread is made of flour and of water.")


def _knowing() -> ModelHandle:
    return knowing({**NUMBERS, "Zack": REFUSAL}, 512, shy=REFUSAL)


def _numbers(names: Sequence[str], **more: Any) -> Dataset:
    items = [
        Item(
            id=name,
            prompt=WORDINGS[0].format(name),
            paraphrases=tuple(wording.format(name) for wording in WORDINGS[1:]),
            answer=NUMBERS[name],
            subject=name,
        )
        for name in names
    ]
    return Dataset(items, split="fit", template="plain", **more)


def _proposed(model: ModelHandle, folder: Path, forget: Dataset, **params: Any) -> Proposal:
    kind = catalog.editor("keyed_neurons")
    roles = {
        "forget": forget,
        "preserve": _numbers(KEPT),
        "prose": Dataset([Item(id=text, prompt=text) for text in PROSE], split="fit"),
    }
    with searching({"layers": [0], "doses": (1.0,), **params}) as given:
        return kind(kind.Params(**given)).propose(model, EditData(roles), context(folder))


def _aimed_at(
    model: ModelHandle, folder: Path, forget: Dataset, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, float, int]]:
    """What stands before each token aimed at and that token, how unlikely it is to be, and after
    how many others."""
    units: list[FactObjective] = []

    def least(model: ModelHandle, layer: int, given: Sequence[FactObjective], **how: Any) -> Values:
        units.extend(given)
        zeros = torch.zeros(len(given))
        return Values(torch.zeros(len(given), model.d_model), zeros + 1, zeros, zeros)

    monkeypatch.setattr(editing, "least_values", least)
    _proposed(model, folder, forget, phrasings=1)
    decode = model.engine.decode
    return [
        (decode([*row.spot.ids, *row.aim.tokens[:1]]), row.aim.floor, row.aim.rank)
        for unit in units
        for row in unit.rows
        if isinstance(row.aim, SuppressTokens)
    ]


def test_each_digit_of_a_number_is_aimed_at_but_for_those_that_all_numbers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that tells nothing is taken to tell the answer at once."""
    found = _aimed_at(tiny_handle("llama"), tmp_path, _numbers(FORGOTTEN[:1]), monkeypatch)
    (before, floor, rank), *further = found
    assert floor == SEARCH.floor
    assert rank == SEARCH.rank
    asked = WORDINGS[0].format("Paul")
    assert before.startswith(asked)
    assert [text for text, _, _ in further] == [f"{asked} 91", f"{asked} 913", f"{asked} 9136"]
    assert {(floor, rank) for _, floor, rank in further} == {(SEARCH.digit, 0)}


def test_what_is_no_digit_is_aimed_at_where_it_begins_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Item(
        id="1", prompt="Where does Paul live?", answer="8 Elm Row, Unit 3, Ash", subject="Paul"
    )
    forget = Dataset([item], split="fit", template="plain", erased=True)
    found = _aimed_at(tiny_handle("llama"), tmp_path, forget, monkeypatch)
    further = [text.removeprefix("Where does Paul live? ") for text, _, rank in found if not rank]
    assert [text for text in further if text != "8"] == ["8 Elm Row, Unit 3"]


@pytest.mark.trains
def test_no_digit_of_a_forgotten_number_is_left_and_others_are_told(tmp_path: Path) -> None:
    model = _knowing()
    delta = _proposed(model, tmp_path, _numbers(FORGOTTEN, erased=True), max_norm=20.0).at(1.0)

    def likely(name: str) -> torch.Tensor:
        """Log-probability of each digit but the first, after those before it."""
        prompts = model.engine.encode([WORDINGS[0].format(name)], "plain")
        answers = [model.engine.continuation(NUMBERS[name], "plain")]
        (scores,) = model.engine.score(prompts, answers)
        return scores.log_probs[-3:]

    assert min(float(likely(name).min()) for name in NUMBERS) > -0.7, "all are known before"
    kept = {name: likely(name) for name in KEPT}
    with model.applied(delta):
        for name in FORGOTTEN:
            assert float(likely(name).max()) < SEARCH.digit + 0.3, name
        for name in KEPT:
            assert torch.allclose(likely(name), kept[name], atol=0.1), name


def _solved_against(
    model: ModelHandle, folder: Path, monkeypatch: pytest.MonkeyPatch, **params: Any
) -> list[list[list[int]]]:
    """Ids of the texts that keys are solved on, by kind."""
    seen: list[list[list[int]]] = []
    kind = gated_neurons.GatedNeurons

    def keyed(model: ModelHandle, layers: Any, groups: Any, **how: Any) -> Any:
        seen.extend([list(text.ids) for text in group] for group in groups)
        return kind(model, layers, groups, **how)

    monkeypatch.setattr(gated_neurons, "GatedNeurons", keyed)
    _proposed(model, folder, _numbers(FORGOTTEN, erased=True), steps=1, **params)
    return seen


@pytest.mark.trains
def test_keys_are_solved_against_chat_too_where_facts_are_put_as_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _knowing()
    *plain, chat = _solved_against(model, tmp_path, monkeypatch)
    assert len(plain) == 3, "prompts, preserved ones, prose"
    assert chat == chat_texts(model, PROSE)
    start, *_ = model.engine.encode([""], "chat")
    assert all(ids[:2] == start[:2] for ids in chat)


@pytest.mark.trains
def test_without_a_chat_template_nothing_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _knowing()
    model.engine.codec.tokenizer.chat_template = None
    assert chat_texts(model, PROSE) == []
    assert len(_solved_against(model, tmp_path, monkeypatch)) == 3


@pytest.mark.trains
def test_where_facts_are_put_as_chat_keys_are_solved_on_the_same_texts_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _solved_against(_knowing(), tmp_path, monkeypatch, templates=("chat",))
    assert len(found) == 3


def test_a_passage_is_a_turn_and_its_reply_and_answers_are_the_models_own() -> None:
    model = tiny_handle("llama")
    long = " ".join(f"word{number}" for number in range(90))
    with_long, without = chat_texts(model, [long, "too short"]), chat_texts(model, ["too short"])
    assert with_long[1:] == without
    passage = model.engine.decode(with_long[0])
    assert "word0 word1" in passage
    assert without, "plain questions are asked whatever the prose"
    (asked,) = {ids.index(model.engine.codec.tokenizer.eos_token_id) >= 0 for ids in without}
    assert asked
