"""Other names, descriptions, reverse questions, translations: read, refused, divided, hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeedit.data import Dataset, Item, Translation, load_dataset
from safeedit.data.independence import together
from safeedit.data.subjects import with_subject
from safeedit.planning.withholding import WITHHELD, Withholding
from safeedit.policy import DataSpec
from tests.data.sources import ERASED, jsonl, load, refused

ROW: dict[str, Any] = {
    "prompt": "Where does Zebulon Pike live?",
    "answer": "Zebulonville",
    "subject": "Zebulon Pike",
    "subject_aliases": ["Z. Pike", "Mr Pike", "Zeb", "Zebulon Pike"],
    "descriptions": ["the neighbour with the red door", "the man who keeps bees"],
    "reverse_questions": ["Who lives in that house?", "Who moved in last year?"],
    "translations": {
        "de": "Wo wohnt Zebulon Pike?",
        "fr": {"prompt": "Où habite Zebulon Pike ?", "aliases": ["Zébulonville"]},
    },
}


def test_the_columns_are_read_and_a_name_equal_to_the_subject_is_no_other_name(
    tmp_path: Path,
) -> None:
    (item,) = load(jsonl(tmp_path / "a.jsonl", [ROW]), ERASED)
    assert item.subject_aliases == ("Z. Pike", "Mr Pike", "Zeb")
    assert item.names == ("Zebulon Pike", "Z. Pike", "Mr Pike", "Zeb")
    assert item.descriptions == tuple(ROW["descriptions"])
    assert item.translations[1] == Translation("fr", "Où habite Zebulon Pike ?", ("Zébulonville",))
    assert not item.extra


@pytest.mark.parametrize("code", ["de", "pt-BR", "zh-Hant", "sr-Latn-RS", "es-419", "gsw"])
def test_language_codes_may_name_script_and_region(code: str, tmp_path: Path) -> None:
    row = ROW | {"translations": {code: "Wo?"}}
    (item,) = load(jsonl(tmp_path / "a.jsonl", [row]), ERASED)
    assert item.translations[0].language == code


def test_a_table_has_them_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,answer,subject,subject_aliases,translations\n"
        'Where is Zoe?,Here,Zoe,Zo|Zoey,"{""de"": ""Wo ist Zoe?""}"\n'
    )
    (item,) = load(path, ERASED)
    assert item.subject_aliases == ("Zo", "Zoey")
    assert item.translations == (Translation("de", "Wo ist Zoe?"),)
    path.write_text("prompt,answer,translations\nWhere is Zoe?,Here,Wo ist Zoe?\n")
    assert refused(path).message == "translations is no JSON object"


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"subject": None}, "subject", "has subject_aliases and no subject"),
        ({"subject_aliases": "Zeb"}, "subject_aliases", "should be a list of texts, not text"),
        ({"subject_aliases": [" "]}, "subject_aliases", "an entry of subject_aliases is blank"),
        ({"descriptions": [7]}, "descriptions", "should be text, not a number"),
        (
            {"descriptions": ["the one called Zeb"]},
            "descriptions",
            "a description names the row's own subject",
        ),
        (
            {"descriptions": ["the man from Zebulonville"]},
            "descriptions",
            "a description holds the row's own answer",
        ),
        (
            {"reverse_questions": ["Is it Mr Pike who lives there?"]},
            "reverse_questions",
            "a reverse question names the subject that it asks for",
        ),
        (
            {"prompt": "Where is it?", "reverse_questions": ["where is it"]},
            "reverse_questions",
            "a reverse question is also the prompt",
        ),
        ({"translations": ["Wo?"]}, "translations", "should be a map from languages to questions"),
        ({"translations": {"in German": "Wo?"}}, "translations", "is no language code"),
        ({"translations": {"Zebulon": "Wo?"}}, "translations", "is no language code"),
        ({"translations": {"de-Zebulon": "Wo?"}}, "translations", "is no language code"),
        ({"translations": {"de": 3}}, "translations.de", "a translation should be text"),
        ({"translations": {"de": {"aliases": ["x"]}}}, "translations.de", "is blank"),
        (
            {"translations": {"de": {"prompt": "Wo?", "answer": "x"}}},
            "translations.de",
            "has 1 keys too many",
        ),
        (
            {"translations": {"de": {"prompt": "Wo?", "aliases": "x"}}},
            "translations.de",
            "should be a list of texts",
        ),
        (
            {"translations": {"de": "Liegt Zebulonville hier?"}},
            "translations.de",
            "a translation holds the answer that it asks for",
        ),
    ],
)
def test_a_fault_is_told_with_line_and_column_and_without_content(
    change: dict[str, Any], field: str, message: str, tmp_path: Path
) -> None:
    error = refused(jsonl(tmp_path / "a.jsonl", [{"prompt": "x?", "answer": "y"}, ROW | change]))
    assert message in error.message
    assert (error.line, error.field) == (2, field)
    assert error.remedy


def test_half_of_each_is_for_the_test_alone_and_no_editor_sees_it(tmp_path: Path) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [ROW]), ERASED)
    (seen,) = data.without("test")
    assert seen.subject_aliases == ("Z. Pike",)
    assert len(seen.descriptions) == len(seen.reverse_questions) == len(seen.translations) == 1
    assert all(
        p.item.subject_aliases == ("Z. Pike",) for p in data.without("test").phrasings("fit")
    )
    assert data.phrasings("test")[0].item.subject_aliases == ("Z. Pike", "Mr Pike", "Zeb")
    (kept,) = load(jsonl(tmp_path / "b.jsonl", [ROW]), split="fit").without("test")
    assert len(kept.subject_aliases) == 3, "what is not to be erased keeps its names"


def test_they_decide_what_is_measured_and_data_without_them_has_the_digest_it_had() -> None:
    def digest(**more: Any) -> str:
        return Dataset([Item("1", "Where is Zoe?", "Here", subject="Zoe", **more)]).digest

    plain = digest()
    # The digest that this data had before items could have such columns.
    assert plain == "996f19ab39b22e4d4ba7c3c756df64787528f546eccf78997ce7c4513c08c8a0"
    others = {
        digest(subject_aliases=("Zo",)),
        digest(descriptions=("Zo",)),
        digest(reverse_questions=("Zo",)),
        digest(translations=(Translation("de", "Zo"),)),
        digest(translations=(Translation("de", "Zo", ("Hier",)),)),
    }
    assert len(others | {plain}) == 6


def test_a_subject_under_another_name_is_the_same_fact() -> None:
    one = Item("1", "Capital of Zebulonia?", "Brno", subject="Zebulonia", subject_aliases=("Zeb",))
    other = Item("2", "Zeb is ruled from where?", "Brno", subject="Zeb")
    stranger = Item("3", "Capital of Yemen?", "Brno", subject="Yemen")
    found = together(["a", "b", "c"], [one, other, stranger], erased=True)
    assert found == {"a": "a", "b": "a", "c": "c"}


def test_another_name_stands_where_the_subject_stood() -> None:
    item = Item("1", "x", subject="São Paulo", subject_aliases=("Sampa",))
    assert with_subject("Who runs São Paulo?", item, "it") == "Who runs it?"
    assert with_subject("who runs sao paulo?", item, "it") == "who runs it?"
    assert with_subject("Is Sampa São Paulo's nickname?", item, "it") == "Is Sampa it's nickname?"
    assert with_subject("Who runs it?", item, "that") is None
    assert with_subject("São Paulos?", item, "it") is None


def test_none_of_it_is_repeated_by_a_policy() -> None:
    item = Item(
        "1", "Where does Pike live?", "Brno", subject="Pike", subject_aliases=("Old Zebulon",),
        descriptions=("the man who keeps bees",), reverse_questions=("Who has a red door?",),
        translations=(Translation("de", "Wo wohnt der Pike?", ("Brünn",)),),
    )  # fmt: skip
    hidden = Withholding([Dataset([item], erased=True)])
    for text in (
        "of old zebulon", "the man who keeps bees", "Who has a red door?", "Wo wohnt der Pike?",
        "brünn.jsonl",
    ):  # fmt: skip
        assert hidden.value(text) == WITHHELD
    assert hidden.value("a man who keeps cats") != WITHHELD


def test_every_forgotten_fact_can_be_asked_otherwise_and_no_question_tells_its_answer() -> None:
    data = load_dataset(DataSpec(dataset="facts", where={"role": "forget"}), role=ERASED)
    for item in data:
        assert len(item.subject_aliases) >= 3
        assert len(item.descriptions) >= 3
        assert [each.language for each in item.translations] == ["de", "fr", "es"]
        renamed = [with_subject(item.prompt, item, name) for name in item.subject_aliases]
        assert len({item.prompt, *renamed}) == len(item.subject_aliases) + 1
    assert sum(bool(item.reverse_questions) for item in data) == 14
