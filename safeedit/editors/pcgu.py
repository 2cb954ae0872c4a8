"""PCGU: the weights whose gradients differ most between two sentences that differ in gender.

Two sentences differ in a pronoun alone, one as the stereotype has it (*advantaged*) and one against
it. For each the gradient of its log-probability is taken, from where the two part ways; every
matrix of the chosen layers is parted into the weights of one output each (or of one input), and of
all parts those `parts` are moved whose two gradients have the least cosine: what both sentences
need alike stays. They take a step that makes the advantaged sentence less likely (or the
disadvantaged one more). Plain gradient descent, no retain data; which parts move is chosen anew at
each step.

Doses are steps of one training, looked at on the way. Nothing holds the model but the smallness of
the steps: gate near and far answers, prose and factual gender, as for other edits of bias.

With `contrast: continuation` a sentence's log-probability is that of its pronoun and what follows;
with `answer` the model is asked whom the pronoun means, and it is that of the profession, after
either pronoun: the gap that `bias.winobias` measures.

What departs from the publication, which is on masked language models: log-probabilities of all that
differs stand in place of the logit at the mask, and the model is not in training mode (its code has
dropout inside the cosines). Its "dynamic" choice of a direction is left out. Vocabulary matrices,
biases and norms are not trained.

Fails with :class:`~safeedit.errors.DataError` where no two sentences make a pair, and with
:class:`~safeedit.errors.EditError` where a gradient is no number.

Source: Yu et al., "Unlearning Bias in Language Models by Partitioning Gradients", Findings of ACL
2023: 10,000 parts, rate 1e-5, batches of 16, 5 epochs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from safeedit.contracts import (
    BaseParams,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.data.coreference import asked, professions_of, pronoun_of, without_pronoun
from safeedit.errors import DataError, EditError
from safeedit.methods.training import Checkpoints, WholeTensors, stepwise_proposal
from safeedit.methods.tuning import Example, answer_states, endless, token_losses
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import Layers, resolve

_BATCH = 16
"""Pairs per step (published)."""


class PcguParams(BaseParams):
    """Parameters of PCGU."""

    layers: Layers = Field("0%-100%", description="whose matrices are parted (published: all)")
    parts: int = Field(
        10_000, ge=1, description="parts that take a step: those of least cosine (published)"
    )
    part: Literal["outputs", "inputs"] = Field(
        "outputs", description="a part: the weights into one output, or those out of one input"
    )
    contrast: Literal["continuation", "answer"] = Field(
        "continuation", description="what is contrasted, see above"
    )
    direction: Literal["lower_advantaged", "raise_disadvantaged"] = Field(
        "lower_advantaged", description="what a step does (published: the former)"
    )
    learning_rate: float = Field(1e-5, gt=0, description="of plain gradient descent (published)")
    doses: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (10, 20, 40, 75), min_length=1, description="steps of training, ascending"
    )


class Pcgu:
    """See the module's docstring."""

    Params = PcguParams
    summary: ClassVar[str] = "moves the weights that sentences of either gender contrast in"
    results: ClassVar[str] = "editors"
    measured: ClassVar[str] = "Not measured on a real model yet."
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole(
            "sentences",
            "sentences with either pronoun, for and against the stereotype: {answer, professions, "
            "pronoun, side}",
            answered=True,
        ),
    )

    def __init__(self, params: Any) -> None:
        self.params: PcguParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """All matrices of the chosen layers; no biases."""
        layers = resolve(self.params.layers, model.n_layers)
        return [plan for role in model.roles for plan in model.tensors(role, layers)]

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens trained on, roughly, for ``plan``."""
        return max(self.params.doses) * _BATCH * 2 * 25

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Train when a dose is asked for, on from the last one where it can."""
        params, sentences = self.params, data["sentences"]
        pairs, unpaired = read_pairs(model, sentences, params.contrast)
        learner = WholeTensors(model, [plan.name for plan in self.touches(model.shape)])
        training = PartedTraining(model, learner, pairs, params, ctx)
        checkpoints = Checkpoints(training, learner, params.doses, lambda: None)
        notes: dict[str, Any] = {
            "pairs": len(pairs),
            "sentences_without_counterpart": unpaired,
            "parts": min(params.parts, training.count),
            "parts_in_all": training.count,
        }
        return stepwise_proposal(
            "pcgu", params, sentences, ctx, model.digest(), training, checkpoints, notes
        )


@dataclass(frozen=True, eq=False)
class GenderedPair:
    """One sentence in both genders; answers are what is contrasted."""

    advantaged: Example
    disadvantaged: Example


def read_pairs(
    model: ModelHandle, data: Dataset, contrast: Literal["continuation", "answer"]
) -> tuple[list[GenderedPair], int]:
    """Pairs of fit sentences, and how many sentences have no counterpart.

    Raises:
        DataError: There is no pair.
    """
    sides: dict[tuple[str, str], dict[str, Item]] = {}
    lacking = 0
    for item in data.items("fit"):
        pronoun, side = pronoun_of(item), item.extra.get("side")
        if pronoun is None or professions_of(item) is None or side not in ("pro", "anti"):
            lacking += 1
            continue
        sides.setdefault((without_pronoun(item, pronoun), item.answer or ""), {})[side] = item
    whole = [found for found in sides.values() if len(found) == 2]
    if not whole:
        raise DataError(
            "no two sentences differ in a pronoun alone, one for and one against the stereotype",
            remedy="rows need {prompt, answer, professions, pronoun, side: pro or anti}, each "
            "sentence with either pronoun, such as 'dataset: occupations, where: {kind: winobias}'",
        )
    read = _continuation if contrast == "continuation" else _answer
    pairs = [GenderedPair(read(model, found["pro"]), read(model, found["anti"])) for found in whole]
    # A pronoun that begins its sentence has nothing before it.
    kept = [pair for pair in pairs if pair.advantaged.prompt and pair.disadvantaged.prompt]
    if not kept:
        raise DataError(
            "every sentence begins with its pronoun: nothing stands before it",
            remedy="give sentences that name somebody first, or use 'contrast: answer'",
        )
    return kept, lacking + sum(len(found) for found in sides.values()) - 2 * len(kept)


def _continuation(model: ModelHandle, item: Item) -> Example:
    """The sentence from its pronoun on, after what stands before."""
    before, _, after = without_pronoun(item, pronoun_of(item) or "").partition("{}")
    codec = model.engine.codec
    (prompt,) = codec.encode([before.rstrip()], "plain") if before.strip() else ([],)
    return Example(prompt, codec.continuation(f"{pronoun_of(item)}{after}", "plain"))


def _answer(model: ModelHandle, item: Item) -> Example:
    """The profession, after the question whom the pronoun means."""
    codec = model.engine.codec
    (prompt,) = codec.encode([asked(item, pronoun_of(item) or "")], "plain")
    return Example(prompt, codec.continuation(item.answer or "", "plain"))


class PartedTraining:
    """One run of training; see :class:`~safeedit.methods.training.Training`."""

    def __init__(
        self,
        model: ModelHandle,
        learner: WholeTensors,
        pairs: Sequence[GenderedPair],
        params: PcguParams,
        ctx: RunContext,
    ) -> None:
        self.losses: dict[int, float] = {}
        """Steps -> by how many nats the advantaged sentence was likelier, mean since the stop
        before."""
        self._model, self._learner, self._pairs = model, learner, pairs
        self._params, self._ctx = params, ctx
        self._done = 0
        self._batches: Iterator[GenderedPair] | None = None
        (plans, names) = (Pcgu(params).touches(model.shape), set(model.shape.transposed))
        own = params.part == "outputs"
        self._dims = [0 if (plan.name in names) == own else 1 for plan in plans]
        """Of each tensor as it is stored, along which a part lies."""
        self.count = sum(plan.shape[0 if own else 1] for plan in plans)
        """Parts in all."""

    def to(self, steps: int) -> None:
        """Train up to so many steps in all; from the start where it is past them.

        Raises:
            EditError: A gradient is no number.
        """
        if self._batches is None or self._done > steps:
            self._learner.begin_again()
            self._done, self._batches = 0, endless(self._pairs, random.Random(self._ctx.seed))
        batches, noted = self._batches, list[float]()
        self._batches = None  # until this has gone well
        todo = range(self._done, steps)
        with self._learner.put() as parameters:
            for _ in self._ctx.progress(todo, "contrasting gradients", len(todo)):
                noted.append(self._step(parameters, [next(batches) for _ in range(_BATCH)]))
        self._done, self._batches = steps, batches
        if noted:
            self.losses[steps] = sum(noted) / len(noted)

    def _step(self, parameters: Sequence[nn.Parameter], batch: Sequence[GenderedPair]) -> float:
        likely, up = self._gradients(parameters, [pair.advantaged for pair in batch])
        other, down = self._gradients(parameters, [pair.disadvantaged for pair in batch])
        cosines = [
            functional.cosine_similarity(a, b, dim=dim).masked_fill_(
                (a.norm(dim=dim) == 0) | (b.norm(dim=dim) == 0), 1.0
            )
            for a, b, dim in zip(up, down, self._dims, strict=True)
        ]
        chosen = least(cosines, self._params.parts)
        lower = self._params.direction == "lower_advantaged"
        rate = -self._params.learning_rate if lower else self._params.learning_rate
        with torch.no_grad():
            for parameter, gradient, taken, dim in zip(
                parameters, up if lower else down, chosen, self._dims, strict=True
            ):
                parameter.data += rate * gradient * taken.unsqueeze(dim)
        return likely - other

    def _gradients(
        self, parameters: Sequence[nn.Parameter], batch: Sequence[Example]
    ) -> tuple[float, list[Tensor]]:
        """The mean log-probability of the answers, nats, and its gradients, as stored."""
        total = -token_losses(self._model, answer_states(self._model, batch), batch).sum()
        found = torch.autograd.grad(total / len(batch), list(parameters))
        if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
            raise EditError(
                "contrasting gradients diverged: a gradient is no number",
                remedy="take a lower learning_rate, or fewer steps",
            )
        return float(total.detach()) / len(batch), [gradient.float() for gradient in found]


def least(cosines: Sequence[Tensor], count: int) -> list[Tensor]:
    """Of parts with these cosines, ``(parts,)`` of each tensor, which are among the ``count`` of
    least cosine, booleans alike; of equal ones the first."""
    together = torch.cat([each.flatten().cpu() for each in cosines])
    taken = torch.zeros(len(together), dtype=torch.bool)
    taken[together.argsort(stable=True)[:count]] = True
    parts = taken.split([len(each) for each in cosines])
    return [part.to(each.device) for part, each in zip(parts, cosines, strict=True)]
