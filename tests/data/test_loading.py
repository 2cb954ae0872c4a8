"""Data sources as policies name them: columns, filters, checks, limits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import SPLITS, load_dataset
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from tests.data.sources import ERASED, SECRET, jsonl, load, refused, rows


def test_a_plain_file_is_read_whole(tmp_path: Path) -> None:
    row = {
        "id": "x", "prompt": "q?", "answer": "a", "aliases": ["b"], "paraphrases": ["p?"],
        "subject": "s", "split": "test", "relation": "r",
    }  # fmt: skip
    item = load(jsonl(tmp_path / "a.jsonl", [row])).all()[0]
    assert (item.id, item.prompt, item.answer, item.aliases) == ("x", "q?", "a", ("a", "b"))
    assert (item.paraphrases, item.subject, item.split) == (("p?",), "s", "test")
    assert item.extra == {"relation": "r"}


def test_ids_are_line_numbers_where_rows_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [item.id for item in load(path)] == ["2", "4"]


def test_prose_rows_read_as_items_without_answer(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": i, "text": f"passage {i}"} for i in range(3)])
    data = load(path)
    assert [item.prompt for item in data] == ["passage 0", "passage 1", "passage 2"]
    assert [item.id for item in data] == ["0", "1", "2"]
    assert data.all()[0].answer is None


def test_columns_are_mapped_by_name_and_into_nested_fields(tmp_path: Path) -> None:
    content = [{"question": f"q{i}", "gold": {"value": f"a{i}", "n": i}} for i in range(3)]
    path = jsonl(tmp_path / "a.jsonl", content)
    data = load(path, columns={"prompt": "question", "answer": "gold.value"})
    assert [(item.prompt, item.answer) for item in data] == [(f"q{i}", f"a{i}") for i in range(3)]
    assert "question" not in data.all()[0].extra


def test_a_placeholder_is_filled_from_the_subject(tmp_path: Path) -> None:
    row = {
        "prompt": "The home of {subject} is", "paraphrases": ["{subject} lives in", "Who { lives?"],
        "subject": "Ada {x}", "answer": "{subject}", "note": "{subject}",
    }  # fmt: skip
    item = load(jsonl(tmp_path / "a.jsonl", [row])).all()[0]
    assert (item.prompt, item.paraphrases) == (
        "The home of Ada {x} is", ("Ada {x} lives in", "Who { lives?"),
    )  # fmt: skip
    assert (item.answer, item.extra) == ("{subject}", {"note": "{subject}"})
    mapped = [{"q": "Where is {subject}?", "who": "Ada"}]
    found = load(jsonl(tmp_path / "b.jsonl", mapped), columns={"prompt": "q", "subject": "who"})
    assert found.all()[0].prompt == "Where is Ada?"


@pytest.mark.parametrize("subject", [{}, {"subject": None}, {"subject": "  "}])
@pytest.mark.parametrize("text", [{"prompt": "{subject} is"},
                                  {"prompt": "q", "paraphrases": ["{subject}?"]}])  # fmt: skip
def test_a_placeholder_without_a_subject_is_an_error(
    text: dict[str, Any], subject: dict[str, Any], tmp_path: Path
) -> None:
    content = [{"prompt": "fine", "role": "a"}, {**text, **subject, "role": "b"}]
    path = jsonl(tmp_path / "a.jsonl", content)
    error = refused(path)
    assert (error.file, error.line, error.field) == (str(path), 2, "subject")
    assert "no subject to put there" in error.message
    assert len(load(path, where={"role": "a"})) == 1, "a row that is not chosen is not filled"


def test_braces_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    texts = ["Dear {subject}, {name} wrote {} and {{subject}}.", "f'{x}' {subjects} {Subject}"]
    prose = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert [item.prompt for item in load(prose)] == texts
    plain = jsonl(tmp_path / "b.jsonl", [{"prompt": texts[1], "subject": "Ada"}])
    assert load(plain).all()[0].prompt == texts[1]
    published = [{"question_id": "1", "question": "{subject}?", "answer": "a",
                  "sanitization_phrase": "x"}]  # fmt: skip
    path = jsonl(tmp_path / "c.jsonl", published)
    assert load(path, format="sanitation").all()[0].prompt == "{subject}?"


def test_two_columns_can_change_places(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "q"}])
    item = load(path, columns={"prompt": "answer", "answer": "prompt"}).all()[0]
    assert (item.prompt, item.answer) == ("q", "a")


def test_an_optional_column_may_be_absent_from_some_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b", "alt": ["x"]}])
    assert load(path, columns={"aliases": "alt"}).all()[1].aliases == ("x",)


def test_a_filter_takes_a_value_or_a_list(tmp_path: Path) -> None:
    content = [{"prompt": f"q{i}", "role": "abc"[i % 3], "n": i} for i in range(9)]
    path = jsonl(tmp_path / "a.jsonl", content)
    assert len(load(path, where={"role": "a"})) == 3
    assert len(load(path, where={"role": ["a", "b"]})) == 6
    assert len(load(path, where={"role": "a", "n": [0, 3, 4]})) == 2


def test_a_filter_tells_one_from_true(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "x": 1}, {"prompt": "b", "x": True}])
    assert [item.prompt for item in load(path, where={"x": True})] == ["b"]


def test_rows_that_the_filter_leaves_out_need_no_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"role": "other"}, {"prompt": "b", "role": "a"}])
    assert len(load(path, where={"role": "a"})) == 1


def test_a_limit_is_a_seeded_choice_that_the_order_of_rows_does_not_change(tmp_path: Path) -> None:
    content = rows(50)
    chosen = load(jsonl(tmp_path / "a.jsonl", content), limit=10)
    again = load(jsonl(tmp_path / "b.jsonl", reversed(content)), limit=10)
    other = load(tmp_path / "a.jsonl", limit=10, seed=1)
    assert len(chosen) == 10
    assert {item.prompt for item in chosen} == {item.prompt for item in again}
    assert {item.prompt for item in chosen} != {item.prompt for item in other}


def test_a_forced_split_overrules_the_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*rows(2, split="fit"), {"prompt": "x"}])
    assert load(path, split="test").counts()["test"] == 3


def test_the_role_decides_how_splits_are_taken(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(3, split="fit"))
    assert load(path).counts()["test"] == 0
    assert load(path, ERASED).counts()["test"] == 3


def test_paths_start_at_the_policys_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "policies").mkdir()
    jsonl(tmp_path / "data" / "a.jsonl", rows())
    data = load_dataset(DataSpec(file="../data/a.jsonl"), tmp_path / "policies")
    assert (data.name, data.source) == ("a", "../data/a.jsonl")


def test_paraphrases_that_repeat_the_prompt_or_each_other_are_dropped(tmp_path: Path) -> None:
    row = {
        "prompt": "What is it?",
        "paraphrases": ["what is it", "Its name?", "its name", "Which?"],
    }
    item = load(jsonl(tmp_path / "a.jsonl", [row])).all()[0]
    assert item.paraphrases == ("Its name?", "Which?")


def test_a_row_that_repeats_another_counts_once_and_is_noted(tmp_path: Path) -> None:
    first, second = rows(1, aliases=["x"]), rows(1, aliases=["y"])
    data = load(jsonl(tmp_path / "a.jsonl", [*first, *second]))
    assert len(data) == 1
    assert {"x", "y"} <= set(data.all()[0].aliases)
    assert data.notes == ("rows that repeat an earlier one, counted once: 1",)


def test_the_same_answer_in_another_spelling_or_among_the_aliases_is_no_contradiction(
    tmp_path: Path,
) -> None:
    content = [
        {"prompt": "q", "answer": "Paris"},
        {"prompt": "q", "answer": "PARIS"},
        {"prompt": "Q ", "answer": "City of Light", "aliases": ["paris"]},
    ]
    assert len(load(jsonl(tmp_path / "a.jsonl", content))) == 1


# -- mistakes -----------------------------------------------------------------------------------


def test_a_missing_file_suggests_the_likely_one(tmp_path: Path) -> None:
    jsonl(tmp_path / "forget.jsonl", rows())
    error = refused(tmp_path / "forgot.jsonl")
    assert "no such file" in error.message
    assert error.remedy == "did you mean 'forget.jsonl'?"


def test_a_directory_given_as_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "is a folder" in refused(tmp_path / "data").message


@pytest.mark.parametrize("content", ["", "\n \n", "[]", " [ ] "])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_empty_data_is_refused(tmp_path: Path, content: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(content)
    assert "no rows" in refused(path).message


def test_a_blank_prompt_is_located(tmp_path: Path) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [*rows(2), {"prompt": "  "}]))
    assert (error.line, error.field, error.message) == (3, "prompt", "prompt is blank")


def test_a_missing_prompt_is_located_and_a_column_suggested(tmp_path: Path) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [*rows(2), {"question": SECRET}]))
    assert error.line == 3
    assert error.remedy == "map it: columns: {prompt: question}"


@pytest.mark.parametrize("header", ["Question", " QUESTION ", "question"])
def test_a_column_is_suggested_as_the_file_spells_it(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header},Answer\nWho?,Ann\n")
    assert refused(path).remedy == f"map it: columns: {{prompt: {header.strip()}}}"


def test_a_table_without_header_is_told_so_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"Who is {SECRET}?,Ann\nWhere?,Rome\n")
    error = refused(path)
    assert "the first line of a table must name its columns" in error.remedy
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"prompt": 5}, "prompt", "prompt should be text, not a number"),
        ({"prompt": [SECRET]}, "prompt", "prompt should be text, not a list"),
        ({"answer": True}, "answer", "answer should be text, not true or false"),
        ({"answer": {"a": 1}}, "answer", "answer should be text, not a mapping"),
        ({"answer": ""}, "answer", "answer is blank"),
        ({"aliases": SECRET}, "aliases", "aliases should be a list of texts, not text"),
        ({"aliases": [SECRET, 1]}, "aliases", "an entry of aliases should be text, not a number"),
        ({"aliases": [""]}, "aliases", "an entry of aliases is blank"),
        ({"paraphrases": [" "]}, "paraphrases", "an entry of paraphrases is blank"),
        ({"id": 1.5}, "id", "id should be text, not a number"),
        ({"answer": "\ud800"}, "answer", "answer holds half a character (a lone surrogate)"),
    ],
)
def test_a_column_of_the_wrong_type_is_located(
    tmp_path: Path, row: dict[str, Any], field: str, message: str
) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [*rows(2), {"prompt": "q", **row}]))
    assert (error.line, error.field, error.message) == (3, field, message)


def test_an_unknown_split_is_located(tmp_path: Path) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [*rows(1, split="fit"), *rows(2, split="train")]))
    assert (error.line, error.field) == (2, "split")
    assert error.remedy.startswith("one of fit, validation, test")


def test_a_prompt_with_two_answers_names_both_lines(tmp_path: Path) -> None:
    content = [*rows(3), {"prompt": rows(2)[1]["prompt"].upper(), "answer": f"not {SECRET}"}]
    error = refused(jsonl(tmp_path / "a.jsonl", content))
    assert error.message == "the same prompt has another answer: line 2 and line 4"
    assert error.line == 4


def test_a_prompt_with_an_answer_and_without_is_refused(tmp_path: Path) -> None:
    content = [*rows(1), {"prompt": rows(1)[0]["prompt"]}]
    assert "another answer" in refused(jsonl(tmp_path / "a.jsonl", content)).message


def test_two_rows_with_one_id_are_refused_with_both_lines(tmp_path: Path) -> None:
    content = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}, {"id": "a", "prompt": "z"}]
    error = refused(jsonl(tmp_path / "a.jsonl", content))
    assert error.message == "the same id is used: line 1 and line 3"


def test_an_id_that_equals_another_rows_line_number_is_no_clash(tmp_path: Path) -> None:
    content = [{"prompt": "x"}, {"id": "1", "prompt": "y"}, {"prompt": "z"}]
    data = load(jsonl(tmp_path / "a.jsonl", content))
    assert len({item.id for item in data}) == 3


@pytest.mark.parametrize("role", [None, ERASED])
def test_one_prompt_in_two_splits_is_refused(tmp_path: Path, role: Any) -> None:
    content = [
        {"prompt": f"{SECRET} one?", "split": "fit"},
        {"prompt": f"{SECRET.upper()}, one", "split": "test"},
    ]
    error = refused(jsonl(tmp_path / "a.jsonl", content), role)
    assert error.message == "the same prompt is in two splits: line 1 and line 2"


def test_a_paraphrase_that_is_another_items_prompt_in_another_split_is_refused(
    tmp_path: Path,
) -> None:
    paraphrases = ["first way?", "second way?", f"{SECRET} question 1!"]
    content = [{**rows(1)[0], "paraphrases": paraphrases}, rows(2)[1]]
    path = jsonl(tmp_path / "a.jsonl", content)
    error = refused(path, ERASED)
    assert error.message == "the same phrasing is in fit and in test: line 2 and line 1"
    # The control: where both are in one split there is nothing to object to.
    load(path, ERASED, split="fit")


def test_splits_on_some_rows_only_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*rows(2, split="fit"), {"prompt": "x"}])
    error = refused(path)
    assert error.message == "has no split, but line 1 has one"
    assert error.line == 3
    load(path, ERASED)  # of data to be erased, only validation and test pin a row


def test_a_filter_that_matches_nothing_lists_the_roles_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": f"q{i}", "role": "ab"[i % 2]} for i in range(6)])
    error = refused(path, where={"role": "c"})
    assert error.message == "none of 6 rows matches the filter"
    assert error.remedy == "role is one of: a, b"


@pytest.mark.parametrize("column", ["prompt", "answer", "customer"])
def test_a_filter_that_matches_nothing_never_lists_content(tmp_path: Path, column: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(3, customer=SECRET))
    assert refused(path, where={column: "x"}).remedy == "loosen 'where'"


def test_a_role_that_looks_like_content_is_not_listed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(3, role=f"{SECRET}, 12 Main Street"))
    assert refused(path, where={"role": "x"}).remedy == "loosen 'where'"


def test_an_unknown_column_in_a_filter_suggests_the_likely_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(3, role="near"))
    error = refused(path, where={"rol": "near"})
    assert (error.field, error.remedy) == ("where.rol", "did you mean 'role'?")


def test_an_unknown_column_in_the_mapping_suggests_the_likely_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": f"q{i}", "gold": "a"} for i in range(3)])
    error = refused(path, columns={"prompt": "qestion"})
    assert (error.field, error.remedy) == ("columns.prompt", "did you mean 'question'?")
    error = refused(path, columns={"prompt": "question", "answer": "golds"})
    assert (error.field, error.remedy) == ("columns.answer", "did you mean 'gold'?")


def test_another_file_than_the_policy_names_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(load(path, sha256=right.upper())) == 4
    path.write_text(path.read_text() + "\n")
    error = refused(path, sha256=right)
    assert "sha256 differs" in error.message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in error.remedy


def test_an_unknown_format_suggests_the_likely_one(tmp_path: Path) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", rows()), format="sanitisation")
    assert error.remedy == "did you mean 'sanitation'?"


def test_a_file_of_another_format_is_located(tmp_path: Path) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", rows()), format="known_1000")
    assert error.message == "is not of the format known_1000: no column 'attribute'"
    assert error.line == 1


def test_every_item_of_a_loaded_set_has_its_own_id_and_place(tmp_path: Path) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", rows(30)), ERASED)
    assert len({item.id for item in data}) == 30
    texts = [p.text for split in SPLITS for p in data.phrasings(split)]
    assert len(texts) == len(set(texts))


def test_a_built_in_data_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="no built-in data set is called 'fcts'"):
        load_dataset(DataSpec(dataset="fcts"))


def test_loading_imports_no_model_library(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows())
    code = (
        "import sys; from pathlib import Path; from safeedit.data import load_dataset;"
        "from safeedit.policy import DataSpec;"
        f"load_dataset(DataSpec(file={str(path)!r}));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_path_may_begin_with_a_variable_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonl(tmp_path / "a.jsonl", rows(3))
    spec = DataSpec(file="${BENCHMARK_FOLDER}/a.jsonl")
    monkeypatch.setenv("BENCHMARK_FOLDER", str(tmp_path))
    assert len(load_dataset(spec, Path("/elsewhere"))) == 3
    monkeypatch.delenv("BENCHMARK_FOLDER")
    with pytest.raises(DataError, match="BENCHMARK_FOLDER") as caught:
        load_dataset(spec, tmp_path)
    assert caught.value.remedy is not None
    assert "set BENCHMARK_FOLDER" in caught.value.remedy


# -- Apart from another source ---------------------------------------------------------------------


def test_rows_that_another_source_has_are_left_out_and_counted(tmp_path: Path) -> None:
    other = jsonl(tmp_path / "b.jsonl", [{"prompt": "The  nurse ", "subject": "Nurse"}])
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"prompt": "the nurse", "subject": "nurse"},
            {"prompt": "a nurse", "subject": "nurse"},
            {"prompt": "a baker", "subject": "baker"},
        ],
    )
    apart = {"file": str(other)}
    by_prompt = load(path, exclude=apart)
    assert [item.prompt for item in by_prompt] == ["a nurse", "a baker"]
    assert any("exclude" in note and note.endswith("1") for note in by_prompt.notes)
    assert [item.prompt for item in load(path, exclude=apart, group="subject")] == ["a baker"]
    assert refused(path, exclude={"file": str(path)}).field == "exclude"


def test_further_sources_are_added_with_what_they_leave_out(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "split": "fit"}, {"prompt": "b", "id": "x", "split": "fit"}]
    first = jsonl(tmp_path / "a.jsonl", rows)
    second = jsonl(tmp_path / "b.jsonl", [{"prompt": "b"}, {"prompt": "c", "id": "x"}])
    more = {"file": str(second), "exclude": {"file": str(first)}, "split": "test"}
    data = load(first, additional_sources=[more])
    assert [item.prompt for item in data] == ["a", "b", "c"]
    assert len({item.id for item in data}) == 3
    assert [item.prompt for item in data.items("test")] == ["c"]
    assert data.source == f"{first.name} + {second}", "evidence names both, as the policy does"


def test_a_split_forced_on_a_further_source_holds_whatever_its_rows_say(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "split": "fit"}])
    second = jsonl(tmp_path / "b.jsonl", [{"prompt": "b", "split": "fit"}])
    data = load(first, additional_sources=[{"file": str(second), "split": "test"}])
    assert [item.prompt for item in data.items("test")] == ["b"]


@pytest.mark.parametrize("inner", [{"additional_sources": [{"file": "c"}]}, {"limit": 3}])
@pytest.mark.parametrize("outer", ["additional_sources", "exclude"])
def test_what_would_be_passed_over_within_another_source_is_refused(
    outer: str, inner: dict[str, Any]
) -> None:
    other = {"file": "b", **inner}
    with pytest.raises(ValueError, match=f"no place within {outer}"):
        DataSpec.model_validate(
            {"file": "a", outer: [other] if outer == "additional_sources" else other}
        )
