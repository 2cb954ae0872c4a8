"""Does the model's chat template put to it what is asked?

A template that drops or shortens the question makes every audit ask the same thing; what was to be
erased is then told by none. The tokenizer shows it, without any weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from safeedit.data import Dataset
from safeedit.errors import ModelError
from safeedit.model.tokens import TokenCodec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MIDDLE = "town was the person born of whom the letter speaks that was found in the old desk"
_QUESTIONS = (
    f"In which {_MIDDLE} upstairs?",
    f"Near which {_MIDDLE} upstairs?",
    f"In which {_MIDDLE} downstairs?",
)
"""One question, one that differs in its first word alone, and one that differs in its last."""


def check_questions(tokenizer: PreTrainedTokenizerBase, data: Iterable[Dataset]) -> None:
    """See that different questions are put to the model differently.

    Args:
        tokenizer: The model's.
        data: Everything that is asked.

    Raises:
        ModelError: Its chat template renders them alike.
    """
    templates = {each.template for each in data} - {"plain"}
    if not templates:
        return
    codec = TokenCodec(tokenizer)
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
