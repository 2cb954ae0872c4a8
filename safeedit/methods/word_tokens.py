"""Words that are one token each, so that one step of a model tells how likely they are."""

from __future__ import annotations

from collections.abc import Sequence

from safeedit.contracts import Template
from safeedit.errors import UsageError
from safeedit.model.engine import Engine


def single_tokens(
    engine: Engine,
    words: Sequence[str],
    template: Template,
    field: str = "pronouns",
    *,
    distinct: bool = True,
) -> list[int]:
    """The token of each word as it follows a prompt of that template.

    Args:
        engine: Of the model.
        words: As they are written.
        template: How prompts are put.
        field: Parameter that names the words, for the error.
        distinct: Refuse words that share a token.

    Returns:
        A token id for each word, in their order.

    Raises:
        UsageError: A word is several tokens, or two words are the same one.
    """
    found = engine.continuations(words, template)
    long = [word for word, ids in zip(words, found, strict=True) if len(ids) != 1]
    if long:
        raise UsageError(
            f"this model's tokenizer writes {', '.join(map(repr, long))} as several tokens",
            field=field,
            remedy="name words that are one token each after a prompt, so that one step tells "
            "their probability",
        )
    tokens = [ids[0] for ids in found]
    if distinct and len(set(tokens)) < len(tokens):
        raise UsageError(
            f"two of the {field} are the same token", field=field, remedy="name each once"
        )
    return tokens
