"""Rows packed as trees: what some of them begin with is run once, and nothing is padded.

A pack is one sequence of the distinct tokens of several rows; each token attends to those that
precede it in its row, told by a mask, at its own position. States, and their gradients, are those
of the rows run apart. Templates make for a third to half of the tokens of a batch of short
questions.

Masks know no sliding windows: rows that reach beyond one are not to be packed
(:func:`can_be_packed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import filler_token

LONGEST_PACK = 512
"""Tokens of a pack, if its rows allow: attention takes the square of them."""


@dataclass
class _Tree:
    """Distinct tokens of rows, parents before children."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """-1 for first tokens."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, row: Iterable[int]) -> list[int]:
        """Where each token of a row stands."""
        place, places = -1, []
        for token in row:
            known = self._children.get((place, token))
            if known is None:
                known = self._children[place, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(place)
            place = known
            places.append(place)
        return places

    def seen(self, width: int) -> tuple[Tensor, Tensor]:
        """Which tokens each sees, ``(width, width)``, and positions, ``(width,)``; padding sees
        itself."""
        seen = torch.eye(width, dtype=torch.bool)
        positions = [0] * width
        for token, parent in enumerate(self.parents):
            if parent >= 0:
                seen[token] |= seen[parent]
                positions[token] = positions[parent] + 1
        return seen, torch.tensor(positions)


def can_be_packed(model: ModelHandle, rows: Sequence[Sequence[int]]) -> bool:
    """Whether no row is longer than what a layer of the model attends to."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return not window or max(map(len, rows), default=0) <= window


def packed_states(model: ModelHandle, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Final hidden states ``(tokens, d_model)`` of each row, with their gradients.

    Args:
        model: In the precision that the context sets.
        rows: Token ids, none of them empty, see :func:`can_be_packed`.
    """
    trees, places = _planted(rows)
    width = max(len(tree.tokens) for tree in trees)
    seen, positions = zip(*(tree.seen(width) for tree in trees), strict=True)
    hidden = model.forward(
        {
            "input_ids": pad_right([tree.tokens for tree in trees], filler_token(model)),
            "position_ids": torch.stack(positions),
            # Added to scores, which every implementation of attention understands.
            "attention_mask": torch.zeros(
                len(trees), 1, width, width, dtype=model.dtype
            ).masked_fill(~torch.stack(seen)[:, None], torch.finfo(model.dtype).min),
        }
    )
    return [hidden[tree, torch.tensor(at, device=hidden.device)] for tree, at in places]


def _planted(rows: Sequence[Sequence[int]]) -> tuple[list[_Tree], list[tuple[int, list[int]]]]:
    """Trees, and for each row its tree and where in it its tokens stand."""
    trees = [_Tree()]
    places: list[tuple[int, list[int]]] = [(0, [])] * len(rows)
    # Rows that begin alike are neighbours in this order, and so share a tree.
    for index in sorted(range(len(rows)), key=lambda index: list(rows[index])):
        if trees[-1].tokens and len(trees[-1].tokens) + len(rows[index]) > LONGEST_PACK:
            trees.append(_Tree())
        places[index] = (len(trees) - 1, trees[-1].add(rows[index]))
    return trees, places
