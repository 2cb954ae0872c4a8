"""Causal tracing: where in a model goes what a prompt says of its subject.

The subject's embeddings are drowned in noise, and what the model holds of the answer, a *score*
read from the logits at the prompt's end, falls. Then, still under the same noise, one thing is put
back to what it is without noise: the residual stream as it leaves one block, or what the MLPs or
the attentions of a few neighbouring blocks write, at the tokens of one *place*. The part of the
score that comes back is the indirect effect of that kind, place and layer. Runs of one batch differ
in nothing but what is put back.

What precedes the first drowned token is the same in all runs and is read once; a run begins at the
first block that it changes.

Source: Meng et al., NeurIPS 2022 (ROME, arXiv 2202.05262), section 2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from safeedit.contracts import Progress, silent
from safeedit.errors import UsageError
from safeedit.model.activations import StopForward, starting_at
from safeedit.model.architectures import Site
from safeedit.model.batching import Batcher, common_prefix, pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import check_prompts, filler_token
from safeedit.model.shared_prefix import SharedPrefix

Kind = Literal["state", "mlp", "attention"]
"""What is put back: the residual stream, or what MLPs or attentions write."""
Place = Literal["first subject", "middle subject", "last subject", "further", "last"]
"""Where: tokens of the subject, those after it, and the prompt's last. A subject of one token has
a last one alone; a prompt that ends with its subject has no further ones."""
KINDS: tuple[Kind, ...] = get_args(Kind)
PLACES: tuple[Place, ...] = get_args(Place)

Read = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits ``(n, vocab)`` at prompts' ends and the index of each one's prompt -> scores ``(n,)``."""

_ROLES: Mapping[Kind, str] = {"mlp": "mlp_out", "attention": "attn_out"}


@dataclass(frozen=True)
class TracedPrompt:
    """A prompt whose subject is to be drowned.

    Attributes:
        ids: Token ids.
        subject: Tokens of the mention that places are told from.
        drowned: Tokens that get noise, ascending; one at least.
    """

    ids: tuple[int, ...]
    subject: range
    drowned: tuple[int, ...]

    def positions(self, place: Place) -> tuple[int, ...]:
        """Tokens of a place; none where the prompt has no such place."""
        first, end, last = self.subject[0], self.subject[-1], len(self.ids) - 1
        found: dict[Place, Sequence[int]] = {
            "first subject": range(first, min(first + 1, end)),
            "middle subject": range(first + 1, end),
            "last subject": (end,),
            "further": range(end + 1, last),
            "last": (last,),
        }
        return tuple(found[place])


@dataclass(frozen=True, eq=False)
class Effects:
    """Scores, means over draws of the noise; fp64, CPU.

    Attributes:
        clean: ``(prompts,)`` without noise.
        noisy: ``(prompts,)`` under it.
        restored: Kind and place -> ``(prompts, layers)``: how much higher than under noise the
            score is with that put back; NaN where a prompt has no such place.
    """

    clean: Tensor
    noisy: Tensor
    restored: Mapping[tuple[Kind, Place], Tensor]


def window_of(layer: int, width: int, n_layers: int) -> range:
    """``width`` layers around one, fewer at either end of the model."""
    first = layer - width // 2
    return range(max(0, first), min(n_layers, first + width))


def usual_window(n_layers: int) -> int:
    """A fifth of the model, as published."""
    return max(1, round(n_layers / 5))


@torch.no_grad()
def trace(
    model: ModelHandle,
    prompts: Sequence[TracedPrompt],
    read: Read,
    *,
    kinds: Sequence[Kind] = KINDS,
    places: Sequence[Place] = PLACES,
    window: int = 1,
    noise: float = 3.0,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Effects:
    """Indirect effects; a run over all prompts and draws per kind, place and layer.

    Args:
        model: As it is.
        prompts: One at least.
        read: What the score is.
        kinds: What to put back.
        places: Where.
        window: Neighbouring layers put back at a time, of MLPs and attentions (published: 10 of
            48); of the residual stream it is one.
        noise: Standard deviation, in that of the entries of the drowned tokens' embeddings
            (published: 3).
        draws: Of the noise, for each prompt (published: 10).
        seed: Of the noise; a draw does not depend on how prompts are batched.
        progress: Shown per run.

    Raises:
        AuditError: A prompt is longer than the model's context, or does not fit into memory.
        UsageError: There is no prompt, or a number makes no sense.
    """
    if not prompts or window < 1 or draws < 1 or noise < 0:
        raise UsageError("tracing needs a prompt, a window, a draw, and noise that is not negative")
    check_prompts(model, [prompt.ids for prompt in prompts])
    drawn = _drawn(model, prompts, noise, draws, seed)
    prefix = _clean_prefix(model, prompts)

    def run(batch: list[int]) -> list[_Traced]:
        runs = _Runs(model, prompts, drawn, prefix, batch, read)
        return runs.traced(kinds, places, window, progress)

    tokens = [draws * len(prompt.ids) for prompt in prompts]
    logits = [draws * model.shape.vocab_size] * len(prompts)
    found = dict(Batcher(model.engine.max_batch_tokens).each(tokens, run, logits=logits))
    each = [found[index] for index in range(len(prompts))]
    return Effects(
        torch.stack([one.clean for one in each]),
        torch.stack([one.noisy for one in each]),
        {key: torch.stack([one.restored[key] for one in each]) for key in each[0].restored},
    )


def spread_of(model: ModelHandle, prompts: Sequence[TracedPrompt]) -> float:
    """Standard deviation of the entries of the drowned tokens' embeddings, as the module gives
    them: some families scale what is stored."""
    tokens = [prompt.ids[place] for prompt in prompts for place in prompt.drowned]
    return float(model.embedding(torch.tensor(tokens, device=model.device)).float().std())


def _drawn(
    model: ModelHandle, prompts: Sequence[TracedPrompt], noise: float, draws: int, seed: int
) -> list[Tensor]:
    """Noise for each prompt, ``(draws, drowned, width)``."""
    spread = spread_of(model, prompts)
    generator = torch.Generator().manual_seed(seed)
    width = model.embedding.weight.shape[1]
    return [
        torch.randn(draws, len(prompt.drowned), width, generator=generator) * noise * spread
        for prompt in prompts
    ]


def _clean_prefix(model: ModelHandle, prompts: Sequence[TracedPrompt]) -> SharedPrefix:
    """What all prompts begin with, up to the first token that any of them drowns."""
    shared = common_prefix([prompt.ids for prompt in prompts])
    start = min(shared, min(prompt.drowned[0] for prompt in prompts))
    return SharedPrefix.of(model, [prompt.ids[: start + 1] for prompt in prompts])


@dataclass(eq=False)
class _Traced:
    """:class:`Effects` of one prompt: numbers, and ``(layers,)`` per kind and place."""

    clean: Tensor
    noisy: Tensor
    restored: dict[tuple[Kind, Place], Tensor]


@dataclass(frozen=True)
class _Job:
    """What one run puts back."""

    kind: Kind
    place: Place
    layer: int
    changed: range
    """Layers concerned."""


@dataclass(eq=False)
class _Clean:
    """Activations without noise, ``(prompts, seq, d_model)`` each."""

    states: dict[int, Tensor] = field(default_factory=dict)
    written: dict[Site, Tensor] = field(default_factory=dict)


class _Runs:
    """One batch: its prompts once as they are, then each under all its noise."""

    def __init__(
        self,
        model: ModelHandle,
        prompts: Sequence[TracedPrompt],
        drawn: Sequence[Tensor],
        prefix: SharedPrefix,
        batch: Sequence[int],
        read: Read,
    ) -> None:
        self.model, self.prefix, self.batch, self.read = model, prefix, batch, read
        self.prompts = [prompts[index] for index in batch]
        self.drawn = [drawn[index] for index in batch]
        self.draws = len(self.drawn[0])
        self.owners = torch.arange(len(batch)).repeat_interleave(self.draws)
        """Row under noise -> its prompt in the batch."""
        self.tuples = False
        """Whether blocks return tuples."""

    def traced(
        self, kinds: Sequence[Kind], places: Sequence[Place], window: int, progress: Progress
    ) -> list[_Traced]:
        layers = self.model.n_layers
        jobs = [
            _Job(kind, place, layer, window_of(layer, 1 if kind == "state" else window, layers))
            for kind in kinds
            for place in places
            for layer in range(layers)
        ]
        jobs.sort(key=lambda job: job.changed[0])
        clean_scores, clean = self._clean(kinds)
        noisy, entering = self._noisy()
        unknown = torch.full((layers,), torch.nan, dtype=torch.float64)
        found = [
            _Traced(one, other, {(kind, place): unknown.clone() for kind in kinds
                                 for place in places})
            for one, other in zip(clean_scores, noisy, strict=True)
        ]  # fmt: skip
        reached = 0
        for job in progress(jobs, "tracing", len(jobs)):
            while reached < job.changed[0]:
                entering = self._leaving(reached, entering)
                reached += 1
            for index, score in self._restored(job, clean, entering):
                gained = score - noisy[index]
                found[index].restored[job.kind, job.place][job.layer] = gained
        return found

    # Runs -----------------------------------------------------------------------------

    def _clean(self, kinds: Sequence[Kind]) -> tuple[Tensor, _Clean]:
        clean = _Clean()
        sites = [s for kind in kinds if kind in _ROLES for s in self.model.sites(_ROLES[kind])]

        def see(site: Site, activation: Tensor) -> None:
            clean.written[site] = activation

        def note(layer: int, state: Tensor) -> None:
            if "state" in kinds:
                clean.states[layer] = state

        everyone = torch.arange(len(self.prompts))
        with self.model.intercepted(sites, see, "output"), self._blocks(note):
            return self._scores(self._run(everyone), everyone), clean

    def _noisy(self) -> tuple[Tensor, Tensor]:
        """Scores ``(prompts,)``, and what enters the first block ``(rows, seq, d_model)``."""
        seen: list[Tensor] = []

        def drown(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            noise = torch.zeros(output.shape, dtype=torch.float32)
            for row, owner in enumerate(self.owners.tolist()):
                places = [place - self.prefix.length for place in self.prompts[owner].drowned]
                noise[row, places] = self.drawn[owner][row % self.draws]
            return output + noise.to(output.device, output.dtype)

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        with ExitStack() as hooks:
            first = self.model.blocks()[0]
            hooks.callback(self.model.embedding.register_forward_hook(drown).remove)
            hooks.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
            scores = self._scores(self._run(self.owners), self.owners)
        return self._mean(scores), seen[0]

    def _leaving(self, layer: int, entering: Tensor) -> Tensor:
        """Under noise, what enters the block after ``layer``."""
        left: list[Tensor] = []

        def note(number: int, state: Tensor) -> None:
            if number == layer:
                left.append(state)
                raise StopForward

        try:
            with self._blocks(note):
                self._run(self.owners, layer, entering)
        except StopForward:
            pass
        return left[0]

    def _restored(self, job: _Job, clean: _Clean, entering: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Prompt of the batch and its score, of all that have the place."""
        having = [bool(prompt.positions(job.place)) for prompt in self.prompts]
        rows = torch.arange(len(self.owners))[torch.tensor(having)[self.owners]]
        if not len(rows):
            return
        pairs = [
            (number, place - self.prefix.length)
            for number, owner in enumerate(self.owners[rows].tolist())
            for place in self.prompts[owner].positions(job.place)
        ]
        where, places = (torch.tensor(column) for column in zip(*pairs, strict=True))
        owners = self.owners[rows][where]

        def put(activation: Tensor, original: Tensor) -> Tensor:
            restored, device = activation.clone(), activation.device
            kept = original[owners.to(original.device), places.to(original.device)]
            restored[where.to(device), places.to(device)] = kept.to(device)
            return restored

        def back(site: Site, activation: Tensor) -> Tensor:
            return put(activation, clean.written[site])

        def state(layer: int, activation: Tensor) -> Tensor | None:
            return put(activation, clean.states[layer]) if layer == job.layer else None

        with ExitStack() as changing:
            if job.kind == "state":
                changing.enter_context(self._blocks(state))
            else:
                sites = self.model.sites(_ROLES[job.kind], job.changed)
                changing.enter_context(self.model.intercepted(sites, back, "output"))
            hidden = self._run(
                self.owners[rows], job.changed[0], entering[rows.to(entering.device)]
            )
        scores = self._mean(self._scores(hidden, self.owners[rows]))
        yield from zip([index for index, has in enumerate(having) if has], scores, strict=True)

    def _run(self, owners: Tensor, layer: int = 0, entering: Tensor | None = None) -> Tensor:
        """Final hidden states ``(rows, d_model)`` at the ends of the prompts that rows are of, from
        ``layer`` on where it is told what enters that block."""
        cache, own = self.prefix.begin([self.prompts[owner].ids for owner in owners.tolist()])
        used = cache if self.prefix.length else None
        tokens = pad_right(own, filler_token(self.model)).to(self.model.device)
        with ExitStack() as starting:
            if entering is not None:
                blocks = self.model.blocks()
                starting.enter_context(starting_at(blocks, layer, entering, tuples=self.tuples))
            hidden: Tensor = self.model.model.base_model(
                input_ids=tokens, past_key_values=used, use_cache=used is not None
            ).last_hidden_state
        ends = torch.tensor([len(each) - 1 for each in own], device=hidden.device)
        return hidden[torch.arange(len(own), device=hidden.device), ends]

    def _scores(self, hidden: Tensor, owners: Tensor) -> Tensor:
        """``(rows,)`` fp64, CPU."""
        logits = self.model.logits(hidden).float()
        return self.read(logits, [self.batch[owner] for owner in owners.tolist()]).double().cpu()

    def _mean(self, scores: Tensor) -> Tensor:
        return scores.reshape(-1, self.draws).mean(1)

    @contextmanager
    def _blocks(self, see: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """``see(layer, state)`` what leaves each block that runs; it may replace it."""

        def after(layer: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                self.tuples = isinstance(output, tuple)
                replaced = see(layer, output[0] if self.tuples else output)
                if replaced is None:
                    return None
                return (replaced, *output[1:]) if self.tuples else replaced

            return hook

        with ExitStack() as hooks:
            for layer, block in enumerate(self.model.blocks()):
                hooks.callback(block.register_forward_hook(after(layer)).remove)
            yield
