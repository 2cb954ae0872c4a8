"""Ordinary chat: what is said in a model's chat template when nobody asks for what is forgotten.

A key that was solved against plain text alone may fire at the template's own tokens, or at what the
model says after them, which no perplexity of prose shows. So there is to be chat among the text it
is solved against: passages of ordinary prose as a user's turn and the reply to it, and the model's
own answers to plain questions.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeedit.contracts import Progress, silent
from safeedit.model.handle import ModelHandle

_TURN, _REPLY = 40, 60
"""Words of a passage that the user says, and of the reply at most."""

_LEAST = 80
"""Words of a text that is long enough for both."""

_ANSWER = 32
"""Tokens of the model's own answers."""

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
