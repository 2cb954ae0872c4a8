"""Items and data sets."""

from __future__ import annotations

import pytest

from safeedit.data import SPLITS, Dataset, Item
from safeedit.errors import UsageError
from safeedit.records import Split


def some(n: int, split: Split | None = None, paraphrases: int = 0) -> list[Item]:
    return [
        Item(
            id=str(i),
            prompt=f"What is thing {i}?",
            answer=f"a{i}",
            paraphrases=tuple(f"Thing {i}, said otherwise {j}?" for j in range(paraphrases)),
            split=split,
        )
        for i in range(n)
    ]


def test_the_answer_comes_first_among_the_aliases() -> None:
    assert Item("1", "q", "a").aliases == ("a",)
    assert Item("1", "q", "a", ("b", "a")).aliases == ("a", "b")
    assert Item("1", "q").aliases == ()


def test_items_without_split_are_divided_and_every_item_is_in_one_split() -> None:
    data = Dataset(some(40))
    ids = [item.id for split in SPLITS for item in data.items(split)]
    assert sorted(ids) == sorted(item.id for item in data)
    assert data.counts()["test"] == 6


def test_rows_that_carry_a_split_keep_it() -> None:
    data = Dataset([*some(3, "fit"), Item("x", "other", split="test")])
    assert [len(data.items(split)) for split in SPLITS] == [3, 0, 1]


def test_a_forced_split_takes_every_row() -> None:
    data = Dataset(some(5, "fit"), split="test")
    assert [len(data.items(split)) for split in SPLITS] == [0, 0, 5]


def test_every_item_to_be_erased_takes_part_in_every_split() -> None:
    data = Dataset(some(4, paraphrases=6), erased=True)
    assert [len(data.items(split)) for split in SPLITS] == [4, 4, 4]
    assert [len(data.phrasings(split)) for split in SPLITS] == [12, 8, 8]


def test_a_row_to_be_erased_that_is_marked_fit_is_still_tested() -> None:
    marked, unmarked = (
        Dataset(some(4, split, paraphrases=6), erased=True) for split in ("fit", None)
    )
    assert marked.counts() == unmarked.counts()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_row_to_be_erased_that_is_marked_otherwise_is_in_that_split_only(split: Split) -> None:
    data = Dataset([*some(2), Item("x", "other?", split=split)], erased=True)
    assert {item.id for item in data.items("fit")} == {"0", "1"}
    assert {item.id for item in data.items(split)} == {"0", "1", "x"}
    assert "other?" in {phrasing.text for phrasing in data.phrasings(split)}
    assert not any(phrasing.seen for phrasing in data.phrasings(split))


def test_only_phrasings_of_the_fit_split_are_seen() -> None:
    data = Dataset(some(4, paraphrases=6), erased=True)
    assert all(phrasing.seen for phrasing in data.phrasings("fit"))
    held_out = (*data.phrasings("validation"), *data.phrasings("test"))
    assert not any(phrasing.seen for phrasing in held_out)
    assert not {p.text for p in held_out} & {p.text for p in data.phrasings("fit")}


def test_a_data_set_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Dataset(some(3)).name = "other"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="no split 'train'"):
        Dataset(some(3)).items("train")  # type: ignore[arg-type]


def test_a_data_set_shown_in_a_log_tells_nothing_of_its_items() -> None:
    shown = repr(Dataset(some(3), name="secret"))
    assert "3 items" in shown
    assert "thing" not in shown


# -- the digest: equal digests mean equal measurements ------------------------------------------


def test_the_order_and_the_ids_of_the_items_do_not_change_the_digest() -> None:
    items = some(9)
    renamed = [Item("x" + item.id, item.prompt, item.answer) for item in reversed(items)]
    assert Dataset(renamed).digest == Dataset(items).digest


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"template": "plain"},
        {"erased": True},
        {"split": "test"},
        {"items": [Item("0", "another", "a0"), *some(9)[1:]]},
        {"items": [Item("0", "What is thing 0?", "other"), *some(9)[1:]]},
        {"items": [Item("0", "What is thing 0?", "a0", ("b",)), *some(9)[1:]]},
        {"items": [Item("0", "What is thing 0?", "a0", extra={"role": "near"}), *some(9)[1:]]},
        {"items": some(8)},
    ],
    ids=lambda change: ", ".join(change),
)
def test_all_that_changes_measurements_changes_the_digest(change: dict[str, object]) -> None:
    values: dict[str, object] = {"items": some(9), **change}
    changed = Dataset(**values)  # type: ignore[arg-type]
    assert changed.digest != Dataset(some(9)).digest


# -- what an editor sees ------------------------------------------------------------------------


def test_a_hidden_split_is_out_of_reach() -> None:
    view = Dataset(some(40)).without("test")
    with pytest.raises(UsageError, match="out of reach"):
        view.items("test")
    with pytest.raises(UsageError, match="out of reach"):
        view.phrasings("test")
    assert len(view) == 34
    assert view.counts()["test"] == 0


def test_hiding_leaves_no_trace_of_held_out_phrasings_on_the_items() -> None:
    data = Dataset([*some(4, paraphrases=6), Item("x", "q?", split="test")], erased=True)
    hidden = {phrasing.text for phrasing in data.phrasings("test")}
    view = data.without("test")
    reachable = {text for item in view.all() for text in (item.prompt, *item.paraphrases)}
    reachable |= {text for p in view.phrasings("fit") for text in p.item.paraphrases}
    assert hidden
    assert not reachable & hidden
    assert {item.id for item in view} == {"0", "1", "2", "3"}
    assert [p.text for p in view.phrasings("fit")] == [p.text for p in data.phrasings("fit")]


def test_hiding_keeps_the_identity_of_the_data() -> None:
    data = Dataset(some(9), name="a", notes=["n"])
    view = data.without("test").without("validation")
    assert (view.digest, view.name, view.notes) == (data.digest, "a", ("n",))
    assert len(data.items("test")) == 1  # the original is as it was
