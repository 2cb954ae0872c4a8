"""What an edit writes into the residual stream, read as the head would read it.

The strongest directions of the changes of all matrices that write there are put through the head: a
change that erases a fact by pushing against its answer shows the answer among the tokens of a
direction or of its opposite. Figures alone come out, for the tokens are what is to be forgotten.

Source: the reading of updates in Zhang et al., "A Comprehensive Study of Knowledge Editing for
Large Language Models", 2024 (arXiv 2401.01286), after Geva et al., EMNLP 2022 (arXiv 2203.14680).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeedit.data import Dataset
from safeedit.delta import Columns, LowRank, Update, WeightDelta
from safeedit.model.handle import ModelHandle
from safeedit.records import VocabularyReading

DIRECTIONS = 5
"""Strongest directions that are read, over all matrices together."""
_TOKENS = 10
_WRITERS = ("mlp_out", "attn_out")


def read_update(
    model: ModelHandle, delta: WeightDelta, erased: Sequence[Dataset]
) -> VocabularyReading | None:
    """How many erased answers the change's strongest directions tell.

    Args:
        model: Before the change.
        delta: The change.
        erased: Data whose answers are looked for.

    Returns:
        Counts; None where there is no answer or nothing that changes writes into the stream.
    """
    answers = [
        (data.template, item.answer)
        for data in erased
        for item in data.items("fit")
        if item.answer is not None
    ]
    names = [
        site.weight
        for role in _WRITERS
        if role in model.shape.roles
        for site in model.sites(role)
        if site.weight in delta.updates
    ]
    if not answers or not names:
        return None
    found = [_directions(delta.updates[name], model.oriented(name)) for name in names]
    values = torch.cat([each for each, _ in found])
    vectors = torch.cat([each for _, each in found], 1)
    strongest = values.topk(min(DIRECTIONS, len(values))).indices
    with torch.no_grad():
        head = model.head.weight.detach().float()
        read = vectors[:, strongest].T.to(head.device) @ head.T
    told = {
        int(token)
        for logits in (read, -read)
        for token in logits.topk(min(_TOKENS, read.shape[1]), dim=1).indices.flatten()
    }
    firsts = [
        first[0]
        for template, answer in answers
        if (first := model.engine.continuation(answer, template))
    ]
    return VocabularyReading(
        directions=len(strongest),
        answers=len(firsts),
        found=sum(token in told for token in firsts),
        expected=len(firsts) * len(told) / read.shape[1],
    )


def _directions(update: Update, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The strongest singular values of a change, and ``(out, values)`` what they write."""
    if isinstance(update, LowRank):
        left, upper = torch.linalg.qr(update.left.double())
        turned, values, _ = torch.linalg.svd(upper @ update.right.double(), full_matrices=False)
        vectors = left @ turned
    else:
        change = update.change(weight).double().cpu()
        if isinstance(update, Columns):
            change = change[:, update.indices]
        squares, found = torch.linalg.eigh(change @ change.T)
        values, vectors = squares.clamp(min=0).sqrt().flip(0), found.flip(1)
    return values[:DIRECTIONS].float(), vectors[:, :DIRECTIONS].float()
