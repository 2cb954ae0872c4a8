"""What must be added to the last block's output for a model to go on with a given word.

DAMA's values: for every prompt and every word the shift ``d`` of the residual stream ``h``, at the
prompt's last token as it leaves the last block, that minimises

    -log p(word | h + d)  +  divergence * KL(p(. | a) || p(. | a + d))  +  decay * |d|^2 / |h|^2

within the ball ``|d| <= ball |h|``; ``a`` is the same stream after a neutral opening about the same
subject ("The nurse is a"), so that the shift says *he* rather than anything else about the nurse.
After the last block only the final norm and the head are left, so that all prompts and all words
are optimised at once and no block is run.

What departs from the publication: shifts are measured in units of the stream's own root mean
square, so that one learning rate fits all models; the decay is that of squares and free of units;
there is no second shift common to the words (what they share can be taken out of the result,
exactly); each word is optimised by itself until its loss is below ``stop_below``.

Source: Limisiewicz et al., "Debiasing Algorithm through Model Adaptation", ICLR 2024 (arXiv
2310.18913), section 3.1, after the values of ROME (Meng et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import Progress, Template, silent
from safeedit.errors import EditError, UsageError
from safeedit.model.engine import Engine
from safeedit.model.handle import ModelHandle

_CHUNK_LOGITS = 1 << 24
"""Logits of words computed at a time: 64 MiB, and a few times that while gradients are taken."""


@dataclass(frozen=True)
class Descent:
    """How shifts are optimised.

    Attributes:
        steps: Of Adam, at most.
        learning_rate: In root mean squares of the stream.
        decay: Weight of the squared relative length, nats.
        divergence: Weight of the divergence after the neutral opening.
        ball: Greatest length, in lengths of the stream.
        stop_below: A shift whose loss is below this is left as it is, nats.
    """

    steps: int = 20
    learning_rate: float = 0.5
    decay: float = 0.5
    divergence: float = 0.0625
    ball: float = 4.0
    stop_below: float = 0.05


@dataclass(frozen=True, eq=False)
class Shifts:
    """Optimised shifts.

    Attributes:
        values: ``(prompts, words, d_model)``, fp32, on the CPU.
        before: ``(prompts, words)`` log-probability of each word without a shift, nats.
        after: The same with it.
    """

    values: Tensor
    before: Tensor
    after: Tensor


def single_tokens(engine: Engine, words: Sequence[str], template: Template) -> list[int]:
    """The token of each word as it follows a prompt of that template.

    Raises:
        UsageError: A word is several tokens, or two words begin with the same one.
    """
    found = engine.continuations(words, template)
    long = [word for word, ids in zip(words, found, strict=True) if len(ids) != 1]
    if long:
        raise UsageError(
            f"for this tokenizer {', '.join(map(repr, long))} "
            f"{'is' if len(long) == 1 else 'are'} not one token each after a prompt",
            field="pronouns",
            remedy="name words that are single tokens of this model's vocabulary",
        )
    tokens = [ids[0] for ids in found]
    if len(set(tokens)) < len(tokens):
        raise UsageError(
            "two of the pronouns are the same token", field="pronouns", remedy="name each once"
        )
    return tokens


def residual_shifts(
    model: ModelHandle,
    states: Tensor,
    openings: Tensor,
    tokens: Sequence[int],
    descent: Descent,
    progress: Progress = silent,
) -> Shifts:
    """The shifts after which each prompt goes on with each word; see the module.

    Args:
        model: Whose final norm and head follow.
        states: ``(prompts, d_model)`` last block's output at each prompt's last token.
        openings: ``(prompts, d_model)`` the same for the neutral opening of each.
        tokens: The words, see :func:`single_tokens`.
        descent: How.
        progress: Shown per chunk of prompts.

    Raises:
        EditError: The optimisation diverged.
    """
    words = len(tokens)
    size = max(1, _CHUNK_LOGITS // (model.head.weight.shape[0] * words))
    chunks = list(zip(states.split(size), openings.split(size), strict=True))
    found = [
        _chunk(model, hidden, opening, tokens, descent)
        for hidden, opening in progress(chunks, "optimising shifts", len(chunks))
    ]
    values, before, after = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not bool(torch.isfinite(values).all()):
        raise EditError("the shifts diverged", remedy="lower 'learning_rate'")
    return Shifts(values, before, after)


def _chunk(
    model: ModelHandle, states: Tensor, openings: Tensor, tokens: Sequence[int], descent: Descent
) -> tuple[Tensor, Tensor, Tensor]:
    device = model.head.weight.device
    count, width = states.shape
    hidden, opening = (part.to(device).float()[:, None] for part in (states, openings))
    wanted = torch.tensor(list(tokens), device=device).expand(count, -1)
    unit = hidden.square().mean(-1, keepdim=True).sqrt()

    def log_probabilities(stream: Tensor) -> Tensor:
        logits: Tensor = model.unembed(stream.to(model.dtype))
        return logits.float().log_softmax(-1)

    def of_words(log_probs: Tensor) -> Tensor:
        return log_probs.gather(-1, wanted[..., None])[..., 0]

    with torch.no_grad():
        every = (count, len(tokens), width)
        before = of_words(log_probabilities(hidden).expand(-1, len(tokens), -1))
        neutral = log_probabilities(opening)
    shift = torch.zeros(every, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=descent.learning_rate)
    for _ in range(descent.steps):
        moved = shift * unit
        loss = -of_words(log_probabilities(hidden + moved))
        if descent.divergence:
            now = log_probabilities(opening + moved)
            away = functional.kl_div(now, neutral.expand_as(now), reduction="none", log_target=True)
            loss = loss + descent.divergence * away.sum(-1)
        loss = loss + descent.decay * shift.square().mean(-1)
        open_ = (loss.detach() >= descent.stop_below)[..., None]
        if not bool(open_.any()):
            break
        optimiser.zero_grad()
        loss.sum().backward()
        with torch.no_grad():
            previous = shift.detach().clone()
            optimiser.step()
            length = shift.square().mean(-1, keepdim=True).sqrt()
            shift.mul_((descent.ball / length.clamp(min=1e-30)).clamp(max=1))
            shift.copy_(torch.where(open_, shift, previous))
    with torch.no_grad():
        values = shift.detach() * unit
        after = of_words(log_probabilities(hidden + values))
    return values.cpu(), before.cpu(), after.cpu()
