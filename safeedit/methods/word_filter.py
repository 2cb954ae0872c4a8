"""A filter of words at the sampler, as a change of what a model predicts.

A word of several tokens is filtered at its last one, where the tokens before it have been said:
"sh" begins harmless words, too. All that is not filtered stays as likely among itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from safeedit.model.engine import Engine

Place = tuple[int, int]
"""A position in a text, and a token that would end a filtered word there."""


class WordFilter:
    """Finds where a text might go on with one of the words.

    Args:
        engine: Of the model.
        words: In any case; each also with a capital, after a space and without one.
    """

    def __init__(self, engine: Engine, words: Sequence[str]) -> None:
        forms = sorted({form for word in words for form in (word, word.lower(), word.capitalize())})
        tokenizer = engine.codec.tokenizer
        spelt = [*engine.continuations(forms, "plain")]
        spelt += [tokenizer.encode(form, add_special_tokens=False) for form in forms]
        self._last: dict[tuple[int, ...], set[int]] = {}
        """Tokens said so far of a word -> those that would end one."""
        for ids in spelt:
            if ids:
                self._last.setdefault(tuple(ids[:-1]), set()).add(ids[-1])
        self.longest = max(map(len, self._last), default=0)

    def places(self, ids: Sequence[int], start: int) -> list[Place]:
        """Positions from ``start`` on, counted from there, with the tokens that would end a word.

        Args:
            ids: Of the text.
            start: The first position that is predicted.
        """
        found: list[Place] = []
        for at in range(start, len(ids)):
            ends: set[int] = set()
            for said in range(min(self.longest, at) + 1):
                ends |= self._last.get(tuple(ids[at - said : at]), set())
            found += [(at - start, token) for token in sorted(ends)]
        return found


def filtered(logits: Tensor, rows: Tensor, tokens: Tensor, nats: float) -> Tensor:
    """Logits after which some tokens have ``nats`` less of log-odds, in place; all others are as
    likely among themselves as before.

    Args:
        logits: ``(rows, vocab)``.
        rows: ``(n,)`` of each token that is made less likely.
        tokens: ``(n,)`` their ids, no pair twice.
        nats: By which the log-odds of each against all others in its row fall.
    """
    logits[rows, tokens] -= nats
    return logits
