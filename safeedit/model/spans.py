"""Where a phrase stands in a tokenised prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def last_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], phrase: str
) -> tuple[int, ...]:
    """Positions of the last token of every mention of ``phrase`` in ``ids``.

    Offsets come from decoding ever longer prefixes, which holds for any tokenizer, merges and
    templates included. A mention is matched as written, else without regard to case.

    Returns:
        Positions in ``ids``, ascending; empty where the phrase does not occur.
    """
    text = _decode(tokenizer, ids)
    found = _mentions(text, phrase) or _mentions(text.lower(), phrase.lower())
    if not found:
        return ()
    ends = [len(_decode(tokenizer, ids[: i + 1])) for i in range(len(ids))]
    return tuple(next(i for i, end in enumerate(ends) if end >= stop) for stop in found)


def _mentions(text: str, phrase: str) -> list[int]:
    """Ends of the mentions that are not part of a longer word."""
    stops, start = [], text.find(phrase)
    while start >= 0:
        stop = start + len(phrase)
        before, after = text[start - 1 : start], text[stop : stop + 1]
        if not before.isalnum() and not after.isalnum():
            stops.append(stop)
        start = text.find(phrase, stop)
    return stops


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
