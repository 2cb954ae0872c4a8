"""What a row says of its subject beside its name, and its question in other languages.

Such columns serve audits that ask in ways nobody fitted. A description, a question the other way
round or a translation that holds its own answer would be told by a model that only repeats it, so
such a row is refused, by line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from safeedit.data.cells import check_list, check_text, kind_of
from safeedit.data.columns import row_error
from safeedit.data.items import Item, Translation
from safeedit.data.reading import RawRow
from safeedit.data.splitting import normalise_prompt
from safeedit.data.subjects import names_subject
from safeedit.text.matching import contains_alias

_OF_SUBJECT = ("subject_aliases", "descriptions", "reverse_questions")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?")
"""Language, script, region: reports say the codes, so they must be too short to hold a name."""
_REWORD = "reword it so that it does not, or leave it out"


def read_names(row: RawRow, item: Item, columns: Mapping[str, Any]) -> Item:
    """An item with its other names, descriptions, reverse questions and translations.

    Args:
        row: Where the columns come from.
        item: Its other columns, read.
        columns: Under our names; lists are lists of texts.

    Raises:
        DataError: A column has the wrong type, lacks its subject, or holds the answer it asks for.
    """
    lists = {name: columns.get(name) or [] for name in _OF_SUBJECT}
    if item.subject is None and (given := [name for name in _OF_SUBJECT if lists[name]]):
        raise row_error(
            row, f"has {given[0]} and no subject", field="subject",
            remedy="give the row the name that its prompt uses as its 'subject'",
        )  # fmt: skip
    named = replace(
        item,
        subject_aliases=_distinct(lists["subject_aliases"], but=[item.subject or ""]),
        descriptions=_distinct(lists["descriptions"]),
        reverse_questions=_distinct(lists["reverse_questions"]),
        translations=tuple(_translations(row, columns.get("translations", {}))),
    )
    _check(row, named)
    return named


def _distinct(texts: Iterable[str], but: Iterable[str] = ()) -> tuple[str, ...]:
    """Texts in order, repeated ones once; spelling counts, since a spelling is what is tried."""
    others = set(but)
    return tuple(text for text in dict.fromkeys(texts) if text not in others)


def _translations(row: RawRow, value: Any) -> Iterable[Translation]:
    if not isinstance(value, Mapping):
        raise row_error(
            row, f"translations should be a map from languages to questions, not {kind_of(value)}",
            field="translations", remedy='write {"de": "...", "fr": "..."}',
        )  # fmt: skip
    for language, given in value.items():
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise row_error(
                row, "a language of translations is no language code", field="translations",
                remedy="write codes such as de, fr or pt-BR",
            )  # fmt: skip
        field = f"translations.{language}"
        if isinstance(given, Mapping):
            if unknown := sorted(map(str, given.keys() - {"prompt", "aliases"})):
                raise row_error(
                    row, f"a translation has {len(unknown)} keys too many", field=field,
                    remedy='write {"prompt": "...", "aliases": ["..."]}',
                )  # fmt: skip
            prompt, aliases = given.get("prompt", ""), given.get("aliases", [])
        else:
            prompt, aliases = given, []
        check_text(row, field, prompt, "a translation")
        check_list(row, field, aliases)
        yield Translation(language, prompt, tuple(dict.fromkeys(aliases)))


def _check(row: RawRow, item: Item) -> None:
    """Raises DataError where a question would tell its own answer."""
    for text in item.descriptions:
        if any(names_subject(text, name) for name in item.names):
            raise row_error(
                row, "a description names the row's own subject", field="descriptions",
                remedy=_REWORD,
            )  # fmt: skip
        if contains_alias(text, item.aliases):
            raise row_error(
                row, "a description holds the row's own answer", field="descriptions",
                remedy=_REWORD,
            )  # fmt: skip
    asked = {normalise_prompt(text) for text in (item.prompt, *item.paraphrases)}
    for text in item.reverse_questions:
        if contains_alias(text, item.names):
            raise row_error(
                row, "a reverse question names the subject that it asks for",
                field="reverse_questions", remedy=_REWORD,
            )  # fmt: skip
        if normalise_prompt(text) in asked:
            raise row_error(
                row, "a reverse question is also the prompt or a paraphrase",
                field="reverse_questions", remedy="ask for the subject, given the answer",
            )  # fmt: skip
    for each in item.translations:
        if contains_alias(each.prompt, (*item.aliases, *each.aliases)):
            raise row_error(
                row, "a translation holds the answer that it asks for",
                field=f"translations.{each.language}", remedy=_REWORD,
            )  # fmt: skip
