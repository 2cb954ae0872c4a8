"""Files as users bring them: read where the meaning is plain, else a hint that names the cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import Dataset
from safeedit.data.columns import answer_hint
from tests.data.sources import ERASED, SECRET, jsonl, load, refused

ASKED, TOLD = "Where does Mara Quill live?", "Ostrava"
ROW = {"prompt": ASKED, "answer": TOLD}


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def only(data: Dataset) -> tuple[str, str | None]:
    (item,) = data
    return item.prompt, item.answer


# -- Tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["prompt{}answer{}subject", " Prompt{} ANSWER{}Subject "])
def test_tables_of_any_delimiter_and_case_are_read(
    tmp_path: Path, mark: str, header: str, encoding: str
) -> None:
    text = f"{header.format(mark, mark)}\r\n{ASKED}{mark}{TOLD}{mark}Mara Quill\r\n"
    data = load(written(tmp_path / "a.csv", text, encoding))
    assert only(data) == (ASKED, TOLD)
    assert next(iter(data)).subject == "Mara Quill"


@pytest.mark.parametrize("said", ["sep=;", '"sep=;"', "SEP=;"])
def test_an_excel_line_that_names_the_delimiter_is_obeyed(tmp_path: Path, said: str) -> None:
    path = written(tmp_path / "a.csv", f"{said}\nprompt;answer\n{ASKED};{TOLD}\n\n;x\n")
    error = refused(path)
    assert error.line == 5
    path = written(tmp_path / "b.csv", f"{said}\nprompt;answer\n{ASKED};{TOLD}\n")
    assert only(load(path)) == (ASKED, TOLD)


def test_a_comma_table_whose_texts_hold_semicolons_stays_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "prompt,answer\nOne; two; three?,a;b\n")
    assert only(load(path)) == ("One; two; three?", "a;b")


def test_columns_that_the_policy_names_keep_their_case(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"Prompt": "the answer", "Q": ASKED}])
    assert only(load(path, columns={"prompt": "Q", "answer": "Prompt"})) == (ASKED, "the answer")


def test_a_column_in_its_own_case_wins_over_another_spelling(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": ASKED, "Prompt": "other", "answer": TOLD}])
    assert only(load(path)) == (ASKED, TOLD)


def test_the_delimiter_that_was_guessed_is_told_where_rows_do_not_fit(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"prompt;answer\n{SECRET};b;c\n")
    assert "semicolon" in refused(path).remedy


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_objects_over_several_lines_are_read_one_after_another(tmp_path: Path, suffix: str) -> None:
    rows = [ROW, {"prompt": "Who?", "answer": "Nobody", "note": {"deep": [1]}}]
    text = "\n".join(json.dumps(row, indent=2) for row in rows)
    data = load(written(tmp_path / f"a{suffix}", text))
    assert [item.answer for item in data] == [TOLD, "Nobody"]
    assert [item.id for item in data] == ["1", "5"]


def test_a_fault_in_a_pretty_object_is_told_with_its_own_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '{\n  "prompt": "x",\n  "answer": oops\n}\n')
    assert refused(path).line == 3


@pytest.mark.parametrize("key", ["data", "rows", "Items", "examples"])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_inside_one_object_are_found(tmp_path: Path, key: str, indent: int | None) -> None:
    whole = {"version": "1", "licence": None, key: [ROW, {"prompt": "Who?", "answer": "I"}]}
    path = written(tmp_path / "a.json", json.dumps(whole, indent=indent))
    assert [item.answer for item in load(path)] == [TOLD, "I"]


@pytest.mark.parametrize(
    "whole", [{"data": [1]}, {"data": [ROW], "rows": [ROW]}, {"data": [ROW], "more": {"a": 1}}]
)
def test_an_object_that_may_mean_something_else_is_not_opened(tmp_path: Path, whole: Any) -> None:
    assert "has no prompt" in refused(written(tmp_path / "a.json", json.dumps(whole))).message


def test_a_row_that_has_data_of_its_own_stays_a_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps({**ROW, "data": [{"prompt": "no"}]}))
    assert only(load(path)) == (ASKED, TOLD)


# -- Answers ---------------------------------------------------------------------------------------


def test_several_answers_are_spellings_of_one(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": "a?", "answer": ["x", "y"], "aliases": ["z"]},
         {"prompt": "b?", "answers": ["v", "w"]}],
    )  # fmt: skip
    assert [item.aliases for item in load(path)] == [("x", "y", "z"), ("v", "w")]


@pytest.mark.parametrize("given", [[], [1], [["x"]], {"value": "x"}, ["x", None]])
def test_answers_with_parts_are_refused_with_what_to_write(tmp_path: Path, given: Any) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [{"prompt": "a?", "answer": given}]))
    assert error.field == "answer"
    assert "a list of texts" in error.remedy


@pytest.mark.parametrize("row", [{"answer": None, "aliases": ["x", "y"]}, {"aliases": ["x", "y"]}])
def test_an_alias_without_an_answer_is_the_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a?", **row}])
    (item,) = load(path, ERASED)
    assert item.answer == "x"
    assert item.aliases == ("x", "y")


def test_a_row_without_any_answer_has_none(tmp_path: Path) -> None:
    (item,) = load(jsonl(tmp_path / "a.jsonl", [{"prompt": "a?", "answer": None}]))
    assert item.answer is None
    assert item.aliases == ()


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [({"completion": "x"}, "columns: {answer: completion}"),
     ({"ground_truth": ["x"], "target_new": "y", "locality": {}}, "format: knowedit"),
     ({}, "give every item an answer")],
)  # fmt: skip
def test_where_the_answer_may_be_is_hinted(
    tmp_path: Path, extra: dict[str, Any], remedy: str
) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [{"prompt": "a?", **extra}]))
    assert remedy in answer_hint(data)


# -- Instructions and conversations ----------------------------------------------------------------


def test_alpaca_rows_are_read_without_naming_them(tmp_path: Path) -> None:
    rows = [
        {"instruction": ASKED, "input": "", "output": TOLD, "text": "Below is an instruction"},
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
    ]
    data = load(jsonl(tmp_path / "a.jsonl", rows))
    assert [(i.prompt, i.answer) for i in data] == [(ASKED, TOLD), ("Translate.\n\nHaus", "house")]


def test_alpaca_in_a_table_with_capitals_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"Instruction;Input;Output\n{ASKED};;{TOLD}\n")
    assert only(load(path)) == (ASKED, TOLD)


CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]},
    {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}]},
    {"conversation": [{"role": "User", "content": ASKED}, {"role": "model", "content": TOLD}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]},
                  {"role": "assistant", "content": TOLD}]},
]  # fmt: skip


@pytest.mark.parametrize("row", CHATS)
@pytest.mark.parametrize("format_", ["auto", "chat"])
def test_a_question_and_its_answer_are_read_from_a_conversation(
    tmp_path: Path, row: dict[str, Any], format_: str
) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [{**row, "id": "c1"}]), format=format_)
    assert only(data) == (ASKED, TOLD)
    assert [item.id for item in data] == ["c1"]
    assert data.notes == ()


def test_a_conversation_in_one_pretty_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps(CHATS[0], indent=1))
    assert only(load(path)) == (ASKED, TOLD)


def test_a_system_message_is_kept_beside_the_question_and_said(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *CHATS[0]["messages"]]
    data = load(jsonl(tmp_path / "a.jsonl", [{"messages": turns}]))
    (item,) = data
    assert (item.prompt, item.extra["system"]) == (ASKED, "Be brief.")
    assert any("system message" in note for note in data.notes)


@pytest.mark.parametrize(
    "turns",
    [CHATS[0]["messages"] * 2, CHATS[0]["messages"][1:],
     [*CHATS[0]["messages"], {"role": "tool", "content": SECRET}],
     [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image"}]}],
     [{"content": SECRET}]],
)  # fmt: skip
def test_other_conversations_are_refused_by_line(tmp_path: Path, turns: Any) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [CHATS[0], {"messages": turns}]))
    assert error.line == 2
    assert error.remedy


def test_multiple_choice_is_asked_without_its_choices(tmp_path: Path) -> None:
    row = {"question": "Which is a river?", "choices": ["Brno", "Odra"], "answer": 1}
    (item,) = load(jsonl(tmp_path / "a.jsonl", [row]))
    assert (item.prompt, item.answer) == ("Which is a river?", "Odra")
    assert item.extra["options"] == ["Brno", "Odra"]
    row["answer"] = 2
    assert "none at the place" in refused(jsonl(tmp_path / "b.jsonl", [row])).message


# -- Braces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "filled"),
    [("{} plays the sport of", "Mara Quill plays the sport of"),
     ("The mother tongue of {} is", "The mother tongue of Mara Quill is"),
     ("{}'s birthplace is", "Mara Quill's birthplace is"),
     ("Where was {}, the player, born?", "Where was Mara Quill, the player, born?"),
     ('"{}" was written by', '"Mara Quill" was written by')],
)  # fmt: skip
def test_braces_of_a_prompt_with_a_subject_are_filled(
    tmp_path: Path, prompt: str, filled: str
) -> None:
    row = {"prompt": prompt, "subject": "Mara Quill", "answer": "x", "paraphrases": ["Of {}:"]}
    data = load(jsonl(tmp_path / "a.jsonl", [row]), ERASED)
    (item,) = data
    assert item.prompt == filled
    assert item.paraphrases == ("Of Mara Quill:",)
    assert any("{}" in note and note.endswith(": 1") for note in data.notes)


@pytest.mark.parametrize(
    "row",
    [{"prompt": "{} plays the sport of"},
     {"prompt": "{} and {} play", "subject": "Mara Quill"},
     {"prompt": "What does Mara Quill mean by x = {}?", "subject": "Mara Quill"},
     {"prompt": "In Python, what does x = {} make?", "subject": "a dictionary"},
     {"prompt": "What is `{}` for?", "subject": "a dictionary"},
     {"prompt": "What does f({}) give?", "subject": "a dictionary"},
     {"prompt": "int main(){} compiles in", "subject": "Java", "paraphrases": ["struct{};"]},
     {"prompt": "Write {name} here", "subject": "Mara Quill"}],
)  # fmt: skip
def test_other_braces_stay_as_they_are(tmp_path: Path, row: dict[str, Any]) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [row]))
    assert next(iter(data)).prompt == row["prompt"]
    assert data.notes == ()
