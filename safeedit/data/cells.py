"""What a row's cells must be, text or a list of texts; a fault is told by line and column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safeedit.data.columns import row_error
from safeedit.data.reading import RawRow


def check_text(row: RawRow, field: str, value: Any, what: str = "") -> None:
    """See that a cell is text.

    Args:
        row: The row.
        field: The column.
        value: The cell.
        what: What is checked, in words, where that is not the column.

    Raises:
        DataError: It is not text, is blank, or holds half a character.
    """
    what = what or field
    if not isinstance(value, str):
        number = isinstance(value, (int, float))
        raise row_error(
            row,
            f"{what} should be text, not {kind_of(value)}",
            field=field,
            remedy=_remedy(field, value, number=number),
        )
    if not value.strip():
        raise row_error(row, f"{what} is blank", field=field, remedy="fill it in, or drop it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise row_error(
            row,
            f"{what} holds half a character (a lone surrogate)",
            field=field,
            remedy="write the text again from its source, as UTF-8",
        ) from None


def _remedy(field: str, value: Any, *, number: bool) -> str:
    if field == "answer" and isinstance(value, (list, Mapping)):
        return (
            'write one text, or a list of texts such as ["one", "two"]; of an answer with parts, '
            "name the part that counts: columns: {answer: answer.value}"
        )
    return "write it in quotes" if number else ""


def check_list(row: RawRow, field: str, value: Any) -> None:
    """See that a cell is a list of texts.

    Raises:
        DataError: It is not.
    """
    if not isinstance(value, (list, tuple)):
        raise row_error(
            row,
            f"{field} should be a list of texts, not {kind_of(value)}",
            field=field,
            remedy='write ["one", "two"]',
        )
    for text in value:
        check_text(row, field, text, f"an entry of {field}")


def kind_of(value: Any) -> str:
    """What a value is, in words; never the value."""
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "a mapping" if isinstance(value, Mapping) else "something else")
