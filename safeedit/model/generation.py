"""Answers written token by token, many at a time.

Rows that are finished leave the batch, so that time goes to the answers still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.model.batching import Batcher
from safeedit.model.passes import context_length, logits_at, not_finite
from safeedit.model.sampling import Sampling, draw, uniforms
from safeedit.model.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from transformers import Cache

    from safeedit.model.handle import ModelHandle

_WORTH_DROPPING = 0.75
"""Share of live rows below which the finished are dropped: doing so copies the cache."""


class Generation:
    """Prompts to answer, laid out in batches.

    Args:
        handle: The model.
        prompts: Token ids, none of them empty.
        max_new_tokens: Of each; fewer where the context ends.
        sampling: None takes the likeliest token each time.
        samples: Answers per prompt, where they are sampled; greedy ones are all the same.
        seed: An answer depends on it, its prompt's index and its own number alone.
        stop: Tokens that end an answer.
    """

    def __init__(
        self,
        handle: ModelHandle,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling | None,
        samples: int,
        seed: int,
        stop: frozenset[int],
    ) -> None:
        self.handle, self.prompts, self.stop = handle, prompts, stop
        self.sampling, self.seed = sampling, seed
        self.greedy = sampling is None or sampling.temperature == 0
        distinct = 1 if self.greedy else samples
        self.jobs = [(i, sample) for i in range(len(prompts)) for sample in range(distinct)]
        """``(prompt, sample)`` of every answer that is written."""
        self.longest = max(max_new_tokens, default=0)
        context = context_length(handle)
        self.limits = [
            min(most, context - len(prompt))
            for most, prompt in zip(max_new_tokens, prompts, strict=True)
        ]
        self.prefix = SharedPrefix.of(handle, prompts)

    def each(self, batcher: Batcher) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """``((prompt, sample), new tokens)``, in any order."""
        found = batcher.each(
            [len(self.prompts[i]) + self.limits[i] for i, _ in self.jobs],
            torch.no_grad()(self._batch),
            logits=[self.handle.shape.vocab_size] * len(self.jobs),
            together=self._same_length(),
        )
        for job, answer in found:
            yield self.jobs[job], answer

    def _batch(self, batch: list[int]) -> list[list[int]]:
        owners = list(dict.fromkeys(self.jobs[job][0] for job in batch))
        cache, own = self.prefix.begin([self.prompts[i] for i in owners])
        logits = logits_at(self.handle, own, cache, [[len(row) - 1] for row in own])
        decoding = _Decoding(
            cache,
            own_lengths=[len(row) for row in own],
            prefix_length=self.prefix.length,
            rows=[owners.index(self.jobs[job][0]) for job in batch],
            limits=[self.limits[self.jobs[job][0]] for job in batch],
            stop=self.stop,
            device=logits.device,
        )
        return decoding.run(self.handle.model, logits, self._choice(batch, logits.device))

    def _choice(self, batch: list[int], device: torch.device) -> Choose:
        """How the answers of a batch get their next tokens."""
        sampling, draws = self.sampling, torch.empty(0)
        if not self.greedy:
            numbers = [uniforms(self.seed, *self.jobs[job], self.longest) for job in batch]
            draws = torch.stack(numbers).to(device)

        def choose(logits: Tensor, answers: list[int], step: int) -> Tensor:
            likeliest = _likeliest(logits)
            if sampling is None or self.greedy:
                return likeliest
            return draw(logits, sampling, draws[answers, step])

        return choose

    def _same_length(self) -> Callable[[int, int], bool] | None:
        """Keeps prompts of different lengths apart where padding would fill a sliding window.

        Between prompt and answer, padding counts as distance there.
        """
        lengths = [len(self.prompts[i]) for i, _ in self.jobs]
        config = self.handle.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if not window or max(lengths, default=0) + self.longest <= window:
            return None
        return lambda one, other: lengths[one] == lengths[other]


Choose = Callable[[Tensor, list[int], int], Tensor]
"""``choose(logits (n, vocab), answers (n), step)`` -> tokens ``(n,)``."""


class _Decoding:
    """The answers of one batch, and what attention sees of its rows.

    Args:
        cache: Keys and values: the prefix, then each prompt's own tokens padded on the right.
        own_lengths: Of each prompt, prefix and padding not counted.
        prefix_length: Tokens that all share.
        rows: Per answer, the prompt it belongs to.
        limits: Per answer, tokens at most.
        stop: Tokens that end an answer.
        device: Where the logits are.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        own_lengths: Sequence[int],
        prefix_length: int,
        rows: Sequence[int],
        limits: Sequence[int],
        stop: frozenset[int],
        device: torch.device,
    ) -> None:
        self.cache, self.limits, self.stop = cache, limits, stop
        self.owner = torch.tensor(rows, device=device)
        lengths = torch.tensor(own_lengths, device=device)[self.owner]
        if list(rows) != list(range(len(own_lengths))):
            cache.batch_select_indices(self.owner)
        width = max(own_lengths)
        self.padded = min(own_lengths) < width
        self.seen = torch.ones(len(rows), prefix_length + width, dtype=torch.long, device=device)
        self.seen[:, prefix_length:] = torch.arange(width, device=device) < lengths[:, None]
        self.position = prefix_length + lengths
        self.answers: list[list[int]] = [[] for _ in rows]
        self.live = list(range(len(rows)))
        """Answer of each row still in the batch."""
        self.done = [limit <= 0 for limit in limits]

    def run(self, model: Any, logits: Tensor, choose: Choose) -> list[list[int]]:
        """Continue the prompts.

        Args:
            model: A transformers causal language model.
            logits: ``(prompts, vocab)`` after each prompt's last token.
            choose: Picks tokens.

        Returns:
            Per answer, its tokens without the one that ended it.
        """
        logits = logits[self.owner]
        for step in range(max(self.limits, default=0)):
            chosen = choose(logits, self.live, step)
            self._write(chosen)
            staying = [row for row, answer in enumerate(self.live) if not self.done[answer]]
            if not staying:
                break
            if len(staying) <= _WORTH_DROPPING * len(self.live):
                chosen = self._drop(staying, chosen)
            self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.live), 1)], -1)
            output = model(
                input_ids=chosen[:, None],
                attention_mask=self.seen if self.padded else None,
                position_ids=self.position[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            self.position = self.position + 1
        return self.answers

    def _write(self, chosen: Tensor) -> None:
        """Add each row's token to its answer, unless it ends it."""
        for answer, token in zip(self.live, chosen.tolist(), strict=True):
            if self.done[answer]:
                continue
            if token in self.stop:
                self.done[answer] = True
            else:
                self.answers[answer].append(token)
                self.done[answer] = len(self.answers[answer]) >= self.limits[answer]

    def _drop(self, staying: list[int], chosen: Tensor) -> Tensor:
        """Go on with the rows ``staying`` alone; what was chosen for them."""
        keep = torch.tensor(staying, device=chosen.device)
        self.cache.batch_select_indices(keep)
        self.seen, self.position = self.seen[keep], self.position[keep]
        self.live = [self.live[row] for row in staying]
        return chosen[keep]


def _likeliest(logits: Tensor) -> Tensor:
    """``(n,)`` tokens.

    Raises:
        AuditError: Logits are not finite.
    """
    best, chosen = logits.max(-1)
    if not bool(torch.isfinite(best).all()):
        raise not_finite()
    return chosen
