"""What tells two kinds of text apart: a direction among their states, tokens among their words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import EditError


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier of states.

    Attributes:
        direction: ``(width,)`` unit vector towards the first kind, fp64.
        accuracy: Share of the pairs held out (every other one) that a probe fitted on the rest
            orders rightly; None where there are fewer than four pairs.
    """

    direction: Tensor
    accuracy: float | None


def fit_probe(first: Tensor, second: Tensor, regularisation: float = 0.1) -> LinearProbe:
    """Logistic regression on standardised states, its direction in the states' own units.

    Args:
        first: ``(pairs, width)`` states of the first kind.
        second: The same of the second kind, pair by pair.
        regularisation: ``C`` of scikit-learn: the smaller, the nearer to the mean difference
            (each dimension over its variance).

    Raises:
        EditError: The states don't differ, or hold a number that is not finite.
    """
    first, second = first.double().cpu(), second.double().cpu()
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise EditError("the states of the pairs hold NaN or infinity")
    direction = _direction(first, second, regularisation)
    if not float(direction.norm()):
        raise EditError(
            "the two texts of the pairs leave the same states: there is nothing to probe",
            remedy="give pairs that differ, or other layers",
        )
    accuracy = None
    if len(first) >= 4:
        half = _direction(first[::2], second[::2], regularisation)
        accuracy = float(((first - second)[1::2] @ half > 0).double().mean())
    return LinearProbe(direction / direction.norm(), accuracy)


def _direction(first: Tensor, second: Tensor, regularisation: float) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    states = torch.cat([first, second])
    spread = states.std(0, correction=0)
    # A dimension that never changes tells nothing.
    inverse = torch.where(spread > 1e-12 * spread.max(), 1 / spread, torch.zeros_like(spread))
    scaled = (states - states.mean(0)) * inverse
    labels = [1] * len(first) + [0] * len(second)
    fitted = LogisticRegression(C=regularisation, max_iter=1000).fit(scaled.numpy(), labels)
    return torch.from_numpy(fitted.coef_[0]).double() * inverse


def telling_tokens(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], count: int
) -> tuple[list[int], list[int]]:
    """Tokens that tell texts of one kind, and those that tell the other, most telling first.

    Ranked by the log-odds of the shares of texts that have a token, over its standard error, half
    a text added to each count.

    Args:
        first: Token ids of the texts of the first kind.
        second: Of the second kind.
        count: At most so many of either.
    """
    counts = [Counter(token for text in texts for token in set(text)) for texts in (first, second)]
    tokens = torch.tensor(sorted(counts[0].keys() | counts[1].keys()), dtype=torch.long)
    has = torch.tensor([[c[t] for t in tokens.tolist()] for c in counts]).double() + 0.5
    lacks = torch.tensor([[len(first)], [len(second)]]) + 1 - has
    odds = (has / lacks).log()
    scores = (odds[0] - odds[1]) / (1 / has + 1 / lacks).sum(0).sqrt()
    order = scores.argsort(descending=True, stable=True)
    telling = tokens[order[scores[order] > 0]].tolist()
    other = tokens[order[scores[order] < 0]].tolist()[::-1]
    return telling[:count], other[:count]
