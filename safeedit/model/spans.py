"""Where a phrase stands in a tokenised prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING

from safeedit.text.matching import find_mentions
from safeedit.text.segments import stands

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenisedText:
    """Token ids as the text they make, to find phrases in.

    Offsets come from decoding ever longer prefixes, which holds for any tokenizer, merges and
    templates included.

    Args:
        tokenizer: What made the ids.
        ids: Of the text, special tokens included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self._text = _decode(tokenizer, ids)

    def spans(self, phrase: str) -> tuple[range, ...]:
        """Positions of the tokens of every mention of ``phrase``, ascending.

        A mention is matched as written, else as auditors match answers
        (:func:`safeedit.text.matching.find_mentions`: whatever its case, composition, apostrophes
        or spaces), so that what is edited is what is audited. It is no part of a longer word, but
        for what its script writes onto words.
        """
        found = _as_written(self._text, phrase) or find_mentions(self._text, phrase)
        return tuple(range(self._token(start + 1), self._token(stop) + 1) for start, stop in found)

    def piece(self, position: int) -> str:
        """What the token at ``position`` adds to the text; a character of several tokens is its
        last one's."""
        begin = self._ends[position - 1] if position else 0
        return self._text[begin : self._ends[position]]

    def _token(self, count: int) -> int:
        """The token that brings the text to ``count`` characters."""
        return next(i for i, end in enumerate(self._ends) if end >= count)

    @cached_property
    def _ends(self) -> list[int]:
        # What a prefix shares with the text, not its length: a character of several tokens decodes
        # to replacement characters until its last one.
        return [
            len(commonprefix([self._text, _decode(self._tokenizer, self._ids[: i + 1])]))  # noqa: RUF071 (no paths)
            for i in range(len(self._ids))
        ]


def mentions(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], names: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """``(position, number)`` of the last token of every mention of ``names`` in ``ids``, ascending.

    Where one name ends another ("Smith" in "John Smith"), the longer is meant.
    """
    text = TokenisedText(tokenizer, ids)
    found = {
        span[-1]: number
        for number, name in sorted(enumerate(names), key=lambda pair: len(pair[1]))
        for span in text.spans(name)
    }
    return tuple(sorted(found.items()))


def last_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], phrase: str
) -> tuple[int, ...]:
    """Positions of the last token of every mention of ``phrase`` in ``ids``, ascending; see
    :meth:`TokenisedText.spans`. Empty where the phrase does not occur."""
    return tuple(span[-1] for span in TokenisedText(tokenizer, ids).spans(phrase))


def _as_written(text: str, phrase: str) -> list[tuple[int, int]]:
    """Where a phrase stands letter for letter."""
    found, start = [], text.find(phrase) if phrase else -1
    while start >= 0:
        stop = start + len(phrase)
        if stands(text, start, stop, looser=True):
            found.append((start, stop))
        start = text.find(phrase, stop)
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
