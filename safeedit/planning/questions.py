"""Does the model's chat template put to it what is asked?

A template that drops or shortens the question makes every audit ask the same thing; what was to be
erased is then told by none. The tokenizer is opened for it, and no weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from safeedit.data import Dataset
from safeedit.errors import ModelError
from safeedit.model.sources import open_tokenizer
from safeedit.model.tokens import TokenCodec

_MIDDLE = "town was the person born of whom the letter speaks that was found in the old desk"
_QUESTIONS = (
    f"In which {_MIDDLE} upstairs?",
    f"Near which {_MIDDLE} upstairs?",
    f"In which {_MIDDLE} downstairs?",
)
"""One question, one that differs in its first word alone, and one that differs in its last."""


def check_questions(source: str, revision: str | None, data: Iterable[Dataset]) -> None:
    """See that different questions are put to the model differently.

    Args:
        source: The model, resolved.
        revision: Of a hub model.
        data: Everything that is asked.

    Raises:
        ModelError: Its chat template renders them alike, or the tokenizer can't be opened.
    """
    templates = {each.template for each in data} - {"plain"}
    if not templates:
        return
    codec = TokenCodec(open_tokenizer(source, revision=revision))
    if codec.resolve("auto") == "plain":
        return
    one, other_start, other_end = map(tuple, codec.encode(_QUESTIONS, "chat"))
    if one in (other_start, other_end):
        part = "the question" if one == other_start == other_end else "a part of the question"
        raise ModelError(
            f"its chat template leaves out {part}: the model would be asked the same thing "
            "whatever is asked, and no audit could tell what it knows",
            remedy="mend the template, or ask with 'template: plain'",
        )
