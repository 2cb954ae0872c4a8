"""REMEDI: an affine map from what a text says of an entity to a direction that makes it so.

A *lesson* is a context that states an attribute ("Anita runs a legal office"), and a prompt about
the same entity that does not ("Anita works as a"). The attribute's representation ``h``
``(d_model,)`` is the mean of what leaves block ``layer`` over its tokens in the context; the map
gives ``F h + b``, which is added to what leaves the same block at the entity's last token in the
prompt. The model is frozen; the map learns, in float32, so that the context's word follows:

    loss = mean over lessons of  - log p(target) - log(1 - p(other)) + keep * sum_t KL(p_t || p'_t)

with first tokens of target and other, and ``t`` from the entity's token to the last but one. The
blocks up to ``layer`` are run once for all epochs; a pass of training starts above them.

Unlike the published code, the divergence counts every position of every lesson (there, the last
lesson of a batch alone), ``log(1 - p)`` is a sum over the other words and never infinite, the best
state is a copy, prompts of one token are edited like others, and tokens are found by offsets.
``F`` begins as ``own`` times the identity, which adds what tells an attribute from others as it
stands in its context: that holds for attributes never seen, where a few hundred lessons teach
little. What is learnt comes on top. With fewer lessons than dimensions that is of low rank. Inputs
are standardised and outputs scaled by the entities' states, both taken into ``F`` and ``b``, so
that one learning rate fits any model.

As a *probe*, an attribute is held of an entity as far as ``<z(entity), z(F h + b)>`` says, where z
standardises each dimension by the statistics of the training lessons.

Fails with :class:`~safeedit.errors.DataError` where a lesson lacks a column or does not mention its
subject, with :class:`~safeedit.errors.EditError` where training diverges, with
:class:`~safeedit.errors.ModelError` where a file is no map of this model.

Source: Hernandez et al., arXiv 2304.00740, and its reference code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from safeedit import __version__
from safeedit.cache import PRIVATE, write_atomically
from safeedit.contracts import Progress, Template, silent
from safeedit.errors import DataError, EditError, ModelError, UsageError
from safeedit.methods.facts.keys import TokenPosition
from safeedit.methods.remedi.examples import (
    COLUMNS,
    AttributeExample,
    attribute_states,
    entity_spots,
    entity_states,
)
from safeedit.methods.remedi.steering import Steer
from safeedit.model.activations import starting_at
from safeedit.model.batching import pad_right
from safeedit.model.handle import ModelHandle
from safeedit.policy.files import check_regular

FORMAT = "safeedit-remedi-2"


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


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of each dimension, ``(d_model,)`` fp32."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scaling:
        """Of states ``(n, d_model)``; a dimension that hardly varies gets the least spread of
        those that do not count as constant."""
        spread = rows.std(0, correction=0)
        return cls(rows.mean(0), spread.clamp(min=1e-3 * float(spread.max()) + 1e-12))

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.spread


@dataclass(frozen=True, eq=False)
class Remedi:
    """A trained map.

    Attributes:
        base: Digest of the weights it was trained on.
        layer: Whose output it reads and shifts.
        probe_layer: Whose output is probed at the entity.
        own: Multiple of the identity in ``F``.
        factors: The rest of ``F`` as a product, each fp32 on the CPU: one matrix, or two of low
            rank.
        bias: ``(d_model,)`` fp32.
        entities: Statistics of the training entities at ``probe_layer``.
        directions: Of the training directions.
        notes: Numbers on the training, for records.
    """

    base: str
    layer: int
    probe_layer: int
    own: float
    factors: tuple[Tensor, ...]
    bias: Tensor
    entities: Scaling
    directions: Scaling
    notes: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, states: Tensor) -> Tensor:
        """Directions ``(n, d_model)`` of attributes' representations ``(n, d_model)``."""
        return self.own * states + _mapped(self.factors, self.bias, states)

    def check(self, model: ModelHandle) -> None:
        """See that it was made for this model.

        Raises:
            ModelError: It was trained on other weights.
        """
        if len(self.bias) != model.d_model or self.base != model.digest():
            raise ModelError(
                f"the map was trained on other weights (its base is {self.base[:12]}, the model is "
                f"{model.digest()[:12]})",
                remedy="train a map on this model: safeedit remedi train",
            )

    def learnt_of(
        self,
        model: ModelHandle,
        lessons: Sequence[AttributeExample],
        scale: float = 1.0,
        progress: Progress = silent,
    ) -> list[Steer]:
        """What is added for each lesson's entity: for
        :func:`safeedit.methods.remedi.steering.steering`.

        Args:
            model: That the map was trained on.
            lessons: Their contexts count; a subject's last one wins.
            scale: Of the directions.
            progress: Shown per context.
        """
        shifts = scale * self(attribute_states(model, lessons, self.layer, progress))
        latest = {given.subject: row for given, row in zip(lessons, shifts, strict=True)}
        return [Steer(subject, self.layer, shift) for subject, shift in latest.items()]

    def scores(self, states: Tensor, directions: Tensor) -> Tensor:
        """How far entities hold attributes.

        Args:
            states: ``(n, d_model)`` of the entities, as they leave ``probe_layer``.
            directions: ``(n, k, d_model)``, of ``k`` attributes each.

        Returns:
            ``(n, k)``; the greatest is the one held.
        """
        return torch.einsum("nd,nkd->nk", self.entities(states), self.directions(directions))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file; whole or not at all.

        Raises:
            OSError: It can't be written.
        """
        path = Path(path)
        tensors = {f"factor{n}": factor for n, factor in enumerate(self.factors)} | {
            "bias": self.bias,
            "entities.mean": self.entities.mean,
            "entities.spread": self.entities.spread,
            "directions.mean": self.directions.mean,
            "directions.spread": self.directions.spread,
        }
        header = {
            "format": FORMAT, "base": self.base, "layer": self.layer, "version": __version__,
            "probe_layer": self.probe_layer, "own": self.own, "notes": dict(self.notes),
        }  # fmt: skip
        stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"safeedit": json.dumps(header, sort_keys=True)}
        write_atomically(path, save(stored, metadata=metadata), PRIVATE)

    @classmethod
    def load(cls, path: Path | str) -> Remedi:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: The file is missing, damaged, or no map of this version.
        """
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["safeedit"])
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is not '{FORMAT}'")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            factors = tuple(tensors[n] for n in ("factor0", "factor1") if n in tensors)
            width = len(tensors["bias"])
            if not factors or factors[0].shape[0] != width or factors[-1].shape[1] != width:
                raise ValueError("its factors don't fit together")
            return cls(
                header["base"], header["layer"], header["probe_layer"], header["own"], factors,
                tensors["bias"],
                Scaling(tensors["entities.mean"], tensors["entities.spread"]),
                Scaling(tensors["directions.mean"], tensors["directions.spread"]),
                header["notes"],
            )  # fmt: skip
        except FileNotFoundError as error:
            raise ModelError("this map does not exist", file=path) from error
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"cannot read this map: {error}", file=path,
                remedy="the file is damaged or no map of safeedit: train it again",
            ) from error  # fmt: skip


# Training ---------------------------------------------------------------------------------


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
    school = _School(model, lessons, layer, template, schooling, progress)
    factors, bias, notes = school.learn()
    spots = list({spot.until: spot for spot in school.spots}.values())
    given = school.own * school.states + _mapped(factors, bias, school.states)
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


def _mapped(factors: Sequence[Tensor], bias: Tensor, states: Tensor) -> Tensor:
    for factor in reversed(factors):
        states = states @ factor.T
    return states + bias


class _School:
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
        width, how = self.model.d_model, self.how
        scaling = Scaling.of(self.states)
        inputs = scaling(self.states) / math.sqrt(width)
        rank = how.rank or (width if len(self.states) >= width else min(64, len(self.states)))
        trained = [torch.zeros(width, min(rank, width)), torch.zeros(width)]
        if rank < width:
            trained.insert(1, torch.randn(rank, width, generator=self.generator))
        for tensor in trained:
            tensor.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained, lr=how.learning_rate)
        best = [tensor.detach().clone() for tensor in trained]
        started = lowest = self._mean_loss(trained, inputs, self.held or self.taught)
        self.own = self._best_own(trained, inputs)
        if self.own:
            lowest = self._mean_loss(trained, inputs, self.held or self.taught)
        waited = epochs = 0
        for _ in self.progress(range(how.epochs), "training the map", how.epochs):
            order = torch.randperm(len(self.taught), generator=self.generator).tolist()
            for begin in range(0, len(order), how.batch):
                rows = [self.taught[i] for i in order[begin : begin + how.batch]]
                loss = self._losses(trained, inputs, rows).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
            epochs += 1
            now = self._mean_loss(trained, inputs, self.held or self.taught)
            if not math.isfinite(now):
                raise EditError(
                    "training the map diverged: the loss is no number",
                    remedy="lower 'learning_rate'",
                )
            if now < lowest:
                # A copy: the optimiser goes on writing to the tensors themselves.
                lowest, waited = now, 0
                best = [tensor.detach().clone() for tensor in trained]
            else:
                waited += 1
                if waited >= how.patience:
                    break
        if not lowest < started:
            raise EditError(
                f"the map learnt nothing in {epochs} epochs: its held-out loss did not fall",
                remedy="give more lessons, or another 'learning_rate' or layer",
            )
        *factors, bias = best
        factors[0] = factors[0] * self.unit
        factors[-1] = factors[-1] / (scaling.spread * math.sqrt(width))
        shift = scaling.mean
        for factor in reversed(factors):
            shift = factor @ shift
        notes = {
            "lessons": float(len(self.taught)), "held_out_lessons": float(len(self.held)),
            "rank": float(min(rank, width)), "epochs": float(epochs),
            "loss_before": started, "loss_after": lowest, "own": self.own,
        }  # fmt: skip
        return tuple(factors), bias * self.unit - shift - self.own * scaling.mean, notes

    def _best_own(self, trained: Sequence[Tensor], inputs: Tensor) -> float:
        """How much of the attributes' own states is to be added, before anything is learnt."""
        if len(self.how.own) == 1:
            return self.how.own[0]
        losses: dict[float, float] = {}
        for own in self.how.own:
            self.own = own
            losses[own] = self._mean_loss(trained, inputs, self.taught)
        return min(losses, key=losses.__getitem__)

    @torch.no_grad()
    def _mean_loss(self, trained: Sequence[Tensor], inputs: Tensor, rows: Sequence[int]) -> float:
        size = self.how.batch
        parts = [
            self._losses(trained, inputs, rows[i : i + size]).double().sum()
            for i in range(0, len(rows), size)
        ]
        return float(sum(parts)) / len(rows)

    def _losses(self, trained: Sequence[Tensor], inputs: Tensor, rows: Sequence[int]) -> Tensor:
        """``(rows,)`` fp32."""
        shifts = _mapped(trained[:-1], trained[-1], inputs[list(rows)]) * self.unit
        shifts = shifts + self.own * self.apart[list(rows)]
        spots = [self.spots[row] for row in rows]
        hidden = self._shifted(spots, shifts)
        counts = [len(spot.ids) - spot.position for spot in spots]
        index = [n for n, count in enumerate(counts) for _ in range(count)]
        column = [t for spot in spots for t in range(spot.position, len(spot.ids))]
        logits = self.model.logits(hidden[index, column]).float()
        base = torch.cat([self.leaving[tuple(s.ids)][s.position :] for s in spots])
        with torch.no_grad():
            was = self.model.unembed(base.to(logits.device)).float().log_softmax(-1)
        now = logits.log_softmax(-1)
        away = functional.kl_div(now, was, log_target=True, reduction="none").sum(-1)
        ends = torch.tensor(counts).cumsum(0) - 1
        before_end = torch.ones(len(index)).index_fill(0, ends, 0.0)
        owner = torch.tensor(index)
        kept = torch.zeros(len(rows)).index_add(0, owner, away.cpu() * before_end)
        last = logits[ends.to(logits.device)]
        wanted = torch.tensor([self.targets[row] for row in rows], device=last.device)
        said = functional.cross_entropy(last, wanted, reduction="none").cpu()
        others = torch.tensor([self.others[row] for row in rows], device=last.device)
        total: Tensor = said + self.how.keep * kept
        return total + self.how.avoid * _not_said(last, others).cpu()

    def _shifted(self, spots: Sequence[TokenPosition], shifts: Tensor) -> Tensor:
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


def _not_said(logits: Tensor, tokens: Tensor) -> Tensor:
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
