"""Batched generation, scoring and hidden states: what every editor and auditor runs on.

A batch is laid out one way everywhere: tokens that all prompts share (a chat template's
system message) are run once and their keys and values reused; each row's own tokens follow,
padded on the *right*, where causal attention never looks; generated tokens come after the
padding, which is then masked, under explicit positions. So no prompt sees its neighbours'
padding, and results equal those of one prompt at a time up to the rounding of sums: 1e-4
nats in float32. In bfloat16 rounding is coarse: on SmolLM2, whether a prefix is shared moves a
log-probability by 0.07 nats on average, as much as bfloat16 itself does, and one greedy answer
in sixteen turns on it. The same call on the same weights gives the same result.

Logits are computed at the positions asked for and nowhere else: a hook before the head picks
them, so that what a model does after its head (Gemma 2's soft cap) happens as ever. A distribution
over the vocabulary is read within the batch that made it and goes with it; what leaves a call is
what was read (chosen log-probabilities, ranks, a divergence), because a row of the vocabulary per
item is 20 GB of a model of 0.3 B parameters with 262,144 tokens.

Fails with :class:`~safeedit.errors.AuditError` where a prompt is longer than the model's
context, empty, or too large for memory, or where logits are not numbers. Prompts are named by
index, never quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from safeedit.contracts import Progress, Template, silent
from safeedit.errors import AuditError, UsageError
from safeedit.model.activations import StopForward, What
from safeedit.model.architectures import Site
from safeedit.model.batching import MAX_LOGITS, Batcher, common_prefix, pad_right
from safeedit.model.generation import generate_batch
from safeedit.model.sampling import Sampling, uniforms
from safeedit.model.scoring import NO_SCORES, TokenScores, joined, token_scores
from safeedit.model.tokens import TokenCodec

if TYPE_CHECKING:
    from transformers import Cache

    from safeedit.model.handle import ModelHandle

__all__ = ["Engine", "Sampling", "TokenCodec", "TokenScores"]

_MIN_PREFIX = 8
"""Shared tokens below which reuse is not worth a pass of its own."""

_CPU_TOKENS = 8192
"""Padded tokens in a batch off the GPU: enough to keep a few cores busy, little in memory."""


class Engine:
    """Runs a model over many prompts.

    Args:
        handle: The model. Edits made to it between calls take effect.
        max_batch_tokens: Padded tokens per batch; None chooses by the device. Halves itself
            when memory runs out and remembers.
    """

    def __init__(self, handle: ModelHandle, max_batch_tokens: int | None = None) -> None:
        self.handle = handle
        self._batcher = Batcher(max_batch_tokens or _automatic_tokens(handle))

    # Text -----------------------------------------------------------------------------

    @cached_property
    def codec(self) -> TokenCodec:
        """The tokenizer, used one way everywhere.

        Raises:
            UsageError: The handle was made without a tokenizer.
        """
        if self.handle.tokenizer is None:
            raise UsageError("this model was opened without a tokenizer")
        return TokenCodec(self.handle.tokenizer, self.handle.shape.vocab_size)

    def encode(
        self,
        texts: Sequence[str],
        template: Template = "auto",
        *,
        system: str | None = None,
        answer_prefix: str = "",
    ) -> list[list[int]]:
        """Token ids of prompts, see :meth:`~safeedit.model.tokens.TokenCodec.encode`."""
        return self.codec.encode(texts, template, system=system, answer_prefix=answer_prefix)

    def continuation(self, text: str, template: Template = "auto") -> list[int]:
        """Token ids of an answer after a prompt, see
        :meth:`~safeedit.model.tokens.TokenCodec.continuation`."""
        return self.codec.continuation(text, template)

    def continuations(self, texts: Sequence[str], template: Template = "auto") -> list[list[int]]:
        """Token ids of many answers, see
        :meth:`~safeedit.model.tokens.TokenCodec.continuations`."""
        return self.codec.continuations(texts, template)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.codec.decode(ids)

    @property
    def max_batch_tokens(self) -> int:
        """Padded tokens per batch at present."""
        return self._batcher.max_tokens

    @property
    def context(self) -> int:
        """Tokens the model was made to read at most, prompt and answer together."""
        config = self.handle.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the model, and the tokenizer's EOS."""
        found: set[int] = set()
        tokenizer = self.handle.tokenizer
        for ids in (
            getattr(self.handle.model.generation_config, "eos_token_id", None),
            getattr(self.handle.config.get_text_config(), "eos_token_id", None),
            getattr(tokenizer, "eos_token_id", None),
        ):
            found.update([ids] if isinstance(ids, int) else ids or [])
        return frozenset(found)

    # Generation -----------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        samples: int = 1,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        progress: Progress = silent,
        description: str = "generating",
    ) -> list[list[list[int]]]:
        """Answers to prompts.

        Args:
            prompts: Token ids, see :meth:`encode`.
            max_new_tokens: Tokens at most, of all or of each; fewer where the context ends.
            sampling: None takes the likeliest token each time.
            samples: Answers per prompt; more than one only makes sense with ``sampling``.
            seed: An answer depends on it, its prompt's index and its own number alone.
            stop_ids: Tokens that end an answer; None is :attr:`stop_ids`.
            progress: Counts answers.
            description: For ``progress``.

        Returns:
            ``[prompt][sample]`` -> ids of the new tokens, without the one that ended it.

        Raises:
            AuditError: See the module.
            UsageError: As many numbers of tokens as prompts were needed.
        """
        self._check(prompts)
        if isinstance(max_new_tokens, int):
            max_new_tokens = [max_new_tokens] * len(prompts)
        if len(max_new_tokens) != len(prompts):
            raise UsageError("prompts and max_new_tokens must be equally many")
        longest = max(max_new_tokens, default=0)
        greedy = sampling is None or sampling.temperature == 0
        distinct = 1 if greedy else samples  # greedy samples are all the same
        jobs = [(i, sample) for i in range(len(prompts)) for sample in range(distinct)]
        stop = frozenset(self.stop_ids if stop_ids is None else stop_ids)
        prefix = self._prefix(prompts)
        limits = [
            min(most, self.context - len(prompt))
            for most, prompt in zip(max_new_tokens, prompts, strict=True)
        ]

        def run(batch: list[int]) -> list[list[int]]:
            owners = list(dict.fromkeys(jobs[job][0] for job in batch))
            rows = [owners.index(jobs[job][0]) for job in batch]
            cache, own = self._begin(prefix, [prompts[i] for i in owners])
            logits = self._forward(own, cache, [[len(row) - 1] for row in own])
            draws = None
            if not greedy:
                numbers = [uniforms(seed, *jobs[job], longest) for job in batch]
                draws = torch.stack(numbers).to(logits.device)
            return generate_batch(
                self.handle.model,
                logits,
                cache,
                own_lengths=[len(row) for row in own],
                prefix_length=prefix.length,
                rows=rows,
                limits=[limits[jobs[job][0]] for job in batch],
                stop=stop,
                sampling=sampling,
                draws=draws,
            )

        answers: list[list[list[int]]] = [[[]] * samples for _ in prompts]
        found = self._batcher.each(
            [len(prompts[i]) + limits[i] for i, _ in jobs],
            torch.no_grad()(run),
            logits=[self.handle.shape.vocab_size] * len(jobs),
            together=self._same_length([len(prompts[i]) for i, _ in jobs], longest),
        )
        for job, answer in progress(found, description, len(jobs)):
            i, sample = jobs[job]
            if greedy:
                answers[i] = [list(answer) for _ in range(samples)]
            else:
                answers[i][sample] = answer
        return answers

    # Scoring --------------------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        ranks: bool = False,
        progress: Progress = silent,
        description: str = "scoring",
    ) -> list[TokenScores]:
        """Log-probabilities of each continuation's tokens after its prompt.

        Args:
            prompts: Token ids, see :meth:`encode`.
            continuations: Token ids, see :meth:`continuation`; may be empty.
            ranks: Whether to rank each token among the vocabulary.
            progress: Counts prompts.
            description: For ``progress``.

        Raises:
            AuditError: See the module.
        """
        scores = [NO_SCORES] * len(prompts)

        def read(index: int, positions: range, logits: Tensor, targets: Tensor) -> TokenScores:
            return token_scores(logits, targets, ranks)

        found = self._teacher_forced(prompts, continuations, read)
        for index, parts in progress(found, description, len(prompts)):
            scores[index] = joined(parts)
        return scores

    def totals(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Sequence[int]]],
        *,
        progress: Progress = silent,
        description: str = "scoring",
    ) -> list[Tensor]:
        """Log-probabilities of many whole continuations of each prompt.

        Equal to the totals of :meth:`score`, for a fraction of the work: a prompt and what all
        its continuations begin with are run twice, however many there are, and continuations
        that differ in their last token alone are run as one.

        Args:
            prompts: Token ids, see :meth:`encode`.
            continuations: Per prompt, token ids of each; an empty one has probability 1.
            progress: Counts continuations.
            description: For ``progress``.

        Returns:
            Per prompt, ``(its continuations,)`` nats, float64, on the CPU.

        Raises:
            AuditError: See the module.
            UsageError: There are more prompts than lists of continuations, or fewer.
        """
        if len(prompts) != len(continuations):
            raise UsageError("prompts and continuations must be equally many")
        starts = [list(each[0][: common_prefix(each)]) if each else [] for each in continuations]
        begun = self.score(prompts, starts)

        def parts() -> Iterator[tuple[int, int, float]]:
            for index, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
                tails = [list(ids[len(start) :]) for ids in continuations[index]]
                for place, nats in self._tails([*prompt, *start], tails):
                    yield index, place, nats

        found = [
            torch.full((len(some),), score.total, dtype=torch.float64)
            for some, score in zip(continuations, begun, strict=True)
        ]
        for index, place, nats in progress(parts(), description, sum(map(len, continuations))):
            found[index][place] += nats
        return found

    def _tails(
        self, prompt: list[int], tails: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, float]]:
        """``(index, log-probability)`` of continuations of one prompt, in any order."""
        sharing: dict[tuple[int, ...], list[int]] = {}
        for index, tail in enumerate(tails):
            if tail:
                sharing.setdefault(tuple(tail[:-1]), []).append(index)
            else:
                yield index, 0.0
        groups = list(sharing.values())

        def read(group: int, positions: range, logits: Tensor, targets: Tensor) -> Tensor:
            logits = logits.float()
            scale = logits.logsumexp(-1)
            own = (logits.gather(-1, targets[:, None])[:, 0] - scale).double()
            if positions.stop < len(rows[group]):
                return own.sum()
            last = torch.tensor([tails[index][-1] for index in groups[group]])
            ends = logits[-1, last.to(logits.device)] - scale[-1]
            return own[:-1].sum() + ends.double()

        rows = [tails[group[0]] for group in groups]
        for group, parts in self._teacher_forced([prompt] * len(rows), rows, read):
            yield from zip(groups[group], sum(parts).tolist(), strict=True)

    def distributions(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        read: Callable[[int, range, Tensor], Tensor],
        *,
        max_positions: int | None = None,
        progress: Progress = silent,
        description: str = "scoring",
    ) -> Iterator[tuple[int, Tensor]]:
        """What ``read`` makes of the distributions over each continuation's tokens.

        Each is read where and when it was computed, and then let go.

        Args:
            prompts: Token ids, see :meth:`encode`.
            continuations: Token ids, see :meth:`continuation`.
            read: Given the index of a prompt, positions in its continuation, and
                log-probabilities ``(len(positions), vocab)`` that predict the tokens there, nats,
                float32, on the device; returns a row for each position. A continuation that is
                long for its vocabulary comes in parts.
            max_positions: Read the first tokens only.
            progress: Counts prompts.
            description: For ``progress``.

        Yields:
            ``(index, (p, ...))`` in any order, rows of all positions, on the CPU.

        Raises:
            AuditError: See the module.
        """
        shortened = [list(continuation)[:max_positions] for continuation in continuations]

        def seen(index: int, positions: range, logits: Tensor, targets: Tensor) -> Tensor:
            return read(index, positions, logits.float().log_softmax(-1)).cpu()

        found = self._teacher_forced(prompts, shortened, seen)
        for index, parts in progress(found, description, len(prompts)):
            yield index, torch.cat(parts)

    def next_token_log_probs(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[int] | None = None,
        *,
        progress: Progress = silent,
        description: str = "scoring",
    ) -> Tensor:
        """What follows each prompt.

        Args:
            prompts: Token ids, see :meth:`encode`.
            tokens: Whose probabilities are wanted; None is the whole vocabulary, for a few prompts.
            progress: Counts prompts.
            description: For ``progress``.

        Returns:
            ``(n, tokens)`` nats, float32, on the CPU.

        Raises:
            AuditError: See the module.
            UsageError: That would be more than :data:`~safeedit.model.batching.MAX_LOGITS`
                numbers.
        """
        width = self.handle.head.weight.shape[0] if tokens is None else len(tokens)
        if len(prompts) * width > MAX_LOGITS:
            raise UsageError(
                f"{len(prompts)} prompts x {width} tokens are too many log-probabilities to return",
                remedy="name the tokens that are looked at, or read each distribution as it is "
                "computed (Engine.distributions)",
            )
        result = torch.empty(len(prompts), width)

        def read(index: int, positions: range, log_probs: Tensor) -> Tensor:
            return log_probs if tokens is None else log_probs[:, list(tokens)]

        # The token itself does not matter: only what precedes it is read.
        for index, row in self.distributions(
            prompts, [[0]] * len(prompts), read, progress=progress, description=description
        ):
            result[index] = row[0]
        return result

    def text_nll(
        self,
        texts: Sequence[str],
        max_length: int = 1024,
        *,
        progress: Progress = silent,
        description: str = "reading",
    ) -> list[tuple[float, int]]:
        """Negative log-likelihood of plain texts, for perplexity.

        A text longer than ``max_length`` tokens is read in windows of that many, each begun
        afresh (with BOS, where the tokenizer has one); a window's first token is not scored
        unless BOS precedes it.

        Returns:
            Per text, the sum in nats and the number of tokens it is over.

        Raises:
            AuditError: See the module.
        """
        bos = list(self.codec.bos)
        size = max(2, min(max_length, self.context)) - len(bos)
        owners: list[int] = []
        starts: list[list[int]] = []
        rests: list[list[int]] = []
        for text, ids in enumerate(self.encode(texts, "plain")):
            ids = ids[len(bos) :]
            for begin in range(0, len(ids), size):
                window = bos + ids[begin : begin + size]
                if len(window) < 2:
                    continue
                owners.append(text)
                starts.append(window[: max(1, len(bos))])
                rests.append(window[max(1, len(bos)) :])
        sums, counts = [0.0] * len(texts), [0] * len(texts)
        scores = self.score(starts, rests, progress=progress, description=description)
        for text, score in zip(owners, scores, strict=True):
            sums[text] -= score.total
            counts[text] += len(score.log_probs)
        return list(zip(sums, counts, strict=True))

    # Activations ----------------------------------------------------------------------

    def activations(
        self,
        prompts: Sequence[Sequence[int]],
        sites: Sequence[Site],
        progress: Progress = silent,
        description: str = "reading activations",
        *,
        what: What = "input",
    ) -> Iterator[tuple[int, dict[Site, Tensor]]]:
        """What goes into (or out of) the matrices at ``sites``, prompt by prompt.

        Yields:
            ``(index, site -> (tokens, width))`` in any order, in the model's dtype, on the
            device where it was computed, padding removed.

        Raises:
            AuditError: See the module.
        """
        self._check(prompts)

        def run(batch: list[int]) -> list[dict[Site, Tensor]]:
            captured = self.handle.capture(self._inputs(prompts, batch), sites, what)
            return [
                {
                    site: activation[row, : len(prompts[index])]
                    for site, activation in captured.items()
                }
                for row, index in enumerate(batch)
            ]

        found = self._batcher.each([len(prompt) for prompt in prompts], run)
        yield from progress(found, description, len(prompts))

    def hidden(
        self,
        prompts: Sequence[Sequence[int]],
        layers: Sequence[int],
        reduce: Literal["last", "all"] = "last",
        *,
        progress: Progress = silent,
        description: str = "reading hidden states",
    ) -> dict[int, list[Tensor]]:
        """The residual stream as it leaves blocks (before any final norm).

        Args:
            prompts: Token ids.
            layers: Blocks, from 0.
            reduce: ``last`` keeps each prompt's last token, ``all`` every token.
            progress: Counts prompts.
            description: For ``progress``.

        Returns:
            Layer -> per prompt ``(d_model,)`` or ``(tokens, d_model)``, in the model's dtype,
            on the CPU.

        Raises:
            AuditError: See the module.
            UsageError: The model has no such layer.
        """
        self._check(prompts)
        wanted = self.handle.shape.layers(layers)

        def run(batch: list[int]) -> list[dict[int, Tensor]]:
            states = self._block_outputs(self._inputs(prompts, batch), wanted)
            return [
                {
                    layer: (
                        state[row, len(prompts[index]) - 1]
                        if reduce == "last"
                        else state[row, : len(prompts[index])]
                    ).cpu()
                    for layer, state in states.items()
                }
                for row, index in enumerate(batch)
            ]

        result: dict[int, list[Tensor]] = {
            layer: [torch.empty(0)] * len(prompts) for layer in wanted
        }
        found = self._batcher.each([len(prompt) for prompt in prompts], run)
        for index, states in progress(found, description, len(prompts)):
            for layer, state in states.items():
                result[layer][index] = state
        return result

    @torch.no_grad()
    def _block_outputs(
        self, inputs: Mapping[str, Tensor], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        states: dict[int, Tensor] = {}
        last = max(layers, default=-1)

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                states[layer] = output[0] if isinstance(output, tuple) else output
                if layer == last:
                    raise StopForward

            return hook

        blocks = self.handle.blocks()
        hooks = [blocks[layer].register_forward_hook(keep(layer)) for layer in set(layers)]
        try:
            self.handle.forward(inputs)
        except StopForward:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return states

    @staticmethod
    def _inputs(prompts: Sequence[Sequence[int]], batch: Sequence[int]) -> dict[str, Tensor]:
        rows = [prompts[index] for index in batch]
        ones = [[1] * len(row) for row in rows]
        return {"input_ids": pad_right(rows), "attention_mask": pad_right(ones)}

    # One batch ------------------------------------------------------------------------

    def _teacher_forced(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        read: Callable[[int, range, Tensor, Tensor], Any],
    ) -> Iterator[tuple[int, list[Any]]]:
        """``read(index, positions, logits (p, vocab), targets (p,))`` of each continuation, in any
        order: a list of what it made of each part, of which there are several only where one
        continuation asks for more than ``MAX_LOGITS`` logits.

        What differs in its last token alone, as "he" and "she" after one prompt do, is run once.
        """
        if len(prompts) != len(continuations):
            raise UsageError("prompts and continuations must be equally many")
        # The last token of a continuation is predicted, never read.
        rows = [[*p, *c[:-1]] for p, c in zip(prompts, continuations, strict=True)]
        self._check(prompts)
        self._check(rows)
        prefix = self._prefix(prompts)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            alike.setdefault((len(prompt), len(continuations[index]), *row), []).append(index)
        groups = list(alike.values())

        vocab = self.handle.shape.vocab_size
        most = max(1, MAX_LOGITS // vocab)

        def of_all(group: int, positions: range, logits: Tensor) -> list[Any]:
            wanted = [continuations[i][positions.start : positions.stop] for i in groups[group]]
            targets = torch.tensor(wanted, dtype=torch.long, device=logits.device)
            return [
                read(i, positions, logits, own)
                for i, own in zip(groups[group], targets, strict=True)
            ]

        def run(batch: list[int]) -> list[list[list[Any]]]:
            firsts = [groups[group][0] for group in batch]
            cache, own = self._begin(prefix, [rows[i] for i in firsts])
            begin = [len(prompts[i]) - 1 - prefix.length for i in firsts]
            counts = [len(continuations[i]) for i in firsts]
            asked = [list(range(f, f + n)) for f, n in zip(begin, counts, strict=True)]
            if max(counts) > most:  # and so alone in its batch
                (group,) = batch
                states = self._states(own, cache, asked)
                return [
                    [
                        of_all(group, range(at, at + len(part)), _finite(self.handle.logits(part)))
                        for at, part in zip(
                            range(0, len(states), most), states.split(most), strict=True
                        )
                    ]
                ]
            logits = self._forward(own, cache, asked).split(counts)
            return [
                [of_all(group, range(len(part)), part)]
                for group, part in zip(batch, logits, strict=True)
            ]

        for group, found in self._batcher.each(
            [len(rows[some[0]]) for some in groups],
            torch.no_grad()(run),
            logits=[len(continuations[some[0]]) * vocab for some in groups],
        ):
            yield from zip(groups[group], map(list, zip(*found, strict=True)), strict=True)

    def _forward(self, own: list[list[int]], cache: Cache | None, at: list[list[int]]) -> Tensor:
        """Logits ``(n, vocab)`` at positions ``at`` of right-padded rows.

        No mask is passed: padding stands where causal attention does not look.
        """
        if not any(at):
            return torch.empty(0, self.handle.head.weight.shape[0])
        with _head_sees(self.handle.head, at):
            logits: Tensor = self._model(own, cache).logits[0]
        return _finite(logits)

    def _states(self, own: list[list[int]], cache: Cache | None, at: list[list[int]]) -> Tensor:
        """What the head would get of those positions, ``(n, d_model)``; it is not run."""
        seen: list[Tensor] = []

        def keep(hidden: Tensor) -> None:
            seen.append(hidden[0])
            raise StopForward

        with _head_sees(self.handle.head, at, keep), suppress(StopForward):
            self._model(own, cache)
        return seen[0]

    def _model(self, own: list[list[int]], cache: Cache | None) -> Any:
        tokens = pad_right(own, self._filler).to(self.handle.device)
        return self.handle.model(
            input_ids=tokens, past_key_values=cache, use_cache=cache is not None
        )

    @property
    def _filler(self) -> int:
        """Any token but the one transformers takes for padding, which it would warn about."""
        return 1 if self.handle.config.get_text_config().pad_token_id == 0 else 0

    def _begin(
        self, prefix: _Prefix, rows: Sequence[Sequence[int]]
    ) -> tuple[Cache, list[list[int]]]:
        """A cache that holds the shared prefix for each row, and what is left of the rows."""
        from transformers import DynamicCache

        # Not told the config: layers with a sliding window then keep all keys, which masks
        # made from positions in the cache rely on.
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(prefix.states):
            size = (len(rows), -1, -1, -1)
            cache.update(keys.expand(size), values.expand(size), layer)
        return cache, [list(row[prefix.length :]) for row in rows]

    @torch.no_grad()
    def _prefix(self, prompts: Sequence[Sequence[int]]) -> _Prefix:
        """Keys and values of what all prompts share, but for one token of the shortest."""
        if len(prompts) < 2:
            return _Prefix()
        length = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if length < _MIN_PREFIX:
            return _Prefix()
        from transformers import DynamicCache

        cache = DynamicCache()
        tokens = torch.tensor([list(prompts[0][:length])], device=self.handle.device)
        self.handle.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        states = tuple((layer.keys, layer.values) for layer in cache.layers)
        return _Prefix(length, states)

    def _same_length(
        self, lengths: Sequence[int], further: int
    ) -> Callable[[int, int], bool] | None:
        """Keeps prompts of different lengths apart where padding would fill a sliding window.

        Between prompt and answer, padding counts as distance there.
        """
        config = self.handle.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if not window or max(lengths, default=0) + further <= window:
            return None
        return lambda one, other: lengths[one] == lengths[other]

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        limit = self.context
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise AuditError(
                    f"prompt {index} is empty: there is nothing for an answer to follow",
                    remedy="remove it",
                )
            if len(prompt) > limit:
                raise AuditError(
                    f"prompt {index} has {len(prompt)} tokens and the model's context {limit}",
                    remedy="shorten it, or use a model with a longer context",
                )


@dataclass(frozen=True)
class _Prefix:
    length: int = 0
    states: tuple[tuple[Tensor, Tensor], ...] = ()
    """Per block, keys and values ``(1, heads, length, head_dim)``."""


def _finite(logits: Tensor) -> Tensor:
    """``logits``, seen to be numbers."""
    if not bool(torch.isfinite(logits.max())):  # NaN is the greatest of all
        raise AuditError(
            "the model's logits are not finite numbers",
            remedy="the edit was too strong for the model's dtype: use a lower dose, or "
            "dtype: float32",
        )
    return logits


@contextmanager
def _head_sees(
    head: nn.Module, at: list[list[int]], see: Callable[[Tensor], None] = lambda hidden: None
) -> Iterator[None]:
    """Within the context, the head gets ``(1, n, d)``, and ``see`` before it: hidden states at
    positions ``at`` of each row."""
    rows = torch.tensor([row for row, positions in enumerate(at) for _ in positions])
    columns = torch.tensor([position for positions in at for position in positions])

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        chosen = hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(0)
        see(chosen)
        return (chosen, *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def _automatic_tokens(handle: ModelHandle) -> int:
    """A batch whose activations and cache take about a third of what is free."""
    device = handle.device
    if device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    shape = handle.shape
    entries = 2 * shape.n_layers * shape.d_model + 8 * (shape.d_mlp + 2 * shape.d_model)
    return max(1024, min(1 << 17, int(free / 3 / (entries * handle.dtype.itemsize))))
