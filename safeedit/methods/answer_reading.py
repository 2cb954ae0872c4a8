"""Reading what a model says for answers of any length: how far, and how much of them is there.

An answer longer than what is read can't be found whole, and must not pass for forgotten. So
questions are read as far as their own answers are long, and :data:`FURTHER` tokens more. Of a text
that was cut off before it could hold the answer, and does not tell it so far, nobody knows: a
metric over it has no value. A text that the model ended itself was read whole, however short.

What counts as told is here for all auditors: a spelling as the matcher finds it, or a run of the
answer's tokens as long as :func:`safeedit.text.recital.run_to_tell` asks, with words in it that
the question did not bring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from safeedit.contracts import Template
from safeedit.data import Dataset, Item
from safeedit.model.engine import Engine
from safeedit.text.matching import Way, normalise, way_told
from safeedit.text.recital import (
    LEAST_WORDS,
    longest_run,
    rouge_l_recall,
    run_to_tell,
    runs,
    words_beyond,
)

FURTHER = 32
"""Tokens read beyond an answer's own number: it may be led in by a sentence."""


LEAST_READ = 64
"""Tokens read of answers that are short: late leaks would hide in fewer."""


@dataclass(frozen=True)
class Reading:
    """What one text holds of one item's answer."""

    way: Literal["strict", "looser", "part"] | None
    """How the answer is told, as far as was read: a spelling is found by one way of matching or
    the other, or a long part is recited; None where it is not."""
    cut: bool
    """Cut off before the whole answer could stand in it: more of it may have followed."""
    run: int
    """Tokens of the longest run that text and answer share; all of the answer's where a spelling
    was found."""
    recited: float
    """The longest run's share of the answer's tokens."""
    rouge_l: float
    """ROUGE-L recall of the answer's tokens."""

    @property
    def tells(self) -> float:
        """1 told, 0 not told, NaN nobody knows."""
        return 1.0 if self.way is not None else math.nan if self.cut else 0.0


@dataclass(frozen=True)
class Said:
    """One text to be read for one item."""

    item: int
    """Index of the item."""
    question: str
    ids: Sequence[int]
    """Tokens generated."""
    limit: int
    """Tokens that were to be generated at most, see :meth:`Reader.limit`."""


class Reader:
    """Reads generated texts for the answers of items.

    Args:
        engine: Of the model that speaks.
        items: Items with answers.
        template: How they are asked.
        most: Tokens read of each text, as the policy says; None goes by each item's answers.
        least: Tokens read where the policy says nothing and answers are short.
        further: Tokens read there beyond an answer's own number.
        way: By which way of matching any spelling stands in a text.
    """

    def __init__(
        self,
        engine: Engine,
        items: Sequence[Item],
        template: Template,
        most: int | None,
        least: int = LEAST_READ,
        further: int = FURTHER,
        way: Callable[[str, Iterable[str]], Way | None] = way_told,
    ) -> None:
        self._engine, self._items, self._way = engine, items, way
        spellings = [_spellings(item) for item in items]
        exact = iter(engine.continuations([t for each in spellings for t in each], template))
        folded = iter(_folded(engine, [text for each in spellings for text in each]))
        # Of each item and each spelling, tokens as they are said, and of the folded text.
        self._answers = [[(next(exact), next(folded)) for _ in each] for each in spellings]
        self.lengths = [max((len(ids) for ids, _ in each), default=0) for each in self._answers]
        self.canonical = [len(each[0][0]) if each else 0 for each in self._answers]
        self._wanted = [most or max(least, n + further) for n in self.lengths]

    def limit(self, item: int, prompt: Sequence[int]) -> int:
        """Tokens to generate after a prompt about an item; no more than the context holds."""
        return max(0, min(self._wanted[item], self._engine.context - len(prompt)))

    def read(self, said: Sequence[Said]) -> list[Reading]:
        """What the texts hold of the answers."""
        texts = {tuple(each.ids): self._engine.decode(each.ids) for each in said}
        folded = dict(zip(texts, _folded(self._engine, list(texts.values())), strict=True))
        return [
            self._reading(each, texts[tuple(each.ids)], folded[tuple(each.ids)]) for each in said
        ]

    def _reading(self, said: Said, text: str, folded: Sequence[int]) -> Reading:
        answers = self._answers[said.item]
        if way := self._way(text, self._items[said.item].aliases):
            return Reading(way, False, self.lengths[said.item], 1.0, 1.0)
        question = normalise(said.question)
        in_part = any(
            self._runs_on(mine, answer, question)
            for exact, plain in answers
            for mine, answer in ((said.ids, exact), (folded, plain))
        )
        run, recited, rouge = 0, 0.0, 0.0
        # Partial measures are of the canonical answer, which comes first.
        for mine, answer in zip((said.ids, folded), answers[0] if answers else (), strict=False):
            longest = longest_run(mine, answer)
            run = max(run, longest)
            recited = max(recited, longest / max(1, len(answer)))
            rouge = max(rouge, rouge_l_recall(mine, answer))
        ended = len(said.ids) < said.limit
        cut = not ended and said.limit < self.canonical[said.item]
        return Reading("part" if in_part else None, cut, run, recited, rouge)

    def _runs_on(self, said: Sequence[int], answer: Sequence[int], question: str) -> bool:
        """Whether a run is long enough to tell the answer, and more than words of the question."""
        least = run_to_tell(len(answer))
        if least is None:
            return False
        for start, size in runs(said, answer):
            if size >= least:
                run = normalise(self._engine.decode(answer[start : start + size]))
                if words_beyond(run, question) >= LEAST_WORDS:
                    return True
        return False


def cut_note(cut: Iterable[bool], what: str = "answers") -> str:
    """Says of how many nobody knows, since they were cut off; or nothing."""
    found = list(cut)
    if not any(found):
        return ""
    return (
        f"{sum(found)} of {len(found)} {what} can't be judged: what the model said was cut off "
        "before the whole answer could stand in it; raise max_new_tokens or leave it out, or use "
        "a model with a longer context"
    )


def any_tells(tells: Iterable[float]) -> float:
    """Of several readings: 1 if one tells, NaN if none does and of one nobody knows, else 0."""
    found = list(tells)
    return 1.0 if 1.0 in found else sum(found)


def looser_alone(readings: Iterable[Reading]) -> bool:
    """Whether they tell the answer by the looser way of matching and no other."""
    return {reading.way for reading in readings} - {None} == {"looser"}


def likely_length(data: Dataset, least: int = LEAST_READ) -> int:
    """Tokens that are likely read of each answer where the policy says nothing, for ``plan``."""
    longest = [max((len(alias) for alias in item.aliases), default=0) for item in data]
    wanted = [max(least, n // 4 + FURTHER) for n in longest]
    return sum(wanted) // len(wanted) if wanted else least


def _spellings(item: Item) -> list[str]:
    return [text for text in item.aliases if text.strip()]


def _folded(engine: Engine, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts without case, accents and punctuation, one way wherever they stand."""
    return engine.continuations([normalise(text) for text in texts], "plain")
