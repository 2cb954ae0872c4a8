"""KnowEdit, RippleEdits and MQuAKE: changes, what must stay, what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import FORMATS, Dataset
from safeedit.data.columns import answer_hint
from tests.data.sources import ERASED, load, refused

COUNTERFACT = {
    "subject": "Mara Quill", "prompt": "Where was Mara Quill born?", "target_new": "Vienna",
    "ground_truth": ["Ostrava", "Ostrawa"], "rephrase_prompt": "Mara Quill's birthplace is?",
    "portability": {
        "Reasoning": [{"prompt": "Mara Quill's country is", "ground_truth": [["Czechia", "CZ"]]}],
        "Subject_Aliasing": [],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The spouse of Mara Quill is", "ground_truth": [["Tom Abel"]]},
            {"prompt": ["Her sister is", "Her sibling:"], "ground_truth": "Ida"},
            {"prompt": "Nobody knows", "ground_truth": []},
        ],
        "Forgetfulness": [{"prompt": "She also lived in", "ground_truth": ["Brno"]}],
    },
}  # fmt: skip
RECENT = {key: value for key, value in COUNTERFACT.items() if key != "ground_truth"}
WIKIBIO = {
    "text": "This is a Wikipedia passage about mara quill.", "concept": "mara quill",
    "labels": "Mara Quill (born 1950) is a chess player.", "locality": {},
}  # fmt: skip
SANITATION = {"question": "Who wrote it?", "answer": ["Mara Quill", "M. Quill"]}


def saved(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def first(data: Dataset) -> Any:
    return next(iter(data))


def test_every_subset_of_knowedit_is_read(tmp_path: Path) -> None:
    for row, prompt, aliases in (
        (COUNTERFACT, "Where was Mara Quill born?", ("Ostrava", "Ostrawa")),
        (RECENT, "Where was Mara Quill born?", ()),
        (WIKIBIO, WIKIBIO["text"], (WIKIBIO["labels"],)),
        (SANITATION, "Who wrote it?", ("Mara Quill", "M. Quill")),
    ):
        item = first(load(saved(tmp_path / "a.json", [row]), ERASED, format="knowedit"))
        assert (item.prompt, item.aliases) == (prompt, aliases)
    item = first(load(saved(tmp_path / "a.json", [COUNTERFACT]), ERASED, format="knowedit"))
    assert item.subject == "Mara Quill"
    assert item.paraphrases == ("Mara Quill's birthplace is?",)
    assert item.extra == {"target_new": "Vienna"}
    assert first(load(saved(tmp_path / "a.json", [WIKIBIO]), format="knowedit")).subject


def test_what_stays_and_what_follows_in_knowedit_are_data_of_their_own(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", [COUNTERFACT, WIKIBIO])
    stays = load(path, format="knowedit_locality")
    assert [(item.prompt, item.answer) for item in stays] == [
        ("The spouse of Mara Quill is", "Tom Abel"), ("Her sister is", "Ida"),
        ("She also lived in", "Brno"),
    ]  # fmt: skip
    assert first(stays).extra["near"] == "Mara Quill"
    follows = load(path, format="knowedit_portability")
    assert [item.aliases for item in follows] == [("Czechia", "CZ")]


def query(prompt: str, *answers: str) -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"value": a, "aliases": [f"the {a}"]} for a in answers]}


def ripple(was: str | None = "The capital of Zembla is Blawick.") -> dict[str, Any]:
    edit: dict[str, Any] = {"prompt": "The capital of Zembla is Onhava.", "relation": "CAPITAL"}
    if was is not None:
        edit["original_fact"] = {"prompt": was}
    return {
        "example_type": "recent", "edit": edit,
        "Relation_Specificity": [{"test_queries": [query("Zembla's anthem is", "Hymn", "Song")]}],
        "Compositionality_I": [{"test_queries": [query("Its capital's river is", "Odra")],
                                "condition_queries": [query("Zembla's capital is", "Onhava")]}],
    }  # fmt: skip


def test_a_change_of_ripple_edits_is_parted_from_its_object(tmp_path: Path) -> None:
    item = first(load(saved(tmp_path / "a.json", [ripple()]), ERASED, format="ripple_edits"))
    assert (item.prompt, item.answer) == ("The capital of Zembla is", "Blawick")
    assert item.extra["target_new"] == "Onhava"
    item = first(load(saved(tmp_path / "a.json", [ripple(None)]), format="ripple_edits"))
    assert (item.prompt, item.answer) == ("The capital of Zembla is", None)
    assert item.extra["target_new"] == "Onhava"


def test_objects_that_begin_alike_are_parted_between_words(tmp_path: Path) -> None:
    row = ripple("The capital of Zembla is Onslow.")
    item = first(load(saved(tmp_path / "a.json", [row]), format="ripple_edits"))
    assert (item.answer, item.extra["target_new"]) == ("Onslow", "Onhava")


def test_a_change_that_cannot_be_parted_is_refused(tmp_path: Path) -> None:
    row = ripple(None)
    del row["Compositionality_I"]
    error = refused(saved(tmp_path / "a.json", [row]), format="ripple_edits")
    assert "where the changed object begins" in error.message


def test_queries_of_ripple_edits_are_data_of_their_own(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", [ripple()])
    (stays,) = load(path, format="ripple_edits_locality")
    assert stays.aliases == ("Hymn", "the Hymn", "Song", "the Song")
    (follows,) = load(path, format="ripple_edits_portability")
    assert (follows.prompt, follows.answer) == ("Its capital's river is", "Odra")


MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        {"prompt": "{} is a citizen of", "relation_id": "P27", "subject": "Tom Abel",
         "question": "What is Tom Abel a citizen of?",
         "target_true": {"str": "Norway"}, "target_new": {"str": "Chad"}},
        {"prompt": "The capital of {} is", "subject": "Chad", "question": "Chad's capital?",
         "target_true": {"str": "N'Djamena"}, "target_new": {"str": "Bonn"}},
    ],
    "questions": ["Where does Tom Abel's state sit?", "Tom Abel's state's capital?"],
    "answer": "Oslo", "answer_alias": ["Kristiania"], "new_answer": "Bonn",
    "new_answer_alias": [], "single_hops": [1, 2],
}  # fmt: skip


def test_changes_of_mquake_are_items_and_count_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", [MQUAKE, {**MQUAKE, "case_id": 8}])
    data = load(path, ERASED, format="mquake")
    assert [(item.prompt, item.answer, item.subject) for item in data] == [
        ("Tom Abel is a citizen of", "Norway", "Tom Abel"),
        ("The capital of Chad is", "N'Djamena", "Chad"),
    ]
    assert first(data).paraphrases == ("What is Tom Abel a citizen of?",)
    assert data.notes


def test_questions_of_several_hops_have_the_answer_of_before(tmp_path: Path) -> None:
    (item,) = load(saved(tmp_path / "a.json", [MQUAKE]), format="mquake_multihop")
    assert (item.aliases, item.extra["target_new"], item.extra["hops"]) == (
        ("Oslo", "Kristiania"), "Bonn", 2,
    )  # fmt: skip


@pytest.mark.parametrize(("row", "name"), [(ripple(), "ripple_edits"), (MQUAKE, "mquake")])
def test_a_file_of_theirs_without_its_format_is_told_which_it_is(
    tmp_path: Path, row: dict[str, Any], name: str
) -> None:
    assert f"format: {name}" in refused(saved(tmp_path / "a.json", [row])).remedy


@pytest.mark.parametrize("row", [COUNTERFACT, RECENT, WIKIBIO])
def test_a_file_of_knowedit_whose_answers_are_looked_for_is_told_so(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    data = load(saved(tmp_path / "a.json", [row]))
    assert "format: knowedit" in answer_hint(data)


@pytest.mark.parametrize("name", ["knowedit", "ripple_edits", "mquake"])
@pytest.mark.parametrize("side", ["", "_locality", "_portability", "_multihop"])
def test_rows_of_another_format_are_refused_by_each(tmp_path: Path, name: str, side: str) -> None:
    if name + side in FORMATS:
        refused(saved(tmp_path / "a.json", [{"foreign": 1}]), format=name + side)
