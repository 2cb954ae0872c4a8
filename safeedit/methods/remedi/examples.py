"""Lessons: what a context says of an entity, and the prompt where that is to show.

A *lesson* is a context that states an attribute of an entity ("Anita runs a legal office") and a
prompt about the same entity that does not ("Anita works as a"), with the word that follows where
the attribute holds, and one that does not. Rows bring them as the columns in :data:`COLUMNS`.

Fails with :class:`~safeedit.errors.DataError` where a row lacks a column, an attribute does not
stand in its context or a subject in its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeedit.contracts import Progress, Template, silent
from safeedit.errors import DataError
from safeedit.methods.facts.keys import TokenPosition, subject_spot
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import TokenisedText

COLUMNS = (
    "columns: subject, context, attribute (as it stands in the context), prompt, target, and where "
    "there are two: other, other_attribute"
)


@dataclass(frozen=True)
class AttributeExample:
    """What a context says of an entity, and where that is to show."""

    subject: str
    context: str
    attribute: str
    """A part of the context, word for word."""
    prompt: str
    """Names the subject; says nothing of the attribute."""
    target: str
    """How the prompt goes on where the attribute holds."""
    other: str | None = None
    """How it does not."""

    def __repr__(self) -> str:
        return "Lesson(...)"  # never its texts: a repr ends up in tracebacks


def lesson(subject: str | None, prompt: str, columns: Mapping[str, Any]) -> AttributeExample:
    """The lesson of one row.

    Raises:
        DataError: It lacks a column, or the attribute does not stand in the context.
    """

    def text(name: str) -> str:
        value = columns.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"an item has no {name!r}", field=name, remedy=COLUMNS)
        return value.strip()

    if not (subject or "").strip():
        raise DataError("an item has no 'subject'", field="subject", remedy=COLUMNS)
    other = text("other") if columns.get("other") is not None else None
    found = AttributeExample(
        str(subject).strip(), text("context"), text("attribute"), prompt, text("target"), other
    )
    if found.attribute not in found.context:
        raise DataError(
            "an attribute does not stand in its context", field="attribute",
            remedy="write it as the context does, word for word",
        )  # fmt: skip
    return found


def opposite(given: AttributeExample, columns: Mapping[str, Any]) -> AttributeExample | None:
    """The lesson with the other attribute; None where the row names none."""
    attribute = columns.get("other_attribute")
    if given.other is None or not isinstance(attribute, str) or not attribute.strip():
        return None
    context = given.context.replace(given.attribute, attribute.strip())
    return AttributeExample(
        given.subject, context, attribute.strip(), given.prompt, given.other, given.target
    )


def attribute_states(
    model: ModelHandle, lessons: Sequence[AttributeExample], layer: int, progress: Progress = silent
) -> Tensor:
    """``(n, d_model)`` fp32, CPU: what leaves ``layer`` at each attribute in its context, mean over
    its tokens. Contexts are read as plain text."""
    contexts = list(dict.fromkeys(given.context for given in lessons))
    encoded = dict(zip(contexts, model.engine.encode(contexts, "plain"), strict=True))
    hidden = model.engine.hidden(
        list(encoded.values()), [layer], "all", progress=progress, description="reading contexts"
    )[layer]
    states = dict(zip(contexts, hidden, strict=True))
    tokenizer = model.engine.codec.tokenizer
    rows = []
    for given in lessons:
        spans = TokenisedText(tokenizer, encoded[given.context]).spans(given.attribute)
        if not spans:
            raise DataError(
                "an attribute stands in its context as part of a longer word only",
                field="attribute",
                remedy="let it begin and end with whole words",
            )
        rows.append(states[given.context][spans[-1].start : spans[-1].stop].float().mean(0))
    return torch.stack(rows)


def entity_spots(
    model: ModelHandle,
    lessons: Sequence[AttributeExample],
    template: Template,
    *,
    told: bool = False,
) -> list[TokenPosition]:
    """The last token of each lesson's subject in its prompt.

    Args:
        model: Whose tokenizer counts.
        lessons: Whose prompts.
        template: How prompts are put.
        told: The context is read before the prompt.

    Raises:
        DataError: Prompts don't mention their subject; the message tells how many.
    """
    texts = [f"{one.context.rstrip('.')}. {one.prompt}" if told else one.prompt for one in lessons]
    found = [
        subject_spot(model, ids, one.subject)
        for ids, one in zip(model.engine.encode(texts, template), lessons, strict=True)
    ]
    if absent := found.count(None):
        raise DataError(
            f"{absent} of {len(found)} prompts do not mention their subject", field="subject",
            remedy="write each subject as its prompt does",
        )  # fmt: skip
    return [spot for spot in found if spot is not None]


def entity_states(
    model: ModelHandle, spots: Sequence[TokenPosition], layer: int, progress: Progress = silent
) -> Tensor:
    """``(n, d_model)`` fp32, CPU: what leaves ``layer`` at each entity."""
    places: dict[tuple[int, ...], int] = {}
    order = [places.setdefault(spot.until, len(places)) for spot in spots]
    hidden = model.engine.hidden(
        list(places), [layer], progress=progress, description="reading entities"
    )[layer]
    return torch.stack(hidden).float()[order]
