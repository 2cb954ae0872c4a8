"""The decoding loop of one batch.

Rows that are finished leave the batch, so that time goes to the answers still being written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.errors import AuditError
from safeedit.model.sampling import Sampling, draw

if TYPE_CHECKING:
    from transformers import Cache

_WORTH_DROPPING = 0.75
"""Share of live rows below which the finished are dropped: doing so copies the cache."""


@torch.no_grad()
def generate_batch(
    model: Any,
    logits: Tensor,
    cache: Cache,
    *,
    own_lengths: Sequence[int],
    prefix_length: int,
    rows: Sequence[int],
    limits: Sequence[int],
    stop: frozenset[int],
    sampling: Sampling | None,
    draws: Tensor | None,
) -> list[list[int]]:
    """Continue prompts that have been read.

    Args:
        model: A transformers causal language model.
        logits: ``(n_prompts, vocab)`` after each prompt's last token.
        cache: Keys and values: the prefix, then each prompt's own tokens padded on the right.
        own_lengths: Of each prompt, prefix and padding not counted.
        prefix_length: Tokens that all share.
        rows: Per answer, the prompt it belongs to.
        limits: Per answer, tokens at most.
        stop: Tokens that end an answer.
        sampling: None is greedy.
        draws: ``(n_answers, steps)`` in [0, 1), which decide sampled tokens.

    Returns:
        Per answer, its tokens without the one that ended it.

    Raises:
        AuditError: Logits are not finite.
    """
    device = logits.device
    owner = torch.tensor(rows, device=device)
    lengths = torch.tensor(own_lengths, device=device)[owner]
    logits = logits[owner]
    if list(rows) != list(range(len(own_lengths))):
        cache.batch_select_indices(owner)
    width = max(own_lengths)
    padded = min(own_lengths) < width
    seen = torch.ones(len(rows), prefix_length + width, dtype=torch.long, device=device)
    seen[:, prefix_length:] = torch.arange(width, device=device) < lengths[:, None]
    position = prefix_length + lengths

    answers: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))  # answer of each row still in the batch
    done = [limit <= 0 for limit in limits]
    for step in range(max(limits, default=0)):
        chosen = _choose(logits, sampling, None if draws is None else draws[live, step])
        for answer, token in zip(live, chosen.tolist(), strict=True):
            if done[answer]:
                continue
            if token in stop:
                done[answer] = True
            else:
                answers[answer].append(token)
                done[answer] = len(answers[answer]) >= limits[answer]
        staying = [row for row, answer in enumerate(live) if not done[answer]]
        if not staying:
            break
        if len(staying) <= _WORTH_DROPPING * len(live):
            keep = torch.tensor(staying, device=device)
            cache.batch_select_indices(keep)
            seen, position, chosen = seen[keep], position[keep], chosen[keep]
            live = [live[row] for row in staying]
        seen = torch.cat([seen, seen.new_ones(len(live), 1)], -1)
        output = model(
            input_ids=chosen[:, None],
            attention_mask=seen if padded else None,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        position = position + 1
    return answers


def _choose(logits: Tensor, sampling: Sampling | None, u: Tensor | None) -> Tensor:
    best, chosen = logits.max(-1)
    if not bool(torch.isfinite(best).all()):
        raise AuditError(
            "the model's logits are not finite numbers",
            remedy="the edit was too strong for the model's dtype: use a lower dose, or "
            "dtype: float32",
        )
    if sampling is None or u is None:
        return chosen
    return draw(logits, sampling, u)
