"""What is learnt from logits, a chunk of tokens at a time.

A row of the vocabulary per token of a batch is what fills memory where the vocabulary is large:
1,024 tokens times 262,144 logits are 1 GiB in float32, and a loss keeps several such tables until
its gradient is taken. Here logits are made from hidden states chunk by chunk and, where there are
several chunks, made again for the gradient (gradient checkpointing, arXiv:1604.06174), so that one
chunk's are alive at a time. What fits into one chunk is computed once, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from safeedit.model import batching


def chunked(
    read: Callable[..., Tensor], counts: Sequence[int], vocab: int, *rows: Tensor
) -> Tensor:
    """``(owners,)`` what ``read`` makes of each owner's rows, and its gradient.

    Args:
        read: ``read(owners, *rows)``: given the numbers of some owners and their rows, it computes
            their logits and returns one number per owner. It must give the same when it is called
            again.
        counts: Rows of each owner, in order: tokens are the owners of one row each, or examples
            those of several, where a loss needs them together.
        vocab: Logits per row.
        rows: ``(sum(counts), ...)`` tensors, such as the hidden states, split between the calls.
    """
    chunks = list(_chunks(counts, max(1, batching.MAX_LOGITS // vocab)))
    sizes = [sum(counts[owner] for owner in chunk) for chunk in chunks]
    split = zip(*(each.split(sizes) for each in rows), strict=True)
    if len(chunks) < 2 or not torch.is_grad_enabled():
        return torch.cat([read(chunk, *own) for chunk, own in zip(chunks, split, strict=True)])
    return torch.cat(
        [
            checkpoint(read, chunk, *own, use_reentrant=False)
            for chunk, own in zip(chunks, split, strict=True)
        ]
    )


def _chunks(counts: Sequence[int], most: int) -> Iterator[range]:
    """Consecutive owners of ``most`` rows together, or one that alone has more."""
    begin, held = 0, 0
    for owner, count in enumerate(counts):
        if held and held + count > most:
            yield range(begin, owner)
            begin, held = owner, 0
        held += count
    if counts:
        yield range(begin, len(counts))
