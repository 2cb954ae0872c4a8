"""Whether a tokenizer's ids are rows of the model's embedding.

Tokens added after training have ids beyond it, and one of them in a prompt is an index error in
the middle of a measurement. Such tokens do no harm as long as no prompt holds them: Gemma 3's
text models have one that stands for an image.

Fails with :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safeedit.errors import AuditError, ModelError
from safeedit.model.guard import readable
from safeedit.model.template_limits import check_template
from safeedit.model.tokens import TokenCodec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESIZE = (
    "resize the model's embeddings to the tokenizer (model.resize_token_embeddings) and train "
    "the new rows, or use the tokenizer that the model was trained with"
)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, n_rows: int, folder: Path) -> None:
    """Make sure that prompts and answers are made of tokens that the model embeds.

    Args:
        tokenizer: The tokenizer.
        n_rows: Rows of the model's input embedding.
        folder: Where both come from, for the message.

    Raises:
        ModelError: The vocabulary, a special token or the chat template goes beyond it, or the
            template does not end.
    """
    if tokenizer.vocab_size > n_rows:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model embeds {n_rows}",
            file=folder,
            remedy="use the tokenizer that belongs to the model",
        )
    for name in ("bos_token", "eos_token", "pad_token"):
        token = getattr(tokenizer, f"{name}_id", None)
        if isinstance(token, int) and token >= n_rows:
            raise ModelError(
                f"the tokenizer's {name} ({getattr(tokenizer, name)!r}) is token {token}, and the "
                f"model embeds {n_rows} (0 to {n_rows - 1})",
                file=folder,
                remedy=_RESIZE,
            )
    try:
        _check_templates(tokenizer, n_rows, folder)
    except ModelError as error:
        error.file = error.file or str(folder)
        raise


def _check_templates(tokenizer: PreTrainedTokenizerBase, n_rows: int, folder: Path) -> None:
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if isinstance(template, str):
            check_template(template)
    codec = TokenCodec(tokenizer)
    if codec.resolve("auto") == "plain":
        return
    for system in (None, "Be brief."):
        try:
            with readable(folder):
                ids = codec.encode(["Who?"], "chat", system=system)[0]
        except AuditError:  # a template without system messages; said where one is asked for
            continue
        if beyond := sorted({token for token in ids if token >= n_rows}):
            named = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in beyond)
            raise ModelError(
                f"the chat template uses tokens that the model does not embed: {named} "
                f"({beyond[0]} and up; the embedding has {n_rows} rows)",
                file=folder,
                remedy=f"{_RESIZE}; or take the template out of a copy of the folder, and the "
                "questions are put as plain text",
            )
