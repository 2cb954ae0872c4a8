"""How a map of REMEDI learns from lessons; the model is frozen.

What is learnt and how it is put to use is :mod:`safeedit.methods.remedi.mapping`, which see for the
loss and for what differs from the published code.

Source: Hernandez et al., arXiv 2304.00740, and its reference code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.contracts import Progress, Template, silent
from safeedit.errors import DataError, EditError, UsageError
from safeedit.methods.facts.keys import TokenPosition
from safeedit.methods.remedi.examples import (
    COLUMNS,
    AttributeExample,
    attribute_states,
    entity_spots,
    entity_states,
)
from safeedit.methods.remedi.mapping import Remedi, Scaling, mapped
from safeedit.methods.vocabulary_chunks import chunked
from safeedit.model.activations import starting_at
from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True)
class TrainingConfig:
    """How a map learns; the defaults are the published ones but where noted.

    Attributes:
        rank: Of ``F``; None: full where there are more lessons than dimensions, else 64.
        epochs: At most.
        batch: Lessons in a step.
        learning_rate: AdamW's (published: 1e-3, for states as they are).
        patience: Epochs without a better held-out loss before it ends.
        held_out: Share of the attributes whose lessons only decide when to end.
        avoid: Weight of ``-log(1 - p(other))``.
        own: Multiples of the attribute's own state to begin with, of which the one counts that has
            the least loss over the lessons taught; (0,): none (published).
        keep: Weight of the divergence (published: 10, of which its loop applied the part of one
            lesson in a batch of 16).
        seed: Of order, start and what is held out.
    """

    rank: int | None = None
    epochs: int = 20
    batch: int = 16
    learning_rate: float = 3e-4
    patience: int = 2
    held_out: float = 0.1
    avoid: float = 1.0
    own: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    keep: float = 1.0
    seed: int = 0


def train(
    model: ModelHandle,
    lessons: Sequence[AttributeExample],
    layer: int,
    template: Template,
    schooling: TrainingConfig,
    *,
    probe_layer: int | None = None,
    progress: Progress = silent,
) -> Remedi:
    """Learn a map; the model's weights stay.

    Args:
        model: Frozen.
        lessons: Two at least.
        layer: Whose output is read and shifted; not the last.
        template: How prompts are put.
        schooling: How.
        probe_layer: Whose output is probed; None: halfway from ``layer`` to the last.
        progress: Shown per epoch.

    Raises:
        DataError: See the module.
        EditError: Training diverged, or taught nothing that holds for attributes held out.
        UsageError: No block follows ``layer``.
    """
    if layer >= model.n_layers - 1:
        raise UsageError(
            f"layer {layer} is the last: what is added there reaches no other token",
            field="layers",
            remedy=f"use a layer from 0 to {model.n_layers - 2}",
        )
    if len(lessons) < 2:
        raise DataError(f"{len(lessons)} lessons are too few to learn from", remedy=COLUMNS)
    if probe_layer is None:
        probe_layer = (layer + model.n_layers - 1) // 2
    school = MapTraining(model, lessons, layer, template, schooling, progress)
    factors, bias, notes = school.learn()
    spots = list({spot.until: spot for spot in school.spots}.values())
    given = school.own * school.states + mapped(factors, bias, school.states)
    return Remedi(
        base=model.digest(),
        layer=layer,
        probe_layer=probe_layer,
        own=school.own,
        factors=factors,
        bias=bias,
        entities=Scaling.of(entity_states(model, spots, probe_layer, progress)),
        directions=Scaling.of(given),
        notes=notes,
    )


class MapTraining:
    """One training on its way."""

    def __init__(
        self,
        model: ModelHandle,
        lessons: Sequence[AttributeExample],
        layer: int,
        template: Template,
        schooling: TrainingConfig,
        progress: Progress,
    ) -> None:
        self.model, self.layer, self.how, self.progress = model, layer, schooling, progress
        self.states = attribute_states(model, lessons, layer, progress)
        self.apart = self.states - self.states.mean(0)
        """What tells each attribute from others."""
        self.own = 0.0
        """How much of it is added."""
        self.spots = entity_spots(model, lessons, template)
        self.targets, self.others = _first_tokens(model, lessons, template)
        generator = torch.Generator().manual_seed(schooling.seed)
        self.generator = generator
        names = list(dict.fromkeys(given.attribute for given in lessons))
        kept = round(schooling.held_out * len(names)) if len(names) > 2 else 0
        if schooling.held_out and len(names) > 2:
            kept = max(1, kept)
        chosen = {names[i] for i in torch.randperm(len(names), generator=generator)[:kept].tolist()}
        self.held = [n for n, given in enumerate(lessons) if given.attribute in chosen]
        self.taught = [n for n, given in enumerate(lessons) if given.attribute not in chosen]
        self._read()

    @torch.no_grad()
    def _read(self) -> None:
        """What leaves ``layer``, and what the model says itself, once per prompt."""
        prompts = list(dict.fromkeys(tuple(spot.ids) for spot in self.spots))
        engine, last = self.model.engine, self.model.n_layers - 1
        hidden = engine.hidden(
            prompts, [self.layer, last], "all", progress=self.progress,
            description="reading prompts",
        )  # fmt: skip
        self.entering = dict(zip(prompts, hidden[self.layer], strict=True))
        self.leaving = dict(zip(prompts, hidden[last], strict=True))
        self.tuples = _returns_tuples(self.model, prompts[0])
        entities = torch.stack([self.entering[tuple(s.ids)][s.position] for s in self.spots])
        self.unit = float(entities.float().square().mean().sqrt())

    def learn(self) -> tuple[tuple[Tensor, ...], Tensor, dict[str, float]]:
        """``F`` as factors, ``b``, and what is to be recorded."""
        scaling = Scaling.of(self.states)
        inputs = scaling(self.states) / math.sqrt(self.model.d_model)
        trained = self._start()
        optimiser = torch.optim.AdamW(trained, lr=self.how.learning_rate)
        best = _copies(trained)
        judged = self.held or self.taught
        started = lowest = self.mean_loss(trained, inputs, judged)
        self.own = self._best_own(trained, inputs)
        if self.own:
            lowest = self.mean_loss(trained, inputs, judged)
        waited = epochs = 0
        for _ in self.progress(range(self.how.epochs), "training the map", self.how.epochs):
            self._epoch(trained, inputs, optimiser)
            epochs += 1
            now = self.mean_loss(trained, inputs, judged)
            if not math.isfinite(now):
                raise EditError(
                    "training the map diverged: the loss is no number",
                    remedy="lower 'learning_rate'",
                )
            if now < lowest:
                lowest, waited, best = now, 0, _copies(trained)
            else:
                waited += 1
                if waited >= self.how.patience:
                    break
        if not lowest < started:
            raise EditError(
                f"the map learnt nothing in {epochs} epochs: its held-out loss did not fall",
                remedy="give more lessons, or another 'learning_rate' or layer",
            )
        notes = {
            "lessons": float(len(self.taught)), "held_out_lessons": float(len(self.held)),
            "rank": float(len(best[-2])), "epochs": float(epochs),
            "loss_before": started, "loss_after": lowest, "own": self.own,
        }  # fmt: skip
        return *self._unscaled(best, scaling), notes

    def _start(self) -> list[Tensor]:
        """Factors and bias to begin with: zero, but for the factor that reads inputs."""
        width = self.model.d_model
        rank = self.how.rank or (width if len(self.states) >= width else min(64, len(self.states)))
        trained = [torch.zeros(width, min(rank, width)), torch.zeros(width)]
        if rank < width:
            trained.insert(1, torch.randn(rank, width, generator=self.generator))
        return [tensor.requires_grad_(True) for tensor in trained]

    def _epoch(
        self, trained: Sequence[Tensor], inputs: Tensor, optimiser: torch.optim.Optimizer
    ) -> None:
        """All lessons taught once, in an order of its own."""
        order = torch.randperm(len(self.taught), generator=self.generator).tolist()
        for begin in range(0, len(order), self.how.batch):
            rows = [self.taught[i] for i in order[begin : begin + self.how.batch]]
            loss = self.losses(trained, inputs, rows).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    def _unscaled(
        self, best: Sequence[Tensor], scaling: Scaling
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Factors and bias for states as they are, from those for scaled ones."""
        *factors, bias = best
        factors[0] = factors[0] * self.unit
        factors[-1] = factors[-1] / (scaling.spread * math.sqrt(self.model.d_model))
        shift = scaling.mean
        for factor in reversed(factors):
            shift = factor @ shift
        return tuple(factors), bias * self.unit - shift - self.own * scaling.mean

    def _best_own(self, trained: Sequence[Tensor], inputs: Tensor) -> float:
        """How much of the attributes' own states is to be added, before anything is learnt."""
        if len(self.how.own) == 1:
            return self.how.own[0]
        losses: dict[float, float] = {}
        for own in self.how.own:
            self.own = own
            losses[own] = self.mean_loss(trained, inputs, self.taught)
        return min(losses, key=losses.__getitem__)

    @torch.no_grad()
    def mean_loss(self, trained: Sequence[Tensor], inputs: Tensor, rows: Sequence[int]) -> float:
        size = self.how.batch
        parts = [
            self.losses(trained, inputs, rows[i : i + size]).double().sum()
            for i in range(0, len(rows), size)
        ]
        return float(sum(parts)) / len(rows)

    def losses(self, trained: Sequence[Tensor], inputs: Tensor, rows: Sequence[int]) -> Tensor:
        """``(rows,)`` fp32."""
        shifts = mapped(trained[:-1], trained[-1], inputs[list(rows)]) * self.unit
        shifts = shifts + self.own * self.apart[list(rows)]
        spots = [self.spots[row] for row in rows]
        hidden = self.shifted(spots, shifts)
        counts = [len(spot.ids) - spot.position for spot in spots]
        index = [n for n, count in enumerate(counts) for _ in range(count)]
        column = [t for spot in spots for t in range(spot.position, len(spot.ids))]
        base = torch.cat([self.leaving[tuple(s.ids)][s.position :] for s in spots])

        def read(some: range, now: Tensor, base: Tensor) -> Tensor:
            return self._of_states([rows[n] for n in some], [counts[n] for n in some], now, base)

        vocab = self.model.shape.vocab_size
        return chunked(read, counts, vocab, hidden[index, column], base)

    def _of_states(
        self, rows: Sequence[int], counts: Sequence[int], states: Tensor, base: Tensor
    ) -> Tensor:
        """``(rows,)`` fp32, from the states ``(sum(counts), d_model)`` now and before."""
        logits = self.model.logits(states).float()
        with torch.no_grad():
            was = self.model.unembed(base.to(logits.device)).float().log_softmax(-1)
        now = logits.log_softmax(-1)
        away = functional.kl_div(now, was, log_target=True, reduction="none").sum(-1)
        ends = torch.tensor(counts).cumsum(0) - 1
        before_end = torch.ones(len(states)).index_fill(0, ends, 0.0)
        owner = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        kept = torch.zeros(len(rows)).index_add(0, owner, away.cpu() * before_end)
        last = logits[ends.to(logits.device)]
        wanted = torch.tensor([self.targets[row] for row in rows], device=last.device)
        said = functional.cross_entropy(last, wanted, reduction="none").cpu()
        others = torch.tensor([self.others[row] for row in rows], device=last.device)
        total: Tensor = said + self.how.keep * kept
        return total + self.how.avoid * not_said(last, others).cpu()

    def shifted(self, spots: Sequence[TokenPosition], shifts: Tensor) -> Tensor:
        """Final hidden states ``(n, seq, d_model)`` with ``shifts`` added at the spots."""
        rows = [self.entering[tuple(spot.ids)] for spot in spots]
        entering = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = torch.tensor([spot.position for spot in spots])
        moved = entering.index_put(
            (torch.arange(len(spots)), places), shifts.to(entering.dtype), accumulate=True
        )
        first = self.layer + 1
        device = next(self.model.blocks()[first].parameters()).device
        inputs = {
            "input_ids": pad_right([spot.ids for spot in spots]),
            "attention_mask": pad_right([[1] * len(spot.ids) for spot in spots]),
        }
        with starting_at(self.model.blocks(), first, moved.to(device), tuples=self.tuples):
            return self.model.forward(inputs)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What an optimiser, which writes to the tensors themselves, will not change."""
    return [tensor.detach().clone() for tensor in tensors]


def not_said(logits: Tensor, tokens: Tensor) -> Tensor:
    """``-log(1 - p(token))`` ``(n,)``, finite also where p is 1; 0 for tokens below 0.

    Args:
        logits: ``(n, vocab)`` fp32.
        tokens: ``(n,)``.
    """
    some = tokens >= 0
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    hidden[some.nonzero()[:, 0], tokens[some]] = True
    rest = logits.masked_fill(hidden, -torch.inf).logsumexp(-1)
    return torch.where(some, logits.logsumexp(-1) - rest, torch.zeros_like(rest))


def _first_tokens(
    model: ModelHandle, lessons: Sequence[AttributeExample], template: Template
) -> tuple[list[int], list[int]]:
    """First token of each target, and of each other word; -1 where there is none, or where it is
    the target's as well and so tells nothing."""
    words = list(dict.fromkeys(w for one in lessons for w in (one.target, one.other) if w))
    tokens = model.engine.continuations(words, template)
    first = {word: ids[0] for word, ids in zip(words, tokens, strict=True) if ids}
    if any(one.target not in first for one in lessons):
        raise DataError("a target comes to no tokens", field="target", remedy=COLUMNS)
    targets = [first[one.target] for one in lessons]
    others = [first.get(one.other or "", -1) for one in lessons]
    apart = [-1 if one == two else two for one, two in zip(targets, others, strict=True)]
    return targets, apart


@torch.no_grad()
def _returns_tuples(model: ModelHandle, ids: Sequence[int]) -> bool:
    """Whether the family's blocks return tuples."""
    seen: list[bool] = []
    hook = model.blocks()[0].register_forward_hook(
        lambda module, args, output: seen.append(isinstance(output, tuple))
    )
    try:
        model.forward({"input_ids": torch.tensor([list(ids)])})
    finally:
        hook.remove()
    return seen[0]
