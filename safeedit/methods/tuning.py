"""Teacher-forced tuning: prompts with the answers they are tuned on, their losses, the loop.

What editors that learn by gradient share. Only answer tokens count, logits are computed for them
alone, and what the base itself said is kept as hidden states (d_model numbers a token) from
which its distributions are recomputed, rather than as distributions (vocab numbers a token).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.methods.unlearning import divergence
from safeedit.methods.vocabulary_chunks import chunked
from safeedit.model.handle import ModelHandle
from safeedit.model.packing import can_be_packed, packed_states
from safeedit.model.passes import padded_inputs

T = TypeVar("T")

WARMUP = 0.1
"""Share of the steps in which the learning rate rises: taken from the real number of steps, since a
fixed number outlasts a short run."""

STOP_BELOW = 0.03
"""Nats per token below which an answer is learnt."""

_CALMER = "take a lower learning rate, or open the model in float32 (model: {dtype: float32})"


@dataclass(frozen=True, eq=False)
class Example:
    """A prompt and the answer it is tuned on, as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]


def answer_states(
    model: ModelHandle, batch: Sequence[Example], *, side_by_side: bool = False
) -> list[Tensor]:
    """Final hidden states ``(answer tokens, d_model)`` that predict each answer.

    Runs in bfloat16 whatever the weights: on CPUs that is two to three times as fast, and the
    noise it adds is far below that of a batch of examples.

    Args:
        model: Any.
        batch: Examples; the last token of an answer is predicted, never read.
        side_by_side: Whether rows must be run as they are, padded on the right, and not packed: for
            whoever puts in what enters a block.
    """
    rows = [example.ids for example in batch]
    read = [row[:-1] if len(row) > 1 else row for row in rows]
    with torch.autocast(model.device.type, torch.bfloat16):
        together = not side_by_side and can_be_packed(model, read)
        hidden = packed_states(model, read) if together else _padded(model, read)
    return [
        hidden[row][len(example.prompt) - 1 : len(example.ids) - 1]
        for row, example in enumerate(batch)
    ]


def _padded(model: ModelHandle, rows: Sequence[Sequence[int]]) -> Tensor:
    """Final hidden states ``(rows, longest, d_model)``."""
    return model.forward(padded_inputs(rows))


def token_losses(model: ModelHandle, states: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
    """``(answer tokens,)`` loss of each of the answers' tokens, nats, fp32."""
    hidden = torch.cat(list(states))
    wanted = torch.tensor([token for example in batch for token in example.answer])

    def read(tokens: range, hidden: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(model.logits(hidden).float(), wanted, reduction="none")

    vocab = model.shape.vocab_size
    return chunked(read, [1] * len(hidden), vocab, hidden, wanted.to(hidden.device))


def cross_entropy(model: ModelHandle, states: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
    """Mean loss of the answers' tokens, nats."""
    return token_losses(model, states, batch).mean()


class BaseAnswers:
    """The untouched model's distributions over answers, kept as hidden states.

    Args:
        model: Untouched at this time.
        examples: Whose answers.
        progress: Shown per batch.
    """

    @torch.no_grad()
    def __init__(
        self, model: ModelHandle, examples: Sequence[Example], progress: Progress = silent
    ) -> None:
        self.model = model
        self._states: dict[int, Tensor] = {}
        ordered = sorted(examples, key=lambda example: len(example.ids))
        batches = [ordered[i : i + 32] for i in range(0, len(ordered), 32)]
        for batch in progress(batches, "the base's answers", len(batches)):
            for example, states in zip(batch, answer_states(model, batch), strict=True):
                self._states[id(example)] = states.cpu()

    def states(self, batch: Sequence[Example]) -> list[Tensor]:
        """The base's final hidden states, as :func:`answer_states` gives those of now."""
        return [self._states[id(example)].to(self.model.device) for example in batch]

    def compared(
        self,
        states: Sequence[Tensor],
        batch: Sequence[Example],
        measure: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """``(answer tokens,)`` what ``measure`` makes of the base's distributions and today's.

        Args:
            states: Of the model as it is now.
            batch: Among the examples.
            measure: ``measure(base, now, answer)`` of ``(tokens, vocab)`` log-probabilities and
                ``(tokens,)`` token ids gives ``(tokens,)``.
        """
        now = torch.cat(list(states))
        kept = torch.cat(self.states(batch))
        answer = torch.tensor([token for example in batch for token in example.answer])

        def read(tokens: range, now: Tensor, kept: Tensor, answer: Tensor) -> Tensor:
            with torch.no_grad():
                base = self.model.logits(kept).float().log_softmax(-1)
            return measure(base, self.model.logits(now).float().log_softmax(-1), answer)

        vocab = self.model.shape.vocab_size
        return chunked(read, [1] * len(now), vocab, now, kept, answer.to(now.device))

    def divergence(self, states: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
        """Mean KL(base || now) over the answers' tokens, nats."""
        return self.compared(states, batch, lambda base, now, _: divergence(base, now)).mean()


def descend(
    trained: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    loss: Callable[[], tuple[Tensor, float]],
    diverged: EditError,
) -> float:
    """One step, its gradient clipped to norm 1.

    Args:
        trained: What learns, in place.
        optimiser: Of it.
        loss: One batch's loss, and the part of it that is watched, nats.
        diverged: Raised where either is no number.

    Returns:
        The watched part.
    """
    total, watched = loss()
    if not math.isfinite(watched) or not math.isfinite(float(total.detach())):
        raise diverged
    optimiser.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    return watched


def optimise(
    trained: Sequence[Tensor],
    loss: Callable[[], tuple[Tensor, float]],
    *,
    steps: int,
    learning_rate: float,
    warmup: float = WARMUP,
    stop_below: float = STOP_BELOW,
    progress: Progress = silent,
    description: str = "tuning",
) -> dict[str, float]:
    """AdamW with a warm-up taken from the real number of steps and a cosine to a tenth.

    Args:
        trained: What learns, in place.
        loss: One batch's loss, and the part of it that ``stop_below`` watches, nats.
        steps: At most.
        learning_rate: Its peak.
        warmup: Share of the steps in which it rises.
        stop_below: Stop once the running mean of the watched part is below this.
        progress: Shown per step.
        description: What to call it.

    Returns:
        Steps taken, first and last watched loss.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / rising) * (0.1 + 0.9 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    first, recent, taken = math.nan, math.nan, 0
    diverged = EditError("tuning diverged: the loss is no number", remedy=_CALMER)
    for _ in progress(range(steps), description, steps):
        watched = descend(trained, optimiser, loss, diverged)
        schedule.step()
        taken += 1
        first = watched if taken == 1 else first
        recent = watched if taken == 1 else 0.7 * recent + 0.3 * watched
        if taken >= 5 and recent < stop_below:
            break
    return {"steps": float(taken), "loss_first": first, "loss_last": recent}


def endless(examples: Sequence[T], source: random.Random) -> Iterator[T]:
    """Examples in random order, each once before any comes again; nothing if there are none."""
    while examples:
        yield from source.sample(list(examples), len(examples))
