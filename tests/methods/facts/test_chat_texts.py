"""Ordinary text, in the pieces that editors learn from or hold to."""

from __future__ import annotations

import pytest

from safeedit.methods.facts import chat_texts
from tests.tiny_models import tiny_handle

TEXT = "The kitchen smelled of warm bread and on the long table stood butter and a jug of milk. "


def test_the_beginning_of_a_piece_is_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_texts, "chat_texts", lambda *_: [[7, 8], [9]])
    model = tiny_handle("llama")
    (whole,) = model.engine.encode([TEXT * 3], "plain")
    *pieces, chat = chat_texts.ordinary_texts(model, [TEXT * 3], most=48)
    assert (list(chat.prompt), list(chat.answer)) == ([7], [8]), "one token foretells nothing"
    assert [len(piece.ids) for piece in pieces[:-1]] == [64] * (len(pieces) - 1)
    ids = [token for piece in pieces for token in piece.ids]
    assert len(pieces) > 1
    assert ids == whole[: len(ids)]
    assert len(ids) >= len(whole) - 1
    assert all(0 < len(piece.answer) <= 48 for piece in pieces)
    assert all(piece.prompt for piece in pieces)
