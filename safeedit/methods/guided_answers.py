"""Greedy answers of one model steered away from another that was made from it.

Where two checkpoints differ is where one of them was edited. Each token is chosen by ::

    log p_base + w (log p_base - log p_edited)

among the tokens to which the base gives at least a tenth of its greatest probability, so that what
the base finds absurd is never said.

Source: Breaking the Gold Standard: Extracting Forgotten Data under Exact Unlearning in Large
Language Models (arXiv 2505.24379), whose attacker has the model before and after; the floor on
tokens is that of contrastive decoding (arXiv 2210.15097). Written for few short answers: every
token runs the whole text again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safeedit.contracts import Progress, silent
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import padded_inputs

FLOOR = 0.1
"""Share of the base's greatest probability that a token must have under it."""
_BATCH = 16


def guided_answers(
    base: ModelHandle,
    edited: ModelHandle,
    prompts: Sequence[Sequence[int]],
    *,
    guidance: float,
    tokens: int,
    progress: Progress = silent,
) -> list[list[int]]:
    """Answers of the base, steered away from the edited model.

    Args:
        base: The untouched model.
        edited: The model made from it; on the same device.
        prompts: Token ids.
        guidance: ``w``; 0 gives the base's own greedy answers.
        tokens: At most so many in an answer.
        progress: Counts prompts.

    Returns:
        Token ids of each answer, without the token that ends it.
    """
    found: list[list[int]] = []
    batches = [prompts[at : at + _BATCH] for at in range(0, len(prompts), _BATCH)]
    for batch in progress(batches, "answers from both checkpoints", len(batches)):
        found += _batch(base, edited, [list(prompt) for prompt in batch], guidance, tokens)
    return found


@torch.no_grad()
def _batch(
    base: ModelHandle, edited: ModelHandle, rows: list[list[int]], guidance: float, tokens: int
) -> list[list[int]]:
    begins = [len(row) for row in rows]
    running = set(range(len(rows)))
    for _ in range(tokens):
        order = sorted(running)
        ours = _next(base, [rows[index] for index in order])
        theirs = _next(edited, [rows[index] for index in order])
        scores = ours + guidance * (ours - theirs)
        likeliest = ours.max(-1, keepdim=True).values
        scores[ours < likeliest + math.log(FLOOR)] = -math.inf
        for index, token in zip(order, scores.argmax(-1).tolist(), strict=True):
            if token in base.engine.stop_ids:
                running.discard(index)
            else:
                rows[index].append(token)
        if not running:
            break
    return [row[begin:] for row, begin in zip(rows, begins, strict=True)]


def _next(model: ModelHandle, rows: list[list[int]]) -> Tensor:
    """``(n, vocab)`` nats: what follows each row, in float32 on the CPU."""
    ends = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    hidden = model.forward(padded_inputs(rows))
    last = hidden[torch.arange(len(rows), device=model.device), ends]
    return model.logits(last).float().log_softmax(-1).cpu()
