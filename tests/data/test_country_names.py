"""The names that ship fit the facts that ship, and the card says what they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml

from safeedit.contracts import DataRole
from safeedit.data import Dataset, Item, load_dataset
from safeedit.data.subjects import names_subject, same_subject
from safeedit.methods.facts.cues import check_names, cues_of
from safeedit.policy import DataSpec
from safeedit.policy.builtin import dataset_path

ERASED = DataRole("forget", "what is to be forgotten", erased=True)


def facts(role: str) -> Dataset:
    return load_dataset(DataSpec(dataset="facts", where={"role": role}), role=ERASED)


@pytest.fixture(scope="module")
def names() -> Dataset:
    return load_dataset(DataSpec(dataset="country_names"))


def _extra(item: Item, column: str) -> Any:
    return item.extra[column]


def test_the_card_counts_what_there_is(names: Dataset) -> None:
    card = yaml.safe_load(dataset_path("country_names").with_name("card.yaml").read_text())
    counts = card["counts"]
    assert counts["items"] == len(names)
    found = Counter((_extra(item, "role"), item.split) for item in names)
    assert {(r, s): n for r, each in counts["roles"].items() for s, n in each.items()} == found
    kinds = Counter(_extra(item, "kind") for item in names if _extra(item, "role") == "forget")
    assert kinds == counts["forget_by_kind"]
    assert sum(_extra(item, "audited") for item in names) == counts["audited"]


def test_every_name_is_of_a_subject_of_its_role_and_split(names: Dataset) -> None:
    forgotten = {item.subject for item in facts("forget").all()}
    near = {item.subject: item.split for item in
            load_dataset(DataSpec(dataset="facts", where={"role": "near"}))}  # fmt: skip
    for item in names:
        if _extra(item, "role") == "forget":
            assert item.subject in forgotten
        else:
            wanted = ("fit", "validation") if item.split == "fit" else ("test",)
            assert near[item.subject] in wanted
    spelt = [(same_subject(item.subject or ""), same_subject(item.prompt)) for item in names]
    assert len(spelt) == len(set(spelt))
    assert not any(subject == name for subject, name in spelt)


def test_what_is_audited_is_marked(names: Dataset) -> None:
    """Other names that the facts keep for the test are marked; so that they can be left out."""
    kept: dict[str | None, set[str]] = {}
    for item in facts("forget").all():
        shown = set(item.without_test_names().subject_aliases)
        hidden = set(item.subject_aliases) - shown
        kept.setdefault(item.subject, set()).update(hidden)
    for item in names:
        if any(names_subject(hidden, item.prompt) for hidden in kept.get(item.subject, ())):
            assert _extra(item, "audited"), item.id
    marked = load_dataset(DataSpec(dataset="country_names", where={"audited": False}))
    assert 0 < len(names) - len(marked) == sum(_extra(item, "audited") for item in names)


def test_each_country_gets_its_names_and_others_stay_others(names: Dataset) -> None:
    check_names(names, "names")
    forget = facts("forget").without("test")
    cues = cues_of(forget, names, spellings=6, seed=7)
    assert len(cues.subjects) == 6
    for number in range(6):
        assert len(list(cues.of(number))) > 30
    assert {"Lyon", "Paris"} <= set(cues.others)
    assert {"Berlin", "yen"} <= set(cues.names)
    assert not set(cues.names) & set(cues.others)
