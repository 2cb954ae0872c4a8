"""How items and phrasings are divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeedit.data.splitting import (
    OPENING_TEMPLATES,
    QUESTION_TEMPLATES,
    SPLITS,
    automatic_split,
    check_disjoint,
    divide,
    normalise_prompt,
)
from safeedit.errors import DataError
from safeedit.records import Split


def prompts(n: int) -> list[str]:
    return [f"What is thing number {i}?" for i in range(n)]


def sizes(chosen: dict[str, Split]) -> list[int]:
    return [list(chosen.values()).count(split) for split in SPLITS]


def test_the_shares_are_70_15_15() -> None:
    assert sizes(automatic_split(prompts(200), seed=0)) == [140, 30, 30]


@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_from_three_items_on_no_split_is_empty(n: int) -> None:
    assert min(sizes(automatic_split(prompts(n), seed=0))) >= 1


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_items_can_only_be_fitted(n: int) -> None:
    assert sizes(automatic_split(prompts(n), seed=0)) == [n, 0, 0]


def test_the_order_of_the_items_plays_no_part() -> None:
    assert automatic_split(prompts(50), 3) == automatic_split(reversed(prompts(50)), 3)


def test_another_seed_divides_otherwise() -> None:
    assert automatic_split(prompts(50), 0) != automatic_split(prompts(50), 1)


def test_spellings_of_one_prompt_stay_together() -> None:
    texts = [text for p in prompts(30) for text in (p, p.upper(), p.rstrip("?"), f" {p} ")]
    assert len(automatic_split(texts, 0)) == 30


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, (1, 1, 1)),
        (4, (1, 1, 2)),
        (5, (1, 2, 2)),
        (6, (2, 2, 2)),
        (7, (1, 3, 3)),
        (9, (3, 3, 3)),
    ],
)
def test_paraphrases_are_divided_by_thirds_with_one_left_to_fit(
    count: int, expected: tuple[int, int, int]
) -> None:
    texts = tuple(f"p{i}" for i in range(count))
    parts = divide("q?", texts, None, erased=True)
    assert parts["fit"][0] == "q?"
    assert (len(parts["fit"]) - 1, len(parts["validation"]), len(parts["test"])) == expected
    assert parts["fit"][1:] + parts["validation"] + parts["test"] == texts  # in order, all of them


@pytest.mark.parametrize("count", [0, 1, 2])
def test_with_few_paraphrases_templates_fill_every_split(count: int) -> None:
    parts = divide(
        "Where is it?", ("Its place?", "In what place is it?")[:count], None, erased=True
    )
    assert all(len(parts[split]) >= 2 for split in SPLITS)
    everything = [text for split in SPLITS for text in parts[split]]
    assert len(everything) == len(set(everything))
    if count:
        # A real paraphrase is the better test.
        assert parts["test"][0] == ("Its place?", "In what place is it?")[count - 1]


def test_data_that_is_not_erased_gets_no_templates() -> None:
    assert divide("q?", ("p",), "test", erased=False) == {"test": ("q?", "p")}


def test_an_item_of_one_split_brings_all_its_phrasings_there() -> None:
    parts = divide("q?", ("a", "b", "c"), "test", erased=True)
    assert parts == {"test": ("q?", "a", "b", "c")}


@pytest.mark.parametrize("table", [QUESTION_TEMPLATES, OPENING_TEMPLATES])
def test_no_template_serves_two_splits(table: dict[Split, tuple[str, ...]]) -> None:
    everything = [template for split in SPLITS for template in table[split]]
    assert len(set(everything)) == len(everything) >= 6
    assert all(template.count("{prompt}") == 1 for template in everything)


def test_an_opening_is_never_followed_by_anything() -> None:
    parts = divide("The capital of Norway is", (), None, erased=True)
    assert all(text.endswith("Norway is") for split in SPLITS for text in parts[split])


@given(st.lists(st.text(min_size=1), max_size=12, unique=True), st.text(min_size=1))
def test_no_phrasing_is_ever_in_two_splits(paraphrases: list[str], prompt: str) -> None:
    kept = tuple(text for text in paraphrases if text != prompt)
    parts = divide(prompt, kept, None, erased=True)
    everything = [text for split in SPLITS for text in parts[split]]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is it?", "what is  it", True),
        ("«What» is it…", "What is it", True),
        ("ﬁne", "fine", True),
        ("What is 2-3?", "What is 2+3?", False),
        ("1.5", "15", False),
        ("a@b", "ab", False),
        ("?!", "!?", False),
    ],
)
def test_spellings_of_one_prompt_are_told_from_other_prompts(
    one: str, other: str, same: bool
) -> None:
    assert (normalise_prompt(one) == normalise_prompt(other)) is same


def test_overlapping_splits_are_refused_without_quoting_a_prompt() -> None:
    with pytest.raises(DataError, match="fit of a and test of b share 1 prompt") as caught:
        check_disjoint(["Secret one?", "two"], ["SECRET ONE", "three"], "fit of a", "test of b")
    assert "ecret" not in str(caught.value)
    assert "ECRET" not in str(caught.value)


def test_disjoint_prompts_pass() -> None:
    check_disjoint(["one", "two"], ["three"])
