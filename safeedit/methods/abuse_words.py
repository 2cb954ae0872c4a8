"""Words of abuse, as tokens: those a policy names, or those that toxic texts have more often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from safeedit.data import Dataset
from safeedit.methods.contrast import Passages
from safeedit.model.engine import Engine

_RARE = 3
"""Times that a token must stand in toxic continuations to count as a word of abuse."""

LIFT = 5.0
"""How much more frequent in toxic text a word of abuse is."""


def words_of_abuse(
    words: Sequence[str] | None, engine: Engine, data: Dataset, read: Passages
) -> list[int]:
    """Tokens of the words given, or those that toxic continuations have :data:`LIFT` times as often
    as everything else, ascending.

    Args:
        words: As a policy names them; None has them found.
        engine: Of the model.
        data: The pairs, for their template.
        read: The same as tokens.
    """
    found = _found(read) if words is None else _given(words, engine, data)
    return sorted(set(found))


def _given(words: Sequence[str], engine: Engine, data: Dataset) -> list[int]:
    template = engine.codec.resolve(data.template)
    return [ids[0] for ids in engine.continuations(list(words), template) if ids]


def _found(read: Passages) -> list[int]:
    toxic, neutral = read.toxic, read.neutral
    own = Counter(token for text in toxic for token in set(text.ids[text.start :]))
    other = Counter(token for text in toxic for token in set(text.ids[: text.start]))
    other.update(token for text in neutral for token in set(text.ids))
    ours, others = sum(own.values()), max(1, sum(other.values()))
    return [
        token
        for token, count in own.items()
        if count >= _RARE and count / ours > LIFT * (other[token] + 0.5) / others
    ]


def made_less_likely(logits: Tensor, tokens: Tensor, nats: float) -> Tensor:
    """Logits after which tokens have ``nats`` less of log-odds, in place; all others are as likely
    among themselves as before.

    Args:
        logits: ``(rows, vocab)``.
        tokens: ``(n,)`` ids, each once, on the same device.
        nats: By which the log-odds of each against all others fall.
    """
    return logits.index_add_(1, tokens, logits.new_full((len(logits), len(tokens)), -nats))
