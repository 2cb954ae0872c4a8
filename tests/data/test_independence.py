"""What counts as one thing: rewordings and near-copies; and what must not."""

from __future__ import annotations

import pytest

from safeedit.auditors.base import Sheet, specs
from safeedit.data import Item, load_dataset
from safeedit.data.independence import near_copies, together
from safeedit.policy import DataSpec


def groups(*items: Item, erased: bool = False) -> int:
    keys = [str(number) for number in range(len(items))]
    return len(set(together(keys, items, erased=erased).values()))


def ask(prompt: str, answer: str | None = None, subject: str | None = None, *also: str) -> Item:
    return Item("", prompt, answer=answer, subject=subject, aliases=also)


def test_twelve_rewordings_of_one_fact_are_one() -> None:
    openings = ("Where does", "In which town does", "Which place does", "So where did")
    ends = ("?", " now?", " these days?")
    wordings = [f"{opening} Ada Brown live{end}" for opening in openings for end in ends]
    assert groups(*(ask(text, "Brno", "Ada Brown") for text in wordings)) == 1
    assert groups(*(ask(text, "Brno") for text in wordings), erased=True) == 1


def test_another_spelling_of_the_answer_is_the_same_fact() -> None:
    one = ask("Where was it?", "New York", "the fair", "NYC")
    assert groups(one, ask("In which city was it?", "nyc", "The Fair")) == 1


@pytest.mark.parametrize("erased", [True, False])
def test_different_facts_stay_apart(erased: bool) -> None:
    assert groups(
        ask("Where does Ada live?", "Brno", "Ada"),
        ask("Where does Ada work?", "Graz", "Ada"),
        ask("Where does Bo live?", "Brno", "Bo"),
        *(ask(f"Who wrote book {n}?", f"Writer {n}") for n in range(5)),
        *(ask(f"Entry {n} of the list is:", "taken") for n in range(5)),
        erased=erased,
    ) == 13  # fmt: skip


def test_questions_of_one_answer_are_one_where_they_share_their_words() -> None:
    alike = ask("What is the capital of France?", "Paris"), ask("The capital of France is what?",
                                                               "Paris")  # fmt: skip
    assert groups(*alike) == 1
    assert groups(alike[0], ask("Where does Emma Bovary dream to go?", "Paris")) == 2


PASSAGE = (
    "The river runs from the hills in the north to the flat land by the sea, and along its banks "
    "stand the mills that ground the corn of the whole county for two hundred years and more."
)


def test_near_copies_of_prose_are_one() -> None:
    copies = [
        PASSAGE.replace("hundred", f"{n} hundred").replace("sea", f"sea{n}") for n in range(12)
    ]
    other = "Nothing of this kind was said by the doctor, who had gone home before the rain began."
    assert groups(*map(ask, [PASSAGE, *copies, other])) == 2


def test_shipped_prose_and_facts_have_no_near_copies() -> None:
    prose = load_dataset(DataSpec(dataset="prose"))
    assert list(near_copies([item.prompt for item in prose])) == []


def test_a_sheet_counts_what_is_one_once_and_leaves_the_value_alone() -> None:
    rows = specs([("told", "rate", "lower", "told"), ("size", "nats", "lower", "size")])
    values = {"a": 1.0, "b": 1.0, "c": 0.0}
    plain, grouped = Sheet(rows), Sheet(rows, {"a": "a", "b": "a", "c": "c"})
    for sheet in (plain, grouped):
        sheet.rate("told", values)
        sheet.mean("size", values)
    for one, other in zip(plain.metrics(), grouped.metrics(), strict=True):
        assert one.value == other.value
        assert (one.n, other.n) == (3, 2)
        assert one.interval is not None
        assert other.interval is not None
        assert other.interval.high - other.interval.low >= one.interval.high - one.interval.low


def test_a_sheet_whose_items_stand_alone_is_as_it_was() -> None:
    rows = specs([("told", "rate", "lower", "told")])
    sheets = Sheet(rows), Sheet(rows, {"a": "a", "b": "b"})
    for sheet in sheets:
        sheet.rate("told", {"a": 1.0, "b": 0.0})
    assert sheets[0].metrics() == sheets[1].metrics()


def test_the_same_holds_for_a_perplexity() -> None:
    rows = specs([("value", "perplexity", "lower", "exp")])
    sheet = Sheet(rows, {"a": "a", "b": "a", "c": "c"})
    sheet.exponential("value", {"a": 1.0, "b": 1.0, "c": 2.0}, {"a": 2.0, "b": 2.0, "c": 4.0})
    (metric,) = sheet.metrics()
    assert metric.n == 2
