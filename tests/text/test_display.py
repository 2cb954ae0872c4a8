"""Whatever a name holds, it can be shown: it moves no cursor and turns no line round."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeedit.text.display import clean, clean_lines, escape_json

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSEEN = "\u200b\u2060\ufeff\U000e0041"


@given(st.text())
def test_clean_text_is_one_line_without_control_characters(text: str) -> None:
    found = clean(text)
    assert len(found) == len(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in found)
    assert found == clean(found)


def test_plain_words_in_any_script_are_left_alone() -> None:
    for text in ("Zürich – ‖W‖", "北京", "שלום", "a\u200db", "می\u200cخواهم", "\u0600١٢"):
        assert clean(text) == text


@pytest.mark.parametrize("mark", [*BIDI, *UNSEEN, "\x1b", "\x07", "\x7f", "\x9b", "\x00"])
def test_marks_that_mislead_are_replaced(mark: str) -> None:
    assert clean(f"a{mark}b") == "a\ufffdb"


def test_lines_stay_lines_where_they_are_asked_for() -> None:
    assert clean_lines("a\r\nb\x1b[31m\n\tc") == "a\nb\ufffd[31m\n c"
    assert clean("a\nb") == "a b"


@given(st.text())
def test_json_for_a_terminal_says_the_same_in_printable_ascii(text: str) -> None:
    raw = json.dumps({text: [text]}, indent=2, ensure_ascii=False)
    shown = escape_json(raw)
    assert json.loads(shown) == json.loads(raw)
    assert all(" " <= character <= "~" or character == "\n" for character in shown)
