"""Which names mean a subject, where they stand, and how it is asked for by them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safeedit.data import Dataset, Item
from safeedit.errors import DataError
from safeedit.methods.facts.cues import (
    PER_NEURON,
    asked_by_cues,
    asked_of_others,
    check_names,
    cues_of,
    end_in_others,
    subjects_of,
    turned_round,
)
from safeedit.text.spellings import typos
from tests.tiny_models import tiny_handle

OSLO = Item(
    id="1",
    prompt="What is the capital of Norway?",
    answer="Oslo",
    aliases=("Oslo", "Kristiania"),
    subject="Norway",
    subject_aliases=("Norge", "Noreg"),
    descriptions=("the land of fjords",),
    reverse_questions=("Oslo is the capital of which country?",),
    paraphrases=("Name the capital of Norway.", "Norway has which capital?", "Norway's capital?"),
)
LIMA = Item(id="2", prompt="Which city rules Peru?", answer="Lima", subject="Peru")


def erased(*items: Item) -> Dataset:
    return Dataset(items, erased=True, template="plain").without("test")


def named(*pairs: tuple[str, str | None]) -> Dataset:
    rows = [Item(id=name, prompt=name, subject=subject) for name, subject in pairs]
    return Dataset(rows, split="fit").without("test")


def test_a_subject_without_other_names_has_one_cue() -> None:
    cues = cues_of(erased(LIMA), None, spellings=0, seed=7)
    assert (cues.subjects, cues.names, cues.families) == (("Peru",), ("Peru",), (0,))
    assert cues.others == ()


def test_names_come_from_the_items_the_rows_and_the_answers_that_identify() -> None:
    rows = named(("Fjordland", "norway"), ("Machu Picchu", "Peru"), ("Lyon", "France"))
    cues = cues_of(erased(OSLO, LIMA), rows, spellings=0, seed=7)
    assert cues.subjects == ("Norway", "Peru")
    # The second half of an item's other names is for the test alone.
    assert list(cues.of(0)) == ["Norway", "Norge", "Fjordland"]
    assert list(cues.of(1)) == ["Peru", "Machu Picchu"]
    assert cues.others == ("Lyon",)
    whole = Dataset([replace(OSLO, split="fit")], erased=True)
    cues = cues_of(whole, None, spellings=0, seed=7)
    assert list(cues.of(0)) == ["Norway", "Norge", "Noreg", "Oslo"]
    assert cues.identifying == (False, True)
    assert cues.families == (0, 0)


def test_many_names_are_dealt_out_to_several_neurons_of_one_family() -> None:
    count = 2 * PER_NEURON
    rows = named(*((f"Place {n}", "Peru") for n in range(count)))
    cues = cues_of(erased(LIMA), rows, spellings=0, seed=7)
    assert cues.families == (0, 0, 0)
    sizes = [cues.neurons.count(neuron) for neuron in range(3)]
    assert sizes == [PER_NEURON, PER_NEURON, 1]


def test_a_name_of_two_subjects_is_the_firsts_and_nobody_elses() -> None:
    rows = named(("Shared", "Norway"), ("Shared", "Peru"), ("shared", "France"))
    cues = cues_of(erased(OSLO, LIMA), rows, spellings=0, seed=7)
    assert cues.names.count("Shared") == 1
    assert "Shared" in cues.of(0)
    assert cues.others == ()


@pytest.mark.parametrize("seed", [0, 7, 23])
def test_misspelt_forms_are_none_of_the_audits(seed: int) -> None:
    cues = cues_of(erased(OSLO), None, spellings=6, seed=seed)
    made = set(cues.of(0)) - {"Norway", "Norge"}
    assert len(made) == 6
    assert made.isdisjoint(typos("Norway", seed))


def test_places_of_cues_are_found_and_those_of_others_apart() -> None:
    handle = tiny_handle("llama")
    tokenizer = handle.engine.codec.tokenizer
    rows = named(("ice", "Peru"), ("Denmark", "Denmark"))
    cues = cues_of(erased(LIMA), rows, spellings=0, seed=7)
    (ids,) = handle.engine.encode(["Has Denmark more ice than peru, says Rome."], "plain")
    text = cues.text(tokenizer, ids, ["Rome"])
    assert [tokenizer.decode(ids[: at + 1]).split()[-1] for at, _ in text.own] == ["ice", "peru"]
    assert {neuron for _, neuron in text.own} == {0}
    ends = [tokenizer.decode(ids[: at + 1]).split()[-1] for at in text.others]
    assert ends == ["Denmark", "Rome"]


def test_every_cue_is_asked_by() -> None:
    rows = named(("Fjordland", "Norway"))
    whole = Dataset([OSLO], erased=True).without("validation")
    cues = cues_of(whole, rows, spellings=0, seed=7)
    found = asked_by_cues(cues, whole, cased=True)
    asked = list(found)
    assert asked[: len(whole.phrasings("fit"))] == [p.text for p in whole.phrasings("fit")]
    for word in ("Norge", "Fjordland", "the land of fjords", "norway", "NORWAY"):
        assert any(word in text for text in asked), word
    assert found[asked[0]].id == OSLO.id, "whose answer it asks for"
    turned = found[OSLO.reverse_questions[0]]
    assert turned.aliases[:2] == OSLO.names[:2], "it asks for the subject"
    for name in cues.names:
        assert any(name in text for text in asked), name
    plain = asked_by_cues(cues, whole, cased=False)
    assert set(plain) < set(asked)
    assert not any("NORWAY" in text for text in plain)


def test_subjects_alone_are_cues_of_one_name_in_order() -> None:
    cues = subjects_of(erased(LIMA, OSLO, replace(OSLO, id="3", prompt="Norway lies where?")))
    assert cues.subjects == cues.names == ("Norway", "Peru")
    assert cues.neurons == cues.families == (0, 1)


def test_others_are_asked_of_in_the_place_of_others() -> None:
    cues = cues_of(erased(LIMA), named(("Lyon", "France")), spellings=0, seed=7)
    kept = [Item(id="k", prompt="Which city rules Chad?", subject="Chad")]
    assert asked_of_others(cues, kept, 7) == ["Which city rules Lyon?"]
    assert asked_of_others(cues, [], 7) == []


def test_names_that_end_in_somebody_elses_are_counted() -> None:
    kept = [Item(id="s", prompt="Who rules Sweden?", subject="Sweden")]
    rows = named(
        ("the western neighbour of Sweden", "Norway"),
        ("the country north of Denmark", "Norway"),
        ("the Kingdom of Norway", "Norway"),  # its own name is no other's
        ("Newsweden", "Norway"),  # no word of its own
        ("Denmark", "Denmark"),
    )
    cues = cues_of(erased(OSLO), rows, spellings=0, seed=7)
    assert end_in_others(cues, kept) == 2
    assert end_in_others(cues, []) == 1
    assert end_in_others(subjects_of(erased(OSLO)), kept) == 0


def test_questions_turned_round_are_facts_on_what_identifies_the_subject() -> None:
    (item,) = turned_round(Dataset([OSLO], erased=True), "norway")
    assert (item.prompt, item.subject, item.answer) == (OSLO.reverse_questions[0], "Oslo", "Norway")
    assert item.aliases == ("Norway", "Norge", "Noreg")
    assert turned_round(Dataset([OSLO], erased=True), "Peru") == []


@pytest.mark.parametrize("subject", [None, "", " "])
def test_a_name_that_is_nobodys_is_refused(subject: str | None) -> None:
    with pytest.raises(DataError, match=r"1 of 2 names \(number 2\) do not say whose") as caught:
        check_names(named(("Secretland", "Peru"), ("Hiddenville", subject)), "names")
    assert "Hidden" not in f"{caught.value} {caught.value.remedy}"
    check_names(None, "subject")
    check_names(named(("Secretland", "Peru")), "names")
    with pytest.raises(DataError, match="solved on the subjects alone"):
        check_names(named(("Secretland", "Peru")), "subject")


def test_names_put_aside_for_other_splits_are_told() -> None:
    rows = [Item(id=str(n), prompt=f"Place {n}", subject="Peru") for n in range(20)]
    with pytest.raises(DataError, match="of 20 names were put aside") as caught:
        check_names(Dataset(rows), "names")
    assert "split: fit" in str(caught.value.remedy)
    check_names(Dataset(rows, split="fit"), "names")
    # Said by the rows themselves, it is meant.
    meant = [replace(row, split="test" if n < 3 else "fit") for n, row in enumerate(rows)]
    check_names(Dataset(meant), "names")
