"""Where a phrase stands in a tokenised prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING
from unicodedata import category, east_asian_width

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

        A mention is matched as written, else without regard to case; it is no part of a longer
        word, except in scripts that write words without spaces between them.
        """
        stops = _mentions(self._text, phrase) or _mentions(_lower(self._text), _lower(phrase))
        return tuple(
            range(self._token(stop - len(phrase) + 1), self._token(stop) + 1) for stop in stops
        )

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


def _mentions(text: str, phrase: str) -> list[int]:
    """Ends of the mentions that are not part of a longer word."""
    stops, start = [], text.find(phrase) if phrase else -1
    while start >= 0:
        stop = start + len(phrase)
        before, after = text[start - 1 : start], text[stop : stop + 1]
        if not _continues(phrase[0], before) and not _continues(phrase[-1], after):
            stops.append(stop)
        start = text.find(phrase, stop)
    return stops


def _continues(edge: str, beside: str) -> bool:
    """Whether ``beside`` (a character or none) makes a longer word of what ends in ``edge``."""
    if not beside or not (_in_word(edge) and _in_word(beside)):
        return False
    # Chinese and Japanese set no spaces, Korean glues particles to names.
    return _is_mark(beside) or not {east_asian_width(c) for c in (edge, beside)} & {"W", "F"}


def _in_word(character: str) -> bool:
    return character.isalnum() or _is_mark(character)


def _is_mark(character: str) -> bool:
    # Accents of their own and Indic vowel signs: they belong to the letter before, yet isalnum
    # says no.
    return category(character).startswith("M")


def _lower(text: str) -> str:
    """Lower case, each character staying one."""
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
