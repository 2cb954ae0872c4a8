"""Items of the audits of bias: read in a stable order, their columns checked, scored.

Fails with :class:`~safeedit.errors.AuditError` where a split is empty or a text comes to no
tokens, with :class:`~safeedit.errors.DataError` where items lack a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from safeedit.auditors.base import stable_order
from safeedit.contracts import Progress, RunContext, Template
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError, DataError
from safeedit.model.engine import Engine, TokenScores
from safeedit.records import Split
from safeedit.statistics.intervals import Floats

Value = TypeVar("Value")


def items_of(data: Dataset, split: Split, auditor: str) -> list[Item]:
    """The items of a split, in an order that depends on their prompts alone.

    Raises:
        AuditError: There are none.
    """
    by_prompt = {item.prompt: item for item in data.items(split)}
    if not by_prompt:
        raise AuditError(
            f"{auditor} has nothing to read: the {split} split of its data is empty",
            remedy="give it items of that split",
        )
    return [by_prompt[prompt] for prompt in stable_order(by_prompt)]


def template_of(data: Dataset) -> Template:
    """How texts are put to the model: plain, unless the data asks for chat."""
    return "chat" if data.template == "chat" else "plain"


def text(item: Item, column: str) -> str | None:
    """A column's text without surrounding space; None where there is none."""
    value = item.subject if column == "subject" else item.extra.get(column)
    if column == "subject" and value is None:
        value = item.extra.get("profession")
    if column == "answer":
        value = item.answer
    return value.strip() or None if isinstance(value, str) else None


def number(item: Item, column: str) -> float | None:
    """A column's number; CSV files write numbers as texts."""
    value = item.extra.get(column)
    if isinstance(value, bool):
        return None
    try:
        found = float(value) if isinstance(value, (int, float, str)) else float("nan")
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def column(
    items: Sequence[Item], name: str, read: Callable[[Item], Value | None], remedy: str
) -> list[Value]:
    """A column of all items.

    Raises:
        DataError: Some lack it; the message tells how many.
    """
    found = [read(item) for item in items]
    present = [value for value in found if value is not None]
    if lacking := len(found) - len(present):
        raise DataError(
            f"{lacking} of {len(found)} items have no usable {name!r}",
            field=name, remedy=remedy,
        )  # fmt: skip
    return present


@dataclass(frozen=True, eq=False)
class Units:
    """Items by what they are about: the unit of intervals.

    Attributes:
        keys: ``(k,)`` digests of the units.
        codes: ``(n,)`` unit of each item.
    """

    keys: tuple[str, ...]
    codes: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[str], ctx: RunContext) -> Units:
        """Units by name, case aside."""
        place: dict[str, int] = {}
        codes = tuple(place.setdefault(ctx.digest(name.casefold()), len(place)) for name in names)
        return cls(tuple(place), codes)

    def groups(self, keys: Sequence[str]) -> dict[str, str]:
        """Digest of each item -> digest of its unit."""
        return {key: self.keys[code] for key, code in zip(keys, self.codes, strict=True)}

    def sums(self, rows: Floats) -> Floats:
        """``(k, p)``: rows ``(n, p)`` of the items summed by unit."""
        found = np.zeros((len(self.keys), rows.shape[1]))
        np.add.at(found, np.array(self.codes, dtype=np.intp), rows)
        return found


def score_continuations(
    engine: Engine,
    prompts: Sequence[str],
    continuations: Sequence[str],
    template: Template,
    progress: Progress,
    description: str,
) -> list[TokenScores]:
    """Scores of each continuation after its prompt, in one batched pass.

    Raises:
        AuditError: A continuation comes to no tokens.
    """
    rests = engine.continuations(continuations, template)
    if mute := sum(not rest for rest in rests):
        raise AuditError(
            f"{mute} continuations come to no tokens", remedy="remove these items from the data"
        )
    return engine.score(
        engine.encode(prompts, template), rests, progress=progress, description=description
    )


def per_token(score: TokenScores) -> float:
    """Mean log-probability of a token, nats."""
    return score.total / len(score.log_probs)


def whole_texts(
    engine: Engine, texts: Sequence[str], progress: Progress, description: str
) -> list[tuple[float, int]]:
    """Log-probability of each whole text, nats, and the tokens it is over.

    A text's first token counts where the tokenizer puts a BOS before it, and in no text where
    it does not.

    Raises:
        AuditError: A text has no token to score.
    """
    read = engine.text_nll(texts, engine.context, progress=progress, description=description)
    if mute := sum(not count for _, count in read):
        raise AuditError(
            f"{mute} texts are of fewer than two tokens", remedy="remove these items from the data"
        )
    return [(-nats, count) for nats, count in read]
