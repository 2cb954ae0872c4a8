"""Batched generation, scoring and hidden states: what every editor and auditor runs on.

A batch is laid out one way everywhere: tokens that all prompts share (a chat template's
system message) are run once and their keys and values reused; each row's own tokens follow,
padded on the *right*, where causal attention never looks; answers are written onto rows aligned on
the right, what stands before them masked, under explicit positions. So no prompt sees its
neighbours' padding, and results equal those of one prompt at a time up to the rounding of sums:
1e-4 nats in float32. In bfloat16 rounding is coarse: on SmolLM2, whether a prefix is shared moves a
log-probability by 0.07 nats on average, as much as bfloat16 itself does, and one greedy answer
in sixteen turns on it. The same call on the same weights gives the same result; in float32, drafts
move it by the rounding of sums.

What leaves a call is what was read (chosen log-probabilities, ranks, a divergence), never a
distribution over the vocabulary per item. How it is done: :mod:`~safeedit.model.batching` (sizes of
batches), :mod:`~safeedit.model.shared_prefix`, :mod:`~safeedit.model.passes` (one pass),
:mod:`~safeedit.model.generation`, :mod:`~safeedit.model.teacher_forcing`.

Fails with :class:`~safeedit.errors.AuditError` where a prompt is longer than the model's
context, empty, or too large for memory, or where logits are not numbers. Prompts are named by
index, never quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from safeedit.contracts import Progress, Template, silent
from safeedit.errors import UsageError
from safeedit.model import batching
from safeedit.model.activations import What
from safeedit.model.architectures import Site
from safeedit.model.batching import Batcher, common_prefix
from safeedit.model.foreknown import ForeknownAnswers
from safeedit.model.generation import Along, Generation
from safeedit.model.passes import block_outputs, check_prompts, context_length, padded_inputs
from safeedit.model.sampling import Sampling
from safeedit.model.scoring import NO_SCORES, TokenScores, joined, token_scores
from safeedit.model.teacher_forcing import TeacherForcing, tail_log_probs
from safeedit.model.tokens import TokenCodec

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

__all__ = ["Along", "Engine", "Sampling", "TokenCodec", "TokenScores"]

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
        self._foreknown = ForeknownAnswers()
        self._learns = False
        self.preface = ""
        """Key of what stands before every prompt (:mod:`~safeedit.model.prefaces`), if anything."""

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
        return context_length(self.handle)

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

    @contextmanager
    def foreknowing(self, answers: ForeknownAnswers, *, learn: bool) -> Iterator[None]:
        """Within it, ``answers`` are drafts of greedy ones, and ``learn`` adds what is answered."""
        before = self._foreknown, self._learns
        self._foreknown, self._learns = answers, learn
        try:
            yield
        finally:
            self._foreknown, self._learns = before

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        drafts: Sequence[Sequence[Sequence[int]]] | None = None,
        along: Along | None = None,
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
            drafts: Of each prompt, answers that it may well have, first ones tried first: what they
                get right is not written token by token. Float32 only, and greedily.
            along: What else is read where drafts are run.
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
            UsageError: Numbers of tokens or drafts are not as many as prompts.
        """
        check_prompts(self.handle, prompts)
        generation = Generation(
            self.handle,
            prompts,
            max_new_tokens,
            drafts=self._foreknown.drafts(prompts, drafts),
            along=along,
            sampling=sampling,
            samples=samples,
            seed=seed,
            stop=frozenset(self.stop_ids if stop_ids is None else stop_ids),
        )
        found = progress(generation.each(self._batcher), description, len(generation.answers))
        answers, drawn = dict(found), [generation.written(n) for n in range(samples)]
        if self._learns and generation.greedy:
            self._foreknown.learn(prompts, [answers[i, 0] for i in range(len(prompts))])
        return [[list(answers[i, n]) for n in drawn] for i in range(len(prompts))]

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

        forced = TeacherForcing(self.handle, prompts, continuations, read)
        for index, parts in progress(forced.each(self._batcher), description, len(prompts)):
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
                whole = [*prompt, *start]
                for place, nats in tail_log_probs(self.handle, self._batcher, whole, tails):
                    yield index, place, nats

        found = [
            torch.full((len(some),), score.total, dtype=torch.float64)
            for some, score in zip(continuations, begun, strict=True)
        ]
        for index, place, nats in progress(parts(), description, sum(map(len, continuations))):
            found[index][place] += nats
        return found

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

        forced = TeacherForcing(self.handle, prompts, shortened, seen)
        for index, parts in progress(forced.each(self._batcher), description, len(prompts)):
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
        if len(prompts) * width > batching.MAX_LOGITS:
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
        for text, ids in enumerate(self.codec.running(texts)):
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
        check_prompts(self.handle, prompts)

        def run(batch: list[int]) -> list[dict[Site, Tensor]]:
            captured = self.handle.capture(padded_inputs([prompts[i] for i in batch]), sites, what)
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
        check_prompts(self.handle, prompts)
        wanted = self.handle.shape.layers(layers)

        def kept(row: Sequence[int]) -> int | slice:
            return len(row) - 1 if reduce == "last" else slice(len(row))

        def run(batch: list[int]) -> list[dict[int, Tensor]]:
            rows = [prompts[index] for index in batch]
            states = block_outputs(self.handle, padded_inputs(rows), wanted)
            return [
                {layer: state[number, kept(row)].cpu() for layer, state in states.items()}
                for number, row in enumerate(rows)
            ]

        result: dict[int, list[Tensor]] = {
            layer: [torch.empty(0)] * len(prompts) for layer in wanted
        }
        found = self._batcher.each([len(prompt) for prompt in prompts], run)
        for index, states in progress(found, description, len(prompts)):
            for layer, state in states.items():
                result[layer][index] = state
        return result


def _automatic_tokens(handle: ModelHandle) -> int:
    """A batch whose activations and cache take about a third of what is free."""
    device = handle.device
    if device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    shape = handle.shape
    entries = 2 * shape.n_layers * shape.d_model + 8 * (shape.d_mlp + 2 * shape.d_model)
    return max(1024, min(1 << 17, int(free / 3 / (entries * handle.dtype.itemsize))))
