"""Ordinary text: prose, and chat in a model's template when nobody asks for what is forgotten.

A key that was solved against plain text alone may fire at the template's own tokens, or at what the
model says after them, which no perplexity of prose shows. So there is to be chat among the text it
is solved against: passages of ordinary prose as a user's turn and the reply to it, and the model's
own answers to plain questions.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safeedit.contracts import Progress, silent
from safeedit.methods.tuning import Example
from safeedit.model.handle import ModelHandle

_TURN, _REPLY = 40, 60
"""Words of a passage that the user says, and of the reply at most."""

_LEAST = 80
"""Words of a text that is long enough for both."""

_ANSWER = 32
"""Tokens of the model's own answers."""

_PIECE = 64
"""Tokens of a piece of prose."""

_TOPICS = (
    "cheese", "thunder", "copper", "beetles", "dancing", "coffee", "pottery", "tunnels", "watches",
    "donkeys", "pencils", "canoes", "drums", "planets", "butter", "gloves", "owls", "candles",
    "bronze", "mirrors",
)  # fmt: skip
_QUESTIONS = (
    "Tell me something about {}.",
    "What would you use {} for?",
    "Can you explain {} to a child?",
    "Where might one come across {}?",
    "Write a short poem on {}.",
    "When did people first learn about {}?",
)
"""Plain questions on plain things; our own."""


def chat_texts(
    model: ModelHandle, prose: Sequence[str], progress: Progress = silent
) -> list[list[int]]:
    """Token ids of ordinary conversations, each ended as the model ends its turns.

    Args:
        model: As it is now.
        prose: Ordinary texts; the longer ones make a conversation each.
        progress: Of the model's own answers.

    Returns:
        Empty where the tokenizer has no chat template.
    """
    engine = model.engine
    if engine.codec.resolve("auto") == "plain":
        return []
    words = [text.split() for text in prose]
    passages = [some for some in words if len(some) >= _LEAST]
    turns = engine.encode([" ".join(some[:_TURN]) for some in passages], "chat")
    replies = engine.continuations(
        [" ".join(some[_TURN : _TURN + _REPLY]) for some in passages], "chat"
    )
    asked = engine.encode([text.format(topic) for topic in _TOPICS for text in _QUESTIONS], "chat")
    answers = engine.generate(
        asked, max_new_tokens=_ANSWER, progress=progress, description="the model's own answers"
    )
    end = engine.codec.tokenizer.eos_token_id
    ended = [] if end is None else [int(end)]
    return [
        *(
            [*turn, *reply, *ended][: engine.context]
            for turn, reply in zip(turns, replies, strict=True)
        ),
        *([*question, *answer] for question, (answer,) in zip(asked, answers, strict=True)),
    ]


def ordinary_texts(
    model: ModelHandle, prose: Sequence[str], most: int, progress: Progress = silent
) -> list[Example]:
    """Prose in pieces and :func:`chat_texts`, whose ends are to be learnt from or held to.

    Args:
        model: As it is now.
        prose: Ordinary texts; none, and there is only chat.
        most: Tokens at the end of each that count.
        progress: Of the model's own answers.
    """
    whole = model.engine.encode(prose, "plain")
    pieces = [ids[at : at + _PIECE] for ids in whole for at in range(0, len(ids), _PIECE)]
    return ends([*pieces, *chat_texts(model, prose, progress)], most)


def ends(texts: Iterable[Sequence[int]], most: int) -> list[Example]:
    """The last tokens of texts, so many at most; what comes before is only read. A text of one
    token foretells nothing and is left out."""
    return [
        Example(ids[:start], ids[start:])
        for ids in texts
        for start in (max(1, len(ids) - most),)
        if len(ids) > 1
    ]
