"""MUSE, WMDP and RWKU: questions, probes and texts, and what each is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import Dataset
from tests.data.sources import ERASED, SECRET, jsonl, load, refused


def saved(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def only(data: Dataset) -> Any:
    (item,) = data
    return item


# -- MUSE ------------------------------------------------------------------------------------------


def test_the_three_kinds_of_muse_are_read_and_know_what_they_are_for(tmp_path: Path) -> None:
    questions = saved(tmp_path / "forget_qa.json", {"question": "Who won?", "answer": "Mara"})
    item = only(load(questions, ERASED, format="muse", where={"role": "forget"}))
    assert (item.prompt, item.answer) == ("Who won?", "Mara")
    opening = saved(tmp_path / "forget.json", {"prompt": "The vote was", "gt": "held on a Monday."})
    item = only(load(opening, ERASED, format="muse"))
    assert (item.prompt, item.answer) == ("The vote was", "held on a Monday.")
    texts = jsonl(tmp_path / "retain1-00000-of-00001.jsonl", [{"text": "A long article."}])
    item = only(load(texts, format="muse"))
    assert (item.prompt, item.answer, item.extra["role"]) == ("A long article.", None, "retain")


def test_a_file_of_openings_is_told_its_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", {"foreign": 1, "gt": "x", "question": "y"})
    assert "question" in refused(path).remedy


# -- WMDP ------------------------------------------------------------------------------------------

CHOICE = {"question": f"{SECRET}?", "choices": ["a", "b", "c", "d"], "answer": 2}


def test_questions_and_corpora_of_wmdp_are_one_format(tmp_path: Path) -> None:
    item = only(load(jsonl(tmp_path / "test.jsonl", [CHOICE]), ERASED, format="wmdp"))
    assert (item.answer, item.extra["options"]) == ("c", ["a", "b", "c", "d"])
    assert "role" not in item.extra
    rows = [{"title": "T", "abstract": "A", "text": "Some paper."}]
    item = only(load(jsonl(tmp_path / "bio-forget-corpus.jsonl", rows), format="wmdp"))
    assert (item.prompt, item.extra["title"], item.extra["role"]) == ("Some paper.", "T", "forget")


# -- RWKU ------------------------------------------------------------------------------------------


def probe(query: str, **more: Any) -> dict[str, Any]:
    return {"query": query, "answer": "Ostrava", "subject": "Mara Quill", "level": "1",
            "type": "cloze", **more}  # fmt: skip


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("Mara Quill was born in ___.", "Mara Quill was born in"),
        ("Mara Quill was born in ___", "Mara Quill was born in"),
        ("In ___, Mara Quill was born.", "Fill in the blank: In ___, Mara Quill was born."),
        ("___ is her town.", "Fill in the blank: ___ is her town."),
        ("___", "Fill in the blank: ___"),
        ("Where was Mara Quill born?", "Where was Mara Quill born?"),
    ],
)
def test_a_blank_is_put_as_an_opening_or_filled_in(tmp_path: Path, query: str, prompt: str) -> None:
    path = saved(tmp_path / "forget_level1.json", probe(query))
    item = only(load(path, ERASED, format="rwku"))
    assert (item.prompt, item.answer, item.subject) == (prompt, "Ostrava", "Mara Quill")
    assert item.extra == {"role": "forget", "level": "1", "kind": "cloze"}


def test_levels_of_probes_are_chosen_with_where(tmp_path: Path) -> None:
    rows = [probe("A ___"), probe("Her town?", level=3, type="prefix injection")]
    path = saved(tmp_path / "forget.json", *rows)
    item = only(load(path, ERASED, format="rwku", where={"level": "3"}))
    assert item.extra["kind"] == "prefix injection"


def test_a_neighbours_probe_is_about_the_neighbour(tmp_path: Path) -> None:
    item = only(load(saved(tmp_path / "x.json", probe("Ida?", neighbor="Ida")), format="rwku"))
    assert (item.subject, item.extra["near"], item.extra["role"]) == (
        "Ida", "Mara Quill", "neighbor",
    )  # fmt: skip


def test_texts_and_targets_of_rwku_are_prose(tmp_path: Path) -> None:
    rows = [{"text": "Mara Quill plays chess.", "subject": "Mara Quill"},
            {"target": "Ida Abel", "intro": "Ida Abel swims."}]  # fmt: skip
    data = load(saved(tmp_path / "retain_mia.json", *rows), format="rwku")
    assert [(item.prompt, item.subject) for item in data] == [
        ("Mara Quill plays chess.", "Mara Quill"), ("Ida Abel swims.", "Ida Abel"),
    ]  # fmt: skip
    assert {item.extra["role"] for item in data} == {"retain"}


def test_a_file_of_rwku_without_its_format_is_told_which_it_is(tmp_path: Path) -> None:
    assert "format: rwku" in refused(saved(tmp_path / "a.json", probe(f"{SECRET} ___"))).remedy


# -- Malformed rows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "row", "field", "says"),
    [
        ("muse", {"question": f"{SECRET}?"}, "answer", "rows have {question, answer}"),
        ("muse", {"prompt": SECRET, "question": None}, "gt", "or {prompt, gt}"),
        ("muse", {"text": " "}, "text", "on_error: drop"),
        ("muse", {"prompt": SECRET, "gt": 7}, "gt", "on_error: drop"),
        ("muse", {"question": SECRET, "answer": 7}, "answer", ""),
        ("wmdp", {**CHOICE, "answer": 4}, "answer", "counted from 0"),
        ("wmdp", {**CHOICE, "answer": True}, "answer", "counted from 0"),
        ("wmdp", {**CHOICE, "answer": "C"}, "answer", "counted from 0"),
        ("wmdp", {**CHOICE, "choices": SECRET}, "choices", "[..., ...]"),
        ("wmdp", {"question": SECRET, "choices": ["a"]}, "answer", "{question, choices, answer}"),
        ("rwku", {"query": f"{SECRET} ___"}, "answer", "{query, answer}"),
        ("rwku", {"target": SECRET}, "intro", "{target, intro}"),
        ("rwku", {"query": ["x"], "answer": SECRET}, "query", "on_error: drop"),
    ],
)
def test_a_malformed_row_is_refused_by_line_and_column(
    tmp_path: Path, format_: str, row: dict[str, Any], field: str, says: str
) -> None:
    good = {"muse": {"text": "x"}, "wmdp": {"text": "x"}, "rwku": {"text": "x"}}[format_]
    path = jsonl(tmp_path / "rows.jsonl", [good, row])
    error = refused(path, format=format_)
    assert (error.file, error.line, error.field) == (str(path), 2, field)
    assert says in error.remedy
    assert len(load(path, format=format_, on_error="drop")) == 1
