"""What an operator puts before every question, in place of a change of the weights.

A :class:`Preface` is a system message, words before the question, or both. Within
:func:`prefaced` every prompt that the engine encodes gets it, whoever asks; running text that is
read for a perplexity has no question and gets none. It holds what is to be suppressed: it is in
memory only, and never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from safeedit.contracts import Template
from safeedit.model.engine import Engine
from safeedit.model.tokens import TokenCodec


def _nothing(text: str) -> str:
    return ""


@dataclass(frozen=True)
class Preface:
    """What stands before every question.

    Attributes:
        name: Of the baseline.
        key: Keyed digest of all that it may put there.
        system: The system message; empty where it has none. A template that knows no system
            messages has it before the question.
        before: Question -> what stands before it, with the blank that parts the two.
    """

    name: str
    key: str
    system: str = field(default="", repr=False)
    before: Callable[[str], str] = field(default=_nothing, repr=False)


class PrefacedCodec(TokenCodec):
    """A codec that puts a preface before every prompt.

    Args:
        codec: The model's own.
        preface: What is put there.
    """

    def __init__(self, codec: TokenCodec, preface: Preface) -> None:
        super().__init__(codec.tokenizer, codec.n_embedded)
        self._preface = preface

    def encode(
        self,
        texts: Sequence[str],
        template: Template = "auto",
        *,
        system: str | None = None,
        answer_prefix: str = "",
    ) -> list[list[int]]:
        own, front = self._preface.system, ""
        if own and self.resolve(template) == "chat" and not self.takes_system:
            own, front = "", f"{own}\n\n"
        return super().encode(
            [f"{front}{self._preface.before(text)}{text}" for text in texts],
            template,
            system="\n\n".join(filter(None, (own, system))) or None,
            answer_prefix=answer_prefix,
        )


@contextmanager
def prefaced(engine: Engine, preface: Preface) -> Iterator[None]:
    """Within it, the engine puts a preface before every prompt that it encodes."""
    own = engine.codec
    engine.codec, engine.preface = PrefacedCodec(own, preface), preface.key
    try:
        yield
    finally:
        engine.codec, engine.preface = own, ""
