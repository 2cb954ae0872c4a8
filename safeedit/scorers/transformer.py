"""Running a transformers sequence classifier over many texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from safeedit.contracts import Progress
from safeedit.errors import ModelError
from safeedit.model.batching import Batcher, pad_right

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
_BATCH_TOKENS = 8192
_MAX_TOKENS = 512
"""Longer texts are cut: the classifiers there are have seen none."""


def pick_device(device: Device) -> torch.device:
    """The device meant; ``auto`` is a GPU where there is one."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "this machine has no device 'cuda' that torch can use",
            field="device",
            remedy="use auto or cpu",
        )
    return torch.device(device)


def label_scores(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    label: int,
    activation: Literal["sigmoid", "softmax"],
    progress: Progress,
    description: str,
) -> list[float]:
    """Probability of one label for each text, texts of like length together.

    Args:
        model: A ``...ForSequenceClassification`` in evaluation mode.
        tokenizer: Its tokenizer.
        texts: The texts.
        label: Index among the logits.
        activation: What turns logits into probabilities.
        progress: Counts texts.
        description: For ``progress``.

    Raises:
        ModelError: The tokenizer has no padding token.
        AuditError: A text alone does not fit into memory.
    """
    import torch

    pad = tokenizer.pad_token_id
    if pad is None:
        raise ModelError("the classifier has no padding token", remedy="use another classifier")
    if not texts:
        return []
    limit = min(_MAX_TOKENS, tokenizer.model_max_length)
    encoded = tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)
    rows: list[list[int]] = encoded["input_ids"]

    @torch.no_grad()
    def run(batch: list[int]) -> list[float]:
        ids = [rows[index] for index in batch]
        mask = pad_right([[1] * len(row) for row in ids])
        logits = model(
            input_ids=pad_right(ids, pad).to(model.device), attention_mask=mask.to(model.device)
        ).logits.float()
        every = torch.sigmoid(logits) if activation == "sigmoid" else torch.softmax(logits, -1)
        found: list[float] = every[:, label].cpu().tolist()
        return found

    scores = [0.0] * len(texts)
    batches = Batcher(_BATCH_TOKENS).each([len(row) for row in rows], run)
    for index, score in progress(batches, description, len(texts)):
        scores[index] = score
    return scores
