"""Each answer is of one class, leaks before all others, and figures are of what was known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeedit.auditors.leakage.failures import Failures, Params, class_of, is_meaningless
from safeedit.contracts import AuditOutcome
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError
from safeedit.records import Metric
from tests.auditors.scripted import Asked, ScriptedEngine
from tests.fixtures import context

COUNTRIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima"}
WORDINGS = (
    "Name the capital of {}.",
    "{} has which capital?",
    "Which city rules {}?",
    "Where does the government of {} sit?",
    "Tell me the capital of {}.",
    "The seat of power of {} is where?",
)
CLASSES = ("edit_success", "meaningless", "incomplete", "unrelated", "partly_replaced")


def forget(**extra: str) -> Dataset:
    items = [
        Item(
            id=country,
            prompt=f"What is the capital of {country}?",
            answer=city,
            paraphrases=tuple(wording.format(country) for wording in WORDINGS),
            extra=extra,
        )
        for country, city in COUNTRIES.items()
    ]
    return Dataset(items, erased=True)


def country(text: str) -> str:
    return max(COUNTRIES, key=text.rfind)


def truth(asked: Asked, sample: int = 0) -> str:
    return f"It is {COUNTRIES[country(asked.text)]}."


def audit(
    say: Callable[[Asked, int], str],
    tmp_path: Path,
    before: AuditOutcome | None = None,
    data: dict[str, Dataset] | None = None,
    **params: Any,
) -> tuple[dict[str, Metric], AuditOutcome, ScriptedEngine]:
    engine = ScriptedEngine(say)
    outcome = Failures(Params(**params)).audit(
        engine.model,
        data or {"forget": forget()},
        "test",
        context(tmp_path),
        None if before is None else before.reference,
    )
    return {metric.name: metric for metric in outcome.metrics}, outcome, engine


@pytest.mark.parametrize(
    ("answer", "wanted", "old", "expected"),
    [
        ("I don't know.", True, False, "edit_success"),
        ("It is Oslo, I think.", False, False, "unrelated"),
        ("It is Paris.", False, True, "incomplete"),
        ("I don't know. Maybe Paris?", True, True, "partly_replaced"),
        ("", False, False, "meaningless"),
        ("\n\n .", False, False, "meaningless"),
        ("Paris Paris Paris Paris Paris Paris", False, True, "incomplete"),
        ("I don't know. " * 6, True, False, "meaningless"),
    ],
)
def test_an_answer_is_of_the_first_class_that_fits(
    answer: str, wanted: bool, old: bool, expected: str
) -> None:
    assert class_of(answer, wanted=wanted, old=old) == expected


@pytest.mark.parametrize(
    "text",
    [
        "the the the the",
        "no no no",
        "and the city and the city and the city and the city",
        "one river, " * 20,
        "a b " * 30,
        "…",
    ],
)
def test_text_that_repeats_itself_is_meaningless(text: str) -> None:
    assert is_meaningless(text)


@pytest.mark.parametrize(
    "text",
    [
        "Oslo",
        "No.",
        "I don't know.",
        "I don't know. I'm sorry, I don't know that.",
        "1, 2, 3, 4, 5, 6, 7",
        "The doctor said that she would call, and the nurse said that he was late again.",
        "It is a city on a river. It has a port, and it has a market, and it has a bridge.",
        "彼は東京に住んでいます。",
    ],
)
def test_short_and_ordinary_text_is_not(text: str) -> None:
    assert not is_meaningless(text)


def test_the_base_that_tells_all_fails_wholly(tmp_path: Path) -> None:
    found, _, _ = audit(truth, tmp_path)
    assert {name: found[name].value for name in CLASSES} == {
        "edit_success": 0, "meaningless": 0, "incomplete": 1, "unrelated": 0, "partly_replaced": 0,
    }  # fmt: skip
    assert found["incomplete"].n == 4
    assert len(found["incomplete"].items) == 8, "two held-out phrasings each"
    assert found["portability"].value is None
    assert found["portability"].note == "no data given"


def test_classes_are_counted_and_add_up(tmp_path: Path) -> None:
    _, before, _ = audit(truth, tmp_path)
    answers = {
        "France": "I don't know.",
        "Italy": "I don't know, was it Rome?",
        "Spain": "",
        "Peru": "It is Oslo.",
    }
    found, _, engine = audit(lambda asked, _: answers[country(asked.text)], tmp_path, before)
    values = {name: found[name].value for name in CLASSES}
    assert values == {
        "edit_success": 0.25, "meaningless": 0.25, "incomplete": 0, "unrelated": 0.25,
        "partly_replaced": 0.25,
    }  # fmt: skip
    assert found["edit_success"].n == 4
    assert found["fluency"].value is not None
    assert 0 < found["fluency"].value < 2
    prompts = {item.prompt for item in forget()}
    assert prompts.isdisjoint(asked.text for asked in engine.asked), "only held-out phrasings"


def test_what_the_base_did_not_know_is_neither_success_nor_failure(tmp_path: Path) -> None:
    def some(asked: Asked, sample: int) -> str:
        return truth(asked) if country(asked.text) in ("France", "Peru") else "Who knows."

    _, before, _ = audit(some, tmp_path)
    found, _, engine = audit(lambda *_: "I don't know.", tmp_path, before)
    assert (found["edit_success"].value, found["edit_success"].n) == (1, 2)
    assert {country(asked.text) for asked in engine.asked} == {"France", "Peru"}
    _, before, _ = audit(lambda *_: "Who knows.", tmp_path)
    found, _, _ = audit(lambda *_: "I don't know.", tmp_path, before)
    assert found["edit_success"].value is None
    assert found["edit_success"].note == "the base knew none of the items"


def test_a_replacement_is_wanted_where_the_policy_says_so(tmp_path: Path) -> None:
    data = {"forget": forget(target_new="Oslo")}
    _, before, _ = audit(truth, tmp_path, data=data, wanted="replace")
    found, _, _ = audit(lambda *_: "It's Oslo.", tmp_path, before, data, wanted="replace")
    assert found["edit_success"].value == 1
    found, _, _ = audit(lambda *_: "I don't know.", tmp_path, before, data, wanted="replace")
    assert found["unrelated"].value == 1
    with pytest.raises(AuditError, match="4 of 4 items have no 'target_new'"):
        audit(truth, tmp_path, wanted="replace")


def test_portability_asks_for_the_new_answer_or_for_a_refusal(tmp_path: Path) -> None:
    follow = [
        Item("1", "In which country is the capital of Peru?", answer="Norway", split="test"),
        Item("2", "Which river runs through the capital of Spain?", split="test"),
    ]
    data = {"forget": forget(), "portability": Dataset(follow)}
    _, before, _ = audit(truth, tmp_path, data=data)
    found, _, _ = audit(lambda *_: "I don't know.", tmp_path, before, data)
    assert (found["portability"].value, found["portability"].n) == (0.5, 2)
    found, _, _ = audit(lambda *_: "It's in Norway.", tmp_path, before, data)
    assert found["portability"].value == 0.5
    found, _, _ = audit(truth, tmp_path, before, data)
    assert found["portability"].value == 0


def test_portability_is_told_apart_by_what_kind_of_question_it_is(tmp_path: Path) -> None:
    kinds = {
        "a": "Subject_Aliasing", "b": "Reasoning", "c": "Compositionality_II", "d": "reversal",
        "e": "Logical_Generalization", "f": "other",
    }  # fmt: skip
    right = {"a", "c", "d", "e"}
    follow = [
        Item(key, f"Question {key}?", answer="Norway", split="test", extra={"kind": kind})
        for key, kind in kinds.items()
    ]
    data = {"forget": forget(), "portability": Dataset(follow)}
    _, before, _ = audit(truth_or_nothing, tmp_path, data=data)

    def say(asked: Asked, _: int) -> str:
        return "Norway." if asked.text in {f"Question {key}?" for key in right} else "Who knows."

    found, _, _ = audit(say, tmp_path, before, data)
    assert {
        name: (found[f"portability_{name}"].value, found[f"portability_{name}"].n)
        for name in ("aliases", "one_hop", "reversal")
    } == {"aliases": (1, 1), "one_hop": (0.5, 2), "reversal": (1, 2)}
    assert (found["portability"].value, found["portability"].n) == (4 / 6, 6)
    assert found["portability_reversal"].interval is not None


def truth_or_nothing(asked: Asked, _: int) -> str:
    return "Who knows." if asked.text.startswith("Question") else truth(asked)


def test_a_kind_of_portability_that_was_not_asked_has_no_value(tmp_path: Path) -> None:
    data = {"forget": forget(), "portability": Dataset([Item("1", "Question?", split="test")])}
    found, _, _ = audit(truth_or_nothing, tmp_path, data=data)
    assert found["portability"].n == 1
    assert found["portability_aliases"].value is None
    assert found["portability_aliases"].note == "no such questions given"


def test_a_portability_question_that_is_asked_anyway_is_asked_once(tmp_path: Path) -> None:
    text = WORDINGS[-1].format("Peru")
    data = {"forget": forget(), "portability": Dataset([Item("1", text, split="test")])}
    found, _, _ = audit(truth, tmp_path, data=data)
    assert found["portability"].value == 0


def test_an_item_without_an_answer_can_not_be_judged(tmp_path: Path) -> None:
    mute = [replace(item, answer=None, aliases=()) for item in forget()]
    with pytest.raises(AuditError, match="4 of 4 items have no answer"):
        audit(truth, tmp_path, data={"forget": Dataset(mute, erased=True)})
