"""What is put to the model, seen with its tokenizer before a weight is loaded.

A prompt that the model's context can't hold ends a run in its middle, one that leaves no room for
an answer reads as "not told", and a template that can't be rendered or that has the model think
first changes what is asked. All of it shows in the tokenizer and the config.

Fails with :class:`~safeedit.errors.DataError` or :class:`~safeedit.errors.UsageError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safeedit.contracts import BaseParams, PutPrompts, Template
from safeedit.data import Dataset, Item
from safeedit.errors import AuditError, DataError, UsageError
from safeedit.model.tokens import TokenCodec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_IN_PIECES = frozenset({"prose", "generic"})
"""Roles whose texts are read in windows, however long they are: what does not fit into one is read
in the next, or left out by design."""
_PUT_OTHERWISE = frozenset({"pairs", "items", "sentences", "lessons"})
"""Roles whose items are not put as they stand: a text of them that is longer than the context is
told, since what becomes of it is for the stage to say."""
_CONTINUATIONS = ("toxic", "neutral", "more", "less", "stereotype", "anti_stereotype", "unrelated")
"""Columns of such roles that are put to the model, alone or after the prompt."""
_MARGIN = 8
"""Tokens beyond one a byte that a tokenizer may add to a text of its own accord."""

THINKS = (
    "the model's chat template has it think before it answers: questions are asked, and answers "
    "taught, behind an empty block of thought; what it would say while thinking is not measured"
)

PLAIN = (
    "the model has no chat template: prompts without a 'template' are put as plain text, to be "
    "gone on with; say 'template: plain' where that is meant"
)


class PromptCheck:
    """Looks at the prompts of one plan, stage by stage; each data set once.

    Args:
        tokenizer: Of the model.
        config: Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        self.codec = TokenCodec(tokenizer)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.context = int(limit) if isinstance(limit, int) and limit > 0 else None
        self.warnings: list[str] = []
        self._frames: dict[str, int] = {}

    def __call__(self, stage: str, role: str, data: Dataset, params: BaseParams) -> None:
        """Check what one stage asks of one role.

        Args:
            stage: Id of the edit or audit, for messages.
            role: Name of the role.
            data: Its data.
            params: Of the stage; ``max_new_tokens`` counts, where it has one.

        Raises:
            UsageError: The template is not there or can't be rendered.
            DataError: A prompt leaves no room in the model's context.
        """
        if role in _IN_PIECES:
            return
        if role in _PUT_OTHERWISE:
            self._tell_long(stage, role, data)
            return
        frame = self._frame(data.template)
        if self.codec.resolve(data.template) == "chat" and self.codec.thinks:
            self._warn(THINKS)
        if data.template == "auto" and self.codec.resolve("auto") == "plain":
            self._warn(PLAIN)
        texts = _texts(data)
        if braced := sum("{}" in text for text in texts):
            self._warn(
                f"{data.source}: {braced} of {len(texts)} prompts hold '{{}}' as written; give "
                "such a row its subject, or write the name in its prompt"
            )
        if self.context is not None:
            new = getattr(params, "max_new_tokens", None)
            self._measure(stage, role, data.template, texts, frame, new)

    def of_attack(
        self, stage: str, role: str, attack: str, put: PutPrompts, params: BaseParams
    ) -> None:
        """Check what an audit makes of its questions: an attack's prompts are longer than they are.

        Args:
            stage: Id of the audit, for messages.
            role: Name of the role whose questions they are.
            attack: Its name, for messages.
            put: What is put, and how.
            params: As in :meth:`__call__`.

        Raises:
            DataError: A prompt leaves no room in the model's context.
        """
        if self.context is not None:
            frame, new = self._frame(put.template), getattr(params, "max_new_tokens", None)
            name = f"{role}, attack {attack}"
            self._measure(stage, name, put.template, list(put.texts), frame, new)

    def _tell_long(self, stage: str, role: str, data: Dataset) -> None:
        if self.context is None:
            return
        texts = [
            item.prompt + max((_text(item, name) for name in _CONTINUATIONS), key=len)
            for item in data
        ]
        long = [text for text in texts if len(text.encode()) > self.context - _MARGIN]
        counts = [len(ids) for ids in self.codec.encode(long, "plain")]
        if over := [count for count in counts if count > self.context]:
            self._warn(
                f"{len(over)} of {len(texts)} texts of {stage}: {role} are longer than the model's "
                f"context of {self.context} tokens, the longest {max(over)}: they are read in "
                "pieces where that makes sense, and end the run where it does not; shorten them"
            )

    def _frame(self, template: Template) -> int:
        """Tokens that a template puts around a prompt."""
        if template not in self._frames:
            try:
                (ids,) = self.codec.encode(["Q?"], template)
            except AuditError as error:
                raise UsageError(error.message, field="template", remedy=error.remedy) from None
            self._frames[template] = len(ids)
        return self._frames[template]

    def _measure(
        self,
        stage: str,
        role: str,
        template: Template,
        texts: list[str],
        frame: int,
        new: int | None,
    ) -> None:
        assert self.context is not None
        # No tokenizer makes more tokens of a text than it has bytes, so that most need no look.
        room = self.context - frame - _MARGIN - (new or 0)
        long = [text for text in texts if len(text.encode()) > room]
        counts = [len(ids) for ids in self.codec.encode(long, template)]
        if over := [count for count in counts if count >= self.context]:
            raise DataError(
                f"{len(over)} of {len(texts)} prompts of {stage}: {role} leave no room for an "
                f"answer: the longest has {max(over)} tokens, and the model's context "
                f"{self.context}",
                remedy="shorten them, or use a model with a longer context",
            )
        cut = [count for count in counts if new and count + new > self.context]
        if cut:
            assert new is not None
            self._warn(
                f"{len(cut)} of {len(texts)} prompts of {stage}: {role} leave less than "
                f"max_new_tokens ({new}) for an answer in the model's context of {self.context} "
                f"tokens; the longest has {max(cut)}"
            )

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def _texts(data: Dataset) -> list[str]:
    """What is put to the model, in every split that is in reach."""
    if not data.erased:
        return [item.prompt for item in data]
    texts: dict[str, None] = {}
    for item in data:
        texts.update(dict.fromkeys((item.prompt, *item.paraphrases)))
    return list(texts)


def _text(item: Item, column: str) -> str:
    value = item.extra.get(column)
    return value if isinstance(value, str) else ""
