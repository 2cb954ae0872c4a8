"""What must be added to the residual stream for a model to go on with given words, or with neither.

DAMA's values (:func:`residual_shifts`): for every prompt and every word the shift ``d`` of the
residual stream ``h``, at the prompt's last token as it leaves the last block, that minimises

    -log p(word | h + d)  +  divergence * KL(p(. | a) || p(. | a + d))  +  decay * |d|^2 / |h|^2

within the ball ``|d| <= ball |h|``; ``a`` is the same stream after a neutral opening about the same
subject ("The nurse is a"), so that the shift says *he* rather than anything else about the nurse.
After the last block only the final norm and the head are left, so that all prompts and all words
are optimised at once and no block is run.

What departs from the publication: shifts are measured in units of the stream's own root mean
square, so that one learning rate fits all models; the decay is that of squares and free of units;
there is no second shift common to the words (what they share can be taken out of the result,
exactly); each word is optimised by itself until its loss is below ``stop_below``.

:func:`margin_shifts` asks for less: the *least* shift of what one MLP writes at one token after
which two words are equally likely (or one as much likelier as wanted). One number per prompt is to
change, so the least shift points along that number's gradient, and Newton's method, with
halved steps where one led away, finds it in a few passes through the blocks above.

Source: Limisiewicz et al., "Debiasing Algorithm through Model Adaptation", ICLR 2024 (arXiv
2310.18913), section 3.1, after the values of ROME (Meng et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.methods.facts.keys import TokenPosition
from safeedit.methods.facts.objectives import EqualiseLogits, FactObjective, ObjectivePrompt
from safeedit.methods.facts.passes import Passes
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle

CHUNK_LOGITS = 1 << 24
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
        tokens: The words, see :func:`~safeedit.methods.word_tokens.single_tokens`.
        descent: How.
        progress: Shown per chunk of prompts.

    Raises:
        EditError: The optimisation diverged.
    """
    words = len(tokens)
    size = max(1, CHUNK_LOGITS // (model.head.weight.shape[0] * words))
    chunks = list(zip(states.split(size), openings.split(size), strict=True))
    found = [
        _chunk(model, hidden, opening, tokens, descent)
        for hidden, opening in progress(chunks, "optimising shifts", len(chunks))
    ]
    values, before, after = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not bool(torch.isfinite(values).all()):
        raise EditError(
            "the shifts diverged", remedy="open the model in float32 (model: {dtype: float32})"
        )
    return Shifts(values, before, after)


@torch.no_grad()
def margins(model: ModelHandle, states: Tensor, tokens: Tensor) -> Tensor:
    """``(prompts,)`` logit of the first token minus that of the second, fp64, on the CPU.

    Args:
        model: Whose final norm and head follow.
        states: ``(prompts, d_model)`` last block's output.
        tokens: ``(prompts, 2)``, or ``(1, 2)`` for all.
    """
    size = max(1, CHUNK_LOGITS // model.head.weight.shape[0])
    parts = []
    for part, pair in zip(
        states.split(size), tokens.expand(len(states), 2).split(size), strict=True
    ):
        logits = model.unembed(part.to(model.head.weight.device)).cpu().double().gather(1, pair)
        parts.append(logits[:, 0] - logits[:, 1])
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class MarginShifts:
    """The least shifts after which margins are as wanted.

    Attributes:
        values: ``(prompts, d_model)``, fp64, on the CPU.
        before: ``(prompts,)`` margins without them.
        after: The same with them.
    """

    values: Tensor
    before: Tensor
    after: Tensor


def margin_shifts(
    model: ModelHandle,
    site: Site,
    spots: Sequence[TokenPosition],
    tokens: Tensor,
    wanted: Tensor,
    *,
    steps: int = 6,
    progress: Progress = silent,
) -> MarginShifts:
    """Least shifts of what ``site`` writes; see the module.

    Args:
        model: As it is now, earlier edits included.
        site: An ``mlp_out``.
        spots: A prompt each, and the token at which its shift is added.
        tokens: ``(prompts, 2)`` the two words of each, one token each.
        wanted: ``(prompts,)`` logit of the first minus that of the second at the prompt's end.
        steps: Of Newton's method; the best of them counts for each prompt.
        progress: Shown per batch.

    Raises:
        EditError: The margins are no numbers.
    """
    pairs = [(int(one), int(two)) for one, two in tokens]
    units = [
        FactObjective((ObjectivePrompt(spot, EqualiseLogits(pair, margin)),))
        for spot, pair, margin in zip(spots, pairs, wanted.tolist(), strict=True)
    ]
    passes = Passes(model, site.layer, units, exact=True)
    everything = list(range(len(units)))
    kept = torch.zeros(len(units), model.d_model, dtype=torch.float64)
    further = kept.clone()
    best = torch.full((len(units),), torch.inf, dtype=torch.float64)
    first, last = best.clone(), best.clone()
    for step in progress(range(steps + 1), "finding least shifts", steps + 1):
        shift = kept + further
        values, slopes, _ = passes.slopes(shift.float(), everything)
        away, slope = values[:, 0], slopes[:, 0]
        if not bool(torch.isfinite(away).all()):
            raise EditError(
                "logits are no numbers while shifts are sought", remedy="use dtype: float32"
            )
        better = away.abs() < best
        kept = torch.where(better[:, None], shift, kept)
        best = torch.where(better, away.abs(), best)
        last = torch.where(better, away + wanted, last)
        if step == 0:
            first = away + wanted
        # The least shift that gets there if the margin is linear; half of the last step where
        # that led away.
        along = (slope * shift).sum(1) - away
        least = slope * (along / slope.square().sum(1).clamp(min=1e-30))[:, None]
        further = torch.where(better[:, None], least - shift, further / 2)
    return MarginShifts(kept, first, last)


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
