"""Directions that answer to some keys and to little else.

A *key* is the input of an MLP's output matrix at a token (its neurons' activations). An update
``left @ right`` of that matrix moves the output at a token by ``left @ (right @ key)``: where ``right``
answers 1 to the keys of a subject and nearly 0 to everything else, only mentions of the
subject are moved. This is the closed form behind ROME and MEMIT (Meng et al., 2022, 2023), with
the values left open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import EditError


@dataclass(frozen=True)
class Readout:
    """Rows that read which subject, if any, a token belongs to.

    Attributes:
        rows: ``(subjects, width)``, fp32; scaled so that a subject's own keys answer 1 on average.
        own: ``(subjects,)`` the least answer among each subject's own keys.
        elsewhere: Root mean square answer to what must not be moved, over all rows.
    """

    rows: Tensor
    own: Tensor
    elsewhere: float


def readout(
    keys: Tensor, subjects: Tensor, elsewhere: Tensor, *, ridge: float, weight: float
) -> Readout:
    """Ridge regression from keys to subjects, with what must not answer as background.

    Minimises, for each row ``a``, the mean of ``(a'k - [k is this subject's])^2`` over keys plus
    ``weight * a'(C + ridge * mean(diag C) I)a``.

    Args:
        keys: ``(n, width)`` keys at subject tokens.
        subjects: ``(n,)`` which subject each belongs to, from 0 without gaps.
        elsewhere: ``(width, width)`` second moment C of keys that must not answer.
        ridge: Share of C's mean diagonal added to it.
        weight: What an answer elsewhere costs against a missed one here.

    Raises:
        EditError: A subject's keys can't be told from the background.
    """
    keys = keys.double().cpu()
    count = int(subjects.max()) + 1
    background = elsewhere.double().cpu()
    eye = torch.eye(len(background), dtype=torch.float64)
    background = background + ridge * background.diagonal().mean() * eye
    wanted = torch.nn.functional.one_hot(subjects.cpu(), count).double()
    system = keys.T @ keys / len(keys) + weight * background
    rows = torch.linalg.solve(system, keys.T @ wanted / len(keys)).T
    answers = keys @ rows.T
    own = torch.stack([answers[subjects == s, s].mean() for s in range(count)])
    if not bool((own > 0.05).all()):
        raise EditError(
            "the subjects' keys can't be told from those of ordinary text in this layer",
            remedy="choose earlier layers, or give longer subjects",
        )
    rows = rows / own[:, None]
    answers = answers / own
    least = torch.stack([answers[subjects == s, s].min() for s in range(count)])
    # The ridge is no text: what is reported is the answer to real keys alone.
    leak = ((rows @ elsewhere.double().cpu()) * rows).sum(1).clamp(min=0).mean().sqrt()
    return Readout(rows.float(), least.float(), float(leak))
