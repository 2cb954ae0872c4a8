"""A direction that tells the mentions of a subject from everything else.

What an MLP reads at a subject's last token says, in early layers, which subject it is. A ridge
classifier finds the direction ``a`` on which that input ``x`` answers +1 there and -1 elsewhere. A
neuron given that direction, ``m = a'x``, is silent unless the subject is mentioned:

* gated MLPs: ``m^2 sigmoid(s m)``, when both gate (times s) and up (over s) read ``a``;
* plain ones: ``act(s m) / s``.

At ``m = -1`` and ``s = 10`` that is below 1e-4 of the answer at ``m = 1``, which is why what such
a neuron writes reaches other tokens hardly at all. A *linear* key (ROME, MEMIT) leaks in
proportion to ``a'x`` instead. The idea of one neuron for one fact is Transformer-Patcher's
(Huang et al., ICLR 2023); here the neuron is an existing, unused one, and its key is solved,
not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.methods.covariance import Moments

SHARPNESS = 10.0
"""``s``: at 10 a silent neuron writes less than 1e-4 of what it writes at its subject."""

RIDGE = 0.01
"""Share of the background's mean square added to its diagonal, so that a key does not lean on
directions that a few thousand tokens hardly use."""

WEIGHT = 1.0
"""Of the background against the mentions: missing either counts alike."""

_TOLD = 0.25
"""Mean answer to its mentions below which a subject counts as not told from the background."""


@dataclass(frozen=True)
class Separator:
    """One direction per key.

    Attributes:
        rows: ``(keys, width)``, fp32.
        least_own: ``(subjects,)`` the least answer of a subject's key to its mentions; +1 is
            wanted.
        mean_own: ``(subjects,)`` the mean of the same.
        elsewhere: ``(keys,)`` mean answer to the background; -1 is wanted.
        spread: ``(keys,)`` standard deviation of the answer to the background.
    """

    rows: Tensor
    least_own: Tensor
    mean_own: Tensor
    elsewhere: Tensor
    spread: Tensor

    def amplified(self, gain: float) -> Separator:
        """The same keys with answers ``gain`` times as large."""
        return Separator(*(gain * getattr(self, field.name) for field in fields(self)))


def separate(
    inputs: Tensor,
    subjects: Tensor,
    background: Moments,
    *,
    keys: int,
    families: Sequence[int] | None = None,
    ridge: float = RIDGE,
    weight: float = WEIGHT,
) -> Separator:
    """Ridge classification of subject mentions against the background.

    Minimises, for each key, the mean of ``(a'x - 1)^2`` over its own subjects' mentions plus the
    mean of ``(a'x + 1)^2`` over those of other families' subjects plus
    ``weight * E[(a'z + 1)^2]`` over the background plus ``weight * ridge * mean(diag C) |a|^2``,
    where ``C = E[z z']``. In either mean every subject weighs the same, however often it is
    mentioned.

    Args:
        inputs: ``(n, width)`` what the MLP reads at mentions.
        subjects: ``(n,)`` whose mention each is, from 0 without gaps.
        background: Moments of what it reads elsewhere.
        keys: Among which the subjects are shared out in turn; no more than there are subjects.
        families: Of each subject, a number that those share whose mentions say nothing of each
            other's keys, which may answer them or not; None: each is its own.
        ridge: Share of the background's mean square added to its diagonal.
        weight: Of the background against the mentions.

    Raises:
        EditError: A subject's mentions can't, on average, be told from the background in this
            layer.
    """
    inputs, subjects = inputs.double().cpu(), subjects.cpu()
    count = int(subjects.max()) + 1
    family = torch.arange(count) if families is None else torch.tensor(families)
    rows = _ridge_rows(inputs, subjects, family, background, keys, ridge, weight)
    answers = inputs @ rows.T
    of_own = [answers[subjects == s, s % keys] for s in range(count)]
    least = torch.stack([own.min() for own in of_own])
    mean_own = torch.stack([own.mean() for own in of_own])
    elsewhere = rows @ background.mean
    spread = ((rows @ background.second) * rows).sum(1).sub(elsewhere**2).clamp(min=0).sqrt()
    # One mention of many may lie among other text; the subject as a whole must not.
    if not bool((mean_own >= _TOLD).all()):
        raise EditError(
            f"{int((mean_own < _TOLD).sum())} of {len(least)} subjects can't be told from other "
            "text here",
            remedy="choose earlier 'layers', or give longer subjects",
        )
    return Separator(
        rows.float(), least.float(), mean_own.float(), elsewhere.float(), spread.float()
    )


def _ridge_rows(
    inputs: Tensor,
    subjects: Tensor,
    family: Tensor,
    background: Moments,
    keys: int,
    ridge: float,
    weight: float,
) -> Tensor:
    """The minimisers that :func:`separate` says, ``(keys, width)``, fp64."""
    # Each subject weighs the same, and a key's own as much as all others together.
    share = 1 / torch.bincount(subjects)[subjects].double()
    count = int(subjects.max()) + 1
    eye = torch.eye(len(background.second), dtype=torch.float64)
    diagonal = ridge * background.second.diagonal().mean() * eye
    loaded = weight * (background.second + diagonal)
    mentions = inputs.T @ (share[:, None] * inputs)
    rows = torch.empty(keys, len(loaded), dtype=torch.float64)
    of_key = [torch.arange(key, count, keys) for key in range(keys)]
    kin = [torch.isin(family, family[own]) for own in of_key]
    sizes = [(len(own), count - int(near.sum())) for own, near in zip(of_key, kin, strict=True)]
    for size in sorted(set(sizes)):
        # As if all were others' mentions: one matrix for all keys of as many subjects. What a key's
        # own weigh instead, and its kin nothing, is an update of low rank.
        apart, together = 1 / max(1, size[1]), 1 / max(1, size[0])
        factor = torch.linalg.cholesky(loaded + apart * mentions)
        for key in (key for key, found in enumerate(sizes) if found == size):
            own, near = torch.isin(subjects, of_key[key]), kin[key][subjects]
            weights = torch.where(own, together, torch.where(near, 0.0, apart).double()) * share
            aim = (torch.where(own, weights, -weights) @ inputs - weight * background.mean)[:, None]
            more = (weights - apart * share)[near]
            rows[key] = _updated_solution(factor, inputs[near], more, aim)
    return rows


def _updated_solution(factor: Tensor, rows: Tensor, weights: Tensor, aim: Tensor) -> Tensor:
    """``(d,)`` the solution ``x`` of ``(A + rows' diag(weights) rows) x = aim``, by the identity of
    Sherman, Morrison and Woodbury; ``factor`` is the Cholesky factor of ``A``."""
    solved = torch.cholesky_solve(torch.cat([aim, rows.T], 1), factor)
    plain, moved = solved[:, :1], solved[:, 1:]
    inner = torch.eye(len(rows), dtype=rows.dtype) + weights[:, None] * (rows @ moved)
    return (plain - moved @ torch.linalg.solve(inner, weights[:, None] * (rows @ plain)))[:, 0]
