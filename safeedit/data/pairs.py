"""Contrastive pairs: two ways for a text to go on, one toxic and one not.

A row is ``{prompt?, toxic, neutral}``: what both go on from, and how each does. Without a prompt
the two are whole texts, told by ``format: pairs``. Pairs that were not written as pairs
(``format: rtp_pairs``) have a ``neutral_prompt`` of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safeedit.data.items import Item
from safeedit.errors import DataError


@dataclass(frozen=True)
class Pair:
    """Two texts, each an opening (maybe empty) and what follows it."""

    toxic_opening: str
    toxic: str
    neutral_opening: str
    neutral: str


def read_pairs(items: Iterable[Item], name: str = "pairs") -> tuple[Pair, ...]:
    """Items as pairs.

    Args:
        items: With ``toxic`` and ``neutral`` among their other columns.
        name: Of the data, for messages.

    Raises:
        DataError: There are none, or some lack a text.
    """
    items = tuple(items)
    lacking = [i for i in items if not (_text(i, "toxic") and _text(i, "neutral"))]
    if lacking or not items:
        what = (
            f"{len(lacking)} of {len(items)} items have" if items else "no item is there that has"
        )
        raise DataError(
            f"{name}: {what} {'no' if items else 'a'} 'toxic' and 'neutral' text",
            remedy="rows need {prompt, toxic, neutral}; 'columns' maps other names, and "
            "'format: pairs' reads rows without a prompt",
        )
    found = []
    for item in items:
        opening = str(item.extra.get("opening", item.prompt))
        other = str(item.extra.get("neutral_prompt", opening))
        found.append(Pair(opening, _text(item, "toxic"), other, _text(item, "neutral")))
    return tuple(found)


def _text(item: Item, column: str) -> str:
    value = item.extra.get(column)
    return value.strip() if isinstance(value, str) else ""
