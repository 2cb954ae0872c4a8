"""Between text and token ids: templates, the one BOS, and how answers follow prompts.

A prompt is put to a model in one of two ways: ``chat`` renders the tokenizer's own template,
``plain`` takes the text as it is; ``auto`` is ``chat`` where there is a template. Answers are
tokenised as they would follow a prompt, which for most tokenizers is not the same as alone. Where
a template has the model think first, see :mod:`safeedit.model.thinking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from safeedit.contracts import Template
from safeedit.errors import AuditError, ModelError, UsageError
from safeedit.model.template_limits import check_template, under_a_clock
from safeedit.model.thinking import SWITCHES, closed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RENDERING: dict[str, Any] = {
    **SWITCHES,
    # Llama 3 would put today's date into the prompt, and figures would change overnight.
    "date_string": "26 Jul 2024",
}


class TokenCodec:
    """A tokenizer, used one way everywhere.

    Args:
        tokenizer: Of the model.
        n_embedded: Rows of the model's embedding; tokens beyond are an error. None: not checked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, n_embedded: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.n_embedded = n_embedded
        self._lead = cache(self._find_lead)

    def resolve(self, template: Template) -> Literal["chat", "plain"]:
        """What ``auto`` means for this tokenizer.

        Raises:
            UsageError: ``chat`` was asked for and there is no template.
        """
        has_chat = bool(getattr(self.tokenizer, "chat_template", None))
        if template == "chat" and not has_chat:
            raise UsageError(
                "the tokenizer has no chat template",
                field="template",
                remedy="use template: plain, or auto",
            )
        return "chat" if has_chat and template != "plain" else "plain"

    def encode(
        self,
        texts: Sequence[str],
        template: Template = "auto",
        *,
        system: str | None = None,
        answer_prefix: str = "",
    ) -> list[list[int]]:
        """Token ids of prompts, ready to be answered; BOS stands first at most once."""
        if self.resolve(template) == "plain":
            before = f"{system}\n\n" if system else ""
            after = f" {answer_prefix}" if answer_prefix else ""
            return [
                self._with_bos(ids) for ids in self.token_ids([before + t + after for t in texts])
            ]
        return self.token_ids([self._render(text, system) + answer_prefix for text in texts])

    def running(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of running texts, which nobody asks; BOS stands first at most once."""
        return [self._with_bos(ids) for ids in self.token_ids(texts)]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template has a place for a system message."""
        mark = "Be brief, please."
        try:
            return mark in self._render("Q?", mark)
        except AuditError:
            return False

    def continuation(self, text: str, template: Template = "auto") -> list[int]:
        """Token ids of an answer as it follows a prompt of that template.

        Plain text gets the space that parts it from the prompt. In chat it gets what the
        template puts between prompt and answer, mostly nothing.
        """
        return self.continuations([text], template)[0]

    def continuations(self, texts: Sequence[str], template: Template = "auto") -> list[list[int]]:
        """:meth:`continuation` of many answers, far faster than one by one."""
        before, lead = self._lead(self.resolve(template))
        # In context, since tokenizers treat the start of a text specially.
        start, *wholes = self.token_ids([before, *(before + lead + text for text in texts)])
        alone = [
            text for text, whole in zip(texts, wholes, strict=True) if not _begins(whole, start)
        ]
        apart = iter(self.token_ids([lead + text for text in alone]))
        return [w[len(start) :] if _begins(w, start) else next(apart) for w in wholes]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """What this tokenizer puts before plain text: BOS, or nothing."""
        bare = self.token_ids(["a"])[0]
        dressed: list[int] = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        for start in range(len(dressed) - len(bare) + 1):
            if dressed[start : start + len(bare)] == bare:
                return tuple(dressed[:start])
        return ()

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = list(self.bos)
        return ids if bos and ids[: len(bos)] == bos else bos + ids

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        found = [list(ids) for ids in encoded["input_ids"]]
        if self.n_embedded is not None:
            largest = max((max(ids, default=0) for ids in found), default=0)
            if largest >= self.n_embedded:
                raise AuditError(
                    f"a text holds token {largest}, which was added to the tokenizer and which the "
                    f"model does not embed (it has rows 0 to {self.n_embedded - 1})",
                    remedy="take the token's text out of the data, or resize the model's "
                    "embeddings to the tokenizer",
                )
        return found

    def _render(self, text: str, system: str | None = None, answer: str | None = None) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        rendered = self._apply(messages, _RENDERING)
        return rendered if answer is not None else self._past_thought(rendered, text)

    def _apply(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
        """A conversation in the template, to be gone on from unless it ends in an answer."""
        templates = self.tokenizer.chat_template
        for template in templates.values() if isinstance(templates, dict) else [templates]:
            check_template(template)
        try:
            with under_a_clock():
                rendered = self.tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=messages[-1]["role"] != "assistant",
                    **variables,
                )
        except ModelError:
            raise
        except Exception as error:  # jinja's own, and what templates raise of their own accord
            system = messages[0]["role"] == "system"
            about = " with a system message" if system else ""
            raise AuditError(
                f"the chat template can't render a conversation{about}: {error}",
                remedy="use template: plain"
                + (", or leave the system message out" if system else ""),
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def _past_thought(self, prompt: str, text: str) -> str:
        """A rendered prompt, with a block of thought that it leaves open closed."""
        # What follows the question: in it, marks are the question's own. Some templates trim it.
        after = prompt.rpartition(text.strip())[2] if text.strip() else prompt
        return closed(prompt, after, str(getattr(self.tokenizer, "chat_template", None) or ""))

    @cached_property
    def thinks(self) -> bool:
        """Whether the chat template would have the model think before it answers."""
        if self.resolve("auto") != "chat":
            return False
        asked = [{"role": "user", "content": "Q?"}]
        bare = {name: value for name, value in _RENDERING.items() if name not in SWITCHES}
        return self._render("Q?") != self._apply(asked, bare)

    def _find_lead(self, template: Literal["chat", "plain"]) -> tuple[str, str]:
        """Text that ends as a prompt does, and what comes between it and an answer."""
        if template == "plain":
            return "Answer:", " "
        answer = "Yes"
        try:
            prompt, whole = self._render("Q?"), self._render("Q?", answer=answer)
        except AuditError:  # templates that want no answer from us
            return self._render("Q?"), ""
        between = whole.removeprefix(prompt).partition(answer)[0]
        return prompt, between if whole.startswith(prompt) else ""


def _begins(ids: list[int], start: list[int]) -> bool:
    return ids[: len(start)] == start
